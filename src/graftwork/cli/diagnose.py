"""`graftwork diagnose`: analyse what deltas have learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from graftwork._errors import UnknownNameError
from graftwork.cli._data import load_base, load_delta
from graftwork.cli._shared import emit, out, parse

if TYPE_CHECKING:
    from graftwork.diagnostics import LowRankReport

HELP = """The LoRA paper's analyses of low-rank terms: what each amplifies, and with a second delta
(another seed or rank) how many of the first directions both share.

example: graftwork diagnose lora runs/reviews runs/reviews_seed1"""
KINDS = ("lora",)


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork diagnose lora`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of a delta with low-rank terms, or folder of its run."""
    other: Annotated[Path | None, tyro.conf.Positional, tyro.conf.arg(metavar="OTHER")] = None
    """Another delta of the same base to compare with."""
    base: str | None = None
    """The base, for amplification; by default what the run or the delta says."""
    json: bool = False
    """Print one JSON document: {delta, other, reports, left_out}."""


def main(words: list[str]) -> None:
    """Run `graftwork diagnose`."""
    if words and not words[0].startswith("-"):
        if words[0] not in KINDS:
            raise UnknownNameError("diagnosis", words[0], KINDS)
        words = words[1:]
    flags = parse(Flags, words, prog="graftwork diagnose lora", description=HELP)
    delta = load_delta(flags.delta)
    other = None if flags.other is None else load_delta(flags.other)
    from graftwork.diagnostics import diagnose_low_rank

    base = load_base(flags.delta, delta, flags.base, "cpu")
    reports, left_out = diagnose_low_rank(delta, other, base)
    if flags.json:
        emit(
            {
                "delta": str(flags.delta),
                "other": None if flags.other is None else str(flags.other),
                "reports": [report.to_json() for report in reports],
                "left_out": left_out,
            }
        )
        return
    _show(reports, compared=other is not None)
    for name in left_out:
        out().print(f"left out: {name}", markup=False)


def _show(reports: Sequence[LowRankReport], *, compared: bool) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("parameter", overflow="fold", min_width=24)
    titles = ["rank", "|D|", "W along D", "W at most", "W random", "amplified"]
    titles += ["shared, 1st", "all", "random"] if compared else []
    for title in titles:
        table.add_column(title, justify="right", no_wrap=True)
    for report in reports:
        found = report.amplification
        cells = [str(report.rank)]
        if found is not None:
            numbers = (found.size, found.along_term, found.along_weight, found.along_random)
            cells += [f"{number:.3g}" for number in numbers] + [f"{found.factor:.1f}x"]
        if compared:
            shared = (report.right[0][0], report.right[-1][-1], report.random)
            cells += [f"{number:.2f}" for number in shared]
        table.add_row(escape(report.name), *cells)
    out().print(table)
