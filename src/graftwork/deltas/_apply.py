"""`apply(base, delta)`: adapt a base in place, and give every bit back at `detach`. Opt in."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, UnsupportedError
from graftwork.deltas._applied import CARRIED, Saved, refuse_applied
from graftwork.deltas._delta import BaseLike, Delta
from graftwork.deltas._int8 import is_int8
from graftwork.deltas._mounts import place_of
from graftwork.deltas._names import Piece
from graftwork.deltas._plan import Part, Plan, make_plan
from graftwork.deltas._terms import Sparse, values_of
from graftwork.deltas._tree import parameter_at


class Applied:
    """A delta that is in place on a base. A context manager that detaches at its end.

    Args:
        model: the base's module, adapted until `detach`.
        saved: the values that were overwritten.
    """

    def __init__(self, model: nn.Module, saved: Sequence[Saved]) -> None:
        self.model = model
        self._saved = saved

    @property
    def attached(self) -> bool:
        """Whether the delta is still in place."""
        return CARRIED.get(self.model) is self._saved

    @property
    def saved_bytes(self) -> int:
        """Bytes kept for `detach`: the overwritten values and, where sparse, their positions."""
        tensors = [t for s in self._saved for t in (s.values, s.positions) if t is not None]
        return sum(t.numel() * t.element_size() for t in tensors)

    def detach(self) -> None:
        """Write the overwritten values back: the base has its bits again.

        Raises:
            DeltaError: already detached; a second detach would hide that the order is confused.
        """
        if not self.attached:
            raise DeltaError("this delta is already detached")
        _restore(self.model)

    def __enter__(self) -> nn.Module:
        return self.model

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.attached:
            self.detach()


def apply(base: BaseLike, delta: Delta) -> Applied:
    """Adapt `base.model` in place and keep only what is overwritten.

    Where a tensor changes at k positions, k values are kept; a dense, low-rank or scaled one is
    kept whole. The adapted bits are those of `view`. Writes are seen by autograd: a backward pass
    through a forward from before `apply` or `detach` raises instead of using wrong weights.

    Args:
        base: a base; it can carry one delta at a time.
        delta: updates to put in; a head is not part of the module, see `build_ports`.

    Returns:
        A handle with `detach()`. As a context manager it gives the module and detaches at the end,
        also after an exception. Not for concurrent callers: use `view` there.

    Raises:
        FingerprintError: the delta was made for another base.
        DeltaError: an update does not fit, or the base carries another delta.
        UnsupportedError: a touched parameter cannot be supported, or a port is inside the base.
    """
    refuse_applied(base.model)
    mounted = [name for name, port in delta.ports.items() if place_of(name, port.kind)]
    if mounted:
        raise UnsupportedError(
            f"port {mounted[0]!r} is a module inside the base, which no change of weights in place "
            "can be; use view(base, delta)"
        )
    plan = make_plan(base, [(delta, 1.0)])
    _refuse_int8(base.model, plan)
    saved: list[Saved] = []
    CARRIED[base.model] = saved
    try:
        with torch.no_grad():
            for name, parts in plan.items():
                parameter = parameter_at(base.model, name)
                for part in parts:
                    _write(parameter, part, saved)
    except BaseException:
        _restore(base.model)
        raise
    return Applied(base.model, saved)


def detach(base: BaseLike) -> None:
    """Detach whatever delta `base` carries in place, where the handle of `apply` is lost.

    Raises:
        DeltaError: it carries none.
    """
    if base.model not in CARRIED:
        raise DeltaError(f"this {type(base.model).__name__} carries no delta in place")
    _restore(base.model)


@torch.no_grad()
def _restore(model: nn.Module) -> None:
    for saved in reversed(CARRIED[model]):
        saved.restore()
    del CARRIED[model]


def _refuse_int8(model: nn.Module, plan: Plan) -> None:
    held = [name for name in plan if is_int8(parameter_at(model, name))]
    if held:
        raise UnsupportedError(
            f"parameter {held[0]!r} is held in 8 bits, which have no room for a delta "
            f"({len(held)} such parameters); use view(base, delta), which computes the adapted "
            "weights, or load the base without quantise and move the delta there by rebase"
        )


def _write(parameter: Tensor, part: Part, saved: list[Saved]) -> None:
    """Overwrite one canonical tensor, remembering the old values first."""
    update = part.terms[0][0]
    if update.terms == ("sparse",) and update.sparse is not None:
        _write_sparse(parameter.detach().view(-1), part.piece, update.sparse, saved)
        return
    target = part.piece.of(parameter.detach())
    fresh = part.adapted(target).to(target.dtype)
    saved.append(Saved(target, None, target.clone()))
    target.copy_(fresh)


def _write_sparse(flat: Tensor, piece: Piece, sparse: Sparse, saved: list[Saved]) -> None:
    positions = _inside_parameter(piece, sparse.positions).to(flat.device)
    old = flat.index_select(0, positions)
    compute = torch.float64 if flat.dtype == torch.float64 else torch.float32
    fresh = old.to(compute).add(values_of(sparse.values).to(flat.device, compute))
    saved.append(Saved(flat, positions, old))
    # positions are distinct, so scatter is exact, and it is faster than index_copy
    flat.scatter_(0, positions, fresh.to(flat.dtype))


def _inside_parameter(piece: Piece, positions: Tensor) -> Tensor:
    """Return flat positions of a canonical tensor as flat positions of its parameter."""
    if piece.whole:
        return positions
    out = torch.full_like(positions, piece.offset)
    for size, stride in zip(reversed(piece.shape), reversed(piece.strides), strict=True):
        out += positions % size * stride
        positions = positions // size
    return out
