"""The gate stage of diff pruning: dense values under gates that learn which of them matter."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from graftwork.deltas import BaseLike, Update
from graftwork.tuning._extract import sparse_updates
from graftwork.tuning._fixed import FixedMask
from graftwork.tuning._groups import Groups
from graftwork.tuning._hard_concrete import HardConcrete
from graftwork.tuning._layout import Layout, Working
from graftwork.tuning._penalty import Penalty
from graftwork.tuning._project import project, top_k
from graftwork.tuning._state import restore
from graftwork.tuning._steer import Steering
from graftwork.tuning._tiles import GateTiles
from graftwork.tuning._tuner import Attachment, Group, StoredType
from graftwork.tuning._uniform import UniformStream
from graftwork.tuning._warnings import TuningWarning

Start = Literal["gated", "dense", "zero"]
STARTS: tuple[Start, ...] = ("gated", "dense", "zero")
DrawMode = Literal["sampled", "deterministic", "expected"]
DRAW_MODES: tuple[DrawMode, ...] = ("sampled", "deterministic", "expected")

_STEPS_ENOUGH = 150
_DENSITY_TOLERATED = 5.0


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What a gate stage needs beside the base and the layout.

    Attributes:
        kept: entries that the projection keeps.
        groups: groups of the gates; None without structure.
        gate: the gates' distribution.
        alpha: starting logit of every gate.
        steering: finds the shift of the logits; None with a penalty.
        penalty: pushes the logits down; None with steering.
        shift_groups: whether the shift acts on group gates too.
        pressure: whether gates below the price of density are pressed shut while steered.
        draw: how gates are drawn for the projection.
        start: where the fixed-mask stage starts.
        seed: seeds the draw for the projection.
    """

    kept: int
    groups: Groups | None
    gate: HardConcrete
    alpha: float
    steering: Steering | None
    penalty: Penalty | None
    shift_groups: bool
    pressure: bool
    draw: DrawMode
    start: Start
    seed: int


