"""The LoRA paper's analyses of what a low-rank term learns (Hu et al., 2021, section 7).

Shape legend: a term adds `factor * left (m, r) @ right (r, n)` to a matrix W `(m, n)`.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork._errors import DeltaError
from graftwork.deltas import BaseLike, Delta, LowRank, check, values_of

Side = Literal["left", "right"]


@torch.no_grad()
def subspace_similarity(a: LowRank, b: LowRank, side: Side = "right") -> Tensor:
    """Return how much of the first directions of one term lies in those of another.

    `phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j)` (eq. 4), with U_i the first i singular directions of
    a factor of `a` and V_j the first j of `b`'s: 1 when one subspace holds the other, 0 when they
    are at right angles. Two seeds, or two ranks, usually share the very first directions only.

    Arguments:
        a: a term of rank r_a.
        b: a term of the same weight, of rank r_b.
        side: "right" compares directions of the rows of W (inputs of a linear layer: the paper's
            A), "left" those of its columns (the paper's B).

    Returns:
        `(r_a, r_b)` float64 in [0, 1]; entry [i - 1, j - 1] is phi(i, j).

    Raises:
        DeltaError: the terms are of weights of other shapes, or of stacks of matrices.

    Example:
        >>> left = torch.eye(4)[:, :2]
        >>> one = LowRank(left, torch.eye(5)[:2])
        >>> two = LowRank(left, torch.eye(5)[1:3])
        >>> subspace_similarity(one, one).tolist()
        [[1.0, 1.0], [1.0, 1.0]]
        >>> float(subspace_similarity(one, two)[1, 1])  # they share one of two directions
        0.5
    """
    first, second = _directions(a, side), _directions(b, side)
    if first.shape[0] != second.shape[0]:
        raise DeltaError(
            f"the terms have {first.shape[0]} and {second.shape[0]} {side} dimensions; only terms "
            "of one weight can be compared"
        )
    overlaps = (first.T @ second).square().cumsum(0).cumsum(1)
    i, j = (torch.arange(1, size + 1) for size in overlaps.shape)
    return overlaps / torch.minimum(i[:, None], j[None, :])


def random_similarity(i: int, j: int, dimensions: int) -> float:
    """Return what phi(i, j) is on average for two random subspaces: the larger / dimensions.

    Example:
        >>> random_similarity(8, 64, 512)
        0.125
    """
    return max(i, j) / dimensions


@dataclass(frozen=True, slots=True)
class Amplification:
    """How a term stands to the weight it is added to (table 7); Frobenius norms.

    Attributes:
        size: ||D|| of the term D.
        weight: ||W||.
        along_term: ||U^T W V|| with the first r singular directions of D: what W has there.
        along_weight: the same with W's own first r directions: the most W has anywhere.
        along_random: the same with random directions, on average.
        factor: size / along_term. Large: the term lifts directions that W hardly uses.
    """

    size: float
    weight: float
    along_term: float
    along_weight: float
    along_random: float
    factor: float


@torch.no_grad()
def amplification(weight: Tensor, term: LowRank, rank: int | None = None) -> Amplification:
    """Return how much `term` amplifies directions of the frozen `weight`.

    Arguments:
        weight: `(m, ...)`, seen as a matrix.
        term: of that weight.
        rank: directions looked at; None: the term's rank.

    Raises:
        DeltaError: the term does not fit the weight, or is of a stack of matrices, or `rank` is
            out of range.

    Example:
        >>> weight = torch.diag(torch.tensor([4.0, 2.0, 0.1]))
        >>> term = LowRank(torch.eye(3)[:, 2:], torch.eye(3)[2:], 1.0)
        >>> found = amplification(weight, term)
        >>> round(found.factor, 3), found.along_weight
        (10.0, 4.0)
    """
    left, right = _factors(term)
    matrix = weight.detach().double().cpu().reshape(weight.shape[0], -1)
    if matrix.shape != (left.shape[0], right.shape[1]):
        raise DeltaError(
            f"the term is of a weight of shape {(left.shape[0], right.shape[1])}, not "
            f"{tuple(matrix.shape)}"
        )
    most = min(term.rank, *matrix.shape)
    rank = most if rank is None else rank
    if not 1 <= rank <= most:
        raise DeltaError(f"rank: 1 to {most}, the term's own, not {rank}")
    q_left, r_left = torch.linalg.qr(left)
    q_right, r_right = torch.linalg.qr(right.T)
    u, s, vh = torch.linalg.svd(term.factor * r_left @ r_right.T, full_matrices=False)
    u, v = (q_left @ u)[:, :rank], (q_right @ vh.T)[:, :rank]
    size, along = float(s.norm()), float((u.T @ matrix @ v).norm())
    norm = float(matrix.norm())
    return Amplification(
        size=size,
        weight=norm,
        along_term=along,
        along_weight=float(torch.linalg.svdvals(matrix)[:rank].norm()),
        along_random=rank * norm / math.sqrt(matrix.numel()),
        factor=size / along if along else math.inf,
    )


@dataclass(frozen=True, slots=True)
class LowRankReport:
    """The analyses of one weight.

    Attributes:
        name: canonical name.
        rank: of the term.
        amplification: None where no base was given.
        right: phi of the right factors against the other delta's; empty without one.
        left: phi of the left factors.
        random: what phi of random right factors of full rank would be.
    """

    name: str
    rank: int
    amplification: Amplification | None = None
    right: tuple[tuple[float, ...], ...] = ()
    left: tuple[tuple[float, ...], ...] = ()
    random: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """Return JSON values; an infinite factor is None."""
        data = asdict(self)
        if self.amplification is not None and math.isinf(self.amplification.factor):
            data["amplification"]["factor"] = None
        return data


def diagnose_low_rank(
    delta: Delta, other: Delta | None = None, base: BaseLike | None = None
) -> tuple[list[LowRankReport], list[str]]:
    """Return the analyses of every low-rank term of a delta, and what could not be analysed.

    Arguments:
        delta: has low-rank terms.
        other: of the same base, for instance of another seed or rank; gives the similarities.
        base: gives the amplification.

    Returns:
        A report a weight, and the names left out: stacks of matrices, and weights that the other
        delta does not have a term for.

    Raises:
        DeltaError: no weight has a low-rank term (in both).
        FingerprintError: a delta was made for another base.
    """
    for made in (delta, other):
        if base is not None and made is not None:
            check(base, made)
    reports, left_out = [], []
    for name, update in delta.updates.items():
        term = update.low_rank
        if term is None:
            continue
        rival = None if other is None else _term_of(other, name)
        if term.batched or (other is not None and (rival is None or rival.batched)):
            left_out.append(name)
            continue
        reports.append(_report(name, term, rival, base))
    if not reports:
        raise DeltaError(
            "no weight has a low-rank term to analyse"
            + (" in both deltas" if other is not None else "")
            + "; train with --tuner lora, or extract one with deltas' low-rank functions"
        )
    return reports, left_out


def _report(
    name: str, term: LowRank, rival: LowRank | None, base: BaseLike | None
) -> LowRankReport:
    found = None
    if base is not None:
        piece = base.names[name]
        weight = piece.of(base.model.get_parameter(piece.parameter).detach())
        found = amplification(weight, term)
    if rival is None:
        return LowRankReport(name, term.rank, found)
    right, left = (
        tuple(map(tuple, subspace_similarity(term, rival, side).tolist()))
        for side in ("right", "left")
    )
    chance = random_similarity(term.rank, rival.rank, int(term.right.shape[1]))
    return LowRankReport(name, term.rank, found, right, left, chance)


def _term_of(delta: Delta, name: str) -> LowRank | None:
    update = delta.updates.get(name)
    return None if update is None else update.low_rank


def _directions(term: LowRank, side: Side) -> Tensor:
    """Return the singular directions of a factor as columns, the largest first."""
    left, right = _factors(term)
    directions: Tensor
    directions, _, _ = torch.linalg.svd(left if side == "left" else right.T, full_matrices=False)
    return directions


def _factors(term: LowRank) -> tuple[Tensor, Tensor]:
    if term.batched:
        raise DeltaError(
            "the term is a stack of products, one for each matrix; analyse the matrices one by one"
        )
    return values_of(term.left).double().cpu(), values_of(term.right).double().cpu()
