"""Random and scaffold splits."""

from __future__ import annotations

import numpy as np
import pytest

from graftwork.domains.molecules import scaffold_of, split_molecules
from graftwork.errors import InputError, UnknownNameError

RINGS = [f"{'C' * n}c1ccccc1" for n in range(1, 9)] + [f"{'C' * n}C1CCNCC1" for n in range(1, 7)]
CHAINS = [f"{'C' * n}O" for n in range(1, 7)]


@pytest.mark.parametrize("kind", ["random", "scaffold"])
def test_parts_hold_every_row_once(kind: str) -> None:
    smiles = RINGS + CHAINS
    split = split_molecules(smiles, kind, seed=3)
    assert sorted(np.concatenate(split).tolist()) == list(range(len(smiles)))
    assert len(split.train) == pytest.approx(0.8 * len(smiles), abs=3)


def test_no_scaffold_is_in_two_parts() -> None:
    smiles = RINGS + CHAINS
    split = split_molecules(smiles, "scaffold", (0.5, 0.25, 0.25))
    parts = [{scaffold_of(smiles[i]) for i in rows} for rows in split]
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
    assert parts[0] == {"c1ccccc1"}


def test_random_depends_on_the_seed_only() -> None:
    first, again, other = (split_molecules(RINGS, "random", seed=s) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first.train, other.train)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'scaffold'"):
        split_molecules(RINGS, "scafold")


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="add up to 1"):
        split_molecules(RINGS, "random", (0.8, 0.1, 0.2))
    with pytest.raises(InputError, match="'xx' has no scaffold"):
        split_molecules(["xx"])
