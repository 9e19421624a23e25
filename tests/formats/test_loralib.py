"""loralib checkpoints, the authors' own published one among them, and AdapterHub's LoRA."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from graftwork.bases import Base, load
from graftwork.deltas import dumps, loads, values_of, view
from graftwork.errors import ConfigError, DeltaFileError, UnknownNameError, UnsupportedError
from graftwork.formats import (
    ImportOptions,
    LoralibOptions,
    import_adapterhub,
    import_loralib,
)
from tests.formats.oracles import MODELS

MNLI = Path(os.environ.get("GRAFTWORK_DATA", "../shared/data")) / "lora/roberta_base_lora_mnli.bin"


@pytest.mark.skipif(not MNLI.is_file(), reason="set GRAFTWORK_DATA to a folder with lora/")
def test_the_authors_own_checkpoint_tensor_by_tensor(tmp_path):
    from transformers import RobertaConfig, RobertaModel

    # roberta-base in all that the checkpoint touches
    config = RobertaConfig(vocab_size=8, intermediate_size=4, max_position_embeddings=8)
    base = load(RobertaModel(config))
    options = LoralibOptions(alpha=16.0, head_activation="tanh")
    delta = loads(dumps(import_loralib(MNLI, base, options)))
    theirs: dict[str, Tensor] = torch.load(  # noqa: TID251 the oracle
        MNLI, map_location="cpu", weights_only=True
    )
    assert len(delta.updates) == 24
    seen = 0
    for name, update in delta.updates.items():
        term, module = update.low_rank, f"roberta.{name.removesuffix('.weight')}"
        assert term is not None
        assert term.factor == 2.0
        assert torch.equal(term.left, theirs[f"{module}.lora_B"])  # type: ignore[arg-type]
        assert torch.equal(term.right, theirs[f"{module}.lora_A"])  # type: ignore[arg-type]
        seen += theirs[f"{module}.lora_A"].numel() + theirs[f"{module}.lora_B"].numel()
    assert seen == 294_912
    head = delta.ports["head"].tensors
    pairs = {"hidden": "dense", "out": "out_proj"}
    for ours, stored in pairs.items():
        for leaf in ("weight", "bias"):
            expected = theirs[f"classifier.{stored}.{leaf}"]
            assert torch.equal(values_of(head[f"{ours}.{leaf}"]), expected)
            seen += expected.numel()
    assert seen == sum(t.numel() for t in theirs.values()) == 294_912 + 592_899
    assert delta.provenance["alpha"] == 16
    assert len(dumps(delta)) <= MNLI.stat().st_size
    without = LoralibOptions(alpha=16.0)
    with pytest.raises(UnsupportedError, match="say it with head_activation='tanh'"):
        import_loralib(MNLI, base, without)


class Layers(nn.Module):
    """One of each layer of loralib."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(9, 6)
        self.qkv = nn.Linear(6, 12)
        self.conv = nn.Conv2d(3, 4, 3)
        self.plain = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return x


def factors() -> dict[str, Tensor]:
    """As loralib's layers of rank 2 make them, the fused one with its first and third outputs."""
    torch.manual_seed(1)
    shapes = {
        "embedding": ((2, 9), (6, 2)),
        "qkv": ((4, 6), (8, 2)),
        "conv": ((6, 9), (12, 6)),
        "plain": ((2, 6), (5, 2)),
    }
    out: dict[str, Tensor] = {}
    for name, (a, b) in shapes.items():
        out |= {f"{name}.lora_A": torch.randn(a), f"{name}.lora_B": torch.randn(b)}
    return {**out, "plain.bias": torch.randn(5)}


def test_every_layer_of_loralib_against_its_formula(tmp_path):
    tensors = factors()
    save_file(tensors, tmp_path / "lora.safetensors")
    base = load(Layers())
    options = LoralibOptions(alpha=3.0, enabled=(True, False, True))
    adapted = view(base, import_loralib(tmp_path / "lora.safetensors", base, options))
    a, b = (
        {n: tensors[f"{n}.lora_{p}"] for n in ("embedding", "qkv", "conv", "plain")} for p in "AB"
    )
    expected = {
        "embedding": (b["embedding"] @ a["embedding"]).T * 1.5,
        "plain": b["plain"] @ a["plain"] * 1.5,
        "conv": (b["conv"] @ a["conv"]).view(4, 3, 3, 3) * 3.0 / 6,
    }
    # MergedLinear: a grouped convolution over A's rows, spread over the enabled thirds
    grouped = F.conv1d(a["qkv"][None], b["qkv"][:, :, None], groups=2)[0]
    fused = torch.zeros(3, 4, 6)
    fused[0], fused[2] = grouped[:4], grouped[4:]
    expected["qkv"] = fused.reshape(12, 6) * 1.5
    for name, difference in expected.items():
        found = getattr(adapted, name).weight - base.model.get_submodule(name).weight
        assert torch.allclose(found, difference, atol=1e-6), name
    assert torch.allclose(adapted.plain.bias, tensors["plain.bias"], atol=1e-7)


