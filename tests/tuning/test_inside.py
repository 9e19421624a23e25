"""Bottlenecks, prompts and prefixes inside the base: against the arithmetic written out."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from tests.battery.models import CASES, WIDTH
from tests.tuning.support import bits, plain_base
from torch import nn
from torch.nn import functional as F

from graftwork._batch import Batch
from graftwork._errors import (
    ConfigError,
    DeltaError,
    FingerprintError,
    UnknownNameError,
    UnsupportedError,
    UnusedTensorError,
)
from graftwork.deltas import apply, build_ports, dumps, loads, run_rows, view
from graftwork.tuning import Bottlenecks, PrefixTuning, PromptTuning, as_delta


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def fill(attachment) -> None:
    with torch.no_grad():
        for i, parameter in enumerate(attachment):
            parameter.copy_(0.3 * matrix(*parameter.shape, seed=i + 1))


def delta_of(base, attachment, stored="float32"):
    return as_delta(base, attachment.extract(stored), ports=attachment.ports(stored))


class Layers(nn.Module):
    """Two layers with residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x)
        return self.norm(x + self.second(x))


def layers():
    torch.manual_seed(0)
    return plain_base(Layers())


NEVER_RUN = r"bottleneck:attention\.out_proj\.weight"
PLACES = ("first.weight", "second.weight")


def test_bottlenecks_follow_their_layers():
    base = layers()
    before, x = bits(base.model), matrix(4, 6)
    tuner = Bottlenecks(places=PLACES, reduction=2, norms=True, activation="tanh")
    attachment = tuner.attach(base, list(base.names.pieces), seed=0)
    with torch.no_grad():
        assert torch.equal(attachment.module(x), base.model(x))
    assert attachment.report()["values"] == 2 * (2 * 6 * 3 + 3 + 6) + 2 * 6
    fill(attachment)
    ports = {n: build_ports(delta_of(base, attachment))[f"bottleneck:{n}"] for n in PLACES}

    def followed(name: str, h: torch.Tensor) -> torch.Tensor:
        port = ports[name]
        return h + F.linear(torch.tanh(F.linear(h, port.down.weight, port.down.bias)),
                            port.up.weight, port.up.bias)  # fmt: skip

    with torch.no_grad():
        h = x + followed("first.weight", base.model.first(x))
        h = h + followed("second.weight", base.model.second(h))
        updates = attachment.extract("float32")
        weight, bias = (
            updates[n].adapted(base.model.get_parameter(n)) for n in ("norm.weight", "norm.bias")
        )
        wanted = F.layer_norm(h, (6,), weight, bias)
        torch.testing.assert_close(attachment.module(x), wanted)
        again = loads(dumps(delta_of(base, attachment)))
        torch.testing.assert_close(view(base, again)(x), wanted)
    assert bits(base.model) == before


