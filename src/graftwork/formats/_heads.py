"""Heads of task models: stored as plain layers there, as the port "head" of a delta here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import UnsupportedError
from graftwork.deltas import Port, port_of, values_of
from graftwork.nn import Head

Heads = dict[str, dict[str, Tensor]]
"""Name of a module that the base lacks -> its tensors."""

TWO_LAYERS = {"dense": "hidden", "out_proj": "out"}
"""Layers of a task model's head of two layers -> those of our head."""


def head_ports(
    heads: Heads, activation: str | None, stored: str | None
) -> tuple[dict[str, Port], dict[str, Any]]:
    """Return the port "head", and what is needed to store it again; both empty without a head.

    Raises:
        UnsupportedError: several modules are lacking, or the head has layers that no port holds.
    """
    if not heads:
        return {}, {}
    if len(heads) > 1:
        raise UnsupportedError(
            f"the base lacks several stored modules: {', '.join(map(repr, heads))}; load the base "
            "with the class of its task, so that they are a part of it"
        )
    ((module, tensors),) = heads.items()
    port, form = take_head(module, tensors, activation, stored)
    return {"head": port}, {"head": {"module": module, **form}}


def take_head(
    module: str, tensors: Mapping[str, Tensor], activation: str | None, stored: str | None
) -> tuple[Port, dict[str, Any]]:
    """Return the port of a stored head, and what is needed to store it again.

    Args:
        module: its name.
        tensors: `weight (labels, features)` and perhaps `bias`; or those of `dense` and `out_proj`.
        activation: between two layers.
        stored: type of the values; None keeps float32 or narrower as they are.

    Raises:
        UnsupportedError: other layers, or two of them without a stated activation.
    """
    layers = _layers(module, tensors)
    if "hidden" in layers and activation is None:
        raise UnsupportedError(
            f"head {module!r} has two layers, and its file does not say what lies between them; "
            "say it with head_activation='tanh' (RoBERTa, T5, BART) or another activation"
        )
    biased = "bias" in layers["out"]
    config: dict[str, Any] = {
        "in_features": next(iter(layers.values()))["weight"].shape[1],
        "out_features": layers["out"]["weight"].shape[0],
    }
    if "hidden" in layers:
        config |= {"hidden": layers["hidden"]["weight"].shape[0], "activation": activation}
    head = Head(**config)
    kept = layers["out"]["weight"].dtype
    state = {f"{layer}.{n}": t.float() for layer, held in layers.items() for n, t in held.items()}
    for layer, held in layers.items():
        outputs = held["weight"].shape[0]
        state.setdefault(f"{layer}.bias", torch.zeros(outputs))
    head.load_state_dict(state)
    port = port_of(head, "head", config, stored or str(kept).removeprefix("torch."))
    return port, {"layers": len(layers), "bias": biased}


def head_tensors(port: Port, module: str, form: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors that store the port "head" as the layers of a task model.

    Args:
        port: of the kind "head".
        module: name of the task model's head.
        form: "layers" (1 or 2) and "bias" of the task model's head.

    Raises:
        UnsupportedError: the port is no such head.
    """
    hidden = bool(port.config.get("hidden"))
    if port.kind != "head" or hidden != (form["layers"] == 2):
        raise UnsupportedError(
            f"port 'head' is a {port.kind} with config {dict(port.config)}, which the layers of "
            f"{module!r} cannot hold"
        )
    renamed = {ours: theirs for theirs, ours in TWO_LAYERS.items()}
    out: dict[str, Tensor] = {}
    for name, stored in port.tensors.items():
        layer, _, leaf = name.rpartition(".")
        values = values_of(stored)
        if leaf == "bias" and not form["bias"]:
            if bool(values.any()):
                raise UnsupportedError(
                    f"port 'head' has a bias, and {module!r} of the task model has none"
                )
            continue
        out[f"{module}.{renamed[layer]}.{leaf}" if hidden else f"{module}.{leaf}"] = values
    return out


def _layers(module: str, tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    layers: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = tensor
    known = [{""}, set(TWO_LAYERS)]
    leaves = all({"weight"} <= set(held) <= {"weight", "bias"} for held in layers.values())
    if (
        set(layers) not in known
        or not leaves
        or any(t["weight"].dim() != 2 for t in layers.values())
    ):
        raise UnsupportedError(
            f"the base lacks the stored module {module!r}, and its tensors {sorted(tensors)} are "
            "neither a linear head nor dense + out_proj; load the base with the class of its task, "
            "so that the module is a part of it"
        )
    return {TWO_LAYERS.get(layer, "out"): held for layer, held in sorted(layers.items())}
