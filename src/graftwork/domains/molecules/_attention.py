"""What a base attends to: weights between atoms, against how many bonds lie between them.

Shape legend: A atoms of a molecule, K blocks, H heads, L positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from graftwork.domains.molecules._chemistry import bond_distances
from graftwork.domains.molecules._tokenizer import atom_tokens
from graftwork.errors import InputError, UnsupportedError
from graftwork.tasks import TaskBase

_MARKS = frozenset("().=#-+\\/:~@?>$0123456789")


@runtime_checkable
class Attentive(Protocol):
    """A module that can say what it attends to."""

    def attentions(self, input_ids: Any, attention_mask: Any = None) -> Any:
        """Yield `(B, H, L, L)` weights of each block."""


@dataclass(frozen=True, slots=True, eq=False)
class AttentionMap:
    """Attention within one molecule.

    Attributes:
        smiles: the molecule.
        tokens: positions of the input, the two ends included.
        atoms: `(A,)` position of each atom, in the order of the string.
        weights: `(K, H, L, L)`; rows sum to 1 over the keys. For linear attention they are the
            normalised products of features, `graftwork.nn.attention_weights`.
        distances: `(A, A)` bonds between atoms; -1 between fragments.
    """

    smiles: str
    tokens: tuple[str, ...]
    atoms: NDArray[np.int64]
    weights: NDArray[np.float32]
    distances: NDArray[np.int64]

    def between_atoms(self) -> NDArray[np.float32]:
        """Return `(K, H, A, A)` weights between atoms, scaled so that rows sum to 1 again."""
        chosen = self.weights[..., self.atoms[:, None], self.atoms[None, :]]
        total = chosen.sum(-1, keepdims=True)
        return np.asarray(chosen / np.where(total > 0, total, 1), dtype=np.float32)


def attention_map(base: TaskBase, smiles: str) -> AttentionMap:
    """Return what each head of `base` attends to in one molecule (canonical SMILES).

    Raises:
        UnsupportedError: the base's module does not give its attention.
        InputError: the string is no molecule, or longer than the base reads.
    """
    module = base.model
    if not isinstance(module, Attentive):
        raise UnsupportedError(
            f"{type(module).__name__} has no method `attentions`; a base of molformer has"
        )
    distances = bond_distances(smiles)
    tokens = atom_tokens(smiles)
    if base.max_length is not None and len(tokens) + 2 > base.max_length:
        raise InputError(f"{smiles!r} has {len(tokens) + 2} tokens, at most {base.max_length}")
    atoms = np.asarray([i + 1 for i, t in enumerate(tokens) if not _is_mark(t)], dtype=np.int64)
    inputs = base.tokenizer([smiles], return_tensors="pt").to(next(module.parameters()).device)
    if inputs["input_ids"].shape[1] != len(tokens) + 2 or len(atoms) != len(distances):
        raise InputError(f"{smiles!r}: the base's tokenizer does not give one token an atom")
    with torch.no_grad():
        weights = torch.cat(list(module.attentions(**inputs))).float().cpu().numpy()
    names = tuple(base.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0].tolist()))
    return AttentionMap(smiles, names, atoms, weights, distances)


def attention_by_distance(maps: Sequence[AttentionMap], farthest: int = 8) -> NDArray[np.float64]:
    """Return `(K, H, farthest + 1)` mean weight between atoms 0, 1, ... bonds apart.

    Each weight is multiplied by the molecule's atoms, so 1 is what even attention gives, and
    molecules of different sizes can be averaged. NaN where no pair lies that far apart.

    Args:
        maps: of several molecules.
        farthest: bonds.
    """
    if not maps:
        raise InputError("give at least one attention map")
    blocks, heads = maps[0].weights.shape[:2]
    total = np.zeros((blocks, heads, farthest + 1))
    count = np.zeros(farthest + 1)
    for one in maps:
        relative = one.between_atoms() * len(one.atoms)
        for bonds in range(farthest + 1):
            pairs = one.distances == bonds
            total[..., bonds] += relative[..., pairs].sum(-1)
            count[bonds] += pairs.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(total / count)


def distance_correlation(maps: Sequence[AttentionMap]) -> NDArray[np.float64]:
    """Return `(K, H)` Spearman correlation of weight and nearness (minus bonds), over atom pairs.

    Pairs of an atom with itself and pairs in different fragments are left out; ranks are taken
    within each molecule and the molecules averaged. Above 0: near atoms get more.
    """
    from scipy.stats import spearmanr

    found = []
    for one in maps:
        pairs = one.distances > 0
        near = -one.distances[pairs]
        if len(np.unique(near)) < 2:
            continue
        weights = one.between_atoms()[..., pairs]
        flat = weights.reshape(-1, weights.shape[-1])
        rows = [spearmanr(row, near).statistic if np.ptp(row) > 0 else 0.0 for row in flat]
        found.append(np.asarray(rows).reshape(weights.shape[:2]))
    if not found:
        raise InputError("no molecule has atoms at different distances")
    return np.asarray(np.mean(found, axis=0))


def _is_mark(token: str) -> bool:
    return token in _MARKS or token.startswith("%")
