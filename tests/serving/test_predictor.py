"""Predictions of many tasks in one batch against each task's own `predict`."""

from __future__ import annotations

import dataclasses
import random
from functools import cache
from typing import Any

import pytest
import torch

from graftwork._errors import ConfigError, InputError, UnknownNameError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta
from graftwork.serving import MixedPredictor, Report
from graftwork.tasks import Prediction, Signature, Table, TaskConfig, predict, task_from_tables
from tests.tasks.fakes import text_base
from tests.tasks.test_predict import LABELS, ROWS, tune

Trained = tuple[Base, dict[str, Delta]]
FILMS = [
    {"text": f"{'film ' * n}{x} is {y}"} for n in (1, 2, 4) for x in "abcd" for y in ("good", "bad")
]


def _table(rows: list[dict[str, str]], values: list[Any]) -> Table:
    return Table.from_records([{**r, "label": v} for r, v in zip(rows, values, strict=True)])


def _tuned(base: Base, table: Table, config: TaskConfig) -> Delta:
    task = task_from_tables(base, {"train": table, "eval": table}, config, batch_size=24)
    delta, _, losses = tune(base, task)
    assert losses[-1] < 0.7 * losses[0]
    return delta


@cache
def trained() -> Trained:
    base = text_base()
    three = [row["text"].split()[-3] for row in FILMS]
    three = [letter if letter != "d" else "a" for letter in three]
    lengths = [float(len(row["text"].split())) for row in FILMS]
    pairs = TaskConfig(inputs=("one", "two"), head_hidden=16)
    single = TaskConfig(inputs=("text",), head_hidden=0)
    numbers = dataclasses.replace(single, kind="regression")
    return base, {
        "pairs": _tuned(base, _table(ROWS, LABELS), pairs),
        "other pairs": _tuned(base, _table(ROWS, [r["one"].split()[0] for r in ROWS]), pairs),
        "letters": _tuned(base, _table(FILMS, three), single),
        "judged": _tuned(base, _table(FILMS, [r["text"].split()[-1] for r in FILMS]), single),
        "lengths": _tuned(base, _table(FILMS, lengths), numbers),
    }


def requests(names: list[str], count: int, seed: int) -> list[tuple[str, dict[str, str]]]:
    rng = random.Random(seed)
    drawn = [rng.choice(names) for _ in range(count)]
    return [(name, rng.choice(ROWS if "pairs" in name else FILMS)) for name in drawn]


def close(one: Prediction, other: Prediction) -> bool:
    if one.label != other.label:
        return False
    mine = {**(one.scores or {}), "": one.value or 0.0}
    theirs = {**(other.scores or {}), "": other.value or 0.0}
    return mine == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_each_row_gets_what_its_own_delta_predicts(batch_size: int) -> None:
    base, deltas = trained()
    mixed = MixedPredictor(base)
    keys = {name: mixed.add(delta) for name, delta in deltas.items()}
    wanted = requests(list(deltas), 60, seed=batch_size)
    found = mixed.predict([(keys[name], row) for name, row in wanted], batch_size)
    for (name, row), prediction in zip(wanted, found, strict=True):
        assert close(prediction, predict(base, deltas[name], [row])[0]), name
    base.verify()


def test_tasks_of_one_call_share_a_forward_whatever_their_labels() -> None:
    base, deltas = trained()
    mixed, report = MixedPredictor(base), Report()
    keys = {name: mixed.add(deltas[name]) for name in ("letters", "judged", "lengths")}
    wanted = [(keys[name], FILMS[i]) for i, name in enumerate([*keys] * 3)]
    found = mixed.predict(wanted, report=report)
    assert not report.whole
    assert [p.value is not None for p in found] == [False, False, True] * 3


def test_equal_texts_of_different_tasks_have_encodings_of_their_own() -> None:
    base, deltas = trained()
    mixed, report = MixedPredictor(base), Report()
    keys = {name: mixed.add(deltas[name]) for name in ("pairs", "other pairs")}
    same = {"one": "a good", "two": "a good"}
    found = mixed.predict([(keys[name], same) for name in keys], report=report)
    assert not report.whole
    for name, prediction in zip(keys, found, strict=True):
        assert close(prediction, predict(base, deltas[name], [same])[0])


def test_bad_requests_are_named() -> None:
    base, deltas = trained()
    mixed = MixedPredictor(base)
    key = mixed.add(deltas["judged"])
    with pytest.raises(UnknownNameError, match="delta 'nothing'"):
        mixed.predict([("nothing", FILMS[0])])
    with pytest.raises(UnknownNameError, match="txt"):
        mixed.predict([(key, {"txt": "a"})])
    with pytest.raises(InputError, match="lacks the column"):
        mixed.predict([(key, {})])
    with pytest.raises(ConfigError, match="batch_size"):
        mixed.predict([(key, FILMS[0])], batch_size=0)
    words = Signature(kind="tokens", call="words", fields=("text",), labels=("O", "B"))
    with pytest.raises(UnsupportedError, match="position by position"):
        mixed.add(dataclasses.replace(deltas["judged"], signature=words.to_json()))
    mixed.remove(key)
    with pytest.raises(UnknownNameError):
        mixed.predict([(key, FILMS[0])])
    assert mixed.predict([]) == []


def test_an_unknown_row_changes_nothing() -> None:
    base, deltas = trained()
    mixed = MixedPredictor(base)
    key = mixed.add(deltas["letters"])
    before = mixed.predict([(key, FILMS[3])])
    with pytest.raises(InputError):
        mixed.predict([(key, FILMS[3]), (key, {"text": None})])
    assert mixed.predict([(key, FILMS[3])]) == before
    assert torch.get_default_dtype() == torch.float32
