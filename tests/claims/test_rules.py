"""Rules judge rows; expected numbers are worked out by hand."""

import dataclasses
import json
import math

import pytest
from scipy import stats

from graftwork.claims import (
    AtMost,
    Beats,
    Claim,
    ClosesGap,
    DataFile,
    Equals,
    Row,
    find_claim,
    report,
    rule_hash,
    run_claim,
    save_result,
)
from graftwork.errors import InputError, UnknownNameError


def accuracy(method: str, values: dict[int, float], setting: str = "0.5 %") -> list[Row]:
    return [Row(setting, method, "accuracy", seed, value) for seed, value in values.items()]


BEATS = Beats("wins", "Ours wins.", "0.5 %", "ours", "theirs", at_least=2.0)
GAP = ClosesGap("gap", "Ours closes half.", "0.5 %", "ours", "low", "high", at_least=0.5)
EXACT = Equals("count", "The count is exact.", "kept", 296)


def test_beats_pairs_seeds_and_gives_student_interval() -> None:
    rows = accuracy("ours", {10: 84.0, 11: 82.0, 12: 83.0}) + accuracy(
        "theirs", {10: 80.0, 11: 81.0, 12: 79.0}
    )
    verdict = BEATS.judge(rows)
    gaps = [4.0, 1.0, 4.0]
    half = stats.sem(gaps) * stats.t.ppf(0.975, 2)
    assert verdict.verdict == "pass"
    assert verdict.measured == pytest.approx(3.0)
    assert verdict.interval == pytest.approx((3.0 - half, 3.0 + half))


def test_beats_fails_below_the_bound_and_is_not_run_on_unpaired_seeds() -> None:
    rows = accuracy("ours", {10: 81.0}) + accuracy("theirs", {10: 80.0})
    assert BEATS.judge(rows).verdict == "fail"
    assert BEATS.judge(rows + accuracy("ours", {11: 99.0})).verdict == "not run"
    assert BEATS.judge([]).verdict == "not run"


def test_other_settings_and_metrics_are_not_read() -> None:
    rows = accuracy("ours", {10: 99.0}, setting="1 %") + accuracy("theirs", {10: 10.0})
    assert BEATS.judge(rows).verdict == "not run"


def test_closes_gap() -> None:
    rows = (
        accuracy("ours", {10: 80.0}) + accuracy("low", {10: 60.0}) + accuracy("high", {10: 100.0})
    )
    verdict = GAP.judge(rows)
    assert (verdict.verdict, verdict.measured) == ("pass", 0.5)


def test_equals_reports_the_worst_row() -> None:
    rows = [Row("0.5 %", "a", "kept", 10, 296), Row("0.5 %", "b", "kept", 10, 295)]
    verdict = EXACT.judge(rows)
    assert verdict.verdict == "fail"
    assert "b" in verdict.text
    assert verdict.measured == 1


def test_at_most_reports_the_largest_row() -> None:
    bound = AtMost("small", "It is small.", "bytes", 1.1)
    rows = [Row("five", "a", "bytes", seed, value) for seed, value in ((10, 1.05), (11, 1.1))]
    assert (bound.judge(rows).verdict, bound.judge(rows).measured) == ("pass", 1.1)
    assert bound.judge([*rows, Row("five", "a", "bytes", 12, 1.2)]).verdict == "fail"
    assert bound.judge([]).verdict == "not run"


def test_two_rows_for_one_seed_are_an_error() -> None:
    rows = accuracy("ours", {10: 1.0}) * 2 + accuracy("theirs", {10: 1.0})
    with pytest.raises(InputError, match="two rows for 'ours'"):
        BEATS.judge(rows)


def claim_of(value: float) -> Claim:
    def run(scale, seed, data, progress):  # type: ignore[no-untyped-def]
        progress(f"seed {seed}")
        return [Row("0.5 %", "ours", "kept", seed, value)]

    return Claim(name="toy", system="toy", sentence="A toy.", rules=(EXACT, BEATS), run=run)


def test_result_round_trip_and_report(tmp_path) -> None:  # type: ignore[no-untyped-def]
    claim = claim_of(296)
    said: list[str] = []
    result = run_claim(claim, "smoke", seeds=(10, 11), progress=said.append)
    path = save_result(result, tmp_path)
    entries = report(claim, json.loads(path.read_text()))
    assert said == ["seed 10", "seed 11"]
    assert [e["verdict"] for e in entries] == ["pass", "not run"]
    wanted = {"name", "system", "sentence", "kind", "scale", "seeds", "rows", "verdict"}
    wanted |= {"rule_hash", "commit", "versions"}
    assert all(wanted <= set(e) for e in entries)
    json.dumps(entries, allow_nan=False)


def test_a_changed_rule_voids_a_result() -> None:
    claim = claim_of(296)
    result = run_claim(claim, "smoke", seeds=(10,))
    softened = dataclasses.replace(claim, rules=(dataclasses.replace(EXACT, tolerance=5.0), BEATS))
    assert rule_hash(claim.rules) != rule_hash(softened.rules)
    assert [e["verdict"] for e in report(softened, result)] == ["not run", "not run"]


def test_a_number_that_is_none_is_an_error() -> None:
    with pytest.raises(InputError, match="not a number"):
        run_claim(claim_of(math.nan), "smoke", seeds=(10,))


def test_unknown_claim_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'diff-pruning'"):
        find_claim("diffpruning", {"diff-pruning": claim_of(1)})


def test_data_file_is_verified(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import hashlib

    wanted = DataFile("set.bin", hashlib.sha256(b"right").hexdigest(), "the authors' page")
    with pytest.raises(InputError, match="get it from the authors' page"):
        wanted.find(tmp_path)
    (tmp_path / "set.bin").write_bytes(b"wrong")
    with pytest.raises(InputError, match="SHA-256"):
        wanted.find(tmp_path)
    (tmp_path / "set.bin").write_bytes(b"right")
    assert wanted.find(tmp_path) == tmp_path / "set.bin"
