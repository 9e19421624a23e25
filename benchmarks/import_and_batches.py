"""What does it cost to import graftwork, to load the base again, and to draw a batch?

    python benchmarks/import_and_batches.py            # table
    python benchmarks/import_and_batches.py --json     # the same numbers for a dated result file

Bars: importing <= 0.3 s beyond torch; drawing a batch of 32 encoded pairs < 1 ms, against a
training step of hundreds. Public names are imported at first use, so that is measured too; about
0.13 s of it is one pass of Python's garbage collector over torch's modules. Medians of 5 runs
(imports, loads) and of 200 batches. One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time

import torch

from graftwork import TaskConfig, load_base, make_task

IMPORT = """
import sys, time
import torch
start = time.perf_counter()
import graftwork
first = time.perf_counter() - start
for name in graftwork.__all__:
    getattr(graftwork, name)
print(first, time.perf_counter() - start)
"""


def import_seconds() -> tuple[float, float]:
    """Return the seconds of the import, and of it and the first use of every public name."""
    lines = [subprocess.check_output([sys.executable, "-c", IMPORT]) for _ in range(5)]
    runs = [[float(number) for number in line.split()] for line in lines]
    first, everything = (statistics.median(column) for column in zip(*runs, strict=True))
    return first, everything


def seconds_of(function, repeats: int) -> float:
    runs = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        runs.append(time.perf_counter() - start)
    return statistics.median(runs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    base = load_base("minilm")
    stream = make_task(base, TaskConfig(max_rows=8000, eval_rows=8)).streams["train"]
    first, everything = import_seconds()
    rows = [
        {"what": "import graftwork (s)", "median": first, "bar": 0.3},
        {"what": "and use every public name (s)", "median": everything},
        {"what": "load minilm again (s)", "median": seconds_of(lambda: load_base("minilm"), 5)},
        {
            "what": "draw 32 encoded pairs (ms)",
            "median": 1e3 * seconds_of(stream.draw, 200),
            "bar": 1.0,
        },
    ]
    if arguments.json:
        about = {"python": platform.python_version(), "torch": torch.__version__, "threads": 1}
        print(json.dumps({"rows": rows, "versions": about}, indent=1))
        return
    for row in rows:
        print(f"{row['what']:32} {row['median']:.3f}   bar {row.get('bar', '-')}")


if __name__ == "__main__":
    main()
