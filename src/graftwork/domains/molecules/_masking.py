"""Masked language modelling: which tokens are hidden, the loss, and its measure.

Shape legend: B rows, L positions, N hidden positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from graftwork.errors import InputError
from graftwork.objectives import Model
from graftwork.tasks import Batch, Stream

KEEP = -100
"""Target of a position that is not to be predicted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Masking:
    """How tokens are hidden (Devlin et al., 2019, section 3.1; MoLFormer does the same).

    Of each row, `share` of the tokens (rounded, at least one) are chosen at random, special ones
    never. The published code chooses each token by itself, so that the count varies and a short
    row may have none; fixed counts waste no row and vary less.

    Attributes:
        share: of a row's tokens that are to be predicted.
        masked: part of these shown as `<mask>`.
        random: part of these shown as a random token; the rest is shown as it is.

    Raises:
        InputError: shares outside (0, 1), or parts of more than 1.
    """

    share: float = 0.15
    masked: float = 0.8
    random: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or min(self.masked, self.random) < 0:
            raise InputError(f"masking needs 0 < share < 1 and parts >= 0, not {self}")
        if self.masked + self.random > 1 + 1e-9:
            raise InputError(f"masked {self.masked} and random {self.random} are more than 1")

    def hide(
        self,
        ids: NDArray[np.int64],
        free: NDArray[np.bool_],
        draws: NDArray[np.float64],
        mask_id: int,
        ordinary: tuple[int, int],
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (shown ids, targets), both `(B, L)`; targets are `KEEP` where nothing is asked.

        Args:
            ids: `(B, L)`.
            free: `(B, L)` True where a token may be chosen.
            draws: `(3, B, L)` uniform numbers in [0, 1): choice, fate, random token.
            mask_id: id of `<mask>`.
            ordinary: first id that a random token may have, and the one after the last.
        """
        choice, fate, token = draws
        order = np.argsort(np.where(free, choice, 2.0), axis=1, kind="stable")
        rank = np.argsort(order, axis=1, kind="stable")
        wanted = np.maximum(np.rint(free.sum(1) * self.share), 1)
        chosen = free & (rank < wanted[:, None])
        first, end = ordinary
        other = first + np.floor(token * (end - first)).astype(np.int64)
        shown = np.where(chosen & (fate < self.masked), mask_id, ids)
        swapped = chosen & (fate >= self.masked) & (fate < self.masked + self.random)
        return np.where(swapped, other, shown), np.where(chosen, ids, KEEP)


def predict_hidden(module: nn.Module, batch: Batch) -> Tensor:
    """Return the module's logits `(N, V)` at the hidden positions of a masked batch."""
    assert batch.targets is not None
    logits: Tensor = module(**batch.inputs, predict=batch.targets != KEEP)["logits"]
    return logits


def masked_token_loss(model: Model, batch: Batch) -> Tensor:
    """Return each row's mean of `-log softmax(logits)[token]` over its hidden tokens, in nats.

    The published loss is a mean over the tokens of a batch; a mean over rows of means weighs short
    molecules a little more, and makes the gradient of k batches that of one k times as large.

    Args:
        model: batch -> logits `(N, V)` of the hidden positions, row by row.
        batch: targets `(B, L)`, `KEEP` where nothing is hidden.

    Raises:
        InputError: no targets, or another number of logits.
    """
    targets = batch.targets
    if targets is None:
        raise InputError("masked_token_loss needs targets, but the batch has none")
    logits = model(batch)
    hidden = targets != KEEP
    if logits.shape[0] != int(hidden.sum()):
        raise InputError(f"{logits.shape[0]} rows of logits for {int(hidden.sum())} hidden tokens")
    losses = functional.cross_entropy(logits.float(), targets[hidden], reduction="none")
    counts = hidden.sum(1)
    row = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    return losses.new_zeros(len(counts)).index_add(0, row, losses) / counts


class MaskedTokenScorer:
    """Measures of a masked language model, over all hidden tokens of a stream.

    "loss" in nats a token, "accuracy" in percent, "perplexity" = exp(loss).
    """

    main = "loss"

    def better(self, new: Mapping[str, float], old: Mapping[str, float] | None) -> bool:
        """Return whether the loss fell."""
        return old is None or new["loss"] < old["loss"]

    def evaluate(self, model: Model, source: Stream, batch_size: int = 64) -> dict[str, float]:
        """Return the measures of `model` over all rows of a masked stream."""
        total, right, count = 0.0, 0, 0
        with torch.no_grad():
            for batch in source.once(batch_size, by_length=True):
                assert batch.targets is not None
                wanted = batch.targets[batch.targets != KEEP]
                logits = model(batch).float().cpu()
                total += float(functional.cross_entropy(logits, wanted, reduction="sum"))
                right += int((logits.argmax(1) == wanted).sum())
                count += len(wanted)
        loss = total / count
        return {"loss": loss, "accuracy": 100 * right / count, "perplexity": math.exp(loss)}
