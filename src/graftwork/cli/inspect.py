"""`graftwork inspect`: what a delta changes and where its bytes go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork.cli._data import load_delta
from graftwork.cli._shared import bar, emit, out, parse, share, size

if TYPE_CHECKING:
    from graftwork.deltas import Inspection

HELP = """Say what a delta changes and where its bytes go; needs no base.

example: graftwork inspect runs/reviews"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork inspect`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of the delta, or folder of its run."""
    tensors: bool = False
    """List every parameter, not only layers."""
    json: bool = False
    """Print one JSON document: the whole ledger, signature and provenance."""


def main(words: list[str]) -> None:
    """Run `graftwork inspect`."""
    flags = parse(Flags, words, prog="graftwork inspect", description=HELP)
    delta = load_delta(flags.delta)
    from graftwork.deltas import inspect

    report = inspect(delta)
    if flags.json:
        emit({"delta": str(flags.delta), **report.to_json()})
        return
    _show_head(flags.delta, report)
    _show_layers(report)
    if flags.tensors:
        _show_tensors(report)
    elif report.tensors:
        out().print("every parameter: --tensors; the whole ledger: --json", style="dim")


def _show_head(path: Path, report: Inspection) -> None:
    from rich.markup import escape

    console = out()
    console.print(f"[bold]{escape(str(path))}[/]  {size(report.bytes)} ({report.bytes:,} bytes)")
    made = report.provenance
    facts = {
        "base": made.get("base"),
        "tuner": _name(made.get("tuner")),
        "task": _task(report.signature),
        "labels": ", ".join(report.signature.get("labels", ())),
        "metrics": ", ".join(f"{k} {v:.4g}" for k, v in _overall(made.get("metrics"))),
        "content": report.content[:16],
    }
    for key, value in facts.items():
        if value:
            console.print(f"  {key:<8} {value}", markup=False)
    if report.asserted:
        console.print("  [yellow]the base was vouched for by hand, not fingerprinted[/]")
    console.print()
    for part, count in report.parts.items():
        text = f"  {part:<12}{count:>12,}  {bar(count / report.bytes)} {count / report.bytes:.0%}"
        console.print(text)
    if report.bytes_per_value is not None:
        console.print(f"\n{report.kept:,} values, {report.bytes_per_value:.2f} bytes each", end="")
        if report.position_bits is not None and report.bound_bits is not None:
            console.print(
                f"; {report.position_bits:.2f} bits a position, entropy bound of free positions "
                f"{report.bound_bits:.2f}",
                end="",
            )
        console.print()


def _show_layers(report: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table("layer", "changed", "of", "share", "", "bytes", title="where the task lives")
    for column in (1, 2, 3, 5):
        table.columns[column].justify = "right"
    most = max((layer.share for layer in report.layers), default=0.0) or 1.0
    for layer in report.layers:
        table.add_row(
            escape(layer.layer),
            f"{layer.changed:,}",
            f"{layer.entries:,}",
            share(layer.share),
            bar(layer.share / most, 14),
            f"{layer.bytes:,}",
        )
    for port in report.ports:
        table.add_row(
            f"port {port.name} ({port.kind})", f"{port.values:,}", "", "", "", f"{port.bytes:,}"
        )
    out().print(table)


def _show_tensors(report: Inspection) -> None:
    from rich.markup import escape
    from rich.table import Table

    head = ("parameter", "terms", "changed", "share", "bytes", "bits a position", "bound")
    table = Table(*head, title="parameters")
    for tensor in report.tensors:
        bits = (tensor.position_bits, tensor.bound_bits)
        table.add_row(
            escape(tensor.name),
            "+".join(tensor.terms),
            f"{tensor.changed:,}",
            share(tensor.share),
            f"{tensor.bytes:,}",
            *("" if b is None else f"{b:.2f}" for b in bits),
        )
    out().print(table)


def _name(tuner: Any) -> str:
    if not isinstance(tuner, Mapping):
        return ""
    kept = tuner.get("share")
    return str(tuner.get("name", "")) + (f", {share(kept)}" if isinstance(kept, float) else "")


def _task(signature: Mapping[str, Any]) -> str:
    if not signature:
        return ""
    return f"{signature['kind']} of {', '.join(signature['fields'])} ({signature['call']})"


def _overall(metrics: Any) -> list[tuple[str, float]]:
    if not isinstance(metrics, Mapping):
        return []
    return [(k, v) for k, v in metrics.items() if "/" not in k]
