"""The how-to of mixed batches runs as it is printed."""

from __future__ import annotations

import pytest

from tests.pages import run_page


@pytest.mark.slow
def test_every_block_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("mixed-batches.md", 7)
    shown = capsys.readouterr().out
    assert "[(2,), (3,), (384,), (5,)]" in shown
    assert "'linear': " in shown
