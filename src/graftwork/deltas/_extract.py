"""The best delta of a fine-tuned checkpoint within a budget of bytes, sparse or low-rank."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError, DeltaError, UnknownNameError
from graftwork.deltas._between import between, tuned_differences
from graftwork.deltas._delta import BaseLike, Delta, fingerprint_of
from graftwork.deltas._entries import blocks_of, difference_of, matrix_shape
from graftwork.deltas._file import dumps
from graftwork.deltas._fit import VALUE_BITS
from graftwork.deltas._quantise import STORED, quantise
from graftwork.deltas._terms import LowRank, Update

_TRIES = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class ExtractConfig:
    """What is extracted."""

    budget_bytes: int
    """Size of the file to come under."""
    kind: Literal["sparse", "low_rank"] = "sparse"
    """sparse keeps the largest entries; low_rank the singular directions of most energy."""
    targets: tuple[str, ...] = ("*",)
    """Patterns of the tensors to look at; the others stay as in the base."""
    ignore: tuple[str, ...] = ()
    """Patterns of names in the checkpoint that are no part of the base, such as a head."""
    stored: str = "float16"
    """Type of the values."""
    base_name: str | None = None
    """What the base is loaded from, kept in the provenance; None: not said."""

    def __post_init__(self) -> None:
        if self.kind not in ("sparse", "low_rank"):
            raise UnknownNameError("kind of extraction", self.kind, ("sparse", "low_rank"))
        if self.stored not in STORED:
            raise UnknownNameError("stored type", self.stored, STORED)
        if self.budget_bytes < 1:
            raise ConfigError(f"budget_bytes is {self.budget_bytes}, it must be positive")


@dataclass(frozen=True, slots=True)
class Extraction:
    """A delta taken from a checkpoint, and what it leaves out.

    Attributes:
        delta: within the budget.
        bytes: of its file.
        error: Frobenius distance of its difference from the checkpoint's, relative to that one.
        tensors: how many of the targets it changes.
    """

    delta: Delta
    bytes: int
    error: float
    tensors: int


def extract(
    base: BaseLike, tuned: nn.Module | Mapping[str, Tensor], config: ExtractConfig
) -> Extraction:
    """Return the delta within a budget that is nearest to a fine-tuned checkpoint.

    Sparse: the most entries of largest magnitude that fit. Low-rank: of every matrix's singular
    directions, and of every vector as a whole, those of most energy a byte; of one budget,
    this gives a large matrix of simple change few directions and a busy one many.

    Arguments:
        base: the base the checkpoint was tuned from.
        tuned: as for `between`.
        config: budget and kind.

    Raises:
        DeltaError: as for `between`; also where not a single value fits the budget.
    """
    state = tuned.state_dict() if isinstance(tuned, nn.Module) else dict(tuned)
    differences = tuned_differences(base, state, config.targets, config.ignore)
    search = _sparse if config.kind == "sparse" else _low_rank
    delta = search(base, state, differences, config)
    error = _error(delta, differences)
    named = {} if config.base_name is None else {"base": config.base_name}
    shown = {**delta.provenance, "error": error, "budget_bytes": config.budget_bytes, **named}
    delta = Delta(delta.updates, fingerprint=delta.fingerprint, provenance=shown)
    return Extraction(delta, len(dumps(delta)), error, len(delta.updates))


def low_rank_between(
    base: BaseLike,
    tuned: nn.Module | Mapping[str, Tensor],
    rank: int,
    *,
    targets: Sequence[str] = ("*",),
    ignore: Sequence[str] = (),
    stored: str = "float16",
) -> Delta:
    """Return the delta of one rank that is nearest to a fine-tuned checkpoint.

    Each matrix that changed becomes the nearest product (Eckart and Young, 1936), each vector a
    dense term; see `extract` for ranks by a budget.

    Raises:
        DeltaError: as for `between`; also for a rank below 1.
    """
    if rank < 1:
        raise DeltaError(f"rank is {rank}, it must be 1 or more")
    state = tuned.state_dict() if isinstance(tuned, nn.Module) else dict(tuned)
    differences = tuned_differences(base, state, targets, ignore)
    chosen = {name: rank for name, change in differences.items() if bool(change.any())}
    if not chosen:
        raise DeltaError("no entry of the targets differs from the base; is this the tuned model?")
    return _products(base, _decomposed(base, differences), chosen, stored)


def _sparse(
    base: BaseLike,
    state: Mapping[str, Tensor],
    differences: Mapping[str, Tensor],
    config: ExtractConfig,
) -> Delta:
    """Return the largest sparse delta that fits, by halving the interval of counts."""
    options: dict[str, Any] = {
        "targets": config.targets,
        "ignore": config.ignore,
        "stored": config.stored,
    }
    changed = sum(int(torch.count_nonzero(change)) for change in differences.values())
    # a value takes at least its bits, so no more than this can fit
    high = min(changed, config.budget_bytes * 8 // VALUE_BITS[config.stored])
    best, low = None, 0
    while low < high:
        count = (low + high + 1) // 2
        delta = between(base, state, keep=count, **options)
        if _size(delta, config) <= config.budget_bytes:
            best, low = delta, count
        else:
            high = count - 1
    return _fitting(best, config)


def _low_rank(
    base: BaseLike,
    state: Mapping[str, Tensor],
    differences: Mapping[str, Tensor],
    config: ExtractConfig,
) -> Delta:
    """Return the low-rank delta of most energy that fits."""
    del state
    parts = _decomposed(base, differences)
    items = sorted(
        (
            (-energy / part.cost, name, part.cost)
            for name, part in parts.items()
            for energy in part.energies
        ),
    )
    budget = config.budget_bytes * 8 // VALUE_BITS[config.stored]
    best = None
    low, high = 0, budget
    for _ in range(_TRIES):
        chosen = _greedy(items, budget)
        delta = _products(base, parts, chosen, config.stored) if chosen else None
        if delta is not None and _size(delta, config) <= config.budget_bytes:
            best, low = delta, budget
        else:
            high = budget - 1
        if low >= high:
            break
        budget = (low + high + 1) // 2
    return _fitting(best, config)


def _greedy(items: list[tuple[float, str, int]], budget: int) -> dict[str, int]:
    """Return name -> rank of the items of most energy a value, as many as the budget takes."""
    chosen: dict[str, int] = {}
    full: set[str] = set()
    for gain, name, cost in items:
        if gain == 0.0 or name in full:
            continue
        if cost > budget:
            # the next directions of this tensor are worth less and cost the same
            full.add(name)
            continue
        chosen[name] = chosen.get(name, 0) + 1
        budget -= cost
    return chosen


@dataclass(frozen=True, slots=True)
class _Parts:
    """A difference as a sum of directions; a vector is one direction.

    Attributes:
        cost: values of a direction.
        energies: squared singular values, falling.
        left: `(m, r)` times the root of the singular values; the difference itself for a vector.
        right: `(r, n)` times the same; None for a vector.
    """

    cost: int
    energies: list[float]
    left: Tensor
    right: Tensor | None


def _decomposed(base: BaseLike, differences: Mapping[str, Tensor]) -> dict[str, _Parts]:
    parts: dict[str, _Parts] = {}
    for name, change in differences.items():
        shape = base.names[name].shape
        rows, columns = matrix_shape(shape)
        if not bool(change.any()):
            continue
        if len(shape) < 2 or min(rows, columns) == 1:
            energy = float(change.double().square().sum())
            parts[name] = _Parts(change.numel(), [energy], change, None)
            continue
        left, sizes, right = torch.linalg.svd(change.reshape(rows, columns), full_matrices=False)
        root = sizes.sqrt()
        parts[name] = _Parts(
            rows + columns, sizes.double().square().tolist(), left * root, root[:, None] * right
        )
    return parts


def _products(
    base: BaseLike, parts: Mapping[str, _Parts], chosen: Mapping[str, int], stored: str
) -> Delta:
    updates: dict[str, Update] = {}
    for name, rank in chosen.items():
        shape, part = base.names[name].shape, parts[name]
        if part.right is None:
            updates[name] = Update(shape, dense=quantise(part.left.reshape(shape), stored))
        else:
            term = LowRank(
                quantise(part.left[:, :rank], stored), quantise(part.right[:rank], stored)
            )
            updates[name] = Update(shape, low_rank=term)
    provenance = {"method": "extract", "kind": "low_rank", "stored": stored}
    return Delta(updates, fingerprint=fingerprint_of(base, updates), provenance=provenance)


def _size(delta: Delta, config: ExtractConfig) -> int:
    """Return the bytes of the file, with room for what `extract` still adds to the provenance."""
    return len(dumps(delta)) + 64 + len((config.base_name or "").encode())


def _fitting(delta: Delta | None, config: ExtractConfig) -> Delta:
    if delta is None:
        raise DeltaError(
            f"a delta of one value takes more than {config.budget_bytes} bytes; raise budget_bytes"
        )
    return delta


def _error(delta: Delta, differences: Mapping[str, Tensor]) -> float:
    squares = norms = 0.0
    for name, change in differences.items():
        norms += float(change.double().square().sum())
        update, place = delta.updates.get(name), 0
        if update is None:
            squares += float(change.double().square().sum())
            continue
        for rows in blocks_of(update.shape):
            found = difference_of(update, rows)
            exact = change[place : place + found.numel()].double()
            squares += float((found - exact).square().sum())
            place += found.numel()
    return math.sqrt(squares / norms) if norms else 0.0
