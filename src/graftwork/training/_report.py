"""The report of a run: one HTML file that needs nothing else, light and dark, no script.

`render` is a pure function of a `Report`; `write_report` gathers it from a finished run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from graftwork.training._charts import (
    Grid,
    Mark,
    Series,
    bar_list,
    heat_map,
    line_chart,
    smooth,
    stacked_bar,
)
from graftwork.training._report_style import STYLE


@dataclass(frozen=True, slots=True)
class TensorShare:
    """How much of one parameter a delta changes, and at what cost.

    Attributes:
        name: canonical name.
        numel: entries of the parameter.
        changed: entries that the delta changes.
        bytes: bytes of the file that belong to it.
    """

    name: str
    numel: int
    changed: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything a report shows.

    Attributes:
        title: of the page, e.g. the name of the run's folder.
        facts: ("base", "minilm"), ("tuner", ...): the line under the title.
        headline: (what, value, detail) of the large numbers.
        history: rows of metrics.jsonl, in order.
        groups: metric by group of rows: group -> metric -> value (accuracy by type).
        tensors: the parameters the delta touches, in the base's order.
        parts: (part, bytes) of the file: positions, values, ports, header.
        config: the run's configuration as YAML.
        provenance: what the delta's file says of its making.
        commands: (what it does, command line) to go on with.
    """

    title: str
    facts: Sequence[tuple[str, str]] = ()
    headline: Sequence[tuple[str, str, str]] = ()
    history: Sequence[Mapping[str, Any]] = ()
    groups: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tensors: Sequence[TensorShare] = ()
    parts: Sequence[tuple[str, int]] = ()
    config: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    commands: Sequence[tuple[str, str]] = ()


def render(report: Report) -> str:
    """Return the page as HTML."""
    sections = [
        _section("Results by type of row", _groups(report.groups)),
        _section("Learning", _curves(report.history)),
        _section("Where in the network the task lives", _places(report.tensors)),
        _section("Size ledger", _ledger(report)),
        _section("How to use the delta", _commands(report.commands)),
        _section("How it was made", _made(report.config, report.provenance)),
    ]
    facts = " · ".join(f"{escape(k)} <b>{escape(v)}</b>" for k, v in report.facts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(report.title)}: graftwork report</title>"
        f"<style>{STYLE}</style></head><body><main>"
        f'<header><h1>{escape(report.title)}</h1><p class="facts">{facts}</p></header>'
        f"{_tiles(report.headline)}{''.join(sections)}"
        "<footer>made by graftwork; this file is self-contained</footer>"
        "</main></body></html>\n"
    )


def percent(part: float) -> str:
    """Return a share as percent with three significant digits.

    Example:
        >>> percent(0.0054321), percent(0.0)
        ('0.543 %', '0 %')
    """
    return f"{float(f'{100 * part:.3g}'):g} %"


