"""Trying a base on a few rows, to see how each of its modules is called."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from graftwork._batch import Batch, map_tree
from graftwork.serving._layout import (
    Layout,
    Layouts,
    Leaves,
    Rows,
    Shared,
    Unclear,
    close,
    entries_of,
    kept,
    layouts_of,
    settled,
)

Call = Callable[[nn.Module, nn.ModuleDict, Any], Tensor]


@dataclass(frozen=True, slots=True)
class Called:
    """How one module was called.

    Attributes:
        given: layouts of its arguments: (position or name, ...) -> layout.
        output: layouts of what it gave.
        entries: entries of a row in each of its arguments that has rows.
    """

    given: Layouts
    output: Layouts
    entries: Mapping[tuple[Any, ...], int] = field(default_factory=dict)

    @property
    def first(self) -> Layout:
        """The layout of the first argument."""
        return next(iter(self.given.values()), Unclear("it was called without arguments"))

    @property
    def result(self) -> Layout:
        """The layout of the output, or of its first part."""
        return next(iter(self.output.values()), Unclear("it gave nothing"))


class _EnoughError(Exception):
    """What was to be seen has been seen."""


PORT = "port:"
"""What a port's name has before it in what `probe` returns."""


def probe(module: nn.Module, ports: nn.ModuleDict, batch: Batch, call: Call) -> dict[str, Called]:
    """Return how each module of a copy of the base is called, by its path, and so each port.

    Args:
        module: a copy of the base's module tree; hooks are put into it and taken out again.
        ports: those of the batch's first row.
        batch: the first row, and one that differs from it, are used.
        call: is stopped after the base and all ports have run once, so a `generate` costs one
            forward.
    """
    pair = _two_rows(batch)
    items = None
    if pair.row_of is not None:
        items = (int((pair.row_of == 0).sum()), int((pair.row_of == 1).sum()))
    two = _record(module, ports, pair, call)
    three = _record(module, ports, pair.select(torch.tensor([0, 1, 1])), call)
    found = {
        path: _called(calls, three[path], items) for path, calls in two.items() if path in three
    }
    for path, called in found.items():
        if _one_table(module, path, called) and not _for_all(module, ports, pair, call, path, two):
            found[path] = replace(called, given={at: Shared(False) for at in called.given})
    orders = _orders(two, found)
    return {
        path: Called(
            {at: settled(layout, orders) for at, layout in called.given.items()},
            {at: settled(layout, orders) for at, layout in called.output.items()},
            {
                at: entries_of(two[path][0].given[at], settled(layout, orders))
                for at, layout in called.given.items()
                if at in two[path][0].given
            },
        )
        for path, called in found.items()
    }


def _orders(
    seen: Mapping[str, Sequence[_Seen]], found: Mapping[str, Called]
) -> dict[int, set[bool]]:
    """Return entries of a row -> the orders of entries that tensors with so many have."""
    orders: dict[int, set[bool]] = {}
    for path, called in found.items():
        first = seen[path][0]
        for leaves, layouts in ((first.given, called.given), (first.output, called.output)):
            for at, layout in layouts.items():
                if isinstance(layout, Rows) and at in leaves:
                    entries = entries_of(leaves[at], layout)
                    if entries > 1:
                        orders.setdefault(entries, set()).add(layout.minor)
    return orders


def _called(two: Sequence[_Seen], three: Sequence[_Seen], items: tuple[int, int] | None) -> Called:
    """Return how a module is called, in all of its calls alike."""
    given: dict[tuple[Any, ...], Layout] = {}
    output: dict[tuple[Any, ...], Layout] = {}
    for a, b in zip(two, three, strict=False):
        why = ""
        if len(two) != len(three):
            why = f"it is called {len(two)} times for 2 rows and {len(three)} times for 3"
        elif a.routed or b.routed:
            why = f"{a.routed or b.routed!r} chooses by values what it gets"
        for found, parts in ((given, (a.given, b.given)), (output, (a.output, b.output))):
            for path, layout in layouts_of(*parts, items).items():
                now = Unclear(why) if why else layout
                if found.setdefault(path, now) != now:
                    found[path] = Unclear("it is not the same in each call of the module")
    return Called(given, output)


def inputs_of(batch: Batch) -> dict[str, Any]:
    """Return what a call gets of a batch: its inputs, and `row_of` where rows are packed."""
    if batch.row_of is None:
        return dict(batch.inputs)
    return {**batch.inputs, "row_of": batch.row_of}


def _two_rows(batch: Batch) -> Batch:
    """Return the first row and one that differs from it, made up where all are the same."""
    if len(batch) == 1:
        batch = batch.select(torch.tensor([0, 0]))
    if batch.row_of is not None:
        return _two_packed(batch, batch.row_of)
    first = batch.select(torch.tensor([0]))
    mine = kept(first.inputs)
    for index in range(1, len(batch)):
        if not _same(mine, kept(batch.select(torch.tensor([index])).inputs)):
            return batch.select(torch.tensor([0, index]))
    pair = batch.select(torch.tensor([0, 1]))
    return replace(pair, inputs=map_tree(_changed, pair.inputs))


