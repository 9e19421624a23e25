"""What a run yields: an outcome knows how to write itself and what to say of itself.

A run folder treats all outcomes alike. Delta training yields a `DeltaOutcome`, pretraining a
`BaseOutcome`; what else a run may yield brings its own class, and nothing here or in the folder
changes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from graftwork._errors import ConfigError
from graftwork.bases import Base
from graftwork.bases import load as load_base
from graftwork.deltas import Delta, content_hash, load, save
from graftwork.training._files import new_folder
from graftwork.training._recorder import Record

DELTA_FILE, BASE_FOLDER = "delta.safetensors", "base"


class Outcome(ABC):
    """What a run yields."""

    @abstractmethod
    def write(self, folder: Path) -> dict[str, Any]:
        """Write it into a run's folder; return JSON for result.json: "file", "bytes", ...

        Raises:
            StorageError: the disk is full; nothing half-written remains.
        """

    @classmethod
    @abstractmethod
    def read(cls: type[OutcomeT], folder: Path) -> OutcomeT:
        """Return what `write` wrote."""


# In place of `typing.Self`, which run-time checks of single methods cannot read.
OutcomeT = TypeVar("OutcomeT", bound=Outcome)


@dataclass(frozen=True, slots=True, eq=False)
class DeltaOutcome(Outcome):
    """A learnt delta.

    Attributes:
        delta: as it is stored: values rounded, metrics in its provenance.
    """

    delta: Delta

    def write(self, folder: Path) -> dict[str, Any]:
        """Write delta.safetensors."""
        size = save(self.delta, folder / DELTA_FILE)
        return {"file": DELTA_FILE, "bytes": size, "content": content_hash(self.delta)}

    @classmethod
    def read(cls, folder: Path) -> DeltaOutcome:
        """Return the delta of a finished run."""
        return cls(load(folder / DELTA_FILE))


@dataclass(frozen=True, slots=True, eq=False)
class BaseOutcome(Outcome):
    """A base that was made: a folder that `graftwork.bases.load` reads.

    Attributes:
        save: writes the base's files into an empty folder; None where it was read back.
        base: the base where it was read back.
    """

    save: Callable[[Path], object] | None = None
    base: Base | None = None

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the folder "base", whole or not at all; the base's metrics are in result.json."""
        if self.save is None:
            raise ConfigError("this outcome was read from a folder; it is written there already")
        made = folder / BASE_FOLDER
        with new_folder(made) as part:
            self.save(part)
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
        return {"file": BASE_FOLDER, "bytes": size}

    @classmethod
    def read(cls, folder: Path) -> BaseOutcome:
        """Return the base of a finished run."""
        return cls(base=load_base(folder / BASE_FOLDER))


@dataclass(frozen=True, slots=True, eq=False)
class RunResult(Generic[OutcomeT]):
    """A finished run.

    Attributes:
        outcome: what it yielded.
        metrics: metric name -> value, of the outcome as it is stored.
        folder: where it lies; None for a run without a folder.
        history: rows of metrics.jsonl.
        summary: JSON of result.json: steps, stopped_early, unreached, bytes, ...
    """

    outcome: OutcomeT
    metrics: Mapping[str, float]
    folder: Path | None = None
    history: Sequence[Record] = ()
    summary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def delta(self: RunResult[DeltaOutcome]) -> Delta:
        """The delta of a run that yields one."""
        return self.outcome.delta
