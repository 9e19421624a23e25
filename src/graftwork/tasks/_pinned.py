"""Pinned randomness: the same key gives the same numbers in every version of every library.

NumPy guarantees the raw 64-bit output of its bit generators, but not what `Generator.permutation`
or `Generator.integers` make of it. So draws here are defined on raw words only:

* the key of the Philox generator (Salmon et al., 2011) is the first 16 bytes, little-endian, of the
  SHA-256 of the JSON list of the parts;
* a permutation is the stable argsort of the first n words;
* an integer below `high` is `word >> 11` scaled by `high / 2**53` and floored.
"""

from __future__ import annotations

import hashlib
import json

import numpy as np
from numpy.typing import NDArray

Part = str | int
"""What a key is made of: a seed, the name of a stream, an epoch, ..."""


def words(count: int, *key: Part) -> NDArray[np.uint64]:
    """Return the first `count` raw words of the stream that `key` names, `(count,)` uint64.

    Example:
        >>> [int(w) for w in words(2, 0, "train", 0)]
        [11760158631096276102, 16069538811458401774]
    """
    digest = hashlib.sha256(json.dumps(list(key)).encode()).digest()
    generator = np.random.Philox(key=int.from_bytes(digest[:16], "little"))
    return np.asarray(generator.random_raw(count), dtype=np.uint64)


def permutation(count: int, *key: Part) -> NDArray[np.int64]:
    """Return a permutation of `range(count)`, `(count,)` int64.

    Example:
        >>> permutation(5, 0, "train", 0).tolist()
        [2, 0, 4, 1, 3]
    """
    return np.argsort(words(count, *key), kind="stable").astype(np.int64)


def integers(high: int, count: int, *key: Part) -> NDArray[np.int64]:
    """Return `count` integers in `[0, high)`, `(count,)` int64; `high` below 2**32.

    Example:
        >>> integers(10, 4, 7, "nouns").tolist()
        [8, 4, 0, 7]
    """
    fractions = (words(count, *key) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return np.minimum(np.floor(fractions * high), high - 1).astype(np.int64)
