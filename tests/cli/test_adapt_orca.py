"""`graftwork adapt --recipe orca` on a user's own table, and prediction on raw rows."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest

from graftwork.cli import main
from graftwork.cli.adapt import read
from graftwork.training import OrcaConfig

pytest.importorskip("ot", reason="the extra `transport` is absent")


@pytest.fixture(scope="module")
def patients(tmp_path_factory) -> Path:
    """A CSV with numbers, a category that is missing at times, and a label."""
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("tables") / "patients.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "pressure", "ward", "outcome"])
        for _ in range(80):
            age, pressure = rng.uniform(20, 90), rng.gauss(120, 15)
            ward = rng.choice(["north", "south", ""])
            outcome = "ill" if age > 50 or ward == "south" else "well"
            writer.writerow([f"{age:.1f}", f"{pressure:.1f}", ward, outcome])
    return path


@pytest.fixture(scope="module")
def words(base, patients, tmp_path_factory) -> list[str]:
    out = tmp_path_factory.mktemp("runs") / "patients"
    flags = ["--recipe", "orca", "--base", base, "--data", str(patients), "--label", "outcome"]
    flags += ["--steps", "20", "--updates", "6", "--tuner", "random_mask", "--share", "0.05"]
    return ["adapt", *flags, "--positions", "2", "--out", str(out)]


def test_a_table_becomes_one_delta_that_predicts_raw_rows(words, patients, tmp_path, capsys):
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["steps"] == 26
    assert set(document["trained"]) == {"values", "input", "head"}
    rows = tmp_path / "new.csv"
    rows.write_text("ward,age,pressure\nsouth,33,120\nunknown ward,80,99.5\n")
    assert main(["predict", document["folder"], "--data", str(rows), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["predictions"] if isinstance(found, dict) else found) == 2
    assert main(["evaluate", document["folder"], "--data", str(patients), "--json"]) == 0
    assert "accuracy" in capsys.readouterr().out
    config = f"{document['folder']}/config.yaml"
    assert main(["adapt", "--config", config, "--resume", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == document["bytes"]


def test_flags_of_alignment_exist_with_the_recipe_only(capsys):
    _, align, _ = read(["--recipe", "orca", "--updates", "9", "--align.layout", "series"])
    assert align == OrcaConfig(updates=9, layout="series")
    assert read([])[1] is None
    assert main(["adapt", "--updates", "9"]) == 2
    assert "unknown flag '--updates'" in capsys.readouterr().err
    assert main(["adapt", "--recipe", "ocra"]) == 2
    assert "ocra" in capsys.readouterr().err


def test_printed_configuration_is_read_back(tmp_path, capsys):
    words = ["--recipe", "orca", "--distance", "mmd", "--steps", "7"]
    assert main(["adapt", *words, "--print-config"]) == 0
    path = tmp_path / "run.yaml"
    path.write_text(capsys.readouterr().out)
    assert read(["--config", str(path)])[:2] == read(words)[:2]


def test_bad_rows_are_named(base, tmp_path, capsys):
    path = tmp_path / "rows.csv"
    path.write_text("a,b,label\n" + "1,2,x\n3,4,y\n" * 6)
    flags = ["adapt", "--recipe", "orca", "--base", base, "--data", str(path)]
    assert main([*flags, "--label", "lable", "--out", str(tmp_path / "r")]) == 2
    assert "did you mean 'label'" in capsys.readouterr().err
