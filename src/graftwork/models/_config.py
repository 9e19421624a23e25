"""What a model's config is: a frozen dataclass of JSON values that builds the module."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from graftwork._errors import ConfigError, closest


class ModelConfig(ABC):
    """A frozen dataclass whose fields are numbers, strings, booleans or None."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Return a new module; its first values come from torch's own generator, so seed that."""

    @abstractmethod
    def body(self) -> ModelConfig:
        """Return the config of the part that a base is: without the heads of pretraining.

        The names of its tensors are names of the whole module's.
        """

    @property
    @abstractmethod
    def output_width(self) -> int:
        """Width of `last_hidden_state`."""


ConfigT = TypeVar("ConfigT", bound=ModelConfig)


def config_from_json(kind: type[ConfigT], data: Mapping[str, Any]) -> ConfigT:
    """Return the config of class `kind` with the fields `data`.

    Raises:
        ConfigError: a key is unknown or a value is refused.
    """
    fields = [f.name for f in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{kind.__name__} has no field {key!r}{closest(key, fields)}")
    try:
        return kind(**data)
    except TypeError as cause:
        raise ConfigError(f"{kind.__name__}: {cause}") from cause
