"""A data set that Minari itself wrote."""

import warnings

import numpy as np
import pytest

from graftwork.domains.control import read_minari
from graftwork.errors import InputError

minari = pytest.importorskip("minari")
gymnasium = pytest.importorskip("gymnasium")


def test_a_local_data_set_is_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    from minari.data_collector import EpisodeBuffer

    space = gymnasium.spaces.Box(-9.0, 9.0, (2,), np.float64)
    buffers = [
        EpisodeBuffer(
            id=i,
            observations=[np.full(2, 10.0 * i + t) for t in range(steps + 1)],
            actions=[np.full(2, 0.5)] * steps,
            rewards=[1.0] * steps,
            terminations=[False] * (steps - 1) + [i == 1],
            truncations=[False] * (steps - 1) + [i == 0],
        )
        for i, steps in enumerate((3, 2))
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that is not given
        minari.create_dataset_from_buffers(
            "toy/steps-v0", buffers, observation_space=space, action_space=space
        )
    data = read_minari("toy/steps-v0")
    assert data.observations[:, 0].tolist() == [0.0, 1.0, 2.0, 10.0, 11.0]
    # the last row is terminal: its successor is its own observation
    assert data.next_observations[:, 0].tolist() == [1.0, 2.0, 3.0, 11.0, 11.0]
    assert data.terminals.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
    with pytest.raises(InputError, match="no Minari data set 'toy/none-v0'"):
        read_minari("toy/none-v0")
