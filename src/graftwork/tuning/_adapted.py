"""The stage of every tuner that trains terms of the equation: low-rank, sparse, dense, scale.

A weight that one known layer consumes runs as a branch (`_branch.py`). Every other one is computed
when the forward reads it, `W'` with a graph, so that fused attention, recurrent kernels and bare
parameters of any module are adapted alike. Nothing of the base is copied or written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from graftwork._errors import DeltaError, TrainingError, UnsupportedError, UnusedTensorError
from graftwork.deltas import (
    BaseLike,
    Delta,
    Piece,
    Port,
    Update,
    all_places,
    bind,
    build_ports,
    float_of,
    mount,
    port_of,
    shared_copy,
)
from graftwork.tuning._branch import BRANCH, Branch, can_branch, consumer_of
from graftwork.tuning._lazy import lazy_weight
from graftwork.tuning._state import restore
from graftwork.tuning._trained import Trained
from graftwork.tuning._tuner import Attachment, Group, Role, StoredType

Unused = Literal["error", "allow"]


@dataclass(frozen=True, slots=True, eq=False)
class Inside:
    """A module that is trained at a place inside the base.

    Attributes:
        module: of a kind that `graftwork.deltas.mount` knows.
        kind: key of `graftwork.deltas.PORT_KINDS`.
        config: JSON arguments that rebuild it.
    """

    module: nn.Module
    kind: str
    config: Mapping[str, Any]


class _Assembled(torch.autograd.Function):
    """A parameter with some of its pieces replaced: one copy, however many pieces there are."""

    @staticmethod
    def forward(ctx: Any, parameter: Tensor, pieces: Sequence[Piece], *parts: Tensor) -> Tensor:
        """Return the frozen parameter with `parts` in place of `pieces`."""
        ctx.pieces = pieces
        out = parameter.detach().clone(memory_format=torch.contiguous_format)
        for piece, part in zip(pieces, parts, strict=True):
            piece.of(out).copy_(part)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return each part's own piece of the gradient; the parameter is frozen."""
        gradient = gradient.contiguous()
        return (None, None, *(piece.of(gradient) for piece in ctx.pieces))


class _Slot:
    """One weight with trained terms, at one of the places that hold it."""

    def __init__(
        self,
        module: nn.Module,
        targets: Sequence[Trained],
        watched: tuple[set[str], set[str]],
        dropout: float,
    ) -> None:
        self._module, self._targets = module, targets
        self._pending, self._blind = watched
        self._dropout, self.runs_as_branch = dropout, False
        self.name = targets[0].piece.parameter

    def compute(self, parameter: Tensor | None) -> Tensor:
        """Return the adapted weight; of a branch a stand-in that is computed on demand."""
        if parameter is None:
            raise UnsupportedError(f"parameter {self.name!r} was removed from the module")
        if not self.runs_as_branch:
            return self.adapted(parameter)
        weight = parameter
        return lazy_weight(weight, lambda: self._asked(weight))

    def read(self) -> None:
        """Note that the forward read the weight; of a branch only what is computed counts."""
        if not self.runs_as_branch:
            self.consumed()

    def consumed(self) -> None:
        """Note that the forward used the weight."""
        if self._pending:
            self._pending.difference_update(target.name for target in self._targets)

    def _asked(self, parameter: Tensor) -> Tensor:
        if self._dropout and self._module.training:
            raise UnsupportedError(
                f"{self.name!r} is read by a kernel instead of run by its layer, so dropout on its "
                "branch has no place: set dropout to 0, or leave it out of the targets"
            )
        if self._module.training and not torch.is_grad_enabled():
            # a function with a backward of its own has no graph to send gradients through
            self._blind.add(self.name)
        self.consumed()
        return self.adapted(parameter)

    def adapted(self, parameter: Tensor) -> Tensor:
        """Return `W'` with a graph, in the type of the parameter."""
        first, parameter = self._targets[0], float_of(parameter)
        if first.piece.whole:
            return first.adapted(parameter).to(parameter.dtype)
        parts = [t.adapted(t.piece.of(parameter)).to(parameter.dtype) for t in self._targets]
        pieces = [target.piece for target in self._targets]
        out: Tensor = _Assembled.apply(parameter, pieces, *parts)  # type: ignore[no-untyped-call]
        return out


