"""Whole runs in processes that may be killed: reads scenarios as JSON lines, forks one for each.

Forking after the imports makes a killed run cost milliseconds. This process itself never uses
autograd, which would not survive a fork.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import sklearn.metrics  # noqa: F401
import torch
import torch._dynamo  # optimisers import it, which takes a second

import graftwork.training._checkpoint as checkpoint_module
from graftwork.steps import PlainSum
from graftwork.training import RunConfig, RunInterrupted, adapt, from_tree
from tests.training.toys import make_base, make_toy_task


def config_of(scenario: dict[str, Any]) -> RunConfig:
    tree = {
        "base": "toy",
        "out": scenario["out"],
        "stored": scenario.get("stored", "float16"),
        "tuner": scenario.get("tuner", {"name": "random_mask", "share": 0.2}),
        "train": {"steps": 20, "save_every": 4, "log_every": 1, **scenario.get("train", {})},
        "log": {"progress": "silent"},
    }
    return from_tree(tree)


def perform(scenario: dict[str, Any]) -> None:
    if scenario.get("recipe") == "orca":
        from tests.training.orca_toys import orca_run

        prepare(scenario)
        orca_run(config_of(scenario), resume=scenario.get("resume", False))
        return
    base = make_base(getattr(torch, scenario.get("dtype", "float32")))
    prepare(scenario)
    adapt(
        config_of(scenario),
        base=base,
        task=make_toy_task(base),
        resume=scenario.get("resume", False),
    )


def prepare(scenario: dict[str, Any]) -> None:
    """Arrange that this process gets a signal after some updates, or inside a checkpoint."""
    number = getattr(signal, scenario.get("signal", "SIGKILL"))
    if "after_updates" in scenario:
        update, done = PlainSum.update, [0]

        def counted(self, context):
            scalars = update(self, context)
            done[0] += 1
            if done[0] == scenario["after_updates"]:
                os.kill(os.getpid(), number)
            return scalars

        PlainSum.update = counted  # type: ignore[method-assign]
    if "inside_save" in scenario:
        owned, saves = checkpoint_module._owned, [0]

        def fatal(tensors):
            saves[0] += 1
            if saves[0] == scenario["inside_save"]:
                part = next(Path(scenario["out"], "checkpoints").glob(".part-*"))
                (part / "state.safetensors").write_bytes(b"half")
                os.kill(os.getpid(), number)
            return owned(tensors)

        checkpoint_module._owned = fatal
    if "limit_bytes" in scenario:
        import resource

        limit = scenario["limit_bytes"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def child(scenario: dict[str, Any]) -> None:
    code = 0
    try:
        perform(scenario)
    except RunInterrupted as stop:
        Path(scenario["out"], "message.txt").write_text(str(stop), encoding="utf-8")
        code = 130
    except BaseException:  # noqa: BLE001
        Path(scenario["out"] + ".error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        code = 1
    os._exit(code)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def forked(scenario: dict[str, Any]) -> list[int]:
    """Fork the processes of a scenario, as torchrun would start them; return their exit codes."""
    world, port = scenario.get("processes", 1), free_port()
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({k: str(v) for k, v in {**place, "MASTER_PORT": port}.items()})
            child(scenario)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def main() -> None:
    for line in sys.stdin:
        scenario = json.loads(line)
        if scenario.get("recipe") == "orca":
            import tests.training.orca_toys  # noqa: F401  before forking, as it takes seconds
        codes = forked(scenario)
        sys.stdout.write(f"{codes[0] if len(set(codes)) == 1 else codes}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
