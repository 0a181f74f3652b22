"""Find when places changed in a series of embeddings, how much, and whether it was more than the season.

Each place's vectors are explained by a mean, its season and one step at an unknown date. The date is where the step
explains most; its size, beside what is left, is ranked among stable places, so that a threshold is a rate of false
alarms. All of it is computed from the products of a place's vectors with each other (dates x dates).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube.times import read_times
from deo_cube.errors import ArgumentError, ArgumentTypeError, remedy
from deo_cube.heads.change import fit_ranks, rank
from deo_cube.heads.vectors import as_embeddings, same_places, spatial_dims, subsample

__all__ = ["change_series"]

Array = NDArray[Any]
Season = Literal["auto", "scene", "harmonic", "none"]

YEAR = 365.2425
MOST_CASES = 2048
"""Sampled places on which the season of the scene and the ranks of stable places are fitted."""
KINDS = 12
"""Most kinds of places that have a season of their own."""
BLOCK_BYTES = 2**26
"""Largest series of a block, float32."""
POWER = 0.2
RIDGE = 10.0
PRIOR = 10.0
"""Dates as which the variance of a kind of places counts beside a place's own."""
#: Numbers per place that a block returns.
OUTPUTS = ("step", "last", "magnitude", "level", "season", "dates")
#: Part of the squared length of a vector below which differences are rounding: float16 keeps three digits.
ROUNDING = 1e-6


def change_series(
    emb: Any,
    *,
    season: Season = "auto",
    stable: xr.DataArray | None = None,
    false_alarms: float = 0.01,
    min_dates: int = 2,
) -> xr.Dataset:
    """Return when each patch changed most in a series, how much, and how rarely a stable patch looks so changed.

    Parameters
    ----------
    emb : DataArray, or path of a store
        Embeddings (time, embedding, y, x) with dates; at least ``2 * min_dates``.
    season : {"auto", "scene", "harmonic", "none"}
        What of the course of a year is not change. "scene": at each date, what places of one kind have in common; for
        series of any length, where most places of each kind are stable. "harmonic": a yearly wave of each place itself;
        for series over at least a year and a half. "none": nothing, all differences count. "auto": "harmonic" for 12
        dates or more over at least two years, else "scene".
    stable : DataArray of bool (y, x), optional
        Places known to be stable, at least 50: their steps are those of stable places. Default: the less changed half
        of sampled places, mirrored, which must then be the larger part of the scene.
    false_alarms : float
        Share of stable places that may be marked, 0 to 0.5.
    min_dates : int
        Fewest valid dates before and after a change. 2 ignores a single odd date, such as a cloud that was not masked.

    Returns
    -------
    Dataset
        Lazy on Dask, along y and x:

        - `date` datetime64: first valid date after the change; NaT where no change is marked.
        - `last` datetime64: last valid date before it. The change is between the two.
        - `changed` bool: ``level > 1 - false_alarms``.
        - `level` float32: share of stable places that look less changed, 0 to 1; NaN with too few valid dates.
        - `magnitude` float32: size of the step without the season, as a cosine distance: half its squared length
          between vectors of length 1.
        - `season` float32: share of the variation over time that the season explains, 0 to 1.
        - `dates` int16: valid dates.
        - `valid_share` float32 (time): share of places that are valid. Dates at which it is 0 count nowhere.

    Raises
    ------
    ArgumentError
        For embeddings without dates, too few or too short a series for `season`, and a `stable` of another grid or with
        too few places.

    Warns
    -----
    UserWarning
        With dates at which no place is valid, where this is known without computing embeddings.

    Notes
    -----
    The step is found by least squares over all dates k: vectors v_t = a + season_t + step (t >= k), whose F statistic
    is largest. It is brought to a scale on which it is symmetrical among stable places, divided by what a ridge
    regression on the first vectors and the number of valid dates expects, and ranked among stable places as in
    `change`. In simulated scenes with 12 to 40 dates, seasons, gaps and noise that differs between places, 0.2 to 2 %
    of stable places are above 0.99 (tests/heads/test_change_series.py), with 4 to 8 dates fewer. One step per place is
    reported; of several, the largest.
    """
    emb, was_opened = _series(emb)
    season, min_dates = _checked(season, min_dates, false_alarms)
    emb, days, dates = _dated(emb)
    if len(days) < 2 * min_dates:
        raise ArgumentError(
            f"the series must have at least {2 * min_dates} dates, min_dates={min_dates} before and after a change; "
            f"got {len(days)}. Pass min_dates=1, or compare two dates: "
            + remedy("change(emb, before, after)", "deo-cube change A A OUT --before DATE --after DATE")
        )
    season = _season(season, days, min_dates)
    design = _design(days, season)
    share = _valid_share(emb)
    if was_opened or isinstance(share.data, np.ndarray):
        _warn_of_empty(share, dates)
    cases = _cases(emb, stable)
    parameters = _fitted(cases, design, season, min_dates, mirrored=stable is None)
    blocks = _blocks(emb)
    d = emb.sizes["embedding"]
    kinds = _kinds(season)

    def on_block(block: Array, numbers: Array) -> Array:
        return _apply(block, numbers, design, min_dates, d, kinds)

    fitted = xr.DataArray(parameters.variable.data, dims="parameter")
    values = xr.apply_ufunc(
        on_block,
        blocks,
        fitted if fitted.chunks is None else fitted.chunk(-1),
        input_core_dims=[["time", "embedding"], ["parameter"]],
        output_core_dims=[["output"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"output": len(OUTPUTS)}},
        keep_attrs=False,
    )
    return _dataset(values, emb, dates, share, season, false_alarms)


