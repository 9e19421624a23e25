"""Whole models of transformers: decoders with a cache, `generate`, pairs, experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from tests.serving.support import Held, deltas_of, in_turn, rows_of

SMALL = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 39,
    "pad_token_id": 0,
}


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=40,
            n_positions=64,
            n_embd=16,
            n_layer=2,
            n_head=2,
            bos_token_id=0,
            eos_token_id=39,
            pad_token_id=0,
        )
    )


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**SMALL))


def mixtral() -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=3, num_experts_per_tok=2))


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=39,
        )
    )


def albert() -> nn.Module:
    from transformers import AlbertConfig, AlbertModel

    return AlbertModel(
        AlbertConfig(
            vocab_size=40,
            embedding_size=8,
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
    )


def held_of(build: Callable[[], nn.Module], touches: Any = lambda _: True) -> Held:
    torch.manual_seed(0)
    return deltas_of(build(), touches=touches, size=0.1)


def prompts(rows: int, padded: bool = True) -> Batch:
    """Return rows of 5 tokens, of which some are padded at the left."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, 39, (rows, 5), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(0, rows if padded else 0, 2):
        mask[row, : 1 + row % 3] = 0
    return rows_of({"input_ids": ids * mask, "attention_mask": mask})


def generating(**options: Any) -> Any:
    def call(module: Any, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
        out: Tensor = module.generate(
            **inputs, max_new_tokens=6, min_new_tokens=6, do_sample=False, **options
        )
        return out

    return call


def logits(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
    out: Tensor = module(**inputs).logits
    # positions of the padding have no meaning
    return out * inputs["attention_mask"].unsqueeze(-1)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("build", [gpt2, llama, mixtral])
def test_decoders_with_and_without_padding(build: Any, padded: bool) -> None:
    held = held_of(build)
    report = held.check(in_turn(6, 3), prompts(6, padded), logits)
    assert not report.whole
    assert report.together["linear"] >= 1


def test_one_mixer_runs_padded_and_whole_batches_in_turn() -> None:
    held = held_of(llama)
    for padded in (False, True, False, True):
        assert not held.check(in_turn(6, 3), prompts(6, padded), logits).whole


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("build", [gpt2, llama])
def test_rows_generate_each_with_their_own_weights(build: Any, options: Any) -> None:
    held = held_of(build)
    batch = prompts(6)
    report = held.check(in_turn(6, 3), batch, generating(**options))
    assert not report.whole
    outputs, _ = held.run(in_turn(6, 3), batch, generating(**options))
    plain, _ = held.run([()] * 6, batch, generating(**options))
    different = sum(not torch.equal(a, b) for a, b in zip(outputs, plain, strict=True))
    assert different >= 3


def test_routed_decoders_generate() -> None:
    held = held_of(mixtral)
    assert not held.check(in_turn(4, 3), prompts(4), generating()).whole


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_pairs_generate_together(options: Any) -> None:
    held = held_of(t5, lambda name: "relative_attention_bias" not in name)
    report = held.check(in_turn(4, 3), prompts(4), generating(**options))
    assert not report.whole
    assert report.together["linear"] >= 20


def test_a_table_whose_output_has_no_rows_runs_by_itself() -> None:
    held = held_of(t5)

    def call(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
        start = torch.zeros(len(inputs["input_ids"]), 2, dtype=torch.int64)
        out: Tensor = module(**inputs, decoder_input_ids=start).logits
        return out

    report = held.check(in_turn(4, 3), prompts(4), call)
    assert "relative_attention_bias" in report.whole
    held.check(in_turn(4, 3), prompts(4), generating())


def test_layers_that_are_called_again_and_again() -> None:
    held = held_of(albert, lambda name: "pooler" not in name)

    def call(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
        out: Tensor = module(**inputs).last_hidden_state
        return out

    report = held.check(in_turn(6, 3), prompts(6, padded=False), call)
    assert not report.whole
    assert not report.apart
