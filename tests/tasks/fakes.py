"""A tiny text base: a word-level tokenizer and a two-layer BERT, built in code."""

from __future__ import annotations

from functools import cache

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from graftwork.bases import Base
from graftwork.deltas import identity_names

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "good", "bad", "film", "is", "not")


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = Whitespace()
    inner.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@cache
def text_base() -> Base:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=len(WORDS),
            hidden_size=8,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=32,
        )
        model = BertModel(config, add_pooling_layer=False).double().eval().requires_grad_(False)
    return Base(
        model=model,
        name="tiny",
        names=identity_names(model),
        tokenizer=tiny_tokenizer(),
        pooling="mean",
        max_length=32,
        width=8,
    )


def module_base(module: nn.Module) -> Base:
    module = module.eval().requires_grad_(False)
    return Base(model=module, name="module", names=identity_names(module))
