"""The recipe: align, then refine; one file out; stops, resumes and splits exactly."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from graftwork._errors import ConfigError, UnsupportedError
from graftwork.bases import blank, load
from graftwork.deltas import load as load_delta
from graftwork.deltas import values_of
from graftwork.tasks import (
    ForeignInput,
    Table,
    TaskConfig,
    class_stream,
    foreign_task,
    predict,
    pseudo_labels,
)
from graftwork.training import (
    OrcaConfig,
    RunConfig,
    TrainConfig,
    fit,
    orca,
    orca_from_yaml,
    prepare_orca,
)
from graftwork.tuning import DiffPruning, Full, Head, RandomMask, TuningWarning
from tests.training.conftest import Run

pytest.importorskip("ot", reason="the extra `transport` is absent")

from tests.training.orca_toys import ALIGN, columns, tables, text_base

SILENT = {"train": TrainConfig(steps=12, log_every=1), "task": TaskConfig(head_hidden=0)}
TUNERS = {
    "random": RandomMask(share=0.05),
    "full": Full(),
    "diff pruning": DiffPruning(share=0.05),
    "frozen body": Head(),
}


def _config(out: Path, **more: object) -> RunConfig:
    config = RunConfig(out=str(out), **{**SILENT, **more})
    return replace(config, log=replace(config.log, progress="silent"))


@pytest.mark.parametrize("name", TUNERS)
def test_one_file_holds_port_head_and_delta_and_predicts_raw_rows(
    name: str, tmp_path: Path
) -> None:
    base = text_base()
    config = _config(tmp_path / "run", tuner=TUNERS[name], train=TrainConfig(steps=60, log_every=1))
    result = orca(config, ALIGN, base=base, tables=tables())
    losses = [
        row["loss"] for row in result.history if row.get("stage") != "align" and "loss" in row
    ]
    assert np.mean(losses[-5:]) < (0.95 if name == "frozen body" else 0.7) * losses[0]
    delta = load_delta(tmp_path / "run" / "delta.safetensors")
    assert set(delta.ports) == {"input", "head"}
    assert delta.ports["input"].config["categories"] == [0, 0, 3]
    held = tables()["eval"]
    raw = [{k: row[k] for k in ("height", "weight", "colour")} for row in held.records()]
    raw[0] = {**raw[0], "colour": "never seen"}
    found = [p.label for p in predict(base, delta, raw)]
    right = np.mean([p == y for p, y in zip(found[1:], held["label"][1:], strict=True)])
    assert result.metrics["accuracy"] == pytest.approx(right, abs=0.05)
    assert next(row["stage"] for row in result.history) == "align"


def test_stages_train_what_they_say(tmp_path: Path) -> None:
    ready = prepare_orca(_config(tmp_path / "run"), ALIGN, text_base(), tables())
    assert [stage.name for stage in ready.trainee.stages] == ["align", "fixed mask"]
    assert ready.train.steps == 20
    before = {n: t.clone() for n, t in ready.trainee.tensors().items()}
    ready.trainee.stages = ready.trainee.stages[:1]
    ready.trainee.stages = [replace(ready.trainee.stages[0], share=1.0)]
    fit(ready.trainee, ready.task, TrainConfig(steps=8), step=ready.step)
    moved = {
        name.split(".")[0]
        for name, t in ready.trainee.tensors().items()
        if (t != before[name]).any()
    }
    assert moved == {"ports/input"}


def test_alignment_lowers_the_distance_and_its_curve_is_kept(tmp_path: Path) -> None:
    result = orca(_config(tmp_path / "run"), ALIGN, base=text_base(), tables=tables())
    curve = [row["distance"] for row in result.history if "distance" in row]
    assert len(curve) == 8
    assert curve[-1] < 0.7 * curve[0]
    assert "Alignment" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_no_updates_of_alignment_are_naive_fine_tuning(tmp_path: Path) -> None:
    ready = prepare_orca(
        _config(tmp_path / "run"), replace(ALIGN, updates=0), text_base(), tables()
    )
    assert [stage.name for stage in ready.trainee.stages] == ["fixed mask"]
    assert "align" not in ready.task.objectives
    assert ready.train.steps == 12


def test_collapse_is_warned_of_and_undone(tmp_path: Path) -> None:
    wild = replace(ALIGN, updates=60, align_rate=0.05, classwise=True, floor=0.9, patience=0)
    config = _config(tmp_path / "run")
    ready = prepare_orca(config, wild, text_base(), tables())
    align = ready.task.objectives["align"]
    first = align.look(ready.trainee).separability
    with pytest.warns(TuningWarning, match="classes collapse"):
        fit(ready.trainee, ready.task, ready.train, step=ready.step)
    ready = prepare_orca(config, wild, text_base(), tables())
    stage = replace(ready.trainee.stages[0], share=1.0)
    ready.trainee.stages = [stage]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        fit(ready.trainee, ready.task, TrainConfig(steps=60), step=ready.step)
    assert align.look(ready.trainee).separability >= 0.9 * first - 1e-6


@pytest.mark.parametrize(
    ("values", "kind", "port", "shape"),
    [
        (np.random.default_rng(0).normal(size=(40, 12)), "patches", {"patch": [3]}, (40, 4, 16)),
        (
            np.random.default_rng(0).normal(size=(40, 8, 8)),
            "patches",
            {"patch": [4, 4]},
            (40, 4, 16),
        ),
        (np.random.default_rng(0).integers(0, 5, (40, 6)), "codes", {"patch": 2}, (40, 3, 16)),
    ],
)
def test_rows_tell_their_port(
    values: np.ndarray, kind: str, port: dict[str, object], shape: tuple[int, ...]
) -> None:
    table = Table({"x": values, "label": [i % 2 for i in range(40)]})
    config = TaskConfig(array_ids=values.dtype.kind == "i")
    task = foreign_task(
        text_base(), config, ForeignInput(positions=4), tables={"train": table, "eval": table}
    )
    spec = task.ports["input"]
    assert spec.kind == kind
    assert spec.config.items() >= port.items()
    assert spec.build()(next(task.streams["train"].once(40)).inputs["x"]).shape == shape


def test_a_series_with_channels_is_said_to_be_one() -> None:
    table = Table({"x": np.zeros((10, 3, 8)), "label": [i % 2 for i in range(10)]})
    found = [
        foreign_task(
            text_base(),
            TaskConfig(),
            ForeignInput(positions=4, layout=layout),
            tables={"train": table, "eval": table},
        )
        .ports["input"]
        .config
        for layout in (None, "series")
    ]
    assert found[0]["channels"] == 1
    assert found[1] == {"channels": 3, "patch": [2], "width": 16}


def test_numbers_as_targets_are_aligned_by_clusters(tmp_path: Path) -> None:
    rows = {name: part.select(["height", "weight"]) for name, part in tables().items()}
    rows = {
        name: Table(
            {
                **part.columns,
                "label": [h / 10 + w for h, w in zip(*part.columns.values(), strict=True)],
            }
        )
        for name, part in rows.items()
    }
    config = _config(tmp_path / "run", task=TaskConfig(kind="regression", head_hidden=0))
    align = replace(ALIGN, clusters=4)
    ready = prepare_orca(config, align, text_base(), rows)
    assert ready.task.streams["align"].draw().targets.unique().tolist() == [0, 1, 2, 3]
    assert "pearson" in orca(config, align, base=text_base(), tables=rows).metrics


def _numbers(rows: int, seed: int) -> Table:
    """A number and a category, and two targets of very different scales that follow them."""
    part = columns(rows, seed)
    height = np.asarray(part["height"])
    blue = np.asarray([name == "blue" for name in part["colour"]], dtype=np.float64)
    near, far = height / 10 - 17 + blue, 1e4 * (height - 170)
    return Table({**part.columns, "near": near.tolist(), "far": far.tolist()})


@pytest.mark.parametrize("distance", ["otdd", "mmd", "l2", "none"])
def test_numbers_are_learnt_after_alignment_by_each_distance(distance: str, tmp_path: Path) -> None:
    rows = {"train": _numbers(90, 0), "eval": _numbers(60, 1)}
    task = TaskConfig(
        kind="regression",
        inputs=("height", "weight", "colour"),
        label_columns=("near", "far"),
        metrics=("rmse", "pearson"),
        head_hidden=8,
    )
    config = _config(
        tmp_path / "run", task=task, train=TrainConfig(steps=150, log_every=1), tuner=Full()
    )
    align = replace(ALIGN, distance=distance, clusters=5)
    result = orca(config, align, base=text_base(), tables=rows)
    curve = [row["distance"] for row in result.history if "distance" in row]
    if distance == "none":
        assert curve == []
    else:
        assert len(curve) == 8
        assert curve[-1] < {"otdd": 0.8, "mmd": 0.9, "l2": 0.97}[distance] * curve[0]
    spreads = {name: float(np.std(rows["eval"][name])) for name in task.label_columns}
    for name, spread in spreads.items():
        assert result.metrics[f"rmse/{name}"] < 0.7 * spread, (name, dict(result.metrics))


def test_pseudo_classes_weigh_all_targets_alike() -> None:
    """Far is a thousand times as large as near: k-means sees both standardised."""
    task = TaskConfig(kind="regression", inputs=("height",), label_columns=("near", "far"))
    train = _numbers(80, 0)
    made = foreign_task(text_base(), task, tables={"train": train, "eval": train})
    stream = class_stream(text_base(), made, rows=80, clusters=4)
    near, far = (np.asarray(train[name]) for name in task.label_columns)
    values = np.stack([(near - near.mean()) / near.std(), (far - far.mean()) / far.std()], axis=1)
    wanted = pseudo_labels(values, 4)
    assert stream.labels.tolist() == wanted.tolist()
    raw = pseudo_labels(np.stack([near, far], axis=1), 4)
    assert raw.tolist() != wanted.tolist()


def test_another_base_of_the_same_kind_with_random_weights() -> None:
    base = text_base()
    other, again = blank(base, 5), blank(base, 5)
    weights = [b.model.get_input_embeddings().weight for b in (base, other, again)]
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2])
    assert other.pooling == "mean"
    with pytest.raises(UnsupportedError, match="config"):
        blank(load(torch.nn.Linear(2, 2)))


def test_what_does_not_go_together_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="inputs_embeds"):
        prepare_orca(_config(tmp_path), ALIGN, load(torch.nn.Linear(2, 2)), tables())
    with pytest.raises(ConfigError, match="updates >= 0"):
        OrcaConfig(updates=-1)
    with pytest.raises(ConfigError, match="positions"):
        ForeignInput(positions=0)


def test_the_folder_holds_both_configs(tmp_path: Path) -> None:
    config = _config(tmp_path / "run")
    orca(config, ALIGN, base=text_base(), tables=tables())
    tree = (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8")
    assert "align:" in tree
    path = tmp_path / "own.yaml"
    path.write_text("seed: 3\nalign:\n  updates: 7\n", encoding="utf-8")
    assert orca_from_yaml(path) == (RunConfig(seed=3), OrcaConfig(updates=7))
    path.write_text("align:\n  update: 7\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"align\.update"):
        orca_from_yaml(path)


@pytest.mark.slow
def test_law10_kill_while_aligning_and_while_refining_then_resume(tmp_path: Path, run: Run) -> None:
    orca_case = {"recipe": "orca"}
    points = (2, 6, 8, 12)
    whole = {"out": str(tmp_path / "whole"), **orca_case}
    cut = [{"out": str(tmp_path / f"cut-{k}"), **orca_case} for k in points]
    killed = [{**c, "after_updates": k} for c, k in zip(cut, points, strict=True)]
    codes = run(whole, *killed, *({**c, "resume": True} for c in cut))
    assert codes == [0, *[-9] * len(points), *[0] * len(points)]
    files = [
        tmp_path / name / "delta.safetensors" for name in ("whole", *(f"cut-{k}" for k in points))
    ]
    assert len({path.read_bytes() for path in files}) == 1


@pytest.mark.slow
def test_law10_two_processes_give_the_delta_of_one(tmp_path: Path, run: Run) -> None:
    one = {"out": str(tmp_path / "one"), "recipe": "orca", "train": {"dropout": False}}
    one["stored"] = "float64"
    assert run(one, {**one, "out": str(tmp_path / "two"), "processes": 2}) == [0, 0]
    deltas = [load_delta(tmp_path / name / "delta.safetensors") for name in ("one", "two")]
    assert deltas[0].updates.keys() == deltas[1].updates.keys() != set()
    for name, update in deltas[0].updates.items():
        assert torch.equal(update.sparse.positions, deltas[1].updates[name].sparse.positions)
        values = [values_of(d.updates[name].sparse.values) for d in deltas]
        torch.testing.assert_close(*values, rtol=0, atol=1e-5)
    for name, port in deltas[0].ports.items():
        for key, tensor in port.tensors.items():
            pair = values_of(tensor), values_of(deltas[1].ports[name].tensors[key])
            torch.testing.assert_close(*pair, rtol=0, atol=1e-5)
    a, b = (
        json.loads((tmp_path / n / "result.json").read_text())["metrics"] for n in ("one", "two")
    )
    assert a == pytest.approx(b, abs=1e-3)
