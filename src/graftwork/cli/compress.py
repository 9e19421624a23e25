"""`graftwork compress`: a smaller delta, and what it lost."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from graftwork._errors import ConfigError
from graftwork.cli._data import load_delta
from graftwork.cli._shared import emit, new_file, out, parse, share, size

if TYPE_CHECKING:
    from graftwork.deltas import CompressReport

HELP = """Make a delta smaller: fewer values, narrower ones, or what fits a budget of bytes.

example: graftwork compress runs/reviews --budget-bytes 20000 --out small.safetensors"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork compress`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of the delta, or folder of its run."""
    out: Path
    """File of the smaller delta."""
    keep: float = 1.0
    """Share of the values that stay, by magnitude over the whole delta."""
    stored: Literal["float16", "bfloat16", "float32", "int8"] | None = None
    """Type of the values; default: as they are, with a budget the one that loses least."""
    budget_bytes: int | None = None
    """Size to come under; default: none."""
    json: bool = False
    """Print one JSON document: {delta, out, bytes_before, bytes_after, keep, error, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork compress`."""
    flags = parse(Flags, words, prog="graftwork compress", description=HELP)
    if flags.keep == 1.0 and flags.stored is None and flags.budget_bytes is None:
        raise ConfigError("say how: --keep 0.5, --stored int8 or --budget-bytes 20000")
    target = new_file(flags.out)
    delta = load_delta(flags.delta)
    from graftwork import deltas

    config = deltas.CompressConfig(
        keep=flags.keep, stored=flags.stored, budget_bytes=flags.budget_bytes
    )
    small, report = deltas.compress(delta, config)
    deltas.save(small, target)
    if flags.json:
        emit({"delta": str(flags.delta), "out": str(target), **report.to_json()})
    else:
        _show(target, report)


def _show(target: Path, report: CompressReport) -> None:
    console = out()
    console.print(
        f"{target}: {size(report.bytes_after)}, {share(report.bytes_after / report.bytes_before)} "
        f"of {size(report.bytes_before)}",
        markup=False,
    )
    kind = report.stored or "their own type"
    console.print(
        f"{share(report.keep)} of the values kept, in {kind}; lost {share(report.error)} of the "
        "difference (Frobenius)"
    )
    if report.ports_error:
        console.print(f"ports: lost at most {share(report.ports_error)} of a tensor")
    if report.dropped:
        console.print(f"nothing left of {len(report.dropped)} parameters (--json names them)")
    console.print("what that costs in your metric: graftwork evaluate", style="dim")
