"""Merged folders and imports where the base is held in 8 bits."""

from __future__ import annotations

import warnings
from pathlib import Path

import peft
import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel

from graftwork._errors import FingerprintError, UnsupportedError
from graftwork.bases import load
from graftwork.deltas import Delta, Update, fingerprint_of, float_of, is_int8, rebase, view
from graftwork.formats import export_merged, import_peft, model_card

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def bert() -> BertModel:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=24, num_hidden_layers=2, **sizes)).eval()


def test_nothing_merges_into_8_bits_and_the_way_out_works(tmp_path: Path):
    eight, floating = load(bert(), quantise="int8"), load(bert())
    name = eight.quantised[0]
    updates = {name: Update((16, 16), dense=torch.full((16, 16), 0.1))}
    delta = Delta(updates, fingerprint=fingerprint_of(eight, updates))
    with pytest.raises(UnsupportedError, match=r"holds 13 tensors in 8 bits.*rebase"):
        export_merged(delta, eight, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    assert 'bases.load("org/base", quantise="int8")' in model_card(delta, "org/base")
    assert export_merged(rebase(delta, eight, floating).delta, floating, tmp_path / "merged").exact


def test_an_adapter_of_peft_trained_on_8_bits_comes_in(tmp_path: Path):
    """PEFT's model over the matrices of the 8 bits is the oracle, as QLoRA trains it."""
    base, plain = load(bert(), quantise="int8"), bert()
    with torch.no_grad():
        for name, parameter in base.model.named_parameters():
            if is_int8(parameter):
                plain.get_parameter(name).copy_(float_of(parameter))
    config = peft.LoraConfig(r=2, target_modules=["query", "value"], init_lora_weights=False)
    torch.manual_seed(1)
    with warnings.catch_warnings():  # PEFT reads names that transformers is about to drop
        warnings.simplefilter("ignore", FutureWarning)
        theirs = peft.get_peft_model(plain, config).eval()
    theirs.save_pretrained(tmp_path / "adapter")
    delta = import_peft(tmp_path / "adapter", base)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        ours = view(base, delta)(ids).last_hidden_state
        torch.testing.assert_close(ours, theirs(ids).last_hidden_state, rtol=1e-5, atol=1e-6)
    with pytest.raises(FingerprintError, match="quantise='int8'"):
        view(load(bert()), delta)
    assert isinstance(base.model.pooler.dense, nn.Linear)
