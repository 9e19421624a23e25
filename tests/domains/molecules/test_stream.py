"""Masked batches: shares, determinism, seeking, buckets, processes, and the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.domains.molecules.conftest import SMILES
from torch.nn import functional

from graftwork.domains.molecules import (
    KEEP,
    MaskedStream,
    MaskedTokenScorer,
    Masking,
    masked_token_loss,
    padding_share,
    predict_hidden,
)
from graftwork.errors import InputError
from graftwork.models import MolformerConfig
from graftwork.tasks import Batch, Stream


def stream(tokenizer: object, **options: object) -> MaskedStream:
    smiles = [text * n for n in (1, 2, 3) for text in SMILES]
    return MaskedStream(smiles=smiles, tokenizer=tokenizer, **{"batch_size": 5, **options})


def same(first: Batch, second: Batch) -> bool:
    return (
        torch.equal(first.rows, second.rows)
        and torch.equal(first.targets, second.targets)
        and all(torch.equal(first.inputs[k], second.inputs[k]) for k in first.inputs)
    )


def test_shares_of_tokens(tokenizer: object) -> None:
    long = ["".join(SMILES)] * 200
    made = MaskedStream(smiles=long, tokenizer=tokenizer, batch_size=200)
    batch = made.draw()
    chosen = batch.targets != KEEP
    tokens = int(batch.inputs["attention_mask"][0].sum()) - 2
    assert (chosen.sum(1) == round(0.15 * tokens)).all()
    shown, wanted = batch.inputs["input_ids"][chosen], batch.targets[chosen]
    masked = (shown == tokenizer.mask_token_id).float().mean()
    kept = (shown == wanted).float().mean()
    assert masked == pytest.approx(0.8, abs=0.02)
    # a random token is the right one now and then
    assert kept == pytest.approx(0.1 + 0.1 / (len(tokenizer) - 5), abs=0.02)
    assert not torch.isin(wanted, torch.tensor([0, 1, 2, 3])).any()
    other = shown[(shown != tokenizer.mask_token_id) & (shown != wanted)]
    assert other.min() > tokenizer.mask_token_id
    assert other.max() < tokenizer.unk_token_id
    unhidden = batch.inputs["input_ids"][~chosen]
    plain = torch.tensor(tokenizer(long)["input_ids"])
    assert torch.equal(unhidden, plain[~chosen])


def test_every_row_once_an_epoch_from_one_bucket_a_batch(tokenizer: object) -> None:
    made = stream(tokenizer, buckets=(12, 30))
    assert isinstance(made, Stream)
    lengths = made.lengths
    orders = []
    for _ in range(2):
        drawn = [made.draw().rows.numpy() for _ in range(made.batches)]
        assert sorted(np.concatenate(drawn).tolist()) == list(range(len(made)))
        for rows in drawn:
            assert len(set(np.searchsorted((12, 30), lengths[rows], side="right"))) == 1
            assert len(rows) <= 5
        orders.append(np.concatenate(drawn).tolist())
    assert orders[0] != orders[1]


def test_small_buckets_join_their_neighbours(tokenizer: object) -> None:
    made = stream(tokenizer, buckets=tuple(range(4, 120)), batch_size=8)
    sizes = [len(made.draw().rows) for _ in range(made.batches)]
    assert sum(sizes) == len(made)
    assert min(sizes) >= 4
    assert max(sizes) <= 8


def test_draw_is_a_function_of_seed_and_index(tokenizer: object) -> None:
    made = stream(tokenizer)
    batches = [made.draw() for _ in range(2 * made.batches)]
    again = stream(tokenizer)
    for index in (13, 2, 2 * made.batches - 1):
        again.seek(index)
        assert same(again.draw(), batches[index])
    saved = stream(tokenizer)
    for _ in range(7):
        saved.draw()
    fresh = stream(tokenizer)
    fresh.load_state(saved.state())
    assert same(fresh.draw(), batches[7])
    assert not same(stream(tokenizer, seed=1).draw(), batches[0])


def test_processes_part_each_batch(tokenizer: object) -> None:
    whole, parts = stream(tokenizer), [stream(tokenizer) for _ in range(2)]
    for rank, part in enumerate(parts):
        part.shard(rank, 2)
    for _ in range(5):
        full = whole.draw()
        drawn = [part.draw() for part in parts]
        assert sorted(torch.cat([d.rows for d in drawn]).tolist()) == sorted(full.rows.tolist())
        assert same(drawn[1], full.select(torch.arange(1, len(full), 2)))
    with pytest.raises(InputError, match="too few for 9 processes"):
        whole.shard(0, 9)


def test_once_hides_by_the_row_alone(tokenizer: object) -> None:
    made = stream(tokenizer)
    by_row = {}
    for size, sort in ((4, False), (9, True)):
        for batch in made.once(size, by_length=sort):
            for i, row in enumerate(batch.rows.tolist()):
                count = int(batch.inputs["attention_mask"][i].sum())
                found = (batch.inputs["input_ids"][i, :count], batch.targets[i, :count])
                expected = by_row.setdefault(row, found)
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert len(by_row) == len(made)
    assert made.index == 0


def test_changed_molecules_cannot_go_on(tokenizer: object) -> None:
    state = stream(tokenizer).state()
    other = MaskedStream(smiles=list(SMILES), tokenizer=tokenizer)
    with pytest.raises(InputError, match="changed since the checkpoint"):
        other.load_state(state)
    with pytest.raises(InputError, match="has the keys"):
        other.load_state({})


def test_buckets_waste_less(tokenizer: object) -> None:
    shares = []
    for buckets in ((), (12, 20, 30, 45)):
        made = stream(tokenizer, buckets=buckets, batch_size=8)
        rows = [made.draw().rows.numpy() for _ in range(made.batches)]
        shares.append(padding_share(made.lengths, rows))
    assert shares[1] < 0.6 * shares[0]


def test_loss_and_measure_against_plain_sums(tokenizer: object, config: MolformerConfig) -> None:
    torch.manual_seed(0)
    module = config.build().eval()
    made = stream(tokenizer)
    batch = made.draw()
    losses = masked_token_loss(lambda b: predict_hidden(module, b), batch)
    with torch.no_grad():
        hidden = module(**batch.inputs)["last_hidden_state"]
        logits = module.lm_head(hidden)
    for row in range(len(batch)):
        wanted = batch.targets[row]
        expected = functional.cross_entropy(logits[row], wanted, ignore_index=KEEP)
        assert float(losses[row].detach()) == pytest.approx(float(expected), rel=1e-5)
    scorer = MaskedTokenScorer()
    found = [scorer.evaluate(lambda b: predict_hidden(module, b), made, n) for n in (3, 50)]
    assert found[0]["loss"] == pytest.approx(found[1]["loss"], rel=1e-6)
    assert found[0]["perplexity"] == pytest.approx(np.exp(found[0]["loss"]))
    assert scorer.better({"loss": 1.0}, {"loss": 2.0})
    assert not scorer.better({"loss": 2.0}, {"loss": 2.0})


def test_bad_arguments(tokenizer: object) -> None:
    with pytest.raises(InputError, match="must ascend"):
        stream(tokenizer, buckets=(30, 12))
    with pytest.raises(InputError, match="0 molecules"):
        MaskedStream(smiles=[], tokenizer=tokenizer)
    with pytest.raises(InputError, match="0 < share < 1"):
        Masking(share=0.0)
    with pytest.raises(InputError, match="more than 1"):
        Masking(masked=0.8, random=0.3)
    with pytest.raises(InputError, match="needs targets"):
        masked_token_loss(lambda b: None, Batch({}, None, torch.arange(1)))
