"""`transformers.Trainer` trains a tuner's values, and the delta is what was trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import Trainer, TrainerCallback

from graftwork import deltas
from graftwork.errors import (
    ConfigError,
    FingerprintError,
    TrainingError,
    UnknownNameError,
    UnsupportedError,
)
from graftwork.integrations import DeltaCallback, TunedModule
from graftwork.tuning import DiffPruning, DoRA, LoRA, RandomMask, Tuner, TuningWarning
from tests.integrations.toys import make_base, make_rows, make_trainer

ENCODER = ("encoder.*.weight",)
PRUNING = DiffPruning(share=0.2, groups=None, values_lr=0.02, mask_lr=0.02, head_lr=0.02)
TUNERS = {
    "lora": LoRA(rank=4, values_lr=0.02, head_lr=0.02),
    "dora": DoRA(rank=4, values_lr=0.02, head_lr=0.02),
    "random_mask": RandomMask(share=0.3, values_lr=0.02, head_lr=0.02),
    "diff_pruning": PRUNING,
}


def make_tuned(tuner: Tuner, **given: object) -> TunedModule:
    return TunedModule(make_base(**given), tuner, ENCODER, heads=["classifier"])


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def same_bits(a: deltas.Delta, b: deltas.Delta, folder: Path) -> bool:
    for name, delta in (("a", a), ("b", b)):
        deltas.save(deltas.Delta(delta.updates, delta.ports), folder / name)
    return (folder / "a").read_bytes() == (folder / "b").read_bytes()


class StopAt(TrainerCallback):
    """Stops a training as a user who will resume it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **given):
        control.should_training_stop = state.global_step == self.step


@pytest.mark.parametrize("name", TUNERS)
def test_trains_and_the_saved_delta_runs_as_the_trained_module(name: str, tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS[name])
    callback = DeltaCallback(tuned, tmp_path / "delta.safetensors", stored="float32")
    trainer = make_trainer(tuned, tuned, tmp_path, [callback], max_steps=120)
    trainer.train()
    seen = losses(trainer)
    assert seen[-1] < 0.7 * seen[0], seen
    tuned.base.verify()
    ids = torch.stack([row["input_ids"] for row in make_rows(32, seed=1)])
    adapted = deltas.view(tuned.base, deltas.load(tmp_path / "delta.safetensors")).eval()
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
        before = tuned.base.model(input_ids=ids).logits
        assert (expected - before).abs().max() > 0.1
        torch.testing.assert_close(adapted(input_ids=ids).logits, expected, rtol=0, atol=1e-5)


def test_learns_what_a_plain_loop_over_the_attachment_learns(tmp_path: Path) -> None:
    """The oracle drives the attachment by hand, in 64 bits: Adam blows rounding up."""
    tuner = LoRA(rank=4, values_lr=0.01)
    base = make_base(dtype=torch.float64)
    tuned = TunedModule(base, tuner, ENCODER, seed=7)
    settings = {"per_device_train_batch_size": 64, "lr_scheduler_type": "constant"}
    trainer = make_trainer(
        tuned, tuned, tmp_path, [DeltaCallback(tuned)], max_grad_norm=5e-4, max_steps=20, **settings
    )
    trainer.train()
    rows = make_rows()
    ids, labels = (torch.stack([row[k] for row in rows]) for k in ("input_ids", "labels"))
    attachment = tuner.attach(base, base.names.match(ENCODER), seed=7)
    attachment.module.train()
    optimiser = torch.optim.AdamW(list(attachment), lr=0.01, weight_decay=0.0)
    for step in range(20):
        attachment.prepare(step / 20, seed=step)
        logits = attachment.module(input_ids=ids).logits
        nn.functional.cross_entropy(logits, labels).backward()
        nn.utils.clip_grad_norm_(list(attachment), 5e-4)
        optimiser.step()
        optimiser.zero_grad()
    for mine, theirs in zip(tuned.trained(), attachment, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["lora", "random_mask"])
