"""`graftwork evaluate`: measure a delta on labelled data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork._errors import InputError
from graftwork.cli._data import load_base, load_delta, read_rows
from graftwork.cli._shared import emit, out, parse

if TYPE_CHECKING:
    from graftwork.bases import Base
    from graftwork.deltas import Delta

HELP = """Measure a delta on labelled data; calling the base, labels and decoding are in the delta.

Without --data: the held-out rows of the data that graftwork generates (comparisons).

example: graftwork evaluate runs/reviews --data new_reviews.csv"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork evaluate`."""

    delta: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DELTA")]
    """File of the delta, or folder of its run."""
    data: Path | None = None
    """Rows: CSV, TSV, JSONL, Parquet, arrays, or a folder of pictures."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Name in the delta -> column of the file, in pairs: sentence text label stars."""
    header: bool = True
    """CSV and TSV: the columns are called "0", "1" and so on; default: the first row names them."""
    group: str | None = None
    """Column whose values part the rows: adds each metric for each value."""
    metrics: tuple[str, ...] = ()
    """Metrics, such as accuracy f1 matthews pearson; default: those of the kind of task."""
    base: str | None = None
    """The base; default: the one that the delta says it was made for."""
    batch_size: int = 64
    """Rows at a time."""
    device: str = "cpu"
    """Where to run, such as cuda."""
    json: bool = False
    """Print one JSON document: {delta, base, results: [{data, rows, metrics}]}."""


def main(words: list[str]) -> None:
    """Run `graftwork evaluate`."""
    flags = parse(Flags, words, prog="graftwork evaluate", description=HELP)
    delta = load_delta(flags.delta)
    base = load_base(flags.delta, delta, flags.base, flags.device)
    results = _own_rows(flags, base, delta) if flags.data is None else _rows(flags, base, delta)
    document = {"delta": str(flags.delta), "base": base.name, "results": results}
    if flags.json:
        emit(document)
    else:
        _show(results)


def _rows(flags: Flags, base: Base, delta: Delta) -> list[dict[str, Any]]:
    from graftwork.tasks import evaluate_delta

    assert flags.data is not None
    table = read_rows(flags.data, flags.columns, header=flags.header)
    metrics = evaluate_delta(
        base,
        delta,
        table,
        metrics=flags.metrics,
        group=flags.group,
        batch_size=flags.batch_size,
    )
    return [{"data": str(flags.data), "rows": len(table), "metrics": metrics}]


def _own_rows(flags: Flags, base: Base, delta: Delta) -> list[dict[str, Any]]:
    """Measure on the held-out rows of generated data; those of files are not in the delta."""
    from graftwork.tasks import COMPARISON_TYPES, Evaluator, Predictor, make_task
    from graftwork.training import from_tree

    made_on = delta.provenance.get("task", {})
    if made_on.get("data") != "comparisons":
        raise InputError("name the rows to measure on with --data; a delta does not carry its data")
    config = replace(from_tree({"task": made_on}).task, max_rows=2 * len(COMPARISON_TYPES))
    task = make_task(base, config, seed=int(delta.provenance.get("seed", 0)))
    predictor = Predictor(base, delta)
    evaluator = Evaluator(predictor.signature, flags.metrics)
    return [
        {
            "data": f"comparisons/{name}",
            "rows": len(stream.groups or ()),
            "metrics": evaluator.evaluate(predictor, stream, flags.batch_size),
        }
        for name, stream in task.streams.items()
        if name != "train"
    ]


def _show(results: list[dict[str, Any]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    for result in results:
        overall = {k: v for k, v in result["metrics"].items() if "/" not in k}
        groups = {k.partition("/")[2] for k in result["metrics"] if "/" in k}
        table = Table("rows", *overall, title=escape(f"{result['data']}: {result['rows']:,} rows"))
        table.add_row("all", *(f"{v:.4g}" for v in overall.values()))
        for group in sorted(groups):
            values = (result["metrics"].get(f"{name}/{group}") for name in overall)
            table.add_row(escape(group), *("" if v is None else f"{v:.4g}" for v in values))
        out().print(table)
