"""What does the driver cost a step beyond the plain loop of the how-to?

Rival: the loop of docs/own-loop.md with torch's own clipping, same tuner, same batches. The base is
a network of 384 weights, so that nearly all that is measured is overhead; the bar is 1 ms a step,
and a step of a real encoder takes hundreds.

    python benchmarks/driver_overhead.py            # table
    python benchmarks/driver_overhead.py --json     # the same numbers for a dated result file

Rounds take turns, so that a busy machine slows both alike; medians of 5 by the process's own CPU
seconds. One thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import time
import warnings

import torch
from torch import nn

from graftwork import bases, tasks
from graftwork.training import Adaptation, History, TrainConfig, fit, start
from graftwork.tuning import DiffPruning, Full, RandomMask, Tuner, TuningWarning

STEPS, ROUNDS, BAR = 1000, 5, 1e-3
TUNERS: dict[str, Tuner] = {
    "full": Full(),
    "random_mask": RandomMask(share=0.2),
    "diff_pruning (gates)": DiffPruning(share=0.2),
}


def fresh(tuner: Tuner) -> tuple[Adaptation, tasks.Task]:
    torch.manual_seed(0)
    base = bases.load(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 16)))
    x = torch.randn(256, 6)
    table = tasks.Table({"x": x.numpy(), "label": [int(v > 0) for v in x[:, 0].tolist()]})
    config = tasks.TaskConfig(inputs=("x",), head_hidden=4)
    task = tasks.task_from_tables(base, {"train": table}, config, batch_size=8)
    adaptation = start(base, task, tuner)
    adaptation.stages = (dataclasses.replace(adaptation.stages[0], share=1.0),)
    return adaptation, task


def plain(tuner: Tuner) -> float:
    adaptation, task = fresh(tuner)
    stage, stream = adaptation.stages[0], task.streams["train"]
    adaptation.train(stage.learning_rates)
    groups = {g.role: list(g.parameters) for g in adaptation.groups}
    settings = [{"params": p, "lr": stage.learning_rates[role]} for role, p in groups.items()]
    optimiser = torch.optim.AdamW(settings, weight_decay=0.0, fused=True)
    began = time.process_time()
    for i in range(STEPS):
        adaptation.attachment.prepare(i / STEPS, seed=i)
        batch = stream.draw()
        loss = nn.functional.cross_entropy(adaptation(batch), batch.targets)
        loss.backward()
        adaptation.attachment.collect()
        for parameters in groups.values():
            nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        loss.item()
    return (time.process_time() - began) / STEPS


def driven(tuner: Tuner) -> float:
    adaptation, task = fresh(tuner)
    began = time.process_time()
    fit(adaptation, task, TrainConfig(steps=STEPS), recorder=History())
    return (time.process_time() - began) / STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", TuningWarning)
    results = {}
    for name, tuner in TUNERS.items():
        plain(tuner), driven(tuner)
        pairs = [(plain(tuner), driven(tuner)) for _ in range(ROUNDS)]
        loop, driver = (statistics.median(side) for side in zip(*pairs, strict=True))
        results[name] = {"loop": loop, "driver": driver, "overhead": driver - loop}
    if as_json:
        where = {"python": platform.python_version(), "torch": torch.__version__}
        print(json.dumps({"bar": BAR, **where, "seconds_a_step": results}, indent=1))
        return
    print(f"{'tuner':24}{'loop ms':>10}{'driver ms':>12}{'overhead ms':>14}   bar {BAR * 1e3:g} ms")
    for name, row in results.items():
        loop, driver, extra = (1e3 * row[key] for key in ("loop", "driver", "overhead"))
        print(f"{name:24}{loop:10.3f}{driver:12.3f}{extra:14.3f}")


if __name__ == "__main__":
    main()
