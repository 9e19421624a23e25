"""Positions near the entropy bound: sorted gaps, Rice-coded, in two streams that decode by array.

Sorted positions `p_0 < p_1 < ...` have gaps `g_i = p_i - p_(i-1) - 1` (with `p_(-1) = -1`). With
a parameter `low`, gap `g` is a quotient `g >> low` in unary and a remainder of `low` bits (R. F.
Rice, 1979; for random positions within about 0.03 bits of `log2 C(n, k) / k`). The quotients and
remainders are kept apart:

* high: for each gap, quotient zeros and a one, least significant bit first. The index of one `i`
  minus `i` is the sum of the first `i + 1` quotients, so no loop over gaps is needed;
* low: the remainders, `low` bits each, least significant bit first, so that 8 of them fill `low`
  bytes and lane `j` of every group is a strided window.

`low = 0` makes the high stream a bitmap. Where positions come in runs (whole rows kept by
structured pruning), the first position of each run and the running total of run lengths, both of
them strictly increasing, are Rice-coded instead (`RunCode`) when that is smaller.

Shapes: k positions of a tensor with n entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork._errors import DeltaFileError

MAX_NUMEL = 2**60
"""Entries of the largest tensor that a delta may name."""

_MAX_LOW = 56
"""Widest remainder that a 64-bit window holds at any bit offset."""

_BLOCK = 2**14
"""Positions decoded at a time: scratch arrays of 128 KiB stay in cache. A multiple of 8."""

Positions = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class RiceCode:
    """Coded positions.

    Attributes:
        count: k.
        low: bits of a remainder.
        high: the unary quotients.
        lows: the remainders.
    """

    count: int
    low: int
    high: bytes | memoryview
    lows: bytes | memoryview


@dataclass(frozen=True, slots=True)
class RunCode:
    """Coded runs of consecutive positions.

    Attributes:
        count: k.
        starts: the first position of each run.
        ends: the running total of run lengths, less one; the last is k - 1.
    """

    count: int
    starts: RiceCode
    ends: RiceCode


def low_size(count: int, low: int) -> int:
    """Return the bytes of `count` remainders of `low` bits."""
    return -(-count * low // 8)


def encode(positions: Positions) -> RiceCode | RunCode:
    """Return the smaller code of strictly increasing positions `(k,)` (ties: `RiceCode`)."""
    rice = encode_rice(positions)
    first = np.flatnonzero(np.diff(positions, prepend=-2) != 1)
    if positions.size == 0 or 2 * first.size > positions.size:
        return rice
    ends = np.append(first[1:], positions.size) - 1
    runs = RunCode(positions.size, encode_rice(positions[first]), encode_rice(ends))
    return runs if code_size(runs) < code_size(rice) else rice


def decode(code: RiceCode | RunCode, numel: int) -> Positions:
    """Return the positions `(k,)`; the inverse of `encode`.

    Memory is at most 8 bytes for each byte of a code and a few int64 for each position.

    Raises:
        DeltaFileError: no positions of a tensor of `numel` entries have this code.
    """
    if isinstance(code, RiceCode):
        return decode_rice(code, numel)
    starts, ends = decode_rice(code.starts, numel), decode_rice(code.ends, code.count)
    if starts.size != ends.size or (int(ends[-1]) + 1 if ends.size else 0) != code.count:
        raise DeltaFileError(f"runs of positions do not add up to {code.count}")
    lengths = np.diff(ends, prepend=-1)
    if ends.size and (
        (starts[1:] <= starts[:-1] + lengths[:-1]).any() or int(starts[-1] + lengths[-1]) > numel
    ):
        raise DeltaFileError(f"runs of positions overlap or lie beyond the {numel} entries")
    offsets = np.repeat(starts - ends - 1 + lengths, lengths)
    offsets += np.arange(code.count)
    return offsets


def code_size(code: RiceCode | RunCode) -> int:
    """Return the bytes of a code."""
    if isinstance(code, RunCode):
        return code_size(code.starts) + code_size(code.ends)
    return len(code.high) + len(code.lows)


def encode_rice(positions: Positions) -> RiceCode:
    """Return the smallest Rice code of strictly increasing positions `(k,)` (ties: least `low`)."""
    if positions.size == 0:
        return RiceCode(0, 0, b"", b"")
    gaps = np.diff(positions, prepend=-1) - 1
    low = _best_low(gaps)
    ones = np.cumsum(gaps >> low) + np.arange(gaps.size)
    bits = np.zeros(int(ones[-1]) + 1, dtype=np.uint8)
    bits[ones] = 1
    high = np.packbits(bits, bitorder="little").tobytes()
    return RiceCode(gaps.size, low, high, _pack_lows(gaps, low))


def decode_rice(code: RiceCode, numel: int) -> Positions:
    """Return the positions `(k,)`; the inverse of `encode_rice`.

    Raises:
        DeltaFileError: no positions of a tensor of `numel` entries have this code.
    """
    count, low = code.count, code.low
    if not 0 <= low <= _MAX_LOW or len(code.lows) != low_size(count, low):
        raise DeltaFileError(
            f"position code with {low} low bits is not valid for {count} positions"
        )
    positions = _read_ones(code.high, count)
    if count == 0:
        return positions
    quotients = int(positions[-1]) + 1 - count
    if ((quotients + count) << low) + count >= 2**63:
        raise DeltaFileError(f"position code with {low} low bits reaches beyond any tensor")
    _finish(positions, code.lows, low)
    if int(positions[-1]) >= numel:
        raise DeltaFileError(f"position {int(positions[-1])} lies beyond the {numel} entries")
    return positions


def entropy_bits(numel: int, count: int) -> float:
    """Return `log2 C(n, k)`: no code of all sets of k of n positions is shorter on average."""
    if count in (0, numel):
        return 0.0
    log = math.lgamma(numel + 1) - math.lgamma(count + 1) - math.lgamma(numel - count + 1)
    return max(log / math.log(2), 0.0)


def _best_low(gaps: Positions) -> int:
    """Return the `low` of least size, which is convex in `low`."""

    def size(low: int) -> int:
        return int((gaps >> low).sum()) + low * gaps.size

    low = min(max(int(gaps.mean()).bit_length() - 1, 0), _MAX_LOW)
    while low > 0 and size(low - 1) <= size(low):
        low -= 1
    while low < _MAX_LOW and size(low + 1) < size(low):
        low += 1
    return low


def _pack_lows(gaps: Positions, low: int) -> bytes:
    octets = -(-low // 8)
    columns = gaps.astype("<i8").view(np.uint8).reshape(gaps.size, 8)[:, :octets]
    bits = np.unpackbits(columns, axis=1, count=low, bitorder="little")
    return np.packbits(bits, bitorder="little").tobytes()


def _read_ones(high: bytes | memoryview, count: int) -> Positions:
    """Return the indices `(k,)` of the ones: `count` of them, the last in the last byte."""
    octets = np.frombuffer(high, dtype=np.uint8)
    if count > 8 * octets.size:
        raise DeltaFileError(f"{octets.size} bytes cannot hold {count} positions")
    ones = np.empty(count, dtype=np.int64)
    done = 0
    for start in range(0, octets.size, _BLOCK // 4):
        flags = np.unpackbits(octets[start : start + _BLOCK // 4], bitorder="little")
        found = np.flatnonzero(flags.view(np.bool_))
        if found.size > count - done:
            raise DeltaFileError(f"position code holds more than {count} positions")
        np.add(found, 8 * start, out=ones[done : done + found.size])
        done += found.size
    if done != count or 8 * octets.size - (int(ones[-1]) + 1 if count else 0) >= 8:
        raise DeltaFileError(f"position code holds {done} positions, {count} were announced")
    return ones


def _finish(ones: Positions, lows: bytes | memoryview, low: int) -> None:
    """Turn indices of ones `(k,)` into positions, in place.

    Position i is `((one_i - i) << low) + i + sum of remainders up to i`. Blocks of it stay in the
    processor's cache.
    """
    octets = np.zeros(-(-ones.size // 8) * low + 8, dtype=np.uint8)
    octets[: len(lows)] = np.frombuffer(lows, dtype=np.uint8)
    order = np.arange(min(_BLOCK, ones.size))
    sums = np.empty_like(order)
    total = 0
    for start in range(0, ones.size, _BLOCK):
        block = ones[start : start + _BLOCK]
        block -= order[: block.size]
        block <<= low
        block += order[: block.size]
        remainders = _read_lows(octets[start // 8 * low :], low, block.size)
        np.cumsum(remainders, dtype=np.int64, out=sums[: block.size])
        block += sums[: block.size]
        block += start - (start << low) + total
        total += int(sums[block.size - 1])


def _read_lows(octets: NDArray[np.uint8], low: int, count: int) -> NDArray[Any]:
    """Return `count` remainders, read lane by lane through overlapping windows.

    `octets` holds whole groups of 8 remainders, and 8 bytes of room for the last window.
    """
    window: Any = np.dtype("<u4" if low <= 25 else "<u8")
    groups = -(-count // 8)
    out = np.empty((groups, 8), dtype=window)
    for lane in range(8):
        octet, bit = divmod(lane * low, 8)
        lane_view: NDArray[Any] = np.ndarray((groups,), window, octets, octet, (low,))
        np.right_shift(lane_view, bit, out=out[:, lane])
    out &= (1 << low) - 1
    flat = out.reshape(-1)
    if flat[count:].any():
        raise DeltaFileError("position code has bits after its last position")
    return flat[:count]
