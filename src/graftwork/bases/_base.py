"""A base: a frozen pretrained module with canonical names and a content fingerprint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from graftwork._errors import BaseError
from graftwork.bases._prints import print_of, print_piece
from graftwork.deltas import NameMap, TensorPrint


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen pretrained module. Get one from `graftwork.bases.load`.

    Attributes:
        model: in eval mode, `requires_grad` False.
        name: what it was loaded from.
        names: canonical names of its parameters.
        processing: what else a delta's fingerprint holds: "tokenizer" (digest), "pooling",
            "max_length", "normalise", "quantise"; empty for a plain module.
        tokenizer: a transformers tokenizer; None for modules.
        pooling: "mean", "cls", "max" or "last" where known.
        max_length: longest input in tokens where known.
        normalise: True when a sentence-transformers folder ends with a normalise layer.
        width: hidden size where known.
        stored_dtype: type of most stored values, e.g. "float32"; a cast at load leaves it.
        initialised: canonical names that the checkpoint lacks, filled at random with seed 0.
        unexpected: stored names that the module has no place for.
        quantised: canonical names of the tensors that are held in 8 bits.
        stored: prints of the stored tensors known at load; of those in 8 bits, prints of these.
        reference: prints of the live tensors taken at load where they differ from `stored` (a
            cast), and of all buffers (names begin with "buffer ").
    """

    model: nn.Module
    name: str
    names: NameMap
    processing: Mapping[str, str] = field(default_factory=dict)
    tokenizer: Any = None
    pooling: str | None = None
    max_length: int | None = None
    normalise: bool = False
    width: int | None = None
    stored_dtype: str | None = None
    initialised: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    quantised: tuple[str, ...] = ()
    stored: Mapping[str, TensorPrint] = field(default_factory=dict)
    reference: Mapping[str, TensorPrint] = field(default_factory=dict)
    _first: dict[str, TensorPrint] = field(default_factory=dict, repr=False)

    def prints(self, names: Iterable[str]) -> dict[str, TensorPrint]:
        """Return the fingerprints of the named tensors, by canonical name.

        Those of a file come from the file. Those of a plain module are hashed when first asked for,
        and remembered.

        Raises:
            UnknownNameError: no such tensor.
        """
        wanted = [self.names[name].name for name in names]
        return {n: self.stored.get(n) or self.reference.get(n) or self._hashed(n) for n in wanted}

    def verify(self) -> None:
        """Hash the live tensors and buffers again: proves that the base is unchanged.

        A plain module's tensors are compared with their first print, so take
        `base.prints(base.names.pieces)` early to have all of them under guard.

        Raises:
            BaseError: a tensor changed; names the first.
        """
        for name in self.names.pieces:
            expected = self.reference.get(name) or self.stored.get(name) or self._first.get(name)
            if expected is None:
                self._hashed(name)
            else:
                _same(name, self._live(name), expected)
        for name, buffer in self.model.named_buffers():
            expected = self.reference.get(f"buffer {name}")
            if expected is not None:
                _same(f"buffer {name}", print_of(buffer), expected)

    def _live(self, name: str) -> TensorPrint:
        piece = self.names.pieces[name]
        return print_piece(piece, self.model.get_parameter(piece.parameter))

    def _hashed(self, name: str) -> TensorPrint:
        if name not in self._first:
            self._first[name] = self._live(name)
        return self._first[name]


def _same(name: str, found: TensorPrint, expected: TensorPrint) -> None:
    if found != expected:
        raise BaseError(
            f"the base was changed: {name!r} is now {found.dtype}{list(found.shape)} "
            f"{found.digest}, at load it was {expected.dtype}{list(expected.shape)} "
            f"{expected.digest}; load the base again"
        )
