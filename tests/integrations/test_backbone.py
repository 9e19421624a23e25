"""Loops that run the backbone and the output layer by themselves, as TRL's SFTTrainer does."""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from graftwork.bases import Base, load
from graftwork.errors import TrainingError, UnsupportedError, UnusedTensorError
from graftwork.integrations import TunedModule
from graftwork.tuning import (
    DiffPruning,
    LoRA,
    PrefixTuning,
    PromptTuning,
    RandomMask,
    Tuner,
    TuningWarning,
)

VOCABULARY = 43


def llama() -> Base:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    return load(LlamaForCausalLM(config), dtype=torch.float64)


def gpt2() -> Base:
    torch.manual_seed(0)
    still = dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), 0)
    sizes = {"n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = GPT2Config(vocab_size=VOCABULARY, **sizes, **still, **ends)
    return load(GPT2LMHeadModel(config), dtype=torch.float64)


class Projection(torch.autograd.Function):
    """Hidden states times an output layer, with a backward of its own, as fused losses have it."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(hidden, weight)
        return hidden @ weight.T

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        hidden, weight = ctx.saved_tensors
        flat = gradient.flatten(0, -2).T @ hidden.flatten(0, -2)
        return gradient @ weight, flat


def fuse(tuned: TunedModule) -> None:
    """Put a forward in that goes past the model's own, as TRL 1.16 does."""

    def forward(self: TunedModule, *, input_ids: Tensor, labels: Tensor) -> Tensor:
        hidden = self.base_model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
        logits = Projection.apply(hidden, self.get_output_embeddings().weight)
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())

    tuned.forward = types.MethodType(forward, tuned)  # type: ignore[method-assign]


BLOCKS = {"llama": (llama, ["*proj.weight"]), "gpt2": (gpt2, ["*attn*.weight"])}
TUNERS: dict[str, Tuner] = {
    "lora": LoRA(rank=2),
    "mask": RandomMask(share=0.3),
    "gates": DiffPruning(share=0.3, groups=None),
}


def losses(tuned: TunedModule, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the loss of an update and its gradients."""
    tuned.train()
    tuned.prepare(0.3, update=3)
    found = tuned(input_ids=ids, labels=ids)
    loss = found if isinstance(found, Tensor) else found.loss
    loss.backward()
    tuned.collect()
    gradients = [p.grad for p in tuned.trained() if p.grad is not None]
    tuned.zero_grad()
    return loss.detach(), gradients


@pytest.mark.parametrize("model", BLOCKS)
@pytest.mark.parametrize("name", TUNERS)
def test_the_same_loss_and_gradients_past_the_models_own_forward(name, model):
    make, targets = BLOCKS[model]
    tuned = TunedModule(make(), TUNERS[name], targets, seed=1)
    with torch.no_grad():
        for parameter in tuned.trained():
            parameter.add_(0.1 * torch.randn_like(parameter))
    ids = torch.randint(VOCABULARY, (4, 9))
    plain, wanted = losses(tuned, ids)
    fuse(tuned)
    fused, found = losses(tuned, ids)
    # transformers takes its loss in float32
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-6, check_dtype=False)
    assert len(found) == len(wanted) == len(tuned.trained())
    assert max(float(g.abs().max()) for g in wanted) > 1e-4
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_sparse_values_of_the_output_layer_learn_through_such_a_function():
    tuned = TunedModule(llama(), RandomMask(share=0.3), ["lm_head.weight"], seed=1)
    ids = torch.randint(VOCABULARY, (4, 9))
    _, wanted = losses(tuned, ids)
    fuse(tuned)
    _, found = losses(tuned, ids)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("make", "targets"),
    [(llama, ["lm_head.weight", "*q_proj.weight"]), (gpt2, ["*wte.weight", "*attn*.weight"])],
)
def test_law07_a_product_that_such_a_function_cannot_train_is_an_error(make, targets):
    """Read inside of it, the weight has no graph; tied, the embedding alone would learn."""
    tuned = TunedModule(make(), LoRA(rank=2), targets)
    ids = torch.randint(VOCABULARY, (2, 5))
    losses(tuned, ids)
    fuse(tuned)
    with pytest.raises(UnusedTensorError, match=r"was read without gradients in a training step"):
        losses(tuned, ids)


@pytest.mark.parametrize("tuner", [PromptTuning(length=2), PrefixTuning(length=2)])
def test_law07_a_port_before_the_model_is_not_gone_past(tuner):
    tuned = TunedModule(llama(), tuner)
    ids = torch.randint(VOCABULARY, (2, 5))
    fuse(tuned)
    with pytest.raises(UnsupportedError, match=r"past the port '(prompt|prefix):embed_tokens"):
        losses(tuned, ids)
    tuned.eval()
    with pytest.raises(UnsupportedError, match="runs the backbone by itself"), torch.no_grad():
        tuned(input_ids=ids, labels=ids)


def test_an_update_is_begun_in_every_stage():
    tuned = TunedModule(llama(), TUNERS["gates"], ["*proj.weight"])
    fuse(tuned)
    ids = torch.randint(VOCABULARY, (2, 5))
    for _ in range(2):
        with pytest.raises(TrainingError, match="a training forward pass outside an update"):
            tuned.train()(input_ids=ids, labels=ids)
        losses(tuned, ids)
        with suppress_of_gates():
            tuned.advance()


@contextmanager
def suppress_of_gates() -> Iterator[None]:
    """One step shuts no gates as it should."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        yield


def test_only_names_that_loops_ask_for_are_the_models():
    tuned = TunedModule(gpt2(), LoRA(rank=2), ["*attn*.weight"])
    assert tuned.base_model is tuned.module.transformer
    assert tuned.get_output_embeddings() is tuned.module.lm_head
    assert tuned.generation_config is tuned.module.generation_config
    for name in ("generate", "save_pretrained", "lm_head"):
        with pytest.raises(AttributeError, match=name):
            getattr(tuned, name)
    base = load(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(AttributeError, match="base_model"):
        TunedModule(base, LoRA(rank=1)).base_model  # noqa: B018
