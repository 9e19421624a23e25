"""Ports of a mixed batch: each group's own module, on the group's own rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from graftwork._errors import UnsupportedError
from graftwork.serving._layout import Rows
from graftwork.serving._state import Run, grouped


class RowPort(nn.Module):
    """One port name of a batch.

    Args:
        name: of the port.
        modules: one a group; None for groups that lack it, whose outputs are NaN.
        run: says where the groups stand, and learns that the port was used.
    """

    def __init__(self, name: str, modules: Sequence[nn.Module | None], run: Run) -> None:
        super().__init__()
        self.name, self.run = name, run
        self.each = list(modules)
        self.widths: tuple[int, ...] = ()

    def forward(self, x: Tensor, *more: Any) -> Tensor:
        """Return what each group's module gives for its rows `(B, ...)`.

        The widest sets the last dimension; narrower outputs are filled with NaN.
        """
        first, bounds, _ = grouped(self.run, Rows(0), x)
        found: list[Tensor | None] = []
        for group, module in enumerate(self.each):
            part = first[bounds[group] : bounds[group + 1]]
            found.append(None if module is None or not len(part) else module(part, *more))
        self.run.consumed.add(self.name)
        self.widths = tuple(0 if part is None else part.shape[-1] for part in found)
        return _together(self.name, found, bounds, max(self.widths))


def _together(
    name: str, found: Sequence[Tensor | None], bounds: Sequence[int], width: int
) -> Tensor:
    some = next(part for part in found if part is not None)
    parts = []
    for group, part in enumerate(found):
        size = bounds[group + 1] - bounds[group]
        if part is None:
            part = some.new_full((size, *some.shape[1:-1], width), torch.nan)
        if part.shape[1:-1] != some.shape[1:-1]:
            raise UnsupportedError(
                f"port {name!r} gives {tuple(some.shape[1:])} for one row and "
                f"{tuple(part.shape[1:])} for another, which one batch cannot hold"
            )
        missing = width - part.shape[-1]
        parts.append(functional.pad(part, (0, missing), value=torch.nan) if missing else part)
    return torch.cat(parts)


def follow(
    name: str, modules: Sequence[nn.Module | None], layout: Rows, run: Run
) -> Callable[..., Any]:
    """Return a forward hook that puts each group's bottleneck after a module."""

    def own(tensor: Tensor) -> Tensor:
        first, bounds, span = grouped(run, layout, tensor)
        parts = []
        for group, module in enumerate(modules):
            part = first[bounds[group] : bounds[group + 1]]
            parts.append(part if module is None or not len(part) else module(part))
        return layout.back(torch.cat(parts), span.count)

    def after(_module: nn.Module, _args: Any, output: Any) -> Any:
        run.consumed.add(name)
        if isinstance(output, Tensor):
            return own(output)
        return (own(output[0]), *output[1:])

    return after
