"""The MoLFormer encoder: shapes, sizes, masks, determinism, and a block written out by hand."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from graftwork._errors import ConfigError
from graftwork.models import MODELS, MolformerConfig, config_from_json
from graftwork.nn import attention_weights, rotary

SMALL = MolformerConfig(vocab_size=20, width=16, layers=2, heads=2, features=8)


def test_the_published_size_has_47_million_parameters() -> None:
    with torch.device("meta"):
        model = MolformerConfig().build()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(46.8e6, rel=0.005)
    assert model.blocks[0].up.weight.shape == (768, 768)


def test_equals_the_specification_written_out() -> None:
    torch.manual_seed(0)
    model = SMALL.build().double().eval()
    ids = torch.tensor([[0, 4, 7, 5, 1], [0, 9, 1, 2, 2]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    x = model.embedding(ids)
    for block in model.blocks:
        own = block.attention
        heads = [p(x).view(2, 5, 2, 8).transpose(1, 2) for p in (own.query, own.key, own.value)]
        phi = [torch.relu(rotary(h) @ own.feature_map.omega) for h in heads[:2]]
        mixed = attention_weights(*phi, mask) @ heads[2]
        attended = own.out(mixed.transpose(1, 2).reshape(2, 5, 16))
        x = functional.layer_norm(x + attended, (16,)) * block.attention_norm.weight
        x = x + block.attention_norm.bias
        x = block.norm(x + block.down(functional.gelu(block.up(x))))
    found = model(ids, mask)["last_hidden_state"]
    torch.testing.assert_close(found, model.norm(x), rtol=0, atol=1e-10)


def test_padding_changes_nothing_unless_it_may_take_part() -> None:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    ids = torch.tensor([[0, 4, 7, 1]])
    padded = torch.cat((ids, torch.full((1, 3), 2)), dim=1)
    mask = (padded != 2).long()
    alone = model(ids)["last_hidden_state"]
    torch.testing.assert_close(model(padded, mask)["last_hidden_state"][:, :4], alone)
    parity = MolformerConfig(
        vocab_size=20, width=16, layers=2, heads=2, features=8, mask_padding=False
    ).build()
    parity.load_state_dict(model.state_dict())
    found = parity.eval()(padded, mask)["last_hidden_state"][:, :4]
    assert (found - alone).abs().max() > 1e-4


def test_logits_are_of_the_positions_asked_for() -> None:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    ids = torch.randint(0, 20, (3, 6))
    wanted = torch.rand(3, 6) < 0.4
    out = model(ids, predict=wanted)
    assert out["logits"].shape == (int(wanted.sum()), 20)
    everywhere = model(ids, predict=torch.ones_like(wanted))["logits"].view(3, 6, 20)
    torch.testing.assert_close(out["logits"], everywhere[wanted])


def test_training_is_random_and_evaluation_is_not() -> None:
    model, ids = SMALL.build(), torch.randint(0, 20, (2, 5))
    model.eval()
    first = model(ids)["last_hidden_state"]
    assert torch.equal(first, model(ids)["last_hidden_state"])
    model.train()
    assert not torch.equal(model(ids)["last_hidden_state"], model(ids)["last_hidden_state"])


def test_attentions_are_the_weights_that_were_used() -> None:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    ids = torch.randint(0, 20, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        found = list(model.attentions(ids, mask))
    assert [tuple(a.shape) for a in found] == [(2, 2, 5, 5)] * 2
    assert float(found[0][1, :, :, 3:].abs().max()) == 0.0
    assert float((found[1].sum(-1) - 1).abs().max()) < 1e-3


def test_autocast_leaves_sums_over_the_sequence_in_float32() -> None:
    torch.manual_seed(0)
    model, ids = SMALL.build().eval(), torch.randint(0, 20, (2, 300))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(ids)["last_hidden_state"]
    expected = model(ids)["last_hidden_state"]
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.1)


def test_the_body_has_no_head_of_pretraining() -> None:
    whole, body = SMALL.build(), SMALL.body().build()
    assert body.state_dict().keys() < whole.state_dict().keys()
    with pytest.raises(ConfigError, match="no head to predict tokens"):
        body(torch.zeros(1, 2, dtype=torch.int64), predict=torch.ones(1, 2, dtype=torch.bool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 20, "heads": 4}, "does not divide into 4 heads of even width"),
        ({"layers": 0}, "must be positive"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), not 1.0"),
        ({"widht": 16}, "no field 'widht'; did you mean 'width'"),
    ],
)
def test_config_names_what_is_wrong(fields: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_from_json(MODELS["molformer"], fields)


def test_exactly_one_input() -> None:
    with pytest.raises(ConfigError, match="either input_ids or inputs_embeds"):
        SMALL.build()()
