"""Branches: layers that add their low-rank term to what they give, instead of to their weight.

`y = scale * (x W^T + factor * (drop(x) A^T) B^T) + bias`: no copy and no gradient of W exists.
Each function here takes the place of one layer's `forward`; `consumer_of` says which.

Shape legend: x `(..., k)`, y `(..., m)`, down `(r, k)` and up `(m, r)` the two factors in the
layer's own direction; images `(B, C, ...)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.deltas import Int8Linear, float_of, run_linear
from graftwork.tuning._factors import Factors
from graftwork.tuning._trained import Scale, Trained

BRANCH = "_graftwork_branch"

_CONVOLUTIONS: tuple[tuple[Any, Callable[..., Tensor]], ...] = (
    (nn.Conv1d, F.conv1d),
    (nn.Conv2d, F.conv2d),
    (nn.Conv3d, F.conv3d),
)


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """What a layer's forward needs of its weight's trained terms.

    Attributes:
        parts: the targets that lie in the weight, each with the first output it belongs to.
        read: notes that the layer ran.
        dropout: chance that an input of the low-rank branch is dropped in training.
    """

    parts: tuple[tuple[Trained, int], ...]
    read: Callable[[], None]
    dropout: float = 0.0

    @property
    def whole(self) -> Trained | None:
        """The one target that is the whole weight; None where pieces of it are targets."""
        target = self.parts[0][0]
        return target if target.piece.whole else None

    def plain(self, weight: Tensor) -> Tensor:
        """Return the weight without low-rank terms and scale."""
        target = self.whole
        if target is None or (target.entries is None and target.dense is None):
            return weight
        weight = float_of(weight)
        return target.plain(weight).to(weight.dtype)

    def scale(self) -> Tensor | None:
        """Return the scale of the whole weight, or None."""
        target = self.whole
        return None if target is None or target.scale is None else target.scale.value()

    def products(self) -> list[tuple[Factors, slice]]:
        """Return the products with the outputs that each is added to, in order.

        A product of the whole weight has all outputs, also where a tied weight is read the other
        way round than the target's own layer reads it.
        """
        whole = self.whole
        if whole is not None and whole.whole is not None:
            return [(whole.whole, slice(None))]
        found = [
            (block.factors, slice(offset + block.start, offset + block.stop))
            for target, offset in self.parts
            for block in target.blocks
        ]
        return sorted(found, key=lambda item: item[1].start)


Operands = Callable[[Factors], tuple[Tensor, Tensor]]
"""Factors -> (down `(r, k)`, up `(m, r)`) in the direction of a layer."""


def _rows(factors: Factors) -> tuple[Tensor, Tensor]:
    up, down = factors.operands()
    return down, up


def _columns(factors: Factors) -> tuple[Tensor, Tensor]:
    left, right = factors.operands()
    return left.t(), right.t()


def _linear(module: nn.Module, input: Tensor) -> Tensor:
    """Run `nn.Linear` with its branch."""
    branch: Branch = vars(module)[BRANCH]
    branch.read()
    weight = branch.plain(_weight_of(module))
    scale = branch.scale()
    if scale is None:
        out = run_linear(input, weight, module.bias)  # type: ignore[arg-type]
        return _add(out, input, branch, _rows, module.training)
    inputs = input if scale.shape[0] != 1 else (input * scale.view(-1)).to(input.dtype)
    out = _add(run_linear(inputs, weight), inputs, branch, _rows, module.training)
    return _finish(out, None if scale.shape[0] == 1 else scale.view(-1), module)


def _conv1d_of_gpt2(module: nn.Module, x: Tensor) -> Tensor:
    """Run transformers' `Conv1D`, a linear layer whose weight is `(in, out)`, with its branch."""
    branch: Branch = vars(module)[BRANCH]
    branch.read()
    weight = branch.plain(_weight_of(module))
    scale = branch.scale()
    if scale is None:
        # the arithmetic of the layer itself, so that a zero branch changes no bit
        out = torch.addmm(module.bias, x.reshape(-1, x.size(-1)), weight)  # type: ignore[arg-type]
        out = out.view(*x.shape[:-1], -1)
        return _add(out, x, branch, _columns, module.training)
    inputs = x if scale.shape[1] != 1 else (x * scale.view(-1)).to(x.dtype)
    out = _add(inputs @ weight, inputs, branch, _columns, module.training)
    return _finish(out, None if scale.shape[1] == 1 else scale.view(-1), module)


def _embedding(module: nn.Module, input: Tensor) -> Tensor:
    """Run `nn.Embedding` with its branch; dropout drops whole tokens, the one-hot input's."""
    branch: Branch = vars(module)[BRANCH]
    branch.read()
    table: Any = module
    out = F.embedding(input, branch.plain(_weight_of(module)), table.padding_idx)
    for factors, span in branch.products():
        left, right = factors.operands()
        rows = F.embedding(input, left, table.padding_idx)
        if branch.dropout:
            kept = torch.ones(*input.shape, 1, dtype=rows.dtype, device=rows.device)
            rows = rows * F.dropout(kept, branch.dropout, module.training)
        out = _put(out, span, (rows @ right) * factors.factor)
    scale = branch.scale()
    return out if scale is None else (out * scale.view(-1)).to(out.dtype)


