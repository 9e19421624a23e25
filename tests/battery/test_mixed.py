"""The matrix of mixed batches in the docs is what trying gives today."""

from __future__ import annotations

import pytest
import torch

from tests.battery import mixed


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    shown = mixed.PAGE.read_text(encoding="utf-8")
    assert shown == mixed.page(), "python -m tests.battery.mixed"


@pytest.mark.parametrize(
    ("term", "module", "how"),
    [
        ("sparse", "linear", "together"),
        ("low-rank", "Conv1D", "together"),
        ("sparse", "convolution", "apart"),
        ("low-rank", "layer norm", "-"),
    ],
)
def test_a_cell_tells_how_rows_run(term: str, module: str, how: str) -> None:
    assert mixed.module_cell(term, module, torch.float32) == how


def test_a_wrong_row_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixed.TOLERANCE, torch.float32, -1.0)
    with pytest.raises(AssertionError):
        mixed.module_cell("sparse", "linear", torch.float32)


def test_every_term_and_port_has_a_row() -> None:
    text = mixed.PAGE.read_text(encoding="utf-8")
    for name in (*mixed.TERMS, *mixed.PORTS):
        assert f"| {name} |" in text
