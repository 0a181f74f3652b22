"""A linear map on standardised vectors: logistic regression or ridge, with C chosen in blocks of space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, choice, integer, number
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require
from deo_cube.heads.base import BaseHead, ModelId, predict_classes
from deo_cube.heads.cells import TrainingVectors
from deo_cube.heads.classes import Classes
from deo_cube.heads.labels import LabelOptions, class_counts, label_vectors
from deo_cube.heads.vectors import softmax

__all__ = ["LinearHead"]

Array = NDArray[Any]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LinearHead(BaseHead):
    """Class scores ``vector @ weights + bias``; their softmax gives probabilities.

    The standardisation is part of the weights. With ridge, whose scores are between -1 and 1, the softmax orders the
    classes and is not a calibrated probability.

    Parameters
    ----------
    weights : (D, K) float64
    bias : (K,) float64
    estimator : {"logistic", "ridge"}
    """

    kind: ClassVar[str] = "linear"
    classes: Classes
    model: ModelId
    weights: Array = field(repr=False)
    bias: Array = field(repr=False)
    estimator: str = "logistic"
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.weights.shape != (self.model.dim, len(self.classes)) or self.bias.shape != (len(self.classes),):
            raise ArgumentError(
                f"weights and bias of a linear head must be ({self.model.dim}, {len(self.classes)}) and "
                f"({len(self.classes)},), got {self.weights.shape} and {self.bias.shape}"
            )

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        labels: Sequence[Any],
        label_options: LabelOptions,
        model: ModelId,
        *,
        estimator: Literal["logistic", "ridge"] = "logistic",
        strengths: Sequence[float] = STRENGTHS,
        block: float | None = None,
        buffer: float | None = None,
        balanced: bool = True,
        most: int = 50000,
    ) -> LinearHead:
        """Choose C by cross-validation in blocks of space, then fit on all labelled vectors.

        Parameters
        ----------
        estimator : {"logistic", "ridge"}
            Logistic regression, or ridge regression on targets -1 and 1 (faster with many vectors).
        strengths : sequence of float
            Candidates for C, the inverse strength of the regularisation.
        block : float, optional
            Side of a block in units of the CRS. Default: the labelled area divided into about 6 x 6 blocks.
        buffer : float, optional
            Training cells nearer than this to a test cell are left out. Default: the side of a cell.
        balanced : bool
            Give every class the same total weight.
        most : int
            Fit on a random subsample of this size where there are more vectors.
        """
        require("sklearn", extra="heads", purpose="a linear head")
        choice("estimator", estimator, ("logistic", "ridge"))
        most, balanced = integer("most", most), boolean("balanced", balanced)
        block = None if block is None else number("block", block, above=0)
        buffer = None if buffer is None else number("buffer", buffer, minimum=0)
        if not isinstance(strengths, Sequence | np.ndarray) or isinstance(strengths, str) or not len(strengths):
            raise ArgumentTypeError(f"strengths must be a list of positive numbers, got {strengths!r:.60}")
        candidates = [number("strengths", s, above=0) for s in strengths]
        labelled, classes = label_vectors(arrays, labels, label_options)
        labelled = labelled.subsample_classes(most)
        report = class_counts(labelled, classes)
        report |= _choose_strength(labelled, classes, estimator, candidates, block, buffer, balanced)
        weights, bias = _fit(labelled.vectors, labelled.truth, classes, estimator, report["C"], balanced)
        return cls(classes, model, weights, bias, estimator, report)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes or probabilities, as `Head.predict`."""
        return predict_classes(self, embeddings, self._scores, self._probabilities if probabilities else None)

    def _scores(self, vectors: Array) -> Array:
        return np.asarray(vectors @ self.weights + self.bias)

    def _probabilities(self, vectors: Array) -> Array:
        return softmax(self._scores(vectors))


def _fit(
    vectors: Array, codes: Array, classes: Classes, estimator: str, strength: float, balanced: bool
) -> tuple[Array, Array]:
    """Return weights (D, K) and bias (K,) for vectors that are not standardised; absent classes get a score of -1e9."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(vectors.astype("float64"))
    class_weight = "balanced" if balanced else None
    if estimator == "ridge":
        regression = RidgeClassifier(alpha=1 / strength, class_weight=class_weight)
    else:
        regression = LogisticRegression(C=strength, max_iter=500, class_weight=class_weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression.fit(scaler.transform(vectors.astype("float64")), codes)
    coef, intercept = np.atleast_2d(regression.coef_), np.atleast_1d(regression.intercept_)
    if len(regression.classes_) == 2:
        # scikit-learn gives one score for two classes. Half of it with either sign makes the softmax of the two equal
        # to the logistic function of the one.
        half = 0.5 if estimator == "logistic" else 1.0
        coef = np.concatenate([-half * coef, half * coef])
        intercept = np.concatenate([-half * intercept, half * intercept])
    weights, bias = np.zeros((vectors.shape[1], len(classes))), np.full(len(classes), -1e9)
    columns = [classes.codes.index(int(k)) for k in regression.classes_]
    weights[:, columns] = (coef / scaler.scale_).T
    bias[columns] = intercept - (scaler.mean_ / scaler.scale_) @ coef.T
    return weights, bias


def _choose_strength(
    labelled: TrainingVectors,
    classes: Classes,
    estimator: str,
    strengths: Sequence[float],
    block: float | None,
    buffer: float | None,
    balanced: bool,
) -> dict[str, Any]:
    """Return C with the least loss on held-out blocks, and its score there, for the report."""
    codes = labelled.truth
    middle = {"C": float(sorted(strengths)[len(strengths) // 2]), "validation": "none"}
    folds = labelled.folds(4, block, buffer)
    if folds is None:
        return middle
    losses, correct, total = np.zeros(len(strengths)), np.zeros(len(strengths)), 0.0
    shares = {int(k): float((codes == k).mean()) for k in classes.codes}
    for train, test in folds.pairs:
        truth = np.array([classes.codes.index(int(k)) for k in codes[test]])
        weight = np.array([1 / shares[int(k)] for k in codes[test]]) if balanced else np.ones(len(truth))
        total += weight.sum()
        for i, strength in enumerate(strengths):
            weights, bias = _fit(labelled.vectors[train], codes[train], classes, estimator, strength, balanced)
            scores = labelled.vectors[test].astype("float64") @ weights + bias
            p = softmax(scores)[np.arange(len(truth)), truth]
            losses[i] += (weight * -np.log(np.maximum(p, 1e-4))).sum()
            correct[i] += (weight * (scores.argmax(axis=1) == truth)).sum()
    # Scores of ridge are not log-probabilities: there the number of correct cells decides.
    best = int(np.argmin(losses)) if estimator == "logistic" else int(np.argmax(correct))
    return {
        "C": float(strengths[best]),
        "validation": str(folds),
        "accuracy": round(float(correct[best] / total), 3),
        "accuracy_is": "balanced over classes" if balanced else "plain",
    }
