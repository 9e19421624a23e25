"""PEFT as an oracle: adapters that PEFT trained on small models of every shape, and their logits.

found = trained("bert", LoraConfig(r=2, target_modules=["query"]), tmp_path)
found.folder     # what save_pretrained wrote
found.logits     # of PEFT's own model, on `inputs`
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F

from tests.battery.models import CASES, LENGTH, VOCABULARY, WIDTH, Case, _token_rule, _tokens


def _t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
        )
    )


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=32,
            pad_token_id=0,
        )
    )


def _lively(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """Return a maker of larger weights: an adapter learns little over those of a usual start."""

    def made() -> nn.Module:
        module = make()
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=parameter[0].numel() ** -0.5)
                else:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        return module

    return made


MODELS: dict[str, Case] = {
    **{
        name: dataclasses.replace(CASES[name], make=_lively(CASES[name].make))
        for name in ("bert", "gpt2", "vit", "conv", "attention")
    },
    "t5": Case(
        "t5",
        _lively(_t5),
        _tokens,
        lambda m, i: m(**i, labels=i["input_ids"][:, :1]).logits[:, 0, :2],
        _token_rule,
    ),
    "llama": Case(
        "llama",
        _lively(_llama),
        _tokens,
        lambda m, i: m(**i, use_cache=False).logits[:, -1, :2],
        _token_rule,
    ),
}


def _masked(rows: int, generator: torch.Generator) -> dict[str, Any]:
    """Return tokens of which some are masked."""
    inputs = dict(_tokens(rows, generator))
    mask = torch.ones_like(inputs["input_ids"])
    mask[::3, 1] = 0
    mask[1::3, 2:4] = 0
    return {**inputs, "attention_mask": mask}


def _one_class(inputs: Mapping[str, Any]) -> Tensor:
    """What vectors can learn over random weights, which hold nothing to choose from."""
    return torch.ones(len(inputs["input_ids"]), dtype=torch.int64)


def _bert_of(kind: str, **config: Any) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        import transformers

        settings = {**CASES["bert"].build().config.to_dict(), **config}
        return getattr(transformers, kind)(transformers.BertConfig(**settings))

    return made


def _llama_scores() -> nn.Module:
    from transformers import LlamaForSequenceClassification

    config = _llama().config
    config.num_labels = 2
    return LlamaForSequenceClassification(config)


MODELS |= {
    f"prompt-{name}": Case(f"prompt-{name}", _lively(make), _masked, call, _one_class)
    for name, make, call in (
        # one type of tokens: PEFT would drop others here
        (
            "bert",
            _bert_of("BertForMaskedLM", type_vocab_size=1),
            lambda m, i: m(**i).logits[:, -1, :2],
        ),
        ("bert-scores", _bert_of("BertForSequenceClassification"), lambda m, i: m(**i).logits),
        ("gpt2", CASES["gpt2"].make, lambda m, i: m(**i, use_cache=False).logits[:, -1, :2]),
        ("llama", _llama, lambda m, i: m(**i, use_cache=False).logits[:, -1, :2]),
        ("llama-scores", _llama_scores, lambda m, i: m(**i, use_cache=False).logits),
        # a tied T5 divides its scores by the root of its width
        ("t5", _t5, lambda m, i: 4 * m(**i, labels=i["input_ids"][:, :1]).logits[:, 0, :2]),
    )
}
"""Models that read masks; scores are read where a prompt does not move them: at the end, or of the
decoder or the whole row."""


@dataclass(frozen=True)
class Found:
    """An adapter on disk, and what PEFT says of it."""

    folder: Path
    logits: Tensor
    inputs: dict[str, Tensor]
    module: nn.Module


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT warns of much that is meant."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def trained(
    model: str, config: PeftConfig, folder: Path, *, name: str = "default", rate: float = 2e-2
) -> Found:
    """Train an adapter with PEFT for 60 steps (loss down >= 30 %), and save it."""
    case = MODELS[model]
    torch.manual_seed(0)
    with quiet():
        wrapped = get_peft_model(copy.deepcopy(case.build()), copy.deepcopy(config), name)
        train(case, wrapped, rate)
        wrapped.save_pretrained(folder)
    test = case.batch(16, seed=77)
    with torch.no_grad():
        logits = case.call(wrapped.eval(), test.inputs)
    folder = folder if name == "default" else folder / name
    return Found(folder, logits, dict(test.inputs), wrapped)


def train(case: Case, wrapped: nn.Module, rate: float) -> None:
    """Train the trainable parameters of `wrapped`; batch statistics stay frozen."""
    test = case.batch(128, seed=10_000)
    before = case.loss(wrapped, test).mean().item()
    optimiser = torch.optim.AdamW(
        [p for p in wrapped.parameters() if p.requires_grad], lr=rate, weight_decay=0.0
    )
    for step in range(60):
        batch = case.batch(32, seed=step + 1)
        optimiser.zero_grad()
        F.cross_entropy(case.call(wrapped.eval(), batch.inputs), batch.targets).backward()
        optimiser.step()
    after = case.loss(wrapped, test).mean().item()
    assert after < 0.7 * before, f"{before:.3f} -> {after:.3f}"


def peft_logits(model: str, folder: Path, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the logits of PEFT's model with the adapter in `folder`, on the same inputs."""
    case = MODELS[model]
    with warnings.catch_warnings():
        # a key that PEFT misses or does not expect is only a warning there
        warnings.simplefilter("ignore")
        warnings.filterwarnings("error", message=r"(?is).*(missing|unexpected|mismatch).*keys.*")
        warnings.filterwarnings("error", message=r"(?is).*fan_in_fan_out.*")
        wrapped = PeftModel.from_pretrained(case.build(), folder).eval()
    with torch.no_grad():
        return case.call(wrapped.to(dtype), case.batch(16, seed=77, dtype=dtype).inputs)


__all__ = ["LENGTH", "MODELS", "Found", "peft_logits", "quiet", "train", "trained"]
