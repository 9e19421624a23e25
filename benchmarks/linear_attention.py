"""How do time and memory of attention grow with the length, linear against softmax?

Rivals: `torch.nn.functional.scaled_dot_product_attention` (torch's fused kernel, whose memory is
linear and whose time is not) and softmax attention written out. Linear attention includes its
random features (relu, 32 of them); all have rotary positions; causal linear attention runs in
chunks of 64. One row, 4 heads of width 32, float32, forward and backward.

    python benchmarks/linear_attention.py            # table
    python benchmarks/linear_attention.py --json     # the same numbers for a dated result file

Each length and method runs in a process of its own, forked after the imports, so that peak memory
is its own: the growth of the process's resident set. Time is the least processor time of 5 runs.
The exponent is the slope of log cost over log length by least squares, from 1024 on; below, fixed
costs rule. One thread. Rule: the exponents of linear attention are at most 1.2.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from graftwork.nn import RandomFeatures, linear_attention, rotary

HEADS, WIDTH, FEATURES, BAR, REPEATS = 4, 32, 32, 1.2, 5
LENGTHS = (256, 512, 1024, 2048, 4096, 8192)
FITTED, WARM = 1024, 64
LONGEST = {"softmax, written out": 4096}


def linear(q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False) -> Tensor:
    phi = RandomFeatures(WIDTH, FEATURES, redraw="never")
    return linear_attention(phi(rotary(q)), phi(rotary(k)), v, causal=causal)


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linear(q, k, v, causal=True)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(rotary(q), rotary(k), v)


def written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = rotary(q) @ rotary(k).transpose(-1, -2) / math.sqrt(WIDTH)
    return scores.softmax(-1) @ v


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "linear": linear,
    "linear, causal": causal,
    "softmax, fused": fused,
    "softmax, written out": written_out,
}


def resident() -> int:
    """Return the bytes of the process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """Return the most bytes the process has had in memory."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no VmHWM in /proc/self/status")


def run(name: str, length: int) -> float:
    """Return the processor time of one forward and backward pass."""
    inputs = [torch.randn(1, HEADS, length, WIDTH).requires_grad_() for _ in range(3)]
    began = time.process_time()
    METHODS[name](*inputs).square().sum().backward()
    return time.process_time() - began


def measure(name: str, length: int, out: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(length)
    run(name, WARM)  # loads kernels and starts the thread of the backward pass
    before = resident()
    times = [run(name, length) for _ in range(REPEATS)]
    out.put((min(times), peak() - before))


def forked(name: str, length: int) -> tuple[float, int]:
    context = multiprocessing.get_context("fork")
    out = context.Queue()
    process = context.Process(target=measure, args=(name, length, out))
    process.start()
    found = out.get()
    process.join()
    return found


def exponent(costs: dict[int, float]) -> float:
    points = [(math.log(n), math.log(c)) for n, c in costs.items() if n >= FITTED and c > 0]
    x, y = zip(*points, strict=True)
    return statistics.linear_regression(x, y).slope


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    results = {}
    for name in METHODS:
        lengths = [n for n in LENGTHS if n <= LONGEST.get(name, LENGTHS[-1])]
        found = {n: forked(name, n) for n in lengths}
        seconds, memory = ({n: f[i] for n, f in found.items()} for i in (0, 1))
        results[name] = {
            "seconds": seconds,
            "bytes": memory,
            "exponent of time": exponent(seconds),
            "exponent of memory": exponent(memory),
        }
    if as_json:
        where = {"python": platform.python_version(), "torch": torch.__version__}
        print(json.dumps({"bar": BAR, **where, "methods": results}, indent=1))
        return
    print(f"{'method':22}" + "".join(f"{n:>16}" for n in LENGTHS) + "   exponents: time, memory")
    for name, row in results.items():
        cells = [
            f"{1e3 * row['seconds'][n]:.1f} ms {row['bytes'][n] / 2**20:.0f} MiB"
            if n in row["seconds"]
            else ""
            for n in LENGTHS
        ]
        slopes = f"{row['exponent of time']:.2f}, {row['exponent of memory']:.2f}"
        print(f"{name:22}" + "".join(f"{cell:>16}" for cell in cells) + f"   {slopes}")
    print(f"rule: linear attention at most {BAR}")


if __name__ == "__main__":
    main()
