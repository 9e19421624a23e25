"""The losses against loops over rows, and against torch's own distributions."""

import math

import pytest
import torch
from torch import distributions

from graftwork.domains.control import (
    actor_losses,
    behaviour_losses,
    bellman_target,
    cloning,
    critic_losses,
    mixed_minimum,
    moments,
    pre_tanh,
    uncertainty_weights,
)
from graftwork.errors import InputError
from graftwork.tasks import Batch


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_moments_are_those_of_the_textbook():
    values = drawn(2, 5, 3)
    mean, variance = moments(values)
    for e in range(2):
        for n in range(3):
            column = values[e, :, n].tolist()
            average = sum(column) / 5
            assert mean[e, n].item() == pytest.approx(average)
            spread = sum((v - average) ** 2 for v in column) / 4
            assert variance[e, n].item() == pytest.approx(spread)
    assert torch.equal(moments(values[:, :1])[1], torch.zeros(2, 3, dtype=torch.float64))


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_target_equals_a_loop(share):
    mean, variance = drawn(2, 6, 4), drawn(2, 6, 4, seed=1).square()
    rewards, terminals = drawn(6, seed=2), torch.tensor([0, 1, 0, 0, 1, 0]).double()
    target, spread = bellman_target(rewards, terminals, mean, variance, discount=0.9, share=share)
    for b in range(6):
        best, widest = -math.inf, -math.inf
        for k in range(4):
            q1, q2 = mean[0, b, k].item(), mean[1, b, k].item()
            best = max(best, share * min(q1, q2) + (1 - share) * max(q1, q2))
            widest = max(widest, variance[0, b, k].item() + variance[1, b, k].item())
        expected = rewards[b].item() + 0.9 * (1 - terminals[b].item()) * best
        assert target[b].item() == pytest.approx(expected, rel=1e-12)
        assert spread[b].item() == pytest.approx(widest, rel=1e-12)


def test_weights():
    variance = torch.tensor([0.0, 0.1, 1.0, 50.0], dtype=torch.float64, requires_grad=True)
    found = uncertainty_weights(variance, beta=0.8)
    assert found.tolist() == pytest.approx([math.exp(-0.8 * v) for v in (0, 0.1, 1, 50)])
    inverse = uncertainty_weights(variance, "inverse", beta=0.8)
    assert inverse.tolist() == pytest.approx([1.5, 1.5, 0.8, 0.016])
    assert uncertainty_weights(variance, "none").tolist() == [1, 1, 1, 1]
    assert not found.requires_grad
    assert not inverse.requires_grad


def test_critic_and_actor_losses_equal_loops():
    values, target, weights = drawn(2, 5), drawn(5, seed=1), drawn(5, seed=2).abs()
    gap = drawn(5, seed=3).abs()
    for squared in (True, False):
        found = critic_losses(values, target, weights, squared=squared)
        for e in range(2):
            for b in range(5):
                w, error = weights[b].item(), (values[e, b] - target[b]).item()
                expected = (w * error) ** 2 if squared else w * error**2
                assert found[e, b].item() == pytest.approx(expected)
    for warm in (True, False):
        losses = actor_losses(values, weights, gap, torch.tensor(3.0), limit=0.05, warm=warm)
        for b in range(5):
            expected = 3.0 * (gap[b].item() - 0.05)
            if not warm:
                expected -= weights[b].item() * min(values[:, b].tolist())
            assert losses[b].item() == pytest.approx(expected)
    assert mixed_minimum(values).tolist() == pytest.approx(
        [0.75 * min(c) + 0.25 * max(c) for c in values.T.tolist()]
    )


def test_behaviour_loss_has_the_divergence_of_torch():
    rebuilt, actions, mean, log_sigma = (drawn(4, 3, seed=s) for s in range(4))
    found = behaviour_losses(rebuilt, actions, mean, log_sigma)
    posterior = distributions.Normal(mean, log_sigma.exp())
    prior = distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    divergence = distributions.kl_divergence(posterior, prior).mean(-1)
    expected = (rebuilt - actions).square().mean(-1) + 0.5 * divergence
    torch.testing.assert_close(found, expected)


def test_cloning_is_the_likelihood_of_a_transformed_normal():
    outputs = drawn(6, 8).float()
    actions = torch.tanh(drawn(6, 4, seed=1)).float()
    batch = Batch({"actions": actions}, None, torch.arange(6))
    mean, log_sigma = outputs.chunk(2, dim=-1)
    law = distributions.TransformedDistribution(
        distributions.Normal(mean, log_sigma.exp()),
        distributions.TanhTransform(),
        validate_args=False,
    )
    expected = -law.log_prob(actions.clamp(-0.999, 0.999)).mean(-1)
    torch.testing.assert_close(cloning(lambda _: outputs, batch), expected, rtol=1e-4, atol=1e-4)
    batch.inputs["actions"][0, 0] = 1.0
    assert bool(torch.isfinite(cloning(lambda _: outputs, batch)).all())
    with pytest.raises(InputError, match=r"of 4 entries, but the model gave \(6, 4\)"):
        cloning(lambda _: outputs[:, :4], batch)


def test_samples_before_the_tanh():
    outputs, noise = drawn(3, 4), drawn(3, 5, 2, seed=1)
    found = pre_tanh(outputs, noise)
    for b in range(3):
        for n in range(5):
            for a in range(2):
                expected = outputs[b, a] + outputs[b, 2 + a].exp() * noise[b, n, a]
                assert found[b, n, a].item() == pytest.approx(expected.item())
