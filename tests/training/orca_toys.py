"""A tiny text base that takes inputs_embeds, and foreign rows for it."""

from __future__ import annotations

import dataclasses
from typing import Any

import ot  # noqa: F401  imported lazily by what is tested; in a forked child it takes seconds
import sklearn.cluster  # noqa: F401
import torch
from transformers import BertConfig, BertModel

from graftwork.bases import Base, load
from graftwork.tasks import Table, TaskConfig
from graftwork.training import OrcaConfig, RunConfig, orca

ALIGN = OrcaConfig(
    updates=8, align_rate=1e-2, align_rows=20, look_every=3, positions=4, input_rate=2e-2
)


class Letters:
    """A tokenizer: every letter is a token; its words are for generated texts."""

    def __call__(self, texts: list[str], *, padding: bool, **_: Any) -> dict[str, Any]:
        assert not padding
        return {"input_ids": [[ord(c) % 50 for c in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {word: i for i, word in enumerate(("the", "of", "cat", "sat", "mat", "zoo", "why"))}


def text_base(dtype: torch.dtype = torch.float32) -> Base:
    """A BERT of one layer with random weights, which mean pooling reads."""
    config = BertConfig(
        vocab_size=60,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BertModel(config, add_pooling_layer=False).to(dtype)
    base = load(model, pooling="mean", max_length=200)
    return dataclasses.replace(base, tokenizer=Letters())


def columns(rows: int = 60, seed: int = 0) -> Table:
    """Two numbers and a category; the label follows the first number and the category."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=rng)
    colour = torch.randint(0, 3, (rows,), generator=rng)
    label = ((x[:, 0] + (colour == 1)) > 0.4).long()
    return Table(
        {
            "height": (10.0 * x[:, 0] + 170.0).tolist(),
            "weight": x[:, 1].tolist(),
            "colour": [("red", "blue", "")[c] for c in colour.tolist()],
            "label": [("no", "yes")[y] for y in label.tolist()],
        }
    )


def tables() -> dict[str, Table]:
    """Rows to learn from and to measure on."""
    return {"train": columns(60), "eval": columns(40, seed=1)}


def orca_run(config: RunConfig, *, resume: bool) -> Any:
    """Run the recipe on the toys."""
    config = dataclasses.replace(config, task=TaskConfig(head_hidden=0))
    return orca(config, ALIGN, resume=resume, base=text_base(), tables=tables())
