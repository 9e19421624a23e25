"""The main job, written against the public API: one base, one task, four ways to adapt it.

`comparisons` asks whether one sentence follows from another, where only word order, "more" / "less"
and "not" decide. A frozen sentence encoder fails at it; a delta of 0.5 % of its weights mends that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork import bases, deltas
from graftwork.bases import Base
from graftwork.tasks import Predictor, Task, TaskConfig, make_task
from graftwork.training import BaseOptions, LogConfig, RunConfig, TrainConfig, adapt
from graftwork.tuning import DiffPruning, Full, Head, RandomMask, Tuner

TARGETS = ("encoder.*",)
"""What is tuned: the encoder's layers, not the word embeddings."""
SHARE = 0.005
SPLITS = {"eval": "", "eval-words": "new words", "eval-length": "longer nouns"}
"""Split of `comparisons` -> column of the table; "" is shown by type of row instead."""
CONTRAST = ("same", "more-less", "not")
"""Types in which both members of a contrast pair have the same words."""
PAIRS = (
    {
        "premise": "the boy is more cheerful than the girl .",
        "hypothesis": "the girl is less cheerful than the boy .",
    },
    {
        "premise": "the boy is more cheerful than the girl .",
        "hypothesis": "the girl is more cheerful than the boy .",
    },
)
"""The first hypothesis follows, the second contradicts."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much the demo does.

    Attributes:
        head: steps of the head on the frozen base.
        full: steps of full fine-tuning.
        mask: steps of the random mask.
        pruning: steps of diff pruning, both stages.
        batch_size: rows of a batch.
        train_rows: rows to learn from.
        eval_rows: rows of each held-out split.
    """

    head: int = 150
    full: int = 400
    mask: int = 400
    pruning: int = 600
    batch_size: int = 32
    train_rows: int = 16_000
    eval_rows: int = 400


QUICK = Scale(head=2, full=2, mask=2, pruning=10, batch_size=8, train_rows=80, eval_rows=16)
"""Proves that everything runs; its numbers mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One way to adapt the base.

    Attributes:
        key: name of its folder.
        title: for people.
        tuner: what parametrises the delta.
        steps: optimiser steps.
    """

    key: str
    title: str
    tuner: Tuner
    steps: int


@dataclass(frozen=True, kw_only=True)
class Result:
    """What one method gave.

    Attributes:
        method: its key.
        title: for people.
        accuracy: by type of row, then on the other splits.
        trained: numbers that stay in the delta: values and head.
        changed: weights of the base that the delta changes.
        share: `trained` / weights of the base.
        bytes: size of the delta's file.
        seconds: of the whole run.
        folder: of the run.
    """

    method: str
    title: str
    accuracy: Mapping[str, float]
    trained: int
    changed: int
    share: float
    bytes: int
    seconds: float
    folder: str


def methods(scale: Scale) -> tuple[Method, ...]:
    """Return the four methods, the frozen base first."""
    # a head rate that learns for each: a rival that was tuned badly proves nothing
    pruning = DiffPruning(share=SHARE, groups="tensor", values_lr=1e-3, head_lr=3e-3)
    mask = RandomMask(share=SHARE, head_lr=3e-3)
    return (
        Method(key="head", title="head only", tuner=Head(), steps=scale.head),
        Method(key="full", title="full tuning", tuner=Full(), steps=scale.full),
        Method(key="random_mask", title="random mask 0.5 %", tuner=mask, steps=scale.mask),
        Method(key="diff_pruning", title="diff pruning 0.5 %", tuner=pruning, steps=scale.pruning),
    )


def run_config(method: Method, base: str, out: Path, scale: Scale, seed: int) -> RunConfig:
    """Return the run of a method: `graftwork adapt --config` on its YAML does the same."""
    return RunConfig(
        base=base,
        base_options=BaseOptions(device="cpu"),
        task=TaskConfig(
            data="comparisons",
            max_rows=scale.train_rows,
            eval_rows=scale.eval_rows,
            head_hidden=64,
        ),
        tuner=method.tuner,
        targets=TARGETS,
        # Without dropout a small budget learns more, and texts that pairs share are encoded once.
        train=TrainConfig(
            steps=method.steps, batch_size=scale.batch_size, save_every=0, dropout=False
        ),
        seed=seed,
        out=str(out / method.key),
        log=LogConfig(),
    )


def load(config: RunConfig) -> tuple[Base, Task]:
    """Return the base, and the task whose encoded rows all methods share."""
    base = bases.load(config.base)
    batch_size = config.train.batch_size or 32
    return base, make_task(base, config.task, batch_size=batch_size, seed=config.seed)


def run(config: RunConfig, method: Method, base: Base, task: Task) -> Result:
    """Adapt `base` by `method` in its own folder, and measure the delta that lies there."""
    result = adapt(config, resume=True, base=base, task=task)
    assert result.folder is not None
    path = result.folder / "delta.safetensors"
    predictor = Predictor(base, deltas.load(path))
    accuracy = {}
    for split, column in SPLITS.items():
        metrics = task.evaluate(predictor, split)
        for name, value in metrics.items():
            metric, _, group = name.partition("/")
            if metric == "accuracy" and (not column) == bool(group):
                accuracy[column or group] = value
    ledger = deltas.inspect(result.delta)
    head = sum(port.values for port in ledger.ports)
    return Result(
        method=method.key,
        title=method.title,
        accuracy=accuracy,
        trained=ledger.kept + head,
        changed=ledger.kept,
        share=(ledger.kept + head) / weights(base),
        bytes=ledger.bytes,
        seconds=float(result.summary["seconds"]),
        folder=str(result.folder),
    )


def weights(base: Base, patterns: Sequence[str] = ("*",)) -> int:
    """Return how many weights of the base match `patterns`."""
    return sum(base.names[name].numel for name in base.names.match(patterns))


def reload_and_predict(base: Base, folder: str) -> list[dict[str, Any]]:
    """Load the delta of a run from its file and predict the two pairs with it."""
    predictor = Predictor(base, deltas.load(Path(folder) / "delta.safetensors"))
    return [
        {**pair, "label": found.label, "score": (found.scores or {}).get(found.label or "", 0.0)}
        for pair, found in zip(PAIRS, predictor.predict(list(PAIRS)), strict=True)
    ]
