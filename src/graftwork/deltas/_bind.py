"""Parameters of a module that are computed at each access, by a subclass made for the module.

`view` computes them from a base and a delta, tuners from a base and trainable values. Whatever
reads the attribute (functional kernels, fused attention, recurrent kernels) reads computed values;
`parameters()` still gives what is stored.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from graftwork._errors import UnsupportedError

_SLOTS = "_graftwork_slots"


@runtime_checkable
@runtime_checkable
class Computed(Protocol):
    """One computed parameter of one module."""

    @property
    def name(self) -> str:
        """Name of the parameter, for messages."""

    def compute(self, parameter: Tensor | None) -> Tensor:
        """Return the value for the stored `parameter`."""

    def read(self) -> None:
        """Note that the value was read as an attribute."""


def bind(
    module: nn.Module,
    slots: Mapping[str, Computed],
    forward: Callable[..., Any] | None = None,
) -> None:
    """Compute the parameters `slots` of `module` from now on; its class becomes a subclass.

    Args:
        module: changed in place; use a `shared_copy` where the original must stay.
        slots: attribute -> what computes it. Bound once: a second call replaces nothing.
        forward: takes the place of the class's own forward: (module, ...) -> output.

    Raises:
        UnsupportedError: the class allows no subclass.
    """
    kind: Any = type(module)
    try:
        adapted = _adapted_class(kind, frozenset(slots), forward)
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
def _adapted_class(
    kind: type[Any], names: frozenset[str], forward: Callable[..., Any] | None
) -> type[Any]:
    """Return a subclass of `kind` whose parameters `names` are computed; views share it."""
    members: dict[str, Any] = {name: _computed(name) for name in names}
    for known, extra in _BYPASSES.items():
        if issubclass(kind, known):
            members |= extra
    if forward is not None:
        members["forward"] = forward
    members |= {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    return type(kind.__name__, (kind,), members)


def _computed(leaf: str) -> property:
    def get(module: nn.Module) -> Tensor:
        slot: Computed = vars(module)[_SLOTS][leaf]
        try:
            value = slot.compute(module._parameters[leaf])
        except AttributeError as cause:
            # nn.Module.__getattr__ would take over and silently give the base's own value
            raise RuntimeError(f"computing {slot.name!r} failed: {cause}") from cause
        slot.read()
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
            state[f"{prefix}{leaf}"] = slot.compute(module._parameters[leaf]).detach()
