"""One-shot mask by the empirical Fisher information."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_kept, check_rates, check_share
from graftwork.tuning._layout import kept_count, layout_of
from graftwork.tuning._scores import Scores
from graftwork.tuning._tuner import Attachment, Role, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class FisherMask(Tuner):
    """Keep the entries with the largest summed squared gradient at the pretrained weights.

    The FISH mask (Sung, Nair, Raffel, 2021, eq. 5): the empirical Fisher information, the mean over
    examples of the squared gradient. We deviate: the squares are of the mean gradients of small
    batches, not of single examples, because a backward pass an example costs `batch_size` times
    more; `batch_size=1` gives the paper's score.

    Example:
        >>> FisherMask(batch_size=1).stages[0].batch_size
        1
    """

    share: float = 0.005
    """Part of the targets' entries that is kept."""
    scores_share: float = 0.2
    """Part of the steps for the scores; the head trains meanwhile."""
    warmup: float = 0.5
    """Part of the scores stage in which only the head trains and nothing is summed."""
    batch_size: int = 8
    """Rows of a batch in the scores stage."""
    values_lr: float = 5e-3
    """Learning rate of the kept values."""
    head_lr: float = 1e-3
    """Learning rate of the head in both stages."""

    def __post_init__(self) -> None:
        check_kept(self.share)
        check_share("scores_share", self.scores_share)
        check_share("warmup", self.warmup, closed_below=True)
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        if self.batch_size < 1:
            raise ConfigError(f"batch_size: at least 1, not {self.batch_size}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Scores on small batches, then the fixed mask."""
        head: dict[Role, float] = {"head": self.head_lr}
        mask: dict[Role, float] = {"values": self.values_lr, "head": self.head_lr}
        return (
            Stage("scores", self.scores_share, head, decay=(), batch_size=self.batch_size),
            Stage("fixed mask", 1.0 - self.scores_share, mask),
        )

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here."""
        layout = layout_of(base, targets)
        kept = kept_count(self.share, layout.numel)
        return Scores(base, layout, kept, self.warmup, _add_square)


def _add_square(sums: Tensor, gradient: Tensor) -> None:
    sums.addcmul_(gradient, gradient)
