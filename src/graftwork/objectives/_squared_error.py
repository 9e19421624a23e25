"""Squared error, one loss a row."""

from __future__ import annotations

from torch import Tensor

from graftwork._batch import Batch
from graftwork.objectives._masked import mean_of_present
from graftwork.objectives._types import Model


def squared_error(model: Model, batch: Batch) -> Tensor:
    """Return `(output - target)**2` of each row, `(B,)`, in the squared units of the targets.

    Of several targets it is the mean over those that the row has; NaN is a missing one.

    Args:
        model: batch -> values `(B, T)`, for targets `(B,)` also `(B, 1)` or `(B,)`.
        batch: targets `(B, T)` or `(B,)`; a task standardises them, so that losses are near 1 at
            the start.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> import torch
        >>> batch = Batch({}, torch.tensor([1.0, 3.0]), torch.arange(2))
        >>> squared_error(lambda b: torch.zeros(2, 1), batch)
        tensor([1., 9.])
        >>> batch = Batch({}, torch.tensor([[1.0, 3.0], [torch.nan, 2.0]]), torch.arange(2))
        >>> squared_error(lambda b: torch.zeros(2, 2), batch)
        tensor([5., 4.])
    """
    return mean_of_present(model, batch, _error, "squared_error")


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).square()
