"""Regression from embeddings: ridge, forest, or any regressor of scikit-learn, scored by cross-validation in space.

The targets are numbers (biomass, cover, yield) at points, in polygons or in a raster (`deo_cube.heads.targets`); the
map has the units of the targets and is missing where the embeddings are.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import boolean, integer, number
from deo_cube.constants import Attribute
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.extras import require
from deo_cube.heads.areas import mean_of
from deo_cube.heads.base import BaseHead, ModelId, check_model
from deo_cube.heads.cells import TrainingVectors
from deo_cube.heads.classes import Classes
from deo_cube.heads.estimators import Fitted, Opaque, as_arrays, checked_function, fitted_copy, refuse_opaque
from deo_cube.heads.intervals import Interval, difference, normal_quantile, regression_scores
from deo_cube.heads.splits import blocks
from deo_cube.heads.targets import TargetOptions, target_vectors
from deo_cube.heads.vectors import map_vectors

__all__ = ["ForestHead", "MeanEstimate", "RegressionHead", "RegressorHead", "RidgeHead"]

Array = NDArray[Any]

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)
"""Candidates for the strength of the regularisation of ridge."""
FOLDS = 5
MAX_TRAINING = 1000
"""Vectors of the training data that a head keeps, from which its area of applicability is found."""
NO_CLASSES = Classes((), ())

Fit = Callable[[TrainingVectors], Callable[[Array], Array]]
"""Training data -> function of vectors (n, D) that returns (n, 1)."""


@dataclass(frozen=True)
class MeanEstimate:
    """Mean of a quantity over a region.

    Parameters
    ----------
    mean : Interval
        Mean of the map minus its cross-validated bias, with the interval of that bias.
    mapped : float
        Mean of the map.
    hectares : float
        Area of the cells with a value.
    units : str
    """

    mean: Interval
    mapped: float
    hectares: float
    units: str = ""

    @property
    def total(self) -> Interval:
        """Mean times hectares: tonnes for a quantity in t/ha, hectares for a fraction of cover."""
        return Interval(*(v * self.hectares for v in self.mean))

    def __str__(self) -> str:
        unit = f" {self.units}" if self.units else ""
        return f"mean {self.mean}{unit} over {self.hectares:.5g} ha (mean of the map {self.mapped:.3g}{unit})"


@dataclass(frozen=True)
class RegressionHead(BaseHead):
    """A function of a vector that returns a number, with its cross-validated errors in `report`.

    Parameters
    ----------
    classes : Classes
        Empty.
    tensors : mapping
        Those of the steps of the estimator (`deo_cube.heads.estimators.Fitted`), and under ``"training."`` places and
        vectors of a part of the training data.
    steps : str
        Kinds of the steps, as a JSON list.
    units, quantity : str
        Of the targets: "t/ha", "above-ground biomass".
    crs : str
        Of the places of the training data.
    report : dict
        ``r2``, ``rmse``, ``mae``, ``bias``: value and 95 % interval by cross-validation in blocks of space;
        ``error_90``: 90 % of those errors are smaller; number of targets; validation; seconds.
    estimator : Opaque, optional
        An estimator without a form as arrays, which is not saved.
    """

    kind: ClassVar[str] = "regressor"
    reads: ClassVar[type[TargetOptions]] = TargetOptions
    classes: Classes
    model: ModelId
    tensors: Mapping[str, Array] = field(repr=False)
    steps: str = "[]"
    units: str = ""
    quantity: str = "value"
    crs: str = ""
    report: dict[str, Any] = field(default_factory=dict, compare=False)
    estimator: Opaque | None = field(default=None, repr=False, compare=False, metadata={"saved": False})

    def __post_init__(self) -> None:
        _ = self.function

    @cached_property
    def function(self) -> Fitted | Opaque:
        """Function of vectors (n, D) that returns (n, 1)."""
        return checked_function(
            self.steps, self.tensors, self.estimator, dim=self.model.dim, outputs=1, kind="regression"
        )

    def predict(self, embeddings: xr.DataArray, *, probabilities: bool = False) -> xr.DataArray:
        """Return the quantity (time, y, x) float32, NaN where the embeddings are missing; lazy on Dask.

        `probabilities` must be False: a regression has none.
        """
        if probabilities:
            raise ArgumentError("probabilities must be False for a regression, which has no classes")
        emb = check_model(self, embeddings)
        function = self.function
        return map_vectors(lambda v: function(v)[:, 0], [emb], name="value", attrs=self.attrs())

    def attrs(self) -> dict[str, Any]:
        """Return the attributes of a map: name, units, and the cross-validated errors."""
        attrs: dict[str, Any] = {"long_name": self.quantity, Attribute.HEAD: self.kind}
        attrs[Attribute.MODEL_FINGERPRINT] = self.model.fingerprint
        if self.units:
            attrs["units"] = self.units
        if "rmse" in self.report:
            r2, rmse = self.report["r2"][0], self.report["rmse"][0]
            attrs["comment"] = f"R2 {r2:.2f}, RMSE {rmse:.3g} by {self.report['validation']}"
        return attrs

    def mean(
        self, embeddings: xr.DataArray, *, where: xr.DataArray | None = None, confidence: float = 0.95
    ) -> MeanEstimate:
        """Return the mean of the quantity over a region, corrected by the cross-validated bias, with its interval.

        The interval is right if the targets are a probability sample of the region, and no guide if they were chosen.
        For a sample of its own use `deo_cube.assess`.

        Parameters
        ----------
        embeddings : DataArray
            (embedding, y, x), or of one time.
        where : DataArray of bool, optional
            (y, x), the region.
        confidence : float
            Of the interval.

        Raises
        ------
        ArgumentError
            For several times, and without a valid vector in the region.
        """
        confidence = number("confidence", confidence, minimum=0.5, maximum=0.9999)
        values = self.predict(embeddings)
        if values.sizes.get("time", 1) > 1:
            raise ArgumentError(f"embeddings must be of one time, got {values.sizes['time']}: emb.sel(time=...)")
        values = values.squeeze("time", drop=True) if "time" in values.dims else values
        if where is not None:
            values = values.where(where)
        mapped, hectares = mean_of(values)
        if not hectares:
            raise ArgumentError("where must hold a place with a valid embedding, found none")
        bias, error = self.report["bias"][0], self.report["bias_error"]
        half = normal_quantile(confidence) * error if error is not None else np.nan
        value = mapped - bias
        return MeanEstimate(Interval(value, value - half, value + half), mapped, hectares, self.units)

    def save(self, path: Any) -> Any:
        """Write the head to one ``.safetensors`` file and return its path.

        Raises
        ------
        ArgumentError
            For an estimator without a form as arrays, with the reason.
        """
        refuse_opaque(self.estimator)
        return super().save(path)

    @classmethod
    def _fitted(
        cls,
        arrays: Sequence[xr.DataArray],
        targets: Sequence[Any],
        options: TargetOptions,
        model: ModelId,
        fit: Fit,
        own: _Own,
        translate: Callable[[Any, TrainingVectors], Fitted | Opaque],
        facts: Callable[[Any], dict[str, Any]] = lambda fitted: {},
    ) -> Self:
        data, units, quantity = target_vectors(arrays, targets, options)
        data = data.subsample(own.most)
        report = {"targets": len(np.unique(data.cell)), "vectors": len(data.truth)}
        report |= _validated(data, fit, own)
        fitted = fit(data)
        function = translate(fitted, data)
        if own.limits is not None:
            low, high = (
                np.finfo("float32").max * s if v is None else v for s, v in zip((-1, 1), own.limits, strict=True)
            )
            if isinstance(function, Fitted):
                function = function.then("clip", low=np.float64(low), high=np.float64(high))
        tensors = dict(function.tensors) if isinstance(function, Fitted) else {}
        return cls(
            NO_CLASSES,
            model,
            tensors | (_training(data) if own.keep_training else {}),
            json.dumps(function.steps if isinstance(function, Fitted) else []),
            own.units or units,
            own.quantity or options.column or quantity or "value",
            data.crs,
            report | facts(fitted),
            function if isinstance(function, Opaque) else None,
        )

    def _repr_html_(self) -> str:
        facts = {"model": str(self.model), "units": self.units} | self.report
        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items() if v
        )
        return f"<div><b>{html.escape(self.kind)} head: {html.escape(self.quantity)}</b><table>{rows}</table></div>"


@dataclass(frozen=True)
class _Own:
    """Options that every regression has."""

    block: float | None = None
    buffer: float | None = None
    limits: tuple[float | None, float | None] | None = None
    units: str = ""
    quantity: str = ""
    most: int = 50000
    keep_training: bool = True

    def __post_init__(self) -> None:
        if self.block is not None:
            number("block", self.block, above=0)
        if self.buffer is not None:
            number("buffer", self.buffer, minimum=0)
        integer("most", self.most)
        boolean("keep_training", self.keep_training)
        for name in ("units", "quantity"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentTypeError(f"{name} must be text, got {getattr(self, name)!r:.60}")
        if self.limits is not None:
            pair = self.limits
            if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
                raise ArgumentTypeError(f"limits must be a pair (lowest, highest), got {pair!r:.60}")
            ends = [None if v is None else number("limits", v) for v in pair]
            if ends[0] is not None and ends[1] is not None and ends[0] >= ends[1]:
                raise ArgumentError(f"limits must be (lowest, highest), got {pair!r:.60}")


@dataclass(frozen=True)
class RidgeHead(RegressionHead):
    """Ridge regression on standardised vectors."""

    kind: ClassVar[str] = "ridge"

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        targets: Sequence[Any],
        target_options: TargetOptions,
        model: ModelId,
        *,
        strengths: Sequence[float] = STRENGTHS,
        block: float | None = None,
        buffer: float | None = None,
        limits: tuple[float | None, float | None] | None = None,
        units: str = "",
        quantity: str = "",
        most: int = 50000,
        keep_training: bool = True,
    ) -> Self:
        """Choose the strength in blocks of space, inside each fold of the validation, then fit on all targets.

        Parameters
        ----------
        strengths : sequence of float
            Candidates for the strength of the regularisation.
        block : float, optional
            Side of a block of the cross-validation in units of the CRS. Default: about 6 x 6 blocks.
        buffer : float, optional
            Training cells nearer than this to a test cell are left out. Default: the side of a cell.
        limits : (float or None, float or None), optional
            Lowest and highest value of the map, as (0, None) for biomass and (0, 1) for a fraction.
        units, quantity : str
            Of the targets. Default: the attributes of a raster; the name of the column.
        most : int
            Fit on a random subsample of this size where there are more vectors.
        keep_training : bool
            Keep places and vectors of up to 1000 targets in the head, from which `assess` warns of leaks and finds the
            area of applicability. Pass False where the places must not be published with the head.
        """
        own = _Own(block, buffer, limits, units, quantity, most, keep_training)
        if not isinstance(strengths, Sequence | np.ndarray) or isinstance(strengths, str) or not len(strengths):
            raise ArgumentTypeError(f"strengths must be a list of positive numbers, got {strengths!r:.60}")
        candidates = np.array([number("strengths", s, above=0) for s in strengths])

        def fit(data: TrainingVectors) -> _Ridge:
            return _chosen_ridge(data, candidates, own)

        def arrays_of(fitted: Any, data: TrainingVectors) -> Fitted:
            return Fitted((), {}).then("linear", weights=fitted.weights, bias=fitted.bias)

        def facts(fitted: Any) -> dict[str, Any]:
            return {"strength": fitted.strength}

        return cls._fitted(arrays, targets, target_options, model, fit, own, arrays_of, facts)


@dataclass(frozen=True)
class ForestHead(RegressionHead):
    """A random forest, which needs no assumption about the form of the relation and never leaves the targets' range."""

    kind: ClassVar[str] = "forest"

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        targets: Sequence[Any],
        target_options: TargetOptions,
        model: ModelId,
        *,
        trees: int = 100,
        leaf: int = 3,
        seed: int = 0,
        block: float | None = None,
        buffer: float | None = None,
        limits: tuple[float | None, float | None] | None = None,
        units: str = "",
        quantity: str = "",
        most: int = 20000,
        keep_training: bool = True,
    ) -> Self:
        """Fit a random forest.

        Parameters
        ----------
        trees : int
            Number of trees.
        leaf : int
            Fewest targets in a leaf.
        seed : int
            Of the random numbers.
        block, buffer, limits, units, quantity, most, keep_training
            As in `RidgeHead.fit`.
        """
        ensemble = require("sklearn.ensemble", extra="heads", purpose="a forest")
        forest = ensemble.RandomForestRegressor(
            integer("trees", trees),
            min_samples_leaf=integer("leaf", leaf),
            random_state=integer("seed", seed, minimum=0),
            max_features="sqrt",
            n_jobs=-1,
        )
        own = _Own(block, buffer, limits, units, quantity, most, keep_training)
        return cls._fitted(arrays, targets, target_options, model, _fit_of(forest), own, _translated)


