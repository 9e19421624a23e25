"""Prompt and prefix tuning: vectors before the input, nothing of the base's weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike, input_table, prefix_sizes
from graftwork.nn import Prefix, Prompt
from graftwork.tuning._adapted import Adapted, Inside
from graftwork.tuning._check import check_choice, check_rates
from graftwork.tuning._seeded import seed_of, seeded_module
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class PromptTuning(Tuner):
    """Train vectors that stand before the embedded input (Lester, Al-Rfou, Constant, 2021).

    For transformers models that take `inputs_embeds`. The outputs at the prompt's own positions are
    taken away again, so a pooling or a head sees the input's positions only. (A base's own pooler
    that reads position 0 reads the prompt's.) Targets are ignored.

    Example:
        >>> PromptTuning(length=8).stages[0].learning_rates
        {'values': 0.1, 'head': 0.001}
    """

    length: int = 20
    """Vectors; above 20 little is gained (section 3.2). They take positions of the base: rows may
    be that much shorter."""
    start: Literal["vocabulary", "normal"] = "vocabulary"
    """First values: rows of the embedding table drawn from the seed, or normal of deviation
    0.02."""
    values_lr: float = 0.1
    """Learning rate of the vectors: prompts want some hundred times the dense rate (the paper has
    0.3 with Adafactor)."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        check_choice("start", self.start, ("vocabulary", "normal"))
        _check_length(self.length)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("prompt", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; `seed` draws the first vectors.

        Raises:
            UnsupportedError: the base has no input embeddings, or does not take embedded inputs.
        """
        name, table = input_table(base)
        config = {"length": self.length, "width": int(table.shape[1])}
        module = seeded_module(lambda: Prompt(**config), seed, "prompt")
        if self.start == "vocabulary":
            drawn = torch.Generator().manual_seed(seed_of(seed, "prompt rows"))
            rows = torch.randint(0, table.shape[0], (self.length,), generator=drawn)
            with torch.no_grad():
                next(module.parameters()).copy_(table[rows.to(table.device)])
        inside = Inside(_wide(module, table), "prompt", config)
        return Adapted(base, (), inside={f"prompt:{name}": inside})


@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Tuner):
    """Train keys and values that stand before the input's in every layer (Li and Liang, 2021).

    For causal decoders of transformers that read past keys and values. The vectors are trained as
    they are, without the paper's reparametrisation. Targets are ignored.

    Example:
        >>> PrefixTuning(length=8).stages[0].learning_rates
        {'values': 0.01, 'head': 0.001}
    """

    length: int = 10
    """Keys and values a layer: 10 for generation from tables in the paper, up to 200 for
    summaries."""
    values_lr: float = 1e-2
    """Learning rate of the vectors."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        _check_length(self.length)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("prefix", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; `seed` draws the first vectors.

        Raises:
            UnsupportedError: the base is no causal decoder that reads past keys and values.
        """
        name, table = input_table(base)
        config = {"length": self.length, **prefix_sizes(base.model)}
        module = seeded_module(lambda: Prefix(**config), seed, "prefix")
        inside = Inside(_wide(module, table), "prefix", config)
        return Adapted(base, (), inside={f"prefix:{name}": inside})


def _check_length(length: int) -> None:
    if length < 1:
        raise ConfigError(f"length: 1 or more, not {length}")


def _wide(module: nn.Module, table: torch.Tensor) -> nn.Module:
    return module.double() if table.dtype == torch.float64 else module.float()
