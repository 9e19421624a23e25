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

A sentence encoder (all-MiniLM-L6-v2) must say whether one sentence follows from another, where only
word order, more / less and not decide: head only, full fine-tuning, a random mask, diff pruning.
A demo that was stopped goes on where it was.

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

    scale = _demo.QUICK if flags.quick else _demo.Scale()
    methods = _demo.methods(scale)
    configs = [_demo.run_config(m, flags.base, flags.out, scale, flags.seed) for m in methods]
    base, task = _demo.load(configs[0])
    results = []
    for number, (method, config) in enumerate(zip(methods, configs, strict=True), start=1):
        console.print(f"[bold]{number}/{len(methods)} {method.title}[/], {method.steps} steps")
        results.append(_demo.run(config, method, base, task))
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
    table.add_column("method", no_wrap=True)
    for column in results[0].accuracy:
        table.add_column(column, justify="right")
    for column in ("trained", "delta", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    for result in results:
        table.add_row(
            result.title,
            *(f"{value:.2f}" for value in result.accuracy.values()),
            share(result.share),
            size(result.bytes),
            f"{result.seconds:.0f} s",
        )
    console.print(table)
    console.print(
        f"trained: values and head that stay in the delta, of the base's "
        f"{document['base_weights'] / 1e6:.1f} M weights. 0.5 % is of the "
        f"{document['target_weights'] / 1e6:.1f} M in the encoder's layers: "
        f"{results[-1].changed:,} values.",
        style="dim",
    )
    _say(document, results)


def _say(document: Mapping[str, Any], results: list[Result]) -> None:
    from graftwork.cli._demo import CONTRAST

    console = out()
    frozen, delta = results[0], results[-1]
    low = ", ".join(f"{name} {frozen.accuracy[name]:.2f}" for name in CONTRAST)
    high = ", ".join(f"{name} {delta.accuracy[name]:.2f}" for name in CONTRAST)
    console.print(f"\nwhere word order decides, the frozen base: {low}; with a delta: {high}")
    console.print("the base is unchanged: every tensor has the hash it was loaded with")
    console.print(f"\nreloaded from {delta.folder}/delta.safetensors:")
    for pair in document["predictions"]:
        console.print(f'  "{pair["premise"]}"  "{pair["hypothesis"]}"', highlight=False)
        console.print(f"    {pair['label']} ({pair['score']:.2f})")
    console.print(f"\nreport  {document['report']}", soft_wrap=True)
    console.print(f"next    {document['next']}", soft_wrap=True)
    console.print(f"time    {document['seconds'] / 60:.1f} min")
