"""graftwork adapts one frozen pretrained base to many tasks by deltas of kilobytes.

The names below are the everyday ones; each room (`graftwork.deltas`, `graftwork.tuning`, ...) has
the rest. They are imported at first use, so that `import graftwork` and the command line start
quickly.

    >>> import torch, graftwork
    >>> base = graftwork.load_base(torch.nn.Linear(3, 2))
    >>> base.names.match(["*"])
    ['weight', 'bias']
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graftwork._errors import GraftworkError as GraftworkError

if TYPE_CHECKING:
    from graftwork.bases import Base as Base
    from graftwork.bases import load as load_base
    from graftwork.deltas import Delta as Delta
    from graftwork.deltas import apply as apply
    from graftwork.deltas import inspect as inspect
    from graftwork.deltas import load as load_delta
    from graftwork.deltas import run_rows as run_rows
    from graftwork.deltas import save as save_delta
    from graftwork.deltas import view as view
    from graftwork.tasks import TaskConfig as TaskConfig
    from graftwork.tasks import evaluate_delta as evaluate_delta
    from graftwork.tasks import make_task as make_task
    from graftwork.tasks import predict as predict
    from graftwork.training import RunConfig as RunConfig
    from graftwork.training import TrainConfig as TrainConfig
    from graftwork.training import adapt as adapt
    from graftwork.tuning import TUNERS as TUNERS

_HOME = {
    "Base": ("bases", "Base"),
    "load_base": ("bases", "load"),
    "Delta": ("deltas", "Delta"),
    "apply": ("deltas", "apply"),
    "inspect": ("deltas", "inspect"),
    "load_delta": ("deltas", "load"),
    "run_rows": ("deltas", "run_rows"),
    "save_delta": ("deltas", "save"),
    "view": ("deltas", "view"),
    "TaskConfig": ("tasks", "TaskConfig"),
    "evaluate_delta": ("tasks", "evaluate_delta"),
    "make_task": ("tasks", "make_task"),
    "predict": ("tasks", "predict"),
    "RunConfig": ("training", "RunConfig"),
    "TrainConfig": ("training", "TrainConfig"),
    "adapt": ("training", "adapt"),
    "TUNERS": ("tuning", "TUNERS"),
}

__all__ = [
    "TUNERS",
    "Base",
    "Delta",
    "GraftworkError",
    "RunConfig",
    "TaskConfig",
    "TrainConfig",
    "adapt",
    "apply",
    "evaluate_delta",
    "inspect",
    "load_base",
    "load_delta",
    "make_task",
    "predict",
    "run_rows",
    "save_delta",
    "view",
]


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        value = import_module("importlib.metadata").version("graftwork")
    elif name in _HOME:
        room, attribute = _HOME[name]
        value = getattr(import_module(f"graftwork.{room}"), attribute)
    else:
        raise AttributeError(f"module 'graftwork' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
