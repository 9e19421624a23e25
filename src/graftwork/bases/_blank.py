"""The same architecture with random weights: what pretraining is worth is measured against it."""

from __future__ import annotations

import dataclasses

import torch

from graftwork._errors import UnsupportedError
from graftwork.bases._base import Base
from graftwork.bases._load import load


def blank(base: Base, seed: int = 0) -> Base:
    """Return a base of the same architecture, initialised at random as its class does it.

    Args:
        base: of a transformers model, or of any whose class is built from its `config` alone.
        seed: of the weights.

    Raises:
        UnsupportedError: the model cannot be built from its config.
    """
    config = getattr(base.model, "config", None)
    kind = type(base.model)
    if config is None:
        raise UnsupportedError(f"a {kind.__name__} without a config cannot be built anew")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = kind(config)
        except TypeError as error:
            what = f"{kind.__name__} is not built from its config alone: {error}"
            raise UnsupportedError(what) from error
    device = next(base.model.parameters()).device
    made = load(model, device=device, quantise="int8" if base.quantised else None)
    return dataclasses.replace(
        made,
        name=f"{base.name} (random weights, seed {seed})",
        tokenizer=base.tokenizer,
        pooling=base.pooling,
        max_length=base.max_length,
        processing=base.processing,
        width=base.width,
    )
