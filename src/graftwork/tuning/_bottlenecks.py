"""Bottleneck adapters: small residual modules after layers of the base."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from graftwork._errors import ConfigError, UnknownNameError, UnsupportedError
from graftwork.deltas import BaseLike, Piece
from graftwork.nn import Bottleneck
from graftwork.tuning._adapted import Adapted, Inside, Unused
from graftwork.tuning._check import check_choice, check_rates
from graftwork.tuning._layout import Layout, layout_of
from graftwork.tuning._seeded import seeded_module
from graftwork.tuning._trained import Trained
from graftwork.tuning._tuner import Attachment, Stage, Tuner

_AFTER_ATTENTION = (
    "*attention.output.dense.weight",
    "*attention.o_proj.weight",
    "*attn.c_proj.weight",
    "*attn.o_proj.weight",
    "*attention.out_lin.weight",
    "*SelfAttention.o.weight",
)
_AFTER_FEEDFORWARD = (
    "*[0-9].output.dense.weight",
    "*mlp.c_proj.weight",
    "*mlp.down_proj.weight",
    "*mlp.fc2.weight",
    "*[0-9].fc2.weight",
    "*ffn.lin2.weight",
    "*DenseReluDense.wo.weight",
    "*linear2.weight",
)
KNOWN_PLACES: Mapping[str, tuple[str, ...]] = {
    "houlsby": _AFTER_ATTENTION + _AFTER_FEEDFORWARD,
    "pfeiffer": _AFTER_FEEDFORWARD,
}
"""Name -> patterns of the weights of the layers that are followed, under the names that usual
transformers have. They are only names: any other model states its `places`."""


@dataclass(frozen=True, kw_only=True)
class Bottlenecks(Tuner):
    """Put `x + up(gelu(down(x)))` after layers of the base (Houlsby et al., 2019, section 2).

    `where="houlsby"` follows the last layer of each attention and of each feed-forward block;
    "pfeiffer" (Pfeiffer et al., 2021) only that of each feed-forward block, at the same point,
    before the residual sum. `places` takes patterns of weights instead. Only layers whose weight is
    a target are followed. `up` starts at 0, so training starts at the base. The modules are ports
    of the delta that `view` runs; they cannot be merged into weights.

    Example:
        >>> Bottlenecks(reduction=8).stages[0].learning_rates
        {'values': 0.001, 'head': 0.001}
    """

    where: Literal["houlsby", "pfeiffer"] = "pfeiffer"
    """After which layers: half of Houlsby's modules do as well (Pfeiffer et al.)."""
    places: tuple[str, ...] = ()
    """Patterns of weights whose layers are followed; stand for `where` when given."""
    reduction: int = 16
    """Width of the layer over the width of the bottleneck (Pfeiffer et al.); at least 1 unit."""
    activation: Literal["gelu", "relu", "tanh"] = "gelu"
    """Between the projections."""
    norms: bool = False
    """Whether targets of one dimension that norms hold train too, as Houlsby et al. do."""
    unused: Unused = "error"
    """A module that the first step does not run is an error; "allow" for models that route."""
    values_lr: float = 1e-3
    """Learning rate of the modules; Houlsby et al. search 3e-5 to 3e-3."""
    head_lr: float = 1e-3
    """Learning rate of the head."""

    def __post_init__(self) -> None:
        check_rates(values_lr=self.values_lr, head_lr=self.head_lr)
        check_choice("where", self.where, KNOWN_PLACES)
        check_choice("activation", self.activation, ("gelu", "relu", "tanh"))
        check_choice("unused", self.unused, ("error", "allow"))
        if self.reduction < 1:
            raise ConfigError(f"reduction: 1 or more, not {self.reduction}")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """One stage."""
        return (Stage("bottlenecks", 1.0, {"values": self.values_lr, "head": self.head_lr}),)

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws the projections.

        Raises:
            UnknownNameError: a pattern of `places` matches no target.
            UnsupportedError: no target has a known name, or a layer at a place has no width.
        """
        layout = layout_of(base, targets)
        inside = {}
        for name in self._followed(layout.names):
            width = _width_of(base, base.names[name])
            size = max(1, width // self.reduction)
            config: dict[str, Any] = {"width": width, "size": size, "activation": self.activation}
            module = seeded_module(partial(Bottleneck, **config), seed, name)
            inside[f"bottleneck:{name}"] = Inside(module.to(layout.dtype), "bottleneck", config)
        norms = list(_norms(base, layout)) if self.norms else []
        return Adapted(base, norms, inside=inside, unused=self.unused)

    def _followed(self, names: Sequence[str]) -> list[str]:
        patterns = self.places or KNOWN_PLACES[self.where]
        hits = {p: [n for n in names if fnmatch.fnmatchcase(n, p)] for p in patterns}
        for pattern, found in hits.items():
            if self.places and not found:
                raise UnknownNameError("target pattern in places:", pattern, names)
        followed = {name for found in hits.values() for name in found}
        if not followed:
            raise UnsupportedError(
                f"no target has a name that {self.where!r} knows (first: {names[0]!r}): state "
                "`places`, patterns of the weights whose layers are to be followed"
            )
        return [name for name in names if name in followed]


def _width_of(base: BaseLike, piece: Piece) -> int:
    """Return the width of what the layer that holds a tensor gives."""
    layer = base.model.get_submodule(piece.parameter.rpartition(".")[0])
    for attribute in ("out_features", "nf", "embedding_dim"):
        width = getattr(layer, attribute, None)
        if isinstance(width, int):
            return width
    shape = getattr(layer, "normalized_shape", None)
    if shape:
        return int(shape[-1])
    raise UnsupportedError(
        f"a bottleneck cannot follow the {type(layer).__name__} that holds {piece.name!r}: it "
        "needs a layer whose outputs are the last dimension (linear, embedding, norm)"
    )


def _norms(base: BaseLike, layout: Layout) -> Iterator[Trained]:
    """Yield dense changes of the vectors that norms hold."""
    for slot in layout.slots:
        layer = base.model.get_submodule(slot.piece.parameter.rpartition(".")[0])
        if len(slot.piece.shape) == 1 and "norm" in type(layer).__name__.lower():
            zeros = torch.zeros(slot.piece.shape, dtype=layout.dtype, device=layout.device)
            yield Trained(slot.piece, dense=nn.Parameter(zeros))
