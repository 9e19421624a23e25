"""`graftwork compare`: several tuners on one task, under one budget of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork._errors import ConfigError
from graftwork.cli._shared import emit, err, existing, out, parse, size

if TYPE_CHECKING:
    from graftwork.training import CompareConfig, RunConfig

HELP = """Run several tuners on one task, and show accuracy against bytes, memory and time.
  - Each gets the largest rank, share or length whose file is within --budget-bytes; one that
    cannot fit is listed with the bytes it would take.
  - Each tries as many rates on validation rows; the best one then runs on every seed, and only
    that is measured on the held-out rows.
  - The random mask always runs. head and full run beyond the budget too, as references.
  - TASK is a file of rows, "comparisons" (generated), or the YAML of a run (adapt --print-config).

example: graftwork compare reviews.csv --methods lora bitfit diff_pruning \\
             --budget-bytes 20000 --seeds 0 1 2 --targets "encoder.*" --out runs/compare
         graftwork compare run.yaml --methods lora dora --out runs/compare --resume"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork compare`."""

    task: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="TASK")]
    """Rows, "comparisons", or the YAML of a run."""
    methods: tuple[str, ...] = ("head", "full", "bitfit", "lora", "diff_pruning")
    """Names of tuners (see graftwork adapt --help)."""
    budget_bytes: int = 50_000
    """Most bytes of a delta's file, head included."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of the chosen rate each."""
    trials: int = 3
    """Rates that every method tries: its default, 3 times more, 3 times less, ..."""
    validation_share: float = 0.1
    """Share of the training rows by which rates are chosen."""
    base: str | None = None
    """"minilm", a Hugging Face id or a local folder; default: the YAML's, else minilm."""
    inputs: tuple[str, ...] = ()
    """Columns that are the input; default: the YAML's, else as for adapt."""
    label: str | None = None
    """Column of the label; default: the YAML's, else "label"."""
    targets: tuple[str, ...] = ()
    """Patterns of the tensors to tune; default: the YAML's, else all that the loss reaches."""
    steps: int | None = None
    """Updates of every run; default: the YAML's, else 500."""
    batch_size: int | None = None
    """Rows of a batch; default: the YAML's, else 32."""
    max_rows: int | None = None
    """Most rows to learn from, validation included; default: the YAML's, else all."""
    eval_rows: int | None = None
    """Most held-out rows; default: the YAML's, else all."""
    head_hidden: int | None = None
    """Units of the head's hidden layer, 0 for none; default: the YAML's, else adapt's."""
    head_lr: float = 3e-3
    """Learning rate of the head in every method."""
    device: str | None = None
    """Where to run, such as cuda; default: the YAML's, else a GPU where there is one."""
    out: Path = Path("runs/compare")
    """Folder of the comparison and its runs."""
    resume: bool = False
    """Go on with the comparison in the folder; methods and seeds may be added."""
    json: bool = False
    """Print one JSON document: {metric, budget_bytes, rows, results, chart, folder, ...}."""


def main(words: list[str]) -> None:
    """Run `graftwork compare`."""
    flags = parse(Flags, words, prog="graftwork compare", description=HELP)
    console = err()
    from graftwork.training import RunInterrupted, compare

    config = read(flags)
    try:
        document = compare(
            config,
            resume=flags.resume,
            say=lambda line: console.print(line, style="dim", markup=False, soft_wrap=True),
        )
    except RunInterrupted as stop:
        raise RunInterrupted("stopped; the same command with --resume goes on") from stop
    if flags.json:
        emit(document)
    else:
        show(document)


def read(flags: Flags) -> CompareConfig:
    """Return the comparison that flags and YAML give.

    Raises:
        InputError: the task's file does not exist.
        UnknownNameError: a method does not exist.
        ConfigError: an impossible value.
    """
    from graftwork.training import CompareConfig
    from graftwork.tuning import Head

    begun = _started(flags.task)
    task = {name: getattr(flags, name) for name in ("inputs", "label", "max_rows", "eval_rows")}
    task["head_hidden"] = flags.head_hidden
    train = {"steps": flags.steps, "batch_size": flags.batch_size}
    run = replace(
        begun,
        base=flags.base or begun.base,
        task=replace(begun.task, **_given(task)),
        train=replace(begun.train, **_given(train)),
        targets=flags.targets or begun.targets,
        base_options=replace(begun.base_options, **_given({"device": flags.device})),
        tuner=Head(head_lr=flags.head_lr),
        seed=flags.seeds[0] if flags.seeds else 0,
        out=str(flags.out),
    )
    return CompareConfig(
        run=run,
        methods=tuple(name.replace("-", "_") for name in flags.methods),
        budget_bytes=flags.budget_bytes,
        seeds=flags.seeds,
        trials=flags.trials,
        validation_share=flags.validation_share,
    )


def _started(task: str) -> RunConfig:
    from graftwork.training import RunConfig, from_yaml

    if task == "comparisons":
        return RunConfig()
    path = existing(Path(task), "task")
    if path.suffix not in (".yaml", ".yml"):
        begun = RunConfig()
        return replace(begun, task=replace(begun.task, data=task))
    begun = from_yaml(path)
    if begun.continue_from is not None:
        raise ConfigError(
            f"{task}: continue_from: methods are compared from the base; leave it out"
        )
    return begun


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value not in (None, ())}


def show(document: Mapping[str, Any]) -> None:
    """Print a comparison for people: the best first, then what was left out and why."""
    from rich.markup import escape
    from rich.table import Table

    rows, sign = document["rows"], -1 if document["direction"] == "max" else 1
    title = f"{document['metric']} on {rows['test']:,} held-out rows, mean of seeds"
    table = Table("method", "within the budget", title=title)
    for name in (document["metric"], "+-", "bytes", "memory", "time", "rate"):
        table.add_column(name, justify="right")
    run = [entry for entry in document["results"] if entry["status"] != "left out"]
    for entry in sorted(run, key=lambda e: sign * e["mean"]):
        deviation = entry["deviation"]
        table.add_row(
            entry["method"],
            escape(entry["setting"] or ("-" if entry["status"] == "run" else "no: a reference")),
            f"{entry['mean']:.4g}",
            "" if deviation is None else f"{deviation:.2g}",
            f"{entry['bytes']:,}",
            size(entry["memory"]),
            f"{entry['seconds']:.1f} s",
            f"x {entry['factor']:.3g}",
        )
    console = out()
    console.print(table)
    for entry in document["results"]:
        if entry["note"]:
            console.print(f"{entry['method']}: {entry['note']}", markup=False, soft_wrap=True)
    console.print(
        f"budget {document['budget_bytes']:,} bytes; rates tried {document['trials']}, chosen on "
        f"{rows['validation']:,} validation rows; memory is that of a step beside the base",
        style="dim",
        soft_wrap=True,
    )
    console.print(f"chart  {document['chart']}", markup=False, soft_wrap=True)
    console.print(f"runs   {document['folder']}", markup=False, soft_wrap=True)
