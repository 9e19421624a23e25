"""What a base's own inputs look like to it: features of texts at its embedding layer.

Shape legend: N texts, T tokens of all texts together, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graftwork._errors import InputError, UnsupportedError
from graftwork.tasks._call_spec import TaskBase
from graftwork.tasks._pinned import words
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
    data nor dump is at hand here, and a base of one's own has none. So the texts are generated from
    the tokenizer's own words unless some are given (`vocabulary_texts`), and their labels are
    k-means clusters of the features unless given. The features are those of the word embeddings
    alone: BERT-like bases add positions and a LayerNorm of their own to inputs_embeds, to foreign
    inputs as to words. The authors compare behind both.

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
        texts = vocabulary_texts(base.tokenizer, seed=seed)
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


def vocabulary_texts(
    tokenizer: Any, rows: int = SOURCE_ROWS, *, length: int = 14, seed: int = 0
) -> list[str]:
    """Return texts of a tokenizer's own words, drawn by Zipf's law over their ids.

    Vocabularies of word pieces begin with the most frequent words, so that a text holds common and
    rare words about as often as prose does. Sentences from a narrow template would do harm: their
    features hardly differ, and rows that are aligned with them lose what told them apart.

    Args:
        tokenizer: has `get_vocab`.
        rows: texts.
        length: words of a text, about those of a short sentence.
        seed: of the draw.

    Raises:
        UnsupportedError: the vocabulary has fewer than two words of letters.
    """
    vocabulary = tokenizer.get_vocab()
    pieces = [piece.lstrip("Ġ▁") for piece in sorted(vocabulary, key=vocabulary.__getitem__)]
    known = list(dict.fromkeys(piece for piece in pieces if len(piece) > 1 and piece.isalpha()))
    if len(known) < 2:
        raise UnsupportedError(
            "the tokenizer's vocabulary has no words to make texts of: give texts of your own"
        )
    shares = np.cumsum(1.0 / np.arange(1, len(known) + 1))
    drawn = words(rows * length, seed, "source").astype(np.float64) / 2.0**64
    places = np.searchsorted(shares, drawn * shares[-1], side="right")
    chosen = [known[min(place, len(known) - 1)] for place in places]
    return [" ".join(chosen[i : i + length]) for i in range(0, len(chosen), length)]


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
