"""Critics against one network, one copy and one row at a time."""

import pytest
import torch

from graftwork.domains.control import CriticConfig, Critics, candidate_moments, masks_of, moments
from graftwork.errors import ConfigError, InputError

CONFIG = CriticConfig(observations=3, actions=2, hidden=(7, 6), dropout=0.3)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def naive(critics: Critics, weights, head, copy, row, x, masks):
    """Return Q of one critic, copy and row by plain vector products."""
    h = x[row]
    for i, weight in enumerate(weights):
        h = h @ weight[head] + critics.biases[i][head]
        if i + 1 < len(weights):
            h = torch.relu(h) * masks[i][head, copy, row]
    return h.item()


@pytest.mark.parametrize("spectral", [False, True])
def test_batched_passes_equal_a_loop(spectral):
    config = CriticConfig(observations=3, actions=2, hidden=(7, 6), dropout=0.3, spectral=spectral)
    critics = config.build(seed=1)
    s, a = drawn(4, 3), drawn(4, 2, seed=1)
    masks = masks_of(config, 5, (4,), torch.Generator().manual_seed(2))
    weights = [
        w / torch.linalg.matrix_norm(w, ord=2)[:, None, None] if spectral else w
        for w in critics.weights
    ]
    for _ in range(200):  # until the norm is exact
        critics.iterate()
    values = critics(s, a, masks)
    x = torch.cat([s, a], dim=1)
    for e in range(2):
        for t in range(5):
            for n in range(4):
                expected = naive(critics, weights, e, t, n, x, masks)
                assert values[e, t, n].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_mode_of_the_module_changes_nothing():
    critics = CONFIG.build(seed=0)
    masks = masks_of(CONFIG, 20, (4,), torch.Generator().manual_seed(0))
    s, a = drawn(4, 3), drawn(4, 2)
    before = critics.train()(s, a, masks)
    assert torch.equal(before, critics.eval()(s, a, masks))
    assert bool((moments(before)[1] > 0).all())
    assert bool((moments(critics(s, a))[1] == 0).all())


def test_masks_keep_the_right_part_and_are_independent():
    masks = masks_of(CONFIG, 64, (50,), torch.Generator().manual_seed(0))
    assert [tuple(m.shape) for m in masks] == [(2, 64, 50, 7), (2, 64, 50, 6)]
    flat = torch.cat([m.flatten() for m in masks])
    assert flat.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    # 83,200 draws: 5 standard deviations are 0.008
    assert (flat > 0).float().mean().item() == pytest.approx(0.7, abs=0.008)
    assert flat.mean().item() == pytest.approx(1.0, abs=0.012)
    columns = (masks[0] > 0).float().flatten(1, 2).flatten(0, 1)
    correlation = torch.corrcoef(columns.T) - torch.eye(7)
    assert correlation.abs().max() < 0.07
    copies = (masks[0] > 0).float().transpose(0, 1).flatten(1)
    assert (torch.corrcoef(copies) - torch.eye(64)).abs().max() < 0.25
    assert (
        masks_of(CriticConfig(observations=1, actions=1, dropout=0.0), 3, (2,), torch.Generator())
        == []
    )


def test_variance_is_that_of_independent_copies():
    """With one hidden layer and known weights the variance of Q has a closed form."""
    config = CriticConfig(observations=1, actions=1, hidden=(50,), dropout=0.2, heads=1)
    critics = config.build(seed=0)
    s, a = torch.ones(1, 1), torch.ones(1, 1)
    masks = masks_of(config, 20_000, (1,), torch.Generator().manual_seed(0))
    mean, variance = moments(critics(s, a, masks))
    h = torch.relu(torch.ones(2) @ critics.weights[0][0] + critics.biases[0][0])
    parts = h * critics.weights[1][0, :, 0]
    expected = (parts.square() * 0.2 / 0.8).sum()
    assert variance.item() == pytest.approx(expected.item(), rel=0.05)
    assert mean.item() == pytest.approx((parts.sum() + critics.biases[1][0, 0]).item(), abs=1e-3)


def test_candidates_are_judged_each_in_its_own_state():
    critics = CONFIG.build(seed=3)
    s, a = drawn(4, 3), drawn(4, 5, 2, seed=1)
    masks = masks_of(CONFIG, 6, (20,), torch.Generator().manual_seed(1))
    mean, variance = candidate_moments(critics, s, a, masks)
    for b in range(4):
        for k in range(5):
            own = [m[:, :, b * 5 + k : b * 5 + k + 1] for m in masks]
            expected = moments(critics(s[b : b + 1], a[b, k : k + 1], own))
            torch.testing.assert_close(mean[:, b, k], expected[0][:, 0])
            torch.testing.assert_close(variance[:, b, k], expected[1][:, 0])


def test_spectral_norm_of_every_layer_is_one_and_gradients_are_those_of_torch():
    config = CriticConfig(observations=3, actions=2, hidden=(7,), spectral=True, heads=1)
    critics = config.build(seed=0)
    for _ in range(300):
        critics.iterate()
    for weight in critics.effective():
        assert torch.linalg.matrix_norm(weight[0], ord=2).item() == pytest.approx(1.0, abs=1e-4)
    layer = torch.nn.Linear(5, 7, bias=False)
    with torch.no_grad():
        layer.weight.copy_(critics.weights[0][0].T)
    oracle = torch.nn.utils.parametrizations.spectral_norm(layer, n_power_iterations=300)
    x = drawn(4, 5)
    (x @ critics.effective()[0][0]).square().sum().backward()
    oracle(x).square().sum().backward()
    ours, theirs = critics.weights[0].grad, oracle.parametrizations.weight.original.grad
    assert ours is not None
    torch.testing.assert_close(ours[0].T, theirs, rtol=1e-3, atol=1e-4)


def test_first_values():
    critics = CriticConfig(observations=30, actions=10, hidden=(64, 64)).build(seed=0)
    bounds = [40**-0.5, 64**-0.5, 3e-3]
    for weight, bound in zip(critics.weights, bounds, strict=True):
        assert 0.9 * bound < weight.abs().max().item() <= bound
    assert critics.biases[0].unique().tolist() == pytest.approx([0.1])
    assert critics.biases[2].abs().max().item() <= 3e-3
    again = CriticConfig(observations=30, actions=10, hidden=(64, 64)).build(seed=0)
    assert all(
        torch.equal(a, b) for a, b in zip(critics.parameters(), again.parameters(), strict=True)
    )


def test_bad_shapes_are_named():
    with pytest.raises(ConfigError, match=r"dropout: in \[0, 1\), not 1.0"):
        CriticConfig(observations=1, actions=1, dropout=1.0)
    with pytest.raises(ConfigError, match="sizes are 1 or more"):
        CriticConfig(observations=1, actions=1, hidden=())
    with pytest.raises(InputError, match="1 masks for 2 hidden layers"):
        CONFIG.build(seed=0)(torch.zeros(1, 3), torch.zeros(1, 2), [torch.ones(2, 1, 1, 7)])
