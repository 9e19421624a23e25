"""Squared error, one loss a row."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives._types import Model


def squared_error(model: Model, batch: Batch) -> Tensor:
    """Return `(output - target)**2` of each row, `(B,)`, in the squared units of the targets.

    Args:
        model: batch -> values `(B, 1)` or `(B,)`.
        batch: targets `(B,)`; a task standardises them, so that losses are near 1 at the start.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> batch = Batch({}, torch.tensor([1.0, 3.0]), torch.arange(2))
        >>> squared_error(lambda b: torch.zeros(2, 1), batch)
        tensor([1., 9.])
    """
    targets = batch.targets
    if targets is None:
        raise InputError("squared_error needs targets, but the batch has none")
    outputs = model(batch)
    # Broadcasting (B, 1) against (B,) would give (B, B) without a word.
    if tuple(outputs.shape) not in {(len(targets), 1), (len(targets),)}:
        raise InputError(
            f"squared_error needs one value for each of {len(targets)} rows, but the model gave "
            f"{tuple(outputs.shape)}"
        )
    wide: Tensor = outputs if outputs.dtype == torch.float64 else outputs.float()
    return (wide.reshape(-1) - targets.to(wide.device)).square()
