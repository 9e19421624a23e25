"""Ports of a mixed batch: each group's own module, on the group's own rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.serving._apart import run_apart
from graftwork.serving._layout import LayoutError, Rows, Unclear
from graftwork.serving._probe import Called
from graftwork.serving._state import Run, grouped


class RowPort(nn.Module):
    """One port name of a batch.

    Args:
        name: of the port.
        modules: one a group; None for groups that lack it, whose outputs are NaN.
        called: how it is called.
        run: says where the groups stand, and learns that the port was used.
    """

    def __init__(
        self, name: str, modules: Sequence[nn.Module | None], called: Called | None, run: Run
    ) -> None:
        super().__init__()
        self.name, self.called, self.run = name, called, run
        self.each = list(modules)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what each group's module gives for its rows."""
        if self.called is None:
            raise LayoutError(f"port {self.name!r} was not called when the call was tried")
        for part in (self.called.given, self.called.output):
            for layout in part.values():
                if isinstance(layout, Unclear):
                    raise LayoutError(f"an argument or output of port {self.name!r}: {layout.why}")
        self.run.consumed.add(self.name)
        given, output = self.called.given, self.called.output
        return run_apart(self.name, self.each, given, output, self.run, (args, kwargs))


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


class RowPrompt(nn.Module):
    """Prompts, or prefixes, of one length: each row gets its own.

    Args:
        name: of the port.
        kind: "prompt" or "prefix".
    """

    def __init__(self, name: str, kind: str) -> None:
        super().__init__()
        self.name, self.kind = name, kind
        self.run: Run | None = None
        self.each: Sequence[Any] = ()

    def forward(self, rows: Tensor) -> Tensor:
        """Return what `graftwork.nn.Prompt` or `Prefix` returns for rows of one task."""
        run = self.run
        assert run is not None, "a twin runs only while it is lent"
        span = run.spans.rows
        if len(rows) != span.count:
            raise LayoutError(f"port {self.name!r} got {len(rows)} rows, not {span.count}")
        run.consumed.add(self.name)
        vectors = torch.stack([module.vectors for module in self.each])[span.index]
        if self.kind == "prefix":
            return vectors.permute(1, 2, 0, 3, 4, 5)
        return torch.cat((vectors.to(rows.dtype), rows), dim=1)
