"""From a log to a policy in a run folder, to a delta of it, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.domains.control.toys import Walk, log
from tests.domains.control.toys import config as step_config

from graftwork.bases import load as load_base
from graftwork.deltas import content_hash
from graftwork.domains.control import (
    CriticConfig,
    PolicyOutcome,
    PolicyRun,
    actor,
    load_critics,
    save_critics,
    train_policy,
)
from graftwork.errors import ConfigError, InputError, StorageError
from graftwork.tasks import predict
from graftwork.training import BaseOutcome, DeltaOutcome, LogConfig, TrainConfig
from graftwork.tuning import DiffPruning, RandomMask


def settings(tmp_path, **more) -> PolicyRun:
    step = step_config(CriticConfig(hidden=(8, 8)))
    options = {
        "data": "a toy",
        "step": step,
        "width": 8,
        "batch_size": 8,
        "policy_lr": 1e-2,
        "train": TrainConfig(steps=12, save_every=5, log_every=4),
        "out": str(tmp_path / "run"),
        "log": LogConfig(progress="silent"),
    }
    return PolicyRun(**{**options, **more})


def trained(tmp_path, **more):
    return train_policy(settings(tmp_path, **more), data=log())


def values(outcome: PolicyOutcome) -> list[torch.Tensor]:
    return [t.clone() for t in outcome.module().state_dict().values()]


@pytest.mark.parametrize("method", ["uwac", "bear", "bc"])
def test_a_policy_is_a_base(tmp_path, method):
    result = trained(tmp_path, method=method)
    assert isinstance(result.outcome.policy, BaseOutcome)
    assert (result.outcome.critics is None) == (method == "bc")
    wanted = {"nll"} if method == "bc" else {"target_q", "weight", "mmd"}
    assert set(result.metrics) == wanted
    base = load_base(str(tmp_path / "run" / "base"))
    module = result.outcome.module()
    x = torch.randn(4, 3)
    assert torch.equal(base.model(x), module(x))
    act = actor(module, result.outcome.critics)
    assert act(x[0].numpy()).shape == (2,)
    assert (tmp_path / "run" / "report.html").exists()
    again = train_policy(settings(tmp_path, method=method), resume=True, data=log())
    assert again.metrics == result.metrics


@pytest.mark.parametrize("tuner", [RandomMask(share=0.2), DiffPruning(share=0.2, values_lr=1e-2)])
@pytest.mark.parametrize("method", ["uwac", "bc"])
def test_a_policy_is_adapted_by_a_delta(tmp_path, method, tuner):
    trained(tmp_path, method="bc")
    folder = str(tmp_path / "run" / "base")
    before = load_base(folder)
    result = trained(
        tmp_path,
        method=method,
        base=folder,
        tuner=tuner,
        out=str(tmp_path / "delta"),
        train=TrainConfig(steps=60, log_every=10),
    )
    assert isinstance(result.outcome.policy, DeltaOutcome)
    delta = result.delta if hasattr(result.outcome, "delta") else result.outcome.policy.delta
    assert 0 < sum(u.sparse.positions.numel() for u in delta.updates.values() if u.sparse) < 60
    x = torch.randn(4, 3)
    module = result.outcome.module(before)
    assert not torch.equal(module(x), before.model(x))
    again = PolicyOutcome.read(tmp_path / "delta")
    assert content_hash(again.policy.delta) == content_hash(delta)
    assert torch.equal(again.module(before)(x), module(x))
    with pytest.raises(InputError, match="give the base"):
        again.module()
    vector = predict(before, delta, [{"observation": x[0].numpy()}])[0].vector
    assert vector == pytest.approx(module(x[:1])[0].tolist())


def test_a_delta_of_cloning_imitates_better_than_its_base(tmp_path):
    base = trained(tmp_path, method="bc", train=TrainConfig(steps=1))
    result = trained(
        tmp_path,
        method="bc",
        base=str(tmp_path / "run" / "base"),
        tuner=RandomMask(share=0.5, values_lr=3e-2),
        out=str(tmp_path / "delta"),
        train=TrainConfig(steps=200),
    )
    assert result.metrics["nll"] < base.metrics["nll"] - 0.3


@pytest.mark.parametrize("method", ["uwac", "bc"])
def test_stopped_and_resumed_gives_the_same_bits(tmp_path, method, monkeypatch):
    from graftwork.domains.control import ReplayStream

    straight = trained(tmp_path, method=method, out=str(tmp_path / "straight"))
    plain, count = ReplayStream.draw, []

    def draw(self):
        count.append(0)
        if len(count) == 8:
            raise KeyboardInterrupt
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(ReplayStream, "draw", draw)
        with pytest.raises(KeyboardInterrupt):
            trained(tmp_path, method=method)
    resumed = train_policy(settings(tmp_path, method=method), resume=True, data=log())
    pairs = zip(values(straight.outcome), values(resumed.outcome), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert straight.metrics == resumed.metrics
    with pytest.raises(ConfigError, match="policy_lr"):
        train_policy(settings(tmp_path, method=method, policy_lr=1e-3), resume=True, data=log())
    with pytest.raises(StorageError, match="finished run"):
        trained(tmp_path, method=method)


def test_critics_come_back_with_the_same_bits(tmp_path):
    critics = CriticConfig(observations=3, actions=2, hidden=(5, 4), spectral=True).build(seed=3)
    save_critics(critics, tmp_path / "critics.safetensors")
    again = load_critics(tmp_path / "critics.safetensors")
    assert again.config == critics.config
    for a, b in zip(critics.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    (tmp_path / "critics.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="holds no critics"):
        load_critics(tmp_path / "critics.safetensors")


def test_settings_are_checked(tmp_path):
    with pytest.raises(ConfigError, match="beside the last critics"):
        settings(tmp_path, train=TrainConfig(keep_best=True, eval_every=1))
    with pytest.raises(ConfigError, match="set batch_size beside it"):
        settings(tmp_path, train=TrainConfig(batch_size=3))
    with pytest.raises(InputError, match="no file 'a toy'"):
        train_policy(settings(tmp_path))
    assert replace(settings(tmp_path), seed=3).seed == 3


@pytest.mark.usefixtures("untyped")
def test_an_unknown_method_is_named(tmp_path):
    with pytest.raises(ConfigError, match="method: 'uwac', 'bear' or 'bc', not 'cql'"):
        settings(tmp_path, method="cql")


def test_the_finished_policy_is_measured_in_its_environment(tmp_path, monkeypatch):
    from graftwork.domains.control import _recipe

    class Closing(Walk):
        closed = 0

        def close(self):
            Closing.closed += 1

    monkeypatch.setattr(_recipe, "make_environment", lambda name: Closing())
    found = trained(tmp_path, environment="Walk-v0", episodes=3).metrics
    assert set(found) == {"target_q", "weight", "mmd", "return", "success"}
    assert -6.0 <= found["return"] <= 6.0
    assert (found["success"], Closing.closed) == (0.0, 1)
