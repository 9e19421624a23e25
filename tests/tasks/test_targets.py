"""Targets from columns: several, missing, yes and no; and the errors that name rows."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.fakes import module_base, text_base
from torch import nn

from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.tasks import Table, Task, TaskConfig, make_task, task_from_tables

X = [[0.0], [1.0], [2.0], [3.0]]
NAN = float("nan")


def task(config: TaskConfig, **columns: Any) -> Task:
    tables = {"train": Table({"x": X, **columns}, "rows.csv")}
    return task_from_tables(module_base(nn.Linear(1, 3)), tables, config, batch_size=4)


def targets(made: Task) -> Any:
    (batch,) = made.streams["train"].once(4)
    return batch.targets


def test_each_target_is_standardised_by_the_values_that_are_there() -> None:
    a, b = [1.0, None, "3", " "], [10.0, 20.0, 40.0, NAN]
    with pytest.raises(
        InputError, match=r"1 of 4 rows have .* none .*\['a', 'b'\].*rows.csv, row 4"
    ):
        task(TaskConfig(kind="regression", label_columns=("a", "b")), a=a, b=b)
    b[3] = 10.0
    made = task(TaskConfig(kind="regression", label_columns=("a", "b")), a=a, b=b)
    signature = made.signature
    assert signature is not None
    assert signature.fields == ("x",)
    assert signature.targets == ("a", "b")
    assert signature.target_mean == (2.0, 20.0)
    assert signature.target_std == pytest.approx((1.0, float(np.std([10, 20, 40, 10]))))
    got = targets(made)
    assert (got.shape, got.dtype) == ((4, 2), torch.float32)
    assert got[:, 0].isnan().tolist() == [False, True, False, True]
    assert got[:, 0][[0, 2]].tolist() == [-1.0, 1.0]
    assert float(got[:, 1].mean()) == pytest.approx(0.0, abs=1e-6)
    assert made.ports["head"].config["out_features"] == 2


def test_one_target_refuses_what_is_missing() -> None:
    for kind in ("regression", "binary"):
        with pytest.raises(InputError, match=r"1 of 4 values in column 'label' .*row 2"):
            task(TaskConfig(kind=kind), label=[1.0, None, 0.0, 1.0])


def test_answers_in_words_and_numbers() -> None:
    columns = {"a": [True, "no", 1, 0.0], "b": ["yes", None, "False", "1.0"]}
    config = TaskConfig(kind="binary", label_columns=("a", "b"))
    with pytest.raises(UnknownNameError, match=r"answer \(rows.csv, row 4, column 'b'\) '1.0'"):
        task(config, **columns)
    columns["b"][3] = 1.0
    made = task(config, **columns)
    assert targets(made)[:, 0].tolist() == [1.0, 0.0, 1.0, 0.0]
    assert targets(made)[[0, 2, 3], 1].tolist() == [1.0, 0.0, 1.0]
    assert math.isnan(targets(made)[1, 1])
    own = TaskConfig(kind="binary", label="hiv", labels=("CI", "CA"))
    made = task(own, hiv=["CA", "CI", "CI", "CA"])
    assert targets(made).tolist() == [[1.0], [0.0], [0.0], [1.0]]
    with pytest.raises(UnknownNameError, match=r"row 3, column 'hiv'\) 'CM'"):
        task(own, hiv=["CA", "CI", "CM", "CA"])


@pytest.mark.parametrize(
    ("kind", "columns", "message"),
    [
        ("regression", {"a": [1, 2, 3, 4], "b": [None] * 4}, "no row has a value in column 'b'"),
        ("binary", {"a": [0, 1, 0, 1], "b": [None] * 4}, "no row has a value in column 'b'"),
        ("regression", {"a": [1, 2, 3, 4], "b": [5, 5, NAN, 5]}, "all 3 values in column 'b'"),
        ("binary", {"a": [0, 1, 0, 1], "b": [1, NAN, 1, 1]}, "needs both answers"),
        ("regression", {"a": [1, 2, 3, 4], "b": [1, 2, "x", 4]}, "row 3: column 'b' has 'x'"),
        ("regression", {"a": [1, 2, 3, 4], "b": [1, 2, math.inf, 4]}, "row 3: .* not finite"),
        ("regression", {"a": [1, 2, 3, 4]}, "'b'"),
    ],
)
def test_targets_that_teach_nothing_are_named(kind: Any, columns: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(TaskConfig(kind=kind, label_columns=("a", "b")), **columns)


def test_classification_has_one_target() -> None:
    with pytest.raises(ConfigError, match="classification has one target"):
        TaskConfig(label_columns=("a", "b"))
    made = task(TaskConfig(label_columns=("a",)), a=["p", "q", "p", "q"])
    assert targets(made).tolist() == [0, 1, 0, 1]


def test_a_file_whose_target_has_another_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,stars\n" + "good film,p\nbad film,q\n" * 6)
    for named in ({"label": "stars"}, {"label_columns": ("stars",)}):
        made = make_task(text_base(), TaskConfig(data=str(path), eval_share=0.5, **named))  # type: ignore[arg-type]
        assert made.signature is not None
        assert made.signature.targets == ("stars",)
        assert made.signature.fields == ("text",)
        assert made.signature.labels == ("p", "q")
