"""RDKit, imported where it is used: parsing, canonical strings, scaffolds, distances."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork.errors import InputError, MissingDependencyError


def rdkit(purpose: str) -> Any:
    """Return the module `rdkit.Chem`.

    Raises:
        MissingDependencyError: RDKit is absent; says what wanted it.
    """
    try:
        from rdkit import Chem
    except ImportError as cause:
        raise MissingDependencyError("rdkit", "molecules", purpose) from cause
    return Chem


@contextmanager
def quiet() -> Iterator[None]:
    """Keep RDKit from writing to the terminal: what it says is in the report."""
    from rdkit import rdBase

    with rdBase.BlockLogs():
        yield


@dataclass(frozen=True, slots=True)
class Parsed:
    """A string as RDKit reads it.

    Attributes:
        mol: sanitised molecule without explicit hydrogens where possible; None if `problem`.
        problem: "" or a key of `PROBLEMS`.
        reason: what RDKit says of it.
        hydrogens: hydrogen atoms that the string spells and that were folded into their neighbours.
    """

    mol: Any
    problem: str = ""
    reason: str = ""
    hydrogens: int = 0


_CHEMISTRY = {
    "AtomValenceException": "valence",
    "KekulizeException": "aromaticity",
    "AtomKekulizeException": "aromaticity",
}


def parse(smiles: str) -> Parsed:
    """Return the molecule of a string, or what is wrong with it. Call it within `quiet`."""
    chem = rdkit("reading SMILES")
    if any(c.isspace() for c in smiles):
        return Parsed(None, "unparsable", "it holds a space; give the SMILES alone")
    raw = chem.MolFromSmiles(smiles, sanitize=False)
    if raw is None:
        return Parsed(None, "unparsable", "RDKit finds no SMILES in it")
    if not raw.GetNumAtoms():
        return Parsed(None, "empty", "it has no atoms")
    spelled = raw.GetNumAtoms()
    try:
        mol = chem.MolFromSmiles(smiles)
    except RuntimeError as cause:
        return Parsed(None, "other chemistry", str(cause).strip().partition("\n")[0])
    if mol is None:
        found = chem.DetectChemistryProblems(raw)
        kind = _CHEMISTRY.get(found[0].GetType(), "other chemistry") if found else "other chemistry"
        return Parsed(None, kind, found[0].Message() if found else "RDKit cannot sanitise it")
    return Parsed(mol, hydrogens=spelled - mol.GetNumAtoms())


def without_isotopes(mol: Any) -> Any:
    """Return `mol` without isotope labels, and deuterium folded in like any hydrogen."""
    chem = rdkit("removing isotopes")
    labelled = [atom for atom in mol.GetAtoms() if atom.GetIsotope()]
    if not labelled:
        return mol
    mol = chem.Mol(mol)
    for atom in mol.GetAtoms():
        atom.SetIsotope(0)
    return chem.RemoveHs(mol)


def canonical_of(mol: Any, *, stereo: bool) -> str:
    """Return RDKit's canonical SMILES."""
    chem = rdkit("writing SMILES")
    return str(chem.MolToSmiles(mol if stereo else without_isotopes(mol), isomericSmiles=stereo))


def scaffold_of(smiles: str) -> str:
    """Return the Bemis-Murcko scaffold as canonical SMILES; "" for a molecule without rings.

    Raises:
        InputError: the string is not a molecule.

    Example:
        >>> scaffold_of("CCc1ccccc1")
        'c1ccccc1'
    """
    rdkit("scaffolds")
    from rdkit.Chem.Scaffolds import MurckoScaffold

    murcko: Any = MurckoScaffold
    with quiet():
        found = parse(smiles)
        if found.mol is None:
            raise InputError(f"{smiles!r} has no scaffold: {found.reason}")
        return str(murcko.MurckoScaffoldSmiles(mol=found.mol, includeChirality=False))


def bond_distances(smiles: str) -> NDArray[np.int64]:
    """Return `(A, A)` bonds between atoms, in the order of the string; -1 between fragments.

    Raises:
        InputError: the string is not a molecule.

    Example:
        >>> bond_distances("CCO").tolist()
        [[0, 1, 2], [1, 0, 1], [2, 1, 0]]
    """
    chem = rdkit("bond distances")
    with quiet():
        mol = chem.MolFromSmiles(smiles, sanitize=False)
        if mol is None:
            raise InputError(f"{smiles!r} is not a SMILES")
        found = np.asarray(chem.GetDistanceMatrix(mol))
    return np.where(found > mol.GetNumAtoms(), -1, found).astype(np.int64)
