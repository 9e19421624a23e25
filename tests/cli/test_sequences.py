"""Words with labels and texts from `adapt` over `evaluate` to `predict`, on tiny bases."""

import json
from pathlib import Path

import pytest
import torch
from tests.tasks.sequences import chats, named, sounds, write_bert, write_gpt2, write_llama

from graftwork import deltas
from graftwork.bases import load_language_model
from graftwork.cli import main
from graftwork.tasks import Predictor


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Folder with the bases "bert", "gpt2" and "llama", and the data as JSONL files."""
    folder = tmp_path_factory.mktemp("sequences")
    for name, write in (("bert", write_bert), ("gpt2", write_gpt2), ("llama", write_llama)):
        write(folder / name)
    for name, table in (("named", named()), ("sounds", sounds()), ("chats", chats())):
        lines = (json.dumps(record) + "\n" for record in table.records())
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def adapt(place: Path, base: str, data: str, kind: str, *words: str) -> Path:
    run = place / f"run-{base}-{data}"
    start = ["adapt", "--base", str(place / base), "--data", str(place / f"{data}.jsonl")]
    start += ["--kind", kind, "--tuner", "lora", "--values-lr", "0.02", "--batch-size", "16"]
    assert main([*start, "--progress", "silent", "--out", str(run), *words]) == 0
    return run


def predicted(capsys, *words: str) -> list[dict]:
    capsys.readouterr()
    assert main(["predict", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["predictions"]


def test_words(place, tmp_path, capsys):
    run = adapt(place, "bert", "named", "tokens", "--steps", "60", "--head-lr", "0.03")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["entity_f1"] > 0.9
    file = str(place / "named.jsonl")
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", file, "--metrics", "entity_f1", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["metrics"] == {"entity_f1": pytest.approx(1.0, abs=0.1)}
    (found,) = predicted(capsys, str(run), "--text", "ada hopper saw oslo")
    assert found == {
        "inputs": {"words": "ada hopper saw oslo"},
        "labels": ["B-PER", "I-PER", "O", "B-LOC"],
    }
    out = tmp_path / "found.jsonl"
    assert main(["predict", str(run), "--data", file, "--out", str(out)]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert all(len(line["labels"]) == len(line["inputs"]["words"]) for line in lines)
    assert main(["predict", str(run), "--text", "grace lovelace met newyork"]) == 0
    assert "B-PER I-PER O B-LOC" in capsys.readouterr().out


def test_words_that_do_not_fit_are_said(place, capsys):
    out = str(place / "cut")
    adapt(
        *(place, "bert", "named", "tokens"), "--steps", "2", "--task.max-length", "6", "--out", out
    )
    log = (place / "cut" / "metrics.jsonl").read_text()
    assert "words lie beyond max_length 6 and are left out" in log
    metrics = json.loads((place / "cut" / "result.json").read_text())["metrics"]
    assert metrics["cut"] > 0


def test_text(place, capsys):
    run = adapt(place, "gpt2", "sounds", "text", "--steps", "120", "--max-new-tokens", "8")
    metrics = json.loads((run / "result.json").read_text())["metrics"]
    assert metrics["accuracy"] >= 0.75
    capsys.readouterr()
    assert main(["evaluate", str(run), "--data", str(place / "sounds.jsonl"), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert set(result["metrics"]) == {"loss", "perplexity", "accuracy"}
    said = predicted(capsys, str(run), "--data", str(place / "sounds.jsonl"))
    right = [s["text"] == t for s, t in zip(said, sounds()["completion"], strict=True)]
    assert sum(right) / len(right) == pytest.approx(1.0, abs=0.25)
    (found,) = predicted(capsys, str(run), "--text", "The cow says")
    assert found["inputs"] == {"prompt": "The cow says"}
    assert found["text"] == said[2]["text"]
    report = (run / "report.html").read_text()
    assert "load_language_model" in report


def test_chat(place, capsys):
    run = adapt(place, "llama", "chats", "text", "--steps", "100", "--turns", "last")
    said = predicted(capsys, str(run), "--data", str(place / "chats.jsonl"))
    wanted = [messages[-1]["content"] for messages in chats()["messages"]]
    assert [line["text"] for line in said] == wanted
    assert said[0]["inputs"]["messages"] == chats()["messages"][0]
    (asked,) = predicted(capsys, str(run), "--text", "cow")
    assert asked["inputs"] == {"messages": [{"role": "user", "content": "cow"}]}
    assert main(["predict", str(run), "--text", "cow"]) == 0
    assert "cow" in capsys.readouterr().out


def test_a_merged_folder_writes_what_the_delta_writes(place, tmp_path, capsys):
    run = place / "run-gpt2-sounds"
    if not run.exists():
        run = adapt(place, "gpt2", "sounds", "text", "--steps", "60")
    folder = tmp_path / "merged"
    assert main(["export", str(run), "--to", "merged", "--out", str(folder)]) == 0, capsys
    base = load_language_model(place / "gpt2")
    adapted = Predictor(base, deltas.load(run / "delta.safetensors")).module
    ids = torch.tensor([base.tokenizer("The cat says")["input_ids"]])
    with torch.no_grad():
        logits = load_language_model(folder).model(ids).logits
        assert torch.allclose(logits, adapted(ids).logits, atol=1e-5)


def test_a_base_without_a_head_is_refused(place, tmp_path, capsys):
    from transformers import LlamaModel

    body = tmp_path / "body"
    model = load_language_model(place / "llama")
    model.tokenizer.save_pretrained(body)
    LlamaModel.from_pretrained(place / "llama").save_pretrained(body)
    words = ["adapt", "--base", str(body), "--data", str(place / "sounds.jsonl"), "--kind", "text"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "has no language-model head: 'lm_head.weight' is not in its weights" in error
    words[2] = str(place / "bert")
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "has no language-model head: 'cls" in " ".join(capsys.readouterr().err.split())


def test_rebase_and_card_of_a_text_delta(place, tmp_path):
    run = place / "run-llama-chats"
    if not run.exists():
        run = adapt(place, "llama", "chats", "text", "--steps", "20")
    assert "lm_head.weight" in deltas.load(run / "delta.safetensors").updates
    moved = tmp_path / "moved.safetensors"
    words = ["rebase", str(run), "--to", str(place / "llama"), "--out", str(moved)]
    assert main(words) == 0
    assert main(["export", str(run), "--to", "card", "--out", str(tmp_path / "README.md")]) == 0
    assert "bases.load_language_model(" in (tmp_path / "README.md").read_text()


def test_law10_the_same_seed_writes_the_same_bytes(place, tmp_path):
    for base, data, kind in (("bert", "named", "tokens"), ("gpt2", "sounds", "text")):
        files = []
        for name in ("one", "two"):
            out = tmp_path / f"{base}-{name}"
            adapt(place, base, data, kind, "--steps", "6", "--out", str(out))
            files.append((out / "delta.safetensors").read_bytes())
        assert files[0] == files[1]
