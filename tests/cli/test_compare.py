"""`graftwork compare`: the same search for every method, a budget that is kept, resuming."""

import contextlib
import io
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from graftwork.cli import main

METHODS = ("head", "full", "lora", "gradient_mask", "prefix")


def _words(base: str, reviews: str, out: Path, *more: str) -> list[str]:
    words = ["compare", reviews, "--base", base, "--steps", "4", "--batch-size", "8"]
    words += ["--targets", "encoder.*", "--head-hidden", "0", "--trials", "2"]
    return [*words, "--budget-bytes", "4000", "--out", str(out), *more]


@pytest.fixture(scope="module")
def compared(tmp_path_factory, base, reviews) -> tuple[dict, Path, str, str]:
    folder = tmp_path_factory.mktemp("compare") / "reviews"
    printed, said = io.StringIO(), io.StringIO()
    words = _words(base, reviews, folder, "--methods", *METHODS, "--seeds", "0", "1", "--json")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(said):
        assert main(words) == 0, said.getvalue()
    chart = (folder / "comparison.svg").read_text()
    return json.loads(printed.getvalue()), folder, said.getvalue(), chart


def test_every_method_gets_the_same_search_and_the_random_mask_always_runs(compared):
    document, *_ = compared
    results = {entry["method"]: entry for entry in document["results"]}
    assert set(results) == {"random_mask", *METHODS}
    run = {name: e for name, e in results.items() if e["status"] != "left out"}
    assert set(run) == {"random_mask", "head", "full", "lora", "gradient_mask"}
    for entry in run.values():
        assert [tried["factor"] for tried in entry["searched"]] == [1.0, 3.0]
        assert len(entry["values"]) == 2
        assert entry["memory"] > 0
        assert entry["mean"] == pytest.approx(sum(entry["values"]) / 2)
    assert sum(document["rows"].values()) == 80


def test_files_are_within_the_budget_and_use_most_of_it(compared):
    document, folder, *_ = compared
    for entry in document["results"]:
        if entry["method"] not in ("random_mask", "lora", "gradient_mask"):
            continue
        sizes = [p.stat().st_size for p in folder.glob(f"final/{entry['method']}/*/*.safetensors")]
        assert len(sizes) == 2
        assert max(sizes) == entry["bytes"] <= 4000
        assert entry["setting"]
    seeded = next(e for e in document["results"] if e["method"] == "random_mask")
    assert seeded["bytes"] > 3000, "a mask of free size leaves no quarter of the budget unused"


def test_what_does_not_fit_or_work_is_said(compared):
    results = {entry["method"]: entry for entry in compared[0]["results"]}
    assert results["full"]["status"] == "reference"
    assert results["full"]["bytes"] > 4000
    assert results["prefix"]["status"] == "left out"
    assert "does not work here" in results["prefix"]["note"]


def test_progress_says_how_long_is_left(compared):
    _, _, said, _ = compared
    assert "fitting lora into 4,000 bytes" in said
    assert "20/20 " in said
    assert "left" in said


def test_finished_runs_are_kept_and_methods_may_join(compared, base, reviews, capsys):
    _, folder, *_ = compared
    kept = {p: p.stat().st_mtime_ns for p in folder.glob("*/*/*/delta.safetensors")}
    assert len(kept) == 20
    words = _words(base, reviews, folder, "--seeds", "0", "1", "--methods")
    assert main([*words, "lora", "ia3"]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main([*words, "lora", "ia3", "--resume"]) == 0
    shown = capsys.readouterr()
    assert "was finished" in shown.err
    assert "ia3" in shown.out
    assert "budget 4,000 bytes" in shown.out
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert main([*words, "lora", "--resume", "--trials", "3"]) == 2
    assert "trials: 2, not 3" in capsys.readouterr().err


def test_chart_is_svg_with_every_method_that_ran(compared):
    document, _, _, chart = compared
    drawn = {e.text for e in ET.fromstring(chart).iter() if e.tag.endswith("}title")}
    ran = {e["method"] for e in document["results"] if e["status"] != "left out"}
    assert {title.partition(":")[0] for title in drawn} == ran


def test_a_budget_that_nothing_fits_lists_what_each_takes(tmp_path, base, reviews, capsys):
    words = _words(base, reviews, tmp_path / "c", "--methods", "lora", "bitfit", "--seeds", "0")
    words[words.index("4000")] = "100"
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["chart"] is None
    for entry in document["results"]:
        assert entry["status"] == "left out"
        assert "bytes at least" in entry["note"]
        assert entry["bytes"] > 100


def test_mistakes_are_named(tmp_path, base, capsys):
    assert main(["compare", "comparisons", "--methods", "lorra"]) == 2
    assert "did you mean 'lora'" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "nothing.csv")]) == 2
    assert "task" in capsys.readouterr().err
    assert main(["compare", "comparisons", "--trials", "0"]) == 2
    assert "trials: 1 or more" in capsys.readouterr().err
