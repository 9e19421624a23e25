"""Acting, looking at uncertainty, rollouts and videos."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from tests.domains.control.toys import Context, Walk, config, critics

from graftwork.domains.control import (
    OffPolicy,
    Rollouts,
    actor,
    best_action,
    make_environment,
    normalised,
    rollout,
    separation,
    uncertainty,
    write_video,
)
from graftwork.errors import InputError, MissingDependencyError, UnsupportedError


def test_the_action_taken_is_the_sample_of_the_highest_mean():
    shape = critics(dropout=0.0)
    judges = shape.build(seed=0)
    with torch.no_grad():
        for weight in judges.weights:
            weight.mul_(20.0)
    outputs = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    states = torch.randn(5, 3, generator=torch.Generator().manual_seed(2))
    found = best_action(
        outputs, states, judges, torch.Generator().manual_seed(3), samples=6, copies=1
    )
    noise = torch.empty(5, 6, 2).normal_(generator=torch.Generator().manual_seed(3))
    for b in range(5):
        tried = torch.tanh(outputs[b, :2] + outputs[b, 2:].exp() * noise[b])
        scores = [judges(states[b : b + 1], a[None])[:, 0, 0].mean().item() for a in tried]
        torch.testing.assert_close(found[b], tried[int(np.argmax(scores))])


def test_actors_of_one_seed_act_the_same_and_without_critics_by_the_mean():
    policy, judges = Context().policy, critics().build(seed=0)
    state = np.ones(3)
    first, second = (actor(policy, judges, seed=4) for _ in range(2))
    assert [first(state).tolist() for _ in range(2)] == [second(state).tolist() for _ in range(2)]
    with torch.no_grad():
        mean = torch.tanh(policy(torch.ones(1, 3))[0, :2])
    assert actor(policy)(state).tolist() == pytest.approx(mean.tolist())


def test_separation_is_the_area_under_the_curve():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(0)
    low = torch.randn(50, generator=generator).round(decimals=1)
    high = torch.randn(70, generator=generator).round(decimals=1) + 0.5
    labels = np.repeat([0, 1], [50, 70])
    expected = roc_auc_score(labels, torch.cat([low, high]).numpy())
    assert separation(low, high) == pytest.approx(expected)


def test_uncertainty_repeats_for_a_seed_and_is_none_without_dropout():
    x, a = torch.randn(4, 3), torch.randn(4, 2)
    first, again = (uncertainty(critics().build(seed=0), x, a, seed=1) for _ in range(2))
    assert torch.equal(first[1], again[1])
    assert bool((first[1] > 0).all())
    assert torch.equal(uncertainty(critics(dropout=0.0).build(seed=0), x, a)[1], torch.zeros(4))


def test_scores_off_the_policy_depend_on_nothing_but_the_seed():
    context = Context()
    step = config().build()
    step.begin(context)
    scorer = OffPolicy(step, rows=20, seed=3)
    found = scorer.evaluate(context.model, context.stream, batch_size=8)
    torch.manual_seed(99)
    assert scorer.evaluate(context.model, context.stream, batch_size=8) == found
    assert set(found) == {"target_q", "weight", "mmd"}
    rewards = context.stream.data.rewards[:20].mean()
    assert found["target_q"] == pytest.approx(rewards, abs=0.05)
    assert scorer.better(found, None)
    assert scorer.better({**found, "mmd": found["mmd"] - 0.1}, found)
    assert not scorer.better(found, found)


def test_rollouts_add_up_rewards_of_clipped_actions():
    found = rollout(Walk(), lambda o: np.asarray([3.0, 0.5]), episodes=2, seed=7, pictures=1)
    assert (found.returns, found.successes) == ((4.5, 4.5), (False, True))
    assert [int(frame[0, 0, 0]) for frame in found.frames] == [0, 1, 2]
    every = rollout(Walk(), lambda o: np.zeros(2), pictures=2).frames
    assert [int(frame[0, 0, 0]) for frame in every] == [0, 2]
    with pytest.raises(InputError, match=r"actions of shape \(3,\), the environment wants \(2,\)"):
        rollout(Walk(), lambda o: o)


def test_an_environment_that_cannot_draw_says_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def render(_: Walk) -> None:
        raise RuntimeError("no such display")

    monkeypatch.setattr(Walk, "render", render)
    with pytest.raises(InputError, match=r"cannot draw itself .no such display.*MUJOCO_GL=egl"):
        rollout(Walk(), lambda o: np.zeros(2), pictures=1)


def test_a_film_can_be_read_back(tmp_path):
    imageio = pytest.importorskip("imageio.v3")
    frames = rollout(Walk(), lambda o: np.zeros(2), pictures=1).frames
    film = write_video([np.tile(f * 80, (8, 8, 1)) for f in frames], tmp_path / "film.gif")
    assert imageio.imread(film, index=None).shape == (3, 32, 48, 3)
    with pytest.raises(InputError, match="pictures=1"):
        write_video(Rollouts((), ()).frames, tmp_path / "none.gif")


def test_scores_after_d4rl():
    assert normalised("AdroitHandDoor-v1", 2880.57) == pytest.approx(100.0)
    with pytest.raises(UnsupportedError, match="no reference returns for 'CartPole-v1'"):
        normalised("CartPole-v1", 1.0)


def test_an_absent_gymnasium_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingDependencyError, match=r"graftwork\[control\]"):
        make_environment("AdroitHandDoor-v1")


def test_an_unknown_environment_is_named():
    pytest.importorskip("gymnasium")
    with pytest.raises(InputError, match="no environment 'NoSuch-v0'"):
        make_environment("NoSuch-v0")


def test_a_policy_of_the_door_runs_in_it():
    pytest.importorskip("gymnasium_robotics")
    from graftwork.models import PolicyConfig

    policy = PolicyConfig(observations=39, actions=28, width=8).build()
    environment = make_environment("AdroitHandDoor-v1", horizon=5)
    found = [rollout(environment, actor(policy), seed=3).returns for _ in range(2)]
    environment.close()
    assert found[0] == found[1]
    assert -5.0 < found[0][0] < 0.0
