"""`graftwork merge`, `compress` and `extract`; and the way of a PEFT LoRA through all of them."""

import contextlib
import io
import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tests.cli.test_formats import adapter, hidden
from tests.formats.oracles import quiet
from transformers import AutoModel

from graftwork import bases, deltas
from graftwork.cli import main

# the fixtures below are found by their names in this module
__all__ = ["adapter"]


def document(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture(scope="module")
def second(tmp_path_factory, base, reviews) -> Path:
    """Another run on the same data, another seed."""
    folder = tmp_path_factory.mktemp("runs") / "second"
    words = ["adapt", "--base", base, "--data", reviews, "--tuner", "random_mask", "--seed", "1"]
    words += ["--share", "0.1", "--steps", "30", "--batch-size", "8", "--out", str(folder)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(words) == 0
    return folder


def test_merge(run, second, tmp_path, capsys):
    out = tmp_path / "both.safetensors"
    words = ["merge", str(run), str(second), "--method", "ties", "--density", "0.5"]
    words += ["--ports-of", "0", "--out", str(out)]
    found = document(capsys, *words)
    assert set(found) == {
        *("out", "bytes", "of", "method", "shared", "conflicts", "against", "cosine", "error"),
        *("exact", "tensors"),
    }
    assert found["bytes"] == out.stat().st_size
    merged = deltas.load(out)
    assert merged.provenance["method"] == "ties"
    assert merged.ports.keys() == {"head"}
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "entries that two or more change" in text
    assert "lost in what is stored" in text
    document(capsys, "predict", str(out), "--text", "a good film .", "--base", merged_base(run))


def merged_base(run: Path) -> str:
    import yaml

    return yaml.safe_load((run / "config.yaml").read_text())["base"]


def test_compress_to_half(run, tmp_path, capsys):
    out = tmp_path / "small.safetensors"
    whole = (run / "delta.safetensors").stat().st_size
    words = ["compress", str(run), "--out", str(out), "--keep", "0.4", "--stored", "int8"]
    found = document(capsys, *words)
    assert found["bytes_before"] == whole
    assert found["bytes_after"] == out.stat().st_size < whole
    assert 0 < found["error"] < 1
    assert main(words) == 0
    text = capsys.readouterr().out
    assert "40 % of the values kept, in int8; lost" in text
    assert main(["evaluate", str(out), "--base", merged_base(run), "--data", "nowhere.csv"]) == 2


def test_extract(base, tmp_path, capsys):
    model = AutoModel.from_pretrained(base)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape)
    model.save_pretrained(tmp_path / "tuned")
    errors = []
    for kind in ("sparse", "low_rank"):
        out = tmp_path / f"{kind}.safetensors"
        words = ["extract", str(tmp_path / "tuned"), "--base", base, "--budget-bytes", "9000"]
        found = document(capsys, *words, "--kind", kind, "--out", str(out))
        assert found["bytes"] == out.stat().st_size <= 9000
        errors.append(found["error"])
        assert deltas.view(bases.load(base), deltas.load(out)) is not None
    assert all(0 < error < 1 for error in errors)
    assert main([*words, "--out", str(tmp_path / "x.st")]) == 0
    assert "of the model's difference" in " ".join(capsys.readouterr().out.split())


def test_a_lora_of_today_imported_halved_merged_and_back_in_peft(adapter, base, tmp_path, capsys):
    one, half, both = (tmp_path / f"{n}.safetensors" for n in ("one", "half", "both"))
    document(capsys, "import", str(adapter), "--base", base, "--out", str(one))
    document(capsys, "inspect", str(one))
    budget = one.stat().st_size // 2
    small = document(
        capsys, "compress", str(one), "--budget-bytes", str(budget), "--out", str(half)
    )
    assert small["bytes_after"] <= budget
    assert small["error"] < 0.1
    words = ["merge", str(half), str(one), "--rank", "8", "--out", str(both)]
    merged = document(capsys, *words)
    assert merged["error"] < 0.1
    folder = tmp_path / "peft"
    document(capsys, "export", str(both), "--base", base, "--to", "peft", "--out", str(folder))
    with quiet():
        theirs = hidden(PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder))
        first = hidden(PeftModel.from_pretrained(AutoModel.from_pretrained(base), adapter))
    ours = hidden(deltas.view(bases.load(base), deltas.load(both)))
    assert torch.allclose(ours, theirs, atol=1e-6)
    plain = hidden(AutoModel.from_pretrained(base))
    assert (theirs - first).norm() < 0.1 * (plain - first).norm()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["merge", "--out", "x.st"], "name the deltas to merge"),
        (["merge", "RUN"], "--out"),
        (["merge", "RUN", "SECOND", "--out", "x.st"], "port 'head' differs between the deltas"),
        (["merge", "RUN", "RUN", "--weights", "1", "--out", "x.st"], "1 weights for 2 deltas"),
        (["merge", "RUN", "--out", "no/x.st"], "there is no folder 'no'"),
        (["compress", "RUN", "--out", "x.st"], "say how: --keep 0.5, --stored int8 or"),
        (["compress", "RUN", "--keep", "2", "--out", "x.st"], "keep is 2.0, it must lie in"),
        (["compress", "RUN", "--budget-bytes", "50", "--out", "x.st"], "fits 50: signature"),
        (["compress", "RUN", "--keep", "0.5", "--out", "."], "--out . is a folder"),
        (["extract", "nowhere", "--base", "BASE", "--budget-bytes", "9", "--out", "x"], "model 'n"),
    ],
)
def test_user_errors(run, second, base, tmp_path, monkeypatch, capsys, words, text):
    known = {"RUN": str(run), "SECOND": str(second), "BASE": base}
    monkeypatch.chdir(tmp_path)
    assert main([known.get(word, word) for word in words]) == 2
    caught = capsys.readouterr()
    assert text in caught.err
    assert caught.err.count("\n") == 1
    assert caught.out == ""
    assert not list(tmp_path.iterdir())
