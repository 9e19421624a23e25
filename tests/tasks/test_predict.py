"""Prediction by a trained delta: of the task it reads the signature in the delta, no more."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from tests.tasks.fakes import module_base, text_base
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import (
    DeltaError,
    FingerprintError,
    InputError,
    UnknownNameError,
    UnsupportedError,
)
from graftwork.bases import Base
from graftwork.deltas import Delta, between, dumps, loads, port_of, run_rows
from graftwork.tasks import (
    PortSpec,
    Predictor,
    Table,
    Task,
    TaskConfig,
    evaluate_delta,
    predict,
    task_from_tables,
)

WORDS = ["a", "b", "c", "d", "film", "is"]
ROWS = [
    {"one": f"{x} {judged}", "two": f"{y} {other}"}
    for x in WORDS
    for y in WORDS
    for judged in ("good", "bad")
    for other in ("good", "bad")
]
LABELS = ["same" if r["one"].split()[1] == r["two"].split()[1] else "other" for r in ROWS]


def table(rows: list[dict[str, str]] | None = None, labels: list[str] | None = None) -> Table:
    return Table.from_records(
        [
            {**row, "label": label, "id": i, "kind": row["one"].split()[1]}
            for i, (row, label) in enumerate(zip(rows or ROWS, labels or LABELS, strict=True))
        ]
    )


def tune(base: Base, task: Task, steps: int = 120) -> tuple[Delta, Any, list[float]]:
    """Fine-tune a copy of the base and a head by plain torch, and take the difference."""
    torch.manual_seed(0)
    tuned = copy.deepcopy(base.model).requires_grad_(True)
    ports = task.build_ports()
    optimiser = torch.optim.Adam([*tuned.parameters(), *ports.parameters()], lr=5e-3)

    def model(batch: Batch) -> Tensor:
        return task.signature.call_model(tuned, ports, batch.inputs)

    losses = []
    for _ in range(steps):
        loss = task.objectives["task"](model, task.streams["train"].draw()).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    delta = between(base, tuned, stored="float64")
    stored = {
        name: port_of(ports[name], spec.kind, spec.config, "float64")
        for name, spec in task.ports.items()
    }
    full = dataclasses.replace(delta, ports=stored, signature=task.signature.to_json())
    return full, model, losses


@pytest.fixture(scope="module")
def trained() -> tuple[Base, Delta, Any, Task]:
    base = text_base()
    config = TaskConfig(inputs=("one", "two"), head_hidden=16, group="kind")
    task = task_from_tables(base, {"train": table(), "eval": table()}, config, batch_size=24)
    delta, model, losses = tune(base, task)
    assert losses[-1] < 0.3 * losses[0]
    return base, delta, model, task


def test_predictions_are_those_of_the_trained_model(trained: Any) -> None:
    base, delta, model, task = trained
    predictions = predict(base, loads(dumps(delta)), ROWS)
    assert [p.label for p in predictions] == LABELS
    with torch.no_grad():
        outputs = torch.cat([model(batch) for batch in task.streams["eval"].once(16)])
    probabilities = outputs.softmax(1)[:, task.signature.labels.index("same")]
    got = torch.tensor([p.scores["same"] for p in predictions], dtype=torch.float64)
    torch.testing.assert_close(got, probabilities, rtol=0, atol=1e-9)


def test_batch_size_and_order_do_not_matter(trained: Any) -> None:
    base, delta, _, _ = trained
    rows = [{"one": "a good", "two": "a b c d good"}, {"one": "film bad", "two": "good"}] * 3
    whole = [p.scores["same"] for p in predict(base, delta, rows)]
    for size in (1, 4):
        assert [p.scores["same"] for p in predict(base, delta, rows, size)] == pytest.approx(whole)
    backwards = [p.scores["same"] for p in predict(base, delta, rows[::-1])]
    assert backwards == pytest.approx(whole[::-1])


def test_the_base_is_unchanged(trained: Any) -> None:
    base, delta, _, _ = trained
    before = {k: v.clone() for k, v in base.model.state_dict().items()}
    predict(base, delta, ROWS[:3])
    after = base.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_evaluate_reads_the_signature_and_a_table(trained: Any) -> None:
    base, delta, model, task = trained
    got = evaluate_delta(
        base, delta, table(), metrics=("accuracy", "loss", "recall"), group="kind", batch_size=7
    )
    assert got["accuracy"] == 1.0
    assert {"accuracy/good", "accuracy/bad", "recall/same", "recall/other"} <= set(got)
    assert got["loss"] == pytest.approx(task.evaluate(model)["loss"], abs=1e-9)


def test_tables_may_have_more_columns_and_records_may_not(trained: Any) -> None:
    base, delta, _, _ = trained
    assert [p.label for p in predict(base, delta, table().take([0, 1]))] == LABELS[:2]
    with pytest.raises(UnknownNameError, match=r"record 1: 'tow'; did you mean 'two'"):
        predict(base, delta, [{"one": "a", "tow": "b"}])
    with pytest.raises(UnknownNameError, match="column in record 1: 'label'"):
        predict(base, delta, [{**ROWS[0], "label": "same"}])


def test_bad_input_is_named(trained: Any) -> None:
    base, delta, _, _ = trained
    with pytest.raises(InputError, match="no rows"):
        predict(base, delta, [])
    with pytest.raises(InputError, match="batch_size 0"):
        predict(base, delta, ROWS[:1], 0)
    with pytest.raises(UnknownNameError, match="'label'"):
        evaluate_delta(base, delta, Table.from_records(ROWS))
    with pytest.raises(UnknownNameError, match=r"row 1, .*'sam'; did you mean 'same'"):
        evaluate_delta(base, delta, table(ROWS[:1], ["sam"]))
    with pytest.raises(UnknownNameError, match="unknown metric"):
        evaluate_delta(base, delta, table(), metrics=("acc",))


def test_deltas_that_cannot_predict_are_named(trained: Any) -> None:
    base, delta, _, _ = trained
    with pytest.raises(DeltaError, match="bare weight difference"):
        predict(base, dataclasses.replace(delta, signature={}), ROWS[:1])
    with pytest.raises(DeltaError, match="needs the port 'head'"):
        predict(base, dataclasses.replace(delta, ports={}), ROWS[:1])
    other = copy.deepcopy(base.model)
    next(other.parameters()).data[0] += 1
    changed = dataclasses.replace(base, model=other, _first={})
    with pytest.raises(FingerprintError):
        predict(changed, delta, ROWS[:1])


def test_regression_and_arrays_predict_in_the_datas_units() -> None:
    torch.manual_seed(1)
    x = torch.randn(64, 3, dtype=torch.float64)
    y = 100 + 5 * (x @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))
    base = module_base(nn.Linear(3, 4).double())
    rows = Table({"x": x, "label": y})
    config = TaskConfig(kind="regression", head_hidden=0, metrics=("r2", "mae"))
    task = task_from_tables(base, {"train": rows, "eval": rows}, config, batch_size=64)
    delta, _, losses = tune(base, task, steps=500)
    assert losses[-1] < 0.1 * losses[0]
    predictor = Predictor(base, delta)
    values = [p.value for p in predictor.predict([{"x": row.tolist()} for row in x])]
    assert values == pytest.approx(y.tolist(), abs=3.0)
    assert evaluate_delta(base, delta, rows, metrics=("r2",))["r2"] > 0.95


def several_targets(kind: Any) -> tuple[Base, Task, Delta, Table]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(48, 3, dtype=torch.float64, generator=generator)
    truth = x @ torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.5, 1.0]], dtype=torch.float64)
    y = 100 + 5 * truth if kind == "regression" else (truth > 0).double()
    y[::3, 0] = torch.nan
    y[1::3, 1] = torch.nan
    rows = Table({"x": x, "a": y[:, 0], "b": y[:, 1]})
    config = TaskConfig(kind=kind, label_columns=("a", "b"), inputs=("x",), head_hidden=0)
    base = module_base(nn.Linear(3, 4).double())
    task = task_from_tables(base, {"train": rows, "eval": rows}, config, batch_size=48)
    delta, _, losses = tune(base, task, steps=400)
    assert losses[-1] < 0.3 * losses[0]
    return base, task, loads(dumps(delta)), rows


def test_several_regression_targets_with_gaps_predict_in_their_units() -> None:
    torch.manual_seed(1)
    base, _, delta, rows = several_targets("regression")
    predictions = predict(base, delta, rows)
    for name in ("a", "b"):
        for found, truth in zip(predictions, rows[name], strict=True):
            assert found.values is not None
            assert np.isnan(truth) or found.values[name] == pytest.approx(truth, abs=6.0)
    measured = evaluate_delta(base, delta, rows, metrics=("mae", "r2"))
    here = ~np.isnan(rows["a"])
    errors = [abs(p.values["a"] - t) for p, t in zip(predictions, rows["a"], strict=True)]  # type: ignore[index]
    assert measured["mae/a"] == pytest.approx(np.asarray(errors)[here].mean(), abs=1e-5)
    assert measured["r2"] > 0.9
    with pytest.raises(UnknownNameError, match="'b'"):
        evaluate_delta(base, delta, rows.select(("x", "a")))


def test_several_answers_with_gaps_predict_probabilities() -> None:
    torch.manual_seed(1)
    base, task, delta, rows = several_targets("binary")
    predictions = predict(base, delta, rows)
    assert task.evaluator is not None
    assert task.evaluator.main == "roc_auc"
    assert evaluate_delta(base, delta, rows)["roc_auc"] > 0.95
    for name in ("a", "b"):
        right = [
            (p.scores[name] > 0.5) == bool(truth)  # type: ignore[index]
            for p, truth in zip(predictions, rows[name], strict=True)
            if not np.isnan(truth)
        ]
        assert np.mean(right) > 0.9


def test_an_input_port_lets_a_text_base_read_arrays() -> None:
    base = text_base()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 5, 3, generator=generator)
    rows = Table({"x": x, "label": ["up" if v > 0 else "down" for v in x.mean((1, 2))]})
    spec = PortSpec("input", {"in_features": 3, "width": 8})
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    task = task_from_tables(base, {"train": rows, "eval": rows}, batch_size=40, input=spec)
    assert torch.equal(torch.random.get_rng_state(), before)
    signature = task.signature
    assert signature is not None
    assert (signature.call, signature.input, signature.pooling) == ("embedded", "input", "mean")
    assert task.ports["input"] is spec
    assert task.ports["head"].config["in_features"] == 8
    delta, model, losses = tune(base, task, steps=150)
    assert losses[-1] < 0.5 * losses[0]
    assert set(delta.ports) == {"head", "input"}
    predictor = Predictor(base, loads(dumps(delta)))
    (batch,) = task.streams["eval"].once(40)
    with torch.no_grad():
        # The port of the delta is in float64, that which was trained in float32.
        torch.testing.assert_close(predictor(batch), model(batch), rtol=0, atol=1e-5)
    got = run_rows(base, [[(delta, 1.0)]] * 40, batch, signature.call_model)
    torch.testing.assert_close(torch.stack(got), predictor(batch), rtol=0, atol=1e-9)
    labels = [p.label for p in predictor.predict([{"x": row.tolist()} for row in x])]
    assert np.mean([a == b for a, b in zip(labels, rows["label"], strict=True)]) > 0.8
    without = dataclasses.replace(delta, ports={"head": delta.ports["head"]})
    with pytest.raises(DeltaError, match="needs the port 'input'"):
        predict(base, without, rows)


def test_an_input_port_that_does_not_fit_is_named() -> None:
    x = torch.zeros(4, 5, 3)
    tables = {"train": Table({"x": x, "label": [0, 1, 0, 1]})}
    with pytest.raises(UnsupportedError, match=r"cannot be called with .*\(1, 5, 3\).*'embedded'"):
        task_from_tables(
            text_base(), tables, input=PortSpec("input", {"in_features": 3, "width": 9})
        )
    with pytest.raises(InputError, match=r"an input port reads arrays, .* 'single'"):
        task_from_tables(
            text_base(), tables, TaskConfig(call="single"), input=PortSpec("input", {})
        )
