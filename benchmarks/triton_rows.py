"""How near do the GPU kernels of mixed batches come to the copy rate of the card?

Rival: a device-to-device copy in the same run, bytes read plus bytes written. With a position per
group the kernels should do little but stream the deltas, so each case goes round at least 400 MB of
them, in as many sets as that takes: several L2 caches, so that a set is cold when its turn comes.
Calls are captured in one CUDA graph, hence without the time of launching; medians over replays.
Before it is timed, each case is compared with dense products in float64. "base" is the time of the
frozen layer's own product for the same positions.

Never run on a GPU so far: there are no results in `results/`. Needs triton (`pip install
'graftwork[gpu]'`; the one of torch 2.11 will do), and without a card says so and ends. From a
checkout that is not installed: PYTHONPATH=src.

    python benchmarks/triton_rows.py [--rounds 20] [--sweep] [--json]
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork.serving._triton import (
    RowTile,
    add_low_rank,
    add_shared_sparse,
    add_sparse,
    launch_sparse,
)

DENSITY = 0.005
LEAST_BYTES = 400_000_000
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
Call = Callable[[], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """`groups` tasks of `each` positions, on a layer `(out, width)`."""

    kind: str
    groups: int
    each: int
    out: int
    width: int
    rank: int = 16
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        name = str(self.dtype).removeprefix("torch.")
        kind = f"{self.kind} {self.rank}" if self.kind == "low rank" else self.kind
        return f"{kind} {self.groups} x {self.each}, {self.width} -> {self.out}, {name}"


CASES = [
    *(
        Case(kind=kind, groups=groups, each=each, out=out, width=width)
        for kind in ("sparse", "shared", "low rank")
        for groups, each, out, width in (
            (200, 1, 4096, 4096),
            (200, 1, 768, 768),
            (64, 8, 768, 3072),
            (16, 512, 768, 768),
        )
    ),
    Case(kind="sparse", groups=200, each=1, out=4096, width=4096, dtype=torch.float32),
    Case(kind="low rank", groups=200, each=1, out=4096, width=4096, rank=64),
    Case(kind="low rank", groups=16, each=512, out=768, width=768, dtype=torch.float32),
]
SWEPT = [CASES[0], CASES[1]]


@dataclass(frozen=True)
class Deltas:
    """One set of deltas of a case: tensors as the kernels take them after y, x and bounds."""

    case: Case
    tensors: tuple[Tensor, ...]

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def dense(self, group: int) -> Tensor:
        """Return a group's `(out, width)` difference in float64."""
        case = self.case
        if case.kind == "low rank":
            right, left = self.tensors
            return left[group].double() @ right[group].double()
        crow, cols, values = self.tensors
        first = 0 if case.kind == "shared" else group * case.out
        starts = crow[first : first + case.out + 1].long()
        entries = slice(int(starts[0]), int(starts[-1]))
        row = torch.repeat_interleave(torch.arange(case.out, device="cuda"), starts.diff())
        own = values[group] if case.kind == "shared" else values[entries]
        found = torch.zeros(case.out, case.width, dtype=torch.float64, device="cuda")
        found[row, cols[entries].long()] = own.double()
        return found


def make(case: Case) -> Deltas:
    """Draw one set of deltas."""
    random = {"dtype": case.dtype, "device": "cuda"}
    if case.kind == "low rank":
        right = torch.randn(case.groups, case.rank, case.width, **random)
        return Deltas(case, (right, torch.randn(case.groups, case.out, case.rank, **random)))
    lengths, cols = [], []
    for _ in range(1 if case.kind == "shared" else case.groups):
        mask = torch.rand(case.out, case.width, device="cuda") < DENSITY
        lengths.append(mask.sum(1))
        cols.append(mask.nonzero()[:, 1].int())
    ends = torch.cat(lengths).cumsum(0)
    crow, col = torch.cat([ends.new_zeros(1), ends]).int(), torch.cat(cols)
    shape = (case.groups, col.numel()) if case.kind == "shared" else (col.numel(),)
    return Deltas(case, (crow, col, torch.randn(shape, **random)))


