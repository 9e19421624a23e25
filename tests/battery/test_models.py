"""The battery itself: deterministic models whose task full fine-tuning can learn."""

from __future__ import annotations

import pytest
import torch

from tests.battery.models import CASES, train_full


@pytest.mark.parametrize("name", CASES)
def test_same_seed_gives_same_bits(name: str) -> None:
    case = CASES[name]
    first, second = case.build().state_dict(), case.build().state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert torch.equal(case.batch().targets, case.batch().targets)


@pytest.mark.parametrize("name", CASES)
def test_full_fine_tuning_learns_the_rule(name: str) -> None:
    case = CASES[name]
    before, after = train_full(case, case.build())
    assert after < 0.7 * before
