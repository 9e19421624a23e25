"""What we export, PEFT loads without a warning, and its logits are ours."""

from __future__ import annotations

import copy
import dataclasses
import json
import warnings
from collections import Counter

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftwork.bases import Base, load
from graftwork.deltas import (
    Delta,
    Fingerprint,
    LowRank,
    Port,
    Update,
    fingerprint_of,
    quantise,
    values_of,
    view,
)
from graftwork.errors import FingerprintError, StorageError, UnsupportedError
from graftwork.formats import ExportOptions, export_peft, import_peft
from tests.battery.deltas import trained_delta
from tests.battery.models import CASES
from tests.formats.oracles import MODELS, peft_logits, quiet


def our_logits(model: str, base: Base, delta: Delta) -> torch.Tensor:
    case = MODELS[model]
    with torch.no_grad():
        return case.call(view(base, delta), case.batch(16, seed=77).inputs)


def lora_like(base: Base, seed: int = 0) -> Delta:
    """Return low-rank terms of different ranks and factors, 8-bit ones too, with biases."""
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for i, (name, piece) in enumerate(base.names.pieces.items()):
        module = base.model.get_submodule(piece.parameter.rpartition(".")[0])
        if (
            isinstance(module, nn.Linear | Conv1D)
            and name.endswith("weight")
            and "head" not in name
        ):
            rank, (rows, columns) = 1 + i % 3, piece.shape
            left = torch.randn(rows, rank, generator=generator)
            right = torch.randn(rank, columns, generator=generator) / 20
            stored = ("float32", "float16", "int8")[i % 3]
            term = LowRank(quantise(left, stored), quantise(right, stored), 0.3 + i % 2)
            updates[name] = Update(piece.shape, low_rank=term)
        elif name.endswith("bias") and i % 2:
            noise = torch.randn(piece.shape, generator=generator) / 20
            updates[name] = Update(piece.shape, dense=quantise(noise, "float16"))
    plain = Delta(updates)
    return dataclasses.replace(plain, fingerprint=base_print(base, plain))


def base_print(base: Base, delta: Delta) -> Fingerprint:
    return fingerprint_of(base, delta.updates)


def untied(base: Base, delta: Delta) -> Delta:
    """Return the delta without tied parameters, which PEFT cannot adapt."""
    parameters = dict(base.model.named_parameters(remove_duplicate=False))
    counts = Counter(id(p) for p in parameters.values())
    kept = {
        name: update
        for name, update in delta.updates.items()
        if counts[id(parameters[base.names[name].parameter])] == 1
    }
    return dataclasses.replace(delta, updates=kept)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit", "conv"])
@pytest.mark.parametrize("kind", ["low_rank", "scale"])
def test_trained_deltas_of_the_battery(name, kind, tmp_path):
    """Low-rank terms of matrices with dense ones of norms and biases; scales of rows."""
    case = CASES[name]
    base = load(case.build())
    delta = untied(base, trained_delta(case, base, kind))
    if kind == "scale":
        delta = dataclasses.replace(delta, updates=ia3_like(base, delta))
    else:
        # a bare parameter has no place in PEFT
        kept = {n: u for n, u in delta.updates.items() if n.rpartition(".")[2] in PARTS}
        delta = dataclasses.replace(delta, updates=kept)
    export_peft(delta, base, tmp_path / "out")
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad(), warnings.catch_warnings():
        ours = case.call(view(base, delta), inputs)
        warnings.simplefilter("ignore")
        theirs = case.call(PeftModel.from_pretrained(case.build(), tmp_path / "out").eval(), inputs)
        plain = case.call(base.model, inputs)
    assert (ours - plain).abs().max() > 5e-3
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, ours.abs().max())


PARTS = ("weight", "bias")


def ia3_like(base: Base, delta: Delta) -> dict[str, Update]:
    """Return the scales over outputs of whole modules, each with that of its bias."""
    out = {}
    for name, update in delta.updates.items():
        module = base.model.get_submodule(base.names[name].parameter.rpartition(".")[0])
        if not name.endswith("weight") or not isinstance(module, nn.Linear | nn.Conv2d):
            continue
        assert update.scale is not None
        out[name] = update
        bias = f"{name.removesuffix('weight')}bias"
        if module.bias is not None:
            shape = (update.shape[0],)
            out[bias] = Update(shape, scale=values_of(update.scale).reshape(-1).clone())
    if not out:
        # GPT-2's modules store (inputs, outputs): scales of its inputs
        out = {
            n: u for n, u in delta.updates.items() if n.endswith(("c_fc.weight", "c_attn.weight"))
        }
    return out