@dataclass(frozen=True)
class RegressorHead(RegressionHead):
    """Any regressor of scikit-learn."""

    @classmethod
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        targets: Sequence[Any],
        target_options: TargetOptions,
        model: ModelId,
        *,
        estimator: Any,
        block: float | None = None,
        buffer: float | None = None,
        limits: tuple[float | None, float | None] | None = None,
        units: str = "",
        quantity: str = "",
        most: int = 50000,
        keep_training: bool = True,
    ) -> Self:
        """Fit a clone of `estimator`; further options as in `RidgeHead.fit`."""
        own = _Own(block, buffer, limits, units, quantity, most, keep_training)
        return cls._fitted(arrays, targets, target_options, model, _fit_of(estimator), own, _translated)


def _fit_of(estimator: Any) -> Fit:
    def fit(data: TrainingVectors) -> Opaque:
        return Opaque(fitted_copy(estimator, data.vectors, data.truth, data.weights), "")

    return fit


def _translated(fitted: Opaque, data: TrainingVectors) -> Fitted | Opaque:
    return as_arrays(fitted.estimator, data.vectors, data.truth)


def _training(data: TrainingVectors) -> dict[str, Array]:
    """Return places (m, 2), vectors (m, D) and cell size of a part of the training data, as tensors."""
    part = data.subsample(MAX_TRAINING)
    places = np.stack([part.x, part.y], axis=1) if data.crs else np.empty((0, 2))
    return {
        "training.places": places,
        "training.vectors": part.vectors,
        "training.cell_size": np.array([data.cell_size]),
    }


