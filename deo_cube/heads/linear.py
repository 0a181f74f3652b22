"""A linear map on standardised vectors: logistic regression or ridge, its strength chosen in blocks of space."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, integer, number
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.head import Fitted, Model, category_attrs, check_model, counted, labelled, thinned
from deo_cube.heads.labels import Cases
from deo_cube.heads.splits import blocks
from deo_cube.heads.vectors import map_vectors

__all__ = ["LinearHead"]

Array = NDArray[Any]
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class LinearHead(Fitted):
    """Class scores ``vector @ weights + bias``, standardisation folded in; softmax gives probabilities.

    For ridge the softmax of its scores in -1..1 is an order, not a calibrated probability.
    """

    kind: ClassVar[str] = "linear"
    classes: Classes
    model: Model
    weights: Array = field(repr=False)
    """(D, K) float64, for vectors as they are."""
    bias: Array = field(repr=False)
    """(K,) float64."""
    estimator: str = "logistic"
    report: dict[str, Any] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        if self.weights.shape != (self.model.dim, len(self.classes)) or self.bias.shape != (len(self.classes),):
            raise ArgumentError(
                f"a linear head's parts do not fit: weights {self.weights.shape}, bias {self.bias.shape}, "
                f"vectors of {self.model.dim}, {len(self.classes)} classes"
            )

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        many: Sequence[Any],
        burn_options: Mapping[str, Any],
        model: Model,
        *,
        estimator: Literal["logistic", "ridge"] = "logistic",
        strengths: Sequence[float] = STRENGTHS,
        block: float | None = None,
        buffer: float | None = None,
        balanced: bool = True,
        most: int = 50000,
    ) -> LinearHead:
        """Choose the strength C by cross-validation in blocks of space, then fit on all.

        Parameters
        ----------
        estimator : {"logistic", "ridge"}
            Logistic regression, or ridge on -1..1 targets (faster for many vectors).
        strengths : sequence of float
            Candidates for C, the inverse of the regularisation; one is taken as it is.
        block : float, optional
            Side of a block in units of the CRS. Default: the labelled area cut into about 6 x 6.
        buffer : float, optional
            Training cells nearer than this to a test cell are left out. Default: the side of a cell.
        balanced : bool
            Weigh classes to equal sums.
        most : int
            Fit on a random so many vectors where there are more.
        """
        if estimator not in ("logistic", "ridge"):
            raise ArgumentError(f"estimator must be 'logistic' or 'ridge', got {estimator!r}")
        most, balanced = integer("most", most), boolean("balanced", balanced)
        block = None if block is None else number("block", block, above=0)
        buffer = None if buffer is None else number("buffer", buffer, minimum=0)
        c = labelled(arrays, many, burn_options)
        if len(c.codes) > most:
            keep = thinned(c.codes, most)
            c = Cases(c.vectors[keep], c.codes[keep], c.classes, c.x[keep], c.y[keep], c.cell[keep], c.size)
        report = counted(c) | _choose(c, estimator, strengths, block, buffer, balanced)
        weights, bias = _fit(c.vectors, c.codes, c.classes, estimator, report["C"], balanced)
        return cls(c.classes, model, weights, bias, estimator, report)

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """See `Head.predict`."""
        emb = check_model(self, embeddings)
        codes = np.array(self.classes.codes)
        attrs = category_attrs(self, probabilities=probabilities)
        if probabilities:
            channels = {"class": list(self.classes.names)}
            return map_vectors(self._probabilities, [emb], channels=channels, name="probability", attrs=attrs)
        return map_vectors(
            lambda v: codes[(v @ self.weights + self.bias).argmax(axis=1)], [emb],
            dtype="uint8", fill=NO_CLASS, name="class", attrs=attrs,
        )  # fmt: skip

    def _probabilities(self, v: Array) -> Array:
        return _softmax(v @ self.weights + self.bias)


def _softmax(scores: Array) -> Array:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _fit(
    vectors: Array, codes: Array, classes: Classes, estimator: str, strength: float, balanced: bool
) -> tuple[Array, Array]:
    """Weights (D, K) and bias (K,) for vectors as they are; a class absent from `codes` gets no score."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression, RidgeClassifier
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(vectors.astype("float64"))
    x = scaler.transform(vectors.astype("float64"))
    weight = "balanced" if balanced else None
    if estimator == "ridge":
        model = RidgeClassifier(alpha=1 / strength, class_weight=weight)
    else:
        model = LogisticRegression(C=strength, max_iter=500, class_weight=weight)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, codes)
    coef, intercept = np.atleast_2d(model.coef_), np.atleast_1d(model.intercept_)
    if len(model.classes_) == 2:
        # One score for two classes: shared out, so that the softmax of both is the logistic function of the one.
        half = 0.5 if estimator == "logistic" else 1.0
        coef, intercept = (
            np.concatenate([-half * coef, half * coef]),
            np.concatenate([-half * intercept, half * intercept]),
        )
    weights = (coef / scaler.scale_).T
    bias = intercept - (scaler.mean_ / scaler.scale_) @ coef.T
    out = np.zeros((vectors.shape[1], len(classes))), np.full(len(classes), -1e9)
    at = [classes.codes.index(int(k)) for k in model.classes_]
    out[0][:, at], out[1][at] = weights, bias
    return out


def _choose(
    c: Cases, estimator: str, strengths: Sequence[float], block: float | None, buffer: float | None, balanced: bool
) -> dict[str, Any]:
    """C with the least loss on held-out blocks, and how it scored there."""
    if not isinstance(strengths, Sequence | np.ndarray) or isinstance(strengths, str) or not len(strengths):
        raise ArgumentTypeError(f"strengths must be a list of positive numbers, got {strengths!r:.60}")
    strengths = [number("strengths", s, above=0) for s in strengths]
    middle = {"C": float(sorted(strengths)[len(strengths) // 2]), "validation": "none"}
    side = block or max(np.ptp(c.x), np.ptp(c.y), c.size) / 6
    try:
        folds = blocks(c.x, c.y, side, folds=4, buffer=c.size if buffer is None else buffer)
    except ValueError:
        return middle
    # Of use is a fold whose training part has two classes at least.
    folds = [(a, b) for a, b in folds if b.any() and len(np.unique(c.codes[a])) >= 2]
    if len(folds) < 2:
        return middle
    loss, right = np.zeros(len(strengths)), np.zeros(len(strengths))
    shares = {int(k): float((c.codes == k).mean()) for k in c.classes.codes}
    total = 0.0
    for train, test in folds:
        truth = np.array([c.classes.codes.index(int(k)) for k in c.codes[test]])
        weight = np.array([1 / shares[int(k)] for k in c.codes[test]]) if balanced else np.ones(len(truth))
        total += weight.sum()
        for i, s in enumerate(strengths):
            w, b = _fit(c.vectors[train], c.codes[train], c.classes, estimator, s, balanced)
            scores = c.vectors[test].astype("float64") @ w + b
            p = _softmax(scores)[np.arange(len(truth)), truth]
            loss[i] += (weight * -np.log(np.maximum(p, 1e-4))).sum()
            right[i] += (weight * (scores.argmax(axis=1) == truth)).sum()
    # Ridge's scores are no log-probabilities: there what is right counts.
    best = int(np.argmin(loss)) if estimator == "logistic" else int(np.argmax(right))
    return {
        "C": float(strengths[best]),
        "validation": f"{len(folds)} folds of blocks of {side:g}, buffer {c.size if buffer is None else buffer:g}",
        "accuracy": round(float(right[best] / total), 3),
        "accuracy_is": "balanced over classes" if balanced else "plain",
    }
