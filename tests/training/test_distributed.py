"""Two processes give the delta of one: same support, values to rounding. Only one writes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from graftwork.deltas import Delta, load, values_of
from graftwork.training import World, current_world, joined
from tests.training.conftest import Run

EXACT: dict[str, Any] = {"dtype": "float64", "stored": "float64"}
TUNERS: dict[str, dict[str, Any]] = {
    "diff_pruning": {"name": "diff_pruning", "share": 0.2, "gates_share": 0.6},
    "penalty": {
        "name": "diff_pruning",
        "share": 0.2,
        "density": "penalty",
        "lambda_l0": 0.01,
        "groups": None,
    },
    "random_mask": {"name": "random_mask", "share": 0.2},
    "dora": {"name": "dora", "rank": 2},
    "gradient_mask": {"name": "gradient_mask", "share": 0.2},
    "fisher_mask": {"name": "fisher_mask", "share": 0.2},
    "full": {"name": "full"},
}


def settings(out: Path, tuner: str, **more: Any) -> dict[str, Any]:
    train = {"dropout": False, "accumulate": 2, "eval_every": 7}
    return {"out": str(out), "tuner": TUNERS[tuner], "train": train, **EXACT, **more}


def numbers(delta: Delta) -> dict[str, torch.Tensor]:
    found = {}
    for name, update in delta.updates.items():
        if update.sparse is not None:
            found[f"{name} positions"] = update.sparse.positions
            found[f"{name} values"] = values_of(update.sparse.values)
        if update.dense is not None:
            found[f"{name} dense"] = values_of(update.dense)
        if update.low_rank is not None and update.scale is not None:
            found[f"{name} left values"] = values_of(update.low_rank.left)
            found[f"{name} right values"] = values_of(update.low_rank.right)
            found[f"{name} scale"] = values_of(update.scale)
    for port, held in delta.ports.items():
        found |= {f"{port}.{name}": values_of(t) for name, t in held.tensors.items()}
    return found


@pytest.mark.parametrize("tuner", TUNERS)
def test_two_processes_learn_the_delta_of_one(tuner: str, tmp_path: Path, run: Run) -> None:
    one, two = settings(tmp_path / "one", tuner), settings(tmp_path / "two", tuner, processes=2)
    assert run(one, two) == [0, 0]
    a, b = (numbers(load(tmp_path / n / "delta.safetensors")) for n in ("one", "two"))
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        if name.endswith("positions"):
            assert torch.equal(tensor, b[name]), name
        else:
            torch.testing.assert_close(tensor, b[name], rtol=0, atol=1e-9)
    moved = [t.abs().max() for name, t in a.items() if name.endswith(("values", "dense"))]
    assert max(moved) > 1e-3
    results = [
        json.loads((tmp_path / n / "result.json").read_text(encoding="utf-8"))["metrics"]
        for n in ("one", "two")
    ]
    assert results[0] == pytest.approx(results[1], abs=1e-9)
    rows = (tmp_path / "two" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert len([row for row in rows if '"loss"' in row]) == 20


@pytest.mark.parametrize("tuner", ["diff_pruning", "gradient_mask"])
def test_two_processes_stop_together_and_resume_exactly(
    tuner: str, tmp_path: Path, run: Run
) -> None:
    two = settings(tmp_path / "two", tuner, processes=2)
    cut = settings(tmp_path / "cut", tuner, processes=2)
    killed = {**cut, "after_updates": 3, "signal": "SIGINT"}
    again = {**cut, "resume": True, "after_updates": 11, "signal": "SIGINT"}
    assert run(two, killed, again, {**cut, "resume": True}) == [0, 130, 130, 0]
    a, b = (tmp_path / n / "delta.safetensors" for n in ("two", "cut"))
    assert a.read_bytes() == b.read_bytes()


def test_one_process_needs_no_group() -> None:
    tensor = torch.ones(2)
    with joined() as world:
        assert world == World() == current_world()
        world.reduce([tensor])
        world.wait()
    assert tensor.tolist() == [1.0, 1.0]
    assert world.agree("x") == "x"
    assert world.any(True)
