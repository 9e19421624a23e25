"""The form in which deltas are held: positions come back exactly, bytes are as promised."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from graftwork.bases import load
from graftwork.deltas import Delta, SeededMask, Sparse, Update, fingerprint_of, seeded_positions
from graftwork.serving import Mixer
from graftwork.serving._prepared import CHUNK, Support, Supports, prepare
from tests.serving.support import plain_call, rows_of


@given(
    numel=st.integers(1, 3 * CHUNK + 5),
    share=st.sampled_from([0.0, 0.001, 0.5, 1.0]),
    seed=st.integers(0, 9),
)
def test_positions_come_back(numel: int, share: float, seed: int) -> None:
    count = round(share * numel)
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randperm(numel, generator=generator)[:count].sort().values
    found = Support.of(positions, numel)
    assert torch.equal(found.positions(), positions)
    assert found.low.numel() == count


def seeded(base, value: float, count: int = 2000) -> Delta:
    mask = SeededMask(7, "weight")
    positions = seeded_positions(mask, 400 * 500, count)
    values = torch.full((count,), value, dtype=torch.float16)
    update = Update((400, 500), sparse=Sparse(positions, values, mask))
    return Delta({"weight": update}, fingerprint=fingerprint_of(base, ["weight"]))


def test_law08_a_sparse_value_of_16_bits_takes_at_most_five_and_a_half_bytes() -> None:
    base = load(nn.Linear(500, 400, bias=False))
    ready = prepare(base, seeded(base, 1.0), Supports())
    assert ready.bytes <= 5.5 * 2000


def test_tasks_of_one_support_hold_it_once() -> None:
    base = load(nn.Linear(500, 400, bias=False))
    supports = Supports()
    one, two = (prepare(base, seeded(base, value), supports) for value in (1.0, 2.0))
    other = prepare(base, seeded(base, 1.0, 1999), supports)
    assert one.updates["weight"].support is two.updates["weight"].support
    assert one.updates["weight"].support is not other.updates["weight"].support
    assert len(supports._held) == 2
    del one, two
    assert len(supports._held) == 1


def test_a_slice_of_a_file_does_not_keep_the_file() -> None:
    base = load(nn.Linear(4, 2))
    whole = torch.zeros(100_000)
    delta = Delta(
        {"bias": Update((2,), dense=whole[:2])}, fingerprint=fingerprint_of(base, ["bias"])
    )
    held = prepare(base, delta, Supports()).updates["bias"].update().dense
    assert isinstance(held, torch.Tensor)
    assert held.untyped_storage().nbytes() == 8


def test_what_is_held_is_the_delta() -> None:
    base = load(nn.Linear(500, 400, bias=False))
    delta = seeded(base, 0.5)
    mixer = Mixer(base)
    key = mixer.add(delta)
    assert mixer.add(delta) == key
    assert mixer.keys == (key,)
    x = torch.randn(1, 500)
    (output,) = mixer.run(mixer.plan([[(key, 1.0)]]), rows_of(x), plain_call)
    weight = base.model.weight.detach().clone()
    weight.view(-1)[delta.updates["weight"].sparse.positions] += 0.5
    torch.testing.assert_close(output, (x @ weight.T)[0])
