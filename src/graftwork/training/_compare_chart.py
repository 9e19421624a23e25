"""The picture of a comparison: the main metric against bytes, memory and time, as one SVG file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from graftwork.training._charts import ticks

_PANEL, _HIGH, _LEFT, _TOP, _BOTTOM = 300.0, 270.0, 58.0, 34.0, 46.0
_INNER = _PANEL - 34.0
_COLOURS = ("#2467ad", "#d17a1d", "#2c8a68", "#8659b5", "#c0392b", "#8b95a1", "#1b9e9e", "#b5651d")
_AXES = (("bytes", "bytes of the file"), ("memory", "bytes of a step"), ("seconds", "seconds"))
_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


@dataclass(frozen=True, slots=True)
class _Panel:
    """One chart: where values of x (in decades) and y lie."""

    left: float
    x: tuple[int, int]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return self.left + across * _INNER, _TOP + _HIGH - up * _HIGH


def draw(document: Mapping[str, Any]) -> str:
    """Return the SVG of the document that `compare` gives; methods that did not run are left out.

    Each method is a dot at its mean, with a line of one deviation over seeds to both sides.
    """
    shown = [entry for entry in document["results"] if entry["status"] != "left out"]
    wide = _LEFT + _PANEL * len(_AXES) + 8
    legend = _TOP + _HIGH + _BOTTOM + 16
    lines = math.ceil(len(shown) / 6)
    high = legend + 18 * lines + 6
    levels = ticks(*_reach(shown))
    parts = [_text(8, 18, f"{document['metric']} on held-out rows", size=13)]
    for number, (key, title) in enumerate(_AXES):
        panel = _Panel(_LEFT + number * _PANEL, _decades(shown, key), (levels[0], levels[-1]))
        parts += [_frame(panel, levels, title, named=number == 0)]
        if key == "bytes" and _inside(panel, document["budget_bytes"]):
            parts.append(_budget(panel, document["budget_bytes"]))
        parts += [_dot(panel, entry, key, i) for i, entry in enumerate(shown)]
    parts += [_key(entry, i, legend) for i, entry in enumerate(shown)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:.0f} {high:.0f}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _reach(shown: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    ends = [
        entry["mean"] + side * (entry["deviation"] or 0.0) for entry in shown for side in (-1, 1)
    ]
    low, high = min(ends), max(ends)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _decades(shown: Sequence[Mapping[str, Any]], key: str) -> tuple[int, int]:
    places = [math.log10(max(entry[key], 1e-3)) for entry in shown]
    low, high = math.floor(min(places)), math.ceil(max(places))
    return low, max(high, low + 1)


def _frame(panel: _Panel, levels: Sequence[float], title: str, *, named: bool) -> str:
    parts = []
    for level in levels:
        _, y = panel.at(10.0 ** panel.x[0], level)
        parts.append(_line((panel.left, y), (panel.left + _INNER, y)))
        if named:
            parts.append(_text(panel.left - 7, y + 4, f"{level:g}", anchor="end"))
    for decade in range(panel.x[0], panel.x[1] + 1):
        x, y = panel.at(10.0**decade, levels[0])
        parts.append(_text(x, y + 16, _short(10.0**decade), anchor="middle"))
    bottom = _TOP + _HIGH
    parts.append(_text(panel.left + _INNER / 2, bottom + 34, title, anchor="middle"))
    return "".join(parts)


def _inside(panel: _Panel, value: float) -> bool:
    return panel.x[0] <= math.log10(value) <= panel.x[1]


def _budget(panel: _Panel, budget: float) -> str:
    x, y = panel.at(budget, panel.y[0])
    line = f'<path d="M{x:.1f} {y:.1f}V{_TOP:.1f}" stroke="#66707b" stroke-dasharray="4 3"/>'
    return line + _text(x - 4, _TOP + 10, "budget", anchor="end")


def _dot(panel: _Panel, entry: Mapping[str, Any], key: str, number: int) -> str:
    colour, spread = _COLOURS[number % len(_COLOURS)], entry["deviation"] or 0.0
    place = max(entry[key], 1e-3)
    x, y = panel.at(place, entry["mean"])
    (_, top), (_, low) = (panel.at(place, entry["mean"] + side * spread) for side in (1, -1))
    fill = "#fff" if entry["status"] == "reference" else colour
    hover = f"{entry['method']}: {entry['mean']:.4g}, {_short(place)}"
    return (
        f"<g><title>{escape(hover)}</title>"
        f'<path d="M{x:.1f} {top:.1f}V{low:.1f}" stroke="{colour}" stroke-width="1.5"/>'
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
        'stroke-width="1.8"/></g>'
    )


def _key(entry: Mapping[str, Any], number: int, top: float) -> str:
    x, y = _LEFT + 145 * (number % 6), top + 18 * (number // 6)
    colour = _COLOURS[number % len(_COLOURS)]
    fill = "#fff" if entry["status"] == "reference" else colour
    dot = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}"/>'
    return dot + _text(x + 9, y + 4, entry["method"])


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 11) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" '
        f'fill="#1d2126">{escape(text)}</text>'
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#e4e6e9"/>'


def _short(value: float) -> str:
    scale, unit = next(((s, u) for s, u in _UNITS if value >= s), (1.0, ""))
    return f"{value / scale:.3g}{unit}"
