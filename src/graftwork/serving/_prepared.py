"""A delta in the form that is held ready for mixed batches: 4 bytes a sparse value of 16 bits.

Positions are kept as the low 16 bits of each, with a count for every 65,536 entries of the tensor.
Tasks that were learnt on one support (the same positions, such as a random mask of one seed) hold
it once.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from graftwork.deltas import (
    BaseLike,
    Delta,
    Fingerprint,
    Int8Blocks,
    LowRank,
    Port,
    Sparse,
    Stored,
    Update,
    check,
    content_hash,
)

CHUNK = 1 << 16
"""Entries of a tensor that share one count of positions."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Support:
    """Positions of a sparse term, sorted.

    Attributes:
        low: `(k,)` int16, the low 16 bits of each position.
        counts: positions in each chunk of `CHUNK` entries.
    """

    low: Tensor
    counts: tuple[int, ...]

    @classmethod
    def of(cls, positions: Tensor, numel: int) -> Support:
        """Return the compact form of sorted `(k,)` int64 positions in a tensor of `numel`."""
        chunks = (numel + CHUNK - 1) // CHUNK
        counts = torch.bincount(positions >> 16, minlength=chunks).tolist()
        return cls((positions & (CHUNK - 1)).to(torch.int16), tuple(counts))

    def positions(self) -> Tensor:
        """Return the positions, `(k,)` int64."""
        starts = torch.arange(len(self.counts)) << 16
        counts = torch.tensor(self.counts, dtype=torch.int64)
        return starts.repeat_interleave(counts) + (self.low.long() & (CHUNK - 1))

    @property
    def digest(self) -> bytes:
        """What tells supports apart."""
        found = hashlib.sha256(repr(self.counts).encode())
        found.update(self.low.numpy().tobytes())
        return found.digest()


class Supports:
    """Supports in use, each held once however many deltas have it."""

    def __init__(self) -> None:
        self._held: weakref.WeakValueDictionary[bytes, Support] = weakref.WeakValueDictionary()
        self._lock = threading.Lock()

    def one(self, support: Support) -> Support:
        """Return the support with these positions that is held, or hold this one."""
        digest = support.digest
        with self._lock:
            return self._held.setdefault(digest, support)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedUpdate:
    """An `Update` whose positions are compact."""

    rest: Update | None
    shape: tuple[int, ...]
    support: Support | None = None
    values: Stored | None = None

    @property
    def bytes(self) -> int:
        """What its tensors take, its support included."""
        return sum(map(_bytes, _tensors([self], ())))

    def update(self) -> Update:
        """Return the update with its positions written out."""
        if self.support is None or self.values is None:
            assert self.rest is not None, "an update has a term"
            return self.rest
        sparse = Sparse(self.support.positions(), self.values)
        if self.rest is None:
            return Update(self.shape, sparse=sparse)
        return replace(self.rest, sparse=sparse)


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A delta of one base, checked and compact.

    Attributes:
        key: content hash of the delta.
        updates: canonical parameter name -> update.
        frame: the delta without its updates: ports, signature, fingerprint.
        bytes: what the tensors take, supports included.
    """

    key: str
    updates: Mapping[str, PreparedUpdate]
    frame: Delta
    bytes: int = field(default=0)

    def delta(self, names: Iterable[str] | None = None, ports: Iterable[str] = ()) -> Delta:
        """Return the delta with only the updates `names` and `ports`; None: with all of both."""
        chosen = self.updates if names is None else list(names)
        kept = self.frame.ports if names is None else {p: self.frame.ports[p] for p in ports}
        updates = {name: self.updates[name].update() for name in chosen}
        return replace(self.frame, updates=updates, ports=kept)


def prepare(base: BaseLike, delta: Delta, supports: Supports, key: str | None = None) -> Prepared:
    """Return `delta` ready for mixed batches over `base`.

    Args:
        base: the base that the delta was made for.
        delta: not changed, and not needed any more afterwards.
        supports: those of other deltas, to be shared.
        key: its content hash, where it is known; else it is computed.

    Raises:
        FingerprintError: the delta was made for another base.
        UnknownNameError: the delta touches a parameter that the base does not have.
    """
    check(base, delta)
    names = {name: _known(base, name) for name in (*delta.updates, *delta.fingerprint.tensors)}
    updates = {names[n]: _prepared(update, supports) for n, update in delta.updates.items()}
    fingerprint = _shared(base, delta.fingerprint, names)
    frame = replace(delta, updates={}, provenance={}, extra={}, fingerprint=fingerprint)
    size = sum(map(_bytes, _tensors(updates.values(), frame.ports.values())))
    return Prepared(key or content_hash(delta), updates, frame, size)


def _known(base: BaseLike, name: str) -> str:
    """Return a name as the base holds it, so that a thousand deltas do not."""
    piece = base.names.pieces.get(name)
    return name if piece is None else piece.name


def _shared(base: BaseLike, fingerprint: Fingerprint, names: Mapping[str, str]) -> Fingerprint:
    """Return the fingerprint with the base's own prints where they are the same."""
    held = base.prints([name for name in fingerprint.tensors if name in base.names.pieces])
    tensors = {}
    for name, own in fingerprint.tensors.items():
        here = held.get(name)
        tensors[names[name]] = own if here != own or here is None else here
    return replace(fingerprint, tensors=tensors)


def _prepared(update: Update, supports: Supports) -> PreparedUpdate:
    rest = [name for name in update.terms if name != "sparse"]
    other = replace(_owned(update), sparse=None) if rest else None
    if update.sparse is None:
        return PreparedUpdate(other, update.shape)
    numel = int(torch.Size(update.shape).numel())
    support = supports.one(Support.of(update.sparse.positions, numel))
    return PreparedUpdate(other, update.shape, support, _own(update.sparse.values))


def _owned(update: Update) -> Update:
    """Return the update on storage of its own, so that no file stays in memory behind a slice."""
    low = update.low_rank
    return replace(
        update,
        low_rank=low and LowRank(_own(low.left), _own(low.right), low.factor),
        dense=None if update.dense is None else _own(update.dense),
        scale=None if update.scale is None else _own(update.scale),
    )


def _own(stored: Stored) -> Stored:
    if isinstance(stored, Int8Blocks):
        return replace(stored, codes=_compact(stored.codes), scales=_compact(stored.scales))
    return _compact(stored)


def _compact(tensor: Tensor) -> Tensor:
    exact = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return (
        tensor
        if exact and tensor.is_contiguous()
        else tensor.clone(memory_format=torch.contiguous_format)
    )


def _tensors(updates: Iterable[PreparedUpdate], ports: Iterable[Port]) -> list[Tensor]:
    stored: list[Stored | None] = []
    for update in updates:
        stored.append(update.values)
        if update.support is not None:
            stored.append(update.support.low)
        if update.rest is not None:
            low = update.rest.low_rank
            stored += [update.rest.dense, update.rest.scale]
            stored += [] if low is None else [low.left, low.right]
    for port in ports:
        stored += port.tensors.values()
    found: list[Tensor] = []
    for entry in stored:
        if isinstance(entry, Int8Blocks):
            found += [entry.codes, entry.scales]
        elif entry is not None:
            found.append(entry)
    return found


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
