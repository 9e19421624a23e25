"""Every tuner on every model of the battery, after real training (laws 1, 2, 4, 12).

A new tuner is one row in `TUNED`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftwork.deltas import Delta, dumps, load, save, view
from graftwork.tuning import (
    IA3,
    TUNERS,
    Attachment,
    BitFit,
    DiffPruning,
    DoRA,
    FisherMask,
    Full,
    GradientMask,
    LastLayer,
    LoRA,
    LowRankSparse,
    Magnitude,
    RandomMask,
    Tuner,
    TuningWarning,
    as_delta,
)
from tests.battery.models import CASES, Case
from tests.tuning.support import PlainBase, bits, plain_base, train

SHARE = 0.05


@dataclass(frozen=True)
class Row:
    """One tuner: how it is made from the rate that suits dense training of a model."""

    make: Callable[[float], Tuner]
    sparse: bool = True
    sharpness: float = 1.0
    """Multiplies the logits: the last layer alone cannot reach the scale of a frozen output."""
    slow: bool = False
    bars: Mapping[str, float] = field(default_factory=dict)
    """Part of the loss that may be left of a case that the method cannot learn well, by name."""


def diff_pruning(rate: float) -> DiffPruning:
    return DiffPruning(share=SHARE, values_lr=rate, mask_lr=5 * rate, gates_lr=0.2, hold=0.1)


TUNED: dict[str, Row] = {
    "full": Row(lambda r: Full(values_lr=r), sparse=False),
    "last_layer": Row(lambda r: LastLayer(values_lr=r), sparse=False, sharpness=20.0),
    "random_mask": Row(lambda r: RandomMask(share=SHARE, values_lr=10 * r)),
    "magnitude": Row(lambda r: Magnitude(share=SHARE, values_lr=r, mask_lr=5 * r)),
    "gradient_mask": Row(lambda r: GradientMask(share=SHARE, values_lr=5 * r)),
    "fisher_mask": Row(lambda r: FisherMask(share=SHARE, values_lr=5 * r)),
    "diff_pruning": Row(diff_pruning),
    "lora": Row(lambda r: LoRA(values_lr=r), sparse=False),
    "lora-principal": Row(lambda r: LoRA(rank=2, values_lr=r, start="principal"), sparse=False),
    "lora-plus": Row(
        lambda r: LoRA(rank=4, stabilised=True, b_ratio=4.0, vectors="train", values_lr=r / 8),
        sparse=False,
    ),
    "dora": Row(lambda r: DoRA(values_lr=r), sparse=False),
    "ia3": Row(lambda r: IA3(values_lr=3 * r), sparse=False, sharpness=20.0),
    "bitfit": Row(
        lambda r: BitFit(values_lr=3 * r),
        sparse=False,
        sharpness=100.0,
        bars={"experts": 0.95},  # ten biases in all: of the routers and the output
    ),
    "low_rank_sparse": Row(
        lambda r: LowRankSparse(rank=2, share=SHARE, values_lr=r, sparse_lr=5 * r), sparse=False
    ),
    "diff_pruning-unstructured": Row(lambda r: replace(diff_pruning(r), groups=None), slow=True),
    "diff_pruning-neuron": Row(lambda r: replace(diff_pruning(r), groups="neuron"), slow=True),
    "diff_pruning-penalty": Row(
        lambda r: replace(diff_pruning(r), density="penalty", lambda_l0=1e-3), slow=True
    ),
}
PAIRS = [
    pytest.param(tuner, case, marks=[pytest.mark.slow] if row.slow else [], id=f"{tuner}-{case}")
    for tuner, row in TUNED.items()
    for case in CASES
]


def test_every_tuner_has_a_row():
    assert {name.split("-")[0] for name in TUNED} == set(TUNERS) - {"head"}


def learn(row: Row, case: Case, base: PlainBase, seed: int) -> tuple[Attachment, float]:
    """Train 120 steps; return the last attachment and the part of the test loss that is left."""

    def mean_loss(module: nn.Module, data_seed: int, rows: int) -> torch.Tensor:
        batch = case.batch(rows, seed=data_seed)
        return F.cross_entropy(case.call(module, batch.inputs) * row.sharpness, batch.targets)

    tuner = row.make(case.learning_rate)
    attachment = tuner.attach(base, list(base.names.pieces), seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TuningWarning)
        attachment = train(tuner, attachment, lambda m, s: mean_loss(m, s + 1, 32), 120)
    with attachment.settled() as module, torch.no_grad():
        after = mean_loss(module.eval(), 10_000, 128).item()
        before = mean_loss(base.model, 10_000, 128).item()
    return attachment, after / before


def check_counts(delta: Delta, base: PlainBase, name: str) -> None:
    d = sum(p.numel() for p in base.model.parameters())
    kept = sum(u.sparse.positions.numel() for u in delta.updates.values())
    assert kept == d * 5 // 100
    assert all(update.terms == ("sparse",) for update in delta.updates.values())
    seeded = [update.sparse.mask is not None for update in delta.updates.values()]
    assert all(seeded) if name == "random_mask" else not any(seeded)


@pytest.mark.parametrize(("name", "case_name"), PAIRS)
def test_trains_extracts_saves_and_loads(name, case_name, tmp_path):
    row, case = TUNED[name], CASES[case_name]
    base = plain_base(case.build())
    before = bits(base.model)
    attachment, left = learn(row, case, base, seed=0)
    assert left <= row.bars.get(case_name, 0.7), (
        "the loss must fall by 30 % before anything else is tested"
    )
    assert bits(base.model) == before

    delta = as_delta(base, attachment.extract())
    if row.sparse:
        check_counts(delta, base, name)
    save(delta, tmp_path / "delta")
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        first = case.call(view(base, delta, unused="allow"), inputs)
        again = case.call(view(base, load(tmp_path / "delta"), unused="allow"), inputs)
        exact = as_delta(base, attachment.extract("float32"))
        unrounded = case.call(view(base, exact, unused="allow"), inputs)
        with attachment.settled() as module:
            settled = case.call(module.eval(), inputs)
    assert torch.equal(first, again)
    scale = float(settled.abs().max())
    # sparse values are the trainable ones; a dense difference is W' - W, off by the ulp of W
    assert float((unrounded - settled).abs().max()) <= 1e-5 * scale
    assert float((first - settled).abs().max()) <= 0.02 * scale
    assert bits(base.model) == before


SEEDED = ["diff_pruning", "random_mask", "magnitude", "fisher_mask", "lora"]


@pytest.mark.parametrize("name", SEEDED)
def test_the_same_seed_gives_the_same_bits(name):
    case, base = CASES["attention"], plain_base(CASES["attention"].build())
    made = []
    for seed in (4, 4, 5):
        attachment, _ = learn(TUNED[name], case, plain_base(case.build()), seed=seed)
        made.append(dumps(as_delta(base, attachment.extract())))
    assert made[0] == made[1]
    assert made[0] != made[2] or name in ("magnitude", "fisher_mask")  # nothing is drawn there
