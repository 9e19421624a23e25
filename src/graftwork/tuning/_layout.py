"""The flat space over the targets of a tuner, and the working weights behind it.

Shape legend: d = entries of all targets together, n = entries of one target. Flat position i of
the space belongs to the target whose `[start, stop)` holds i; inside a target, positions are flat
and row-major over its canonical shape. The order of the targets is the order of the base's names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from graftwork._errors import ConfigError, TrainingError, UnsupportedError
from graftwork.deltas import BaseLike, Piece, float_of, replace_parameter, shared_copy
from graftwork.tuning._check import check_kept


@dataclass(frozen=True, slots=True, eq=False)
class Slot:
    """One target in the flat space.

    Attributes:
        piece: where the canonical tensor lives in the live module.
        start: flat position of its first entry.
    """

    piece: Piece
    start: int

    @property
    def name(self) -> str:
        """Canonical name."""
        return self.piece.name

    @property
    def numel(self) -> int:
        """Entries."""
        return self.piece.numel

    @property
    def stop(self) -> int:
        """Flat position behind the last entry."""
        return self.start + self.numel


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The flat space of a list of targets.

    Attributes:
        slots: the targets, in the base's order.
        dtype: type of trainable values: float64 when a target is float64, else float32, because
            small changes of a half-precision weight would be lost in its own type.
        device: where the base lives.
    """

    slots: tuple[Slot, ...]
    dtype: torch.dtype
    device: torch.device

    @property
    def numel(self) -> int:
        """Entries of all targets."""
        return self.slots[-1].stop if self.slots else 0

    @property
    def sizes(self) -> list[int]:
        """Entries of each target."""
        return [slot.numel for slot in self.slots]

    @property
    def names(self) -> list[str]:
        """Canonical names of the targets."""
        return [slot.name for slot in self.slots]

    def split(self, positions: Tensor) -> list[Tensor]:
        """Return sorted flat `positions` `(k,)` int64 as local positions, one tensor a slot."""
        if not self.slots:
            return []
        bounds = torch.tensor([s.start for s in self.slots[1:]], device=positions.device)
        cuts = torch.searchsorted(positions, bounds).tolist()
        parts = torch.tensor_split(positions, cuts)
        return [part - slot.start for part, slot in zip(parts, self.slots, strict=True)]


def layout_of(base: BaseLike, targets: Sequence[str]) -> Layout:
    """Return the flat space over `targets`.

    Arguments:
        base: the frozen base.
        targets: canonical names or aliases (a tied weight's other name); duplicates count once.

    Raises:
        UnknownNameError: a target is not a parameter of the base.
        UnsupportedError: a target is not a strided floating tensor in memory.
        ConfigError: there are no targets.

    Example:
        >>> from graftwork.bases import load
        >>> layout = layout_of(load(nn.Linear(3, 2)), ["bias", "weight"])
        >>> [(slot.name, slot.start, slot.stop) for slot in layout.slots]
        [('weight', 0, 6), ('bias', 6, 8)]
    """
    wanted = {base.names[name].name for name in targets}
    if not wanted:
        raise ConfigError("no targets: name at least one parameter of the base to tune")
    slots: list[Slot] = []
    wide, device, start = False, torch.device("cpu"), 0
    for piece in base.names.pieces.values():
        if piece.name not in wanted or piece.numel == 0:
            continue
        parameter = base.model.get_parameter(piece.parameter)
        _check_supported(piece, parameter)
        if slots and parameter.device != device:
            raise UnsupportedError(
                f"target {piece.name!r} is on {parameter.device}, others on {device}; "
                "put the whole base on one device"
            )
        wide, device = wide or parameter.dtype == torch.float64, parameter.device
        slots.append(Slot(piece, start))
        start += piece.numel
    if not slots:
        raise ConfigError(f"all {len(wanted)} targets are empty tensors")
    return Layout(tuple(slots), torch.float64 if wide else torch.float32, device)


def kept_count(share: float, numel: int) -> int:
    """Return `floor(share * numel)`, exactly as the decimal `share` reads.

    In binary, 0.29 * 100 is 28.999999999999996; here it is 29.

    Raises:
        ConfigError: `share` is outside (0, 1], or keeps 0 values.

    Example:
        >>> kept_count(0.005, 59_376), kept_count(0.29, 100), kept_count(1.0, 7)
        (296, 29, 7)
    """
    check_kept(share)
    kept = math.floor(Fraction(repr(float(share))) * numel)
    if kept == 0:
        raise ConfigError(
            f"share {share:g} of {numel} entries keeps 0 values; raise it to at least "
            f"{1 / numel:.3g}, or choose more targets"
        )
    return kept


