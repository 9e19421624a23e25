"""Steering density: one shift of all gate logits, found anew for each step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from graftwork.tuning._groups import Groups
from graftwork.tuning._hard_concrete import HardConcrete
from graftwork.tuning._layout import Layout

_SAMPLE = 1 << 16
_SAMPLE_MAX = 1 << 20
_ENTRIES_WANTED = 1000
"""Open gates that the sample should hold: their count then varies by some 3 %."""
_TOLERANCE = 1e-4
"""Of the shift: densities then are right to 0.02 %."""
_DENSEST = 1.0 - 1e-6
"""Wanted at most: float32 means of open gates come no closer to 1 for certain."""
_REACH = 20.0
"""Beyond the outermost logits a gate is open, or shut, but for 2e-9."""


@dataclass(frozen=True, slots=True)
class DensityPath:
    """Wanted density by progress: 1, then exponentially down to `end`.

    Attributes:
        hold: progress up to which the density is 1.
        arrive: progress from which it is `end`.
        end: last density.

    Example:
        >>> path = DensityPath(hold=0.4, arrive=0.9, end=0.01)
        >>> [round(path.at(p), 3) for p in (0.0, 0.4, 0.65, 0.9, 1.0)]
        [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    hold: float
    arrive: float
    end: float

    def at(self, progress: float) -> float:
        """Return the wanted density at `progress` in [0, 1]."""
        if progress <= self.hold:
            return 1.0
        done = min(1.0, (progress - self.hold) / (self.arrive - self.hold))
        return math.exp(done * math.log(self.end))


class Steering:
    """Finds the shift c at which gates of logits alpha - c have a wanted expected density.

    Expected density is the mean of P(z_i > 0) P(z_g > 0) over the entries that a batch has touched
    (an entry whose value is still exactly 0 never had a gradient: rows of an embedding table that
    no batch used). It is measured on a jittered stride of the flat space, fixed for the stage and
    as long as the last density needs; a bracketed search (Brent 1973) then is a millisecond and
    cannot overshoot, where controllers with memory (a multiplier, Newton steps) did and destroyed
    the model.

    Arguments:
        layout: the flat space.
        groups: groups of the gates; None without structure.
        gate: the gates' distribution.
        path: wanted densities, of all entries.
        shift_groups: whether the shift acts on group gates too.
    """

    def __init__(
        self,
        layout: Layout,
        groups: Groups | None,
        gate: HardConcrete,
        path: DensityPath,
        *,
        shift_groups: bool,
    ) -> None:
        self._gate, self._path, self._shift_groups = gate, path, shift_groups
        wanted = max(_SAMPLE, min(_SAMPLE_MAX, math.ceil(_ENTRIES_WANTED / path.end)))
        self._sample = _jittered(layout.numel, wanted).to(layout.device)
        self._group = None if groups is None else groups.of_positions(layout, self._sample)
        self._all_touched = False

    def restart(self) -> None:
        """Forget which entries were touched: the values were replaced from outside."""
        self._all_touched = False

    def measure(
        self, alpha: Tensor, values: Tensor, group_alpha: Tensor, shift: float
    ) -> tuple[float, float]:
        """Return expected density among touched entries, and the touched part of all entries.

        Arguments:
            alpha: `(d,)` logits.
            values: `(d,)` values; 0 where never touched.
            group_alpha: `(g,)` logits of the group gates.
            shift: subtracted from all logits.
        """
        logits, groups, touched = self._touched(alpha, values)
        if logits.numel() == 0:
            return 0.0, 0.0
        return float(self._density(logits, groups, group_alpha, shift)), touched

    def shift(self, progress: float, alpha: Tensor, values: Tensor, group_alpha: Tensor) -> float:
        """Return the shift at `progress`: 0 while the path holds density 1; see `measure`."""
        from scipy.optimize import brentq

        if progress <= self._path.hold:
            return 0.0
        logits, groups, touched = self._touched(alpha, values)
        if logits.numel() == 0:
            return 0.0
        end = min(1.0, self._path.end / touched)
        path = DensityPath(self._path.hold, self._path.arrive, end)
        wanted = min(path.at(progress), _DENSEST)
        low = float(logits.min()) - _REACH
        high = float(logits.max()) + _REACH

        def excess(shift: float) -> float:
            # its logarithm is nearly straight in the shift, which the search needs few steps for
            return math.log(float(self._density(logits, groups, group_alpha, shift)) / wanted)

        return float(brentq(excess, low, high, xtol=_TOLERANCE))

    def _touched(self, alpha: Tensor, values: Tensor) -> tuple[Tensor, Tensor | None, float]:
        logits = alpha.index_select(0, self._sample)
        if self._all_touched:
            return logits, self._group, 1.0
        touched = values.index_select(0, self._sample) != 0
        count = int(touched.count_nonzero())
        share = count / logits.numel()
        # a value that training has moved does not come back to exactly 0: look no more
        self._all_touched = count == logits.numel()
        if self._all_touched:
            return logits, self._group, share
        return logits[touched], None if self._group is None else self._group[touched], share

    def _density(
        self, logits: Tensor, groups: Tensor | None, group_alpha: Tensor, shift: float
    ) -> Tensor:
        on = self._gate.on(logits - shift)
        if groups is not None:
            group_shift = shift if self._shift_groups else 0.0
            on *= self._gate.on(group_alpha - group_shift)[groups]
        return on.mean()


def _jittered(numel: int, wanted: int) -> Tensor:
    """Return about `wanted` sorted positions below `numel`, one drawn in each equal stretch.

    A plain stride could fall in step with the width of a matrix and see one column only.
    """
    if wanted >= numel:
        return torch.arange(numel)
    within = np.random.Generator(np.random.PCG64(0)).random(wanted)
    return torch.from_numpy(((np.arange(wanted) + within) * (numel / wanted)).astype(np.int64))
