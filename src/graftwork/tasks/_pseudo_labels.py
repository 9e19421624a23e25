"""Classes for targets that have none: clusters of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from graftwork._errors import InputError


def pseudo_labels(values: Any, clusters: int = 10, *, seed: int = 0) -> NDArray[np.int64]:
    """Return the k-means cluster of each row's values, `(rows,)` int64, 0 to clusters - 1.

    Regression and dense targets have no classes, which distances between labelled data sets need;
    Shen et al. (2023) take 10 clusters of the flattened targets.

    Args:
        values: `(rows, ...)` numbers, e.g. a column of targets, a field a row, or features.
        clusters: how many; fewer where there are fewer different rows.
        seed: of the starting centres.

    Raises:
        InputError: no rows, or a value is not finite.

    Example:
        >>> labels = pseudo_labels([0.0, 5.1, 0.1, 5.0], clusters=2)
        >>> labels.tolist()
        [0, 1, 0, 1]
    """
    from sklearn.cluster import KMeans

    rows = np.asarray(values, dtype=np.float64)
    rows = rows.reshape(len(rows), -1)
    if not rows.size or not np.isfinite(rows).all():
        raise InputError("pseudo labels need rows of finite numbers; there is NaN, or no row")
    most = min(clusters, len(np.unique(rows, axis=0)))
    found = KMeans(most, n_init=4, random_state=seed).fit_predict(rows)
    # Numbered by first appearance, so that they do not depend on the order of the centres.
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place].astype(np.int64)
