"""Going on from a delta, and moving one to a new version of its base."""

from __future__ import annotations

import pytest
import torch

from graftwork._errors import DeltaError, FingerprintError, StorageError, UnsupportedError
from graftwork.deltas import content_hash, values_of, view
from graftwork.training import (
    History,
    LogConfig,
    RunConfig,
    TrainConfig,
    adapt,
    continue_from,
    fit,
    start,
)
from graftwork.tuning import (
    IA3,
    BitFit,
    Bottlenecks,
    DiffPruning,
    DoRA,
    Full,
    Head,
    LoRA,
    LowRankSparse,
    RandomMask,
    Tuner,
)
from tests.training.toys import make_base, make_toy_task

TUNERS: dict[str, Tuner] = {
    "lora": LoRA(rank=3, values_lr=0.02),
    "merged": LoRA(rank=2, blocks={"body.0.weight": "1010"}, values_lr=0.02),
    "dora": DoRA(rank=3, values_lr=0.02),
    "ia3": IA3(values_lr=0.05),
    "bitfit": BitFit(values_lr=0.02),
    "both": LowRankSparse(rank=2, share=0.1, values_lr=0.02, sparse_lr=0.02),
    "full": Full(values_lr=0.01),
    "random": RandomMask(share=0.3, values_lr=0.02),
    "head": Head(head_lr=0.02),
    "bottlenecks": Bottlenecks(places=("body.*.weight",), reduction=2, values_lr=0.02),
}


def trained(tuner: Tuner, steps: int = 60):
    base = make_base()
    task = make_toy_task(base)
    adaptation = start(base, task, tuner, seed=0)
    fit(adaptation, task, TrainConfig(steps=steps), recorder=History())
    return base, task, adaptation


@pytest.mark.parametrize("name", TUNERS)
def test_what_goes_on_is_the_delta_to_the_bit(name):
    base, task, adaptation = trained(TUNERS[name])
    delta = adaptation.delta("float32")
    again = start(base, task, TUNERS[name], seed=0 if name == "both" else 5)
    assert continue_from(again, delta) == ()
    found = again.delta("float32")
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(view(base, found)(x), view(base, delta)(x), rtol=1e-5, atol=1e-6)
    for key, port in delta.ports.items():
        for tensor, stored in port.tensors.items():
            assert torch.equal(values_of(stored), values_of(found.ports[key].tensors[tensor]))
    history = History()
    fit(again, task, TrainConfig(steps=30, log_every=1), recorder=history)
    assert again.delta().updates.keys() == delta.updates.keys()


def test_a_smaller_rank_goes_on_in_a_larger_one_with_another_scale():
    base, task, adaptation = trained(LoRA(rank=2, alpha=4.0, values_lr=0.02))
    delta = adaptation.delta("float32")
    wider = start(base, task, LoRA(rank=5, alpha=3.0), seed=1)
    continue_from(wider, delta)
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), wider.settled() as module:
        torch.testing.assert_close(module.eval()(x), view(base, delta)(x), rtol=1e-5, atol=1e-6)
    narrower = start(base, task, LoRA(rank=1), seed=1)
    with pytest.raises(DeltaError, match=r"cannot go on .* has rank 2, this tuner trains 1"):
        continue_from(narrower, delta)
    principal = start(base, task, LoRA(rank=2, start="principal"), seed=1)
    with pytest.raises(DeltaError, match="counted from the base's principal part"):
        continue_from(principal, delta)


def test_what_cannot_go_on_is_an_error():
    base, task, adaptation = trained(TUNERS["lora"], steps=3)
    delta = adaptation.delta()
    for tuner, error, message in (
        (Full(), DeltaError, "by low_rank, Dense trains dense"),
        (RandomMask(share=0.3), DeltaError, "by low_rank, FixedMask trains sparse"),
        (IA3(), DeltaError, "it has a low_rank term, this tuner trains scale"),
        (Head(), DeltaError, "which is no target of Head"),
        (DiffPruning(share=0.3), UnsupportedError, "it still has to choose what it trains"),
    ):
        with pytest.raises(error, match=message):
            continue_from(start(base, task, tuner, seed=0), delta)
    few = start(base, task, RandomMask(share=0.2), seed=0)
    with pytest.raises(DeltaError, match=r"keeps 115 values, .* set its share to 0\.300781"):
        continue_from(few, start(base, task, RandomMask(share=0.3), seed=0).delta())
    with torch.no_grad():
        base.model.body[0].weight[0, 0] += 1.0
    other = make_base()
    with torch.no_grad():
        other.model.body[0].weight.mul_(2.0)
    from graftwork.bases import load

    with pytest.raises(FingerprintError):
        continue_from(start(load(other.model), task, TUNERS["lora"], seed=0), delta)


def test_a_head_of_another_task_starts_anew():
    base, _, adaptation = trained(TUNERS["lora"], steps=3)
    task = make_toy_task(base, head_hidden=7)
    fresh = start(base, task, TUNERS["lora"], seed=3)
    before = {key: value.clone() for key, value in fresh.ports.state_dict().items()}
    assert continue_from(fresh, adaptation.delta()) == ("head",)
    assert all(torch.equal(before[k], v) for k, v in fresh.ports.state_dict().items())


def test_a_run_goes_on_from_the_folder_of_another(tmp_path):
    base = make_base()

    def run(name: str, **more):
        config = RunConfig(
            base="toy",
            out=str(tmp_path / name),
            tuner=TUNERS["lora"],
            train=TrainConfig(steps=20),
            log=LogConfig(progress="silent"),
            **more,
        )
        return adapt(config, base=base, task=make_toy_task(base))

    one = run("a")
    two = run("b", continue_from=str(tmp_path / "a"))
    assert two.delta.provenance["continued"] == content_hash(one.delta)
    assert "continued" not in one.delta.provenance
    with pytest.raises(StorageError, match="there is no delta at"):
        run("c", continue_from=str(tmp_path / "x"))
