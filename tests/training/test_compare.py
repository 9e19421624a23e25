"""Comparisons of tuners: rows parted once, the same search, stopped and resumed, memory counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from graftwork.bases import Base, load
from graftwork.errors import ConfigError, UnknownNameError
from graftwork.tasks import Table, TaskConfig, make_task
from graftwork.training import (
    CompareConfig,
    RunConfig,
    RunInterrupted,
    TrainConfig,
    _compare,
    compare,
    fit_tuner,
    start,
    step_memory,
)
from graftwork.tuning import Full, Head, LoRA


@pytest.fixture
def base() -> Base:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return load(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16)))


@pytest.fixture
def config(tmp_path: Path) -> CompareConfig:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 6)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", x=x, y=x[:, 0] - 2 * x[:, 3])
    task = TaskConfig(
        data=str(tmp_path / "rows.npz"),
        inputs=("x",),
        kind="regression",
        metrics=("loss",),
        head_hidden=0,
    )
    run = RunConfig(
        task=task,
        tuner=Head(head_lr=1e-2),
        train=TrainConfig(steps=5, batch_size=16),
        out=str(tmp_path / "out"),
    )
    return CompareConfig(run=run, methods=("lora", "head"), seeds=(3, 4), trials=3)


def test_the_best_rate_is_that_of_the_lowest_loss(config: CompareConfig, base: Base) -> None:
    document = compare(config, base=base)
    assert (document["metric"], document["direction"]) == ("loss", "min")
    assert document["rows"] == {"train": 162, "validation": 18, "test": 20}
    assert [e["method"] for e in document["results"]] == ["random_mask", "lora", "head"]
    for entry in document["results"]:
        tried = {one["factor"]: one["value"] for one in entry["searched"]}
        assert list(tried) == [1.0, 3.0, pytest.approx(1 / 3)]
        assert tried[entry["factor"]] == min(tried.values())
        assert entry["deviation"] == pytest.approx(float(np.std(entry["values"], ddof=1)))
    base.verify()


def test_a_stopped_comparison_goes_on_to_the_same_numbers(
    config: CompareConfig, base: Base, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = compare(
        replace(config, run=replace(config.run, out=str(tmp_path / "whole"))), base=base
    )
    made: list[str] = []
    real = _compare.adapt

    def counted(run, **rest):
        if len(made) == 7:
            raise RunInterrupted("stopped")
        made.append(run.out)
        return real(run, **rest)

    monkeypatch.setattr(_compare, "adapt", counted)
    with pytest.raises(RunInterrupted):
        compare(config, base=base)
    monkeypatch.setattr(_compare, "adapt", real)
    said: list[str] = []
    resumed = compare(config, resume=True, base=base, say=said.append)
    assert sum("was finished" in line for line in said) == 7
    for ours, theirs in zip(resumed["results"], whole["results"], strict=True):
        assert ours["values"] == theirs["values"]
        assert ours["searched"] == theirs["searched"]


def test_rows_that_belong_together_are_parted_together() -> None:
    table = Table({"key": [i // 2 for i in range(40)], "x": list(range(40))})
    rest, part = _compare._apart(table, "key", 0.25)
    assert (len(rest), len(part)) == (30, 10)
    assert not set(rest["key"]) & set(part["key"])
    assert sorted(rest["x"] + part["x"]) == list(range(40))


def test_memory_of_a_step_counts_what_training_adds(config: CompareConfig, base: Base) -> None:
    task = make_task(base, config.run.task, batch_size=16)
    held = {}
    for name, tuner in (("head", Head()), ("lora", LoRA(rank=1)), ("full", Full())):
        adaptation = start(base, task, tuner)
        held[name] = step_memory(adaptation, task)
        trained = sum(p.numel() for group in adaptation.groups for p in group.parameters)
        assert held[name] >= 4 * 4 * trained, "values, gradients and two moments"
        assert held[name] == step_memory(start(base, task, tuner), task)
    assert held["head"] < held["lora"] < held["full"]
    assert task.streams["train"].state()["index"] == 0
    wide = make_task(base, config.run.task, batch_size=64)
    assert step_memory(start(base, wide, Head()), wide) > held["head"]


def test_a_larger_budget_never_gives_a_smaller_tuner(config: CompareConfig, base: Base) -> None:
    task = make_task(base, config.run.task, batch_size=16)
    shares, ranks = [], []
    for budget in (1800, 2200, 2600, 4000):
        mask = fit_tuner("random_mask", budget, config.run, base, task)
        low_rank = fit_tuner("lora", budget, config.run, base, task)
        assert mask.bytes is not None
        assert mask.bytes <= budget or mask.tuner is None
        shares.append(getattr(mask.tuner, "share", 0.0))
        ranks.append(getattr(low_rank.tuner, "rank", 0))
    assert shares == sorted(shares)
    assert ranks == sorted(ranks)
    assert shares[-1] > shares[0]
    assert ranks[-1] > ranks[0]


def test_impossible_comparisons_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="lora"):
        CompareConfig(methods=("lorra",))
    for wrong in ({"seeds": (1, 1)}, {"seeds": ()}, {"trials": 0}, {"validation_share": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            CompareConfig(**wrong)
