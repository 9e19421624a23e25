"""A run: one configuration, one folder, one delta."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from graftwork.bases import Base, load
from graftwork.tasks import TableStream, Task, make_task
from graftwork.training._adaptation import Adaptation
from graftwork.training._checkpoint import Checkpoints
from graftwork.training._config import RunConfig, to_tree
from graftwork.training._context import Settings, device_of
from graftwork.training._distributed import World, current_world, joined
from graftwork.training._driver import Fitted, fit
from graftwork.training._finish import finish, versions
from graftwork.training._folder import RunFolder
from graftwork.training._interrupt import RunInterrupted
from graftwork.training._outcome import DeltaOutcome, RunResult
from graftwork.training._progress import progress
from graftwork.training._recorder import (
    History,
    Recorder,
    Recorders,
    Silent,
    TensorBoard,
    read_records,
)
from graftwork.training._start import start
from graftwork.training._write_report import write_report


def adapt(
    config: RunConfig,
    *,
    resume: bool = False,
    base: Base | None = None,
    task: Task | None = None,
) -> RunResult[DeltaOutcome]:
    """Train a delta as `config` says, in the folder `config.out`.

    The delta is rounded to its stored type before it is measured, and the same configuration on the
    same machine with the same number of threads gives the same bytes, whether the run was killed
    and resumed or not. Under torchrun all processes call it alike.

    Arguments:
        config: everything that the run depends on.
        resume: go on with the run in the folder where there is one; a finished run is returned.
        base: already loaded as `config` says, for several runs over one base.
        task: already made as `config` says, over that base; its training stream is rewound.

    Raises:
        StorageError: the folder holds another run, is in use, or the disk is full.
        ConfigError: the run in the folder has another configuration.
        TrainingError: a loss became NaN; the last good checkpoint is kept.
        RunInterrupted: Ctrl-C; a checkpoint was saved.
        GraftworkError: the base or the data are wrong.

    Example:
        >>> result = adapt(RunConfig(out="runs/first"))  # doctest: +SKIP
        >>> result.metrics["accuracy"], result.delta  # doctest: +SKIP
    """
    folder = RunFolder(Path(config.out))
    with joined() as world, folder.locked() if world.leads else nullcontext():
        found = folder.claim(to_tree(config), resume=resume) if world.leads else None
        finished: Mapping[str, Any] | None = world.agree(found)
        if finished is None:
            try:
                finished = _train(config, folder, world, base, task)
            except RunInterrupted as stop:
                command = f"graftwork adapt --config {folder.path}/config.yaml --resume"
                raise RunInterrupted(f"{stop}\ngo on with: {command}") from None
        return RunResult(
            outcome=DeltaOutcome.read(folder.path),
            metrics=finished["metrics"],
            folder=folder.path,
            history=read_records(folder.metrics),
            summary=finished,
        )


def _train(
    config: RunConfig, folder: RunFolder, world: World, base: Base | None, task: Task | None
) -> Mapping[str, Any]:
    """Train, write the outcome and the report, and return what result.json holds."""
    began = time.perf_counter()
    base = base or load_base(config)
    task = task or _make_task(base, config, world)
    stream = task.streams["train"]
    if isinstance(stream, TableStream):
        stream.seek(0)
    adaptation = start(
        base, task, config.tuner, targets=config.targets, exclude=config.exclude, seed=config.seed
    )
    checkpoints = Checkpoints(folder.checkpoints)
    recorder: Recorder = _recorder(config, folder, checkpoints) if world.leads else Silent()
    try:
        if adaptation.unreached:
            recorder.record(_left_out(adaptation))
        fitted = fit(
            adaptation,
            task,
            config.train,
            step=config.step.build(),
            recorder=recorder,
            checkpoints=checkpoints,
        )
        result = _conclude(config, folder, adaptation, task, fitted)
        named = {f"eval/{name}": value for name, value in result["metrics"].items()}
        recorder.record({"step": fitted.steps, "stage": config.tuner.stages[-1].name, **named})
    finally:
        recorder.close()
    result["seconds"] = round(time.perf_counter() - began, 2)
    if world.leads:
        folder.complete(result)
        write_report(folder.path)
        checkpoints.clear()
    world.wait()
    return result


def _make_task(base: Base, config: RunConfig, world: World) -> Task:
    return make_task(
        base,
        config.task,
        batch_size=config.train.batch_size or 32,
        seed=config.seed,
        rank=world.rank,
        world=world.size,
    )


def _conclude(
    config: RunConfig, folder: RunFolder, adaptation: Adaptation, task: Task, fitted: Fitted
) -> dict[str, Any]:
    settings = Settings(
        seed=config.seed,
        eval_batch_size=config.train.eval_batch_size,
        device=device_of(adaptation.base.model),
    )
    trained = {g.role: sum(p.numel() for p in g.parameters) for g in adaptation.groups}
    delta, metrics = finish(
        adaptation,
        task,
        stored=config.stored,
        provenance=provenance(config, adaptation, task, fitted),
        settings=settings,
    )
    return {
        "metrics": metrics,
        "outcome": DeltaOutcome(delta).write(folder.path) if current_world().leads else {},
        "steps": fitted.steps,
        "stopped_early": fitted.stopped_early,
        "best_step": fitted.best_step,
        "trained": trained,
        "unreached": list(adaptation.unreached),
        "notes": list(fitted.notes),
        "threads": torch.get_num_threads(),
    }


def load_base(config: RunConfig) -> Base:
    """Return the base of a run."""
    options = config.base_options
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return load(
        config.base,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        device=device,
        pooling=options.pooling,
        max_length=options.max_length,
    )


def provenance(
    config: RunConfig, adaptation: Adaptation, task: Task, fitted: Fitted
) -> dict[str, Any]:
    """Return how a delta was made, without times, hosts and paths: it is part of the file's bytes.

    Data and base are named by their content.
    """
    tree = to_tree(config)
    own = tree["task"]["data"] == "comparisons"
    for key in ("data", "eval_data"):
        if not own:
            del tree["task"][key]
    for key in ("save_every", "log_every"):
        del tree["train"][key]
    named = Path(config.base).name if Path(config.base).exists() else config.base
    kept = ("task", "tuner", "step", "train", "targets", "exclude", "stored", "seed")
    return {
        "base": named,
        **{key: tree[key] for key in kept},
        "target_entries": target_entries(config, adaptation),
        "data_digests": {name: stream.digest for name, stream in task.streams.items()},
        "steps": fitted.steps,
        "unreached": list(adaptation.unreached),
        "versions": versions(),
    }


def target_entries(config: RunConfig, adaptation: Adaptation) -> int:
    """Return the entries of the tensors to tune: what a tuner's `share` is a share of."""
    names, left_out = adaptation.base.names, set(adaptation.unreached)
    chosen = names.match(config.targets or ("*",), config.exclude)
    return sum(names[name].numel for name in chosen if name not in left_out)


def _recorder(config: RunConfig, folder: RunFolder, checkpoints: Checkpoints) -> Recorder:
    upto = max(checkpoints.steps(), default=0)
    board = [TensorBoard(folder.path / "tensorboard", upto)] if config.log.tensorboard else []
    return Recorders([History(folder.metrics, upto), progress(config.log.progress), *board])


def _left_out(adaptation: Adaptation) -> dict[str, Any]:
    names = ", ".join(adaptation.unreached[:3])
    more = len(adaptation.unreached) - 3
    note = f"left out, as the loss does not reach them: {names}"
    stage = adaptation.stages[0].name
    return {"step": 0, "stage": stage, "note": note + (f" and {more} more" if more > 0 else "")}
