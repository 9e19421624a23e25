"""What the objectives over several targets share: shapes, and means over the targets present.

Shape legend: B rows, T targets.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives._types import Model

Error = Callable[[Tensor, Tensor], Tensor]
"""(outputs, targets), both `(B, T)` -> losses `(B, T)`."""


def mean_of_present(model: Model, batch: Batch, error: Error, name: str) -> Tensor:
    """Return the mean error over the targets that each row has, `(B,)`.

    A target that is NaN is missing: it has no part in loss or gradient. A row without any target
    has the loss NaN, since no number would be right; training stops at it and says so.

    Args:
        model: batch -> `(B, T)`; for targets `(B,)` also `(B, 1)` or `(B,)`. Half-precision outputs
            are first widened to float32.
        batch: targets `(B, T)` or `(B,)`.
        error: of each output.
        name: what errors call the objective.

    Raises:
        InputError: no targets, or outputs of another shape.
    """
    targets = batch.targets
    if targets is None:
        raise InputError(f"{name} needs targets, but the batch has none")
    outputs = model(batch)
    # Broadcasting (B, 1) against (B,) would give (B, B) without a word.
    known = {tuple(targets.shape)} | ({(len(targets), 1)} if targets.dim() == 1 else set())
    if targets.dim() > 2 or tuple(outputs.shape) not in known:
        values = "one value" if targets.dim() == 1 else f"{targets.shape[-1]} values"
        raise InputError(
            f"{name} needs {values} for each of {len(targets)} rows, but the model gave "
            f"{tuple(outputs.shape)}"
        )
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    targets = targets.to(wide.device).reshape(len(targets), -1)
    present = ~targets.isnan()
    # Filled before the error is taken: a gradient of 0 times NaN would be NaN.
    losses = error(wide.reshape(targets.shape), targets.masked_fill(~present, 0))
    total: Tensor = losses.where(present, 0).sum(1)
    return total / present.sum(1)
