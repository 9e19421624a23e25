"""Trying a base on a few rows, to see how each of its modules is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._batch import Batch, map_tree
from graftwork.serving._layout import Layout, Layouts, Leaves, Unclear, kept, layouts_of

Call = Callable[[nn.Module, nn.ModuleDict, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Called:
    """How one module was called.

    Attributes:
        given: layouts of its arguments: (position or name, ...) -> layout.
        output: layouts of what it gave.
    """

    given: Layouts
    output: Layouts

    @property
    def first(self) -> Layout:
        """The layout of the first argument."""
        return next(iter(self.given.values()), Unclear("it was called without arguments"))

    @property
    def result(self) -> Layout:
        """The layout of the output, or of its first part."""
        return next(iter(self.output.values()), Unclear("it gave nothing"))


class _EnoughError(Exception):
    """The base has run once."""


def probe(module: nn.Module, ports: nn.ModuleDict, batch: Batch, call: Call) -> dict[str, Called]:
    """Return how each module of a copy of the base is called, by its path.

    Args:
        module: a copy of the base's module tree; hooks are put into it and taken out again.
        ports: those of the batch's first row.
        batch: two rows or more; the first, and one that differs from it, are used.
        call: is stopped after the base has run once, so a `generate` costs one forward.
    """
    pair = _two_rows(batch)
    items = None
    if pair.row_of is not None:
        items = (int((pair.row_of == 0).sum()), int((pair.row_of == 1).sum()))
    two = _record(module, ports, pair, call)
    three = _record(module, ports, pair.select(torch.tensor([0, 1, 1])), call)
    return {
        path: Called(*(layouts_of(two[path][i], three[path][i], items) for i in (0, 1)))
        for path in two
        if path in three
    }


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return what a call gets of a batch: its inputs, and `row_of` where rows are packed."""
    if batch.row_of is None:
        return dict(batch.inputs)
    return {**batch.inputs, "row_of": batch.row_of}


def _two_rows(batch: Batch) -> Batch:
    """Return the first row and one that differs from it, made up where all are the same."""
    if len(batch) == 1:
        batch = batch.select(torch.tensor([0, 0]))
    first = batch.select(torch.tensor([0]))
    mine = kept(first.inputs)
    for index in range(1, len(batch)):
        if not _same(mine, kept(batch.select(torch.tensor([index])).inputs)):
            return batch.select(torch.tensor([0, index]))
    pair = batch.select(torch.tensor([0, 1]))
    if batch.row_of is not None:
        return pair
    return replace(pair, inputs=map_tree(_changed, pair.inputs))


def _same(mine: Leaves, other: Leaves) -> bool:
    return all(
        not isinstance(leaf, Tensor) or torch.equal(leaf, other[path])
        for path, leaf in mine.items()
    )


def _changed(tensor: Tensor) -> Tensor:
    """Return `(2, ...)` rows of which the second is turned round along its first dimension."""
    if tensor.dim() < 2:
        return tensor
    return torch.stack((tensor[0], tensor[1].roll(1, 0)))


def _record(
    module: nn.Module, ports: nn.ModuleDict, batch: Batch, call: Call
) -> Mapping[str, tuple[Leaves, Leaves]]:
    found: dict[str, tuple[Leaves, Leaves]] = {}
    given: dict[str, Leaves] = {}

    def before(path: str, args: Any, kwargs: Any) -> None:
        if path not in given:
            given[path] = kept({**dict(enumerate(args)), **kwargs})

    def after(path: str, output: Any) -> None:
        if path not in found:
            found[path] = (given[path], kept(output))
        if path == "":
            raise _EnoughError

    hooks = []
    for path, part in module.named_modules():
        hooks += [
            part.register_forward_pre_hook(
                lambda _m, args, kwargs, path=path: before(path, args, kwargs), with_kwargs=True
            ),
            part.register_forward_hook(lambda _m, _a, output, path=path: after(path, output)),
        ]
    try:
        with torch.no_grad():
            call(module, ports, inputs_of(batch))
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return found
