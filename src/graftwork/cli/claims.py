"""List the claims with their verdicts, or run one.

example: graftwork claims
         graftwork claims run diff-pruning --scale quick --data ../data
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from graftwork._errors import ConfigError, InputError, UnknownNameError
from graftwork.claims import (
    CLAIMS,
    JUDGED_SEEDS,
    PILOT_SEEDS,
    Scale,
    find_claim,
    load_result,
    published_result,
    report,
    run_claim,
    save_result,
)
from graftwork.cli._shared import emit, err, existing, out, parse

LIST_HELP = """List the claims with the verdict of the published (judged) result.

example: graftwork claims --json
         graftwork claims run NAME --help"""
RUN_HELP = """Run one claim, save its result and judge it.

example: graftwork claims run diff-pruning --scale smoke"""
COLOURS = {"pass": "green", "fail": "red", "not run": "dim"}


@dataclass(frozen=True, kw_only=True)
class ListFlags:
    """Flags of `graftwork claims`."""

    results: Path | None = None
    """Folder of your own results, as `claims run` saves them; default: those of graftwork."""
    scale: Scale = "quick"
    """Scale of the results to show: smoke, quick (judged) or full."""
    json: bool = False
    """Print one JSON document: a list with one entry a rule."""


@dataclass(frozen=True, kw_only=True)
class RunFlags:
    """Flags of `graftwork claims run`."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Name of the claim, as `graftwork claims` lists it."""
    scale: Scale = "quick"
    """smoke: seconds, proves that it runs; quick: minutes, the judged one; full: a GPU."""
    seeds: tuple[int, ...] = ()
    """Seeds; default: the judged ones, 10 11 12."""
    data: Path | None = None
    """Folder with the public files that the claim reads; default: $GRAFTWORK_DATA."""
    pilot: bool = False
    """Use the pilot seeds 0 1 2, on which rules are made; such a result is never a verdict."""
    out: Path = Path("runs/claims")
    """Folder for the result."""
    json: bool = False
    """Print one JSON document: a list with one entry a rule."""


def main(words: list[str]) -> None:
    """Run `graftwork claims`."""
    if words and words[0] == "run":
        _run(parse(RunFlags, words[1:], prog="graftwork claims run", description=RUN_HELP))
    elif words and not words[0].startswith("-"):
        raise UnknownNameError("claims command", words[0], ["run"])
    else:
        _list(parse(ListFlags, words, prog="graftwork claims", description=LIST_HELP))


def _list(flags: ListFlags) -> None:
    if flags.results is not None:
        existing(flags.results, "the folder of results")
    entries: list[dict[str, Any]] = []
    for name, claim in CLAIMS.items():
        if flags.results is None:
            result = published_result(name, flags.scale)
        else:
            result = load_result(flags.results, name, flags.scale)
        entries += report(claim, result)
    _show(entries, flags.json)


def _run(flags: RunFlags) -> None:
    if flags.pilot and flags.seeds:
        raise ConfigError("--pilot and --seeds exclude each other: --pilot is --seeds 0 1 2")
    claim = find_claim(flags.name, CLAIMS)
    if flags.data is not None and not flags.data.is_dir():
        raise InputError(f"--data {str(flags.data)!r} is no folder")
    seeds = flags.seeds or (PILOT_SEEDS if flags.pilot else JUDGED_SEEDS)
    console = err()
    result = run_claim(
        claim,
        flags.scale,
        seeds,
        flags.data,
        progress=lambda text: console.print(text, style="dim"),
    )
    path = save_result(result, flags.out / "pilot" if flags.pilot else flags.out)
    _show(report(claim, result), flags.json)
    console.print(f"result: {path}")
    if not flags.pilot:
        console.print(f"see it again: graftwork claims --results {flags.out} --scale {flags.scale}")


def _show(entries: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        emit(entries)
        return
    from rich.table import Table

    table = Table("claim", "kind", "verdict", "measured", title_justify="left")
    for entry in entries:
        verdict = entry["verdict"]
        colour = COLOURS[verdict]
        text = entry["text"] if verdict != "not run" else f"[dim]{entry['text']}[/]"
        table.add_row(
            f"{entry['name']}\n[dim]{entry['sentence']}[/]",
            entry["kind"],
            f"[{colour}]{verdict}[/]",
            text,
        )
    out().print(table if entries else "no claims yet")
