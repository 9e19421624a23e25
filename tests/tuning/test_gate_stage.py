"""The tiled gate stage against plain autograd."""

from __future__ import annotations

import pytest
import torch
from tests.tuning.oracle import naive_step
from tests.tuning.support import plain_base
from torch import nn

from graftwork.tuning import DiffPruning
from graftwork.tuning import _tiles as tiles
from graftwork.tuning._groups import groups_of
from graftwork.tuning._layout import layout_of
from graftwork.tuning._penalty import Penalty
from graftwork.tuning._uniform import UniformStream


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(7, 9), nn.Tanh(), nn.Linear(9, 5), nn.Tanh(), nn.Linear(5, 2))


def by_layer(name: str) -> str:
    return name.split(".")[0]


def attach(groups, dtype=torch.float64, **settings):
    base = plain_base(model().to(dtype))
    tuner = DiffPruning(share=0.1, groups=groups, **settings)
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    state = attachment.tensors()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        state["values"].normal_(0.0, 1.0, generator=generator)
        state["gates"].normal_(0.3, 1.0, generator=generator)
        state["group_gates"].normal_(1.5, 0.3, generator=generator)
    return base, attachment


def index_of(base, groups):
    layout = layout_of(base, list(base.names.pieces))
    if groups is None:
        return {slot.name: None for slot in layout.slots}
    found = groups_of(layout, groups)
    flat = found.of_positions(layout, torch.arange(layout.numel))
    return {s.name: flat[s.start : s.stop].view(s.piece.shape) for s in layout.slots}


def pieces(base, flat):
    layout = layout_of(base, list(base.names.pieces))
    return {s.name: flat[s.start : s.stop].view(s.piece.shape).clone() for s in layout.slots}


@pytest.mark.parametrize("groups", [None, "tensor", "neuron", "layer", by_layer])
@pytest.mark.parametrize("tile", [16, 1 << 17])
@pytest.mark.parametrize("progress", [0.1, 0.5])
def test_one_step_is_what_autograd_says(groups, tile, progress, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    base, attachment = attach(groups, pressure=False)
    state = {k: v.clone() for k, v in attachment.tensors().items()}
    x, y = torch.randn(11, 7, dtype=torch.float64), torch.randn(11, 2, dtype=torch.float64)

    attachment.prepare(progress, seed=3)
    shift = attachment.tensors()["shift"].item()
    assert (shift != 0) == (progress == 0.5)
    value = (attachment.module(x) - y).square().mean()
    value.backward()
    attachment.collect()

    # the draws in the order the stage asks for them: group gates, then tile by tile
    stream = UniformStream(3, torch.device("cpu"))
    draws = {None: stream.into(torch.empty_like(state["group_gates"]))}
    flat = torch.cat([stream.into(torch.empty_like(t.values)) for t in attachment._tiles._tiles])
    draws |= pieces(base, flat)
    weights = {n: p.detach() for n, p in base.model.named_parameters()}
    expected, values, alphas, group_alphas = naive_step(
        base.model,
        lambda call: (call(x) - y).square().mean(),
        weights,
        pieces(base, state["values"]),
        pieces(base, state["gates"]),
        state["group_gates"],
        index_of(base, groups),
        draws,
        shift,
    )
    by_role = {group.role: group.parameters for group in attachment.groups()}
    found = torch.cat([p.grad.reshape(-1) for p in by_role["values"]])
    torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found, values, rtol=1e-7, atol=1e-11)
    torch.testing.assert_close(by_role["gates"][0].grad, alphas, rtol=1e-7, atol=1e-11)
    assert alphas.count_nonzero() > 10
    if groups is not None:
        torch.testing.assert_close(by_role["gates"][1].grad, group_alphas, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 1.1), (-0.5, 2.0)])
def test_uneven_stretch(low, high):
    _, attachment = attach(None, low=low, high=high)
    alpha = attachment.tensors()["gates"].clone().requires_grad_()
    values = attachment.tensors()["values"]
    x = torch.randn(11, 7, dtype=torch.float64)
    attachment.prepare(0.1, seed=3)
    gates = attachment._tiles.gates.clone()
    stream = UniformStream(3, torch.device("cpu"))
    u = torch.cat([stream.into(torch.empty_like(t.values)) for t in attachment._tiles._tiles])
    z = attachment._settings.gate.sample(alpha, u)
    torch.testing.assert_close(gates, z.detach(), rtol=1e-9, atol=1e-12)
    attachment.module(x).square().mean().backward()
    working = torch.cat([p.grad.reshape(-1) for p in attachment.module.parameters()])
    (expected,) = torch.autograd.grad((z * working * values).sum(), alpha)
    attachment.collect()
    found = attachment.groups()[1].parameters[0].grad
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("groups", [None, "tensor", "neuron", "layer"])
@pytest.mark.parametrize("form", ["product", "additive"])
def test_penalty_is_the_formula_and_its_gradient(groups, form):
    base, attachment = attach(groups)
    layout = layout_of(base, list(base.names.pieces))
    found = None if groups is None else groups_of(layout, groups)
    gate = attachment._settings.gate
    penalty = Penalty(layout, found, gate, form, 0.01)
    alpha = attachment.tensors()["gates"].clone().requires_grad_()
    group_alpha = attachment.tensors()["group_gates"].clone().requires_grad_()
    if groups is None:
        formula = torch.sigmoid(alpha).sum()
    elif form == "product":
        owner = found.of_positions(layout, torch.arange(layout.numel))
        formula = (torch.sigmoid(alpha) * torch.sigmoid(group_alpha)[owner]).sum()
    else:
        formula = torch.sigmoid(alpha).sum() + torch.sigmoid(group_alpha).sum()
    formula = 0.01 * formula
    torch.testing.assert_close(penalty.value(alpha, group_alpha), formula)
    wanted = torch.autograd.grad(formula, [alpha, group_alpha], allow_unused=True)
    ones = torch.ones_like(alpha.detach()), torch.ones_like(group_alpha.detach())
    penalty.add_gradient(alpha.detach(), group_alpha.detach(), *ones)
    torch.testing.assert_close(ones[0] - 1, wanted[0])
    if groups is not None:
        torch.testing.assert_close(ones[1] - 1, wanted[1])


