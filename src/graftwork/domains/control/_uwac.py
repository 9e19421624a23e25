"""The actor-critic step of UWAC; without weights and dropout it is that of BEAR."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from graftwork.domains.control._adam import adam, adam_tensors, load_adam
from graftwork.domains.control._behaviour import PRIOR_CLIP, BehaviourModel
from graftwork.domains.control._critics import CriticConfig, candidate_moments, moments
from graftwork.domains.control._draws import Draws
from graftwork.domains.control._losses import (
    Weighting,
    actor_losses,
    bellman_target,
    critic_losses,
    pre_tanh,
    uncertainty_weights,
)
from graftwork.errors import ConfigError, TrainingError
from graftwork.objectives import Kernel, Model, mmd
from graftwork.steps import Context, Step, StepConfig
from graftwork.tasks import Batch
from graftwork.training import current_world, derive

LOG_MULTIPLIER = (-5.0, 10.0)
"""Limits of the dual variable's logarithm."""


@dataclass(frozen=True, kw_only=True)
class ActorCriticConfig(StepConfig):
    """UWAC (Wu et al., 2021) on top of BEAR (Kumar et al., 2019); `bear` turns one into the other.

    Defaults are the paper's, or those of the authors' code where they differ. Sizes for two CPU
    cores are far smaller: `copies` 8, `candidates` 4, hidden layers of 64 to 128.

    Raises:
        ConfigError: a value is out of range, or weights without dropout to weigh by.

    Example:
        >>> critics = CriticConfig(observations=39, actions=28)
        >>> step = ActorCriticConfig(critics=critics, copies=10).build()
    """

    critics: CriticConfig = field(default_factory=CriticConfig)
    """Shape of the critics: sizes, dropout, spectral normalisation."""
    copies: int = 100
    """T, stochastic passes of the critics for a mean and a variance."""
    candidates: int = 10
    """Actions drawn in each next state; the best counts."""
    matching: int = 4
    """Samples of policy and of behaviour model whose discrepancy is limited."""
    weighting: Weighting = "exponential"
    """What becomes of a variance; see `uncertainty_weights`."""
    beta: float = 0.5
    """Strength of the weights. The paper tunes it around 0.8 to 2.5 (unsure)."""
    inverse_most: float = 1.5
    """Upper limit of the weights "inverse" (unsure)."""
    squared: bool = True
    """Whether the critics' loss has the weight squared, as in the code; False for the equation."""
    discount: float = 0.99
    """gamma."""
    minimum_share: float = 0.75
    """Share of the smaller critic in the target."""
    polyak: float = 0.005
    """Part of the critics that the target critics take over in each update."""
    kernel: Kernel = "gaussian"
    """Of the discrepancy."""
    sigma: float = 20.0
    """Width of that kernel."""
    limit: float = 0.05
    """epsilon: discrepancy that costs nothing; 0.05 to 0.07 by task."""
    warmup: int = 40_000
    """First updates, in which the policy only learns to match the behaviour."""
    critic_lr: float = 3e-4
    """Adam's rate of the critics."""
    behaviour_lr: float = 3e-4
    """Adam's rate of the behaviour model."""
    dual_lr: float = 1e-3
    """Adam's rate of the dual variable's logarithm, which starts at 0 (unsure)."""
    behaviour_hidden: int = 750
    """Units of the behaviour model's hidden layers."""
    seed: int = 0
    """Of the networks' first values and of every draw of an update."""

    def __post_init__(self) -> None:
        counts = (self.copies, self.candidates, self.matching, self.behaviour_hidden)
        if min(counts) < 1 or self.warmup < 0:
            raise ConfigError(
                f"copies, candidates, matching and behaviour_hidden are 1 or more and warmup is 0 "
                f"or more, not {counts} and {self.warmup}"
            )
        if self.weighting not in ("exponential", "inverse", "none"):
            raise ConfigError(
                f"weighting: 'exponential', 'inverse' or 'none', not {self.weighting!r}"
            )
        if self.weighting != "none" and (self.copies < 2 or not self.critics.dropout):
            raise ConfigError(
                f"weighting {self.weighting!r} needs a variance: dropout above 0 and 2 copies or "
                f"more, not {self.critics.dropout} and {self.copies}; or weighting 'none'"
            )
        if not 0.0 <= self.discount < 1.0 or not 0.0 < self.polyak <= 1.0:
            raise ConfigError(
                f"discount in [0, 1) and polyak in (0, 1], not {self.discount} and {self.polyak}"
            )

    def build(self) -> ActorCritic:
        """Return the step."""
        return ActorCritic(self)


