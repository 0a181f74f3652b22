"""A linear map on standardised vectors: logistic regression or ridge, with C chosen in blocks of space."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, choice
from deo_cube.errors import ArgumentError
from deo_cube.extras import require
from deo_cube.heads.base import BaseHead, ModelId, predict_classes
from deo_cube.heads.cells import FoldOptions, TrainingVectors, check_strengths, set_checked
from deo_cube.heads.classes import Classes
from deo_cube.heads.labels import LabelOptions, class_counts, label_vectors
from deo_cube.heads.vectors import softmax

__all__ = ["LinearHead", "LinearOptions"]

Array = NDArray[Any]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True, kw_only=True)
class LinearOptions(FoldOptions):
    """Options of a linear head.

    Parameters
    ----------
    estimator : {"logistic", "ridge"}
        Logistic regression, or ridge regression on targets -1 and 1 (faster with many vectors).
    strengths : sequence of float
        Candidates for C, the inverse strength of the regularisation.
    balanced : bool
        Give every class the same total weight.
    """

    estimator: Literal["logistic", "ridge"] = "logistic"
    strengths: Sequence[float] = STRENGTHS
    balanced: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("estimator", self.estimator, ("logistic", "ridge"))
        check_strengths(self.strengths)
        set_checked(self, balanced=boolean("balanced", self.balanced))


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
    options: ClassVar[type[LinearOptions]] = LinearOptions
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
        options: LinearOptions,
    ) -> LinearHead:
        """Choose C by cross-validation in blocks of space, then fit on all labelled vectors."""
        require("sklearn", extra="heads", purpose="a linear head")
        labelled, classes = label_vectors(arrays, labels, label_options)
        labelled = labelled.subsample_classes(options.most)
        report = class_counts(labelled, classes) | _choose_strength(labelled, classes, options)
        weights, bias = _fit(labelled.vectors, labelled.truth, classes, options, report["C"])
        return cls(classes, model, weights, bias, options.estimator, report)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return classes or probabilities, as `Head.predict`."""
        return predict_classes(self, embeddings, self._scores, self._probabilities if probabilities else None)

    def _scores(self, vectors: Array) -> Array:
        return np.asarray(vectors @ self.weights + self.bias)

    def _probabilities(self, vectors: Array) -> Array:
        return softmax(self._scores(vectors))


def _fit(
    vectors: Array, codes: Array, classes: Classes, options: LinearOptions, strength: float
) -> tuple[Array, Array]:
    """Return weights (D, K) and bias (K,) for vectors that are not standardised; absent classes get a score of -1e9."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(vectors.astype("float64"))
    class_weight = "balanced" if options.balanced else None
    if options.estimator == "ridge":
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
        half = 0.5 if options.estimator == "logistic" else 1.0
        coef = np.concatenate([-half * coef, half * coef])
        intercept = np.concatenate([-half * intercept, half * intercept])
    weights, bias = np.zeros((vectors.shape[1], len(classes))), np.full(len(classes), -1e9)
    columns = [classes.codes.index(int(k)) for k in regression.classes_]
    weights[:, columns] = (coef / scaler.scale_).T
    bias[columns] = intercept - (scaler.mean_ / scaler.scale_) @ coef.T
    return weights, bias


def _choose_strength(labelled: TrainingVectors, classes: Classes, options: LinearOptions) -> dict[str, Any]:
    """Return C with the least loss on held-out blocks, and its score there, for the report."""
    codes, strengths, balanced = labelled.truth, options.strengths, options.balanced
    middle = {"C": float(sorted(strengths)[len(strengths) // 2]), "validation": "none"}
    folds = labelled.folds(4, options.block, options.buffer)
    if folds is None:
        return middle
    losses, correct, total = np.zeros(len(strengths)), np.zeros(len(strengths)), 0.0
    shares = {int(k): float((codes == k).mean()) for k in classes.codes}
    for train, test in folds.pairs:
        truth = np.array([classes.codes.index(int(k)) for k in codes[test]])
        weight = np.array([1 / shares[int(k)] for k in codes[test]]) if balanced else np.ones(len(truth))
        total += weight.sum()
        for i, strength in enumerate(strengths):
            weights, bias = _fit(labelled.vectors[train], codes[train], classes, options, strength)
            scores = labelled.vectors[test].astype("float64") @ weights + bias
            p = softmax(scores)[np.arange(len(truth)), truth]
            losses[i] += (weight * -np.log(np.maximum(p, 1e-4))).sum()
            correct[i] += (weight * (scores.argmax(axis=1) == truth)).sum()
    # Scores of ridge are not log-probabilities: there the number of correct cells decides.
    best = int(np.argmin(losses)) if options.estimator == "logistic" else int(np.argmax(correct))
    return {
        "C": float(strengths[best]),
        "validation": str(folds),
        "accuracy": round(float(correct[best] / total), 3),
        "accuracy_is": "balanced over classes" if balanced else "plain",
    }
