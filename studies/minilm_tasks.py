"""Which mask wins where: MiniLM on SST-2, CoLA and comparisons, at 0.01, 0.1 and 0.5 %.

    GRAFTWORK_DATA=../shared/data python studies/minilm_tasks.py          # one seed, subsets
    python studies/minilm_tasks.py --full --device cuda --seeds 0 1 2     # whole data, a GPU
    python studies/minilm_tasks.py --report                               # docs/study.md anew

Each run appends one JSON line to studies/results/; what is there is not run again, so the study can
be stopped at any time. The head has one rate in every method. Every sparse method gets the same
search: three learning rates of the kept values at 0.1 %, then the best one (and at last, at 0.01 %,
three times it) at the other densities. Of a two-stage method the first stage is trained once a seed
and entered for every rate and density. Dropout is off throughout: at so few updates every method
learns more without, and texts that contrast pairs share are then encoded once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from report import write
from safetensors.torch import load_file, save_file
from stages import first, second
from torch import Tensor

from graftwork.bases import Base, load
from graftwork.deltas import save
from graftwork.tasks import Table, Task, TaskConfig, comparisons, read, task_from_tables
from graftwork.training import Adaptation, TrainConfig, finish, fit, start
from graftwork.tuning import DiffPruning, Full, GradientMask, Head, Magnitude, RandomMask, Tuner

HERE = Path(__file__).parent
DATA = Path(os.environ.get("GRAFTWORK_DATA", "../shared/data"))
CACHE = Path("runs/study")

TARGETS = ("encoder.*",)
SHARES = (0.001, 0.0001, 0.005)
"""In the order of running: the first is searched, the others reuse its rate."""
RATES = (3e-3, 1e-2, 3e-2)
"""Rates of the kept values that every sparse method tries at the first share."""
FULL_RATES = (1e-4, 3e-4, 1e-3)
DENSE = 3e-4
"""Rate of the weights in dense first stages: gates and full fine-tuning before a projection."""
HEAD_RATES = (3e-3, 1e-2, 3e-2)
HEAD = HEAD_RATES[1]
"""Rate of the head in every method; head only tries all three."""
FIRST = 0.6
"""Part of the steps for the first stage; scores take their own part."""
SCORES = 0.2

Builder = Callable[[float, float, float], Tuner]
"""(share, rate of the kept values, rate of the head) -> tuner."""


@dataclass(frozen=True, slots=True)
class Method:
    """A sparse method: how to build it, and which part of its steps a shared first stage takes."""

    build: Builder
    first: float = 0.0


METHODS: Mapping[str, Method] = {
    "structured": Method(
        lambda share, rate, head: DiffPruning(
            share=share, gates_share=FIRST, values_lr=DENSE, mask_lr=rate, head_lr=head
        ),
        FIRST,
    ),
    "random": Method(
        lambda share, rate, head: RandomMask(share=share, values_lr=rate, head_lr=head)
    ),
    "gradient": Method(
        lambda share, rate, head: GradientMask(
            share=share, scores_share=SCORES, values_lr=rate, head_lr=head
        ),
        SCORES,
    ),
    "non-adaptive": Method(
        lambda share, rate, head: Magnitude(
            share=share, full_share=FIRST, values_lr=DENSE, mask_lr=rate, head_lr=head
        ),
        FIRST,
    ),
    "unstructured": Method(
        lambda share, rate, head: DiffPruning(
            share=share, groups=None, gates_share=FIRST, values_lr=DENSE, mask_lr=rate, head_lr=head
        ),
        FIRST,
    ),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """How large the study is."""

    name: str
    train: int | None
    dev: int | None
    steps: Mapping[str, int]
    batch_size: Mapping[str, int]
    max_length: int


SUBSETS = Plan(
    "subsets",
    train=4000,
    dev=1000,
    steps={"sst2": 200, "cola": 300, "comparisons": 300},
    # contrast pairs share a batch, so that comparisons want larger ones
    batch_size={"sst2": 16, "cola": 16, "comparisons": 32},
    max_length=24,
)
WHOLE = Plan(
    "whole",
    train=None,
    dev=None,
    steps={"sst2": 3000, "cola": 1500, "comparisons": 1500},
    batch_size={"sst2": 32, "cola": 32, "comparisons": 32},
    max_length=64,
)


def _glue(name: str, columns: Mapping[str, str], header: bool, plan: Plan) -> dict[str, Table]:
    out = {}
    for part, rows in (("train", plan.train), ("dev", plan.dev)):
        path = DATA / "glue" / f"{name}_{part}.tsv"
        table = read(path, columns=columns, header=header, quoting=False)
        # phrases of length 1 repeat; the order of the file is that of the trees
        out["eval" if part == "dev" else part] = table.sample(rows, 0)
    return out


def _comparisons(plan: Plan) -> dict[str, Table]:
    train, dev = plan.train or 20_000, plan.dev or 2_000
    return {"train": comparisons("train", train), "eval": comparisons("eval", dev)}


def tables_of(name: str, plan: Plan) -> tuple[dict[str, Table], TaskConfig]:
    """Return the rows of a task and how they are used: the smallest heads that learn."""
    if name == "sst2":
        tables = _glue("sst2", {"sentence": "sentence", "label": "label"}, True, plan)
        metrics: tuple[str, ...] = ("accuracy", "loss")
        return tables, TaskConfig(head_hidden=0, metrics=metrics, max_length=plan.max_length)
    if name == "cola":
        tables = _glue("CoLA", {"sentence": "3", "label": "1"}, False, plan)
        metrics = ("matthews", "accuracy", "loss")
        return tables, TaskConfig(head_hidden=0, metrics=metrics, max_length=plan.max_length)
    config = TaskConfig(
        inputs=("premise", "hypothesis"),
        group="type",
        together="premise",
        head_hidden=16,
        metrics=("accuracy", "loss"),
    )
    return _comparisons(plan), config


@dataclass(frozen=True, slots=True)
class Study:
    """One task and one seed of the study."""

    base: Base
    plan: Plan
    name: str
    seed: int
    results: Path

    @property
    def steps(self) -> int:
        """Updates of every method."""
        return self.plan.steps[self.name]

    def task(self) -> Task:
        """Return the task, its streams at their start."""
        tables, config = tables_of(self.name, self.plan)
        batch = self.plan.batch_size[self.name]
        return task_from_tables(self.base, tables, config, batch_size=batch, seed=self.seed)

    def key(self, method: str, share: float | None, rate: float) -> dict[str, Any]:
        """Return what names a run."""
        return {
            "plan": self.plan.name,
            "task": self.name,
            "seed": self.seed,
            "steps": self.steps,
            "method": method,
            "share": share,
            "rate": rate,
        }

    def known(self, method: str, share: float | None) -> dict[float, dict[str, Any]]:
        """Return finished runs by rate."""
        wanted = self.key(method, share, 0.0)
        del wanted["rate"]
        return {
            line["rate"]: line
            for line in lines_of(self.results)
            if all(line[name] == value for name, value in wanted.items())
        }

    def best(self, method: str, share: float | None) -> float | None:
        """Return the rate with the best main metric, None before any run."""
        runs = self.known(method, share)
        return max(runs, key=lambda rate: runs[rate]["value"]) if runs else None

    def record(
        self, key: Mapping[str, Any], adaptation: Adaptation, task: Task, began: float
    ) -> None:
        """Measure what was learnt, as it would be stored, and append it."""
        delta, metrics = finish(adaptation, task)
        with tempfile.TemporaryDirectory() as folder:
            size = save(delta, Path(folder) / "delta.safetensors")
        main = task.evaluator.main
        line = {
            **key,
            "head_rate": HEAD if key["method"] != "head only" else key["rate"],
            "metric": main,
            "value": 100 * metrics[main],
            "accuracy": 100 * metrics["accuracy"],
            "metrics": metrics,
            "batch_size": self.plan.batch_size[self.name],
            "dev_rows": len(task.streams["eval"].table),  # type: ignore[attr-defined]
            "head_values": sum(p.numel() for p in adaptation.ports.parameters()),
            "bytes": size,
            "seconds": round(time.perf_counter() - began, 1),
            "threads": torch.get_num_threads(),
        }
        self.results.parent.mkdir(parents=True, exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{key} {main} {line['value']:.1f} in {line['seconds']} s", flush=True)

    def plain(self, method: str, tuner: Tuner, rate: float, share: float | None = None) -> None:
        """Run a method of one stage, unless it was run."""
        if rate in self.known(method, share):
            return
        began, task = time.perf_counter(), self.task()
        targets = None if method == "head only" else TARGETS
        adaptation = start(self.base, task, tuner, targets=targets, seed=self.seed)
        fit(adaptation, task, TrainConfig(steps=self.steps, dropout=False))
        self.record(self.key(method, share, rate), adaptation, task, began)

    def sparse(self, method: str, share: float, rate: float) -> None:
        """Run a sparse method, unless it was run; the first stage comes from the cache."""
        spec = METHODS[method]
        tuner = spec.build(share, rate, HEAD)
        if not spec.first:
            self.plain(method, tuner, rate, share)
        elif rate not in self.known(method, share):
            left = self._left(method, spec)
            began, task = time.perf_counter(), self.task()
            done = round(spec.first * self.steps)
            enter = second(self.base, task, tuner, TARGETS, self.seed)
            self.record(self.key(method, share, rate), enter(left, self.steps - done), task, began)

    def dense(self, method: str, rates: tuple[float, ...]) -> None:
        """Run full fine-tuning or head only at every rate."""
        for rate in rates:
            dense = method == "full"
            tuner = Full(values_lr=rate, head_lr=HEAD) if dense else Head(head_lr=rate)
            self.plain(method, tuner, rate)

    def search(self, methods: tuple[str, ...]) -> None:
        """Run sparse methods at every rate and the first share."""
        for method in methods:
            for rate in RATES:
                self.sparse(method, SHARES[0], rate)

    def reuse(self, methods: tuple[str, ...], share: float, times: float = 1.0) -> None:
        """Run sparse methods at another share, at a multiple of the rate that was best."""
        for method in methods:
            rate = self.best(method, SHARES[0])
            assert rate is not None
            self.sparse(method, share, round(times * rate, 6))

    def _left(self, method: str, spec: Method) -> dict[str, Tensor]:
        name = f"{self.plan.name}-{self.name}-{self.seed}-{self.steps}-{method}.safetensors"
        path = CACHE / name
        if not path.is_file():
            tuner = spec.build(SHARES[0], RATES[0], HEAD)
            done = round(spec.first * self.steps)
            left = first(self.base, self.task(), tuner, done, TARGETS, self.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file({k: v.cpu().contiguous() for k, v in left.items()}, part)
            part.rename(path)
        return load_file(path)


def lines_of(results: Path) -> Iterator[dict[str, Any]]:
    """Yield the finished runs of a file."""
    if results.is_file():
        yield from map(json.loads, results.read_text().splitlines())


def run(studies: list[Study], every: tuple[str, ...]) -> None:
    """Run everything that is missing, the central comparison first."""
    central = tuple(method for method in ("random", "structured") if method in every)
    for study in studies:
        study.search(central)
        study.reuse(central, min(SHARES))
    for study in studies:
        study.dense("head only", HEAD_RATES)
        study.dense("full", FULL_RATES)
    for study in studies:
        study.search(every)
        for share in SHARES[1:]:
            study.reuse(every, share)
    for study in studies:
        study.reuse(every, min(SHARES), times=3.0)


def main() -> int:
    """Run the study, then write its page."""
    flags = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    flags.add_argument("--full", action="store_true", help="whole data and more steps")
    flags.add_argument("--seeds", type=int, nargs="+", default=[0])
    flags.add_argument("--tasks", nargs="+", default=["sst2", "cola", "comparisons"])
    flags.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    flags.add_argument("--device", default="cpu")
    flags.add_argument("--report", action="store_true", help="only write the page")
    flags.add_argument("--page", type=Path, default=HERE.parent / "docs" / "study.md")
    given = flags.parse_args()
    plan = WHOLE if given.full else SUBSETS
    results = HERE / "results" / f"minilm_tasks.{plan.name}.jsonl"
    if not given.report:
        base = load("minilm", device=given.device)
        studies = [
            Study(base, plan, task, seed, results) for seed in given.seeds for task in given.tasks
        ]
        run(studies, tuple(given.methods))
    write(list(lines_of(results)), given.page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
