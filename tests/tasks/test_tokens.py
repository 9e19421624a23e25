"""Kind "tokens": words, labels, places of words among tokens, predictions and metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from tests.tasks.sequences import VOCABULARY, learn, named
from torch import nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnknownNameError, UnsupportedError
from graftwork.bases import Base, load
from graftwork.deltas import dumps, loads
from graftwork.tasks import (
    Predictor,
    SequenceEvaluator,
    Signature,
    Table,
    TaskConfig,
    evaluate_delta,
    make_task,
    predict,
    read,
    task_from_tables,
)
from graftwork.tasks._sequence_metrics import entities_of, is_bio
from graftwork.tuning import LoRA

CONFIG = TaskConfig(kind="tokens", head_hidden=0)
LABELS = ("B-LOC", "B-PER", "I-PER", "O")
FIRST = {"words": ["grace hopper met", ["oslo", "newyork"]], "label": ["B-PER,I-PER O", list("OO")]}


def signature(**changes: Any) -> Signature:
    fields = {"kind": "tokens", "call": "words", "fields": ("words",), "labels": LABELS}
    return Signature(**{**fields, **changes})  # type: ignore[arg-type]


def ids(*pieces: str) -> list[int]:
    return [VOCABULARY.index(piece) for piece in pieces]


def test_the_label_stands_at_the_first_piece_of_its_word(words_base: Base) -> None:
    own = TaskConfig(kind="tokens", labels=LABELS)
    task = task_from_tables(words_base, {"train": Table(FIRST)}, own)
    (batch,) = task.streams["train"].once(2)
    assert batch.inputs["input_ids"].tolist() == [
        ids("[CLS]", "grace", "hop", "##per", "met", "[SEP]"),
        ids("[CLS]", "oslo", "new", "##york", "[SEP]", "[PAD]"),
    ]
    assert batch.inputs["attention_mask"].tolist() == [[1] * 6, [1] * 5 + [0]]
    n = -100
    assert batch.targets is not None
    assert batch.targets.tolist() == [[n, 1, 2, n, 3, n], [n, 3, 3, n, n, n]]


def test_labels_are_found_in_the_data_and_stored(words_base: Base) -> None:
    task = task_from_tables(words_base, {"train": named()}, CONFIG)
    made = task.signature
    assert made is not None
    assert (made.labels, made.call, made.fields, made.targets) == (
        LABELS,
        "words",
        ("words",),
        ("label",),
    )
    assert made.outputs == 4
    assert "language" not in made.to_json()
    assert Signature.from_json(made.to_json()) == made
    assert task.ports["head"].config["in_features"] == 16
    numbers = Table({"words": ["a b", "a"], "label": [[10, 9], "2"]})
    found = task_from_tables(words_base, {"train": numbers}, CONFIG)
    assert found.signature is not None
    assert found.signature.labels == ("2", "9", "10")


def test_a_row_alone_and_in_a_batch_get_the_same_labels(words_base: Base) -> None:
    task = task_from_tables(words_base, {"train": named()}, CONFIG, batch_size=16)
    delta, _, fell = learn(words_base, task, LoRA(values_lr=0.02, head_lr=0.03))
    assert fell < 0.3
    delta, held = loads(dumps(delta)), named(25, 3)
    found = predict(words_base, delta, held)
    assert [list(p.labels or ()) for p in found] == held["label"]
    for row in (0, 7, 24):
        (alone,) = predict(words_base, delta, [{"words": held["words"][row]}])
        assert alone == found[row]
        (text,) = predict(words_base, delta, [{"words": " ".join(held["words"][row])}])
        assert text == found[row]
    assert evaluate_delta(words_base, delta, held)["entity_f1"] == 1.0


def test_what_lies_beyond_max_length_is_counted_and_not_guessed(words_base: Base) -> None:
    config = TaskConfig(kind="tokens", labels=LABELS, max_length=5)
    rows = Table(
        {
            "words": [["ada", "hopper", "met", "grace"], ["oslo"]],
            "label": [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC"]],
        }
    )
    task = task_from_tables(words_base, {"train": rows, "eval": rows}, config, batch_size=2)
    stream = task.streams["eval"]
    assert stream.cut == 2  # type: ignore[attr-defined]
    delta, metrics, _ = learn(words_base, task, LoRA(values_lr=0.02, head_lr=0.03), 50)
    assert metrics["cut"] == 2.0
    found = predict(words_base, delta, rows)
    assert found[0].labels is not None
    assert found[0].labels[2:] == (None, None)
    assert None not in found[0].labels[:2]
    assert found[1].labels == ("B-LOC",)


@pytest.mark.parametrize(
    ("words", "labels", "message"),
    [
        (["a b", "a"], ["O B-X", "O O"], r"row 2: 1 words in column 'words', but 2 labels"),
        (["a b", None], ["O B-X", "O"], r"row 2: column 'words' has None; give a list of words"),
        (["a b", "  "], ["O B-X", "O"], r"row 2: column 'words' has no words; drop the row"),
        ([["a", ""], "a"], ["O B-X", "O"], r"row 1: column 'words' holds the word '', which is bl"),
        (["a b", "a"], [["O", None], "B-X"], r"row 1: column 'label' .*blank or missing; mend it"),
        (["a b", "a"], ["O O", None], r"row 2: column 'label' has None; give a list of labels"),
        (["a b", "a"], ["O O", "O"], r"all 2 rows have the labels \['O'\] .*at least 2"),
    ],
)
def test_bad_rows_are_named(
    words: list[Any], labels: list[Any], message: str, words_base: Base
) -> None:
    with pytest.raises(InputError, match=message):
        task_from_tables(
            words_base, {"train": Table({"words": words, "label": labels}, "w.jsonl")}, CONFIG
        )


def test_an_unknown_label_is_named(words_base: Base) -> None:
    held = Table({"words": ["ada met"], "label": ["B-PERS O"]}, "dev.jsonl")
    with pytest.raises(
        UnknownNameError, match=r"dev.jsonl, row 1, .*'B-PERS'.*did you mean 'B-PER'"
    ):
        task_from_tables(words_base, {"train": named(), "eval": held}, CONFIG)


def test_what_does_not_go_together_is_refused(words_base: Base) -> None:
    for changes, message in (
        ({"call": "single"}, "'tokens' does not go with the call 'single'"),
        ({"kind": "classification"}, "'classification' does not go with the call 'words'"),
        ({"normalise": True}, "has no pooled vector"),
        ({"template": ("{words}",)}, "reads a column of words, not a template"),
        ({"labels": ("O",)}, "must be 2 or more different names"),
    ):
        with pytest.raises(InputError, match=message):
            signature(**changes)
    for changes, message in (
        ({"pooling": "mean"}, "pooling 'mean' does not go with kind 'tokens'"),
        ({"template": ("{a}",)}, "template .* does not go with kind 'tokens'"),
        ({"call": "pair"}, "call 'pair' does not go with"),
        ({"text_form": "text", "kind": "binary"}, "text_form goes with kind 'text', not 'binary'"),
    ):
        with pytest.raises(ConfigError, match=message):
            TaskConfig(**{"kind": "tokens", **changes})
    rows = Table({"a": ["x y"], "b": ["x y"], "label": ["O B-A"]})
    with pytest.raises(InputError, match="which column holds words"):
        task_from_tables(words_base, {"train": rows}, CONFIG)
    with pytest.raises(UnsupportedError, match="position by position"):
        signature().decode(torch.zeros(1, 4))


def test_a_base_without_a_fast_tokenizer_or_positions_is_refused(words_base: Base) -> None:
    class Slow:
        is_fast = False

    import dataclasses

    slow = dataclasses.replace(words_base, tokenizer=Slow())
    with pytest.raises(UnsupportedError, match="Slow does not tell which word a token is of"):
        task_from_tables(slow, {"train": named()}, CONFIG)

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(len(VOCABULARY), 4)

        def forward(self, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            return self.embedding(input_ids).mean(1)

    pooled = dataclasses.replace(load(Pooled()), tokenizer=words_base.tokenizer)
    with pytest.raises(UnsupportedError, match=r"the module gave \(1, 4\) for tokens"):
        task_from_tables(pooled, {"train": named()}, CONFIG)


def test_conll_files_are_read(tmp_path: Path, words_base: Base) -> None:
    path = tmp_path / "train.conll"
    lines = ["-DOCSTART- -X- O", "", "ada NNP B-PER", "met VBD O", "", "", "oslo NNP B-LOC"]
    path.write_text("\n".join(lines), encoding="utf-8")
    table = read(path)
    assert table["words"] == [["ada", "met"], ["oslo"]]
    assert table["label"] == [["B-PER", "O"], ["B-LOC"]]
    path.write_text("ada B-PER\nmet VBD O\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"line 2: 3 columns in 'met VBD O'; every word has 2"):
        read(path)
    path.write_text("\n".join(lines * 3) + "\n", encoding="utf-8")
    config = TaskConfig(data=str(path), kind="tokens", eval_share=0.3)
    assert make_task(words_base, config, batch_size=2).signature.labels == ("B-LOC", "B-PER", "O")  # type: ignore[union-attr]


def naive_entities(labels: list[str]) -> set[tuple[int, int, str]]:
    """Entities by looking at every stretch of words: all of one type, and no longer either way."""
    found = set()
    for first in range(len(labels)):
        for last in range(first, len(labels)):
            kind = labels[first][2:]
            inside = labels[first] != "O" and all(
                x == f"I-{kind}" for x in labels[first + 1 : last + 1]
            )
            starts = labels[first].startswith("B-") or first == 0 or labels[first - 1][2:] != kind
            ends = last + 1 == len(labels) or labels[last + 1] != f"I-{kind}"
            if inside and starts and ends:
                found.add((first, last + 1, kind))
    return found


def test_entities_equal_a_naive_search() -> None:
    choices = ["O", "B-A", "I-A", "B-B", "I-B"]
    generator = np.random.default_rng(0)
    for _ in range(400):
        labels = [choices[i] for i in generator.integers(0, 5, generator.integers(1, 9))]
        assert set(entities_of(labels)) == naive_entities(labels), labels
    assert not is_bio(("O", "S-A"))


def scored(rows: list[tuple[list[int], list[int]]], labels: tuple[str, ...]) -> dict[str, float]:
    """Metrics of rows of (predicted, true) labels, over logits that leave no doubt."""
    batches = []
    for row, (said, true) in enumerate(rows):
        logits = torch.full((1, len(said) + 1, len(labels)), -20.0)
        for place, label in enumerate(said):
            logits[0, place, label] = 20.0
        targets = torch.tensor([[*true, -100]])
        batches.append(Batch({"logits": logits}, targets, torch.tensor([row])))
    names = ("entity_f1", "entity_precision", "entity_recall", "f1_macro", "accuracy")
    made = SequenceEvaluator(signature(labels=labels), names if is_bio(labels) else names[3:])
    return made.evaluate(lambda batch: batch.inputs["logits"], batches)


def test_metrics_against_sklearn_and_counting() -> None:
    labels = ("B-A", "B-B", "I-A", "I-B", "O")
    generator = np.random.default_rng(1)
    rows = []
    for _ in range(30):
        true = generator.integers(0, 5, generator.integers(1, 9))
        said = np.where(
            generator.random(len(true)) < 0.7, true, generator.integers(0, 5, len(true))
        )
        rows.append((said.tolist(), true.tolist()))
    found = scored(rows, labels)
    said, true = (np.concatenate([row[i] for row in rows]) for i in (0, 1))
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(true, said))
    assert found["f1_macro"] == pytest.approx(
        sk.f1_score(true, said, average="macro", labels=range(5))
    )
    right = predicted = there = 0
    for said_row, true_row in rows:
        a, b = (naive_entities([labels[i] for i in row]) for row in (said_row, true_row))
        right, predicted, there = right + len(a & b), predicted + len(a), there + len(b)
    assert found["entity_precision"] == pytest.approx(right / predicted)
    assert found["entity_recall"] == pytest.approx(right / there)
    assert found["entity_f1"] == pytest.approx(2 * right / (predicted + there))
    assert scored([([4], [4])], labels)["entity_f1"] == 0.0


def test_default_metrics_and_bad_ones() -> None:
    assert SequenceEvaluator(signature()).metrics == ("entity_f1", "accuracy", "loss")
    words = signature(labels=("NOUN", "VERB"))
    assert SequenceEvaluator(words).metrics == ("f1_macro", "accuracy", "loss")
    assert SequenceEvaluator(words).better({"f1_macro": 0.5}, {"f1_macro": 0.4})
    with pytest.raises(ConfigError, match="'entity_f1' wants labels O, B-type and I-type"):
        SequenceEvaluator(words, ("entity_f1",))
    with pytest.raises(ConfigError, match=r"'perplexity' does not go with tokens; use one of \["):
        SequenceEvaluator(words, ("perplexity",))
    with pytest.raises(UnknownNameError, match=r"'acuracy'.*did you mean 'accuracy'"):
        TaskConfig(kind="tokens", metrics=("acuracy",))


def test_metrics_by_group(words_base: Base) -> None:
    rows = named(20)
    rows = Table({**rows.columns, "part": ["x" if i % 2 else "y" for i in range(20)]})
    config = TaskConfig(kind="tokens", head_hidden=0, inputs=("words",), group="part")
    task = task_from_tables(words_base, {"train": rows, "eval": rows}, config, batch_size=8)
    delta, metrics, _ = learn(words_base, task, LoRA(values_lr=0.02, head_lr=0.03), 50)
    for group in ("x", "y"):
        part = rows.take([i for i in range(20) if rows["part"][i] == group])
        alone = evaluate_delta(words_base, delta, part)
        assert metrics[f"accuracy/{group}"] == pytest.approx(alone["accuracy"])
        assert metrics[f"loss/{group}"] == pytest.approx(alone["loss"])


def test_an_own_head_of_the_base_can_be_trained(words_base: Base) -> None:
    """Without a head port the module's own logits are the outputs; transformers' loss agrees."""
    import dataclasses

    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_labels=4,
    )
    module = BertForTokenClassification(config).eval()
    base = dataclasses.replace(load(module), tokenizer=words_base.tokenizer, max_length=24)
    task = task_from_tables(base, {"train": named(8)}, TaskConfig(kind="tokens", head=False))
    assert not task.ports
    assert task.signature is not None
    made = task.signature
    for batch in task.streams["train"].once(1):
        ours = task.objectives["task"](lambda b: made.call_model(base.model, {}, b.inputs), batch)
        theirs = module(**batch.inputs, labels=batch.targets).loss
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    delta, _, fell = learn(base, task, LoRA(values_lr=0.03), 50)
    assert fell < 0.7
    assert not delta.ports
    assert len(Predictor(base, delta).predict([{"words": "ada met"}])[0].labels or ()) == 2
