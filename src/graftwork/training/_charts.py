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
        tone: which of the page's line colours, 0 to 3.
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
    x_last: float | None = None,
    y_format: Format = lambda v: f"{v:g}",
) -> str:
    """Return a line chart with axes, a legend and labelled vertical marks; "" without points.

    The x axis runs from 0 to `x_last`, by default the last point, so charts of one run can agree.
    """
    clean = [_finite(s) for s in series]
    points = [p for s in clean for p in s.points]
    if not points:
        return ""
    shown = ticks(min(p[1] for p in points), max(p[1] for p in points))
    last = x_last or max(p[0] for p in points) or 1.0
    frame = Frame(x=(0.0, last), y=(shown[0], shown[-1]))
    parts = [_y_axis(frame, shown, y_format), _x_axis(frame), _marks(frame, marks)]
    parts += [_series(frame, s, y_format) for s in clean if s.points]
    return _svg(title, frame.height, parts) + _legend(clean)


def bar_list(rows: Sequence[tuple[str, float]], *, value_format: Format, title: str) -> str:
    """Return horizontal bars with the name at the left and the value at the right of each."""
    if not rows:
        return ""
    most = max(value for _, value in rows) or 1.0
    left, line, wide = 250.0, 22.0, WIDTH - 250.0 - 110.0
    parts = []
    for i, (name, value) in enumerate(rows):
        y, length = i * line, max(wide * value / most, 1.0 if value > 0 else 0.0)
        parts += [
            _text("name", left - 8, y + 15, _shorten(name, 38), "end", hover=name),
            _rect("bar", (left, y + 4, length, 14)),
            _text("value", left + length + 6, y + 15, value_format(value)),
        ]
    return _svg(title, len(rows) * line + 4, parts)


def stacked_bar(parts: Sequence[tuple[str, float]], *, value_format: Format, title: str) -> str:
    """Return one bar of `WIDTH`, cut into the parts, with a legend of their values."""
    total = sum(value for _, value in parts)
    if total <= 0:
        return ""
    x, drawn, keys = 0.0, [], []
    for i, (name, value) in enumerate(parts):
        width, shown = WIDTH * value / total, value_format(value)
        text = f"{name}: {shown}, {value / total:.0%}"
        drawn.append(_rect(f"tone{i % 5} part", (x, 0, width, 28), hover=text))
        keys.append(_key(i % 5, f"{escape(name)} <b>{escape(shown)}</b> ({value / total:.0%})"))
        x += width
    return _svg(title, 28, drawn) + f'<p class="legend">{"".join(keys)}</p>'


@dataclass(frozen=True, slots=True)
class Grid:
    """What a heat map shows.

    Attributes:
        cells: (row, column) -> value >= 0; a pair that is absent is left blank.
        rows: names of the rows, top to bottom.
        columns: names of the columns, left to right.
        column_title: what the columns are.
    """

    cells: Mapping[tuple[str, str], float]
    rows: Sequence[str]
    columns: Sequence[str]
    column_title: str


def heat_map(grid: Grid, *, value_format: Format, title: str) -> str:
    """Return a grid of cells: the deeper the colour, the larger the value."""
    most = max(grid.cells.values(), default=0.0) or 1.0
    left, top, line = 230.0, 40.0, 24.0
    wide = min((WIDTH - left - 4) / max(len(grid.columns), 1), 78.0)
    middle = left + wide * len(grid.columns) / 2
    parts = [_text("axis", middle, 13, grid.column_title, "middle")]
    every = max(1, math.ceil(18 / wide))
    for j, column in enumerate(grid.columns):
        if j % every == 0:
            parts.append(_text("axis", left + (j + 0.5) * wide, 32, column, "middle"))
    for i, row in enumerate(grid.rows):
        y = top + i * line
        parts.append(_text("name", left - 8, y + 16, _shorten(row, 34), "end", hover=row))
        for j, column in enumerate(grid.columns):
            value = grid.cells.get((row, column))
            if value is not None:
                place = (left + j * wide + 1, y + 1, wide - 2, 22.0)
                shown = value_format(value)
                parts.append(_cell(place, value / most, shown, f"{row}, {column}: {shown}"))
    return _svg(title, top + len(grid.rows) * line + 2, parts)


