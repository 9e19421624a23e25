"""Diff pruning: learn which few weights to change, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike
from graftwork.tuning._check import check_choice, check_kept, check_rates, check_share
from graftwork.tuning._fixed import FixedMask
from graftwork.tuning._gate_stage import (
    DRAW_MODES,
    STARTS,
    DrawMode,
    GateSettings,
    GateStage,
    Start,
)
from graftwork.tuning._groups import GROUP_RULES, GroupOf, GroupRule, Groups, groups_of
from graftwork.tuning._hard_concrete import HardConcrete
from graftwork.tuning._layout import Layout, kept_count, layout_of
from graftwork.tuning._penalty import PENALTY_FORMS, Penalty, PenaltyForm
from graftwork.tuning._steer import DensityPath, Steering
from graftwork.tuning._tuner import Attachment, Role, Stage, Tuner


@dataclass(frozen=True, kw_only=True)
class DiffPruning(Tuner):
    """Diff pruning (Guo, Rush, Kim, 2020, arXiv 2012.07463).

    Stage 1 trains a dense difference w under hard-concrete gates, delta = z z_g w; the gates are
    then drawn once and the k = floor(share * d) largest |delta| kept, over all targets together;
    stage 2 trains the kept values.

    We deviate in the default way of closing gates. The paper adds lambda * E||delta||_0 to the
    loss, and lambda must be found anew for each size of network and number of steps: too small
    prunes nothing, too large closes all gates before anything is learnt. Here one shift, the same
    for all logits, is found before each step so that the expected density follows a path (1 for
    the first part of the stage, then exponentially down); the task's loss alone decides WHICH gates
    stay open. `density="penalty"` gives the paper's way.

    Example:
        >>> tuner = DiffPruning(share=0.005)
        >>> [(stage.name, round(stage.share, 2)) for stage in tuner.stages]
        [('gates', 0.7), ('fixed mask', 0.3)]
        >>> tuner.stages[0].learning_rates
        {'values': 0.0005, 'gates': 0.05, 'head': 0.001}
    """

    share: float = 0.005
    """Part of the targets' entries that is kept."""
    groups: GroupRule | GroupOf | None = "tensor"
    """Weights that share a second gate: "tensor" (the paper's structured variant), "neuron",
    "layer", or a callable from a canonical name to a group id. None for the unstructured one."""
    gates: tuple[str, ...] = ("*",)
    """Patterns of the targets that get gates and values. Other targets do not change but count in
    `share`. Memory is 8 d numbers for d gated entries (16 with Adam), so leave big tensors out."""
    density: Literal["steered", "penalty"] = "steered"
    """How gates close: along a path of densities, or by the paper's penalty with `lambda_l0`."""
    hold: float = 0.4
    """Steered: part of stage 1 in which all gates stay open."""
    arrive: float = 0.9
    """Steered: part of stage 1 at which the density is down to `overshoot` times the share."""
    overshoot: float = 2.0
    """Steered: last expected density, in shares; what is too much the projection cuts off."""
    shift_groups: bool = True
    """Steered: whether group gates are shifted as well."""
    pressure: bool = True
    """Steered: whether gates that gain less than the going price of density are pressed shut."""
    penalty: PenaltyForm = "product"
    """Penalty over groups: "product" is the paper's formula, "additive" the authors' program."""
    lambda_l0: float | None = None
    """Penalty for each entry expected to be nonzero; must be set with density="penalty". The paper
    has 1.25e-7 for 3.4e8 entries; keep lambda * entries between 5 and 50."""
    gate_init: float = 5.0
    """First logit of every gate: 99.3 % are open."""
    low: float = -1.5
    """Lower end of the stretched gates."""
    high: float = 1.5
    """Upper end of the stretched gates."""
    draw: DrawMode = "sampled"
    """Gates for the projection: drawn once (the paper found one sample as good as several) or the
    deterministic ones (u = 1/2), which can be all shut while the expected density is right."""
    start: Start = "gated"
    """Where the kept values start in stage 2: z w, w ("dense": the authors' program) or 0."""
    gates_share: float = 0.7
    """Part of the steps for stage 1."""
    values_lr: float = 5e-4
    """Learning rate of w in stage 1, about that of full fine-tuning."""
    gates_lr: float | None = None
    """Learning rate of the logits, constant. None: 0.05 steered, 0.1 (the paper) with a penalty."""
    mask_lr: float = 5e-3
    """Learning rate of the kept values in stage 2: 10 to 30 times the dense rate."""
    head_lr: float = 1e-3
    """Learning rate of the head in both stages."""

    def __post_init__(self) -> None:
        check_kept(self.share)
        check_share("gates_share", self.gates_share)
        rates = {"values_lr": self.values_lr, "mask_lr": self.mask_lr, "head_lr": self.head_lr}
        check_rates(**rates, gates_lr=self._gates_lr)
        check_choice("density", self.density, ("steered", "penalty"))
        check_choice("penalty", self.penalty, PENALTY_FORMS)
        check_choice("draw", self.draw, DRAW_MODES)
        check_choice("start", self.start, STARTS)
        if not (self.groups is None or callable(self.groups)):
            check_choice("groups", self.groups, GROUP_RULES)
        if not self.gates:
            raise ConfigError("gates: name at least one pattern of targets to gate")
        if not math.isfinite(self.gate_init):
            raise ConfigError(f"gate_init: a finite logit, not {self.gate_init}")
        HardConcrete(self.low, self.high)
        self._check_density()

    def _check_density(self) -> None:
        if not 0.0 <= self.hold < self.arrive <= 1.0:
            raise ConfigError(f"0 <= hold < arrive <= 1, not {self.hold} and {self.arrive}")
        if not (math.isfinite(self.overshoot) and self.overshoot >= 1.0):
            raise ConfigError(f"overshoot: at least 1, not {self.overshoot}")
        if self.density == "steered" and self.lambda_l0 is not None:
            raise ConfigError('lambda_l0 has no effect with density="steered"; set "penalty"')
        wanted = self.density == "penalty"
        if wanted and not (self.lambda_l0 is not None and 0.0 < self.lambda_l0 < math.inf):
            raise ConfigError(
                f'density="penalty" needs lambda_l0 above 0, not {self.lambda_l0}; begin with '
                "20 divided by the number of entries"
            )

    @property
    def _gates_lr(self) -> float:
        if self.gates_lr is not None:
            return self.gates_lr
        return 0.05 if self.density == "steered" else 0.1

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Gates, then the fixed mask; the projection lies between them."""
        gates: dict[Role, float] = {
            "values": self.values_lr,
            "gates": self._gates_lr,
            "head": self.head_lr,
        }
        mask: dict[Role, float] = {"values": self.mask_lr, "head": self.head_lr}
        return (
            Stage("gates", self.gates_share, gates),
            Stage("fixed mask", 1.0 - self.gates_share, mask),
        )

    def attach(self, base: BaseLike, targets: Sequence[str], *, seed: int) -> Attachment:
        """See `Tuner.attach`; `seed` draws the gates for the projection.

        Raises:
            UnknownNameError: a pattern of `gates` matches no parameter.
        """
        whole = layout_of(base, targets)
        kept = kept_count(self.share, whole.numel)
        layout = self._gated(base, whole)
        kept = min(kept, layout.numel)

        def fixed(positions: Tensor, values: Tensor) -> FixedMask:
            return FixedMask(base, layout, positions, values)

        return GateStage(base, layout, self._settings(layout, kept, seed), fixed)

    def _gated(self, base: BaseLike, whole: Layout) -> Layout:
        if self.gates == ("*",):
            return whole
        matched = set(base.names.match(self.gates))
        gated = [name for name in whole.names if name in matched]
        if not gated:
            raise ConfigError(f"gates: {list(self.gates)} match none of the targets")
        return layout_of(base, gated)

    def _settings(self, layout: Layout, kept: int, seed: int) -> GateSettings:
        gate = HardConcrete(self.low, self.high)
        groups: Groups | None = None if self.groups is None else groups_of(layout, self.groups)
        steering, penalty = None, None
        if self.lambda_l0 is None:
            path = DensityPath(
                self.hold, self.arrive, min(1.0, self.overshoot * kept / layout.numel)
            )
            steering = Steering(layout, groups, gate, path, shift_groups=self.shift_groups)
        else:
            penalty = Penalty(layout, groups, gate, self.penalty, self.lambda_l0)
        return GateSettings(
            kept=kept,
            groups=groups,
            gate=gate,
            alpha=self.gate_init,
            steering=steering,
            penalty=penalty,
            shift_groups=self.shift_groups,
            pressure=self.pressure and steering is not None,
            draw=self.draw,
            start=self.start,
            seed=seed,
        )
