"""Does holding the n-th delta cost more than the first, and does letting go give the bytes back?

Base: MiniLM, or with `--large` the encoder of 12 x 768. Deltas: 0.5 % of every matrix of the
encoder (53,000 or 425,000 values of 16 bits), all different. Times of `Mixer.add` and of a first
`plan` for n = 1 ... 1000, with the slope of a line through them; resident memory before, with all
held, and after all were removed.

    python benchmarks/mixed_register.py [--count 1000] [--large] [--json FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from mixed_encoder import base_of, sparse_delta

from graftwork import bases
from graftwork.serving import Mixer


def resident() -> int:
    """Return this process's resident bytes, after unused ones went back to the system."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if "VmRSS" in line).split()[1])


def line(values: list[float]) -> dict[str, float]:
    """Return the slope over the whole range beside its standard error, as shares of the median."""
    x = np.arange(len(values))
    kept = np.asarray(values) <= 3 * statistics.median(values)
    (slope, _), covariance = np.polyfit(x[kept], np.asarray(values)[kept], 1, cov=True)
    scale = len(values) / statistics.median(values)
    return {
        "median_ms": round(1e3 * statistics.median(values), 3),
        "growth_over_the_range": round(float(slope * scale), 3),
        "standard_error": round(float(covariance[0, 0] ** 0.5 * scale), 3),
        "left_out_as_outliers": int((~kept).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--large", action="store_true", help="12 layers of 768")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    base = base_of() if args.large else bases.load("minilm")
    mixer = Mixer(base)
    mixer.remove(mixer.add(sparse_delta(base, -1)))
    before = resident()
    added, planned, keys = [], [], []
    for seed in range(args.count):
        delta = sparse_delta(base, seed)
        begun = time.perf_counter()
        keys.append(mixer.add(delta))
        added.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        mixer.plan([[(keys[-1], 1.0)], [(keys[0], 1.0)]])
        planned.append(time.perf_counter() - begun)
        del delta
    full, held = resident(), mixer.bytes["deltas"]
    removed = []
    for key in keys:
        begun = time.perf_counter()
        mixer.remove(key)
        removed.append(time.perf_counter() - begun)
    after = resident()
    values = args.count * sum(
        int(base.names[n].numel * 0.005)
        for n in base.names.match(["encoder.*.weight"])
        if len(base.names[n].shape) == 2
    )
    document = {
        "base": "encoder 12 x 768" if args.large else "minilm",
        "count": args.count,
        "add": line(added),
        "plan": line(planned),
        "remove": line(removed),
        "bytes_held": held,
        "bytes_a_value": round(held / values, 3),
        "resident_growth": full - before,
        "resident_bytes_a_value": round((full - before) / values, 3),
        "resident_after_removal": after - before,
        "given_back": round(1 - (after - before) / (full - before), 4),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(document, indent=1))
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
