"""Charts of the report as inline SVG, written by hand: no plotting library, no script.

Every colour is a CSS variable of the page, so the same drawing serves light and dark. Text is
escaped here; callers pass plain strings. Numbers that are not finite are left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

Format = Callable[[float], str]

WIDTH = 720
"""Width of every drawing in its own units; the page scales it to the column."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart.

    Attributes:
        name: shown in the legend and on hover.
        points: (x, y) pairs, x increasing.
        style: "line", "faint" (raw values behind a smoothed line) or "dots" (few measurements).
        tone: which of the page's four line colours, 0 to 3.
    """

    name: str
    points: Sequence[tuple[float, float]]
    style: Literal["line", "faint", "dots"] = "line"
    tone: int = 0


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line at `x` with a label, such as the start of a stage."""

    x: float
    label: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Where data coordinates lie inside a drawing."""

    x: tuple[float, float]
    y: tuple[float, float]
    left: float = 56
    top: float = 22
    right: float = 14
    bottom: float = 34
    height: float = 230

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of data point (x, y)."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        wide = WIDTH - self.left - self.right
        high = self.height - self.top - self.bottom
        return self.left + across * wide, self.height - self.bottom - up * high


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round numbers that cover [low, high], about `about` of them.

    Example:
        >>> ticks(0.0, 0.93)
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    """
    span = (high - low) or abs(high) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, max(last, first + 1) + 1)]


def smooth(points: Sequence[tuple[float, float]], window: int) -> list[tuple[float, float]]:
    """Return the running mean of y over the last `window` points."""
    out: list[tuple[float, float]] = []
    total = 0.0
    for i, (x, y) in enumerate(points):
        total += y
        if i >= window:
            total -= points[i - window][1]
        out.append((x, total / min(i + 1, window)))
    return out


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    marks: Sequence[Mark] = (),
    y_range: tuple[float, float] | None = None,
    y_format: Format = lambda v: f"{v:g}",
) -> str:
    """Return a line chart with axes, a legend and labelled vertical marks; "" without points."""
    clean = [_finite(s) for s in series]
    points = [p for s in clean for p in s.points]
    if not points:
        return ""
    low, high = y_range or (min(p[1] for p in points), max(p[1] for p in points))
    shown = ticks(low, high)
    x_last = max(p[0] for p in points)
    frame = Frame(x=(0.0, x_last or 1.0), y=(shown[0], shown[-1]))
    parts = [_y_axis(frame, shown, y_format), _x_axis(frame), _marks(frame, marks)]
    parts += [_series(frame, s, y_format) for s in clean if s.points]
    return _svg(title, frame.height, parts) + _legend(clean)


def bar_list(
    rows: Sequence[tuple[str, float]], *, value_format: Format, title: str, top: float | None = None
) -> str:
    """Return horizontal bars with the name at the left and the value at the right of each."""
    if not rows:
        return ""
    most = top or max(v for _, v in rows) or 1.0
    left, line, wide = 250.0, 22.0, WIDTH - 250.0 - 110.0
    parts = []
    for i, (name, value) in enumerate(rows):
        y, length = i * line, max(wide * value / most, 1.0 if value > 0 else 0.0)
        parts.append(
            f'<text class="name" x="{left - 8:.0f}" y="{y + 15:.1f}" text-anchor="end">'
            f"{escape(_shorten(name, 38))}<title>{escape(name)}</title></text>"
            f'<rect class="bar" x="{left:.0f}" y="{y + 4:.1f}" width="{length:.1f}" height="14" rx="2"/>'
            f'<text class="value" x="{left + length + 6:.1f}" y="{y + 15:.1f}">'
            f"{escape(value_format(value))}</text>"
        )
    return _svg(title, len(rows) * line + 4, parts)


def stacked_bar(parts: Sequence[tuple[str, float]], *, value_format: Format, title: str) -> str:
    """Return one bar of `WIDTH`, cut into the parts, with a legend of their values."""
    total = sum(v for _, v in parts)
    if total <= 0:
        return ""
    x, drawn, keys = 0.0, [], []
    for i, (name, value) in enumerate(parts):
        width = WIDTH * value / total
        text = f"{name}: {value_format(value)}, {value / total:.0%}"
        drawn.append(
            f'<rect class="tone{i % 4} part" x="{x:.1f}" y="0" width="{width:.1f}" height="28">'
            f"<title>{escape(text)}</title></rect>"
        )
        keys.append(
            f'<span><i class="key tone{i % 4}"></i>{escape(name)} '
            f"<b>{escape(value_format(value))}</b> ({value / total:.0%})</span>"
        )
        x += width
    return _svg(title, 28, drawn) + f'<p class="legend">{"".join(keys)}</p>'


