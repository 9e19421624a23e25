"""`graftwork policy`: learn a control policy from logged transitions, as a base or a delta."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from graftwork._errors import ConfigError, UnknownNameError
from graftwork.cli._config import flag_class, full_flags, named_choices, value_of
from graftwork.cli._shared import emit, out, parse, size

if TYPE_CHECKING:
    from graftwork.domains.control import PolicyOutcome, PolicyRun
    from graftwork.training import RunResult

EVERY = 4
"""Steps between two pictures of a film: the door's 100 steps a second then play as they were."""
PROG = "graftwork policy"
HELP = """Learn a policy from a log of transitions, without the environment.
  - The log is .npz, HDF5 in the layout of D4RL, or minari:NAME.
  - --method uwac weighs by the critics' uncertainty, bear does not, bc clones.
  - With --base FOLDER the run yields a delta of that policy, learnt by --tuner.

example: graftwork policy --data door_human_demos.npz --steps 3000 --out runs/door \\
             --environment AdroitHandDoor-v1 --video door.mp4
         graftwork policy --data mine.hdf5 --base runs/door/base --out runs/mine"""


@dataclass(frozen=True, kw_only=True)
class Flags:
    """Flags of `graftwork policy` beside the fields of `PolicyRun`."""

    resume: bool = False
    """Go on with the run in the folder --out, where there is one; a finished one is shown."""
    video: Path | None = None
    """Film of one episode in --environment: .mp4 or .gif."""
    tuner_name: Annotated[str, tyro.conf.arg(name="tuner")] = "random_mask"
    """Name of the tuner that learns a delta of --base."""
    json: bool = False
    """Print one JSON document: {folder, policy, critics, bytes, metrics, steps, seconds, video}."""


def main(words: list[str]) -> None:
    """Run `graftwork policy`."""
    config, flags = read(words)
    from graftwork.domains.control import train_policy

    result = train_policy(config, resume=flags.resume)
    document = summary(result)
    if flags.video is not None:
        document["video"] = str(film(config, result.outcome, flags.video))
    if flags.json:
        emit(document)
    else:
        show(document, config)


def read(words: list[str]) -> tuple[PolicyRun, Flags]:
    """Return the configuration that flags give, and the other flags.

    Raises:
        UnknownNameError: an unknown tuner.
        ConfigError: an unknown flag or impossible value, or a film without an environment.
    """
    from graftwork.domains.control import PolicyRun
    from graftwork.tuning import TUNERS

    name = (value_of(words, "--tuner") or "random_mask").replace("-", "_")
    if name not in TUNERS:
        raise UnknownNameError("tuner", name, TUNERS)
    kind = flag_class((PolicyRun,), {"tuner": TUNERS[name]}, Flags)
    flags: Any = parse(
        kind,
        full_flags(words, kind, PROG, {}),
        prog=PROG,
        description=HELP,
        registry=named_choices(),
    )
    config = PolicyRun(**{f.name: getattr(flags, f.name) for f in fields(PolicyRun)})
    other = Flags(**{f.name: getattr(flags, f.name) for f in fields(Flags)})
    if other.video is not None and config.environment is None:
        raise ConfigError("--video needs --environment: which one shall be filmed?")
    return config, other


def summary(result: RunResult[PolicyOutcome]) -> dict[str, Any]:
    """Return what is printed of a run, as JSON."""
    folder = result.folder
    assert folder is not None
    made = result.summary["outcome"]
    critics = made.get("critics")
    return {
        "folder": str(folder),
        "policy": str(folder / made["file"]),
        "critics": None if critics is None else str(folder / critics),
        "report": str(folder / "report.html"),
        "bytes": made["bytes"],
        "metrics": dict(result.metrics),
        "steps": result.summary["steps"],
        "seconds": result.summary["seconds"],
    }


def film(config: PolicyRun, outcome: PolicyOutcome, path: Path) -> Path:
    """Write one episode of the policy, the one that seed 0 begins, and return the path."""
    from graftwork.bases import load
    from graftwork.domains.control import actor, make_environment, rollout, write_video

    base = None if config.base is None else load(config.base)
    act = actor(outcome.module(base), outcome.critics, seed=config.seed)
    assert config.environment is not None
    environment = make_environment(config.environment, pictures=True)
    try:
        return write_video(rollout(environment, act, pictures=EVERY).frames, path)
    finally:
        environment.close()


def show(document: Mapping[str, Any], config: PolicyRun) -> None:
    """Print what a run yielded, and the command to try next."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in document["metrics"].items():
        table.add_row(escape(name), f"{value:.4g}")
    table.add_row("policy on disk", size(document["bytes"]))
    table.add_row("time", f"{document['seconds']:.1f} s, {document['steps']:,} steps")
    console = out()
    console.print(table)
    for name in ("policy", "critics", "report", "video"):
        if document.get(name):
            console.print(f"{name:<8}{document[name]}", markup=False, soft_wrap=True)
    if config.base is None:
        words = ["--data", config.data, "--base", document["policy"], "--out"]
        following = f"graftwork policy {shlex.join(words)} FOLDER"
        console.print(f"next    {following}", markup=False, soft_wrap=True)
