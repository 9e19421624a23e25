"""The trainable terms of one target: `scale * (W + sparse + low_rank + dense)`, with gradients.

Shape legend: as in `_factors.py`; a target has the shape of its canonical tensor.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError
from graftwork.deltas import LowRank, Piece, SeededMask, Sparse, Stored, Update, quantise, values_of
from graftwork.tuning._factors import Factors
from graftwork.tuning._tuner import Role, StoredType


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Factors for some of the outputs of a target: one of the merged query, key and value.

    Attributes:
        factors: the trained product, `(stop - start, n)` or `(m, stop - start)`.
        start: first row, or column, it is added to.
        stop: behind the last.
    """

    factors: Factors
    start: int
    stop: int


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Trained values at fixed flat positions."""

    positions: Tensor
    values: nn.Parameter
    mask: SeededMask | None = None


class Scale(ABC):
    """A trained factor of the whole sum."""

    parameter: nn.Parameter
    shape: tuple[int, ...]
    """Shape of the factor."""

    @abstractmethod
    def value(self) -> Tensor:
        """Return what multiplies the sum, with a graph; broadcasts to the target's shape."""

    @abstractmethod
    def refresh(self, total: Tensor) -> None:
        """Note the present sum `W + ...`, where the factor depends on it."""

    @abstractmethod
    def final(self, total: Tensor) -> Tensor:
        """Return the factor for the sum of the ROUNDED terms."""

    @abstractmethod
    def start_from(self, factor: Tensor, total: Tensor) -> None:
        """Begin at a given factor of the sum `total`."""


class Multiplier(Scale):
    """A factor that is trained as it is (IA3).

    Arguments:
        parameter: ones of a shape that broadcasts to the target's; targets may share it.
        shape: the target's view of it.
    """

    def __init__(self, parameter: nn.Parameter, shape: tuple[int, ...]) -> None:
        self.parameter, self.shape = parameter, shape

    def value(self) -> Tensor:
        """Return the parameter."""
        return self.parameter.view(self.shape)

    def refresh(self, total: Tensor) -> None:
        """Do nothing: it does not depend on the sum."""

    def final(self, total: Tensor) -> Tensor:  # noqa: ARG002
        """Return the parameter."""
        return self.value().detach()

    def start_from(self, factor: Tensor, total: Tensor) -> None:  # noqa: ARG002
        """Take the factor.

        Raises:
            DeltaError: it has another shape.
        """
        if tuple(factor.shape) != self.shape:
            raise DeltaError(f"its scale has shape {tuple(factor.shape)}, here it is {self.shape}")
        self.parameter.copy_(factor.view(self.parameter.shape))


class Magnitude(Scale):
    """DoRA's trained norm of each output: the factor is `magnitude / ||W + ...||`.

    The norm counts as a constant in the gradient (Liu et al., 2024, section 4.3), which saves a
    quarter of the memory and costs nothing measurable there.

    Arguments:
        weight: the frozen target.
        dims: dimensions that the norm runs over.
    """

    def __init__(self, weight: Tensor, dims: tuple[int, ...]) -> None:
        self._dims = dims
        self._norm = self._of(weight)
        self.parameter = nn.Parameter(self._norm.clone())
        self.shape = tuple(self._norm.shape)

    def _of(self, total: Tensor) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(total.detach(), dim=self._dims, keepdim=True)
        # an output whose weights are all zero has no direction: its factor stays finite
        return norm.clamp(min=torch.finfo(norm.dtype).tiny ** 0.5)

    def value(self) -> Tensor:
        """Return magnitude over norm."""
        return self.parameter / self._norm

    def refresh(self, total: Tensor) -> None:
        """Take the norm of the present sum."""
        self._norm = self._of(total)

    def final(self, total: Tensor) -> Tensor:
        """Return magnitude over the norm of the rounded sum."""
        return self.parameter.detach() / self._of(total).to(self.parameter)

    def start_from(self, factor: Tensor, total: Tensor) -> None:
        """Take the magnitude that gives the factor.

        Raises:
            DeltaError: it has another shape.
        """
        if tuple(factor.shape) != self.shape:
            raise DeltaError(f"its scale has shape {tuple(factor.shape)}, here it is {self.shape}")
        self._norm = self._of(total)
        self.parameter.copy_(factor * self._norm)


