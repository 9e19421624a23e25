"""Where the rows of a batch stand in the tensors that a module gets and gives.

Found by trying, never assumed: two forwards, of 2 rows `[a, b]` and of 3 rows `[a, b, b]`. A
dimension that grows from 2k to 3k carries the rows, k entries each, and the entries of row `a` must
be the same in both. So time-major tensors, flattened ones and several beams are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import UnsupportedError


class LayoutError(UnsupportedError):
    """A module is called in another way than when it was tried."""


Leaves = Mapping[tuple[Any, ...], Any]
"""Path in a tree of arguments or outputs -> leaf."""
PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))
"""Leaves that are the same for every row."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a tensor.

    Attributes:
        dim: the dimension that carries them, k entries a row.
        minor: whether entry j of row r of B is at `j * B + r` there, and not at `r * k + j`.
        packed: whether it carries the packed items of the rows, and not the rows.
    """

    dim: int
    minor: bool = False
    packed: bool = False

    def first(self, tensor: Tensor, count: int) -> Tensor:
        """Return `tensor` with its `count` rows (or items) in dimension 0, one after the other.

        Raises:
            LayoutError: the dimension is no multiple of the rows.
        """
        if tensor.dim() <= self.dim or tensor.shape[self.dim] % count:
            raise LayoutError(
                f"a tensor of shape {tuple(tensor.shape)} has no {count} rows in dimension "
                f"{self.dim}, as it had when the module was tried"
            )
        moved = tensor.movedim(self.dim, 0) if self.dim else tensor
        return (
            moved.unflatten(0, (-1, count)).transpose(0, 1).flatten(0, 1) if self.minor else moved
        )

    def back(self, tensor: Tensor, count: int) -> Tensor:
        """Undo `first`."""
        if self.minor:
            tensor = tensor.unflatten(0, (count, -1)).transpose(0, 1).flatten(0, 1)
        return tensor.movedim(0, self.dim) if self.dim else tensor


@dataclass(frozen=True, slots=True)
class Shared:
    """A tensor that does not depend on how many rows there are.

    Attributes:
        single: whether its first dimension is 1: it stands for every row alike.
    """

    single: bool

    def check(self, tensor: Tensor) -> None:
        """Raise where a tensor that stood for every row alike has rows now.

        Raises:
            LayoutError: it has.
        """
        if self.single and (tensor.dim() < 1 or tensor.shape[0] != 1):
            raise LayoutError(
                f"a tensor of shape {tuple(tensor.shape)} had one entry for all rows when the "
                "module was tried"
            )


@dataclass(frozen=True, slots=True)
class Unclear:
    """A leaf whose rows cannot be told.

    Attributes:
        why: for people.
        either: the dimension, and entries of a row in it, where both orders of entries fit: all
            entries are the same, as those of types of tokens may be.
    """

    why: str
    either: tuple[int, int] | None = None


Layout = Rows | Shared | Unclear
Layouts = Mapping[tuple[Any, ...], Layout]


def leaves_of(tree: Any, path: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], Any]:
    """Return the leaves of nested tuples, lists and mappings."""
    if isinstance(tree, Mapping):
        items = list(tree.items())
    elif isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        items = list(enumerate(tree))
    else:
        return {path: tree}
    found: dict[tuple[Any, ...], Any] = {}
    for key, value in items:
        found |= leaves_of(value, (*path, key))
    return found


def map_leaves(
    function: Callable[[tuple[Any, ...], Any], Any], tree: Any, path: tuple[Any, ...] = ()
) -> Any:
    """Return `tree` with `function(path, leaf)` for each leaf; containers keep their type."""
    if isinstance(tree, Mapping):
        items = {k: map_leaves(function, v, (*path, k)) for k, v in tree.items()}
        return items if type(tree) is dict else type(tree)(**items)
    if isinstance(tree, tuple | list) and not isinstance(tree, torch.Size):
        values = [map_leaves(function, v, (*path, i)) for i, v in enumerate(tree)]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return function(path, tree)


def kept(tree: Any) -> dict[tuple[Any, ...], Any]:
    """Return the leaves of `tree`, tensors as copies, for a later comparison."""
    return {
        path: leaf.detach().clone() if isinstance(leaf, Tensor) else leaf
        for path, leaf in leaves_of(tree).items()
    }


def layouts_of(
    two: Leaves, three: Leaves, items: tuple[int, int] | None = None
) -> dict[tuple[Any, ...], Layout]:
    """Return the layout of each leaf that is no plain value, from what 2 and 3 rows gave.

    Args:
        two: what `[a, b]` gave.
        three: what `[a, b, b]` gave.
        items: packed items of rows a and b, where rows are packed.
    """
    found: dict[tuple[Any, ...], Layout] = {}
    for path in (*two, *(path for path in three if path not in two)):
        a, b = two.get(path), three.get(path)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            found[path] = _layout(a, b, items)
        elif not isinstance(a, PLAIN) or not isinstance(b, PLAIN):
            found[path] = Unclear(f"it is a {type(b if a is None else a).__name__}")
    return found


def _layout(two: Tensor, three: Tensor, items: tuple[int, int] | None) -> Layout:
    if two.is_nested or three.is_nested:
        return Unclear("it is a nested tensor")
    if two.dim() != three.dim():
        return Unclear("its number of dimensions depends on the rows")
    changed = [d for d in range(two.dim()) if two.shape[d] != three.shape[d]]
    if not changed:
        return Shared(two.dim() > 1 and two.shape[0] == 1)
    if items and len(changed) == 1 and items != (1, 1):
        a, b = items
        if (two.shape[changed[0]], three.shape[changed[0]]) == (a + b, a + 2 * b):
            return Rows(changed[0], packed=True)
    if len(changed) > 1 or 3 * two.shape[changed[0]] != 2 * three.shape[changed[0]]:
        return Unclear(f"its shape is {tuple(two.shape)} for 2 rows, {tuple(three.shape)} for 3")
    dim = changed[0]
    fitting = [Rows(dim, minor) for minor in (False, True) if _fits(two, three, Rows(dim, minor))]
    if not fitting:
        return Unclear("its entries depend on the other rows of the batch")
    if len(fitting) == 2 and two.shape[dim] > 2:
        why = "the rows that were tried do not tell where a row's entries are"
        return Unclear(why, (dim, two.shape[dim] // 2))
    return fitting[0]


def settled(layout: Layout, orders: Mapping[int, set[bool]]) -> Layout:
    """Return a layout whose order of entries is that of all other tensors with as many a row.

    Args:
        layout: what was found of a tensor.
        orders: entries of a row -> whether `minor`, of all tensors of the same call that tell.
    """
    if not isinstance(layout, Unclear) or layout.either is None:
        return layout
    dim, entries = layout.either
    known = orders.get(entries, set())
    return Rows(dim, known.copy().pop()) if len(known) == 1 else layout


def entries_of(tensor: Any, layout: Layout) -> int:
    """Return how many entries a row has where 2 rows gave `tensor`; 0 where it has no rows."""
    if not isinstance(layout, Rows) or layout.packed or not isinstance(tensor, Tensor):
        return 0
    return tensor.shape[layout.dim] // 2


def _fits(two: Tensor, three: Tensor, rows: Rows) -> bool:
    """Return whether row a is the same in `[a, b]` and `[a, b, b]`, and so is row b."""
    first, second = rows.first(two, 2).chunk(2)
    others = rows.first(three, 3).chunk(3)
    return all(
        close(mine, theirs) for mine, theirs in zip((first, second, second), others, strict=True)
    )


def close(a: Tensor, b: Tensor) -> bool:
    """Return whether two tensors of one shape are equal but for rounding."""
    if not a.is_floating_point():
        return torch.equal(a, b)
    bound = 1e-3 if a.element_size() > 2 else 3e-2
    a, b = a.double().nan_to_num(0, 1, -1), b.double().nan_to_num(0, 1, -1)
    return not a.numel() or bool((a - b).abs().amax() <= bound * b.abs().amax())
