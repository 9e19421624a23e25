"""The dataset distance against linear programs of SciPy, closed forms and finite differences."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from graftwork._errors import ConfigError, InputError
from graftwork.objectives import (
    DatasetDistance,
    dataset_distance,
    exact_w2,
    gaussian_w2,
    kernel_mmd,
    pairwise_l2,
    sinkhorn_w2,
)

pytest.importorskip("ot", reason="the extra `transport` is absent")
pytest.importorskip("geomloss", reason="the extra `transport` is absent")

Labelled = tuple[Tensor, Tensor]


def _sets(seed: int, rows: tuple[int, int] = (9, 12), width: int = 3) -> tuple[Labelled, Labelled]:
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, width, generator=rng, dtype=torch.float64) for n in rows)
    labels = (torch.arange(rows[0]) % 2 * 5, torch.arange(rows[1]) % 3)
    return (x + labels[0][:, None] / 5, labels[0]), (y + 1.0 - labels[1][:, None], labels[1])


def linear_program(cost: np.ndarray) -> float:
    """Least transport cost of uniform weights by SciPy's simplex: an oracle without POT."""
    n, m = cost.shape
    marginals = np.zeros((n + m, n * m))
    for i, j in itertools.product(range(n), range(m)):
        marginals[i, i * m + j] = marginals[n + j, i * m + j] = 1.0
    right = np.concatenate([np.full(n, 1 / n), np.full(m, 1 / m)])
    found = scipy.optimize.linprog(cost.ravel(), A_eq=marginals, b_eq=right, method="highs")
    assert found.success
    return float(found.fun)


def squares(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return ((x[:, None] - y[None]) ** 2).sum(-1)


def bures(x: np.ndarray, y: np.ndarray) -> float:
    """The textbook form with matrix roots, to be compared with ours without any."""
    covariances = [np.atleast_2d(np.cov(z.T, bias=True)) for z in (x, y)]
    cross = _root(_root(covariances[0]) @ covariances[1] @ _root(covariances[0]))
    spread = np.trace(covariances[0] + covariances[1] - 2 * cross)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + spread)


def _root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(values.clip(0))) @ vectors.T


def oracle(first: Labelled, second: Labelled, classes: str) -> float:
    (x, y), (u, v) = ((f.numpy(), c.numpy()) for f, c in (first, second))
    cost = squares(x, u) / 2
    for a, b in itertools.product(np.unique(y), np.unique(v)):
        own, other = x[y == a], u[v == b]
        w = linear_program(squares(own, other)) if classes == "samples" else bures(own, other)
        cost[np.ix_(y == a, v == b)] += w / 2
    return linear_program(cost)


@pytest.mark.parametrize("classes", ["samples", "gaussian"])
@pytest.mark.parametrize("seed", range(3))
def test_exact_distance_is_that_of_independent_linear_programs(classes: str, seed: int) -> None:
    first, second = _sets(seed)
    ours = DatasetDistance(solver="exact", classes=classes)(first, second).item()
    assert ours == pytest.approx(oracle(first, second, classes), rel=1e-6)


@pytest.mark.parametrize("classes", ["samples", "gaussian"])
def test_small_temperature_gives_the_exact_distance(classes: str) -> None:
    first, second = _sets(0)
    sharp = DatasetDistance(classes=classes, eps=1e-3, scaling=0.98)(first, second).item()
    exact = DatasetDistance(solver="exact", classes=classes)(first, second).item()
    assert sharp == pytest.approx(exact, rel=5e-3)


