"""The page on other loops runs as it is printed, and what it trains learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import run_page


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("trainer.md", 2)
    lines = capsys.readouterr().out.splitlines()
    shown = [float(line.split()[0]) for line in lines if "held-out" in line]
    assert len(shown) == 2
    assert min(shown) > 0.8, shown
    assert (tmp_path / "task.safetensors").stat().st_size < 20_000
