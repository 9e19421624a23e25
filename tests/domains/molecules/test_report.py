"""Every class of bad or altered molecule is reported; no row is dropped in silence or raises."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graftwork.domains.molecules import (
    MOLECULE_SETS,
    NOTES,
    PROBLEMS,
    check_molecules,
    molecule_data,
    read_molecule_set,
)
from graftwork.domains.molecules import _chemistry as chemistry
from graftwork.errors import InputError, MissingDependencyError, UnknownNameError

BAD = {
    "missing": (None, float("nan")),
    "not text": (3, b"CC"),
    "empty": ("", "   "),
    "unparsable": ("C1CC", "xyz", "CC(", "CC name"),
    "valence": ("C(C)(C)(C)(C)C", "C[NH4]"),
    "aromaticity": ("c1cccc1",),
    # hydrogen at the end of a vague bond: RDKit parses it, finds no problem, and gives nothing
    "other chemistry": ("BCl~[H]", "*Br:[H]"),
    "too long": ("C" * 201,),
}
NOTED = {
    "explicit hydrogens": ("[H]C([H])([H])[H]", "C"),
    "aromatic bonds": ("C1:C:C:C:C:C1", "c1ccccc1"),
    "stereo removed": ("N[C@@H](C)C(=O)O", "CC(N)C(=O)O"),
    "isotopes removed": ("[2H]C([2H])[13CH3]", "CC"),
    "fragments": ("CC(=O)[O-].[Na+]", "CC(=O)[O-].[Na+]"),
    "dummy atoms": ("*CC", "*CC"),
}


@pytest.mark.parametrize(("problem", "value"), [(p, v) for p, vs in BAD.items() for v in vs])
def test_every_problem_is_named(problem: str, value: object) -> None:
    report = check_molecules(["C", value])
    assert report.rows[1].problem == problem
    assert report.rows[1].reason
    assert report.valid.tolist() == [True, False]
    assert report.problems == {problem: 1}
    (line,) = report.lines()
    assert line.startswith(f"the molecules, row 2: {problem} (")


def test_every_problem_and_note_has_a_test() -> None:
    assert set(BAD) == set(PROBLEMS)
    assert set(NOTED) | {"unknown tokens", "duplicate"} == set(NOTES)


def test_an_error_inside_rdkit_is_other_chemistry(monkeypatch: pytest.MonkeyPatch) -> None:
    """RDKit's own failed checks come as RuntimeError, with pages of text."""
    plain = chemistry.rdkit("the test")

    def fails(smiles: str, sanitize: bool = True) -> object:
        if sanitize and smiles == "CCO":
            raise RuntimeError("Pre-condition Violation\n\tbad atom\n\tRDKIT: 2026.1")
        return plain.MolFromSmiles(smiles, sanitize=sanitize)

    failing = SimpleNamespace(MolFromSmiles=fails, MolToSmiles=plain.MolToSmiles)
    monkeypatch.setattr(chemistry, "rdkit", lambda _: failing)
    rows = check_molecules(["CCO", "CC"]).rows
    assert (rows[0].problem, rows[0].reason) == ("other chemistry", "Pre-condition Violation")
    assert rows[1].smiles == "CC", "the next row goes on"


