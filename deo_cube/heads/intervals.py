"""Estimates with intervals from a sample: ratios of totals, mean of a map, and the scores of a regression; areas.

Ratios follow Stehman (2014, doi:10.1080/01431161.2014.930207): accuracies and areas are ratios of two totals of a
stratified sample. Where the strata are the classes of the map they are the estimators of Olofsson et al. (2014,
doi:10.1016/j.rse.2014.02.015, equations 5 to 11).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["Interval", "StratifiedSample", "cell_areas", "difference", "mean_of", "regression_scores"]


Array = NDArray[Any]

RESAMPLES = 2000
"""Bootstrap samples per interval of a regression's scores."""


class Interval(NamedTuple):
    """A value, and the ends of its confidence interval; NaN where it cannot be estimated."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"

    def __str__(self) -> str:
        return format(self)


@dataclass(frozen=True)
class StratifiedSample:
    """A stratified sample of the cells of a map.

    Parameters
    ----------
    stratum : (n,) int
        Position of each unit's stratum.
    sizes : (H,) float
        Cells per stratum.
    weights : (H,) float
        Share of the area in each stratum; sums to 1.
    clusters : (n,) int or None
        Units of one cluster (the cells of a polygon) are not independent.
    """

    stratum: Array
    sizes: Array
    weights: Array
    clusters: Array | None = None

    @property
    def counts(self) -> Array:
        """Units per stratum (H,)."""
        return np.bincount(self.stratum, minlength=len(self.sizes))

    def ratio(self, numerator: Array, denominator: Array, confidence: float = 0.95) -> Interval:
        """Return the ratio of the totals of two variables (n,) with its interval.

        The variance is that of the linearised ratio, per stratum, with the correction for a finite population; with
        clusters, that between the clusters. Strata without units are left out. A stratum with a single unit adds no
        variance.
        """
        counts = self.counts
        used = counts > 0
        share = np.where(used, self.weights, 0.0)
        share = share / share.sum() if share.sum() > 0 else share
        each = np.divide(share, counts, out=np.zeros(len(counts)), where=used)[self.stratum]
        y, x = np.asarray(numerator, "float64"), np.asarray(denominator, "float64")
        total = float((each * x).sum())
        if total <= 0:
            return Interval(np.nan, np.nan, np.nan)
        value = float((each * y).sum()) / total
        residual = (y - value * x) / total
        if self.clusters is not None:
            sums = np.bincount(np.unique(self.clusters, return_inverse=True)[1].ravel(), each * residual)
            variance = len(sums) * float(sums.var(ddof=1)) if len(sums) > 1 else np.nan
        else:
            n = np.maximum(counts, 1)
            mean = np.bincount(self.stratum, residual, minlength=len(counts)) / n
            spread = np.bincount(self.stratum, (residual - mean[self.stratum]) ** 2, minlength=len(counts))
            unsampled = np.clip(1 - n / np.maximum(self.sizes, n), 0, 1)
            variance = float((share**2 * unsampled * spread / np.maximum(n - 1, 1) / n).sum())
        half = normal_quantile(confidence) * np.sqrt(variance)
        return Interval(value, value - half, value + half)


def normal_quantile(confidence: float) -> float:
    """Return half the width of the central interval of the standard normal distribution."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def difference(
    mapped: float, residuals: Array, weights: Array, groups: Array | None, confidence: float = 0.95
) -> Interval:
    """Return the mean of a map, corrected by the mean residual (reference minus map) of a sample.

    The difference estimator of survey sampling (Särndal et al. 1992; McRoberts et al. 2013 for maps of biomass). The
    interval is that of the mean residual between `groups` (blocks, polygons); None: every case is a group.
    """
    w = weights / weights.sum()
    mean = float((w * residuals).sum())
    z = w * (residuals - mean)
    sums = z if groups is None else np.bincount(np.unique(groups, return_inverse=True)[1].ravel(), z)
    n = len(sums)
    half = normal_quantile(confidence) * np.sqrt(n / (n - 1) * float((sums**2).sum())) if n > 1 else np.nan
    return Interval(mapped + mean, mapped + mean - half, mapped + mean + half)