Box = tuple[float, float, float, float]
"""x, y, width, height."""


def _cell(place: Box, depth: float, shown: str, hover: str) -> str:
    x, y, wide, _ = place
    style = "cell deep" if depth > 0.55 else "cell"
    label = _text(style, x + wide / 2, y + 15, shown, "middle") if wide >= 38 else ""
    heat = _rect("heat", place, rx=3, extra=f' fill-opacity="{depth:.3f}"')
    return f"<g><title>{escape(hover)}</title>{_rect('grid', place, rx=3)}{heat}{label}</g>"


def _finite(series: Series) -> Series:
    points = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, points, series.style, series.tone)


def _y_axis(frame: Frame, shown: Sequence[float], y_format: Format) -> str:
    parts = []
    for value in shown:
        _, y = frame.at(frame.x[0], value)
        parts.append(_line("grid-line", (frame.left, y), (WIDTH - frame.right, y)))
        parts.append(_text("axis", frame.left - 7, y + 4, y_format(value), "end"))
    return "".join(parts)


def _x_axis(frame: Frame) -> str:
    parts = []
    for value in ticks(*frame.x):
        if value <= frame.x[1] * (1 + 1e-9):
            x, y = frame.at(value, frame.y[0])
            parts.append(_text("axis", x, y + 16, f"{value:g}", "middle"))
    middle = (frame.left + WIDTH) / 2
    parts.append(_text("axis", middle, frame.height - 3, "optimiser steps", "middle"))
    return "".join(parts)


def _marks(frame: Frame, marks: Sequence[Mark]) -> str:
    parts = []
    for mark in marks:
        x, y = frame.at(mark.x, frame.y[0])
        parts.append(_line("mark", (x, frame.top - 14), (x, y)))
        late = x > 0.8 * WIDTH
        anchor = "end" if late else "start"
        parts.append(
            _text("mark-label", x - 5 if late else x + 5, frame.top - 6, mark.label, anchor)
        )
    return "".join(parts)


def _series(frame: Frame, series: Series, y_format: Format) -> str:
    places = [frame.at(*p) for p in series.points]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    line = f'<polyline class="stroke{series.tone} {series.style}" points="{path}"/>'
    if series.style != "dots" and len(places) > 1:
        return line
    dots = []
    for (x, y), (px, py) in zip(places, series.points, strict=True):
        hover = escape(f"{series.name}, step {px:g}: {y_format(py)}")
        dots.append(
            f'<circle class="tone{series.tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
            f"<title>{hover}</title></circle>"
        )
    return line + "".join(dots)


def _legend(series: Sequence[Series]) -> str:
    shown = [s for s in series if s.points and s.style != "faint"]
    if len(shown) < 2:
        return ""
    return f'<p class="legend">{"".join(_key(s.tone, escape(s.name)) for s in shown)}</p>'


def _key(tone: int, html: str) -> str:
    return f'<span><i class="key tone{tone}"></i>{html}</span>'


def _text(
    style: str, x: float, y: float, text: str, anchor: str = "start", *, hover: str = ""
) -> str:
    title = f"<title>{escape(hover)}</title>" if hover and hover != text else ""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{style}" {place}>{escape(text)}{title}</text>'


def _rect(style: str, box: Box, *, rx: int = 2, hover: str = "", extra: str = "") -> str:
    x, y, wide, high = box
    place = f'x="{x:.1f}" y="{y:.1f}" width="{max(wide, 0):.1f}" height="{high:.0f}"'
    title = f"<title>{escape(hover)}</title>" if hover else ""
    return f'<rect class="{style}" {place} rx="{rx}"{extra}>{title}</rect>'


def _line(style: str, start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )


def _shorten(name: str, limit: int) -> str:
    return name if len(name) <= limit else "…" + name[-limit + 1 :]
