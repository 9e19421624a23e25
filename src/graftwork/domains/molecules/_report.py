"""Which rows are molecules, what is wrong with the others, and what was changed, row by row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork.domains.molecules._chemistry import canonical_of, parse, quiet, rdkit
from graftwork.domains.molecules._tokenizer import MAX_LENGTH, atom_tokens

PROBLEMS: dict[str, str] = {
    "missing": "no value",
    "not text": "a value that is no string",
    "empty": "an empty string, or no atoms",
    "unparsable": "not SMILES",
    "valence": "an atom with more bonds than it can have",
    "aromaticity": "aromatic atoms that no Kekule structure fits",
    "other chemistry": "refused by RDKit for another reason",
    "too long": "more tokens than the model reads",
}
"""Why a row is left out."""

NOTES: dict[str, str] = {
    "explicit hydrogens": "hydrogen atoms were folded into their neighbours",
    "aromatic bonds": "bonds spelt ':' were respelled",
    "stereo removed": "marks of stereochemistry were dropped",
    "isotopes removed": "isotope labels were dropped",
    "fragments": "a salt or mixture: several molecules in one row, kept as they are",
    "dummy atoms": "atoms spelt '*' stand for anything",
    "unknown tokens": "tokens that the vocabulary lacks are read as <unk>",
    "duplicate": "the same canonical string as an earlier row",
}
"""What is said of a row that is kept."""


@dataclass(frozen=True, slots=True)
class Molecule:
    """One row.

    Attributes:
        smiles: canonical; None where the row is left out.
        problem: "" or a key of `PROBLEMS`.
        reason: what exactly is wrong.
        notes: keys of `NOTES`.
    """

    smiles: str | None
    problem: str = ""
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class MoleculeReport:
    """All rows, in the order given: nothing is dropped in silence.

    Attributes:
        rows: one entry a row.
        source: what the rows are called.
    """

    rows: tuple[Molecule, ...]
    source: str = "the molecules"

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.rows)

    @property
    def valid(self) -> NDArray[np.bool_]:
        """`(rows,)` True where the row is a molecule."""
        return np.asarray([row.smiles is not None for row in self.rows], dtype=np.bool_)

    @property
    def smiles(self) -> list[str]:
        """Canonical strings of the valid rows."""
        return [row.smiles for row in self.rows if row.smiles is not None]

    @property
    def problems(self) -> dict[str, int]:
        """Rows left out by problem."""
        return dict(Counter(row.problem for row in self.rows if row.problem))

    @property
    def notes(self) -> dict[str, int]:
        """Rows kept by note."""
        return dict(Counter(note for row in self.rows for note in row.notes))

    def lines(self) -> Iterator[str]:
        """Yield one line a row that is left out, counted from 1.

        Example:
            >>> list(check_molecules(["CCO", "C1CC"]).lines())
            ['the molecules, row 2: unparsable (RDKit finds no SMILES in it)']
        """
        for number, row in enumerate(self.rows, 1):
            if row.problem:
                yield f"{self.source}, row {number}: {row.problem} ({row.reason})"

    def __str__(self) -> str:
        left_out = ", ".join(f"{count} {name}" for name, count in sorted(self.problems.items()))
        noted = ", ".join(f"{count} {name}" for name, count in sorted(self.notes.items()))
        return (
            f"{self.source}: {int(self.valid.sum())} of {len(self)} rows are molecules; "
            f"left out: {left_out or 'none'}; notes: {noted or 'none'}"
        )


def check_molecules(
    smiles: Sequence[Any],
    *,
    stereo: bool = False,
    max_length: int | None = MAX_LENGTH,
    vocabulary: Collection[str] | None = None,
    source: str = "the molecules",
) -> MoleculeReport:
    """Canonicalise each row by RDKit and say what is wrong with it; no row raises.

    Args:
        smiles: values of a column; blanks at the ends do not count.
        stereo: keep stereochemistry and isotopes. The published model was trained and fine-tuned
            without.
        max_length: longest molecule in tokens, the two ends counted; None for any.
        vocabulary: tokens that the model knows, to note those it does not.
        source: what the rows are called.

    Raises:
        MissingDependencyError: RDKit is absent.

    Example:
        >>> report = check_molecules(["OCC", None, "c1cccc1", "[H]C([H])([H])[H]", "CCO"])
        >>> report.smiles
        ['CCO', 'C', 'CCO']
        >>> [row.problem for row in report.rows]
        ['', 'missing', 'aromaticity', '', '']
        >>> report.rows[3].notes, report.rows[4].notes
        (('explicit hydrogens',), ('duplicate',))
    """
    rdkit("checking molecules")
    rows: list[Molecule] = []
    seen: set[str] = set()
    known = None if vocabulary is None else frozenset(vocabulary)
    with quiet():
        for value in smiles:
            row = _one(value, stereo, max_length, known)
            if row.smiles is not None and row.smiles in seen:
                row = Molecule(row.smiles, notes=(*row.notes, "duplicate"))
            seen.add(row.smiles or "")
            rows.append(row)
    return MoleculeReport(tuple(rows), source)


def _one(
    value: Any, stereo: bool, max_length: int | None, known: frozenset[str] | None
) -> Molecule:
    if value is None or (isinstance(value, float) and value != value):
        return Molecule(None, "missing", "no value")
    if not isinstance(value, str):
        return Molecule(None, "not text", f"a {type(value).__name__}")
    text = value.strip()
    if not text:
        return Molecule(None, "empty", "no characters")
    parsed = parse(text)
    if parsed.mol is None:
        return Molecule(None, parsed.problem, parsed.reason)
    canonical = canonical_of(parsed.mol, stereo=stereo)
    tokens = atom_tokens(canonical)
    if max_length is not None and len(tokens) + 2 > max_length:
        return Molecule(None, "too long", f"{len(tokens) + 2} tokens, at most {max_length}")
    present = {
        "explicit hydrogens": parsed.hydrogens > 0,
        "aromatic bonds": ":" in atom_tokens(text),
        "stereo removed": not stereo and any(mark in text for mark in "@/\\"),
        "isotopes removed": not stereo and any(a.GetIsotope() for a in parsed.mol.GetAtoms()),
        "fragments": "." in canonical,
        "dummy atoms": "*" in canonical,
        "unknown tokens": known is not None and not known.issuperset(tokens),
    }
    return Molecule(canonical, notes=tuple(note for note, holds in present.items() if holds))
