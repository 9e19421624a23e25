"""IA3: one factor for each output, or input, of a layer."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike, Piece
from graftwork.tuning._adapted import Adapted, Unused
from graftwork.tuning._check import check_choice, check_rates
from graftwork.tuning._layout import Layout, layout_of
from graftwork.tuning._low_rank_plan import View, check_patterns, views_of
from graftwork.tuning._trained import Multiplier, Trained
from graftwork.tuning._tuner import Attachment, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class IA3(Tuner):
    """Infused adapter by inhibiting and amplifying inner activations (Liu et al., 2022, sec. 3.3).

    Each target's outputs are multiplied by learnt factors that start at 1. In the paper targets are
    the key and value projections, and the second layer of each feed-forward block, whose INPUTS are
    multiplied: name those in `feedforward`. In the delta they are scales of the weight; a layer's
    bias is scaled with its outputs, as the activation is what the paper multiplies. (The bias of a
    fused attention kernel, which is no layer's, stays.) Targets of one dimension are left alone.

    Example:
        >>> IA3(feedforward=("*.output.dense.weight",)).stages[0].learning_rates
        {'values': 0.003, 'head': 0.001}
    """

    feedforward: tuple[str, ...] = ()
    """Patterns of the targets whose inputs are multiplied instead of their outputs."""
    unused: Unused = "error"
    """A target that the first step does not consume is an error; "allow" for models that route."""
    values_lr: float = 3e-3
    """Learning rate of the factors: the paper's. Short runs on small models want more."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        check_choice("unused", self.unused, ("error", "allow"))

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("factors", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:  # noqa: ARG002
        """See `Tuner.attach`; nothing is random here.

        Raises:
            ConfigError: no target is a matrix.
            UnknownNameError: a pattern of `feedforward` matches no matrix.
        """
        layout = layout_of(base, targets)
        views = {
            slot.name: (slot.piece, seen)
            for slot, seen in zip(layout.slots, views_of(base, layout), strict=True)
            if min(seen.rows, seen.columns) > 1
        }
        if not views:
            raise ConfigError(
                f"none of the {len(layout.slots)} targets is a matrix (first: "
                f"{layout.names[0]!r}); IA3 multiplies outputs or inputs of layers"
            )
        check_patterns("feedforward", self.feedforward, list(views))
        found: dict[str, Trained] = {}
        for piece, seen in views.values():
            for target in self._scaled(base, layout, piece, seen):
                found[target.name] = target
        return Adapted(base, list(found.values()), unused=self.unused)

    def _scaled(
        self, base: BaseLike, layout: Layout, piece: Piece, seen: View
    ) -> Iterator[Trained]:
        """Yield the target with its factors, and the bias that shares them."""
        inputs = any(fnmatch.fnmatchcase(piece.name, pattern) for pattern in self.feedforward)
        shape = _scale_shape(piece, seen, inputs=inputs)
        ones = torch.ones(shape, dtype=layout.dtype, device=layout.device)
        parameter = nn.Parameter(ones)
        yield Trained(piece, columns=seen.transposed, scale=Multiplier(parameter, shape))
        bias = None if inputs or seen.consumer is None else _bias_of(base, piece, parameter.numel())
        if bias is not None:
            yield Trained(bias, scale=Multiplier(parameter, bias.shape))


def _scale_shape(piece: Piece, seen: View, *, inputs: bool) -> tuple[int, ...]:
    """Return the factors' shape, with 1 where all entries share one."""
    kept: tuple[int, ...] = (1,) if inputs != seen.transposed else (0,)
    if seen.stack:
        kept = (0, 2) if inputs else (0, 1)
    return tuple(size if i in kept else 1 for i, size in enumerate(piece.shape))


def _bias_of(base: BaseLike, piece: Piece, outputs: int) -> Piece | None:
    """Return the bias beside a layer's whole weight, or None."""
    path, _, _ = piece.parameter.rpartition(".")
    bias = f"{path}.bias" if path else "bias"
    if not piece.whole or bias not in dict(base.model.named_parameters(remove_duplicate=False)):
        return None
    found = base.names[bias]
    return found if found.whole and found.numel == outputs else None
