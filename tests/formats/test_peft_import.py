"""PEFT's own models are the oracle: a trained adapter, imported, gives PEFT's logits."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from graftwork.bases import load
from graftwork.deltas import build_ports, dumps, loads, view
from graftwork.errors import FingerprintError
from graftwork.formats import ImportOptions, export_peft, import_peft
from tests.formats.oracles import MODELS, peft_logits, quiet, train, trained

BERT = ["query", "intermediate.dense"]
ADAPTERS = {
    "lora": ("bert", LoraConfig(r=2, target_modules=BERT)),
    "patterns": (
        "bert",
        LoraConfig(
            r=2,
            lora_alpha=3,
            target_modules=["query", "value", "key"],
            rank_pattern={"layer.0.attention.self.query": 3, "value": 1},
            alpha_pattern={"^bert.encoder.layer.1.attention.self.key": 5, "value": 2},
        ),
    ),
    "rslora": (
        "llama",
        LoraConfig(r=3, lora_alpha=2, target_modules=["q_proj", "down_proj"], use_rslora=True),
    ),
    "regex": ("llama", LoraConfig(r=2, target_modules=r".*layers\.0.*\.(q|v)_proj|.*mlp\..*proj")),
    "layers": (
        "llama",
        LoraConfig(r=2, target_modules=["q_proj", "up_proj"], layers_to_transform=[1]),
    ),
    "all_linear": ("llama", LoraConfig(r=2, target_modules="all-linear")),
    "exclude": ("bert", LoraConfig(r=2, target_modules=["dense"], exclude_modules=r".*output.*")),
    "dora": ("bert", LoraConfig(r=2, target_modules=BERT, use_dora=True)),
    "dora_gpt2": (
        "gpt2",
        LoraConfig(r=2, target_modules=["c_attn", "c_fc"], use_dora=True, fan_in_fan_out=True),
    ),
    "dora_conv": ("conv", LoraConfig(r=2, target_modules=["conv1", "conv2", "out"], use_dora=True)),
    "dora_embedding": (
        "bert",
        LoraConfig(r=2, target_modules=["position_embeddings", "query"], use_dora=True),
    ),
    "gpt2": ("gpt2", LoraConfig(r=2, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)),
    "t5": ("t5", LoraConfig(r=2, target_modules=["q", "v", "wi"])),
    "vit": ("vit", LoraConfig(r=2, target_modules=["q_proj", "v_proj", "fc1", "projection"])),
    "conv": ("conv", LoraConfig(r=2, target_modules=["conv1", "conv2", "out"])),
    "embedding": ("gpt2", LoraConfig(r=2, target_modules=["wpe", "c_attn"], fan_in_fan_out=True)),
    "embedding_untied": ("llama", LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"])),
    "bias_all": ("bert", LoraConfig(r=2, target_modules=BERT, bias="all")),
    "bias_lora_only": ("bert", LoraConfig(r=2, target_modules=BERT, bias="lora_only")),
    "lora_bias": (
        "bert",
        LoraConfig(r=2, lora_alpha=6, target_modules=BERT, bias="lora_only", lora_bias=True),
    ),
    "saved": (
        "vit",
        LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["classifier", "layernorm"]),
    ),
    "saved_embedding": (
        "llama",
        LoraConfig(r=2, target_modules=["v_proj"], modules_to_save=["embed_tokens", "lm_head"]),
    ),
    "ia3": (
        "bert",
        IA3Config(
            target_modules=["key", "value", "output.dense"], feedforward_modules=["output.dense"]
        ),
    ),
    "ia3_gpt2": (
        "gpt2",
        IA3Config(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"]),
    ),
    "ia3_conv": (
        "conv",
        IA3Config(target_modules=["conv1", "conv2"], feedforward_modules=["conv2"]),
    ),
    "ia3_t5": (
        "t5",
        IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=["wo"]),
    ),
}


CORE = ("patterns", "dora_gpt2", "conv", "embedding", "bias_all", "saved", "t5", "ia3")
"""Adapters of the fast tests; the slow ones have all."""

EVERY = [pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in ADAPTERS]


@pytest.mark.parametrize("name", EVERY)
def test_logits_agree_with_peft_both_ways(name, tmp_path):
    model, config = ADAPTERS[name]
    found = trained(model, config, tmp_path / "theirs", rate=1e-1 if "ia3" in name else 2e-2)
    case, near = MODELS[model], 1e-6 * max(1.0, float(found.logits.abs().max()))
    base = load(case.build())
    delta = loads(dumps(import_peft(found.folder, base)))
    with torch.no_grad():
        plain = case.call(base.model, found.inputs)
        ours = case.call(view(base, delta), found.inputs)
    assert (plain - found.logits).abs().max() > 0.05
    assert (ours - found.logits).abs().max() <= near
    written = export_peft(delta, base, tmp_path / "ours")
    assert written == sum(f.stat().st_size for f in (tmp_path / "ours").iterdir())
    assert (peft_logits(model, tmp_path / "ours") - found.logits).abs().max() <= near
    theirs = load_file(found.folder / "adapter_model.safetensors")
    for key, tensor in load_file(tmp_path / "ours" / "adapter_model.safetensors").items():
        if any(part in key for part in ("lora_A", "lora_B.w", "lora_emb", "ia3_l")):
            assert torch.equal(tensor, theirs[key]), key


def test_factors_keep_their_bits_and_the_stamp_is_the_users(tmp_path):
    model, config = ADAPTERS["lora"]
    found = trained(model, config, tmp_path)
    base = load(MODELS[model].build())
    delta = import_peft(found.folder, base)
    tensors = load_file(found.folder / "adapter_model.safetensors")
    for key, tensor in tensors.items():
        name = key.removeprefix("base_model.model.bert.").rsplit(".lora_", 1)[0] + ".weight"
        term = delta.updates[name].low_rank
        assert term is not None
        stored = term.right if "lora_A" in key else term.left
        assert isinstance(stored, Tensor)
        assert torch.equal(stored, tensor)
        assert term.factor == 8 / 2
    assert len(delta.updates) == len(tensors) / 2
    assert delta.fingerprint.asserted
    assert set(delta.fingerprint.tensors) == set(delta.updates)
    with pytest.raises(FingerprintError, match="made for another base"):
        view(load(MODELS[model].build(seed=5)), delta)
    assert len(dumps(delta)) <= (found.folder / "adapter_model.safetensors").stat().st_size


def test_half_precision_on_request(tmp_path):
    model, config = ADAPTERS["dora"]
    found = trained(model, config, tmp_path)
    base = load(MODELS[model].build())
    half = import_peft(found.folder, base, ImportOptions(stored="float16"))
    with torch.no_grad():
        logits = MODELS[model].call(view(base, half), found.inputs)
    assert 0 < (logits - found.logits).abs().max() < 5e-2
    assert len(dumps(half)) < len(dumps(import_peft(found.folder, base)))


def test_scales_stay_as_they_are_whatever_is_stored(tmp_path):
    model, config = ADAPTERS["ia3"]
    found = trained(model, config, tmp_path, rate=1e-1)
    base = load(MODELS[model].build())
    plain, narrow = (
        import_peft(found.folder, base, ImportOptions(stored=stored)) for stored in (None, "int8")
    )
    assert dumps(plain) == dumps(narrow)


@pytest.mark.parametrize("kind", ["headless base, task adapter", "task base, headless adapter"])
def test_a_task_prefix_more_or_less_is_the_same_module(kind, tmp_path):
    model, config = ADAPTERS["lora"]
    found = trained(model, config, tmp_path)
    whole = MODELS[model].build()
    folder = found.folder
    if kind.startswith("task base"):
        tensors = load_file(folder / "adapter_model.safetensors")
        tensors = {key.replace("model.bert.", "model.", 1): t for key, t in tensors.items()}
        save_file(tensors, folder / "adapter_model.safetensors")
        assert set(import_peft(folder, load(whole)).updates)
    delta = import_peft(folder, load(whole if kind.startswith("task base") else whole.bert))
    with torch.no_grad():
        logits = MODELS[model].call(view(load(whole), delta), found.inputs)
    assert (logits - found.logits).abs().max() < 1e-5


def test_a_linear_head_that_the_base_lacks_becomes_a_port(tmp_path):
    torch.manual_seed(0)
    from transformers import LlamaForSequenceClassification

    case = MODELS["llama"]
    causal = case.build()
    causal.config.num_labels = 2
    model = LlamaForSequenceClassification(causal.config)
    model.model.load_state_dict(causal.model.state_dict())
    task = dataclasses.replace(case, call=lambda m, i: m(**i).logits, make=lambda: model)
    with quiet():
        wrapped = get_peft_model(
            model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"])
        )
        train(task, wrapped, 2e-2)
        wrapped.save_pretrained(tmp_path)
    base = load(causal.model)
    delta = import_peft(tmp_path, base)
    assert delta.provenance["heads"] == {"head": {"module": "score", "layers": 1, "bias": False}}
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        logits = task.call(wrapped.eval(), inputs)
        features = view(base, delta)(**inputs).last_hidden_state[:, -1]
        ours = build_ports(delta)["head"](features)
    assert (ours - logits).abs().max() < 1e-5
