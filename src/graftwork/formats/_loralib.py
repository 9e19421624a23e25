"""Checkpoints of loralib, the LoRA paper's own library: one file of `lora_A` and `lora_B`."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graftwork._errors import ConfigError
from graftwork.bases import Base
from graftwork.deltas import Delta, Update
from graftwork.formats._foreign import read_pickled, read_tensors
from graftwork.formats._heads import head_ports
from graftwork.formats._plain_lora import add_pair, head_of, split_pairs
from graftwork.formats._stamp import origin, stamped
from graftwork.formats._whole import change_whole


@dataclass(frozen=True, kw_only=True, slots=True)
class LoralibOptions:
    """What a loralib checkpoint does not say."""

    alpha: float
    """The alpha it was trained with; there is no default, since no file states it. (The released
    MNLI script of RoBERTa passes 16; the paper's table says 8.)"""
    enabled: tuple[bool, ...] | None = None
    """Of fused outputs (GPT-2's c_attn): which of q, k, v were adapted, (True, False, True)."""
    stored: str | None = None
    """Type of the values in the delta; None keeps each tensor's own, so that no bit changes."""
    head_activation: str | None = None
    """Activation inside a head of two layers: "tanh" for RoBERTa."""
    signature: Mapping[str, Any] | None = None
    """JSON of the signature; None gives a bare weight difference."""

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ConfigError(f"alpha is {self.alpha}, it must be a finite number")


def import_loralib(path: str | os.PathLike[str], base: Base, options: LoralibOptions) -> Delta:
    """Return the delta that a loralib checkpoint is (Hu et al., 2022; `lora_state_dict`).

    Linear, fused (MergedLinear) and embedding layers become low-rank terms whose factors keep their
    bits; convolutions dense ones, since loralib reshapes their product. Biases become dense
    terms, the task's head a port.

    The file is a pickle: this one import reads it by torch's restricted reader (weights_only),
    and what comes of it is none.

    Arguments:
        path: a `.bin` or `.pt` file, or the same tensors as `.safetensors`.
        base: the model it was trained on.
        options: above all alpha, which no file states.

    Raises:
        DeltaFileError: the file is damaged or holds other things than tensors, or shapes misfit.
        UnknownNameError: a tensor belongs to nothing in the base.

    Example:
        >>> options = LoralibOptions(alpha=16, head_activation="tanh")
        >>> import_loralib("roberta_base_lora_mnli.bin", base, options)  # doctest: +SKIP
    """
    file = Path(path)
    tensors = (read_tensors if file.suffix == ".safetensors" else read_pickled)(file)
    pairs, rest = split_pairs(tensors)
    updates: dict[str, Update] = {}
    for pair in pairs:
        factor = options.alpha / pair.b.shape[-1]
        add_pair(updates, base, pair, factor, options.enabled, options.stored)
    heads = change_whole(updates, base, rest, lambda name: head_of(base, name))
    ports, remembered = head_ports(heads, options.head_activation, options.stored)
    known = {**origin("loralib", file), "alpha": options.alpha, "heads": remembered}
    return stamped(base, updates, ports, options.signature, known)