def heat_map(
    cells: Mapping[tuple[str, str], float],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    column_title: str,
    value_format: Format,
    title: str,
) -> str:
    """Return a grid of `cells[row, column]`: the deeper the colour, the larger the value."""
    most = max(cells.values(), default=0.0) or 1.0
    left, top, line = 230.0, 40.0, 24.0
    wide = min((WIDTH - left - 4) / max(len(columns), 1), 78.0)
    parts = [
        f'<text class="axis" x="{left + wide * len(columns) / 2:.1f}" y="13" text-anchor="middle">'
        f"{escape(column_title)}</text>"
    ]
    every = max(1, math.ceil(18 / wide))
    for j, column in enumerate(columns):
        if j % every == 0:
            parts.append(
                f'<text class="axis" x="{left + (j + 0.5) * wide:.1f}" y="32" text-anchor="middle">'
                f"{escape(column)}</text>"
            )
    for i, row in enumerate(rows):
        y = top + i * line
        parts.append(
            f'<text class="name" x="{left - 8:.0f}" y="{y + 16:.1f}" text-anchor="end">'
            f"{escape(_shorten(row, 34))}<title>{escape(row)}</title></text>"
        )
        parts += [
            _cell(
                left + j * wide, y, wide, cells[row, column], most, value_format, f"{row}, {column}"
            )
            for j, column in enumerate(columns)
            if (row, column) in cells
        ]
    return _svg(title, top + len(rows) * line + 2, parts)


def _cell(
    x: float, y: float, wide: float, value: float, most: float, value_format: Format, name: str
) -> str:
    depth = value / most
    text = value_format(value)
    shown = (
        f'<text class="{"cell deep" if depth > 0.55 else "cell"}" x="{x + wide / 2:.1f}" '
        f'y="{y + 16:.1f}" text-anchor="middle">{escape(text)}</text>'
        if wide >= 40
        else ""
    )
    return (
        f'<g><title>{escape(name)}: {escape(text)}</title><rect class="grid" x="{x + 1:.1f}" '
        f'y="{y + 1:.1f}" width="{wide - 2:.1f}" height="22" rx="3"/><rect class="heat" '
        f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{wide - 2:.1f}" height="22" rx="3" '
        f'fill-opacity="{depth:.3f}"/>{shown}</g>'
    )


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, points, series.style, series.tone)


def _y_axis(frame: Frame, shown: Sequence[float], y_format: Format) -> str:
    parts = []
    for value in shown:
        _, y = frame.at(frame.x[0], value)
        parts.append(
            f'<line class="grid-line" x1="{frame.left}" x2="{WIDTH - frame.right}" '
            f'y1="{y:.1f}" y2="{y:.1f}"/><text class="axis" x="{frame.left - 7}" '
            f'y="{y + 4:.1f}" text-anchor="end">{escape(y_format(value))}</text>'
        )
    return "".join(parts)


def _x_axis(frame: Frame) -> str:
    parts = []
    for value in ticks(*frame.x):
        if value > frame.x[1] * (1 + 1e-9):
            continue
        x, y = frame.at(value, frame.y[0])
        parts.append(
            f'<text class="axis" x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{value:g}</text>'
        )
    parts.append(
        f'<text class="axis" x="{(frame.left + WIDTH) / 2:.0f}" y="{frame.height - 3:.0f}" '
        'text-anchor="middle">optimiser steps</text>'
    )
    return "".join(parts)


def _marks(frame: Frame, marks: Sequence[Mark]) -> str:
    parts = []
    for mark in marks:
        x, y = frame.at(mark.x, frame.y[0])
        parts.append(
            f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top - 8}" y2="{y:.1f}"/>'
            f'<text class="mark-label" x="{x + 5:.1f}" y="{frame.top - 8}">{escape(mark.label)}</text>'
        )
    return "".join(parts)


def _series(frame: Frame, series: Series, y_format: Format) -> str:
    places = [frame.at(*p) for p in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline class="stroke{series.tone} {series.style}" points="{path}"/>'
    if series.style != "dots" and len(places) > 1:
        return line
    dots = [
        f'<circle class="tone{series.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
        f"<title>{escape(series.name)}, step {px:g}: {escape(y_format(py))}</title></circle>"
        for (x, y), (px, py) in zip(places, series.points, strict=True)
    ]
    return line + "".join(dots)


def _legend(series: Sequence[Series]) -> str:
    shown = [s for s in series if s.points and s.style != "faint"]
    if len(shown) < 2:
        return ""
    keys = [f'<span><i class="key tone{s.tone}"></i>{escape(s.name)}</span>' for s in shown]
    return f'<p class="legend">{"".join(keys)}</p>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _shorten(name: str, limit: int) -> str:
    return name if len(name) <= limit else "…" + name[-limit + 1 :]
