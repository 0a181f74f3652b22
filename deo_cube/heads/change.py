"""What changed between two times: plain distances, and a distance calibrated to a false-alarm rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.fitted import read_json, write_json
from deo_cube.heads.vectors import as_embeddings, fit_lazily, map_vectors, sample, select_time, spatial_dims

__all__ = ["Calibration", "change", "fit_calibration"]

Array = NDArray[Any]

LEVELS = 512
"""Quantiles kept of the distances that unchanged places show."""
RIDGE = 10.0
POWER = 1 / 6


def change(
    emb: xr.DataArray,
    before: Any,
    after: Any,
    *,
    method: Literal["cosine", "calibrated", "euclidean"] = "cosine",
    calibration: Calibration | None = None,
    unchanged: Sequence[tuple[Any, Any]] | None = None,
) -> xr.DataArray:
    """How much each patch changed between two times.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x).
    before, after : label, or DataArray
        Times: a label, or part of one ("2020" takes the mean of the valid vectors of that year). Or embeddings
        (embedding, y, x) of one time each, on the same grid; `emb` then only gives the grid.
    method : {"cosine", "calibrated", "euclidean"}
        "cosine": 1 - cosine similarity, 0 to 2. "euclidean": length of the difference. "calibrated": the share of
        unchanged patches that look less changed, 0 to 1: above 0.99 lies about 1 % of what did not change.
    calibration : Calibration, optional
        For "calibrated": one fitted before (`fit_calibration`), so that several windows share it. Without it one is
        fitted on a fixed subsample of `emb`, lazily.
    unchanged : list of (before, after), optional
        For "calibrated": pairs of times between which nothing changed but the season. Their distances are then what
        unchanged places show. Without it the less distant half of the sampled patches between `before` and `after`
        stands for the unchanged, which must then be the larger part of the scene.

    Returns
    -------
    DataArray
        `change` (y, x) float32, higher is more changed; NaN where either time is invalid.

    Notes
    -----
    Calibrated: t = d^(1/6) of the cosine distance d is divided by what a ridge regression on the earlier vector
    expects: fields are allowed to change more than forest. The result is the place of that ratio among those of
    unchanged patches; beyond the largest seen, the tail is continued exponentially. Where unchanged pairs are not
    given, the lower half of the ratios, mirrored at their centre, stands for them, so that changed patches do not
    raise the bar. That rests on a symmetry: the cube root makes differences of normal noise symmetric (Wilson and
    Hilferty 1931), the sixth root those of scenes, whose patches are also mixed; rates are then right within a
    factor of 2.5 where noise is normal and kinds of places are few (tests/heads/test_change.py, notebooks/change.py).
    Where noise has long tails and differs from place to place, 2 to 12 % lie above 0.99. Pairs known to be unchanged
    need no symmetry: with them it is 0.8 to 2.1 %, in places not fitted on.
    """
    emb = as_embeddings(emb)
    if method not in ("cosine", "calibrated", "euclidean"):
        raise ArgumentError(f"method must be 'cosine', 'calibrated' or 'euclidean', got {method!r}")
    if method != "calibrated" and (calibration is not None or unchanged is not None):
        raise ArgumentError(f"calibration and unchanged belong to method='calibrated', got method={method!r}")
    if not (calibration is None or isinstance(calibration, Calibration)):
        raise ArgumentTypeError(
            f"calibration must be that of fit_calibration or Calibration.load, got {type(calibration).__name__}"
        )
    if calibration is not None and unchanged is not None:
        raise ArgumentError("calibration and unchanged decide the same: pass one of them")
    a, b = _two(emb, before, after)
    attrs = {"long_name": f"{method} change", "units": "1"} | _between(before, after)
    if method == "cosine":
        return map_vectors(lambda u, v: _distance(u, v), [a, b], name="change", attrs=attrs)
    if method == "euclidean":
        return map_vectors(lambda u, v: np.linalg.norm(u - v, axis=1), [a, b], name="change", attrs=attrs)
    if calibration is not None and calibration.model and _model(a) not in ("", calibration.model):
        raise ArgumentError(f"the calibration is for embeddings of model {calibration.model}, these are of {_model(a)}")
    parameters = _fitted(emb, a, b, unchanged) if calibration is None else calibration.to_array()
    if calibration is not None and len(calibration.weights) != emb.sizes["embedding"] + 1:
        raise ArgumentError(
            f"the calibration is for vectors of length {len(calibration.weights) - 1}, the embeddings have "
            f"{emb.sizes['embedding']}"
        )
    attrs["comment"] = "share of unchanged patches that look less changed; a threshold of 0.99 marks about 1 % of them"
    return map_vectors(_level, [a, b], parameters=parameters, name="change", attrs=attrs)


@dataclass(frozen=True)
class Calibration:
    """What distance unchanged places show, depending on what they are: fitted once, used for any window.

    Parameters
    ----------
    weights : (D + 1,) float
        Linear map from the earlier vector to the expected sixth root of its cosine distance; the constant last.
    ratios : (512,) float
        Rising quantiles of observed over expected among unchanged patches.
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
                f"a calibration has weights (D + 1,), {LEVELS} ratios and a positive least; got "
                f"{np.shape(self.weights)}, {np.shape(self.ratios)}, {self.least}"
            )

    def to_array(self) -> xr.DataArray:
        """Both in one array, as it is handed to the chunks."""
        return xr.DataArray(np.concatenate([self.weights, self.ratios, [self.least]]), dims="parameter")

    def save(self, path: Any) -> None:
        """Write as JSON."""
        d = {"weights": self.weights.tolist(), "ratios": self.ratios.tolist(), "least": self.least}
        write_json(path, d | {"model": self.model})

    @classmethod
    def load(cls, path: Any) -> Calibration:
        """Read what `save` wrote."""
        d = read_json(path, ("weights", "ratios", "least", "model"), "a calibration")
        weights, ratios = (np.asarray(d[k], "float64") for k in ("weights", "ratios"))
        return cls(weights, ratios, d["least"], d.get("model", ""))


