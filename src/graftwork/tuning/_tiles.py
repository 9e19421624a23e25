"""The gates' arithmetic, tile by tile: working weights out, gradients of values and gates back.

Whole-tensor arithmetic over d entries would move each of some fifteen intermediates through main
memory. Tiles keep them in the cache, so that memory sees only what must be read and written:

    prepare   read W, w, alpha; write z, W'        20 bytes an entry
    collect   read g, w, z; write g z, dL/dalpha   20 bytes an entry, the last two in place
    press     read alpha; add to dL/dalpha         12 bytes an entry, while density falls

Two identities save the logarithms and a buffer. With e = exp(c - alpha), the sigmoid of
log u - log(1 - u) + alpha - c is u / (u + (1 - u) e). And dz/dalpha = (z - l)(r - z) / (r - l)
needs nothing but z itself.

Shape legend: d entries, t of one tile, g groups; a tile of a target with row groups is (rows, t /
rows).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.tuning._groups import Groups
from graftwork.tuning._hard_concrete import HardConcrete
from graftwork.tuning._layout import Layout, Working
from graftwork.tuning._uniform import UniformStream

TILE = 1 << 17
"""Entries of a tile: half a megabyte a buffer. Measured best of 2^15 to 2^19 on 2 cores."""
TILE_ACCELERATOR = 1 << 22
_ALIGNED = 64
"""Tiles begin at multiples of a cache line, and of the four gates that one random word is for."""
_LOG2_E = math.log2(math.e)
_EXPONENT_MAX = 64.0
"""Gates shut below 2^-64 all the same; an infinite e would make lerp a NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """Views of one tile; each `(t,)`.

    Attributes:
        slot: index of its target.
        local: where it lies in the target.
        values: w.
        alpha: gate logits.
        gates: z after `prepare`, dL/dalpha after `collect`.
        base: the base's weights.
        work: the working weights.
        first: first group of its rows.
        rows: groups it spans.
    """

    slot: int
    local: slice
    values: Tensor
    alpha: Tensor
    gates: Tensor
    base: Tensor
    work: Tensor
    first: int
    rows: int