class GateStage(Attachment):
    """delta_i = z_i w_i, or z_i z_g(i) w_i with groups (Guo et al. 2020, section 3).

    Arguments:
        base: the frozen base.
        layout: the flat space over the gated targets.
        settings: see `GateSettings`.
        fixed: makes the fixed-mask stage from positions and starting values.
    """

    def __init__(
        self,
        base: BaseLike,
        layout: Layout,
        settings: GateSettings,
        fixed: Callable[[Tensor, Tensor], FixedMask],
    ) -> None:
        self._layout, self._settings, self._fixed = layout, settings, fixed
        self._working = Working(base, layout)
        self._working.choose(range(len(layout.slots)))
        self.module = self._working.module
        d, g = layout.numel, 0 if settings.groups is None else settings.groups.count
        self._flat = torch.zeros(d, dtype=layout.dtype, device=layout.device)
        self._alpha = nn.Parameter(self._flat.new_full((d,), settings.alpha))
        self._group_alpha = nn.Parameter(self._flat.new_full((g,), settings.alpha))
        self._values = [
            nn.Parameter(self._flat[slot.start : slot.stop].view(slot.piece.shape))
            for slot in layout.slots
        ]
        self._shift = torch.zeros(1, dtype=torch.float64)
        self._steps = torch.zeros(1, dtype=torch.int64)
        self._pressed, self._price = False, 0.0
        self._tiles = GateTiles(
            layout,
            self._working,
            self._flat,
            self._alpha.detach(),
            settings.groups,
            settings.gate,
        )

    def groups(self) -> Sequence[Group]:
        """Return one tensor of values for each target, and the logits of gates and group gates."""
        grouped = (self._group_alpha,) if self._group_alpha.numel() else ()
        return (Group("values", tuple(self._values)), Group("gates", (self._alpha, *grouped)))

    @torch.no_grad()
    def prepare(self, progress: float, *, seed: int) -> None:
        """Find the shift for `progress`, draw every gate once, write the working weights."""
        self._steer(progress)
        # a shift of exactly 0 means that the path still holds density 1
        self._pressed = self._settings.pressure and float(self._shift) != 0.0
        self._draw(UniformStream(seed, self._layout.device), count_open=self._pressed)

    def _steer(self, progress: float) -> None:
        steering = self._settings.steering
        if steering is not None:
            alpha, groups = self._alpha.detach(), self._group_alpha.detach()
            self._shift.fill_(steering.shift(progress, alpha, self._flat, groups))

    def _shifted_groups(self) -> Tensor:
        groups = self._group_alpha.detach()
        return groups - float(self._shift) if self._settings.shift_groups else groups

    def _draw(self, stream: UniformStream | None, *, count_open: bool = False) -> None:
        groups = self._shifted_groups()
        self._tiles.draw(float(self._shift), groups, stream, count_open=count_open)

    @torch.no_grad()
    def collect(self) -> None:
        """Set the gradients of values and gates in closed form, the penalty's among them."""
        self._working.check_gradients()
        values, group_gates = self._tiles.collect(sum_gains=self._pressed)
        self._working.drop_gradients()
        for parameter, gradient in zip(self._values, values, strict=True):
            parameter.grad = None if gradient is None else gradient.view(parameter.shape)
        groups, settings = self._shifted_groups(), self._settings
        group_gradient = group_gates * settings.gate.slope(self._tiles.group_gates)
        if settings.penalty is not None:
            settings.penalty.add_gradient(
                self._alpha.detach(), groups, self._tiles.gates, group_gradient
            )
        if self._pressed:
            self._price = self._tiles.press(
                float(self._shift), groups, group_gradient, shift_groups=settings.shift_groups
            )
        self._alpha.grad = self._tiles.gates
        if self._group_alpha.numel():
            self._group_alpha.grad = group_gradient
        self._steps += 1

    @contextmanager
    def settled(self) -> Iterator[nn.Module]:
        """Return the module under deterministic gates (u = 1/2)."""
        with torch.no_grad():
            self._draw(None)
        yield self.module

    @torch.no_grad()
    def advance(self) -> Attachment | None:
        """Draw the gates once, keep the k largest |delta|, return the fixed-mask stage.

        Warns:
            TuningWarning: stage 1 was too short for its gates, or pruned below the target.
        """
        settings = self._settings
        self._steer(1.0)
        sampled = settings.draw == "sampled"
        self._draw(UniformStream(settings.seed, self._layout.device) if sampled else None)
        delta = self._tiles.difference()
        if settings.draw == "expected":
            positions = top_k(self._expected(), settings.kept)
        else:
            self._warn(int(delta.count_nonzero()))
            positions = project(delta, settings.kept, self._expected())
        start = {"gated": delta, "dense": self._flat, "zero": torch.zeros_like(delta)}
        return self._fixed(positions, start[settings.start][positions])

    def _expected(self) -> Tensor:
        """Return `(d,)` |w| P(z > 0) P(z_g > 0), which ranks what the draw shut."""
        gate, shift = self._settings.gate, float(self._shift)
        expected = gate.on(self._alpha.detach() - shift).mul_(self._flat.abs())
        groups = self._settings.groups
        if groups is not None:
            group_on = gate.on(self._shifted_groups())
            for slot, own in zip(self._layout.slots, groups.slots, strict=True):
                part = expected[slot.start : slot.stop].view(own.rows, -1)
                part.mul_(group_on[own.first : own.first + own.rows, None])
        return expected

    def _warn(self, nonzero: int) -> None:
        steps, kept, d = int(self._steps), self._settings.kept, self._layout.numel
        if steps == 0:  # stepping over the stage to resume a later one
            return
        what = f"after {steps} gate steps {nonzero} of {d} entries ({nonzero / d:.2%}) are nonzero"
        if nonzero > _DENSITY_TOLERATED * kept:
            remedy = (
                "run the stage to its end (prepare() with progress up to 1)"
                if self._settings.steering is not None
                else "raise lambda_l0, the gates' learning rate or the steps"
            )
            warnings.warn(
                f"{what}, more than {_DENSITY_TOLERATED:g} times the {kept} to keep: the "
                f"projection cuts off most of what was learnt; {remedy}",
                TuningWarning,
                stacklevel=3,
            )
        elif self._settings.penalty is not None and steps < _STEPS_ENOUGH:
            warnings.warn(
                f"{what}; gates under a fixed lambda want at least {_STEPS_ENOUGH} steps: they "
                "first crawl and then fall by their learning rate a step",
                TuningWarning,
                stacklevel=3,
            )
        if nonzero < kept:
            warnings.warn(
                f"{what}, fewer than the {kept} to keep: the gates shut more than was wanted, and "
                "the rest is filled up by expected size; lower lambda_l0, or draw='sampled'",
                TuningWarning,
                stacklevel=3,
            )

    @torch.no_grad()
    def extract(self, stored: StoredType = "float16") -> dict[str, Update]:
        """Return the delta of the deterministic gates as it stands, before any projection."""
        self._draw(None)
        delta = self._tiles.difference()
        positions = delta.nonzero().squeeze(1)
        return sparse_updates(self._layout, positions, delta[positions], stored)

    def tensors(self) -> dict[str, Tensor]:
        """Return values, logits, shift and step count."""
        return {
            "values": self._flat,
            "gates": self._alpha.detach(),
            "group_gates": self._group_alpha.detach(),
            "shift": self._shift,
            "steps": self._steps,
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore values, logits, shift and step count."""
        restore(self.tensors(), tensors)
        if self._settings.steering is not None:
            self._settings.steering.restart()

    def report(self) -> dict[str, float]:
        """Return the expected density (of touched entries), the shift, and the open groups."""
        settings = self._settings
        scalars = {"shift": float(self._shift)}
        if settings.steering is not None:
            alpha, groups = self._alpha.detach(), self._group_alpha.detach()
            density, touched = settings.steering.measure(
                alpha, self._flat, groups, scalars["shift"]
            )
            scalars |= {"density": density, "touched": touched, "price": self._price}
        if self._group_alpha.numel():
            opened = self._tiles.group_gates.count_nonzero()
            scalars["open_groups"] = float(opened) / self._group_alpha.numel()
        return scalars
