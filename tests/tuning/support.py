"""A base and a training loop for tests of tuners: what a user's own loop looks like."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from graftwork.deltas import NameMap, TensorPrint, identity_names
from graftwork.tuning import Attachment, Stage, Tuner

Loss = Callable[[nn.Module, int], Tensor]
"""(module, step) -> a scalar loss."""


@dataclass(frozen=True, eq=False)
class PlainBase:
    """The least that deltas need of a base."""

    model: nn.Module
    names: NameMap
    processing: Mapping[str, str] = field(default_factory=dict)

    def prints(self, names: Iterable[str]) -> Mapping[str, TensorPrint]:
        return {name: self._print(name) for name in names}

    def _print(self, name: str) -> TensorPrint:
        piece = self.names[name]
        tensor = piece.of(self.model.get_parameter(piece.parameter).detach()).contiguous()
        digest = hashlib.sha256(tensor.view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return TensorPrint(piece.shape, str(tensor.dtype).removeprefix("torch."), digest[:16])


def plain_base(model: nn.Module, names: NameMap | None = None) -> PlainBase:
    """Return a base over `model`, frozen."""
    model.requires_grad_(False)
    return PlainBase(model.eval(), names or identity_names(model))


def bits(model: nn.Module) -> str:
    """Return a digest of every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def optimiser_of(stage: Stage, attachment: Attachment) -> torch.optim.Optimizer | None:
    """Return Adam over the stage's roles."""
    settings = [
        {"params": list(group.parameters), "lr": stage.learning_rates[group.role]}
        for group in attachment.groups()
        if group.parameters
    ]
    return torch.optim.Adam(settings) if settings else None


def run_stage(
    attachment: Attachment, stage: Stage, loss: Loss, steps: int, *, first_step: int = 0
) -> list[float]:
    """Train one stage; return the losses."""
    optimiser = optimiser_of(stage, attachment)
    losses = []
    for step in range(steps):
        attachment.prepare(step / steps, seed=first_step + step)
        value = loss(attachment.module, first_step + step)
        value.backward()
        attachment.collect()
        if optimiser is not None:
            optimiser.step()
            optimiser.zero_grad()
        losses.append(value.item())
    return losses


def train(tuner: Tuner, attachment: Attachment, loss: Loss, steps: int) -> Attachment:
    """Train all stages, `steps` in all; return the last attachment."""
    done = 0
    for stage in tuner.stages:
        count = max(1, round(stage.share * steps))
        run_stage(attachment, stage, loss, count, first_step=done)
        done += count
        following = attachment.advance()
        if following is None:
            return attachment
        attachment = following
    return attachment


def after_resume(
    attach: Callable[[int], Attachment], stage: Stage, loss: Callable[[Attachment, int], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the state after 20 steps, gone through in one and saved and restored before step 9.

    Args:
        attach: a fresh attachment by seed; what is restored into has another one.
        stage: gives the rates.
        loss: of an attachment, by step.
    """

    def run(interrupt: bool) -> dict[str, Tensor]:
        attachment = attach(1)
        optimiser = optimiser_of(stage, attachment)
        assert optimiser is not None
        for step in range(20):
            if interrupt and step == 9:
                saved = {k: v.clone() for k, v in attachment.tensors().items()}
                state = optimiser.state_dict()
                attachment = attach(77)
                attachment.load_tensors(saved)
                optimiser = optimiser_of(stage, attachment)
                assert optimiser is not None
                optimiser.load_state_dict(state)
            attachment.prepare(step / 20, seed=step)
            loss(attachment, step).backward()
            attachment.collect()
            optimiser.step()
            optimiser.zero_grad()
        return {k: v.clone() for k, v in attachment.tensors().items()}

    return run(False), run(True)
