"""What a base's own inputs look like to it: features of texts at its embedding layer.

Shape legend: N texts, T tokens of all texts together, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from graftwork._errors import InputError, UnsupportedError
from graftwork.tasks._calls import TaskBase
from graftwork.tasks._comparisons import comparisons
from graftwork.tasks._pseudo_labels import pseudo_labels

SOURCE_ROWS = 512
"""Texts where none are given. Shen et al. take 5,000; exact transport of 500 takes milliseconds."""


@dataclass(frozen=True, slots=True, eq=False)
class SourceFeatures:
    """The side of an alignment that does not move.

    Attributes:
        features: `(N, D)` mean over tokens of each text's embeddings.
        labels: `(N,)` int64.
        mean: `(D,)` mean embedding of the texts' tokens.
        deviation: `(D,)` standard deviation of each entry over the texts' tokens.
    """

    features: Tensor
    labels: Tensor
    mean: Tensor
    deviation: Tensor

    @property
    def labelled(self) -> tuple[Tensor, Tensor]:
        """Features and labels, as distances take them."""
        return self.features, self.labels


def source_features(
    base: TaskBase,
    texts: Sequence[str] | None = None,
    *,
    labels: Sequence[int] | None = None,
    classes: int = 10,
    seed: int = 0,
) -> SourceFeatures:
    """Return features of texts at the place where `inputs_embeds` go in.

    Shen et al. (2023) use 5,000 sentences of CoNLL-2003 with entity labels, precomputed; neither
    data nor dump is at hand here, and a base of one's own has none. So the texts are generated
    ("comparisons") unless some are given, and their labels are k-means clusters of the features
    unless given. The features are those of the word embeddings alone: BERT-like bases add positions
    and a LayerNorm of their own to inputs_embeds, to foreign inputs as to words. The authors
    compare behind both.

    Args:
        base: has a tokenizer, and a model with `get_input_embeddings`.
        texts: the base's own kind of input; None generates some.
        labels: class of each text; None clusters the features.
        classes: clusters.
        seed: of generated texts and clusters.

    Raises:
        UnsupportedError: the base has no tokenizer, or its model no input embeddings.
        InputError: another number of labels than of texts.
    """
    embeddings = input_embeddings(base)
    if texts is None:
        table = comparisons("train", SOURCE_ROWS, seed=seed)
        pairs = zip(table["premise"], table["hypothesis"], strict=True)
        texts = [f"{first} {second}" for first, second in pairs]
    if labels is not None and len(labels) != len(texts):
        raise InputError(f"{len(labels)} labels for {len(texts)} texts")
    cut = {"truncation": True, "max_length": base.max_length} if base.max_length else {}
    ids = base.tokenizer(list(texts), padding=False, **cut)["input_ids"]
    device = next(embeddings.parameters()).device
    with torch.no_grad():
        rows = [embeddings(torch.tensor(row, device=device)).float().cpu() for row in ids]
    features, tokens = torch.stack([row.mean(0) for row in rows]), torch.cat(rows)
    if labels is None:
        found: Any = pseudo_labels(features.numpy(), classes, seed=seed)
    else:
        found = list(labels)
    return SourceFeatures(
        features, torch.as_tensor(found, dtype=torch.int64), tokens.mean(0), tokens.std(0)
    )


def input_embeddings(base: TaskBase) -> nn.Module:
    """Return the module that embeds a base's tokens.

    Raises:
        UnsupportedError: there is none, or no tokenizer.
    """
    getter = getattr(base.model, "get_input_embeddings", None)
    found = getter() if callable(getter) else None
    if not isinstance(found, nn.Module) or base.tokenizer is None:
        raise UnsupportedError(
            "alignment needs a base with a tokenizer whose model has get_input_embeddings() and "
            "takes inputs_embeds, as transformers' text models do"
        )
    return found