class Adapted(Attachment):
    """Trains the terms of some targets; everything else is the base's own.

    Arguments:
        base: the frozen base.
        targets: what is trained of each canonical tensor.
        dropout: chance that an input of a low-rank branch is dropped in training.
        unused: "error": a target that the forward has not consumed after the first step is an error
            (law 7). "allow": for models that route.
        merge: roles that train at one rate and are one group.
        inside: modules trained at places inside the base, by port name.

    Raises:
        UnsupportedError: dropout for a target that no layer runs as a branch.
    """

    def __init__(
        self,
        base: BaseLike,
        targets: Sequence[Trained],
        *,
        dropout: float = 0.0,
        unused: Unused = "error",
        merge: Mapping[Role, Role] | None = None,
        inside: Mapping[str, Inside] | None = None,
    ) -> None:
        self._base, self._targets, self._inside = base, tuple(targets), dict(inside or {})
        self._unused, self._dropout, self._merge = unused, dropout, dict(merge or {})
        self._pending = {*(target.name for target in targets), *self._inside}
        self._all = frozenset(self._pending)
        self._blind: set[str] = set()
        self.module = shared_copy(base.model)
        self._branches = 0
        self._bind()
        self._mount()

    def _bind(self) -> None:
        parameters: dict[str, list[Trained]] = {}
        for target in self._targets:
            parameters.setdefault(target.piece.parameter, []).append(target)
        slots: dict[nn.Module, dict[str, _Slot]] = {}
        forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        for name, places in all_places(self.module, parameters).items():
            held = parameters[name]
            consumers = [consumer_of(module, leaf) for module, leaf in places]
            runs = all(c is not None and can_branch(c, held) for c in consumers)
            if self._dropout and not runs and any(target.blocks for target in held):
                raise UnsupportedError(
                    f"dropout acts on the input of a branch, but {name!r} is consumed by "
                    f"{type(places[0][0]).__name__}, which runs none: set dropout to 0, or leave "
                    "it out of the targets"
                )
            for (module, leaf), consumer in zip(places, consumers, strict=True):
                slot = _Slot(module, held, (self._pending, self._blind), self._dropout)
                slots.setdefault(module, {})[leaf] = slot
                if runs and consumer is not None:
                    slot.runs_as_branch = True
                    parts = tuple((t, _offset(t)) for t in held)
                    vars(module)[BRANCH] = Branch(parts, slot.consumed, self._dropout)
                    forwards[module] = consumer.forward
            self._branches += runs
        for module, bound in slots.items():
            bind(module, bound, forwards.get(module))

    def _mount(self) -> None:
        device = next((p.device for p in self.module.parameters()), None)
        for name, held in self._inside.items():
            held.module.to(device).register_forward_hook(
                lambda *_, name=name: self._pending.discard(name)
            )
            mount(self._base, self.module, name, held.kind, held.module)

    def groups(self) -> Sequence[Group]:
        """Return the trained tensors by role; one that several targets share counts once."""
        roles: dict[Role, dict[int, nn.Parameter]] = {}
        for target in self._targets:
            for role, parameter in target.roles():
                kept = roles.setdefault(self._merge.get(role, role), {})
                kept.setdefault(id(parameter), parameter)
        for held in self._inside.values():
            kept = roles.setdefault("values", {})
            kept.update({id(parameter): parameter for parameter in held.module.parameters()})
        return tuple(Group(role, tuple(kept.values())) for role, kept in roles.items())

    def prepare(self, progress: float, *, seed: int) -> None:  # noqa: ARG002  (nothing is drawn)
        """Note the present norms, where a scale is relative to them."""
        self._blind.clear()
        self._refresh()

    def _refresh(self) -> None:
        for target in self._targets:
            target.refresh(self._frozen(target.piece))

    def _frozen(self, piece: Piece) -> Tensor:
        return piece.of(self._base.model.get_parameter(piece.parameter).detach())

    def collect(self) -> None:
        """Check that the forward consumed every target; gradients are where they belong.

        Raises:
            TrainingError: the loss does not depend on any target.
            UnusedTensorError: a target was not consumed, or was read without gradients.
        """
        if self._blind:
            raise UnusedTensorError(
                f"{min(self._blind)!r} was read without gradients in a training step, by a "
                "function with a backward pass of its own or under no_grad, so what is tuned of it "
                "would not learn from that: leave it out of the targets"
            )
        training = [parameter for parameter in self if parameter.requires_grad]
        if training and all(parameter.grad is None for parameter in training):
            names = [*(target.name for target in self._targets), *self._inside]
            raise TrainingError(
                f"none of the {len(names)} tuned tensors received a gradient (first: "
                f"{names[0]!r}); does the loss use attachment.module, and was "
                "backward() called before collect()?"
            )
        self._check_consumed()

    def _check_consumed(self) -> None:
        if self._unused == "allow" or not self._pending:
            return
        shown = ", ".join(map(repr, sorted(self._pending)[:5]))
        more = ", ..." if len(self._pending) > 5 else ""
        raise UnusedTensorError(
            f"{len(self._pending)} targets were not consumed by the forward: {shown}{more}; the "
            "module bypasses them, or this input does not reach them: leave them out of the "
            "targets, or set the tuner's unused to 'allow' where the model routes"
        )

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module; in eval mode it is as it would be extracted now, unrounded.

        Raises:
            UnusedTensorError: at the end, where the module ran but did not consume every target.
        """
        self._refresh()
        before = set(self._pending)
        self._pending.update(self._all)
        yield self.module
        if self._pending == self._all:  # the module was not run
            self._pending.intersection_update(before)
        self._check_consumed()

    def start_from(self, updates: Mapping[str, Update], ports: Mapping[str, Port]) -> None:
        """See `Attachment.start_from`."""
        targets = {target.name: target for target in self._targets}
        for name, update in updates.items():
            piece = self._base.names[name]
            if piece.name not in targets:
                raise DeltaError(f"the delta changes {name!r}, which is no target of this tuner")
            try:
                targets[piece.name].start_from(update, self._frozen(piece))
            except DeltaError as error:
                raise DeltaError(f"cannot go on from the delta at {name!r}: {error}") from None
        built = build_ports(Delta({}, ports))
        for name, module in built.items():
            held = self._inside.get(name)
            if held is None or dict(ports[name].config) != dict(held.config):
                raise DeltaError(
                    f"the delta has a module {name!r} ({dict(ports[name].config)}), which is none "
                    "of this tuner's; use the configuration it was trained with"
                )
            held.module.load_state_dict(module.state_dict())
        self._refresh()

    def advance(self) -> Attachment | None:
        """Return None: this is the only stage."""
        return None

    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        """Return one update for each target that changed."""
        found = {t.name: t.update(self._frozen(t.piece), stored) for t in self._targets}
        return {name: update for name, update in found.items() if update is not None}

    def ports(self, stored: StoredType = "float16") -> dict[str, Port]:
        """Return the modules inside the base."""
        return {
            name: port_of(held.module, held.kind, held.config, stored)
            for name, held in self._inside.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return all trained state, "<target or port>/<name>"."""
        state = {f"{t.name}/{key}": v for t in self._targets for key, v in t.tensors().items()}
        for name, held in self._inside.items():
            state |= {f"{name}/{key}": v for key, v in held.module.state_dict().items()}
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore it."""
        restore(self.tensors(), tensors)
        self._refresh()

    def report(self) -> dict[str, float]:
        """Return how many values are trained, of how many tensors, how many of them as branches."""
        return {
            "values": float(sum(parameter.numel() for parameter in self)),
            "tensors": float(len(self._targets)),
            "branches": float(self._branches),
        } | ({"modules": float(len(self._inside))} if self._inside else {})


def _offset(target: Trained) -> int:
    """Return the first row of a piece inside its parameter."""
    piece = target.piece
    return 0 if piece.whole else piece.offset // piece.shape[1]