def size(count: float) -> str:
    """Return a number of bytes for people.

    Example:
        >>> size(812), size(53_412)
        ('812 B', '53.4 kB')
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def _tiles(headline: Sequence[tuple[str, str, str]]) -> str:
    tiles = [
        f'<div class="tile"><span>{escape(what)}</span><b>{escape(value)}</b>'
        f"<small>{escape(detail)}</small></div>"
        for what, value, detail in headline
    ]
    return f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    top = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join(f"<tr>{''.join(f'<td>{escape(c)}</td>' for c in row)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _groups(groups: Mapping[str, Mapping[str, float]]) -> str:
    if not groups:
        return ""
    metrics = list(dict.fromkeys(m for values in groups.values() for m in values))
    rows = [[g, *(f"{v[m]:.4g}" if m in v else "" for m in metrics)] for g, v in groups.items()]
    return _table(["rows", *metrics], rows)


_ALIGNMENT = ("distance", "separability")


def _curves(history: Sequence[Mapping[str, Any]]) -> str:
    marks = _stage_marks(history)
    last = max((float(row["step"]) for row in history if "step" in row), default=0.0)
    loss = _column(history, "loss")
    window = max(1, len(loss) // 20)
    held = Series("held-out", _column(history, "eval/loss"), "dots", 1)
    charts = [
        _figure(
            "Loss",
            "Training batches (pale) and their running mean; held-out rows where measured.",
            line_chart(
                "loss",
                [
                    Series("batch", loss, "faint"),
                    Series("training", smooth(loss, window)),
                    *([held] if len(held.points) > 1 else []),
                ],
                marks=marks,
                x_last=last,
            ),
        )
    ]
    overall = sorted({k for row in history for k in row if k.startswith("eval/")})
    overall = [k for k in overall if k.count("/") == 1 and k != "eval/loss"]
    series = [
        Series(name.removeprefix("eval/"), _column(history, name), "dots", i % 4)
        for i, name in enumerate(overall)
    ]
    charts.append(
        _figure(
            "Held-out metrics",
            "The last dot is the stored delta.",
            line_chart(
                "held-out metrics",
                [s for s in series if len(s.points) > 1],
                marks=marks,
                x_last=last,
            ),
        )
    )
    aligned = [Series(n, _column(history, n), tone=i) for i, n in enumerate(_ALIGNMENT)]
    charts.append(
        _figure(
            "Alignment",
            "Distance of the embedded rows to what the base knows, and the share of their variance "
            "that lies between classes: it must not fall to 0.",
            line_chart("alignment", [s for s in aligned if s.points], marks=marks[1:], x_last=last),
        )
    )
    density = _column(history, "density")
    charts.append(
        _figure(
            "Share of weights open",
            "Expected share of the target weights that are allowed to differ from the base.",
            line_chart(
                "density",
                [Series("density", density, tone=2)],
                marks=marks,
                x_last=last,
                y_format=percent,
            ),
        )
    )
    return "".join(charts)


def _column(history: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [
        (float(row["step"]), float(row[key]))
        for row in history
        if isinstance(row.get(key), (int, float)) and "step" in row
    ]


def _stage_marks(history: Sequence[Mapping[str, Any]]) -> list[Mark]:
    """Return where stages begin: behind the last record of the stage before."""
    marks: list[Mark] = []
    reached = 0.0
    for row in history:
        stage = row.get("stage")
        if stage is not None and (not marks or marks[-1].label != stage):
            marks.append(Mark(reached, str(stage)))
        reached = float(row.get("step", reached))
    return marks if len(marks) > 1 else []


def _figure(title: str, caption: str, drawing: str) -> str:
    if not drawing:
        return ""
    return (
        f"<figure><figcaption><b>{escape(title)}</b> {escape(caption)}</figcaption>"
        f"{drawing}</figure>"
    )


def _places(tensors: Sequence[TensorShare]) -> str:
    touched = [t for t in tensors if t.changed]
    if not touched:
        return (
            "<p>The delta changes no weight of the base: everything it learnt is in its head.</p>"
        )
    split = {t.name: split_name(t.name) for t in tensors}
    layers = list(dict.fromkeys(layer for layer, _ in split.values() if layer))
    inside = [t for t in tensors if split[t.name][0]]
    outside = [t for t in touched if not split[t.name][0]]
    parts = []
    if len(layers) > 1:
        parts += [_heat(inside, split, layers), _by_layer(inside, split, layers)]
    else:
        outside = touched
    rows = [(t.name, t.changed / t.numel) for t in outside]
    parts.append(
        _figure(
            "Other parameters" if len(layers) > 1 else "By parameter",
            "Share of the entries that the delta changes.",
            bar_list(rows, value_format=percent, title="share changed by parameter"),
        )
    )
    return "".join(parts)


def split_name(name: str) -> tuple[str, str]:
    """Return (layer, kind) of a parameter name; layer is "" for what is in no numbered layer.

    Example:
        >>> split_name("encoder.layer.3.attention.self.query.weight")
        ('encoder.layer.3', 'attention.self.query.weight')
        >>> split_name("embeddings.word_embeddings.weight")
        ('', 'embeddings.word_embeddings.weight')
    """
    found = re.match(r"((?:.*?\.)??\d+)\.(.+)", name)
    return (found[1], found[2]) if found else ("", name)


def _heat(
    tensors: Sequence[TensorShare], split: Mapping[str, tuple[str, str]], layers: Sequence[str]
) -> str:
    stems = {layer.rpartition(".")[0] for layer in layers}
    stem = next(iter(stems)) if len(stems) == 1 else ""
    short = {layer: layer.removeprefix(f"{stem}.") if stem else layer for layer in layers}
    cells = {(split[t.name][1], short[split[t.name][0]]): t.changed / t.numel for t in tensors}
    grid = Grid(
        cells=cells,
        rows=sorted({kind for kind, _ in cells}),
        columns=[short[layer] for layer in layers],
        column_title=stem or "layer",
    )
    drawing = heat_map(grid, value_format=_short_percent, title="share changed, layer by kind")
    return _figure(
        "Share changed, by layer and kind of parameter",
        "In percent of the entries; the deepest colour is this delta's largest share, blank is "
        "untouched.",
        drawing,
    )


def _short_percent(part: float) -> str:
    return f"{100 * part:#.2g}".rstrip(".") if part else "0"


def _by_layer(
    tensors: Sequence[TensorShare], split: Mapping[str, tuple[str, str]], layers: Sequence[str]
) -> str:
    rows = []
    for layer in layers:
        mine = [t for t in tensors if split[t.name][0] == layer]
        rows.append((layer, sum(t.changed for t in mine) / sum(t.numel for t in mine)))
    drawing = bar_list(rows, value_format=percent, title="share changed by layer")
    return _figure("Share changed, by layer", "All parameters of a layer together.", drawing)


def _ledger(report: Report) -> str:
    if not report.parts:
        return ""
    total = sum(count for _, count in report.parts)
    bar = stacked_bar(report.parts, value_format=size, title="bytes by part")
    rows = [
        [
            t.name,
            f"{t.changed:,}",
            f"{t.numel:,}",
            percent(t.changed / t.numel),
            f"{t.bytes:,}",
            f"{t.bytes / t.changed:.2f}" if t.changed else "",
        ]
        for t in report.tensors
    ]
    head = ["parameter", "changed", "of", "share", "bytes", "bytes a value"]
    table = (
        f"<details><summary>By parameter</summary>{_table(head, rows)}</details>" if rows else ""
    )
    return f"<p>{total:,} bytes in one file.</p>{bar}{table}"


def _commands(commands: Sequence[tuple[str, str]]) -> str:
    return "".join(f"<p>{escape(what)}</p>{_pre(command)}" for what, command in commands)


def _made(config: str, provenance: Mapping[str, Any]) -> str:
    rows = [
        [key, value if isinstance(value, str) else json.dumps(value, default=str)]
        for key, value in provenance.items()
    ]
    return _folded("Provenance", _table(["field", "value"], rows) if rows else "") + _folded(
        "Configuration, for graftwork adapt --config", _pre(config)
    )


def _folded(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>" if body else ""


def _pre(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text else ""