@pytest.mark.parametrize(
    ("model", "task", "inner"),
    [
        ("gpt2", "CAUSAL_LM", "transformer"),
        ("llama", "CAUSAL_LM", "model"),
        ("t5", "SEQ_2_SEQ_LM", "t5"),
    ],
)
def test_a_base_without_its_head_is_exported_for_the_class_of_the_task(
    model, task, inner, tmp_path
):
    from transformers import T5Model

    whole = MODELS[model].build()
    if inner == "t5":
        bare = T5Model(whole.config)
        bare.load_state_dict({n: whole.state_dict()[n] for n in bare.state_dict()})
    else:
        bare = getattr(whole, inner)
    base = load(bare)
    delta = untied(base, lora_like(base))
    export_peft(delta, base, tmp_path / "out", ExportOptions(task_type=task))
    ours = our_logits(model, load(whole), delta)
    theirs = peft_logits(model, tmp_path / "out")
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, ours.abs().max())
    again = import_peft(tmp_path / "out", base)
    assert again.provenance["task_type"] == task
    assert set(again.updates) == set(delta.updates)


@pytest.mark.parametrize("model", ["bert", "vit", "llama", "t5"])
def test_ranks_factors_and_biases_of_every_module_its_own(model, tmp_path):
    base = load(MODELS[model].build())
    delta = lora_like(base)
    export_peft(delta, base, tmp_path / "out")
    ours = our_logits(model, base, delta)
    theirs = peft_logits(model, tmp_path / "out")
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, ours.abs().max())


