"""A tiny base and task: two classes of points that a frozen random network does not part."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from graftwork.bases import Base, load
from graftwork.tasks import Table, Task, TaskConfig, task_from_tables
from graftwork.training import Adaptation, start
from graftwork.tuning import Tuner


class Net(nn.Module):
    """A network with dropout and a pooler that nothing calls."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 16), nn.Tanh()
        )
        self.pooler = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x)


def make_base(dtype: torch.dtype | None = None, dropout: float = 0.1) -> Base:
    torch.manual_seed(11)
    return load(Net(dropout), dtype=dtype)


def make_table(rows: int = 96, seed: int = 0) -> Table:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 6, generator=generator)
    label = (x[:, 0] * x[:, 1] + x[:, 2] > 0).long()
    group = (x[:, 3] > 0).long()
    names = [("no", "yes")[i] for i in label.tolist()]
    return Table(
        {"x": x.numpy(), "label": names, "side": [("left", "right")[i] for i in group.tolist()]}
    )


def make_toy_task(base: Base, batch_size: int = 8, rows: int = 96, **config) -> Task:
    tables = {"train": make_table(rows), "eval": make_table(40, seed=1)}
    given = {"inputs": ("x",), "head_hidden": 4, **config}
    return task_from_tables(base, tables, TaskConfig(**given), batch_size=batch_size)


def make_adaptation(
    tuner: Tuner, *, dtype: torch.dtype | None = None, dropout: float = 0.1, seed: int = 0
) -> tuple[Adaptation, Task]:
    base = make_base(dtype, dropout)
    task = make_toy_task(base)
    return start(base, task, tuner, seed=seed), task


def save_arrays(path: Path, rows: int = 96) -> Path:
    """Write the toy data as a file for whole runs."""
    import numpy as np

    table = make_table(rows)
    labels = np.array([int(v == "yes") for v in table["label"]])
    np.savez(path, x=table["x"], label=labels)
    return path
