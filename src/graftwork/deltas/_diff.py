"""How two deltas differ: tensor by tensor, port by port, field by field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork._errors import DeltaError
from graftwork.deltas._delta import Delta
from graftwork.deltas._same import same_port, same_stored, same_update
from graftwork.deltas._terms import Update, values_of


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDiff:
    """Two deltas at one parameter.

    Attributes:
        name: canonical name.
        shape: its shape.
        status: "same" (bit for bit), "changed", "only in a" or "only in b".
        terms: terms of a and of b.
        changed: entries that a changes and that b changes.
        overlap: Jaccard index of the two supports, |both| / |either|; None unless in both.
        cosine: cosine of the two differences from W (scale terms left out); None where one is
            absent or zero.
        distance: L2 distance of the two differences, an absent one counting as zero.
        scale: "same", "changed" or "absent" (in both): the scale terms.
    """

    name: str
    shape: tuple[int, ...]
    status: str
    terms: tuple[tuple[str, ...], tuple[str, ...]]
    changed: tuple[int, int]
    overlap: float | None
    cosine: float | None
    distance: float
    scale: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaDiff:
    """How two deltas differ.

    Attributes:
        tensors: every tensor that either changes, by name.
        ports: port name -> "same", "changed", "only in a" or "only in b".
        signature: path of each signature field that differs -> (value in a, value in b).
        provenance: likewise for the provenance.
        bases: names of tensors and processing fields whose fingerprints disagree.
        overlap: Jaccard index of the supports over all tensors.
        cosine: cosine of the whole differences; None where one is zero.
        distance: L2 distance of the whole differences.
    """

    tensors: tuple[TensorDiff, ...]
    ports: Mapping[str, str]
    signature: Mapping[str, tuple[Any, Any]]
    provenance: Mapping[str, tuple[Any, Any]]
    bases: tuple[str, ...]
    overlap: float | None
    cosine: float | None
    distance: float

    @property
    def same(self) -> bool:
        """Whether the two do the same; provenance may differ."""
        return (
            all(tensor.status == "same" for tensor in self.tensors)
            and all(status == "same" for status in self.ports.values())
            and not self.signature
            and not self.bases
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {**dataclasses.asdict(self), "same": self.same}


@dataclass(frozen=True, slots=True)
class _Sums:
    """What adds up over tensors: support sizes and inner products."""

    both: int
    either: int
    dot: float
    norm_a: float
    norm_b: float
    distance: float


def diff(a: Delta, b: Delta) -> DeltaDiff:
    """Compare two deltas.

    Low-rank and dense terms are compared as the matrices they make, in float64.

    Raises:
        DeltaError: they give one tensor different shapes.

    Example:
        >>> from graftwork.deltas import Sparse
        >>> at = lambda *p: Sparse(torch.tensor(p), torch.ones(len(p)))
        >>> a, b = (Delta({"w": Update((9,), sparse=at(*p))}) for p in [(1, 2), (2, 3)])
        >>> round(diff(a, b).tensors[0].overlap, 3)
        0.333
    """
    tensors: list[TensorDiff] = []
    sums: list[_Sums] = []
    for name in sorted({*a.updates, *b.updates}):
        tensor, part = _diff_tensor(name, a.updates.get(name), b.updates.get(name))
        tensors.append(tensor)
        sums.append(part)
    either = sum(s.either for s in sums)
    norms = math.sqrt(sum(s.norm_a for s in sums) * sum(s.norm_b for s in sums))
    return DeltaDiff(
        tensors=tuple(tensors),
        ports=_diff_ports(a, b),
        signature=_diff_json(a.signature, b.signature),
        provenance=_diff_json(a.provenance, b.provenance),
        bases=_diff_prints(a, b),
        overlap=sum(s.both for s in sums) / either if either else None,
        cosine=sum(s.dot for s in sums) / norms if norms else None,
        distance=math.sqrt(sum(s.distance for s in sums)),
    )


def _diff_tensor(name: str, a: Update | None, b: Update | None) -> tuple[TensorDiff, _Sums]:
    present = a if a is not None else b
    if present is None:
        raise DeltaError(f"neither delta changes {name!r}")
    if a is not None and b is not None and a.shape != b.shape:
        raise DeltaError(f"{name!r} has shape {a.shape} in one delta and {b.shape} in the other")
    sums, changed = _compare(a, b)
    norms = math.sqrt(sums.norm_a * sums.norm_b)
    in_both = a is not None and b is not None
    tensor = TensorDiff(
        name=name,
        shape=present.shape,
        status=_status(a, b),
        terms=(a.terms if a else (), b.terms if b else ()),
        changed=changed,
        overlap=sums.both / sums.either if in_both and sums.either else None,
        cosine=sums.dot / norms if norms else None,
        distance=math.sqrt(sums.distance),
        scale=_scale_status(a, b),
    )
    return tensor, sums


def _status(a: Update | None, b: Update | None) -> str:
    if a is None or b is None:
        return "only in b" if a is None else "only in a"
    return "same" if same_update(a, b) else "changed"


def _scale_status(a: Update | None, b: Update | None) -> str:
    scales = [update.scale if update else None for update in (a, b)]
    if scales[0] is None and scales[1] is None:
        return "absent"
    return "same" if same_stored(*scales) else "changed"


def _compare(a: Update | None, b: Update | None) -> tuple[_Sums, tuple[int, int]]:
    positions_a, values_a = _difference(a)
    positions_b, values_b = _difference(b)
    _, at_a, at_b = np.intersect1d(
        positions_a, positions_b, assume_unique=True, return_indices=True
    )
    dot = float(values_a[at_a] @ values_b[at_b])
    norm_a, norm_b = float(values_a @ values_a), float(values_b @ values_b)
    alone_a, alone_b = np.delete(values_a, at_a), np.delete(values_b, at_b)
    shared = values_a[at_a] - values_b[at_b]
    distance = float(shared @ shared + alone_a @ alone_a + alone_b @ alone_b)
    either = positions_a.size + positions_b.size - at_a.size
    sums = _Sums(at_a.size, either, dot, norm_a, norm_b, distance)
    return sums, (positions_a.size, positions_b.size)


def _difference(update: Update | None) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return support and values `(k,)` of the sum of the sparse, low-rank and dense terms."""
    if update is None or update.terms == ("scale",):
        return np.empty(0, dtype=np.int64), np.empty(0)
    if update.sparse is not None and update.low_rank is None and update.dense is None:
        values = values_of(update.sparse.values).double().cpu().numpy()
        return update.sparse.positions.cpu().numpy(), values
    plain = dataclasses.replace(update, scale=None)
    total = plain.adapted(torch.zeros(update.shape, dtype=torch.float64)).reshape(-1)
    return np.arange(total.numel()), total.numpy()


def _diff_ports(a: Delta, b: Delta) -> dict[str, str]:
    out: dict[str, str] = {}
    for name in sorted({*a.ports, *b.ports}):
        if name not in b.ports:
            out[name] = "only in a"
        elif name not in a.ports:
            out[name] = "only in b"
        else:
            out[name] = "same" if same_port(a.ports[name], b.ports[name]) else "changed"
    return out


def _diff_prints(a: Delta, b: Delta) -> tuple[str, ...]:
    tables: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = [
        (a.fingerprint.tensors, b.fingerprint.tensors),
        (a.fingerprint.processing, b.fingerprint.processing),
    ]
    return tuple(
        name
        for ours, theirs in tables
        for name in sorted({*ours} & {*theirs})
        if ours[name] != theirs[name]
    )


def _diff_json(a: object, b: object, path: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        out: dict[str, tuple[Any, Any]] = {}
        for key in sorted({*a, *b}):
            out |= _diff_json(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
        return out
    return {} if a == b else {path: (a, b)}
