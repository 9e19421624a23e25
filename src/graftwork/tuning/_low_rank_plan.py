"""Which target gets which low-rank term: ranks, scales, starts, and what has no such term."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.deltas import BaseLike, Piece, all_places
from graftwork.tuning._branch import Consumer, consumer_of
from graftwork.tuning._factors import (
    Factors,
    Side,
    normal_factor,
    principal_factors,
    uniform_factor,
)
from graftwork.tuning._layout import Layout
from graftwork.tuning._trained import Block, Trained

Start = Literal["zero", "principal"]
Vectors = Literal["leave", "train"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class LowRankPlan:
    """What the configs of low-rank tuners have in common; see `LoRA` for the fields.

    Raises:
        ConfigError: a rank or alpha that is not above 0, or blocks that are no word of 0 and 1.
    """

    rank: int
    alpha: float
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)
    stabilised: bool = False
    start: Start = "zero"
    blocks: Mapping[str, str] = field(default_factory=dict)
    vectors: Vectors = "leave"

    def __post_init__(self) -> None:
        for where, rank in (("rank", self.rank), *_named("ranks", self.ranks)):
            if rank < 1:
                raise ConfigError(f"{where}: 1 or more, not {rank}; leave the target out instead")
        for where, alpha in (("alpha", self.alpha), *_named("alphas", self.alphas)):
            if not (math.isfinite(alpha) and alpha > 0.0):
                raise ConfigError(f"{where}: above 0, not {alpha}: nothing would be learnt")
        for where, word in _named("blocks", self.blocks):
            if set(word) - set("01") or "1" not in word:
                raise ConfigError(
                    f"{where}: one digit a block, 1 where it is adapted, such as '101' for query "
                    f"and value of a merged projection, not {word!r}"
                )

    def factor(self, alpha: float, rank: int) -> float:
        """Return what multiplies the product."""
        return alpha / (math.sqrt(rank) if self.stabilised else rank)


@dataclass(frozen=True, slots=True)
class View:
    """A target seen as a matrix.

    Attributes:
        consumer: the layer that runs it as a branch, where one is known.
        stack: it is a stack of matrices.
        rows: m.
        columns: n.
    """

    consumer: Consumer | None
    stack: int
    rows: int
    columns: int

    @property
    def transposed(self) -> bool:
        """Whether outputs are columns."""
        return self.consumer is not None and self.consumer.columns

    @property
    def outputs(self) -> int:
        """How many outputs there are."""
        return self.columns if self.transposed else self.rows


def views_of(base: BaseLike, layout: Layout) -> list[View]:
    """Return how each target of a layout is seen, by the first layer that consumes it."""
    pieces = [slot.piece for slot in layout.slots]
    places = all_places(base.model, dict.fromkeys(piece.parameter for piece in pieces))
    return [_view(piece, places[piece.parameter]) for piece in pieces]


def _view(piece: Piece, places: Sequence[tuple[nn.Module, str]]) -> View:
    known = [consumer_of(module, leaf) for module, leaf in places]
    consumer = next((c for c in known if c is not None), None)
    shape = piece.shape
    convolved = any(isinstance(module, _ConvNd) for module, _ in places)
    if len(shape) == 3 and consumer is None and not convolved:
        return View(None, *shape)
    return View(consumer, 0, shape[0] if shape else 1, math.prod(shape[1:]))


def low_rank_targets(
    base: BaseLike, layout: Layout, plan: LowRankPlan, *, seed: int
) -> list[Trained]:
    """Return the trained terms of every target that has some.

    Arguments:
        base: the frozen base.
        layout: the targets.
        plan: ranks and scales.
        seed: of the factors that start at random; each target has a stream of its own.

    Raises:
        ConfigError: no target is a matrix, or blocks that do not divide a target's outputs.
        UnknownNameError: a pattern matches no target.
    """
    for what in ("ranks", "alphas", "blocks"):
        check_patterns(what, getattr(plan, what), layout.names)
    found: list[Trained] = []
    for slot, seen in zip(layout.slots, views_of(base, layout), strict=True):
        if min(seen.rows, seen.columns) < 2:
            if plan.vectors == "train":
                dense = nn.Parameter(
                    torch.zeros(slot.piece.shape, dtype=layout.dtype, device=layout.device)
                )
                found.append(Trained(slot.piece, dense=dense))
            continue
        weight = slot.piece.of(base.model.get_parameter(slot.piece.parameter).detach())
        found.append(_low_rank(slot.piece, seen, plan, weight.to(layout.dtype), seed))
    if not any(target.blocks for target in found):
        raise ConfigError(
            f"none of the {len(layout.slots)} targets is a matrix (first: {layout.names[0]!r}); a "
            "low-rank term needs two dimensions of 2 or more"
        )
    return found


def _low_rank(piece: Piece, seen: View, plan: LowRankPlan, weight: Tensor, seed: int) -> Trained:
    rank = chosen(plan.ranks, piece.name, plan.rank)
    alpha = chosen(plan.alphas, piece.name, plan.alpha)
    word = chosen(plan.blocks, piece.name, "1")
    size, rest = divmod(seen.outputs, len(word))
    if rest or (seen.stack and len(word) > 1):
        raise ConfigError(
            f"blocks: {word!r} would cut {piece.name!r} into {len(word)} equal parts, but it has "
            f"{seen.outputs} outputs" + (" in each matrix of a stack" if seen.stack else "")
        )
    matrix = weight.reshape(*((seen.stack,) if seen.stack else ()), seen.rows, seen.columns)
    blocks = []
    for i, digit in enumerate(word):
        if digit == "1":
            part = matrix.narrow(-1 if seen.transposed else -2, i * size, size)
            name = piece.name if len(word) == 1 else f"{piece.name}#{i}"
            factors = _factors(part, seen, min(rank, *part.shape[-2:]), (plan, alpha), (seed, name))
            blocks.append(Block(factors, i * size, (i + 1) * size))
    return Trained(
        piece,
        stack=bool(seen.stack),
        columns=seen.transposed,
        blocks=tuple(blocks),
        outputs=seen.outputs,
    )


def _factors(
    matrix: Tensor,
    seen: View,
    rank: int,
    scaling: tuple[LowRankPlan, float],
    drawn: tuple[int, str],
) -> Factors:
    plan, alpha = scaling
    factor = plan.factor(alpha, rank)
    zero: Side = "right" if seen.transposed and not _table(seen) else "left"
    if plan.start == "principal":
        left, right = principal_factors(matrix, rank, factor)
        return Factors(left, right, factor, zero=zero, anchored=True)
    *batch, rows, columns = matrix.shape
    left, right = matrix.new_zeros(*batch, rows, rank), matrix.new_zeros(*batch, rank, columns)
    if _table(seen):
        right.copy_(normal_factor(tuple(right.shape), *drawn))
    elif zero == "left":
        right.copy_(uniform_factor(tuple(right.shape), columns, *drawn))
    else:
        left.copy_(uniform_factor(tuple(left.shape), rows, *drawn))
    return Factors(left, right, factor, zero=zero)


def _table(seen: View) -> bool:
    return seen.consumer is not None and seen.consumer.table


def chosen(patterns: Mapping[str, T], name: str, default: T) -> T:
    """Return the value of the last pattern that matches `name`, or the default."""
    found = default
    for pattern, value in patterns.items():
        if fnmatch.fnmatchcase(name, pattern):
            found = value
    return found


def check_patterns(what: str, patterns: Iterable[str], names: Sequence[str]) -> None:
    """Raise where a pattern matches no target: a typo would otherwise change nothing.

    Raises:
        UnknownNameError: names the pattern.
    """
    for pattern in patterns:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UnknownNameError(f"target pattern in {what}:", pattern, names)


def _named(what: str, values: Mapping[str, T]) -> list[tuple[str, T]]:
    return [(f"{what}[{pattern!r}]", value) for pattern, value in values.items()]
