"""Check, decode and subsample embeddings, and apply functions to their vectors without losing the grid.

A head takes any DataArray with a dimension `embedding` and two spatial dimensions, with or without `time`; NaN marks
invalid vectors. Everything here is lazy on Dask: functions run chunk by chunk through `xarray.apply_ufunc`, and a fit
is a small lazy array itself, so that a verb computes nothing before its result is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.constants import INT8_INVALID, Attribute
from deo_cube.cube import georeference
from deo_cube.errors import ArgumentError, MissingCRSError, SelectionError
from deo_cube.store.open import opened

__all__ = [
    "as_embeddings",
    "geobox",
    "map_vectors",
    "matching_times",
    "model_fingerprint",
    "same_places",
    "select_time",
    "softmax",
    "spatial_dims",
    "subsample",
    "unit",
]

Array = NDArray[Any]

VECTORS_PER_CALL = 16384
"""Vectors that a function gets at once, which bounds the memory within a chunk."""


def as_embeddings(array: Any, argument: str = "emb") -> xr.DataArray:
    """Return embeddings as heads read them: one chunk along `embedding`, stored numbers decoded lazily.

    Values equal to `_FillValue` of the attributes (for int8 without one: -128) become NaN, integers become float32 by
    `scale_factor` and `add_offset`.

    Parameters
    ----------
    array : DataArray, Dataset, or path of a store
        A Dataset (a store opened with `xarray.open_zarr`) must hold one array of embeddings.
    argument : str
        Argument that errors name.

    Raises
    ------
    ArgumentTypeError
        For anything else.
    StoreMismatchError
        For a path that is not a store of embeddings.
    ArgumentError, MissingCRSError
        Without a dimension `embedding`, without a pair of spatial dimensions, or with others than time.
    """
    array = opened(array, argument)
    y, x = spatial_dims(array)
    others = [d for d in array.dims if d not in ("embedding", y, x, "time")]
    if others:
        raise ArgumentError(
            f"embeddings must have dimensions (time, embedding, y, x), found also {others}: select one index of them"
        )
    axis = array.get_axis_num("embedding")
    if array.chunks is not None and len(array.chunks[axis]) > 1:
        # Only the data: `array.chunk` would turn coordinates into tasks too, and compute some of them to do so.
        array = array.copy(data=array.data.rechunk({axis: -1}))
    coded = array.dtype.kind in "iu"
    fill = array.attrs.get("_FillValue", INT8_INVALID if array.dtype == np.int8 else None)
    if coded or (fill is not None and np.isfinite(fill)):
        scale, offset = (array.attrs.get(k, v) for k, v in (("scale_factor", 1.0), ("add_offset", 0.0)))
        attrs = {k: v for k, v in array.attrs.items() if k not in ("scale_factor", "add_offset", "_FillValue")}
        decoded = array.astype("float32") * np.float32(scale) + np.float32(offset) if coded else array
        array = decoded if fill is None else decoded.where(array != fill)
        array.attrs = attrs
    embeddings: xr.DataArray = array
    return embeddings


def spatial_dims(array: xr.DataArray) -> tuple[str, str]:
    """Return the names of the dimensions along y and x."""
    d = georeference.dims(_plane(array))
    return d.y, d.x


def geobox(array: xr.DataArray) -> GeoBox:
    """Return the grid of the embeddings, exact to the corner.

    Raises
    ------
    MissingCRSError
        If the array has no CRS or no regular coordinates.
    """
    return georeference.geobox(_plane(array))


def _plane(array: xr.DataArray) -> xr.DataArray:
    """Return the array without its dimension of vectors, classes or colours."""
    return array.isel({d: 0 for d in ("embedding", "class", "band") if d in array.dims}, drop=True)


def model_fingerprint(array: xr.DataArray) -> str:
    """Return the fingerprint of the model that made the embeddings; empty where they do not name one."""
    return str(array.attrs.get(Attribute.MODEL_FINGERPRINT, ""))


def crs_or_none(array: xr.DataArray) -> Any:
    """Return the CRS of the array; None where it has none."""
    try:
        return geobox(array).crs
    except MissingCRSError:
        return None


def same_places(one: xr.DataArray, other: xr.DataArray, dim: str) -> bool:
    """Return whether coordinates along `dim` are the same, to a thousandth of a cell; without any, the sizes."""
    if one.sizes[dim] != other.sizes[dim]:
        return False
    if dim not in one.coords or dim not in other.coords:
        return True
    cell = abs(float(one[dim][-1] - one[dim][0])) / max(one.sizes[dim] - 1, 1)
    return bool(np.allclose(one[dim], other[dim], rtol=0, atol=1e-3 * cell))


def select_time(array: xr.DataArray, time: Any, *, argument: str = "time") -> xr.DataArray:
    """Return embeddings of one time (embedding, y, x): the mean of the valid vectors where `time` matches several.

    Parameters
    ----------
    time : str, datetime or slice
        A label, part of one ("2020", "2020-06"), or a slice of labels.
    argument : str
        Name of the argument that holds `time`, for messages.

    Raises
    ------
    ArgumentError
        If the embeddings have no dimension `time`.
    SelectionError
        If no time matches; the message lists the times.
    """
    selected = matching_times(array, time, argument=argument)
    if "time" not in selected.dims:
        return selected
    if selected.sizes["time"] == 1:
        return selected.isel(time=0)
    return selected.astype("float32").mean("time", skipna=True).assign_attrs(selected.attrs)


def matching_times(array: xr.DataArray, time: Any, *, argument: str = "time") -> xr.DataArray:
    """Return an array at all times that `time` matches; without the dimension where it is one label of the index.

    Parameters and errors are those of `select_time`.
    """
    if "time" not in array.dims:
        raise ArgumentError(f"{argument}={time!r} needs embeddings with a dimension 'time', got {array.dims}")
    index = array.indexes.get("time")
    if isinstance(time, int | np.integer) and 1000 <= time <= 9999 and index is not None and index.dtype.kind == "M":
        time = str(time)  # a year; as a label it would be nanoseconds since 1970
    if isinstance(time, slice) and index is not None and not index.is_monotonic_increasing:
        array = array.isel(time=np.argsort(index.to_numpy(), kind="stable"))  # slices of labels need an order
    try:
        selected = array.sel(time=_label(time))
    except (KeyError, TypeError, ValueError):
        selected = array.isel(time=slice(0, 0))
    if "time" not in selected.dims:
        return selected
    if selected.sizes["time"] == 0:
        times = [str(t)[:16] for t in array["time"].values]
        listed = ", ".join(times[:6]) + (f", ... {times[-1]}" if len(times) > 6 else "")
        raise SelectionError(f"{argument}={time!r} matches none of the {len(times)} times: {listed}")
    return selected


def _label(time: Any) -> Any:
    """Return `time` as an index of dates in UTC finds it: times with a zone in UTC, a `date` as the whole day."""
    if isinstance(time, slice):
        return slice(_label(time.start), _label(time.stop), time.step)
    if isinstance(time, datetime) and time.tzinfo is not None:
        return time.astimezone(UTC).replace(tzinfo=None)
    if isinstance(time, date) and not isinstance(time, datetime):
        return time.isoformat()
    return time


def map_vectors(
    function: Callable[..., Array],
    arrays: Sequence[xr.DataArray],
    *,
    parameters: xr.DataArray | Array | None = None,
    dtype: Any = "float32",
    fill: Any = np.nan,
    channels: Mapping[str, Sequence[Any]] | None = None,
    name: str,
    attrs: Mapping[str, Any],
) -> xr.DataArray:
    """Apply `function` to every valid vector of one or more arrays, chunk by chunk.

    Parameters
    ----------
    function : callable
        ``(vectors (n, D), ..., parameters) -> (n,)`` or ``(n, C)``; called with float64, valid vectors only.
    arrays : sequence of DataArray
        Embeddings on one grid; a vector is valid where none of its numbers is NaN in any of them.
    parameters : array, optional
        Fitted parameters; may be lazy (each chunk waits for them).
    dtype, fill
        Of the result; `fill` is its value where a vector is invalid.
    channels : {dim: labels}, optional
        The extra dimension of a function that returns (n, C); it comes before y in the result.
    name, attrs
        Of the result.

    Returns
    -------
    DataArray
        (time, [channel,] y, x) with the coordinates of the first array.
    """
    first = as_embeddings(arrays[0])
    y, x = spatial_dims(first)
    operands = [as_embeddings(a) for a in arrays]
    lengths = {a.sizes["embedding"] for a in operands}
    if len(lengths) > 1:
        raise ArgumentError(f"arrays must have vectors of one length, got {sorted(lengths)}")
    core: list[list[str]] = [["embedding"]] * len(operands)
    if parameters is not None:
        values = parameters.variable if isinstance(parameters, xr.DataArray) else np.asarray(parameters)
        dims = [f"parameter_{i}" for i in range(values.ndim)]
        fixed = xr.DataArray(values.data, dims=dims)
        operands.append(fixed if fixed.chunks is None else fixed.chunk(dict.fromkeys(dims, -1)))
        core.append(dims)
    dim, labels = next(iter(channels.items())) if channels else (None, ())
    size = len(labels) if dim else None
    n = len(arrays)

    def on_chunk(*blocks: Array) -> Array:
        shape = np.broadcast_shapes(*(b.shape[:-1] for b in blocks[:n]))
        # A dimension that only one of the arrays has (time) is broadcast here.
        flat = [np.broadcast_to(b, (*shape, b.shape[-1])).reshape(-1, b.shape[-1]) for b in blocks[:n]]
        out = np.full((flat[0].shape[0],) if size is None else (flat[0].shape[0], size), fill, dtype)
        for start in range(0, len(out), VECTORS_PER_CALL):
            parts = [np.asarray(f[start : start + VECTORS_PER_CALL], dtype="float64") for f in flat]
            valid = np.logical_and.reduce([np.isfinite(p).all(axis=1) for p in parts])
            if valid.any():
                out[start : start + VECTORS_PER_CALL][valid] = function(*(p[valid] for p in parts), *blocks[n:])
        return out.reshape(shape if size is None else (*shape, size))

    result: xr.DataArray = xr.apply_ufunc(
        on_chunk,
        *operands,
        input_core_dims=core,
        output_core_dims=[[] if dim is None else [dim]],
        dask="parallelized",
        output_dtypes=[np.dtype(dtype)],
        dask_gufunc_kwargs={} if dim is None else {"output_sizes": {dim: size}},
        join="override" if n > 1 else "exact",
        keep_attrs="override",
    )
    if dim is not None:
        result = result.assign_coords({dim: list(labels)})
    result = result.transpose(..., *([] if dim is None else [dim]), y, x)
    result.name = name
    result.attrs = dict(attrs)
    if model := first.attrs.get(Attribute.MODEL_ALIAS):
        result.attrs.setdefault(Attribute.MODEL_ALIAS, model)  # for titles and tags of files
    if "spatial_ref" in result.coords:
        result.attrs.setdefault("grid_mapping", "spatial_ref")
    return result


def subsample(array: xr.DataArray, most: int = 16384) -> xr.DataArray:
    """Return vectors (case, embedding) of a fixed subsample: at most 8 x 8 windows on a lattice, and 4 times. Lazy.

    The subsample depends only on the shape of the array, never on its chunks, of which it reads few.
    """
    y, x = spatial_dims(array)
    times = array.sizes.get("time", 1)
    indices = {"time": np.unique(np.linspace(0, times - 1, min(times, 4)).astype(int))} if "time" in array.dims else {}
    side = max(int(np.sqrt(most / max(len(indices.get("time", [0])), 1))), 1)
    for d in (y, x):
        indices[d] = _runs(array.sizes[d], side)
    subset = array.isel(indices).transpose(..., "embedding")
    dims = [d for d in subset.dims if d != "embedding"]
    vectors = xr.DataArray(subset.variable).stack(case=dims, create_index=False).transpose("case", "embedding")
    return vectors.chunk(case=-1, embedding=-1) if vectors.chunks is not None else vectors


def _runs(size: int, count: int, runs: int = 8) -> Array:
    """Return about `count` indices out of `size`, in at most `runs` evenly spaced runs."""
    if size <= count:
        return np.arange(size)
    length = max(count // runs, 1)
    starts = np.linspace(0, size - length, min(runs, count)).round().astype(int)
    return np.unique((starts[:, None] + np.arange(length)).ravel())


def unit(vectors: Array) -> Array:
    """Return vectors (..., D) at length 1; zero vectors as they are."""
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12))


def softmax(scores: Array) -> Array:
    """Return probabilities (n, K) of scores (n, K)."""
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def fit_lazily(
    function: Callable[[Array], Array], vectors: xr.DataArray, dims: Sequence[str], sizes: Sequence[int]
) -> xr.DataArray:
    """Return ``function(valid vectors (n, D) float64)`` with `dims` and `sizes`; lazy where `vectors` is lazy."""

    def on_all(block: Array) -> Array:
        v = np.asarray(block, dtype="float64")
        return np.asarray(function(v[np.isfinite(v).all(axis=1)]), dtype="float64")

    fitted: xr.DataArray = xr.apply_ufunc(
        on_all,
        vectors,
        input_core_dims=[["case", vectors.dims[1]]],
        output_core_dims=[list(dims)],
        dask="parallelized",
        output_dtypes=[np.float64],
        dask_gufunc_kwargs={"output_sizes": dict(zip(dims, sizes, strict=True))},
    )
    return fitted
