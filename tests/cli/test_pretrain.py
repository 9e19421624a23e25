"""`graftwork pretrain` from a file of SMILES to a base that `graftwork adapt` takes."""

import importlib.util
import json
from pathlib import Path

import pytest

from graftwork.cli import main

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rdkit") is None, reason="needs the extra 'molecules'"
)
SMALL = ["--width", "16", "--layers", "1", "--heads", "2", "--features", "8"]
SMALL += ["--train.steps", "6", "--valid-share", "0.1", "--progress", "silent", "--device", "cpu"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    rows = [("C" * n + end, n) for n in range(1, 12) for end in ("O", "N", "c1ccccc1")]
    path = tmp_path_factory.mktemp("molecules") / "mine.csv"
    lines = [f"{smiles},{value}" for smiles, value in [*rows, ("c1cccc1", 0)]]
    path.write_text("\n".join(["smiles,size", *lines]) + "\n")
    return str(path)


def test_a_base_then_a_delta_of_it(data, tmp_path, capsys):
    words = ["pretrain", "--data", data, "--out", str(tmp_path / "base"), *SMALL]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["molecules"]["left_out"] == {"aromaticity": 1}
    assert set(made["metrics"]) == {"loss", "accuracy", "perplexity"}
    assert main([*words, "--resume"]) == 0
    shown = capsys.readouterr().out
    assert "33 of 34 rows" in shown
    assert f"graftwork adapt --base {made['base']}" in shown
    good = tmp_path / "good.csv"
    good.write_text("\n".join(Path(data).read_text().splitlines()[:-1]) + "\n")
    adapt = ["adapt", "--base", made["base"], "--task.data", str(good), "--task.inputs", "smiles"]
    adapt += ["--task.label", "size", "--task.kind", "regression", "--train.steps", "5"]
    adapt += ["--out", str(tmp_path / "delta"), "--progress", "silent", "--json"]
    assert main(adapt) == 0
    assert "pearson" in capsys.readouterr().out


def test_what_is_wrong_is_named(data, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x"), *SMALL]
    assert main(["pretrain", "--data", data, "--colum", "smiles", *out]) == 2
    assert "did you mean '--column'" in capsys.readouterr().err
    assert main(["pretrain", "--data", data, "--column", "smile", *out]) == 2
    assert "did you mean 'smiles'" in capsys.readouterr().err
    assert main(["pretrain", "--data", data, *out, "--start-from", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err
