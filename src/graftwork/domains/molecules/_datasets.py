"""The public sets of MoleculeNet as tables: which file, which column, which targets.

Files are the originals as they are handed around (see docs/molformer.md for where to get them).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from graftwork.domains.molecules._report import MoleculeReport, check_molecules
from graftwork.domains.molecules._tokenizer import MAX_LENGTH
from graftwork.errors import InputError, UnknownNameError
from graftwork.tasks import Table, read


@dataclass(frozen=True, slots=True, kw_only=True)
class MoleculeSet:
    """One public set.

    Attributes:
        files: in a folder; the rows of all are the same molecules in the same order.
        smiles: column of the molecules.
        targets: column -> name that tasks use.
        kind: "regression" or "binary".
        unit: of the targets.
        about: what it is.
    """

    files: tuple[str, ...]
    smiles: str
    targets: dict[str, str]
    kind: Literal["regression", "binary"]
    unit: str
    about: str


_SOLUBILITY = "measured log solubility in mols per litre"
MOLECULE_SETS: dict[str, MoleculeSet] = {
    "esol": MoleculeSet(
        files=("esol.csv",),
        smiles="smiles",
        targets={_SOLUBILITY: "solubility"},
        kind="regression",
        unit="log10(mol/l)",
        about="solubility in water, 1,128 molecules (Delaney, 2004)",
    ),
    "lipophilicity": MoleculeSet(
        files=("lipophilicity.csv",),
        smiles="smiles",
        targets={"exp": "logD"},
        kind="regression",
        unit="log10",
        about="octanol/water distribution at pH 7.4, 4,200 molecules (ChEMBL)",
    ),
    "freesolv": MoleculeSet(
        files=("freesolv.csv",),
        smiles="smiles",
        targets={"expt": "hydration"},
        kind="regression",
        unit="kcal/mol",
        about="free energy of hydration, 642 molecules (Mobley and Guthrie, 2014)",
    ),
    "bbbp": MoleculeSet(
        files=("bbbp.csv",),
        smiles="smiles",
        targets={"p_np": "penetrates"},
        kind="binary",
        unit="",
        about="blood-brain barrier, 2,050 molecules (Martins et al., 2012)",
    ),
    "hiv": MoleculeSet(
        files=("hiv.csv",),
        smiles="smiles",
        targets={"HIV_active": "active"},
        kind="binary",
        unit="",
        about="inhibits HIV replication, 41,127 molecules (AIDS antiviral screen)",
    ),
    "qm8": MoleculeSet(
        files=("qm8_e1.csv", "qm8_f1.csv"),
        smiles="smiles",
        targets={"E1-CAM": "E1-CAM", "f1-CAM": "f1-CAM"},
        kind="regression",
        unit="Hartree (E1), none (f1)",
        about="first excitation: energy and strength, 21,786 molecules (Ramakrishnan et al., 2015)",
    ),
    "qm9": MoleculeSet(
        files=("qm9_small.csv",),
        smiles="smiles",
        targets={
            name: name
            for name in (
                *("mu", "alpha", "homo", "lumo", "gap", "r2"),
                *("zpve", "u0", "u298", "h298", "g298", "cv"),
            )
        },
        kind="regression",
        unit="Debye (mu), Bohr^3 (alpha), Bohr^2 (r2), cal/(mol K) (cv), Hartree (others)",
        about="12 properties, a sample of 14,862 molecules (Ramakrishnan et al., 2014)",
    ),
}
"""Name -> set."""


@dataclass(frozen=True, slots=True, eq=False)
class MoleculeData:
    """A set that was read.

    Attributes:
        table: valid molecules: column "smiles" (canonical) and one a target, NaN where missing.
        targets: names of the target columns.
        kind: "regression" or "binary".
        report: on every row of the file, also those left out.
    """

    table: Table
    targets: tuple[str, ...]
    kind: Literal["regression", "binary"]
    report: MoleculeReport


def read_molecule_set(
    name: str, folder: str | Path, *, max_length: int | None = MAX_LENGTH
) -> MoleculeData:
    """Read a public set by name.

    Args:
        name: key of `MOLECULE_SETS`.
        folder: where its files lie.
        max_length: longest molecule in tokens.

    Raises:
        UnknownNameError: no such set.
        InputError: a file is missing, has another header, or a target is no number.

    Example:
        >>> data = read_molecule_set("bbbp", "../shared/data/molformer")  # doctest: +SKIP
        >>> print(data.report)  # doctest: +SKIP
    """
    if name not in MOLECULE_SETS:
        raise UnknownNameError("molecule set", name, MOLECULE_SETS)
    chosen = MOLECULE_SETS[name]
    tables = [_read(Path(folder) / file) for file in chosen.files]
    smiles = [str(text).strip() for text in tables[0][chosen.smiles]]
    columns: dict[str, Any] = {}
    for table in tables:
        if [str(text).strip() for text in table[chosen.smiles]] != smiles:
            raise InputError(f"{table.source}: other molecules than {tables[0].source}")
        columns |= {column: table[column] for column in chosen.targets if column in table}
    absent = [column for column in chosen.targets if column not in columns]
    if absent:
        raise InputError(f"{tables[0].source}: the set {name!r} lacks the column(s) {absent}")
    renamed = {chosen.targets[column]: values for column, values in columns.items()}
    return molecule_data(smiles, renamed, chosen.kind, source=name, max_length=max_length)


def molecule_data(
    smiles: Sequence[Any],
    targets: dict[str, Sequence[Any]],
    kind: Literal["regression", "binary"],
    *,
    source: str = "the molecules",
    max_length: int | None = MAX_LENGTH,
) -> MoleculeData:
    """Check molecules and keep the valid rows with their targets.

    Args:
        smiles: one value a row.
        targets: name -> values; None, "" and NaN are missing labels.
        kind: "regression" or "binary" (values 0 and 1).
        source: what errors and the report call the data.
        max_length: longest molecule in tokens.

    Raises:
        InputError: a target is no number, or nothing is left.

    Example:
        >>> data = molecule_data(["OCC", "C1CC", "C"], {"y": [1, 0, ""]}, "binary")
        >>> data.table["smiles"], data.table["y"], data.report.problems
        (['CCO', 'C'], [1.0, nan], {'unparsable': 1})
    """
    report = check_molecules(smiles, max_length=max_length, source=source)
    kept = [row for row, molecule in enumerate(report.rows) if molecule.smiles is not None]
    if not kept:
        raise InputError(f"{report}: nothing to learn from")
    columns: dict[str, Any] = {"smiles": report.smiles}
    for name, values in targets.items():
        columns[name] = [_number(values[row], name, source, row) for row in kept]
    return MoleculeData(Table(columns, source), tuple(targets), kind, report)


def _read(path: Path) -> Table:
    if not path.is_file():
        raise InputError(f"no file {path}; docs/molformer.md says where to get it")
    return read(path)


def _number(value: Any, name: str, source: str, row: int) -> float:
    if value is None or (isinstance(value, str) and not value.strip()):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError) as cause:
        raise InputError(f"{source}, row {row + 1}: {name!r} is {value!r}, no number") from cause
