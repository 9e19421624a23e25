"""Merged folders are what transformers loads; cards say what the delta says."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
import yaml
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from graftwork.bases import load
from graftwork.deltas import Delta, LowRank, Update, fingerprint_of, port_of, view
from graftwork.errors import FingerprintError, UnsupportedError
from graftwork.formats import ExportOptions, export_merged, model_card
from graftwork.nn import Head
from tests.battery.deltas import trained_delta
from tests.battery.models import CASES
from tests.formats.oracles import MODELS
from tests.formats.test_peft_export import lora_like


@pytest.mark.parametrize("kind", ["sparse", "low_rank", "scale", "mixed"])
def test_a_trained_delta_of_every_kind_on_a_tied_model(kind, tmp_path):
    from transformers import BertForMaskedLM

    case = CASES["bert"]
    base = load(case.build())
    before = {n: p.clone() for n, p in base.model.named_parameters()}
    delta = trained_delta(case, base, kind)
    done = export_merged(delta, base, tmp_path / "merged")
    assert done.exact
    assert done.worst is None
    assert done.bytes == sum(f.stat().st_size for f in (tmp_path / "merged").iterdir())
    again = BertForMaskedLM.from_pretrained(tmp_path / "merged").eval()
    adapted = view(base, delta)
    wanted = adapted.state_dict()
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, wanted[name]), name
    assert again.bert.embeddings.word_embeddings.weight is again.cls.predictions.decoder.weight
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, before[name])
    inputs = case.batch(8).inputs
    with torch.no_grad():
        assert torch.equal(case.call(again, inputs), case.call(adapted, inputs))


def test_a_narrow_base_keeps_its_type_and_the_error_is_measured(tmp_path):
    module = MODELS["llama"].build().to(torch.bfloat16)
    base = load(module)
    delta = lora_like(base)
    done = export_merged(delta, base, tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype="auto")
    assert next(again.parameters()).dtype == torch.bfloat16
    assert not done.exact
    errors = {}
    for name, update in delta.updates.items():
        weight = module.get_parameter(
            name if name in dict(module.named_parameters()) else f"model.{name}"
        )
        exact = update.adapted(weight)
        errors[name] = float((exact.to(torch.bfloat16).float() - exact).abs().max())
    assert done.error == max(errors.values()) == errors[str(done.worst)]


def test_a_head_makes_it_a_model_of_its_task(tmp_path):
    causal = MODELS["llama"].build()
    base = load(causal.model)
    torch.manual_seed(0)
    head = Head(16, 3)
    with torch.no_grad():
        head.out.bias.zero_()
    port = port_of(head, "head", {"in_features": 16, "out_features": 3}, "float32")
    delta = dataclasses.replace(
        lora_like(base), ports={"head": port}, signature={"labels": ["a", "b", "c"]}
    )
    export_merged(delta, base, tmp_path / "merged", ExportOptions(task_type="SEQ_CLS"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    assert again.config.id2label == {0: "a", 1: "b", 2: "c"}
    inputs = MODELS["llama"].batch(8).inputs
    with torch.no_grad():
        ours = head(view(base, delta)(**inputs).last_hidden_state[:, -1])
        assert torch.allclose(again(**inputs).logits, ours, atol=1e-5)
    with pytest.raises(UnsupportedError, match="name the task with task_type='SEQ_CLS'"):
        export_merged(delta, base, tmp_path / "none")


def test_a_tied_head_comes_with_the_task(tmp_path):
    whole = MODELS["gpt2"].build()
    base = load(whole.transformer)
    delta = lora_like(load(whole.transformer))
    updates = {n: u for n, u in delta.updates.items() if "wte" not in n}
    norm = Update((16,), dense=torch.full((16,), 0.25))
    delta = dataclasses.replace(delta, updates={**updates, "ln_f.weight": norm})
    delta = dataclasses.replace(delta, fingerprint=fingerprint_of(base, delta.updates))
    export_merged(delta, base, tmp_path / "merged", ExportOptions(task_type="CAUSAL_LM"))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    assert again.lm_head.weight is again.transformer.wte.weight
    inputs = MODELS["gpt2"].batch(4).inputs
    with torch.no_grad():
        ours = view(load(whole), delta)(**inputs).logits
        assert torch.equal(again(**inputs).logits, ours)
    untied = load(MODELS["llama"].build().model)
    options = ExportOptions(task_type="CAUSAL_LM")
    with pytest.raises(
        UnsupportedError, match=r"neither the base nor a head has 'lm_head\.weight'"
    ):
        export_merged(lora_like(untied), untied, tmp_path / "none", options)


def test_what_cannot_be_merged_is_refused(tmp_path):
    linear = load(nn.Linear(2, 2))
    update = Update((2, 2), low_rank=LowRank(torch.ones(2, 1), torch.ones(1, 2)))
    delta = Delta({"weight": update}, fingerprint=fingerprint_of(linear, ["weight"]))
    with pytest.raises(UnsupportedError, match="a Linear is no transformers model"):
        export_merged(delta, linear, tmp_path / "none")
    base = load(MODELS["llama"].build())
    with pytest.raises(FingerprintError):
        export_merged(lora_like(base), load(MODELS["llama"].build(seed=2)), tmp_path / "none")
    assert not list(tmp_path.iterdir())


def test_a_card_says_what_the_delta_says():
    base = load(MODELS["bert"].build())
    delta = dataclasses.replace(
        lora_like(base),
        signature={"kind": "classification", "labels": ["neg", "pos"], "fields": ["text"]},
        provenance={"metrics": {"accuracy": 0.87654}, "seed": 3},
    )
    card = model_card(delta, "org/tiny-bert")
    front = yaml.safe_load(card.split("---")[1])
    assert front["base_model"] == "org/tiny-bert"
    assert front["library_name"] == "graftwork"
    assert {"delta", "low-rank", "dense"} <= set(front["tags"])
    assert f"{len(delta.updates)} parameters changed (dense, low-rank)" in card
    assert '- labels: ["neg", "pos"]' in card
    assert "| accuracy | 0.8765 |" in card
    shown = json.loads(card.split("```json")[1].split("```")[0])
    assert shown == delta.provenance
    assert "asserted" not in card
    stamped = dataclasses.replace(delta.fingerprint, asserted=True)
    assert "asserted by the user" in model_card(
        dataclasses.replace(delta, fingerprint=stamped), "b"
    )
    assert "```python" not in model_card(delta, "b", merged=True)
