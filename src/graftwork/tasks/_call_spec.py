"""What a call reads: of a base, of a signature, of ports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from torch import nn

from graftwork._errors import DeltaError, did_you_mean
from graftwork.deltas import BaseLike
from graftwork.tasks._encoded import ArrayInput
from graftwork.tasks._language_input import LanguageInput


@runtime_checkable
class TaskBase(BaseLike, Protocol):
    """What tasks need of a base beyond `BaseLike`; `graftwork.bases.Base` is one."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer; None for a plain module."""

    @property
    def pooling(self) -> str | None:
        """The base's own pooling, where it states one."""

    @property
    def max_length(self) -> int | None:
        """The most tokens it reads, where it states them."""


@runtime_checkable
class CallSpec(Protocol):
    """What a call reads of a signature."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Columns that are the input."""

    @property
    def template(self) -> tuple[str, ...]:
        """One template for each text; empty: each field is a text."""

    @property
    def max_length(self) -> int | None:
        """Tokens kept of an input."""

    @property
    def pooling(self) -> str:
        """A key of `POOLINGS`."""

    @property
    def normalise(self) -> bool:
        """Whether pooled vectors are scaled to length 1."""

    @property
    def features(self) -> tuple[str, ...]:
        """Parts of two encodings."""

    @property
    def array(self) -> ArrayInput | None:
        """Preprocessing of arrays."""

    @property
    def head(self) -> str | None:
        """Port of the head; None when the module itself gives the outputs."""

    @property
    def input(self) -> str | None:
        """Port that embeds foreign inputs."""

    @property
    def language(self) -> LanguageInput | None:
        """What a language model learns of a row."""


Ports = Mapping[str, nn.Module] | nn.ModuleDict
"""Port name -> module."""


def port_named(ports: Ports, name: str) -> nn.Module:
    """Return the module at a port.

    Raises:
        DeltaError: there is none of this name.
    """
    if name not in ports:
        raise DeltaError(f"the signature needs the port {name!r}{did_you_mean(name, ports.keys())}")
    return ports[name]
