"""LoRA (Hu et al., 2021): a low-rank change of frozen weights does what full fine-tuning does.

The base and data are those of the claim `diff-pruning`: a small transformer over the rows of MNIST
pictures, pretrained on upright digits; the target is the same digits turned by 90 degrees, with a
new head. Every method gets the same updates, and rates from a search of the same size, which
`studies/lora_rates.py` made on pilot seed 0; the head has one rate in all of them. Methods:

* "lora": rank 4 on the matrices of attention and feed-forward layers, 10 % of the body;
* "full", "head only";
* "random mask": as many values as LoRA trains, at random positions of the same matrices;
* "bitfit": all biases, fewer than a fifth of LoRA's numbers.

The rank sweep keeps alpha and the rate, as the paper does (section 4.1). Query, key and value are
one matrix here and share one A, so a rank counts for less than in the paper, where each has its
own. The paper's text tasks are replaced by pictures, whose base takes seconds to pretrain.

The required numbers were set before any run: 3, 10 and 5 points and the exact checks by the
project's specification of LoRA. The rules on the random mask and BitFit are ours: the paper has no
random mask, and puts BitFit behind LoRA (tables 2 and 4). One was changed after pilot seed 0, where
all others held: merged and branch were to agree to 1e-5, but the searched rate makes logits of up
to 27, so that rounding in 32 bits alone is 1.2e-5 at rank 16 (4e-7 of the largest). It is relative
now.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from graftwork.bases import Base
from graftwork.bases import load as load_base
from graftwork.claims._checks import digest, in_place
from graftwork.claims._claim import Claim, Progress, Scale
from graftwork.claims._images import Sizes, Transfer, logits_of, prepare
from graftwork.claims._rules import AtMost, Beats, Equals, Row, Rule
from graftwork.deltas import Delta, apply, save
from graftwork.diagnostics import amplification, subspace_similarity
from graftwork.tasks import Task
from graftwork.training import Adaptation, TrainConfig, finish, fit, start
from graftwork.tuning import BitFit, Full, Head, LoRA, RandomMask, Tuner

TARGET, SETTING, SWEEP = "rotated", "rotated", "by rank"
MATRICES = tuple(f"blocks.*.{name}.weight" for name in ("qkv", "mix", "wide", "narrow"))
RANK, ALPHA = 4, 4.0
"""Alpha is the first rank that was tried, as in the paper."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """The searched learning rate of each method; every method had three candidates."""

    head: float = 1e-1
    """Of the head in every method: that of `diff-pruning`, searched on this very transfer."""
    full: float = 3e-3
    """Of the weights in full fine-tuning: likewise."""
    lora: float = 3e-2
    """Of the factors: 93.2 % on pilot seed 0, beside 93.05 at 0.01."""
    random: float = 1e-2
    """Of the values at random positions; 0.03 gave the same."""
    bitfit: float = 3e-2
    """Of the biases."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One scale of the experiment."""

    sizes: Sizes
    """Base and data."""
    steps: int = 1000
    """Updates of every method."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Ranks of the sweep."""
    rates: Rates = field(default_factory=Rates)
    """Learning rates."""


SCALES: Mapping[Scale, Recipe] = {
    "smoke": Recipe(
        sizes=Sizes(
            source="digits",
            width=32,
            heads=2,
            pretrain_rows=900,
            pretrain_steps=20,
            train_rows=400,
            test_rows=200,
        ),
        steps=20,
        ranks=(1, 4),
    ),
    "quick": Recipe(sizes=Sizes()),
    "full": Recipe(
        sizes=Sizes(width=256, layers=4, heads=8, pretrain_steps=3000, device="cuda"), steps=3000
    ),
}
"""What is run at each scale; only `quick` is judged."""


def lora(rates: Rates, rank: int = RANK) -> LoRA:
    """Return LoRA at a rank; alpha stays."""
    return LoRA(rank=rank, alpha=ALPHA, values_lr=rates.lora, head_lr=rates.head)


