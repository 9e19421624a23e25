"""Embeddings, the frozen probe and attention maps."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from tests.domains.molecules.conftest import SMILES
from torch import nn

from graftwork import bases
from graftwork.domains.molecules import (
    Embedder,
    Split,
    attention_by_distance,
    attention_map,
    bond_distances,
    distance_correlation,
    probe,
    token_counts,
)
from graftwork.errors import InputError, UnsupportedError


def test_vectors_follow_the_input_and_invalid_rows_are_nan(base: bases.Base) -> None:
    embedder = Embedder(base, poolings=("mean", "max"), batch_size=3)
    given = [*SMILES, "c1cccc1", "OCC", None]
    found = embedder(given)
    assert found.vectors.shape == (len(given), 32)
    assert found.valid.tolist() == [True] * len(SMILES) + [False, True, False]
    assert np.isnan(found.vectors[~found.valid]).all()
    np.testing.assert_array_equal(found.vectors[0], found.vectors[-2])
    inputs = base.tokenizer(["CC(=O)O"], return_tensors="pt")
    with torch.inference_mode():
        hidden = base.model(**inputs)["last_hidden_state"][0]
    expected = torch.cat((hidden.mean(0), hidden.amax(0))).numpy()
    np.testing.assert_allclose(found.vectors[1], expected, atol=1e-5)
    assert found.report.problems == {"aromaticity": 1, "missing": 1}


def test_what_was_seen_is_not_encoded_again(base: bases.Base) -> None:
    embedder = Embedder(base)
    first = embedder(["CCO", "C"]).vectors
    base.model.forward = None
    np.testing.assert_array_equal(embedder(["C", "OCC"]).vectors, first[::-1])


def test_only_invalid_rows(base: bases.Base) -> None:
    assert Embedder(base)(["xx"]).vectors.shape == (1, 0)


def test_an_embedder_needs_a_tokenizer() -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        Embedder(bases.load(nn.Linear(2, 2)))


def _split(count: int) -> Split:
    return Split(*np.split(np.arange(count), [count // 2, 3 * count // 4]))


def test_probe_is_ridge_with_the_penalty_of_the_validation_rows() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 5)) * [1, 10, 100, 1, 1]
    y = x @ [1, 0.1, 0.01, 0, 0] + 0.1 * generator.normal(size=80)
    y[::10] = np.nan
    split = _split(80)
    found = probe(x, y, split, "regression")
    train, _, test = ([r for r in rows if r % 10] for rows in split)
    scaled = (x - x[train].mean(0)) / x[train].std(0)
    scaled = np.clip(scaled, -found["clip"], found["clip"])
    model = Ridge(alpha=found["penalty"]).fit(scaled[train], y[train])
    off = model.predict(scaled[test]) - y[test]
    assert found["mae"] == pytest.approx(np.abs(off).mean())
    assert found["rmse"] == pytest.approx(np.sqrt((off**2).mean()))
    assert found["r2"] > 0.98


@pytest.mark.parametrize(("outliers", "clip"), [(False, np.inf), (True, 3.0)])
def test_probe_clips_where_the_validation_rows_say_so(outliers: bool, clip: float) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(400, 3))
    y = 3 * x[:, 0] + 0.01 * generator.normal(size=400)
    x[::40, 0] = 40.0 if outliers else 4 * x[::40, 0]  # far out: without meaning, or with it
    y[::40] = y[::40] if outliers else 3 * x[::40, 0]
    assert probe(x, y, _split(400), "regression")["clip"] == clip


def test_probe_of_two_classes_is_an_area() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 3))
    found = probe(x, (x[:, 0] > 0).astype(float), _split(200), "binary")
    assert found["roc_auc"] > 97
    noise = probe(x, generator.integers(0, 2, 200).astype(float), _split(200), "binary")
    assert 20 < noise["roc_auc"] < 80


def test_probe_names_what_is_wrong() -> None:
    x, y = np.zeros((8, 2)), np.ones(8)
    with pytest.raises(InputError, match="one class only"):
        probe(x, y, _split(8), "binary")
    with pytest.raises(InputError, match=r"\[0, 2, 2\]; none may be 0"):
        probe(x, np.where(np.arange(8) < 4, np.nan, y), _split(8), "regression")


def test_counts_of_tokens() -> None:
    counts = token_counts(list(SMILES))
    expected = [len(re.findall(r"\[.*?\]|Br|Cl|.", text)) for text in SMILES]
    assert counts.sum(1).tolist() == expected


def test_attention_map_places_atoms_and_bonds(base: bases.Base) -> None:
    smiles = "C[N+](C)(C)CC(=O)O.[Cl-]"
    found = attention_map(base, smiles)
    assert [found.tokens[i] for i in found.atoms][:2] == ["C", "[N+]"]
    assert len(found.atoms) == 9
    assert found.weights.shape == (2, 2, len(found.tokens), len(found.tokens))
    np.testing.assert_allclose(found.between_atoms().sum(-1), 1, atol=1e-4)
    assert found.distances[0, 1] == 1
    assert found.distances[0, 4] == 2
    assert (found.distances[8, :8] == -1).all()
    by_distance = attention_by_distance([found], farthest=9)
    assert by_distance.shape == (2, 2, 10)
    assert np.isnan(by_distance[..., 9]).all()


def test_distances_equal_a_search_over_bonds() -> None:
    smiles = "CC1CCC2CCCCC12"
    bonds = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 1), (9, 4)]
    reach = np.full((10, 10), 99)
    np.fill_diagonal(reach, 0)
    for a, b in bonds:
        reach[a, b] = reach[b, a] = 1
    for middle in range(10):
        reach = np.minimum(reach, reach[:, [middle]] + reach[[middle], :])
    np.testing.assert_array_equal(bond_distances(smiles), reach)


def test_correlation_of_known_weights() -> None:
    from graftwork.domains.molecules import AttentionMap

    distances = bond_distances("CCCCCC")
    weights = np.stack([np.exp(-distances), np.exp(distances / 9), np.ones_like(distances)])
    weights = weights / weights.sum(-1, keepdims=True)
    one = AttentionMap("CCCCCC", (), np.arange(6), weights[None].astype(np.float32), distances)
    near, far, even = distance_correlation([one])[0]
    assert near > 0.9
    assert far < -0.9
    assert abs(even) < 0.2
    by_distance = attention_by_distance([one], farthest=5)[0]
    assert (np.diff(by_distance[0]) < 0).all()
    np.testing.assert_allclose(by_distance[2], 1, rtol=1e-5)


def test_only_modules_that_tell_their_attention() -> None:
    with pytest.raises(UnsupportedError, match="Linear has no method `attentions`"):
        attention_map(bases.load(nn.Linear(2, 2)), "CC")
