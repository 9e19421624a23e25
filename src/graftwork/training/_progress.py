"""Progress on the screen: bars with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Literal, Protocol, cast, runtime_checkable

from graftwork.training._recorder import Record, Recorder, Silent

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

Mode = Literal["auto", "bars", "lines", "silent"]


@runtime_checkable
class Screen(Protocol):
    """A text stream that may be a terminal."""

    def write(self, text: str, /) -> int:
        """Write text."""

    def flush(self) -> None:
        """Show what was written."""

    def isatty(self) -> bool:
        """Whether somebody looks."""


def progress(mode: Mode, stream: Screen | None = None) -> Recorder:
    """Return what shows a run on `stream` (stderr, so that stdout stays machine-readable).

    "auto" shows bars on a terminal and lines elsewhere.
    """
    stream = stream or sys.stderr
    if mode == "silent":
        return Silent()
    if mode == "bars" or (mode == "auto" and stream.isatty()):
        return Bars(stream)
    return Lines(stream)


class Bars:
    """One bar a stage: steps, speed, time left, loss, the newest evaluation."""

    def __init__(self, stream: Screen) -> None:
        self._stream = stream
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._shown = 0.0

    def stage(self, name: str, done: int, steps: int) -> None:
        """Begin a bar."""
        if self._progress is None:
            self._progress = _bars(self._stream)
            self._progress.start()
        self._task = self._progress.add_task(name, total=steps, completed=done, loss="", metrics="")

    def tick(self, loss: float) -> None:
        """Move the bar; the loss is shown ten times a second at most."""
        if self._progress is None or self._task is None:
            return
        self._progress.advance(self._task)
        now = time.monotonic()
        if now - self._shown > 0.1:
            self._shown = now
            self._progress.update(self._task, loss=f"loss {loss:.4g}")

    def record(self, record: Record) -> None:
        """Show evaluations beside the bar and notes above it."""
        if self._progress is None or self._task is None:
            return
        if metrics := _metrics(record):
            self._progress.update(self._task, metrics=f"held out: {metrics}")
        if note := record.get("note"):
            self._progress.console.print(note, highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._progress is not None:
            self._progress.stop()


class Lines:
    """A line at the start of a stage, every five seconds, and at each evaluation."""

    every = 5.0

    def __init__(self, stream: Screen) -> None:
        self._stream = stream
        self._name, self._done, self._steps, self._first = "", 0, 0, 0
        self._began = self._shown = time.monotonic()

    def stage(self, name: str, done: int, steps: int) -> None:
        """Say that a stage begins."""
        self._name, self._done, self._steps, self._first = name, done, steps, done
        self._began = self._shown = time.monotonic()
        self._say(f"{name}: {steps} steps" + (f", {done} done" if done else ""))

    def tick(self, loss: float) -> None:
        """Say where the stage is, now and then, and at its end."""
        self._done += 1
        now = time.monotonic()
        if now - self._shown >= self.every or self._done == self._steps:
            self._shown = now
            spent = now - self._began
            left = spent / (self._done - self._first) * (self._steps - self._done)
            self._say(
                f"{self._name}: step {self._done}/{self._steps}, loss {loss:.4g}, "
                + (f"{left:.0f} s left" if left else f"took {spent:.1f} s")
            )

    def record(self, record: Record) -> None:
        """Say evaluations and notes."""
        if metrics := _metrics(record):
            self._say(f"{record['stage']}: after step {record['step']}, held out: {metrics}")
        if note := record.get("note"):
            self._say(note)

    def close(self) -> None:
        """Nothing to do."""

    def _say(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


def _metrics(record: Record) -> str:
    """Return overall metrics; those by group, "accuracy/same", stay in the file."""
    named = {k.removeprefix("eval/"): v for k, v in record.items() if k.startswith("eval/")}
    return ", ".join(f"{name} {value:.4g}" for name, value in named.items() if "/" not in name)


def _bars(stream: Screen) -> Progress:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[metrics]}"),
        console=Console(file=cast("IO[str]", stream)),
        speed_estimate_period=60.0,
    )