def test_accumulated_batches_give_the_delta_of_large_ones(name: str, tmp_path: Path) -> None:
    made = []
    for size, parts in ((64, 1), (16, 4)):
        tuned = make_tuned(TUNERS[name], dtype=torch.float64)
        tuned.accepts_loss_kwargs = False  # BERT takes, but does not use, num_items_in_batch
        callback = DeltaCallback(tuned)
        settings = {"per_device_train_batch_size": size, "gradient_accumulation_steps": parts}
        make_trainer(tuned, tuned, tmp_path, [callback], max_steps=10, **settings).train()
        made.append([p.detach().clone() for p in tuned.trained()])
    for one, other in zip(*made, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_stages_advance_at_their_shares_with_new_values_and_rates(tmp_path: Path) -> None:
    seen: list[tuple[int, int, float]] = []

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **given):
            rates = {group["role"]: group["lr"] for group in optimizer.param_groups}
            held = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
            seen.append((tuned.stage_index, held, rates["gates"]))

    tuned = make_tuned(PRUNING)
    settings = {"lr_scheduler_type": "constant"}
    make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned), Watch()], **settings).train()
    assert [stage for stage, *_ in seen] == [0] * 42 + [1] * 18  # shares 0.7 and 0.3 of 60
    entries = sum(tuned.base.names[n].numel for n in tuned.base.names.match(ENCODER))
    head = 16 * 2 + 2
    assert seen[0][1] == 2 * entries + head
    assert seen[-1][1] == int(0.2 * entries) + head
    assert seen[41][2] > 0.0
    assert seen[42][2] == 0.0


@pytest.mark.parametrize(
    ("name", "stop"), [("lora", 30), ("diff_pruning", 20), ("diff_pruning", 50)]
)
def test_law10_a_resumed_training_gives_the_same_bytes(
    name: str, stop: int, tmp_path: Path
) -> None:
    whole = make_tuned(TUNERS[name], dropout=0.1)
    reference = DeltaCallback(whole)
    make_trainer(whole, whole, tmp_path / "whole", [reference]).train()

    folder = tmp_path / "parted"
    saves = {"save_strategy": "steps", "save_steps": 10}
    first = make_tuned(TUNERS[name], dropout=0.1)
    halted = [DeltaCallback(first), StopAt(stop)]
    trainer = make_trainer(first, first, folder, halted, **saves)
    if first.tuner.stages[0].share * 60 > stop and len(first.tuner.stages) > 1:
        with pytest.warns(TuningWarning, match="in stage 'gates', so there is no delta yet"):
            trainer.train()
        with pytest.raises(TrainingError, match="has not trained to the end"):
            halted[0].delta  # noqa: B018
    else:
        trainer.train()
    state = load_file(folder / f"checkpoint-{stop}" / "model.safetensors")
    assert not any("embeddings" in key for key in state)

    second = make_tuned(TUNERS[name], dropout=0.1)
    resumed = DeltaCallback(second)
    again = make_trainer(second, second, folder, [resumed], **saves)
    again.train(resume_from_checkpoint=str(folder / f"checkpoint-{stop}"))
    assert same_bits(reference.delta, resumed.delta, tmp_path)


def test_the_best_checkpoint_can_be_the_delta(tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS["lora"])
    callback = DeltaCallback(tuned, stored="float32")
    settings = {
        "eval_strategy": "steps",
        "eval_steps": 10,
        "save_strategy": "steps",
        "save_steps": 10,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "learning_rate": 0.1,
    }
    trainer = make_trainer(tuned, tuned, tmp_path, [callback], **settings)
    trainer.train()
    adapted = deltas.view(tuned.base, callback.delta).eval()
    rows = make_rows(32, seed=1)
    ids, labels = (torch.stack([row[k] for row in rows]) for k in ("input_ids", "labels"))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(adapted(input_ids=ids).logits, labels).item()
    assert loss == pytest.approx(trainer.state.best_metric, abs=1e-4)


def test_a_part_of_a_larger_model_trains(tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self, tuned: TunedModule) -> None:
            super().__init__()
            self.tuned, self.scale = tuned, nn.Parameter(torch.ones(1))

        def forward(self, input_ids, labels=None):
            logits = self.tuned(input_ids=input_ids).logits * self.scale
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    tuned = make_tuned(TUNERS["lora"])
    model = Own(tuned)
    trainer = make_trainer(model, tuned, tmp_path, [DeltaCallback(tuned)])
    trainer.optimizer = tuned.optimiser([{"params": [model.scale], "lr": 0.05}])
    trainer.train()
    seen = losses(trainer)
    assert seen[-1] < 0.7 * seen[0], seen
    assert abs(model.scale.item() - 1.0) > 0.1


