"""`graftwork claims`: the list, a run, what is saved, and what a user may get wrong."""

import json

import pytest

from graftwork import claims
from graftwork.claims import Beats, Claim, Equals, Row
from graftwork.cli import claims as command
from graftwork.cli import main

KEYS = {
    *("name", "system", "sentence", "kind", "scale", "seeds", "rows", "measured", "interval"),
    *("text", "verdict", "rule_hash", "commit", "versions"),
}


def measure(scale, seed, data, progress):
    progress(f"seed {seed} at {scale}")
    return [
        Row("all", "ours", "accuracy", seed, 90.0 + seed / 10),
        Row("all", "baseline", "accuracy", seed, 80.0),
        Row("all", "ours", "kept", seed, 1.0),
    ]


TOY = Claim(
    name="toy",
    system="toys",
    sentence="Ours is better.",
    rules=(
        Equals("kept", "Exactly one is kept.", "kept", 1.0),
        Beats("beats", "Ours beats the baseline.", "all", "ours", "baseline", 20.0),
    ),
    run=measure,
)


@pytest.fixture(autouse=True)
def one_claim(monkeypatch):
    monkeypatch.setattr(command, "CLAIMS", {"toy": TOY})


def test_the_table_is_public():
    assert all(isinstance(c, Claim) and c.name == name for name, c in claims.CLAIMS.items())


def test_list_without_a_result_is_not_run(capsys):
    assert main(["claims", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [set(e) for e in entries] == [KEYS, KEYS]
    assert {e["verdict"] for e in entries} == {"not run"}


def test_run_saves_and_judges(tmp_path, capsys):
    words = ["claims", "run", "toy", "--scale", "smoke", "--seeds", "10", "11", "--json"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    caught = capsys.readouterr()
    entries = json.loads(caught.out)
    assert [e["verdict"] for e in entries] == ["pass", "fail"]
    assert entries[0]["seeds"] == [10, 11]
    assert "seed 11 at smoke" in caught.err
    assert (tmp_path / "toy.smoke.json").is_file()
    assert main(["claims", "--json", "--results", str(tmp_path), "--scale", "smoke"]) == 0
    assert json.loads(capsys.readouterr().out) == entries


def test_run_prints_a_table_for_people(tmp_path, capsys):
    assert main(["claims", "run", "toy", "--scale", "smoke", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert all(word in text for word in ("toy/kept", "toy/beats", "pass", "fail", "mechanism"))


def test_pilot_seeds_are_kept_apart(tmp_path):
    assert main(["claims", "run", "toy", "--pilot", "--out", str(tmp_path)]) == 0
    assert not (tmp_path / "toy.quick.json").exists()
    assert json.loads((tmp_path / "pilot/toy.quick.json").read_text())["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["rn"], "unknown claims command 'rn'; did you mean 'run'?"),
        (["run", "tou"], "unknown claim 'tou'; did you mean 'toy'?"),
        (["run"], "NAME"),
        (["run", "toy", "--scale", "big"], "invalid choice 'big' for argument '--scale'"),
        (["run", "toy", "--seeds", "x"], "--seeds"),
        (["run", "toy", "--seeds", "1", "--pilot"], "--pilot and --seeds exclude each other"),
        (["run", "toy", "--data", "no-such-folder"], "--data 'no-such-folder' is no folder"),
        (["--results", "no-such-folder"], "the folder of results 'no-such-folder' does not exist"),
    ],
)
def test_user_errors(capsys, words, text):
    assert main(["claims", *words]) == 2
    caught = capsys.readouterr()
    assert text in caught.err
    assert caught.err.count("\n") == 1


def test_a_damaged_result_is_a_clear_error(tmp_path, capsys):
    (tmp_path / "toy.quick.json").write_text("{")
    assert main(["claims", "--results", str(tmp_path)]) == 2
    assert "toy.quick.json is not the result of a claim" in capsys.readouterr().err
