"""One-shot mask by the size of the summed gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_kept, check_rates, check_share
from graftwork.tuning._layout import kept_count, layout_of
from graftwork.tuning._scores import Scores
from graftwork.tuning._tuner import Attachment, Role, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class GradientMask(Tuner):
    """Keep the entries with the largest |sum of gradients| at the pretrained weights; train those.

    After SNIP (Lee, Ajanthan, Torr, 2019, eq. 4-5), whose score of a weight is |g * w|: the effect
    on the loss, to first order, of removing it. What is removed here is not w but the CHANGE that
    a delta would make to it, and every change starts equal, so the score is |g|. Unlike SNIP's one
    mini-batch, all batches of the stage count, after the head has warmed up.

    Example:
        >>> [stage.name for stage in GradientMask().stages]
        ['scores', 'fixed mask']
    """

    share: float = 0.005
    """Part of the targets' entries that is kept."""
    scores_share: float = 0.2
    """Part of the steps for the scores; the head trains meanwhile."""
    warmup: float = 0.5
    """Part of the scores stage in which only the head trains and nothing is summed."""
    values_lr: float = 5e-3
    """Learning rate of the kept values. Entries with large gradients want less than random ones."""
    head_lr: float = 1e-3
    """Learning rate of the head in both stages."""

    def __post_init__(self) -> None:
        check_kept(self.share)
        check_share("scores_share", self.scores_share)
        check_share("warmup", self.warmup, closed_below=True)
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Scores, then the fixed mask."""
        mask: dict[Role, float] = {"values": self.values_lr, "head": self.head_lr}
        return (
            Stage("scores", self.scores_share, {"head": self.head_lr}, decay=()),
            Stage("fixed mask", 1.0 - self.scores_share, mask),
        )

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here."""
        layout = layout_of(base, targets)
        kept = kept_count(self.share, layout.numel)
        return Scores(base, layout, kept, self.warmup, _add)


def _add(sums: Tensor, gradient: Tensor) -> None:
    sums.add_(gradient)
