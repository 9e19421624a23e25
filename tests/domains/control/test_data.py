"""Logs become transitions: cuts are dropped, terminals kept, faults named."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graftwork.domains.control import OfflineDataset, from_episodes, from_log, read_log, read_minari
from graftwork.errors import InputError, MissingDependencyError, UnknownNameError

DOOR = Path("../shared/data/uwac/door_human_demos.npz")


def made(rows=6, **more):
    log = {
        "observations": np.arange(rows * 2.0).reshape(rows, 2),
        "actions": np.linspace(-1.5, 1.5, rows)[:, None],
        "rewards": np.arange(rows),
    }
    return log | more


def naive(log, ends, terminals):
    """Return (observation, next observation, terminal) of every row that has a successor."""
    out = []
    for i, o in enumerate(log["observations"]):
        if terminals[i]:
            out.append((o, o, 1.0))
        elif not ends[i] and i + 1 < len(ends):
            out.append((o, log["observations"][i + 1], 0.0))
    return out


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=20))
def test_transitions_are_those_of_a_walk_over_rows(flags):
    terminals, timeouts = (np.asarray(column) for column in zip(*flags, strict=True))
    log = made(len(flags), terminals=terminals, timeouts=timeouts)
    expected = naive(log, terminals | timeouts, terminals)
    if not expected:
        with pytest.raises(InputError, match="no transition is left"):
            from_log(log)
        return
    data = from_log(log)
    found = zip(data.observations, data.next_observations, data.terminals, strict=True)
    for (a, b, c), (x, y, z) in zip(found, expected, strict=True):
        assert (a.tolist(), b.tolist(), c) == (x.tolist(), y.tolist(), z)
    assert data.dropped == len(flags) - len(expected)


def test_episode_numbers_and_horizon_cut_alike():
    by_number = from_log(made(), episode=[0, 0, 0, 1, 1, 1])
    by_horizon = from_log(made(), horizon=3)
    by_flag = from_log(made(timeouts=[0, 0, 1, 0, 0, 1]))
    assert by_number.digest == by_horizon.digest == by_flag.digest
    assert by_number.next_observations[:, 0].tolist() == [2.0, 4.0, 8.0, 10.0]
    assert by_number.episodes.tolist() == [0, 0, 1, 1]
    assert by_number.returns().tolist() == [1.0, 7.0]
    # a horizon counts from the last end
    cut = from_log(made(terminals=[0, 1, 0, 0, 0, 0]), horizon=3)
    assert cut.next_observations[:, 0].tolist() == [2.0, 2.0, 6.0, 8.0]


def test_given_successors_leave_nothing_out():
    log = made(next_observations=np.ones((6, 2)), timeouts=[0, 0, 1, 0, 0, 1])
    data = from_log(log)
    assert (len(data), data.dropped) == (6, 0)
    assert bool((data.next_observations == 1).all())


def test_actions_are_clipped_and_counted():
    data = from_log(made(timeouts=np.zeros(6)))
    assert (data.actions.min(), data.actions.max(), data.clipped) == (-1.0, pytest.approx(0.9), 1)


def test_a_log_that_does_not_say_where_episodes_end_is_refused():
    with pytest.raises(InputError, match="does not say where episodes were cut: give 'timeouts'"):
        from_log(made(terminals=np.zeros(6)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": np.zeros(5)}, r"'rewards' has the shape \(5,\), not \(6,\)"),
        ({"actions": np.zeros(6)}, r"'actions' has the shape \(6,\)"),
        ({"rewards": [0, 0, np.nan, 0, 0, 0]}, "row 2 of 'rewards' holds NaN"),
        ({"actions": [["a"]] * 6}, "'actions' is not an array of numbers"),
        ({"next_observations": np.zeros((6, 3))}, r"'next_observations' has the shape \(6, 3\)"),
    ],
)
def test_faults_are_named(change, message):
    with pytest.raises(InputError, match=message):
        from_log(made(timeouts=np.zeros(6), **change))


def test_missing_key_and_bad_horizon():
    log = made(timeouts=np.zeros(6))
    del log["rewards"]
    with pytest.raises(UnknownNameError, match=r"'rewards'.*known: 'actions'"):
        from_log(log)
    with pytest.raises(InputError, match="horizon: 1 or more"):
        from_log(made(), horizon=0)
    with pytest.raises(InputError, match=r"episode has the shape \(2,\)"):
        from_log(made(), episode=[0, 1])


def test_files_give_the_same_transitions(tmp_path):
    h5py = pytest.importorskip("h5py")
    log = made(timeouts=np.asarray([0, 0, 1, 0, 0, 0]), terminals=np.zeros((6, 1)))
    np.savez(tmp_path / "log.npz", **log)
    with h5py.File(tmp_path / "log.hdf5", "w") as file:
        for key, value in log.items():
            file[key] = value
        file.create_group("infos")["qpos"] = np.zeros(6)
    digests = {read_log(tmp_path / name).digest for name in ("log.npz", "log.hdf5")}
    assert digests == {from_log(log).digest}


def test_files_that_are_no_logs(tmp_path):
    pytest.importorskip("h5py")
    with pytest.raises(InputError, match="no file"):
        read_log(tmp_path / "none.npz")
    for name in ("a.npz", "a.hdf5", "a.csv"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match=r"a\.npz is not an npz"):
        read_log(tmp_path / "a.npz")
    with pytest.raises(InputError, match=r"a\.hdf5 is not an HDF5 file"):
        read_log(tmp_path / "a.hdf5")
    with pytest.raises(InputError, match=r"one of \.npz, \.hdf5, \.h5, not '\.csv'"):
        read_log(tmp_path / "a.csv")
    np.savez(tmp_path / "objects.npz", observations=np.asarray([{}], dtype=object))
    with pytest.raises(InputError, match="plain arrays"):
        read_log(tmp_path / "objects.npz")


class Episode:
    def __init__(self, steps, start):
        self.observations = np.arange(start, start + steps + 1.0)[:, None]
        self.actions = np.zeros((steps, 1))
        self.rewards = np.ones(steps)
        self.terminations = np.zeros(steps)


def test_episodes_keep_their_last_observation():
    data = from_episodes([Episode(2, 0), Episode(3, 10)])
    assert data.next_observations[:, 0].tolist() == [1.0, 2.0, 11.0, 12.0, 13.0]
    assert data.returns().tolist() == [2.0, 3.0]
    odd = Episode(2, 0)
    odd.observations = odd.observations[:2]
    with pytest.raises(InputError, match="episode 0 has 2 observations for 2 steps"):
        from_episodes([odd])
    odd.observations = {"a": 1}
    with pytest.raises(InputError, match=r"dictionaries of \['a'\]"):
        from_episodes([odd])
    with pytest.raises(InputError, match="no episodes"):
        from_episodes([])


def test_minari_that_is_absent_or_knows_no_such_data(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(MissingDependencyError, match=r"graftwork\[control\]"):
        read_minari("door/human-v0")


def test_door_demonstrations():
    if not DOOR.is_file():
        pytest.skip(f"{DOOR} is not here; graftwork.claims names its origin")
    data = read_log(DOOR)
    assert isinstance(data, OfflineDataset)
    assert (len(data), data.dropped, data.clipped) == (6704, 25, 10562)
    assert len(data.returns()) == 25
    assert np.abs(data.actions).max() == 1.0
