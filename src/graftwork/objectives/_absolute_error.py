"""Absolute error, one loss a row."""

from __future__ import annotations

from torch import Tensor

from graftwork._batch import Batch
from graftwork.objectives._masked import mean_of_present
from graftwork.objectives._types import Model


def absolute_error(model: Model, batch: Batch) -> Tensor:
    """Return `|output - target|` of each row, `(B,)`, in the units of the targets.

    Of several targets it is the mean over those that the row has; NaN is a missing one. Outliers
    pull it less than the squared error.

    Args:
        model: batch -> values `(B, T)`, for targets `(B,)` also `(B, 1)` or `(B,)`.
        batch: targets `(B, T)` or `(B,)`.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> import torch
        >>> batch = Batch({}, torch.tensor([[1.0, 3.0], [torch.nan, -2.0]]), torch.arange(2))
        >>> absolute_error(lambda b: torch.zeros(2, 2), batch)
        tensor([2., 2.])
    """
    return mean_of_present(model, batch, _error, "absolute_error")


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs - targets).abs()
