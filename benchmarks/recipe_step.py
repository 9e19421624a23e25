"""What does a step of each recipe cost, where does the time go, and how far is it from the floor?

Recipes: ORCA aligns a port for MiniLM (10 classes of a series of 64 values, 512 texts) and refines
by full fine-tuning or by a sparse delta; MoLFormer is pretrained and fine-tuned by a sparse delta
(4 layers of width 128, 64 molecules of about 40 tokens). UWAC has `policy_step.py`.
Rivals: "floor", the same products of matrices at the rate of one large product; "plain", the same
pretraining with dropout, rotary positions and linear attention as one writes them first; "bf16",
under autocast; "entropic", alignment by GeomLoss as in the paper instead of linear programs.

    python benchmarks/recipe_step.py [--rounds 7] [--steps 10] [--only NAME;...] [--cpu] [--json]

--cpu takes processor time instead of wall time: on a busy machine, with one thread.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from graftwork import bases
from graftwork.domains.molecules import (
    MaskedStream,
    masked_token_loss,
    predict_hidden,
    smiles_tokenizer,
)
from graftwork.models import MolformerConfig
from graftwork.nn import ByteDropout
from graftwork.objectives import Align
from graftwork.steps import PlainSum, Step
from graftwork.tasks import Table, Task, TaskConfig, task_from_tables
from graftwork.training import (
    Adaptation,
    OrcaConfig,
    RunConfig,
    RunContext,
    Settings,
    TrainConfig,
    Trainee,
    Whole,
    prepare_orca,
    start,
)
from graftwork.tuning import Full, RandomMask, Stage, Tuner

Precision = Literal["fp32", "bf16"]
PARTS: Mapping[str, tuple[tuple[type, str], ...]] = {
    "data": ((RunContext, "draw"),),
    "forward": ((Adaptation, "__call__"), (Whole, "__call__"), (Align, "features")),
    "objective": ((RunContext, "losses"),),
    "backward": ((Tensor, "backward"),),
    "optimiser": ((PlainSum, "_step"), (PlainSum, "_clip")),
    "looks": ((Align, "look"),),
}
"""Part -> functions. A function inside another counts to its own part, but inside "looks"."""


@dataclass
class Running:
    """A stage of a recipe that is under way."""

    context: RunContext
    step: Step
    around: Callable[[], Any] = nullcontext

    def update(self) -> None:
        with self.around():
            self.step.update(self.context)
        self.context.index += 1

    def rewind(self) -> None:
        """Draw the first batches again, so that every round has the same ones."""
        for stream in self.context.task.streams.values():
            stream.seek(0)


def running(
    trainee: Trainee, task: Task, step: Step, stage: int = 0, precision: Precision = "fp32"
) -> Running:
    for _ in range(stage):
        trainee.advance()
    settings = Settings(device=torch.device("cpu"), precision=precision)
    trainee.train(trainee.stages[stage].learning_rates, dropout=True)
    context = RunContext(trainee, task, trainee.stages[stage], (stage, 0, 10_000), settings)
    step.begin(context)
    return Running(context, step)


def series(rows: int = 500) -> Table:
    """Ten classes of series of 64 values: each a sine of its own frequency, and noise."""
    generator = np.random.default_rng(0)
    labels = np.arange(rows) % 10
    places = np.linspace(0, 2 * np.pi, 64)
    x = np.sin((1 + labels[:, None]) * places) + generator.normal(size=(rows, 64))
    return Table({"x": x.astype(np.float32), "label": labels.tolist()})


def orca(base: bases.Base, tuner: Tuner, stage: int, **options: Any) -> Running:
    table = series()
    align = OrcaConfig(patience=0, floor=0.0, **options)
    config = RunConfig(task=TaskConfig(), tuner=tuner, train=TrainConfig(steps=60))
    prepared = prepare_orca(config, align, base, {"train": table, "eval": table})
    return running(prepared.trainee, prepared.task, prepared.step, stage)


def strings(rows: int = 4000) -> list[str]:
    """Chains of atoms, as long as the molecules of the HIV set: median 37, up to 78."""
    generator = np.random.default_rng(0)
    atoms = ("C", "c", "N", "O", "S", "F", "Cl", "(", ")", "=", "1", "2")
    counts = np.clip(np.exp(generator.normal(np.log(37), 0.4, rows)), 5, 78).astype(int)
    return ["".join(generator.choice(atoms, size=count)) for count in counts]


SIZES = MolformerConfig(width=128, layers=4, heads=4, redraw="never", vocab_size=210)


def tokenizer() -> Any:
    rest = [f"[{i}C]" for i in range(SIZES.vocab_size - 17)]
    return smiles_tokenizer(["C", "c", "N", "O", "S", "F", "Cl", "(", ")", "=", "1", "2", *rest])


def pretraining(around: Callable[[], Any] = nullcontext, precision: Precision = "fp32") -> Running:
    torch.manual_seed(0)
    stream = MaskedStream(smiles=strings(), tokenizer=tokenizer())
    whole = Whole(SIZES.build(), Stage("masked", 1.0, {"values": 1e-3}), predict_hidden)
    task = Task(streams={"train": stream}, objectives={"task": masked_token_loss})
    found = running(whole, task, PlainSum(), precision=precision)
    found.around = around
    return found


def molecules_by_delta() -> Running:
    molecules = strings(500)
    table = Table({"smiles": molecules, "value": [float(len(text)) for text in molecules]})
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "base"
        torch.manual_seed(0)
        words = {"tokenizer": tokenizer(), "pooling": "mean", "max_length": 202}
        bases.save(SIZES.build(), place, config=SIZES, **words)
        base = bases.load(place)
    config = TaskConfig(
        inputs=("smiles",), label_columns=("value",), kind="regression", metrics=("rmse",)
    )
    task = task_from_tables(base, {"train": table, "eval": table}, config, batch_size=64)
    return running(start(base, task, RandomMask()), task, PlainSum())


def _dropout(self: ByteDropout, x: Tensor) -> Tensor:
    return nn.functional.dropout(x, self.rate, self.training)


def _rotary(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    rates = 10000.0 ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(x.shape[-2]), rates)
    low, high = x[..., :half], x[..., half:]
    cosine, sine = angles.cos(), angles.sin()
    return torch.cat((low * cosine - high * sine, high * cosine + low * sine), dim=-1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    key = key if mask is None else key * mask[:, None, :, None]
    above = query @ (key.transpose(-1, -2) @ value)
    return above / (query @ key.sum(-2).unsqueeze(-1) + 1e-6)


@contextmanager
def plain() -> Iterator[None]:
    """Pretrain with the textbook's dropout, rotary positions and linear attention."""
    place = "graftwork.models._molformer."
    with (
        patch.object(ByteDropout, "forward", _dropout),
        patch(place + "rotary", _rotary),
        patch(place + "linear_attention", _attention),
    ):
        yield


