"""`graftwork evaluate`, `predict`, `inspect` and `diff` on a finished run."""

import json
from pathlib import Path

import pytest
from tests.cli.conftest import WORDS

from graftwork.cli import main

INSPECT_KEYS = {
    *("delta", "content", "bytes", "parts", "kept", "bytes_per_value", "position_bits"),
    *("bound_bits", "tensors", "layers", "ports", "asserted", "signature", "provenance"),
}
DIFF_KEYS = {
    *("a", "b", "same", "tensors", "ports", "signature", "provenance", "bases", "overlap"),
    *("cosine", "distance"),
}


def document(capsys, *words):
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluate(run, reviews, capsys):
    found = document(capsys, "evaluate", str(run), "--data", reviews, "--metrics", "f1", "accuracy")
    assert set(found) == {"delta", "base", "results"}
    assert [set(r) for r in found["results"]] == [{"data", "rows", "metrics"}]
    assert found["results"][0]["rows"] == 80
    assert set(found["results"][0]["metrics"]) == {"f1", "accuracy"}


def test_evaluate_by_group_with_other_columns(run, reviews, tmp_path, capsys):
    rows = [line.split(",") for line in Path(reviews).read_text().splitlines()[1:]]
    path = tmp_path / "new.tsv"
    path.write_text("".join(f"{text}\t{label}\t{i % 2}\n" for i, (text, label) in enumerate(rows)))
    words = ["evaluate", str(run), "--data", str(path), "--no-header", "--group", "half"]
    words += ["--columns", "sentence", "0", "label", "1", "half", "2"]
    metrics = document(capsys, *words)["results"][0]["metrics"]
    halves = (metrics["accuracy/0"] + metrics["accuracy/1"]) / 2
    assert metrics["accuracy"] == pytest.approx(halves)
    assert main(words) == 0
    assert "accuracy" in capsys.readouterr().out


def test_predict_texts(run, capsys):
    found = document(capsys, "predict", str(run), "--text", "a good film .", "a dull film .")
    assert set(found) == {"delta", "base", "predictions"}
    assert [set(p) for p in found["predictions"]] == [{"inputs", "label", "scores"}] * 2
    for line in found["predictions"]:
        assert line["label"] == max(line["scores"], key=line["scores"].get)
    assert main(["predict", str(run / "delta.safetensors"), "--text", "a [red] film ."]) == 0
    assert "a [red] film ." in capsys.readouterr().out


def test_predict_a_file(run, reviews, tmp_path, capsys):
    out = tmp_path / "predictions.jsonl"
    assert main(["predict", str(run), "--data", reviews, "--out", str(out)]) == 0
    caught = capsys.readouterr()
    assert caught.out == ""
    assert "80 predictions" in caught.err
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    found = document(capsys, "predict", str(run), "--data", reviews)
    assert lines == found["predictions"]


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_several_targets_with_gaps(kind, base, tmp_path, capsys):
    data, folder = tmp_path / "rows.csv", tmp_path / "run"
    lines = [f"a {w} film .,{i % 2},{'' if i % 3 else i % 2}" for i, w in enumerate(WORDS[5:11])]
    data.write_text("sentence,[a],b\n" + "\n".join(lines * 5) + "\n")
    words = ["adapt", "--base", base, "--data", str(data), "--out", str(folder), "--steps", "4"]
    words += ["--kind", kind, "--label-columns", "[a]", "b", "--eval-share", "0.5", "--json"]
    assert main(words) == 0
    capsys.readouterr()
    found = document(capsys, "predict", str(folder), "--text", "a good film .")["predictions"][0]
    key = "values" if kind == "regression" else "scores"
    assert set(found) == {"inputs", key}
    assert set(found[key]) == {"[a]", "b"}
    assert main(["predict", str(folder), "--text", "a good film ."]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in ("[a]", "b", f"{found[key]['[a]']:.4g}"))
    (result,) = document(capsys, "evaluate", str(folder), "--data", str(data))["results"]
    name = "spearman" if kind == "regression" else "roc_auc"
    assert {name, f"{name}/[a]", f"{name}/b", "loss"} <= set(result["metrics"])
    assert main(["evaluate", str(folder), "--data", str(data)]) == 0
    assert "[a]" in capsys.readouterr().out


def test_inspect(run, capsys):
    found = document(capsys, "inspect", str(run))
    assert set(found) == INSPECT_KEYS
    assert sum(found["parts"].values()) == found["bytes"]
    assert main(["inspect", str(run), "--tensors"]) == 0
    text = capsys.readouterr().out
    for shown in ("where the task lives", "encoder.layer.0", "port head", "entropy bound", "bound"):
        assert shown in text


def test_diff(run, tmp_path, base, reviews, capsys):
    same = document(capsys, "diff", str(run), str(run))
    assert set(same) == DIFF_KEYS
    assert same["same"]
    assert main(["diff", str(run), str(run)]) == 0
    assert "bit for bit" in capsys.readouterr().out
    words = ["adapt", "--base", base, "--data", reviews, "--steps", "2", "--share", "0.05"]
    assert main([*words, "--out", str(tmp_path / "b")]) == 0
    capsys.readouterr()
    assert not document(capsys, "diff", str(run), str(tmp_path / "b"))["same"]
    assert main(["diff", str(run), str(tmp_path / "b")]) == 0
    text = capsys.readouterr().out
    for shown in ("positions in common", "port head: changed", "made with tuner.name"):
        assert shown in text


@pytest.mark.parametrize("command", ["evaluate", "predict", "inspect"])
def test_a_missing_delta(run, capsys, command):
    near = str(run)[:-1]
    assert main([command, near, *(["--text", "a"] if command == "predict" else [])]) == 2
    assert f"did you mean '{run.name}'?" in capsys.readouterr().err


def test_foreign_and_damaged_files(run, tmp_path, reviews, capsys):
    assert main(["inspect", reviews]) == 2
    assert "not a delta file" in capsys.readouterr().err
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((run / "delta.safetensors").read_bytes()[:-9])
    assert main(["inspect", str(damaged)]) == 2
    assert "truncated" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path)]) == 2
    assert "is a folder without a delta.safetensors" in capsys.readouterr().err


def test_another_base(run, capsys):
    assert main(["predict", str(run), "--text", "a", "--base", "no/such/folder/here"]) == 2
    assert "no model folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["predict", "RUN"], "give either --text or --data"),
        (["predict", "RUN", "--text", "a", "--data", "b"], "give either --text or --data"),
        (["predict", "RUN", "--text", "a", "--out", "no/such/x.jsonl"], "there is no folder"),
        (["predict", "RUN", "--text", "a", "--out", "."], "--out . is a folder; name a file, such"),
        (["predict", "RUN", "--data", "nowhere.csv"], "data 'nowhere.csv' does not exist"),
        (["evaluate", "RUN"], "name the rows to measure on with --data"),
        (["evaluate", "RUN", "--data", "CSV", "--metrics", "acc"], "unknown metric 'acc'"),
        (["evaluate", "RUN", "--data", "CSV", "--group", "typ"], "'typ'"),
        (["evaluate", "RUN", "--data", "CSV", "--columns", "sentence", "txt"], "'txt'"),
        (["diff", "RUN"], "B"),
    ],
)
def test_user_errors(run, reviews, capsys, words, text):
    words = [{"RUN": str(run), "CSV": reviews}.get(word, word) for word in words]
    assert main(words) == 2
    caught = capsys.readouterr()
    assert text in caught.err
    assert caught.err.count("\n") == 1
    assert caught.out == ""
