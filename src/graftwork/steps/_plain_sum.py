"""The default step: a weighted sum of the objectives, Adam, one setting for each role."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError, TrainingError, UnknownNameError
from graftwork.steps._step import Context, Step, StepConfig
from graftwork.tuning import Role, Stage


@dataclass(frozen=True, kw_only=True)
class PlainSumConfig(StepConfig):
    """How `PlainSum` turns losses into updates.

    Example:
        >>> PlainSumConfig(weights={"task": 1.0}, warmup=0.1).build()
        PlainSum(...)
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    """Weight of each objective by name; an objective that is not named has weight 1."""
    streams: Mapping[str, str] = field(default_factory=dict)
    """Stream that each objective draws from; "train" where not named. One draw is shared."""
    weight_decay: float = 0.0
    """Decoupled weight decay of values and head (AdamW). 0 makes it plain Adam, as in the paper.
    Gates never decay: a decay would push every gate to the middle and choose the density."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the two moments."""
    eps: float = 1e-8
    """Added to Adam's denominator. The paper's lambda is meant with this value."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """How the rate of the roles in `Stage.decay` falls to 0; other roles stay constant."""
    warmup: float = 0.0
    """Share of each stage's steps in which every rate rises linearly from 0."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.warmup < 1.0:
            raise ConfigError(f"warmup: a share of the stage in [0, 1), not {self.warmup}")
        if not all(0.0 <= beta < 1.0 for beta in self.betas):
            raise ConfigError(f"betas: each in [0, 1), not {self.betas}")
        if self.weight_decay < 0.0 or not self.eps > 0.0:
            raise ConfigError(
                f"weight_decay >= 0 and eps > 0, not {self.weight_decay} and {self.eps}"
            )

    def build(self) -> PlainSum:
        """Return the step."""
        return PlainSum(self)


def rate(config: PlainSumConfig, stage: Stage, role: Role, index: int, steps: int) -> float:
    """Return the learning rate of `role` in step `index` of a stage of `steps` steps.

    Example:
        >>> stage = Stage("fixed mask", 1.0, {"values": 0.1})
        >>> [round(rate(PlainSumConfig(), stage, "values", i, 4), 3) for i in range(4)]
        [0.1, 0.075, 0.05, 0.025]
    """
    full = stage.learning_rates[role]
    rising = config.warmup * steps
    if index < rising:
        return full * (index + 1) / (rising + 1)
    if role not in stage.decay or config.schedule == "constant":
        return full
    done = (index - rising) / (steps - rising)
    if config.schedule == "cosine":
        return full * 0.5 * (1.0 + math.cos(math.pi * done))
    return full * (1.0 - done)


