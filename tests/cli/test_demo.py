"""`graftwork demo` at a scale of seconds on a tiny base: every part of it runs."""

import json
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO

import pytest

from graftwork.cli import main
from graftwork.cli._demo import Scale, methods

KEYS = {
    *("base", "base_weights", "target_weights", "targets", "results", "base_unchanged"),
    *("predictions", "report", "next", "seconds"),
}
RESULT_KEYS = {
    *("method", "title", "accuracy", "trained", "changed", "share", "bytes", "seconds", "folder"),
}
COLUMNS = {"same", "more-less", "not", "unrelated", "new words", "longer nouns"}


@pytest.fixture(scope="module")
def first(tmp_path_factory, base):
    """A finished demo: its folder, and what it wrote to stdout and stderr."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with redirect_stdout(StringIO()) as said, redirect_stderr(StringIO()) as shown:
        assert main(["demo", "--quick", "--base", base, "--out", str(out), "--json"]) == 0
    return out, said.getvalue(), shown.getvalue()


@pytest.fixture
def out(first):
    return first[0]


def test_json(first):
    out, said, shown = first
    found = json.loads(said)
    assert set(found) == KEYS
    assert [r["method"] for r in found["results"]] == [
        "head",
        "full",
        "random_mask",
        "diff_pruning",
    ]
    assert all(set(r) == RESULT_KEYS for r in found["results"])
    assert all(set(r["accuracy"]) == COLUMNS for r in found["results"])
    head, full, mask, pruning = found["results"]
    assert head["changed"] == 0
    assert full["changed"] == found["target_weights"]
    assert mask["changed"] == pruning["changed"] == int(0.005 * found["target_weights"])
    assert found["predictions"][0]["premise"].startswith("the boy is more cheerful")
    assert "4/4 diff pruning" in shown
    assert (out / "diff_pruning/report.html").is_file()
    assert found["report"] == str(out / "diff_pruning/report.html")


def test_again_goes_on_where_it_was_and_prints_for_people(out, base, capsys):
    before = (out / "random_mask/delta.safetensors").read_bytes()
    assert main(["demo", "--quick", "--base", base, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for shown in ("more-less", "random mask", "the base is unchanged", "reloaded from", "next "):
        assert shown in text
    assert (out / "random_mask/delta.safetensors").read_bytes() == before


def test_another_seed_in_the_same_folder_is_an_error(out, base, capsys):
    assert main(["demo", "--quick", "--base", base, "--out", str(out), "--seed", "1"]) == 2
    assert "seed: 0, not 1" in capsys.readouterr().err


def test_the_real_scale_is_within_the_budget_of_steps():
    scale = Scale()
    # 1,550 steps took 5.5 minutes on two idle cores; the demo may take 8
    assert sum(m.steps for m in methods(scale)) <= 1600
    assert scale.batch_size <= 32
