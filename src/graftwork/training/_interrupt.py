"""Ctrl-C that loses nothing: the step is finished, a checkpoint is saved, then the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class RunInterrupted(KeyboardInterrupt):
    """A run was stopped by Ctrl-C (or a polite kill) after its state was saved.

    The message tells how to go on; the command line prints it and exits with code 130.
    """


class Flag:
    """Set once the user asked to stop."""

    def __init__(self) -> None:
        self.raised = False


@contextmanager
def interruptible() -> Iterator[Flag]:
    """Turn the first SIGINT or SIGTERM into a flag that is read between steps.

    A second one stops at once. Signals can only be handled in the main thread; elsewhere the flag
    is never raised.
    """
    flag = Flag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        if flag.raised:
            raise KeyboardInterrupt
        flag.raised = True

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