class PlainSum(Step):
    """One Adam update on the weighted sum of the objectives' mean losses.

    Gates are drawn once an update, then `Context.accumulate` batches are drawn and their gradients
    added up. Every row counts the same, however rows are spread over batches and processes, so k
    batches of b rows give the gradient of one batch of k * b rows. Gradients are clipped for each
    role by itself (Guo et al. 2020, appendix: "separately for w and for alpha").

    Arguments:
        config: weights of the objectives, optimiser and schedule.
    """

    def __init__(self, config: PlainSumConfig | None = None) -> None:
        self.config = config or PlainSumConfig()
        self._roles: dict[Role, list[nn.Parameter]] = {}
        self._frozen: list[nn.Parameter] = []
        self._optimiser: torch.optim.AdamW | None = None

    def __repr__(self) -> str:
        return f"PlainSum({self.config})"

    def begin(self, context: Context) -> None:
        """Build one optimiser with one parameter group for each role that the stage trains.

        Raises:
            UnknownNameError: `weights` or `streams` names an objective that the task has not.
        """
        for name in (*self.config.weights, *self.config.streams):
            # a stage that picks its objectives leaves the others to other stages
            if not context.stage.objectives and name not in context.objectives:
                raise UnknownNameError("objective", name, context.objectives)
        rates = context.stage.learning_rates
        self._roles, self._frozen = {}, []
        for group in context.groups:
            trained = group.role in rates
            kept = self._roles.setdefault(group.role, []) if trained else self._frozen
            kept.extend(group.parameters)
        settings = [
            {
                "params": parameters,
                "lr": rates[role],
                "weight_decay": 0.0 if role == "gates" else self.config.weight_decay,
            }
            for role, parameters in self._roles.items()
            if parameters
        ]
        betas, eps = self.config.betas, self.config.eps
        self._optimiser = (
            torch.optim.AdamW(settings, betas=betas, eps=eps, fused=True) if settings else None
        )

    def update(self, context: Context) -> dict[str, float]:
        """Draw, add up gradients, clip, step.

        Returns:
            "loss" (mean over all rows of all processes), "norm/<role>" before clipping and
            "rate/<role>".

        Raises:
            TrainingError: a loss or a gradient is NaN or infinite. Values are as before the step.
        """
        context.prepare()
        loss, processes = self._backward(context)
        context.collect()
        shared = [_gradient(p) for ps in self._roles.values() for p in ps]
        context.reduce([loss, *shared])
        if processes > 1:
            torch._foreach_div_([loss, *shared], float(processes))
        scalars = self._clip(context, loss)
        rates = self._step(context)
        for parameter in self._frozen:
            parameter.grad = None
        return {**scalars, **{f"rate/{role}": value for role, value in rates.items()}}

    def _backward(self, context: Context) -> tuple[Tensor, int]:
        """Add up gradients; return this process's part of the loss and the number of processes.

        Each process's part is scaled so that the MEAN over processes is the gradient over all
        rows: what `collect` adds beside the loss (a penalty) is then counted once, not once a
        process.
        """
        streams = {o: self.config.streams.get(o, "train") for o in context.objectives}
        draws = [
            {stream: context.draw(stream) for stream in dict.fromkeys(streams.values())}
            for _ in range(context.accumulate)
        ]
        processes, rows = _count(context, draws)
        summed = []
        for draw in draws:
            parts = []
            for name, objective in context.objectives.items():
                weight = self.config.weights.get(name, 1.0) * processes / rows[streams[name]]
                parts.append(context.losses(objective, draw[streams[name]]).sum() * weight)
            part = torch.stack(parts).sum() if len(parts) > 1 else parts[0]
            part.backward()
            summed.append(part.detach())
        return torch.stack(summed).sum(), processes

    def _clip(self, context: Context, loss: Tensor) -> dict[str, float]:
        roles = {role: ps for role, ps in self._roles.items() if ps}
        norms = [nn.utils.get_total_norm(_gradient(p) for p in ps) for ps in roles.values()]
        # one transfer for all scalars: each .item() would wait for the device
        numbers = torch.stack([loss, *(n.to(loss) for n in norms)]).tolist()
        for (role, parameters), norm in zip(roles.items(), numbers[1:], strict=True):
            if not math.isfinite(norm):
                raise TrainingError(
                    f"{context.where}: the gradient norm of the {role} is {norm} although the loss "
                    f"is {numbers[0]:g}; lower its learning rate"
                )
            limit = context.stage.clip
            if limit is not None and norm > limit:
                torch._foreach_mul_([_gradient(p) for p in parameters], limit / norm)
        named = zip(roles, numbers[1:], strict=True)
        return {"loss": numbers[0], **{f"norm/{role}": norm for role, norm in named}}

    def _step(self, context: Context) -> dict[str, float]:
        if self._optimiser is None:
            return {}
        roles: list[Role] = [role for role, parameters in self._roles.items() if parameters]
        rates: dict[str, float] = {}
        for role, group in zip(roles, self._optimiser.param_groups, strict=True):
            value = rate(self.config, context.stage, role, context.index, context.steps)
            group["lr"] = rates[role] = value
        self._optimiser.step()
        self._optimiser.zero_grad()
        return rates

    def tensors(self) -> dict[str, Tensor]:
        """Return Adam's moments and step counts as "<role>.<index>.<name>"."""
        if self._optimiser is None:
            return {}
        state = self._optimiser.state
        return {
            f"{role}.{i}.{key}": value
            for role, parameters in self._roles.items()
            for i, parameter in enumerate(parameters)
            for key, value in state.get(parameter, {}).items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore Adam's state, bit for bit; call it after `begin`.

        Raises:
            TrainingError: the state is of other trainable values.
        """
        left = dict(tensors)
        for role, parameters in self._roles.items():
            for i, parameter in enumerate(parameters):
                state = {key: left.pop(f"{role}.{i}.{key}", None) for key in _STATE}
                if self._optimiser is None or all(value is None for value in state.values()):
                    continue
                moment = state["exp_avg"]
                if moment is None or moment.shape != parameter.shape:
                    raise TrainingError(
                        f"the optimiser state of {role}.{i} does not fit its shape "
                        f"{tuple(parameter.shape)}; was the configuration changed?"
                    )
                self._optimiser.state[parameter] = {
                    key: value.to(parameter.device, copy=True)
                    for key, value in state.items()
                    if value is not None
                }
        if left:
            raise TrainingError(f"optimiser state of unknown values: {sorted(left)[:3]}")


_STATE = ("step", "exp_avg", "exp_avg_sq")


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Return `.grad`, zeros where nothing reached it: processes must reduce the same tensors."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _count(context: Context, draws: list[dict[str, Batch]]) -> tuple[int, dict[str, int]]:
    """Return the number of processes, and the rows of each stream over all of them."""
    streams = list(draws[0])
    local = [sum(len(draw[stream]) for draw in draws) for stream in streams]
    counts = torch.tensor([1, *local], dtype=torch.int64)
    context.reduce([counts])
    processes, *rows = counts.tolist()
    return processes, dict(zip(streams, rows, strict=True))
