"""The shared copy and replaced parameters, on the battery."""

from __future__ import annotations

import copy
import threading
import weakref

import pytest
import torch
from tests.battery.models import CASES
from torch import nn

from graftwork._errors import UnknownNameError, UnsupportedError
from graftwork.deltas import replace_parameter, shared_copy


def _bits(model: nn.Module) -> dict[str, bytes]:
    return {k: v.detach().numpy().tobytes() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("name", CASES)
def test_copy_shares_every_storage_and_no_parameter_object(name: str) -> None:
    model = CASES[name].build()
    twin = shared_copy(model)
    assert type(twin) is type(model)
    mine, theirs = dict(twin.named_parameters()), dict(model.named_parameters())
    assert list(mine) == list(theirs)
    for key, parameter in mine.items():
        assert parameter is not theirs[key]
        assert parameter.data_ptr() == theirs[key].data_ptr()
        assert not parameter.requires_grad
        assert theirs[key].requires_grad
    for (_, a), (_, b) in zip(twin.named_buffers(), model.named_buffers(), strict=True):
        assert a.data_ptr() == b.data_ptr()


@pytest.mark.parametrize("name", CASES)
def test_copy_computes_the_same_bits(name: str) -> None:
    case = CASES[name]
    model, batch = case.build().requires_grad_(False), case.batch()
    twin = shared_copy(model)
    assert torch.equal(case.call(twin, batch.inputs), case.call(model, batch.inputs))


@pytest.mark.parametrize("name", CASES)
def test_law01_training_a_copy_leaves_the_base(name: str) -> None:
    case = CASES[name]
    model = case.build()
    before = _bits(model)
    twin = shared_copy(model).train()
    targets = [n for n, _ in model.named_parameters()]
    for target in targets:
        value = nn.Parameter(twin.get_parameter(target).detach().clone())
        replace_parameter(twin, target, value)
    optimiser = torch.optim.AdamW(twin.parameters(), lr=case.learning_rate)
    first = case.loss(twin, case.batch()).mean().item()
    for _ in range(50):
        optimiser.zero_grad()
        loss = case.loss(twin, case.batch()).mean()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.7 * first
    assert _bits(model) == before


def test_law01_running_statistics_stay_frozen_in_train_mode() -> None:
    case = CASES["conv"]
    model = case.build()
    before = _bits(model)
    twin = shared_copy(shared_copy(model))
    twin.train()
    assert twin.training
    assert not twin.norm1.training
    twin.norm1.training = True
    assert torch.equal(case.call(twin, case.batch().inputs), case.call(model, case.batch().inputs))
    assert _bits(model) == before
    assert isinstance(twin.norm1, nn.BatchNorm2d)
    assert type(twin.norm1).__mro__[1] is nn.BatchNorm2d


def test_law01_spectral_norm_buffers_stay_frozen() -> None:
    model = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)).eval()
    before = _bits(model)
    shared_copy(model).train()(torch.ones(1, 4))
    assert _bits(model) == before


def test_law01_load_state_dict_into_a_copy_is_refused() -> None:
    model = nn.Linear(2, 2)
    twin = shared_copy(model)
    zeros = {k: torch.zeros_like(v) for k, v in model.state_dict().items()}
    with pytest.raises(UnsupportedError, match="would overwrite the frozen base"):
        twin.load_state_dict(zeros)
    with pytest.raises(UnsupportedError, match="would overwrite the frozen base"):
        nn.Sequential(twin).load_state_dict({f"0.{k}": v for k, v in zeros.items()})
    assert model.weight.abs().sum() > 0


def test_casting_a_copy_leaves_the_original() -> None:
    model = CASES["lstm"].build()
    shared_copy(model).to(torch.float64)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_ties_stay_tied() -> None:
    twin = shared_copy(CASES["gpt2"].build())
    assert twin.lm_head.weight is twin.transformer.wte.weight


def test_replaced_parameter_appears_at_every_tied_place() -> None:
    twin = shared_copy(CASES["gpt2"].build())
    value = nn.Parameter(torch.randn_like(twin.lm_head.weight))
    replace_parameter(twin, "lm_head.weight", value)
    assert twin.lm_head.weight is value
    assert twin.transformer.wte.weight is value


def test_recurrent_kernels_read_the_replaced_parameter() -> None:
    case = CASES["lstm"]
    model = case.build()
    twin = shared_copy(model)
    flat = {id(w) for w in twin.lstm._flat_weights}
    assert flat == {id(p) for p in twin.lstm.parameters()}
    value = torch.randn_like(model.lstm.weight_hh_l1).requires_grad_()
    replace_parameter(twin, "lstm.weight_hh_l1", value * 2)
    oracle = copy.deepcopy(model)
    oracle.lstm.weight_hh_l1.data.copy_(value.detach() * 2)
    inputs = case.batch().inputs
    assert torch.equal(case.call(twin, inputs), case.call(oracle, inputs))
    case.call(twin, inputs).sum().backward()
    assert value.grad is not None
    assert value.grad.abs().sum() > 0


def test_hooks_and_bound_methods_follow_the_copy() -> None:
    class Indirect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(2, 2)
            self.method = self.double
            self.listed = [self.inner]

        def double(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.listed[0](x)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.method(x)

    model = Indirect()
    calls: list[nn.Module] = []
    model.inner.register_forward_hook(lambda m, *_: calls.append(m))
    twin = shared_copy(model)
    replace_parameter(twin, "inner.weight", torch.zeros(2, 2))
    assert torch.equal(twin(torch.ones(1, 2)), 2 * model.inner.bias.detach()[None])
    assert calls == [twin.inner]


def test_copy_does_not_keep_the_original_alive() -> None:
    model = CASES["bert"].build()
    reference = weakref.ref(model)
    twin = shared_copy(model)
    del model
    import gc

    gc.collect()
    assert reference() is None
    assert twin is not None


def test_unknown_name_and_wrong_shape_are_errors() -> None:
    twin = shared_copy(nn.Linear(2, 3))
    with pytest.raises(UnknownNameError, match="did you mean 'weight'"):
        replace_parameter(twin, "wieght", torch.zeros(3, 2))
    with pytest.raises(UnsupportedError, match=r"shape \(3, 2\), the tensor to put in has \(2,\)"):
        replace_parameter(twin, "weight", torch.zeros(2))


class _Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.linear = nn.Linear(2, 2)


def test_what_cannot_be_copied_is_named() -> None:
    with pytest.raises(UnsupportedError, match="attribute 'lock' of module '0'"):
        shared_copy(nn.Sequential(_Frozen()))
    with pytest.raises(UnsupportedError, match="'weight' is not initialised yet"):
        shared_copy(nn.LazyLinear(2))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_refused() -> None:
    scripted = torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(UnsupportedError, match="TorchScript"):
        shared_copy(nn.Sequential(scripted))


def test_packed_parameters_are_refused() -> None:
    class Packed(nn.Parameter):
        pass

    model = nn.Linear(2, 2)
    model._parameters["weight"] = Packed(torch.zeros(2, 2))
    with pytest.raises(UnsupportedError, match="'weight' is a Packed"):
        shared_copy(model)
