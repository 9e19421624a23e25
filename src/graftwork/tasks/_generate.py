"""Greedy answers of a language model.

Shape legend: B rows of one length, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from graftwork._errors import UnsupportedError


def groups_of_one_length(
    lengths: NDArray[np.int64], batch_size: int
) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of each length, at most `batch_size` at a time.

    Rows of one length need no padding, so no model can see any: an answer is that of the row alone.

    Example:
        >>> [rows.tolist() for rows in groups_of_one_length(np.asarray([3, 2, 3, 3]), 2)]
        [[1], [0, 2], [3]]
    """
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        for first in range(0, len(rows), batch_size):
            yield rows[first : first + batch_size]


def answers(module: nn.Module, ids: Tensor, *, end: int, most: int, whole: bool) -> list[list[int]]:
    """Return the most probable token after each other, of each row up to its end (left out).

    Nothing of the base's own settings of generation (sampling, penalties, other ends) has a part.

    Args:
        module: a language model.
        ids: `(B, L)` prompts of one length.
        end: the token that an answer stops at.
        most: most tokens of an answer.
        whole: call the module on whole rows each time, without keys and values of the past: for
            deltas that put positions of their own before the input (prompts, prefixes).

    Raises:
        UnsupportedError: the module has no `generate`.
    """
    with torch.no_grad():
        made = _by_rows(module, ids, end, most) if whole else _by_cache(module, ids, end, most)
    return [row[: row.index(end)] if end in row else row for row in made.tolist()]


def _by_cache(module: Any, ids: Tensor, end: int, most: int) -> Tensor:
    from transformers import GenerationConfig

    if not hasattr(module, "generate"):
        raise UnsupportedError(
            f"{type(module).__name__} has no `generate`, so it cannot answer; load the base with "
            "its language-model head: bases.load_language_model(...)"
        )
    settings = {
        "max_new_tokens": most,
        "do_sample": False,
        "num_beams": 1,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    # What a call leaves open is filled from the module's own settings, so these are set as well.
    # The module is a view: its attributes are not the base's.
    module.generation_config = GenerationConfig(**settings)
    made: Tensor = module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        generation_config=GenerationConfig(**settings),
    )
    return made[:, ids.shape[1] :]


def _by_rows(module: nn.Module, ids: Tensor, end: int, most: int) -> Tensor:
    length, done = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    for _ in range(most):
        output: Any = module(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
        following = output["logits"][:, -1].argmax(-1).masked_fill(done, end)
        ids = torch.cat([ids, following[:, None]], 1)
        done = done | (following == end)
        if bool(done.all()):
            break
    return ids[:, length:]
