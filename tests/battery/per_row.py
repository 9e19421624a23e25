"""Which of PEFT's methods give each row of a batch its own adapter, by trying every one of them.

    python -m tests.battery.per_row    # writes docs/per-row-peft.md

A tiny BERT gets two adapters of a method, with values so far apart that their outputs differ. Then
one batch names another adapter for each row. A method honours the names where every row gives what
its own adapter gives alone; refuses them where there is an error; and ignores them silently where
the call returns outputs that belong to other adapters.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PAGE = Path(__file__).parents[2] / "docs" / "per-row-peft.md"
LINEARS = ["query", "value"]
CONFIGS: Mapping[str, Mapping[str, Any]] = {
    "LoRA": {"class": "LoraConfig", "target_modules": LINEARS, "r": 2},
    "rsLoRA": {"class": "LoraConfig", "target_modules": LINEARS, "r": 2, "use_rslora": True},
    "DoRA": {"class": "LoraConfig", "target_modules": LINEARS, "r": 2, "use_dora": True},
    "LoRA with biases": {"class": "LoraConfig", "target_modules": LINEARS, "r": 2, "bias": "all"},
    "LoRA with a saved head": {
        "class": "LoraConfig",
        "target_modules": LINEARS,
        "r": 2,
        "modules_to_save": ["classifier"],
    },
    "LoRA on embeddings": {"class": "LoraConfig", "target_modules": ["word_embeddings"], "r": 2},
    "AdaLoRA": {"class": "AdaLoraConfig", "target_modules": LINEARS, "total_step": 10},
    "IA3": {
        "class": "IA3Config",
        "target_modules": LINEARS,
        "feedforward_modules": [],
    },
    "LoHa": {"class": "LoHaConfig", "target_modules": LINEARS, "r": 2},
    "LoKr": {"class": "LoKrConfig", "target_modules": LINEARS, "r": 2},
    "VeRA": {"class": "VeraConfig", "target_modules": LINEARS, "r": 2},
    "SHiRA": {"class": "ShiraConfig", "target_modules": LINEARS, "r": 2},
    "FourierFT": {"class": "FourierFTConfig", "target_modules": LINEARS, "n_frequency": 8},
    "OFT": {"class": "OFTConfig", "target_modules": LINEARS, "oft_block_size": 4},
    "BOFT": {"class": "BOFTConfig", "target_modules": LINEARS, "boft_block_size": 4},
    "HRA": {"class": "HRAConfig", "target_modules": LINEARS, "r": 2},
    "MiSS": {"class": "MissConfig", "target_modules": LINEARS, "r": 2},
    "RandLoRA": {"class": "RandLoraConfig", "target_modules": LINEARS, "r": 2},
    "RoAd": {"class": "RoadConfig", "target_modules": LINEARS, "group_size": 2},
    "VB-LoRA": {
        "class": "VBLoRAConfig",
        "target_modules": LINEARS,
        "r": 2,
        "num_vectors": 8,
        "vector_length": 4,
    },
    "C3A": {"class": "C3AConfig", "target_modules": LINEARS, "block_size": 4},
    "DeLoRA": {"class": "DeloraConfig", "target_modules": LINEARS, "r": 2},
    "GraLoRA": {"class": "GraloraConfig", "target_modules": LINEARS, "r": 2, "gralora_k": 2},
    "HiRA": {"class": "HiraConfig", "target_modules": LINEARS, "r": 2},
    "WaveFT": {"class": "WaveFTConfig", "target_modules": LINEARS, "n_frequency": 8},
    "LN tuning": {"class": "LNTuningConfig", "target_modules": ["LayerNorm"]},
    "trainable tokens": {
        "class": "TrainableTokensConfig",
        "target_modules": ["word_embeddings"],
        "token_indices": list(range(20)),
    },
    "prompt tuning": {"class": "PromptTuningConfig", "num_virtual_tokens": 3},
    "P-tuning": {
        "class": "PromptEncoderConfig",
        "num_virtual_tokens": 3,
        "encoder_hidden_size": 8,
    },
    "prefix tuning": {"class": "PrefixTuningConfig", "num_virtual_tokens": 3},
}
"""Method -> how PEFT makes it."""
OURS: Mapping[str, str] = {
    "LoRA": "low-rank",
    "rsLoRA": "low-rank",
    "DoRA": "low-rank and scale",
    "LoRA with biases": "low-rank and dense",
    "LoRA with a saved head": "low-rank, and a head",
    "LoRA on embeddings": "low-rank",
    "AdaLoRA": "low-rank",
    "IA3": "scale",
    "LoHa": "dense",
    "LoKr": "dense",
    "VeRA": "low-rank",
    "SHiRA": "sparse",
    "LN tuning": "dense",
    "trainable tokens": "sparse",
    "prompt tuning": "prompt",
    "P-tuning": "prompt",
    "prefix tuning": "prefix",
}
"""Method -> the terms of ours that hold what it learns; others are dense here."""


def tiny_bert() -> nn.Module:
    """Return a classifier of two layers, in eval mode."""
    from transformers import BertConfig, BertForSequenceClassification

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
            num_labels=3,
            initializer_range=0.4,
        )
        return BertForSequenceClassification(config).eval()


def tokens(rows: int = 4) -> Tensor:
    """Return `(rows, 6)` tokens."""
    return torch.randint(1, 40, (rows, 6), generator=torch.Generator().manual_seed(0))


def two_adapters(method: str) -> Any:
    """Return a PEFT model with the adapters "a" and "b" of a method, of different values."""
    import peft

    chosen = dict(CONFIGS[method])
    config = getattr(peft, chosen.pop("class"))(**chosen)
    if isinstance(config, peft.PromptLearningConfig):
        config.task_type = "SEQ_CLS"
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        # of some methods only one adapter at a time may be trained
        second = copy.deepcopy(config)
        second.inference_mode = method == "AdaLoRA"
        model = peft.get_peft_model(tiny_bert(), config, adapter_name="a")
        model.add_adapter("b", second)
        _set(model, "a", 1)
        _set(model, "b", 2)
    return model.eval()


def _set(model: Any, adapter: str, seed: int) -> None:
    """Give the values of an adapter noise of its own."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if adapter in name.split(".") and parameter.is_floating_point():
            with torch.no_grad():
                parameter.add_(torch.randn(parameter.shape, generator=generator))


