"""A run: one configuration, one folder, one outcome, whatever is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch

from graftwork.steps import Step
from graftwork.tasks import Task
from graftwork.training._checkpoint import Checkpoints
from graftwork.training._config import LogConfig
from graftwork.training._distributed import World, joined
from graftwork.training._driver import Fitted, fit
from graftwork.training._folder import RunFolder
from graftwork.training._interrupt import RunInterrupted
from graftwork.training._outcome import OutcomeT, RunResult
from graftwork.training._progress import progress
from graftwork.training._recorder import (
    History,
    Record,
    Recorder,
    Recorders,
    Silent,
    TensorBoard,
    read_records,
)
from graftwork.training._train_config import TrainConfig
from graftwork.training._trainee import Trainee
from graftwork.training._write_report import write_report


@dataclass(frozen=True, kw_only=True)
class Conclusion(Generic[OutcomeT]):
    """What comes out of a training.

    Attributes:
        outcome: is written into the run's folder.
        metrics: of the outcome as it is stored.
        summary: more JSON for result.json.
    """

    outcome: OutcomeT
    metrics: Mapping[str, float] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prepared(Generic[OutcomeT]):
    """A training that is ready to begin, or to go on.

    Attributes:
        trainee: what is trained.
        task: its streams and objectives, each stream at its start.
        train: budget and evaluation.
        step: how losses become updates.
        conclude: makes the outcome and measures it.
        notes: records for the head of metrics.jsonl.
        go_on: how to resume, said when the run is interrupted.
    """

    trainee: Trainee
    task: Task
    train: TrainConfig
    step: Step
    conclude: Callable[[Fitted], Conclusion[OutcomeT]]
    notes: Sequence[Record] = ()
    go_on: str = "run it again, with resume"


def run(
    out: str | Path,
    settings: Mapping[str, Any],
    prepare: Callable[[World], Prepared[OutcomeT]],
    outcome: type[OutcomeT],
    *,
    resume: bool = False,
    log: LogConfig | None = None,
) -> RunResult[OutcomeT]:
    """Train what `prepare` gives in the folder `out`: locked, watched, saved, resumed exactly.

    `prepare` is not called where the folder holds the finished run. Under torchrun all processes
    call this alike.

    Arguments:
        out: folder of the run.
        settings: everything the run depends on, as JSON; a resumed run must have the same.
        prepare: builds the training; gets this process's place among all.
        outcome: class of the outcome, to read it back.
        resume: go on with the run in the folder where there is one.
        log: what is shown and kept beside metrics.jsonl.

    Raises:
        StorageError: the folder holds another run, is in use, or the disk is full.
        ConfigError: the run in the folder has other settings.
        TrainingError: a loss became NaN; the last good checkpoint is kept.
        RunInterrupted: Ctrl-C; a checkpoint was saved.

    Example:
        >>> result = run("runs/base", config, prepare, BaseOutcome)  # doctest: +SKIP
    """
    folder = RunFolder(Path(out))
    with joined() as world, folder.locked() if world.leads else nullcontext():
        found = folder.claim(settings, resume=resume) if world.leads else None
        finished: Mapping[str, Any] | None = world.agree(found)
        if finished is None:
            finished = _train(folder, world, prepare(world), log or LogConfig())
        return RunResult(
            outcome=outcome.read(folder.path),
            metrics=finished["metrics"],
            folder=folder.path,
            history=read_records(folder.metrics),
            summary=finished,
        )


def _train(
    folder: RunFolder, world: World, ready: Prepared[OutcomeT], log: LogConfig
) -> Mapping[str, Any]:
    """Train, write the outcome and the report, and return what result.json holds."""
    began = time.perf_counter()
    checkpoints = Checkpoints(folder.checkpoints)
    recorder: Recorder = _recorder(folder, checkpoints, log) if world.leads else Silent()
    try:
        for note in ready.notes:
            recorder.record(note)
        fitted = fit(
            ready.trainee,
            ready.task,
            ready.train,
            step=ready.step,
            recorder=recorder,
            checkpoints=checkpoints,
        )
        result = _conclude(folder, world, ready, fitted)
        named = {f"eval/{name}": value for name, value in result["metrics"].items()}
        last = ready.trainee.stages[-1].name
        recorder.record({"step": fitted.steps, "stage": last, **named})
    except RunInterrupted as stop:
        raise RunInterrupted(f"{stop}\ngo on with: {ready.go_on}") from None
    finally:
        recorder.close()
    result["seconds"] = round(time.perf_counter() - began, 2)
    if world.leads:
        folder.complete(result)
        write_report(folder.path)
        checkpoints.clear()
    world.wait()
    return result


def _conclude(
    folder: RunFolder, world: World, ready: Prepared[OutcomeT], fitted: Fitted
) -> dict[str, Any]:
    trained = {g.role: sum(p.numel() for p in g.parameters) for g in ready.trainee.groups}
    done = ready.conclude(fitted)
    return {
        "metrics": dict(done.metrics),
        "outcome": done.outcome.write(folder.path) if world.leads else {},
        "steps": fitted.steps,
        "stopped_early": fitted.stopped_early,
        "best_step": fitted.best_step,
        "trained": trained,
        "notes": list(fitted.notes),
        "threads": torch.get_num_threads(),
        **done.summary,
    }


def _recorder(folder: RunFolder, checkpoints: Checkpoints, log: LogConfig) -> Recorder:
    upto = max(checkpoints.steps(), default=0)
    board = [TensorBoard(folder.path / "tensorboard", upto)] if log.tensorboard else []
    return Recorders([History(folder.metrics, upto), progress(log.progress), *board])