def check(case: Case, deltas: Deltas, add: Callable[..., None], y: Tensor, x: Tensor) -> float:
    """Return the relative error over some groups; stop where it is too large."""
    got = y.clone()
    add(got, x, bounds_of(case), *deltas.tensors)
    worst = 0.0
    for group in {0, case.groups // 2, case.groups - 1}:
        rows = slice(group * case.each, (group + 1) * case.each)
        want = y[rows].double() + x[rows].double() @ deltas.dense(group).t()
        worst = max(worst, float((got[rows].double() - want).norm() / want.norm()))
    if not worst <= TOLERANCE[case.dtype]:
        raise SystemExit(f"{case}: relative error {worst:.1e}, wanted {TOLERANCE[case.dtype]:.0e}")
    return worst


def bounds_of(case: Case) -> Tensor:
    return torch.arange(case.groups + 1, dtype=torch.int32, device="cuda") * case.each


def seconds(calls: list[Call], rounds: int) -> float:
    """Return the median seconds of one call: all are captured in a graph, which is replayed."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    taken = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        taken.append(start.elapsed_time(end) / 1e3)
    return statistics.median(taken) / len(calls)


def copy_rate(rounds: int) -> float:
    """Return bytes read plus written a second by a copy of 2 GiB within the card."""
    source = torch.randint(0, 255, (1 << 31,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds([lambda: target.copy_(source)], rounds)


@functools.lru_cache(maxsize=1)
def prepared(case: Case) -> tuple[Tensor, Tensor, Tensor, list[Deltas]]:
    """Return y, x, the frozen layer and the sets of deltas; kept while the tiles are tried."""
    torch.manual_seed(0)
    count, random = case.groups * case.each, {"dtype": case.dtype, "device": "cuda"}
    y, x = torch.randn(count, case.out, **random), torch.randn(count, case.width, **random)
    sets = [make(case)]
    while sum(deltas.bytes for deltas in sets) < LEAST_BYTES and len(sets) < 400:
        sets.append(make(case))
    return y, x, torch.randn(case.out, case.width, **random), sets


KERNELS = {"sparse": add_sparse, "shared": add_shared_sparse, "low rank": add_low_rank}


def measure(
    case: Case, rounds: int, copy: float, add: Callable[..., None] | None = None
) -> dict[str, object]:
    """Check and time one case; `add` in the place of the public function."""
    add = add or KERNELS[case.kind]
    y, x, weight, sets = prepared(case)
    error = check(case, sets[0], add, y, x)
    bounds = bounds_of(case)
    calls = [lambda d=d: add(y, x, bounds, *d.tensors) for d in sets]
    taken = seconds(calls, rounds)
    base = seconds([lambda: torch.nn.functional.linear(x, weight)] * 20, rounds)
    held = sum(deltas.bytes for deltas in sets)
    # Deltas once, x once, y read and written.
    moved = held / len(sets) + x.numel() * x.element_size() + 2 * y.numel() * y.element_size()
    return {
        "case": str(case),
        "MB of deltas": held / 1e6,
        "microseconds": taken * 1e6,
        "base": base * 1e6,
        "GB/s": moved / taken / 1e9,
        "% of copy": 100 * moved / taken / copy,
        "relative error": error,
    }


def by_tile(tile: RowTile) -> Callable[..., None]:
    return lambda *tensors: launch_sparse(tensors, tile, shared=False)


def sweep(rounds: int, copy: float) -> list[dict[str, object]]:
    """Time the tiles that could have been chosen for short groups."""
    found = []
    for case in SWEPT:
        for width in (4, 8, 16, 32):
            for rows in (32, 64, 128, 256):
                for warps in (2, 4, 8):
                    if 512 <= rows * width <= 2048:
                        tile = RowTile(positions=1, rows=rows, width=width, warps=warps)
                        line = measure(case, rounds, copy, by_tile(tile))
                        found.append(line | {"case": f"{case}: {rows} x {width}, {warps} warps"})
    return sorted(
        found, key=lambda line: str(line["case"]).split(":")[0] + f"{line['microseconds']:12.3f}"
    )


def show(lines: list[dict[str, object]]) -> None:
    for line in lines:
        print(
            "  ".join(f"{k} {v:.4g}" if isinstance(v, float) else str(v) for k, v in line.items())
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--sweep", action="store_true", help="try other tiles")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("triton_rows: no GPU here (torch.cuda.is_available() is False); nothing measured")
        return
    copy = copy_rate(options.rounds)
    with torch.no_grad():
        lines = [measure(case, options.rounds, copy) for case in CASES]
        tiles = sweep(options.rounds, copy) if options.sweep else []
    card = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "copy GB/s": copy / 1e9,
    }
    if options.json:
        print(json.dumps({**card, "cases": lines, "tiles": tiles}, indent=1))
        return
    print(card)
    show(lines)
    show(tiles)


if __name__ == "__main__":
    main()
