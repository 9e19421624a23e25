"""`graftwork diff`: compare two deltas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork.cli._data import load_delta
from graftwork.cli._shared import emit, out, parse, share

if TYPE_CHECKING:
    from graftwork.deltas import DeltaDiff

HELP = """Compare two deltas: positions they share, direction, ports, signature, how they were made.

example: graftwork diff runs/reviews runs/reviews_seed1"""
SHOWN = 30
"""Parameters printed for people, most different first; --json gives all."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork diff`."""

    a: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="A")]
    """File of a delta, or folder of its run."""
    b: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="B")]
    """The other one."""
    json: bool = False
    """Print one JSON document: {a, b, same, tensors, ports, signature, provenance, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork diff`."""
    flags = parse(Flags, words, prog="graftwork diff", description=HELP)
    a, b = load_delta(flags.a), load_delta(flags.b)
    from graftwork.deltas import diff

    found = diff(a, b)
    if flags.json:
        emit({"a": str(flags.a), "b": str(flags.b), **found.to_json()})
    else:
        _show(found)


def _show(found: DeltaDiff) -> None:
    console = out()
    if found.same:
        console.print("the two deltas do the same, bit for bit")
    else:
        console.print(
            f"positions in common {_number(found.overlap)} (shared / either), "
            f"cosine {_number(found.cosine)}, distance {found.distance:.4g}"
        )
        _show_tensors(found)
        for name, status in found.ports.items():
            console.print(f"port {name}: {status}", markup=False)
    if found.bases:
        console.print(f"[red]made for different bases:[/] {', '.join(found.bases[:5])}")
    for title, fields in (("signature", found.signature), ("made with", found.provenance)):
        _show_fields(title, fields)


def _show_tensors(found: DeltaDiff) -> None:
    from rich.markup import escape
    from rich.table import Table

    changed = sorted((t for t in found.tensors if t.status != "same"), key=lambda t: -t.distance)
    table = Table()
    table.add_column("parameter", overflow="fold", min_width=24)
    for title in ("by a", "by b", "in common", "cosine", "distance"):
        table.add_column(title, justify="right", no_wrap=True)
    for tensor in changed[:SHOWN]:
        table.add_row(
            escape(tensor.name),
            f"{tensor.changed[0]:,}",
            f"{tensor.changed[1]:,}",
            "" if tensor.overlap is None else share(tensor.overlap),
            _number(tensor.cosine),
            f"{tensor.distance:.4g}",
        )
    if changed:
        out().print(table)
    more = len(changed) - SHOWN
    same = len(found.tensors) - len(changed)
    notes = [f"{more} more differ (--json)"] * (more > 0) + [f"{same} are the same"] * (same > 0)
    if notes:
        out().print("; ".join(notes), style="dim")


def _show_fields(title: str, fields: Mapping[str, tuple[Any, Any]]) -> None:
    for key, (a, b) in fields.items():
        out().print(f"{title} {key}: {a!r} | {b!r}", markup=False)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