@pytest.mark.parametrize("name", ["lora", "diff_pruning"])
def test_a_base_in_16_bits_is_trained_by_values_in_32(name: str, tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS[name], dtype=torch.bfloat16)
    callback = DeltaCallback(tuned, stored="float32")
    trainer = make_trainer(tuned, tuned, tmp_path, [callback], max_steps=120)
    trainer.train()
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}
    assert {p.dtype for p in tuned.base.model.parameters()} == {torch.bfloat16}
    seen = losses(trainer)
    assert seen[-1] < 0.7 * seen[0], seen
    tuned.base.verify()
    ids = torch.stack([row["input_ids"] for row in make_rows(32, seed=1)])
    with torch.no_grad():
        expected = tuned.eval()(input_ids=ids).logits
        found = deltas.view(tuned.base, callback.delta).eval()(input_ids=ids).logits
    assert found.dtype == expected.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.1 * expected.abs().max()
    assert callback.delta.updates["classifier.weight"].dense.dtype == torch.float32


def test_columns_and_labels_are_those_of_the_base(tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS["lora"])
    trainer = make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned)])
    assert trainer.label_names == ["labels"]
    trainer._set_signature_columns_if_needed()
    assert {"input_ids", "attention_mask", "labels"} <= set(trainer._signature_columns)


def test_without_the_callback_training_is_refused(tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS["lora"])
    with pytest.raises(TrainingError, match=re.escape("callbacks=[DeltaCallback(model)]")):
        make_trainer(tuned, tuned, tmp_path, []).train()


def test_an_optimiser_of_something_else_is_refused(tmp_path: Path) -> None:
    tuned = make_tuned(TUNERS["lora"])
    trainer = make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned)])
    trainer.optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    with pytest.raises(ConfigError, match=re.escape("optimizers=(tuned.optimiser(), None)")):
        trainer.train()
    tuned = make_tuned(PRUNING)
    trainer = make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned)])
    trainer.optimizer = torch.optim.AdamW(tuned.parameters())
    with pytest.raises(ConfigError, match="cannot follow it from stage to stage"):
        trainer.train()


def test_another_object_than_the_trainers_model_is_refused(tmp_path: Path) -> None:
    tuned, other = make_tuned(TUNERS["lora"]), make_tuned(TUNERS["lora"])
    trainer = make_trainer(tuned, tuned, tmp_path, [DeltaCallback(other)])
    with pytest.raises(TrainingError, match="give both the same object"):
        trainer.train()


def test_a_module_that_was_trained_is_not_trained_anew(tmp_path: Path) -> None:
    tuned = make_tuned(PRUNING)
    make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned)], max_steps=4).train()
    with pytest.raises(TrainingError, match="make a new TunedModule, or resume_from_checkpoint"):
        make_trainer(tuned, tuned, tmp_path, [DeltaCallback(tuned)], max_steps=4).train()


def test_a_checkpoint_of_another_base_is_refused() -> None:
    tuned, other = make_tuned(TUNERS["lora"]), make_tuned(TUNERS["lora"])
    state = tuned.state_dict()
    other.load_state_dict(state)
    changed = TunedModule(make_base(seed=4), TUNERS["lora"], ENCODER, heads=["classifier"])
    with pytest.raises(FingerprintError, match="of another base, tuner, target or head"):
        changed.load_state_dict(state, strict=False)
    with pytest.raises(TrainingError, match="not of a TunedModule"):
        other.load_state_dict({}, strict=False)


def test_moves_and_casts_are_refused() -> None:
    tuned = make_tuned(TUNERS["lora"])
    assert tuned.to("cpu") is tuned
    with pytest.raises(UnsupportedError, match=re.escape("torch.float32), and was to go to cpu")):
        tuned.half()
    with pytest.raises(UnsupportedError, match=r"load the base with bases\.load"):
        tuned.to("meta")


def test_bad_heads_are_named() -> None:
    base = make_base()
    with pytest.raises(UnknownNameError, match="'classifer'"):
        TunedModule(base, TUNERS["lora"], ENCODER, heads=["classifer"])


def test_a_tied_head_is_refused() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    from graftwork.bases import load

    config = GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    with pytest.raises(UnsupportedError, match="head 'lm_head' shares a tensor with"):
        TunedModule(load(GPT2LMHeadModel(config)), TUNERS["lora"], heads=["lm_head"])
