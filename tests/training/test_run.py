"""A run of anything: its folder, its outcome, and that a resumed one gives the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pytest
import torch

from graftwork.bases import load
from graftwork.errors import ConfigError, StorageError
from graftwork.steps import PlainSum
from graftwork.training import (
    BaseOutcome,
    Conclusion,
    Fitted,
    LogConfig,
    Outcome,
    Prepared,
    TrainConfig,
    Whole,
    World,
    run,
)
from graftwork.tuning import Stage
from tests.training.test_whole import make

SILENT = LogConfig(progress="silent")
SETTINGS: Mapping[str, Any] = {"what": "points", "steps": 12}


@dataclass(frozen=True)
class Weights(Outcome):
    """The weights as JSON: an outcome that is neither a delta nor a base."""

    values: tuple[float, ...]

    def write(self, folder: Path) -> dict[str, Any]:
        path = folder / "weights.json"
        path.write_text(json.dumps(self.values))
        return {"file": path.name, "bytes": path.stat().st_size}

    @classmethod
    def read(cls, folder: Path) -> Self:
        return cls(tuple(json.loads((folder / "weights.json").read_text())))


def prepare(world: World) -> Prepared[Weights]:
    assert world.size == 1
    module, task = make()

    def conclude(fitted: Fitted) -> Conclusion[Weights]:
        flat = torch.cat([p.detach().flatten() for p in module.parameters()])
        return Conclusion(
            outcome=Weights(tuple(flat.tolist())), metrics={"loss": 0.5}, summary={"kept": 3}
        )

    return Prepared(
        trainee=Whole(module, Stage("points", 1.0, {"values": 1e-2})),
        task=task,
        train=TrainConfig(steps=12, save_every=5),
        step=PlainSum(),
        conclude=conclude,
    )


def test_folder_outcome_and_report(tmp_path: Path) -> None:
    result = run(tmp_path / "a", SETTINGS, prepare, Weights, log=SILENT)
    assert result.metrics == {"loss": 0.5}
    assert result.summary["kept"] == 3
    assert result.summary["steps"] == 12
    assert result.history[-1]["eval/loss"] == 0.5
    page = (tmp_path / "a" / "report.html").read_text()
    assert "weights.json" in page
    assert "points" in page
    again = run(tmp_path / "b", SETTINGS, prepare, Weights, log=SILENT)
    assert again.outcome == result.outcome


def test_a_finished_run_is_returned_and_not_prepared_again(tmp_path: Path) -> None:
    first = run(tmp_path, SETTINGS, prepare, Weights, log=SILENT)

    def never(world: World) -> Prepared[Weights]:
        raise AssertionError

    held = run(tmp_path, SETTINGS, never, Weights, resume=True, log=SILENT)
    assert held.outcome == first.outcome
    with pytest.raises(StorageError, match="holds a finished run"):
        run(tmp_path, SETTINGS, never, Weights, log=SILENT)
    with pytest.raises(ConfigError, match="steps: 12, not 13"):
        run(tmp_path, {**SETTINGS, "steps": 13}, never, Weights, resume=True, log=SILENT)


def test_a_base_outcome_is_whole_or_absent(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("no space left on device")

    with pytest.raises(StorageError, match="no space left"):
        BaseOutcome(broken).write(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="written there already"):
        BaseOutcome(base=load(torch.nn.Linear(1, 1))).write(tmp_path)
