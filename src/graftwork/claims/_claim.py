"""A claim: a paper's central comparison as a runnable, judged experiment."""

from __future__ import annotations

import json
import math
import os
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from graftwork.claims._rules import Row, Rule, rule_hash
from graftwork.errors import InputError, UnknownNameError

Scale = Literal["smoke", "quick", "full"]
"""`smoke`: <= 5 s, in the suite; `quick`: <= 5 minutes a part, 2 cores, judged; `full`: a GPU."""

JUDGED_SEEDS = (10, 11, 12)
PILOT_SEEDS = (0, 1, 2)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class DataFile:
    """A public file that a claim reads.

    Attributes:
        path: relative to the data folder (`--data` or `GRAFTWORK_DATA`).
        sha256: its digest.
        origin: where anyone can get it.
    """

    path: str
    sha256: str
    origin: str

    def find(self, folder: Path | None) -> Path:
        """Return the verified path.

        Raises:
            InputError: it is missing or another file; says where to get it.
        """
        import hashlib

        root = folder or Path(os.environ.get("GRAFTWORK_DATA", "../shared/data"))
        found = root / self.path
        if not found.is_file():
            raise InputError(
                f"the claim needs {self.path} under {root}; get it from {self.origin} "
                "and name its folder with --data or GRAFTWORK_DATA"
            )
        digest = hashlib.sha256(found.read_bytes()).hexdigest()
        if digest != self.sha256:
            raise InputError(f"{found} has SHA-256 {digest}, the claim was made on {self.sha256}")
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One paper's claim.

    Attributes:
        name: as in `graftwork claims run NAME`.
        system: name of the system it proves.
        sentence: the claim in one sentence.
        rules: fixed on pilot seeds 0-2, judged on 10-12.
        run: measures one seed at a scale: (scale, seed, data folder, progress) -> rows.
    """

    name: str
    system: str
    sentence: str
    rules: tuple[Rule, ...]
    run: Callable[[Scale, int, Path | None, Progress], list[Row]]


def run_claim(
    claim: Claim,
    scale: Scale,
    seeds: Sequence[int] = JUDGED_SEEDS,
    data: Path | None = None,
    progress: Progress = lambda _: None,
) -> dict[str, Any]:
    """Measure `claim` on `seeds` and return its result, ready for `save_result`."""
    rows = [row for seed in seeds for row in claim.run(scale, seed, data, progress)]
    for row in rows:
        if not math.isfinite(row.value):
            raise InputError(f"{claim.name} measured {row}, which is not a number")
    return {
        "claim": claim.name,
        "scale": scale,
        "seeds": list(seeds),
        "rows": [asdict(r) for r in rows],
        "rule_hash": rule_hash(claim.rules),
        "commit": _commit(),
        "versions": _versions(),
    }


def report(claim: Claim, result: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return one entry a rule: {name, system, sentence, kind, ..., verdict, rule_hash, ...}.

    A result measured under other rules counts as not run, so a rule cannot be bent to a result.
    """
    current = rule_hash(claim.rules)
    if result is not None and result["rule_hash"] != current:
        result = None
    rows = [Row(**r) for r in result["rows"]] if result else []
    entries = []
    for rule in claim.rules:
        verdict = rule.judge(rows)
        entries.append(
            {
                "name": f"{claim.name}/{rule.name}",
                "system": claim.system,
                "sentence": rule.sentence,
                "kind": rule.kind,
                "scale": result["scale"] if result else None,
                "seeds": result["seeds"] if result else [],
                "rows": [asdict(r) for r in rule.rows(rows)],
                "measured": verdict.measured if math.isfinite(verdict.measured) else None,
                "interval": [x if math.isfinite(x) else None for x in verdict.interval],
                "text": verdict.text,
                "verdict": verdict.verdict,
                "rule_hash": current,
                "commit": result["commit"] if result else None,
                "versions": result["versions"] if result else {},
            }
        )
    return entries


def save_result(result: Mapping[str, Any], folder: Path) -> Path:
    """Write a result as JSON under `folder` and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result['claim']}.{result['scale']}.json"
    path.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    return path


def published_result(name: str, scale: Scale = "quick") -> dict[str, Any] | None:
    """Return the judged result that ships with graftwork, or None when there is none."""
    found = resources.files("graftwork.claims").joinpath("results", f"{name}.{scale}.json")
    if not found.is_file():
        return None
    result: dict[str, Any] = json.loads(found.read_text())
    return result


def load_result(folder: Path, name: str, scale: Scale = "quick") -> dict[str, Any] | None:
    """Return the result that `save_result` wrote into `folder`, or None when there is none.

    Raises:
        InputError: `folder` is no folder, or the file is not a result.
    """
    if not folder.is_dir():
        raise InputError(f"no folder of results at {str(folder)!r}")
    path = folder / f"{name}.{scale}.json"
    if not path.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(path.read_text())
        for row in result["rows"]:
            Row(**row)
    except (ValueError, TypeError, KeyError) as cause:
        raise InputError(f"{path} is not the result of a claim: {cause!r}") from cause
    return result


def find_claim(name: str, claims: Mapping[str, Claim]) -> Claim:
    """Return a claim by name.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in claims:
        raise UnknownNameError("claim", name, claims)
    return claims[name]


def _commit() -> str | None:
    here = Path(__file__).parent
    asked = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or None


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("graftwork", "torch", "numpy", "scikit-learn")}
