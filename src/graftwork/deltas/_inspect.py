"""Where the bytes of a delta go and where in the network the task lives."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from dataclasses import dataclass
from typing import Any

from graftwork.deltas._codec import entropy_bits
from graftwork.deltas._delta import Delta
from graftwork.deltas._file import content_hash, dumps, load
from graftwork.deltas._terms import Port, Stored, Update
from graftwork.deltas._writer import Blob, Json, describe, type_name


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorReport:
    """One updated parameter.

    Attributes:
        name: canonical name.
        layer: group it is counted in; see `Inspection.layers`.
        shape: its shape.
        terms: terms of its update.
        stored: stored types of the values, e.g. ("float16",).
        support: how positions are kept: "rice", "runs", "seeded", "all" or "" (no sparse term).
        kept: values stored.
        changed: entries that may differ from W: the support of a sparse term alone, else all.
        share: changed / entries.
        bytes: bytes of its positions and values in the file.
        position_bytes: of these, positions (a seeded mask: its checksum).
        position_bits: bits a position; None without a sparse term or kept entry.
        bound_bits: log2 C(n, k) / k, the least any code of arbitrary positions can take.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    terms: tuple[str, ...]
    stored: tuple[str, ...]
    support: str
    kept: int
    changed: int
    share: float
    bytes: int
    position_bytes: int
    position_bits: float | None
    bound_bits: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """The updated parameters of one layer together.

    Attributes:
        layer: name up to the first number ("encoder.layer.3"), or the first part of the name.
        tensors: how many parameters of it are updated.
        entries: their entries.
        changed: entries that may differ.
        share: changed / entries.
        bytes: bytes of positions and values.
    """

    layer: str
    tensors: int
    entries: int
    changed: int
    share: float
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortReport:
    """One port.

    Attributes:
        name: its name.
        kind: its kind.
        stored: stored types of its tensors.
        values: values stored.
        bytes: bytes of its tensors in the file.
    """

    name: str
    kind: str
    stored: tuple[str, ...]
    values: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The ledger of a delta.

    Attributes:
        content: `content_hash` of the delta.
        bytes: size of its file.
        parts: bytes by part: "header" (container, checksum, table), "fingerprint", "positions",
            "values", "ports"; they add up to `bytes`.
        kept: values stored in updates.
        bytes_per_value: positions and values / `kept`; None for a delta without updates.
        position_bits: bits a position over all sparse terms; None without one.
        bound_bits: the entropy bound of the same positions.
        tensors: one report a parameter, in natural order of names.
        layers: one report a layer, in the same order; `share` is of the updated parameters.
        ports: one report a port.
        asserted: whether the base was vouched for instead of fingerprinted.
        signature: the delta's signature.
        provenance: the delta's provenance.
    """

    content: str
    bytes: int
    parts: dict[str, int]
    kept: int
    bytes_per_value: float | None
    position_bits: float | None
    bound_bits: float | None
    tensors: tuple[TensorReport, ...]
    layers: tuple[LayerReport, ...]
    ports: tuple[PortReport, ...]
    asserted: bool
    signature: dict[str, Any]
    provenance: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return dataclasses.asdict(self)


def inspect(delta: Delta | str | os.PathLike[str]) -> Inspection:
    """Return where the bytes of a delta, or of a delta file, go.

    Raises:
        DeltaFileError: the file is not a valid delta file.
        DeltaError: the delta is not well-formed.

    Example:
        >>> import torch
        >>> from graftwork.deltas import Sparse
        >>> sparse = Sparse(torch.tensor([3, 70]), torch.tensor([0.5, -2.0]).half())
        >>> report = inspect(Delta({"encoder.layer.3.weight": Update((10, 10), sparse=sparse)}))
        >>> report.parts["values"], report.layers[0].layer, report.layers[0].share
        (4, 'encoder.layer.3', 0.02)
    """
    if not isinstance(delta, Delta):
        delta = load(delta)
    size = len(dumps(delta))
    table, blobs = describe(delta)
    supports = {entry["name"]: entry.get("sparse", {}) for entry in table.get("tensors", ())}
    owned: dict[str, list[Blob]] = {name: [] for name in (*delta.updates, *delta.ports)}
    for blob in blobs:
        owned.setdefault(blob.owner, []).append(blob)
    tensors = tuple(
        _tensor_report(name, delta.updates[name], supports[name], owned[name])
        for name in sorted(delta.updates, key=_natural)
    )
    kept, sparse_bits, bound, positions = _totals(delta, tensors)
    return Inspection(
        content=content_hash(delta),
        bytes=size,
        parts=_parts(size, blobs),
        kept=kept,
        bytes_per_value=sum(t.bytes for t in tensors) / kept if kept else None,
        position_bits=sparse_bits / positions if positions else None,
        bound_bits=bound / positions if positions else None,
        tensors=tensors,
        layers=_layers(tensors),
        ports=tuple(
            _port_report(name, delta.ports[name], owned[name]) for name in sorted(delta.ports)
        ),
        asserted=delta.fingerprint.asserted,
        signature=dict(delta.signature),
        provenance=dict(delta.provenance),
    )


def layer_of(name: str) -> str:
    """Return the layer of a parameter: its name up to the first number, or its first part.

    Example:
        >>> layer_of("encoder.layer.3.output.dense.weight"), layer_of("embeddings.norm.bias")
        ('encoder.layer.3', 'embeddings')
    """
    parts = name.split(".")
    for i, part in enumerate(parts):
        if part.isdecimal():
            return ".".join(parts[: i + 1])
    return parts[0]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which layer 2 comes before layer 10."""
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts]


