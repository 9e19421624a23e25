"""Logged transitions: one row for each step whose successor is known.

Shape legend: N rows, O entries of an observation, A of an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graftwork.errors import InputError, UnknownNameError

Floats = NDArray[np.float32]
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts", "next_observations")
"""What a log may hold under the names of D4RL; the first three it must."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class OfflineDataset:
    """Transitions `(s, a, r, s', terminal)` of a log. Get one from `from_log` or a reader.

    Attributes:
        observations: `(N, O)` float32.
        actions: `(N, A)` float32, clipped to [-1, 1].
        rewards: `(N,)` float32.
        next_observations: `(N, O)` float32; of terminal rows their own observation.
        terminals: `(N,)` float32, 1 where the task ended (not where the log was cut).
        episodes: `(N,)` int64, number of the episode.
        source: where it is from, for messages.
        dropped: rows of the log whose successor is unknown (cuts), which are left out.
        clipped: entries of actions that lay outside [-1, 1].
        digest: SHA-256 (hex) of all arrays.
    """

    observations: Floats
    actions: Floats
    rewards: Floats
    next_observations: Floats
    terminals: Floats
    episodes: NDArray[np.int64]
    source: str = "arrays"
    dropped: int = 0
    clipped: int = 0
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        whole = hashlib.sha256()
        for array in (
            self.observations,
            self.actions,
            self.rewards,
            self.next_observations,
            self.terminals,
        ):
            whole.update(f"{array.shape}".encode())
            whole.update(np.ascontiguousarray(array).tobytes())
        object.__setattr__(self, "digest", whole.hexdigest())

    def __len__(self) -> int:
        """Return the number of transitions."""
        return len(self.rewards)

    def returns(self) -> NDArray[np.float64]:
        """Return the sum of the kept rewards of each episode."""
        _, place = np.unique(self.episodes, return_inverse=True)
        totals: NDArray[np.float64] = np.zeros(place.max() + 1)
        np.add.at(totals, place, self.rewards)
        return totals


def from_log(
    log: Mapping[str, ArrayLike],
    *,
    episode: ArrayLike | None = None,
    horizon: int | None = None,
    source: str = "arrays",
) -> OfflineDataset:
    """Return the transitions of a log of steps in the order in which they were made.

    Where the log has no "next_observations", the successor of a row is the row after it. At the
    end of an episode there is none: a *terminal* row is kept, since nothing of its successor
    counts; a row where the episode was *cut* (a timeout, or the end of the log) is dropped. Taking
    the next row there would teach a jump that the world does not make.

    Args:
        log: "observations" (N, O), "actions" (N, A), "rewards" (N,); "terminals" and "timeouts"
            (N,) where known; "next_observations" (N, O) where known. Other keys are left alone.
        episode: `(N,)` number of each row's episode; a change of it is a cut unless terminal.
        horizon: steps after which episodes were cut, for old logs without "timeouts".
        source: where it is from, for messages.

    Raises:
        InputError: a key is missing, shapes disagree, a value is NaN, or nothing says where
            episodes end; names the key, the row and the fix.

    Example:
        >>> log = {
        ...     "observations": [[0.0], [1.0], [2.0], [3.0]],
        ...     "actions": [[0.1], [0.2], [1.3], [0.0]],
        ...     "rewards": [0.0, 1.0, 0.0, 1.0],
        ...     "timeouts": [0, 1, 0, 0],
        ... }
        >>> data = from_log(log)
        >>> len(data), data.next_observations[:, 0].tolist(), data.dropped, data.clipped
        (2, [1.0, 3.0], 2, 1)
    """
    arrays = _checked(log, source)
    rows = len(arrays["rewards"])
    terminals = arrays.get("terminals", np.zeros(rows)) > 0
    last = _episode_ends(arrays, episode, horizon, source)
    starts = np.concatenate([[0], np.cumsum(last)[:-1]]).astype(np.int64)
    if "next_observations" in arrays:
        following, keep = arrays["next_observations"], np.ones(rows, dtype=bool)
    else:
        following = np.concatenate([arrays["observations"][1:], arrays["observations"][-1:]])
        keep = ~last | terminals
    following = np.where(terminals[:, None], arrays["observations"], following)
    actions = arrays["actions"]
    if not keep.any():
        raise InputError(f"{source}: every row ends an episode, so no transition is left")
    return OfflineDataset(
        observations=arrays["observations"][keep],
        actions=np.clip(actions, -1.0, 1.0)[keep],
        rewards=arrays["rewards"][keep],
        next_observations=following[keep],
        terminals=terminals[keep].astype(np.float32),
        episodes=starts[keep],
        source=source,
        dropped=int((~keep).sum()),
        clipped=int((np.abs(actions[keep]) > 1.0).sum()),
    )


