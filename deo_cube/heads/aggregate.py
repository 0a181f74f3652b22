"""One vector per patch and period (`aggregate`): the dates of a season, a year or a month joined to one.

A mean is a running one, date after date, so that a block of one date is in memory at a time, and the numbers depend on
the order of the dates alone, never on chunks. The other statistics need all dates of a period of a block at once. The
numbers of one period travel in one array, with three more layers than a vector has numbers: the sum of the weights, the
sum of the valid fractions and the number of dates. Dask names the steps after the functions, and
`metadata.derivation` knows those that begin with ``aggregate``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import dask.array as da
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.times import coordinates_of, dates, periods
from deo_cube.embedding import metadata
from deo_cube.errors import ArgumentError
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["aggregate"]

Array = NDArray[Any]
How = Literal["mean", "median", "medoid", "trimmed"]

TRIM = 0.2
"""Share of the weight that a trimmed mean leaves out at either end."""
NUMBERS = 1 << 23
"""Numbers that a statistic of all dates works on at a time, which bounds the memory within a block."""


def aggregate(emb: Any, freq: str | Sequence[tuple[Any, Any]], *, how: How = "mean") -> xr.DataArray:
    """Return one vector per patch and period, weighted by the valid fraction of each date. Lazy on Dask.

    Parameters
    ----------
    emb : DataArray or path
        Embeddings (time, embedding, y, x), or the path or URL of a store of them.
    freq : str or list of (start, end)
        "year", "season" (December to February, March to May, ...), "quarter", "month", or a frequency of pandas that
        starts a period ("YS-OCT", "2MS", "W", "10D"); or periods of your own, both ends included:
        ``[("2022-05", "2022-09")]``.
    how : {"mean", "median", "medoid", "trimmed"}
        "mean": weighted by `valid`. "median": of each number, half of the weight on either side. "trimmed": the mean
        of each number without the lowest and highest 20 % of the weight. "medoid": the vector of the date with the
        least weighted distance to all others, and so always a vector of the model. The last three leave out a cloud
        that the mask missed.

    Returns
    -------
    DataArray
        (time, embedding, y, x) float32, NaN where no date of a period is valid. `time` is the start of each period.
        Coordinates: `start_datetime` and `end_datetime`, the first and last second of a period; `dates`, the number of
        dates in it; `valid` (time, y, x), the mean valid fraction of the dates that contributed; `count` (time, y, x),
        their number. A period of one date has the vectors of that date.

    Raises
    ------
    ArgumentError
        Without dates, for an unknown `freq` or `how`, and for what are not embeddings.

    Notes
    -----
    A mean reads one date of a block at a time. The other statistics hold all dates of a period of a block in memory.
    A store that is written from the result describes periods: its STAC Item has a start and an end.

    Examples
    --------
    >>> import deo_cube
    >>> emb = deo_cube.synthetic_cube(size=64, times=3).deo.embed()
    >>> deo_cube.aggregate(emb, "year").sizes["time"]
    1
    """
    arguments.choice("how", how, ("mean", "median", "medoid", "trimmed"))
    emb = as_embeddings(emb)
    y, x = spatial_dims(emb)
    if "time" not in emb.dims:
        raise ArgumentError(f"emb must have a dimension 'time' to aggregate, found {tuple(map(str, emb.dims))}")
    before = metadata.derivation(emb)
    emb = emb.transpose("time", "embedding", y, x)
    of_time = dates(emb["time"] if "time" in emb.coords else None, "an aggregate", "time")
    groups = periods(of_time, freq)
    values, valid = emb.data, _valid(emb, (y, x))
    states = [_reduced(values, valid, list(group.positions), how) for group in groups]
    lazy = isinstance(values, da.Array)
    state = da.stack(states) if lazy else np.stack(states)
    length = emb.sizes["embedding"]
    vectors, count = state[:, :length], state[:, length + 2]
    fraction = state[:, length + 1]
    shown = freq if isinstance(freq, str) else "period"
    attrs = {
        k: v for k, v in emb.attrs.items() if k not in ("grid_mapping", "coordinates", "scale_factor", "_FillValue")
    }
    model = emb.attrs.get(Attribute.MODEL_ALIAS)
    attrs[Attribute.AGGREGATE] = metadata.to_json({"freq": shown, "how": how})
    if model is not None:
        attrs[Attribute.DERIVED] = f"{how} per {shown} of {before or f'{model} embeddings'}"
    if Attribute.DTYPE in attrs:
        attrs[Attribute.DTYPE] = "float32"
    attrs["cell_methods"] = f"time: {how}"
    result = xr.DataArray(vectors, dims=("time", "embedding", y, x), name=emb.name, attrs=attrs)
    plane = ("time", y, x)
    coords: dict[str, Any] = coordinates_of(groups, emb["time"].attrs) | {
        "valid": (plane, fraction, {"long_name": "mean valid fraction of the dates that contributed", "units": "1"}),
        "count": (plane, count.astype("int16"), {"long_name": "dates that contributed", "units": "1"}),
    }
    if "embedding" in emb.coords:
        coords["embedding"] = emb["embedding"].variable
    placed: xr.DataArray = georeference.assign_grid(result.assign_coords(coords), geobox(emb), dims=(y, x))
    return placed


def _valid(emb: xr.DataArray, dims: tuple[str, str]) -> Any:
    """Return the valid fraction (time, y, x), chunked as the values are; 1 where the array has none."""
    values, shape = emb.data, (emb.sizes["time"], emb.sizes[dims[0]], emb.sizes[dims[1]])
    if "valid" in emb.coords:
        valid = emb["valid"].variable
        if "time" not in valid.dims:
            valid = valid.set_dims({"time": shape[0], **dict(zip(valid.dims, valid.shape, strict=True))})
        data = valid.transpose("time", *dims).data
    else:
        data = np.broadcast_to(np.float32(1), shape)
    if not isinstance(values, da.Array):
        return np.asarray(data)
    chunks = (values.chunks[0], *values.chunks[2:])
    return da.asarray(data).rechunk(chunks) if isinstance(data, da.Array) else da.from_array(data, chunks=chunks)


def _reduced(values: Any, valid: Any, positions: list[int], how: str) -> Any:
    """Return the numbers of one period (D + 3, y, x), as `aggregate_step` describes them."""
    _, length, rows, columns = values.shape
    lazy, meta = isinstance(values, da.Array), np.empty((0, 0, 0), "float32")
    if how == "mean" or not positions:
        shape = (length + 3, rows, columns)
        state: Any = np.zeros(shape, "float32")
        if lazy:
            state = da.zeros(shape, chunks=((length + 3,), *values.chunks[2:]), dtype="float32")
        for t in positions:
            if lazy:
                state = da.map_blocks(
                    aggregate_step, state, values[t], valid[t][None], chunks=state.chunks, dtype="float32", meta=meta
                )
            else:
                state = aggregate_step(state, values[t], valid[t][None])
        return (
            da.map_blocks(aggregate_finished, state, dtype="float32", meta=meta) if lazy else aggregate_finished(state)
        )
    function = _STATISTICS[how]
    if not lazy:
        return aggregate_dates(values[positions], valid[positions][:, None], function)
    # Date by date: Dask's array expressions do not take a list of positions.
    some, fractions = (da.stack([each[t] for t in positions]) for each in (values, valid))
    return da.map_blocks(
        aggregate_dates,
        some.rechunk({0: -1}),
        fractions[:, None].rechunk({0: -1}),
        function,
        dtype="float32",
        drop_axis=0,
        chunks=((length + 3,), *values.chunks[2:]),
        meta=meta,
    )


def aggregate_step(state: Array, values: Array, valid: Array) -> Array:
    """Return a running mean with one more date.

    Parameters
    ----------
    state : (D + 3, y, x) float32
        Mean, sum of weights, sum of valid fractions, and number of dates.
    values, valid : (D, y, x), (1, y, x)
        Of the date.
    """
    v = values.astype("float32")
    weight = np.where(np.isfinite(v).all(axis=0), np.nan_to_num(valid[0]), 0).astype("float32")
    out = state.copy()
    out[-3] += weight
    with np.errstate(invalid="ignore", divide="ignore"):
        # Of the first valid date the share is exactly 1, and the mean exactly its vector.
        share = np.where(weight > 0, weight / out[-3], 0)
    out[:-3] += share * np.where(weight > 0, v - out[:-3], 0)
    out[-2] += weight
    out[-1] += weight > 0
    return out


def aggregate_finished(state: Array) -> Array:
    """Return a state with missing vectors as NaN, and the mean valid fraction in place of its sum."""
    out = state.copy()
    out[:-3, state[-1] == 0] = np.nan
    out[-2] = np.where(state[-1] > 0, state[-2] / np.maximum(state[-1], 1), 0)
    return out


def aggregate_dates(values: Array, valid: Array, function: Callable[[Array, Array], Array]) -> Array:
    """Apply a statistic ``(v (T, D, n), weight (T, n)) -> (D, n)`` to a block (T, D, y, x), some patches at a time."""
    times, length, rows, columns = values.shape
    v = values.reshape(times, length, -1)
    fraction = np.nan_to_num(valid.reshape(times, -1)).astype("float32")
    out = np.full((length + 3, rows * columns), np.nan, "float32")
    step = max(NUMBERS // (times * length), 1)
    for a in range(0, rows * columns, step):
        part = v[:, :, a : a + step].astype("float32")
        weight = np.where(np.isfinite(part).all(axis=1), fraction[:, a : a + step], 0)
        count = (weight > 0).sum(axis=0)
        used = count > 0
        target = out[:, a : a + step]
        target[-3], target[-1] = weight.sum(axis=0), count
        target[-2] = np.where(used, weight.sum(axis=0) / np.maximum(count, 1), 0)
        if used.any():
            target[:-3, used] = function(np.where(weight[:, None, used] > 0, part[:, :, used], 0), weight[:, used])
    return out.reshape(length + 3, rows, columns)


def _ordered(v: Array, weight: Array) -> tuple[Array, Array]:
    """Return values in order along the dates, those without a weight last, and the weight up to each, in 0 to 1."""
    keys = np.where(weight[:, None] > 0, v, np.inf)
    order = np.argsort(keys, axis=0, kind="stable")
    share = (weight / weight.sum(axis=0)).astype("float64")
    passed = np.cumsum(np.take_along_axis(np.broadcast_to(share[:, None], v.shape), order, axis=0), axis=0)
    return np.take_along_axis(v, order, axis=0), passed


def _median(v: Array, weight: Array) -> Array:
    ordered, passed = _ordered(v, weight)
    last = (weight > 0).sum(axis=0) - 1
    low, high = (np.minimum((passed < 0.5 + e).sum(axis=0), last) for e in (-1e-6, 1e-6))
    a, b = (np.take_along_axis(ordered, k[None], axis=0)[0] for k in (low, high))
    return np.asarray((a + b) / 2)


def _trimmed(v: Array, weight: Array) -> Array:
    ordered, passed = _ordered(v, weight)
    inside = np.clip(passed, TRIM, 1 - TRIM)
    share = np.diff(inside, axis=0, prepend=TRIM)
    share /= share.sum(axis=0)
    return np.asarray((ordered * share).sum(axis=0))


def _medoid(v: Array, weight: Array) -> Array:
    times = len(v)
    cost = np.zeros((times, v.shape[-1]), "float64")
    for t in range(times):
        distance = np.sqrt(((v - v[t]) ** 2).sum(axis=1))
        cost[t] = (distance * weight).sum(axis=0)
    chosen = np.where(weight > 0, cost, np.inf).argmin(axis=0)
    vectors: Array = np.take_along_axis(v, chosen[None, None], axis=0)[0]
    return vectors


_STATISTICS: dict[str, Callable[[Array, Array], Array]] = {"median": _median, "medoid": _medoid, "trimmed": _trimmed}
