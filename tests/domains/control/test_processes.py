"""Kill -9 at any step and resume: the same bytes. Two processes learn what one learns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

POINTS = (1, 6, 11)


def run(*scenarios: dict[str, Any]) -> list[list[int]]:
    lines = "\n".join(map(json.dumps, scenarios))
    command = [sys.executable, "-m", "tests.domains.control.policy_run"]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, check=True)
    codes: list[list[int]] = json.loads(done.stdout)
    return codes


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder of runs: whole, killed and resumed, by two processes, and a delta of each."""
    root = tmp_path_factory.mktemp("policies")
    killed = [{"out": str(root / f"killed-{k}"), "after_updates": k} for k in POINTS]
    resumed = [{"out": str(root / f"killed-{k}"), "resume": True} for k in POINTS]
    base = {"base": str(root / "whole" / "base")}
    codes = run(
        {"out": str(root / "whole")},
        *killed,
        *resumed,
        {"out": str(root / "two"), "processes": 2},
        {"out": str(root / "delta"), **base},
        {"out": str(root / "delta-killed"), "after_updates": 6, **base},
        {"out": str(root / "delta-killed"), "resume": True, **base},
    )
    ended = [[0], *[[-9]] * len(POINTS), *[[0]] * len(POINTS), [0, 0], [0], [-9], [0]]
    errors = [path.read_text(encoding="utf-8") for path in root.glob("*.error.txt")]
    assert codes == ended, errors
    return root


@pytest.mark.parametrize("name", [f"killed-{k}" for k in POINTS])
def test_killed_and_resumed_gives_the_same_bytes(folder: Path, name: str) -> None:
    for file in ("base/model.safetensors", "base/config.json", "critics.safetensors"):
        assert (folder / name / file).read_bytes() == (folder / "whole" / file).read_bytes()
    metrics = [
        json.loads((folder / n / "result.json").read_text(encoding="utf-8"))["metrics"]
        for n in (name, "whole")
    ]
    assert metrics[0] == metrics[1]


def test_a_killed_delta_resumes_to_the_same_bytes(folder: Path) -> None:
    for file in ("delta.safetensors", "critics.safetensors"):
        assert (folder / "delta-killed" / file).read_bytes() == (
            folder / "delta" / file
        ).read_bytes()


def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    for file in ("base/model.safetensors", "critics.safetensors"):
        one, two = (load_file(folder / name / file) for name in ("whole", "two"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=0, atol=2e-4)
    rows = [
        [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "two")
    ]
    assert len(rows[0]) == len(rows[1])
    for one, two in zip(*rows, strict=True):
        for key in ("loss", "actor", "behaviour", "target_q", "weight", "mmd"):
            if key in one:
                assert two[key] == pytest.approx(one[key], rel=1e-3, abs=1e-4), key