# --- arguments ---


def _series(emb: Any) -> tuple[xr.DataArray, bool]:
    """Return the decoded embeddings, and whether they were opened here."""
    array = as_embeddings(emb)
    if "time" not in array.dims:
        raise ArgumentError(
            f"change_series needs embeddings with a dimension 'time', got {array.dims}: embed a cube of several dates, "
            f"or compare two {remedy('arrays, change(before, after)', 'stores, deo-cube change A B OUT')}"
        )
    return array, not isinstance(emb, xr.DataArray | xr.Dataset)


def _checked(season: Season, min_dates: int, false_alarms: float) -> tuple[Season, int]:
    arguments.choice("season", season, ("auto", "scene", "harmonic", "none"))
    arguments.number("false_alarms", false_alarms, above=0, maximum=0.5)
    return season, arguments.integer("min_dates", min_dates)


def _dated(emb: xr.DataArray) -> tuple[xr.DataArray, Array, Array]:
    """Return embeddings in the order of their dates, the days since the first one, and the dates."""
    times = read_times(emb["time"].variable).values
    if times is None or np.asarray(times).dtype.kind != "M" or np.isnat(times).any():
        raise ArgumentError(
            "change_series needs dates along 'time', got labels: emb.assign_coords(time=[...]) with one date per step"
        )
    dates = np.asarray(times, "M8[ns]")
    order = np.argsort(dates, kind="stable")
    if (order != np.arange(len(order))).any():
        emb, dates = emb.isel(time=order), dates[order]
    return emb, (dates - dates[0]) / np.timedelta64(1, "D"), dates


def _season(season: Season, days: Array, min_dates: int) -> Season:
    span = float(days.max() - days.min())
    if season == "auto":
        return "harmonic" if len(days) >= 12 and span >= 2 * YEAR else "scene"
    if season == "harmonic" and (span < 1.5 * YEAR or len(days) < 4 + 2 * min_dates):
        raise ArgumentError(
            f"season='harmonic' needs at least {4 + 2 * min_dates} dates over a year and a half, got {len(days)} over "
            f"{span / YEAR:.1f} years: a single year does not tell season from change. Pass season='scene'"
        )
    return season


def _kinds(season: Season) -> int:
    return KINDS if season == "scene" else 0


def _design(days: Array, season: Season) -> Array:
    """Return what explains a vector without a change, (dates, 1 or 3)."""
    angle = 2 * np.pi * days / YEAR
    waves = [np.cos(angle), np.sin(angle)] if season == "harmonic" else []
    return np.stack([np.ones(len(days)), *waves], axis=1)


def _valid_share(emb: xr.DataArray) -> xr.DataArray:
    y, x = spatial_dims(emb)
    if "valid" in emb.coords and "time" in emb["valid"].dims:
        valid = emb["valid"].variable > 0
    else:
        valid = emb.isel(embedding=0).notnull().variable
    share = valid.mean([y, x]).astype("float32")
    return xr.DataArray(share, coords={"time": emb["time"].variable}, name="valid_share")


def _warn_of_empty(share: xr.DataArray, dates: Array) -> None:
    empty = np.flatnonzero(np.asarray(share.values) == 0)
    if len(empty):
        listed = ", ".join(str(dates[t])[:10] for t in empty[:6]) + (", ..." if len(empty) > 6 else "")
        warnings.warn(
            f"{len(empty)} of {len(dates)} dates have no valid place and are left out: {listed}", stacklevel=3
        )


