"""Objectives against their closed forms, and the shapes they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives import OBJECTIVES, cross_entropy, squared_error


def batch(targets: torch.Tensor | None, rows: int = 3) -> Batch:
    return Batch({}, targets, torch.arange(rows))


def test_cross_entropy_is_minus_log_probability() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [3.0, -1.0, 2.0]], dtype=torch.float64)
    losses = cross_entropy(lambda _: logits, batch(torch.tensor([1, 2, 0])))
    for row, target in enumerate((1, 2, 0)):
        total = sum(math.exp(v) for v in logits[row].tolist())
        assert losses[row].item() == pytest.approx(
            math.log(total) - logits[row, target].item(), abs=1e-12
        )


def test_squared_error_of_a_column_does_not_broadcast() -> None:
    losses = squared_error(
        lambda _: torch.tensor([[1.0], [2.0], [3.0]]), batch(torch.tensor([0.0, 2.0, 5.0]))
    )
    assert losses.tolist() == [1.0, 0.0, 4.0]


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_half_precision_outputs_give_float32_losses_and_gradients(name: str) -> None:
    width = 2 if name == "cross_entropy" else 1
    outputs = torch.ones(3, width, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.zeros(3, dtype=torch.int64 if width == 2 else torch.float32)
    losses = OBJECTIVES[name](lambda _: outputs, batch(targets))
    assert losses.dtype == torch.float32
    assert losses.shape == (3,)
    losses.sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_missing_targets_and_wrong_shapes_are_errors(name: str) -> None:
    with pytest.raises(InputError, match="needs targets"):
        OBJECTIVES[name](lambda _: torch.zeros(3, 1), batch(None))
    with pytest.raises(InputError, match=r"\(4, 2, 2\)"):
        OBJECTIVES[name](lambda _: torch.zeros(4, 2, 2), batch(torch.zeros(3)))


def test_squared_error_refuses_two_outputs_a_row() -> None:
    with pytest.raises(InputError, match=r"one value for each of 3 rows.*\(3, 2\)"):
        squared_error(lambda _: torch.zeros(3, 2), batch(torch.zeros(3)))
