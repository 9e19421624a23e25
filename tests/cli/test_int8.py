"""A run over a base in 8 bits from the command line: train, predict, move, predict."""

import contextlib
import html
import io
import json

import pytest

from graftwork.cli import main

pytest.importorskip("torchao.quantization", reason="needs the extra 'int8'")


def test_adapt_predict_and_rebase(base, reviews, tmp_path, capsys):
    run, moved = tmp_path / "run", tmp_path / "moved.safetensors"
    words = ["adapt", "--base", base, "--data", reviews, "--tuner", "lora", "--rank", "2"]
    words += ["--base-options.quantise", "int8", "--steps", "20", "--out", str(run)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert main(words) == 0
    text = ["--text", "a good film ."]
    shown = html.unescape((run / "report.html").read_text(encoding="utf-8"))
    assert f"load_base({base!r}, quantise='int8')" in shown
    # the delta says how its base is held
    assert main(["predict", str(run), *text]) == 0
    assert main(["predict", str(run / "delta.safetensors"), *text, "--base", base]) == 0

    capsys.readouterr()
    words = ["rebase", str(run), "--to", base, "--out", str(moved), "--json"]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0 < found["base_change"] < 0.02
    assert main(["predict", str(moved), *text, "--base", base]) == 0
    words = ["rebase", str(moved), "--base", base, "--to", base, "--quantise", "int8"]
    assert main([*words, "--out", str(tmp_path / "back.safetensors")]) == 0
