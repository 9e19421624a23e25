"""DoRA, IA3, BitFit and low-rank + sparse against the equation written out."""

from __future__ import annotations

import pytest
import torch
from tests.tuning.support import after_resume, bits, plain_base, run_stage
from tests.tuning.test_lora import LAYERS, fill, matrix
from torch import nn
from torch.func import functional_call

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.deltas import values_of, view
from graftwork.tuning import IA3, BitFit, DoRA, LowRankSparse, Tuner, as_delta

# the forward of a normed embedding writes to its own table, so nothing can be compared with it
SCALED = [name for name in LAYERS if name not in ("tied", "weight read", "normed embedding")]


def made(name: str, tuner: Tuner):
    build, inputs = LAYERS[name]
    torch.manual_seed(0)
    base = plain_base(build())
    return base, tuner.attach(base, list(base.names.pieces), seed=1), inputs()


def columns(name: str) -> bool:
    return name == "conv1d of gpt2" or name == "embedding"


@pytest.mark.parametrize("name", SCALED)
def test_dora_is_magnitude_times_direction_with_a_constant_norm(name):
    base, attachment, inputs = made(name, DoRA(rank=2, alpha=3.0))
    weight = base.model.weight.clone()
    with torch.no_grad():
        start = attachment.module(inputs)
        torch.testing.assert_close(start, base.model(inputs), rtol=1e-5, atol=1e-6)
    fill(attachment)
    state = {key.partition("/")[2]: v for key, v in attachment.tensors().items()}
    left, right, m = (
        state[key].clone().requires_grad_() for key in ("block_0.left", "block_0.right", "scale")
    )
    total = weight + 1.5 * (left @ right).reshape(weight.shape)
    dims = 0 if columns(name) else tuple(range(1, weight.dim()))
    direction = total / torch.linalg.vector_norm(total.detach(), dim=dims, keepdim=True)
    wanted = functional_call(base.model, {"weight": m * direction}, (inputs,))
    found = attachment.module(inputs)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    towards = matrix(*found.shape, seed=9)
    (found * towards).sum().backward()
    (wanted * towards).sum().backward()
    attachment.collect()
    if name != "embedding":  # whose padding row tells the two apart, see test_lora.py
        target = attachment._targets[0]
        factors = target.blocks[0].factors
        pairs = ((factors.left, left), (factors.right, right), (target.scale.parameter, m))
        for mine, theirs in pairs:
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        delta = as_delta(base, attachment.extract())
        assert delta.updates["weight"].terms == ("low_rank", "scale")
        adapted = view(base, delta)(inputs)
        # the scale is that of the ROUNDED product, so each output keeps its magnitude
        rounded = delta.updates["weight"].adapted(weight)
        norm = torch.linalg.vector_norm(rounded, dim=dims, keepdim=True)
        torch.testing.assert_close(norm, m.abs())
        torch.testing.assert_close(adapted, found, rtol=2e-2, atol=2e-2)


def test_dora_of_an_output_without_weights_stays_finite():
    layer = nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight[0] = 0.0
    base = plain_base(layer)
    tuner = DoRA(rank=1, values_lr=0.1)
    attachment = tuner.attach(base, ["weight"], seed=0)
    losses = run_stage(
        attachment, tuner.stages[0], lambda m, s: (m(matrix(8, 3)) - 1.0).square().mean(), 30
    )
    assert losses[-1] < losses[0]
    updates = attachment.extract()
    assert torch.isfinite(updates["weight"].adapted(layer.weight)).all()


@pytest.mark.parametrize("inputs_scaled", [False, True])
@pytest.mark.parametrize("name", SCALED)
def test_ia3_multiplies_activations(name, inputs_scaled):
    base, attachment, inputs = made(name, IA3(feedforward=("weight",) if inputs_scaled else ()))
    with torch.no_grad():
        torch.testing.assert_close(attachment.module(inputs), base.model(inputs))
    fill(attachment)
    with torch.no_grad():
        for p in attachment:
            p.add_(1.0)
    weight = base.model.weight
    factors = attachment._targets[0].scale.parameter.detach()
    kept = 0 if columns(name) == inputs_scaled else 1
    assert factors.numel() == weight.shape[kept]
    shape = [1] * weight.dim()
    shape[kept] = -1
    weights = {"weight": weight * factors.view(shape)}
    known = name not in ("own forward", "transposed conv")
    if not inputs_scaled and known and getattr(base.model, "bias", None) is not None:
        weights["bias"] = base.model.bias * factors.view(-1)
    with torch.no_grad():
        wanted = functional_call(base.model, weights, (inputs,))
        torch.testing.assert_close(attachment.module(inputs), wanted, rtol=1e-5, atol=1e-5)
        delta = as_delta(base, attachment.extract())
        assert {u.terms for u in delta.updates.values()} == {("scale",)}
        assert {u.scale.dtype for u in delta.updates.values()} == {torch.float32}
        torch.testing.assert_close(view(base, delta)(inputs), wanted, rtol=1e-5, atol=1e-5)


