"""The objective "align": losses whose mean is the distance, gradients to the port, and looks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from graftwork._batch import Batch
from graftwork._errors import ConfigError, InputError, UnsupportedError
from graftwork.nn import Patches
from graftwork.objectives import Align, DatasetDistance, kernel_mmd, pairwise_l2, separability

pytest.importorskip("ot", reason="the extra `transport` is absent")


class _Model:
    """What alignment needs of a model: its ports."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.ports = nn.ModuleDict({"input": Patches(1, [2], 4)})

    def __call__(self, batch: Batch) -> torch.Tensor:
        raise AssertionError("alignment does not run the base")


def _model() -> _Model:
    return _Model()


def _batch() -> Batch:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(12, 6, generator=rng)
    return Batch({"x": x}, torch.arange(12) % 3 * 2, torch.arange(12))


def _source() -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(2)
    return 0.1 * torch.randn(15, 4, generator=rng) + 1.0, torch.arange(15) % 4


def test_the_mean_loss_is_the_distance_of_scaled_token_means() -> None:
    model, batch, source = _model(), _batch(), _source()
    spread = source[0].var(0, correction=0).sum().sqrt()
    features = model.ports["input"](batch.inputs["x"]).mean(1) / spread
    first, second = (features, batch.targets), (source[0] / spread, source[1])
    wanted = {
        "otdd": DatasetDistance(solver="exact")(first, second),
        "mmd": kernel_mmd(first[0], second[0]),
        "l2": pairwise_l2(first[0], second[0]),
    }
    for name, value in wanted.items():
        losses = Align(source=source, distance=name)(model, batch)
        assert losses.shape == (12,)
        torch.testing.assert_close(losses.mean(), value)


def test_classwise_losses_are_of_each_rows_class() -> None:
    model, batch = _model(), _batch()
    distance = DatasetDistance(solver="exact", classwise=True)
    losses = Align(source=_source(), distance=distance)(model, batch)
    assert len({round(v, 5) for v in losses.tolist()}) == 3
    for label in (0, 2, 4):
        assert losses[batch.targets == label].std() == 0


@pytest.mark.parametrize("name", ["otdd", "mmd", "l2"])
def test_steps_on_the_port_lower_the_distance_and_nothing_else_is_needed(name: str) -> None:
    model, batch = _model(), _batch()
    align = Align(source=_source(), distance=name, probe=batch)
    before = align.look(model)
    optimiser = torch.optim.Adam(model.ports.parameters(), lr=0.02)
    for _ in range(60):
        optimiser.zero_grad()
        align(model, batch).mean().backward()
        optimiser.step()
    after = align.look(model)
    assert after.distance < 0.7 * before.distance
    assert 0 <= after.separability <= 1


def test_one_class_at_a_time_makes_classes_collapse_more_than_all_at_once() -> None:
    found = {}
    for classwise in (False, True):
        model, batch = _model(), _batch()
        batch.inputs["x"][:] += batch.targets[:, None]
        distance = DatasetDistance(solver="exact", classwise=classwise)
        align = Align(source=_source(), distance=distance, probe=batch)
        optimiser = torch.optim.Adam(model.ports.parameters(), lr=0.02)
        for _ in range(150):
            optimiser.zero_grad()
            align(model, batch).mean().backward()
            optimiser.step()
        found[classwise] = align.look(model).separability
    assert found[True] < found[False]


def test_separability_is_the_share_between_classes() -> None:
    x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [6.0, 1.0], [8.0, 1.0]])
    # total 9 + 9 + 1 + 1 ... around 4: 16 + 4 + 4 + 16; between: 4 * 9
    assert separability(x, torch.tensor([0, 0, 1, 1])) == pytest.approx(36 / 40)
    assert separability(torch.ones(3, 2), torch.tensor([0, 1, 1])) == 0.0


def test_what_is_missing_is_named() -> None:
    batch, source = _batch(), _source()
    with pytest.raises(UnsupportedError, match="port 'input'"):
        Align(source=source)(lambda b: b, batch)
    with pytest.raises(InputError, match="pseudo labels"):
        Align(source=source)(_model(), Batch(batch.inputs, None, batch.rows))
    with pytest.raises(InputError, match="equal"):
        Align(source=(torch.ones(3, 4), torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ConfigError, match="probe"):
        Align(source=source).look(_model())


@pytest.mark.usefixtures("untyped")
def test_unknown_distances_are_named() -> None:
    with pytest.raises(ConfigError, match="'cosine'"):
        Align(source=_source(), distance="cosine")
