"""Making a delta smaller after it was learnt: fewer or narrower values, and the measured loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import ConfigError, DeltaError, UnknownNameError
from graftwork.deltas._algebra import combine_updates
from graftwork.deltas._delta import Delta
from graftwork.deltas._entries import blocks_of, difference_of
from graftwork.deltas._file import content_hash, dumps
from graftwork.deltas._fit import entries_update, singular_values, truncated
from graftwork.deltas._quantise import STORED, quantise, stored_name
from graftwork.deltas._terms import LowRank, Port, Sparse, Stored, Update, values_of

_HALVINGS = 14
"""Steps of the search for the share to keep: to 0.006 % of the values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressConfig:
    """How a delta is made smaller."""

    stored: str | None = None
    """Type of the values; None: as they are, or with a budget whichever of float16 and int8 loses
    less."""
    keep: float = 1.0
    """Share of the values that stay: the entries of largest magnitude over the whole delta, and the
    singular directions of low-rank terms with the most energy for their bytes."""
    budget_bytes: int | None = None
    """Size of the file to come under; the share to keep is then searched."""

    def __post_init__(self) -> None:
        if self.stored is not None and self.stored not in STORED:
            raise UnknownNameError("stored type", self.stored, STORED)
        if not 0 < self.keep <= 1:
            raise ConfigError(f"keep is {self.keep}, it must lie in (0, 1]")
        if self.budget_bytes is not None and (self.budget_bytes < 1 or self.keep != 1.0):
            raise ConfigError("a budget is a positive number of bytes, and goes without keep")


@dataclass(frozen=True, slots=True)
class CompressReport:
    """What a compression did.

    Attributes:
        bytes_before: size of the file before.
        bytes_after: and after.
        keep: share of the values that stayed.
        stored: type of the values; None where each kept its own.
        error: Frobenius distance of the differences before and after, relative to the first.
        tensors: name -> the same for each changed tensor.
        dropped: tensors of which nothing stayed.
        ports_error: largest relative distance of a port's tensor.
    """

    bytes_before: int
    bytes_after: int
    keep: float
    stored: str | None
    error: float
    tensors: Mapping[str, float]
    dropped: tuple[str, ...]
    ports_error: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**dataclasses.asdict(self), "tensors": dict(self.tensors)}


def compress(delta: Delta, config: CompressConfig) -> tuple[Delta, CompressReport]:
    """Return a smaller delta, and what was lost.

    Scale terms stay as they are: they are a number a row, and an error of theirs is one of the
    base's weights, not of the difference. Ports go to 16 bits where 16 or 8 are asked for. A
    seeded mask whose values are thinned out becomes a list of positions. Values of one magnitude
    stay or go together.

    Arguments:
        delta: any delta.
        config: share and type of the values, or a budget.

    Raises:
        DeltaError: nothing would stay, or no share of the values fits the budget.

    Example:
        >>> update = Update((4,), dense=torch.tensor([3.0, 0.1, -2.0, 0.2]))
        >>> small, report = compress(Delta({"w": update}), CompressConfig(keep=0.5))
        >>> small.updates["w"].adapted(torch.zeros(4))
        tensor([ 3.,  0., -2.,  0.])
        >>> round(report.error, 4)
        0.0619
    """
    before = len(dumps(delta))
    if config.budget_bytes is None:
        return _report(delta, _shrunk(delta, config.keep, config.stored), config, before)
    types = [config.stored] if config.stored else [None, "float16", "int8"]
    found = [_searched(delta, stored, config.budget_bytes, before) for stored in types]
    fits = [pair for pair in found if pair is not None]
    if not fits:
        raise DeltaError(
            f"the delta takes {before} bytes, and no share of its values fits "
            f"{config.budget_bytes}: signature, fingerprint, ports and scales alone take more"
        )
    return min(fits, key=lambda pair: pair[1].error)