def _convolution(module: nn.Module, input: Tensor) -> Tensor:
    """Run a convolution with its branch: one to r channels, then one of width 1."""
    branch: Branch = vars(module)[BRANCH]
    branch.read()
    layer: Any = module
    weight = _weight_of(module)
    scale = branch.scale()
    late: Tensor | None = None if scale is None else layer.bias
    now: Tensor | None = layer.bias if scale is None else None
    out: Tensor = layer._conv_forward(input, branch.plain(weight), now)
    for factors, span in branch.products():
        left, right = factors.operands()
        x = F.dropout(input, branch.dropout, module.training) if branch.dropout else input
        x = _matched(x, right)
        down = right.view(-1, *weight.shape[1:]).repeat(layer.groups, *[1] * (weight.dim() - 1))
        up = (left * factors.factor).view(*left.shape, *[1] * (weight.dim() - 2))
        run = next(f for kind, f in _CONVOLUTIONS if isinstance(module, kind))
        added = run(layer._conv_forward(x, down, None), up, groups=layer.groups)
        out = _put(out, span, added, dim=1 - weight.dim())
    if scale is None:
        return out
    spread = (-1, *[1] * (weight.dim() - 2))
    out = (out * scale.view(spread)).to(out.dtype)
    return out if late is None else out + late.view(spread)


def _add(out: Tensor, x: Tensor, branch: Branch, operands: Operands, training: bool) -> Tensor:
    """Add the low-rank products of `x` to `out`, in the type of `out`."""
    products = branch.products()
    if not products:
        return out
    x = F.dropout(x, branch.dropout, training) if branch.dropout else x
    for factors, span in products:
        down, up = operands(factors)
        hidden = F.linear(_matched(x, down), down)
        if span == slice(None) and out.dtype == hidden.dtype == up.dtype:
            # one pass over the outputs: no product of their size is made beside them
            flat = torch.addmm(
                out.reshape(-1, out.shape[-1]),
                hidden.reshape(-1, hidden.shape[-1]),
                up.t(),
                alpha=factors.factor,
            )
            out = flat.view(out.shape)
        else:
            out = _put(out, span, F.linear(hidden * factors.factor, up))
    return out


def _put(out: Tensor, span: slice, added: Tensor, dim: int = -1) -> Tensor:
    """Add `added` to the outputs of `span`."""
    added = added.to(out.dtype)
    if span == slice(None):
        return out + added
    middle = out.narrow(dim, span.start, span.stop - span.start) + added
    rest = out.narrow(dim, span.stop, out.shape[dim] - span.stop)
    return torch.cat([out.narrow(dim, 0, span.start), middle, rest], dim)


def _finish(out: Tensor, scale: Tensor | None, module: nn.Module) -> Tensor:
    """Scale outputs and add the bias, which no scale of the weight touches."""
    if scale is not None:
        out = (out * scale).to(out.dtype)
    bias: Any = module.bias
    return out if bias is None else out + bias


def _matched(x: Tensor, factor: Tensor) -> Tensor:
    """Return `x` in the type of the factors; under autocast the operations see to that."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(factor.dtype)


def _weight_of(module: nn.Module) -> Tensor:
    """Return the frozen weight itself; the attribute would give the adapted one."""
    weight = module._parameters["weight"]
    assert weight is not None
    return weight


@dataclass(frozen=True, slots=True)
class Consumer:
    """A kind of layer that can run as a branch.

    Attributes:
        forward: takes the place of the layer's own.
        columns: outputs are columns of the weight, not rows.
        table: the weight is looked up, so that A of the low-rank term, its rows, starts at zero.
        pieces: rows of the weight may be targets of their own.
        scales: which scales of the weight it can apply to inputs or outputs.
    """

    forward: Callable[..., Tensor]
    columns: bool = False
    table: bool = False
    pieces: bool = False
    scales: tuple[Literal["rows", "columns"], ...] = ("rows", "columns")


_LINEAR = Consumer(_linear, pieces=True)
_CONV1D = Consumer(_conv1d_of_gpt2, columns=True)
_TABLE = Consumer(_embedding, columns=True, table=True, scales=("columns",))
_CONVOLVE = Consumer(_convolution, scales=("rows",))


def consumer_of(module: nn.Module, leaf: str) -> Consumer | None:
    """Return how `module` consumes its parameter `leaf` as a branch, or None.

    It is None for every module whose forward is not exactly the known one: a subclass with a
    forward of its own may do with its weight what it likes.
    """
    if leaf != "weight" or "forward" in vars(module):
        return None
    forward = type(module).forward
    if forward in (nn.Linear.forward, Int8Linear.forward):
        return _LINEAR
    if forward is nn.Embedding.forward:
        # renormalising would write to the frozen table
        return None if getattr(module, "max_norm", None) is not None else _TABLE
    if any(forward is kind.forward for kind, _ in _CONVOLUTIONS):
        return _CONVOLVE
    library = sys.modules.get("transformers.pytorch_utils")
    return _CONV1D if library is not None and forward is library.Conv1D.forward else None


def can_branch(consumer: Consumer, targets: Sequence[Trained]) -> bool:
    """Return whether a layer can run the trained terms of its weight as a branch."""
    first = targets[0]
    if not first.piece.whole:
        return consumer.pieces and all(_is_rows_of(t) for t in targets)
    if first.stack or (not first.blocks and first.scale is None):
        return False
    if first.blocks and first.whole is None and first.columns != consumer.columns:
        return False
    return first.scale is None or _kind_of(first.scale) in consumer.scales


def _is_rows_of(target: Trained) -> bool:
    """Return whether a piece is whole rows of a matrix, with nothing but products trained."""
    piece = target.piece
    plain = target.entries is None and target.dense is None and target.scale is None
    return (
        plain
        and len(piece.shape) == 2
        and piece.strides == (piece.shape[1], 1)
        and piece.offset % piece.shape[1] == 0
    )


def _kind_of(scale: Scale) -> str:
    return "rows" if all(size == 1 for size in scale.shape[1:]) else "columns"
