"""Diff pruning (Guo, Rush, Kim, 2020): which few weights to change can be learnt.

A small transformer over the rows of MNIST pictures is pretrained on upright digits; the target is
the same digits turned by 90 degrees, with a new head. Every method gets the same 1,000 updates
(two stages of 500 where it has two). Two claims are judged on it:

* `diff-pruning`: every method with rates from the same search, which `studies/claim_rates.py` made
  on pilot seeds; `Rates` holds what it chose.
* `diff-pruning-one-rate`: the recipe as it is usually run, one rate of 0.001 for everything, head
  included, and the paper's fixed lambda. Differences that are there and not in the first claim are
  differences between tuned and untuned rates.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import permutations
from pathlib import Path
from typing import Any

from graftwork.claims._checks import (
    digest,
    gate_deviation,
    in_place,
    kept_in,
    learn,
    moved_elsewhere,
    reload_difference,
)
from graftwork.claims._claim import Claim, Progress, Scale
from graftwork.claims._images import SHIFTS, Sizes, Transfer, logits_of, prepare
from graftwork.claims._rules import AtMost, Beats, ClosesGap, Equals, Row, Rule
from graftwork.deltas import load, save
from graftwork.tasks import Predictor
from graftwork.tuning import (
    DiffPruning,
    FisherMask,
    Full,
    GradientMask,
    Head,
    LastLayer,
    Magnitude,
    RandomMask,
    Tuner,
)

TARGET = "rotated"
SPARSE = ("non-adaptive", "random", "gradient", "fisher", "unstructured", "structured")
STORAGE_STEPS = 150


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The searched learning rate of each method; every method had three candidates.

    The defaults were best on the mean of the pilot seeds 0 and 1.
    """

    head: float = 1e-1
    """Of the head, searched where it is all that is trained, used in every method."""
    full: float = 3e-3
    """Of the weights in full fine-tuning, and of the dense first stages of the pruning methods."""
    last_layer: float = 3e-3
    """Of the last layer's weights."""
    random: float = 1e-2
    """Of the values at random positions."""
    gradient: float = 1e-2
    """Of the values under the gradient mask."""
    fisher: float = 1e-2
    """Of the values under the Fisher mask."""
    non_adaptive: float = 3e-2
    """Of the kept values, second stage."""
    unstructured: float = 3e-2
    """Of the kept values, second stage."""
    structured: float = 3e-2
    """Of the kept values, second stage."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scale of the experiment."""

    sizes: Sizes
    """Base and data."""
    steps: int = 1000
    """Updates of every method, over its stages together."""
    share: float = 0.005
    """Part of the base's entries that a sparse delta may change."""
    more_shares: tuple[float, ...] = (0.01, 0.02, 0.05)
    """Further shares, for the structured variant."""
    rates: Rates = field(default_factory=Rates)
    """Learning rates."""
    lambda_l0: float | None = 1e-4
    """Penalty of the recipe with one rate; None steers the density there too."""


SCALES: Mapping[Scale, Recipe] = {
    "smoke": Recipe(
        sizes=Sizes(
            source="digits",
            width=16,
            heads=2,
            pretrain_rows=900,
            pretrain_steps=40,
            train_rows=400,
            test_rows=200,
        ),
        steps=30,
        share=0.02,
        more_shares=(0.05,),
        lambda_l0=None,
    ),
    "quick": Recipe(sizes=Sizes()),
    "full": Recipe(
        sizes=Sizes(width=256, layers=4, heads=8, pretrain_steps=3000, device="cuda"),
        steps=3000,
        more_shares=(0.01, 0.05),
    ),
}
"""What is run at each scale; only `quick` is judged."""


def tuners(share: float, rates: Rates) -> dict[str, Tuner]:
    """Return every method by name, at `share` where it is sparse."""
    head = rates.head
    halves = DiffPruning(share=share, gates_share=0.5, values_lr=rates.full, head_lr=head)
    return {
        "full": Full(values_lr=rates.full, head_lr=head),
        "head only": Head(head_lr=head),
        "last layer": LastLayer(values_lr=rates.last_layer, head_lr=head),
        "non-adaptive": Magnitude(
            share=share,
            full_share=0.5,
            values_lr=rates.full,
            mask_lr=rates.non_adaptive,
            head_lr=head,
        ),
        "random": RandomMask(share=share, values_lr=rates.random, head_lr=head),
        "gradient": GradientMask(share=share, values_lr=rates.gradient, head_lr=head),
        "fisher": FisherMask(share=share, values_lr=rates.fisher, head_lr=head),
        "unstructured": replace(halves, groups=None, mask_lr=rates.unstructured),
        "structured": replace(halves, mask_lr=rates.structured),
    }