def _checked(log: Mapping[str, ArrayLike], source: str) -> dict[str, Floats]:
    for key in KEYS[:3]:
        if key not in log:
            raise UnknownNameError(f"key of {source} (it is needed)", key, log)
    arrays = {key: _floats(log[key], key, source) for key in KEYS if key in log}
    rows = len(arrays["observations"])
    for key, array in arrays.items():
        flat = key in ("rewards", "terminals", "timeouts")
        if flat and array.ndim == 2 and array.shape[1] == 1:
            arrays[key] = array = array[:, 0]
        if array.ndim != (1 if flat else 2) or len(array) != rows:
            wanted = f"({rows},)" if flat else f"({rows}, entries)"
            raise InputError(f"{source}: {key!r} has the shape {array.shape}, not {wanted}")
        bad = ~np.isfinite(array.reshape(len(array), -1)).all(axis=1)
        if bad.any():
            raise InputError(
                f"{source}: row {int(bad.argmax())} of {key!r} holds NaN or infinity "
                f"({int(bad.sum())} rows do); drop their episodes"
            )
    following = arrays.get("next_observations", arrays["observations"])
    if following.shape != arrays["observations"].shape:
        raise InputError(
            f"{source}: 'next_observations' has the shape {following.shape}, 'observations' "
            f"{arrays['observations'].shape}"
        )
    if not rows:
        raise InputError(f"{source} holds no rows")
    return arrays


def _floats(value: Any, key: str, source: str) -> Floats:
    try:
        return np.asarray(value).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{source}: {key!r} is not an array of numbers ({error})") from error


def _episode_ends(
    arrays: Mapping[str, Floats], episode: ArrayLike | None, horizon: int | None, source: str
) -> NDArray[np.bool_]:
    """Return `(N,)` True at the last row of each episode."""
    rows = len(arrays["rewards"])
    known = "timeouts" in arrays or "next_observations" in arrays
    if episode is None and horizon is None and not known:
        raise InputError(
            f"{source} does not say where episodes were cut: give 'timeouts', 'next_observations', "
            "the episode of each row, or the horizon after which episodes were cut"
        )
    last = np.zeros(rows, dtype=bool)
    for key in ("terminals", "timeouts"):
        if key in arrays:
            last |= arrays[key] > 0
    if episode is not None:
        numbers = np.asarray(episode)
        if numbers.shape != (rows,):
            raise InputError(f"{source}: episode has the shape {numbers.shape}, not ({rows},)")
        last[:-1] |= numbers[1:] != numbers[:-1]
    last[-1] = True
    return _cut(last, horizon) if horizon is not None else last


def _cut(last: NDArray[np.bool_], horizon: int) -> NDArray[np.bool_]:
    if horizon < 1:
        raise InputError(f"horizon: 1 or more, not {horizon}")
    ends = np.flatnonzero(last)
    for begin, end in zip(np.concatenate([[0], ends[:-1] + 1]), ends, strict=True):
        last[begin + horizon - 1 : end + 1 : horizon] = True
    return last
