"""Policy runs in processes that may be killed; scenarios are JSON lines, see `toy_run.forked`."""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from tests.domains.control.toys import config, log
from tests.training.toy_run import free_port

from graftwork.bases import load, save
from graftwork.domains.control import ActorCritic, CriticConfig, PolicyRun, train_policy
from graftwork.models import PolicyConfig
from graftwork.training import LogConfig, TrainConfig
from graftwork.tuning import RandomMask


def perform(scenario: dict[str, Any]) -> None:
    if "after_updates" in scenario:
        update, done = ActorCritic.update, [0]

        def counted(self, context):
            scalars = update(self, context)
            done[0] += 1
            if done[0] == scenario["after_updates"]:
                os.kill(os.getpid(), signal.SIGKILL)
            return scalars

        ActorCritic.update = counted  # type: ignore[method-assign]
    settings = PolicyRun(
        data="a toy",
        step=config(CriticConfig(hidden=(8, 8), spectral=True), warmup=3),
        width=8,
        batch_size=8,
        policy_lr=1e-3,
        train=TrainConfig(steps=12, save_every=4, log_every=1, accumulate=2),
        base=scenario.get("base"),
        tuner=RandomMask(share=0.2),
        out=scenario["out"],
        log=LogConfig(progress="silent"),
    )
    train_policy(settings, resume=scenario.get("resume", False), data=log())


def child(scenario: dict[str, Any]) -> None:
    code = 0
    try:
        perform(scenario)
    except BaseException:  # noqa: BLE001
        Path(scenario["out"] + ".error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        code = 1
    os._exit(code)


def forked(scenario: dict[str, Any]) -> list[int]:
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


def warm() -> None:
    """Import what loading a base imports, once for all children; no autograd before a fork."""
    with tempfile.TemporaryDirectory() as folder:
        shape = PolicyConfig(observations=1, actions=1, width=1)
        save(shape.build(), f"{folder}/base", config=shape)
        load(f"{folder}/base")


if __name__ == "__main__":
    warm()
    sys.stdout.write(json.dumps([forked(json.loads(line)) for line in sys.stdin]))
