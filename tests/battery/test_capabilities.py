"""The capability table of the docs is what trying gives today."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork.tuning import TUNERS
from tests.battery import capabilities


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::graftwork.tuning.TuningWarning")
def test_the_page_is_up_to_date() -> None:
    pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")
    shown = capabilities.PAGE.read_text(encoding="utf-8")
    assert shown == capabilities.page(), "python -m tests.battery.capabilities"


def test_a_cell_tells_what_works_from_what_is_refused() -> None:
    assert capabilities.works(capabilities.tuner_of("lora"), "linear", torch.float32)
    assert not capabilities.works(capabilities.tuner_of("lora"), "norm", torch.float32)


def test_other_errors_are_defects(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (lambda: nn.Sequential(nn.Linear(16, 8)), lambda: torch.randn(4, 9))
    monkeypatch.setattr(capabilities, "KINDS", {"broken": broken})
    with pytest.raises(RuntimeError, match="shapes"):
        capabilities.works(capabilities.tuner_of("full"), "broken", torch.float32)


def test_every_tuner_has_a_row() -> None:
    text = capabilities.PAGE.read_text(encoding="utf-8")
    for name in TUNERS:
        assert f"`{name}`" in text
