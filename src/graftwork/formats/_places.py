"""Where a foreign file's module lies in a base, and how its factors become terms, both ways.

Shape legend: o = outputs of a module, i = inputs, r = rank, v = rows of an embedding, k = entries
of a kernel. Foreign factors are always A `(r, i)` and B `(o, r)`, as in Hu et al. (2022), eq. 3:
the weight, seen as `(o, i)`, gains `factor * B A`. What differs is how the base stores its weight:

| layout     | module                      | stored weight  | low-rank term           |
|------------|-----------------------------|----------------|-------------------------|
| linear     | nn.Linear                   | `(o, i)`       | left B, right A         |
| transposed | GPT-2's Conv1D              | `(i, o)`       | left A^T, right B^T     |
| embedding  | nn.Embedding                | `(v, o)`       | left A^T, right B^T     |
| conv       | nn.Conv1d, Conv2d, Conv3d   | `(o, i, *k)`   | left B, right A reshaped|
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, UnknownNameError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import LowRank, Piece, Stored, quantise, values_of

Layout = Literal["linear", "transposed", "embedding", "conv"]

_OUT_AXIS: Mapping[Layout, int] = {"linear": 0, "transposed": 1, "embedding": 1, "conv": 0}


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A module of a base that an adapter can change.

    Attributes:
        name: name of the live module.
        module: the module.
        weight: where its weight lies.
        bias: where its bias lies; None without one.
        layout: see the table of this file.
    """

    name: str
    module: nn.Module
    weight: Piece
    bias: Piece | None
    layout: Layout

    @property
    def kernel(self) -> tuple[int, ...]:
        """Shape of a convolution's kernel; empty for other layouts."""
        return self.weight.shape[2:] if self.layout == "conv" else ()

    @property
    def outputs(self) -> int:
        """Outputs o of the module."""
        return self.weight.shape[_OUT_AXIS[self.layout]]

    @property
    def inputs(self) -> int:
        """Inputs i of the module: features, channels, or rows of an embedding."""
        return self.weight.shape[1 - _OUT_AXIS[self.layout]]

    def value(self) -> Tensor:
        """Return the base's weight, float32 (float64 where it is so)."""
        return _wide(self.weight.of(self._parameter(self.weight)))

    def _parameter(self, piece: Piece) -> Tensor:
        leaf = piece.parameter.removeprefix(f"{self.name}." if self.name else "")
        return self.module.get_parameter(leaf).detach()


def find_place(base: Base, name: str) -> Place:
    """Return the place of the module called `name`, with or without the prefix of a task model.

    Raises:
        UnknownNameError: the base has no such module, or none with a weight.
        UnsupportedError: a module, a tie or a fused parameter that no adapter of a linear,
            convolution or embedding can describe.
    """
    _refuse_attention(base, name)
    piece = find_piece(base, f"{name}.weight" if name else "weight", what="module with a weight")
    live = piece.parameter.removesuffix("weight").removesuffix(".")
    module = base.model.get_submodule(live)
    refuse_ties(base, piece, "an adapter changes one of them only")
    bias = None
    if getattr(module, "bias", None) is not None:
        bias = find_piece(base, f"{live}.bias" if live else "bias")
    return Place(live, module, piece, bias, _layout(live, module))


def find_piece(base: Base, name: str, what: str = "parameter") -> Piece:
    """Return the whole parameter called `name`.

    Raises:
        UnknownNameError: the base has no such parameter.
        UnsupportedError: the base fuses it with others, as some loaders do.
    """
    canonical = base.names.aliases.get(name, name)
    piece = base.names.pieces.get(canonical)
    if piece is None:
        raise UnknownNameError(what, name, base.names.pieces)
    if not piece.whole:
        raise UnsupportedError(
            f"parameter {piece.parameter!r} of the base is fused from several stored tensors, of "
            f"which {name!r} is one; a file of adapters knows whole modules only"
        )
    return piece


def known_names(base: Base) -> set[str]:
    """Return every name by which a parameter of the base may be called."""
    return {*base.names.pieces, *base.names.aliases}


def tied_names(base: Base, piece: Piece) -> list[str]:
    """Return the live names that share the parameter of `piece`, itself included."""
    parameters = dict(base.model.named_parameters(remove_duplicate=False))
    mine = parameters[piece.parameter]
    return [name for name, parameter in parameters.items() if parameter is mine]


def refuse_ties(base: Base, piece: Piece, why: str) -> None:
    """Raise where the parameter of `piece` is tied to another.

    Raises:
        UnsupportedError: names both.
    """
    names = tied_names(base, piece)
    if len(names) > 1:
        raise UnsupportedError(
            f"{names[0]!r} and {names[1]!r} of the base are one tied parameter, and {why}; leave "
            "it out, or untie the base"
        )


