"""`graftwork demo`: the main job on real pretrained weights, offline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graftwork.cli._shared import emit, err, out, parse, share, size

if TYPE_CHECKING:
    from graftwork.cli._demo import Result

HELP = """Adapt a real pretrained encoder by 0.5 % of its weights, in minutes, offline.

A sentence encoder (all-MiniLM-L6-v2) must say whether one sentence follows from another.
  - Only word order, more / less and not decide.
  - Four ways to learn it: head only, full fine-tuning, a random mask, diff pruning.
  - A demo that was stopped goes on where it was.

example: graftwork demo --out runs/demo"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork demo`."""

    out: Path = Path("runs/demo")
    """Folder for the four runs."""
    base: str = "minilm"
    """Another base with a tokenizer and encoder layers."""
    seed: int = 0
    """Root of every random draw."""
    quick: bool = False
    """Seconds in place of minutes, to see that everything runs; the numbers mean nothing."""
    json: bool = False
    """Print one JSON document: {base, results, base_unchanged, predictions, report, next, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork demo`."""
    flags = parse(Flags, words, prog="graftwork demo", description=HELP)
    console = err()
    began = time.perf_counter()
    console.print("loading the base and generating comparisons ...", style="dim")
    from graftwork.cli import _demo
    from graftwork.training import RunInterrupted

    scale = _demo.QUICK if flags.quick else _demo.Scale()
    methods = _demo.methods(scale)
    configs = [_demo.run_config(m, flags.base, flags.out, scale, flags.seed) for m in methods]
    base, task = _demo.load(configs[0])
    results = []
    for number, (method, config) in enumerate(zip(methods, configs, strict=True), start=1):
        console.print(f"[bold]{number}/{len(methods)} {method.title}[/], {method.steps} steps")
        try:
            results.append(_demo.run(config, method, base, task))
        except RunInterrupted as stop:
            raise RunInterrupted("stopped; the same command goes on from here") from stop
    base.verify()
    best = results[-1]
    document = {
        "base": base.name,
        "base_weights": _demo.weights(base),
        "target_weights": _demo.weights(base, _demo.TARGETS),
        "targets": list(_demo.TARGETS),
        "results": [asdict(result) for result in results],
        "base_unchanged": True,
        "predictions": _demo.reload_and_predict(base, best.folder),
        "report": f"{best.folder}/report.html",
        "next": _next(best),
        "seconds": time.perf_counter() - began,
    }
    if flags.json:
        emit(document)
    else:
        _show(document, results)


def _next(result: Result) -> str:
    return f"graftwork inspect {result.folder}"


def _show(document: Mapping[str, Any], results: list[Result]) -> None:
    from rich.table import Table

    console = out()
    table = Table(title="accuracy by type of comparison, and on what was not learnt from")
    table.add_column("")
    for result in results:
        table.add_column(result.title, justify="right", max_width=12)
    for name in results[0].accuracy:
        table.add_row(name, *(f"{result.accuracy[name]:.2f}" for result in results))
    table.add_section()
    table.add_row("weights changed", *(f"{result.changed:,}" for result in results))
    table.add_row("and head, of the base", *(share(result.share) for result in results))
    table.add_row("delta on disk", *(size(result.bytes) for result in results))
    table.add_row("time", *(f"{result.seconds:.0f} s" for result in results))
    console.print(table)
    console.print(
        f"0.5 % is of the {document['target_weights'] / 1e6:.1f} M weights in encoder layers; "
        f"the base has {document['base_weights'] / 1e6:.1f} M.",
        style="dim",
        soft_wrap=True,
    )
    _say(document, results)


def _say(document: Mapping[str, Any], results: list[Result]) -> None:
    from graftwork.cli._demo import CONTRAST

    console = out()
    frozen, delta = results[0], results[-1]
    low = ", ".join(f"{name} {frozen.accuracy[name]:.2f}" for name in CONTRAST)
    high = ", ".join(f"{name} {delta.accuracy[name]:.2f}" for name in CONTRAST)
    console.print(f"\nwhere word order decides, the frozen base has  {low}", soft_wrap=True)
    console.print(f"                          with the delta it has  {high}", soft_wrap=True)
    console.print("the base is unchanged: every tensor has the hash it was loaded with")
    console.print(f"\nreloaded from {delta.folder}/delta.safetensors:")
    for pair in document["predictions"]:
        console.print(f"  {pair['premise']} -> {pair['hypothesis']}", soft_wrap=True)
        console.print(f"    {pair['label']} ({pair['score']:.2f})")
    console.print(f"\ntime    {document['seconds'] / 60:.1f} min")
    console.print(f"report  {document['report']}", soft_wrap=True)
    console.print(f"next    {document['next']}", soft_wrap=True)