def test_what_a_checkpoint_lacks_is_named(tmp_path):
    base, tensors, path = load(Layers()), factors(), tmp_path / "lora.safetensors"
    save_file(tensors, path)
    with pytest.raises(DeltaFileError, match="say which of them are adapted with enabled="):
        import_loralib(path, base, LoralibOptions(alpha=1.0))
    with pytest.raises(DeltaFileError, match=r"with enabled=\(True, False\)"):
        import_loralib(path, base, LoralibOptions(alpha=1.0, enabled=(True, False)))
    with pytest.raises(ConfigError, match="alpha is nan, it must be a finite number"):
        LoralibOptions(alpha=float("nan"))
    save_file({k: t for k, t in tensors.items() if k != "plain.lora_B"}, path)
    with pytest.raises(DeltaFileError, match="module 'plain' has no lora_B in the file"):
        import_loralib(path, base, LoralibOptions(alpha=1.0))
    save_file({"plain.weight": torch.ones(5, 6)}, path)
    with pytest.raises(DeltaFileError, match=r"no key ends in '\.lora_A'"):
        import_loralib(path, base, LoralibOptions(alpha=1.0))
    pair = {"plain.lora_A": torch.ones(2, 6), "plain.lora_B": torch.ones(5, 2)}
    save_file({**pair, "plain.gain": torch.ones(5)}, path)
    with pytest.raises(UnknownNameError, match=r"unknown parameter of the base .plain\.gain"):
        import_loralib(path, base, LoralibOptions(alpha=1.0))
    with pytest.raises(DeltaFileError, match="does not exist"):
        import_loralib(tmp_path / "none.bin", base, LoralibOptions(alpha=1.0))


def hub_folder(folder: Path, name: str, version: str = "adapters.1.2.0", **changes: object) -> Base:
    """Write what AdapterHub's save_adapter does for a GPT-2 (r 2, alpha 6), and return its base."""
    base = load(MODELS["gpt2"].build())
    config = {
        "alpha": 6,
        "architecture": "lora",
        "attn_matrices": ["q", "v"],
        "composition_mode": "add",
        "dropout": 0.1,
        "init_weights": "lora",
        "intermediate_lora": True,
        "output_lora": False,
        "leave_out": [],
        "r": 2,
        "selfattn_lora": True,
        "use_gating": False,
        **changes,
    }
    torch.manual_seed(2)
    tensors: dict[str, Tensor] = {}
    for layer in range(2):
        for module, a, b in (("attn.c_attn", (4, 16), (32, 2)), ("mlp.c_fc", (2, 16), (64, 2))):
            key = f"transformer.h.{layer}.{module}.loras.{name}.lora_"
            tensors |= {f"{key}A": torch.randn(a), f"{key}B": torch.randn(b)}
    folder.mkdir()
    data = {"config": config, "name": name, "version": version, "model_type": "gpt2"}
    (folder / "adapter_config.json").write_text(json.dumps(data))
    save_file(tensors, folder / "adapter.safetensors")
    return base


@pytest.mark.parametrize("name", ["mnli", "lora", "loras", "lora_A"])
def test_adapterhub(name, tmp_path):
    from safetensors.torch import load_file

    base = hub_folder(tmp_path / "hub", name)
    delta = import_adapterhub(tmp_path / "hub", base)
    assert len(delta.updates) == 4
    tensors = load_file(tmp_path / "hub" / "adapter.safetensors")
    adapted = view(base, delta)
    key = f"transformer.h.1.attn.c_attn.loras.{name}.lora_"
    a, b = tensors[f"{key}A"], tensors[f"{key}B"]
    product = torch.cat([b[:16] @ a[:2], torch.zeros(16, 16), b[16:] @ a[2:]])
    weight = "transformer.h.1.attn.c_attn.weight"
    found = adapted.get_submodule("transformer.h.1.attn.c_attn").weight
    before = base.model.get_parameter(weight)
    assert torch.allclose(found - before, 3.0 * product.T, atol=1e-5)


def test_adapterhub_before_1_1_had_the_factor_1(tmp_path):
    base = hub_folder(tmp_path / "hub", "mnli", version="adapters.1.0.1")
    terms = import_adapterhub(tmp_path / "hub", base).updates.values()
    assert {u.low_rank.factor for u in terms if u.low_rank} == {1.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "prefix_tuning"}, "architecture is 'prefix_tuning'; 'lora' can be"),
        ({"composition_mode": "scale"}, "composition_mode is 'scale'; 'add' can be imported"),
        ({"use_gating": True}, "'use_gating' is True, which cannot be honoured"),
        ({"r": 3}, "has rank 2, the config says r = 3"),
        ({"r": None}, "r is None, not a number"),
    ],
)
def test_adapterhub_refuses(changes, message, tmp_path):
    base = hub_folder(tmp_path / "hub", "mnli", **changes)
    with pytest.raises((UnsupportedError, DeltaFileError)) as caught:
        import_adapterhub(tmp_path / "hub", base)
    assert message in str(caught.value)


def test_adapterhub_files(tmp_path):
    base = hub_folder(tmp_path / "hub", "mnli")
    (tmp_path / "hub" / "head_config.json").write_text("{}")
    with pytest.raises(UnsupportedError, match="holds a prediction head"):
        import_adapterhub(tmp_path / "hub", base)
    (tmp_path / "hub" / "head_config.json").unlink()
    from safetensors.torch import load_file

    tensors = load_file(tmp_path / "hub" / "adapter.safetensors")
    (tmp_path / "hub" / "adapter.safetensors").unlink()
    torch.save(tensors, tmp_path / "hub" / "pytorch_adapter.bin")  # noqa: TID251 as they do
    with pytest.raises(DeltaFileError, match="as a pickle"):
        import_adapterhub(tmp_path / "hub", base)
    delta = import_adapterhub(tmp_path / "hub", base, ImportOptions(unpickle=True))
    assert len(delta.updates) == 4
    torch.save({**tensors, "x": torch.ones(1)}, tmp_path / "hub" / "pytorch_adapter.bin")  # noqa: TID251
    with pytest.raises(DeltaFileError, match="tensor 'x' is no LoRA factor of the adapter 'mnli'"):
        import_adapterhub(tmp_path / "hub", base, ImportOptions(unpickle=True))
