"""What alignment reads: classes drawn together, pseudo labels, categories, source features."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from graftwork._errors import InputError, UnsupportedError
from graftwork.bases import Base, load
from graftwork.tasks import (
    ArrayInput,
    ClassStream,
    Signature,
    Table,
    pseudo_labels,
    source_features,
    vocabulary_texts,
)

LABELS = np.asarray([0] * 70 + [5] * 25 + [2] * 5)
TABLE = Table({"x": np.arange(200.0).reshape(100, 2), "label": LABELS})
SIGNATURE = Signature(
    kind="classification",
    call="embedded",
    fields=("x",),
    labels=("0", "2", "5"),
    array=ArrayInput((2,)),
    input="input",
)


def _stream(rows: int, seed: int = 0) -> ClassStream:
    return ClassStream(
        table=TABLE,
        signature=SIGNATURE,
        base=load(nn.Linear(2, 2)),
        labels=LABELS,
        rows=rows,
        seed=seed,
    )


def test_every_batch_holds_every_class_in_its_share() -> None:
    stream = _stream(20)
    for _ in range(12):
        batch = stream.draw()
        assert dict(zip(*np.unique(batch.targets.numpy(), return_counts=True), strict=True)) == {
            0: 13,
            2: 2,
            5: 5,
        }
        assert torch.equal(batch.targets, torch.from_numpy(LABELS[batch.rows.numpy()]))
        assert torch.equal(batch.inputs["x"], torch.tensor(TABLE["x"][batch.rows]).float())


def test_each_class_goes_through_its_rows_before_any_comes_again() -> None:
    stream, seen = _stream(20), []
    for _ in range(5):
        batch = stream.draw()
        seen += batch.rows[batch.targets == 5].tolist()
    assert sorted(seen) == list(range(70, 95))


def test_draw_depends_on_seed_and_index_only() -> None:
    first, second = _stream(20), _stream(20)
    drawn = [first.draw().rows.tolist() for _ in range(6)]
    second.load_state({"index": torch.tensor(4)})
    assert second.draw().rows.tolist() == drawn[4]
    assert _stream(20, seed=1).draw().rows.tolist() != drawn[0]
    assert first.state()["index"].item() == 6


def test_few_rows_are_all_drawn_and_too_few_are_named() -> None:
    assert _stream(500).draw().rows.tolist() == list(range(100))
    assert sum(len(batch) for batch in _stream(20).once(30)) == 100
    with pytest.raises(InputError, match="2 rows cannot hold 3 classes"):
        _stream(2)


def test_pseudo_labels_part_values_and_do_not_ask_for_more_clusters_than_values() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat([0.0, 10.0, 20.0], 20) + rng.normal(size=60)
    labels = pseudo_labels(values, 3)
    assert [len(set(labels[i : i + 20])) for i in (0, 20, 40)] == [1, 1, 1]
    assert sorted(set(labels)) == [0, 1, 2]
    assert set(pseudo_labels([1.0, 1.0, 2.0], 10)) == {0, 1}
    assert len(pseudo_labels(rng.normal(size=(30, 4, 4)), 4)) == 30
    with pytest.raises(InputError, match="NaN"):
        pseudo_labels([1.0, float("nan")])


def test_categories_are_codes_from_one_and_all_else_is_nought() -> None:
    form = ArrayInput(
        (3,), mean=(1.0, 0.0, 0.0), std=(2.0, 1.0, 1.0), categories=((), ("no", "yes"), ("1", "2"))
    )
    signature = Signature(
        kind="regression", call="embedded", fields=("a", "b", "c"), array=form, input="input"
    )
    assert Signature.from_json(signature.to_json()) == signature
    rows = [
        {"a": "5", "b": "yes", "c": 2.0},
        {"a": 1, "b": "never seen", "c": "1"},
        {"a": 3.0, "b": None, "c": float("nan")},
    ]
    inputs = signature.encode(load(nn.Linear(2, 2)), rows)["x"]
    assert inputs.tolist() == [[2.0, 2.0, 2.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    with pytest.raises(InputError, match=r"column 'a' .*not .*number"):
        signature.encode(load(nn.Linear(2, 2)), [{"a": "high", "b": "no", "c": 1}])
    with pytest.raises(InputError, match="categories of 1 column"):
        ArrayInput((2,), categories=(("a",),))
    with pytest.raises(InputError, match="names a category twice"):
        ArrayInput((1,), categories=(("a", "a"),))


class _Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 6)

    def get_input_embeddings(self) -> nn.Module:
        return self.words


def _base(model: nn.Module) -> Base:
    return replace(load(model), tokenizer=_Letters())


class _Letters:
    """Reads letter by letter, but knows words."""

    WORDS = ("[PAD]", "x", "##ing", "the", "▁of", "cat", "zebra")

    def __call__(self, texts: list[str], padding: bool) -> dict[str, list[list[int]]]:
        assert not padding
        return {"input_ids": [[ord(c) % 50 for c in text] for text in texts]}

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(self.WORDS)}


_letters = _Letters()


def test_source_features_are_means_of_word_embeddings() -> None:
    base = _base(_Text())
    texts = ["ab", "hello", "x", "zzz"]
    source = source_features(base, texts, labels=[3, 1, 3, 1])
    words = base.model.words.weight.detach()
    rows = [words[[ord(c) % 50 for c in text]] for text in texts]
    torch.testing.assert_close(source.features, torch.stack([r.mean(0) for r in rows]))
    torch.testing.assert_close(source.mean, torch.cat(rows).mean(0))
    torch.testing.assert_close(source.deviation, torch.cat(rows).std(0))
    assert source.labels.tolist() == [3, 1, 3, 1]
    assert not source.features.requires_grad
    assert len(set(source_features(base, classes=4).labels.tolist())) == 4


def test_generated_texts_hold_the_vocabularys_words_the_first_most_often() -> None:
    texts = vocabulary_texts(_letters, 400, length=5)
    counts = Counter(word for text in texts for word in text.split())
    assert list(dict(counts.most_common())) == ["the", "of", "cat", "zebra"]
    assert counts["the"] / counts["zebra"] == pytest.approx(4.0, rel=0.2)
    assert {len(text.split()) for text in texts} == {5}
    assert texts == vocabulary_texts(_letters, 400, length=5)
    assert texts != vocabulary_texts(_letters, 400, length=5, seed=1)
    with pytest.raises(UnsupportedError, match="texts of your own"):
        vocabulary_texts(SimpleNamespace(get_vocab=lambda: {"1": 0, "##a": 1}))


def test_source_features_need_a_text_base() -> None:
    with pytest.raises(UnsupportedError, match="get_input_embeddings"):
        source_features(_base(nn.Linear(2, 2)), ["a"])
    with pytest.raises(InputError, match="1 labels for 2 texts"):
        source_features(_base(_Text()), ["a", "b"], labels=[1])
