"""A small classifier of sequences, its rows, and a Trainer over both."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from graftwork.bases import Base, load
from graftwork.integrations import TunedModule

VOCABULARY, LENGTH = 24, 6


def make_base(dropout: float = 0.0, seed: int = 3, dtype: torch.dtype | None = None) -> Base:
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=LENGTH,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        num_labels=2,
    )
    return load(BertForSequenceClassification(config), dtype=dtype)


def make_rows(count: int = 64, seed: int = 0) -> list[dict[str, Tensor]]:
    """Rows whose label says whether the first token is in the upper half of the vocabulary."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count, LENGTH), generator=rng)
    labels = (ids[:, 0] >= VOCABULARY // 2).long()
    return [{"input_ids": i, "labels": label} for i, label in zip(ids, labels, strict=True)]


def make_trainer(
    model: nn.Module,
    tuned: TunedModule,
    folder: Path,
    callbacks: list[object],
    **changed: object,
) -> Trainer:
    settings: dict[str, object] = {
        "output_dir": str(folder),
        "max_steps": 60,
        "per_device_train_batch_size": 16,
        "logging_steps": 10,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 5,
        "dataloader_pin_memory": False,
        "eval_strategy": "no",
    }
    return Trainer(
        model=model,
        args=TrainingArguments(**{**settings, **changed}),
        train_dataset=make_rows(),
        eval_dataset=make_rows(32, seed=1),
        callbacks=callbacks,
        optimizers=(tuned.optimiser(), None),
    )
