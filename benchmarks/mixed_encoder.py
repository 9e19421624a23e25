"""What does it cost that the rows of a batch have different deltas, beside the base alone?

Base: an encoder of 12 layers of 768 (85 M weights of random values), 64 rows of 1, 8 or 128 tokens,
dealt out to 1, 4, 16 or 64 tasks. Deltas: 0.5 % of every matrix of the layers, in 16 bits; or
low-rank terms of rank 8. Rivals: the base alone; PEFT's SHiRA (sparse, rank 2: 0.4 % of the layers)
switched task by task; PEFT's LoRA with `adapter_names`, its own mixed batches. Variants take turns
in one process; ratios are medians over rounds.

    python benchmarks/mixed_encoder.py [--rounds 5] [--lengths 1 8 128] [--tasks 1 4 16 64] [--json]
    python benchmarks/mixed_encoder.py --profile     # where the time goes
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from graftwork import bases, deltas
from graftwork._batch import Batch
from graftwork.serving import Mixer, Report

ROWS, SHARE, RANK, WORDS = 64, 0.005, 8, 2000
Run = Callable[[], object]


def base_of(layers: int = 12, width: int = 768) -> bases.Base:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        intermediate_size=4 * width,
    )
    return bases.load(BertModel(config, add_pooling_layer=False).eval())


def matrices(base: bases.Base) -> list[str]:
    names = base.names.match(["encoder.*.weight"])
    return [name for name in names if len(base.names[name].shape) == 2]


def sparse_delta(base: bases.Base, seed: int) -> deltas.Delta:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name in matrices(base):
        shape = base.names[name].shape
        size = shape[0] * shape[1]
        count = int(size * SHARE)
        drawn = torch.randint(0, size, (count + count // 20,), generator=generator).unique()
        chosen = drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values
        values = (torch.randn(count, generator=generator) * 0.01).half()
        updates[name] = deltas.Update(shape, sparse=deltas.Sparse(chosen, values))
    return deltas.Delta(updates, fingerprint=deltas.fingerprint_of(base, updates))


def low_rank_delta(base: bases.Base, seed: int) -> deltas.Delta:
    generator = torch.Generator().manual_seed(seed)
    updates = {}
    for name in matrices(base):
        out, inner = base.names[name].shape
        left = (torch.randn(out, RANK, generator=generator) * 0.02).half()
        right = (torch.randn(RANK, inner, generator=generator) * 0.02).half()
        updates[name] = deltas.Update((out, inner), low_rank=deltas.LowRank(left, right))
    return deltas.Delta(updates, fingerprint=deltas.fingerprint_of(base, updates))


def batch_of(length: int) -> Batch:
    generator = torch.Generator().manual_seed(length)
    inputs = {
        "input_ids": torch.randint(0, WORDS, (ROWS, length), generator=generator),
        "attention_mask": torch.ones(ROWS, length, dtype=torch.int64),
    }
    return Batch(inputs, None, torch.arange(ROWS))


def call(module: nn.Module, _ports: nn.ModuleDict, inputs: Any) -> Tensor:
    hidden: Tensor = module(**inputs).last_hidden_state
    return hidden


def alone(base: bases.Base, batch: Batch) -> Run:
    def run() -> Tensor:
        with torch.no_grad():
            return call(base.model, nn.ModuleDict(), batch.inputs)

    return run


def mixed(mixer: Mixer, keys: Sequence[str], batch: Batch, report: Report) -> Run:
    plan = mixer.plan([[(keys[row % len(keys)], 1.0)] for row in range(ROWS)])
    return lambda: mixer.run(plan, batch, call, report)


def peft_lora(base: bases.Base, tasks: int) -> Any:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=RANK, target_modules=["query", "key", "value", "dense"], init_lora_weights=False
    )
    model = get_peft_model(copy.deepcopy(base.model), config, adapter_name="t0")
    for task in range(1, tasks):
        model.add_adapter(f"t{task}", config)
    return model.eval()


def peft_names(model: Any, tasks: int, batch: Batch) -> Run:
    names = [f"t{row % tasks}" for row in range(ROWS)]

    def run() -> object:
        with torch.no_grad():
            return model(**batch.inputs, adapter_names=names)

    return run


def peft_shira(base: bases.Base, tasks: int) -> Any:
    from peft import ShiraConfig, get_peft_model

    config = ShiraConfig(r=2, target_modules=["query", "key", "value", "dense"], init_weights=False)
    model = get_peft_model(copy.deepcopy(base.model), config, adapter_name="t0")
    for task in range(1, tasks):
        model.add_adapter(f"t{task}", config)
    return model.eval()


def peft_switched(model: Any, tasks: int, batch: Batch) -> Run:
    def run() -> object:
        outputs = []
        with torch.no_grad():
            for task in range(tasks):
                model.set_adapter(f"t{task}")
                outputs.append(model(**{k: v[task::tasks] for k, v in batch.inputs.items()}))
        return outputs

    return run


def turns(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            begun = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - begun)
    return seconds


def compared(seconds: dict[str, list[float]], mine: str, other: str) -> dict[str, object]:
    ratios = [a / b for a, b in zip(seconds[mine], seconds[other], strict=True)]
    return {
        "ratio": round(statistics.median(ratios), 3),
        "spread": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms": round(1e3 * statistics.median(seconds[mine]), 1),
        "other_ms": round(1e3 * statistics.median(seconds[other]), 1),
    }


def sparse_rows(base: bases.Base, args: argparse.Namespace) -> list[dict[str, object]]:
    mixer = Mixer(base)
    keys = [mixer.add(sparse_delta(base, seed)) for seed in range(max(args.tasks))]
    values = sum(int(base.names[n].numel * SHARE) for n in matrices(base)) * len(keys)
    rows = []
    for length in args.lengths:
        batch = batch_of(length)
        for tasks in args.tasks:
            report = Report()
            runs = {"base": alone(base, batch), "ours": mixed(mixer, keys[:tasks], batch, report)}
            seconds = turns(runs, args.rounds)
            used = mixer.bytes
            rows.append(
                {
                    "what": "sparse / base alone",
                    "length": length,
                    "tasks": tasks,
                    **compared(seconds, "ours", "base"),
                    "paths": sorted(report.paths),
                    "prepared_bytes_a_value": round(used["deltas"] / values, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def rival_rows(base: bases.Base, args: argparse.Namespace) -> list[dict[str, object]]:
    rows = []
    tasks = 16
    mixer = Mixer(base)
    keys = [mixer.add(sparse_delta(base, seed)) for seed in range(tasks)]
    switched = peft_shira(base, tasks)
    for length in (n for n in args.lengths if n <= 8):
        batch = batch_of(length)
        runs = {
            "ours": mixed(mixer, keys, batch, Report()),
            "peft": peft_switched(switched, tasks, batch),
        }
        what = {"what": "sparse / PEFT SHiRA switched", "length": length, "tasks": tasks}
        rows.append(what | compared(turns(runs, args.rounds), "ours", "peft"))
        print(rows[-1], flush=True)
    del switched
    for tasks in (n for n in args.tasks if n > 1):
        mixer = Mixer(base)
        keys = [mixer.add(low_rank_delta(base, seed)) for seed in range(tasks)]
        named = peft_lora(base, tasks)
        for length in args.lengths:
            batch = batch_of(length)
            runs = {
                "ours": mixed(mixer, keys, batch, Report()),
                "peft": peft_names(named, tasks, batch),
                "base": alone(base, batch),
            }
            seconds = turns(runs, args.rounds)
            what = {"what": "low rank / PEFT adapter_names", "length": length, "tasks": tasks}
            rows.append(what | compared(seconds, "ours", "peft"))
            rows[-1]["of_base"] = compared(seconds, "ours", "base")["ratio"]
            print(rows[-1], flush=True)
        del named
    return rows


def profile(base: bases.Base, args: argparse.Namespace) -> None:
    mixer = Mixer(base)
    keys = [mixer.add(sparse_delta(base, seed)) for seed in range(16)]
    for length in args.lengths:
        run = mixed(mixer, keys, batch_of(length), Report())
        run()
        with torch.profiler.profile() as found:
            run()
        print(f"length {length}")
        print(found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14))


def peak_of(tasks: int, length: int) -> int:
    """Return this process's peak resident bytes after a batch of `tasks` deltas; 0: base alone."""
    base = base_of()
    batch = batch_of(length)
    if tasks:
        mixer = Mixer(base)
        keys = [mixer.add(sparse_delta(base, seed)) for seed in range(tasks)]
        mixed(mixer, keys, batch, Report())()
    else:
        alone(base, batch)()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def peaks(args: argparse.Namespace) -> list[dict[str, object]]:
    """Return peaks of processes of their own, beside as many copies of the base."""
    model = sum(p.numel() * p.element_size() for p in base_of().model.parameters())
    length = min(args.lengths, key=lambda n: abs(n - 8))
    rows: list[dict[str, object]] = []
    found = {}
    for tasks in (0, *args.tasks):
        command = [sys.executable, __file__, "--peak", str(tasks), "--lengths", str(length)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[tasks] = int(done.stdout.split()[-1])
        if tasks:
            rows.append(
                {
                    "what": "peak memory beyond the base alone",
                    "length": length,
                    "tasks": tasks,
                    "mib": round((found[tasks] - found[0]) / 2**20),
                    "separate_models_mib": round((tasks - 1) * model / 2**20),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1, 8, 128])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--only", choices=["sparse", "rivals", "peaks"])
    parser.add_argument("--peak", type=int, help="print the peak of one process with so many")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", module="peft")
    if args.peak is not None:
        print(peak_of(args.peak, args.lengths[0]))
        return
    base = base_of()
    if args.profile:
        profile(base, args)
        return
    parts = {"sparse": sparse_rows, "rivals": rival_rows, "peaks": lambda _, args: peaks(args)}
    rows = []
    for name, part in parts.items():
        if args.only in (None, name):
            rows += part(base, args)
    document = {
        "base": "encoder 12 x 768",
        "rows": ROWS,
        "share": SHARE,
        "rank": RANK,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": version("peft"),
        "python": platform.python_version(),
        "results": rows,
    }
    if args.json:
        args.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
