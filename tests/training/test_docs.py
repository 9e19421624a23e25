"""The how-to of one's own loop runs as it is printed, and what it trains learns."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages import run_page


def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run_page("own-loop.md", 4)
    shown = [float(line.split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(shown) == 3
    assert min(shown) > 0.8, shown
    assert (tmp_path / "products.safetensors").stat().st_size < 20_000