def test_sinkhorn_is_that_of_a_plain_log_domain_loop() -> None:
    first, second = _sets(1)
    distance = DatasetDistance(classes="gaussian", eps=0.3, scaling=0.98)
    table = distance.label_distances(first, second)
    places = first[1] // 5, second[1] + 2

    def regularised(x: Tensor, i: Tensor, y: Tensor, j: Tensor) -> Tensor:
        cost = (torch.cdist(x, y) ** 2 + table[i][:, j]) / 2
        f, g = torch.zeros(len(x), dtype=x.dtype), torch.zeros(len(y), dtype=x.dtype)
        a, b = -np.log(len(x)), -np.log(len(y))
        for _ in range(3000):
            f = -0.3 * torch.logsumexp(b + (g - cost) / 0.3, 1)
            g = -0.3 * torch.logsumexp(a + (f[:, None] - cost) / 0.3, 0)
        return f.mean() + g.mean()

    sides = (first[0], places[0]), (second[0], places[1])
    cross = regularised(*sides[0], *sides[1])
    own = sum(regularised(*side, *side) for side in sides)
    assert distance(first, second).item() == pytest.approx((cross - own / 2).item(), rel=1e-3)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
@pytest.mark.parametrize("classes", ["samples", "gaussian"])
def test_gradient_is_that_of_finite_differences(solver: str, classes: str) -> None:
    first, second = _sets(2, rows=(6, 8), width=2)
    distance = DatasetDistance(solver=solver, classes=classes, eps=0.5, scaling=0.999)
    x = first[0].clone().requires_grad_()
    distance((x, first[1]), second).backward()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    step = 1e-4
    up, down = (
        distance((first[0] + s * step * direction, first[1]), second).item() for s in (1, -1)
    )
    slope = (x.grad * direction).sum().item()
    assert slope == pytest.approx((up - down) / (2 * step), rel=2e-2)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_detached_labels_change_the_gradient_and_not_the_value(solver: str) -> None:
    first, second = _sets(3)
    found = {}
    for detach in (False, True):
        x = first[0].clone().requires_grad_()
        value = DatasetDistance(solver=solver, detach_labels=detach)((x, first[1]), second)
        value.backward()
        found[detach] = value.item(), x.grad
    assert found[True][0] == found[False][0]
    assert not torch.allclose(found[True][1], found[False][1], rtol=1e-2)


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_no_grad_holds(solver: str) -> None:
    first, second = _sets(3)
    x = first[0].clone().requires_grad_()
    with torch.no_grad():
        value = DatasetDistance(solver=solver)((x, first[1]), second)
        assert not value.requires_grad
        assert not torch.is_grad_enabled()


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_equal_sets_have_distance_nought_and_shifted_ones_the_square(solver: str) -> None:
    first, _ = _sets(4)
    distance = DatasetDistance(solver=solver)
    assert distance(first, first).item() == pytest.approx(0.0, abs=1e-9)
    shifted = (first[0] + 2.0, first[1])
    # every row moves by (2, 2, 2): 12 / 2 for the rows and 12 / 2 for their classes
    assert distance(first, shifted).item() == pytest.approx(12.0, rel=1e-3)


def test_classwise_is_the_weighted_sum_over_single_classes() -> None:
    first, second = _sets(5)
    distance = DatasetDistance(solver="exact", classwise=True)
    joint = DatasetDistance(solver="exact")
    wanted = 0.0
    for label in first[1].unique():
        part = first[0][first[1] == label]
        single = joint((part, torch.zeros(len(part), dtype=torch.int64)), second)
        wanted += len(part) / len(first[0]) * single.item()
    assert distance(first, second).item() == pytest.approx(wanted, rel=1e-9)
    assert wanted != pytest.approx(joint(first, second).item(), rel=1e-2)


def test_a_class_of_one_row_counts() -> None:
    first, second = _sets(6)
    first = (first[0], torch.tensor([7] + [0] * 8))
    for classes in ("samples", "gaussian"):
        ours = DatasetDistance(solver="exact", classes=classes)(first, second).item()
        assert ours == pytest.approx(oracle(first, second, classes), rel=1e-6)
        assert DatasetDistance(classes=classes)(first, second).item() > 0


