"""What a merge did: where deltas disagree, and how far the stored result is from the exact one."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(slots=True)
class Conflicts:
    """Sums over entries of a tensor, which add up over blocks and tensors.

    Attributes:
        count: of the deltas.
        shared: entries that two or more deltas change.
        opposed: shared entries whose changes do not all have one sign.
        against: summed magnitude of changes that have not the elected sign.
        magnitude: summed magnitude of all changes.
        dots: `(k, k)` inner products of the deltas' differences.
    """

    count: int
    shared: int = 0
    opposed: int = 0
    against: float = 0.0
    magnitude: float = 0.0
    dots: Tensor = field(default_factory=lambda: torch.zeros(0))

    def __post_init__(self) -> None:
        if self.dots.numel() == 0:
            self.dots = torch.zeros(self.count, self.count, dtype=torch.float64)

    def __iadd__(self, other: Conflicts) -> Conflicts:
        self.shared += other.shared
        self.opposed += other.opposed
        self.against += other.against
        self.magnitude += other.magnitude
        self.dots = self.dots + other.dots
        return self

    @property
    def cosine(self) -> float | None:
        """The lowest cosine of two deltas' differences; None where fewer than two have one."""
        norms = self.dots.diagonal().sqrt()
        pairs = [
            float(self.dots[i, j] / (norms[i] * norms[j]))
            for i in range(self.count)
            for j in range(i)
            if norms[i] > 0 and norms[j] > 0
        ]
        return min(pairs, default=None)


def conflicts_of(values: Tensor, agreed: Tensor) -> Conflicts:
    """Return the sums over a block of differences `(k, n)`; `agreed`: those of elected sign."""
    shared = (values != 0).sum(0) >= 2
    opposed = shared & (values > 0).any(0) & (values < 0).any(0)
    magnitudes = values.abs()
    return Conflicts(
        len(values),
        int(shared.sum()),
        int(opposed.sum()),
        float(magnitudes[~agreed].sum()),
        float(magnitudes.sum()),
        values @ values.T,
    )


@dataclass(frozen=True, slots=True)
class TensorMerge:
    """One tensor of a merge.

    Attributes:
        name: canonical name.
        shape: its shape.
        terms: of the merged update; empty where nothing is left.
        sums: see `Conflicts`.
        error: Frobenius distance of what is stored from the method's exact result.
        norm: Frobenius norm of that result.
    """

    name: str
    shape: tuple[int, ...]
    terms: tuple[str, ...]
    sums: Conflicts
    error: float
    norm: float

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            "name": self.name,
            "shape": list(self.shape),
            "terms": list(self.terms),
            "shared": self.sums.shared,
            "conflicts": self.sums.opposed,
            "cosine": self.sums.cosine,
            "error": self.error,
            "norm": self.norm,
        }


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did.

    Attributes:
        method: how it was merged.
        tensors: one row for each tensor that a delta changes.
    """

    method: str
    tensors: tuple[TensorMerge, ...]

    @property
    def shared(self) -> int:
        """Entries that two or more deltas change (after a trim or drop)."""
        return sum(tensor.sums.shared for tensor in self.tensors)

    @property
    def conflicts(self) -> int:
        """Shared entries whose changes have different signs."""
        return sum(tensor.sums.opposed for tensor in self.tensors)

    @property
    def against(self) -> float:
        """Share of all changes' magnitude that points against the elected sign."""
        total = sum(tensor.sums.magnitude for tensor in self.tensors)
        return sum(tensor.sums.against for tensor in self.tensors) / total if total else 0.0

    @property
    def cosine(self) -> float | None:
        """The lowest cosine of two deltas' whole differences."""
        if not self.tensors:
            return None
        whole = Conflicts(self.tensors[0].sums.count)
        for tensor in self.tensors:
            whole += tensor.sums
        return whole.cosine

    @property
    def error(self) -> float:
        """Relative Frobenius distance of what is stored from the method's exact result."""
        norm = math.hypot(*(tensor.norm for tensor in self.tensors))
        error = math.hypot(*(tensor.error for tensor in self.tensors))
        return error / norm if norm else 0.0

    @property
    def exact(self) -> bool:
        """Whether what is stored is the method's result but for rounding of float64 sums."""
        return self.error < 1e-12

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        return {
            **{k: v for k, v in dataclasses.asdict(self).items() if k == "method"},
            "shared": self.shared,
            "conflicts": self.conflicts,
            "against": self.against,
            "cosine": self.cosine,
            "error": self.error,
            "exact": self.exact,
            "tensors": [tensor.to_json() for tensor in self.tensors],
        }
