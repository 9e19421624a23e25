"""`graftwork policy` from a file of transitions to a base, a delta and a film."""

import json

import numpy as np
import pytest

from graftwork.cli import main

SMALL = ["--width", "8", "--hidden", "8", "8", "--copies", "3", "--candidates", "2"]
SMALL += ["--behaviour-hidden", "8", "--batch-size", "8", "--steps", "6", "--progress", "silent"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    generator = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("logs") / "log.npz"
    np.savez(
        path,
        observations=generator.normal(size=(40, 3)),
        actions=generator.uniform(-1, 1, size=(40, 2)),
        rewards=generator.normal(size=40),
        timeouts=np.arange(40) % 10 == 9,
    )
    return str(path)


def policy(data, out, *words) -> int:
    return main(["policy", "--data", data, "--out", str(out), *SMALL, *words])


def test_a_base_then_a_delta_of_it(data, tmp_path, capsys):
    assert policy(data, tmp_path / "base", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert made["steps"] == 6
    assert set(made["metrics"]) == {"target_q", "weight", "mmd"}
    words = ["--base", made["policy"], "--tuner", "random_mask", "--share", "0.1"]
    assert policy(data, tmp_path / "delta", *words, "--json") == 0
    delta = json.loads(capsys.readouterr().out)
    assert delta["policy"].endswith("delta.safetensors")
    assert delta["bytes"] < made["bytes"]


def test_a_finished_run_is_shown_again(data, tmp_path, capsys):
    assert policy(data, tmp_path / "run", "--method", "bc") == 0
    first = capsys.readouterr().out
    assert "nll" in first
    assert f"graftwork policy --data {data} --base" in first
    assert policy(data, tmp_path / "run", "--method", "bc", "--resume") == 0
    assert "nll" in capsys.readouterr().out


def test_what_is_wrong_is_named(data, tmp_path, capsys):
    assert policy(data, tmp_path / "a", "--video", "film.gif") == 2
    assert "--video needs --environment" in capsys.readouterr().err
    assert policy(data, tmp_path / "b", "--stepz", "3") == 2
    assert "did you mean '--steps'" in capsys.readouterr().err
    assert policy(data, tmp_path / "c", "--tuner", "randm_mask") == 2
    assert "did you mean 'random_mask'" in capsys.readouterr().err
    assert policy(data, tmp_path / "d", "--step.seed", "3") == 2
    assert "step.seed from the run's seed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_film_of_the_door(tmp_path, capsys):
    imageio = pytest.importorskip("imageio.v3")
    pytest.importorskip("gymnasium_robotics")
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "door.npz",
        observations=generator.normal(size=(40, 39)),
        actions=generator.uniform(-1, 1, size=(40, 28)),
        rewards=np.zeros(40),
        timeouts=np.zeros(40),
    )
    words = ["--method", "bc", "--environment", "AdroitHandDoor-v1", "--episodes", "1", "--json"]
    film = tmp_path / "door.gif"
    code = policy(str(tmp_path / "door.npz"), tmp_path / "run", *words, "--video", str(film))
    said = capsys.readouterr()
    if code == 2 and "cannot draw itself" in said.err:
        pytest.skip(f"no off-screen rendering here: {said.err}")
    assert code == 0, said.err
    made = json.loads(said.out)
    assert -200 < made["metrics"]["return"] < 0
    assert len(imageio.imread(film, index=None)) == 50