def test_fewer_rows_than_features_and_repeated_rows_have_finite_gradients() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(5, 40, generator=rng).requires_grad_()
    y = torch.randn(4, 40, generator=rng)
    value = gaussian_w2([(x, y), (torch.cat((x, x)), y)])
    value.sum().backward()
    assert value[0].item() == pytest.approx(bures(x.detach().numpy(), y.numpy()), rel=1e-4)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("solver", ["sinkhorn", "exact"])
def test_tables_of_classes_hold_what_each_pair_gives_alone(solver: str) -> None:
    first, second = _sets(7, rows=(9, 30))
    groups = [f[c == k] for f, c in (first, second) for k in c.unique()]
    table = DatasetDistance(solver=solver).label_distances(first, second)
    assert table.shape == (5, 5)
    for i, j in itertools.combinations(range(5), 2):
        pair = [(groups[i], groups[j])]
        if solver == "sinkhorn":
            # another pair in the batch may raise the first temperature
            assert table[i, j].item() == pytest.approx(sinkhorn_w2(pair).item(), rel=5e-3)
        else:
            crosses = i < 2 <= j
            assert table[i, j].item() == (pytest.approx(exact_w2(pair).item()) if crosses else 0.0)
    torch.testing.assert_close(table, table.T)


def test_inner_distances_have_no_half() -> None:
    x = torch.zeros(3, 2, dtype=torch.float64)
    pairs = [(x, x + 3.0), (x[:1], x + 1.0)]
    for values in (gaussian_w2(pairs), exact_w2(pairs), sinkhorn_w2(pairs)):
        torch.testing.assert_close(values, torch.tensor([18.0, 2.0], dtype=torch.float64))


def test_mmd_and_l2_against_loops() -> None:
    (x, _), (y, _) = _sets(7, rows=(4, 5))
    rows = torch.cat((x, y)).numpy()
    table = squares(rows, rows)
    middle = table.sum() / (9 * 8)
    kernel = sum(np.exp(-table / (middle * 2.0**i)) for i in range(-2, 3))
    wanted = kernel[:4, :4].mean() + kernel[4:, 4:].mean() - 2 * kernel[:4, 4:].mean()
    assert kernel_mmd(x, y).item() == pytest.approx(wanted, rel=1e-9)
    assert pairwise_l2(x, y).item() == pytest.approx(np.sqrt(table[:4, 4:]).mean(), rel=1e-9)
    x.requires_grad_()
    (kernel_mmd(x, x.detach()) + pairwise_l2(x, x.detach())).backward()
    assert torch.isfinite(x.grad).all()


def test_what_does_not_fit_is_named() -> None:
    first, second = _sets(8)
    with pytest.raises(InputError, match=r"\(9, 3\) and \(12,\)"):
        DatasetDistance()((first[0], second[1]), second)
    with pytest.raises(InputError, match="width 2 and 3"):
        DatasetDistance()((first[0][:, :2], first[1]), second)
    with pytest.raises(InputError, match="NaN"):
        DatasetDistance(solver="exact")((first[0] * float("nan"), first[1]), second)
    for wrong in ({"eps": 0.0}, {"scaling": 1.0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            DatasetDistance(**wrong)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("wrong", [{"solver": "emd"}, {"classes": "mean"}])
def test_unknown_choices_are_errors(wrong) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DatasetDistance(**wrong)


def test_an_estimate_covers_the_whole_and_narrows_with_rows() -> None:
    first, second = _sets(9, rows=(60, 90))
    whole = DatasetDistance(solver="exact")(first, second).item()
    every = dataset_distance(first, second, rows=100, draws=3)
    assert every.draws == (pytest.approx(whole),) * 3
    few, many = (dataset_distance(first, second, rows=n, draws=15) for n in (10, 50))
    assert many.high - many.low < few.high - few.low
    assert few.low <= few.value <= few.high
    # transport between small samples is larger
    assert whole < many.value < few.value
    assert dataset_distance(first, second, rows=10, draws=15) == few
    assert dataset_distance(first, second, rows=10, draws=15, seed=1) != few
    with pytest.raises(ConfigError, match="draws"):
        dataset_distance(first, second, draws=0)
