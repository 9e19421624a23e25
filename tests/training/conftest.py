"""A server that forks whole runs, so that starting one costs no import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
Run = Callable[..., list[int]]


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Run scenarios one after the other, each in a process of its own; return exit codes."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.training.toy_run"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def perform(*scenarios: dict[str, Any]) -> list[int]:
        codes = []
        for scenario in scenarios:
            server.stdin.write(json.dumps(scenario) + "\n")
            server.stdin.flush()
            codes.append(int(server.stdout.readline()))
        return codes

    with server:
        yield perform
        server.stdin.close()
