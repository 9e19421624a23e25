import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from graftwork._errors import DeltaFileError
from graftwork.deltas import _codec
from graftwork.deltas._codec import RiceCode, RunCode, entropy_bits


def bits_of(data):
    return [byte >> i & 1 for byte in data for i in range(8)]


def naive_decode(code):
    """One gap at a time, one bit at a time."""
    high, lows = iter(bits_of(code.high)), iter(bits_of(code.lows))
    position, out = -1, []
    for _ in range(code.count):
        quotient = 0
        while next(high) == 0:
            quotient += 1
        remainder = sum(next(lows) << i for i in range(code.low))
        position += (quotient << code.low) + remainder + 1
        out.append(position)
    return out


@st.composite
def position_sets(draw):
    numel = draw(st.sampled_from([1, 9, 300, 10**6, 2**33, _codec.MAX_NUMEL]))
    positions = draw(st.sets(st.integers(0, numel - 1), max_size=60))
    return numel, np.array(sorted(positions), dtype=np.int64)


@given(position_sets())
@example((_codec.MAX_NUMEL, np.array([_codec.MAX_NUMEL - 1])))
@example((8, np.arange(8)))
def test_round_trip_of_any_set(drawn):
    numel, positions = drawn
    code = _codec.encode_rice(positions)
    decoded = _codec.decode(code, numel)
    assert decoded.dtype == np.int64
    assert decoded.tolist() == positions.tolist()
    if positions.size and positions[-1] < 10**6:
        assert naive_decode(code) == positions.tolist()


@pytest.mark.parametrize("share", [0.0005, 0.005, 0.01, 0.1, 0.5, 0.9])
def test_random_sets_come_near_the_entropy_bound(share):
    n = 1_000_000
    k = int(n * share)
    positions = np.sort(np.random.default_rng(0).choice(n, k, replace=False))
    code = _codec.encode_rice(positions)
    assert np.array_equal(_codec.decode(code, n), positions)
    size = 8 * (len(code.high) + len(code.lows))
    bound = entropy_bits(n, k)
    # at high density Rice codes are bitmaps: one bit an entry
    assert bound <= size <= max(bound * 1.01, n + 8) + 16


@given(position_sets())
def test_the_parameter_is_the_best_one(drawn):
    _, positions = drawn
    if not positions.size:
        return
    gaps = np.diff(positions, prepend=-1) - 1
    sizes = [sum(int(g) >> low for g in gaps) + low * len(gaps) for low in range(57)]
    assert _codec.encode_rice(positions).low == sizes.index(min(sizes))


def test_zero_low_bits_is_a_bitmap():
    code = _codec.encode_rice(np.array([0, 2, 3, 9]))
    assert (code.low, code.lows) == (0, b"")
    assert bits_of(code.high)[:10] == [1, 0, 1, 1, 0, 0, 0, 0, 0, 1]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 90)), max_size=30))
def test_runs_round_trip(pairs):
    parts, at = [], 0
    for gap, length in pairs:
        at += gap
        parts.append(np.arange(at, at + length))
        at += length
    positions = np.concatenate([np.empty(0, np.int64), *parts])
    code = _codec.encode(positions)
    assert _codec.code_size(code) <= _codec.code_size(_codec.encode_rice(positions))
    assert _codec.decode(code, at).tolist() == positions.tolist()


def test_whole_rows_cost_next_to_nothing():
    positions = np.concatenate([np.arange(384) + 384 * row for row in range(0, 384, 30)])
    code = _codec.encode(positions)
    assert isinstance(code, RunCode)
    assert _codec.code_size(code) < 50
    assert np.array_equal(_codec.decode(code, 384 * 384), positions)


def rice(*positions):
    return _codec.encode_rice(np.array(positions, dtype=np.int64))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (RunCode(4, rice(0, 5), rice(1, 2)), "do not add up to 4"),
        (RunCode(4, rice(0, 5), rice(3)), "do not add up to 4"),
        (RunCode(4, rice(0, 2), rice(1, 3)), "overlap"),
        (RunCode(4, rice(0, 9), rice(1, 3)), "beyond the 10"),
        (RunCode(1, rice(), rice()), "do not add up to 1"),
        (RunCode(3, rice(0), rice(3)), "position 3 lies beyond"),
    ],
)
def test_invalid_runs_are_errors(code, message):
    with pytest.raises(DeltaFileError, match=message):
        _codec.decode(code, 10)


@pytest.mark.parametrize(
    ("code", "numel", "message"),
    [
        (RiceCode(2, 0, b"\x01", b""), 100, "holds 1 positions, 2"),
        (RiceCode(1, 0, b"\x01\x00", b""), 100, "holds 1 positions, 1"),
        (RiceCode(0, 0, b"\x00", b""), 100, "holds 0 positions, 0"),
        (RiceCode(1, 3, b"\x01", b""), 100, "3 low bits is not valid"),
        (RiceCode(1, 57, b"\x01", bytes(8)), 2**60, "57 low bits is not valid"),
        (RiceCode(1, -1, b"\x01", b""), 100, "-1 low bits is not valid"),
        (RiceCode(1, 3, b"\x01", b"\x08"), 100, "bits after its last"),
        (RiceCode(1, 3, b"\x01", b"\x07"), 7, "position 7 lies beyond the 7"),
        (RiceCode(1, 56, b"\x00" * 99 + b"\x80", bytes(7)), 2**60, "beyond any tensor"),
        (RiceCode(200, 56, b"\xff" * 25, b"\xff" * 1400), 2**60, "beyond any tensor"),
    ],
)
def test_invalid_codes_are_errors(code, numel, message):
    with pytest.raises(DeltaFileError, match=message):
        _codec.decode(code, numel)


@given(st.integers(0, 40), st.integers(-1, 60), st.binary(max_size=40), st.binary(max_size=80))
def test_any_bytes_give_positions_or_our_error(count, low, high, lows):
    try:
        positions = _codec.decode(RiceCode(count, low, high, lows), 10**9)
    except DeltaFileError:
        return
    assert positions.size == count
    assert (np.diff(positions, prepend=-1) > 0).all()
    assert not count or positions[-1] < 10**9


def test_entropy_bits():
    assert entropy_bits(10, 3) == pytest.approx(math.log2(120))
    assert entropy_bits(7, 0) == entropy_bits(7, 7) == 0.0