def outcome(method: str) -> str:
    """Return "honoured", "refused" or "ignored silently" for a method of PEFT."""
    try:
        model = two_adapters(method)
    except ValueError:
        return "refused"
    ids = tokens()
    names = ["a", "b", "b", "a"]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        alone = {}
        for name in ("a", "b"):
            model.set_adapter(name)
            alone[name] = model(input_ids=ids).logits
        if (alone["a"] - alone["b"]).abs().amax(1).min() < 1e-3:
            raise AssertionError(f"the two adapters of {method} give the same outputs")
        model.set_adapter("a")
        try:
            mixed = model(input_ids=ids, adapter_names=names).logits
        except (ValueError, TypeError, NotImplementedError, KeyError, RuntimeError):
            return "refused"
    expected = torch.stack([alone[name][row] for row, name in enumerate(names)])
    return "honoured" if torch.allclose(mixed, expected, atol=1e-4) else "ignored silently"


def page(outcomes: Callable[[str], str] = outcome) -> str:
    """Return the page."""
    import peft

    lines = ["| method | PEFT | graftwork holds it as |", "|---|---|---|"]
    lines += [f"| {m} | {outcomes(m)} | {OURS.get(m, 'dense')} |" for m in CONFIGS]
    return HEAD.format(version=peft.__version__) + "\n".join(lines) + "\n"


HEAD = """# Rows with their own adapters: PEFT's methods

Made by `python -m tests.battery.per_row` with PEFT {version}, and held up to date by a test. Two
adapters of a method, of different values, stand on one small BERT, and a batch of four rows names
one for each (`adapter_names=["a", "b", "b", "a"]`).

- **honoured**: every row gives what its own adapter gives alone.
- **refused**: an error, for some already at the second adapter.
- **ignored silently**: outputs come back, and some rows' are those of another adapter, or of none.

Here every kind of term runs in one batch with every other, each row as by itself:
[many tasks, one batch](mixed-batches.md), measured in [the matrix](mixed-batches-matrix.md). The
last column says which terms hold what a method learns. A test takes what the two adapters of each
method change, gives the rows of one batch one or the other here, and compares with what PEFT gives
for each adapter alone; that of prompts and prefixes is among the tests of PEFT's folders.

"""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
