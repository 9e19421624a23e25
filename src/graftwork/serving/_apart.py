"""Modules that run once for each group, on the group's own rows, through the group's `view`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from graftwork.deltas import BaseLike, view
from graftwork.serving._groups import Group
from graftwork.serving._layout import (
    Layout,
    LayoutError,
    Layouts,
    Rows,
    Shared,
    leaves_of,
    map_leaves,
)
from graftwork.serving._state import Run, grouped


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """A module of each group.

    Attributes:
        modules: one a group.
        views: of the base with what the group does inside the module; None: nothing.
        bytes: what the views hold.
    """

    modules: tuple[nn.Module, ...]
    views: tuple[nn.Module | None, ...]
    bytes: int


def views_of(
    path: str,
    base: BaseLike,
    plain: nn.Module,
    groups: Sequence[Group],
    names: Sequence[str],
    ports: Sequence[str],
) -> Views:
    """Return the module at `path` as each group has it.

    Args:
        path: of the module.
        base: the base.
        plain: a copy of its module, for groups that change nothing there.
        groups: in order.
        names: canonical names of the parameters inside the module.
        ports: mounted ports inside the module.
    """
    views: list[nn.Module | None] = []
    size = 0
    for group in groups:
        own = []
        for held, weight in group.members:
            mine = [name for name in held.updates if base.names[name].name in names]
            theirs = [port for port in held.frame.ports if port in ports]
            if mine or theirs:
                own.append((held.delta(mine, theirs), weight))
                size += 5 * sum(held.updates[name].bytes for name in mine)
        views.append(view(base, own, unused="allow").eval() if own else None)
    modules = tuple((v or plain).get_submodule(path) for v in views)
    return Views(modules, tuple(views), size)


Arguments = tuple[Sequence[Any], Mapping[str, Any]]


def run_apart(
    path: str,
    modules: Sequence[Callable[..., Any] | None],
    given: Layouts,
    output: Layouts,
    run: Run,
    arguments: Arguments,
) -> Any:
    """Return what each group's own module gives for its rows, put together again.

    Args:
        path: of the module, for messages.
        modules: one a group; None where a group has none: what it gets are NaN.
        given: layouts of the arguments.
        output: layouts of what comes out.
        run: says where the groups stand.
        arguments: positional and named ones.

    Raises:
        LayoutError: the module is called in another way than when it was tried.
    """
    args, kwargs = arguments
    tree: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    sizes = run.spans.rows.bounds
    found: list[Any] = []
    for group, module in enumerate(modules):
        if module is None or sizes[group + 1] == sizes[group]:
            found.append(None)
            continue
        own = map_leaves(partial(_share, path, given, run, group), tree)
        named = {key: value for key, value in own.items() if isinstance(key, str)}
        found.append(module(*(own[i] for i in range(len(args))), **named))
    return _joined(path, found, output, run)


def _share(path: str, given: Layouts, run: Run, group: int, at: tuple[Any, ...], leaf: Any) -> Any:
    """Return a group's part of one argument."""
    if not isinstance(leaf, Tensor):
        return leaf
    layout = given.get(at)
    if isinstance(layout, Shared):
        layout.check(leaf)
        return leaf
    if not isinstance(layout, Rows):
        raise LayoutError(
            f"module {path!r} is called with the argument {_shown(at)}, which it did not get when "
            "it was tried, so its rows cannot be told"
        )
    first, bounds, span = grouped(run, layout, leaf)
    part = first[bounds[group] : bounds[group + 1]]
    return layout.back(part, span.bounds[group + 1] - span.bounds[group])


def _joined(path: str, found: Sequence[Any], output: Layouts, run: Run) -> Any:
    """Return the outputs of the groups as one."""
    every = [None if tree is None else leaves_of(tree) for tree in found]

    def join(at: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        layout: Layout | None = output.get(at)
        if not isinstance(layout, Rows):
            raise LayoutError(
                f"module {path!r} gives {_shown(at)}, which it did not give when it was tried"
            )
        ends = run.span(layout).bounds
        counts = [b - a for a, b in pairwise(ends)]
        parts = [None if leaves is None else leaves.get(at) for leaves in every]
        firsts = [
            None if part is None or not count else layout.first(part, count)
            for part, count in zip(parts, counts, strict=True)
        ]
        return layout.back(_filled(path, at, firsts, counts), ends[-1])

    return map_leaves(join, next(tree for tree in found if tree is not None))


def _filled(
    path: str, at: tuple[Any, ...], firsts: Sequence[Tensor | None], counts: Sequence[int]
) -> Tensor:
    """Return the groups' tensors under each other, with NaN where a group has none."""
    some = next(part for part in firsts if part is not None)
    per = {len(p) // n for p, n in zip(firsts, counts, strict=True) if p is not None}
    shapes = {part.shape[1:] for part in firsts if part is not None}
    if len(per) > 1 or len(shapes) > 1:
        raise LayoutError(
            f"module {path!r} gives {_shown(at)} in another shape for one group than for another"
        )
    size, empty = per.pop(), torch.nan if some.is_floating_point() else 0
    return torch.cat(
        [
            some.new_full((size * count, *some.shape[1:]), empty) if part is None else part
            for part, count in zip(firsts, counts, strict=True)
        ]
    )


def _shown(at: tuple[Any, ...]) -> str:
    return ".".join(map(str, at)) or "a tensor"
