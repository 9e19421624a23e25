"""`graftwork diagnose` and `rebase` on finished runs of LoRA."""

import contextlib
import io
import json
from pathlib import Path

import pytest

from graftwork.cli import main


@pytest.fixture(scope="module")
def runs(tmp_path_factory, base, reviews) -> list[Path]:
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp("lora") / f"seed{seed}"
        words = ["adapt", "--base", base, "--data", reviews, "--tuner", "lora", "--rank", "2"]
        words += ["--targets", "*query.weight", "*value.weight", "--steps", "20"]
        words += ["--seed", str(seed), "--out", str(folder)]
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            assert main(words) == 0
        folders.append(folder)
    return folders


def test_diagnose_lora(runs, capsys):
    words = ["diagnose", "lora", *map(str, runs)]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"delta", "other", "reports", "left_out"}
    assert len(found["reports"]) == 4
    for report in found["reports"]:
        assert report["rank"] == 2
        assert report["amplification"]["size"] > 0
        assert all(0.0 <= value <= 1.0 + 1e-9 for row in report["right"] for value in row)
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert "amplified" in shown
    assert "shared" in shown
    assert main(["diagnose", "dora", str(runs[0])]) == 2
    assert "unknown diagnosis 'dora'" in capsys.readouterr().err


def test_rebase(runs, base, tmp_path, capsys):
    import torch
    from transformers import AutoTokenizer, BertModel

    model = BertModel.from_pretrained(base, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    model.save_pretrained(tmp_path / "v2")
    AutoTokenizer.from_pretrained(base).save_pretrained(tmp_path / "v2")
    out = tmp_path / "v2.safetensors"
    words = ["rebase", str(runs[0]), "--to", str(tmp_path / "v2"), "--out", str(out)]
    capsys.readouterr()
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base_change"] == pytest.approx(0.01, rel=1e-3)
    assert len(found["tensors"]) == 4
    assert main(words) == 2
    assert "exists; name another file" in capsys.readouterr().err
    out.unlink()
    assert main(words) == 0
    assert "evaluate it anew" in " ".join(capsys.readouterr().out.split())
    text = ["--text", "a good film ."]
    assert main(["predict", str(out), *text, "--base", str(tmp_path / "v2")]) == 0
    assert main(["predict", str(out), *text, "--base", base]) == 2
    assert "made for another base" in capsys.readouterr().err