def tuners(rates: Rates, share: float) -> dict[str, tuple[Tuner, Sequence[str] | None]]:
    """Return every rival by name with its targets; `share` is that of the random mask."""
    head = rates.head
    return {
        "full": (Full(values_lr=rates.full, head_lr=head), None),
        "head only": (Head(head_lr=head), None),
        "random mask": (
            RandomMask(share=share, values_lr=rates.random, head_lr=head),
            MATRICES,
        ),
        "bitfit": (BitFit(values_lr=rates.bitfit, head_lr=head), None),
    }


def formula(shapes: Sequence[tuple[int, int]], rank: int) -> int:
    """Return the numbers that LoRA trains: rank (inputs + outputs), summed over the matrices.

    Example:
        >>> formula([(768, 768)] * 24, 8)  # RoBERTa-base, query and value of 12 layers
        294912
    """
    return sum(min(rank, *shape) * (shape[0] + shape[1]) for shape in shapes)


def run(scale: Scale, seed: int, data: Path | None, progress: Progress) -> list[Row]:
    """Measure one seed; see `graftwork.claims.Claim`."""
    recipe = SCALES[scale]
    bench = Bench(prepare(recipe.sizes, seed, data), recipe, progress)
    before = digest(bench.base)
    rows = bench.ranks()
    rows += bench.rivals()
    bench.base.verify()
    return [
        *rows,
        bench.row("all", "base changed", float(digest(bench.base) != before)),
        bench.row("RoBERTa-base", "count beside the paper's", counted_of_paper() - 294_912),
        bench.row("block 2 of 3", "moved in a disabled block", moved_when_disabled(seed)),
    ]