def _searched(
    delta: Delta, stored: str | None, budget: int, before: int
) -> tuple[Delta, CompressReport] | None:
    """Return the delta of the largest share that fits, by halving; None where none does."""
    best: tuple[Delta, CompressReport] | None = None
    low, high, keep = 0.0, 1.0, 1.0
    for _ in range(_HALVINGS):
        config = CompressConfig(keep=keep, stored=stored)
        try:
            found = _report(delta, _shrunk(delta, keep, stored), config, before)
        except DeltaError:
            # nothing at all stays of so small a share
            low, keep = keep, (keep + high) / 2
            continue
        if found[1].bytes_after <= budget:
            best, low = found, keep
            if keep == 1.0:
                break
        else:
            high = keep
        keep = (low + high) / 2
    return best


def _shrunk(delta: Delta, keep: float, stored: str | None) -> Delta:
    threshold = _entry_threshold(delta, keep)
    ranks = _ranks(delta, keep)
    updates: dict[str, Update] = {}
    for name, update in delta.updates.items():
        small = _shrink(update, threshold, ranks.get(name), stored)
        if small is not None:
            updates[name] = small
    if not updates and not delta.ports:
        raise DeltaError(f"keep={keep} leaves nothing of the delta")
    dropped = delta.updates.keys() - updates.keys()
    prints = {n: p for n, p in delta.fingerprint.tensors.items() if n not in dropped}
    fingerprint = dataclasses.replace(delta.fingerprint, tensors=prints)
    ports = {name: _narrow_port(port, stored) for name, port in delta.ports.items()}
    return dataclasses.replace(delta, updates=updates, ports=ports, fingerprint=fingerprint)


def _shrink(
    update: Update, threshold: float, rank: int | None, stored: str | None
) -> Update | None:
    sparse = _shrink_sparse(update.sparse, threshold, stored)
    low_rank = None
    if update.low_rank is not None and rank != 0:
        low_rank = _shrink_low_rank(update.low_rank, rank, stored)
    entries = _shrink_dense(update, threshold, stored)
    dense = entries.dense if entries is not None else None
    if entries is not None and entries.sparse is not None:
        sparse = _joined(update.shape, sparse, entries.sparse)
    if sparse is None and low_rank is None and dense is None and update.scale is None:
        return None
    return Update(update.shape, sparse, low_rank, dense, update.scale)


def _shrink_dense(update: Update, threshold: float, stored: str | None) -> Update | None:
    """Return the entries of the dense term that stay: dense or sparse, whichever is smaller."""
    if update.dense is None:
        return None
    if threshold == 0.0:
        return Update(update.shape, dense=_narrow(update.dense, stored))
    values = values_of(update.dense).reshape(-1)
    kept = torch.where(values.abs() >= threshold, values, 0.0)
    return entries_update(kept, update.shape, stored or stored_name(update.dense))


def _joined(shape: tuple[int, ...], a: Sparse | None, b: Sparse) -> Sparse | None:
    if a is None:
        return b
    return combine_updates([(Update(shape, sparse=term), 1.0) for term in (a, b)]).sparse


def _shrink_sparse(term: Sparse | None, threshold: float, stored: str | None) -> Sparse | None:
    if term is None:
        return None
    values, kind = values_of(term.values), stored or stored_name(term.values)
    chosen = values.abs() >= threshold
    if bool(chosen.all()):
        return Sparse(term.positions, _narrow(term.values, stored), term.mask)
    if not bool(chosen.any()):
        return None
    return Sparse(term.positions[chosen], quantise(values[chosen], kind))


def _shrink_low_rank(term: LowRank, rank: int | None, stored: str | None) -> LowRank:
    if rank is None or rank >= term.rank:
        return LowRank(_narrow(term.left, stored), _narrow(term.right, stored), term.factor)
    return truncated(term, rank, stored or stored_name(term.left))


def _entry_threshold(delta: Delta, keep: float) -> float:
    """Return the least magnitude that stays among the entries of sparse and dense terms."""
    if keep == 1.0:
        return 0.0
    held = [
        values_of(stored).reshape(-1).abs()
        for update in delta.updates.values()
        for stored in (update.sparse.values if update.sparse else None, update.dense)
        if stored is not None
    ]
    magnitudes = torch.cat([part.double() for part in held]) if held else torch.zeros(0)
    magnitudes = magnitudes[magnitudes > 0]
    count = math.floor(keep * magnitudes.numel())
    if count == 0:
        return math.inf
    return float(magnitudes.kthvalue(magnitudes.numel() - count + 1).values)