def fit_calibration(
    emb: xr.DataArray, before: Any, after: Any, *, unchanged: Sequence[tuple[Any, Any]] | None = None
) -> Calibration:
    """Fit on a fixed subsample of `emb` now; arguments as of `change`."""
    emb = as_embeddings(emb)
    a, b = _two(emb, before, after)
    both = np.asarray(_fitted(emb, a, b, unchanged).values, dtype="float64")
    return Calibration(both[: -LEVELS - 1], both[-LEVELS - 1 : -1], float(both[-1]), _model(a))


def _two(emb: xr.DataArray, before: Any, after: Any) -> tuple[xr.DataArray, xr.DataArray]:
    found = []
    for argument, time in (("before", before), ("after", after)):
        if isinstance(time, xr.DataArray) and "embedding" in time.dims:
            one = as_embeddings(time)
            if "time" in one.dims:
                raise ArgumentError(f"{argument} has a dimension 'time': select one, {argument}.sel(time=...)")
        else:
            one = select_time(emb, time, argument=argument)
        found.append(one.drop_vars([c for c in one.coords if c in ("time", "valid")]))
    a, b = found
    if a.sizes != b.sizes or not _same_grid(a, b):
        raise ArgumentError(
            f"before ({_extent(a)}) and after ({_extent(b)}) lie on different grids: embed both on one, or bring one "
            "to the other's with after.odc.reproject(before.odc.geobox)"
        )
    if _model(a) and _model(b) and _model(a) != _model(b):
        raise ArgumentError(
            f"before is of model {_model(a)}, after of {_model(b)}: vectors of two models do not compare"
        )
    return a, b


def _same_grid(a: xr.DataArray, b: xr.DataArray) -> bool:
    """Whether every cell has its place in common, but for a thousandth of a cell."""
    return all(
        np.allclose(a[d], b[d], rtol=0, atol=1e-3 * abs(float(a[d][-1] - a[d][0])) / max(a.sizes[d] - 1, 1))
        for d in spatial_dims(a)
        if d in a.coords and d in b.coords
    )


def _extent(a: xr.DataArray) -> str:
    each = (f"{d} {float(a[d][0]):g} to {float(a[d][-1]):g} in {a.sizes[d]}" for d in spatial_dims(a))
    return ", ".join(each)


def _model(emb: xr.DataArray) -> str:
    return str(emb.attrs.get("deo_cube:model_fingerprint", ""))


def _between(before: Any, after: Any) -> dict[str, str]:
    plain = {"before": before, "after": after}
    return {k: str(v) for k, v in plain.items() if not isinstance(v, xr.DataArray)}


def _distance(u: Array, v: Array) -> Array:
    norms = np.linalg.norm(u, axis=1) * np.linalg.norm(v, axis=1)
    # A vector of zeros has no direction: no distance to another, as no evidence of change.
    cosine = np.where(norms > 0, (u * v).sum(axis=1) / np.where(norms > 0, norms, 1), 1.0)
    d = (1 - cosine).clip(0, 2)
    # What is left of equal vectors is float noise, which the sixth root would lift out of it.
    return np.asarray(np.where(d < 1e-12, 0.0, d))


