"""Uniform draws for gates: a stream that depends on a seed and a step only."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from graftwork.tuning._hard_concrete import U_MIN

_LEVELS = 1 << 16
_EDGE = math.ceil(U_MIN * _LEVELS)


class UniformStream:
    """Uniform numbers at 16 bits, in the order they are asked for.

    No state outlives an optimiser step, so exact resume needs nothing stored, and every process
    draws the same. On a CPU the bits are the raw 64-bit outputs of SFC64, which numpy keeps stable;
    two bytes a number and no logarithm make a draw for 10 M gates take milliseconds.

    Arguments:
        seed: the step's seed; each gives an independent stream.
        device: where the numbers are wanted; another device than the CPU uses its own generator.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._device = device
        self._middle = torch.tensor(0.5 + 0.5 / _LEVELS, device=device)
        sequence = np.random.SeedSequence(seed % (1 << 64))
        self._bits = np.random.SFC64(sequence)
        self._generator: torch.Generator | None = None
        if device.type != "cpu":
            self._generator = torch.Generator(device)
            self._generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> 1))

    def into(self, out: Tensor) -> Tensor:
        """Fill `out` `(n,)` with uniforms in [1.1e-4, 1 - 1.1e-4] and return it."""
        half = _LEVELS // 2
        if self._generator is None:
            words = self._bits.random_raw(-(-out.numel() // 4))
            drawn = torch.from_numpy(words.view(np.int16))[: out.numel()]
        else:
            drawn = torch.empty(out.shape, dtype=torch.int16, device=self._device)
            drawn.random_(-half, half, generator=self._generator)
        drawn.clamp_(_EDGE - half, half - 1 - _EDGE)
        # (k + half + 1/2) / levels in one operation; all three numbers are exact in float32
        return torch.add(self._middle, out.copy_(drawn), alpha=1.0 / _LEVELS, out=out)