@dataclass(frozen=True, slots=True)
class Bench:
    """One base and its target."""

    transfer: Transfer
    recipe: Recipe
    progress: Progress

    @property
    def base(self) -> Base:
        """The pretrained base."""
        return self.transfer.base

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Shapes of the matrices that LoRA adapts, written down a second time from the sizes."""
        width = self.recipe.sizes.width
        one = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
        return one * self.recipe.sizes.layers

    def row(self, method: str, metric: str, value: float, setting: str = SETTING) -> Row:
        """Return a row of this seed."""
        return Row(setting, method, metric, self.transfer.seed, float(value))

    def learn(
        self, name: str, tuner: Tuner, targets: Sequence[str] | None
    ) -> tuple[Adaptation, Task, float]:
        """Return what was learnt, its task, and the accuracy of the stored delta in percent."""
        task = self.transfer.task(TARGET)
        adaptation = start(self.base, task, tuner, targets=targets, seed=self.transfer.seed)
        fit(adaptation, task, TrainConfig(steps=self.recipe.steps))
        accuracy = 100 * finish(adaptation, task)[1]["accuracy"]
        self.progress(f"seed {self.transfer.seed}: {name} {accuracy:.1f}")
        return adaptation, task, accuracy

    def ranks(self) -> list[Row]:
        """LoRA at every rank; at `RANK` all that is exact too."""
        rows = []
        for rank in self.recipe.ranks:
            tuner, name = lora(self.recipe.rates, rank), f"rank {rank}"
            rows.append(self.row(name, "moved at the start", self._at_start(tuner)))
            adaptation, task, accuracy = self.learn(name, tuner, MATRICES)
            count = trained(adaptation)
            rows += [
                self.row(name, "accuracy", accuracy, SWEEP),
                self.row(name, "numbers", count),
                self.row(name, "count beside formula", count - formula(self.shapes, rank)),
                *self._exact(name, rank, adaptation, task),
            ]
            if rank == RANK:
                body = sum(piece.numel for piece in self.base.names.pieces.values())
                rows.append(self.row("lora", "accuracy", accuracy))
                rows.append(self.row("lora", "share of the body", count / body))
        return rows

    def rivals(self) -> list[Row]:
        """Every other method."""
        share = formula(self.shapes, RANK) / sum(m * n for m, n in self.shapes)
        rows = []
        for name, (tuner, targets) in tuners(self.recipe.rates, share).items():
            adaptation, _, accuracy = self.learn(name, tuner, targets)
            rows.append(self.row(name, "accuracy", accuracy))
            rows.append(self.row(name, "numbers", trained(adaptation)))
        return rows

    def _at_start(self, tuner: Tuner) -> float:
        """Return the largest change of a logit before the first step."""
        task = self.transfer.task(TARGET)
        adaptation = start(self.base, task, tuner, targets=MATRICES, seed=self.transfer.seed)
        signature, device = task.signature, self.recipe.sizes.device
        assert signature is not None

        def alone(batch: object) -> Tensor:
            inputs = batch.to(device).inputs  # type: ignore[attr-defined]
            return signature.call_model(self.base.model, adaptation.ports.eval(), inputs)

        with adaptation.settled():
            ours = _logits(adaptation, task, device)
        return float((ours - logits_of(alone, task)).abs().max())

    def _exact(self, name: str, rank: int, adaptation: Adaptation, task: Task) -> list[Row]:
        """Branch against merged weight, rank of the change, bytes, and the paper's analyses."""
        delta = adaptation.delta("float32")
        with adaptation.settled():
            branch = _logits(adaptation, task, self.recipe.sizes.device)
        merged = in_place(self.base, task, delta)
        off = float((merged - branch).abs().max())
        with tempfile.TemporaryDirectory() as folder:
            size = save(delta, Path(folder) / "delta.safetensors")
        count = trained(adaptation) + sum(p.numel() for p in adaptation.ports.parameters())
        changes = changes_of(self.base, delta)
        beyond = max(_beyond(change, rank) for change in changes.values())
        rows = [
            self.row(name, "merged beside branch", off / float(branch.abs().max())),
            self.row(name, "merged beside branch, absolute", off),
            self.row(name, "bytes beyond 4 a number", size - 4 * count),
            self.row(name, "singular value beyond the rank", beyond),
        ]
        return rows + self._analyses(name, delta)

    def _analyses(self, name: str, delta: Delta) -> list[Row]:
        """Amplification (table 7) and a term's similarity with itself (equation 4), as means."""
        factors, selves = [], []
        for target, update in delta.updates.items():
            if update.low_rank is None:
                continue
            weight = self.base.model.get_parameter(target).detach()
            factors.append(amplification(weight, update.low_rank).factor)
            phi = subspace_similarity(update.low_rank, update.low_rank)
            selves.append(float((phi.diagonal() - 1).abs().max()))
        return [
            self.row(name, "amplification", sum(factors) / len(factors)),
            self.row(name, "similarity with itself beside 1", max(selves)),
        ]


def trained(adaptation: Adaptation) -> int:
    """Return how many numbers are trained, the head not counted."""
    return sum(p.numel() for g in adaptation.attachment.groups() for p in g.parameters)


def changes_of(base: Base, delta: Delta) -> dict[str, Tensor]:
    """Return what a delta adds to each parameter, read off the merged weights."""
    before = {n: base.model.get_parameter(n).detach().clone() for n in delta.updates}
    applied = apply(base, delta)
    try:
        return {n: base.model.get_parameter(n).detach() - w for n, w in before.items()}
    finally:
        applied.detach()


def counted_of_paper() -> int:
    """Return what LoRA trains at rank 8 on 24 matrices of RoBERTa-base's size, by counting."""
    stack = nn.ModuleList(nn.Linear(768, 768, bias=False) for _ in range(24))
    base = load_base(stack)
    return sum(p.numel() for p in LoRA(rank=8).attach(base, list(base.names.pieces), seed=0))