# ---- validation -----------------------------------------------------------------------------------------------------


def _validated(data: TrainingVectors, fit: Fit, own: _Own) -> dict[str, Any]:
    """Return the scores of predictions for cells that were not trained on, nor their neighbours."""
    none = {"validation": "none: the targets are in one block of space", "bias": [0.0, None, None], "bias_error": None}
    folds = data.folds(FOLDS, own.block, own.buffer)
    if folds is None:
        return none
    predicted = np.full(len(data.truth), np.nan)
    for train, test in folds.pairs:
        function = fit(data.take(train))
        predicted[test] = _limited(function(data.vectors[test])[:, 0], own)
    scored = np.isfinite(predicted)
    if not scored.any():
        return none
    block = np.floor([data.x / folds.side, data.y / folds.side])
    group = np.unique(block, axis=1, return_inverse=True)[1].ravel()[scored]
    truth, weights, own_values = data.truth[scored], data.weights[scored], predicted[scored]
    scores = regression_scores(truth, own_values, weights, group)
    residual = difference(0.0, truth - own_values, weights, group)
    error = (residual.high - residual.value) / normal_quantile(0.95)
    return {
        "validation": str(folds),
        **{k: [_rounded(v) for v in i] for k, i in scores.items()},
        "error_90": _rounded(float(np.quantile(np.abs(truth - own_values), 0.9))),
        "bias_error": _rounded(error),
    }