def _tensor_report(name: str, update: Update, sparse: Json, blobs: list[Blob]) -> TensorReport:
    position_bytes = sum(len(b.data) for b in blobs if b.part == "positions")
    value_bytes = sum(len(b.data) for b in blobs if b.part == "values")
    entries = math.prod(update.shape)
    support = next((key for key in ("rice", "runs", "seeded", "all") if key in sparse), "")
    count = update.sparse.positions.numel() if update.sparse is not None else 0
    changed = count if update.terms == ("sparse",) else entries
    values = _values(update)
    return TensorReport(
        name=name,
        layer=layer_of(name),
        shape=update.shape,
        terms=update.terms,
        stored=tuple(sorted({type_name(stored) for stored in values})),
        support=support,
        kept=sum(math.prod(stored.shape) for stored in values),
        changed=changed,
        share=changed / entries if entries else 0.0,
        bytes=position_bytes + value_bytes,
        position_bytes=position_bytes,
        position_bits=8 * position_bytes / count if count else None,
        bound_bits=entropy_bits(entries, count) / count if count else None,
    )


def _port_report(name: str, port: Port, blobs: list[Blob]) -> PortReport:
    return PortReport(
        name=name,
        kind=port.kind,
        stored=tuple(sorted({type_name(stored) for stored in port.tensors.values()})),
        values=sum(math.prod(stored.shape) for stored in port.tensors.values()),
        bytes=sum(len(b.data) for b in blobs if b.part == "ports"),
    )


def _values(update: Update) -> list[Stored]:
    found: list[Stored | None] = [update.dense, update.scale]
    if update.sparse is not None:
        found.append(update.sparse.values)
    if update.low_rank is not None:
        found += [update.low_rank.left, update.low_rank.right]
    return [stored for stored in found if stored is not None]


def _totals(delta: Delta, tensors: tuple[TensorReport, ...]) -> tuple[int, float, float, int]:
    """Return values kept, bits of positions, their bound, and how many positions there are."""
    counts = {
        name: update.sparse.positions.numel()
        for name, update in delta.updates.items()
        if update.sparse is not None
    }
    bits = 8.0 * sum(tensor.position_bytes for tensor in tensors)
    bound = math.fsum(entropy_bits(math.prod(delta.updates[n].shape), k) for n, k in counts.items())
    return sum(t.kept for t in tensors), bits, bound, sum(counts.values())


def _parts(size: int, blobs: list[Blob]) -> dict[str, int]:
    parts = {"header": size, "fingerprint": 0, "positions": 0, "values": 0, "ports": 0}
    for blob in blobs:
        parts["fingerprint" if blob.part == "prints" else blob.part] += len(blob.data)
        parts["header"] -= len(blob.data)
    return parts


def _layers(tensors: tuple[TensorReport, ...]) -> tuple[LayerReport, ...]:
    grouped: dict[str, list[TensorReport]] = {}
    for tensor in tensors:
        grouped.setdefault(tensor.layer, []).append(tensor)
    reports: list[LayerReport] = []
    for layer, members in grouped.items():
        entries, changed = sum(math.prod(t.shape) for t in members), sum(t.changed for t in members)
        reports.append(
            LayerReport(
                layer=layer,
                tensors=len(members),
                entries=entries,
                changed=changed,
                share=changed / entries if entries else 0.0,
                bytes=sum(t.bytes for t in members),
            )
        )
    return tuple(reports)