def moved_when_disabled(seed: int, blocks: str = "101") -> float:
    """Return the largest change of keys where only queries and values of a merged layer learn.

    Inputs are 32 rows; 30 steps. Infinite where queries or values did not move either.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layer, x, y = nn.Linear(12, 36), torch.randn(32, 12), torch.randn(32, 36)
    base = load_base(layer)
    bound = LoRA(rank=2, blocks={"weight": blocks}).attach(base, ["weight"], seed=seed)
    optimiser = torch.optim.Adam(list(bound), lr=1e-2)
    for step in range(30):
        bound.prepare(step / 30, seed=step)
        (bound.module(x) - y).square().mean().backward()
        bound.collect()
        optimiser.step()
        optimiser.zero_grad()
    with bound.settled(), torch.no_grad():
        moved = (bound.module(x) - layer(x)).abs().amax(0)
    if not float(moved[:12].max()) > 0.0 < float(moved[24:].max()):
        return float("inf")  # nothing moved at all, so nothing was shown
    return float(moved[12:24].max())


def _logits(adaptation: Adaptation, task: Task, device: str) -> Tensor:
    return logits_of(lambda batch: adaptation(batch.to(device)), task)


def _beyond(change: Tensor, rank: int) -> float:
    """Return the first singular value that a product of this rank cannot have, over the largest."""
    values = torch.linalg.svdvals(change.double())
    return float(values[rank] / values[0]) if rank < len(values) else 0.0


MECHANISMS: tuple[Rule, ...] = (
    Equals(
        "starts-at-the-base",
        "Before the first step every logit is that of the base, bit for bit, at every rank.",
        "moved at the start",
        0.0,
    ),
    AtMost(
        "merged-equals-branch",
        "After training, merged weights and branch give the same logits, to 2e-6 of the largest.",
        "merged beside branch",
        2e-6,
    ),
    Equals(
        "counts-by-the-formula",
        "What is trained is r (inputs + outputs) a matrix, at every rank.",
        "count beside formula",
        0.0,
    ),
    Equals(
        "counts-as-the-paper",
        "Rank 8 on query and value of RoBERTa-base trains 294,912 numbers.",
        "count beside the paper's",
        0.0,
    ),
    AtMost(
        "file-of-its-numbers",
        "A file in 32 bits takes 4 bytes a number, head included, and less than 10 kB more.",
        "bytes beyond 4 a number",
        10_000,
    ),
    AtMost(
        "a-fifth-of-the-body",
        "Rank 4 trains 20 % of the body's numbers or less.",
        "share of the body",
        0.2,
    ),
    AtMost(
        "change-of-that-rank",
        "Singular values of a merged change beyond its rank are 1e-4 of the largest or less.",
        "singular value beyond the rank",
        1e-4,
    ),
    Equals(
        "disabled-blocks-stay",
        "In a merged projection the outputs of a disabled block do not move at all.",
        "moved in a disabled block",
        0.0,
    ),
    AtMost(
        "similar-to-itself",
        "Subspaces of a term have similarity 1 with themselves, to 1e-6.",
        "similarity with itself beside 1",
        1e-6,
    ),
    Equals("base-untouched", "All runs leave the base's SHA-256 as it was.", "base changed", 0.0),
)


def _beats(name: str, sentence: str, baseline: str, at_least: float) -> Beats:
    return Beats(
        name=name,
        sentence=sentence,
        setting=SETTING,
        ours="lora",
        baseline=baseline,
        at_least=at_least,
    )


RULES: tuple[Rule, ...] = (
    *MECHANISMS,
    _beats("reaches-full", "LoRA of rank 4 is within 3 points of full tuning.", "full", -3.0),
    replace(
        _beats("head-is-not-enough", "Full tuning beats head only by 10 points.", "head only", 10),
        ours="full",
    ),
    Beats(
        name="rank-one-is-near",
        sentence="Rank 1 is within 5 points of rank 16, with the same alpha and rate.",
        setting=SWEEP,
        ours="rank 1",
        baseline="rank 16",
        at_least=-5.0,
    ),
    _beats(
        "not-behind-a-random-mask",
        "LoRA is not behind as many values at random positions of the same matrices.",
        "random mask",
        0.0,
    ),
    _beats("not-behind-bitfit", "LoRA is not behind tuning all biases.", "bitfit", 0.0),
)

CLAIM = Claim(
    name="lora",
    system="lora",
    sentence=(
        "A product of two thin matrices, added to frozen weights and merged at no cost, adapts a "
        "network as well as tuning all of it, and a very small rank is enough."
    ),
    rules=RULES,
    run=run,
)
