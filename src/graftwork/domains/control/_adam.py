"""The state of an Adam optimiser as named tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from graftwork.errors import TrainingError


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
        # Adam keeps its count on the CPU
        device = "cpu" if key == "step" else parameter.device
        optimiser.state[parameter][key] = value.to(device, copy=True)


def _parameters(optimiser: torch.optim.Adam) -> list[torch.nn.Parameter]:
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]
