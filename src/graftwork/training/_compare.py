"""Several tuners on one task under one budget of bytes, with the same search for each."""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from graftwork._errors import ConfigError, StorageError, UnknownNameError
from graftwork.bases import Base
from graftwork.deltas import held_by
from graftwork.tasks import Evaluator, SequenceEvaluator, Table, TableStream, Task, make_task
from graftwork.training._adapt import adapt, load_base
from graftwork.training._adaptation import Adaptation
from graftwork.training._budget import Fit, fit_tuner
from graftwork.training._compare_chart import draw
from graftwork.training._config import LogConfig, RunConfig, to_tree
from graftwork.training._files import write_text
from graftwork.training._folder import first_difference
from graftwork.training._outcome import DeltaOutcome, RunResult
from graftwork.training._start import start
from graftwork.tuning import TUNERS, Tuner

ALWAYS = "random_mask"
"""The rival that every comparison has: what learnt choices must beat to be worth their cost."""
PLAN, RESULT, CHART = "compare.json", "comparison.json", "comparison.svg"
_SEARCHED = ("values_lr", "mask_lr", "sparse_lr")


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """A comparison of tuners.

    Raises:
        UnknownNameError: a method does not exist.
        ConfigError: a value is out of range.

    Example:
        >>> CompareConfig(methods=("lora",)).methods
        ('random_mask', 'lora')
    """

    run: RunConfig = field(default_factory=RunConfig)
    """Base, task, targets and steps of every run. Of its tuner only `head_lr` counts: all methods
    have it, as a head that learns too slowly makes gaps between methods look larger."""
    methods: tuple[str, ...] = ("head", "full", "bitfit", "lora", "diff_pruning")
    """Names of tuners; the random mask always joins them."""
    budget_bytes: int = 50_000
    """Most bytes of a delta's file, head included. "head" and "full" run beyond it as references.
    """
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of the chosen rate each; the first one's also draws the search."""
    trials: int = 3
    """Rates that every method tries: its default, 3 times more, 3 times less, 9 times more, ..."""
    validation_share: float = 0.1
    """Share of the training rows by which rates are chosen; no run learns from them."""

    def __post_init__(self) -> None:
        for name in self.methods:
            if name not in TUNERS:
                raise UnknownNameError("method", name, TUNERS)
        if ALWAYS not in self.methods:
            object.__setattr__(self, "methods", (ALWAYS, *self.methods))
        for name, several in (("methods", self.methods), ("seeds", self.seeds)):
            if len(set(several)) != len(several) or not several:
                raise ConfigError(f"{name}: one or more, each once, not {several}")
        for name in ("budget_bytes", "trials"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: 1 or more, not {getattr(self, name)}")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share: between 0 and 1, not {self.validation_share}")

    @property
    def factors(self) -> tuple[float, ...]:
        """What the default rates are multiplied by: 1, 3, 1/3, 9, ..."""
        powers = sorted(range(-self.trials, self.trials + 1), key=lambda p: (abs(p), -p))
        return tuple(3.0**power for power in powers[: self.trials])