def test_what_a_bottleneck_cannot_follow_is_an_error():
    base = layers()
    names = list(base.names.pieces)
    with pytest.raises(UnsupportedError, match="no target has a name that 'pfeiffer' knows"):
        Bottlenecks().attach(base, names, seed=0)
    with pytest.raises(UnknownNameError, match=r"target pattern in places: 'third\.\*'"):
        Bottlenecks(places=("third.*",)).attach(base, names, seed=0)
    with pytest.raises(ConfigError, match="reduction: 1 or more"):
        Bottlenecks(reduction=0)
    convolution = plain_base(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(UnsupportedError, match=r"cannot follow the Conv2d that holds '0\.weight'"):
        Bottlenecks(places=("0.weight",)).attach(convolution, ["0.weight"], seed=0)
    attention = plain_base(CASES["attention"].build())
    attachment = Bottlenecks(places=("*out_proj.weight",)).attach(
        attention, ["attention.out_proj.weight"], seed=0
    )
    fill(attachment)
    x = matrix(2, 3, WIDTH)
    with pytest.raises(UnusedTensorError, match=NEVER_RUN), attachment.settled() as module:
        module(x)
    with pytest.raises(UnusedTensorError, match=NEVER_RUN):
        view(attention, delta_of(attention, attachment))(x)


def test_law02_a_port_inside_another_base_is_an_error():
    base = layers()
    attachment = Bottlenecks(places=PLACES).attach(base, list(base.names.pieces), seed=0)
    delta = delta_of(base, attachment)
    assert set(delta.fingerprint.tensors) == set(PLACES)
    other = copy.deepcopy(base.model)
    with torch.no_grad():
        other.second.weight[0, 0] += 1.0
    with pytest.raises(FingerprintError, match=r"'second\.weight'"):
        view(plain_base(other), delta)
    with pytest.raises(UnsupportedError, match="is a module inside the base"):
        apply(base, delta)


def test_law06_rows_with_modules_inside_equal_their_own_runs():
    base = layers()
    deltas = []
    for places in (PLACES[:1], PLACES):
        attachment = Bottlenecks(places=places).attach(base, list(base.names.pieces), seed=0)
        fill(attachment)
        deltas.append(delta_of(base, attachment))
    rows = [[(deltas[0], 1.0)], [], [(deltas[1], 1.0)], [(deltas[0], 0.5), (deltas[1], 2.0)]]
    x = matrix(4, 6)
    batch = Batch({"x": x}, None, torch.arange(4))
    with torch.no_grad():
        found = run_rows(base, rows, batch, lambda module, ports, inputs: module(inputs["x"]))
        torch.testing.assert_close(found[0], view(base, deltas[0])(x[:1])[0])
        assert torch.equal(found[1], base.model(x[1:2])[0])
        torch.testing.assert_close(found[2], view(base, deltas[1])(x[2:3])[0])
        one, two = (build_ports(d)[f"bottleneck:{PLACES[0]}"] for d in deltas)
        h = base.model.first(x[3])
        mixed = h + 0.5 * (one(h) - h) + 2.0 * (two(h) - h)
        three = build_ports(deltas[1])[f"bottleneck:{PLACES[1]}"]
        h = x[3] + mixed
        second = base.model.second(h)
        wanted = base.model.norm(h + second + 2.0 * (three(second) - second))
        torch.testing.assert_close(found[3], wanted)


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_prompt_is_vectors_before_the_embedded_input(name):
    case = CASES[name]
    base = plain_base(case.build())
    attachment = PromptTuning(length=3).attach(base, [], seed=1)
    table = base.model.get_input_embeddings().weight
    vectors = next(iter(attachment))
    assert all(any(torch.equal(v, row) for row in table) for v in vectors.detach())
    fill(attachment)
    ids = case.batch(4, seed=0).inputs["input_ids"]
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    with torch.no_grad():
        embedded = torch.cat([vectors.expand(4, -1, -1), table[ids]], 1)
        longer = torch.cat([torch.ones(4, 3, dtype=mask.dtype), mask], 1)
        wanted = base.model(inputs_embeds=embedded, attention_mask=longer).logits[:, 3:]
        delta = delta_of(base, attachment)
        for module in (attachment.module.eval(), view(base, delta)):
            found = module(ids, attention_mask=mask).logits
            assert found.shape == (*ids.shape, table.shape[0])
            torch.testing.assert_close(found, wanted)
            given = module(inputs_embeds=table[ids], attention_mask=mask).logits
            torch.testing.assert_close(given, wanted)
    with pytest.raises(UnsupportedError, match="'labels' cannot be given"):
        attachment.module(ids, labels=ids)
    with pytest.raises(DeltaError, match="of kind prompt cannot be mixed or weighted"):
        view(base, [(delta, 0.5)])


def test_the_encoder_of_a_pair_reads_the_prompt():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    config.decoder_start_token_id = 0
    torch.manual_seed(0)
    base = plain_base(T5ForConditionalGeneration(config))
    attachment = PromptTuning(length=3).attach(base, [], seed=0)
    fill(attachment)
    (vectors,) = attachment
    ids, labels = torch.arange(2, 14).reshape(2, 6), torch.tensor([[5, 6], [7, 8]])
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    table = base.model.get_input_embeddings().weight
    with torch.no_grad():
        embedded = torch.cat([vectors.expand(2, -1, -1), table[ids]], 1)
        longer = torch.cat([torch.ones(2, 3, dtype=mask.dtype), mask], 1)
        wanted = base.model(inputs_embeds=embedded, attention_mask=longer, labels=labels)
        for module in (attachment.module.eval(), view(base, delta_of(base, attachment))):
            found = module(ids, attention_mask=mask, labels=labels)
            torch.testing.assert_close(found.logits, wanted.logits)
            torch.testing.assert_close(found.loss, wanted.loss)
            encoded = wanted.encoder_last_hidden_state[:, 3:]
            torch.testing.assert_close(found.encoder_last_hidden_state, encoded)
            with pytest.raises(UnsupportedError, match="'encoder_outputs' cannot be given"):
                module.generate(ids, max_new_tokens=2)
    with pytest.raises(UnsupportedError, match="no causal decoder"):
        PrefixTuning().attach(base, [], seed=0)


def test_scores_of_spans_lose_the_positions_of_a_prompt():
    from transformers import BertForQuestionAnswering

    base = plain_base(BertForQuestionAnswering(CASES["bert"].build().config))
    attachment = PromptTuning(length=3).attach(base, [], seed=0)
    fill(attachment)
    (vectors,) = attachment
    ids = CASES["bert"].batch(2, seed=0).inputs["input_ids"]
    with torch.no_grad():
        table = base.model.get_input_embeddings().weight
        embedded = torch.cat([vectors.expand(2, -1, -1), table[ids]], 1)
        wanted, found = base.model(inputs_embeds=embedded), attachment.module.eval()(ids)
    torch.testing.assert_close(found.start_logits, wanted.start_logits[:, 3:])
    torch.testing.assert_close(found.end_logits, wanted.end_logits[:, 3:])


def test_a_prefix_is_keys_and_values_of_every_layer():
    """The oracle: PEFT's own prefix tuning with the same vectors."""
    from peft import PrefixTuningConfig, get_peft_model

    case = CASES["gpt2"]
    base = plain_base(case.build())
    attachment = PrefixTuning(length=3).attach(base, [], seed=0)
    fill(attachment)
    (vectors,) = attachment  # (layers, 2, heads, length, width)
    config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rival = get_peft_model(case.build(), config).eval()
    table = vectors.detach().permute(3, 0, 1, 2, 4).reshape(3, -1)
    with torch.no_grad():
        rival.prompt_encoder["default"].embedding.weight.copy_(table)
        ids = case.batch(4, seed=0).inputs["input_ids"]
        mask = torch.ones_like(ids)
        mask[1, :2] = 0
        wanted = rival(input_ids=ids, attention_mask=mask).logits
        delta = delta_of(base, attachment)
        for module in (attachment.module.eval(), view(base, delta)):
            found = module(ids, attention_mask=mask, use_cache=False).logits
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(UnsupportedError, match=r"takes .past_key_values."):
        PrefixTuning().attach(plain_base(CASES["bert"].build()), [], seed=0)
    with pytest.raises(ConfigError, match="length: 1 or more"):
        PrefixTuning(length=0)


TUNERS = {
    "bottlenecks": (Bottlenecks(where="houlsby", norms=True), "bert"),
    "prompt": (PromptTuning(length=3), "bert"),
    "prefix": (PrefixTuning(length=3), "gpt2"),
}


@pytest.mark.parametrize("name", TUNERS)
def test_state_is_whole_and_first_values_come_from_the_seed(name):
    tuner, model = TUNERS[name]
    case = CASES[model]
    base = plain_base(case.build())
    state = torch.get_rng_state()
    one, same, other = (
        tuner.attach(base, list(base.names.pieces), seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    fill(one)
    other.load_tensors({key: value.clone() for key, value in one.tensors().items()})
    inputs = case.batch(3, seed=0).inputs
    with torch.no_grad():
        found = [case.call(a.module.eval(), inputs) for a in (one, other)]
    assert torch.equal(*found)
