"""The end of an adaptation: round first, then measure what was rounded (law 4)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from graftwork._batch import Batch
from graftwork.deltas import Delta, build_ports, view
from graftwork.tasks import Task
from graftwork.training._adaptation import Adaptation
from graftwork.training._context import Settings, autocast, device_of
from graftwork.training._distributed import current_world
from graftwork.tuning import StoredType


def finish(
    adaptation: Adaptation,
    task: Task,
    *,
    stored: StoredType = "float16",
    provenance: Mapping[str, Any] | None = None,
    settings: Settings | None = None,
) -> tuple[Delta, dict[str, float]]:
    """Return the delta of a trained adaptation, and its metrics on stream "eval".

    Values and head are rounded to their stored type first. What is measured is that delta over the
    base, as `graftwork.deltas.view` gives it to everybody; the metrics join its provenance.

    Arguments:
        adaptation: trained.
        task: gives the rows and metrics; without a stream "eval" nothing is measured.
        stored: type of the stored values.
        provenance: JSON about how it was made.
        settings: precision and batch size of the evaluation.
    """
    settings = settings or Settings(device=device_of(adaptation.base.model))
    delta = adaptation.delta(stored, provenance)
    world = current_world()
    metrics: dict[str, float] = {}
    if "eval" in task.streams and world.leads:
        metrics = measure(adaptation, task, delta, settings)
    metrics = world.agree(metrics)
    return replace(delta, provenance={**delta.provenance, "metrics": metrics}), metrics


def measure(
    adaptation: Adaptation, task: Task, delta: Delta, settings: Settings, stream: str = "eval"
) -> dict[str, float]:
    """Return the metrics of a delta over the base of `adaptation`, nothing of the training used."""
    module = view(adaptation.base, delta).eval()
    ports = build_ports(delta).to(settings.device).eval()

    def run(batch: Batch) -> Any:
        with autocast(settings.device, settings.precision):
            inputs = batch.to(settings.device).inputs
            return adaptation.signature.call_model(module, ports, inputs)

    return task.evaluate(run, stream, settings.eval_batch_size)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    return {
        "graftwork": version("graftwork"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
