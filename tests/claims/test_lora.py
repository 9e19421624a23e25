"""The claim `lora` runs at smoke scale, and its instruments would notice a fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from graftwork.claims import CLAIMS, report, run_claim
from graftwork.claims import lora as claim


@pytest.fixture(scope="module")
def smoke() -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return run_claim(CLAIMS["lora"], "smoke", seeds=(0,), progress=said.append), said


def test_smoke_passes_the_mechanisms_and_measures_every_method(smoke) -> None:
    result, said = smoke
    entries = {e["name"].split("/")[1]: e for e in report(CLAIMS["lora"], result)}
    exact = {name: e["verdict"] for name, e in entries.items() if e["kind"] == "mechanism"}
    assert set(exact) == {rule.name for rule in claim.MECHANISMS}
    assert set(exact.values()) == {"pass"}, exact
    rows = [r for r in result["rows"] if (r["setting"], r["metric"]) == ("rotated", "accuracy")]
    assert {r["method"] for r in rows} == {"lora", "full", "head only", "random mask", "bitfit"}
    assert any("rank 4" in line for line in said)


def test_the_random_mask_trains_as_many_values_as_lora(smoke) -> None:
    numbers = {r["method"]: r["value"] for r in smoke[0]["rows"] if r["metric"] == "numbers"}
    assert abs(numbers["random mask"] - numbers["rank 4"]) <= 1
    assert numbers["bitfit"] < numbers["rank 4"] < numbers["full"]
    assert numbers["head only"] == 0


def test_rules_read_rows_that_the_judged_scale_measures() -> None:
    ranks = claim.SCALES["quick"].ranks
    assert ranks == (1, 2, 4, 8, 16)
    measured = {"lora", *claim.tuners(claim.Rates(), 0.1), *(f"rank {r}" for r in ranks)}
    for rule in claim.RULES:
        if rule.kind == "difference":
            assert {rule.ours, rule.baseline} <= measured, rule.name
            assert rule.setting in (claim.SETTING, claim.SWEEP)


def test_instruments_notice_faults() -> None:
    assert claim.formula([(48, 144)], 4) == 768
    assert claim.formula([(48, 144)], 64) == 48 * (48 + 144), "a rank is cut to the smaller side"
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    product = noise[:, :2] @ noise[:2]
    assert claim._beyond(product, 2) < 1e-6
    assert claim._beyond(product, 1) > 1e-2
    assert claim.moved_when_disabled(0) == 0.0
    assert claim.moved_when_disabled(0, "111") > 1e-3
    assert claim.moved_when_disabled(0, "011") == float("inf")
