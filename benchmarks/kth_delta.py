"""What do the k-th delta and the k-th adapter cost while k - 1 others are held, beside PEFT?

Base: MiniLM, LoRA of rank 8 on query and value of each layer. "wrap": ours `view(base, delta)`,
PEFT's `add_adapter`. "load": ours file -> checked delta -> view, PEFT's `load_adapter` of its
folder; both read the same eight adapters, from files that the system has cached. All k objects stay
alive. For each k the four take turns, so that what disturbs the machine disturbs all of them; a
time is the median over rounds, each with models of its own. A slope is the median of those between
all pairs of k (Theil and Sen), which a few disturbed points do not move.

    python benchmarks/kth_delta.py [--count 200] [--rounds 3] [--cpu] [--json]
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import platform
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch

from graftwork import bases, deltas
from graftwork.formats import import_peft

RANK, FILES = 8, 8
NAMES = ("graftwork wrap", "peft wrap", "graftwork load", "peft load")
RIVALS = {"graftwork wrap": "peft wrap", "graftwork load": "peft load"}


def write_adapters(base: bases.Base, folder: Path) -> tuple[list[Path], list[Path]]:
    """Write PEFT folders with random factors, and the same as our files."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=RANK, target_modules=["query", "value"])
    model = get_peft_model(copy.deepcopy(base.model), config)
    theirs, ours = [], []
    for i in range(FILES):
        torch.manual_seed(i)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.02)
        theirs.append(folder / f"peft-{i}")
        model.save_pretrained(theirs[-1])
        ours.append(folder / f"delta-{i}.safetensors")
        deltas.save(import_peft(theirs[-1], base), ours[-1])
    return ours, theirs


def one_round(
    base: bases.Base, files: tuple[list[Path], list[Path]], count: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Return the seconds of the k-th of each, k = 1 ... count."""
    from peft import LoraConfig, PeftModel

    ours, theirs = files
    config = LoraConfig(r=RANK, target_modules=["query", "value"])
    read = [deltas.load(path) for path in ours]
    held: list[object] = []
    adding, loading = (
        PeftModel(copy.deepcopy(base.model), copy.deepcopy(config), "a0") for _ in range(2)
    )

    def load_and_view(k: int) -> object:
        delta = deltas.load(ours[k % FILES])
        deltas.check(base, delta)
        return deltas.view(base, delta)

    actions: dict[str, Callable[[int], object]] = {
        "graftwork wrap": lambda k: deltas.view(base, read[k % FILES]),
        "peft wrap": lambda k: adding.add_adapter(f"a{k}", copy.deepcopy(config)),
        "graftwork load": load_and_view,
        "peft load": lambda k: loading.load_adapter(theirs[k % FILES], f"a{k}"),
    }
    held.extend(load_and_view(k) for k in range(FILES))  # every path is warm
    held.clear()
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for k in range(1, count + 1):
        for name in NAMES:
            begun = clock()
            made = actions[name](k)
            seconds[name].append(clock() - begun)
            held.append(made)
    return seconds


def slope(values: list[float]) -> float:
    """Return the median of the slopes between all pairs of points."""
    pairs = itertools.combinations(enumerate(values), 2)
    return statistics.median((b - a) / (j - i) for (i, a), (j, b) in pairs)


def row(values: list[float], shown: list[int]) -> dict[str, object]:
    """Return milliseconds around the shown k, and microseconds that each further one adds."""
    around = {k: statistics.median(values[max(0, k - 6) : k + 5]) for k in shown}
    first, last = around[shown[0]], around[shown[-1]]
    return {
        "ms": {k: round(1e3 * t, 2) for k, t in around.items()},
        "last_of_first": round(last / first, 2),
        "slope_us": round(1e6 * slope(values), 2),
    }


def report(args: argparse.Namespace) -> dict[str, object]:
    base = bases.load("minilm")
    folder = Path(tempfile.mkdtemp())
    try:
        files = write_adapters(base, folder)
        clock = time.process_time if args.cpu else time.perf_counter
        found = [one_round(base, files, args.count, clock) for _ in range(args.rounds)]
    finally:
        shutil.rmtree(folder)
    medians = {
        name: [statistics.median(times) for times in zip(*(f[name] for f in found), strict=True)]
        for name in NAMES
    }
    shown = sorted({1, args.count // 4, args.count // 2, 3 * args.count // 4, args.count} - {0})
    rows = {name: row(values, shown) for name, values in medians.items()}
    for name, rival in RIVALS.items():
        ratios = [a / b for a, b in zip(medians[name], medians[rival], strict=True)]
        rows[name]["of_peft_at_last"] = round(statistics.median(ratios[-11:]), 3)
        rows[name]["of_peft_at_first"] = round(statistics.median(ratios[:11]), 3)
    return {
        "base": "minilm",
        "rank": RANK,
        "count": args.count,
        "rounds": args.rounds,
        "clock": "processor" if args.cpu else "wall",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "peft": version("peft"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "rows": rows,
    }


def table(found: dict[str, object]) -> str:
    rows = found["rows"]
    shown = list(next(iter(rows.values()))["ms"])
    heads = " | ".join(f"k = {k}" for k in shown)
    lines = [
        f"| ms of the k-th | {heads} | last / first | µs a further |",
        "|---" * (len(shown) + 3) + "|",
    ]
    for name, values in rows.items():
        times = " | ".join(f"{values['ms'][k]:.1f}" for k in shown)
        lines.append(f"| {name} | {times} | {values['last_of_first']} | {values['slope_us']} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="processor time: for a busy machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = report(args)
    print(json.dumps(found, indent=2) if args.json else table(found))


if __name__ == "__main__":
    main()
