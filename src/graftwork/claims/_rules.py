"""Rules of a claim: declared as data before any judged number is seen, hashed with the result.

A *mechanism* rule is exact (the maths does what the paper says) and must pass. A *difference* rule
compares means over the judged seeds and is reported whatever it is.
"""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from graftwork.errors import InputError


@dataclass(frozen=True, slots=True)
class Row:
    """One measured number.

    Attributes:
        setting: what is varied, e.g. "0.5 %".
        method: who is measured, e.g. "structured".
        metric: what is measured, e.g. "accuracy" (percent) or "kept".
        seed: the seed of the run.
        value: the number.
    """

    setting: str
    method: str
    metric: str
    seed: int
    value: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a rule says of rows.

    Attributes:
        verdict: "pass", "fail" or "not run" (rows it needs are missing).
        measured: the number that was compared; NaN when not run.
        interval: 95 % interval of `measured` over seeds (Student's t), NaNs with one seed.
        text: one line for people.
    """

    verdict: Literal["pass", "fail", "not run"]
    measured: float
    interval: tuple[float, float]
    text: str


@dataclass(frozen=True, slots=True)
class Equals:
    """Mechanism: `metric` of every method and seed equals `value` within `tolerance`."""

    name: str
    sentence: str
    metric: str
    value: float
    tolerance: float = 0.0
    kind: Literal["mechanism"] = "mechanism"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows this rule reads."""
        return [r for r in rows if r.metric == self.metric]

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """Return the verdict over `rows`."""
        used = self.rows(rows)
        if not used:
            return _not_run(f"no row measures {self.metric!r}")
        worst = max(used, key=lambda r: abs(r.value - self.value))
        off = abs(worst.value - self.value)
        who = f"{worst.method}, seed {worst.seed}"
        text = f"worst |{self.metric} - {self.value:g}| = {off:.3g} ({who})"
        return Verdict("pass" if off <= self.tolerance else "fail", off, (off, off), text)


@dataclass(frozen=True, slots=True)
class AtMost:
    """`metric` of every method and seed is at most `bound`; a mechanism unless `kind` says else."""

    name: str
    sentence: str
    metric: str
    bound: float
    kind: Literal["mechanism", "difference"] = "mechanism"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows this rule reads."""
        return [r for r in rows if r.metric == self.metric]

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """Return the verdict over `rows`."""
        used = self.rows(rows)
        if not used:
            return _not_run(f"no row measures {self.metric!r}")
        worst = max(used, key=lambda r: r.value)
        value = worst.value
        text = f"largest {self.metric} = {value:.4g}, allowed {self.bound:g} (seed {worst.seed})"
        return Verdict("pass" if value <= self.bound else "fail", value, (value, value), text)


@dataclass(frozen=True, slots=True)
class Beats:
    """Difference: mean over seeds of `ours - baseline` is at least `at_least`."""

    name: str
    sentence: str
    setting: str
    ours: str
    baseline: str
    at_least: float
    metric: str = "accuracy"
    kind: Literal["difference"] = "difference"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows this rule reads."""
        return _select(rows, self.setting, self.metric, (self.ours, self.baseline))

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """Return the verdict over `rows`, paired by seed."""
        used = self.rows(rows)
        ours, base = (_by_seed(used, m) for m in (self.ours, self.baseline))
        if not ours or ours.keys() != base.keys():
            return _not_run(f"needs {self.ours} and {self.baseline} on the same seeds")
        gaps = [ours[s] - base[s] for s in sorted(ours)]
        text = (
            f"{self.ours} - {self.baseline} = {statistics.fmean(gaps):+.2f}, "
            f"required >= {self.at_least:+g}"
        )
        return _at_least(gaps, self.at_least, text)


@dataclass(frozen=True, slots=True)
class ClosesGap:
    """Difference: mean over seeds of `(ours - low) / (high - low)` is at least `at_least`."""

    name: str
    sentence: str
    setting: str
    ours: str
    low: str
    high: str
    at_least: float
    metric: str = "accuracy"
    kind: Literal["difference"] = "difference"

    def rows(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows this rule reads."""
        return _select(rows, self.setting, self.metric, (self.ours, self.low, self.high))

    def judge(self, rows: Sequence[Row]) -> Verdict:
        """Return the verdict over `rows`, paired by seed."""
        used = self.rows(rows)
        ours, low, high = (_by_seed(used, m) for m in (self.ours, self.low, self.high))
        if not ours or not ours.keys() == low.keys() == high.keys():
            return _not_run(f"needs {self.ours}, {self.low} and {self.high} on the same seeds")
        shares = [(ours[s] - low[s]) / (high[s] - low[s]) for s in sorted(ours)]
        text = (
            f"{self.ours} closes {statistics.fmean(shares):.0%} of {self.low} -> {self.high}, "
            f"required >= {self.at_least:.0%}"
        )
        return _at_least(shares, self.at_least, text)


Rule = Equals | AtMost | Beats | ClosesGap


def rule_hash(rules: Sequence[Rule]) -> str:
    """Return 16 hex digits that change when any rule changes."""
    text = json.dumps([{type(r).__name__: asdict(r)} for r in rules], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _select(rows: Sequence[Row], setting: str, metric: str, methods: Sequence[str]) -> list[Row]:
    where = (setting, metric)
    return [r for r in rows if (r.setting, r.metric) == where and r.method in methods]


def _by_seed(rows: Sequence[Row], method: str) -> dict[int, float]:
    found: dict[int, float] = {}
    for row in rows:
        if row.method != method:
            continue
        if row.seed in found:
            raise InputError(f"two rows for {method!r}, {row.setting!r}, seed {row.seed}")
        found[row.seed] = row.value
    return found


def _not_run(why: str) -> Verdict:
    return Verdict("not run", math.nan, (math.nan, math.nan), f"not run: {why}")


def _at_least(values: Sequence[float], bound: float, text: str) -> Verdict:
    mean = statistics.fmean(values)
    return Verdict("pass" if mean >= bound else "fail", mean, _interval(values), text)


def _interval(values: Sequence[float]) -> tuple[float, float]:
    if len(values) < 2:
        return math.nan, math.nan
    from scipy import stats

    half = float(stats.t.ppf(0.975, len(values) - 1))
    half *= statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.fmean(values)
    return mean - half, mean + half
