"""Adam, and its state as named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from graftwork.errors import TrainingError


def adam(settings: Any, rate: float = 1e-3) -> torch.optim.Adam:
    """Return Adam at its usual constants, all parameters in one pass.

    Args:
        settings: parameters, or groups of them with rates of their own.
        rate: where a group has none of its own.
    """
    return torch.optim.Adam(settings, lr=rate, fused=True)


def adam_tensors(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """Return moments and counts as "<index>.<name>"; not copied."""
    return {
        f"{i}.{key}": value
        for i, parameter in enumerate(_parameters(optimiser))
        for key, value in optimiser.state.get(parameter, {}).items()
    }


def load_adam(optimiser: torch.optim.Adam, tensors: Mapping[str, Tensor], name: str) -> None:
    """Restore what `adam_tensors` returned, bit for bit.

    Raises:
        TrainingError: the state is of other parameters; names the optimiser and the place.
    """
    parameters = _parameters(optimiser)
    for place, value in tensors.items():
        index, _, key = place.partition(".")
        if not index.isdigit() or int(index) >= len(parameters):
            raise TrainingError(f"optimiser state of an unknown value: {name}.{place}")
        parameter = parameters[int(index)]
        if key.startswith("exp_avg") and value.shape != parameter.shape:
            raise TrainingError(
                f"the optimiser state of {name}.{index} has the shape {tuple(value.shape)}, its "
                f"parameter {tuple(parameter.shape)}; was the configuration changed?"
            )
        optimiser.state[parameter][key] = value.to(parameter.device, copy=True)


def _parameters(optimiser: torch.optim.Adam) -> list[torch.nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