class GateTiles:
    """Executes the gates of one stage.

    Arguments:
        layout: the flat space.
        working: working weights of all its targets.
        values: `(d,)` w.
        alpha: `(d,)` logits.
        groups: groups of the gates; None without structure.
        gate: the gates' distribution.
    """

    def __init__(
        self,
        layout: Layout,
        working: Working,
        values: Tensor,
        alpha: Tensor,
        groups: Groups | None,
        gate: HardConcrete,
    ) -> None:
        self._layout, self._working, self._gate = layout, working, gate
        self.gates = torch.zeros_like(values)
        self._tiles = self._cut(values, alpha, groups)
        largest = max(tile.values.numel() for tile in self._tiles)
        self._a, self._b = values.new_empty(2, largest).unbind()
        self._one, self._low, self._shift, self._const = values.new_tensor(
            [1.0, gate.low, 0.0, 0.0]
        ).unbind()
        count = 0 if groups is None else groups.count
        self.group_gates = values.new_ones(count)
        self._plain = [1.0] * count
        self._gains: list[Tensor] = []
        self._sums = _Sums(values.new_zeros(max(1, count)), values.new_zeros(max(1, count)))

    def _cut(self, values: Tensor, alpha: Tensor, groups: Groups | None) -> list[Tile]:
        size = TILE if values.device.type == "cpu" else TILE_ACCELERATOR
        tiles = []
        for i, slot in enumerate(self._layout.slots):
            rows = 1 if groups is None else groups.slots[i].rows
            first = 0 if groups is None else groups.slots[i].first
            entries = slot.numel // rows
            step = _even(slot.numel, size) if rows == 1 else max(1, size // entries) * entries
            working = self._working.slot(i)
            for start in range(0, slot.numel, step):
                local = slice(start, min(start + step, slot.numel))
                flat = slice(slot.start + local.start, slot.start + local.stop)
                spans = 1 if rows == 1 else (local.stop - local.start) // entries
                row = first if rows == 1 else first + local.start // entries
                tiles.append(
                    Tile(
                        slot=i,
                        local=local,
                        values=values[flat],
                        alpha=alpha[flat],
                        gates=self.gates[flat],
                        base=working.base[local],
                        work=working.work[local],
                        first=row,
                        rows=spans,
                    )
                )
        return tiles

    def draw(
        self,
        shift: float,
        group_alpha: Tensor,
        stream: UniformStream | None,
        *,
        count_open: bool = False,
    ) -> None:
        """Draw gates for the logits minus `shift` and write the working weights.

        Arguments:
            shift: subtracted from the weights' logits.
            group_alpha: `(g,)` logits of the group gates, their shift already subtracted.
            stream: uniform numbers; None for the deterministic gates (u = 1/2).
            count_open: whether to sum the probabilities of open gates, for `press`.
        """
        self._shift.fill_(shift * _LOG2_E)
        self._sums.clear()
        if group_alpha.numel():
            if stream is None:
                drawn = self._gate.settled(group_alpha)
            else:
                drawn = self._gate.sample(group_alpha, stream.into(torch.empty_like(group_alpha)))
            self.group_gates.copy_(drawn)
            self._plain = self.group_gates.tolist()
        for tile in self._tiles:
            self._draw_tile(tile, stream, count_open)
        self._working.flush()

    def _draw_tile(self, tile: Tile, stream: UniformStream | None, count_open: bool) -> None:
        count = tile.values.numel()
        u, e, gates = self._a[:count], self._b[:count], tile.gates
        if stream is None:
            u.fill_(0.5)
        else:
            stream.into(u)
        torch.sub(self._shift, tile.alpha, alpha=_LOG2_E, out=e)
        e.clamp_max_(_EXPONENT_MAX)
        torch.exp2(e, out=e)
        if count_open:
            self._count_open(tile, e)
        torch.lerp(e, self._one, u, out=e)
        torch.div(u, e, out=gates)
        torch.add(self._low, gates, alpha=self._gate.high - self._gate.low, out=gates)
        gates.clamp_(0.0, 1.0)
        if tile.rows == 1:
            group = self._plain[tile.first] if self._plain else 1.0
            torch.addcmul(tile.base, gates, tile.values, value=group, out=tile.work)
            return
        torch.mul(gates.view(tile.rows, -1), self._rows_of(tile), out=u.view(tile.rows, -1))
        torch.addcmul(tile.base, u, tile.values, out=tile.work)

    def _count_open(self, tile: Tile, e: Tensor) -> None:
        """Add P(z > 0) = 1 / (1 + e exp(offset)) and its square to the sums of the groups."""
        on = tile.gates  # about to be overwritten by the draw
        torch.add(self._one, e, alpha=math.exp(self._gate.offset), out=on)
        on.reciprocal_()
        if tile.rows == 1:
            self._sums.add(tile.first, on.sum(), torch.dot(on, on))
            return
        matrix = on.view(tile.rows, -1)
        self._sums.first[tile.first : tile.first + tile.rows] += matrix.sum(1)
        matrix.square_()
        self._sums.second[tile.first : tile.first + tile.rows] += matrix.sum(1)

    def _rows_of(self, tile: Tile) -> Tensor:
        return self.group_gates[tile.first : tile.first + tile.rows, None]

    def collect(self, *, sum_gains: bool = False) -> tuple[list[Tensor | None], Tensor]:
        """Turn working gradients into those of values and gates; `gates` then holds dL/dalpha.

        Arguments:
            sum_gains: whether to add up dL/dalpha while it is in the cache, for `press`.

        Returns:
            For each target dL/dw `(n,)`, the working gradient's own memory where it can be, or
            None where there was none; and dL/dz `(g,)` of the group gates.
        """
        found: list[Tensor | None] = [
            self._working.slot(i).gradient() for i in range(len(self._layout.slots))
        ]
        group_gradient = torch.zeros_like(self.group_gates)
        dots: list[Tensor] = []
        owners: list[int] = []
        self._gains.clear()
        for tile in self._tiles:
            gradient = found[tile.slot]
            if gradient is None:
                tile.gates.zero_()
                continue
            dot = self._collect_tile(tile, gradient[tile.local], group_gradient)
            if sum_gains:
                self._gains.append(tile.gates.sum())
            if dot is not None:
                dots.append(dot)
                owners.append(tile.first)
        if dots:
            index = torch.tensor(owners, device=group_gradient.device)
            group_gradient.index_add_(0, index, torch.stack(dots))
        return found, group_gradient

    def _collect_tile(self, tile: Tile, g: Tensor, group_gradient: Tensor) -> Tensor | None:
        """Work on one tile; return dL/dz of its group when it has one group."""
        count = tile.values.numel()
        t, q, gates = self._a[:count], self._b[:count], tile.gates
        low, high = self._gate.low, self._gate.high
        dot = None
        torch.mul(g, tile.values, out=t)
        g.mul_(gates)
        factor = 1.0 / (high - low)
        if tile.rows > 1:
            rows = self._rows_of(tile)
            torch.mul(t, gates, out=q)
            group_gradient[tile.first : tile.first + tile.rows] += q.view(tile.rows, -1).sum(1)
            g.view(tile.rows, -1).mul_(rows)
            t.view(tile.rows, -1).mul_(rows)
        elif self._plain:
            dot = torch.dot(t, gates)
            group = self._plain[tile.first]
            factor *= group
            if group != 1.0:
                g.mul_(group)
        self._const.fill_(-low * high * factor)
        torch.addcmul(self._const, gates, gates, value=-factor, out=q)
        if low + high != 0.0:
            q.add_(gates, alpha=(low + high) * factor)
        t.mul_(q)
        torch.ops.aten.hardtanh_backward.grad_input(t, gates, 0.0, 1.0, grad_input=gates)
        return dot

    def press(
        self, shift: float, group_alpha: Tensor, group_gradient: Tensor, *, shift_groups: bool
    ) -> float:
        """Add the pressure under which a common shift of all logits gains nothing.

        The gates are to lower the loss L at a given expected density E. The gradient of
        L + mu E, with mu such that its components for the shifted logits add up to 0, is what is
        left of the gradient once the common part, which the next shift undoes anyway, is taken
        out: an entry whose own gain is below mu P(1 - P) is pushed shut. Without it Adam, which
        knows signs better than sizes, lets every gate rise and noise decides which stay open.

        Call it after `draw(..., count_open=True)` and `collect(sum_gains=True)`.

        Arguments:
            shift: of the weights' logits, as drawn.
            group_alpha: `(g,)` logits of the group gates, their shift already subtracted.
            group_gradient: `(g,)` dL/dalpha of the group gates; added to in place.
            shift_groups: whether group logits take part in the shift.

        Returns:
            mu: what one more open gate costs.
        """
        first, second = self._sums.totals()
        grouped = group_alpha.numel() > 0
        group_on = self._gate.on(group_alpha) if grouped else first.new_ones(1)
        slopes = (group_on * (first - second)).sum()
        gains = torch.stack([self._const.new_zeros(()), *self._gains]).sum()
        group_slope = group_on * (1.0 - group_on) * first
        if grouped and shift_groups:
            slopes, gains = slopes + group_slope.sum(), gains + group_gradient.sum()
        if float(slopes) == 0.0:
            return 0.0
        price = -float(gains / slopes)
        if grouped:
            group_gradient.add_(group_slope, alpha=price)
        costs = (group_on * price).tolist()
        offset = self._shift.new_tensor(-(shift + self._gate.offset))
        for tile in self._tiles:
            self._press_tile(tile, offset, group_on, price, costs)
        return price

    def _press_tile(
        self, tile: Tile, offset: Tensor, group_on: Tensor, price: float, costs: list[float]
    ) -> None:
        count = tile.values.numel()
        on, slope = self._a[:count], self._b[:count]
        torch.add(offset, tile.alpha, out=on)
        torch.sigmoid(on, out=on)
        torch.addcmul(on, on, on, value=-1.0, out=slope)
        if tile.rows == 1:
            tile.gates.add_(slope, alpha=costs[tile.first])
            return
        matrix = slope.view(tile.rows, -1)
        weights = group_on[tile.first : tile.first + tile.rows, None]
        tile.gates.view(tile.rows, -1).addcmul_(matrix, weights, value=price)

    def difference(self) -> Tensor:
        """Return `(d,)` z z_g w of the last draw."""
        out = torch.empty_like(self.gates)
        done = 0
        for tile in self._tiles:
            part = out[done : done + tile.values.numel()]
            done += tile.values.numel()
            torch.mul(tile.gates, tile.values, out=part)
            if self._plain:
                part.view(tile.rows, -1).mul_(self._rows_of(tile))
        return out


def _even(numel: int, size: int) -> int:
    """Return the length of about equal tiles of about `size`: no small rest to pay calls for."""
    pieces = max(1, round(numel / size))
    return math.ceil(numel / pieces / _ALIGNED) * _ALIGNED


class _Sums:
    """Sums over each group of P(z > 0) and of its square; one number a tile is added up late.

    Attributes:
        first: `(g,)` sums of P from tiles with several groups.
        second: `(g,)` sums of P squared from them.
    """

    def __init__(self, first: Tensor, second: Tensor) -> None:
        self.first, self.second = first, second
        self._owners: list[int] = []
        self._numbers: list[tuple[Tensor, Tensor]] = []

    def clear(self) -> None:
        self.first.zero_()
        self.second.zero_()
        self._owners.clear()
        self._numbers.clear()

    def add(self, owner: int, first: Tensor, second: Tensor) -> None:
        self._owners.append(owner)
        self._numbers.append((first, second))

    def totals(self) -> tuple[Tensor, Tensor]:
        if not self._owners:
            return self.first, self.second
        index = torch.tensor(self._owners, device=self.first.device)
        first, second = (torch.stack(part) for part in zip(*self._numbers, strict=True))
        return self.first.index_add(0, index, first), self.second.index_add(0, index, second)
