"""The copy of the base that a batch runs in: sealed parameters, and nothing left in the base."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from graftwork._errors import UnusedTensorError
from graftwork.serving._twin import BypassedError, Sealed
from tests.serving.support import deltas_of, in_turn, plain_call, rows_of


def sealed() -> Sealed:
    parameter: Sealed = torch.ones(2, 3).as_subclass(Sealed)
    parameter.tensor_name = "layer.weight"
    return parameter


def test_type_and_shape_of_a_sealed_parameter_can_be_read() -> None:
    parameter = sealed()
    assert parameter.dtype == torch.float32
    assert parameter.shape == (2, 3)
    assert parameter.device.type == "cpu"
    assert parameter.dim() == parameter.ndim == 2
    assert parameter.size(0) == 2
    assert parameter.is_floating_point()


@pytest.mark.parametrize(
    "use",
    [
        lambda p: p + 1,
        lambda p: nn.functional.linear(torch.zeros(1, 3), p),
        lambda p: p.data,
        lambda p: p.detach(),
        lambda p: p[0],
        lambda p: p.T,
        lambda p: p.numpy(),
        lambda p: p.tolist(),
        lambda p: torch.stack([p, p]),
        lambda p: torch.zeros(3, 3).addmm(p, p),
        lambda p: float(p[0, 0]),
        lambda p: p.clone(),
        lambda p: p.data_ptr(),
    ],
)
def test_law07_every_use_of_its_values_is_an_error(use: Any) -> None:
    with pytest.raises(BypassedError, match=r"'layer\.weight' is read by a module that does not"):
        use(sealed())


def test_a_module_that_is_kept_beyond_its_run_is_an_error() -> None:
    held = deltas_of(nn.Sequential(nn.Linear(4, 2)))
    kept: list[nn.Module] = []

    def keep(module: nn.Module, ports: nn.ModuleDict, inputs: Any) -> Tensor:
        kept.append(module)
        return module(inputs["x"])

    held.run(in_turn(4, 3), rows_of(torch.zeros(4, 4)), keep)
    with pytest.raises(UnusedTensorError, match="'0' was kept beyond the run that lent it"):
        kept[-1](torch.zeros(4, 4))


def test_law01_the_base_has_the_same_module_and_bits_after_many_runs() -> None:
    held = deltas_of(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
    before = {name: p.detach().clone() for name, p in held.base.model.named_parameters()}
    classes = [type(module) for module in held.base.model.modules()]
    for rows in (in_turn(6, 3), [()] * 6, [((0, 0.5), (1, 1.0))] * 6):
        held.check(rows, rows_of(torch.randn(6, 4)), plain_call)
    assert [type(module) for module in held.base.model.modules()] == classes
    for name, parameter in held.base.model.named_parameters():
        assert torch.equal(parameter, before[name])
    assert not any(module._forward_hooks for module in held.base.model.modules())
    held.base.verify()