def recipes(base: bases.Base) -> dict[str, Callable[[], Running]]:
    delta = RandomMask(share=0.005)
    return {
        "orca align": lambda: orca(base, delta, 0),
        "orca align, entropic": lambda: orca(base, delta, 0, entropic=True),
        "orca refine, full": lambda: orca(base, Full(), 1),
        "orca refine, delta": lambda: orca(base, delta, 1),
        "molformer pretraining": pretraining,
        "molformer pretraining, plain": lambda: pretraining(plain),
        "molformer pretraining, bf16": lambda: pretraining(precision="bf16"),
        "molformer delta": molecules_by_delta,
    }


@contextmanager
def watched(spent: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Add up the seconds of the parts, each without those inside it."""
    stack: list[list[Any]] = []

    def watch(part: str, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if stack and stack[-1][0] == "looks":
                return original(*arguments, **named)
            stack.append([part, 0.0])
            began = clock()
            try:
                return original(*arguments, **named)
            finally:
                taken = clock() - began
                _, inside = stack.pop()
                spent[part] = spent.get(part, 0.0) + taken - inside
                if stack:
                    stack[-1][1] += taken

        return call

    originals = {
        (owner, name): getattr(owner, name) for places in PARTS.values() for owner, name in places
    }
    for part, places in PARTS.items():
        for owner, name in places:
            setattr(owner, name, watch(part, originals[owner, name]))
    try:
        yield
    finally:
        for (owner, name), original in originals.items():
            setattr(owner, name, original)


def rate(width: int, clock: Callable[[], float]) -> float:
    """Return the operations a second of one large product of this width."""
    x, w = torch.randn(2048, width), torch.randn(width, width)
    times = []
    for _ in range(20):
        began = clock()
        for _ in range(5):
            x @ w
        times.append((clock() - began) / 5)
    return 2 * x.numel() * width / statistics.median(times)


def measured(steps: Mapping[str, Running], words: argparse.Namespace) -> dict[str, Any]:
    """Return of each recipe the milliseconds of a step, of its parts and of its floor."""
    clock = time.process_time if words.cpu else time.perf_counter
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    operations = {}
    for name, recipe in steps.items():
        recipe.update()
        recipe.rewind()
        with FlopCounterMode(display=False) as counter:
            for _ in range(words.steps):
                recipe.update()
        operations[name] = counter.get_total_flops() / words.steps
    for _ in range(words.rounds):
        for name, recipe in steps.items():
            spent: dict[str, float] = {}
            recipe.rewind()
            with watched(spent, clock):
                began = clock()
                for _ in range(words.steps):
                    recipe.update()
                spent["step"] = clock() - began
            rounds[name].append(spent)
    out = {}
    for name, found in rounds.items():
        parts = {
            part: 1e3 * statistics.median(r.get(part, 0.0) for r in found) / words.steps
            for part in ("step", *PARTS)
        }
        rest = parts["step"] - sum(parts[part] for part in PARTS)
        width = 128 if name.startswith("molformer") else 384
        floor = 1e3 * operations[name] / rate(width, clock)
        out[name] = {**parts, "rest": rest, "gigaops": operations[name] / 1e9, "floor": floor}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--only", default="")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--json", action="store_true")
    words = parser.parse_args()
    builders = recipes(bases.load("minilm"))
    names = words.only.split(";") if words.only else list(builders)
    found = {
        "ms": measured({name: builders[name]() for name in names}, words),
        "clock": "processor" if words.cpu else "wall",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    if words.json:
        print(json.dumps(found, indent=1))
        return
    columns = list(next(iter(found["ms"].values())))
    print(f"{'ms a step':<30}", *(f"{column:>9}" for column in columns))
    for name, row in found["ms"].items():
        print(f"{name:<30}", *(f"{row[column]:9.2f}" for column in columns))


if __name__ == "__main__":
    main()
