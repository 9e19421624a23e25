"""Cross-entropy at each position that has a target, one loss a row."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from graftwork._batch import Batch
from graftwork._errors import InputError
from graftwork.objectives._types import Model

IGNORED = -100
"""Target of a position that has none, as in torch and transformers."""


def token_cross_entropy(model: Model, batch: Batch) -> Tensor:
    """Return the mean of `-log softmax(outputs)[target]` over a row's targets, `(B,)`, in nats.

    A position whose target is `IGNORED` has no part in loss or gradient. A row without any target
    has the loss NaN, since no number would be right; training stops at it and says so. Only logits
    of positions with a target are widened to float32, so that a long prompt costs no memory here.

    Args:
        model: batch -> logits `(B, L, C)`, of labels or of the vocabulary.
        batch: targets `(B, L)` int64: the target of each position's own output, so those of a
            language model are shifted already.

    Raises:
        InputError: no targets, or outputs of another shape.

    Example:
        >>> targets = torch.tensor([[0, 1], [1, -100]])
        >>> batch = Batch({}, targets, torch.arange(2))
        >>> token_cross_entropy(lambda b: torch.zeros(2, 2, 2), batch)
        tensor([0.6931, 0.6931])
    """
    if batch.targets is None:
        raise InputError("token_cross_entropy needs targets, but the batch has none")
    outputs = model(batch)
    targets = batch.targets.to(outputs.device)
    if outputs.dim() != 3 or outputs.shape[:2] != targets.shape:
        raise InputError(
            f"token_cross_entropy needs logits (rows, positions, labels) for targets of shape "
            f"{tuple(targets.shape)}, but the model gave {tuple(outputs.shape)}"
        )
    present = targets != IGNORED
    chosen = outputs[present]
    wide = chosen if chosen.dtype == torch.float64 else chosen.float()
    each = functional.cross_entropy(wide, targets[present], reduction="none")
    losses = each.new_zeros(targets.shape).masked_scatter(present, each)
    return losses.sum(1) / present.sum(1)