def test_targets_that_end_alike_are_told_apart(tmp_path):
    base = load(MODELS["bert"].build())
    delta = lora_like(base)
    kept = {n: u for n, u in delta.updates.items() if n.endswith("layer.0.output.dense.weight")}
    export_peft(dataclasses.replace(delta, updates=kept), base, tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["bert.encoder.layer.0.output.dense"]
    base = load(Colliding())
    update = {"x.foo.weight": Update((4, 4), low_rank=LowRank(torch.ones(4, 1), torch.ones(1, 4)))}
    foo = {"foo.weight": update["x.foo.weight"]}
    for name, updates in (("b", foo), ("c", update)):
        delta = Delta(updates)
        delta = dataclasses.replace(delta, fingerprint=base_print(base, delta))
        export_peft(delta, base, tmp_path / name)
        with quiet():
            wrapped = PeftModel.from_pretrained(Colliding(), tmp_path / name)
        with torch.no_grad():
            x = torch.eye(4)
            assert (wrapped(x) - view(base, delta)(x)).abs().max() < 1e-5


class Colliding(nn.Module):
    """Modules called foo, foobar, lora and lora_A, one inside another."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.foo, self.foobar = nn.Linear(4, 4), nn.Linear(4, 4)
        self.x = nn.ModuleDict({"foo": nn.Linear(4, 4), "lora": nn.Linear(4, 4)})
        self.lora_A = nn.Linear(4, 4)

    def forward(self, x):
        for module in (self.foo, self.foobar, self.x["foo"], self.x["lora"], self.lora_A):
            x = x + module(x).tanh()
        return x


def test_modules_with_the_names_of_parts(tmp_path):
    base = load(Colliding())
    names = ["foobar.weight", "x.lora.weight", "lora_A.weight"]
    term = LowRank(torch.randn(4, 2), torch.randn(2, 4), 0.5)
    delta = Delta({name: Update((4, 4), low_rank=term) for name in names})
    delta = dataclasses.replace(delta, fingerprint=base_print(base, delta))
    export_peft(delta, base, tmp_path / "out")
    again = import_peft(tmp_path / "out", base)
    assert sorted(again.updates) == sorted(names)
    for name in names:
        found = again.updates[name].low_rank
        assert found is not None
        assert torch.equal(values_of(found.left), values_of(term.left))
        assert found.factor == 0.5


def test_a_head_goes_into_the_task_model(tmp_path):
    from transformers import LlamaForSequenceClassification

    from graftwork.deltas import port_of
    from graftwork.nn import Head

    case = MODELS["llama"]
    causal = case.build()
    base = load(causal.model)
    torch.manual_seed(1)
    head = Head(16, 3)
    with torch.no_grad():
        head.out.bias.zero_()
    port = port_of(head, "head", {"in_features": 16, "out_features": 3}, "float32")
    delta = dataclasses.replace(lora_like(base), ports={"head": port})
    with pytest.raises(UnsupportedError, match="name the task with task_type='SEQ_CLS'"):
        export_peft(delta, base, tmp_path / "no")
    export_peft(delta, base, tmp_path / "out", ExportOptions(task_type="SEQ_CLS"))
    config = causal.config
    config.num_labels = 3
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(causal.model.state_dict())
    with quiet():
        wrapped = PeftModel.from_pretrained(model, tmp_path / "out").eval()
    inputs = case.batch(16, seed=77).inputs
    with torch.no_grad():
        theirs = wrapped(**inputs).logits
        ours = head(view(base, delta)(**inputs).last_hidden_state[:, -1])
    assert (ours - theirs).abs().max() <= 1e-6 * max(1.0, ours.abs().max())
    with torch.no_grad():
        head.out.bias.fill_(1.0)
    biased = {"head": port_of(head, "head", port.config, "float32")}
    delta, options = dataclasses.replace(delta, ports=biased), ExportOptions(task_type="SEQ_CLS")
    with pytest.raises(UnsupportedError, match="has a bias, and 'score' of the task model has"):
        export_peft(delta, base, tmp_path / "no", options)


def test_a_head_of_two_layers_needs_its_activation_said(tmp_path):
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from graftwork.deltas import port_of
    from graftwork.nn import Head

    config = RobertaConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
    )
    torch.manual_seed(0)
    model = RobertaForSequenceClassification(config).eval()
    base = load(model.roberta)
    torch.manual_seed(3)
    settings = {"in_features": 16, "out_features": 3, "hidden": 16}
    head = Head(16, 3, hidden=16)
    delta = dataclasses.replace(
        lora_like(base), ports={"head": port_of(head, "head", settings, "float32")}
    )
    with pytest.raises(UnsupportedError, match="head_activation='tanh'"):
        export_peft(delta, base, tmp_path / "out", ExportOptions(task_type="SEQ_CLS"))
    options = ExportOptions(task_type="SEQ_CLS", head_activation="tanh")
    export_peft(delta, base, tmp_path / "out", options)
    with quiet():
        # PEFT writes biases into the very tensors that the base shares
        wrapped = PeftModel.from_pretrained(copy.deepcopy(model), tmp_path / "out").eval()
    tokens = torch.arange(5, 17).reshape(2, 6)
    with torch.no_grad():
        ours = head(view(base, delta)(input_ids=tokens).last_hidden_state[:, 0])
        assert (wrapped(input_ids=tokens).logits - ours).abs().max() <= 1e-6
    with pytest.raises(UnsupportedError, match="say it with head_activation='tanh'"):
        import_peft(tmp_path / "out", base)


LOW = LowRank(torch.ones(16, 1), torch.ones(1, 16))
QUERY = "encoder.layer.0.attention.self.query"
SCALE = torch.full((16, 1), 2.0)
REFUSED = {
    "sparse": ({f"{QUERY}.weight": "sparse"}, "cannot hold a sparse term of 'encoder.layer.0.att"),
    "both": (
        {f"{QUERY}.weight": Update((16, 16), low_rank=LOW, dense=torch.ones(16, 16))},
        "cannot hold a dense beside a low-rank term of",
    ),
    "matrix scale": (
        {f"{QUERY}.weight": Update((16, 16), scale=torch.ones(16, 16))},
        "cannot hold a scale of shape (16, 16)",
    ),
    "bias not scaled": (
        {f"{QUERY}.weight": Update((16, 16), scale=SCALE)},
        "without the same scale of 'encoder.layer.0.attention.self.query.bias'",
    ),
    "scale beside lora": (
        {
            f"{QUERY}.weight": Update((16, 16), low_rank=LOW),
            "encoder.layer.0.attention.self.key.weight": Update((16, 16), scale=SCALE),
        },
        "cannot hold a scale without a low-rank term, while others have one, term of 'encoder.la",
    ),
    "dense only": (
        {f"{QUERY}.bias": Update((16,), dense=torch.ones(16))},
        "PEFT holds no delta without low-rank or scale terms",
    ),
    "tied": (
        {
            "embeddings.word_embeddings.weight": Update(
                (40, 16), low_rank=LowRank(torch.ones(40, 1), torch.ones(1, 16))
            )
        },
        "one tied parameter, and an adapter changes one of them only",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_peft_cannot_hold_is_named(name, tmp_path):
    from graftwork.deltas import Sparse

    updates, message = REFUSED[name]
    sparse = Update((16, 16), sparse=Sparse(torch.tensor([3]), torch.ones(1)))
    updates = {n: sparse if u == "sparse" else u for n, u in updates.items()}
    base = load(MODELS["bert"].build())
    delta = Delta(updates)
    delta = dataclasses.replace(delta, fingerprint=base_print(base, delta))
    with pytest.raises(UnsupportedError) as caught:
        export_peft(delta, base, tmp_path / "out")
    assert message in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_ports_other_bases_and_occupied_folders_are_refused(tmp_path):
    base = load(MODELS["bert"].build())
    delta = lora_like(base)
    prompt, head = Port("prompt", {}, {}), Port("head", {"out_features": 2}, {})
    for ports in ({"prompt": prompt}, {"head": head, "prompt": prompt}):
        refused = dataclasses.replace(delta, ports=ports)
        with pytest.raises(UnsupportedError, match="hold the port 'prompt' of kind 'prompt'"):
            export_peft(refused, base, tmp_path / "out")
    with pytest.raises(FingerprintError, match="made for another base"):
        export_peft(delta, load(MODELS["bert"].build(seed=1)), tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="exists; name a new folder"):
        export_peft(delta, base, tmp_path / "out")
