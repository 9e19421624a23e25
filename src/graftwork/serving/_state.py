"""What one run of a batch knows; it travels with the run, and nothing of it is global."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from graftwork.serving._groups import Group, Span, Spans
from graftwork.serving._layout import LayoutError, Rows
from graftwork.serving._probe import Called


@dataclass(slots=True, eq=False)
class Run:
    """One run.

    Attributes:
        groups: in the order in which they stand in the batch.
        spans: where.
        terms: path of a site -> what the groups do there.
        called: names of ports of a call -> how each of them is called.
        consumed: paths of sites and names of ports that ran.
        paths: how sparse entries were applied -> how often.
    """

    groups: tuple[Group, ...]
    spans: Spans
    terms: Mapping[str, Any]
    called: Mapping[frozenset[str], Mapping[str, Called]]
    consumed: set[str] = field(default_factory=set)
    paths: dict[str, int] = field(default_factory=dict)

    def span(self, rows: Rows) -> Span:
        """Return the span that a layout speaks of.

        Raises:
            LayoutError: it is one of packed items, and the batch has none.
        """
        if not rows.packed:
            return self.spans.rows
        if self.spans.items is None:
            raise LayoutError("the base was tried with packed rows, and these are not")
        return self.spans.items


def grouped(run: Run, rows: Rows, tensor: Tensor) -> tuple[Tensor, list[int], Span]:
    """Return a tensor with its rows first, and the bounds of the groups in that dimension."""
    span = run.span(rows)
    first = rows.first(tensor, span.count)
    return first, span.times(first.shape[0] // max(span.count, 1)), span
