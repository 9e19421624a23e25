"""The end of an adaptation: round first, then measure what was rounded (law 4)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from graftwork._batch import Batch
from graftwork.deltas import Delta, build_ports, unconsumed, view
from graftwork.tasks import Task
from graftwork.training._adaptation import Adaptation
from graftwork.training._context import Settings, autocast
from graftwork.training._distributed import current_world
from graftwork.training._trainee import device_of
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
    base, as `graftwork.deltas.view` gives it to everybody. The metrics join its provenance, and
    "unread", tensors of the delta that no row of the evaluation reached, where there are any.

    Arguments:
        adaptation: trained.
        task: gives the rows and metrics; without a stream "eval" nothing is measured.
        stored: type of the stored values.
        provenance: JSON about how it was made.
        settings: device and batch size of the evaluation. Leave its precision at "fp32" to measure
            what `predict` and `evaluate` will give.
    """
    settings = settings or Settings(device=device_of(adaptation.base.model))
    delta = adaptation.delta(stored, provenance)
    world = current_world()
    found: tuple[dict[str, float], tuple[str, ...]] = {}, ()
    if "eval" in task.streams and world.leads:
        found = _measure(adaptation, task, delta, settings, "eval")
    metrics, unread = world.agree(found)
    made = {**delta.provenance, "metrics": metrics}
    if unread:
        made["unread"] = list(unread)
    return replace(delta, provenance=made), metrics


def measure(
    adaptation: Adaptation, task: Task, delta: Delta, settings: Settings, stream: str = "eval"
) -> dict[str, float]:
    """Return the metrics of a delta over the base of `adaptation`, nothing of the training used."""
    return _measure(adaptation, task, delta, settings, stream)[0]


def _measure(
    adaptation: Adaptation, task: Task, delta: Delta, settings: Settings, stream: str
) -> tuple[dict[str, float], tuple[str, ...]]:
    # where a model routes, a whole pass may miss a tensor; that is said, and is no error here
    module = view(adaptation.base, delta, unused="allow").eval()
    ports = build_ports(delta).to(settings.device).eval()

    def run(batch: Batch) -> Any:
        with autocast(settings.device, settings.precision):
            inputs = batch.to(settings.device).inputs
            return adaptation.signature.call_model(module, ports, inputs)

    return task.evaluate(run, stream, settings.eval_batch_size), unconsumed(module)


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    from importlib.metadata import version

    return {
        "graftwork": version("graftwork"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
    }
