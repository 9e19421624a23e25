"""From extracted updates to a delta that can be saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graftwork.deltas import BaseLike, Delta, Port, Update, fingerprint_of


def as_delta(
    base: BaseLike,
    updates: Mapping[str, Update],
    *,
    ports: Mapping[str, Port] | None = None,
    signature: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Delta:
    """Return a delta of `updates` with the fingerprint of what they touch.

    Arguments:
        base: the base the updates were learnt on.
        updates: what `Attachment.extract` returned.
        ports: modules at ports, such as `{"head": port_of(...)}`; of a tuner that trains modules
            inside the base also what `Attachment.ports` returned.
        signature: JSON of the task's signature; empty for a bare weight difference.
        provenance: JSON about how it was made.
    """
    return Delta(
        updates=dict(updates),
        ports=dict(ports or {}),
        signature=dict(signature or {}),
        fingerprint=fingerprint_of(base, updates, ports),
        provenance=dict(provenance or {}),
    )
