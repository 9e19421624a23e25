"""Ports: modules rebuilt from kind, config and tensors, strictly."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from graftwork._errors import DeltaError, UnknownNameError
from graftwork.deltas import PORT_KINDS, Delta, Port, build_ports, port_of
from graftwork.nn import Bottleneck, Codes, Columns, Head, InputEmbedder, Patches, Prefix, Prompt

MADE = {
    "head": (Head, {"in_features": 4, "out_features": 3, "hidden": 5, "activation": "relu"}),
    "prompt": (Prompt, {"length": 2, "width": 4}),
    "prefix": (Prefix, {"layers": 2, "heads": 1, "length": 3, "width": 4}),
    "bottleneck": (Bottleneck, {"width": 4, "size": 2, "activation": "tanh"}),
    "input": (InputEmbedder, {"in_features": 4, "width": 6}),
    "patches": (Patches, {"channels": 3, "patch": [2], "width": 6}),
    "columns": (Columns, {"categories": [0, 3, 0], "width": 6, "tokens": 2}),
    "codes": (Codes, {"count": 4, "width": 6, "patch": 2}),
}
INPUT = torch.linspace(-1, 1, 24).reshape(2, 3, 4)
INPUTS = dict.fromkeys(MADE, INPUT) | {
    "columns": torch.tensor([[0.5, 2.0, -1.0], [0.1, 0.0, 0.7], [-0.4, 1.0, 0.2]]),
    "codes": torch.tensor([[0, 1, 2, 3], [3, 3, 1, 0]]),
}


def _trained(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module of the kind after 60 steps on a target it can reach, loss down by 30 %."""
    make, config = MADE[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make(**config).to(dtype)
        goal = make(**config).to(dtype)
        nn.init.normal_(list(goal.parameters())[-1], std=0.5)
        if kind == "bottleneck":
            nn.init.normal_(goal.up.weight)
    x = INPUTS[kind]
    x = x.to(dtype) if x.is_floating_point() else x
    target = goal(x).detach()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-2, weight_decay=0.0)
    losses = []
    for _ in range(60):
        optimiser.zero_grad()
        loss = (module(x) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    return module


def test_table_has_every_kind_under_test() -> None:
    assert set(PORT_KINDS) == set(MADE)


@pytest.mark.parametrize("kind", MADE)
@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32", "float64", "int8"])
def test_law04_ports_come_back_as_they_are_stored(kind: str, stored: str) -> None:
    module = _trained(kind, torch.float64 if stored == "float64" else torch.float32)
    port = port_of(module, kind, MADE[kind][1], stored)
    again = build_ports(Delta({}, {"p": port}))["p"]
    assert type(again) is type(module)
    x = INPUTS[kind]
    x = x.to(next(module.parameters()).dtype) if x.is_floating_point() else x
    if stored in ("float32", "float64"):
        assert torch.equal(again(x), module(x))
    else:
        torch.testing.assert_close(again(x), module(x), atol=5e-2, rtol=5e-2)
    twice = port_of(again, kind, MADE[kind][1], stored)
    third = build_ports(Delta({}, {"p": twice}))["p"]
    assert torch.equal(third(x), again(x))


def test_ports_are_frozen_in_eval_mode_and_draw_no_random_numbers() -> None:
    delta = Delta({}, {kind: port_of(_trained(kind), kind, MADE[kind][1]) for kind in MADE})
    state = torch.get_rng_state()
    ports = build_ports(delta)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(ports) == list(MADE)
    assert not any(p.requires_grad or p.is_meta for p in ports.parameters())
    assert not any(m.training for m in ports.modules())


def test_names_with_dots_are_ports_like_any_other() -> None:
    name = "bottleneck:encoder.layer.0"
    port = port_of(_trained("bottleneck"), "bottleneck", MADE["bottleneck"][1])
    ports = build_ports(Delta({}, {name: port, "head": port_of(_trained("head"), *_head())}))
    assert list(ports) == [name, "head"]
    assert name in ports
    assert isinstance(ports[name], Bottleneck)
    assert f"{name}.down.weight" in ports.state_dict()
    assert f"{name}.down.weight" in dict(ports.named_parameters())


def _head() -> tuple[str, dict[str, object]]:
    return "head", MADE["head"][1]


def test_law03_ports_are_strict() -> None:
    port = port_of(_trained("head"), *_head())

    def build(changed: Port) -> None:
        build_ports(Delta({}, {"head": changed}))

    tensors = dict(port.tensors)
    removed = {k: v for k, v in tensors.items() if k != "out.bias"}
    with pytest.raises(DeltaError, match=r"port 'head' lacks the tensor 'out\.bias'"):
        build(replace(port, tensors=removed))
    with pytest.raises(DeltaError, match="has a tensor 'more' that its config does not want"):
        build(replace(port, tensors={**tensors, "more": torch.zeros(1)}))
    with pytest.raises(DeltaError, match=r"'out\.bias' has shape \(2,\), its config wants \(3,\)"):
        build(replace(port, tensors={**tensors, "out.bias": torch.zeros(2)}))
    with pytest.raises(UnknownNameError, match="did you mean 'head'"):
        build(replace(port, kind="hed"))
    with pytest.raises(DeltaError, match="unknown config key 'hiden'; did you mean 'hidden'"):
        build(replace(port, config={**port.config, "hiden": 3}))
    with pytest.raises(DeltaError, match="makes no head: a head needs"):
        build(replace(port, config={**port.config, "out_features": 0}))
    with pytest.raises(DeltaError, match="makes no head"):
        build(replace(port, config={**port.config, "in_features": "four"}))
    with pytest.raises(DeltaError, match=r"makes no head: .*missing .*out_features"):
        build(replace(port, config={"in_features": 4}))
    with pytest.raises(DeltaError, match="its config wants"):
        port_of(_trained("head"), "head", {**MADE["head"][1], "hidden": 6})
