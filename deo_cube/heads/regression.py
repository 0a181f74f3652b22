"""Regression from embeddings: ridge, forest, or any regressor of scikit-learn, scored by cross-validation in space.

The targets are numbers (biomass, cover, yield) at points, in polygons or in a raster, averaged to the grid of the
embeddings (`rasterize_targets`). The map has the units of the targets and is missing where the embeddings are.
"""

from __future__ import annotations

import html
import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.arguments import boolean, integer, number
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.errors import ArgumentError, ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.extras import require
from deo_cube.heads.base import BaseHead, ModelId, check_model
from deo_cube.heads.cells import FoldOptions, TrainingVectors, check_strengths, gather, join, set_checked
from deo_cube.heads.classes import Classes
from deo_cube.heads.estimators import Fitted, Opaque, as_arrays, checked_function, fitted_copy, refuse_opaque
from deo_cube.heads.geometries import clean, covered_cells, into_grid, north_up
from deo_cube.heads.intervals import Interval, difference, mean_of, normal_quantile, regression_scores
from deo_cube.heads.labels import all_inside, outside_message
from deo_cube.heads.rasters import lattice_mean, nodata_values, not_overlapping, one_array, read_around, unstated_fills
from deo_cube.heads.splits import blocks
from deo_cube.heads.tables import form_of, located, parsed_crs, read_table
from deo_cube.heads.vectors import geobox, map_vectors, spatial_dims
from deo_cube.packed import decoded_floats, scale_and_offset
from deo_cube.paths import unreadable

__all__ = [
    "ForestHead",
    "MeanEstimate",
    "RegressionHead",
    "RegressorHead",
    "RidgeHead",
    "TargetOptions",
    "rasterize_targets",
    "target_vectors",
]


Array = NDArray[Any]


# --- Targets of a regression averaged to the grid of the embeddings, each with its weight ---
#
# The rules, the same for every form of targets:
#
# - A point is a target of the cell that contains it; several points in a cell are averaged.
# - A polygon is a target of the cells that it covers; a cell has the mean of its polygons, weighted by the area that
#   each covers. The weight of the cell is the share that they cover together. A polygon of which no cell is covered by
#   at least `least` is a target of the one cell of which it covers most.
# - A raster in any CRS and resolution is averaged over each cell, at a lattice of points as fine as its pixels (at
#   most 32 per side; exact where pixels fit into cells). The weight of the cell is the share of points with a value.
# - Cells with a weight below `least` have no target.


@dataclass(frozen=True)
class TargetOptions:
    """How targets are read and averaged: the keywords of `rasterize_targets`, where they are documented."""

    column: str | None = None
    layer: str | int | None = None
    crs: Any = None
    nodata: float | Sequence[float] | None = None
    least: float = 0.5

    def __post_init__(self) -> None:
        number("least", self.least, minimum=0, maximum=1)
        parsed_crs(self.crs)
        nodata_values(self.nodata)


def rasterize_targets(
    targets: Any,
    like: xr.DataArray | GeoBox,
    *,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    nodata: float | Sequence[float] | None = None,
    least: float = 0.5,
) -> xr.DataArray:
    """Average the targets of a regression to the grid of the embeddings.

    Parameters
    ----------
    targets : table, path, dict, DataArray, or list of (x, y, value)
        Points, polygons or a raster of numbers, in the forms that `deo_cube.heads.labels.rasterize_labels` reads.
    like : DataArray or GeoBox
        Embeddings (or anything with their grid).
    column, layer, crs
        As in `rasterize_labels`; `column` holds the numbers.
    nodata : number or several, optional
        Values that are not a target, beside the one that a raster states.
    least : float
        Smallest share of a cell that polygons or pixels with a value must cover, 0..1.

    Returns
    -------
    DataArray
        `target` (y, x) float32 with the coordinate `weight` (y, x), the covered share in 0..1 (points: their number);
        NaN and 0 where there is no target. Scale and offset of a raster are applied, and its `units` and name are its
        attributes.

    Raises
    ------
    LabelsError
        If targets are not numbers, are outside the embeddings, cover no cell, or cannot be read.
    MissingCRSError
        If targets or embeddings have no CRS.
    ArgumentError, ArgumentTypeError
        For values of arguments that are not possible, and objects that are not targets.
    """
    return _rasterize(targets, like, TargetOptions(column, layer, crs, nodata, least))


