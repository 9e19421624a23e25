"""Whole pretrainings in processes that may be killed: scenarios as JSON lines, a fork for each.

This process itself never uses autograd, which would not survive a fork.
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

import torch
import torch._dynamo  # optimisers import it, which takes a second

from graftwork.domains.molecules import PretrainConfig, pretrain
from graftwork.models import MolformerConfig
from graftwork.steps import PlainSum
from graftwork.training import LogConfig, TrainConfig

SMILES = [f"{'C' * n}{end}" for n in range(1, 15) for end in ("O", "N", "c1ccccc1", "Cl", "C(=O)O")]


def config_of(scenario: dict[str, Any]) -> PretrainConfig:
    dropout = scenario.get("dropout", 0.1)
    return PretrainConfig(
        data="none",
        model=MolformerConfig(
            width=16,
            layers=2,
            heads=2,
            features=8,
            dropout=dropout,
            embedding_dropout=dropout,
            redraw="training" if dropout else "never",
        ),
        batch_size=8,
        buckets=(10,),
        valid_share=0.1,
        train=TrainConfig(
            steps=20,
            save_every=4,
            log_every=1,
            eval_every=6,
            accumulate=scenario.get("accumulate", 1),
        ),
        device="cpu",
        out=scenario["out"],
        log=LogConfig(progress="silent"),
    )


def kill_after(updates: int) -> None:
    update, done = PlainSum.update, [0]

    def counted(self: PlainSum, context: Any) -> dict[str, float]:
        scalars = update(self, context)
        done[0] += 1
        if done[0] == updates:
            os.kill(os.getpid(), signal.SIGKILL)
        return scalars

    PlainSum.update = counted  # type: ignore[method-assign]


def child(scenario: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    code = 0
    try:
        if "kill_after" in scenario:
            kill_after(scenario["kill_after"])
        pretrain(config_of(scenario), resume=scenario.get("resume", False), smiles=SMILES)
    except BaseException:  # noqa: BLE001
        Path(scenario["out"] + ".error.txt").write_text(traceback.format_exc(), encoding="utf-8")
        code = 1
    os._exit(code)


def forked(scenario: dict[str, Any]) -> list[int]:
    """Fork the processes of a scenario, as torchrun would start them; return their exit codes."""
    world = scenario.get("processes", 1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            place = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({k: str(v) for k, v in {**place, "MASTER_PORT": port}.items()})
            child(scenario)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


if __name__ == "__main__":
    sys.stdout.write(json.dumps([forked(json.loads(line)) for line in sys.stdin]))
