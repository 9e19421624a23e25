"""A module for other loops over a base that is held in 8 bits."""

from __future__ import annotations

import pytest
import torch

from graftwork.bases import load
from graftwork.deltas import is_int8, view
from graftwork.integrations import TunedModule
from graftwork.tuning import LoRA
from tests.integrations.toys import make_base as make_classifier
from tests.integrations.toys import make_rows

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def test_a_head_of_a_tuned_module_is_floating_and_its_difference_is_from_the_8_bits():
    base = load(make_classifier().model, quantise="int8")
    assert is_int8(base.model.classifier.weight)
    tuned = TunedModule(base, LoRA(rank=2), heads=["classifier"])
    assert not any(is_int8(p) for p in tuned.parameters())
    rows = make_rows(32)
    inputs = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    optimiser = tuned.optimiser()
    losses = []
    for step in range(60):
        tuned.prepare(step / 60, update=step)
        loss = tuned(**inputs).loss
        loss.backward()
        tuned.collect()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    tuned.eval()
    delta = tuned.delta(stored="float32")
    with torch.no_grad():
        ours, theirs = tuned(**inputs).logits, view(base, delta)(**inputs).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    base.verify()
