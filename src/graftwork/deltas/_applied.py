"""Which modules carry a delta in place: at most one each."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import Tensor, nn

from graftwork._errors import DeltaError


@dataclass(frozen=True, slots=True)
class Saved:
    """Overwritten values of one parameter.

    Attributes:
        parameter: where they belong; its flat view, or a strided part of it.
        positions: `(k,)` int64 flat positions; None when all of `parameter` was overwritten.
        values: `(k,)`, or of `parameter`'s shape.
    """

    parameter: Tensor
    positions: Tensor | None
    values: Tensor

    def restore(self) -> None:
        """Write the values back, bit for bit; call it without gradients."""
        if self.positions is None:
            self.parameter.copy_(self.values)
        else:
            self.parameter.scatter_(0, self.positions, self.values)


# Entries hold tensors only, never the module, so that an entry ends with its module.
CARRIED: weakref.WeakKeyDictionary[nn.Module, list[Saved]] = weakref.WeakKeyDictionary()


def refuse_applied(model: nn.Module) -> None:
    """Raise where `model` carries a delta in place.

    Raises:
        DeltaError: it does.
    """
    if model in CARRIED:
        raise DeltaError(
            f"this {type(model).__name__} carries a delta applied in place; detach it first "
            "(Applied.detach(), or graftwork.deltas.detach(base) where the handle is lost)"
        )
