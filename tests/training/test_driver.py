"""The driver: what it reaches, stops at, measures, keeps, and leaves alone."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from graftwork._batch import Batch
from graftwork._errors import ConfigError, TrainingError, UnknownNameError, UnsupportedError
from graftwork.deltas import build_ports, dumps, values_of, view
from graftwork.steps import PlainSum, PlainSumConfig
from graftwork.tasks import GeneratorStream
from graftwork.training import (
    History,
    RunContext,
    Settings,
    TrainConfig,
    derive,
    finish,
    fit,
    start,
)
from graftwork.tuning import TUNERS, DiffPruning, Full, RandomMask, Tuner, TuningWarning
from graftwork.tuning import Head as HeadOnly
from tests.training.toys import make_adaptation, make_base, make_toy_task

MASK = RandomMask(share=0.3, values_lr=0.05, head_lr=0.02)
DIFF = DiffPruning(share=0.3, values_lr=0.02, head_lr=0.02)


def losses(history: History) -> list[float]:
    return [row["loss"] for row in history.records if "loss" in row]


@pytest.mark.parametrize("name", sorted(set(TUNERS) - {"prompt", "prefix"}))  # of text bases only
def test_every_tuner_learns_and_its_metrics_are_of_the_rounded_delta(name: str) -> None:
    """Law 4, after training; the oracle applies the delta by hand."""
    known = TUNERS[name].__dataclass_fields__
    rates = {"values_lr": 0.02, "mask_lr": 0.05, "head_lr": 0.05, "share": 0.3}
    rates |= {"places": ("body.*.weight",), "reduction": 2}
    tuner = TUNERS[name](**{k: v for k, v in rates.items() if k in known})
    adaptation, task = make_adaptation(tuner, dropout=0.0)
    history = History()
    fit(adaptation, task, TrainConfig(steps=120, batch_size=32, log_every=1), recorder=history)
    first, last = losses(history)[:5], losses(history)[-5:]
    assert sum(last) < (0.85 if name == "head" else 0.7) * sum(first)

    delta, metrics = finish(adaptation, task)
    module = view(adaptation.base, delta).eval()
    for parameter in (p for n, p in adaptation.base.model.named_parameters()):
        assert not parameter.requires_grad
    for canonical, update in delta.updates.items():
        weight = adaptation.base.model.get_parameter(canonical)
        path, _, leaf = canonical.rpartition(".")
        found = getattr(module.get_submodule(path), leaf)
        assert torch.equal(found, update.adapted(weight))
    ports = build_ports(delta)
    stream = task.streams["eval"]
    batch = next(iter(stream.once(40)))  # type: ignore[attr-defined]
    logits = ports["head"](module(batch.inputs["x"])).argmax(1)
    assert metrics["accuracy"] == pytest.approx((logits == batch.targets).double().mean().item())
    assert delta.provenance["metrics"] == metrics
    adaptation.base.verify()


def test_measuring_and_logging_do_not_change_what_is_learnt() -> None:
    plain, task = make_adaptation(DIFF)
    fit(plain, task, TrainConfig(steps=30), recorder=History())
    watched, task = make_adaptation(DIFF)
    fit(watched, task, TrainConfig(steps=30, eval_every=3, log_every=1), recorder=History())
    assert dumps(plain.delta()) == dumps(watched.delta())


def test_seed_decides_all_and_the_callers_generator_stays() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    made = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        base = make_base()
        torch.set_rng_state(before)
        task = make_toy_task(base)
        adaptation = start(base, task, DIFF, seed=seed)
        fit(adaptation, task, TrainConfig(steps=10), recorder=History())
        assert torch.equal(torch.get_rng_state(), before)
        made.append(dumps(adaptation.delta()))
        torch.manual_seed(99)
    assert made[0] == made[1] != made[2]


def test_unreached_tensors_are_left_out_and_said() -> None:
    adaptation, task = make_adaptation(MASK)
    assert adaptation.unreached == ["pooler.weight", "pooler.bias"]
    base = adaptation.base
    with pytest.raises(TrainingError, match=r"does not reach .*'pooler\.weight'.*`exclude`"):
        start(base, task, MASK, targets=["*"])
    chosen = start(base, task, MASK, targets=["*"], exclude=["pooler.*"])
    assert chosen.unreached == []
    with pytest.raises(UnknownNameError, match="pattern 'boddy"):
        start(base, task, MASK, targets=["boddy.*"])


def test_the_probe_moves_nothing() -> None:
    base = make_base()
    task = make_toy_task(base)
    stream = task.streams["train"]
    first = stream.draw()
    stream.seek(0)  # type: ignore[attr-defined]
    start(base, task, MASK)
    assert torch.equal(stream.draw().rows, first.rows)
    assert not any(p.requires_grad or p.grad is not None for p in base.model.parameters())


def poisoned(after: int):
    """Cross-entropy that becomes NaN for the second row of a batch."""
    calls = [0]

    def objective(model, batch: Batch) -> torch.Tensor:
        calls[0] += 1
        loss = torch.nn.functional.cross_entropy(model(batch), batch.targets, reduction="none")
        bad = torch.zeros_like(loss)
        bad[1] = math.nan if calls[0] > after else 0.0
        return loss + bad

    return objective


def test_nan_loss_stops_and_names_step_and_row() -> None:
    adaptation, task = make_adaptation(MASK)
    task = replace(task, objectives={"task": poisoned(after=3)})
    rows = [task.streams["train"].draw().rows[1].item() for _ in range(4)]
    task.streams["train"].seek(0)  # type: ignore[attr-defined]
    message = rf"stage 'fixed mask', step 4: the loss of row\(s\) {rows[3]} of the data is NaN"
    with pytest.raises(TrainingError, match=message):
        fit(adaptation, task, TrainConfig(steps=9))


def test_loss_that_depends_on_nothing_trainable() -> None:
    adaptation, task = make_adaptation(HeadOnly())
    constant = {"task": lambda model, batch: torch.ones(len(batch))}
    with pytest.raises(TrainingError, match="does not depend on any trainable value"):
        fit(adaptation, replace(task, objectives=constant), TrainConfig(steps=2))


def test_patience_ends_the_last_stage_and_the_best_is_kept() -> None:
    adaptation, task = make_adaptation(DIFF)
    history = History()
    config = TrainConfig(steps=200, eval_every=2, patience=3, keep_best=True)
    fitted = fit(adaptation, task, config, recorder=history)
    assert fitted.stopped_early
    assert 140 < fitted.best_step < fitted.steps < 200
    rows = [r for r in history.records if "eval/accuracy" in r and r["step"] > 140]
    best = max(r["eval/accuracy"] for r in rows)
    assert fitted.best is not None
    assert fitted.best["accuracy"] == best
    assert fitted.steps == fitted.best_step + 6
    _, metrics = finish(adaptation, task, stored="float32")
    assert metrics["accuracy"] == best


def test_patience_without_evaluations_is_an_error() -> None:
    adaptation, task = make_adaptation(MASK)
    with pytest.raises(ConfigError, match="patience needs evaluations: set eval_every"):
        fit(adaptation, task, TrainConfig(steps=3, patience=2))


def test_learning_rates_by_stage_and_role() -> None:
    adaptation, task = make_adaptation(DIFF)
    history = History()
    rates = {"fixed mask": {"values": 0.125}, "gates": {"gates": 0.0625}}
    config = TrainConfig(steps=10, learning_rates=rates, log_every=1)  # type: ignore[arg-type]
    with pytest.warns(TuningWarning):
        fit(adaptation, task, config, step=PlainSum(PlainSumConfig(schedule="constant")))
    adaptation, task = make_adaptation(DIFF)
    step = PlainSum(PlainSumConfig(schedule="constant"))
    fit(adaptation, task, config, step=step, recorder=history)
    rows = [row for row in history.records if "loss" in row]
    assert {row["rate/gates"] for row in rows[:7]} == {0.0625}
    assert {row["rate/values"] for row in rows[:7]} == {DIFF.values_lr}
    assert {row["rate/values"] for row in rows[7:]} == {0.125}
    with pytest.raises(ConfigError, match="no stage 'fixed'; did you mean 'fixed mask'"):
        fit(adaptation, task, replace(config, learning_rates={"fixed": {}}))


def test_warnings_of_the_tuner_are_notes_of_the_run() -> None:
    adaptation, task = make_adaptation(DiffPruning(share=0.01, density="penalty", lambda_l0=1e-9))
    history = History()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(adaptation, task, TrainConfig(steps=10), recorder=history)
    assert "gate steps" in fitted.notes[0]
    assert any("gate steps" in str(row.get("note")) for row in history.records)


def test_bf16_trains_near_fp32() -> None:
    results = []
    for precision in ("fp32", "bf16"):
        adaptation, task = make_adaptation(MASK, dropout=0.0)
        history = History()
        config = TrainConfig(steps=60, precision=precision, log_every=1)  # type: ignore[arg-type]
        fit(adaptation, task, config, recorder=history)
        results.append(losses(history))
        assert all(p.dtype == torch.float32 for g in adaptation.groups for p in g.parameters)
    assert results[0] != results[1]
    assert results[1][-1] == pytest.approx(results[0][-1], abs=0.1)


def test_dropout_can_be_off() -> None:
    made = []
    for p, dropout in ((0.5, False), (0.0, True), (0.5, True)):
        adaptation, task = make_adaptation(MASK, dropout=p)
        fit(adaptation, task, TrainConfig(steps=5, dropout=dropout))
        made.append(adaptation.delta().ports["head"].tensors["out.weight"])
    tensors = [values_of(t) for t in made]
    assert torch.equal(tensors[0], tensors[1])
    assert not torch.equal(tensors[1], tensors[2])


def test_accumulation_equals_a_big_batch_through_the_driver() -> None:
    made = []
    for batch, accumulate in ((32, 1), (8, 4)):
        adaptation, task = make_adaptation(DIFF, dtype=torch.float64, dropout=0.0)
        config = TrainConfig(steps=20, batch_size=batch, accumulate=accumulate)
        fit(adaptation, task, config, recorder=History())
        made.append(adaptation.delta("float64"))
    a, b = made
    assert a.updates.keys() == b.updates.keys()
    for name, update in a.updates.items():
        other = b.updates[name]
        assert update.sparse is not None
        assert other.sparse is not None
        assert torch.equal(update.sparse.positions, other.sparse.positions)
        left, right = values_of(update.sparse.values), values_of(other.sparse.values)
        torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


def test_stage_with_its_own_batch_size() -> None:
    class Small(Tuner):
        stages = tuple(replace(s, batch_size=b) for s, b in zip(Full().stages, [2], strict=True))

        def attach(self, base, targets, *, seed):
            return Full().attach(base, targets, seed=seed)

    adaptation, task = make_adaptation(Small())
    fit(adaptation, task, TrainConfig(steps=6))
    stream = task.streams["train"]
    assert (stream.batch_size, stream.index) == (2, 6)  # type: ignore[attr-defined]


def test_streams_that_make_their_own_batches() -> None:
    adaptation, task = make_adaptation(MASK)
    whole = task.streams["train"].draw()
    stream = GeneratorStream(make=lambda index: whole, name="train", digest="same")
    task = replace(task, streams={"train": stream})
    assert fit(adaptation, task, TrainConfig(steps=3)).steps == 3
    with pytest.raises(UnsupportedError, match="makes its batches itself"):
        fit(adaptation, task, TrainConfig(steps=3, batch_size=4))
    with pytest.raises(ConfigError, match="no end; set steps"):
        fit(adaptation, task, TrainConfig(epochs=1.0))
    assert finish(adaptation, task)[1] == {}


def context_of(tuner: Tuner) -> RunContext:
    adaptation, task = make_adaptation(tuner, dropout=0.5)
    stage = adaptation.stages[0]
    adaptation.train(stage.learning_rates)
    return RunContext(adaptation, task, stage, (0, 0, 10), Settings())


@pytest.mark.parametrize("tuner", [Full(), MASK, DIFF, HeadOnly()])
def test_grad_leaves_gradients_alone(tuner: Tuner) -> None:
    context = context_of(tuner)
    context.prepare()
    batch = context.draw()
    objective = context.objectives["task"]
    values = [p for group in context.groups for p in group.parameters]
    for p in values:
        p.grad = torch.full_like(p, 7.0)
    found = context.grad(objective, batch, eval_mode=True)
    assert all(bool((p.grad == 7.0).all()) for p in values if p.grad is not None)
    for p in values:
        p.grad = None
    for module in context.trainee.modules:
        module.eval()
    context.losses(objective, batch).mean().backward()
    context.collect()
    for gradient, p in zip(found, values, strict=True):
        expected = torch.zeros_like(p) if p.grad is None else p.grad
        torch.testing.assert_close(gradient, expected)
    assert max(float(g.abs().max()) for g in found) > 0


def test_fork_and_restore() -> None:
    context = context_of(MASK)
    step = PlainSum()
    step.begin(context)
    step.update(context)
    kept = [p.detach().clone() for g in context.groups for p in g.parameters]
    fork = context.fork()
    context.index = 1
    step.update(context)
    now = [p for g in context.groups for p in g.parameters]
    assert not all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))
    context.restore(fork)
    assert all(torch.equal(a, b) for a, b in zip(kept, now, strict=True))


def test_measure_uses_deterministic_values_and_returns_to_training() -> None:
    context = context_of(DIFF)
    assert context.measure() == context.measure()
    assert all(module.training for module in context.trainee.modules)
    with pytest.raises(UnknownNameError, match="stream 'evla'; did you mean 'eval'"):
        context.measure("evla")
    with pytest.raises(UnknownNameError, match="stream 'trian'"):
        context.draw("trian")


def test_seeds_of_purposes_are_apart() -> None:
    seeds = {
        derive(s, p, i, j) for s in range(3) for p in ("a", "b") for i in range(9) for j in range(9)
    }
    assert len(seeds) == 3 * 2 * 81
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_rate_for_a_role_that_nothing_has_is_an_error() -> None:
    adaptation, task = make_adaptation(MASK)
    rates = {"fixed mask": {"value": 1e-3}}
    with pytest.raises(ConfigError, match=r"no role 'value'; did you mean 'values'\?"):
        fit(adaptation, task, TrainConfig(steps=3, learning_rates=rates))


def test_a_stage_minimises_only_the_objectives_it_names() -> None:
    adaptation, task = make_adaptation(HeadOnly())
    other = replace(task, objectives={**task.objectives, "other": _never})
    stages = [replace(stage, objectives=("task",)) for stage in adaptation.stages]
    adaptation.stages = stages
    assert fit(adaptation, other, TrainConfig(steps=3)).steps == 3
    adaptation.stages = [replace(stages[0], objectives=("tsak",))]
    with pytest.raises(UnknownNameError, match=r"'tsak'; did you mean 'task'\?"):
        fit(adaptation, other, TrainConfig(steps=3))


def _never(model: object, batch: object) -> Tensor:
    raise AssertionError("an objective of another stage was computed")