def _rasterize(targets: Any, like: Any, options: TargetOptions) -> xr.DataArray:
    if not isinstance(like, xr.DataArray | xr.Dataset | GeoBox):
        raise ArgumentTypeError(f"like must be embeddings or a GeoBox, got {type(like).__name__}")
    grid: Any = like
    box = grid if isinstance(grid, GeoBox) else geobox(grid)
    upright = north_up(box)
    form, crs = form_of(targets), parsed_crs(options.crs)
    attrs: dict[str, Any] = {}
    if form == "raster":
        if isinstance(targets, xr.DataArray | xr.Dataset):
            targets = _as_values(one_array(targets), nodata_values(options.nodata))
        stated = _stated(targets)
        values, weights = _of_raster(targets, crs, upright, options)
        # Integers are stored with a scale, which readers that decode have applied and removed.
        values = values * stated.scale + stated.offset
        attrs = stated.attrs
    else:
        table = read_table(targets, form, column=options.column, layer=options.layer, crs=crs)
        values, weights = _of_table(table, upright, options)
    if box.transform.e > 0:
        values, weights = values[::-1], weights[::-1]
    dims = ("y", "x") if isinstance(grid, GeoBox) else spatial_dims(grid)
    target = xr.DataArray(values.astype("float32"), dims=dims, name="target", attrs={"long_name": "target"} | attrs)
    target = target.assign_coords(weight=(dims, weights.astype("float32"), {"long_name": "weight of the target"}))
    placed: xr.DataArray = georeference.assign_grid(target, box, dims=dims)
    return placed


@dataclass(frozen=True)
class _Stated:
    """Scale, offset, units and name that a raster states of its values."""

    scale: float = 1.0
    offset: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)


def _stated(targets: Any) -> _Stated:
    if isinstance(targets, str | os.PathLike):
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with rasterio.open(located(targets)) as file:
                named = {"units": file.units[0], "long_name": file.descriptions[0]}
                return _Stated(file.scales[0], file.offsets[0], {k: v for k, v in named.items() if v})
        except RasterioError as error:
            raise unreadable("targets", targets, "a raster of targets", error, error=LabelsError) from error
    scale, offset = scale_and_offset(targets)
    return _Stated(scale, offset, {k: str(targets.attrs[k]) for k in ("units", "long_name") if k in targets.attrs})


def _as_values(raster: xr.DataArray, nodata: tuple[float, ...] | None) -> xr.DataArray:
    """Return floats that still state a scale as the values that they mean; `nodata` are values as they are stored."""
    if raster.dtype.kind == "f" and scale_and_offset(raster) != (1.0, 0.0) and nodata:
        raster = raster.where(~raster.isin(list(nodata)))
    return decoded_floats(raster, "targets")


def _of_raster(targets: Any, crs: Any, box: GeoBox, options: TargetOptions) -> tuple[Array, Array]:
    nodata = nodata_values(options.nodata)
    raster = read_around(targets, crs, box, ignore_nodata=nodata == ())
    if not raster.values.size:
        raise LabelsError(not_overlapping(raster, box, what="target"))
    missing = raster.missing
    for value in nodata or ():
        missing = missing | (np.isnan(raster.values) if np.isnan(value) else raster.values == value)
    numbers = raster.values.astype("float64")
    missing = missing | ~np.isfinite(numbers)
    if nodata != ():
        _refuse_fills(
            unstated_fills(numbers[~missing], eight_bits=raster.values.dtype == np.uint8), nodata, "the raster"
        )
    values, weights = lattice_mean(numbers, missing, raster.transform, raster.crs, box)
    if not (weights > 0).any():
        raise LabelsError(not_overlapping(raster, box, what="target"))
    usable = (weights > 0) & (weights >= options.least - 1e-9)
    if not usable.any():
        raise LabelsError(
            f"no target: no cell of the embeddings is covered by at least {options.least:g} by values of the raster; "
            f"the best is covered by {weights.max():.2f}: pass least=..."
        )
    return np.where(usable, values, np.nan), np.where(usable, weights, 0.0)