def test_ia3_errors_and_what_it_leaves_alone():
    base = plain_base(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    attachment = IA3().attach(base, list(base.names.pieces), seed=0)
    assert attachment.report() == {"values": 3, "tensors": 2, "branches": 1}
    with pytest.raises(UnknownNameError, match=r"target pattern in feedforward: '\*mlp\*'"):
        IA3(feedforward=("*mlp*",)).attach(base, ["0.weight"], seed=0)
    with pytest.raises(ConfigError, match="none of the 2 targets is a matrix"):
        IA3().attach(base, ["1.weight", "1.bias"], seed=0)


def test_bitfit_trains_biases_and_nothing_else():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.LSTM(3, 2))
    base = plain_base(model)
    before = bits(model)
    tuner = BitFit(values_lr=0.05)
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    losses = run_stage(
        attachment,
        tuner.stages[0],
        lambda m, s: (m(matrix(6, 4, seed=s))[0] - 0.5).square().mean(),
        60,
    )
    assert losses[-1] < 0.7 * losses[0]
    updates = attachment.extract()
    assert set(updates) == {"0.bias", "1.bias", "2.bias_ih_l0", "2.bias_hh_l0"}
    assert bits(model) == before
    with pytest.raises(ConfigError, match="none of the 1 targets is a bias"):
        BitFit().attach(base, ["0.weight"], seed=0)


@pytest.mark.parametrize("name", ["linear", "conv1d of gpt2", "conv", "embedding", "own forward"])
def test_low_rank_and_sparse_are_one_delta(name):
    tuner = LowRankSparse(rank=2, alpha=3.0, share=0.2)
    base, attachment, inputs = made(name, tuner)
    with torch.no_grad():
        assert torch.equal(attachment.module(inputs), base.model(inputs))
    fill(attachment)
    with torch.no_grad():
        delta = as_delta(base, attachment.extract("float32"))
        update = delta.updates["weight"]
        assert update.terms == ("sparse", "low_rank")
        assert update.sparse.mask.seed == 1
        state = attachment.tensors()
        change = 1.5 * state["weight/block_0.left"] @ state["weight/block_0.right"]
        for position, value in zip(
            state["weight/positions"].tolist(), state["weight/sparse"].tolist(), strict=True
        ):
            change.view(-1)[position] += value
        weights = {"weight": base.model.weight + change.reshape(base.model.weight.shape)}
        if "bias" in delta.updates:
            sparse = delta.updates["bias"].sparse
            weights["bias"] = base.model.bias.clone()
            weights["bias"][sparse.positions] += values_of(sparse.values)
        wanted = functional_call(base.model, weights, (inputs,))
        torch.testing.assert_close(attachment.module(inputs), wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(view(base, delta)(inputs), wanted, rtol=1e-5, atol=1e-5)
    kept = sum(u.sparse.positions.numel() for u in delta.updates.values() if u.sparse)
    assert kept == sum(p.numel() for p in base.model.parameters()) * 2 // 10
    assert {g.role for g in attachment.groups()} == {"values", "sparse"}


TERMS = {"dora": DoRA(rank=2), "ia3": IA3(), "low rank + sparse": LowRankSparse(share=0.2)}


@pytest.mark.parametrize("name", TERMS)
def test_resume_in_the_middle_gives_the_same_bits(name):
    tuner = TERMS[name]

    def attach(seed: int):
        base, _, _ = made("linear", tuner)
        return tuner.attach(base, list(base.names.pieces), seed=seed)

    def loss(attachment, step: int) -> torch.Tensor:
        return attachment.module(matrix(8, 5, seed=step)).sub(1.0).square().mean()

    whole, resumed = after_resume(attach, tuner.stages[0], loss)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)
