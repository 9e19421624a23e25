"""The little that a training loop of your own needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import nn

from graftwork._errors import ConfigError
from graftwork.deltas import BaseLike
from graftwork.tuning._tuner import Attachment, Stage, Tuner


def stages(
    tuner: Tuner, base: BaseLike, targets: Iterable[str], *, seed: int
) -> Iterator[tuple[Stage, Attachment]]:
    """Yield each stage of a tuner with its attachment, ready to be trained.

    Going on to the next one advances the tuner: for diff pruning, gates are projected to a mask.

    Arguments:
        tuner: what to train.
        base: the frozen base.
        targets: canonical names of the tensors to tune.
        seed: seeds what the tuner draws by itself (a random mask, the gates of the projection).
    """
    attachment: Attachment | None = tuner.attach(base, list(targets), seed=seed)
    for stage in tuner.stages:
        if attachment is None:
            return
        yield stage, attachment
        attachment = attachment.advance()


def adam(
    stage: Stage, attachment: Attachment, head: Iterable[nn.Parameter] = ()
) -> torch.optim.Adam:
    """Return Adam over the values of an attachment, each role at the rate of its stage.

    Arguments:
        stage: gives the learning rates; a role without one is left out.
        attachment: gives values and gates.
        head: parameters of the task's head.

    Raises:
        ConfigError: nothing would be trained.
    """
    roles = [(group.role, group.parameters) for group in attachment.groups()]
    roles.append(("head", tuple(head)))
    settings = [
        {"params": list(parameters), "lr": stage.learning_rates[role]}
        for role, parameters in roles
        if parameters and role in stage.learning_rates
    ]
    if not settings:
        raise ConfigError(f"stage {stage.name!r} trains only a head: pass its parameters as head=")
    return torch.optim.Adam(settings, fused=True)