def low_rank_of(
    place: Place, a: Tensor, b: Tensor, factor: float, stored: tuple[str, str]
) -> LowRank:
    """Return the low-rank term of the factors A and B; without rounding their bits are kept.

    Args:
        place: where they act.
        a: `(r, i)`, or `(r, i, *k)` for a convolution.
        b: `(o, r)`, or `(o, r, 1, ...)`.
        factor: multiplies the product.
        stored: types of A and B in the delta.
    """
    rank = a.shape[0]
    down, up = quantise(a.reshape(rank, -1), stored[0]), quantise(b.reshape(-1, rank), stored[1])
    if place.layout in ("linear", "conv"):
        return LowRank(up, down, factor)
    return LowRank(_turned(down), _turned(up), factor)


def factors_of(place: Place, term: LowRank) -> tuple[Tensor, Tensor]:
    """Return the factors A and B of a low-rank term, in the shapes of the module's layout.

    8-bit factors come back in float32, other ones in their stored type.
    """
    left, right = _plain(term.left), _plain(term.right)
    if place.layout in ("transposed", "embedding"):
        return left.T.contiguous(), right.T.contiguous()
    rank = left.shape[1]
    if place.layout == "linear":
        return right, left
    ones = (1,) * len(place.kernel)
    return right.reshape(rank, place.inputs, *place.kernel), left.reshape(-1, rank, *ones)


def over_outputs(place: Place, vector: Tensor) -> Tensor:
    """Return `vector` `(o,)` in the shape in which it broadcasts over the weight's outputs."""
    return _along(place, vector, _OUT_AXIS[place.layout])


def over_inputs(place: Place, vector: Tensor) -> Tensor:
    """Return `vector` `(i,)` in the shape in which it broadcasts over the weight's inputs."""
    return _along(place, vector, 1 - _OUT_AXIS[place.layout])


def axis_of(place: Place, scale: Stored) -> Literal["outputs", "inputs"] | None:
    """Return along what a scale term varies; None where it is neither (a full matrix, a number)."""
    shape = (1,) * (len(place.weight.shape) - len(scale.shape)) + tuple(scale.shape)
    out = _OUT_AXIS[place.layout]
    for what, axis in (("outputs", out), ("inputs", 1 - out)):
        if shape == tuple(n if d == axis else 1 for d, n in enumerate(place.weight.shape)):
            return "outputs" if what == "outputs" else "inputs"
    return None


def output_norms(place: Place, weight: Tensor) -> Tensor:
    """Return the Euclidean norm `(o,)` of each output's slice of `weight`.

    Raises:
        DeltaError: a norm is zero, so that no magnitude is defined.
    """
    axis = _OUT_AXIS[place.layout]
    rows = weight.movedim(axis, 0).reshape(weight.shape[axis], -1)
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    if not bool((norms > 0).all()):
        raise DeltaError(f"an output of {place.name!r} has weights of norm 0: no DoRA magnitude")
    return norms


def _layout(name: str, module: nn.Module) -> Layout:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        _check_conv(name, module)
        return "conv"
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return "transposed"
    raise UnsupportedError(
        f"module {name!r} is a {type(module).__name__}; adapters of linear, Conv1D, convolution "
        "and embedding modules are known"
    )


def _refuse_attention(base: Base, name: str) -> None:
    """Raise for torch's fused attention: PEFT 0.21 adds the output projection's update twice."""
    for path in (name, name.rpartition(".")[0]):
        if f"{path}.in_proj_weight" in known_names(base):
            raise UnsupportedError(
                f"{path!r} is an nn.MultiheadAttention, whose output projection PEFT adapts twice; "
                "merge the adapter in PEFT and take the difference with graftwork.deltas.between"
            )


def _check_conv(name: str, module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    """Raise where PEFT's two convolutions in a row are no difference of this one's weight."""
    plain = {"groups": 1, "padding_mode": "zeros", "dilation": (1,) * len(module.kernel_size)}
    for option, value in plain.items():
        found = getattr(module, option)
        if found != value:
            raise UnsupportedError(
                f"convolution {name!r} has {option}={found!r}, with which PEFT's adapter is no "
                f"difference of its weight; leave it out of the targets"
            )


def _along(place: Place, vector: Tensor, axis: int) -> Tensor:
    shape = [n if d == axis else 1 for d, n in enumerate(place.weight.shape)]
    return vector.reshape(shape)


def _turned(stored: Stored) -> Stored:
    if not isinstance(stored, Tensor):
        return quantise(stored.dequantise().T.contiguous(), "int8")
    return stored.T.contiguous()


def _plain(stored: Stored) -> Tensor:
    return stored if isinstance(stored, Tensor) else values_of(stored)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
