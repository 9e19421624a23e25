"""Readers of offline logs: npz, HDF5 in the layout of D4RL, Minari."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from graftwork.domains.control._data import KEYS, OfflineDataset, from_log
from graftwork.errors import InputError, MissingDependencyError


def read_log(path: str | Path, *, horizon: int | None = None) -> OfflineDataset:
    """Return the transitions of a file: `.npz`, or `.hdf5` / `.h5` in the layout of D4RL.

    Keys are those of `from_log`; the key "episode" or "episodes", where there is one, numbers the
    episode of each row.

    Args:
        path: of the file.
        horizon: steps after which episodes were cut, for old files without "timeouts".

    Raises:
        InputError: no such file, another format, damaged, or what `from_log` says.
        MissingDependencyError: HDF5 without h5py.

    Example:
        >>> read_log("door_human_demos.npz")  # doctest: +SKIP
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"no file {str(file)!r}")
    readers = {".npz": _npz, ".hdf5": _hdf5, ".h5": _hdf5}
    if file.suffix not in readers:
        known = ", ".join(readers)
        raise InputError(f"{file.name}: a log is a file of one of {known}, not {file.suffix!r}")
    log = readers[file.suffix](file)
    episode = next((log[key] for key in ("episode", "episodes") if key in log), None)
    return from_log(log, episode=episode, horizon=horizon, source=file.name)


def _npz(file: Path) -> Mapping[str, Any]:
    wanted = {*KEYS, "episode", "episodes"}
    try:
        with np.load(file, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files if key in wanted}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file.name} is not an npz of plain arrays ({error})") from error


def _hdf5(file: Path) -> Mapping[str, Any]:
    try:
        import h5py
    except ImportError as error:
        raise MissingDependencyError("h5py", "control", "reading HDF5") from error
    wanted = {*KEYS, "episode", "episodes"}
    try:
        with h5py.File(file, "r") as archive:
            return {key: archive[key][()] for key in archive if key in wanted}
    except (OSError, KeyError) as error:
        raise InputError(f"{file.name} is not an HDF5 file ({error})") from error


def read_minari(name: str) -> OfflineDataset:
    """Return the transitions of a Minari data set that lies on this machine; nothing is fetched.

    Args:
        name: as Minari knows it, e.g. "door/human-v0".

    Raises:
        MissingDependencyError: Minari is not installed.
        InputError: there is no such data set here, or its observations are no plain arrays.
    """
    try:
        import minari
    except ImportError as error:
        raise MissingDependencyError("minari", "control", "reading a Minari data set") from error
    try:
        data = minari.load_dataset(name, download=False)
    except (OSError, ValueError) as error:
        raise InputError(f"no Minari data set {name!r} on this machine ({error})") from error
    return from_episodes(data.iterate_episodes(), source=name)


def from_episodes(episodes: Iterable[Any], *, source: str = "episodes") -> OfflineDataset:
    """Return the transitions of episodes in the form of Minari.

    Args:
        episodes: each with `observations` (T + 1, O), `actions` (T, A), `rewards` (T,) and
            `terminations` (T,). The last observation follows the last step, so no row is dropped.
        source: where they are from, for messages.

    Raises:
        InputError: no episodes, or observations that are dictionaries.
    """
    parts: dict[str, list[Any]] = {key: [] for key in (*KEYS, "episode")}
    for number, episode in enumerate(episodes):
        if isinstance(episode.observations, Mapping):
            raise InputError(
                f"{source}: observations are dictionaries of {sorted(episode.observations)}; "
                "join what the policy is to see into one array"
            )
        steps = len(episode.rewards)
        if len(episode.observations) != steps + 1:
            raise InputError(
                f"{source}: episode {number} has {len(episode.observations)} observations for "
                f"{steps} steps, not one more than steps"
            )
        parts["observations"].append(episode.observations[:-1])
        parts["next_observations"].append(episode.observations[1:])
        parts["actions"].append(episode.actions)
        parts["rewards"].append(episode.rewards)
        parts["terminals"].append(episode.terminations)
        parts["episode"].append(np.full(steps, number))
    if not parts["rewards"]:
        raise InputError(f"{source} holds no episodes")
    log = {key: np.concatenate(values) for key, values in parts.items() if values}
    return from_log(log, episode=log.pop("episode"), source=source)
