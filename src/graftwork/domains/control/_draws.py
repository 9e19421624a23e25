"""The random numbers of an update, the same however its rows are shared out over processes."""

from __future__ import annotations

import torch
from torch import Tensor

from graftwork.domains.control._critics import CriticConfig, masks_of


class Draws:
    """Everything random of one batch, from one seed, the same over one or several processes.

    Each process draws for all rows of the global batch and keeps its own, so rows get the same
    noise however they are shared out.

    Args:
        seed: of all draws.
        rows: rows of the global batch.
        share: those of this process.
        device: of the tensors.
    """

    def __init__(self, seed: int, rows: int, share: slice, device: torch.device) -> None:
        self.rows, self.share = rows, share
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Return `(B, *shape)` standard normal."""
        whole = torch.empty(self.rows, *shape, device=self.generator.device)
        return whole.normal_(generator=self.generator)[self.share]

    def masks(self, config: CriticConfig, copies: int, candidates: int = 1) -> list[Tensor]:
        """Return masks for B * candidates rows of the critics."""
        drawn = masks_of(config, copies, (self.rows, candidates), self.generator)
        return [mask[:, :, self.share].flatten(2, 3) for mask in drawn]
