"""Exact projection against a naive sort."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork._errors import ConfigError, TrainingError
from graftwork.tuning._layout import kept_count
from graftwork.tuning._project import project, top_k

SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 1e30, 5e-324]), min_size=1, max_size=60)


def naive(scores: list[float], k: int) -> list[int]:
    return sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:k])


@given(SCORES, st.data())
def test_top_k_is_a_stable_sort(scores, data):
    k = data.draw(st.integers(1, len(scores) + 3))
    found = top_k(torch.tensor(scores, dtype=torch.float64), k).tolist()
    assert found == naive(scores, k)


@given(SCORES, st.data())
def test_project_always_keeps_k_and_all_nonzero_that_fit(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    signs = data.draw(st.lists(st.sampled_from([1, -1]), min_size=len(scores), max_size=60))
    delta = torch.tensor([s * x for s, x in zip(signs, scores, strict=False)], dtype=torch.float64)
    fallback = torch.arange(len(scores), dtype=torch.float64)
    found = project(delta, k, fallback)
    assert found.numel() == k
    nonzero = set(delta.nonzero().squeeze(1).tolist())
    if len(nonzero) >= k:
        assert found.tolist() == naive([abs(x) for x in delta.tolist()], k)
    else:
        rest = [i for i in reversed(range(len(scores))) if i not in nonzero]
        assert set(found.tolist()) == nonzero | set(rest[: k - len(nonzero)])


def test_nan_scores_are_an_error():
    with pytest.raises(TrainingError, match="NaN: training diverged"):
        top_k(torch.tensor([1.0, float("nan")]), 1)


@given(st.integers(1, 10_000), st.integers(1, 4000))
def test_kept_count_is_exact_in_decimal(numerator, numel):
    exact = numerator * numel // 10_000
    if exact:
        assert kept_count(numerator / 10_000, numel) == exact


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0.001, "keeps 0 values"),
        (0.0, "in (0, 1]"),
        (1.5, "in (0, 1]"),
        (float("nan"), "in (0, 1]"),
    ],
)
def test_a_share_that_keeps_nothing_is_an_error(share, said):
    with pytest.raises(ConfigError) as error:
        kept_count(share, 100)
    assert said in str(error.value)