def _limited(values: Array, own: _Own) -> Array:
    if own.limits is None:
        return values
    low, high = own.limits
    return np.clip(values, -np.inf if low is None else low, np.inf if high is None else high)


def _rounded(value: float) -> float | None:
    """Return a number of four digits; None for NaN, which JSON has no form for."""
    return float(f"{value:.4g}") if np.isfinite(value) else None


# ---- ridge ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ridge:
    """Weights (D, 1) and bias (1,) for vectors that are not standardised."""

    weights: Array
    bias: Array
    strength: float

    def __call__(self, vectors: Array) -> Array:
        return np.asarray(vectors.astype("float64") @ self.weights + self.bias)


def _chosen_ridge(data: TrainingVectors, strengths: Array, own: _Own) -> _Ridge:
    """Return ridge regression with the strength whose errors in blocks of space are smallest."""
    best = len(strengths) // 2
    side, buffer = data.block_sizes(own.block, own.buffer)
    try:
        folds = blocks(data.x, data.y, side, folds=3, buffer=buffer, seed=1)
    except ArgumentError:
        folds = []
    errors = np.zeros(len(strengths))
    for train, test in folds:
        if np.count_nonzero(train) < 2 or not test.any():
            continue
        weights, bias = _ridge(data.vectors[train], data.truth[train], data.weights[train], strengths)
        error = data.vectors[test].astype("float64") @ weights + bias - data.truth[test, None]
        errors += (data.weights[test, None] * error**2).sum(axis=0)
    if errors.any():
        best = int(errors.argmin())
    weights, bias = _ridge(data.vectors, data.truth, data.weights, strengths[best : best + 1])
    return _Ridge(weights, bias, float(strengths[best]))


def _ridge(vectors: Array, values: Array, weights: Array, strengths: Array) -> tuple[Array, Array]:
    """Return weights (D, K) and bias (K,) of ridge regression for each of K strengths.

    One eigendecomposition serves all strengths.
    """
    x, w = vectors.astype("float64"), weights / weights.mean()
    mean, centre = np.average(x, axis=0, weights=w), np.average(values, weights=w)
    x = x - mean
    scale = np.sqrt(np.average(x**2, axis=0, weights=w))
    scale[scale < 1e-12] = 1.0
    x /= scale
    gram, right = (x * w[:, None]).T @ x, x.T @ (w * (values - centre))
    eigenvalues, basis = np.linalg.eigh(gram)
    shrunk = (basis.T @ right)[:, None] / (np.maximum(eigenvalues, 0)[:, None] + strengths)
    coefficients = basis @ shrunk / scale[:, None]
    return coefficients, centre - mean @ coefficients