def compare(
    config: CompareConfig,
    *,
    resume: bool = False,
    base: Base | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Search a rate for every method, run it on every seed, and return what came out as JSON.

    Rates are chosen by validation rows that are parted from the training rows. The held-out rows of
    the task are measured once a run, after that. Every run has a folder of its own under
    `config.run.out`, with checkpoints; a comparison that was stopped goes on where it was.

    Arguments:
        config: what is compared.
        resume: go on with the comparison in the folder; methods and seeds may be added.
        base: already loaded as `config.run` says.
        say: gets lines of progress.

    Returns:
        {folder, metric, direction, budget_bytes, seeds, trials, rows, results: one entry a method
        {method, status, setting, note, bytes, trained, factor, searched, values, mean, deviation,
        memory, seconds}, chart, seconds}; also written as comparison.json.

    Raises:
        StorageError: the folder holds a comparison and `resume` is False.
        ConfigError: the comparison in the folder is another one.
        RunInterrupted: Ctrl-C; finished runs and a checkpoint are kept.
    """
    folder, began = Path(config.run.out), time.perf_counter()
    _claim(folder, config, resume=resume)
    base = base or load_base(config.run)
    bench = _Bench(config, base, folder, _parted(config, base), _Clock(say))
    fits = bench.fits()
    results = bench.results(fits)
    first = bench.tasks["search"]
    assert isinstance(first.evaluator, Evaluator | SequenceEvaluator)
    document = {
        "folder": str(folder),
        "metric": first.evaluator.main,
        "direction": first.evaluator.direction,
        "budget_bytes": config.budget_bytes,
        "seeds": list(config.seeds),
        "trials": config.trials,
        "rows": bench.rows,
        "results": results,
        "chart": str(folder / CHART),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if any(entry["status"] != "left out" for entry in results):
        write_text(folder / CHART, draw(document))
    else:
        document["chart"] = None
    write_text(folder / RESULT, json.dumps(document, indent=1) + "\n")
    return document


@dataclass(slots=True)
class _Clock:
    """Says how long is left, by the runs that were really made."""

    say: Callable[[str], None]
    runs: int = 0
    done: int = 0
    made: int = 0
    spent: float = 0.0

    def after(self, name: str, shown: str, seconds: float, *, anew: bool) -> None:
        """Count a run that took `seconds`, or that was finished before."""
        self.done += 1
        self.made += anew
        self.spent += seconds if anew else 0.0
        left = self.runs - self.done
        eta = f", about {_span(left * self.spent / self.made)} left" if left and self.made else ""
        how = f"{seconds:.1f} s" if anew else "was finished"
        self.say(f"{self.done}/{self.runs} {name}: {shown}, {how}{eta}")


@dataclass(frozen=True, slots=True)
class _Bench:
    config: CompareConfig
    base: Base
    folder: Path
    tasks: Mapping[str, Task]
    clock: _Clock

    @property
    def rows(self) -> dict[str, int]:
        """Rows of each part."""
        search, final = self.tasks["search"].streams, self.tasks["final"].streams
        parts = {
            "train": search["train"],
            "validation": search["eval"],
            "test": final["eval"],
        }
        return {name: len(stream) for name, stream in parts.items()}  # type: ignore[arg-type]

    def fits(self) -> list[Fit]:
        """Return every method with what fits the budget, and count the runs to come."""
        found = []
        for method in self.config.methods:
            self.clock.say(f"fitting {method} into {self.config.budget_bytes:,} bytes")
            task, budget = self.tasks["search"], self.config.budget_bytes
            found.append(fit_tuner(method, budget, self.config.run, self.base, task))
        each = len(self.config.factors) + len(self.config.seeds)
        self.clock.runs = each * sum(fit.tuner is not None for fit in found)
        return found

    def results(self, fits: list[Fit]) -> list[dict[str, Any]]:
        """Search and run every method."""
        return [self._result(fit) for fit in fits]

    def _result(self, fit: Fit) -> dict[str, Any]:
        begun: dict[str, Any] = {
            "method": fit.method,
            "status": "reference" if fit.reference else "run",
            "setting": fit.setting,
            "note": fit.note,
            "bytes": fit.bytes,
        }
        if fit.tuner is None:
            return {**begun, "status": "left out"}
        searched = self._search(fit.method, fit.tuner)
        sign = 1 if self._direction == "max" else -1
        factor = max(searched, key=lambda tried: sign * searched[tried])
        tuner = _at_rate(fit.tuner, factor)
        runs = [self._run(fit.method, tuner, "final", seed) for seed in self.config.seeds]
        values = [self._main(run) for run in runs]
        return {
            **begun,
            "note": "; ".join(n for n in (fit.note, *self._remarks(fit, runs, factor)) if n),
            "bytes": max(run.summary["outcome"]["bytes"] for run in runs),
            "trained": dict(runs[0].summary["trained"]),
            "factor": factor,
            "searched": [{"factor": f, "value": v} for f, v in searched.items()],
            "values": values,
            "mean": statistics.fmean(values),
            "deviation": statistics.stdev(values) if len(values) > 1 else None,
            "memory": self._memory(tuner),
            "seconds": statistics.fmean(float(run.summary["seconds"]) for run in runs),
        }

    def _remarks(self, fit: Fit, runs: list[RunResult[DeltaOutcome]], factor: float) -> list[str]:
        """Return what a reader must know: files over the budget, rates at the end of the search."""
        largest = max(run.summary["outcome"]["bytes"] for run in runs)
        remarks = []
        if not fit.reference and largest > self.config.budget_bytes:
            remarks.append(f"{largest - self.config.budget_bytes:,} bytes over the budget")
        ends = (min(self.config.factors), max(self.config.factors))
        if len(self.config.factors) > 1 and factor in ends:
            remarks.append("the best rate was the last one tried")
        return remarks

    def _search(self, method: str, tuner: Tuner) -> dict[float, float]:
        """Return factor of the rates -> value on the validation rows."""
        seed = self.config.seeds[0]
        return {
            factor: self._main(self._run(method, _at_rate(tuner, factor), "search", seed, factor))
            for factor in self.config.factors
        }

    def _run(
        self, method: str, tuner: Tuner, part: str, seed: int, factor: float | None = None
    ) -> RunResult[DeltaOutcome]:
        where = f"seed-{seed}" if factor is None else f"seed-{seed}-rate-x{factor:.3g}"
        folder = self.folder / part / method / where
        anew = not (folder / "result.json").exists()
        run = replace(
            self.config.run,
            tuner=tuner,
            seed=seed,
            out=str(folder),
            log=LogConfig(progress="silent"),
        )
        task = self.tasks[part]
        stream = task.streams["train"]
        assert isinstance(stream, TableStream)
        own = {**task.streams, "train": replace(stream, seed=seed)}
        result = adapt(run, resume=True, base=self.base, task=replace(task, streams=own))
        shown = f"{self._metric} {self._main(result):.4g}"
        name = f"{method}, {part}, {where.replace('-', ' ')}"
        self.clock.after(name, shown, float(result.summary["seconds"]), anew=anew)
        return result

    def _memory(self, tuner: Tuner) -> int:
        run, task = self.config.run, self.tasks["search"]
        begun = start(
            self.base,
            task,
            tuner,
            targets=run.targets,
            exclude=run.exclude,
            seed=run.seed,
        )
        return step_memory(begun, task)

    @property
    def _metric(self) -> str:
        evaluator = self.tasks["search"].evaluator
        assert isinstance(evaluator, Evaluator | SequenceEvaluator)
        return evaluator.main

    @property
    def _direction(self) -> str:
        evaluator = self.tasks["search"].evaluator
        assert isinstance(evaluator, Evaluator | SequenceEvaluator)
        return evaluator.direction

    def _main(self, result: RunResult[DeltaOutcome]) -> float:
        return float(result.metrics[self._metric])


def step_memory(adaptation: Adaptation, task: Task) -> int:
    """Return the bytes that the first training step needs beside the base's own tensors.

    Counted, not sampled, so it is the same on every machine: what the forward pass keeps for the
    backward pass, copies of weights that the tuner works on, gradients, and Adam's two moments.
    Temporary buffers inside one operation are not in it.
    """
    stream, stage = task.streams["train"], adaptation.stages[0]
    state = stream.state()
    batch = stream.draw().to(adaptation.device)
    stream.load_state(state)
    model = adaptation.base.model
    lasting = _sizes([*model.parameters(), *model.buffers()])
    adaptation.train(stage.learning_rates)
    adaptation.prepare(0.0, seed=0)
    trained = [p for group in adaptation.groups for p in group.parameters if p.requires_grad]
    modules = [p for module in adaptation.modules for p in module.parameters()]
    beside = _sizes([*trained, *modules, *adaptation.tensors().values()], lasting)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.update(_sizes([tensor], lasting | beside))
        return tensor

    objectives = [task.objectives[name] for name in stage.objectives or task.objectives]
    with torch.random.fork_rng(), torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses = [objective(adaptation, batch).mean() for objective in objectives]
    torch.stack(losses).sum().backward()
    adaptation.collect()
    # apart from what was kept, whose places are free again and may be taken anew
    gradients = _sizes([p.grad for p in (*trained, *modules) if p.grad is not None])
    moments = 2 * sum(p.numel() * p.element_size() for p in trained)
    return sum(sum(part.values()) for part in (beside, kept, gradients)) + moments


def _sizes(
    tensors: Iterable[torch.Tensor], known: Mapping[int, int] | None = None
) -> dict[int, int]:
    """Return bytes by place of the storages of `tensors` that are not among `known`."""
    found = {}
    for tensor in (part for whole in tensors for part in held_by(whole)):
        storage = tensor.untyped_storage()
        if known is None or storage.data_ptr() not in known:
            found[storage.data_ptr()] = storage.nbytes()
    return found


def _at_rate(tuner: Tuner, factor: float) -> Tuner:
    """Return the tuner with its rates multiplied; the head's only where it has no other."""
    names = {f.name for f in dataclasses.fields(tuner)}  # type: ignore[arg-type]
    chosen = [name for name in _SEARCHED if name in names] or ["head_lr"]
    rates = {name: getattr(tuner, name) * factor for name in chosen}
    changed: Tuner = replace(tuner, **rates)  # type: ignore[type-var]
    return changed


def _parted(config: CompareConfig, base: Base) -> dict[str, Task]:
    """Return the task to search on (validation rows) and the final one (held-out rows)."""
    run = config.run
    whole = make_task(base, run.task, batch_size=run.train.batch_size or 32, seed=run.seed)
    train, held = whole.streams["train"], whole.streams["eval"]
    assert isinstance(train, TableStream)
    rest, validation = _apart(train.table, train.together, config.validation_share)
    learn = replace(train, table=rest)
    judge = replace(train, table=validation, name="validation", shuffle=False)
    return {
        "search": replace(whole, streams={"train": learn, "eval": judge}),
        "final": replace(whole, streams={"train": learn, "eval": held}),
    }


def _apart(table: Table, together: str | None, share: float) -> tuple[Table, Table]:
    """Split a table; rows that belong together stay on one side."""
    if together is None:
        return table.split(share, seed=0)
    keys = Table({"key": list(dict.fromkeys(table[together]))}, table.source)
    held = set(keys.split(share, seed=0)[1]["key"])
    rows = range(len(table))
    sides = (
        [i for i in rows if (table[together][i] in held) == wanted] for wanted in (False, True)
    )
    rest, part = (table.take(side) for side in sides)
    return rest, part


def _claim(folder: Path, config: CompareConfig, *, resume: bool) -> None:
    """Make the folder this comparison's, or check that it is."""
    tree = to_tree(config.run)
    for key in ("out", "log", "seed", "tuner"):
        del tree[key]
    tree["head_lr"] = getattr(config.run.tuner, "head_lr", None)
    plan = {
        "run": tree,
        "budget_bytes": config.budget_bytes,
        "trials": config.trials,
        "validation_share": config.validation_share,
    }
    path = folder / PLAN
    if path.exists():
        if not resume:
            raise StorageError(
                f"{folder} holds a comparison; go on with it by resume (--resume), or choose "
                "another folder"
            )
        difference = first_difference(json.loads(json.dumps(plan)), json.loads(path.read_text()))
        if difference is not None:
            key, new, old = difference
            raise ConfigError(
                f"the comparison in {folder} was begun with {key}: {old!r}, not {new!r}; methods "
                "and seeds may change, the rest needs another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plan, indent=1) + "\n")


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
