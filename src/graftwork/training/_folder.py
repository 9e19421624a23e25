"""A run's folder: config.yaml, metrics.jsonl, checkpoints/, the outcome, result.json last.

result.json is written last, so a folder that has one is a finished run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from graftwork._errors import ConfigError, StorageError
from graftwork.training._files import storing, sweep, write_text
from graftwork.training._yaml import dump_yaml, read_yaml

CONFIG, METRICS, RESULT, CHECKPOINTS = "config.yaml", "metrics.jsonl", "result.json", "checkpoints"
WATCHING = ("log", "out")
"""Parts of a config that do not change the outcome, so a resumed run may change them."""


class RunFolder:
    """One run's folder.

    Arguments:
        path: made where absent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints lie."""
        return self.path / CHECKPOINTS

    @property
    def metrics(self) -> Path:
        """metrics.jsonl."""
        return self.path / METRICS

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder against a second run, until the end or the death of this process.

        Raises:
            StorageError: another run holds it, or it cannot be made.
        """
        import fcntl

        with storing(f"use {self.path}"):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = (self.path / ".lock").open("a+", encoding="utf-8")
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                handle.seek(0)
                raise StorageError(
                    f"{self.path} is in use by another run (process {handle.read().strip()}); "
                    "wait for it, or choose another folder"
                ) from error
            with storing(f"use {self.path}"):
                handle.truncate(0)
                handle.write(str(os.getpid()))
                handle.flush()
                sweep(self.path)
            yield

    def claim(self, config: Mapping[str, Any], *, resume: bool) -> dict[str, Any] | None:
        """Make the folder this run's; return result.json where the run is finished already.

        A run that was stopped before its first checkpoint has nothing to lose and is begun anew.

        Arguments:
            config: the run's config as a plain tree.
            resume: go on with the run that lies here, if one does.

        Raises:
            StorageError: a run, or a delta of unknown origin, lies here and `resume` is False.
            ConfigError: the run here has another config; names the first key that differs.
        """
        held = self.config()
        finished = (self.path / RESULT).exists()
        begun = finished or any(self.checkpoints.glob("step-*"))
        if held is None and any(self.path.glob("*.safetensors")):
            raise StorageError(f"{self.path} holds files of something else; choose another folder")
        if held is not None and begun:
            if not resume:
                state = "a finished" if finished else "an unfinished"
                raise StorageError(
                    f"{self.path} holds {state} run; go on with it by resume (--resume), or choose "
                    "another folder"
                )
            self._compare(held, config)
        write_text(self.path / CONFIG, dump_yaml(config))
        return self.result()

    def _compare(self, held: Mapping[str, Any], config: Mapping[str, Any]) -> None:
        ours, theirs = ({k: v for k, v in c.items() if k not in WATCHING} for c in (config, held))
        difference = first_difference(ours, theirs)
        if difference is not None:
            key, new, old = difference
            raise ConfigError(
                f"the run in {self.path} was begun with {key}: {old!r}, not {new!r}; resume with "
                "its config.yaml, or choose another folder"
            )

    def config(self) -> Mapping[str, Any] | None:
        """Return the config of the run that lies here, where one does.

        Raises:
            StorageError: config.yaml is not a run's.
            ConfigError: config.yaml is not YAML, or cannot be read.
        """
        path = self.path / CONFIG
        if not path.exists():
            return None
        tree = read_yaml(path)
        if not isinstance(tree, Mapping):
            raise StorageError(f"{path} is not the configuration of a run; choose another folder")
        return tree

    def result(self) -> dict[str, Any] | None:
        """Return result.json; None while the run is not finished."""
        path = self.path / RESULT
        if not path.exists():
            return None
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return tree

    def complete(self, result: Mapping[str, Any]) -> None:
        """Write result.json: the run is finished."""
        write_text(self.path / RESULT, json.dumps(result, indent=1) + "\n")


def first_difference(new: Any, old: Any, path: str = "") -> tuple[str, Any, Any] | None:
    """Return (key, new, old) of the first place where two plain trees differ.

    Example:
        >>> first_difference({"train": {"steps": 3}}, {"train": {"steps": 4}})
        ('train.steps', 3, 4)
    """
    if isinstance(new, Mapping) and isinstance(old, Mapping):
        for key in (*new, *(k for k in old if k not in new)):
            inner = f"{path}.{key}" if path else str(key)
            found = first_difference(new.get(key), old.get(key), inner)
            if found is not None:
                return found
        return None
    return None if new == old else (path, new, old)
