"""Cross-entropy of logits, one loss a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives._types import Model


def cross_entropy(model: Model, batch: Batch) -> Tensor:
    """Return `-log softmax(outputs)[target]` of each row, `(B,)`, in nats.

    Half-precision logits (under autocast) are first widened to float32, since their rounding would
    show in the loss.

    Args:
        model: batch -> logits `(B, labels)`.
        batch: targets `(B,)` int64.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> batch = Batch({}, torch.tensor([0, 1]), torch.arange(2))
        >>> cross_entropy(lambda b: torch.zeros(2, 2), batch)
        tensor([0.6931, 0.6931])
    """
    targets = batch.targets
    if targets is None:
        raise InputError("cross_entropy needs targets, but the batch has none")
    outputs = model(batch)
    if outputs.dim() != 2 or outputs.shape[0] != targets.shape[0]:
        raise InputError(
            f"cross_entropy needs logits (rows, labels) for {targets.shape[0]} rows, but the model "
            f"gave {tuple(outputs.shape)}"
        )
    wide = outputs if outputs.dtype == torch.float64 else outputs.float()
    return functional.cross_entropy(wide, targets.to(outputs.device), reduction="none")
