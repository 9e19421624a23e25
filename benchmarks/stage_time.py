"""What does a step of each stage cost, beside a full fine-tuning step over the same tensors?

Base: MiniLM (encoder weights only, 10.6 M), two encodings of 32 pairs of short phrases, a head of
64 tanh units; every optimiser is a fused Adam. The variants take turns in one process, so that a
noisy machine hurts all alike; ratios are medians over rounds. Peak memory: a process a variant.

    python benchmarks/stage_time.py [--rounds 7] [--steps 5] [--length 12] [--cpu] [--json]

--cpu takes processor time instead of wall time: on a busy machine, with one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call

from graftwork import bases
from graftwork.tuning import Attachment, DiffPruning, Full, HardConcrete, RandomMask, Tuner, adam

VARIANTS = (
    "full",
    "gates held",
    "gates falling",
    "gates unstructured",
    "fixed mask",
    "naive gates",
)
Step = Callable[[], None]


class Pairs(nn.Module):
    """The head: features [u, v, |u - v|, u v] -> 64 tanh -> 3."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4 * width, 64), nn.Tanh(), nn.Linear(64, 3))

    def forward(self, encode: Callable[[Tensor], Tensor], left: Tensor, right: Tensor) -> Tensor:
        u, v = encode(left), encode(right)
        return self.layers(torch.cat([u, v, (u - v).abs(), u * v], dim=1))


def batches(length: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    while True:
        words = torch.randint(1000, 20000, (2, 32, length), generator=generator)
        yield words[0], words[1], torch.randint(0, 3, (32,), generator=generator)


def targets_of(base: bases.Base) -> list[str]:
    return base.names.match(["*encoder.layer.*"])


def tuned(tuner: Tuner, base: bases.Base, progress: float, length: int) -> tuple[Step, Attachment]:
    """Return one optimiser step of the first stage at a given progress."""
    torch.manual_seed(0)
    attachment = tuner.attach(base, targets_of(base), seed=0)
    head = Pairs(base.model.config.hidden_size)
    optimiser = adam(tuner.stages[0], attachment, head.parameters())
    data, count = batches(length), iter(range(10**9))
    attachment.module.train()

    def step() -> None:
        attachment.prepare(progress, seed=next(count))
        loss_of(attachment.module, head, *next(data)).backward()
        attachment.collect()
        optimiser.step()
        optimiser.zero_grad()

    return step, attachment


def loss_of(
    module: Callable[..., object], head: Pairs, left: Tensor, right: Tensor, labels: Tensor
) -> Tensor:
    def encode(words: Tensor) -> Tensor:
        return module(input_ids=words).last_hidden_state.mean(1)  # type: ignore[attr-defined]

    return nn.functional.cross_entropy(head(encode, left, right), labels)


def naive(base: bases.Base, length: int) -> Step:
    """Structured diff pruning as one writes it first: gates by autograd, a fused optimiser."""
    torch.manual_seed(0)
    gate, names = HardConcrete(), targets_of(base)
    weights = {n: base.model.get_parameter(base.names[n].parameter).detach() for n in names}
    values = {n: nn.Parameter(torch.zeros_like(w)) for n, w in weights.items()}
    alphas = {n: nn.Parameter(torch.full_like(w, 5.0)) for n, w in weights.items()}
    groups = {n: nn.Parameter(torch.tensor(5.0)) for n in weights}
    head = Pairs(base.model.config.hidden_size)
    optimiser = torch.optim.Adam(
        [
            {"params": [*values.values(), *head.parameters()], "lr": 5e-4},
            {"params": [*alphas.values(), *groups.values()], "lr": 0.05},
        ],
        fused=True,
    )
    data = batches(length)

    def step() -> None:
        adapted = {}
        for name, weight in weights.items():
            z = gate.sample(alphas[name], torch.rand_like(weight))
            z = z * gate.sample(groups[name], torch.rand(()))
            adapted[base.names[name].parameter] = weight + z * values[name]

        def module(input_ids: Tensor) -> object:
            return functional_call(base.model, adapted, kwargs={"input_ids": input_ids})

        loss_of(module, head, *next(data)).backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def build(variant: str, base: bases.Base, length: int) -> Step:
    if variant == "full":
        return tuned(Full(), base, 0.5, length)[0]
    if variant == "gates held":
        return tuned(DiffPruning(), base, 0.0, length)[0]
    if variant == "gates falling":
        return tuned(DiffPruning(), base, 0.7, length)[0]
    if variant == "gates unstructured":
        return tuned(DiffPruning(groups=None), base, 0.7, length)[0]
    if variant == "fixed mask":
        return tuned(RandomMask(), base, 0.5, length)[0]
    return naive(base, length)


def rounds(base: bases.Base, names: list[str], args: argparse.Namespace) -> dict[str, list[float]]:
    clock = time.process_time if args.cpu else time.perf_counter
    steps = {name: build(name, base, args.length) for name in names}
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


def peak(variant: str, length: int) -> int:
    """Return the peak resident bytes of a process that takes 5 steps of a variant."""
    command = [sys.executable, __file__, "--peak", variant, "--length", str(length)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(done.stdout.split()[-1])


def peak_resident() -> int:
    """Return this process's peak; ru_maxrss would also count the parent's before exec."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])


def report(args: argparse.Namespace) -> dict[str, object]:
    base = bases.load("minilm")
    names = args.only.split(",") if args.only else list(VARIANTS)
    seconds = rounds(base, names, args)
    entries = sum(base.names[name].numel for name in targets_of(base))
    rows = {}
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds["full"], strict=True)]
        rows[name] = {
            "ms": round(1e3 * statistics.median(seconds[name]), 1),
            "of_full": round(statistics.median(ratios), 3),
            "spread": [round(min(ratios), 3), round(max(ratios), 3)],
            "peak_mib": None if args.no_peak else round(peak(name, args.length) / 2**20),
        }
    return {
        "base": "minilm",
        "entries": entries,
        "batch": "32 pairs",
        "length": args.length,
        "clock": "processor" if args.cpu else "wall",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-peak", action="store_true")
    parser.add_argument("--peak", default="")
    parser.add_argument("--json", action="store_true", help="the output is JSON in any case")
    args = parser.parse_args()
    if args.peak:
        step = build(args.peak, bases.load("minilm"), args.length)
        for _ in range(5):
            step()
        print(peak_resident())
        return
    print(json.dumps(report(args), indent=2))


if __name__ == "__main__":
    main()
