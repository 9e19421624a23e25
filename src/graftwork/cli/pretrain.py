"""`graftwork pretrain`: make a base of molecules from SMILES strings."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from graftwork.cli._config import flag_class, full_flags, named_choices
from graftwork.cli._shared import emit, out, parse, size

if TYPE_CHECKING:
    from graftwork.domains.molecules import PretrainConfig
    from graftwork.training import BaseOutcome, RunResult

PROG = "graftwork pretrain"
HELP = """Pretrain a molecule encoder (MoLFormer) by masked language modelling on SMILES.
  - --data is a file with a column of SMILES; rows that are no molecules are reported.
  - --start-from FOLDER goes on from a base made before, with its tokenizer and sizes.
  - The run's folder then holds `base`, which `graftwork adapt --base` takes.

example: graftwork pretrain --data hiv.csv --steps 2000 --out runs/molecules
         graftwork adapt --base runs/molecules/base --task.data mine.csv --task.inputs smiles \\
             --task.label logD --task.kind regression --out runs/logD"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork pretrain` beside the fields of `PretrainConfig`."""

    resume: bool = False
    """Go on with the run in the folder --out, where there is one; a finished one is shown."""
    json: bool = False
    """Print one JSON document: folder, base, report, bytes, metrics, molecules, steps, seconds."""


def main(words: list[str]) -> None:
    """Run `graftwork pretrain`."""
    config, flags = read(words)
    from graftwork.domains.molecules import pretrain

    document = summary(pretrain(config, resume=flags.resume))
    if flags.json:
        emit(document)
    else:
        show(document)


def read(words: list[str]) -> tuple[PretrainConfig, Flags]:
    """Return the configuration that flags give, and the other flags.

    Raises:
        ConfigError: an unknown flag or an impossible value.
    """
    from graftwork.domains.molecules import PretrainConfig

    kind = flag_class((PretrainConfig,), {}, Flags)
    full = full_flags(words, kind, PROG, {})
    flags: Any = parse(kind, full, prog=PROG, description=HELP, registry=named_choices())
    config = PretrainConfig(**{f.name: getattr(flags, f.name) for f in fields(PretrainConfig)})
    return config, Flags(**{f.name: getattr(flags, f.name) for f in fields(Flags)})


def summary(result: RunResult[BaseOutcome]) -> dict[str, Any]:
    """Return what is printed of a run, as JSON."""
    folder = result.folder
    assert folder is not None
    made = result.summary["outcome"]
    return {
        "folder": str(folder),
        "base": str(folder / made["file"]),
        "report": str(folder / "report.html"),
        "bytes": made["bytes"],
        "metrics": dict(result.metrics),
        "molecules": result.summary.get("molecules", {}),
        "steps": result.summary["steps"],
        "seconds": result.summary["seconds"],
    }


def show(document: Mapping[str, Any]) -> None:
    """Print what a run yielded, what was left out of the data, and the command to try next."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in document["metrics"].items():
        table.add_row(escape(name), f"{value:.4g}")
    counted = document["molecules"]
    if counted:
        table.add_row("molecules", f"{counted['kept']:,} of {counted['rows']:,} rows")
        for name, count in sorted(counted["left_out"].items()):
            table.add_row(f"left out: {escape(name)}", f"{count:,}")
    table.add_row("base on disk", size(document["bytes"]))
    table.add_row("time", f"{document['seconds']:.1f} s, {document['steps']:,} steps")
    console = out()
    console.print(table)
    for name in ("base", "report"):
        console.print(f"{name:<8}{document[name]}", markup=False, soft_wrap=True)
    words = ["--base", document["base"], "--task.inputs", "smiles", "--task.data"]
    following = f"graftwork adapt {shlex.join(words)} FILE"
    console.print(f"next    {following}", markup=False, soft_wrap=True)
