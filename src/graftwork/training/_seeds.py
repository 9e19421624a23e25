"""Seeds for every purpose of a run, so that no generator state needs to be saved."""

from __future__ import annotations

import hashlib


def derive(seed: int, *parts: str | int) -> int:
    """Return a seed in [0, 2**63) for one purpose of a run, independent of all other purposes.

    An update that seeds itself from its place in the run can be repeated after a crash without
    any saved generator state.

    Example:
        >>> derive(0, "dropout", 1, 20) == derive(0, "dropout", 1, 20)
        True
        >>> derive(0, "dropout", 1, 20) == derive(0, "dropout", 12, 0)
        False
    """
    text = "\x1f".join(map(str, (seed, *parts)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