def _fitted(
    emb: xr.DataArray, a: xr.DataArray, b: xr.DataArray, unchanged: Sequence[tuple[Any, Any]] | None
) -> xr.DataArray:
    if unchanged is not None:
        is_list = isinstance(unchanged, Sequence) and not isinstance(unchanged, str)
        if not is_list or not all(isinstance(p, list | tuple) and len(p) == 2 for p in unchanged):
            raise ArgumentTypeError(
                "unchanged must be a list of pairs of times between which nothing changed, [(before, after), ...]; got "
                f"{unchanged!r:.80}"
            )
    pairs = [_two(emb, *p) for p in unchanged] if unchanged is not None else [(a, b)]
    if not pairs:
        raise ArgumentError("unchanged is empty: give at least one pair of times, or leave it out")
    d = emb.sizes["embedding"]
    share = max(16384 // len(pairs), 1024)
    cases = [xr.concat([sample(u, share), sample(v, share)], dim="embedding") for u, v in pairs]
    vectors = xr.concat(cases, dim="case").rename(embedding="pair")
    if vectors.chunks is not None:
        vectors = vectors.chunk(case=-1, pair=-1)

    def fit(v: Array) -> Array:
        return _fit(v[:, :d], v[:, d:], mirrored=unchanged is None)

    return fit_lazily(fit, vectors, ["parameter"], [d + 2 + LEVELS])


def _fit(u: Array, v: Array, *, mirrored: bool) -> Array:
    """Weights and ratios in one array. `mirrored`: some of the cases did change."""
    if len(u) < 30:
        raise ArgumentError(
            f"only {len(u)} patches are valid at both times: too few to calibrate on. Use method='cosine', or a "
            "calibration fitted on a larger window"
        )
    t = _distance(u, v) ** POWER
    mean, std = u.mean(axis=0), u.std(axis=0) + 1e-9
    design = np.concatenate([(u - mean) / std, np.ones((len(u), 1))], axis=1)
    penalty = np.full(design.shape[1], RIDGE)
    penalty[-1] = 0
    keep = np.ones(len(u), bool)
    weights = np.zeros(design.shape[1])
    for _ in range(4 if mirrored else 1):
        x = design[keep]
        weights = np.linalg.solve(x.T @ x + np.diag(penalty) + 1e-12 * np.eye(len(penalty)), x.T @ t[keep])
        ratio = t / _expected(design, weights, t)
        if mirrored:
            # Cases above what the lower half makes plausible did change: they do not say what is expected.
            middle = np.median(ratio)
            keep = ratio <= middle + 2.5 * 1.4826 * np.median(np.maximum(middle - ratio, 0)[ratio <= middle])
    ratio = t / _expected(design, weights, t)
    if mirrored:
        centre = _mode(ratio)
        below = centre - ratio[ratio <= centre]
        ratio = np.concatenate([centre - below, centre + below])
    levels = (np.arange(LEVELS) + 0.5) / LEVELS
    # The standardisation is folded into the weights, for vectors as they are.
    plain = weights[:-1] / std
    plain = np.append(plain, weights[-1] - plain @ mean)
    # Quantiles denser in the upper tail, where thresholds lie.
    return np.concatenate([plain, np.quantile(ratio, _levels(levels)), [_least(t)]])


def _mode(ratio: Array) -> float:
    """Centre of the unchanged: midpoint of the shortest interval that holds half of the cases."""
    r = np.sort(ratio)
    k = len(r) // 2
    widths = r[k:] - r[: len(r) - k]
    # Mean over the nearly shortest, as the single shortest is noisy.
    near = widths <= np.quantile(widths, 0.05)
    starts = np.flatnonzero(near)
    return float(np.median((r[starts] + r[starts + k]) / 2))


def _levels(uniform: Array) -> Array:
    """Levels of the quantiles kept: half of them evenly, the others ever closer to 1."""
    return np.sort(np.concatenate([uniform[::2], 1 - 0.5 * np.exp(-np.linspace(0, 9, len(uniform) // 2))]))


def _expected(design: Array, weights: Array, t: Array) -> Array:
    return np.asarray(np.maximum(design @ weights, _least(t)))


def _least(t: Array) -> float:
    """A regression may expect nonsense far from what it saw: never below a fifth of the middle."""
    return 0.2 * max(float(np.median(t)), 1e-9)


def _level(u: Array, v: Array, parameters: Array) -> Array:
    """Share of unchanged patches below, for each pair of vectors."""
    weights, ratios, least = parameters[: -LEVELS - 1], parameters[-LEVELS - 1 : -1], parameters[-1]
    expected = np.maximum(np.concatenate([u, np.ones((len(u), 1))], axis=1) @ weights, least)
    ratio = _distance(u, v) ** POWER / expected
    levels = _levels((np.arange(LEVELS) + 0.5) / LEVELS)
    level = np.interp(ratio, ratios, levels)
    # Exponential tail through the 0.99 quantile and the last one.
    high = float(np.interp(0.99, levels, ratios))
    rate = np.log((1 - 0.99) / (1 - levels[-1])) / max(ratios[-1] - high, 1e-12)
    beyond = 1 - (1 - levels[-1]) * np.exp(-rate * np.maximum(ratio - ratios[-1], 0))
    # Equal vectors show no change, even where most of the unchanged are equal too.
    return np.asarray(np.where(ratio > 0, np.where(ratio > ratios[-1], beyond, level), 0.0))