def one_rate(share: float, lambda_l0: float | None, rate: float = 1e-3) -> dict[str, Tuner]:
    """Return the methods of the paper with one rate for weights, kept values and head."""
    halves = DiffPruning(
        share=share,
        gates_share=0.5,
        values_lr=rate,
        mask_lr=rate,
        head_lr=rate,
        density="steered" if lambda_l0 is None else "penalty",
        lambda_l0=lambda_l0,
    )
    return {
        "full": Full(values_lr=rate, head_lr=rate),
        "head only": Head(head_lr=rate),
        "non-adaptive": Magnitude(
            share=share, full_share=0.5, values_lr=rate, mask_lr=rate, head_lr=rate
        ),
        "random": RandomMask(share=share, values_lr=rate, head_lr=rate),
        "unstructured": replace(halves, groups=None),
        "structured": halves,
    }


def percent(share: float) -> str:
    """Return a share as the name of a setting.

    Example:
        >>> percent(0.005)
        '0.5 %'
    """
    return f"{100 * share:g} %"


def run(scale: Scale, seed: int, data: Path | None, progress: Progress) -> list[Row]:
    """Measure one seed; see `graftwork.claims.Claim`."""
    recipe = SCALES[scale]
    transfer = prepare(recipe.sizes, seed, data)
    before = digest(transfer.base)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(transfer, recipe, Path(folder), progress)
        rows = bench.methods(tuners(recipe.share, recipe.rates), percent(recipe.share))
        rows += bench.shares([r for r in rows if r.metric == "accuracy"])
        rows += bench.storage()
    transfer.base.verify()
    rows.append(Row("base", "all", "base changed", seed, float(digest(transfer.base) != before)))
    rows.append(Row("gates", "hard concrete", "gate deviation", seed, gate_deviation(seed)))
    return rows


def run_one_rate(scale: Scale, seed: int, data: Path | None, progress: Progress) -> list[Row]:
    """Measure one seed of the recipe with one rate; see `graftwork.claims.Claim`."""
    recipe = SCALES[scale]
    transfer = prepare(recipe.sizes, seed, data)
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(transfer, recipe, Path(folder), progress)
        methods = one_rate(recipe.share, recipe.lambda_l0)
        return bench.methods(methods, percent(recipe.share))


@dataclass(frozen=True, slots=True)
class _Bench:
    transfer: Transfer
    recipe: Recipe
    folder: Path
    progress: Progress

    def methods(self, methods: Mapping[str, Tuner], setting: str) -> list[Row]:
        """Every method at the main share."""
        share = self.recipe.share
        return [
            row
            for name, tuner in methods.items()
            for row in self._measure(share, name, tuner, setting)
        ]

    def shares(self, known: list[Row]) -> list[Row]:
        """The structured variant at further shares, and side by side how it rises with them."""
        seed, main = self.transfer.seed, self.recipe.share
        rows = []
        for share in self.recipe.more_shares:
            tuner = tuners(share, self.recipe.rates)["structured"]
            rows += self._measure(share, "structured", tuner, percent(share))
        found = [r for r in (*known, *rows) if r.metric == "accuracy" and r.method == "structured"]
        rows += [Row("by share", r.setting, "accuracy", seed, r.value) for r in found]
        if self.recipe.sizes.device != "cpu":
            large = [r for r in (*known, *rows) if r.setting == "1 %" or r.method == "full"]
            rows += [
                Row("1 %, large base", r.method, "accuracy", seed, r.value)
                for r in large
                if r.metric == "accuracy" and r.setting in ("1 %", percent(main))
            ]
        return rows

    def _measure(self, share: float, name: str, tuner: Tuner, setting: str) -> list[Row]:
        seed, base = self.transfer.seed, self.transfer.base
        task = self.transfer.task(TARGET)
        adaptation, delta, accuracy = learn(self.transfer, task, tuner, self.recipe.steps)
        size, change = reload_difference(base, task, delta, self.folder / "delta.safetensors")
        numbers = {"accuracy": accuracy, "bytes": size, "reload difference": change}
        if name in SPARSE:
            entries = sum(piece.numel for piece in base.names.pieces.values())
            wanted = math.floor(Fraction(str(share)) * entries)
            numbers["kept"] = kept_in(delta)
            numbers["kept beside floor(t d)"] = kept_in(delta) - wanted
            numbers["moved off the mask"] = moved_elsewhere(base, adaptation, delta)
        self.progress(f"seed {seed}, {setting}: {name} {accuracy:.1f}, {size} bytes")
        return [Row(setting, name, metric, seed, float(x)) for metric, x in numbers.items()]

    def storage(self) -> list[Row]:
        """Five tasks on one base: bytes, and logits whatever the order of loading."""
        seed, base = self.transfer.seed, self.transfer.base
        tuner = tuners(self.recipe.share, self.recipe.rates)["gradient"]
        steps = min(STORAGE_STEPS, self.recipe.steps)
        tasks = {shift: self.transfer.task(shift) for shift in SHIFTS}
        paths = {shift: self.folder / f"{i}.safetensors" for i, shift in enumerate(SHIFTS)}
        sizes, views = 0, {}
        for shift, task in tasks.items():
            delta = learn(self.transfer, task, tuner, steps)[1]
            sizes += save(delta, paths[shift])
            views[shift] = logits_of(Predictor(base, delta), task)
        worst = 0.0
        for order in list(permutations(SHIFTS))[:: len(SHIFTS) * 4 + 3]:
            for shift in order:
                found = in_place(base, tasks[shift], load(paths[shift]))
                worst = max(worst, float((found - views[shift]).abs().max()))
        whole = sum(p.numel() * p.element_size() for p in base.model.parameters())
        self.progress(f"seed {seed}: five tasks take {sizes} bytes beside {whole}")
        named: dict[str, Any] = {
            "bytes with the base": 1 + sizes / whole,
            "order difference": worst,
        }
        return [Row("five tasks", "gradient", metric, seed, x) for metric, x in named.items()]


