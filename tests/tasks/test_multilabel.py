"""Rows that have any number of labels: reading, learning, predicting, measuring."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from tests.tasks.fakes import module_base
from tests.tasks.test_predict import tune
from torch import nn

from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.deltas import dumps, loads
from graftwork.tasks import (
    Evaluator,
    Signature,
    Table,
    Task,
    TaskConfig,
    evaluate_delta,
    make_task,
    predict,
    task_from_tables,
)

NAMES = ("left", "low", "outside")
CONFIG = TaskConfig(inputs=("x",), label="tags", kind="multilabel")


def names_of(x: torch.Tensor) -> list[list[str]]:
    facts = torch.stack([x[:, 0] < 0, x[:, 1] < 0, x.norm(dim=1) > 1.5], dim=1)
    return [[n for n, fact in zip(NAMES, row, strict=True) if fact] for row in facts.tolist()]


def points(rows: int = 200, seed: int = 0, *, text: bool = False) -> Table:
    x = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    tags: list[Any] = names_of(x)
    return Table({"x": x.numpy(), "tags": [", ".join(t) for t in tags] if text else tags}, "p.csv")


def task(tags: list[Any], config: TaskConfig = CONFIG) -> Task:
    rows = Table({"x": [[float(i)] for i in range(len(tags))], "tags": tags}, "rows.csv")
    return task_from_tables(module_base(nn.Linear(1, 3)), {"train": rows}, config, batch_size=4)


@pytest.mark.parametrize("text", [False, True])
def test_a_trained_delta_predicts_sets_of_labels(text: bool) -> None:
    torch.manual_seed(2)
    base = module_base(nn.Sequential(nn.Linear(2, 24), nn.Tanh()))
    made = task_from_tables(base, {"train": points(text=text)}, CONFIG, batch_size=100)
    assert made.signature is not None
    assert made.signature.labels == NAMES
    delta, _, losses = tune(base, made, steps=300)
    assert losses[-1] < 0.5 * losses[0]
    delta, held = loads(dumps(delta)), points(120, seed=1, text=text)
    found = predict(base, delta, held)
    truth = names_of(torch.from_numpy(held["x"]))
    assert np.mean([set(p.labels or ()) == set(t) for p, t in zip(found, truth, strict=True)]) > 0.7
    assert any(p.labels == () for p in found)
    scores = np.asarray([[p.scores[n] for n in NAMES] for p in found])  # type: ignore[index]
    wanted = np.asarray([[n in t for n in NAMES] for t in truth])
    measured = evaluate_delta(base, delta, held, metrics=("f1", "average_precision", "accuracy"))
    assert measured["f1"] == pytest.approx(sk.f1_score(wanted, scores > 0.5, average="macro"))
    areas = sk.average_precision_score(wanted, scores, average=None)
    assert measured["average_precision"] == pytest.approx(np.mean(areas))
    assert measured["average_precision/low"] == pytest.approx(areas[1])
    assert measured["accuracy"] == pytest.approx(1 - sk.hamming_loss(wanted, scores > 0.5))
    assert measured["f1"] > 0.8


def test_targets_are_ones_and_zeros_in_the_order_of_the_labels() -> None:
    made = task(["b,a", "", ["c"], " a , a "])
    (batch,) = made.streams["train"].once(4)
    order = batch.rows.argsort()
    wanted = [[1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert batch.targets is not None
    assert batch.targets[order].tolist() == wanted
    own = TaskConfig(inputs=("x",), label="tags", kind="multilabel", labels=("c", "a", "b"))
    assert task(["b,a", "", ["c"], "a"], own).signature.labels == ("c", "a", "b")  # type: ignore[union-attr]
    numbers = task([["10", 9], [9], [], [10]])
    assert numbers.signature.labels == ("9", "10")  # type: ignore[union-attr]


def test_a_list_keeps_commas_inside_a_label() -> None:
    made = task([["sci-fi, space"], [], ["war"], []])
    assert made.signature.labels == ("sci-fi, space", "war")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["a", None, "b", ""], r"1 of 4 values .* missing or NaN \(rows.csv, row 2.*an empty text"),
        (["a", "b,,c", "", ""], r"row 2.*'b,,c', where a label is blank or missing"),
        (["a", ["b", None], "", ""], r"row 2.*where a label is blank or missing"),
        (["", "", [], ""], r"no row has a label in column 'tags'"),
        (["a,b", "a", "a", "a"], r"4 of 4 rows have the label 'a'"),
    ],
)
def test_bad_labels_are_named(tags: list[Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(tags)


def test_labels_that_are_not_the_tasks_are_named() -> None:
    own = TaskConfig(inputs=("x",), label="tags", kind="multilabel", labels=("a", "b"))
    with pytest.raises(UnknownNameError, match=r"row 3, column 'tags'.*'bb'.*did you mean 'b'"):
        task(["a", "b", "bb", ""], own).streams["train"].draw()
    with pytest.raises(InputError, match="0 of 4 rows have the label 'b'"):
        task(["a", "", "a", ""], own)
    with pytest.raises(ConfigError, match="multilabel has one target; use kind 'binary'"):
        TaskConfig(kind="multilabel", label_columns=("a", "b"))


def test_a_csv_file_is_read_and_rare_labels_are_found_in_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "tags"])
        for i in range(40):
            writer.writerow([i, -i, ["", "war", "love", "war, love"][i % 4]])
    config = TaskConfig(
        data=str(path), inputs=("a", "b"), call="array", label="tags", kind="multilabel"
    )
    made = make_task(module_base(nn.Linear(2, 3)), config, batch_size=8)
    assert made.signature is not None
    assert made.signature.labels == ("love", "war")
    assert Signature.from_json(made.signature.to_json()) == made.signature


def test_the_metrics_of_a_label_are_those_of_an_answer() -> None:
    signature = Signature(
        kind="multilabel", call="single", fields=("t",), targets=("tags",), labels=("a", "b")
    )
    evaluator = Evaluator(signature)
    assert evaluator.main == "f1"
    with pytest.raises(ConfigError, match="'pearson' does not go with multilabel"):
        Evaluator(signature, ("pearson",))
    outputs = np.asarray([[3.0, -1.0], [-2.0, -1.0], [1.0, 4.0]])
    found = evaluator.values(evaluator.scored(outputs, np.asarray([[1, 0], [0, 0], [0, 1.0]])))
    assert found["f1/a"] == pytest.approx(2 / 3)
    assert found["f1/b"] == 1.0
    assert found["f1"] == pytest.approx(5 / 6)