def regression_scores(
    truth: Array, predicted: Array, weights: Array, groups: Array | None, confidence: float = 0.95
) -> Mapping[str, Interval]:
    """Return R2, RMSE, MAE and bias (predicted minus true), each with a bootstrap interval over groups.

    Parameters
    ----------
    truth, predicted, weights : (n,) float
    groups : (n,) int or None
        Cases of one group (a block of space, a polygon) are drawn together; None: every case is a group.
    """
    t, w = np.asarray(truth, "float64"), np.asarray(weights, "float64")
    error = np.asarray(predicted, "float64") - t
    centre = float((w * t).sum() / w.sum())
    terms = np.stack([w, w * error**2, w * np.abs(error), w * error, w * (t - centre), w * (t - centre) ** 2])
    if groups is not None:
        index = np.unique(groups, return_inverse=True)[1].ravel()
        terms = np.stack([np.bincount(index, v) for v in terms])
    n = terms.shape[1]
    names = ("r2", "rmse", "mae", "bias")
    values = _scores_of(terms.sum(axis=1)[:, None])[:, 0]
    if n < 3:
        return {k: Interval(float(v), np.nan, np.nan) for k, v in zip(names, values, strict=True)}
    rng = np.random.default_rng(0)
    drawn = np.concatenate(
        [terms @ rng.multinomial(n, np.full(n, 1 / n), size=100).T for _ in range(RESAMPLES // 100)], axis=1
    )
    tail = (1 - confidence) / 2
    every = _scores_of(drawn)
    # R2 is missing where all truths that were drawn are equal.
    low, high = np.array(
        [np.nanquantile(v, [tail, 1 - tail]) if np.isfinite(v).any() else [np.nan] * 2 for v in every]
    ).T
    return {k: Interval(float(v), float(a), float(b)) for k, v, a, b in zip(names, values, low, high, strict=True)}


def _scores_of(sums: Array) -> Array:
    """Return R2, RMSE, MAE and bias (4, k) of sums of terms (6, k)."""
    w, squares, absolute, signed, first, second = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = second - first**2 / w
        r2 = np.where(spread > 0, 1 - squares / spread, np.nan)
        return np.stack([r2, np.sqrt(squares / w), absolute / w, signed / w])


# --- Measure areas of maps: of a cell in each row, and the mean of a map over its area ---


def mean_of(values: xr.DataArray) -> tuple[float, float]:
    """Return the mean of a map (y, x) over the area of its cells with a value, and that area in hectares."""
    import dask

    x = spatial_dims(values)[1]
    valid = values.notnull()
    total, count = dask.compute(values.where(valid, 0.0).astype("float64").sum(x), valid.sum(x))
    area = cell_areas(values)
    covered = float((count.values * area).sum())
    mean = float((total.values * area).sum() / covered) if covered else float("nan")
    return mean, covered / 1e4


def cell_areas(array: xr.DataArray) -> Array:
    """Return the area in square metres of a cell of each row of an array.

    In a projection whose scale is near 1, as UTM, it is that of the grid; in degrees and in Mercator's projection it is
    measured on the ellipsoid in the middle of each row.
    """
    box = geobox(array)
    crs, t = box.crs.proj, box.transform
    rows, cols = box.shape
    name = str(crs.coordinate_operation.method_name) if crs.coordinate_operation else ""
    if not crs.is_geographic and ("Mercator" not in name or "Transverse" in name):
        return np.full(rows, abs(t.a * t.e) * crs.axis_info[0].unit_conversion_factor ** 2)
    from pyproj import Geod, Transformer

    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    geod = crs.get_geod() or Geod(ellps="WGS84")
    left = t.c + (cols // 2) * t.a
    areas = np.empty(rows)
    for row in range(rows):
        top = t.f + row * t.e
        lon, lat = to_degrees.transform([left, left + t.a, left + t.a, left], [top, top, top + t.e, top + t.e])
        areas[row] = abs(geod.polygon_area_perimeter(lon, lat)[0])
    return areas
