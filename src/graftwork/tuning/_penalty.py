"""Expected number of open gates, and its gradient in closed form."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from graftwork.tuning._groups import Groups
from graftwork.tuning._hard_concrete import HardConcrete
from graftwork.tuning._layout import Layout

PenaltyForm = Literal["product", "additive"]
PENALTY_FORMS: tuple[PenaltyForm, ...] = ("product", "additive")


class Penalty:
    """lambda * E||delta||_0 (Guo et al. 2020, eq. 5 and section 3.1).

    With P = P(z > 0): without groups sum_i P_i. With groups, "product" is the paper's formula
    sum_g P_g sum_{i in g} P_i, and "additive" what the authors' program adds up,
    sum_i P_i + sum_g P_g, in which a group gate feels next to no pressure.

    Arguments:
        layout: the flat space.
        groups: groups of the gates; None without structure.
        gate: the gates' distribution.
        form: "product" or "additive"; the same thing without groups.
        factor: lambda.
    """

    def __init__(
        self,
        layout: Layout,
        groups: Groups | None,
        gate: HardConcrete,
        form: PenaltyForm,
        factor: float,
    ) -> None:
        self._layout, self._groups, self._gate = layout, groups, gate
        self._product, self._factor = form == "product" and groups is not None, factor

    def value(self, alpha: Tensor, group_alpha: Tensor) -> Tensor:
        """Return lambda * E||delta||_0 for logits `(d,)` and `(g,)`."""
        on, group_on = self._gate.on(alpha), self._gate.on(group_alpha)
        if not self._product:
            return self._factor * (on.sum() + group_on.sum())
        return self._factor * (self._sums(on) * group_on).sum()

    def add_gradient(
        self, alpha: Tensor, group_alpha: Tensor, into: Tensor, into_groups: Tensor
    ) -> None:
        """Add the gradient for the logits to `into` `(d,)` and `into_groups` `(g,)`."""
        on, group_on = self._gate.on(alpha), self._gate.on(group_alpha)
        group_slope = group_on * (1.0 - group_on) * self._factor
        into_groups += group_slope * self._sums(on) if self._product else group_slope
        slope = on.addcmul_(on, on, value=-1.0).mul_(self._factor)
        if not self._product:
            into += slope
            return
        for part, rows, first in self._slots():
            weights = group_on[first : first + rows, None]
            into[part].view(rows, -1).addcmul_(slope[part].view(rows, -1), weights)

    def _sums(self, on: Tensor) -> Tensor:
        """Return `(g,)` sums of `on` `(d,)` over each group."""
        assert self._groups is not None
        sums = on.new_zeros(self._groups.count)
        for part, rows, first in self._slots():
            sums[first : first + rows] += on[part].view(rows, -1).sum(1)
        return sums

    def _slots(self) -> list[tuple[slice, int, int]]:
        assert self._groups is not None
        pairs = zip(self._layout.slots, self._groups.slots, strict=True)
        return [(slice(s.start, s.stop), g.rows, g.first) for s, g in pairs]
