"""Every tuner on bases held in 8 bits, after real training (laws 1, 2, 4, 6, 7).

The oracle is the floating base of the same matrices: a tuner must do there, to rounding, what it
does on the 8 bits.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
from torch import nn

from graftwork._batch import Batch
from graftwork.bases import Base, load
from graftwork.deltas import (
    float_of,
    is_int8,
    replace_parameter,
    require_consumed,
    run_rows,
    view,
)
from graftwork.deltas import load as load_delta
from graftwork.deltas import save as save_delta
from graftwork.tuning import LoRA, as_delta
from tests.battery.models import CASES, VOCABULARY, WIDTH, Case
from tests.battery.test_tuners import TUNED, instructed, learn

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def _llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=32,
            tie_word_embeddings=False,
        )
    )


MODELS: dict[str, Case] = {
    "bert": CASES["bert"],
    "llama": replace(CASES["gpt2"], name="llama", make=_llama),
    "vit": CASES["vit"],
    "encoder": CASES["encoder"],
    "attention": CASES["attention"],
    "lstm": CASES["lstm"],
}
MATRICES = {"bert": 13, "llama": 15, "vit": 13, "encoder": 5, "attention": 1, "lstm": 1}
QUICK = [("lora", c) for c in ("llama", "vit", "encoder", "attention", "lstm")]
QUICK += [("random_mask", "llama"), ("bottlenecks", "llama"), ("prompt", "bert")]
PAIRS = [
    pytest.param(name, case, marks=[pytest.mark.slow] if slow else [], id=f"{name}-{case}")
    for name, row in TUNED.items()
    for case, slow in (("bert", row.slow), ("llama", True))
    # the biases of a Llama are none
    if row.case is not instructed and (name, case) not in [*QUICK, ("bitfit", "llama")]
]


def eight(case: Case, dtype: torch.dtype = torch.float32) -> Base:
    base = load(case.build(dtype), quantise="int8")
    base.prints(base.names.pieces)  # all of it under guard of `verify`
    return base


def floating(case: Case) -> Base:
    """Return the floating base of the same matrices."""
    held, module = eight(case).model, case.build()
    for name, parameter in held.named_parameters():
        if is_int8(parameter):
            replace_parameter(module, name, nn.Parameter(float_of(parameter).clone()))
    return load(module)


@pytest.mark.parametrize("case_name", MODELS)
def test_what_runs_in_8_bits_gives_what_its_matrices_give(case_name):
    case = MODELS[case_name]
    base, plain, inputs = eight(case), floating(case), case.batch(8).inputs
    assert len(base.quantised) == MATRICES[case_name]
    with torch.no_grad():
        ours, theirs = case.call(base.model, inputs), case.call(plain.model, inputs)
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "case_name"), [*PAIRS, *QUICK])
def test_trains_extracts_saves_and_loads(name, case_name, tmp_path):
    row = TUNED[name]
    case = row.case(MODELS[case_name])
    base = eight(case)
    attachment, left = learn(row, case, base, seed=0)
    assert left <= 0.7, "the loss must fall by 30 % before anything else is tested"
    base.verify()

    delta = as_delta(base, attachment.extract(), ports=attachment.ports())
    assert delta.fingerprint.processing == {"quantise": "int8"}
    save_delta(delta, tmp_path / "delta")
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        first = case.call(view(base, delta, unused="allow"), inputs)
        again = case.call(view(base, load_delta(tmp_path / "delta"), unused="allow"), inputs)
        exact = as_delta(base, attachment.extract("float32"), ports=attachment.ports("float32"))
        unrounded = case.call(view(base, exact, unused="allow"), inputs)
        with attachment.settled() as module:
            settled = case.call(module.eval(), inputs)
    assert torch.equal(first, again)
    scale = float(settled.abs().max())
    assert float((unrounded - settled).abs().max()) <= 1e-5 * scale
    assert float((first - settled).abs().max()) <= 0.02 * scale
    base.verify()


@functools.cache
def _learnt(name: str, kind: str) -> torch.Tensor:
    """Return outputs of a view after training on the 8 bits, or on their matrices as floats."""
    case = CASES["bert"]
    base = eight(case) if kind == "int8" else floating(case)
    attachment, _ = learn(TUNED[name], case, base, seed=3)
    delta = as_delta(base, attachment.extract("float32"), ports=attachment.ports("float32"))
    with torch.no_grad():
        return case.call(view(base, delta, unused="allow"), case.batch(16, seed=77).inputs)


SAME = ["lora", "dora", "random_mask"]
SAME += [pytest.param(name, marks=pytest.mark.slow) for name in ("ia3", "bitfit", "bottlenecks")]


@pytest.mark.parametrize("name", SAME)
def test_training_is_that_on_the_floating_base_of_the_same_matrices(name):
    ours, theirs = _learnt(name, "int8"), _learnt(name, "float")
    # steps of Adam enlarge the last bits of a gradient
    assert float((ours - theirs).abs().max()) <= 2e-3 * float(theirs.abs().max())


def test_law06_rows_of_several_tuners_and_of_the_base_alone():
    case = CASES["bert"]
    base = eight(case)
    deltas = []
    for name in ("lora", "random_mask", "bitfit"):
        attachment, left = learn(TUNED[name], case, base, seed=1)
        assert left <= 0.7
        deltas.append(as_delta(base, attachment.extract()))
    batch = case.batch(8, seed=5)
    lists = [[], *([(delta, 1.0)] for delta in deltas)] * 2
    rows = run_rows(base, lists, batch, lambda module, _ports, inputs: case.call(module, inputs))
    for i, weighted in enumerate(lists):
        one = Batch({"input_ids": batch.inputs["input_ids"][i : i + 1]}, None, torch.arange(1))
        with torch.no_grad():
            alone = case.call(view(base, weighted), one.inputs)[0]
        torch.testing.assert_close(rows[i], alone, rtol=1e-5, atol=1e-5)
    base.verify()


def test_law07_an_adapted_matrix_in_8_bits_is_consumed():
    case = MODELS["llama"]
    base = eight(case)
    attachment, _ = learn(TUNED["lora"], case, base, seed=0)
    delta = as_delta(base, attachment.extract())
    assert set(base.quantised) <= set(delta.updates)
    adapted = view(base, delta)
    with torch.no_grad():
        case.call(adapted, case.batch(2).inputs)
    require_consumed(adapted)


def test_dropout_acts_on_the_branch_of_a_matrix_in_8_bits():
    case = MODELS["llama"]
    base = eight(case)
    tuner = LoRA(rank=2, dropout=0.5)
    attachment = tuner.attach(base, list(base.quantised), seed=0)
    attachment.prepare(0.0, seed=0)
    attachment.module.train()
    for parameter in attachment:
        nn.init.ones_(parameter)
    inputs = case.batch(2).inputs
    assert not torch.equal(*(case.call(attachment.module, inputs) for _ in range(2)))


def test_a_base_in_16_bits_held_in_8_trains_in_32():
    case = CASES["bert"]
    base = eight(case, torch.bfloat16)
    tuner = LoRA(rank=4, values_lr=1e-2)
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    assert {p.dtype for p in attachment} == {torch.float32}
    optimiser = torch.optim.Adam(attachment, lr=1e-2)
    losses = []
    for step in range(60):
        attachment.prepare(step / 60, seed=step)
        loss = case.loss(attachment.module, case.batch(32, seed=step)).float().mean()
        loss.backward()
        attachment.collect()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    delta = as_delta(base, attachment.extract())
    with torch.no_grad():
        out = case.call(view(base, delta), case.batch(4).inputs)
    assert out.dtype == torch.bfloat16
    base.verify()
