"""What is known of batches of one kind: the same call, and inputs of the same form."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from graftwork.serving._layout import Layout, Layouts, Unclear
from graftwork.serving._probe import PORT, Called
from graftwork.serving._way import Way

_PLAIN = (bool, int, float, str, bytes, torch.dtype, torch.device, type(None))


@dataclass(slots=True, eq=False)
class Kind:
    """What is known of batches of one kind.

    Attributes:
        tried: how each module was called, with any ports.
        ports: names of ports that a call was tried with -> how each of them was called.
        ways: how batches run.
    """

    tried: dict[str, Called] = field(default_factory=dict)
    ports: dict[frozenset[str], Mapping[str, Called]] = field(default_factory=dict)
    ways: list[Way] = field(default_factory=list)

    def learn(self, names: frozenset[str], found: Mapping[str, Called]) -> None:
        """Take in how a call with the ports `names` calls modules; ways that it changes go."""
        self.ports[names] = {name: found[PORT + name] for name in names if PORT + name in found}
        for path, called in found.items():
            if path.startswith(PORT):
                continue
            known = self.tried.get(path)
            now = called if known is None else _both(known, called)
            if now != known:
                self.tried[path] = now
                self.ways.clear()


def _both(a: Called, b: Called) -> Called:
    entries = {**b.entries, **a.entries}
    return Called(_joint(a.given, b.given), _joint(a.output, b.output), entries)


def _joint(a: Layouts, b: Layouts) -> Layouts:
    found: dict[tuple[Any, ...], Layout] = {**b, **a}
    for path in a.keys() & b.keys():
        if a[path] != b[path]:
            found[path] = Unclear("it is not the same for each set of ports")
    return found


def key_of(call: Any) -> Any:
    """Return what makes calls alike: their code, and the plain values that they close over.

    So a function that is made anew for each request is known again, and one made with another flag
    is another.
    """
    return tuple(_parts(call, 6))


def _parts(value: Any, depth: int) -> Iterator[Any]:
    if isinstance(value, _PLAIN):
        yield type(value), value
    elif isinstance(value, tuple) and depth:
        yield from (part for item in value for part in _parts(item, depth - 1))
    elif isinstance(value, dict) and depth:
        yield from (part for item in value.items() for part in _parts(item, depth - 1))
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords), depth)
    elif isinstance(value, types.MethodType):
        yield from _parts((value.__func__, value.__self__), depth)
    elif isinstance(value, types.FunctionType):
        yield value.__code__
        if depth:
            yield from _parts((value.__defaults__, value.__kwdefaults__), depth)
            yield from (part for v in _closed_over(value) for part in _parts(v, depth - 1))
    else:
        yield type(value)
        held = getattr(value, "__dict__", {})
        if depth and not isinstance(value, torch.nn.Module | type | types.ModuleType):
            plain = {k: v for k, v in held.items() if isinstance(v, _PLAIN)}
            yield from _parts(plain, depth - 1)
            yield from _own_call(value)


def _own_call(value: Any) -> Iterator[Any]:
    """Yield what makes objects that are called alike."""
    call = vars(type(value)).get("__call__")
    if isinstance(call, types.FunctionType):
        yield call.__code__


def _closed_over(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # an empty cell: the name is not bound yet
            yield None