def _refuse_fills(fills: list[float], nodata: tuple[float, ...] | None, what: str) -> None:
    if fills:
        marks = ", ".join(f"{v:.17g}" for v in sorted({*fills, *(nodata or ())}))
        raise LabelsError(
            f"targets hold {', '.join(f'{v:.17g}' for v in fills)}, far from all others, which usually marks a missing "
            f"value and {what} does not state: pass nodata=[{marks}], or nodata=() if it is a target"
        )


def _of_table(table: Any, box: GeoBox, options: TargetOptions) -> tuple[Array, Array]:
    nodata = nodata_values(options.nodata)
    numbers = _numbers(table.values, table.described, nodata or ())
    if nodata != ():
        _refuse_fills(unstated_fills(numbers), nodata, table.described)
    finite = np.isfinite(numbers)
    cleaned = clean(table.shapes[finite])
    cleaned.warn(int(finite.sum()), "targets")
    if not len(cleaned.shapes):
        raise LabelsError(f"no target: {table.described} has no row with both a geometry and a number")
    numbers = numbers[finite][cleaned.rows]
    shapes = into_grid(cleaned.shapes, table.crs, box)
    if table.assumed and len(shapes) and not all_inside(shapes, box):
        raise MissingCRSError(
            f'{table.described} states no CRS, and its places are not all within the embeddings: pass crs="EPSG:..."'
        )
    covered = covered_cells(shapes, box)
    place, cells, share = covered.place, (covered.row, covered.column), covered.share
    total, weights, chosen = np.zeros(box.shape), np.zeros(box.shape), np.zeros(box.shape, bool)
    np.add.at(total, cells, share * numbers[place])
    np.add.at(weights, cells, share)
    # A place that covers too little of every cell is a target of the one that it covers most; and so is a point.
    order = np.lexsort((-share, place))
    most = order[np.unique(place[order], return_index=True)[1]]
    small = most[share[most] < options.least]
    points = np.flatnonzero(np.isin(shapely.get_type_id(shapes), (0, 4))[place])
    chosen[covered.row[small], covered.column[small]] = True
    chosen[covered.row[points], covered.column[points]] = True
    outside = len(shapes) - len(most)
    if outside == len(shapes):
        raise LabelsError(outside_message(cleaned.shapes, table, box, "targets"))
    if outside:
        warnings.warn(f"{outside} of {len(shapes)} targets are outside the embeddings and left out", stacklevel=5)
    usable = (weights > 0) & (chosen | (weights >= options.least - 1e-9))
    with np.errstate(invalid="ignore"):
        return np.where(usable, total / weights, np.nan), np.where(usable, weights, 0.0)


def _numbers(values: Sequence[Any], described: str, nodata: Sequence[float]) -> Array:
    """Return targets as float64, NaN where there is none."""
    texts = [v for v in values if isinstance(v, str)]
    if texts:
        raise LabelsError(
            f"targets must be numbers, found {texts[0]!r:.60} in {described}: pass the column of the numbers, column=, "
            "or fit classes, fit_head('linear', emb, labels)"
        )
    numbers = np.array([np.nan if v is None else float(v) for v in values], dtype="float64")
    for value in nodata:
        numbers[numbers == value] = np.nan
    return numbers


