"""PEFT as the oracle: the same factors, trained side by side, stay the same."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from tests.battery.models import CASES
from tests.tuning.support import plain_base
from torch import nn
from torch.nn import functional as F

from graftwork.tuning import IA3, Attachment, DoRA, LoRA, Tuner, adam

STEPS, RATE = 60, 3e-3
SHARP = 20.0
"""Multiplies logits, which the frozen output layers of new models keep near 0."""

# model -> (what PEFT is told, our patterns); GPT-2's layers are Conv1D, the embedding is a table
MODELS: dict[str, tuple[list[str], list[str]]] = {
    "bert": (
        ["query", "value", "word_embeddings"],
        ["*.query.weight", "*.value.weight", "*word_embeddings.weight"],
    ),
    "gpt2": (["c_attn", "c_proj", "c_fc"], ["*c_attn.weight", "*c_proj.weight", "*c_fc.weight"]),
    "conv": (["conv1", "conv2"], ["conv1.weight", "conv2.weight"]),
    "vit": (["q_proj", "v_proj", "fc1"], ["*q_proj.weight", "*v_proj.weight", "*fc1.weight"]),
}


def untied(name: str) -> nn.Module:
    """The model of a case; PEFT adapts one side of a tie only, so the tie is cut."""
    module = CASES[name].build()
    if name == "bert":
        decoder = module.cls.predictions.decoder
        decoder.weight = nn.Parameter(decoder.weight.detach().clone())
    return module


def rival_of(name: str, **options: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    settings = {"r": 3, "lora_alpha": 6, "target_modules": MODELS[name][0], **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return get_peft_model(untied(name), LoraConfig(**settings)).eval()


def factors_of(rival: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Canonical parameter name -> (left, right) of the oracle, in the shape of our term."""
    found = {}
    for path, module in rival.base_model.model.named_modules():
        if not hasattr(module, "lora_A"):
            continue
        if "default" in module.lora_embedding_A:
            a, b = module.lora_embedding_A["default"], module.lora_embedding_B["default"]
            found[f"{path}.weight"] = (a.t(), b.t())
            continue
        a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
        left, right = b.flatten(1), a.flatten(1)
        if getattr(module, "fan_in_fan_out", False):
            left, right = right.t(), left.t()
        found[f"{path}.weight"] = (left, right)
    return found


def put(attachment, factors) -> None:
    state = {key: value for key, value in attachment.tensors().items() if "block" in key}
    assert {key.partition("/")[0] for key in state} == set(factors)
    with torch.no_grad():
        for name, (left, right) in factors.items():
            state[f"{name}/block_0.left"].copy_(left)
            state[f"{name}/block_0.right"].copy_(right)
    attachment.prepare(0.0, seed=0)


def train_both(name: str, tuner: Tuner, rival: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    base = plain_base(untied(name))
    attachment = tuner.attach(base, base.names.match(MODELS[name][1]), seed=0)
    put(attachment, factors_of(rival))
    return side_by_side(name, tuner, attachment, rival)


def side_by_side(
    name: str, tuner: Tuner, attachment: Attachment, rival: nn.Module
) -> tuple[torch.Tensor, torch.Tensor]:
    """Train both on the same batches; return what they give then."""
    case = CASES[name]
    ours = adam(tuner.stages[0], attachment)
    theirs = torch.optim.Adam(
        [p for p in rival.parameters() if p.requires_grad], lr=tuner.values_lr
    )
    losses = []
    for step in range(STEPS):
        batch = case.batch(32, seed=step + 1)
        attachment.prepare(step / STEPS, seed=step)
        pair = []
        for module in (attachment.module, rival):
            loss = F.cross_entropy(SHARP * case.call(module, batch.inputs), batch.targets)
            loss.backward()
            pair.append(loss.item())
        attachment.collect()
        for optimiser in (ours, theirs):
            optimiser.step()
            optimiser.zero_grad()
        losses.append(pair)
    assert losses[-1][0] < (0.9 if isinstance(tuner, IA3) else 0.7) * losses[0][0]
    inputs = case.batch(16, seed=99).inputs
    with torch.no_grad(), attachment.settled() as module:
        return case.call(module, inputs), case.call(rival, inputs)


@pytest.mark.parametrize("name", MODELS)
def test_trained_beside_peft_both_stay_the_same(name):
    tuner = LoRA(rank=3, alpha=6.0, values_lr=RATE)
    found, wanted = train_both(name, tuner, rival_of(name))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_rslora_and_patterns_are_those_of_peft():
    options = {"use_rslora": True, "rank_pattern": {"c_fc": 5}, "alpha_pattern": {"c_proj": 2}}
    tuner = LoRA(
        rank=3,
        alpha=6.0,
        stabilised=True,
        ranks={"*c_fc*": 5},
        alphas={"*c_proj*": 2.0},
        values_lr=RATE,
    )
    found, wanted = train_both("gpt2", tuner, rival_of("gpt2", **options))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_pissa_trained_beside_peft_with_another_base():
    """PEFT moves the principal part out of its base; ours stays, and the difference is learnt."""
    rival = rival_of("vit", init_lora_weights="pissa")
    tuner = LoRA(rank=3, alpha=6.0, start="principal", values_lr=RATE)
    base = plain_base(untied("vit"))
    attachment = tuner.attach(base, base.names.match(MODELS["vit"][1]), seed=0)
    before = copy.deepcopy(base.model.state_dict())
    signs = factors_of(rival)  # a singular vector has two signs; take theirs
    state = attachment.tensors()
    for name, (left, right) in signs.items():
        product = state[f"{name}/block_0.left"] @ state[f"{name}/block_0.right"]
        torch.testing.assert_close(product, (left @ right).detach(), rtol=1e-4, atol=1e-5)
    found, wanted = side_by_side("vit", tuner, attachment, rival)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(before[k], v) for k, v in base.model.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_dora_trained_beside_peft_stays_the_same(name):
    tuner = DoRA(rank=3, alpha=6.0, values_lr=RATE)
    found, wanted = train_both(name, tuner, rival_of(name, use_dora=True))
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("name", "second"), [("bert", "output.dense"), ("gpt2", "c_proj")])
def test_ia3_trained_beside_peft_stays_the_same(name, second):
    from peft import IA3Config, get_peft_model

    layers = {"bert": ["key", "value"], "gpt2": ["c_attn"]}[name]
    config = IA3Config(target_modules=[*layers, second], feedforward_modules=[second])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival = get_peft_model(untied(name), config).eval()
    base = plain_base(untied(name))
    tuner = IA3(feedforward=(f"*{second}.weight",), values_lr=20 * RATE)
    names = base.names.match([f"*{layer}.weight" for layer in (*layers, second)])
    attachment = tuner.attach(base, names, seed=0)
    trained = sum(p.numel() for p in rival.parameters() if p.requires_grad)
    assert attachment.report()["values"] == trained
    found, wanted = side_by_side(name, tuner, attachment, rival)
    torch.testing.assert_close(found, wanted, rtol=2e-4, atol=2e-4)
