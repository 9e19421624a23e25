"""Cross-entropy of yes/no targets, one loss a row."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from graftwork._batch import Batch
from graftwork.objectives._masked import mean_of_present
from graftwork.objectives._types import Model


def binary_cross_entropy(model: Model, batch: Batch) -> Tensor:
    """Return `-log p(answer)` of each row, `(B,)`, in nats, where `p(yes) = sigmoid(output)`.

    Of several targets it is the mean over those that the row has; NaN is a missing one.

    Args:
        model: batch -> logits `(B, T)`, for targets `(B,)` also `(B, 1)` or `(B,)`.
        batch: targets `(B, T)` or `(B,)`: 1 for yes, 0 for no.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> import torch
        >>> batch = Batch({}, torch.tensor([[1.0, 0.0], [torch.nan, 1.0]]), torch.arange(2))
        >>> binary_cross_entropy(lambda b: torch.zeros(2, 2), batch)
        tensor([0.6931, 0.6931])
    """
    return mean_of_present(model, batch, _error, "binary_cross_entropy")


def _error(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.binary_cross_entropy_with_logits(
        outputs, targets.to(outputs.dtype), reduction="none"
    )
