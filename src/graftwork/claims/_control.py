"""Instruments of the claim `uwac`: its formulas by plain loops over Python numbers, and a log."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from graftwork.domains.control import (
    CriticConfig,
    OfflineDataset,
    actor_losses,
    bellman_target,
    critic_losses,
    from_log,
    masks_of,
    moments,
    uncertainty_weights,
)
from graftwork.objectives import mmd


def deviations(seed: int) -> dict[str, float]:
    """Return the largest distance of each formula, in 64 bits, from a loop that writes it out."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    passes = drawn(2, 5, 12)
    mean, variance = moments(passes)
    return {
        "variance off": _worst(variance, _variances(passes)),
        "weights off": _weights_off(variance.sum(0)),
        "target off": _target_off(mean.view(2, 3, 4), variance.view(2, 3, 4), drawn(3)),
        "losses off": _losses_off(drawn(2, 6), drawn(6), drawn(6).abs(), drawn(6).abs()),
        "mmd off": max(_mmd_off(drawn(4, 3), drawn(4, 3), s) for s in (0.5, 20.0)),
    }


def _worst(found: Tensor, expected: list[float]) -> float:
    return float((found.flatten() - torch.tensor(expected, dtype=found.dtype)).abs().max())


def _variances(passes: Tensor) -> list[float]:
    out = []
    for head in passes.tolist():
        for column in zip(*head, strict=True):
            middle = math.fsum(column) / len(column)
            out.append(math.fsum((q - middle) ** 2 for q in column) / (len(column) - 1))
    return out


def _weights_off(variance: Tensor) -> float:
    plain = [min(max(math.exp(-0.5 * v), 0.0), 1.0) for v in variance.tolist()]
    inverse = [min(0.5 / v, 1.5) for v in variance.tolist()]
    return max(
        _worst(uncertainty_weights(variance), plain),
        _worst(uncertainty_weights(variance, "inverse"), inverse),
    )


def _target_off(mean: Tensor, variance: Tensor, rewards: Tensor) -> float:
    terminals = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64)
    target, spread = bellman_target(rewards, terminals, mean, variance)
    first, second = mean.tolist()
    wanted, widest = [], []
    for b, (reward, end) in enumerate(zip(rewards.tolist(), terminals.tolist(), strict=True)):
        pairs = list(zip(first[b], second[b], strict=True))
        best = max(0.75 * min(pair) + 0.25 * max(pair) for pair in pairs)
        wanted.append(reward + 0.99 * (1.0 - end) * best)
        widest.append(max(sum(v) for v in variance[:, b].T.tolist()))
    return max(_worst(target, wanted), _worst(spread, widest))


def _losses_off(values: Tensor, target: Tensor, weights: Tensor, gap: Tensor) -> float:
    off = 0.0
    rows = list(zip(target.tolist(), weights.tolist(), gap.tolist(), strict=True))
    for squared in (True, False):
        wanted = [
            (w * (q - y)) ** 2 if squared else w * (q - y) ** 2
            for head in values.tolist()
            for q, (y, w, _) in zip(head, rows, strict=True)
        ]
        off = max(off, _worst(critic_losses(values, target, weights, squared=squared), wanted))
    found = actor_losses(values, weights, gap, torch.tensor(2.0), limit=0.05, warm=False)
    pairs = zip(values.T.tolist(), rows, strict=True)
    wanted = [2.0 * (g - 0.05) - w * min(q) for q, (_, w, g) in pairs]
    return max(off, _worst(found, wanted))


def _mmd_off(x: Tensor, y: Tensor, sigma: float) -> float:
    def mean(us: list[list[float]], vs: list[list[float]], power: int) -> float:
        far = [sum(abs(a - b) ** power for a, b in zip(u, v, strict=True)) for u in us for v in vs]
        return math.fsum(math.exp(-f / (2 * sigma)) for f in far) / len(far)

    off, a, b = 0.0, x.tolist(), y.tolist()
    for kernel, power in (("gaussian", 2), ("laplacian", 1)):
        squared = mean(a, a, power) + mean(b, b, power) - 2 * mean(a, b, power)
        found = mmd(x, y, kernel="gaussian" if kernel == "gaussian" else "laplacian", sigma=sigma)
        off = max(off, abs(found.item() - math.sqrt(squared + 1e-6)))
    return off


def mode_matters(seed: int) -> float:
    """Return how much `eval()` changes the variance of critics: 0 where dropout stays on."""
    config = CriticConfig(observations=3, actions=2, hidden=(16, 16))
    critics = config.build(seed=seed)
    masks = masks_of(config, 20, (8,), torch.Generator().manual_seed(seed))
    x, a = torch.ones(8, 3), torch.ones(8, 2)
    with torch.no_grad():
        training = moments(critics.train()(x, a, masks))[1]
        evaluation = moments(critics.eval()(x, a, masks))[1]
    return float((training - evaluation).abs().max()) if bool((training > 0).all()) else math.inf


def made_log(seed: int, rows: int = 400) -> OfflineDataset:
    """Return a log of a made system: a point is pushed to the origin by a noisy controller."""
    generator = np.random.default_rng(seed)
    state, observations, actions, rewards = np.zeros(4), [], [], []
    for row in range(rows):
        if row % 50 == 0:
            state = generator.normal(size=4)
        action = np.clip(-state[:2] + 0.3 * generator.normal(size=2), -1.0, 1.0)
        observations.append(state)
        actions.append(action)
        rewards.append(-float(np.square(state).sum()))
        state = 0.95 * state + 0.2 * np.concatenate([action, action])
    log = {
        "observations": np.stack(observations),
        "actions": np.stack(actions),
        "rewards": np.asarray(rewards),
    }
    return from_log(log, horizon=50, source="a made system")
