"""Folders that are wrong in one way each: one clear error each, which names the culprit."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from graftwork.bases import Base, load
from graftwork.deltas import view
from graftwork.errors import GraftworkError
from graftwork.formats import ImportOptions, import_peft
from tests.formats.oracles import MODELS, quiet, trained

Tensors = dict[str, Tensor]
LAYER = "base_model.model.bert.encoder.layer"
QUERY = f"{LAYER}.0.attention.self.query"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A trained adapter of `bert`, as PEFT wrote it."""
    config = LoraConfig(r=2, target_modules=["query", "value"], bias="lora_only")
    return trained("bert", config, tmp_path_factory.mktemp("good")).folder


@pytest.fixture(scope="module")
def base() -> Base:
    return load(MODELS["bert"].build())


def edit_config(folder: Path, changes: Mapping[str, Any]) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file({k: t.contiguous() for k, t in tensors.items()}, path)


def rename(old: str, new: str) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


def put(key: str, tensor: Tensor) -> Callable[[Tensors], Any]:
    return lambda tensors: tensors.update({key: tensor})


def drop(*keys: str) -> Callable[[Tensors], Any]:
    return lambda tensors: [tensors.pop(key) for key in keys]


def every(change: Callable[[str], str]) -> Callable[[Tensors], Any]:
    def changed(tensors: Tensors) -> None:
        for key in list(tensors):
            tensors[change(key)] = tensors.pop(key)

    return changed


def truncate(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])


def pickled(folder: Path) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    (folder / "adapter_model.safetensors").unlink()
    torch.save(tensors, folder / "adapter_model.bin")  # noqa: TID251 what others write


def named_adapter(folder: Path) -> None:
    inside = folder / "lora"
    inside.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).rename(inside / name)


FOLDERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, "has no adapter_config.json; there is no such folder"),
    "adapter called lora": (named_adapter, "it holds the adapters 'lora': name one of those"),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        "has no adapter_model.safetensors",
    ),
    "truncated weights": (truncate, "adapter_model.safetensors is truncated"),
    "truncated config": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LO'),
        "adapter_config.json is not JSON",
    ),
    "config is a list": (
        lambda f: (f / "adapter_config.json").write_text("[]"),
        "holds list, not a JSON object",
    ),
    "pickled weights": (pickled, "not read unless you say so for this one import"),
    "no tensors": (
        lambda f: edit_tensors(f, lambda t: t.clear()),
        "holds no tensors",
    ),
    "another method": (
        lambda f: edit_config(f, {"peft_type": "LOHA"}),
        "peft_type is 'LOHA'; LORA",
    ),
    "an option that cannot be honoured": (
        lambda f: edit_config(f, {"layer_replication": [[0, 2]]}),
        "option 'layer_replication' is [[0, 2]], which cannot be honoured",
    ),
    "an option of a newer PEFT": (
        lambda f: edit_config(f, {"use_frobnication": True}),
        "option 'use_frobnication' is True, which cannot be honoured",
    ),
    "PiSSA left in the base": (
        lambda f: edit_config(f, {"init_lora_weights": "pissa_niter_4"}),
        "init_lora_weights is 'pissa_niter_4', which changes the base's own weights",
    ),
    "rank 0": (lambda f: edit_config(f, {"r": 0}), "r is 0, it must be a whole number of 1 or"),
    "another rank": (
        lambda f: edit_config(f, {"r": 4}),
        "has shape (2, 16); the base's module and rank 4 of adapter_config.json want (4, 16)",
    ),
    "a broken pattern": (
        lambda f: edit_config(f, {"rank_pattern": {"(query": 2}}),
        "pattern '(query' cannot be read",
    ),
    "half of a pair": (
        lambda f: edit_tensors(f, drop(f"{QUERY}.lora_B.weight")),
        "module 'bert.encoder.layer.0.attention.self.query' has no lora_B in the adapter's file",
    ),
    "a module lost": (
        lambda f: edit_tensors(f, drop(f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight")),
        "targets 'bert.encoder.layer.0.attention.self.query', but the file has no tensors for it",
    ),
    "a module more": (
        lambda f: edit_config(f, {"target_modules": ["query"]}),
        "has tensors for 'bert.encoder.layer.0.attention.self.value', which the config does not",
    ),
    "a target that is nowhere": (
        lambda f: edit_config(f, {"target_modules": ["query", "value", "q_proj"]}),
        "unknown target module 'q_proj'",
    ),
    "a bias lost": (
        lambda f: edit_tensors(f, drop(f"{QUERY}.base_layer.bias")),
        "bias is 'lora_only', but the file has no 'bert.encoder.layer.0.attention.self.query.bias'",
    ),
    "a tensor nobody explains": (
        lambda f: edit_tensors(f, put(f"{LAYER}.0.output.dense.weight", torch.ones(16, 32))),
        "stores 'bert.encoder.layer.0.output.dense.weight' whole, and nothing in its config says",
    ),
    "the adapter's name inside": (
        lambda f: edit_tensors(f, every(lambda k: k.replace("lora_A.", "lora_A.default."))),
        "lora_A.default.weight' cannot be honoured: no key of an adapter of this method ends so",
    ),
    "a name eaten by the adapter lora": (
        # what PEFT before 0.9 wrote for an adapter called `lora` (huggingface/peft#2699)
        lambda f: edit_tensors(f, every(lambda k: k.replace(".lora_", "_"))),
        "the file has no tensors for it (4 modules are missing): a part of the adapter was lost",
    ),
    "one module twice": (
        lambda f: edit_tensors(f, put(f"{QUERY}.base_layer.lora_A.weight", torch.ones(2, 16))),
        "mean the same",
    ),
    "no PEFT prefix": (
        lambda f: edit_tensors(f, every(lambda k: k.removeprefix("base_model.model."))),
        "does not begin with 'base_model.model.'",
    ),
    "a module of another base": (
        lambda f: edit_tensors(f, every(lambda k: k.replace("query", "q_lin"))),
        "unknown module with a weight 'bert.encoder.layer.0.attention.self.q_lin.weight'; did you",
    ),
    "mixed types": (
        lambda f: edit_tensors(f, put(f"{QUERY}.lora_A.weight", torch.ones(2, 16).half())),
        "'bert.encoder.layer.0.attention.self.query' are of mixed types, torch.float16 and torch.f",
    ),
    "whole numbers": (
        lambda f: edit_tensors(f, put(f"{QUERY}.lora_A.weight", torch.ones(2, 16).long())),
        "lora_A.weight' is torch.int64, an adapter has floating values",
    ),
    "NaN": (
        lambda f: edit_tensors(f, put(f"{QUERY}.lora_A.weight", torch.full((2, 16), torch.nan))),
        "lora_A.weight' holds NaN or infinity",
    ),
    "a magnitude without DoRA": (
        lambda f: edit_tensors(f, put(f"{QUERY}.lora_magnitude_vector", torch.ones(16))),
        "has a magnitude, but use_dora is off",
    ),
    "DoRA without a magnitude": (
        lambda f: edit_config(f, {"use_dora": True}),
        "has no lora_magnitude_vector in the adapter's file",
    ),
    "a saved module lost": (
        lambda f: edit_config(f, {"modules_to_save": ["LayerNorm"]}),
        "modules_to_save names 'LayerNorm', but the file stores nothing of it",
    ),
    "a resized vocabulary": (
        lambda f: edit_tensors(
            f,
            put("base_model.model.bert.embeddings.word_embeddings.weight", torch.ones(48, 16)),
        ),
        "has shape (48, 16), the base has (40, 16); was its vocabulary resized",
    ),
    "a tie changed on one side": (
        lambda f: edit_tensors(
            f, put("base_model.model.bert.embeddings.word_embeddings.weight", torch.ones(40, 16))
        ),
        "are one tied parameter, and the file changes 'bert.embeddings.word_embeddings.weight' alo",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_one_clear_error(name, good, base, tmp_path):
    spoil, message = FOLDERS[name]
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    import_peft(folder, base)
    spoil(folder)
    with pytest.raises(GraftworkError) as caught:
        import_peft(folder, base)
    assert message in str(caught.value)
    assert "Traceback" not in str(caught.value)


def test_mixed_types_are_fine_once_one_is_named(good, base, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    edit_tensors(folder, put(f"{QUERY}.lora_A.weight", torch.ones(2, 16).half()))
    delta = import_peft(folder, base, ImportOptions(stored="float32"))
    assert len(delta.updates) == 8


def test_a_pickle_is_read_when_told_and_only_as_tensors(good, base, tmp_path):
    folder = tmp_path / "adapter"
    shutil.copytree(good, folder)
    pickled(folder)
    delta = import_peft(folder, base, ImportOptions(unpickle=True))
    again = import_peft(good, base)
    for name, update in again.updates.items():
        term, other = update.low_rank, delta.updates[name].low_rank
        if term is not None and other is not None:
            assert torch.equal(term.left, other.left)  # type: ignore[arg-type]
    torch.save({"x": Payload()}, folder / "adapter_model.bin")  # noqa: TID251 an attack
    with pytest.raises(GraftworkError, match="cannot be read as tensors only"):
        import_peft(folder, base, ImportOptions(unpickle=True))
    assert not Payload.ran


class Payload:
    """What a pickle could run; torch's restricted reader refuses it."""

    ran = False

    def __reduce__(self) -> Any:
        return setattr, (Payload, "ran", True)


def test_no_module_name_is_taken_for_a_part_of_a_key(tmp_path):
    """Modules called foo, foobar, lora and lora_A in one base, each with an adapter."""

    class Names(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            names = ("foo", "foobar", "lora", "lora_A")
            self.inner = nn.ModuleDict({n: nn.Linear(4, 4) for n in names})

        def forward(self, x: Tensor) -> Tensor:
            for module in self.inner.values():
                x = x + module(x).tanh()
            return x

    for adapter in ("default", "lora", "foo", "foobar", "lora_B"):
        torch.manual_seed(1)
        module = Names()
        targets = ["inner.foobar", "inner.lora", "lora_A", "inner.foo"]
        config = LoraConfig(r=2, target_modules=targets)
        with quiet():
            wrapped = get_peft_model(copy.deepcopy(module), config, adapter)
        for name, parameter in wrapped.named_parameters():
            if "lora_B." in name:
                nn.init.normal_(parameter)
        folder = tmp_path / adapter
        wrapped.save_pretrained(folder)
        base = load(module)
        delta = import_peft(folder if adapter == "default" else folder / adapter, base)
        assert len(delta.updates) == 4
        x = torch.eye(4)
        with torch.no_grad():
            assert (view(base, delta)(x) - wrapped.eval()(x)).abs().max() <= 1e-5