def test_penalty_reaches_the_gates_and_gates_fall():
    _, attachment = attach("tensor", density="penalty", lambda_l0=1.0)
    with torch.no_grad():
        attachment.tensors()["values"].zero_()
    attachment.prepare(0.0, seed=0)
    attachment.module(torch.randn(3, 7, dtype=torch.float64)).mean().backward()
    attachment.collect()
    for parameter in attachment.groups()[1].parameters:
        assert bool((parameter.grad > 0).all())


def test_settled_is_the_median_draw_and_restores_determinism():
    _, attachment = attach("tensor", dtype=torch.float32)
    x = torch.randn(4, 7)
    with attachment.settled() as module:
        first = module(x)
    attachment.prepare(0.3, seed=1)
    assert not torch.equal(attachment.module(x), first)
    with attachment.settled() as module:
        assert torch.equal(module(x), first)


def test_the_same_seed_draws_the_same_and_another_another():
    _, attachment = attach("neuron", dtype=torch.float32)
    x = torch.randn(4, 7)
    outputs = []
    for seed in (5, 6, 5):
        attachment.prepare(0.0, seed=seed)
        outputs.append(attachment.module(x).detach())
    assert torch.equal(outputs[0], outputs[2])
    assert not torch.equal(outputs[0], outputs[1])


def test_group_numbers():
    base = plain_base(model())
    layout = layout_of(base, list(base.names.pieces))
    assert groups_of(layout, "tensor").count == 6
    assert groups_of(layout, "layer").count == 3
    assert groups_of(layout, "neuron").count == 9 + 1 + 5 + 1 + 2 + 1
    assert groups_of(layout, lambda name: name.endswith("bias")).count == 2
    neurons = groups_of(layout, "neuron").of_positions(layout, torch.tensor([0, 6, 7, 63, 71]))
    assert neurons.tolist() == [0, 0, 1, 9, 9]


@pytest.mark.parametrize("groups", [None, "tensor", "neuron"])
@pytest.mark.parametrize("shift_groups", [True, False])
@pytest.mark.parametrize("tile", [16, 1 << 17])
def test_pressure_is_the_lagrangian_gradient(groups, shift_groups, tile, monkeypatch):
    monkeypatch.setattr(tiles, "TILE", tile)
    x = torch.randn(11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    gradients = []
    for pressure in (False, True):
        base, attachment = attach(groups, pressure=pressure, shift_groups=shift_groups)
        attachment.prepare(0.7, seed=3)
        attachment.module(x).square().mean().backward()
        attachment.collect()
        gradients.append([p.grad.clone() for p in attachment.groups()[1].parameters])
    state, gate = attachment.tensors(), attachment._settings.gate
    shift = state["shift"].item()
    alpha = (state["gates"].clone() - shift).requires_grad_()
    group_alpha = state["group_gates"].clone() - (shift if shift_groups else 0.0)
    group_alpha.requires_grad_()
    on = gate.on(alpha)
    if groups is not None:
        layout = layout_of(base, list(base.names.pieces))
        owner = groups_of(layout, groups).of_positions(layout, torch.arange(layout.numel))
        on = on * gate.on(group_alpha)[owner]
    slopes = torch.autograd.grad(on.sum(), [alpha, group_alpha], allow_unused=True)
    shifted = 1 + (groups is not None and shift_groups)
    gains = sum(g.sum() for g in gradients[0][:shifted])
    price = -gains / sum(s.sum() for s in slopes[:shifted])
    assert attachment.report()["price"] == pytest.approx(price.item(), rel=1e-6)
    for plain, pressed, slope in zip(*gradients, slopes, strict=False):
        torch.testing.assert_close(pressed, plain + price * slope, rtol=1e-6, atol=1e-12)
    total = sum(g.sum() for g in gradients[1][:shifted])
    assert abs(total) < 1e-9 * sum(g.abs().sum() for g in gradients[0])


def test_extreme_logits_stay_finite():
    base, attachment = attach(None, dtype=torch.float32, pressure=False)
    gates = attachment.tensors()["gates"]
    with torch.no_grad():
        gates.copy_(torch.linspace(-1e4, 1e4, gates.numel()))
    attachment.prepare(0.0, seed=0)
    attachment.module(torch.randn(4, 7)).square().mean().backward()
    attachment.collect()
    assert all(bool(p.grad.isfinite().all()) for p in attachment)
    moved = [
        p != q for p, q in zip(attachment.module.parameters(), base.model.parameters(), strict=True)
    ]
    moved = torch.cat([m.view(-1) for m in moved])
    assert not moved[: gates.numel() // 2 - 5].any()
    assert moved[gates.numel() // 2 + 5 :].all()
