"""`graftwork rebase`: move a delta to a new version of its base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from graftwork._errors import ConfigError
from graftwork.cli._data import load_base, load_delta
from graftwork.cli._shared import emit, out, parse

if TYPE_CHECKING:
    from graftwork.deltas import Rebased

HELP = """Move a delta to a new version of its base, and say how far the base has moved under it.

example: graftwork rebase runs/reviews --to models/encoder-v2 --out reviews-v2.safetensors"""
SHOWN = 20
"""Tensors printed for people; --json gives all."""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork rebase`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of a delta, or folder of its run."""
    to: str
    """The new version: a name, a Hugging Face id or a local folder."""
    out: Path
    """File to write."""
    base: Annotated[str | None, tyro.conf.arg(metavar="BASE")] = None
    """Where the old version is; by default what the run or the delta says."""
    quantise: Annotated[Literal["int8"] | None, tyro.conf.arg(metavar="{int8}")] = None
    """How the new version is held; empty: as it is stored, also where the old one is in 8 bits."""
    json: bool = False
    """Print one JSON document: {delta, out, base_change, crossed, tensors, places}."""


def main(words: list[str]) -> None:
    """Run `graftwork rebase`."""
    flags = parse(Flags, words, prog="graftwork rebase", description=HELP)
    if flags.out.exists():
        raise ConfigError(f"--out {flags.out} exists; name another file, or remove it first")
    delta = load_delta(flags.delta)
    from graftwork import bases, deltas

    old = load_base(flags.delta, delta, flags.base, "cpu")
    if delta.signature.get("kind") == "text":
        new = bases.load_language_model(
            flags.to, max_length=old.max_length, quantise=flags.quantise
        )
    else:
        new = bases.load(
            flags.to, pooling=old.pooling, max_length=old.max_length, quantise=flags.quantise
        )
    found = deltas.rebase(delta, old, new)
    deltas.save(found.delta, flags.out)
    if flags.json:
        emit({"delta": str(flags.delta), "out": str(flags.out), **found.to_json()})
    else:
        _show(found, flags.out)


def _show(found: Rebased, path: Path) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table()
    table.add_column("parameter", overflow="fold", min_width=24)
    for title in ("base moved", "delta's size", "moved / size", "difference changed"):
        table.add_column(title, justify="right", no_wrap=True)
    for tensor in found.tensors[:SHOWN]:
        numbers = (tensor.base_change, tensor.size, tensor.crossed, tensor.difference_change)
        table.add_row(escape(tensor.name), *(f"{number:.3g}" for number in numbers))
    out().print(table)
    if len(found.tensors) > SHOWN:
        out().print(f"{len(found.tensors) - SHOWN} more (--json)", style="dim")
    for place in found.places:
        out().print(f"the layer under a module has changed: {place}", markup=False)
    if found.crossed > 1.0:
        out().print("[red]the base has moved further than the delta reaches[/] in some tensors")
    out().print(f"wrote {path}; its metrics were of the old base: evaluate it anew", markup=False)
