"""Non-adaptive diff pruning: the largest changes of a full fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_kept, check_rates, check_share
from graftwork.tuning._dense import Dense
from graftwork.tuning._fixed import FixedMask
from graftwork.tuning._layout import kept_count, layout_of
from graftwork.tuning._project import top_k
from graftwork.tuning._tuner import Attachment, Role, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class Magnitude(Tuner):
    """Fine-tune fully, keep the k entries that moved most, train those on.

    The baseline "non-adaptive diff pruning" of Guo et al. (2020, section 5.1): delta = theta_ft -
    theta_pre, projected by magnitude over all targets together, then the fixed-mask stage.

    Example:
        >>> [stage.name for stage in Magnitude().stages]
        ['full', 'fixed mask']
    """

    share: float = 0.005
    """Part of the targets' entries that is kept."""
    full_share: float = 0.6
    """Part of the steps for full fine-tuning."""
    values_lr: float = 3e-4
    """Learning rate of the weights in the full stage."""
    mask_lr: float = 5e-3
    """Learning rate of the kept values: sparse values want 10 to 30 times the dense rate."""
    head_lr: float = 1e-3
    """Learning rate of the head in both stages."""

    def __post_init__(self) -> None:
        check_kept(self.share)
        check_share("full_share", self.full_share)
        check_rates(values_lr=self.values_lr, mask_lr=self.mask_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Full fine-tuning, then the fixed mask."""
        full: dict[Role, float] = {"values": self.values_lr, "head": self.head_lr}
        mask: dict[Role, float] = {"values": self.mask_lr, "head": self.head_lr}
        return (
            Stage("full", self.full_share, full),
            Stage("fixed mask", 1.0 - self.full_share, mask),
        )

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here."""
        layout = layout_of(base, targets)
        kept = kept_count(self.share, layout.numel)

        def project(full: Dense) -> Attachment:
            delta = full.difference()
            positions = top_k(delta.abs(), kept)
            return FixedMask(base, layout, positions, delta[positions])

        return Dense(base, layout, then=project)
