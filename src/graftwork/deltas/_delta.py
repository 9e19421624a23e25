"""The artefact: updates keyed by canonical parameter name, modules at ports, and a signature."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from graftwork.deltas._mounts import place_of
from graftwork.deltas._names import NameMap
from graftwork.deltas._terms import Port, Update


@dataclass(frozen=True, slots=True)
class TensorPrint:
    """Fingerprint of one stored tensor of a base.

    Attributes:
        shape: its shape.
        dtype: its stored type, e.g. "float32" (a cast at load is a declared view of this).
        digest: first 16 hex digits of SHA-256 over dtype, shape and little-endian bytes.
    """

    shape: tuple[int, ...]
    dtype: str
    digest: str


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a delta was made for: the stored tensors it touches, and how inputs are processed.

    Attributes:
        tensors: canonical name -> print of each tensor the delta touches.
        processing: name -> value of what else must agree: "tokenizer" (digest), "pooling",
            "max_length", "template", ...; empty for a plain module.
        asserted: True when a foreign format had no fingerprint and the user vouched for the base.
    """

    tensors: Mapping[str, TensorPrint]
    processing: Mapping[str, str] = field(default_factory=dict)
    asserted: bool = False


@runtime_checkable
class BaseLike(Protocol):
    """What deltas need of a base; `graftwork.bases.Base` is one."""

    @property
    def model(self) -> nn.Module:
        """The frozen module."""

    @property
    def names(self) -> NameMap:
        """Canonical names of its parameters."""

    @property
    def processing(self) -> Mapping[str, str]:
        """See `Fingerprint.processing`."""

    def prints(self, names: Iterable[str]) -> Mapping[str, TensorPrint]:
        """Fingerprints of the named (canonical) tensors."""


def fingerprint_of(
    base: BaseLike, names: Iterable[str], ports: Mapping[str, Port] | None = None
) -> Fingerprint:
    """Return the fingerprint of a delta that touches the named tensors of `base`.

    Arguments:
        base: the base that the delta was learnt on.
        names: what its updates change.
        ports: its ports; those inside the base touch the tensor that says where.

    Example:
        >>> from graftwork.bases import load
        >>> list(fingerprint_of(load(nn.Linear(2, 3)), ["bias"]).tensors)
        ['bias']
    """
    places = (place_of(name, port.kind) for name, port in (ports or {}).items())
    touched = [*names, *(base.names[place].name for place in places if place)]
    return Fingerprint(dict(base.prints(dict.fromkeys(touched))), dict(base.processing))


@dataclass(frozen=True, slots=True, eq=False)
class Delta:
    """One task's whole difference from a base.

    Attributes:
        updates: canonical parameter name -> `Update`.
        ports: port name -> `Port`, e.g. "head".
        signature: JSON of `graftwork.tasks.Signature`; empty for a bare weight difference.
        fingerprint: what the delta was made for.
        provenance: JSON: method, config, seeds, data digest, versions, metrics. No wall time,
            host or path, so that the same run gives the same bytes.
        extra: JSON that a newer graftwork wrote and any reader may ignore; kept on save.
    """

    updates: Mapping[str, Update]
    ports: Mapping[str, Port] = field(default_factory=dict)
    signature: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: Fingerprint = field(default_factory=lambda: Fingerprint({}))
    provenance: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
