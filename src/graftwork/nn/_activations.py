"""The activations that a port may name."""

from __future__ import annotations

from typing import Literal, get_args

from torch import nn

from graftwork._errors import UnknownNameError

Activation = Literal["tanh", "relu", "gelu", "identity"]
_MODULES: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "identity": nn.Identity,
}


def activation_module(name: Activation) -> nn.Module:
    """Return the activation called `name`.

    Raises:
        UnknownNameError: no such activation.
    """
    if name not in _MODULES:
        raise UnknownNameError("activation", name, get_args(Activation))
    return _MODULES[name]()
