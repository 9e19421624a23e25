"""The frozen probe: how much of a property a linear model reads from fixed features."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from graftwork.domains.molecules._splits import Split
from graftwork.domains.molecules._tokenizer import atom_tokens, vocabulary_of
from graftwork.errors import InputError

Floats = NDArray[np.floating[Any]]
CLIPS = (math.inf, 3.0)
PENALTIES = tuple(float(10.0**power) for power in range(-3, 5))


def probe(
    features: Floats,
    targets: Floats,
    split: Split,
    kind: Literal["regression", "binary"],
    penalties: Iterable[float] = PENALTIES,
    clips: Iterable[float] = CLIPS,
) -> dict[str, float]:
    """Fit ridge or logistic regression on frozen features, chosen on the validation rows.

    Features are scaled to mean 0 and deviation 1 over the training rows, and clipped: a few very
    long molecules lie far out, and a linear model follows them. The validation rows choose penalty
    and clip, for each kind of features by itself. Missing targets (NaN) are left out.

    Args:
        features: `(M, F)`.
        targets: `(M,)` numbers, or 0 and 1.
        split: rows of training, validation (chooses penalty and clip) and test.
        kind: "regression" or "binary".
        penalties: strengths that are tried.
        clips: deviations beyond which features are cut off that are tried; inf leaves them.

    Returns:
        Over the test rows: "mae", "rmse" and "r2"; or "roc_auc" in percent. And the
        "penalty" and "clip" that were chosen.

    Raises:
        InputError: a part has no labelled rows, or for "binary" only one class.
    """
    parts = [rows[~np.isnan(targets[rows])] for rows in split]
    if any(not len(rows) for rows in parts):
        raise InputError(
            f"labelled rows of the parts: {[len(rows) for rows in parts]}; none may be 0"
        )
    train, valid, test = parts
    # float64: features of a base are nearly dependent, which float32 does not bear
    features = features.astype(np.float64)
    mean, deviation = features[train].mean(0), features[train].std(0)
    scaled = (features - mean) / np.where(deviation > 0, deviation, 1.0)
    best: tuple[float, dict[str, float], dict[str, float]] | None = None
    for clip, penalty in itertools.product(clips, penalties):
        x = np.clip(scaled, -clip, clip)
        model = _fitted(kind, penalty, x[train], targets[train])
        score = _score(kind, model, x[valid], targets[valid])[0]
        if best is None or score > best[0]:
            chosen = {"penalty": penalty, "clip": clip}
            best = (score, chosen, _score(kind, model, x[test], targets[test])[1])
    if best is None:
        raise InputError("give the probe at least one penalty and one clip")
    return best[2] | best[1]


def token_counts(smiles: list[str]) -> NDArray[np.float64]:
    """Return `(M, tokens)` how often each token comes in each molecule: the bag of tokens.

    Example:
        >>> token_counts(["CCO", "CN"]).tolist()
        [[2.0, 0.0, 1.0], [1.0, 1.0, 0.0]]
    """
    place = {token: i for i, token in enumerate(vocabulary_of(smiles))}
    counts = np.zeros((len(smiles), len(place)))
    for row, text in enumerate(smiles):
        for token in atom_tokens(text):
            counts[row, place[token]] += 1
    return counts


def _fitted(kind: str, penalty: float, x: Floats, y: Floats) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "regression":
        return Ridge(alpha=penalty).fit(x, y)
    if len(np.unique(y)) < 2:
        raise InputError("the training rows of a binary target have one class only")
    return LogisticRegression(C=1 / penalty, max_iter=2000).fit(x, y)


def _score(kind: str, model: Any, x: Floats, y: Floats) -> tuple[float, dict[str, float]]:
    from sklearn.metrics import (
        mean_absolute_error,
        r2_score,
        roc_auc_score,
        root_mean_squared_error,
    )

    if kind == "binary":
        if len(np.unique(y)) < 2:
            raise InputError("the measured rows of a binary target have one class only")
        area = 100 * float(roc_auc_score(y, model.predict_proba(x)[:, 1]))
        return area, {"roc_auc": area}
    found = model.predict(x)
    rmse, mae = float(root_mean_squared_error(y, found)), float(mean_absolute_error(y, found))
    return -rmse, {"mae": mae, "rmse": rmse, "r2": float(r2_score(y, found))}
