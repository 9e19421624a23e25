"""The recipe: learns, resumes to the same bytes, two processes as one, and its base is adapted."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tests.domains.molecules.pretrain_run import SMILES, config_of

from graftwork import bases
from graftwork.domains.molecules import PretrainConfig, molecule_data, pretrain
from graftwork.errors import ConfigError, InputError
from graftwork.tasks import TaskConfig, predict, task_from_tables
from graftwork.training import BaseOutcome, RunResult, TrainConfig, finish, fit, start
from graftwork.tuning import DiffPruning, Full, RandomMask, Tuner


def in_processes(*scenarios: dict[str, Any]) -> list[list[int]]:
    root = Path(__file__).parents[3]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.domains.molecules.pretrain_run"],
        input="\n".join(map(json.dumps, scenarios)),
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=environment,
    )
    codes: list[list[int]] = json.loads(done.stdout)
    return codes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> RunResult[BaseOutcome]:
    config = config_of({"out": str(tmp_path_factory.mktemp("runs") / "base")})
    return pretrain(config, smiles=SMILES)


def test_the_loss_falls_and_the_base_is_what_was_measured(tmp_path: Path) -> None:
    config = config_of({"out": str(tmp_path / "run")})
    train = dataclasses.replace(config.train, steps=150, save_every=0)
    result = pretrain(dataclasses.replace(config, train=train, learning_rate=5e-3), smiles=SMILES)
    losses = [row["loss"] for row in result.history if "loss" in row]
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:3])
    measured = [row["eval/loss"] for row in result.history if "eval/loss" in row]
    assert measured[-1] < measured[0]
    assert result.metrics["loss"] == pytest.approx(measured[-1])
    base = result.outcome.base
    assert base is not None
    assert base.pooling == "mean"
    assert base.max_length == 202
    module, _, _ = bases.load_module(tmp_path / "run" / "base")
    again = {n: p for n, p in module.named_parameters() if not n.startswith("lm_head.")}
    assert all(torch.equal(p, again[n]) for n, p in base.model.named_parameters())
    assert (tmp_path / "run" / "report.html").is_file()


def test_killed_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    points = (1, 4, 11, 19)
    whole = {"out": str(tmp_path / "whole")}
    killed = [{"out": str(tmp_path / f"killed-{k}"), "kill_after": k} for k in points]
    resumed = [{"out": str(tmp_path / f"killed-{k}"), "resume": True} for k in points]
    codes = in_processes(whole, *killed, *resumed)
    assert codes == [[0]] + [[-9]] * 4 + [[0]] * 4
    for k in points:
        for file in (tmp_path / "whole" / "base").iterdir():
            other = tmp_path / f"killed-{k}" / "base" / file.name
            assert other.read_bytes() == file.read_bytes(), (k, file.name)
        lines = (tmp_path / f"killed-{k}" / "metrics.jsonl").read_text().splitlines()
        steps = [row["step"] for row in map(json.loads, lines) if "loss" in row]
        assert steps == list(range(1, 21))


@pytest.mark.slow
def test_two_processes_learn_the_base_of_one(tmp_path: Path) -> None:
    one, two = (
        {"out": str(tmp_path / str(n)), "dropout": 0.0, "accumulate": 2, "processes": n}
        for n in (1, 2)
    )
    assert in_processes(one, two) == [[0], [0, 0]]
    a, b = (load_file(tmp_path / n / "base" / "model.safetensors") for n in "12")
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, rtol=0, atol=2e-4)


def test_goes_on_from_a_base_on_other_molecules(
    made: RunResult[BaseOutcome], tmp_path: Path
) -> None:
    first = made.folder / "base"
    config = dataclasses.replace(
        config_of({"out": str(tmp_path / "more")}), start_from=str(first), seed=1
    )
    result = pretrain(config, smiles=[*SMILES[:30], "CCBr"])
    assert result.outcome.base.processing == made.outcome.base.processing
    old, new = (load_file(f / "base" / "model.safetensors") for f in (made.folder, result.folder))
    assert old.keys() == new.keys()
    assert not torch.equal(old["embedding.weight"], new["embedding.weight"])
    other = dataclasses.replace(config, out=str(tmp_path / "x"), start_from=str(_policy(tmp_path)))
    with pytest.raises(InputError, match="holds a Policy, no Molformer"):
        pretrain(other, smiles=SMILES)


def _policy(folder: Path) -> Path:
    from graftwork.models import PolicyConfig

    shape = PolicyConfig(observations=2, actions=1, width=4, layers=1)
    bases.save(shape.build(), folder / "policy", config=shape)
    return folder / "policy"


def test_reads_a_file_and_counts_what_was_left_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    rows = [*SMILES, "c1cccc1", "[H]C([H])([H])[H]", SMILES[0]]
    file.write_text("name,smiles\n" + "".join(f"m{i},{s}\n" for i, s in enumerate(rows)))
    config = dataclasses.replace(config_of({"out": str(tmp_path / "run")}), data=str(file))
    result = pretrain(config)
    counted = result.summary["molecules"]
    assert counted["rows"] == len(rows)
    assert counted["left_out"] == {"aromaticity": 1}
    assert counted["notes"]["explicit hydrogens"] == 1
    assert counted["first_left_out"][0].startswith(f"mine.csv, row {len(SMILES) + 1}: aromaticity")
    with pytest.raises(InputError, match="fewer than two different molecules"):
        pretrain(dataclasses.replace(config, out=str(tmp_path / "none")), smiles=["C", "C"])


@pytest.mark.parametrize(
    "tuner", [Full(values_lr=3e-3), RandomMask(share=0.2), DiffPruning(share=0.2)]
)
def test_its_base_is_adapted_like_any_other(made: RunResult[BaseOutcome], tuner: Tuner) -> None:
    base = made.outcome.base
    generator = np.random.default_rng(0)
    data = molecule_data(
        SMILES,
        {
            "length": [len(s) for s in SMILES],
            "noise": [
                None if i % 3 else x for i, x in enumerate(generator.normal(size=len(SMILES)))
            ],
        },
        "regression",
    )
    config = TaskConfig(
        inputs=("smiles",), label_columns=data.targets, kind="regression", metrics=("rmse",)
    )
    task = task_from_tables(base, {"train": data.table, "eval": data.table}, config, batch_size=16)
    before = task.evaluate(start(base, task, tuner))["rmse/length"]
    adaptation = start(base, task, tuner)
    fit(adaptation, task, TrainConfig(steps=60))
    delta, metrics = finish(adaptation, task)
    assert metrics["rmse/length"] < 0.7 * before
    assert base.model.state_dict().keys().isdisjoint({"lm_head.decoder.weight"})
    base.verify()
    (found,) = predict(base, delta, [{"smiles": "CCCCCCCO"}])
    assert 2 < found.values["length"] < 14


def test_configuration_is_checked() -> None:
    with pytest.raises(ConfigError, match="valid_share: between 0 and 1, not 0"):
        PretrainConfig(data="x.csv", valid_share=0.0)
    with pytest.raises(ConfigError, match="set batch_size beside it"):
        PretrainConfig(data="x.csv", train=TrainConfig(batch_size=3))
