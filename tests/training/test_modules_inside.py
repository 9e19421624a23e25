"""Modules inside a base from start to prediction: trained, measured, saved, predicted with."""

from __future__ import annotations

import pytest
import torch

from graftwork._errors import FingerprintError, UnsupportedError
from graftwork.bases import Base, load
from graftwork.deltas import dumps, loads
from graftwork.formats import export_merged
from graftwork.tasks import Table, TaskConfig, predict, task_from_tables
from graftwork.training import History, TrainConfig, finish, fit, start
from graftwork.tuning import Bottlenecks, PromptTuning
from tests.tasks.fakes import text_base

TUNERS = {
    "bottlenecks": Bottlenecks(
        where="houlsby", reduction=2, norms=True, values_lr=0.02, head_lr=0.05
    ),
    "prompt": PromptTuning(length=3, values_lr=0.1, head_lr=0.05),
}
ROWS = [
    {"text": f"{a} {b} {judged}", "label": "up" if judged == "good" else "down"}
    for a in ("a", "b", "c", "d", "film", "is")
    for b in ("a", "b", "c", "d", "film", "is", "not")
    for judged in ("good", "bad")
]


def made(base: Base):
    table = Table.from_records(ROWS)
    config = TaskConfig(inputs=("text",), head_hidden=4)
    return task_from_tables(base, {"train": table, "eval": table}, config, batch_size=16)


@pytest.mark.parametrize("name", TUNERS)
def test_what_was_trained_is_what_is_measured_and_predicted(name, tmp_path):
    base = text_base()
    task = made(base)
    before = {key: value.clone() for key, value in base.model.state_dict().items()}
    adaptation = start(base, task, TUNERS[name], seed=0)
    history = History()
    fit(adaptation, task, TrainConfig(steps=150, log_every=1, dropout=False), recorder=history)
    losses = [row["loss"] for row in history.records if "loss" in row]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    delta, metrics = finish(adaptation, task)
    inside = [key for key in delta.ports if key != "head"]
    assert inside
    assert all(key.startswith(("bottleneck:", "prompt:")) for key in inside)
    again = loads(dumps(delta))
    found = predict(base, again, [{"text": row["text"]} for row in ROWS])
    right = sum(p.label == row["label"] for p, row in zip(found, ROWS, strict=True))
    assert metrics["accuracy"] == pytest.approx(right / len(ROWS))
    assert metrics["accuracy"] > 0.9
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())
    with pytest.raises(UnsupportedError, match=r"cannot hold the port '(bottleneck|prompt):"):
        export_merged(again, base, tmp_path / "merged")
    other = load(text_base().model.__class__(text_base().model.config, add_pooling_layer=False))
    with pytest.raises(FingerprintError):
        predict(other, again, [{"text": "a good"}])
