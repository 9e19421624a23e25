"""Masks drawn from a seed: a pinned generator, so that a file stores no positions.

Version 1, for a mask of `k` of `n` positions:

1. key = the first 16 bytes of SHA-256 over the UTF-8 text `graftwork.mask/1/<seed>/<key>`, read
   as a little-endian integer;
2. words = the 64-bit outputs, in order, of Philox4x64-10 (Salmon et al., 2011) with that key and
   a counter from zero;
3. the positions are `word mod n`, the first `k` distinct of them, sorted. When `k > n / 2` the
   `n - k` positions left out are drawn that way instead.

numpy promises that the stream of a *bit generator* stays the same for ever; it makes no such
promise for methods of `Generator` such as `choice` (its NEP 19). So only raw words are used, and a
file also keeps a checksum of the positions. The bias of `mod n` is below n / 2^64.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from graftwork._errors import DeltaError
from graftwork.deltas._terms import SeededMask

MASK_VERSION = 1
"""The version that this module draws."""

_BITMAP_SHARE = 16
"""With n <= 16 k a byte for each entry takes no more memory than a few int64 for each position."""


def seeded_positions(mask: SeededMask, numel: int, k: int) -> Tensor:
    """Return the positions of a seeded mask.

    Arguments:
        mask: seed, key and version.
        numel: entries of the tensor, below 2^60.
        k: how many positions.

    Returns:
        `(k,)` int64, strictly increasing, in `[0, numel)`.

    Raises:
        DeltaError: `k` is negative or above `numel`, or the version is not 1.

    Example:
        >>> seeded_positions(SeededMask(seed=0, key="w"), numel=100, k=4)
        tensor([ 7,  9, 32, 85])
    """
    if mask.version != MASK_VERSION:
        raise DeltaError(
            f"seeded mask of version {mask.version}; this graftwork draws version {MASK_VERSION}"
        )
    if not 0 <= k <= numel:
        raise DeltaError(f"a seeded mask cannot keep {k} of {numel} entries")
    if k > numel // 2:
        left_out = _distinct(_words(mask), numel, numel - k)
        keep = np.ones(numel, dtype=np.bool_)
        keep[left_out] = False
        return torch.from_numpy(np.flatnonzero(keep))
    return torch.from_numpy(_distinct(_words(mask), numel, k))


def seeded_counts(sizes: Sequence[int], k: int) -> list[int]:
    """Return how many of `k` positions each tensor gets, in proportion to its size.

    Largest remainder: each share is rounded down, and what is left goes to the largest remainders
    (ties to the first tensor), so that the counts add up to exactly `k`.

    Arguments:
        sizes: entries of each tensor.
        k: positions in all, at most the sum of `sizes`.

    Raises:
        DeltaError: `k` is negative or above the sum of `sizes`.

    Example:
        >>> seeded_counts([10, 20, 5], 7)
        [2, 4, 1]
    """
    total = sum(sizes)
    if not 0 <= k <= total:
        raise DeltaError(f"cannot keep {k} of {total} entries")
    if total == 0:
        return [0 for _ in sizes]
    counts = [k * size // total for size in sizes]
    remainders = [k * size % total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-remainders[i], i))
    for i in by_remainder[: k - sum(counts)]:
        counts[i] += 1
    return counts


def _words(mask: SeededMask) -> np.random.Philox:
    text = f"graftwork.mask/{mask.version}/{mask.seed}/{mask.key}"
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.Philox(key=int.from_bytes(digest[:16], "little"))


def _distinct(words: np.random.Philox, numel: int, k: int) -> NDArray[np.int64]:
    """Return the first `k` distinct of the stream `word mod numel`, sorted.

    Each round draws as many words as positions are missing, so every new one belongs to the first
    `k` and the order within a round is irrelevant.
    """
    if k == 0:
        return np.empty(0, dtype=np.int64)
    if numel <= _BITMAP_SHARE * k:
        return _distinct_by_bitmap(words, numel, k)
    found = np.empty(0, dtype=np.int64)
    while found.size < k:
        drawn = words.random_raw(k - found.size) % np.uint64(numel)
        ordered = np.sort(np.concatenate([found, drawn.astype(np.int64)]))
        found = ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]
    return found


def _distinct_by_bitmap(words: np.random.Philox, numel: int, k: int) -> NDArray[np.int64]:
    taken = np.zeros(numel, dtype=np.bool_)
    missing = k
    while missing:
        drawn = words.random_raw(missing) % np.uint64(numel)
        taken[drawn] = True
        missing = k - int(np.count_nonzero(taken))
    return np.flatnonzero(taken)
