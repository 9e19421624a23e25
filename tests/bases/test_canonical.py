"""Canonical names: one stored tensor has one name, whatever wraps or fuses it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tests.battery.models import CASES
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    MixtralConfig,
    PreTrainedModel,
    Qwen2MoeConfig,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from graftwork._errors import DeltaError, UnknownNameError, UnsupportedError
from graftwork.bases import canonical_names, load

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def _stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    return tensors


def _live(model: nn.Module) -> dict[str, torch.Tensor]:
    names = canonical_names(model)
    return {n: p.of(model.get_parameter(p.parameter)) for n, p in names.pieces.items()}


def _same_names(models: list[PreTrainedModel]) -> None:
    """Every model gives its shared tensors the names that the first one gives them."""
    first = canonical_names(models[0])
    for model in models[1:]:
        other = canonical_names(model)
        assert [n for n in other.pieces if n in first.pieces] == list(first.pieces)


def test_law02_task_classes_agree_on_bert() -> None:
    config = CASES["bert"].build().config
    assert isinstance(config, BertConfig)
    classes = (BertForMaskedLM, BertForSequenceClassification)
    models = [BertModel(config, add_pooling_layer=False), *(kind(config) for kind in classes)]
    _same_names(models)
    masked = canonical_names(models[1])
    assert "cls.predictions.bias" in masked.pieces
    tied = "cls.predictions.decoder.weight"
    assert masked[tied].name == "embeddings.word_embeddings.weight"
    assert masked["bert.encoder.layer.0.output.dense.weight"].name in masked.pieces
    alone = canonical_names(models[0])
    assert alone["bert.encoder.layer.0.output.dense.weight"].whole


def test_law02_task_classes_agree_on_gpt2() -> None:
    config = CASES["gpt2"].build().config
    models = [kind(config) for kind in (GPT2Model, GPT2LMHeadModel, GPT2ForSequenceClassification)]
    _same_names(models)
    assert canonical_names(models[1])["lm_head.weight"].name == "wte.weight"


def test_law02_encoder_and_encoder_decoder_agree() -> None:
    config = T5Config(
        vocab_size=40,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    alone, whole = (
        canonical_names(T5EncoderModel(config)),
        canonical_names(T5ForConditionalGeneration(config)),
    )
    assert set(alone.pieces) <= set(whole.pieces)
    assert whole["encoder.embed_tokens.weight"].name == "shared.weight"


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2),
        Qwen2MoeConfig(
            **SMALL,
            num_experts=3,
            num_experts_per_tok=2,
            moe_intermediate_size=12,
            shared_expert_intermediate_size=20,
        ),
    ],
    ids=["mixtral", "qwen2-moe"],
)
def test_law02_load_time_fusions_are_undone(config, tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = AutoModelForCausalLM.from_config(config)
    made.save_pretrained(tmp_path)
    stored = _stored(tmp_path)
    bare = {k.removeprefix("model."): v for k, v in stored.items()}
    assert any("experts.2." in name for name in bare)
    for model in (
        made,
        AutoModelForCausalLM.from_pretrained(tmp_path),
        AutoModel.from_pretrained(tmp_path),
    ):
        live = _live(model)
        assert set(live) == set(bare) - (
            {"lm_head.weight"} if "lm_head" not in dir(model) else set()
        )
        for name, tensor in live.items():
            assert torch.equal(tensor, bare[name]), name
    names = canonical_names(made)
    fused = names.of_parameter("model.layers.0.mlp.experts.gate_up_proj")
    assert len(fused) == 6
    assert not any(piece.whole for piece in fused)


def test_law02_fused_and_file_prints_agree(tmp_path: Path) -> None:
    config = MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    folder, module = load(tmp_path), load(AutoModelForCausalLM.from_pretrained(tmp_path))
    assert set(folder.stored) == set(folder.names.pieces)
    assert folder.prints(folder.names.pieces) == module.prints(folder.names.pieces)
    folder.verify()


def test_names_of_a_plain_module_are_its_own() -> None:
    model = CASES["encoder"].build()
    assert list(canonical_names(model).pieces) == [n for n, _ in model.named_parameters()]


def test_canonical_names_leave_the_module_alone() -> None:
    model = CASES["gpt2"].build()
    before = dict(vars(model))
    canonical_names(model)
    assert vars(model).keys() == before.keys()
    with pytest.raises(UnknownNameError, match=r"did you mean 'wte\.weight'"):
        canonical_names(model)["wte.wieght"]


def test_unseen_sharing_of_memory_is_refused() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(UnsupportedError, match="share memory without being tied"):
        canonical_names(model)


def test_modules_without_data_or_order_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="'weight' has no data"):
        canonical_names(nn.Linear(2, 2, device="meta"))
    model = nn.Linear(3, 2)
    model.weight = nn.Parameter(torch.zeros(3, 2).T)
    with pytest.raises(DeltaError, match="'weight' is not contiguous"):
        canonical_names(model)