def test_a_problem_of_an_unknown_kind_is_other_chemistry(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = chemistry.rdkit("the test")
    found = SimpleNamespace(GetType=lambda: "AtomSulksException", Message=lambda: "atom 3 sulks")
    failing = SimpleNamespace(
        MolFromSmiles=lambda text, sanitize=True: (
            None if sanitize else plain.MolFromSmiles(text, sanitize=False)
        ),
        DetectChemistryProblems=lambda mol: (found,),
    )
    monkeypatch.setattr(chemistry, "rdkit", lambda _: failing)
    (line,) = check_molecules(["CCO"]).lines()
    assert line == "the molecules, row 1: other chemistry (atom 3 sulks)"


@pytest.mark.parametrize(("note", "pair"), NOTED.items())
def test_every_note_is_made(note: str, pair: tuple[str, str]) -> None:
    (row,) = check_molecules([pair[0]]).rows
    assert row.smiles == pair[1]
    assert note in row.notes
    assert check_molecules([pair[1]]).rows[0].smiles == pair[1], "canonical strings stay"


def test_unknown_tokens_and_duplicates_are_noted() -> None:
    report = check_molecules(["CCO", "OCC", "CN"], vocabulary=["C", "O"])
    assert [row.notes for row in report.rows] == [(), ("duplicate",), ("unknown tokens",)]
    assert "1 duplicate, 1 unknown tokens" in str(report)


def test_stereo_can_be_kept() -> None:
    smiles = "N[C@@H](C)C(=O)O"
    (row,) = check_molecules([smiles], stereo=True).rows
    assert "@" in row.smiles
    assert row.notes == ()


def test_length_counts_both_ends() -> None:
    assert check_molecules(["C" * 8], max_length=10).valid.all()
    assert check_molecules(["C" * 9], max_length=10).problems == {"too long": 1}
    assert check_molecules(["C" * 500], max_length=None).valid.all()


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="CNOcn[]()=#123%+-H@/\\. *:Fe{é", max_size=12))
def test_no_string_raises_and_canonical_strings_stay(text: str) -> None:
    (row,) = check_molecules([text]).rows
    assert (row.smiles is None) == bool(row.problem)
    if row.smiles is not None and "fragments" not in row.notes:
        again = check_molecules([row.smiles]).rows[0]
        assert again.smiles == row.smiles or "[H]" in row.smiles or "*" in row.smiles


def test_bbbp_reports_its_unparsable_rows(data: Path) -> None:
    found = read_molecule_set("bbbp", data)
    assert len(found.report) == 2050
    assert found.report.problems == {"valence": 11, "too long": 2} or (
        found.report.problems["valence"] == 11
    )
    assert [i + 1 for i, row in enumerate(found.report.rows) if row.problem == "valence"][:3] == [
        60,
        62,
        392,
    ]
    assert len(found.table) == int(found.report.valid.sum())
    assert set(np.unique(found.table["penetrates"])) == {0.0, 1.0}


@pytest.mark.parametrize("name", ["esol", "freesolv", "lipophilicity"])
def test_small_sets_are_read(data: Path, name: str) -> None:
    found = read_molecule_set(name, data)
    rows = {"esol": 1128, "freesolv": 642, "lipophilicity": 4200}
    assert len(found.report) == rows[name]
    assert len(found.table) > 0.99 * rows[name]
    assert np.isfinite(found.table[found.targets[0]]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qm8", "qm9", "hiv"])
def test_large_sets_are_read(data: Path, name: str) -> None:
    found = read_molecule_set(name, data)
    rows = {"qm8": 21786, "qm9": 14862, "hiv": 41127}
    assert len(found.report) == rows[name]
    assert len(found.table) > 0.98 * rows[name]
    assert found.targets == tuple(MOLECULE_SETS[name].targets.values())
    if name == "qm8":
        assert found.report.notes["explicit hydrogens"] > 21000


def test_missing_labels_are_kept_as_nan() -> None:
    found = molecule_data(["C", "CC", "c1"], {"a": ["1", "", "2"], "b": [None, 0, 1]}, "binary")
    assert len(found.table) == 2
    np.testing.assert_array_equal(found.table["a"], [1.0, np.nan])
    np.testing.assert_array_equal(found.table["b"], [np.nan, 0.0])


def test_readers_name_what_is_wrong(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'esol'"):
        read_molecule_set("essol", data)
    with pytest.raises(InputError, match=r"no file .*esol\.csv"):
        read_molecule_set("esol", tmp_path)
    with pytest.raises(InputError, match="row 2: 'y' is 'high', no number"):
        molecule_data(["C", "CC"], {"y": ["1", "high"]}, "regression")
    with pytest.raises(InputError, match="nothing to learn from"):
        molecule_data(["xx"], {"y": [1]}, "regression")
    (tmp_path / "bbbp.csv").write_text("smiles,other\nC,1\n")
    with pytest.raises(InputError, match=r"lacks the column\(s\) \['p_np'\]"):
        read_molecule_set("bbbp", tmp_path)


def test_without_rdkit_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(MissingDependencyError, match=r"graftwork\[molecules\]"):
        check_molecules(["C"])
