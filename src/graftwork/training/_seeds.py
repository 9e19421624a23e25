"""Seeds for every purpose of a run, so that no generator state needs to be saved."""

from __future__ import annotations

import hashlib

import torch


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


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generator of the CPU, and that of `device`.

    `torch.manual_seed` also queues the seed for every accelerator that is not in use, each with a
    formatted stack, which takes longer than a small step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    elif device.type != "cpu":
        torch.manual_seed(seed)
