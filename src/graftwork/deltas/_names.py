"""Canonical parameter names: the same stored tensor has one name whatever wraps or fuses it.

A canonical tensor is a strided view of a parameter of the live module. Nearly always it is the
whole parameter (`Piece.whole`); where a loader fuses several stored tensors into one parameter
(experts stacked to 3-D, gate and up projections joined), each stored tensor is one `Piece`.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from graftwork._errors import DeltaError, UnknownNameError
from graftwork.deltas._int8 import float_of


@dataclass(frozen=True, slots=True)
class Piece:
    """Where a canonical tensor lives.

    Attributes:
        name: canonical name.
        parameter: name of the parameter in the live module.
        shape: shape of the canonical tensor.
        strides: element strides inside the contiguous parameter.
        offset: element offset inside the contiguous parameter.
        whole: True when the canonical tensor is the parameter itself.
    """

    name: str
    parameter: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int = 0
    whole: bool = True

    @property
    def numel(self) -> int:
        """Number of entries."""
        return math.prod(self.shape)

    def of(self, parameter: Tensor) -> Tensor:
        """Return the canonical tensor as a view of the contiguous `parameter`.

        Of a parameter in 8 bits it is the matrix that it stands for (`float_of`), and no view.
        """
        parameter = float_of(parameter)
        if self.whole:
            return parameter
        return parameter.as_strided(
            self.shape, self.strides, parameter.storage_offset() + self.offset
        )


@dataclass(frozen=True, slots=True)
class NameMap:
    """Both directions between canonical names and parameters of the live module.

    Attributes:
        pieces: canonical name -> `Piece`, in the module's parameter order.
        aliases: other accepted names (tied duplicates, names with a task prefix) -> canonical.
    """

    pieces: Mapping[str, Piece]
    aliases: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Piece:
        """Return the piece of `name` (canonical or alias).

        Raises:
            UnknownNameError: no such parameter.
        """
        piece = self.pieces.get(self.aliases.get(name, name))
        if piece is None:
            raise UnknownNameError("parameter", name, self.pieces)
        return piece

    def of_parameter(self, parameter: str) -> list[Piece]:
        """Return the pieces that live in one parameter of the live module."""
        return [p for p in self.pieces.values() if p.parameter == parameter]

    def match(self, patterns: Iterable[str], exclude: Iterable[str] = ()) -> list[str]:
        """Return canonical names that match any of `patterns` and none of `exclude`, in order.

        Patterns are shell wildcards ("encoder.*.weight"). A pattern that matches nothing is an
        error, one per pattern, because a typo would otherwise train nothing.

        Raises:
            UnknownNameError: a pattern matches nothing.
        """
        chosen = set(self._matches(patterns)) - set(self._matches(exclude))
        return [name for name in self.pieces if name in chosen]

    def _matches(self, patterns: Iterable[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            hits = [n for n in self.pieces if fnmatch.fnmatchcase(n, pattern)]
            hits += [c for a, c in self.aliases.items() if fnmatch.fnmatchcase(a, pattern)]
            if not hits:
                raise UnknownNameError("parameter pattern", pattern, self.pieces)
            found += hits
        return found


def identity_names(model: nn.Module) -> NameMap:
    """Return the map in which each parameter is its own canonical tensor; ties become aliases.

    Raises:
        DeltaError: a parameter is not contiguous, so flat positions would be ambiguous.
    """
    pieces: dict[str, Piece] = {}
    aliases: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            aliases[name] = first[id(parameter)]
            continue
        if not parameter.is_contiguous():
            raise DeltaError(
                f"parameter {name!r} is not contiguous; call .contiguous() on it first"
            )
        first[id(parameter)] = name
        pieces[name] = Piece(name, name, tuple(parameter.shape), parameter.stride())
    return NameMap(pieces, aliases)
