"""Pairs of plain parameters `lora_A` and `lora_B`, as loralib and AdapterHub write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork._errors import DeltaFileError, UnknownNameError
from graftwork.bases import Base
from graftwork.deltas import Update, quantise
from graftwork.formats._places import Place, find_place, known_names, low_rank_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """The factors of one module.

    Attributes:
        name: of the module.
        a: `(r, i)`; of n fused outputs `(n r, i)`; of a convolution `(r k, i k)`.
        b: `(o, r)`; of n fused outputs of m `(o n / m, r)`; of a convolution `(o k, r k)`.
    """

    name: str
    a: Tensor
    b: Tensor


def split_pairs(
    tensors: Mapping[str, Tensor], inside: str = ""
) -> tuple[list[Pair], dict[str, Tensor]]:
    """Return the pairs in a state dict, and the tensors that are none.

    Args:
        tensors: of a file.
        inside: what stands between a module's name and `lora_A` ("loras.mnli.").

    Raises:
        DeltaFileError: half of a pair, or none at all.
    """
    ends = {part: f".{inside}{part}" for part in ("lora_A", "lora_B")}
    halves: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        part = next((p for p, end in ends.items() if key.endswith(end)), None)
        if part is None:
            rest[key] = tensor
        else:
            halves.setdefault(key.removesuffix(ends[part]), {})[part] = tensor
    for name, half in halves.items():
        absent = {"lora_A", "lora_B"} - set(half)
        if absent:
            raise DeltaFileError(f"module {name!r} has no {absent.pop()} in the file")
    if not halves:
        raise DeltaFileError(f"no key ends in {ends['lora_A']!r}; is this another format?")
    pairs = [Pair(name=n, a=half["lora_A"], b=half["lora_B"]) for n, half in halves.items()]
    return pairs, rest


def add_pair(
    updates: dict[str, Update],
    base: Base,
    pair: Pair,
    factor: float,
    enabled: Sequence[bool] | None,
    stored: str | None,
) -> None:
    """Add the update that a pair makes.

    Args:
        updates: gets it.
        base: the base.
        pair: the factors.
        factor: alpha / r.
        enabled: of a module whose outputs are fused (q, k and v in one): which of them have a pair
            of their own. None where the shapes say that there is one pair for all.
        stored: type of the values; None keeps the factors' own.

    Raises:
        DeltaFileError: the shapes fit neither the module nor its fused outputs.
    """
    place = find_place(base, pair.name)
    types = [stored or str(t.dtype).removeprefix("torch.") for t in (pair.a, pair.b)]
    if place.kernel:
        updates[place.weight.name] = _conv(place, pair, factor)
        return
    rank = pair.b.shape[1] if pair.b.dim() == 2 else 0
    a, b = pair.a, pair.b
    if (a.shape[0], b.shape[0]) != (rank, place.outputs):
        b = _blocks(place, pair, enabled)
    if tuple(a.shape) != (b.shape[1], place.inputs):
        raise DeltaFileError(_misfit(place, pair))
    term = low_rank_of(place, a, b, factor, (types[0], types[1]))
    updates[place.weight.name] = Update(place.weight.shape, low_rank=term)


def head_of(base: Base, name: str) -> str:
    """Return the module that the base lacks and the stored tensor `name` belongs to.

    Raises:
        UnknownNameError: the tensor is not one of a whole module that the base lacks.
    """
    words = name.split(".")
    for count in range(1, len(words)):
        module = ".".join(words[:count])
        if not any(known.startswith(f"{module}.") for known in known_names(base)):
            if count == 1:
                return module
            break
    raise UnknownNameError("parameter of the base", name, base.names.pieces)


def _blocks(place: Place, pair: Pair, enabled: Sequence[bool] | None) -> Tensor:
    """Return B `(o, n r)` of fused outputs: each block of outputs reads its own r rows of A."""
    rank = pair.b.shape[1] if pair.b.dim() == 2 else 1
    count = pair.a.shape[0] // max(rank, 1)
    if enabled is None:
        raise DeltaFileError(
            f"{_misfit(place, pair)}; if outputs are fused (q, k, v in one), say which of them "
            "are adapted with enabled=(True, False, True)"
        )
    size, ragged = divmod(place.outputs, len(enabled))
    if ragged or sum(enabled) != count or pair.b.shape[0] != size * count:
        raise DeltaFileError(f"{_misfit(place, pair)}, with enabled={tuple(enabled)}")
    out = pair.b.new_zeros(place.outputs, count * rank)
    chosen = [block for block, on in enumerate(enabled) if on]
    for index, block in enumerate(chosen):
        rows = slice(block * size, (block + 1) * size)
        columns = slice(index * rank, (index + 1) * rank)
        out[rows, columns] = pair.b[index * size : (index + 1) * size]
    return out


def _conv(place: Place, pair: Pair, factor: float) -> Update:
    """Return loralib's update of a convolution: `(o k, r k) (r k, i k)`, reshaped to the weight.

    The reshape breaks the low rank of the product, so it is kept as a dense term.
    """
    shape = place.weight.shape
    if pair.a.dim() != 2 or pair.b.dim() != 2 or pair.a.shape[0] != pair.b.shape[1]:
        raise DeltaFileError(_misfit(place, pair))
    product = factor * (pair.b.double() @ pair.a.double())
    if product.numel() != torch.Size(shape).numel():
        raise DeltaFileError(_misfit(place, pair))
    return Update(shape, dense=quantise(product.reshape(shape), "float32"))


def _misfit(place: Place, pair: Pair) -> str:
    return (
        f"lora_A {tuple(pair.a.shape)} and lora_B {tuple(pair.b.shape)} of {pair.name!r} do not "
        f"fit the base's weight {place.weight.shape}"
    )
