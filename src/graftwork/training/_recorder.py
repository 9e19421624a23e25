"""What watches a run: progress on screen, metrics in a file. All see the same records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from graftwork._errors import MissingDependencyError
from graftwork.training._files import storing, write_text

Record = Mapping[str, Any]
"""One line of metrics.jsonl: "step" (updates done in the run), "stage", "seconds" (of this
process), and some of: "loss", "norm/<role>", "rate/<role>", what the tuner reports,
"eval/<metric>", "note"."""


@runtime_checkable
class Recorder(Protocol):
    """Is told what happens in a run; cannot change it."""

    def record(self, record: Record) -> None:
        """Take one record; training steps come every `log_every` steps."""

    def stage(self, name: str, done: int, steps: int) -> None:
        """Take note that a stage of `steps` steps begins, or goes on after `done`."""

    def tick(self, loss: float) -> None:
        """A step was done; called every step, so it must cost nothing."""

    def close(self) -> None:
        """The run ended, well or not."""


class Silent:
    """Shows and keeps nothing."""

    def record(self, record: Record) -> None:
        """Nothing to do."""

    def stage(self, name: str, done: int, steps: int) -> None:
        """Nothing to do."""

    def tick(self, loss: float) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""


class Recorders:
    """Several recorders as one."""

    def __init__(self, members: Sequence[Recorder] = ()) -> None:
        self._members = tuple(members)

    def record(self, record: Record) -> None:
        """Pass the record on."""
        for member in self._members:
            member.record(record)

    def stage(self, name: str, done: int, steps: int) -> None:
        """Pass the stage on."""
        for member in self._members:
            member.stage(name, done, steps)

    def tick(self, loss: float) -> None:
        """Pass the step on."""
        for member in self._members:
            member.tick(loss)

    def close(self) -> None:
        """Close all."""
        for member in self._members:
            member.close()


class History:
    """Keeps all records, in memory and, where a path is given, as JSON lines.

    Arguments:
        path: metrics.jsonl; None keeps memory only.
        upto: updates that a resumed run has done: later lines are of steps that will come again,
            and a last line cut short by a crash is dropped.
    """

    def __init__(self, path: Path | None = None, upto: int = 0) -> None:
        self.records: list[Record] = []
        self._file = None
        if path is None:
            return
        if path.exists():
            self.records = [r for r in read_records(path) if r["step"] <= upto] if upto else []
            write_text(path, "".join(_line(record) for record in self.records))
        with storing(f"write {path}"):
            self._file = path.open("a", encoding="utf-8")

    def record(self, record: Record) -> None:
        """Append the record."""
        self.records.append(record)
        if self._file is not None:
            with storing(f"write {self._file.name}"):
                self._file.write(_line(record))
                self._file.flush()

    def stage(self, name: str, done: int, steps: int) -> None:
        """Nothing to do."""

    def tick(self, loss: float) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            # What a full disk did not take is still in the buffer, and fails once more here.
            with storing(f"write {self._file.name}"):
                self._file.close()


class TensorBoard:
    """Scalars for TensorBoard.

    Arguments:
        folder: event files go here.
        upto: updates that a resumed run has done; later points are dropped by TensorBoard.

    Raises:
        MissingDependencyError: tensorboard is not installed.
    """

    def __init__(self, folder: Path, upto: int = 0) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingDependencyError("tensorboard", "tensorboard", "log.tensorboard") from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=upto or None)

    def record(self, record: Record) -> None:
        """Write the record's numbers."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name not in ("step", "seconds"):
                self._writer.add_scalar(name, value, record["step"])

    def stage(self, name: str, done: int, steps: int) -> None:
        """Nothing to do."""

    def tick(self, loss: float) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


def read_records(path: Path) -> list[Record]:
    """Return the records of a metrics.jsonl; a last line cut short is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            break
    return records


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
