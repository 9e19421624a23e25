"""Molecules of the claim `molformer`: public files, or strings made by rule for the smoke scale."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from graftwork.claims._claim import DataFile
from graftwork.domains.molecules import (
    MoleculeData,
    check_molecules,
    molecule_data,
    split_molecules,
)
from graftwork.tasks import Table, permutation, read

_ORIGIN = (
    "https://github.com/GLambard/Molecules_Dataset_Collection "
    "(originals/{}, commit beb35cd0b76db5adef6cb1fa55807e4cd309aaed)"
)
CORPUS = DataFile(
    "molformer/hiv.csv",
    "54713c3205055055ea4214e8c4b0d22d93af7e54ad2c48f4edc866e161e57262",
    _ORIGIN.format("HIV.csv"),
)
LABELLED = {
    "lipophilicity": (
        DataFile(
            "molformer/lipophilicity.csv",
            "aed41590cb30609d51d8e08ad3ff06495a76e80e211358801f596b10da69bacd",
            _ORIGIN.format("Lipophilicity.csv"),
        ),
        "exp",
    ),
    "qm8 E1": (
        DataFile(
            "molformer/qm8_e1.csv",
            "a82adb45bb1f75f467eb57192e75cb3e2bdc5bb0e215e71e77ef10ca69863e3a",
            "https://github.com/KRICT-DATA/EGCN "
            "(data/qm8_e1.csv, commit 7122542e074938f5c6bd3aea0ef03fc7acf76eec)",
        ),
        "E1-CAM",
    ),
}
"""Set -> file and column of the target."""
MADE = "made by rule"

_PIECES = ("C", "CC", "CO", "CN", "c1ccccc1", "C(=O)", "C(F)", "CS", "C1CCNCC1", "C(Cl)")
_WEIGHTS = (0.2, 0.4, -0.9, -0.7, 1.5, -0.5, 0.3, 0.4, -0.2, 0.7)


@dataclass(frozen=True, slots=True)
class Few:
    """A labelled set with few labels.

    Attributes:
        train: labelled rows to learn from.
        valid: rows that choose the step.
        test: rows that measure.
    """

    train: Table
    valid: Table
    test: Table


@lru_cache(maxsize=4)
def corpus(folder: Path | None, most_tokens: int, made: int = 0) -> tuple[str, ...]:
    """Return different canonical molecules without labels.

    Args:
        folder: of the public files.
        most_tokens: longest molecule, the two ends counted.
        made: molecules made by rule instead; 0 reads the HIV set.
    """
    if made:
        return tuple(dict.fromkeys(_made(made, "corpus")[0]))
    values = read(CORPUS.find(folder))["smiles"]
    found = check_molecules(list(values), max_length=most_tokens, source="hiv.csv")
    return tuple(dict.fromkeys(found.smiles))


@lru_cache(maxsize=4)
def labelled(name: str, folder: Path | None, most: int) -> MoleculeData:
    """Return at most `most` molecules of a set, with the target as column "value"."""
    if name == MADE:
        smiles, values = _made(most, "labelled")
        return molecule_data(smiles, {"value": values}, "regression", source=name)
    file, column = LABELLED[name]
    table = read(file.find(folder)).sample(most, seed=0)
    smiles = [str(text) for text in table["smiles"]]
    return molecule_data(smiles, {"value": list(table[column])}, "regression", source=name)


def few(data: MoleculeData, labels: int, seed: int) -> Few:
    """Return `labels` rows to learn from, a third as many to choose by, up to 1000 to measure.

    The split is random, and another one for each seed.
    """
    split = split_molecules(list(data.table["smiles"]), "random", (0.6, 0.1, 0.3), seed)
    sizes = (labels, max(labels // 3, 10), 1000)
    parts = []
    for rows, size in zip(split, sizes, strict=True):
        order = permutation(len(rows), seed, "few")
        parts.append(data.table.take(np.sort(rows[order[:size]])))
    return Few(*parts)


def _made(count: int, name: str) -> tuple[list[str], list[float]]:
    """Return chains of pieces, and a weighted sum of the pieces with a term of neighbours."""
    drawn = permutation(count * 6, 0, "made", name).reshape(count, 6) % len(_PIECES)
    order: list[list[int]] = drawn.tolist()
    smiles = ["".join(_PIECES[i] for i in row[: 2 + row[0] % 5]) for row in order]
    return smiles, [_value(row[: 2 + row[0] % 5]) for row in order]


def _value(pieces: Sequence[int]) -> float:
    linear = sum(_WEIGHTS[i] for i in pieces)
    pairs = sum(_WEIGHTS[a] * _WEIGHTS[b] for a, b in itertools.pairwise(pieces))
    return float(linear + pairs)