# --- places on which is fitted ---


def _cases(emb: xr.DataArray, stable: xr.DataArray | None) -> xr.DataArray:
    """Return series (case, time, embedding) of a fixed subsample, or of places known to be stable. Lazy."""
    y, x = spatial_dims(emb)
    if stable is None:
        steps = [
            subsample(emb.isel(time=t, drop=True), MOST_CASES).transpose("case", "embedding")
            for t in range(emb.sizes["time"])
        ]
        return xr.concat(steps, dim="time", coords="minimal", compat="override")
    if not isinstance(stable, xr.DataArray) or stable.dtype.kind != "b":
        kind = stable.dtype if isinstance(stable, xr.DataArray) else type(stable).__name__
        raise ArgumentTypeError(f"stable must be a boolean DataArray (y, x), True where nothing changed; got {kind}")
    if set(stable.dims) != {y, x} or any(stable.sizes[d] != emb.sizes[d] for d in (y, x)):
        raise ArgumentError(
            f"stable must be on the grid of the embeddings, {y} {emb.sizes[y]} and {x} {emb.sizes[x]}; got "
            f"{', '.join(f'{d} {n}' for d, n in stable.sizes.items())}: bring it there, "
            "stable.astype('uint8').odc.reproject(emb.odc.geobox, resampling='nearest') == 1"
        )
    moved = [d for d in (y, x) if not same_places(stable, emb, d)]
    if moved:
        over = ", ".join(f"{d}=emb.{d}" for d in (y, x))
        raise ArgumentError(
            f"stable must have the coordinates of the embeddings, and differs along {' and '.join(moved)}. In another "
            f"order, or cut elsewhere on the same grid: stable.sortby(['{y}', '{x}']).reindex({over}, "
            f"method='nearest', tolerance={_half_a_cell(emb):g}, fill_value=False). On another grid: "
            "stable.astype('uint8').odc.reproject(emb.odc.geobox, resampling='nearest') == 1"
        )
    rows, columns = np.nonzero(stable.transpose(y, x).values)
    if len(rows) < 50:
        raise ArgumentError(f"stable must mark at least 50 places, got {len(rows)}: mark more, or leave it out")
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST_CASES)).astype(int))
    places = {d: xr.DataArray(i[chosen], dims="case") for d, i in ((y, rows), (x, columns))}
    picked = xr.DataArray(emb.variable, dims=emb.dims).isel(places)
    return picked.transpose("time", "case", "embedding")


def _half_a_cell(emb: xr.DataArray) -> float:
    steps = [abs(float(emb[d][1] - emb[d][0])) / 2 for d in spatial_dims(emb) if d in emb.coords and emb.sizes[d] > 1]
    return min(steps, default=0.0)


def _blocks(emb: xr.DataArray) -> xr.DataArray:
    """Return the series in blocks that hold all dates, of a bounded size."""
    plain = xr.DataArray(emb.variable, dims=emb.dims)
    if plain.chunks is None:
        return plain
    y, x = spatial_dims(emb)
    side = max(8, int(np.sqrt(BLOCK_BYTES / (4 * emb.sizes["time"] * emb.sizes["embedding"]))))
    return plain.chunk({"time": -1, "embedding": -1, y: side, x: side})


def _fitted(cases: xr.DataArray, design: Array, season: Season, min_dates: int, *, mirrored: bool) -> xr.DataArray:
    """Return the season of each kind of place and the ranks of stable places, in one lazy array."""
    d, t = cases.sizes["embedding"], cases.sizes["time"]
    kinds = _kinds(season)
    size = kinds * d + kinds * t * d + (d + 1) + (d + 1) + 2 + 512

    def fit(block: Array) -> Array:
        return _fit(np.asarray(block, dtype="float64"), design, min_dates, kinds, mirrored=mirrored)

    fitted: xr.DataArray = xr.apply_ufunc(
        fit,
        cases.chunk({"time": -1, "case": -1, "embedding": -1}) if cases.chunks is not None else cases,
        input_core_dims=[["case", "time", "embedding"]],
        output_core_dims=[["parameter"]],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": {"parameter": size}},
        keep_attrs=False,
    )
    return fitted