def _ranks(delta: Delta, keep: float) -> dict[str, int]:
    """Return the ranks that stay: directions with the most energy for their values, over all."""
    if keep == 1.0:
        return {}
    found: list[tuple[float, int, str]] = []
    ranks: dict[str, int] = {}
    for name, update in delta.updates.items():
        if update.low_rank is None:
            continue
        ranks[name] = 0
        term = update.low_rank
        cost = (math.prod(term.left.shape) + math.prod(term.right.shape)) // term.rank
        energies = singular_values(term).square()
        # of a stack of matrices one direction of each goes or stays together
        shared = energies.reshape(-1, energies.shape[-1]).sum(0).tolist()
        found += [(energy / cost, cost, name) for energy in shared]
    left = keep * sum(cost for _, cost, _ in found)
    for _, cost, name in sorted(found, key=lambda item: (-item[0], item[2])):
        if cost > left:
            break
        ranks[name] += 1
        left -= cost
    return ranks


def _narrow(stored: Stored, kind: str | None) -> Stored:
    if kind is None or kind == stored_name(stored):
        return stored
    return quantise(values_of(stored), kind)


def _narrow_port(port: Port, stored: str | None) -> Port:
    if stored not in ("float16", "bfloat16", "int8"):
        return port
    kind = "float16" if stored == "int8" else stored
    wide = (torch.float32, torch.float64)
    tensors = {
        name: _narrow(t, kind) if isinstance(t, Tensor) and t.dtype in wide else t
        for name, t in port.tensors.items()
    }
    return Port(port.kind, port.config, tensors)


def _report(
    before: Delta, after: Delta, config: CompressConfig, size: int
) -> tuple[Delta, CompressReport]:
    errors, squares, norms = {}, 0.0, 0.0
    for name, update in before.updates.items():
        square, norm = _distance(update, after.updates.get(name))
        errors[name] = math.sqrt(square / norm) if norm else 0.0
        squares, norms = squares + square, norms + norm
    error = math.sqrt(squares / norms) if norms else 0.0
    known = {"base": before.provenance["base"]} if "base" in before.provenance else {}
    provenance = {
        "operation": "compress",
        "of": content_hash(before),
        "keep": config.keep,
        "stored": config.stored,
        "error": error,
        "from": before.provenance,
        **known,
    }
    after = dataclasses.replace(after, provenance=provenance)
    report = CompressReport(
        bytes_before=size,
        bytes_after=len(dumps(after)),
        keep=config.keep,
        stored=config.stored,
        error=error,
        tensors=errors,
        dropped=tuple(n for n in before.updates if n not in after.updates),
        ports_error=max(
            (_port_error(port, after.ports[name]) for name, port in before.ports.items()),
            default=0.0,
        ),
    )
    return after, report


def _distance(before: Update, after: Update | None) -> tuple[float, float]:
    """Return the squared distance of the added terms, and the squared norm of the first."""
    if before.terms == ("scale",):
        return 0.0, 0.0
    plain = dataclasses.replace(before, scale=None)
    bare = None
    if after is not None and after.terms != ("scale",):
        bare = dataclasses.replace(after, scale=None)
    square = norm = 0.0
    for rows in blocks_of(before.shape):
        ours = difference_of(plain, rows)
        theirs = difference_of(bare, rows) if bare is not None else torch.zeros_like(ours)
        square += float((ours - theirs).square().sum())
        norm += float(ours.square().sum())
    return square, norm


def _port_error(before: Port, after: Port) -> float:
    worst = 0.0
    for name, stored in before.tensors.items():
        if isinstance(stored, Tensor) and not stored.is_floating_point():
            continue
        ours, theirs = values_of(stored).double(), values_of(after.tensors[name]).double()
        norm = float(ours.norm())
        worst = max(worst, float((ours - theirs).norm()) / norm if norm else 0.0)
    return worst
