"""What a list of weighted deltas does to each parameter of a base, checked before anything runs.

A list means `W + sum_i w_i * (adapted_i(W) - W)`; one delta of weight 1 means `adapted(W)`, to the
bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, FingerprintError, UnsupportedError
from graftwork.deltas._delta import BaseLike, Delta, Fingerprint, TensorPrint
from graftwork.deltas._int8 import QUANTISE, float_of
from graftwork.deltas._mounts import place_of
from graftwork.deltas._names import Piece
from graftwork.deltas._terms import Update
from graftwork.deltas._tree import parameter_at

Weighted = Sequence[tuple[Delta, float]]
"""Deltas with their weights, in the order in which they are added."""


@dataclass(frozen=True, slots=True)
class Part:
    """One canonical tensor with what is done to it."""

    piece: Piece
    terms: tuple[tuple[Update, float], ...]

    def adapted(self, weight: Tensor) -> Tensor:
        """Return the adapted canonical tensor for `weight`, in float32 or float64."""
        if len(self.terms) == 1 and self.terms[0][1] == 1.0:
            return self.terms[0][0].adapted(weight)
        compute = torch.float64 if weight.dtype == torch.float64 else torch.float32
        base = weight.detach().to(compute)
        out = base.clone(memory_format=torch.contiguous_format)
        for update, factor in self.terms:
            if factor != 0.0:
                out += factor * (update.adapted(weight) - base)
        return out


Plan = Mapping[str, tuple[Part, ...]]
"""Parameter of the live module -> the parts of it that change."""


def make_plan(base: BaseLike, deltas: Weighted) -> Plan:
    """Return what `deltas` do to `base`, after every check.

    Raises:
        FingerprintError: a delta was made for another base.
        DeltaError: an update does not fit its parameter, or a weight is not finite.
        UnknownNameError: a delta touches a parameter that the base does not have.
        UnsupportedError: a touched parameter is not floating or not contiguous.
    """
    terms: dict[str, list[tuple[Update, float]]] = {}
    for delta, weight in deltas:
        if not math.isfinite(weight):
            raise DeltaError(f"the weight of a delta must be finite, not {weight}")
        check(base, delta)
        seen: set[str] = set()
        for name, update in delta.updates.items():
            piece = base.names[name]
            _check_fit(piece, update)
            if piece.name in seen:
                raise DeltaError(f"the delta changes {piece.name!r} twice, once as {name!r}")
            seen.add(piece.name)
            terms.setdefault(piece.name, []).append((update, float(weight)))
    plan: dict[str, list[Part]] = {}
    for name, entries in terms.items():
        piece = base.names[name]
        plan.setdefault(piece.parameter, []).append(Part(piece, tuple(entries)))
    for parameter in plan:
        _check_parameter(parameter, parameter_at(base.model, parameter), base.model)
    return {parameter: tuple(parts) for parameter, parts in plan.items()}


def check(base: BaseLike, delta: Delta) -> None:
    """Check that `delta` was made for `base`: touched tensors and input processing (law 2).

    A delta imported from a format without a fingerprint (`asserted`) is only checked where it has
    prints.

    Raises:
        FingerprintError: names the first difference, both values, and what to do.
        UnknownNameError: the delta touches a parameter that the base does not have.
    """
    made_for = delta.fingerprint
    _check_quantised(base, made_for)
    names = [base.names[name].name for name in delta.updates]
    places = (place_of(name, port.kind) for name, port in delta.ports.items())
    names += [base.names[place].name for place in places if place]
    prints = {base.names[name].name: p for name, p in made_for.tensors.items()}
    found = base.prints(names)
    for name in names:
        expected = prints.get(name)
        if expected is None:
            if not made_for.asserted:
                raise FingerprintError(
                    f"the delta changes {name!r}, or has a port there, but has no fingerprint of "
                    "it; extract it again from the base it was trained on"
                )
        elif found[name] != expected:
            raise FingerprintError(
                f"the delta was made for another base: {name!r} is {_shown(found[name])} here, "
                f"the delta was made for {_shown(expected)}; load the base it was trained on"
            )
    for key, value in made_for.processing.items():
        here = base.processing.get(key)
        if here != value:
            raise FingerprintError(
                f"the delta was made for another processing of inputs: {key!r} is {here!r} here, "
                f"the delta was made for {value!r}; {_remedy(key, here)}"
            )


def _check_quantised(base: BaseLike, made_for: Fingerprint) -> None:
    """Refuse a base in other bits than the delta's, also where no touched tensor tells them apart.

    Of an import without a fingerprint nobody knows; its prints decide, where it has any.
    """
    here, expected = base.processing.get(QUANTISE), made_for.processing.get(QUANTISE)
    if here == expected or (made_for.asserted and expected is None):
        return
    wanted, found = ("unquantised" if kind is None else kind for kind in (expected, here))
    way = f"with {QUANTISE}={expected!r}" if expected else f"without {QUANTISE}"
    raise FingerprintError(
        f"the delta was made for another base: an {wanted} one, and this one is {found}; load the "
        f"base {way}, or move the delta to this one, measured, by rebase(delta, old, new)"
    )


def adapted_parameter(parameter: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """Return the adapted parameter in its own type; `parameter` is not changed."""
    parameter = float_of(parameter)
    if len(parts) == 1 and parts[0].piece.whole:
        return parts[0].adapted(parameter).to(parameter.dtype)
    out = parameter.detach().clone(memory_format=torch.contiguous_format)
    source = parameter.detach().contiguous()
    for part in parts:
        part.piece.of(out).copy_(part.adapted(part.piece.of(source)))
    return out


def _shown(found: TensorPrint) -> str:
    return f"{found.dtype}{list(found.shape)} {found.digest}"


def _remedy(key: str, here: str | None) -> str:
    if here is None:
        return "this base states none: load the base by its name or folder, not as a bare module"
    if key in ("pooling", "max_length"):
        return f"load the base with {key}= set so"
    return "load the base that it was trained on"


def _check_fit(piece: Piece, update: Update) -> None:
    name, shape = piece.name, piece.shape
    if update.shape != shape:
        raise DeltaError(f"the update of {name!r} has shape {update.shape}, the base has {shape}")
    if update.sparse is not None:
        positions = update.sparse.positions
        count = positions.numel()
        if tuple(update.sparse.values.shape) != (count,):
            raise DeltaError(
                f"the update of {name!r} has {count} positions for values of shape "
                f"{tuple(update.sparse.values.shape)}"
            )
        # both ends in one read: two would be half of what this function costs
        ends = positions[:: max(count - 1, 1)].tolist()
        if ends and not 0 <= ends[0] <= ends[-1] < piece.numel:
            raise DeltaError(f"the update of {name!r} has positions outside [0, {piece.numel})")
    if update.dense is not None and tuple(update.dense.shape) != shape:
        raise DeltaError(
            f"the dense term of {name!r} has shape {tuple(update.dense.shape)}, "
            f"the base has {shape}"
        )
    if update.scale is not None and not _broadcasts(tuple(update.scale.shape), shape):
        raise DeltaError(
            f"the scale of {name!r} has shape {tuple(update.scale.shape)}, which does not "
            f"broadcast to {shape}"
        )


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    pairs = zip(reversed(shape), reversed(target), strict=False)
    return len(shape) <= len(target) and all(a in (1, b) for a, b in pairs)


def _check_parameter(name: str, parameter: Tensor, model: nn.Module) -> None:
    if parameter.is_floating_point() and parameter.is_contiguous():
        return
    kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
    if not parameter.is_floating_point():
        raise UnsupportedError(
            f"parameter {name!r} of {kind} is {parameter.dtype}: packed or complex weights cannot "
            "be adapted; load the weights unpacked"
        )
    raise UnsupportedError(
        f"parameter {name!r} of {kind} is not contiguous, so flat positions would be ambiguous; "
        "call .contiguous() on it first"
    )
