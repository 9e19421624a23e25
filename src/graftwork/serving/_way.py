"""How batches of one kind run over a base: its sites, and the ports inside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from graftwork.deltas import BaseLike, place_of
from graftwork.serving._groups import Group
from graftwork.serving._layout import Rows, Unclear
from graftwork.serving._probe import Called
from graftwork.serving._sites import Site, holders_of, sites_of

LONGER = ("prompt", "prefix")
"""Kinds of ports that change the length of a row: groups with equal lengths share a forward."""


@runtime_checkable
class Tried(Protocol):
    """How modules and ports were called."""

    tried: dict[str, Called]
    ports: dict[frozenset[str], Mapping[str, Called]]


@dataclass(slots=True, eq=False)
class Way:
    """How batches of one kind run.

    Attributes:
        sites: where groups part.
        touched: path of each module that holds a touched parameter -> attribute -> parameter.
        covered: path of a site -> touched parameters that are read there.
        inside: path of a site that runs once for each group -> names and ports inside it.
        places: mounted port -> module that it follows, layout of that module's output.
        ports: mounted ports.
        whole: why the call must run once for each group; "" where it need not.
        ports_called: names of ports of a call -> how each of them is called.
        number: tells ways apart.
    """

    sites: tuple[Site, ...]
    touched: Mapping[str, Mapping[str, str]]
    covered: Mapping[str, frozenset[str]]
    inside: Mapping[str, tuple[Sequence[str], Sequence[str]]]
    places: Mapping[str, tuple[str, Rows]]
    ports: tuple[str, ...]
    whole: str
    ports_called: Mapping[frozenset[str], Mapping[str, Called]]
    number: int = field(default_factory=itertools.count().__next__)

    @property
    def parameters(self) -> frozenset[str]:
        """The live parameters that may change."""
        return frozenset(name for held in self.touched.values() for name in held.values())

    def serves(self, touched: Iterable[str], ports: Iterable[str], *, roomy: bool) -> bool:
        """Return whether batches that change these parameters may run so.

        A way for many more parameters costs time at sites where nothing changes; `roomy` allows it.
        """
        needed, known = set(touched), self.parameters
        near = roomy or len(known) <= 2 * len(needed) + 4
        return near and needed <= known and set(ports) == set(self.ports)


def make_way(base: BaseLike, touched: Iterable[str], ports: Iterable[str], kind: Tried) -> Way:
    """Return how batches run.

    Args:
        base: the base.
        touched: live parameters that change.
        ports: mounted ports.
        kind: how each module and port was called.
    """
    touched, tried = tuple(touched), dict(kind.tried)
    sites = sites_of(base.model, touched, tried)
    whole = next((site.why for site in sites if site.kind == "call"), "")
    apart = [site.path for site in sites if site.kind == "groups"]
    held = _holders(base)
    mounts = {port: _module_of(base, port) for port in ports}
    inside = {
        path: (
            [name for name, paths in held.items() if any(_within(p, path) for p in paths)],
            [port for port, at in mounts.items() if _within(at, path)],
        )
        for path in apart
    }
    places: dict[str, tuple[str, Rows]] = {}
    for port, path in mounts.items():
        if any(_within(path, around) for around in apart):
            continue
        layout = tried[path].result if path in tried else Unclear("it is not called")
        if isinstance(layout, Rows):
            places[port] = (path, layout)
        else:
            whole = whole or f"{port!r} follows {path!r}, whose output has no rows"
    holders = holders_of(base.model, touched)
    covered = {
        site.path: frozenset(
            name
            for path, own in holders.items()
            if path == site.path or (site.kind == "groups" and _within(path, site.path))
            for name in own.values()
        )
        for site in sites
    }
    return Way(sites, holders, covered, inside, places, tuple(mounts), whole, kind.ports)


def _within(path: str, around: str) -> bool:
    return around == "" or path == around or path.startswith(f"{around}.")


def _holders(base: BaseLike) -> dict[str, list[str]]:
    """Return canonical name -> paths of the modules that hold it, ties included."""
    names = {id(p): n for n, p in base.model.named_parameters()}
    paths: dict[str, list[str]] = {}
    for path, module in base.model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                paths.setdefault(names[id(parameter)], []).append(path)
    return {piece.name: paths[piece.parameter] for piece in base.names.pieces.values()}


def _module_of(base: BaseLike, port: str) -> str:
    """Return the path of the module that a mounted port follows."""
    tensor = port.partition(":")[2]
    return base.names[tensor].parameter.rpartition(".")[0]


def lengthened(group: Group) -> tuple[tuple[str, str, str], ...]:
    """Return the ports that make a row longer: name, kind, and config, which says by how much.

    Groups share a forward only where these are equal.
    """
    return tuple(
        (name, port.kind, json.dumps(dict(port.config), sort_keys=True))
        for held, _ in group.members
        for name, port in sorted(held.frame.ports.items())
        if port.kind in LONGER
    )


def mounted_ports(group: Group) -> list[str]:
    """Return the names of the ports that follow a module of the base."""
    return [
        name
        for held, _ in group.members
        for name, port in held.frame.ports.items()
        if place_of(name, port.kind) and port.kind not in LONGER
    ]


def called_ports(group: Group) -> dict[str, str]:
    """Return the ports that calls run: name -> what must be equal for groups to share a call.

    Where heads differ in size, what a call does after them (softmax, argmax) may not see columns
    that a row's head does not have.
    """
    return {
        name: f"{port.kind} {json.dumps(dict(port.config), sort_keys=True)}"
        for held, _ in group.members
        for name, port in held.frame.ports.items()
        if not place_of(name, port.kind)
    }
