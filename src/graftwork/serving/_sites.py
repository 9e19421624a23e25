"""The modules at which a batch must be taken apart, and how: an explicit table of module types.

A touched parameter belongs to the module that holds it. Where that module's type is in `KINDS`, its
rows run together; else, or where its rows cannot be told, the smallest module around it whose rows
can be told runs once for each group. Where there is none, the whole call does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import nn

from graftwork.serving._layout import Rows, Shared, Unclear
from graftwork.serving._probe import Called

Kind = Literal["linear", "conv1d", "embedding", "layer_norm", "groups", "call"]
KINDS: Mapping[str, Kind] = {
    "torch.nn.modules.linear.Linear": "linear",
    "graftwork.deltas._int8.Int8Linear": "linear",
    "transformers.pytorch_utils.Conv1D": "conv1d",
    "torch.nn.modules.sparse.Embedding": "embedding",
    "torch.nn.modules.normalization.LayerNorm": "layer_norm",
}
"""Type, exactly, of a module whose groups run together -> how."""

_FIRST = Rows(0)


@dataclass(frozen=True, slots=True)
class Site:
    """One module that is run otherwise.

    Attributes:
        path: of the module; "" for the root.
        kind: how.
        owned: for kinds that run together: attribute -> live parameter that changes.
        called: how it is called.
        why: for kind "groups" and "call": why its rows do not run together.
    """

    path: str
    kind: Kind
    owned: Mapping[str, str]
    called: Called
    why: str = ""
    rows: Rows = _FIRST
    repeat: int = 0


def sites_of(
    model: nn.Module, touched: Iterable[str], tried: Mapping[str, Called]
) -> tuple[Site, ...]:
    """Return the sites at which the groups of a batch part, outermost only.

    Args:
        model: the base's module.
        touched: live parameters that change, with every module and attribute that holds each.
        tried: how each module was called.
    """
    holders = holders_of(model, touched)
    reached = {name for path in holders if path in tried for name in holders[path].values()}
    found: dict[str, Site] = {}
    for path, owned in holders.items():
        if path not in tried and reached.issuperset(owned.values()):
            # a tied one that this call does not use
            continue
        site = _site(model, path, owned, tried)
        old = found.get(site.path)
        if old is None or site.kind in ("groups", "call"):
            found[site.path] = site
    outer = [s.path for s in found.values() if s.kind in ("groups", "call")]
    return tuple(site for site in found.values() if not any(_within(site.path, p) for p in outer))


def _within(path: str, around: str) -> bool:
    return path != around and (around == "" or path.startswith(f"{around}."))


def holders_of(model: nn.Module, touched: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return module path -> attribute -> live parameter, ties included."""
    names = {id(p): n for n, p in model.named_parameters()}
    wanted = set(touched)
    found: dict[str, dict[str, str]] = {}
    for path, module in model.named_modules():
        for leaf, parameter in module._parameters.items():
            name = names.get(id(parameter))
            if name in wanted:
                found.setdefault(path, {})[leaf] = name
    return found


def _site(
    model: nn.Module, path: str, owned: Mapping[str, str], tried: Mapping[str, Called]
) -> Site:
    module = model.get_submodule(path)
    kind = KINDS.get(f"{type(module).__module__}.{type(module).__qualname__}")
    if getattr(module, "max_norm", None) is not None:
        kind = None
    called = tried.get(path)
    if kind and called and isinstance(called.first, Rows):
        return Site(path, kind, owned, called, rows=called.first)
    if kind == "embedding" and called and isinstance(called.first, Shared) and called.first.single:
        around = _around(path, tried)
        if around is not None:
            rows, repeat = around
            return Site(path, kind, owned, called, rows=rows, repeat=repeat)
    why = f"{type(module).__name__} has no way of its own" if not kind else ""
    here = path
    while True:
        called = tried.get(here)
        reason = _apart(here, called)
        if not reason:
            assert called is not None
            return Site(here, "groups", {}, called, why)
        why = f"{why}; {reason}" if why else reason
        if not here:
            return Site("", "call", {}, called or Called({}, {}), why)
        here = here.rpartition(".")[0]


def _around(path: str, tried: Mapping[str, Called]) -> tuple[Rows, int] | None:
    """Return where the rows stand, and entries of each, in what the module around one gets.

    What is the same for all rows is broadcast to that by the module around.
    """
    while path:
        path = path.rpartition(".")[0]
        called = tried.get(path)
        if called is None:
            continue
        for at, layout in called.given.items():
            if isinstance(layout, Rows) and not layout.packed and layout.dim == 0:
                return layout, called.entries[at]
    return None


def _apart(path: str, called: Called | None) -> str:
    """Return why a module cannot run once for each group; "" where it can."""
    shown = path or "the base"
    if called is None:
        return f"{shown!r} is not called: what holds it reads its parameters"
    given = [layout for layout in called.given.values() if isinstance(layout, Rows)]
    if not given:
        return f"no argument of {shown!r} has rows"
    for layout in (*called.given.values(), *called.output.values()):
        if isinstance(layout, Unclear):
            return f"an argument or output of {shown!r}: {layout.why}"
    if not all(isinstance(layout, Rows) for layout in called.output.values()):
        return f"an output of {shown!r} has no rows"
    return ""