class Working:
    """A copy of the base's module tree with private, differentiable parameters for some targets.

    All other parameters share the base's storage and need no gradient. A target that is a whole
    contiguous parameter of the compute type is read and written in place; any other (a piece of a
    fused parameter, half precision) goes through a contiguous staging buffer.

    Arguments:
        base: the frozen base.
        layout: the flat space.
        writable: False when the weights are only read (scores): nothing is then copied.
    """

    def __init__(self, base: BaseLike, layout: Layout, *, writable: bool = True) -> None:
        self.layout = layout
        self.module = shared_copy(base.model)
        self._base, self._writable = base, writable
        self._leaves: dict[str, nn.Parameter] = {}
        self._slots: dict[int, WorkingSlot] = {}

    def choose(self, private: Iterable[int]) -> None:
        """Give the slots `private` working weights equal to the base's, and no others.

        The module object stays; a slot that was private before is the base's own again.
        """
        for name in self._leaves:
            shared = nn.Parameter(self._source(name), requires_grad=False)
            replace_parameter(self.module, name, shared)
        self._leaves, self._slots = {}, {}
        for i in private:
            piece = self.layout.slots[i].piece
            source = float_of(self._source(piece.parameter))
            leaf = self._leaf(piece.parameter, source)
            self._slots[i] = WorkingSlot(piece, source, leaf, self.layout.dtype)

    def _source(self, name: str) -> Tensor:
        return self._base.model.get_parameter(name).detach()

    def _leaf(self, name: str, source: Tensor) -> nn.Parameter:
        if name not in self._leaves:
            own = source.clone() if self._writable else source
            self._leaves[name] = nn.Parameter(own)
            replace_parameter(self.module, name, self._leaves[name])
        return self._leaves[name]

    def slot(self, index: int) -> WorkingSlot:
        """Return the working weights of slot `index`, which must be private."""
        return self._slots[index]

    def flush(self) -> None:
        """Write staged weights to the parameters."""
        for slot in self._slots.values():
            slot.flush()

    def check_gradients(self) -> None:
        """Raise unless some working parameter received a gradient.

        Raises:
            TrainingError: the loss does not depend on any target.
        """
        if self._leaves and all(leaf.grad is None for leaf in self._leaves.values()):
            raise TrainingError(
                f"none of the {len(self._leaves)} tuned parameters received a gradient "
                f"(first: {next(iter(self._leaves))!r}); does the loss use attachment.module, and "
                "was backward() called before collect()?"
            )

    def drop_gradients(self) -> None:
        """Free the working gradients."""
        for leaf in self._leaves.values():
            leaf.grad = None


class WorkingSlot:
    """Base and working weights of one target as contiguous flat tensors of the compute type.

    Attributes:
        base: `(n,)` the base's values; a view of the base where possible, never written.
        work: `(n,)` the working values; a view of the working parameter where possible.
        direct: True when `work` is such a view and covers the whole parameter.
        leaf: the working parameter.
    """

    def __init__(
        self, piece: Piece, source: Tensor, leaf: nn.Parameter, dtype: torch.dtype
    ) -> None:
        self._piece, self.leaf, self._dtype = piece, leaf, dtype
        inside = piece.of(leaf.detach())
        self._in_place = leaf.dtype == dtype and inside.is_contiguous()
        self.direct = self._in_place and inside.numel() == leaf.numel()
        self.base = piece.of(source).to(dtype).reshape(-1)
        self.work = inside.view(-1) if self._in_place else self.base.clone()

    def flush(self) -> None:
        """Write staged weights to the working parameter, rounded to its type."""
        if not self._in_place:
            self._piece.of(self.leaf.detach()).copy_(self.work.view(self._piece.shape))

    def gradient(self) -> Tensor | None:
        """Return the working gradient `(n,)`, or None; a view of the parameter's where possible."""
        gradient = self.leaf.grad
        if gradient is None:
            return None
        if gradient.layout != torch.strided:
            gradient = gradient.to_dense()
        return self._piece.of(gradient.contiguous()).to(self._dtype).reshape(-1)


def _check_supported(piece: Piece, parameter: Tensor) -> None:
    what = f"target {piece.name!r}"
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise UnsupportedError(f"{what} is not initialised yet; run one batch through the model")
    if parameter.is_meta:
        raise UnsupportedError(f"{what} has no values (meta device); load the base's weights first")
    if parameter.layout != torch.strided or not parameter.dtype.is_floating_point:
        raise UnsupportedError(
            f"{what} is {parameter.dtype} ({parameter.layout}); only strided floating tensors can "
            "be tuned: leave it out of the targets, or load the base without quantisation"
        )
    if parameter.element_size() < 2:
        raise UnsupportedError(f"{what} is {parameter.dtype}; load the base in bfloat16 or wider")
