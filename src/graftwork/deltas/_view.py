"""`view(base, delta)`: an adapted module that shares the base's storage.

The view is a copy of the module tree (`shared_copy`). Each touched parameter becomes a property of
a subclass made for its module, which computes `W'` from the base's own W at every access. So
nothing is stored, ties stay tied, `isinstance` and state dict names hold, and whatever reads an
attribute (functional kernels, fused attention, `generate`) reads adapted values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from graftwork._errors import DeltaError, UnsupportedError, UnusedTensorError
from graftwork.deltas._applied import refuse_applied
from graftwork.deltas._bind import bind
from graftwork.deltas._delta import BaseLike, Delta
from graftwork.deltas._mounts import mount
from graftwork.deltas._plan import Part, Weighted, adapted_parameter, make_plan
from graftwork.deltas._port_mix import combine_ports
from graftwork.deltas._tree import all_places, shared_copy

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
        """Return the adapted parameter."""
        if parameter is None:
            raise UnsupportedError(f"parameter {self.name!r} of the view was removed")
        if parameter.requires_grad:
            raise UnsupportedError(
                f"parameter {self.name!r} of a view is frozen: it is computed from the base and "
                "its delta; train with a tuner"
            )
        return adapted_parameter(parameter, self.parts)

    def read(self) -> None:
        """Note that the forward consumed it."""
        for part in self.parts:
            self.binding.pending.discard(part.piece.name)


def view(
    base: BaseLike,
    delta: Delta | Weighted,
    *,
    unused: Literal["error", "allow"] = "error",
) -> nn.Module:
    """Return `base` adapted by `delta`, without copying or changing a stored value.

    Adapted parameters are computed at each access, in float32 (float64 for a float64 base) and
    cast to the parameter's type. `parameters()` still gives the base's own values; `state_dict()`
    gives adapted ones, so saving a view saves the merged model. Ports at a place inside the base
    (bottlenecks, prompts, prefixes: see `place_of`) run there; others, such as heads, are not part
    of the module: see `build_ports`.

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
    weighted = [(delta, 1.0)] if isinstance(delta, Delta) else delta
    plan = make_plan(base, weighted)
    twin = shared_copy(base.model)
    binding = _Binding({part.piece.name for parts in plan.values() for part in parts})
    slots: dict[nn.Module, dict[str, _Slot]] = {}
    for parameter, places in all_places(twin, plan).items():
        for module, leaf in places:
            slots.setdefault(module, {})[leaf] = _Slot(parameter, plan[parameter], binding)
    for module, held in slots.items():
        bind(module, held)
    _mount(base, twin, weighted, binding)
    vars(twin)[_BINDING] = binding
    binding.buffers = [(n, b, b._version) for n, b in twin.named_buffers() if not b.is_inference()]
    twin.register_forward_hook(_check_buffers)
    if unused == "error":
        twin.register_forward_hook(_check_consumed)
    return twin


def _mount(base: BaseLike, twin: nn.Module, deltas: Weighted, binding: _Binding) -> None:
    """Run the ports that are at a place of the base there."""
    kinds = {name: port.kind for delta, _ in deltas for name, port in delta.ports.items()}
    device = next((p.device for p in twin.parameters()), None)
    for name, port in combine_ports(deltas, mounted=True).items():
        binding.pending.add(name)
        port.to(device).register_forward_hook(lambda *_, name=name: binding.pending.discard(name))
        mount(base, twin, name, kinds[name], port)


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


def _check_consumed(module: nn.Module, _args: Any, _output: Any) -> None:
    require_consumed(module)


def _check_buffers(module: nn.Module, _args: Any, _output: Any) -> None:
    for name, buffer, version in vars(module)[_BINDING].buffers:
        if buffer._version != version:
            raise UnsupportedError(
                f"the forward changed the buffer {name!r} of the base in place; put the module in "
                "eval mode, or load the base again and give it buffers that stay"
            )
