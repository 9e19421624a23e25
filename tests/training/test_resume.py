"""Law 10: kill -9 at any step, resume, same bytes. Ctrl-C, full disks and locks lose nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.conftest import Run

DIFF = {"name": "diff_pruning", "share": 0.2, "gates_share": 0.6}
STOP = {"eval_every": 1, "patience": 2, "keep_best": True}
CASES: dict[str, dict[str, Any]] = {
    "random_mask": {},
    "diff_pruning": {"tuner": DIFF},
    "lora": {"tuner": {"name": "lora", "rank": 2, "dropout": 0.1}},
    "gradient_mask": {"tuner": {"name": "gradient_mask", "share": 0.2}},
    "early_stop": {"tuner": DIFF, "train": STOP},
    "accumulated": {"train": {"accumulate": 2}},
}


def delta(folder: Path) -> bytes:
    return (folder / "delta.safetensors").read_bytes()


def steps_of(folder: Path) -> list[int]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row["step"] for row in rows if "loss" in row]


@pytest.mark.parametrize("case", CASES)
def test_kill_at_any_step_then_resume_gives_the_same_bytes(
    case: str, tmp_path: Path, run: Run
) -> None:
    settings = CASES[case]
    points = (1, 4, 7, 12, 13, 16, 19) if case in ("random_mask", "diff_pruning") else (7, 13)
    whole = {"out": str(tmp_path / "whole"), **settings}
    killed, resumed = [], []
    for k in points:
        out = {"out": str(tmp_path / f"killed-{k}"), **settings}
        killed.append({**out, "after_updates": k})
        resumed.append({**out, "resume": True})
    inside = {"out": str(tmp_path / "inside"), **settings}
    codes = run(
        whole,
        *killed,
        *resumed,
        {**inside, "inside_save": 3},
        {**inside, "resume": True, "inside_save": 1},
        {**inside, "resume": True},
    )
    ended = json.loads((tmp_path / "whole" / "result.json").read_text(encoding="utf-8"))
    reached = [k for k in points if k <= ended["steps"]]
    assert codes[0] == 0
    assert codes[1 : 1 + len(reached)] == [-9] * len(reached)
    assert codes[1 + len(points) : -3] == [0] * len(points)
    assert codes[-3:] == [-9, -9, 0]
    for folder in [*(tmp_path / f"killed-{k}" for k in reached), tmp_path / "inside"]:
        assert delta(folder) == delta(tmp_path / "whole"), folder.name
        assert steps_of(folder) == list(range(1, ended["steps"] + 1))
        assert not (folder / "checkpoints").exists()
    if case == "early_stop":
        assert ended["stopped_early"]
        assert ended["best_step"] < ended["steps"] < 20


def test_ctrl_c_finishes_the_step_and_saves(tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "run")
    stopped = {"out": out, "after_updates": 6, "signal": "SIGINT"}
    whole = {"out": str(tmp_path / "whole")}
    assert run(whole, stopped) == [0, 130]
    message = (tmp_path / "run" / "message.txt").read_text(encoding="utf-8")
    assert "stopped after step 6 in stage 'fixed mask'" in message
    assert f"graftwork adapt --config {out}/config.yaml --resume" in message
    assert (tmp_path / "run" / "checkpoints" / "step-00000006").is_dir()
    assert run({"out": out, "resume": True}) == [0]
    assert delta(tmp_path / "run") == delta(tmp_path / "whole")


def test_polite_kill_saves_too(tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "run")
    assert run({"out": out, "after_updates": 3, "signal": "SIGTERM"}) == [130]
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()


def test_full_disk_keeps_the_last_checkpoint(tmp_path: Path, run: Run) -> None:
    """A limit on the size of a file makes writes fail as a full disk does."""
    out = str(tmp_path / "run")
    begun = {"out": out, "after_updates": 6, "signal": "SIGINT"}
    full = {"out": out, "resume": True, "limit_bytes": 4000}
    assert run(begun, full) == [130, 1]
    error = Path(out + ".error.txt").read_text(encoding="utf-8")
    assert "StorageError: cannot write" in error
    assert "the last good checkpoint, of step 6, is kept" in error
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006"]
    whole = {"out": str(tmp_path / "whole")}
    assert run(whole, {"out": out, "resume": True}) == [0, 0]
    assert delta(tmp_path / "run") == delta(tmp_path / "whole")


def test_full_disk_at_the_end_keeps_the_last_checkpoint(tmp_path: Path, run: Run) -> None:
    out = str(tmp_path / "run")
    train = {"save_every": 0}
    begun = {"out": out, "after_updates": 20, "signal": "SIGINT", "train": train}
    full = {"out": out, "resume": True, "train": train, "limit_bytes": 3900}
    assert run(begun, full) == [130, 1]
    assert "StorageError" in Path(out + ".error.txt").read_text(encoding="utf-8")
    assert not (tmp_path / "run" / "delta.safetensors").exists()
    assert not list((tmp_path / "run").glob("**/.part-*"))
    assert run({"out": out, "resume": True, "train": train}) == [0]
