"""What do `view` and `apply` + `detach` cost beside loading the base, and do they keep its bits?

Rival: loading the base afresh for each task, everything warm (files in the page cache,
fingerprints in ours), which is what a user without either would do.

    python benchmarks/apply_detach.py            # table
    python benchmarks/apply_detach.py --json     # the same numbers for a dated result file

The delta changes 0.5 % of MiniLM, every tensor, positions from a seed, values random. Rounds take
turns (load, apply + detach, view), so that a busy machine slows all alike; medians over rounds, by
the clock and by the process's own CPU seconds. One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import transformers

from graftwork import bases, deltas
from graftwork._errors import BaseError

ROUNDS, CYCLES, SHARE = 15, 1000, 0.005
BARS = {"apply_detach_of_load": 1 / 20, "view_seconds": 0.020, "copied_bytes": 0}


def make_delta(base: bases.Base) -> deltas.Delta:
    """Return a delta that changes `SHARE` of the base, at random."""
    sizes = [piece.numel for piece in base.names.pieces.values()]
    counts = deltas.seeded_counts(sizes, int(SHARE * sum(sizes)))
    generator = torch.Generator().manual_seed(0)
    updates = {}
    for (name, piece), count in zip(base.names.pieces.items(), counts, strict=True):
        mask = deltas.SeededMask(0, name)
        positions = deltas.seeded_positions(mask, piece.numel, count)
        values = deltas.quantise(torch.randn(count, generator=generator) * 0.02, "float16")
        updates[name] = deltas.Update(piece.shape, sparse=deltas.Sparse(positions, values, mask))
    prints = deltas.Fingerprint(base.prints(updates), dict(base.processing))
    return deltas.Delta(updates, fingerprint=prints)


def copied_bytes(base: bases.Base, module: torch.nn.Module) -> int:
    """Return the bytes of the storages behind `module` that are not the base's."""
    own = {t.data_ptr() for t in (*base.model.parameters(), *base.model.buffers())}
    tensors = (*module.parameters(), *module.buffers())
    return sum(t.untyped_storage().nbytes() for t in tensors if t.data_ptr() not in own)


def cycles_keep_bits(dtype: torch.dtype) -> bool:
    """Return whether every bit stays after `CYCLES` of apply + detach."""
    base = bases.load("minilm", dtype=dtype)
    delta = make_delta(base)
    for _ in range(CYCLES):
        deltas.apply(base, delta).detach()
    try:
        base.verify()
    except BaseError:
        return False
    return True


def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """Return seconds by the clock and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure() -> dict[str, Any]:
    """Return all numbers."""
    torch.set_num_threads(1)
    base = bases.load("minilm")
    delta = make_delta(base)
    work: dict[str, Callable[[], Any]] = {
        "load": lambda: bases.load("minilm"),
        "apply_detach": lambda: deltas.apply(base, delta).detach(),
        "view": lambda: deltas.view(base, delta),
        "view_of_base": lambda: deltas.view(base, []),
        "verify": base.verify,
    }
    for run in work.values():
        run()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            seconds[name].append(timed(run))
    wall = {name: statistics.median(w for w, _ in found) for name, found in seconds.items()}
    cpu = {name: statistics.median(c for _, c in found) for name, found in seconds.items()}
    with deltas.apply(base, delta) as module:
        probe = {"input_ids": torch.tensor([[101, 2023, 102]])}
        applied_bits = module(**probe).last_hidden_state.clone()
    ratio = {"wall": wall["apply_detach"] / wall["load"], "cpu": cpu["apply_detach"] / cpu["load"]}
    copied = copied_bytes(base, deltas.view(base, delta))
    return {
        "kept": sum(u.sparse.positions.numel() for u in delta.updates.values() if u.sparse),
        "rounds": ROUNDS,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "apply_detach_of_load": ratio,
        "copied_bytes": copied,
        "view_equals_apply": torch.equal(
            deltas.view(base, delta)(**probe).last_hidden_state, applied_bits
        ),
        "bits_kept_after_cycles": {
            str(dtype).removeprefix("torch."): cycles_keep_bits(dtype)
            for dtype in (torch.float32, torch.bfloat16)
        },
        "bars": BARS,
        "met": {
            "apply_detach_of_load": ratio["wall"] <= BARS["apply_detach_of_load"],
            "view_seconds": wall["view"] <= BARS["view_seconds"],
            "copied_bytes": copied == 0,
        },
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": 1},
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def show(result: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    print(f"{result['kept']} values of MiniLM, medians of {result['rounds']}")
    print(f"{'':>14} {'clock ms':>9} {'cpu ms':>9}")
    for name, wall in result["wall_seconds"].items():
        print(f"{name:>14} {wall * 1e3:>9.2f} {result['cpu_seconds'][name] * 1e3:>9.2f}")
    ratio = result["apply_detach_of_load"]
    print(f"apply + detach / load: 1/{1 / ratio['wall']:.0f} clock, 1/{1 / ratio['cpu']:.0f} cpu")
    print(f"bytes that a view copies: {result['copied_bytes']}")
    print(f"view has the bits of apply: {result['view_equals_apply']}")
    print(f"bits kept after {CYCLES} cycles: {result['bits_kept_after_cycles']}")
    for bar, limit in result["bars"].items():
        print(f"{bar:>22} {limit:>8g}  {'met' if result['met'][bar] else 'MISSED'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    result = measure()
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
