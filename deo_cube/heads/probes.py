"""Probe frozen features with nearest neighbours and regularised linear maps, which have little capacity themselves."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from deo_cube.extras import require

__all__ = ["choose_cases", "knn", "linear_probe", "ridge_probe"]

Array = NDArray[Any]

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
RIDGE_STRENGTHS = (1.0, 10.0, 100.0, 1e3, 1e4)
ITERATIONS = 200
"""Largest number of steps of L-BFGS."""
"""Candidates for C (inverse of the regularisation) of a linear probe."""


def choose_cases(labels: Array, per_class: int, seed: int) -> Array:
    """Return indices of `per_class` random cases of each class; all of a class that has fewer."""
    rng = np.random.default_rng(seed)
    parts = []
    for c in np.unique(labels):
        where = np.flatnonzero(labels == c)
        parts.append(rng.choice(where, size=min(per_class, len(where)), replace=False))
    return np.concatenate(parts)


def knn(train: Array, labels: Array, test: Array, *, k: int = 5) -> Array:
    """Return the label of each test vector (m, D): the majority of its k nearest in cosine distance.

    Features are standardised. Weights decrease with distance, so a tie goes to the class with the nearer neighbours.
    """
    require("sklearn", extra="heads", purpose="a probe of features")
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(train)
    fitted = KNeighborsClassifier(k, metric="cosine", algorithm="brute", weights="distance").fit(
        scaler.transform(train).astype("float32"), labels
    )
    return cast(Array, fitted.predict(scaler.transform(test).astype("float32")))


def linear_probe(
    train: Array,
    labels: Array,
    *,
    groups: Array | None = None,
    strengths: Sequence[float] = STRENGTHS,
    balanced: bool = False,
) -> Any:
    """Fit logistic regression on standardised features; C is chosen on a held-out third of the groups.

    Parameters
    ----------
    train : (n, D) float
        Features.
    labels : (n,) int
        Classes.
    groups : (n,) int, optional
        Cases of one group stay on one side when C is chosen. Default: each case is its own group.
    strengths : sequence of float
        Candidates for C.
    balanced : bool
        Give every class the same total weight.

    Returns
    -------
    sklearn Pipeline
        With `predict`, `predict_proba` and `decision_function`.
    """
    require("sklearn", extra="heads", purpose="a probe of features")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    def model(c: float) -> Any:
        return make_pipeline(
            StandardScaler(),
            LogisticRegression(C=c, max_iter=ITERATIONS, class_weight="balanced" if balanced else None, solver=solver),
        )

    train = np.asarray(train, dtype="float32")
    # Few correlated features (raw bands) take L-BFGS thousands of steps; Newton's method a handful.
    solver = "newton-cholesky" if train.shape[1] * len(np.unique(labels)) <= 600 else "lbfgs"
    # Matrices this small gain nothing from several threads, and where the cores are busy lose threefold by waiting.
    with threadpool_limits(1), warnings.catch_warnings():
        # Stopped early by `ITERATIONS` a probe is only a little more regularised; rare classes may miss a fold.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.simplefilter("ignore", UserWarning)
        best = strengths[len(strengths) // 2]
        g = np.arange(len(labels)) if groups is None else groups
        commonest = int(np.unique(labels, return_counts=True)[1].max())
        folds = min(3, commonest, len(np.unique(g)))
        if len(strengths) > 1 and folds > 1:
            fold = StratifiedGroupKFold(folds, shuffle=True, random_state=0)
            inner, outer = next(fold.split(train, labels, g))
            if len(np.unique(labels[inner])) > 1 and len(outer):
                scored = [
                    model(c).fit(train[inner], labels[inner]).score(train[outer], labels[outer]) for c in strengths
                ]
                best = strengths[int(np.argmax(scored))]
        return model(best).fit(train, labels)


def ridge_probe(train: Array, values: Array, *, groups: Array) -> Any:
    """Fit ridge regression on standardised features (n, D); its strength is chosen on a held-out third of the groups.

    Returns
    -------
    sklearn Pipeline
        With `predict`.
    """
    require("sklearn", extra="heads", purpose="a probe of features")
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import GroupKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    def fitted(alpha: float, rows: Any = slice(None)) -> Any:
        return make_pipeline(StandardScaler(), Ridge(alpha=alpha)).fit(train[rows], values[rows])

    train = np.asarray(train, dtype="float64")
    best = RIDGE_STRENGTHS[len(RIDGE_STRENGTHS) // 2]
    if len(np.unique(groups)) > 2:
        inner, outer = next(GroupKFold(3).split(train, values, groups))
        errors = [np.square(fitted(a, inner).predict(train[outer]) - values[outer]).mean() for a in RIDGE_STRENGTHS]
        best = RIDGE_STRENGTHS[int(np.argmin(errors))]
    return fitted(best)
