"""From what a module returns to one vector a row.

Shape legend: B rows, L positions, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork._errors import InputError, UnknownNameError, UnsupportedError

Pool = Callable[[Tensor, Tensor], Tensor]
"""(hidden `(B, L, H)`, mask `(B, L)` bool) -> `(B, H)`."""

HIDDEN_KEYS = ("last_hidden_state", "hidden_states")
VECTOR_KEYS = ("logits", "pooler_output", "embeddings", "image_embeds", "text_embeds")


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the positions that the mask keeps.

    Example:
        >>> hidden = torch.tensor([[[1.0], [3.0], [100.0]]])
        >>> mean(hidden, torch.tensor([[True, True, False]])).tolist()
        [[2.0]]
    """
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the first position that the mask keeps (position 0 unless padding is on the left)."""
    first = mask.to(torch.int8).argmax(1)
    return hidden[torch.arange(hidden.shape[0], device=hidden.device), first]


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the last position that the mask keeps: the one that saw all in a causal model."""
    back = mask.flip(1).to(torch.int8).argmax(1)
    rows = torch.arange(hidden.shape[0], device=hidden.device)
    return hidden[rows, hidden.shape[1] - 1 - back]


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the maximum over the kept positions; padding counts as minus infinity, not 0."""
    return hidden.masked_fill(~mask.unsqueeze(-1), -torch.inf).amax(1)


POOLINGS: dict[str, Pool | None] = {
    "mean": mean,
    "cls": cls,
    "max": maximum,
    "last": last,
    "none": None,
}
"""Pooling name -> function; "none" for modules whose output is already `(B, F)`."""


def pool(output: Any, mask: Tensor | None, pooling: str) -> Tensor:
    """Return one vector a row, `(B, F)`.

    Args:
        output: what the module returned: a tensor, a Hugging Face output, a mapping or a tuple
            (its first item). `(B, L, H)` for all poolings but "none", which wants `(B, F)`.
            A feature map `(B, C, height, width)` counts as height * width positions.
        mask: `(B, L)`, nonzero where a position counts; None when all do.
        pooling: a key of `POOLINGS`.

    Raises:
        UnknownNameError: no such pooling.
        UnsupportedError: the output has no tensor of the shape that the pooling wants.
    """
    if pooling not in POOLINGS:
        raise UnknownNameError("pooling", pooling, POOLINGS)
    function = POOLINGS[pooling]
    if function is None:
        vectors = tensor_of(output, VECTOR_KEYS)
        if vectors.dim() != 2:
            raise UnsupportedError(
                f'pooling "none" needs an output of shape (rows, features), but the module gave '
                f'{tuple(vectors.shape)}; choose a pooling: "mean", "cls", "max" or "last"'
            )
        return vectors
    hidden = tensor_of(output, HIDDEN_KEYS)
    if hidden.dim() == 4:
        hidden, mask = hidden.flatten(2).transpose(1, 2), None
    if hidden.dim() != 3:
        raise UnsupportedError(
            f'pooling "{pooling}" needs an output of shape (rows, positions, width), but the '
            f'module gave {tuple(hidden.shape)}; use pooling "none" if that is one vector a row'
        )
    if mask is None:
        mask = torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device)
    if mask.shape != hidden.shape[:2]:
        raise UnsupportedError(
            f"the module gave {tuple(hidden.shape[:2])} (rows, positions) for inputs of "
            f'{tuple(mask.shape)}; pooling "{pooling}" cannot tell which positions are padding'
        )
    return function(hidden, mask.bool())


def tensor_of(output: Any, keys: tuple[str, ...]) -> Tensor:
    """Return the tensor in a module's output: itself, the first of `keys`, or a tuple's first item.

    Raises:
        UnsupportedError: there is none; names what there is.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        for key in keys:
            value = output.get(key)
            if isinstance(value, Tensor):
                return value
        raise UnsupportedError(
            f"the module returned {sorted(output)}, none of which is {' or '.join(keys)}; "
            "wrap it in a module that returns the wanted tensor"
        )
    if isinstance(output, tuple | list) and output:
        return tensor_of(output[0], keys)
    raise UnsupportedError(
        f"the module returned a {type(output).__name__}; a tensor or a mapping of tensors is needed"
    )


def combine(first: Tensor, second: Tensor, features: tuple[str, ...]) -> Tensor:
    """Return the declared parts of two encodings u, v `(B, H)` side by side, `(B, parts * H)`.

    The four parts are those of InferSent (Conneau et al., 2017, figure 1).

    Example:
        >>> u, v = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 1.0]])
        >>> combine(u, v, ("u", "|u-v|", "u*v")).tolist()
        [[1.0, 2.0, 2.0, 1.0, 3.0, 2.0]]
    """
    return torch.cat([_PARTS[name](first, second) for name in features], dim=-1)


_PARTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "u": lambda u, _: u,
    "v": lambda _, v: v,
    "|u-v|": lambda u, v: (u - v).abs(),
    "u*v": lambda u, v: u * v,
}
FEATURES = tuple(_PARTS)
"""What `combine` knows, in the order of the paper."""


def check_features(features: tuple[str, ...]) -> None:
    """Raise InputError unless `features` is a non-empty choice of `FEATURES` without repeats."""
    for name in features:
        if name not in FEATURES:
            raise UnknownNameError("feature", name, FEATURES)
    if not features or len(set(features)) < len(features):
        raise InputError(f"features {list(features)} must be one or more of {FEATURES}, each once")
