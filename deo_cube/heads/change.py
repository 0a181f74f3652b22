"""Measure change between two times, arrays or stores: as a distance, or calibrated to a rate of false alarms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.constants import Attribute
from deo_cube.cube.georeference import crs_name, same_crs
from deo_cube.embedding.metadata import warn_of_levels
from deo_cube.errors import ArgumentError, ArgumentTypeError, remedy
from deo_cube.heads.base import read_json, write_json
from deo_cube.heads.vectors import (
    as_embeddings,
    crs_or_none,
    fit_lazily,
    map_vectors,
    model_fingerprint,
    same_places,
    select_time,
    spatial_dims,
    subsample,
)
from deo_cube.paths import is_url
from deo_cube.store.open import opened

__all__ = ["Calibration", "change", "fit_calibration", "fit_ranks", "rank"]

Array = NDArray[Any]

LEVELS = 512
"""Number of stored quantiles of the distances of unchanged places."""
RIDGE = 10.0
POWER = 1 / 6


def change(
    emb: Any,
    before: Any,
    after: Any = None,
    *,
    method: Literal["cosine", "calibrated", "euclidean"] = "cosine",
    calibration: Calibration | None = None,
    unchanged: Sequence[tuple[Any, Any]] | None = None,
) -> xr.DataArray:
    """Return how much each patch changed between two times, two arrays of embeddings, or two stores.

    Parameters
    ----------
    emb : DataArray, or path of a store
        Embeddings (time, embedding, y, x); or the earlier ones of two, of one time, with the later ones as `before` and
        no `after`: ``change(emb_2019, emb_2021)``, ``change("2019.zarr", "2021.zarr")``.
    before, after : label, DataArray, or path of a store
        Times of `emb`: a label, or part of one ("2020": the mean of the valid vectors of that year). Or embeddings of
        one time each, on the same grid; a `pathlib.Path` is a store.
    method : {"cosine", "calibrated", "euclidean"}
        "cosine": 1 - cosine similarity, 0 to 2. "euclidean": length of the difference. "calibrated": the share of
        unchanged patches that look less changed, 0 to 1: about 1 % of unchanged patches are above 0.99.
    calibration : Calibration, optional
        For "calibrated": the result of `fit_calibration`, so that several windows share it. Default: one is fitted on
        a fixed subsample of `emb`, lazily.
    unchanged : list of (before, after), optional
        For "calibrated": pairs of times between which nothing changed but the season; their distances are those of
        unchanged places. Default: the less distant half of the sampled patches between `before` and `after` represents
        unchanged places, which must then be the larger part of the scene.

    Returns
    -------
    DataArray
        `change` (y, x) float32, higher is more changed; NaN where either time is invalid. Lazy on Dask.

    Raises
    ------
    ArgumentError
        For embeddings on two grids, of two models or layers, or of several times where one is meant.
    SelectionError
        For a label that matches no time.
    StoreMismatchError
        For paths that are not stores of embeddings.

    Warns
    -----
    UserWarning
        For embeddings of L1C and of L2A products.

    Notes
    -----
    Calibrated: t = d^(1/6) of the cosine distance d is divided by the expectation of a ridge regression on the earlier
    vector, because fields change more than forest does. The result is the rank of that ratio among those of unchanged
    patches; beyond the largest one, the tail is continued exponentially. Without unchanged pairs, the lower half of the
    ratios, mirrored at their centre, represents them, so that changed patches do not raise the threshold. That
    assumes a symmetry: the cube root makes differences of normal noise symmetric (Wilson and Hilferty 1931), the sixth
    root those of scenes, whose patches are also mixed. Rates are then right within a factor of 2.5 where noise is
    normal and there are few kinds of places (tests/heads/test_change.py, notebooks/change.py). Where noise has long
    tails and differs from place to place, 2 to 12 % of unchanged patches are above 0.99. Pairs known to be unchanged
    need no symmetry: with them it is 0.8 to 2.1 %, in places that were not fitted on.
    """
    emb, before, after = _operands(emb, before, after)
    if method not in ("cosine", "calibrated", "euclidean"):
        raise ArgumentError(f"method must be 'cosine', 'calibrated' or 'euclidean', got {method!r}")
    if method != "calibrated" and (calibration is not None or unchanged is not None):
        raise ArgumentError(f"calibration and unchanged need method='calibrated', got method={method!r}")
    if calibration is not None and unchanged is not None:
        raise ArgumentError("calibration and unchanged decide the same: pass one of them")
    a, b = _pair(emb, before, after)
    warn_of_levels(a, b, ("before", "after"), "so that the atmosphere counts as change")
    if calibration is not None:
        _check_calibration(calibration, a)
    attrs = {"long_name": f"{method} change", "units": "1"} | _time_attrs(before, after)
    if method == "cosine":
        return map_vectors(lambda u, v: _distance(u, v), [a, b], name="change", attrs=attrs)
    if method == "euclidean":
        return map_vectors(lambda u, v: np.linalg.norm(u - v, axis=1), [a, b], name="change", attrs=attrs)
    parameters = _fit_lazily(emb, a, b, unchanged) if calibration is None else calibration.to_array()
    attrs["comment"] = "share of unchanged patches that look less changed; a threshold of 0.99 marks about 1 % of them"
    return map_vectors(_level, [a, b], parameters=parameters, name="change", attrs=attrs)


@dataclass(frozen=True)
class Calibration:
    """Distribution of the distance of unchanged places, depending on their kind: fitted once, used for any window.

    Parameters
    ----------
    weights : (D + 1,) float
        Linear map from the earlier vector to the expected sixth root of its cosine distance; the constant last.
    ratios : (512,) float
        Increasing quantiles of observed over expected among unchanged patches.
    least : float
        Expectations are never below this.
    model : str
        Fingerprint of the model whose embeddings they are; empty where unknown.
    """

    weights: Array = field(repr=False)
    ratios: Array = field(repr=False)
    least: float = 1e-9
    model: str = ""

    def __post_init__(self) -> None:
        if np.ndim(self.weights) != 1 or np.shape(self.ratios) != (LEVELS,) or not self.least > 0:
            raise ArgumentError(
                f"weights, ratios and least of a calibration must be (D + 1,), ({LEVELS},) and positive; got "
                f"{np.shape(self.weights)}, {np.shape(self.ratios)}, {self.least}"
            )

    def to_array(self) -> xr.DataArray:
        """Return all numbers in one array, as chunks get them."""
        return xr.DataArray(np.concatenate([self.weights, self.ratios, [self.least]]), dims="parameter")

    def save(self, path: Any) -> None:
        """Write as JSON."""
        d = {"weights": self.weights.tolist(), "ratios": self.ratios.tolist(), "least": self.least}
        write_json(path, d | {"model": self.model})

    @classmethod
    def load(cls, path: Any) -> Calibration:
        """Read a file that `save` wrote."""
        d = read_json(path, ("weights", "ratios", "least", "model"), "a calibration")
        weights, ratios = (np.asarray(d[k], "float64") for k in ("weights", "ratios"))
        return cls(weights, ratios, d["least"], d.get("model", ""))


def fit_calibration(
    emb: Any, before: Any, after: Any = None, *, unchanged: Sequence[tuple[Any, Any]] | None = None
) -> Calibration:
    """Fit a calibration on a fixed subsample of `emb` now; arguments as in `change`."""
    emb, before, after = _operands(emb, before, after)
    a, b = _pair(emb, before, after)
    numbers = np.asarray(_fit_lazily(emb, a, b, unchanged).values, dtype="float64")
    return Calibration(numbers[: -LEVELS - 1], numbers[-LEVELS - 1 : -1], float(numbers[-1]), model_fingerprint(a))


def _check_calibration(calibration: Any, emb: xr.DataArray) -> None:
    if not isinstance(calibration, Calibration):
        raise ArgumentTypeError(
            f"calibration must be that of fit_calibration or Calibration.load, got {type(calibration).__name__}"
        )
    if calibration.model and model_fingerprint(emb) not in ("", calibration.model):
        raise ArgumentError(
            f"calibration must be of the model of the embeddings, {model_fingerprint(emb)}, got one of model "
            f"{calibration.model}"
        )
    if len(calibration.weights) != emb.sizes["embedding"] + 1:
        raise ArgumentError(
            f"calibration must be for vectors of length {emb.sizes['embedding']}, got one for length "
            f"{len(calibration.weights) - 1}"
        )


def _operands(emb: Any, before: Any, after: Any) -> tuple[xr.DataArray, Any, Any]:
    """Return the embeddings, and both times: of two arrays or stores alone, these are the times."""
    first = opened(emb)
    if after is None:
        if not isinstance(before, str | os.PathLike | xr.DataArray | xr.Dataset):
            raise ArgumentTypeError(
                "change needs two times, "
                + remedy("change(emb, before, after)", "deo-cube change A A OUT --before DATE --after DATE")
                + ", or two arrays or stores, "
                + remedy("change(emb_2019, emb_2021)", "deo-cube change A B OUT")
                + f"; got {type(before).__name__} and no after="
            )
        if isinstance(before, str) and "time" in first.dims and not is_url(before) and not Path(before).exists():
            raise ArgumentError(
                f"before={before!r} is not a store, and as a time it needs another: "
                + remedy(f"change(emb, {before!r}, after)", "pass after=DATE, too")
            )
        return as_embeddings(first), first, opened(before, "before")
    times = [opened(t, n) if isinstance(t, os.PathLike) else t for n, t in (("before", before), ("after", after))]
    return as_embeddings(first), times[0], times[1]


def _pair(emb: xr.DataArray, before: Any, after: Any) -> tuple[xr.DataArray, xr.DataArray]:
    """Return the embeddings of two times, on one grid and of one model."""
    pair = []
    for argument, time in (("before", before), ("after", after)):
        if isinstance(time, xr.Dataset) or (isinstance(time, xr.DataArray) and "embedding" in time.dims):
            one = as_embeddings(time)
            if one.sizes.get("time", 1) > 1:
                dates = one.sizes["time"]
                raise ArgumentError(
                    remedy(
                        f"{argument} must be of one time, got {dates}: select one, {argument}.sel(time=...), or name "
                        "both times of one array, change(emb, before, after)",
                        f"{'A' if argument == 'before' else 'B'} holds {dates} dates: pass {argument}=DATE",
                    )
                )
            one = one.isel(time=0) if "time" in one.dims else one
        else:
            one = select_time(emb, time, argument=argument)
        pair.append(one.drop_vars([c for c in one.coords if c in ("time", "valid")]))
    a, b = pair
    crs = [crs_or_none(one) for one in pair]
    if dict(a.sizes) != dict(b.sizes) or not _same_grid(a, b) or (all(crs) and not same_crs(crs[0], crs[1])):
        place = f" in {crs_name(crs[0])} and {crs_name(crs[1])}" if all(crs) and not same_crs(crs[0], crs[1]) else ""
        raise ArgumentError(
            f"before and after must be on one grid, got {_extent(a)} and {_extent(b)}{place}: embed both on one, or "
            "reproject one, after.odc.reproject(before.odc.geobox); windows of one grid are cut to what they share, "
            'before, after = xr.align(before, after, join="inner")'
        )
    models = model_fingerprint(a), model_fingerprint(b)
    if all(models) and models[0] != models[1]:
        raise ArgumentError(
            f"before and after must be of one model, got {models[0]} and {models[1]}: embed both with one"
        )
    layers = [str(one.attrs.get(Attribute.LAYER, "")) for one in pair]
    if all(layers) and layers[0] != layers[1]:
        raise ArgumentError(
            f"before and after must be of one layer of the model, got {layers[0]} and {layers[1]}: embed both with "
            f"layer={layers[0]!r}"
        )
    return a, b


def _same_grid(a: xr.DataArray, b: xr.DataArray) -> bool:
    """Return whether all cells have the same place, to a thousandth of a cell."""
    return all(same_places(a, b, d) for d in spatial_dims(a))


def _extent(a: xr.DataArray) -> str:
    each = (f"{d} {float(a[d][0]):g} to {float(a[d][-1]):g} in {a.sizes[d]}" for d in spatial_dims(a))
    return ", ".join(each)


def _time_attrs(before: Any, after: Any) -> dict[str, str]:
    times = {"before": before, "after": after}
    arrays = {k: v.coords.get("time") for k, v in times.items() if isinstance(v, xr.DataArray | xr.Dataset)}
    dated = {k: str(np.ravel(t.values)[0])[:19] for k, t in arrays.items() if t is not None and t.size == 1}
    return {k: str(v) for k, v in times.items() if k not in arrays} | dated


def _distance(u: Array, v: Array) -> Array:
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    # A vector of zeros has no direction, and so gives no evidence of change: its distance is 0.
    cosine = np.where(norms > 0, (u * v).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    d = (1 - cosine).clip(0, 2)
    # The distance of equal vectors is float noise, which the sixth root would magnify.
    return np.asarray(np.where(d < 1e-12, 0.0, d))


def _fit_lazily(
    emb: xr.DataArray, a: xr.DataArray, b: xr.DataArray, unchanged: Sequence[tuple[Any, Any]] | None
) -> xr.DataArray:
    if unchanged is not None:
        # `change(unchanged="2019")` would otherwise be read as a list of letters.
        is_list = isinstance(unchanged, Sequence) and not isinstance(unchanged, str)
        if not is_list or not all(isinstance(p, list | tuple) and len(p) == 2 for p in unchanged):
            raise ArgumentTypeError(
                "unchanged must be a list of pairs of times between which nothing changed, [(before, after), ...]; got "
                f"{unchanged!r:.80}"
            )
    pairs = [_pair(emb, *p) for p in unchanged] if unchanged is not None else [(a, b)]
    if not pairs:
        raise ArgumentError(
            "unchanged must have at least one pair of times, got an empty list: pass pairs, or leave it out"
        )
    d = emb.sizes["embedding"]
    share = max(16384 // len(pairs), 1024)
    cases = [xr.concat([subsample(u, share), subsample(v, share)], dim="embedding") for u, v in pairs]
    vectors = xr.concat(cases, dim="case").rename(embedding="pair")
    if vectors.chunks is not None:
        vectors = vectors.chunk(case=-1, pair=-1)

    def fit(v: Array) -> Array:
        return _fit(v[:, :d], v[:, d:], mirrored=unchanged is None)

    return fit_lazily(fit, vectors, ["parameter"], [d + 2 + LEVELS])


def _fit(u: Array, v: Array, *, mirrored: bool) -> Array:
    """Return weights, ratios and least in one array. `mirrored`: some of the cases did change."""
    if len(u) < 30:
        raise ArgumentError(
            f"method='calibrated' needs at least 30 sampled patches that are valid at both times, found {len(u)}: pass "
            "method='cosine', or calibration= fitted on a larger window"
        )
    return fit_ranks(u, _distance(u, v) ** POWER, mirrored=mirrored)


def fit_ranks(features: Array, t: Array, *, mirrored: bool) -> Array:
    """Fit the distribution of a measure of change among unchanged places, depending on their kind.

    Parameters
    ----------
    features : (n, d) float
        On which the expected measure depends, linearly.
    t : (n,) float
        Measure of change, not negative, symmetrical about its expectation where nothing changed.
    mirrored : bool
        Whether some of the cases did change: the lower half then represents the unchanged ones.

    Returns
    -------
    (d + 2 + 512,) float
        Weights and constant of the expectation, quantiles of observed over expected, least expectation: as `rank` takes
        them.
    """
    mean, std = features.mean(axis=0), features.std(axis=0) + 1e-9
    design = np.concatenate([(features - mean) / std, np.ones((len(t), 1))], axis=1)
    penalty = np.full(design.shape[1], RIDGE)
    penalty[-1] = 0
    unchanged = np.ones(len(t), bool)
    weights = np.zeros(design.shape[1])
    for _ in range(4 if mirrored else 1):
        x = design[unchanged]
        weights = np.linalg.solve(x.T @ x + np.diag(penalty) + 1e-12 * np.eye(len(penalty)), x.T @ t[unchanged])
        ratio = t / _expected(design, weights, t)
        if mirrored:
            # Cases beyond the spread of the lower half did change, and must not contribute to the expectation.
            middle = np.median(ratio)
            unchanged = ratio <= middle + 2.5 * 1.4826 * np.median(np.maximum(middle - ratio, 0)[ratio <= middle])
    ratio = t / _expected(design, weights, t)
    if mirrored:
        centre = _mode(ratio)
        below = centre - ratio[ratio <= centre]
        ratio = np.concatenate([centre - below, centre + below])
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    # Weights for vectors that are not standardised.
    raw_weights = weights[:-1] / std
    raw_weights = np.append(raw_weights, weights[-1] - raw_weights @ mean)
    # Quantiles are denser in the upper tail, where thresholds are.
    return np.concatenate([raw_weights, np.quantile(ratio, _levels(levels)), [_least(t)]])


def _mode(ratio: Array) -> float:
    """Return the centre of unchanged cases: the midpoint of the shortest interval with half of all cases."""
    r = np.sort(ratio)
    k = len(r) // 2
    widths = r[k:] - r[: len(r) - k]
    # Median over the nearly shortest intervals, because the shortest one alone is noisy.
    starts = np.flatnonzero(widths <= np.quantile(widths, 0.05))
    return float(np.median((r[starts] + r[starts + k]) / 2))


def _levels(uniform: Array) -> Array:
    """Return the levels of the stored quantiles: half of them evenly spaced, the others ever closer to 1."""
    return np.sort(np.concatenate([uniform[::2], 1 - 0.5 * np.exp(-np.linspace(0, 9, len(uniform) // 2))]))


def _expected(design: Array, weights: Array, t: Array) -> Array:
    return np.asarray(np.maximum(design @ weights, _least(t)))


def _least(t: Array) -> float:
    """Return the lower limit of expectations, a fifth of the median: regressions extrapolate badly."""
    return 0.2 * max(float(np.median(t)), 1e-9)


def _level(u: Array, v: Array, parameters: Array) -> Array:
    """Return the share of unchanged patches that are less changed, for each pair of vectors."""
    return rank(u, _distance(u, v) ** POWER, parameters)


def rank(features: Array, t: Array, parameters: Array) -> Array:
    """Return the share of unchanged places whose measure of change is smaller, by the result of `fit_ranks`."""
    weights, ratios, least = parameters[: -LEVELS - 1], parameters[-LEVELS - 1 : -1], parameters[-1]
    expected = np.maximum(np.concatenate([features, np.ones((len(t), 1))], axis=1) @ weights, least)
    ratio = t / expected
    levels = _levels((np.arange(LEVELS) + 0.5) / LEVELS)
    level = np.interp(ratio, ratios, levels)
    # Exponential tail through the 0.99 quantile and the last one.
    high = float(np.interp(0.99, levels, ratios))
    rate = np.log((1 - 0.99) / (1 - levels[-1])) / max(ratios[-1] - high, 1e-12)
    beyond = 1 - (1 - levels[-1]) * np.exp(-rate * np.maximum(ratio - ratios[-1], 0))
    # Equal vectors show no change, even where most of the unchanged are equal too.
    return np.asarray(np.where(ratio > 0, np.where(ratio > ratios[-1], beyond, level), 0.0))
