"""Every tuner on every model of the battery, after real training (laws 1, 2, 4, 12).

A new tuner is one row in `TUNED`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from graftwork._errors import UnsupportedError
from graftwork.deltas import Delta, dumps, load, save, view
from graftwork.tuning import (
    IA3,
    TUNERS,
    Attachment,
    BitFit,
    Bottlenecks,
    DiffPruning,
    DoRA,
    FisherMask,
    Full,
    GradientMask,
    LastLayer,
    LoRA,
    LowRankSparse,
    Magnitude,
    PrefixTuning,
    PromptTuning,
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
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Fields of the tuner that a case needs, by name."""
    case: Callable[[Case], Case] = lambda case: case
    """Another task of the case: what stands before an input can only choose what a base knows."""
    refuses: frozenset[str] = frozenset()
    """Cases that the method cannot support, and must say so."""


def diff_pruning(rate: float) -> DiffPruning:
    return DiffPruning(share=SHARE, values_lr=rate, mask_lr=5 * rate, gates_lr=0.2, hold=0.1)


@functools.cache
def _instructed_state(name: str) -> dict[str, torch.Tensor]:
    """Train a model to answer as asked: four words 1 before the input, or 2 for the opposite."""
    case, rows, width = CASES[name], 32, 4
    module = case.build()
    optimiser = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(300):
        batch = case.batch(rows, seed=50_000 + step)
        asked = torch.arange(rows) % 2
        words = (asked + 1)[:, None].expand(-1, width)
        logits = module(input_ids=torch.cat([words, batch.inputs["input_ids"]], 1)).logits
        logits = logits[:, width if name == "bert" else -1, :2]
        loss = F.cross_entropy(logits, batch.targets ^ asked)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    return module.state_dict()


def instructed(case: Case) -> Case:
    """The opposite answer, asked of a model that could give it."""

    def make() -> nn.Module:
        module = case.make()
        module.load_state_dict(_instructed_state(case.name))
        return module

    return replace(case, make=make, label=lambda inputs: 1 - case.label(inputs), learning_rate=1e-2)


NO_TEXT = frozenset(CASES) - {"bert", "gpt2"}
"""Cases without input embeddings of tokens that a transformers model takes from outside."""

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
    "bottlenecks": Row(
        lambda r: Bottlenecks(where="houlsby", reduction=2, norms=True, values_lr=r),
        sparse=False,
        sharpness=100.0,
        fields={
            "conv": {"places": ("out.weight",)},
            "lstm": {"places": ("out.weight",)},
            "attention": {"places": ("out.weight",)},
            "experts": {"places": ("*router.weight", "out.weight")},
        },
    ),
    "prompt": Row(
        lambda r: PromptTuning(length=4, values_lr=10 * r),
        sparse=False,
        case=instructed,
        refuses=NO_TEXT,
    ),
    "prefix": Row(
        lambda r: PrefixTuning(length=4, values_lr=10 * r),
        sparse=False,
        case=instructed,
        refuses=NO_TEXT | {"bert"},
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
    if case not in row.refuses
]
REFUSED = [(tuner, case) for tuner, row in TUNED.items() for case in sorted(row.refuses)]


def test_every_tuner_has_a_row():
    assert {name.split("-")[0] for name in TUNED} == set(TUNERS) - {"head"}


@pytest.mark.parametrize(("name", "case_name"), REFUSED)
def test_what_cannot_be_supported_is_an_error(name, case_name):
    base = plain_base(CASES[case_name].build())
    with pytest.raises(UnsupportedError):
        TUNED[name].make(1e-3).attach(base, list(base.names.pieces), seed=0)


def learn(row: Row, case: Case, base: PlainBase, seed: int) -> tuple[Attachment, float]:
    """Train 120 steps; return the last attachment and the part of the test loss that is left."""

    def mean_loss(module: nn.Module, data_seed: int, rows: int) -> torch.Tensor:
        batch = case.batch(rows, seed=data_seed)
        return F.cross_entropy(case.call(module, batch.inputs) * row.sharpness, batch.targets)

    tuner = replace(row.make(case.learning_rate), **row.fields.get(case.name, {}))
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
    row = TUNED[name]
    case = row.case(CASES[case_name])
    base = plain_base(case.build())
    before = bits(base.model)
    attachment, left = learn(row, case, base, seed=0)
    assert left <= row.bars.get(case_name, 0.7), (
        "the loss must fall by 30 % before anything else is tested"
    )
    assert bits(base.model) == before

    delta = as_delta(base, attachment.extract(), ports=attachment.ports())
    if row.sparse:
        check_counts(delta, base, name)
    save(delta, tmp_path / "delta")
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        first = case.call(view(base, delta, unused="allow"), inputs)
        again = case.call(view(base, load(tmp_path / "delta"), unused="allow"), inputs)
        exact = as_delta(base, attachment.extract("float32"), ports=attachment.ports("float32"))
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