@dataclass(slots=True, eq=False)
class Trained:
    """One target and what is trained of it.

    Attributes:
        piece: where the canonical tensor lives.
        stack: the target is a stack of matrices, one product each.
        columns: blocks are columns (a transposed weight such as Conv1D's), not rows.
        blocks: low-rank products; one that covers all outputs in the usual case.
        entries: sparse values.
        dense: a trained change of every entry.
        scale: a trained factor.
    """

    piece: Piece
    stack: bool = False
    columns: bool = False
    blocks: tuple[Block, ...] = ()
    entries: Entries | None = None
    dense: nn.Parameter | None = None
    scale: Scale | None = None
    outputs: int = field(default=0)

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.piece.name

    @property
    def whole(self) -> Factors | None:
        """The one product that covers all outputs, if it is so."""
        if len(self.blocks) == 1 and self.blocks[0].stop - self.blocks[0].start == self.outputs:
            return self.blocks[0].factors
        return None

    def roles(self) -> Iterable[tuple[Role, nn.Parameter]]:
        """Yield every trained tensor with its role."""
        for block in self.blocks:
            yield from block.factors.roles()
        if self.entries is not None:
            yield "sparse", self.entries.values
        if self.dense is not None:
            yield "values", self.dense
        if self.scale is not None:
            yield "values", self.scale.parameter

    def tensors(self) -> dict[str, Tensor]:
        """Return all state by name."""
        state: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            state |= {f"block_{i}.{key}": t for key, t in block.factors.tensors().items()}
        if self.entries is not None:
            state |= {"positions": self.entries.positions, "sparse": self.entries.values.detach()}
        if self.dense is not None:
            state["dense"] = self.dense.detach()
        if self.scale is not None:
            state["scale"] = self.scale.parameter.detach()
        return state

    @torch.no_grad()
    def start_from(self, update: Update, weight: Tensor) -> None:
        """Begin at what `update` does to the frozen `weight`.

        Raises:
            DeltaError: it has a term that is not trained here, or at other positions.
        """
        trained = {
            "low_rank": bool(self.blocks),
            "sparse": self.entries is not None,
            "dense": self.dense is not None,
            "scale": self.scale is not None,
        }
        foreign = [term for term in update.terms if not trained[term]]
        if foreign:
            known = ", ".join(term for term, own in trained.items() if own)
            raise DeltaError(f"it has a {foreign[0]} term, this tuner trains {known}")
        if update.low_rank is not None:
            self._blocks_from(update.low_rank)
        if update.sparse is not None and self.entries is not None:
            positions = self.entries.positions
            if not torch.equal(update.sparse.positions.to(positions.device), positions):
                raise DeltaError(
                    "its sparse positions are others than this tuner's: set mask_seed to the "
                    "delta's and the share to its own"
                )
            self.entries.values.copy_(values_of(update.sparse.values))
        if update.dense is not None and self.dense is not None:
            self.dense.copy_(values_of(update.dense))
        if update.scale is not None and self.scale is not None:
            self.scale.start_from(values_of(update.scale).to(weight.device), self.unscaled(weight))

    def _blocks_from(self, term: LowRank) -> None:
        device = self.blocks[0].factors.left.device
        left, right = values_of(term.left).to(device), values_of(term.right).to(device)
        if self.whole is not None:
            self.whole.start_from(left, right, term.factor)
            return
        ranks = [block.factors.rank for block in self.blocks]
        if sum(ranks) != term.rank:
            raise DeltaError(f"its product has rank {term.rank}, the blocks here {sum(ranks)}")
        at = 0
        for block, rank in zip(self.blocks, ranks, strict=True):
            span, part = slice(block.start, block.stop), slice(at, at + rank)
            a = left[slice(None) if self.columns else span, part]
            b = right[part, span if self.columns else slice(None)]
            block.factors.start_from(a, b, term.factor)
            at += rank

    def plain(self, weight: Tensor) -> Tensor:
        """Return `W + sparse + dense` of the target's shape; `weight` itself where both lack."""
        out = weight
        if self.entries is not None:
            # index_add on a copy: its gradient is read at the k positions only
            flat = out.reshape(-1).to(self.entries.values.dtype)
            out = flat.index_add(0, self.entries.positions, self.entries.values).view(weight.shape)
        if self.dense is not None:
            out = out + self.dense
        return out

    def unscaled(self, weight: Tensor) -> Tensor:
        """Return `W + sparse + low_rank + dense`."""
        out = self.plain(weight)
        if not self.blocks:
            return out
        factors = self.whole
        if factors is not None:
            return out + factors.product().reshape(weight.shape)
        matrix, dim = _matrix(out), 1 if self.columns else 0
        parts, at = [], 0
        for block in self.blocks:
            parts.append(matrix.narrow(dim, at, block.start - at))
            part = matrix.narrow(dim, block.start, block.stop - block.start)
            parts.append(part + block.factors.product())
            at = block.stop
        parts.append(matrix.narrow(dim, at, matrix.shape[dim] - at))
        return torch.cat(parts, dim).reshape(weight.shape)

    def adapted(self, weight: Tensor) -> Tensor:
        """Return `W'` with a graph, in the type of the trained values."""
        out = self.unscaled(weight)
        return out if self.scale is None else out * self.scale.value()

    @torch.no_grad()
    def refresh(self, weight: Tensor) -> None:
        """Note the present values, where the scale depends on them."""
        if isinstance(self.scale, Magnitude):
            self.scale.refresh(self.unscaled(weight.to(self.scale.parameter.dtype)))

    @torch.no_grad()
    def update(self, weight: Tensor, stored: StoredType) -> Update | None:
        """Return the rounded update; None where nothing has changed.

        A scale is kept in float32 at least: it multiplies the whole weight, and 11 bits of a number
        near 1 are coarser than what training does to it.
        """
        terms: dict[str, object] = {
            "low_rank": self._low_rank(stored),
            "sparse": self._sparse(stored),
            "dense": self._dense(stored),
        }
        present = {key: term for key, term in terms.items() if term is not None}
        if self.scale is not None:
            total = weight
            if present:
                rounded = _updated(self.piece.shape, present)
                total = rounded.adapted(weight.cpu()).to(weight.device)
            final = self.scale.final(total).cpu()
            if bool((final != 1).any()):
                kept = "float64" if stored == "float64" else "float32"
                present["scale"] = quantise(final, kept)
        return _updated(self.piece.shape, present) if present else None

    def _low_rank(self, stored: StoredType) -> LowRank | None:
        if not self.blocks:
            return None
        pairs = [block.factors.final() for block in self.blocks]
        left, right = pairs[0] if self.whole is not None else self._side_by_side(pairs)
        term = LowRank(
            quantise(left, stored), quantise(right, stored), self.blocks[0].factors.factor
        )
        return term if _nonzero(term.left) and _nonzero(term.right) else None

    def _side_by_side(self, pairs: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        """Return one pair for several blocks: ranks add up, what is outside a block is zero."""
        ranks = [left.shape[1] for left, _ in pairs]
        rows, columns = pairs[0][0].shape[0], pairs[0][1].shape[1]
        if self.columns:
            columns = self.outputs
        else:
            rows = self.outputs
        left = pairs[0][0].new_zeros(rows, sum(ranks))
        right = pairs[0][1].new_zeros(sum(ranks), columns)
        at = 0
        for block, rank, (a, b) in zip(self.blocks, ranks, pairs, strict=True):
            span, part = slice(block.start, block.stop), slice(at, at + rank)
            left[slice(None) if self.columns else span, part] = a
            right[part, span if self.columns else slice(None)] = b
            at += rank
        return left, right

    def _sparse(self, stored: StoredType) -> Sparse | None:
        if self.entries is None or not self.entries.positions.numel():
            return None
        values = quantise(self.entries.values.detach().cpu(), stored)
        return Sparse(self.entries.positions.cpu(), values, self.entries.mask)

    def _dense(self, stored: StoredType) -> Stored | None:
        if self.dense is None or not bool(self.dense.detach().any()):
            return None
        return quantise(self.dense.detach().cpu(), stored)


def _updated(shape: tuple[int, ...], terms: Mapping[str, object]) -> Update:
    return Update(shape, **terms)  # type: ignore[arg-type]


def _matrix(weight: Tensor) -> Tensor:
    return weight.reshape(weight.shape[0], -1)


def _nonzero(stored: Stored) -> bool:
    return bool(values_of(stored).any())
