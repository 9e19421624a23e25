"""`view`: adapted modules without a stored or changed value, on the whole battery."""

from __future__ import annotations

import copy
import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from tests.battery.deltas import KINDS, merged, oracle, trained_delta
from tests.battery.models import CASES, train_full
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, MixtralConfig

from graftwork._errors import (
    DeltaError,
    FingerprintError,
    UnknownNameError,
    UnsupportedError,
    UnusedTensorError,
)
from graftwork.bases import load
from graftwork.deltas import (
    Delta,
    Fingerprint,
    Sparse,
    TensorPrint,
    Update,
    apply,
    check,
    unconsumed,
    view,
)
from graftwork.deltas._bind import _adapted_class


def _bits(module: nn.Module) -> dict[str, bytes]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {n: t.detach().view(torch.uint8).numpy().tobytes() for n, t in tensors if t.dim()}


def _dense(name: str, base, value: float = 1.0) -> Delta:
    shape = base.names[name].shape
    return Delta(
        {name: Update(shape, dense=torch.full(shape, value))},
        fingerprint=Fingerprint(base.prints([name]), dict(base.processing)),
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_law12_view_equals_a_merged_copy(name: str, kind: str) -> None:
    case = CASES[name]
    base = load(case.build())
    delta = trained_delta(case, base, kind)
    inputs = case.batch(16).inputs
    adapted = view(base, delta)
    expected = case.call(merged(base, delta), inputs)
    plain = case.call(base.model, inputs)
    assert (expected - plain).abs().max() > 1e-2
    bound = 1e-5 * max(1.0, expected.abs().max().item())
    assert (case.call(adapted, inputs) - expected).abs().max() <= bound
    base.verify()


@pytest.mark.parametrize("name", CASES)
def test_law12_view_in_double_precision_is_exact(name: str) -> None:
    case = CASES[name]
    base = load(case.build(torch.float64))
    delta = trained_delta(case, base, "mixed")
    inputs = case.batch(16, dtype=torch.float64).inputs
    expected = case.call(merged(base, delta), inputs)
    torch.testing.assert_close(case.call(view(base, delta), inputs), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_law01_view_stores_and_changes_nothing(name: str) -> None:
    case = CASES[name]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    before = _bits(base.model)
    adapted = view(base, delta)
    mine, theirs = dict(adapted.named_parameters()), dict(base.model.named_parameters())
    assert list(mine) == list(theirs)
    assert all(p.data_ptr() == theirs[n].data_ptr() for n, p in mine.items())
    adapted.train()
    case.call(adapted, case.batch().inputs)
    adapted.eval()
    case.call(adapted, case.batch().inputs)
    assert _bits(base.model) == before
    assert isinstance(adapted, type(base.model))
    assert type(adapted).__name__ == type(base.model).__name__


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_view_casts_to_the_parameters_type(dtype: torch.dtype) -> None:
    case = CASES["bert"]
    base = load(case.build(), dtype=dtype)
    delta = trained_delta(case, load(case.build()), "mixed")
    adapted = view(base, delta)
    name = "encoder.layer.0.output.dense.weight"
    parameter = base.model.get_parameter(f"bert.{name}")
    computed = adapted.bert.encoder.layer[0].output.dense.weight
    assert computed.dtype == dtype
    expected = oracle(delta.updates[name], parameter.detach()).to(dtype)
    torch.testing.assert_close(computed, expected, atol=0, rtol=1e-2)
    assert case.call(adapted, case.batch().inputs).dtype == dtype


def test_tied_weights_are_adapted_at_both_places() -> None:
    base = load(CASES["gpt2"].build())
    adapted = view(base, _dense("wte.weight", base), unused="allow")
    assert torch.equal(adapted.lm_head.weight, base.model.lm_head.weight + 1)
    assert torch.equal(adapted.transformer.wte.weight, adapted.lm_head.weight)


def test_generate_works_on_a_view() -> None:
    case = CASES["gpt2"]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    adapted, oracle_module = view(base, delta), merged(base, delta)
    assert isinstance(adapted, GPT2LMHeadModel)
    inputs = case.batch(3).inputs["input_ids"]
    settings = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    mask = torch.ones_like(inputs)
    ours = adapted.generate(inputs, attention_mask=mask, **settings)
    assert torch.equal(ours, oracle_module.generate(inputs, attention_mask=mask, **settings))


def test_fused_attention_reads_adapted_values(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("_transformer_encoder_layer_fwd", "_native_multi_head_attention"):
        kernel = getattr(torch, name)
        spy = lambda *a, _k=kernel, _n=name, **k: (calls.append(_n), _k(*a, **k))[1]  # noqa: E731
        monkeypatch.setattr(torch, name, spy)
    for name in ("encoder", "attention"):
        case = CASES[name]
        base = load(case.build())
        delta = trained_delta(case, base, "sparse")
        inputs = case.batch().inputs
        calls.clear()
        with torch.no_grad():
            ours = case.call(view(base, delta), inputs)
        assert calls
        expected = case.call(merged(base, delta), inputs)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_state_dict_of_a_view_is_the_merged_model() -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    adapted = view(base, delta)
    state = adapted.state_dict()
    assert list(state) == list(base.model.state_dict())
    assert unconsumed(adapted)
    model = case.build()
    model.load_state_dict(state)
    inputs = case.batch().inputs
    assert torch.equal(case.call(model, inputs), case.call(adapted, inputs))


def test_saved_view_is_the_merged_model(tmp_path) -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "sparse")
    adapted = view(base, delta)
    adapted.save_pretrained(tmp_path)
    again = type(case.build()).from_pretrained(tmp_path).eval()
    inputs = case.batch().inputs
    torch.testing.assert_close(case.call(again, inputs), case.call(adapted, inputs))


def test_gradients_flow_to_inputs() -> None:
    case = CASES["experts"]
    base = load(case.build(torch.float64))
    delta = trained_delta(case, base, "mixed")
    found = []
    for module in (view(base, delta), merged(base, delta)):
        x = case.batch(4, dtype=torch.float64).inputs["x"].requires_grad_()
        case.call(module, {"x": x}).square().sum().backward()
        found.append(x.grad)
    torch.testing.assert_close(found[0], found[1], atol=1e-10, rtol=1e-10)


def test_pieces_of_a_fused_parameter_are_adapted_apart() -> None:
    config = MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=3,
        num_experts_per_tok=2,
    )
    torch.manual_seed(0)
    base = load(AutoModelForCausalLM.from_config(config))
    names = [n for n in base.names.pieces if "layers.1" in n and "experts" in n][1:6]
    generator = torch.Generator().manual_seed(1)
    updates = {}
    for i, name in enumerate(names):
        before = torch.randn(base.names[name].shape, generator=generator)
        after = before + torch.randn(before.shape, generator=generator)
        updates[name] = list(KINDS.values())[i](before, after)
    delta = Delta(updates, fingerprint=Fingerprint(base.prints(updates)))
    tokens = torch.arange(5, 35).reshape(2, 15)
    expected = merged(base, delta)(tokens).logits
    assert (expected - base.model(tokens).logits).abs().max() > 1e-3
    torch.testing.assert_close(view(base, delta)(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    before = _bits(base.model)
    with apply(base, delta) as module:
        torch.testing.assert_close(module(tokens).logits, expected, atol=1e-5, rtol=1e-5)
    assert _bits(base.model) == before


def test_list_means_weighted_sum_of_differences() -> None:
    case = CASES["lstm"]
    base = load(case.build(torch.float64))
    first = trained_delta(case, base, "mixed")
    second = trained_delta(case, base, "sparse", share=0.5, seed=1)
    weights = ((first, 0.5), (second, -1.25), (first, 0.0))
    adapted = view(base, weights)
    state = adapted.state_dict()
    for name, piece in base.names.pieces.items():
        weight = base.model.get_parameter(piece.parameter).detach()
        expected = weight.clone()
        for delta, factor in weights:
            if name in delta.updates:
                expected += factor * (oracle(delta.updates[name], weight) - weight)
        torch.testing.assert_close(state[name], expected, atol=1e-12, rtol=0)


def test_empty_list_and_weight_zero_are_the_base() -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    inputs = case.batch().inputs
    plain = case.call(base.model, inputs)
    assert torch.equal(case.call(view(base, []), inputs), plain)
    assert torch.equal(case.call(view(base, [(delta, 0.0)]), inputs), plain)


class _Bypass(nn.Module):
    """Reads one parameter around its attribute, and never runs one module."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return hidden @ self.second._parameters["weight"].T + self.second.bias


@pytest.mark.parametrize("name", ["second.weight", "idle.bias"])
def test_law07_a_touched_tensor_that_is_not_read_is_an_error(name: str) -> None:
    base = load(_Bypass())
    adapted = view(base, _dense(name, base))
    with pytest.raises(UnusedTensorError, match=f"1 tensors .*'{name}'"):
        adapted(torch.ones(2, 4))
    assert unconsumed(adapted) == (name,)
    view(base, _dense(name, base), unused="allow")(torch.ones(2, 4))
    view(base, _dense("first.weight", base))(torch.ones(2, 4))


def test_law07_consumption_counts_calls_of_parts_before_the_whole() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor, encoded: Tensor | None = None) -> Tensor:
            return self.decoder(self.encoder(x) if encoded is None else encoded)

    base = load(Two())
    adapted = view(base, _dense("encoder.weight", base))
    x = torch.ones(1, 3)
    encoded = adapted.encoder(x)
    adapted(x, encoded=encoded)
    fresh = view(base, _dense("encoder.weight", base))
    with pytest.raises(UnusedTensorError, match=r"encoder\.weight"):
        fresh(x, encoded=encoded)


def test_law02_another_base_is_named_with_both_digests() -> None:
    case = CASES["lstm"]
    base, other = load(case.build()), load(case.build(seed=1))
    delta = trained_delta(case, base, "sparse")
    name = "embedding.weight"
    here, there = (b.prints([name])[name].digest for b in (other, base))
    with pytest.raises(FingerprintError, match=rf"'embedding\.weight' is .*{here}.*{there}"):
        view(other, delta)
    with pytest.raises(FingerprintError):
        check(other, delta)
    check(base, delta)


def test_law02_another_processing_is_named() -> None:
    base = load(nn.Linear(2, 2), pooling="cls", max_length=8)
    delta = replace(
        _dense("weight", base),
        fingerprint=Fingerprint(base.prints(["weight"]), {"pooling": "mean", "max_length": "8"}),
    )
    with pytest.raises(FingerprintError, match=r"'pooling' is 'cls' here.*'mean'.*pooling= set so"):
        check(base, delta)
    with pytest.raises(FingerprintError, match=r"'pooling' is None here.*by its name or folder"):
        check(load(base.model), delta)


def test_law02_a_missing_print_is_an_error_unless_asserted() -> None:
    base = load(nn.Linear(2, 2))
    delta = _dense("weight", base)
    with pytest.raises(FingerprintError, match="has no fingerprint of it"):
        check(base, replace(delta, fingerprint=Fingerprint({})))
    check(base, replace(delta, fingerprint=Fingerprint({}, asserted=True)))
    wrong = Fingerprint({"weight": TensorPrint((2, 2), "float32", "0" * 16)}, asserted=True)
    with pytest.raises(FingerprintError, match="0000000000000000"):
        check(base, replace(delta, fingerprint=wrong))


def test_law02_a_cast_base_takes_the_delta_of_the_stored_one() -> None:
    case = CASES["lstm"]
    delta = trained_delta(case, load(case.build()), "sparse")
    check(load(case.build(), dtype=torch.float64), delta)


def test_task_prefixed_names_are_the_same_tensors() -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = _dense("encoder.layer.0.output.dense.bias", base)
    prefixed = Delta(
        {f"bert.{n}": u for n, u in delta.updates.items()}, fingerprint=delta.fingerprint
    )
    inputs = case.batch().inputs
    assert torch.equal(
        case.call(view(base, prefixed), inputs), case.call(view(base, delta), inputs)
    )
    twice = replace(delta, updates={**prefixed.updates, **delta.updates})
    with pytest.raises(DeltaError, match="twice"):
        view(base, twice)


def test_law03_updates_that_do_not_fit_are_errors() -> None:
    base = load(nn.Linear(3, 2))
    prints = Fingerprint({}, asserted=True)

    def made(update: Update, name: str = "weight") -> Delta:
        return Delta({name: update}, fingerprint=prints)

    ones = torch.ones(1)
    bad = [
        (Update((3, 2), dense=torch.ones(3, 2)), r"has shape \(3, 2\), the base has \(2, 3\)"),
        (Update((2, 3), dense=torch.ones(3)), r"dense term of 'weight' has shape \(3,\)"),
        (Update((2, 3), scale=torch.ones(2)), r"scale of 'weight' .* does not broadcast"),
        (Update((2, 3), sparse=Sparse(torch.tensor([6]), ones)), r"outside \[0, 6\)"),
        (Update((2, 3), sparse=Sparse(torch.tensor([-1]), ones)), r"outside \[0, 6\)"),
        (Update((2, 3), sparse=Sparse(torch.tensor([0, 1]), ones)), "2 positions for values"),
    ]
    for update, message in bad:
        with pytest.raises(DeltaError, match=message):
            view(base, made(update))
    with pytest.raises(UnknownNameError, match="did you mean 'weight'"):
        view(base, made(Update((2, 3), dense=torch.ones(2, 3)), "wieght"))
    with pytest.raises(DeltaError, match="must be finite, not nan"):
        view(base, [(made(Update((2, 3), dense=torch.ones(2, 3))), float("nan"))])


@pytest.mark.usefixtures("untyped")
def test_law03_an_unknown_choice_is_an_error() -> None:
    with pytest.raises(DeltaError, match="'error' or 'allow'"):
        view(load(nn.Linear(3, 2)), [], unused="ignore")  # type: ignore[arg-type]


def test_law12_what_cannot_be_adapted_is_refused() -> None:
    packed = nn.Linear(2, 2)
    packed.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
    base = load(packed)
    with pytest.raises(UnsupportedError, match=r"'weight' of Linear is torch\.int8"):
        view(base, _dense("weight", base))

    class Final(nn.Linear):
        def __init_subclass__(cls) -> None:
            raise TypeError("no subclasses")

    base = load(Final(2, 2))
    with pytest.raises(UnsupportedError, match="Final allows no subclass"):
        view(base, _dense("weight", base))


def test_a_views_parameters_stay_frozen() -> None:
    base = load(nn.Linear(2, 2))
    adapted = view(base, _dense("weight", base))
    adapted.requires_grad_(True)
    with pytest.raises(UnsupportedError, match="of a view is frozen"):
        adapted(torch.ones(1, 2))


@pytest.mark.usefixtures("untyped")
def test_an_error_while_computing_never_gives_the_base_value() -> None:
    base = load(nn.Linear(2, 2))
    broken = replace(_dense("weight", base))
    object.__setattr__(broken.updates["weight"], "dense", torch.ones(2, 2))
    adapted = view(base, broken)
    object.__setattr__(broken.updates["weight"], "dense", object())
    with pytest.raises(RuntimeError, match="computing 'weight' failed"):
        adapted(torch.ones(1, 2))


def test_law01_a_forward_that_changes_a_buffer_is_an_error() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.linear(x)

    base = load(Counts())
    with pytest.raises(UnsupportedError, match="changed the buffer 'calls'"):
        view(base, _dense("linear.weight", base))(torch.ones(1, 2))


def test_views_are_independent_and_free_what_they_hold() -> None:
    case = CASES["conv"]
    base = load(case.build())
    inputs = case.batch().inputs
    deltas = [trained_delta(case, base, "mixed", seed=s) for s in (0, 1)]
    views = [view(base, d) for d in deltas]
    outputs = [case.call(v, inputs) for v in views]
    assert not torch.equal(outputs[0], outputs[1])
    reference = weakref.ref(views[0])
    expected = outputs[1]
    del views[0]
    gc.collect()
    assert reference() is None
    assert torch.equal(case.call(views[0], inputs), expected)


def test_law08_views_of_one_shape_share_their_classes() -> None:
    case = CASES["bert"]
    base = load(case.build())
    delta = trained_delta(case, base, "sparse")
    first = [type(m) for m in view(base, delta).modules()]
    size = _adapted_class.cache_info().currsize
    assert [type(m) for m in view(base, delta).modules()] == first
    assert _adapted_class.cache_info().currsize == size


def test_deep_copy_of_a_view_is_a_view() -> None:
    case = CASES["lstm"]
    base = load(case.build())
    delta = trained_delta(case, base, "mixed")
    adapted = view(base, delta)
    twin = copy.deepcopy(adapted)
    inputs = case.batch().inputs
    assert torch.equal(case.call(twin, inputs), case.call(adapted, inputs))


def test_law09_threads_run_different_views_of_one_base() -> None:
    case = CASES["bert"]
    base = load(case.build())
    deltas = [trained_delta(case, base, "mixed", seed=s) for s in range(3)]
    inputs = case.batch(4).inputs
    expected = [case.call(view(base, d), inputs) for d in deltas]
    shared = [view(base, d) for d in deltas]

    def run(i: int) -> bool:
        return torch.equal(case.call(shared[i % 3], inputs), expected[i % 3])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(24)))
    base.verify()


def test_parametrised_and_listed_parameters_are_adapted() -> None:
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items = nn.ParameterList([nn.Parameter(torch.randn(3, 3)) for _ in range(2)])
            self.named = nn.ParameterDict({"a": nn.Parameter(torch.randn(3, 3))})
            self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))

        def forward(self, x: Tensor) -> Tensor:
            for item in self.items:
                x = x @ item
            return self.normed(x @ self.named["a"])

    torch.manual_seed(0)
    base = load(Listed())
    generator = torch.Generator().manual_seed(0)
    updates = {
        name: Update(p.shape, dense=torch.randn(p.shape, generator=generator))
        for name, p in base.names.pieces.items()
    }
    delta = Delta(updates, fingerprint=Fingerprint(base.prints(updates)))
    x = torch.randn(2, 3)
    torch.testing.assert_close(view(base, delta)(x), merged(base, delta)(x))


def test_view_after_the_base_was_trained_elsewhere_follows_its_storage() -> None:
    case = CASES["attention"]
    model = case.build()
    base = load(model)
    adapted = view(base, _dense("out.bias", base))
    train_full(case, model)
    assert torch.equal(adapted.out.bias, model.out.bias + 1)


class _Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LSTMCell(4, 6), nn.GRUCell(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x[:, 0])[0])


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


SEQUENCE = torch.linspace(-1, 1, 40).reshape(2, 5, 4)
SUPPORTED = {
    "gru": (lambda: nn.GRU(4, 6, 2, batch_first=True), 1),
    "rnn without bias": (lambda: nn.RNN(4, 6, batch_first=True, bias=False), 1),
    "lstm with projection": (lambda: nn.LSTM(4, 6, proj_size=3, batch_first=True), 1),
    "recurrent cells": (_Cells, 1),
    "transformer": (lambda: nn.Transformer(4, 2, 1, 1, 8, 0.0, batch_first=True), 2),
    "attention with extra keys": (
        lambda: nn.MultiheadAttention(4, 2, kdim=4, vdim=4, add_bias_kv=True),
        3,
    ),
    "bilinear": (lambda: nn.Bilinear(4, 4, 3), 2),
    "module at two places": (_Shared, 1),
    "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), 1),
    "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), 1),
    "orthogonal": (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), 1),
    "graph module": (
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU())),
        1,
    ),
    "normalisations": (
        lambda: nn.Sequential(
            nn.ConvTranspose1d(5, 4, 3),
            nn.GroupNorm(2, 4),
            nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            nn.PReLU(),
            nn.RMSNorm(6),
        ),
        1,
    ),
}


def _first(output: Tensor | tuple) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", SUPPORTED)
def test_law12_more_modules_that_are_supported(name: str) -> None:
    make, inputs = SUPPORTED[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = load(make())
    generator = torch.Generator().manual_seed(0)
    updates = {
        n: Update(p.shape, dense=torch.randn(p.shape, generator=generator) * 0.1)
        for n, p in base.names.pieces.items()
    }
    delta = Delta(updates, fingerprint=Fingerprint(base.prints(updates)))
    arguments = [SEQUENCE] * inputs
    expected = _first(merged(base, delta)(*arguments))
    assert (expected - _first(base.model(*arguments))).abs().max() > 1e-3
    torch.testing.assert_close(_first(view(base, delta)(*arguments)), expected)
    with apply(base, delta) as module:
        torch.testing.assert_close(_first(module(*arguments)), expected)
    base.verify()


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_law12_more_modules_that_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="attribute 'weight' of module 'root' refuses"):
        load(nn.utils.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(DeltaError, match="'weight' is not contiguous"):
        load(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))


def test_a_view_can_be_traced_and_exported() -> None:
    base = load(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    delta = _dense("0.weight", base)
    expected = merged(base, delta)(SEQUENCE)
    traced = torch.fx.symbolic_trace(view(base, delta))
    torch.testing.assert_close(traced(SEQUENCE), expected)
    exported = torch.export.export(view(base, delta), (SEQUENCE,))
    torch.testing.assert_close(exported.module()(SEQUENCE), expected)
