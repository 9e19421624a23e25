"""Splits of molecules: at random, or by scaffold so that test molecules are of another kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from graftwork.domains.molecules._chemistry import scaffold_of
from graftwork.errors import InputError, UnknownNameError
from graftwork.tasks import permutation

Rows = NDArray[np.int64]
SplitKind = Literal["random", "scaffold"]


class Split(NamedTuple):
    """Rows of each part, ascending."""

    train: Rows
    valid: Rows
    test: Rows


def split_molecules(
    smiles: Sequence[str],
    kind: SplitKind = "scaffold",
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Split:
    """Return the rows of training, validation and test. Say which kind a result was made with.

    Args:
        smiles: canonical molecules.
        kind: "random" draws rows. "scaffold" keeps molecules of one Bemis-Murcko scaffold
            together and gives training the largest groups first, so that the test holds the rare
            ones: the split of MoleculeNet (Wu et al., 2018), harder and nearer to use. It draws
            nothing; of groups of one size the one with the last first row goes first, as in
            DeepChem.
        shares: of the three parts; they add up to 1.
        seed: of the random split.

    Raises:
        InputError: shares that do not add up to 1, or a row that is no molecule.
        UnknownNameError: no such kind.

    Example:
        >>> split = split_molecules(
        ...     ["c1ccccc1", "Cc1ccccc1", "CCO", "C1CCC1"], shares=(0.5, 0.25, 0.25)
        ... )
        >>> [part.tolist() for part in split]
        [[0, 1], [3], [2]]
    """
    if kind not in SPLITS:
        raise UnknownNameError("split", kind, get_args(SplitKind))
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
        raise InputError(f"shares {shares} must not be negative, and add up to 1")
    return SPLITS[kind](smiles, shares, seed)


def _random(smiles: Sequence[str], shares: tuple[float, float, float], seed: int) -> Split:
    order = permutation(len(smiles), seed, "molecules")
    first, second = _ends(len(smiles), shares)
    return Split(*(np.sort(part) for part in np.split(order, [first, second])))


def _scaffold(smiles: Sequence[str], shares: tuple[float, float, float], seed: int) -> Split:
    del seed
    groups: dict[str, list[int]] = {}
    for row, text in enumerate(smiles):
        groups.setdefault(scaffold_of(text), []).append(row)
    first, second = _ends(len(smiles), shares)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    room = (first, second - first)
    for rows in sorted(groups.values(), key=lambda rows: (len(rows), rows[0]), reverse=True):
        place = 2
        if len(parts[0]) + len(rows) <= room[0]:
            place = 0
        elif len(parts[1]) + len(rows) <= room[1]:
            place = 1
        parts[place].extend(rows)
    return Split(*(np.asarray(sorted(part), dtype=np.int64) for part in parts))


def _ends(count: int, shares: tuple[float, float, float]) -> tuple[int, int]:
    return round(count * shares[0]), round(count * (shares[0] + shares[1]))


SPLITS: dict[str, Callable[[Sequence[str], tuple[float, float, float], int], Split]] = {
    "random": _random,
    "scaffold": _scaffold,
}
"""Kind of split -> function."""
