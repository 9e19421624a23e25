"""`graftwork import` and `export`, as a new user of PEFT would call them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from tests.formats.oracles import quiet
from transformers import AutoModel

from graftwork.cli import main


def document(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, base) -> Path:
    """A PEFT LoRA over the tiny encoder, trained for 60 steps to tell two texts apart."""
    folder = tmp_path_factory.mktemp("adapters") / "my-lora"
    torch.manual_seed(0)
    with quiet():
        model = get_peft_model(
            AutoModel.from_pretrained(base), LoraConfig(r=8, target_modules=["query", "value"])
        ).eval()
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-2)
        losses = []
        for _ in range(60):
            out = model(input_ids=torch.tensor([[2, 5, 3], [2, 6, 3]])).last_hidden_state[:, 0]
            loss = torch.cosine_similarity(out[0], out[1], dim=0)
            losses.append(float(loss.detach()))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        model.save_pretrained(folder)
    assert losses[-1] < 0.7 * losses[0]
    return folder


def hidden(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[2, 5, 9, 3]])).last_hidden_state


def test_a_peft_lora_in_and_out_again(adapter, base, tmp_path, capsys):
    mine = tmp_path / "mine.safetensors"
    found = document(capsys, "import", str(adapter), "--base", base, "--out", str(mine))
    assert found == {
        "delta": str(mine),
        "base": base,
        "format": "peft",
        "bytes": mine.stat().st_size,
        "tensors": 4,
        "ports": [],
        "asserted": True,
        "next": f"graftwork inspect {mine}",
    }
    assert document(capsys, "inspect", str(mine))["asserted"] is True
    with quiet():
        theirs = hidden(PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter))
    words = ("export", str(mine), "--base", base)
    out = document(capsys, *words, "--to", "peft", "--out", str(tmp_path / "peft"))
    assert out["bytes"] == sum(f.stat().st_size for f in (tmp_path / "peft").iterdir())
    with quiet():
        again = PeftModel.from_pretrained(AutoModel.from_pretrained(base), tmp_path / "peft")
    assert torch.allclose(hidden(again), theirs, atol=1e-6)
    merged = document(capsys, *words, "--to", "merged", "--out", str(tmp_path / "merged"))
    assert merged["exact"] is True
    assert merged["error"] == 0
    assert torch.allclose(hidden(AutoModel.from_pretrained(tmp_path / "merged")), theirs, atol=1e-6)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    main([*words, "--to", "card", "--out", str(tmp_path / "merged"), "--base-name", "org/tiny"])
    assert 'base_model: "org/tiny"' in (tmp_path / "merged" / "README.md").read_text()
    capsys.readouterr()


def test_an_adapter_on_the_hub(adapter, base, tmp_path, capsys, monkeypatch):
    from huggingface_hub import constants

    root = tmp_path / "hub" / "models--me--lora"
    snapshot = root / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text("0" * 40)
    shutil.copytree(adapter, snapshot)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = ["--base", base, "--out", str(tmp_path / "d.safetensors")]
    assert document(capsys, "import", "me/lora", *words)["tensors"] == 4
    assert main(["import", "me/nothing", *words]) == 2
    assert "cannot fetch 'me/nothing'" in capsys.readouterr().err


def test_for_people(adapter, base, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["import", str(adapter), "--base", base, "--stored", "float16"]) == 0
    text = capsys.readouterr().out
    assert "my-lora.safetensors" in text
    assert "4 parameters, from peft" in text
    assert f"that it belongs to {base} is asserted by you" in text
    words = ["export", "my-lora.safetensors", "--base", base, "--to", "merged", "--out", "m"]
    assert main(words) == 0
    assert capsys.readouterr().out.startswith("m, ")


def test_loralib_by_the_command_line(base, tmp_path, capsys):
    name = "encoder.layer.0.attention.self.query"
    pair = {f"{name}.lora_A": torch.ones(2, 16), f"{name}.lora_B": torch.ones(16, 2)}
    torch.save(pair, tmp_path / "lora.bin")  # noqa: TID251 as loralib's users do
    words = ["import", str(tmp_path / "lora.bin"), "--base", base, "--out", str(tmp_path / "d.st")]
    assert main(words) == 2
    assert "say it with --alpha" in capsys.readouterr().err
    assert document(capsys, *words, "--alpha", "4")["format"] == "loralib"


def test_a_signature_makes_it_predict(adapter, base, tmp_path, capsys):
    path = tmp_path / "signature.json"
    path.write_text(json.dumps({"kind": "vector", "call": "single", "fields": ["text"]}))
    words = ["import", str(adapter), "--base", base, "--out", str(tmp_path / "d.st")]
    assert main([*words, "--signature", str(path)]) == 2
    assert "signature" in capsys.readouterr().err
    from graftwork.tasks import Signature

    made = Signature(kind="vector", call="single", fields=("text",), targets=(), head=None)
    path.write_text(json.dumps(made.to_json()))
    assert main([*words, "--signature", str(path)]) == 0
    capsys.readouterr()
    found = document(capsys, "predict", str(tmp_path / "d.st"), "--base", base, "--text", "a film")
    assert len(found["predictions"][0]["vector"]) == 16


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["import", "ADAPTER"], "--base"),
        (["import", "ADAPTER-no", "--base", "BASE"], "adapter '"),
        (["import", "PARENT", "--base", "BASE"], "it holds the adapters my-lora: name one of them"),
        (["import", "ADAPTER", "--base", "BASE", "--out", "."], "--out . is a folder; name a file"),
        (["import", "ADAPTER", "--base", "BASE", "--signature", "no.json"], "does not exist"),
        (
            ["import", "ADAPTER", "--base", "BASE", "--format", "loralib", "--alpha", "1"],
            "cannot be",
        ),
        (["export", "RUN", "--to", "peft"], "name where the adapter goes with --out"),
        (["export", "RUN", "--to", "hub"], "name the hub repository with --repo user/name"),
        (["export", "RUN", "--to", "peft", "--out", "no"], "cannot hold a sparse term of"),
        (["export", "RUN", "--to", "card", "--out", "no/card.md"], "there is no folder 'no'"),
    ],
)
def test_user_errors(adapter, run, base, capsys, words, text):
    known = {"ADAPTER": str(adapter), "ADAPTER-no": f"{adapter}-no", "PARENT": str(adapter.parent)}
    words = [{**known, "BASE": base, "RUN": str(run)}.get(word, word) for word in words]
    assert main(words) == 2
    caught = capsys.readouterr()
    assert text in caught.err
    assert caught.err.count("\n") == 1
    assert caught.out == ""


def test_an_unreadable_adapter_is_one_line(adapter, base, tmp_path, capsys):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "adapter_config.json").write_text("{}")
    save_file({"x": torch.ones(1)}, tmp_path / "bad" / "adapter_model.safetensors")
    assert main(["import", str(tmp_path / "bad"), "--base", base]) == 2
    assert "peft_type is None" in capsys.readouterr().err
