"""Folders of `graftwork.models`: round trip, fingerprints, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from graftwork._errors import BaseError, StorageError, UnknownNameError
from graftwork.bases import load, load_module, print_of, save
from graftwork.models import MolformerConfig

CONFIG = MolformerConfig(vocab_size=12, width=16, layers=2, heads=2, features=8)


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return CONFIG.build()


@pytest.fixture
def folder(module: nn.Module, tmp_path: Path) -> Path:
    path = tmp_path / "base"
    save(module, path, config=CONFIG, pooling="mean", max_length=30)
    return path


def test_comes_back_bit_for_bit_with_its_fingerprint(module: nn.Module, folder: Path) -> None:
    base = load(folder)
    assert not base.model.training
    assert (base.pooling, base.width, base.stored_dtype) == ("mean", 16, "float32")
    assert base.processing["pooling"] == "mean"
    assert base.initialised == ()
    assert set(base.unexpected) == {n for n in module.state_dict() if n.startswith("lm_head.")}
    for name, parameter in base.model.named_parameters():
        assert torch.equal(parameter, module.get_parameter(name))
        assert base.prints([name])[name] == print_of(module.get_parameter(name))
        assert not parameter.requires_grad
    ids = torch.tensor([[0, 5, 6, 1]])
    module.eval()
    with torch.no_grad():
        found = base.model(input_ids=ids)["last_hidden_state"]
        assert torch.equal(found, module(ids)["last_hidden_state"])
    base.verify()


def test_the_same_module_gives_the_same_bytes(module: nn.Module, tmp_path: Path) -> None:
    sizes = [save(module, tmp_path / name, config=CONFIG) for name in "ab"]
    assert sizes[0] == sizes[1]
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_load_module_gives_the_head_of_pretraining(module: nn.Module, folder: Path) -> None:
    found, config, tokenizer = load_module(folder)
    assert config == CONFIG
    assert tokenizer is None
    assert found.state_dict().keys() == module.state_dict().keys()
    assert all(p.requires_grad for p in found.parameters())
    assert all(torch.equal(t, module.state_dict()[n]) for n, t in found.state_dict().items())


def test_a_cast_is_a_declared_view(folder: Path) -> None:
    base = load(folder, dtype=torch.bfloat16)
    name = "blocks.0.up.weight"
    assert base.model.get_parameter(name).dtype == torch.bfloat16
    assert base.prints([name]) == load(folder).prints([name])
    base.verify()


def test_a_changed_buffer_is_seen(folder: Path) -> None:
    base = load(folder)
    base.model.blocks[0].attention.feature_map.omega[0, 0] += 1
    with pytest.raises(BaseError, match=r"buffer blocks\.0\.attention\.feature_map\.omega"):
        base.verify()


def test_save_refuses(module: nn.Module, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="exists; name a new folder"):
        save(module, folder, config=CONFIG)
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        save(module, tmp_path / "x", config=CONFIG, pooling="meen")
    with pytest.raises(BaseError, match=r"tensor 'blocks\.0\.attention\.feature_map\.omega'"):
        save(module, tmp_path / "x", config=replace(CONFIG, features=4))
    assert not list(tmp_path.glob("*x*"))


def _rewrite(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"graftwork_model": "molforma"}, "unknown model 'molforma'; did you mean 'molformer'"),
        ({"format": 2}, "format 2 is not 1"),
        ({"more": 1}, "has the keys"),
        ({"config": {"widht": 3}}, "no field 'widht'"),
        ({"config": 3}, "not iterable"),
        ({"max_length": -1}, "max_length -1"),
    ],
)
def test_a_bad_config_is_named(folder: Path, changes: dict, message: str) -> None:
    _rewrite(folder, **changes)
    with pytest.raises(BaseError, match=message):
        load(folder)


def test_other_tensors_are_named(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({n: t for n, t in state.items() if n != "norm.bias"}, folder / "model.safetensors")
    with pytest.raises(BaseError, match=r"tensor 'norm\.bias' has the shape None"):
        load(folder)
    save_file(state | {"extra": torch.zeros(1)}, folder / "model.safetensors")
    with pytest.raises(BaseError, match="tensor 'extra' has the shape"):
        load(folder)


def test_load_module_wants_a_folder_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(BaseError, match="not written by graftwork"):
        load_module(tmp_path)
