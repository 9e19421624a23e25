"""The step against a plain rewriting of one update, and its state."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from tests.domains.control.toys import ACTIONS, Context, config, critics
from torch import Tensor
from torch.nn import functional

from graftwork.domains.control import ActorCritic, Draws
from graftwork.errors import ConfigError, TrainingError
from graftwork.objectives import mmd
from graftwork.training import derive


def begun(context, settings) -> ActorCritic:
    step = settings.build()
    step.begin(context)
    return step


def run(context, step, updates):
    out = []
    for _ in range(updates):
        out.append(step.update(context))
        context.index += 1
    return out


def q(network, x, a, masks, copy_, head, row) -> Tensor:
    """Return Q of one head, copy and row."""
    h = torch.cat([x, a])
    for i, weight in enumerate(network.weights):
        h = h @ weight[head] + network.biases[i][head]
        if i + 1 < len(network.weights):
            h = torch.relu(h) * masks[i][head, copy_, row]
    return h[0]


def plain_gradients(context, step, batch, settings):
    """Return the gradients of all four parts, row by row and term by term."""
    policy, c = context.policy, settings
    rows = len(batch)
    draws = Draws(derive(c.seed, "update", step.updates, 0), rows, slice(None), torch.device("cpu"))
    # in the order in which the step draws
    next_noise = draws.normal(c.candidates, ACTIONS)
    next_masks = draws.masks(c.critics, c.copies, c.candidates)
    own_masks = draws.masks(c.critics, 1)
    encoder_noise = draws.normal(2 * ACTIONS)
    policy_noise = draws.normal(c.matching, ACTIONS)
    prior = draws.normal(c.matching, 2 * ACTIONS).clamp(-0.5, 0.5)
    actor_masks = draws.masks(c.critics, c.copies)
    critic_loss = behaviour_loss = actor_loss = gaps = 0
    frozen = copy.deepcopy(step.critics)
    for b in range(rows):
        x, a = batch.inputs["x"][b], batch.inputs["actions"][b]
        following = batch.inputs["next"][b]
        with torch.no_grad():
            mean, log_sigma = policy(following[None])[0].chunk(2)
            best, widest = -math.inf, -math.inf
            for k in range(c.candidates):
                action = torch.tanh(mean + log_sigma.exp() * next_noise[b, k])
                row = b * c.candidates + k
                values = torch.tensor(
                    [
                        [q(step.targets, following, action, next_masks, t, e, row) for e in (0, 1)]
                        for t in range(c.copies)
                    ]
                )
                q1, q2 = values.mean(0).tolist()
                best = max(best, 0.75 * min(q1, q2) + 0.25 * max(q1, q2))
                widest = max(widest, values.var(0).sum().item())
            goal = (
                batch.inputs["rewards"][b] + c.discount * (1 - batch.inputs["terminals"][b]) * best
            )
            weight = math.exp(-c.beta * widest)
        for e in (0, 1):
            error = q(step.critics, x, a, own_masks, 0, e, b) - goal
            critic_loss = critic_loss + (weight * error) ** 2 / rows
        mu, log_s = step.behaviour.encoder(torch.cat([x, a])).chunk(2)
        z = mu + log_s.exp() * encoder_noise[b]
        rebuilt = torch.tanh(step.behaviour.decoder(torch.cat([x, z])))
        kl = -0.5 * (1 + 2 * log_s - mu**2 - (2 * log_s).exp())
        behaviour_loss = behaviour_loss + (functional.mse_loss(rebuilt, a) + 0.5 * kl.mean()) / rows
        mean, log_sigma = policy(x[None])[0].chunk(2)
        ours = mean + log_sigma.exp() * policy_noise[b]
        theirs = torch.stack([step.behaviour.decoder(torch.cat([x, z])) for z in prior[b]])
        gap = mmd(theirs.detach(), ours)
        gaps = gaps + gap.detach() / rows
        values = torch.stack(
            [
                torch.stack(
                    [q(frozen, x, torch.tanh(ours[0]), actor_masks, t, e, b) for e in (0, 1)]
                )
                for t in range(c.copies)
            ]
        )
        term = step.log_multiplier.detach().exp() * (gap - c.limit)
        if step.updates >= c.warmup:
            term = term - math.exp(-c.beta * values.var(0).sum().item()) * values.mean(0).min()
        actor_loss = actor_loss + term / rows
    return {
        "policy": torch.autograd.grad(actor_loss, list(policy.parameters())),
        "critics": torch.autograd.grad(critic_loss, list(step.critics.parameters())),
        "behaviour": torch.autograd.grad(behaviour_loss, list(step.behaviour.parameters())),
        "dual": step.log_multiplier.detach().exp() * (gaps - c.limit),
    }


@pytest.mark.parametrize("before", [0, 2])  # in the warm-up, and after it
def test_an_update_is_that_of_a_plain_loop(before):
    context = Context()
    settings = config()
    step = begun(context, settings)
    run(context, step, before)
    batch = context.stream.draw()
    context.stream.index -= 1
    wanted = plain_gradients(context, step, batch, settings)
    seen = {}

    def watch(name, optimiser):
        def catch(*_, **__):
            groups = optimiser.param_groups
            seen[name] = [p.grad.clone() for group in groups for p in group["params"]]

        optimiser.step = catch

    targets = [p.clone() for p in step.targets.parameters()]
    for name, optimiser in step._optimisers.items():
        watch(name, optimiser)
    step.update(context)
    for name in ("policy", "critics", "behaviour"):
        for found, expected in zip(seen[name], wanted[name], strict=True):
            torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-6)
    assert seen["dual"][0].item() == pytest.approx(-wanted["dual"].item(), rel=1e-4)
    # no optimiser moved anything, so the targets stay between what they were and the critics
    for old, new, online in zip(
        targets, step.targets.parameters(), step.critics.parameters(), strict=True
    ):
        torch.testing.assert_close(new, torch.lerp(old, online, 0.005))
    assert context.calls[-2:] == ["prepare", "collect"]


def test_optimisers_are_adam_at_the_rates_given():
    context = Context()
    step = begun(context, config(critic_lr=1e-3, behaviour_lr=2e-3, dual_lr=3e-3))
    rates = {name: o.param_groups[0]["lr"] for name, o in step._optimisers.items()}
    assert rates == {"critics": 1e-3, "behaviour": 2e-3, "dual": 3e-3, "policy": 1e-2}
    before = step.log_multiplier.item()
    run(context, step, 1)
    # Adam's first step is its rate, upwards where the gap is above the limit
    assert step.log_multiplier.item() - before == pytest.approx(3e-3, rel=1e-4)
    assert all(p.grad is None for p in context.policy.parameters())


def test_targets_begin_as_copies_and_iterate_their_own_norms():
    context = Context()
    step = begun(context, config(critics(spectral=True)))
    for a, b in zip(
        step.critics.state_dict().values(), step.targets.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
    run(context, step, 60)
    for network in (step.critics, step.targets):
        for weight in network.effective():
            norms = torch.linalg.matrix_norm(weight, ord=2)
            assert norms.tolist() == pytest.approx([1.0, 1.0], rel=0.02)


def test_bear_is_the_step_without_copies_dropout_and_weights():
    context = Context()
    step = begun(context, config(critics(dropout=0.0), copies=1, weighting="none"))
    scalars = run(context, step, 3)[-1]
    assert (scalars["weight"], scalars["variance"], scalars["actor_weight"]) == (1.0, 0.0, 1.0)
    batch = context.stream.draw()
    found = step.judge(context.model, batch, seed=0)
    assert {name: tuple(values.shape) for name, values in found.items()} == {
        "target_q": (6,),
        "weight": (6,),
        "mmd": (6,),
    }


def test_the_policy_comes_nearer_to_the_behaviour_in_the_warm_up():
    context = Context(batch_size=32)
    step = begun(context, config(warmup=10_000, sigma=2.0))
    scalars = run(context, step, 250)
    assert scalars[-1]["mmd"] < 0.7 * scalars[0]["mmd"]
    assert scalars[-1]["behaviour"] < 0.7 * scalars[0]["behaviour"]
    assert scalars[-1]["loss"] < scalars[0]["loss"]


@pytest.mark.parametrize("spectral", [False, True])
def test_state_resumes_to_the_same_bits(spectral):
    settings = config(critics(spectral=spectral))
    whole, context = Context(), Context()
    straight = begun(whole, settings)
    run(whole, straight, 9)
    first = begun(context, settings)
    run(context, first, 4)
    saved = {name: t.clone() for name, t in first.tensors().items()}
    policy, place = copy.deepcopy(context.policy.state_dict()), context.stream.state()
    later = Context()
    later.policy.load_state_dict(policy)
    later.stream.load_state(place)
    resumed = begun(later, settings)
    resumed.load_tensors(saved)
    run(later, resumed, 5)
    assert all(torch.equal(a, b) for a, b in zip(whole.state(), later.state(), strict=True))
    ours, theirs = straight.tensors(), resumed.tensors()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_state_of_other_networks_is_refused():
    context = Context()
    state = begun(context, config()).tensors()
    with pytest.raises(TrainingError, match="was the configuration changed"):
        begun(context, config(critics(hidden=(8, 9)))).load_tensors(state)
    step = begun(context, config())
    with pytest.raises(TrainingError, match=r"state of unknown values: \['more'\]"):
        step.load_tensors({**state, "more": torch.zeros(1)})
    run(context, step, 1)
    trained = step.tensors()
    trained["adam.policy.0.exp_avg"] = torch.zeros(3)
    with pytest.raises(TrainingError, match=r"of policy\.0 has the shape \(3,\)"):
        begun(context, config()).load_tensors(trained)


def test_accumulated_batches_count_every_row_alike():
    """Two batches of one update: the gradient is the mean over both."""
    context = Context()
    context.accumulate = 2
    step = begun(context, config())
    one, two = context.stream.draw(), context.stream.draw()
    context.stream.index = 0
    scalars = step.update(context)
    rewards = torch.cat([b.inputs["rewards"] for b in (one, two)]).mean()
    assert scalars["target_q"] == pytest.approx(rewards.item(), abs=0.05)  # Q is near 0 at first


def test_rows_have_the_same_draws_however_they_are_shared_out():
    settings = critics()
    device = torch.device("cpu")
    whole = Draws(5, 6, slice(None), device)
    parts = [Draws(5, 6, slice(rank, None, 2), device) for rank in (0, 1)]
    noise, masks = whole.normal(3, 2), whole.masks(settings, 4, 3)
    for rank, part in enumerate(parts):
        assert torch.equal(part.normal(3, 2), noise[rank::2])
        for ours, theirs in zip(part.masks(settings, 4, 3), masks, strict=True):
            rows = theirs.unflatten(2, (6, 3))[:, :, rank::2]
            assert torch.equal(ours, rows.flatten(2, 3))


def test_clipping_follows_the_stage():
    context = Context(clip=1e-3)
    step = begun(context, config())
    norms = []
    optimiser = step._optimisers["policy"]
    plain = optimiser.step

    def watch(*arguments):
        norms.append(torch.nn.utils.get_total_norm(p.grad for p in context.policy.parameters()))
        return plain(*arguments)

    optimiser.step = watch
    run(context, step, 2)
    assert [n.item() for n in norms] == pytest.approx([1e-3, 1e-3], rel=1e-4)


def test_a_loss_that_is_no_number_stops_before_anything_moves():
    context = Context()
    step = begun(context, config())
    with torch.no_grad():
        step.critics.biases[0].fill_(math.inf)
        step.critics.weights[1].zero_()
    before = context.state()
    with pytest.raises(TrainingError, match=r"stage 'train', step 1: loss is (nan|inf)"):
        step.update(context)
    assert all(torch.equal(a, b) for a, b in zip(before, context.state(), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"copies": 1}, "needs a variance: dropout above 0 and 2 copies or more, not 0.1 and 1"),
        ({"copies": 0}, "1 or more"),
        ({"discount": 1.0}, r"discount in \[0, 1\)"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        config(**change)


@pytest.mark.usefixtures("untyped")
def test_an_unknown_weighting_is_named():
    with pytest.raises(ConfigError, match="not 'linear'"):
        config(weighting="linear")


def test_a_stage_that_trains_no_policy_is_refused():
    context = Context()
    context.stage = type(context.stage)("scores", 1.0, {})
    with pytest.raises(TrainingError, match="trains no values"):
        begun(context, config())
