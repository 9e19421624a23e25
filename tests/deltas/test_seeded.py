import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from graftwork import deltas
from graftwork._errors import DeltaError

MASK64 = 2**64 - 1


def philox_words(key: int):
    """Philox4x64-10 in plain integers, after Salmon et al. (2011), section 4."""
    counter = 0
    while True:
        counter += 1  # numpy advances the counter before its first block
        c = [(counter >> (64 * i)) & MASK64 for i in range(4)]
        k0, k1 = key & MASK64, key >> 64
        for _ in range(10):
            a, b = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [(b >> 64) ^ c[1] ^ k0, b & MASK64, (a >> 64) ^ c[3] ^ k1, a & MASK64]
            k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK64, (k1 + 0xBB67AE8584CAA73B) & MASK64
        yield from c


def naive_positions(seed, key, n, k):
    digest = hashlib.sha256(f"graftwork.mask/1/{seed}/{key}".encode()).digest()
    words = philox_words(int.from_bytes(digest[:16], "little"))
    wanted = n - k if k > n // 2 else k
    drawn = set()
    while len(drawn) < wanted:
        drawn.add(next(words) % n)
    return sorted(set(range(n)) - drawn if k > n // 2 else drawn)


@given(st.integers(-5, 2**70), st.text(max_size=8), st.integers(1, 400), st.floats(0, 1))
def test_positions_equal_a_plain_implementation(seed, key, n, share):
    k = round(share * n)
    positions = deltas.seeded_positions(deltas.SeededMask(seed, key), n, k)
    assert positions.dtype == torch.int64
    assert positions.tolist() == naive_positions(seed, key, n, k)


def test_sparse_draw_equals_a_plain_implementation():
    mask = deltas.SeededMask(3, "encoder.weight")
    expected = naive_positions(3, "encoder.weight", 20_000, 600)
    assert deltas.seeded_positions(mask, 20_000, 600).tolist() == expected


def test_pinned_for_ever():
    mask = deltas.SeededMask(seed=2026, key="encoder.layer.0.attention.self.query.weight")
    positions = deltas.seeded_positions(mask, 384 * 384, 737)
    digest = hashlib.sha256(positions.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest[:16] == "186c64ef36d27aed"


def test_positions_are_uniform():
    positions = deltas.seeded_positions(deltas.SeededMask(1, "w"), 1_000_000, 100_000)
    counts = np.bincount(positions.numpy() // 10_000, minlength=100)
    chi_square = ((counts - 1000) ** 2 / (1000 * 0.9)).sum()
    assert 60 < chi_square < 145  # 99 degrees of freedom, about four deviations


def test_seed_and_key_both_matter():
    draw = lambda s, k: tuple(deltas.seeded_positions(deltas.SeededMask(s, k), 1000, 50).tolist())  # noqa: E731
    assert len({draw(0, "a"), draw(1, "a"), draw(0, "b"), draw(1, "b")}) == 4


@pytest.mark.parametrize("k", [-1, 11])
def test_impossible_counts_are_errors(k):
    with pytest.raises(DeltaError, match=f"cannot keep {k} of 10"):
        deltas.seeded_positions(deltas.SeededMask(0, "w"), 10, k)
    with pytest.raises(DeltaError, match=f"cannot keep {k} of 10"):
        deltas.seeded_counts([4, 6], k)


def test_another_version_is_an_error():
    with pytest.raises(DeltaError, match="version 2"):
        deltas.seeded_positions(deltas.SeededMask(0, "w", version=2), 10, 1)


@given(st.lists(st.integers(0, 50), max_size=8), st.floats(0, 1))
def test_counts_add_up_and_stay_near_their_share(sizes, share):
    total = sum(sizes)
    k = round(share * total)
    counts = deltas.seeded_counts(sizes, k)
    assert sum(counts) == k
    for size, count in zip(sizes, counts, strict=True):
        assert 0 <= count <= size
        assert abs(count - k * size / max(total, 1)) < 1


def test_empty_counts():
    assert deltas.seeded_counts([], 0) == []
    assert deltas.seeded_counts([0, 0], 0) == [0, 0]