def _beats(baseline: str, at_least: float, what: str, name: str = "beats") -> Rule:
    return Beats(
        name=f"{name}-{baseline.replace(' ', '-')}",
        sentence=f"Structured diff pruning at 0.5 % beats {what} by {at_least:g} points.",
        setting="0.5 %",
        ours="structured",
        baseline=baseline,
        at_least=at_least,
    )


MECHANISMS: tuple[Rule, ...] = (
    Equals(
        "exact-count",
        "Every sparse method keeps exactly floor(t d) entries, the head not counted.",
        "kept beside floor(t d)",
        0.0,
    ),
    Equals(
        "mask-is-fixed",
        "After training, no entry off the mask differs from the base in any bit.",
        "moved off the mask",
        0.0,
    ),
    Equals(
        "base-unchanged",
        "All methods of a seed leave the base's SHA-256 as it was.",
        "base changed",
        0.0,
    ),
    Equals(
        "file-is-exact",
        "A saved and reloaded delta gives the same bits of every logit.",
        "reload difference",
        0.0,
    ),
    Equals(
        "gates-follow-closed-forms",
        "Mean, P(z > 0) and P(z = 1) of 200,000 sampled gates are those of the closed forms.",
        "gate deviation",
        0.0,
        tolerance=0.006,
    ),
    AtMost(
        "five-tasks-in-a-tenth",
        "The base with five tasks at 0.5 %, heads and headers included, takes 1.1x the base.",
        "bytes with the base",
        1.1,
    ),
    Equals(
        "any-order",
        "Loading and unloading five deltas in any order gives the same bits of every logit.",
        "order difference",
        0.0,
    ),
)

OF_THE_PAPER: tuple[Rule, ...] = (
    _beats("non-adaptive", 8.0, "non-adaptive pruning (the largest changes of full fine-tuning)"),
    _beats("random", 5.0, "a random mask of the same size"),
    _beats("unstructured", 2.0, "unstructured diff pruning"),
    ClosesGap(
        name="closes-the-gap",
        sentence="Structured diff pruning closes 45 % of the gap from head only to full.",
        setting="0.5 %",
        ours="structured",
        low="head only",
        high="full",
        at_least=0.45,
    ),
)

OF_THE_PILOT: tuple[Rule, ...] = (
    _beats("random", 1.0, "a random mask of the same size", "ahead-of"),
    _beats("gradient", 0.0, "a one-shot mask of summed gradients", "ahead-of"),
    _beats("fisher", 1.0, "a one-shot mask of Fisher information", "ahead-of"),
    Beats(
        name="near-last-layer",
        sentence="It is within 4 points of tuning the last layer, which changes 95 times as much.",
        setting="0.5 %",
        ours="structured",
        baseline="last layer",
        at_least=-4.0,
    ),
    Beats(
        name="rises-with-the-share",
        sentence="Structured diff pruning at 5 % beats the same at 0.5 % by 2 points.",
        setting="by share",
        ours="5 %",
        baseline="0.5 %",
        at_least=2.0,
    ),
    Beats(
        name="equals-full-on-a-large-base",
        sentence="On a base of 3 million weights (scale full), 1 % is within 2 points of full.",
        setting="1 %, large base",
        ours="structured",
        baseline="full",
        at_least=-2.0,
    ),
)
"""What the tuned pilots on seeds 0 and 1 showed, less a margin; the last is the spec's."""

CLAIM = Claim(
    name="diff-pruning",
    system="diff-pruning",
    sentence=(
        "A learnt sparse difference of 0.5 % of the weights adapts a frozen base better than other "
        "choices of as many weights, with learning rates searched alike for every method."
    ),
    rules=MECHANISMS + OF_THE_PAPER + OF_THE_PILOT,
    run=run,
)

ONE_RATE = Claim(
    name="diff-pruning-one-rate",
    system="diff-pruning",
    sentence=(
        "The same with one learning rate of 0.001 for every method and part, and the paper's fixed "
        "lambda: the recipe under which the advantage is usually shown."
    ),
    rules=MECHANISMS[:2] + OF_THE_PAPER,
    run=run_one_rate,
)