def _fit(v: Array, design: Array, min_dates: int, kinds: int, *, mirrored: bool) -> Array:
    v, w = _unit(v)
    means = _means(v, w, min_dates)
    enough = w.sum(axis=1) >= design.shape[1] + 2 * min_dates - 1
    if enough.sum() < 50:
        raise ArgumentError(
            f"change_series needs at least 50 sampled places with {design.shape[1] + 2 * min_dates - 1} valid dates, "
            f"found {int(enough.sum())}: pass a larger window, more dates, or a smaller min_dates="
        )
    v, w, means = v[enough], w[enough], means[enough]
    centres, course = _seasons(v, w, means, kinds)
    found = _steps(_without_season(v, w, means, centres, course), w, design, min_dates)
    ok = np.isfinite(found["gain"])
    if ok.sum() < 50:
        raise ArgumentError(
            f"change_series needs at least 50 sampled places with {min_dates} valid dates before and after a change, "
            f"found {int(ok.sum())}: pass a larger window, more dates, or a smaller min_dates="
        )
    scatter = _fit_scatter(means[ok], found["rest"][ok] / found["freedom"][ok])
    t = _measure(_f(found, means, scatter))
    ranks = fit_ranks(_features(means, w)[ok], t[ok], mirrored=mirrored)
    return np.concatenate([centres.ravel(), course.ravel(), scatter, ranks])


def _fit_scatter(means: Array, variance: Array) -> Array:
    """Return weights and constant of the logarithm of the variance that a kind of place has beside season and step."""
    centre, spread = means.mean(axis=0), means.std(axis=0) + 1e-9
    x = (means - centre) / spread
    y = np.log(variance)
    weights = np.linalg.solve(x.T @ x + RIDGE * np.eye(x.shape[1]), x.T @ (y - y.mean())) / spread
    return np.append(weights, y.mean() - weights @ centre)


def _f(found: dict[str, Array], means: Array, scatter: Array) -> Array:
    """Return the F statistic of the step: its gain beside the variance of the place, and of its kind.

    Few dates say little of a place's own variance, so that of its kind counts as `PRIOR` dates more.
    """
    expected = np.exp(np.clip(means @ scatter[:-1] + scatter[-1], -30, 5))
    variance = (PRIOR * expected + found["rest"]) / (PRIOR + found["freedom"])
    return np.asarray(found["gain"] / variance)