def bear(config: ActorCriticConfig) -> ActorCriticConfig:
    """Return the settings of BEAR: no dropout, no spectral normalisation, no weights.

    Example:
        >>> bear(ActorCriticConfig()).weighting, bear(ActorCriticConfig()).copies
        ('none', 1)
    """
    critics = replace(config.critics, dropout=0.0, spectral=False)
    return replace(config, critics=critics, copies=1, weighting="none")


class ActorCritic(Step):
    """One update of policy, critics, behaviour model and dual variable.

    It wants batches of a `ReplayStream` and a policy that gives `(B, 2A)`: mean and log standard
    deviation before the tanh. The policy is what the run trains (`context.groups`): a whole module,
    or a delta of one. All else belongs to the step.

    1. Target: `candidates` actions of the policy in s', T passes of the target critics, see
       `bellman_target`; weights from the variance.
    2. Critics: one dropout sample of `Q(s, a)` against the target.
    3. Behaviour model: see `BehaviourModel`.
    4. Policy: `-w min(Q1, Q2)(s, pi(s)) + alpha (MMD - limit)`, Q a mean over T passes with a mask
       for each, pi(s) the first of the samples that are matched; the weight is of Var1 + Var2
       there. In the warm-up only the second term.
    5. Dual ascent on log alpha, clamped to [-5, 10].
    6. Target critics follow by Polyak averaging. They begin as copies.

    We deviate from the authors' code in its faults: all gradients are taken before any optimiser
    steps (theirs runs backwards through weights that had been changed), and the target networks
    begin as copies. Polyak averaging is of the weights before normalisation; the vectors of the
    power iteration are neither averaged nor copied afterwards: each network improves its own by
    one iteration an update, so that the norm is that of its own weights.

    Learning rates of the policy are those of the stage, constant; its gradients are clipped where
    the stage says so.

    Args:
        config: see there.
    """

    def __init__(self, config: ActorCriticConfig) -> None:
        self.config = config
        shape = config.critics
        self.critics = shape.build(seed=derive(config.seed, "critics"))
        self.targets = copy.deepcopy(self.critics).requires_grad_(False)
        self.behaviour = BehaviourModel(
            shape.observations,
            shape.actions,
            config.behaviour_hidden,
            torch.Generator().manual_seed(derive(config.seed, "behaviour")),
        )
        self.log_multiplier = nn.Parameter(torch.zeros(()))
        self.updates = 0
        self._roles: dict[str, list[nn.Parameter]] = {}
        self._optimisers: dict[str, torch.optim.Adam] = {}

    def begin(self, context: Context) -> None:
        """Build the policy's optimiser anew; those of the step's own networks go on.

        Raises:
            TrainingError: the stage trains nothing.
        """
        rates = context.stage.learning_rates
        groups = [group for group in context.groups if group.role in rates and group.parameters]
        if not groups:
            raise TrainingError(
                f"stage {context.stage.name!r} trains no values, but this step needs a policy that "
                "learns; take a tuner of one stage, such as RandomMask"
            )
        device = groups[0].parameters[0].device
        for network in (self.critics, self.targets, self.behaviour):
            network.to(device)
        self.log_multiplier.data = self.log_multiplier.data.to(device)
        config = self.config
        if not self._optimisers:
            self._optimisers = {
                "critics": adam(self.critics.parameters(), config.critic_lr),
                "behaviour": adam(self.behaviour.parameters(), config.behaviour_lr),
                "dual": adam([self.log_multiplier], config.dual_lr),
            }
        self._roles = {}
        for group in groups:
            self._roles.setdefault(group.role, []).extend(group.parameters)
        settings = [{"params": ps, "lr": rates[role]} for role, ps in self._roles.items()]
        self._optimisers["policy"] = adam(settings)

    def update(self, context: Context) -> dict[str, float]:
        """Draw, take all gradients, then step all optimisers, then move the targets.

        Returns:
            "loss" (the critics'), "actor", "behaviour", "target_q" (mean target), "weight" (mean,
            of the target), "actor_weight", "variance" (mean, of the target), "mmd", "multiplier".

        Raises:
            TrainingError: a loss or the policy's gradient is NaN or infinite; names it. Values are
                as before.
        """
        context.prepare()
        batches = [context.draw() for _ in range(context.accumulate)]
        world = current_world()
        counts = torch.tensor([len(batch) for batch in batches], dtype=torch.int64)
        context.reduce([counts])
        for network in (self.critics, self.targets):
            network.iterate()
        parts = []
        for number, (batch, rows) in enumerate(zip(batches, counts.tolist(), strict=True)):
            seed = derive(self.config.seed, "update", self.updates, number)
            share = slice(world.rank, None, world.size)
            draws = Draws(seed, rows, share, batch.inputs["x"].device)
            parts.append(self._backward(context, batch, draws, world.size / int(counts.sum())))
        context.collect()
        scalars = torch.stack(parts).sum(0)
        gradients = [_gradient(p) for p in self._trained()]
        context.reduce([scalars, *gradients])
        if world.size > 1:
            torch._foreach_div_([scalars, *gradients], float(world.size))
        named = dict(zip(_SCALARS, scalars.tolist(), strict=True))
        self._check(context, named)
        named["multiplier"] = math.exp(self.log_multiplier.item())
        self._step(context)
        return named

    def _backward(self, context: Context, batch: Batch, draws: Draws, scale: float) -> Tensor:
        """Add the gradients of one batch, its losses summed over rows times `scale`."""
        outputs = context.model(batch).float()
        with torch.no_grad():
            target, variance = self._target(context.model, batch, draws)
            weight = self._weights(variance)
        critic = self._critic_losses(batch, target, weight, draws)
        behaviour = self._behaviour_losses(batch, draws)
        actor, gap, actor_weight = self._actor_losses(outputs, batch.inputs["x"], draws)
        for losses in (critic, behaviour, actor):
            (losses.sum() * scale).backward()
        multiplier = self.log_multiplier.exp()
        # ascent: Adam goes down the negative of alpha (MMD - limit)
        _gradient(self.log_multiplier).sub_(
            (multiplier * (gap - self.config.limit)).sum().detach() * scale
        )
        shown = (critic.sum(0), actor, behaviour, target, weight, actor_weight, variance, gap)
        return torch.stack([row.detach().sum() * scale for row in shown])

    def judge(self, model: Model, batch: Batch, seed: int) -> dict[str, Tensor]:
        """Return what the step thinks of a policy on logged rows, `(B,)` each; nothing is learnt.

        Args:
            model: batch -> `(B, 2A)`.
            batch: of a `ReplayStream`.
            seed: of all draws.

        Returns:
            "target_q": Bellman target; "weight" of it; "mmd": discrepancy of policy and behaviour
            model before the tanh.
        """
        draws = Draws(seed, len(batch), slice(None), batch.rows.device)
        with torch.no_grad():
            target, variance = self._target(model, batch, draws)
            _, gap = self._matched(model(batch).float(), batch.inputs["x"], draws)
        return {"target_q": target, "weight": self._weights(variance), "mmd": gap}

    def _target(self, model: Model, batch: Batch, draws: Draws) -> tuple[Tensor, Tensor]:
        config = self.config
        after = model(Batch({**batch.inputs, "x": batch.inputs["next"]}, None, batch.rows)).float()
        noise = draws.normal(config.candidates, config.critics.actions)
        masks = draws.masks(config.critics, config.copies, config.candidates)
        mean, variance = candidate_moments(
            self.targets, batch.inputs["next"], torch.tanh(pre_tanh(after, noise)), masks
        )
        return bellman_target(
            batch.inputs["rewards"],
            batch.inputs["terminals"],
            mean,
            variance,
            discount=config.discount,
            share=config.minimum_share,
        )

    def _weights(self, variance: Tensor) -> Tensor:
        config = self.config
        return uncertainty_weights(
            variance, config.weighting, beta=config.beta, most=config.inverse_most
        )

    def _critic_losses(self, batch: Batch, target: Tensor, weight: Tensor, draws: Draws) -> Tensor:
        masks = draws.masks(self.config.critics, 1)
        values = self.critics(batch.inputs["x"], batch.inputs["actions"], masks)[:, 0]
        return critic_losses(values, target, weight, squared=self.config.squared)

    def _behaviour_losses(self, batch: Batch, draws: Draws) -> Tensor:
        noise = draws.normal(self.behaviour.latent)
        losses: Tensor = self.behaviour(batch.inputs["x"], batch.inputs["actions"], noise)
        return losses

    def _actor_losses(
        self, outputs: Tensor, x: Tensor, draws: Draws
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, discrepancy and weight of each row; gradients reach the policy alone."""
        config = self.config
        ours, gap = self._matched(outputs, x, draws)
        masks = draws.masks(config.critics, config.copies)
        with _frozen(self.critics):
            values = self.critics(x, torch.tanh(ours[:, 0]), masks)
        mean, variance = moments(values)
        weight = self._weights(variance.sum(0))
        losses = actor_losses(
            mean,
            weight,
            gap,
            self.log_multiplier.detach().exp(),
            limit=config.limit,
            warm=self.updates < config.warmup,
        )
        return losses, gap.detach(), weight

    def _matched(self, outputs: Tensor, x: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return samples `(B, n, A)` of the policy, and their discrepancy from the behaviour's."""
        config, n = self.config, self.config.matching
        ours = pre_tanh(outputs, draws.normal(n, config.critics.actions))
        with torch.no_grad():
            latent = draws.normal(n, self.behaviour.latent).clamp(-PRIOR_CLIP, PRIOR_CLIP)
            theirs = self.behaviour.decode(x[:, None].expand(-1, n, -1), latent)
        return ours, mmd(theirs, ours, kernel=config.kernel, sigma=config.sigma)

    def _check(self, context: Context, named: Mapping[str, float]) -> None:
        for name, value in named.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{context.where}: {name} is {value}; Q values that run away are what the "
                    "weights and spectral normalisation are for, or lower critic_lr"
                )
        for role, parameters in self._roles.items():
            norm = nn.utils.get_total_norm(_gradient(p) for p in parameters).item()
            if not math.isfinite(norm):
                raise TrainingError(
                    f"{context.where}: the gradient norm of the {role} is {norm}; lower its rate"
                )
            limit = context.stage.clip
            if limit is not None and norm > limit:
                torch._foreach_mul_([_gradient(p) for p in parameters], limit / norm)

    def _step(self, context: Context) -> None:
        for optimiser in self._optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        for group in context.groups:
            for parameter in group.parameters:
                parameter.grad = None
        with torch.no_grad():
            self.log_multiplier.clamp_(*LOG_MULTIPLIER)
            ours: list[Tensor] = list(self.targets.parameters())
            theirs: list[Tensor] = list(self.critics.parameters())
            torch._foreach_lerp_(ours, theirs, self.config.polyak)
        self.updates += 1

    def _trained(self) -> Iterator[nn.Parameter]:
        for parameters in self._roles.values():
            yield from parameters
        yield from self.critics.parameters()
        yield from self.behaviour.parameters()
        yield self.log_multiplier

    def _networks(self) -> dict[str, nn.Module]:
        return {"critics": self.critics, "targets": self.targets, "behaviour": self.behaviour}

    def tensors(self) -> dict[str, Tensor]:
        """Return networks, dual variable, optimiser states and the count of updates."""
        state = {
            f"{name}.{key}": tensor
            for name, network in self._networks().items()
            for key, tensor in network.state_dict().items()
        }
        state |= {
            "log_multiplier": self.log_multiplier.detach(),
            "updates": torch.tensor(self.updates),
        }
        for name, optimiser in self._optimisers.items():
            state |= {f"adam.{name}.{key}": t for key, t in adam_tensors(optimiser).items()}
        return state

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what `tensors` returned, bit for bit; call it after `begin`.

        Raises:
            TrainingError: the state is of other networks.
        """
        left = dict(tensors)
        try:
            for name, network in self._networks().items():
                network.load_state_dict({k: left.pop(f"{name}.{k}") for k in network.state_dict()})
            with torch.no_grad():
                self.log_multiplier.copy_(left.pop("log_multiplier"))
            self.updates = int(left.pop("updates"))
        except (KeyError, RuntimeError) as error:
            raise TrainingError(
                f"the step's state does not fit its networks ({error}); was the configuration "
                "changed?"
            ) from error
        for name, optimiser in self._optimisers.items():
            prefix = f"adam.{name}."
            own = {k.removeprefix(prefix): left.pop(k) for k in list(left) if k.startswith(prefix)}
            load_adam(optimiser, own, name)
        if left:
            raise TrainingError(f"state of unknown values: {sorted(left)[:3]}")


_SCALARS = (
    "loss",
    "actor",
    "behaviour",
    "target_q",
    "weight",
    "actor_weight",
    "variance",
    "mmd",
)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return `.grad`, zeros where nothing reached it: processes must reduce the same tensors."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


@contextmanager
def _frozen(network: nn.Module) -> Iterator[None]:
    """Let gradients pass through a network and none stay in it."""
    network.requires_grad_(False)
    try:
        yield
    finally:
        network.requires_grad_(True)
