"""Metrics against scikit-learn, SciPy and closed forms, and their values where undefined."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from tests.tasks.fakes import module_base
from torch import nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.tasks import (
    METRICS,
    ArrayInput,
    Evaluator,
    Scored,
    Scorer,
    Signature,
    Table,
    TableStream,
)


def signature(labels: int = 3, **changes: Any) -> Signature:
    fields = {
        "kind": "classification" if labels else "regression",
        "call": "array",
        "fields": ("x",),
        "labels": tuple(f"l{i}" for i in range(labels)),
        "array": ArrayInput((max(labels, 1),)),
        "head": None,
    }
    return Signature(**(fields | changes))


def value(name: str, outputs: Any, targets: Any, labels: int = 0) -> Any:
    names = tuple(f"l{i}" for i in range(labels))
    return METRICS[name].function(Scored(np.asarray(outputs, float), np.asarray(targets), names))


@given(st.integers(0, 10_000), st.integers(2, 40), st.integers(2, 4))
@settings(max_examples=40, deadline=None)
def test_classification_metrics_agree_with_scikit_learn(seed: int, rows: int, labels: int) -> None:
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(rows, labels))
    targets = generator.integers(labels, size=rows)
    targets[:labels] = range(min(labels, rows))
    predicted = outputs.argmax(1)
    probabilities = np.exp(outputs) / np.exp(outputs).sum(1, keepdims=True)
    every = list(range(labels))
    present = sorted(set(targets.tolist()))
    want = {
        "accuracy": sk.accuracy_score(targets, predicted),
        "matthews": sk.matthews_corrcoef(targets, predicted),
        "f1_macro": sk.f1_score(
            targets, predicted, average="macro", labels=every, zero_division=0.0
        ),
        "loss": sk.log_loss(targets, probabilities, labels=every),
        "balanced_accuracy": sk.recall_score(
            targets, predicted, average="macro", labels=present, zero_division=0.0
        ),
    }
    if labels == 2:
        want["f1"] = sk.f1_score(targets, predicted, zero_division=0.0)
    for name, number in want.items():
        assert value(name, outputs, targets, labels) == pytest.approx(number, abs=1e-9), name


@given(st.integers(0, 10_000), st.integers(3, 40))
@settings(max_examples=40, deadline=None)
def test_regression_metrics_agree_with_their_definitions(seed: int, rows: int) -> None:
    generator = np.random.default_rng(seed)
    targets = generator.normal(size=rows)
    outputs = (targets + generator.normal(size=rows)).round(1)
    centred = [v - v.mean() for v in (outputs, targets)]
    r = (centred[0] @ centred[1]) / np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum())
    ranks = [stats.rankdata(v) for v in (outputs, targets)]
    want = {
        "pearson": r,
        "spearman": np.corrcoef(*ranks)[0, 1],
        "mse": sk.mean_squared_error(targets, outputs),
        "mae": sk.mean_absolute_error(targets, outputs),
        "r2": sk.r2_score(targets, outputs),
        "loss": sk.mean_squared_error(targets, outputs),
    }
    for name, number in want.items():
        assert value(name, outputs, targets) == pytest.approx(number, abs=1e-9), name


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
def test_correlations_with_a_constant_or_of_one_row_are_0(name: str) -> None:
    labels = 2 if name == "matthews" else 0
    constant = [[1.0, 0.0]] * 3 if labels else [1.0] * 3
    varied = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]] if labels else [1.0, 2.0, 3.0]
    assert value(name, constant, [0, 1, 1], labels) == 0.0
    assert value(name, varied, [1, 1, 1], labels) == 0.0
    assert value(name, varied[:1], [1], labels) == 0.0


def test_small_spreads_beside_a_large_mean_are_no_warning() -> None:
    targets = np.array([1.0, 2.0, 3.0])
    assert value("pearson", 1e9 + targets * 1e-3, targets) == pytest.approx(1.0, abs=1e-3)


def test_f1_of_a_class_that_never_appears_and_recall_without_rows() -> None:
    outputs = [[1.0, 0.0], [1.0, 0.0]]
    assert value("f1", outputs, [0, 0], 2) == 0.0
    assert value("recall", outputs, [0, 0], 2) == {"l0": 1.0}
    assert value("r2", [1.0, 2.0], [3.0, 3.0]) == 0.0


def test_recall_shows_a_constant_answer() -> None:
    outputs = [[1.0, 0.0, 0.0]] * 4
    assert value("recall", outputs, [0, 2, 0, 2], 3) == {"l0": 1.0, "l2": 0.0}
    assert value("accuracy", outputs, [0, 2, 0, 2], 3) == 0.5


def stream(x: Any, label: Any, of: Signature, **columns: Any) -> TableStream:
    table = Table({"x": np.asarray(x, np.float32), "label": label, **columns})
    group = next(iter(columns), None)
    return TableStream(table=table, signature=of, base=module_base(nn.Identity()), group=group)


def call(batch: Batch) -> torch.Tensor:
    out: torch.Tensor = batch.inputs["x"]
    return out


def test_evaluate_by_group_whatever_the_batches() -> None:
    of = signature(2)
    x = [[1, 0], [0, 1], [1, 0], [0, 1], [1, 0]]
    source = stream(x, ["l0", "l0", "l0", "l1", "l1"], of, type=["a", "b", "a", "b", "b"])
    evaluator = Evaluator(of, ("accuracy", "recall"))
    want = {
        "accuracy": 0.6,
        "recall/l0": 2 / 3,
        "recall/l1": 0.5,
        "accuracy/a": 1.0,
        "recall/a/l0": 1.0,
        "accuracy/b": 1 / 3,
        "recall/b/l0": 0.0,
        "recall/b/l1": 0.5,
    }
    for size in (1, 2, 64):
        assert evaluator.evaluate(call, source, size) == pytest.approx(want)
    batches = list(source.once(2))[::-1]
    assert evaluator.evaluate(call, batches, groups=source.groups) == pytest.approx(want)
    assert set(evaluator.evaluate(call, batches)) == {"accuracy", "recall/l0", "recall/l1"}


def test_regression_is_measured_in_the_datas_units() -> None:
    of = signature(0, target_mean=(10.0,), target_std=(2.0,))
    evaluator = Evaluator(of, ("mse", "mae"))
    got = evaluator.evaluate(call, stream([[0.0], [1.0]], [10.0, 14.0], of))
    assert got == pytest.approx({"mse": 2.0, "mae": 1.0})


def test_directions_decide_what_is_better() -> None:
    up, down = Evaluator(signature(2), ("accuracy",)), Evaluator(signature(2), ("loss",))
    assert (up.main, up.direction, down.direction) == ("accuracy", "max", "min")
    assert up.better({"accuracy": 0.6}, {"accuracy": 0.5})
    assert not up.better({"accuracy": 0.5}, {"accuracy": 0.5})
    assert down.better({"loss": 0.4}, {"loss": 0.5})
    assert up.better({"accuracy": 0.0}, None)
    assert Evaluator(signature(0)).metrics == ("pearson", "spearman", "loss")


def test_bad_evaluations_are_named() -> None:
    with pytest.raises(UnknownNameError, match="unknown metric 'acuracy'; did you mean 'accuracy'"):
        Evaluator(signature(2), ("acuracy",))
    with pytest.raises(ConfigError, match="'pearson' does not go with classification"):
        Evaluator(signature(2), ("pearson",))
    with pytest.raises(ConfigError, match="'f1' wants 2 labels, not 3; use 'f1_macro'"):
        Evaluator(signature(3), ("f1",))
    evaluator = Evaluator(signature(2))
    with pytest.raises(InputError, match="no rows"):
        evaluator.evaluate(call, [])
    with pytest.raises(InputError, match="no targets"):
        evaluator.evaluate(call, [Batch({"x": torch.zeros(1, 2)}, None, torch.arange(1))])
    with pytest.raises(InputError, match=r"outputs of shape \(1, 3\)"):
        evaluator.evaluate(
            call, [Batch({"x": torch.zeros(1, 3)}, torch.zeros(1).long(), torch.arange(1))]
        )


def several(kind: str, names: tuple[str, ...], **changes: Any) -> Signature:
    changes = {"array": ArrayInput((len(names),)), "kind": kind, "targets": names} | changes
    return signature(0, **changes)


def with_gaps(seed: int, rows: int, answers: bool = False) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    outputs = generator.normal(size=(rows, 3))
    targets = generator.normal(size=(rows, 3)) + outputs
    if answers:
        targets = (targets > 0).astype(float)
        targets[:2] = [[0.0] * 3, [1.0] * 3]
    targets[2:][generator.random((rows - 2, 3)) < 0.4] = np.nan
    return outputs, targets


def batches(outputs: Any, targets: Any, size: int = 4) -> list[Batch]:
    x, y = torch.tensor(outputs), torch.tensor(targets)
    rows = torch.arange(len(x)).split(size)
    return [Batch({"x": x[part]}, y[part], part) for part in rows]


@given(st.integers(0, 10_000), st.integers(5, 40))
@settings(max_examples=12, deadline=None)
def test_several_targets_agree_with_scikit_learn_on_the_rows_present(seed: int, rows: int) -> None:
    outputs, targets = with_gaps(seed, rows)
    of = several("regression", ("a", "b", "c"), target_mean=(1.0, 0.0, -2.0))
    evaluator = Evaluator(of, ("mae", "rmse", "r2"))
    got = evaluator.evaluate(call, batches(outputs, targets))
    functions = {
        "mae": sk.mean_absolute_error,
        "rmse": sk.root_mean_squared_error,
        "r2": sk.r2_score,
    }
    for name, function in functions.items():
        values = []
        for i, target in enumerate("abc"):
            here = ~np.isnan(targets[:, i])
            values.append(function(targets[here, i], outputs[here, i]))
            assert got[f"{name}/{target}"] == pytest.approx(values[-1], abs=1e-9)
        assert got[name] == pytest.approx(np.mean(values), abs=1e-9)
    assert len(got) == 12


@given(st.integers(0, 10_000), st.integers(5, 40))
@settings(max_examples=12, deadline=None)
def test_answers_agree_with_scikit_learn_on_the_rows_present(seed: int, rows: int) -> None:
    outputs, targets = with_gaps(seed, rows, answers=True)
    names = ("roc_auc", "average_precision", "loss", "accuracy", "f1", "matthews")
    got = Evaluator(several("binary", ("a", "b", "c")), names).evaluate(
        call, batches(outputs, targets)
    )
    for i, target in enumerate("abc"):
        here = ~np.isnan(targets[:, i])
        true, logits = targets[here, i], outputs[here, i]
        said = (logits > 0).astype(float)
        want = {
            "roc_auc": sk.roc_auc_score(true, logits),
            "average_precision": sk.average_precision_score(true, logits),
            "loss": sk.log_loss(true, 1 / (1 + np.exp(-logits))),
            "accuracy": sk.accuracy_score(true, said),
            "f1": sk.f1_score(true, said, zero_division=0.0),
            "matthews": sk.matthews_corrcoef(true, said),
        }
        for name, number in want.items():
            assert got[f"{name}/{target}"] == pytest.approx(number, abs=1e-9), name
    for name in names:
        assert got[name] == pytest.approx(np.mean([got[f"{name}/{t}"] for t in "abc"]))


def test_targets_with_one_answer_are_skipped_in_sight() -> None:
    evaluator = Evaluator(several("binary", ("a", "b", "c")), ("roc_auc", "accuracy"))
    nan = np.nan
    targets = [[1.0, 1.0, nan], [0.0, 1.0, nan], [nan, 1.0, nan], [1.0, nan, nan]]
    outputs = [[2.0, -1.0, 0.5], [-1.0, 1.0, 0.5], [0.0, 1.0, 0.5], [-2.0, 0.0, 0.5]]
    want = {
        "roc_auc": 0.5,
        "roc_auc/a": 0.5,
        "roc_auc_skipped": 2.0,
        "accuracy": 2 / 3,
        "accuracy/a": 2 / 3,
        "accuracy/b": 2 / 3,
        "accuracy_skipped": 1.0,
    }
    assert evaluator.evaluate(call, batches(outputs, targets)) == pytest.approx(want)
    grouped = evaluator.evaluate(call, batches(outputs, targets), groups=["p", "p", "q", "q"])
    assert grouped["roc_auc/p/a"] == grouped["roc_auc/p"] == 1.0
    assert grouped["roc_auc_skipped/p"] == 2.0
    assert "roc_auc/q" not in grouped
    assert grouped["roc_auc_skipped/q"] == 3.0
    with pytest.raises(InputError, match=r"'roc_auc' has no value.*both answers are needed"):
        evaluator.evaluate(call, batches(outputs[2:], targets[2:]))


def test_areas_of_two_labels_take_the_second_as_positive() -> None:
    generator = np.random.default_rng(0)
    outputs, targets = generator.normal(size=(30, 2)), generator.integers(2, size=30)
    odds = outputs[:, 1] - outputs[:, 0]
    assert value("roc_auc", outputs, targets, 2) == pytest.approx(sk.roc_auc_score(targets, odds))
    wanted = sk.average_precision_score(targets, odds)
    assert value("average_precision", outputs, targets, 2) == pytest.approx(wanted)
    with pytest.raises(ConfigError, match="'roc_auc' wants 2 labels, not 3"):
        Evaluator(signature(3), ("roc_auc",))


def test_the_evaluator_is_a_scorer_and_vectors_have_none() -> None:
    assert isinstance(Evaluator(signature(2)), Scorer)
    assert Evaluator(several("binary", ("a",))).main == "roc_auc"
    with pytest.raises(ConfigError, match="'vector' has no metrics"):
        Evaluator(several("vector", ()))
