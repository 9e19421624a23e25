"""What our own tuners learn, PEFT runs: LoRA, DoRA and IA3 after training, exported."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from graftwork.bases import load
from graftwork.deltas import view
from graftwork.formats import export_peft, import_peft
from graftwork.tuning import IA3, DoRA, LoRA, Tuner, as_delta
from tests.formats.oracles import MODELS, peft_logits
from tests.tuning.support import train

TARGETS = {
    "bert": ["*query.weight", "*intermediate.dense.weight", "*layer.?.output.dense.weight"],
    "gpt2": ["*c_attn.weight", "*mlp.c_proj.weight"],
    "llama": ["*q_proj.weight", "*down_proj.weight"],
    "conv": ["conv?.weight", "out.weight"],
}
TUNERS: dict[str, Tuner] = {
    "lora": LoRA(rank=2, values_lr=3e-2),
    "lora-stabilised": LoRA(rank=3, alpha=2.0, stabilised=True, values_lr=3e-2),
    "dora": DoRA(rank=2, values_lr=3e-2),
    "ia3": IA3(values_lr=1e-1),
}
INPUTS = {"bert": "*layer.?.output.dense.weight", "gpt2": "*c_proj.weight", "llama": "*down_proj*"}


@pytest.mark.parametrize("model", TARGETS)
@pytest.mark.parametrize("name", TUNERS)
def test_peft_gives_our_logits(name, model, tmp_path):
    case, tuner = MODELS[model], TUNERS[name]
    if name == "ia3" and model in INPUTS:
        tuner = IA3(values_lr=1e-1, feedforward=(INPUTS[model],))
    base = load(case.build())
    if model == "bert" and name.startswith("lora"):
        tuner = dataclasses.replace(tuner, values_lr=1e-2)
    attachment = tuner.attach(base, base.names.match(TARGETS[model]), seed=0)
    losses: list[float] = []

    def loss(module: torch.nn.Module, step: int) -> torch.Tensor:
        batch = case.batch(32, seed=step + 1)
        value = F.cross_entropy(case.call(module, batch.inputs), batch.targets)
        losses.append(value.item())
        return value

    delta = as_delta(base, train(tuner, attachment, loss, 60).extract())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    export_peft(delta, base, tmp_path / "out")
    # in float64, where no rounding of the two ways to add a product hides a fault
    wide = load(case.build(), dtype=torch.float64)
    inputs = case.batch(16, seed=77, dtype=torch.float64).inputs
    again = import_peft(tmp_path / "out", base)
    with torch.no_grad():
        plain, ours, returned = (
            case.call(module, inputs)
            for module in (wide.model, view(wide, delta), view(wide, again))
        )
    assert (ours - plain).abs().max() > 0.05
    near = 1e-6 * max(1.0, float(ours.abs().max()))
    assert (peft_logits(model, tmp_path / "out", torch.float64) - ours).abs().max() <= near
    assert (returned - ours).abs().max() <= near
