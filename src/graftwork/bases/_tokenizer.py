"""The tokenizer's part of a fingerprint."""

from __future__ import annotations

import hashlib
import json
from typing import Any

_UNSET = 1_000_000
"""transformers writes 1e30 where a tokenizer states no length."""


def tokenizer_digest(tokenizer: Any) -> str:
    """Return 16 hex digits that change whenever the tokenizer would make other tokens.

    Over the backend as it serialises itself (vocabulary, merges, normaliser, template), without the
    truncation and padding that each call sets anew; a tokenizer without a backend gives its
    vocabulary and special tokens.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content: Any = {
            "class": type(tokenizer).__name__,
            "vocabulary": tokenizer.get_vocab(),
            "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items()},
        }
    else:
        content = json.loads(backend.to_str())
        for volatile in ("truncation", "padding", "version"):
            content.pop(volatile, None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def tokenizer_prints(tokenizer: Any) -> dict[str, str]:
    """Return what a fingerprint holds of a tokenizer: its digest, and that of its chat template.

    The template has a key of its own, so that fingerprints of tokenizers without one, and those
    made before it was looked at, stay as they are.
    """
    prints = {"tokenizer": tokenizer_digest(tokenizer)}
    template = getattr(tokenizer, "chat_template", None)
    if template:
        content = json.dumps(template, sort_keys=True).encode()
        prints["chat_template"] = hashlib.sha256(content).hexdigest()[:16]
    return prints


def longest_input(tokenizer: Any, config: Any) -> int | None:
    """Return the longest input in tokens that tokenizer and model both take, where stated."""
    stated = (
        getattr(tokenizer, "model_max_length", None),
        getattr(config, "max_position_embeddings", None),
    )
    lengths = [int(n) for n in stated if isinstance(n, int | float) and 0 < n < _UNSET]
    return min(lengths, default=None)
