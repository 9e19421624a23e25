"""What PEFT's methods do with names of adapters by row, and that rows here have their own."""

from __future__ import annotations

import pytest
import torch

from graftwork._batch import Batch
from graftwork.bases import load
from graftwork.deltas import Delta, Update, fingerprint_of
from graftwork.serving import Mixer
from tests.battery import per_row

LEARNS_WEIGHTS = [
    name
    for name, config in per_row.CONFIGS.items()
    if "num_virtual_tokens" not in config and name not in ("LoRA with biases", "AdaLoRA")
]


@pytest.mark.slow
def test_the_page_is_up_to_date() -> None:
    shown = per_row.PAGE.read_text(encoding="utf-8")
    assert shown == per_row.page(), "python -m tests.battery.per_row"


@pytest.mark.parametrize(
    ("method", "outcome"),
    [
        ("LoRA", "honoured"),
        ("DoRA", "refused"),
        ("SHiRA", "ignored silently"),
        ("IA3", "ignored silently"),
        ("prompt tuning", "ignored silently"),
    ],
)
def test_the_three_outcomes_are_told_apart(method: str, outcome: str) -> None:
    assert per_row.outcome(method) == outcome


def test_every_method_has_a_row() -> None:
    text = per_row.PAGE.read_text(encoding="utf-8")
    for name in per_row.CONFIGS:
        assert f"| {name} |" in text


def deltas_of(method: str) -> tuple[Delta, Delta, dict[str, torch.Tensor]]:
    """Return what the adapters "a" and "b" of a method change, and what PEFT gives for each."""
    base = load(per_row.tiny_bert())
    before = {name: p.detach().clone() for name, p in base.model.named_parameters()}
    found, outputs = [], {}
    for adapter in ("a", "b"):
        model = per_row.two_adapters(method)
        model.set_adapter(adapter)
        with torch.no_grad():
            outputs[adapter] = model(input_ids=per_row.tokens()).logits
        merged = dict(model.merge_and_unload().named_parameters())
        updates = {
            name: Update(tuple(value.shape), dense=(merged[name].detach() - value))
            for name, value in before.items()
            if not torch.equal(merged[name], value)
        }
        found.append(Delta(updates, fingerprint=fingerprint_of(base, list(updates))))
    return found[0], found[1], outputs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", LEARNS_WEIGHTS)
def test_rows_here_have_what_each_adapter_gives_alone(method: str) -> None:
    first, second, alone = deltas_of(method)
    mixer = Mixer(load(per_row.tiny_bert()))
    keys = {"a": mixer.add(first), "b": mixer.add(second)}
    names = ["a", "b", "b", "a"]
    batch = Batch({"input_ids": per_row.tokens()}, None, torch.arange(4))
    plan = mixer.plan([[(keys[name], 1.0)] for name in names])
    outputs = mixer.run(plan, batch, lambda m, _, i: m(**i).logits)
    for row, (name, output) in enumerate(zip(names, outputs, strict=True)):
        torch.testing.assert_close(output, alone[name][row], rtol=1e-3, atol=1e-3)