def _seasons(v: Array, w: Array, means: Array, kinds: int) -> tuple[Array, Array]:
    """Return centres of kinds of places (k, D), and their common course over the dates (k, T, D)."""
    n, t, d = v.shape
    centres, course = np.zeros((kinds, d)), np.zeros((kinds, t, d))
    if not kinds:
        return centres, course
    used = min(kinds, max(1, n // 64))
    centres[:used] = _spread(means, used)
    centres[used:] = centres[0]
    kind = _nearest(means, centres[:used])
    for k in range(used):
        own = kind == k
        if own.sum() < 8:
            own = np.ones(n, bool)  # too few to have a season of their own: the scene's
        u = np.where(w[own][..., None], v[own], np.nan)
        place = np.nanmean(u, axis=1, keepdims=True)
        # Medians, which places that changed do not move; alternating, because places lack different dates.
        for _ in range(3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # dates without any valid place
                common = np.nan_to_num(np.nanmedian(u - place, axis=0))
            place = np.nanmean(u - common, axis=1, keepdims=True)
        course[k] = common
    course[used:] = course[0]
    return centres, course


def _spread(means: Array, k: int) -> Array:
    """Return `k` centres of vectors, by Lloyd's iterations from the vectors farthest apart; without random numbers."""
    centres = [means.mean(axis=0)]
    away = ((means - centres[0]) ** 2).sum(axis=1)
    for _ in range(k - 1):
        centres.append(means[int(away.argmax())])
        away = np.minimum(away, ((means - centres[-1]) ** 2).sum(axis=1))
    found = np.stack(centres)
    for _ in range(20):
        kind = _nearest(means, found)
        found = np.stack([means[kind == i].mean(axis=0) if (kind == i).any() else found[i] for i in range(k)])
    return found


def _nearest(means: Array, centres: Array) -> Array:
    return np.asarray(((centres**2).sum(axis=1) - 2 * means @ centres.T).argmin(axis=1))


# --- steps ---


def _unit(v: Array) -> tuple[Array, Array]:
    """Return vectors of length 1, 0 where invalid, and where they are valid (cases, dates)."""
    w: Array = np.asarray(np.isfinite(v).all(axis=-1))
    v = np.where(w[..., None], v, 0.0)
    length = np.linalg.norm(v, axis=-1, keepdims=True)
    return v / np.where(length > 0, length, 1.0), w


def _means(v: Array, w: Array, min_dates: int) -> Array:
    """Return the mean of the first third of the valid dates: the kind of place, mostly as it was before a change."""
    first = np.maximum(w.sum(axis=1) // 3, min_dates)
    early = w & (w.cumsum(axis=1) <= first[:, None])
    return np.asarray(np.einsum("pt,ptd->pd", early, v) / np.maximum(early.sum(axis=1), 1)[:, None])


def _features(means: Array, w: Array) -> Array:
    return np.concatenate([means, 1 / np.maximum(w.sum(axis=1), 1)[:, None]], axis=1)


def _measure(f: Array) -> Array:
    """Return the F statistic of a largest step on a scale on which it is symmetrical among stable places.

    A largest of many is skewed even in its logarithm; on the scale -F^-0.2 its lower half, mirrored, is its upper one,
    for 6 to 40 dates. Shifted so that all but vanishing steps are positive.
    """
    return np.asarray(np.maximum(4 + (1 - np.maximum(f, 1e-3) ** -POWER) / POWER, 0))


def _without_season(v: Array, w: Array, means: Array, centres: Array, course: Array) -> Array:
    if not len(centres):
        return v
    return np.where(w[..., None], v - course[_nearest(means, centres)], 0.0)


def _steps(v: Array, w: Array, design: Array, min_dates: int) -> dict[str, Array]:
    """Find the step that explains most of each series.

    Parameters
    ----------
    v : (cases, dates, D) float
        0 where invalid.
    w : (cases, dates) bool
    design : (dates, q) float
        What explains the vectors without a step.
    min_dates : int

    Returns
    -------
    dict of (cases,) arrays
        `step`, `last`: dates by index, -1 without one; `magnitude`; `gain`: squares that the step explains, NaN with
        too few dates; `rest`: squares that remain beside it, with `freedom`; squares `about` the mean, and those that
        the design has `left`.
    """
    t, q = design.shape
    products = v @ v.transpose(0, 2, 1)
    x = design[None] * w[..., None]
    g00 = x.transpose(0, 2, 1) @ x
    inverse = np.linalg.pinv(g00, rcond=1e-9, hermitian=True)
    xk = x.transpose(0, 2, 1) @ products
    a00 = xk @ x
    count = w.sum(axis=1)
    total = np.einsum("ptt->p", products)
    left = np.maximum(total - np.einsum("pij,pji->p", inverse, a00), 0)
    about = np.maximum(total - products.sum(axis=(1, 2)) / np.maximum(count, 1), 0)

    def after(a: Array, axis: int) -> Array:
        return np.flip(np.flip(a, axis).cumsum(axis), axis)

    g_k = after(x, 1)  # (n, t, q): of a step that begins at each date
    a_k = after(xk, 2).transpose(0, 2, 1)
    own = np.einsum("ptt->pt", after(after(products, 1), 2))
    later = after(w.astype(np.int64), 1)
    solved = g_k @ inverse
    h = later - np.einsum("pti,pti->pt", solved, g_k)
    along = own - 2 * np.einsum("pti,pti->pt", solved, a_k) + np.einsum("pti,pij,ptj->pt", solved, a00, solved)
    allowed = w & (later >= min_dates) & (count[:, None] - later >= min_dates) & (h > 1e-6 * np.maximum(later, 1))
    gains = np.where(allowed, np.maximum(along, 0) / np.where(allowed, h, 1), -1.0)
    step = gains.argmax(axis=1)
    best = np.take_along_axis(gains, step[:, None], 1)[:, 0]
    width = np.take_along_axis(h, step[:, None], 1)[:, 0]
    freedom = count - q - 1
    ok = (best >= 0) & (freedom >= 1)
    rest = np.maximum(left - best, 0) + ROUNDING * np.maximum(count, 1)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(ok, np.maximum(best, 0), np.nan)
        magnitude = np.where(ok, 0.5 * np.maximum(best, 0) / np.where(ok, width, 1), np.nan)
    earlier = w & (np.arange(t) < step[:, None])
    last = np.where(earlier.any(axis=1), t - 1 - np.flip(earlier, 1).argmax(axis=1), -1)
    return {
        "step": np.where(ok, step, -1),
        "last": np.where(ok, last, -1),
        "magnitude": magnitude,
        "gain": gain,
        "rest": rest,
        "freedom": np.maximum(freedom, 1),
        "left": left,
        "about": about,
    }


def _apply(block: Array, parameters: Array, design: Array, min_dates: int, d: int, kinds: int) -> Array:
    """Return `OUTPUTS` of a block (..., dates, D)."""
    shape, t = block.shape[:-2], block.shape[-2]
    centres = parameters[: kinds * d].reshape(kinds, d)
    course = parameters[kinds * d : kinds * d * (1 + t)].reshape(kinds, t, d)
    scatter, ranks = np.split(parameters[kinds * d * (1 + t) :], [d + 1])
    flat = block.reshape(-1, t, d)
    out = np.full((len(flat), len(OUTPUTS)), np.nan)
    at_once = max(64, int(BLOCK_BYTES / (8 * t * max(d, t))))
    for start in range(0, len(flat), at_once):
        v, w = _unit(np.asarray(flat[start : start + at_once], dtype="float64"))
        means = _means(v, w, min_dates)
        found = _steps(_without_season(v, w, means, centres, course), w, design, min_dates)
        ok = np.isfinite(found["gain"])
        level = np.full(len(v), np.nan)
        if ok.any():
            level[ok] = rank(_features(means, w)[ok], _measure(_f(found, means, scatter))[ok], ranks)
        if kinds:
            products = v @ v.transpose(0, 2, 1)
            count = np.maximum(w.sum(axis=1), 1)
            about = np.maximum(np.einsum("ptt->p", products) - products.sum(axis=(1, 2)) / count, 0)
        else:
            about = found["about"]
        season = np.where(about > ROUNDING, 1 - found["left"] / np.where(about > 0, about, 1), np.nan).clip(0, 1)
        columns = (found["step"], found["last"], found["magnitude"], level, np.where(ok, season, np.nan), w.sum(axis=1))
        out[start : start + at_once] = np.stack(columns, axis=1)
    return out.reshape(*shape, len(OUTPUTS))


# --- result ---


def _dataset(
    values: xr.DataArray, emb: xr.DataArray, dates: Array, share: xr.DataArray, season: str, false_alarms: float
) -> xr.Dataset:
    y, x = spatial_dims(emb)
    by_name = {n: values.isel(output=i).transpose(y, x).variable for i, n in enumerate(OUTPUTS)}
    changed = by_name["level"] > 1 - false_alarms
    units = {"units": "1"}
    variables: dict[str, tuple[xr.Variable, dict[str, Any]]] = {
        "date": (_dates(by_name["step"], changed, dates), {"long_name": "first valid date after the change"}),
        "last": (_dates(by_name["last"], changed, dates), {"long_name": "last valid date before the change"}),
        "changed": (
            changed,
            {"long_name": f"changed, of which {false_alarms:.3g} of stable places are taken to be", **units},
        ),
        "level": (
            by_name["level"].astype("float32"),
            {"long_name": "share of stable places that look less changed", **units},
        ),
        "magnitude": (
            by_name["magnitude"].astype("float32"),
            {"long_name": "cosine distance of the change, without the season", **units},
        ),
        "season": (
            by_name["season"].astype("float32"),
            {"long_name": "share of the variation that the season explains", **units},
        ),
        "dates": (by_name["dates"].fillna(0).astype("int16"), {"long_name": "valid dates", **units}),
    }
    grid = {c: v for c, v in emb.coords.items() if set(v.dims) <= {y, x} and c != "valid"}
    mapping = {"grid_mapping": "spatial_ref"} if "spatial_ref" in emb.coords else {}
    out = xr.Dataset(
        {n: xr.DataArray(v, coords=grid, attrs={**attrs, **mapping}) for n, (v, attrs) in variables.items()}
    )
    out["valid_share"] = share.assign_attrs(long_name="share of valid places", **units)
    kept = (Attribute.MODEL, Attribute.MODEL_FINGERPRINT, Attribute.LAYER)
    out.attrs = {k: emb.attrs[k] for k in map(str, kept) if k in emb.attrs}
    out.attrs |= {"season": season, "false_alarms": false_alarms}
    return out


def _dates(index: xr.Variable, changed: xr.Variable, dates: Sequence[Any] | Array) -> xr.Variable:
    table = np.append(np.asarray(dates, "M8[ns]"), np.datetime64("NaT", "ns"))

    def look_up(i: Array, c: Array) -> Array:
        return np.asarray(table[np.where(c & (i >= 0), i, -1).astype(int)])

    looked_up: xr.Variable = xr.apply_ufunc(
        look_up, index, changed, dask="parallelized", output_dtypes=[np.dtype("M8[ns]")]
    )
    return looked_up
