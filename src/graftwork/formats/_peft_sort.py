"""Which part of PEFT's format holds which update of a delta."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from graftwork._errors import UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import Delta, Stored, Update, values_of
from graftwork.formats._peft_config import Kind
from graftwork.formats._places import Place, axis_of, find_place, over_outputs, tied_names


@dataclass(slots=True)
class Sorted:
    """Updates of a delta by what PEFT calls them.

    Attributes:
        kind: PEFT's method.
        adapted: live name of a module -> its place and the update of its weight.
        feedforward: IA3: modules whose inputs are scaled.
        biases: live names of biases with a dense term.
        saved: live names of modules to store whole.
    """

    kind: Kind
    adapted: dict[str, tuple[Place, Update]] = field(default_factory=dict)
    feedforward: list[str] = field(default_factory=list)
    biases: list[str] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)


def sort_updates(base: Base, delta: Delta) -> Sorted:
    """Return the updates of a delta, sorted into PEFT's parts.

    Raises:
        UnsupportedError: a term that PEFT cannot hold; names the parameter and the term.
    """
    updates = {base.names[name].name: update for name, update in delta.updates.items()}
    kind: Kind = "LORA" if any(u.low_rank for u in updates.values()) else "IA3"
    found = Sorted(kind)
    for name, update in updates.items():
        if update.sparse is not None:
            _refuse(name, "sparse")
        elif update.low_rank is not None:
            _put_low_rank(found, base, name, update)
        elif update.scale is not None:
            _put_scale(found, base, name, updates)
    for name, update in updates.items():
        if update.dense is not None:
            _put_dense(found, base, name, update)
    if not found.adapted:
        raise UnsupportedError(
            "PEFT holds no delta without low-rank or scale terms; export it merged, or fit a "
            "low-rank delta with graftwork.deltas.low_rank_between"
        )
    _add_namesakes(found, base)
    return found


def sort_saved(base: Base, delta: Delta) -> Sorted:
    """Return the updates of a delta that has a prompt or prefix: modules to store whole.

    Raises:
        UnsupportedError: another term than a dense one of a whole parameter; names it.
    """
    found = Sorted("PROMPT_TUNING")
    for name, update in delta.updates.items():
        live = base.names[name].name
        if update.terms != ("dense",):
            term = next(t for t in update.terms if t != "dense")
            _refuse(live, f"{term.replace('_', '-')} beside a prompt or prefix: a {term}")
        _put_dense(found, base, live, update)
    _add_namesakes(found, base)
    return found


def _put_low_rank(found: Sorted, base: Base, name: str, update: Update) -> None:
    if update.low_rank is not None and update.low_rank.batched:
        _refuse(name, "low-rank term for each matrix of a stack: a")
    place = _place(base, name, "low-rank")
    if update.dense is not None:
        _refuse(name, "dense beside a low-rank")
    if update.scale is not None and axis_of(place, update.scale) != "outputs":
        _refuse(name, f"scale of shape {tuple(update.scale.shape)} (DoRA has one an output)")
    found.adapted[place.name] = (place, update)


def _put_scale(found: Sorted, base: Base, name: str, updates: Mapping[str, Update]) -> None:
    update = updates[name]
    if found.kind == "LORA":
        _refuse(name, "scale without a low-rank term, while others have one,")
    if update.dense is not None:
        _refuse(name, "dense beside a scale")
    if name.endswith("bias") and f"{name.removesuffix('bias')}weight" in updates:
        _check_weight_scaled(base, name, updates)
        return
    place = _place(base, name, "scale")
    if update.scale is None:
        raise UnsupportedError(f"{name!r} has no scale")
    axis = axis_of(place, update.scale)
    bias = updates.get(place.bias.name) if place.bias is not None else None
    if axis is None:
        _refuse(
            name, f"scale of shape {tuple(update.scale.shape)} (IA3 has one an output or input)"
        )
    if axis == "outputs" and place.bias is not None and not _same_scale(place, update, bias):
        _refuse(name, f"scale without the same scale of {place.bias.name!r} (IA3 scales the two)")
    if axis == "inputs":
        found.feedforward.append(place.name)
    found.adapted[place.name] = (place, update)


def _check_weight_scaled(base: Base, name: str, updates: Mapping[str, Update]) -> None:
    weight = f"{name.removesuffix('bias')}weight"
    place = _place(base, weight, "scale")
    scale = updates[weight].scale
    if scale is None or axis_of(place, scale) != "outputs":
        _refuse(name, "scale of a bias whose weight's outputs are not scaled")


def _same_scale(place: Place, weight: Update, bias: Update | None) -> bool:
    if bias is None or bias.terms != ("scale",) or bias.scale is None or weight.scale is None:
        return False
    ours = values_of(bias.scale).expand(bias.shape)
    return torch.equal(over_outputs(place, ours), _full(place, weight.scale))


def _full(place: Place, scale: Stored) -> torch.Tensor:
    values = values_of(scale)
    return values.reshape((1,) * (len(place.weight.shape) - values.dim()) + tuple(values.shape))


def _put_dense(found: Sorted, base: Base, name: str, update: Update) -> None:
    if update.terms != ("dense",):
        return
    piece = base.names[name]
    if not piece.whole:
        _refuse(name, "dense term of a part of a fused parameter: a")
    if piece.parameter.rpartition(".")[2] == "bias" and found.kind == "LORA":
        found.biases.append(piece.parameter)
        return
    for parameter in tied_names(base, piece):
        module = parameter.rpartition(".")[0]
        if module in found.adapted:
            _refuse(name, "dense beside an adapted module's")
        if not module:
            _refuse(name, "dense term of a bare parameter: a")
        found.saved.append(module)


def _add_namesakes(found: Sorted, base: Base) -> None:
    """Store as well what PEFT takes for one of the stored modules: it compares ends of names."""
    leaves = {n for n, m in base.model.named_modules() if n and not _has_children(m)}
    wanted = tuple(found.saved)
    more = {name for name in leaves if wanted and name.endswith(wanted)}
    clash = sorted(more & set(found.adapted))
    if clash:
        raise UnsupportedError(
            f"PEFT would store module {clash[0]!r} whole as well, since its name ends like one "
            "that is stored; export the delta merged"
        )
    found.saved = sorted({*found.saved, *more})


def _has_children(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _place(base: Base, name: str, term: str) -> Place:
    if not (name == "weight" or name.endswith(".weight")):
        _refuse(name, f"{term} term of a parameter that is no module's weight: a {term}")
    return find_place(base, name.removesuffix("weight").removesuffix("."))


def _refuse(name: str, what: str) -> None:
    raise UnsupportedError(
        f"PEFT cannot hold a {what} term of {name!r}; export the delta merged "
        "(export_merged, --to merged), or keep it in graftwork's own file"
    )
