"""What every import has in common: the stamp of law 2, and where a delta comes from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graftwork._errors import DeltaFileError
from graftwork.bases import Base
from graftwork.deltas import QUANTISE, Delta, Fingerprint, Port, Update, fingerprint_of
from graftwork.formats._foreign import sha256_of


def stamped(
    base: Base,
    updates: Mapping[str, Update],
    ports: Mapping[str, Port],
    signature: Mapping[str, Any] | None,
    provenance: Mapping[str, Any],
) -> Delta:
    """Return the delta of a format that has no fingerprint.

    Nothing in a foreign file says which base it was trained on, so the user vouches for the one
    that is given: the delta carries that base's prints, which are enforced from now on, and the
    mark `asserted`.

    Raises:
        DeltaFileError: nothing is changed.
    """
    if not updates and not ports:
        raise DeltaFileError("the adapter changes nothing: all of its tensors are the base's own")
    processing = {k: v for k, v in base.processing.items() if k in ("tokenizer", QUANTISE)}
    prints = fingerprint_of(base, updates, ports).tensors
    fingerprint = Fingerprint(prints, processing, asserted=True)
    return Delta(
        updates=dict(updates),
        ports=dict(ports),
        signature=dict(signature or {}),
        fingerprint=fingerprint,
        provenance={"method": "import", **provenance},
    )


def origin(format_name: str, path: Path) -> dict[str, Any]:
    """Return what a provenance says of an imported file: no path, so that a move is no change."""
    return {"format": format_name, "source": path.name, "sha256": sha256_of(path)}