def target_vectors(
    arrays: Sequence[xr.DataArray], targets: Sequence[Any], options: TargetOptions
) -> tuple[TrainingVectors, str, str]:
    """Return the embeddings of the cells with a target, of several arrays together, and the targets' units and name.

    Only chunks with targets are computed. Of embeddings with several times each cell is one case per time.

    Raises
    ------
    LabelsError
        As `rasterize_targets`, and if fewer than two cells with a target have a valid embedding, or all targets are
        equal.
    """
    rasters = [_rasterize(t, a, options) for t, a in zip(targets, arrays, strict=True)]
    data = join([_of_array(a, r) for a, r in zip(arrays, rasters, strict=True)])
    values = data.truth
    if len(values) < 2:
        raise LabelsError(
            f"at least two cells must have a target and a valid embedding, found {len(values)} (clouds, gaps or "
            "nodata): choose another time, or pass more targets"
        )
    if np.ptp(values) == 0:
        raise LabelsError(f"targets must differ, all {len(values)} are {values[0]:g}: pass other targets, or column=")
    units = [str(r.attrs.get("units", "")) for r in rasters]
    names = [str(r.attrs.get("long_name", "")) for r in rasters]
    return data, next(filter(None, units), ""), next((n for n in names if n not in ("", "target")), "")


def _of_array(emb: xr.DataArray, target: xr.DataArray) -> TrainingVectors:
    values, weights = np.asarray(target.values, "float64"), np.asarray(target["weight"].values, "float64")
    rows, cols = np.nonzero(np.isfinite(values))
    if not len(rows):
        raise LabelsError("no target: no target covers a cell of the embeddings")
    return TrainingVectors.of(gather(emb, rows, cols), values, weights)


# --- heads ---

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


@dataclass(frozen=True, kw_only=True)
class RegressionOptions(FoldOptions):
    """Options of every regression.

    Parameters
    ----------
    limits : (float or None, float or None), optional
        Lowest and highest value of the map, as (0, None) for biomass and (0, 1) for a fraction.
    units, quantity : str
        Of the targets. Default: the attributes of a raster; the name of the column.
    keep_training : bool
        Keep places and vectors of up to 1000 targets in the head, from which `assess` warns of leaks and finds the area
        of applicability. Pass False where the places must not be published with the head.
    """

    limits: tuple[float | None, float | None] | None = None
    units: str = ""
    quantity: str = ""
    keep_training: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        set_checked(self, keep_training=boolean("keep_training", self.keep_training))
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


@dataclass(frozen=True, kw_only=True)
class RidgeOptions(RegressionOptions):
    """Options of ridge regression; `strengths` are candidates for the strength of the regularisation."""

    strengths: Sequence[float] = STRENGTHS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strengths(self.strengths)


@dataclass(frozen=True, kw_only=True)
class ForestOptions(RegressionOptions):
    """Options of a random forest: its trees, the fewest targets in a leaf, and the seed of its random numbers."""

    most: int = 20000
    trees: int = 100
    leaf: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        trees, leaf = integer("trees", self.trees), integer("leaf", self.leaf)
        set_checked(self, trees=trees, leaf=leaf, seed=integer("seed", self.seed, minimum=0))


