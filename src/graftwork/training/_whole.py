"""A whole module in training: what comes out of it is a base (pretraining, policies)."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import UnknownNameError
from graftwork.training._trainee import Trainee
from graftwork.tuning import Group, Role, Stage


def by_keyword(module: nn.Module, batch: Batch) -> Any:
    """Call `module` with the batch's inputs as keywords: the way of most transformers."""
    return module(**batch.inputs)


class Whole(Trainee):
    """Every parameter of one module, trained as it is.

    Arguments:
        module: trained in place. Parameters that need no gradient stay frozen.
        stage: its name, learning rate by role, clipping.
        call: (module, batch) -> outputs.
        roles: role -> patterns of parameter names (shell wildcards). None gives every parameter
            the role "values". A parameter that no pattern matches is an error: it would never
            change, and nobody would notice.
        seed: root of every random draw.

    Raises:
        UnknownNameError: a pattern matches nothing, or a parameter has no role.

    Example:
        >>> from torch import nn
        >>> trainee = Whole(nn.Linear(2, 1), Stage("pretrain", 1.0, {"values": 1e-2}))
        >>> [group.role for group in trainee.groups]
        ['values']
    """

    def __init__(
        self,
        module: nn.Module,
        stage: Stage,
        call: Callable[[nn.Module, Batch], Any] = by_keyword,
        *,
        roles: Mapping[Role, Sequence[str]] | None = None,
        seed: int = 0,
    ) -> None:
        self.module, self.stages, self.seed = module, (stage,), seed
        self._call = call
        self._groups = _grouped(module, {"values": ("*",)} if roles is None else roles)

    def __call__(self, batch: Batch) -> Any:
        """Return what `call` gives for the module and a batch."""
        return self._call(self.module, batch)

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The module alone."""
        return (self.module,)

    @property
    def groups(self) -> Sequence[Group]:
        """Parameters by role."""
        return self._groups

    @cached_property
    def origin(self) -> str:
        """Digest of the names and shapes: nothing else stays as it is."""
        lines = [f"{n} {tuple(t.shape)} {t.dtype}\n" for n, t in self.module.state_dict().items()]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers."""
        return {f"module/{name}": t for name, t in self.module.state_dict().items()}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore parameters and buffers, bit for bit."""
        own = {n.removeprefix("module/"): t for n, t in tensors.items() if n.startswith("module/")}
        self.module.load_state_dict(own)

    def prepare(self, progress: float, *, seed: int) -> None:
        """Nothing is drawn: dropout is seeded by the driver."""

    def collect(self) -> None:
        """Gradients are where they belong already."""

    def settled(self) -> AbstractContextManager[nn.Module]:
        """The module is deterministic in evaluation mode."""
        return nullcontext(self.module)

    def advance(self) -> bool:
        """There is one stage."""
        return False


def _grouped(module: nn.Module, roles: Mapping[Role, Sequence[str]]) -> list[Group]:
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    left = dict(named)
    groups = []
    for role, patterns in roles.items():
        chosen = []
        for pattern in patterns:
            hits = fnmatch.filter(named, pattern)
            if not hits:
                raise UnknownNameError("parameter pattern", pattern, named)
            chosen += [left.pop(name) for name in hits if name in left]
        groups.append(Group(role, tuple(chosen)))
    if left:
        raise UnknownNameError("role of the parameter", next(iter(left)), roles)
    return groups
