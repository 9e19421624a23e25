"""`view(base, delta)`: an adapted module that shares the base's storage.

The view is a copy of the module tree (`shared_copy`). Each touched parameter becomes a property of
a subclass made for its module, which computes `W'` from the base's own W at every access. So
nothing is stored, ties stay tied, `isinstance` and state dict names hold, and whatever reads an
attribute (functional kernels, fused attention, `generate`) reads adapted values.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from graftwork._errors import DeltaError, UnsupportedError, UnusedTensorError
from graftwork.deltas._applied import refuse_applied
from graftwork.deltas._delta import BaseLike, Delta
from graftwork.deltas._plan import Part, Weighted, adapted_parameter, make_plan
from graftwork.deltas._tree import all_places, shared_copy

_SLOTS = "_graftwork_slots"
_BINDING = "_graftwork_binding"


@dataclass(slots=True)
class _Binding:
    """What a view knows of itself: who was consumed, and the buffers that must not change."""

    pending: set[str]
    buffers: list[tuple[str, Tensor, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Slot:
    """One touched parameter of one module."""

    name: str
    parts: tuple[Part, ...]
    binding: _Binding

    def compute(self, parameter: Tensor | None) -> Tensor:
        if parameter is None:
            raise UnsupportedError(f"parameter {self.name!r} of the view was removed")
        if parameter.requires_grad:
            raise UnsupportedError(
                f"parameter {self.name!r} of a view is frozen: it is computed from the base and "
                "its delta; train with a tuner"
            )
        return adapted_parameter(parameter, self.parts)


def view(
    base: BaseLike,
    delta: Delta | Weighted,
    *,
    unused: Literal["error", "allow"] = "error",
) -> nn.Module:
    """Return `base` adapted by `delta`, without copying or changing a stored value.

    Adapted parameters are computed at each access, in float32 (float64 for a float64 base) and
    cast to the parameter's type. `parameters()` still gives the base's own values; `state_dict()`
    gives adapted ones, so saving a view saves the merged model. Ports of the delta (heads) are not
    part of the module: see `build_ports`.

    Args:
        base: a base.
        delta: a delta, or a list of (delta, weight), which means
            `W + sum_i w_i * (adapted_i(W) - W)`. An empty list gives a plain shared copy.
        unused: a forward of the view raises where a touched tensor has not been read since the
            view was made (law 7). "allow" for models that route, where an expert may stay unread.

    Returns:
        A module of the same classes as `base.model`, frozen.

    Raises:
        FingerprintError: the delta was made for another base.
        DeltaError: an update does not fit, or the base carries another delta in place.
        UnsupportedError: the module tree or a touched parameter cannot be supported.

    Example:
        >>> import torch
        >>> from graftwork.deltas import Fingerprint, Update, identity_names
        >>> from types import SimpleNamespace
        >>> linear = nn.Linear(2, 1, bias=False).requires_grad_(False)
        >>> base = SimpleNamespace(
        ...     model=linear,
        ...     names=identity_names(linear),
        ...     processing={},
        ...     prints=lambda names: dict.fromkeys(names),
        ... )
        >>> delta = Delta(
        ...     {"weight": Update((1, 2), dense=torch.ones(1, 2))},
        ...     fingerprint=Fingerprint({}, asserted=True),
        ... )
        >>> adapted = view(base, delta)
        >>> bool(torch.equal(adapted.weight, linear.weight + 1))
        True
    """
    if unused not in ("error", "allow"):
        raise DeltaError(f"unused must be 'error' or 'allow', not {unused!r}")
    refuse_applied(base.model)
    plan = make_plan(base, [(delta, 1.0)] if isinstance(delta, Delta) else delta)
    twin = shared_copy(base.model)
    binding = _Binding({part.piece.name for parts in plan.values() for part in parts})
    slots: dict[nn.Module, dict[str, _Slot]] = {}
    for parameter, places in all_places(twin, plan).items():
        for module, leaf in places:
            slots.setdefault(module, {})[leaf] = _Slot(parameter, plan[parameter], binding)
    for module, held in slots.items():
        _bind(module, held)
    vars(twin)[_BINDING] = binding
    binding.buffers = [(n, b, b._version) for n, b in twin.named_buffers() if not b.is_inference()]
    twin.register_forward_hook(_check_buffers)
    if unused == "error":
        twin.register_forward_hook(_check_consumed)
    return twin


def unconsumed(module: nn.Module) -> tuple[str, ...]:
    """Return the canonical names of touched tensors that a view has not read yet."""
    binding = vars(module).get(_BINDING)
    return tuple(sorted(binding.pending)) if isinstance(binding, _Binding) else ()


def require_consumed(module: nn.Module) -> None:
    """Raise where a touched tensor of a view was never read (law 7).

    Raises:
        UnusedTensorError: names the tensors.
    """
    missing = unconsumed(module)
    if missing:
        shown = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        raise UnusedTensorError(
            f"{len(missing)} tensors of the delta were not consumed by the forward: {shown}; the "
            "module bypasses them, or this input does not reach them (for models that route, use "
            "unused='allow')"
        )


def _bind(module: nn.Module, slots: dict[str, _Slot]) -> None:
    kind: Any = type(module)
    try:
        adapted = _adapted_class(kind, frozenset(slots))
        vars(module)[_SLOTS] = slots
        module.__class__ = adapted
    except TypeError as cause:
        name = next(iter(slots.values())).name
        raise UnsupportedError(
            f"parameter {name!r} cannot be adapted: {type(module).__name__} allows no subclass "
            f"({cause})"
        ) from cause
    module.register_state_dict_post_hook(_put_adapted)


@functools.lru_cache(maxsize=1024)
def _adapted_class(kind: type[Any], names: frozenset[str]) -> type[Any]:
    """Return a subclass of `kind` whose parameters `names` are computed; views share it."""
    members: dict[str, Any] = {name: _computed(name) for name in names}
    for known, extra in _BYPASSES.items():
        if issubclass(kind, known):
            members |= extra
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), members)


def _computed(leaf: str) -> property:
    def get(module: nn.Module) -> Tensor:
        slot: _Slot = vars(module)[_SLOTS][leaf]
        try:
            value = slot.compute(module._parameters[leaf])
        except AttributeError as cause:
            # nn.Module.__getattr__ would take over and silently give the base's own value
            raise RuntimeError(f"computing {slot.name!r} failed: {cause}") from cause
        for part in slot.parts:
            slot.binding.pending.discard(part.piece.name)
        return value

    return property(get)


def _flat_weights(module: nn.RNNBase) -> list[Tensor | None]:
    return [getattr(module, name, None) for name in module._flat_weights_names]


_BYPASSES: Mapping[type[nn.Module], Mapping[str, Any]] = {
    nn.RNNBase: {
        # the recurrent kernels read this list, never the attributes
        "_flat_weights": property(_flat_weights, lambda *_: None),
        # its answer to changed weights would move them to new storage on a GPU
        "_update_flat_weights": lambda _: None,
    },
}
"""Modules whose forward does not read its parameters as attributes, and what makes them do so."""


def _put_adapted(
    module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Mapping[str, Any]
) -> None:
    """Put adapted values into a state dict; saving is no consumption."""
    for leaf, slot in vars(module)[_SLOTS].items():
        if f"{prefix}{leaf}" in state:
            state[f"{prefix}{leaf}"] = slot.compute(module._parameters[leaf])


def _check_consumed(module: nn.Module, _args: Any, _output: Any) -> None:
    require_consumed(module)


def _check_buffers(module: nn.Module, _args: Any, _output: Any) -> None:
    for name, buffer, version in vars(module)[_BINDING].buffers:
        if buffer._version != version:
            raise UnsupportedError(
                f"the forward changed the buffer {name!r} of the base in place; put the module in "
                "eval mode, or load the base again and give it buffers that stay"
            )