def _two_packed(batch: Batch, row_of: Tensor) -> Batch:
    """Return two rows of different numbers of items, by which items are told from rows."""
    sizes = torch.bincount(row_of, minlength=len(batch)).tolist()
    start = max(range(len(sizes)), key=sizes.__getitem__)
    others = [row for row, size in enumerate(sizes) if size and row != start]
    other = min(others, key=sizes.__getitem__, default=start)
    pair = batch.select(torch.tensor([start, other]))
    if sizes[other] != sizes[start]:
        return pair
    assert pair.row_of is not None
    # one item of the second row is taken twice
    index = torch.arange(len(pair.row_of) + 1).clamp(max=len(pair.row_of) - 1)
    inputs = map_tree(lambda tensor: tensor[index], pair.inputs)
    return replace(pair, inputs=inputs, row_of=pair.row_of[index])


def _same(mine: Leaves, other: Leaves) -> bool:
    return all(
        not isinstance(leaf, Tensor) or torch.equal(leaf, other[path])
        for path, leaf in mine.items()
    )


def _changed(tensor: Tensor) -> Tensor:
    """Return `(2, ...)` rows of which the second is turned round by one entry."""
    if tensor.dim() < 2:
        return tensor
    return torch.stack((tensor[0], tensor[1].flatten().roll(1).view_as(tensor[1])))


@dataclass(slots=True, eq=False)
class _Seen:
    """One call of a module."""

    given: Leaves
    routed: str
    """The module around it that had chosen by values, before the call; "" for none."""
    output: Leaves = field(default_factory=dict)


class _Choices(TorchDispatchMode):
    """Notices operations whose result's shape depends on values, as where tokens are routed."""

    def __init__(self, notice: Callable[[], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.notice = notice

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run the operation."""
        del types
        chooses = torch.Tag.dynamic_output_shape in function.tags
        if function is torch.ops.aten.index.Tensor:
            chooses = any(
                isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
                for index in args[1]
            )
        if chooses:
            self.notice()
        return function(*args, **(kwargs or {}))


class _Record:
    """What a forward calls."""

    def __init__(self, wanted: Iterable[str]) -> None:
        self.seen: dict[str, list[_Seen]] = {}
        self.missing = set(wanted)
        self._open: list[tuple[str, _Seen]] = []
        self._choosing: set[int] = set()

    def before(self, path: str, args: Any, kwargs: Any) -> None:
        """Note what a module gets."""
        choosing = (name for i, (name, _) in enumerate(self._open) if i in self._choosing)
        seen = _Seen(kept({**dict(enumerate(args)), **kwargs}), next(choosing, ""))
        self._open.append((path or "the base", seen))

    def after(self, path: str, output: Any) -> None:
        """Note what it gives, and stop where that was the last to be seen."""
        _, seen = self._open.pop()
        self._choosing.discard(len(self._open))
        seen.output = kept(output)
        self.seen.setdefault(path, []).append(seen)
        self.missing.discard(path)
        if not self.missing:
            raise _EnoughError

    def choice(self) -> None:
        """Note that the innermost module that runs has chosen by values."""
        if self._open:
            self._choosing.add(len(self._open) - 1)


def _one_table(module: nn.Module, path: str, called: Called) -> bool:
    """Return whether a module looks up what stands for every row alike, such as positions."""
    layout = called.first
    known = not path.startswith(PORT) and isinstance(layout, Shared) and layout.single
    return known and isinstance(module.get_submodule(path), nn.Embedding)


def _for_all(
    module: nn.Module,
    ports: nn.ModuleDict,
    pair: Batch,
    call: Call,
    path: str,
    two: Mapping[str, Sequence[_Seen]],
) -> bool:
    """Return whether the base gives the same where a table gives its one row to each of two."""
    if "" not in two:
        return False
    hook = module.get_submodule(path).register_forward_hook(
        lambda _m, _a, output: output.expand(2, *output.shape[1:])
    )
    try:
        again = _record(module, ports, pair, call)
    except (RuntimeError, ValueError, IndexError):
        # its first dimension is no row, and other shapes do not fit
        return False
    finally:
        hook.remove()
    before, after = two[""][0].output, again[""][0].output
    return before.keys() == after.keys() and all(
        not isinstance(leaf, Tensor) or (leaf.shape == after[at].shape and close(leaf, after[at]))
        for at, leaf in before.items()
    )


def _record(
    module: nn.Module, ports: nn.ModuleDict, batch: Batch, call: Call
) -> Mapping[str, Sequence[_Seen]]:
    parts = {**dict(module.named_modules()), **{PORT + name: p for name, p in ports.items()}}
    record = _Record(["", *(PORT + name for name in ports)])
    hooks = []
    for path, part in parts.items():
        hooks += [
            part.register_forward_pre_hook(
                lambda _m, args, kwargs, path=path: record.before(path, args, kwargs),
                with_kwargs=True,
            ),
            part.register_forward_hook(
                lambda _m, _a, output, path=path: record.after(path, output)
            ),
        ]
    try:
        with torch.no_grad(), _Choices(record.choice):
            call(module, ports, inputs_of(batch))
    except _EnoughError:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return record.seen
