"""The start of an adaptation: which tensors the task's loss reaches, then the tuner on those."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.autograd import grad

from graftwork._batch import Batch
from graftwork._errors import ConfigError, TrainingError, UnknownNameError
from graftwork.bases import Base
from graftwork.deltas import shared_copy
from graftwork.objectives import Objective
from graftwork.tasks import Signature, Task
from graftwork.training._adaptation import Adaptation
from graftwork.training._seeds import derive
from graftwork.training._trainee import device_of
from graftwork.tuning import Tuner

PROBE_ROWS = 2
"""Rows of the first batch that the probe runs: reach does not depend on how many."""


def start(
    base: Base,
    task: Task,
    tuner: Tuner,
    *,
    targets: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    seed: int = 0,
) -> Adaptation:
    """Return a new adaptation of `base` to `task`, before its first step.

    Arguments:
        base: the frozen base; never changed.
        task: gives the loss, the first batch and the ports.
        tuner: what parametrises the delta.
        targets: patterns of canonical names to tune. None takes every tensor that the task's loss
            reaches; others, such as a pooler that this way of calling the base leaves out, are in
            `Adaptation.unreached`.
        exclude: patterns to leave out.
        seed: of the head's first values and the tuner's draws. The caller's generators stay.

    Raises:
        UnknownNameError: a pattern matches nothing.
        TrainingError: a pattern of `targets` matches a tensor that the loss does not reach.
        UnsupportedError: the tuner cannot tune a target.
        ConfigError: the task has no signature.
    """
    signature = task.signature
    if signature is None:
        raise ConfigError(
            "this task has no signature, so no delta can come out of it; make it by "
            "`graftwork.tasks.make_task`, or train a whole module by `Whole`"
        )
    device = device_of(base.model)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(derive(seed, "ports"))
        ports = task.build_ports().to(device)
        if any(p.dtype == torch.float64 for p in base.model.parameters()):
            ports = ports.double()
        names = base.names.match(targets if targets is not None else ("*",), exclude)
        missed = unreached(base, _first_rows(task), signature, ports, names, _final(task, tuner))
        if missed and targets is not None:
            raise TrainingError(_explain(missed))
        chosen = [name for name in names if name not in set(missed)]
        attachment = tuner.attach(base, chosen, seed=seed)
    return Adaptation(
        base,
        signature,
        attachment,
        ports,
        specs=task.ports,
        stages=tuner.stages,
        seed=seed,
        unreached=missed,
    )


def unreached(
    base: Base,
    batch: Batch,
    signature: Signature,
    ports: nn.ModuleDict,
    names: Sequence[str],
    objectives: Sequence[Objective],
) -> list[str]:
    """Return those of `names` that the task's losses do not depend on.

    Without objectives (a step with losses of its own) it is the outputs that must depend on them.
    One small batch runs forward and backward through a copy that shares the base's storage. Tensors
    that cannot have a gradient (integers of a quantised base) count as unreached.
    """
    module = shared_copy(base.model).eval()
    leaves: dict[str, nn.Parameter] = {}
    for name in names:
        parameter = module.get_parameter(base.names[name].parameter)
        if parameter.is_floating_point():
            parameter.requires_grad_()
            leaves[name] = parameter
    distinct = list(dict.fromkeys(leaves.values()))
    found: set[int] = set()
    batch = batch.to(device_of(base.model))

    def run(rows: Batch) -> Tensor:
        return signature.call_model(module, ports, rows.inputs)

    results = [objective(run, batch) for objective in objectives] or [run(batch)]
    for loss in (result.sum() for result in results):
        if not loss.requires_grad or not distinct:
            continue
        # the annotation of torch forgets that unused ones are None
        gradients = cast("Sequence[Tensor | None]", grad(loss, distinct, allow_unused=True))
        found |= {id(p) for p, g in zip(distinct, gradients, strict=True) if g is not None}
    return [name for name in names if name not in leaves or id(leaves[name]) not in found]


def _final(task: Task, tuner: Tuner) -> list[Objective]:
    """Return the objectives of the last stage: those of others may read other streams."""
    return [task.objectives[name] for name in tuner.stages[-1].objectives or task.objectives]


def _first_rows(task: Task) -> Batch:
    if "train" not in task.streams:
        raise UnknownNameError("stream", "train", task.streams)
    stream = task.streams["train"]
    state = stream.state()
    batch = stream.draw()
    stream.load_state(state)
    return batch.select(torch.arange(min(PROBE_ROWS, len(batch))))


def _explain(missed: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in missed[:5])
    more = f" and {len(missed) - 5} more" if len(missed) > 5 else ""
    return (
        f"the task's loss does not reach the target(s) {shown}{more}, so they would never change; "
        f"add them to `exclude`, e.g. {missed[0]!r}, or leave `targets` empty to tune all that "
        "are reached"
    )
