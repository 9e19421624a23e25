"""What does a LoRA step cost beside PEFT's, at the same targets, rank, dropout and start?

Base: MiniLM (22.7 M weights), 32 pairs of short phrases, a head of 64 tanh units, fused Adam; rank
8, alpha 16. Targets: "attention", the query and value of each layer, as in the paper; "all", every
matrix of the encoder's layers. The variants take turns in one process; ratios are medians over
rounds. Peak memory: a process a variant. That both compute the same is tested in
tests/tuning/test_lora_peft.py.

    python benchmarks/lora_step.py [--rounds 7] [--steps 5] [--length 12] [--dropout 0.0] [--cpu]
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
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from graftwork import bases
from graftwork.tuning import DoRA, LoRA, adam

RANK, ALPHA, RATE = 8, 16.0, 1e-3
TARGETS = {
    "attention": (["*.query.weight", "*.value.weight"], ["query", "value"]),
    "all": (
        ["encoder.layer.*.dense.weight", "encoder.layer.*.self.*.weight"],
        r"encoder\.layer\..*\.(query|key|value|dense)",
    ),
}
VARIANTS = [
    f"{kind} {targets}"
    for targets in TARGETS
    for kind in ("graftwork lora", "peft lora", "graftwork dora", "peft dora")
]
Step = Callable[[], float]


class Pairs(nn.Module):
    """The head: features [u, v, |u - v|, u v] -> 64 tanh -> 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * width, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, u: Tensor, v: Tensor) -> Tensor:
        return self.layers(torch.cat([u, v, (u - v).abs(), u * v], dim=1))


def batches(length: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        words = torch.randint(1000, 20000, (64, length), generator=generator)
        yield words, torch.randint(0, 3, (32,), generator=generator)


def loss_of(module: nn.Module, head: Pairs, words: Tensor, labels: Tensor) -> Tensor:
    both = module(input_ids=words).last_hidden_state.mean(1)
    return nn.functional.cross_entropy(head(both[:32], both[32:]), labels)


def ours(base: bases.Base, kind: str, targets: str, args: argparse.Namespace) -> Step:
    make = {"lora": LoRA, "dora": DoRA}[kind]
    tuner = make(rank=RANK, alpha=ALPHA, dropout=args.dropout, values_lr=RATE, head_lr=RATE)
    attachment = tuner.attach(base, base.names.match(TARGETS[targets][0]), seed=0)
    torch.manual_seed(0)
    head = Pairs(base.model.config.hidden_size)
    optimiser = adam(tuner.stages[0], attachment, head.parameters())
    data, count = batches(args.length), iter(range(10**9))
    attachment.module.train()

    def step() -> float:
        attachment.prepare(0.5, seed=next(count))
        loss = loss_of(attachment.module, head, *next(data))
        loss.backward()
        attachment.collect()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def rival(base: bases.Base, kind: str, targets: str, args: argparse.Namespace) -> Step:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=RANK,
        lora_alpha=int(ALPHA),
        target_modules=TARGETS[targets][1],
        lora_dropout=args.dropout,
        use_dora=kind == "dora",
    )
    # a process of its own needs no copy: the memory of a rival is not charged for ours
    model = get_peft_model(base.model if args.peak else copy.deepcopy(base.model), config)
    torch.manual_seed(0)
    head = Pairs(base.model.config.hidden_size)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam([*trained, *head.parameters()], lr=RATE, fused=True)
    data = batches(args.length)
    model.train()

    def step() -> float:
        loss = loss_of(model, head, *next(data))
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        return loss.item()

    return step


def build(variant: str, base: bases.Base, args: argparse.Namespace) -> Step:
    who, kind, targets = variant.split()
    return (ours if who == "graftwork" else rival)(base, kind, targets, args)


def rounds(base: bases.Base, names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    clock = time.process_time if args.cpu else time.perf_counter
    steps = {name: build(name, base, args) for name in names}
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for step in steps.values():
        for _ in range(3):
            step()
    for _ in range(args.rounds):
        for name, step in steps.items():
            times = []
            for _ in range(args.steps):
                begun = clock()
                step()
                times.append(clock() - begun)
            seconds[name].append(statistics.median(times))
    return seconds


def peak(variant: str, args: argparse.Namespace) -> int:
    """Return the peak resident bytes of a process that takes 5 steps of a variant."""
    command = [sys.executable, __file__, "--peak", variant, "--length", str(args.length)]
    command += ["--dropout", str(args.dropout)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_resident() -> int:
    """Return this process's peak; ru_maxrss would also count the parent's before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def report(args: argparse.Namespace) -> dict[str, object]:
    base = bases.load("minilm")
    names = args.only.split(",") if args.only else VARIANTS
    seconds = rounds(base, names, args)
    rows = {}
    for name in names:
        other = name.replace("graftwork", "peft")
        row: dict[str, object] = {"ms": round(1e3 * statistics.median(seconds[name]), 1)}
        if name != other and other in seconds:
            ratios = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
            row |= {
                "of_peft": round(statistics.median(ratios), 3),
                "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        if not args.no_peak:
            row["peak_mib"] = round(peak(name, args) / 2**20)
        rows[name] = row
    return {
        "base": "minilm",
        "batch": "32 pairs",
        "length": args.length,
        "rank": RANK,
        "dropout": args.dropout,
        "clock": "processor" if args.cpu else "wall",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": version("peft"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--only", default="", help="variants, with commas between")
    parser.add_argument("--no-peak", action="store_true")
    parser.add_argument("--peak", default="")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.peak:
        step = build(args.peak, bases.load("minilm"), args)
        for _ in range(5):
            step()
        print(peak_resident())
        return
    print(json.dumps(report(args), indent=2))


if __name__ == "__main__":
    main()
