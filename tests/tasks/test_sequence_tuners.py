"""Every tuner on words and on texts: learns, is saved and loaded bit for bit, and predicts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tasks.sequences import learn, named, sounds

from graftwork._errors import TrainingError, UnsupportedError
from graftwork.bases import Base
from graftwork.deltas import dumps, loads
from graftwork.tasks import Predictor, Table, TaskConfig, evaluate_delta, task_from_tables
from graftwork.tuning import TUNERS, Tuner

WORDS = TaskConfig(kind="tokens", head_hidden=0)
TEXT = TaskConfig(kind="text", max_new_tokens=8)


def tuner(name: str, values: float) -> Tuner:
    known = TUNERS[name].__dataclass_fields__
    rates = {
        "values_lr": values,
        "mask_lr": 0.05,
        "head_lr": 0.03,
        "share": 0.2,
        "reduction": 2,
        "length": 4,
    }
    return TUNERS[name](**{k: v for k, v in rates.items() if k in known})


FAST = ("lora", "random_mask", "bitfit", "diff_pruning")


def case(*names: str) -> Any:
    return pytest.param(*names, marks=() if names[-1] in FAST else pytest.mark.slow)


@pytest.mark.parametrize("name", [case(name) for name in sorted(set(TUNERS) - {"prefix"})])
def test_law04_every_tuner_labels_words(name: str, words_base: Base) -> None:
    task = task_from_tables(
        words_base, {"train": named(), "eval": named(20, 1)}, WORDS, batch_size=16
    )
    delta, metrics, fell = learn(words_base, task, tuner(name, 0.02))
    assert fell < 0.7
    loaded = loads(dumps(delta))
    held = named(20, 1)
    assert evaluate_delta(words_base, loaded, held) == pytest.approx(metrics, abs=1e-12)
    (batch,) = task.streams["eval"].once(20)
    with torch.no_grad():
        assert torch.equal(
            Predictor(words_base, delta)(batch), Predictor(words_base, loaded)(batch)
        )
    found = Predictor(words_base, loaded).predict(held.select(["words"]))
    assert [len(p.labels or ()) for p in found] == [len(words) for words in held["words"]]
    right = [
        said == true
        for p, labels in zip(found, held["label"], strict=True)
        for said, true in zip(p.labels or (), labels, strict=True)
    ]
    assert sum(right) / len(right) == pytest.approx(metrics["accuracy"])
    assert metrics["accuracy"] > 0.6


def test_a_prefix_wants_a_causal_decoder(words_base: Base) -> None:
    task = task_from_tables(words_base, {"train": named()}, WORDS)
    with pytest.raises(UnsupportedError, match=r"prefix .* no causal decoder"):
        learn(words_base, task, TUNERS["prefix"]())


WEAK = {
    "bitfit": 0.1,
    "dora": 0.02,
    "ia3": 0.1,
    "bottlenecks": 0.3,
    "last_layer": 0.3,
    "prefix": 0.1,
    "prompt": 0.02,
}
"""Rates of tuners that cannot teach a tiny decoder of random weights which animal says what: on one
that knows what sounds there are they learn one sound for all."""


@pytest.mark.parametrize(
    ("base", "name"),
    [
        *(case("gpt2", name) for name in sorted(set(TUNERS) - {"head", *WEAK})),
        *(case("taught", name) for name in sorted(WEAK)),
        *(case("llama", name) for name in ("lora", "random_mask")),
    ],
)
def test_law04_every_tuner_writes_text(
    name: str, base: str, request: pytest.FixtureRequest
) -> None:
    model: Base = request.getfixturevalue(base)
    rows = sounds()
    if name in WEAK:
        rows = Table({"prompt": rows["prompt"], "completion": [" meow"] * len(rows)})
    held = rows.take(range(5))
    task = task_from_tables(model, {"train": rows, "eval": held}, TEXT, batch_size=16)
    steps = 60 if name in WEAK else 120
    delta, metrics, fell = learn(model, task, tuner(name, WEAK.get(name, 0.02)), steps)
    assert fell < 0.7
    loaded = loads(dumps(delta))
    assert evaluate_delta(model, loaded, held) == pytest.approx(metrics, abs=1e-12)
    (batch,) = task.streams["eval"].once(5)  # type: ignore[attr-defined]
    one, other = Predictor(model, delta), Predictor(model, loaded)
    with torch.no_grad():
        assert torch.equal(one(batch), other(batch))
    said = [p.text for p in other.predict(held.select(["prompt"]))]
    assert said == [p.text for p in one.predict(held.select(["prompt"]))]
    if name not in ("prefix", "prompt"):
        right = [a == b for a, b in zip(said, held["completion"], strict=True)]
        assert sum(right) >= 4
        assert metrics["accuracy"] >= 0.9
    model.verify()


def test_a_tuner_of_the_head_alone_has_nothing_to_learn_of_text(gpt2: Base) -> None:
    task = task_from_tables(gpt2, {"train": sounds(5)}, TEXT)
    with pytest.raises(TrainingError, match="does not depend on any trainable value"):
        learn(gpt2, task, TUNERS["head"]())