@dataclass(frozen=True, kw_only=True)
class RegressorOptions(RegressionOptions):
    """Options of a head of a regressor, and the estimator, which `fit_head` calls kind."""

    estimator: Any


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
    options: ClassVar[type[RegressionOptions]] = RegressionOptions
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
    def fit(
        cls,
        arrays: Sequence[xr.DataArray],
        targets: Sequence[Any],
        target_options: TargetOptions,
        model: ModelId,
        options: Any,
    ) -> Self:
        """Score by cross-validation in blocks of space, then fit on all targets; `options` are of the class's own."""
        fit = cls._method(options)
        data, units, quantity = target_vectors(arrays, targets, target_options)
        data = data.subsample(options.most)
        report: dict[str, Any] = {"targets": len(np.unique(data.cell)), "vectors": len(data.truth)}
        report |= _validated(data, fit, options)
        fitted = fit(data)
        report |= {"strength": fitted.strength} if isinstance(fitted, _Ridge) else {}
        function = fitted.as_arrays() if isinstance(fitted, _Ridge) else _translated(fitted, data)
        if options.limits is not None:
            low, high = (
                np.finfo("float32").max * s if v is None else v for s, v in zip((-1, 1), options.limits, strict=True)
            )
            if isinstance(function, Fitted):
                function = function.then("clip", low=np.float64(low), high=np.float64(high))
        tensors = dict(function.tensors) if isinstance(function, Fitted) else {}
        return cls(
            NO_CLASSES,
            model,
            tensors | (_training(data) if options.keep_training else {}),
            json.dumps(function.steps if isinstance(function, Fitted) else []),
            options.units or units,
            options.quantity or target_options.column or quantity or "value",
            data.crs,
            report,
            function if isinstance(function, Opaque) else None,
        )

    @classmethod
    def _method(cls, options: Any) -> Fit:
        """Return the function that fits on training data."""
        return _fit_of(options.estimator)

    def _repr_html_(self) -> str:
        facts = {"model": str(self.model), "units": self.units} | self.report
        rows = "".join(
            f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items() if v
        )
        return f"<div><b>{html.escape(self.kind)} head: {html.escape(self.quantity)}</b><table>{rows}</table></div>"


@dataclass(frozen=True)
class RidgeHead(RegressionHead):
    """Ridge regression on standardised vectors."""

    kind: ClassVar[str] = "ridge"
    options: ClassVar[type[RegressionOptions]] = RidgeOptions

    @classmethod
    def _method(cls, options: RidgeOptions) -> Fit:
        candidates = np.array(options.strengths, "float64")
        return lambda data: _chosen_ridge(data, candidates, options)


@dataclass(frozen=True)
class ForestHead(RegressionHead):
    """A random forest, which needs no assumption about the form of the relation and never leaves the targets' range."""

    kind: ClassVar[str] = "forest"
    options: ClassVar[type[RegressionOptions]] = ForestOptions

    @classmethod
    def _method(cls, options: ForestOptions) -> Fit:
        ensemble = require("sklearn.ensemble", extra="heads", purpose="a forest")
        forest = ensemble.RandomForestRegressor(
            options.trees,
            min_samples_leaf=options.leaf,
            random_state=options.seed,
            max_features="sqrt",
            n_jobs=-1,
        )
        return _fit_of(forest)


@dataclass(frozen=True)
class RegressorHead(RegressionHead):
    """Any regressor of scikit-learn."""

    options: ClassVar[type[RegressionOptions]] = RegressorOptions


def _fit_of(estimator: Any) -> Fit:
    def fit(data: TrainingVectors) -> Opaque:
        return Opaque(fitted_copy(estimator, data.vectors, data.truth, data.weights), "")

    return fit


def _translated(fitted: Any, data: TrainingVectors) -> Fitted | Opaque:
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


def _validated(data: TrainingVectors, fit: Fit, options: RegressionOptions) -> dict[str, Any]:
    """Return the scores of predictions for cells that were not trained on, nor their neighbours."""
    none = {"validation": "none: the targets are in one block of space", "bias": [0.0, None, None], "bias_error": None}
    folds = data.folds(FOLDS, options.block, options.buffer)
    if folds is None:
        return none
    predicted = np.full(len(data.truth), np.nan)
    for train, test in folds.pairs:
        function = fit(data.take(train))
        predicted[test] = _limited(function(data.vectors[test])[:, 0], options)
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


def _limited(values: Array, options: RegressionOptions) -> Array:
    if options.limits is None:
        return values
    low, high = options.limits
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

    def as_arrays(self) -> Fitted:
        return Fitted((), {}).then("linear", weights=self.weights, bias=self.bias)


def _chosen_ridge(data: TrainingVectors, strengths: Array, options: RegressionOptions) -> _Ridge:
    """Return ridge regression with the strength whose errors in blocks of space are smallest."""
    best = len(strengths) // 2
    side, buffer = data.block_sizes(options.block, options.buffer)
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
