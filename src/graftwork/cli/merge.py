"""`graftwork merge`: several deltas of one base into one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from graftwork._errors import ConfigError
from graftwork.cli._data import load_delta
from graftwork.cli._shared import emit, new_file, out, parse, share, size

if TYPE_CHECKING:
    from graftwork.deltas import MergeReport

HELP = """Merge deltas of one base into one, and say where they disagree and what it cost.

example: graftwork merge runs/a runs/b --method ties --out both.safetensors"""
SHOWN = 15
"""Parameters printed for people, most conflicts first; --json gives all."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork merge`."""

    deltas: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """Files of deltas, or folders of their runs."""
    out: Path
    """File of the merged delta."""
    method: Literal["linear", "svd", "ties", "dare", "dare_ties"] = "linear"
    """How they are merged."""
    weights: tuple[float, ...] = ()
    """One weight a delta; default: 1/k each, for the ties methods 1."""
    density: float = 0.2
    """ties: share of its values that each delta keeps; dare: share that survives the drop."""
    rank: int | None = None
    """Store the result as products of this rank; default: as it falls out."""
    seed: int = 0
    """Seed of DARE's drop."""
    stored: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    """Type of values that are made anew."""
    ports_of: int | None = None
    """Which delta's ports and signature are kept, counted from 0; default: they must be equal."""
    base: str | None = None
    """The base, needed where a delta scales weights (DoRA, IA3); default: none."""
    json: bool = False
    """Print one JSON document: {out, bytes, of, method, conflicts, shared, against, error, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork merge`."""
    flags = parse(Flags, words, prog="graftwork merge", description=HELP)
    if not flags.deltas:
        raise ConfigError("name the deltas to merge (see graftwork merge --help)")
    target = new_file(flags.out)
    parts = [load_delta(path) for path in flags.deltas]
    from graftwork import bases, deltas

    config = deltas.MergeConfig(
        method=flags.method,
        weights=flags.weights or None,
        density=flags.density,
        rank=flags.rank,
        seed=flags.seed,
        stored=flags.stored,
        ports_of=flags.ports_of,
    )
    base = bases.load(flags.base) if flags.base is not None else None
    merged, report = deltas.merge(parts, config, base)
    written = deltas.save(merged, target)
    if flags.json:
        document = {"out": str(target), "bytes": written, "of": [str(p) for p in flags.deltas]}
        emit({**document, **report.to_json()})
    else:
        _show(target, written, report)


def _show(target: Path, written: int, report: MergeReport) -> None:
    console = out()
    console.print(f"{target}: {size(written)}", markup=False)
    conflicts = share(report.conflicts / report.shared) if report.shared else "none"
    cosine = "" if report.cosine is None else f"; lowest cosine of two deltas {report.cosine:.3f}"
    console.print(
        f"entries that two or more change: {report.shared:,}, of these with opposite signs: "
        f"{conflicts}{cosine}"
    )
    error = "exact" if report.exact else f"{share(report.error)} of the merged difference"
    console.print(f"lost in what is stored: {error}")
    _show_tensors(report)


def _show_tensors(report: MergeReport) -> None:
    from rich.markup import escape
    from rich.table import Table

    rows = sorted(report.tensors, key=lambda t: (-t.sums.opposed, t.name))
    table = Table("parameter", "terms", title="where they disagree most")
    for title in ("shared", "conflicts", "cosine"):
        table.add_column(title, justify="right")
    for row in [row for row in rows if row.sums.opposed][:SHOWN]:
        cosine = row.sums.cosine
        table.add_row(
            escape(row.name),
            "+".join(row.terms) or "nothing left",
            f"{row.sums.shared:,}",
            share(row.sums.opposed / row.sums.shared),
            "" if cosine is None else f"{cosine:.3f}",
        )
    if table.row_count:
        out().print(table)
