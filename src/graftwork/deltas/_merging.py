"""Merging deltas of one base into one: linear, SVD, TIES and DARE, with what it cost.

All methods act on the differences tau_i = adapted_i(W) - W of each tensor, of whatever terms.

| method    | merged difference                                                                |
|-----------|----------------------------------------------------------------------------------|
| linear    | `sum_i w_i tau_i` (task arithmetic; Ilharco et al., 2023)                        |
| svd       | the nearest matrix of rank `rank` to the linear one                              |
| ties      | trim, elect signs, mean of those that agree (Yadav et al., 2023, algorithm 1)    |
| dare      | linear, after dropping at random and rescaling (Yu et al., 2024, eq. 3)          |
| dare_ties | ties, with DARE's drop in place of the trim                                      |

Where linear merging is legal term by term (see `_algebra.py`) it stays so: low-rank terms keep
their sum of ranks, seeded masks stay. Otherwise the result is stored as sparse or dense entries,
whichever is smaller, or with `rank` as a product. In every case the report holds the distance
between what is stored and the method's exact result (law 13).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from graftwork._errors import ConfigError, DeltaError, UnknownNameError
from graftwork.deltas._algebra import (
    combine_updates,
    join_fingerprints,
    join_ports,
    join_signatures,
)
from graftwork.deltas._delta import BaseLike, Delta
from graftwork.deltas._entries import (
    BLOCK,
    blocks_of,
    difference_of,
    matrix_shape,
    values_at,
    weight_rows,
)
from graftwork.deltas._file import content_hash
from graftwork.deltas._fit import entries_update, low_rank_update
from graftwork.deltas._merge_report import Conflicts, MergeReport, TensorMerge, conflicts_of
from graftwork.deltas._plan import check
from graftwork.deltas._quantise import STORED
from graftwork.deltas._terms import Update, values_of

Method = Literal["linear", "svd", "ties", "dare", "dare_ties"]
METHODS: tuple[Method, ...] = ("linear", "svd", "ties", "dare", "dare_ties")


@dataclass(frozen=True, kw_only=True, slots=True)
class MergeConfig:
    """How deltas are merged."""

    method: Method = "linear"
    """linear, svd, ties, dare or dare_ties."""
    weights: tuple[float, ...] | None = None
    """One weight a delta. None: 1/k for linear, svd and dare, which keeps the size of one task's
    difference; 1 for the ties methods, whose mean over those that agree keeps it already."""
    density: float = 0.2
    """ties: share of its changed values that each delta keeps, by magnitude (the paper's 20 %).
    dare: share that survives the drop."""
    trim: Literal["delta", "tensor"] = "delta"
    """Whether ties ranks magnitudes over the whole delta (the paper) or in each tensor (PEFT)."""
    sign: Literal["total", "frequency"] = "total"
    """Whether signs are elected by summed values (the paper) or by heads."""
    rank: int | None = None
    """Store the merged difference as products of this rank; None: as it falls out. svd: None takes
    the largest rank among the deltas."""
    seed: int = 0
    """Seed of DARE's drop."""
    stored: str = "float16"
    """Type of the values where they are made anew."""
    ports_of: int | None = None
    """Index of the delta whose ports and signature are kept; None: they must be equal."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnknownNameError("merge method", self.method, METHODS)
        if self.stored not in STORED:
            raise UnknownNameError("stored type", self.stored, STORED)
        if not 0 < self.density <= 1:
            raise ConfigError(f"density is {self.density}, it must lie in (0, 1]")
        if self.rank is not None and self.rank < 1:
            raise ConfigError(f"rank is {self.rank}, it must be 1 or more")
        if self.weights is not None and not all(map(math.isfinite, self.weights)):
            raise ConfigError(f"weights {self.weights} must be finite")


def merge(
    deltas: Sequence[Delta], config: MergeConfig, base: BaseLike | None = None
) -> tuple[Delta, MergeReport]:
    """Return the merged delta, and a report of conflicts and of the measured error.

    A tensor that a delta leaves alone is a difference of zero there. Memory: one tensor and
    blocks of the others.

    Arguments:
        deltas: two or more of one base (one may be merged with itself alone, to trim or drop).
        config: the method.
        base: needed where a delta scales a tensor, whose difference depends on W.

    Raises:
        FingerprintError: the deltas were made for different bases.
        DeltaError: shapes, ports or signatures differ, or a scale needs the base.
        ConfigError: not one weight for each delta, or `ports_of` is no index.

    Example:
        >>> from graftwork.deltas import Sparse
        >>> at = lambda *v: Update((4,), dense=torch.tensor(v))
        >>> a, b = Delta({"w": at(2.0, -1.0, 0.0, 3.0)}), Delta({"w": at(4.0, 5.0, 1.0, -1.0)})
        >>> merged, report = merge([a, b], MergeConfig(method="ties", density=1.0))
        >>> merged.updates["w"].adapted(torch.zeros(4))
        tensor([3., 5., 1., 3.])
        >>> report.conflicts, report.error
        (2, 0.0)
    """
    weights = _weights(deltas, config)
    for delta in deltas if base is not None else ():
        check(base, delta)  # type: ignore[arg-type]
    fingerprint = join_fingerprints([delta.fingerprint for delta in deltas])
    owner = _owner(deltas, config)
    thresholds = [_threshold(delta, config, base) for delta in deltas]
    names = dict.fromkeys(name for delta in deltas for name in delta.updates)
    updates: dict[str, Update] = {}
    rows: list[TensorMerge] = []
    for name in names:
        job = _Job(name, [d.updates.get(name) for d in deltas], weights, thresholds, config, base)
        update, row = _merge_tensor(job)
        rows.append(row)
        if update is not None:
            updates[name] = update
    if not updates:
        raise DeltaError("nothing is left after the merge: every change was dropped or cancelled")
    report = MergeReport(config.method, tuple(rows))
    merged = Delta(
        updates=updates,
        ports=join_ports(owner),
        signature=join_signatures(owner),
        fingerprint=fingerprint,
        provenance=_provenance(deltas, config, weights, report),
    )
    return merged, report


@dataclass(frozen=True, slots=True)
class _Job:
    """One tensor to merge."""

    name: str
    updates: list[Update | None]
    weights: tuple[float, ...]
    thresholds: list[float]
    config: MergeConfig
    base: BaseLike | None

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = {update.shape for update in self.updates if update is not None}
        if len(shapes) > 1:
            raise DeltaError(f"merge of {self.name!r}: shapes {sorted(shapes)} differ")
        return shapes.pop()


def _merge_tensor(job: _Job) -> tuple[Update | None, TensorMerge]:
    conflicts, held = Conflicts(len(job.updates)), []
    generators = [_generator(job, index) for index in range(len(job.updates))]
    thresholds = _own_thresholds(job)
    support = _support(job)
    for values in _pieces(job, support):
        values = _sparsified(values, job, thresholds, generators)
        agreed = _agreeing(values, job.config)
        conflicts += conflicts_of(values, agreed)
        held.append(_joined(values, agreed, job))
    total = torch.cat(held) if held else torch.zeros(0, dtype=torch.float64)
    update = _stored(job, total, support)
    error = _error(job, update, total, support)
    terms = update.terms if update is not None else ()
    return update, TensorMerge(job.name, job.shape, terms, conflicts, error, float(total.norm()))


def _support(job: _Job) -> Tensor | None:
    """Return the positions that any delta changes where all are sparse there; None otherwise."""
    present = [update for update in job.updates if update is not None]
    terms = [u.sparse.positions for u in present if u.terms == ("sparse",) and u.sparse is not None]
    return torch.cat(terms).unique() if len(terms) == len(present) else None


def _pieces(job: _Job, support: Tensor | None) -> Iterator[Tensor]:
    """Yield the differences `(k, n)` of a piece of the tensor, or of the support, at a time."""
    if support is None:
        for rows in blocks_of(job.shape):
            yield _block(job, rows)
        return
    for part in support.split(BLOCK):
        out = torch.zeros(len(job.updates), part.numel(), dtype=torch.float64)
        for index, update in enumerate(job.updates):
            if update is not None and update.sparse is not None:
                out[index] = values_at(update.sparse, part)
        yield out


def _block(job: _Job, rows: tuple[int, int]) -> Tensor:
    """Return the differences `(k, entries)` of a block of rows."""
    weight = weight_rows(job.base, job.name, rows) if _scales(job) else None
    count = (rows[1] - rows[0]) * matrix_shape(job.shape)[1]
    out = torch.zeros(len(job.updates), count, dtype=torch.float64)
    for index, update in enumerate(job.updates):
        if update is not None:
            try:
                out[index] = difference_of(update, rows, weight)
            except DeltaError as error:
                raise DeltaError(f"merge of {job.name!r}: {error}") from None
    return out


def _scales(job: _Job) -> bool:
    return any(update is not None and update.scale is not None for update in job.updates)


def _sparsified(
    values: Tensor, job: _Job, thresholds: list[float], generators: list[torch.Generator]
) -> Tensor:
    """Return the values after the trim of TIES or the drop of DARE."""
    if job.config.method == "ties":
        limits = torch.tensor(thresholds, dtype=torch.float64)[:, None]
        return torch.where(values.abs() >= limits, values, 0.0)
    if job.config.method in ("dare", "dare_ties"):
        size = values.shape[1]
        draws = torch.stack([torch.rand(size, generator=g) for g in generators])
        return torch.where(draws < job.config.density, values / job.config.density, 0.0)
    return values


def _agreeing(values: Tensor, config: MergeConfig) -> Tensor:
    """Return which values `(k, n)` have the elected sign of their entry; a sum of 0 elects plus."""
    votes = values.sum(0) if config.sign == "total" else values.sign().sum(0)
    elected = torch.where(votes >= 0, 1.0, -1.0)
    return values.sign() == elected


def _joined(values: Tensor, agreed: Tensor, job: _Job) -> Tensor:
    weighted = values * torch.tensor(job.weights, dtype=torch.float64)[:, None]
    if job.config.method not in ("ties", "dare_ties"):
        return weighted.sum(0)
    return (weighted * agreed).sum(0) / agreed.sum(0).clamp(min=1)


def _stored(job: _Job, total: Tensor, support: Tensor | None) -> Update | None:
    """Return the update that keeps the merged difference."""
    config = job.config
    parts = [(u, w) for u, w in zip(job.updates, job.weights, strict=True) if u is not None]
    rank = config.rank
    if config.method == "svd" and rank is None:
        rank = max((u.low_rank.rank for u, _ in parts if u.low_rank is not None), default=None)
        if rank is None and len(job.shape) > 1:
            raise DeltaError(
                f"merge of {job.name!r}: svd needs a rank, and no delta has a low-rank term there; "
                "say it with rank=8"
            )
    if rank is not None:
        return low_rank_update(_flat(job, total, support), job.shape, rank, config.stored)
    if config.method == "linear" and (not _scales(job) or len(parts) == 1):
        try:
            return combine_updates(parts)
        except DeltaError:
            # a product over a tensor and one for each of its matrices, a scale beside other terms
            return entries_update(total, job.shape, config.stored, support)
    return entries_update(total, job.shape, config.stored, support)


def _flat(job: _Job, total: Tensor, support: Tensor | None) -> Tensor:
    """Return the merged difference of the whole tensor, flat."""
    if support is None:
        return total
    return total.new_zeros(math.prod(job.shape)).index_put_((support,), total)


def _error(job: _Job, update: Update | None, total: Tensor, support: Tensor | None) -> float:
    """Return `||stored - exact||` (Frobenius)."""
    if update is None:
        return float(total.norm())
    if support is not None and update.sparse is not None and update.terms == ("sparse",):
        return float((values_at(update.sparse, support) - total).norm())
    exact = _flat(job, total, support)
    squares, place = 0.0, 0
    for rows in blocks_of(job.shape):
        weight = weight_rows(job.base, job.name, rows) if update.scale is not None else None
        found = difference_of(update, rows, weight)
        squares += float((found - exact[place : place + found.numel()]).square().sum())
        place += found.numel()
    return math.sqrt(squares)


def _threshold(delta: Delta, config: MergeConfig, base: BaseLike | None) -> float:
    """Return the least magnitude that the trim over a whole delta keeps; 0 keeps all."""
    if config.method != "ties" or config.trim != "delta" or config.density == 1.0:
        return 0.0
    return _least_kept([(n, u) for n, u in delta.updates.items()], config.density, base)


def _own_thresholds(job: _Job) -> list[float]:
    if job.config.method != "ties" or job.config.trim != "tensor" or job.config.density == 1.0:
        return job.thresholds
    return [
        0.0 if u is None else _least_kept([(job.name, u)], job.config.density, job.base)
        for u in job.updates
    ]


def _least_kept(updates: list[tuple[str, Update]], density: float, base: BaseLike | None) -> float:
    """Return the magnitude of the last of the `density` largest nonzero values; equals stay too."""
    held: list[Tensor] = []
    for name, update in updates:
        if update.sparse is not None and update.terms == ("sparse",):
            magnitudes = values_of(update.sparse.values).double().abs()
            held.append(magnitudes[magnitudes > 0])
            continue
        for rows in blocks_of(update.shape):
            weight = weight_rows(base, name, rows) if update.scale is not None else None
            try:
                values = difference_of(update, rows, weight).abs()
            except DeltaError as error:
                raise DeltaError(f"merge of {name!r}: {error}") from None
            held.append(values[values > 0])
    values = torch.cat(held) if held else torch.zeros(0)
    keep = math.floor(density * values.numel())
    if keep == 0:
        return math.inf
    return float(values.kthvalue(values.numel() - keep + 1).values)


def _generator(job: _Job, index: int) -> torch.Generator:
    """Return the generator of one delta's draws in one tensor, whatever the other ones are."""
    key = f"dare|{job.config.seed}|{index}|{job.name}".encode()
    seed = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
    return torch.Generator().manual_seed(seed)


def _weights(deltas: Sequence[Delta], config: MergeConfig) -> tuple[float, ...]:
    if not deltas:
        raise DeltaError("a merge of no deltas is not defined")
    if config.weights is None:
        plain = config.method in ("ties", "dare_ties")
        return (1.0 if plain else 1.0 / len(deltas),) * len(deltas)
    if len(config.weights) != len(deltas):
        raise ConfigError(f"{len(config.weights)} weights for {len(deltas)} deltas")
    return config.weights


def _owner(deltas: Sequence[Delta], config: MergeConfig) -> list[Delta]:
    """Return the deltas whose ports and signatures are joined."""
    if config.ports_of is None:
        return list(deltas)
    if not 0 <= config.ports_of < len(deltas):
        raise ConfigError(f"ports_of is {config.ports_of}, there are {len(deltas)} deltas from 0")
    return [deltas[config.ports_of]]


def _provenance(
    deltas: Sequence[Delta],
    config: MergeConfig,
    weights: tuple[float, ...],
    report: MergeReport,
) -> dict[str, Any]:
    bases = {str(d.provenance["base"]) for d in deltas if "base" in d.provenance}
    known = {"base": bases.pop()} if len(bases) == 1 else {}
    chosen = {"density": config.density} if config.method not in ("linear", "svd") else {}
    if config.method.startswith("dare"):
        chosen["seed"] = config.seed
    return {
        "operation": "merge",
        "method": config.method,
        "weights": list(weights),
        "of": [content_hash(delta) for delta in deltas],
        "rank": config.rank,
        "error": report.error,
        "conflicts": report.conflicts,
        **chosen,
        **known,
    }
