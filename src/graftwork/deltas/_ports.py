"""Ports: the modules that a delta adds at named places, rebuilt from their kind and config."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError, DeltaError, UnknownNameError
from graftwork.deltas._delta import Delta
from graftwork.deltas._quantise import quantise
from graftwork.deltas._terms import Port, Stored, values_of
from graftwork.nn import Bottleneck, Codes, Columns, Head, InputEmbedder, Patches, Prefix, Prompt

PORT_KINDS: Mapping[str, Callable[..., nn.Module]] = {
    "head": Head,
    "prompt": Prompt,
    "bottleneck": Bottleneck,
    "prefix": Prefix,
    "input": InputEmbedder,
    "patches": Patches,
    "columns": Columns,
    "codes": Codes,
}
"""Kind -> module class; a port's config holds the class's arguments."""


def build_ports(delta: Delta) -> nn.ModuleDict:
    """Return the delta's modules by port name, frozen, in eval mode.

    Values come back in float32 (float64 where stored so). Draws nothing from random generators.

    Raises:
        UnknownNameError: a port's kind is not in `PORT_KINDS`.
        DeltaError: missing, extra or mis-shaped tensors, or a config the kind does not take; names
            the port and the tensor.
    """
    ports = nn.ModuleDict()
    for name, port in delta.ports.items():
        # `add_module` refuses the dots of "bottleneck:encoder.layer.0"; lookup does not mind them
        ports._modules[name] = _build(name, port)
    return ports.eval().requires_grad_(False)


def port_of(
    module: nn.Module, kind: str, config: Mapping[str, Any], stored: str = "float16"
) -> Port:
    """Return the port that rebuilds `module`, its values rounded to `stored` (law 4).

    Args:
        module: a module of the kind.
        kind: a key of `PORT_KINDS`.
        config: the arguments that the module was made with; plain JSON.
        stored: "float16" (2 bytes a value), "bfloat16", "float32", "float64" or "int8".

    Raises:
        UnknownNameError: no such kind or stored type.
        DeltaError: the config does not rebuild a module with these tensors.
    """
    port = Port(kind, dict(config), {n: quantise(t, stored) for n, t in _state(module).items()})
    _build(kind, port)
    return port


def _state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach() for name, tensor in module.state_dict().items()}


def _build(name: str, port: Port) -> nn.Module:
    if port.kind not in PORT_KINDS:
        raise UnknownNameError("port kind", port.kind, PORT_KINDS)
    kind = PORT_KINDS[port.kind]
    known = inspect.signature(kind).parameters
    for key in port.config:
        if key not in known:
            raise DeltaError(f"port {name!r}: {UnknownNameError('config key', key, known)}")
    try:
        with torch.device("meta"):
            module = kind(**port.config)
    except (TypeError, ConfigError, UnknownNameError, RuntimeError) as cause:
        raise DeltaError(
            f"port {name!r}: the config {dict(port.config)} makes no {port.kind}: {cause}"
        ) from cause
    _check_tensors(name, port.tensors, _state(module))
    values = {key: values_of(stored) for key, stored in port.tensors.items()}
    module.load_state_dict(values, strict=True, assign=True)
    return module


def _check_tensors(name: str, held: Mapping[str, Stored], wanted: Mapping[str, Tensor]) -> None:
    for key, tensor in wanted.items():
        if key not in held:
            raise DeltaError(f"port {name!r} lacks the tensor {key!r} of shape {tensor.shape}")
        if tuple(held[key].shape) != tuple(tensor.shape):
            raise DeltaError(
                f"port {name!r}: tensor {key!r} has shape {tuple(held[key].shape)}, "
                f"its config wants {tuple(tensor.shape)}"
            )
    extra = [key for key in held if key not in wanted]
    if extra:
        raise DeltaError(f"port {name!r} has a tensor {extra[0]!r} that its config does not want")
