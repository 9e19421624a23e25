"""Objectives against their closed forms, and the shapes they refuse."""

from __future__ import annotations

import math

import pytest
import torch

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives import (
    IGNORED,
    OBJECTIVES,
    absolute_error,
    binary_cross_entropy,
    cross_entropy,
    squared_error,
    token_cross_entropy,
)


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
    shape = {"cross_entropy": (3, 2), "token_cross_entropy": (3, 1, 2)}.get(name, (3, 1))
    outputs = torch.ones(shape, dtype=torch.bfloat16, requires_grad=True)
    index = shape[-1] == 2
    targets = torch.zeros(shape[:-1] if index else 3, dtype=torch.int64 if index else torch.float32)
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


def logistic(output: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-output))
    return -math.log(probability if target else 1 - probability)


ERRORS = {
    "squared_error": (squared_error, lambda output, target: (output - target) ** 2),
    "absolute_error": (absolute_error, lambda output, target: abs(output - target)),
    "binary_cross_entropy": (binary_cross_entropy, logistic),
}


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_losses_and_gradients_of_several_targets_equal_a_loop(name: str) -> None:
    objective, error = ERRORS[name]
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 3, dtype=torch.float64, generator=generator).requires_grad_()
    targets = (torch.randn(6, 3, dtype=torch.float64, generator=generator) > 0).double()
    targets[0, 1] = targets[2, 0] = targets[2, 2] = targets[5, 2] = torch.nan
    losses = objective(lambda _: outputs, batch(targets, 6))
    for row in range(6):
        present = [t for t in range(3) if not math.isnan(targets[row, t].item())]
        loop = [error(outputs[row, t].item(), targets[row, t].item()) for t in present]
        assert losses[row].item() == pytest.approx(sum(loop) / len(loop), abs=1e-12)
    losses.sum().backward()
    assert outputs.grad is not None
    assert bool(outputs.grad.isfinite().all())
    assert bool((outputs.grad[targets.isnan()] == 0).all())
    assert bool((outputs.grad[~targets.isnan()] != 0).all())


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_a_row_without_any_target_has_no_loss(name: str) -> None:
    targets = torch.tensor([[1.0, 0.0], [torch.nan, torch.nan], [0.0, torch.nan]])
    losses = ERRORS[name][0](lambda _: torch.zeros(3, 2), batch(targets))
    assert losses.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_outputs_must_have_a_value_for_each_target(name: str) -> None:
    with pytest.raises(InputError, match=r"2 values for each of 3 rows.*\(3, 1\)"):
        ERRORS[name][0](lambda _: torch.zeros(3, 1), batch(torch.zeros(3, 2)))


def test_extreme_logits_have_finite_losses() -> None:
    outputs = torch.tensor([[1e4], [-1e4], [-1e4]])
    losses = binary_cross_entropy(lambda _: outputs, batch(torch.tensor([[1.0], [0.0], [1.0]])))
    assert losses.tolist() == [0.0, 0.0, 1e4]


def test_token_cross_entropy_is_the_mean_over_a_rows_own_targets() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, 5, generator=generator, requires_grad=True)
    targets = torch.tensor([[1, -100, 3, -100], [-100, -100, -100, 0], [2, 2, 2, 2]])
    losses = token_cross_entropy(lambda _: logits, batch(targets))
    for row in range(3):
        each = [
            -torch.log_softmax(logits[row, t].detach(), 0)[targets[row, t]]
            for t in range(4)
            if targets[row, t] >= 0
        ]
        assert losses[row].item() == pytest.approx(float(sum(each)) / len(each), rel=1e-6)
    losses.sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).tolist() == (targets >= 0).tolist()
    none = token_cross_entropy(lambda _: logits, batch(torch.full((3, 4), IGNORED)))
    assert none.isnan().all()
