"""A run that yields a delta."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from graftwork._errors import ConfigError
from graftwork.bases import Base, load, load_language_model
from graftwork.deltas import content_hash
from graftwork.tasks import TableStream, Task, make_task
from graftwork.training._adaptation import Adaptation
from graftwork.training._config import RunConfig, to_tree
from graftwork.training._context import Settings
from graftwork.training._continue import continue_from, load_delta
from graftwork.training._distributed import World
from graftwork.training._driver import Fitted
from graftwork.training._finish import finish, versions
from graftwork.training._outcome import DeltaOutcome, RunResult
from graftwork.training._run import Conclusion, Prepared, run
from graftwork.training._start import start


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

    def prepare(world: World) -> Prepared[DeltaOutcome]:
        found = base or load_base(config)
        return _prepare(config, found, task or _make_task(found, config, world))

    tree = to_tree(config)
    return run(config.out, tree, prepare, DeltaOutcome, resume=resume, log=config.log)


def _prepare(config: RunConfig, base: Base, task: Task) -> Prepared[DeltaOutcome]:
    stream = task.streams["train"]
    if isinstance(stream, TableStream):
        stream.seek(0)
    adaptation = start(
        base, task, config.tuner, targets=config.targets, exclude=config.exclude, seed=config.seed
    )
    notes = [_left_out(adaptation)] if adaptation.unreached else []
    notes += _cut(adaptation, task)
    if config.continue_from is not None:
        anew = continue_from(adaptation, load_delta(config.continue_from))
        notes += [_note(adaptation, f"the delta has no such port: {n} starts anew") for n in anew]
    return Prepared(
        trainee=adaptation,
        task=task,
        train=config.train,
        step=config.step.build(),
        conclude=lambda fitted: _conclude(config, adaptation, task, fitted),
        notes=notes,
        go_on=f"graftwork adapt --config {Path(config.out)}/config.yaml --resume",
    )


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
    config: RunConfig, adaptation: Adaptation, task: Task, fitted: Fitted
) -> Conclusion[DeltaOutcome]:
    settings = Settings(
        seed=config.seed,
        eval_batch_size=config.train.eval_batch_size,
        device=adaptation.device,
    )
    delta, metrics = finish(
        adaptation,
        task,
        stored=config.stored,
        provenance=provenance(config, adaptation, task, fitted),
        settings=settings,
    )
    return Conclusion(
        outcome=DeltaOutcome(delta),
        metrics=metrics,
        summary={"unreached": list(adaptation.unreached)},
    )


def load_base(config: RunConfig) -> Base:
    """Return the base of a run: for a task of text, a language model with its head.

    Raises:
        ConfigError: a pooling for a language model.
    """
    options = config.base_options
    device = options.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = None if options.dtype is None else getattr(torch, options.dtype)
    if config.task.kind == "text":
        if options.pooling is not None:
            raise ConfigError(f"pooling {options.pooling!r}: a language model has none; leave it")
        return load_language_model(
            config.base,
            dtype=dtype,
            device=device,
            max_length=options.max_length,
            quantise=options.quantise,
        )
    return load(
        config.base,
        dtype=dtype,
        device=device,
        pooling=options.pooling,
        max_length=options.max_length,
        quantise=options.quantise,
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
    begun = {}
    if config.continue_from is not None:
        begun["continued"] = content_hash(load_delta(config.continue_from))
    return {
        "base": named,
        **begun,
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


def _left_out(adaptation: Adaptation) -> dict[str, Any]:
    names = ", ".join(adaptation.unreached[:3])
    more = len(adaptation.unreached) - 3
    note = f"left out, as the loss does not reach them: {names}"
    return _note(adaptation, note + (f" and {more} more" if more > 0 else ""))


def _cut(adaptation: Adaptation, task: Task) -> list[dict[str, Any]]:
    """Return a note for each stream that lost the end of its longest rows."""
    what = "words" if adaptation.signature.kind == "tokens" else "tokens"
    return [
        _note(
            adaptation,
            f"stream {name!r}: {stream.cut} {what} lie beyond max_length "
            f"{adaptation.signature.max_length} and are left out",
        )
        for name, stream in task.streams.items()
        if isinstance(stream, TableStream) and stream.cut
    ]


def _note(adaptation: Adaptation, text: str) -> dict[str, Any]:
    return {"step": 0, "stage": adaptation.stages[0].name, "note": text}
