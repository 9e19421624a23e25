"""Folders of `graftwork.models`: what their config.json says, and how the module is rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from graftwork._errors import BaseError, ConfigError, UnknownNameError
from graftwork.models import MODELS, ModelConfig, config_from_json

FORMAT = 1
MARK = "graftwork_model"
_KEYS = ("format", MARK, "config", "pooling", "max_length")


@dataclass(frozen=True, slots=True)
class Own:
    """Which model of `graftwork.models` a folder holds.

    Attributes:
        model: key of `MODELS`.
        fields: fields of its config.
    """

    model: str
    fields: Mapping[str, Any]

    @property
    def config(self) -> ModelConfig:
        """The config, heads of pretraining included."""
        return config_from_json(MODELS[self.model], self.fields)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of every tensor of the whole module, without building its values."""
        with torch.device("meta"):
            state = self.config.build().state_dict()
        return {name: tuple(tensor.shape) for name, tensor in state.items()}


def own_folder(said: Mapping[str, Any], path: Path) -> tuple[Own, str | None, int | None]:
    """Return (model, pooling, longest input) that a config.json states.

    Raises:
        BaseError: another format, an unknown model or key, or a value that cannot be.
    """
    if said.get("format") != FORMAT:
        raise BaseError(
            f"{path}: format {said.get('format')!r} is not {FORMAT}; a newer graftwork?"
        )
    if set(said) != set(_KEYS):
        raise BaseError(f"{path} has the keys {sorted(said)}, not {sorted(_KEYS)}")
    pooling, length = said["pooling"], said["max_length"]
    if not (pooling is None or isinstance(pooling, str)) or not (
        length is None or (isinstance(length, int) and length > 0)
    ):
        raise BaseError(f"{path}: pooling {pooling!r} or max_length {length!r} cannot be")
    try:
        if said[MARK] not in MODELS:
            raise UnknownNameError("model", said[MARK], MODELS)
        own = Own(said[MARK], dict(said["config"]))
        _ = own.config
    except (UnknownNameError, ConfigError, TypeError, ValueError) as cause:
        raise BaseError(f"{path}: {cause}") from cause
    return own, pooling, length


def read_own(
    own: Own, weights: Path, dtype: torch.dtype | None, *, whole: bool = False
) -> tuple[nn.Module, list[str]]:
    """Return the module with the stored values, and the stored names that it has no place for.

    Args:
        own: which model.
        weights: its safetensors file.
        dtype: cast floating values to this type; None keeps the stored ones.
        whole: with the heads of pretraining.

    Raises:
        BaseError: the file's tensors are not those of the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(weights)
    except (OSError, SafetensorError) as cause:
        raise BaseError(f"{weights} cannot be read: {cause}") from cause
    expected = own.shapes()
    for name in sorted(expected.keys() | state.keys()):
        found = tuple(state[name].shape) if name in state else None
        if found != expected.get(name):
            raise BaseError(
                f"{weights}: tensor {name!r} has the shape {found}, by config.json it has "
                f"{expected.get(name)}; the folder is damaged or mixed from two"
            )
    with torch.device("meta"):
        module = (own.config if whole else own.config.body()).build()
    places = module.state_dict()
    # copies: memory as torch aligns it, on which a matrix product's last bits depend
    module.load_state_dict({name: state[name].clone() for name in places}, assign=True)
    if dtype is not None:
        module = module.to(dtype=dtype)
    return module, sorted(state.keys() - places.keys())
