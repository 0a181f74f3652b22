"""One vector per point or polygon (`sample`), from embeddings, cubes and maps, in memory, on Dask or in a store.

The cells of all places are found first, from the grid alone (`coverage.py`). Then one task per block that a place
touches reads the block once, and reduces its cells to one vector per place; a last task joins the places that several
blocks share. So memory is bounded by the blocks in flight and the result, however many places and blocks there are.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, overload

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import tokenize
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.constants import PREFIX
from deo_cube.cube.categories import own_classes, read_categories
from deo_cube.cube.composite import clear_bands
from deo_cube.cube.files import RASTERS
from deo_cube.cube.georeference import BAND_DIMS, SPATIAL_DIMS
from deo_cube.cube.open import open_cube
from deo_cube.cube.sentinel2 import band_of_name
from deo_cube.embedding import graph
from deo_cube.errors import ArgumentError, ArgumentTypeError, remedy
from deo_cube.extras import require
from deo_cube.heads.geometries import Coverage
from deo_cube.heads.places import Places, coverage_of, read_places
from deo_cube.heads.rasters import legend_of_file
from deo_cube.heads.tables import coordinate_columns, suffix_of
from deo_cube.heads.vectors import as_embeddings, geobox, matching_times, spatial_dims
from deo_cube.paths import expand
from deo_cube.store.open import is_embeddings, open_embeddings

__all__ = ["How", "sample", "to_table", "write_table"]

Array = NDArray[Any]
How = Literal["nearest", "linear", "mean", "median", "max", "share"]

NUMBERS = 1 << 22
"""Numbers of cells that are reduced at a time, which bounds the memory within a block."""


@overload
def sample(
    data: Any,
    places: Any,
    *,
    how: How = "nearest",
    weights: Literal["valid"] | None = "valid",
    time: Any = None,
    crs: Any = None,
    layer: str | int | None = None,
    table: Literal[False] = False,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> xr.DataArray: ...
@overload
def sample(
    data: Any,
    places: Any,
    *,
    how: How = "nearest",
    weights: Literal["valid"] | None = "valid",
    time: Any = None,
    crs: Any = None,
    layer: str | int | None = None,
    table: Literal[True],
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> pd.DataFrame: ...
def sample(
    data: Any,
    places: Any,
    *,
    how: How = "nearest",
    weights: Literal["valid"] | None = "valid",
    time: Any = None,
    crs: Any = None,
    layer: str | int | None = None,
    table: bool = False,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> xr.DataArray | pd.DataFrame:
    """Return one vector per point or polygon.

    Parameters
    ----------
    data : DataArray, Dataset, or path
        Embeddings (time, embedding, y, x), a cube of bands, a map (time, y, x), or the path or URL of a store or cube.
        Of a cube every Sentinel-2 band is sampled, as DN without offset, and pixels under cloud after `SCL` are not
        valid.
    places : GeoDataFrame, path, (x, y), geometry, or list of these
        Points and polygons, any number, also mixed: a GeoDataFrame or GeoSeries; a DataFrame with coordinates or WKT;
        GeoJSON; the path of a file that holds one (GeoPackage, GeoParquet, Shapefile, CSV, ...); a point (x, y), a list
        or array of points; shapely geometries.
    how : {"nearest", "linear", "mean", "median", "max", "share"}
        "nearest": a point gets the vector of the patch that contains it, a polygon the mean. "linear": a point gets the
        bilinear interpolation of the four nearest patches, a polygon the mean. "mean", "median" and "max": of the
        patches of a polygon, number by number; a point gets the vector of its patch. A patch counts by the exact share
        of it that the polygon covers; for "max" every patch that it covers in part counts. "share": of a map of
        classes, the share of each class in the place, of what has a class; one column per class.
    weights : "valid" or None
        "valid": a patch counts also by its valid fraction. None: every patch that has a vector counts in full.
    time : label, optional
        Times to sample: a label, part of one ("2022-06") or a slice. Default: all.
    crs : CRS, optional
        CRS of the places, which overrides what they state. Default: what they state; degrees of WGS 84 for GeoJSON and
        columns lon and lat; the CRS of the data for points and shapely geometries.
    layer : str or int, optional
        Layer of a file that has several.
    table : bool
        Return a DataFrame, computed now, instead of an array.
    units, offset, nodata
        As in `embed`, for a cube whose metadata do not decide.

    Returns
    -------
    DataArray or DataFrame
        An array (place, time, embedding) float32, without `time` where the data have none, lazy where they are lazy.
        `place` is the index of the table, by which the result is joined to it. NaN where a place is outside the grid,
        has no geometry, or no valid patch. Coordinates: `valid`, the share of the place that is valid, outside parts
        counted as not valid; `count`, the number of patches that contributed.

        With ``table=True`` one row per place and time, with that index and the columns `time`, `valid`, `count` and
        ``e0``, ``e1``, ... (bands by their names).

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For lines, which cover no patch, for means of a map of classes, and for values that are not possible.
    LabelsError, MissingCRSError, InputNotFoundError, MissingExtraError
        For a table or file that cannot be read, or states no CRS.
    SelectionError
        If `time` matches no date.

    Warns
    -----
    UserWarning
        With the index of places that are outside, or have no geometry.

    Examples
    --------
    >>> import deo_cube
    >>> ds = deo_cube.synthetic_cube(size=96, times=2)
    >>> fields = [(float(ds.x[20]), float(ds.y[30])), (float(ds.x[60]), float(ds.y[10]))]
    >>> dict(deo_cube.sample(ds.deo.embed(), fields).sizes)
    {'place': 2, 'time': 2, 'embedding': 192}
    """
    read = read_places(places, layer=layer, crs=crs)
    vectors, channel = _as_vectors(data, how, units, offset, nodata)
    result = _sampled(vectors, channel, read, how, weights, time)
    return to_table(result) if arguments.boolean("table", table) else result


def _sampled(
    vectors: xr.DataArray, channel: str | None, places: Places, how: Any, weights: Any, time: Any
) -> xr.DataArray:
    if weights not in ("valid", None):
        raise ArgumentError(f'weights must be "valid" or None, got {weights!r:.60}')
    if time is not None:
        vectors = matching_times(vectors, time)
    areas = any(g is not None and "Point" not in g.geom_type for g in places.shapes)
    if ("flag_values" in vectors.attrs or "flag_meanings" in vectors.attrs) and (areas or how != "nearest"):
        raise ArgumentError(
            "data must hold numbers for means and polygons, got a map of classes: how='share' returns the share of "
            "each class, how='nearest' the class at a point"
            + remedy("; or sample the probabilities, classify(..., probabilities=True)", "")
        )
    if "flag_colors" in vectors.attrs and (areas or how != "nearest"):
        warnings.warn(
            "data have a table of colours, as maps of classes have, whose means have no meaning: sample classes at "
            "points with how='nearest'",
            UserWarning,
            stacklevel=4,
        )
    cells = coverage_of(places, geobox(vectors), linear=how == "linear")
    statistic = how if how in ("median", "max") else "mean"
    return _wrapped(_reduced(vectors, cells, statistic, weights), vectors, channel, places, statistic)


def _as_vectors(data: Any, how: Any, units: str, offset: Any, nodata: Any) -> tuple[xr.DataArray, str | None]:
    """Return data with a dimension `embedding`, and the name that this dimension had (None: it had none)."""
    arguments.choice("how", how, ("nearest", "linear", "mean", "median", "max", "share"))
    data = _only_map(_opened(data))
    data = own_classes(data) if isinstance(data, xr.DataArray) else data
    if how == "share":
        data = _shares(data)
    if isinstance(data, xr.Dataset) and any("embedding" in v.dims for v in data.data_vars.values()):
        return as_embeddings(data), "embedding"
    if isinstance(data, xr.DataArray) and "embedding" in data.dims:
        return as_embeddings(data), "embedding"
    if isinstance(data, xr.Dataset) or _holds_bands(data):
        bands = clear_bands(data, units=units, offset=offset, nodata=nodata)
        return as_embeddings(bands.rename(band="embedding")), "band"
    if not isinstance(data, xr.DataArray):
        raise ArgumentTypeError(
            "data must be embeddings, a cube of bands, a map, or the path of a store, got "
            f"{type(data).__name__}: open it first, deo_cube.open_embeddings(path) or deo_cube.open_cube(path)"
        )
    if data.dtype.kind not in "biuf":
        days = f" as days, ({data.name or 'dates'} - np.datetime64('1970-01-01')) / np.timedelta64(1, 'D')"
        raise ArgumentError(
            f"data must hold numbers, got {data.dtype}: convert them{days if data.dtype.kind == 'M' else ''}"
        )
    pair = next((p for p in SPATIAL_DIMS if set(p) <= set(data.dims)), ("y", "x"))
    others = [str(d) for d in data.dims if d not in (*pair, "time")]
    if len(others) > 1:
        raise ArgumentError(f"data must have dimensions (time, y, x) and one more, found also {others}: select of one")
    if "_FillValue" not in data.attrs and "nodata" in data.attrs:
        data = data.assign_attrs(_FillValue=data.attrs["nodata"])
    if others == ["band"]:
        # rioxarray numbers the bands, and keeps the names that the file states.
        names = data.attrs.get("long_name", ())
        names = (names,) if isinstance(names, str) else tuple(names)
        if len(names) == data.sizes["band"] and ("band" not in data.coords or data["band"].dtype.kind in "iu"):
            data = data.assign_coords(band=list(names))
    if others:
        return as_embeddings(data.rename({others[0]: "embedding"})), others[0]
    return as_embeddings(data.expand_dims("embedding")), None


def _opened(data: Any) -> Any:
    if not isinstance(data, str | os.PathLike):
        return data
    return open_embeddings(data) if is_embeddings(data) else _with_legend(open_cube(data), data)


def _only_map(data: Any) -> Any:
    """Return the only map of a Dataset, as stores of maps are; a cube and anything else as it is."""
    if not isinstance(data, xr.Dataset):
        return data
    layers = [n for n, v in data.data_vars.items() if v.ndim >= 2]
    if len(layers) != 1 or band_of_name(str(layers[0])) is not None or _holds_bands(data[layers[0]]):
        return data
    # A grid mapping that was opened as a variable is kept as a coordinate.
    return data.set_coords([n for n in data.data_vars if n not in layers])[layers[0]]


def _shares(data: Any) -> xr.DataArray:
    """Return a map of classes as one layer per class: 1 where a cell is of that class, 0 elsewhere, NaN without one."""
    array = data.squeeze("band", drop=True) if isinstance(data, xr.DataArray) and data.sizes.get("band") == 1 else data
    categories = read_categories(array) if isinstance(array, xr.DataArray) else None
    if categories is None:
        raise ArgumentError(
            "how='share' is for a map of integers that states its classes: state them, data.assign_attrs("
            "flag_values=[0, 1], flag_meanings='land water'); of other numbers, and of booleans, take how='mean'"
        )
    layers = [array == code for code in categories.codes]
    shares = xr.concat(layers, pd.Index(categories.names, name="class"), coords="minimal", compat="override")
    known = array.isin(list(categories.codes))
    attrs = {k: v for k, v in array.attrs.items() if str(k).startswith(PREFIX)}
    return shares.astype("float32").where(known).drop_attrs(deep=False).assign_attrs(attrs).rename("share")


def _with_legend(data: Any, path: Any) -> Any:
    """Return a raster of integers with the names of its classes as flags, where its file has any."""
    one = isinstance(data, xr.DataArray) and data.dtype.kind in "iu" and data.sizes.get("band") == 1
    if not one or suffix_of(path) not in RASTERS:
        return data
    import rasterio

    with rasterio.open(expand(path)) as file:
        legend = legend_of_file(file)
    if legend.names:
        names = {code: "_".join(legend.names[code].split()) for code in sorted(legend.names)}
        return data.assign_attrs(flag_values=list(names), flag_meanings=" ".join(names.values()))
    return data.assign_attrs(flag_colors=" ".join(legend.colors.values())) if legend.colors else data


def _holds_bands(data: Any) -> bool:
    """Return whether an array has a dimension of Sentinel-2 bands."""
    if not isinstance(data, xr.DataArray):
        return False
    named = [d for d in BAND_DIMS if d in data.dims and d in data.coords]
    return any(band_of_name(str(v)) is not None for d in named for v in data[d].values)


# ---- cells to vectors -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Cells:
    """Cells of places within one block, in the order of the places.

    Parameters
    ----------
    places : (p,) int
        Positions of the places.
    complete : (p,) bool
        Whether all cells of the place are in this block.
    starts : (p,) int
        First of its cells.
    rows, columns, share : (n,)
        Cells within the block, and the shares that the places cover.
    """

    places: Array
    complete: Array
    starts: Array
    rows: Array
    columns: Array
    share: Array


@dataclass(frozen=True)
class _Part:
    """Some places reduced, or the state from which they are once the cells in other blocks are known.

    Parameters
    ----------
    places : (p,) int
    weight, seen, count : (p, T)
        Sums over the cells: weights, shares that are valid, and number of cells with a weight.
    vectors : (p, T, D)
        Complete places: their vectors, float32. Others: weighted sums or maxima, float64.
    cells : list of ((n, T, D), (n, T))
        For medians of places that are not complete: vectors and weights of their cells.
    """

    places: Array
    complete: Array
    weight: Array
    seen: Array
    count: Array
    vectors: Array
    cells: list[tuple[Array, Array]]


def _reduced(vectors: xr.DataArray, cells: Coverage, statistic: str, weights: str | None) -> tuple[Any, Any, Any]:
    """Return vectors (place, time, D), the valid share and the number of cells (place, time); lazy where those are."""
    y, x = spatial_dims(vectors)
    array = vectors if "time" in vectors.dims else vectors.expand_dims("time")
    values = array.transpose("time", "embedding", y, x).variable.data
    valid = _valid_of(array, (y, x))
    n = len(cells.size)
    if not isinstance(values, da.Array):
        whole = _split(cells, [values.shape[2]], [values.shape[3]]).get((0, 0))
        reduced = [] if whole is None else [_on_block(values, valid, whole, statistic, weights)]
        return _joined(reduced, size=cells.size, shape=values.shape[:2], statistic=statistic)
    times, _, rows, columns = values.chunks
    sources = [values] if valid is None else [values, da.asarray(valid).rechunk((times, rows, columns))]
    split = _split(cells, rows, columns)
    token = tokenize([s.name for s in sources], cells, statistic, weights)
    results = []
    for t, length in enumerate(times):
        parts = [(((t, 0, i, j), (t, i, j))[: len(sources)], chunk) for (i, j), chunk in split.items()]
        results.append(
            graph.gather_chunks(
                sources,
                parts,
                partial(_on_chunks, statistic=statistic, weights=weights),
                partial(_joined, size=cells.size, shape=(length, values.shape[1]), statistic=statistic),
                [((n, length, values.shape[1]), "float32"), ((n, length), "float32"), ((n, length), "int32")],
                name=f"sample-{token}-{t}",
            )
        )
    joined = [da.concatenate(list(each), axis=1) for each in zip(*results, strict=True)]
    return joined[0], joined[1], joined[2]


def _on_chunks(*chunks: Any, statistic: str, weights: str | None) -> list[_Part]:
    """Reduce the cells of one block: its values, its valid fraction where the array has one, and its cells."""
    values, *valid, cells = chunks
    return _on_block(values, valid[0] if valid else None, cells, statistic, weights)


def _valid_of(array: xr.DataArray, dims: tuple[str, str]) -> Any:
    """Return the valid fraction (time, y, x); None where the array has none."""
    if "valid" not in array.coords:
        return None
    valid = array["valid"].variable
    if "time" not in valid.dims:
        valid = valid.set_dims({"time": array.sizes["time"], **dict(zip(valid.dims, valid.shape, strict=True))})
    return valid.transpose("time", *dims).data


def _split(cells: Coverage, rows: Sequence[int], columns: Sequence[int]) -> dict[tuple[int, int], _Cells]:
    """Return the cells of each block that has any, by row and column of the block."""
    row_ends, column_ends = np.cumsum(rows), np.cumsum(columns)
    i, j = (np.searchsorted(e, at, side="right") for e, at in ((row_ends, cells.row), (column_ends, cells.column)))
    block = i * len(columns) + j
    order = np.lexsort((cells.place, block))
    place, block = cells.place[order], block[order]
    row, column = (cells.row - (row_ends - rows)[i])[order], (cells.column - (column_ends - columns)[j])[order]
    share = cells.share[order]
    first = np.flatnonzero(np.diff(block, prepend=-1) | (np.diff(place, prepend=-1) != 0))
    blocks_per_place = np.bincount(place[first], minlength=len(cells.size))
    split = {}
    borders = np.flatnonzero(np.diff(block, prepend=-1, append=-1))
    for a, b in pairwise(borders):
        starts = first[np.searchsorted(first, a) : np.searchsorted(first, b)] - a
        places = place[a:b][starts]
        key = divmod(int(block[a]), len(columns))
        complete = blocks_per_place[places] == 1
        split[key] = _Cells(places, complete, starts, row[a:b], column[a:b], share[a:b])
    return split


def _on_block(values: Array, valid: Array | None, cells: _Cells, statistic: str, weights: str | None) -> list[_Part]:
    """Reduce the cells of one block (T, D, rows, columns), some places at a time."""
    size = values.shape[0] * values.shape[1]
    ends = np.append(cells.starts[1:], len(cells.rows))
    groups = ends * size // NUMBERS
    parts = []
    for a in np.flatnonzero(np.diff(groups, prepend=-1)):
        b = int(np.searchsorted(groups, groups[a], side="right"))
        chosen = slice(int(cells.starts[a]), int(ends[b - 1]))
        v = values[:, :, cells.rows[chosen], cells.columns[chosen]]
        v = np.moveaxis(v, -1, 0).astype("float64")
        present = np.isfinite(v).all(axis=-1)
        seen = cells.share[chosen, None] * present
        if valid is not None:
            fraction = np.nan_to_num(valid[:, cells.rows[chosen], cells.columns[chosen]].T.astype("float64"))
            weight = seen * fraction if weights == "valid" else seen
            seen = seen * fraction
        else:
            weight = seen
        starts = cells.starts[a:b] - cells.starts[a]
        parts.append(_of_places(v, weight, seen, starts, cells.places[a:b], cells.complete[a:b], statistic))
    return parts


def _of_places(
    v: Array, weight: Array, seen: Array, starts: Array, places: Array, complete: Array, statistic: str
) -> _Part:
    sums = np.add.reduceat(weight, starts, axis=0)
    count = np.add.reduceat((weight > 0).astype("int32"), starts, axis=0)
    share = np.add.reduceat(seen, starts, axis=0)
    ends = np.append(starts[1:], len(v))
    waiting: list[tuple[Array, Array]] = []
    counts = (weight > 0)[..., None]
    if statistic == "mean":
        state = np.add.reduceat(np.where(counts, v, 0) * weight[..., None], starts, axis=0)
        vectors = _divided(state, sums)
    elif statistic == "max":
        state = np.maximum.reduceat(np.where(counts, v, -np.inf), starts, axis=0)
        vectors = np.where(sums[..., None] > 0, state, np.nan)
    else:
        state = np.zeros((len(places), *v.shape[1:]))
        vectors = np.full(state.shape, np.nan)
        for k in np.flatnonzero(complete):
            vectors[k] = _median(v[starts[k] : ends[k]], weight[starts[k] : ends[k]])
        waiting = [
            (v[starts[k] : ends[k]].copy(), weight[starts[k] : ends[k]].copy()) for k in np.flatnonzero(~complete)
        ]
    if complete.all():
        return _Part(places, complete, sums, share, count, vectors.astype("float32"), waiting)
    return _Part(places, complete, sums, share, count, np.where(complete[:, None, None], vectors, state), waiting)


def _divided(sums: Array, weight: Array) -> Array:
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Array = np.where(weight[..., None] > 0, sums / weight[..., None], np.nan)
    return mean


def _median(v: Array, weight: Array) -> Array:
    """Return the weighted median (T, D) of cells (n, T, D): half of the weight is on either side of it."""
    order = np.argsort(v, axis=0, kind="stable")  # NaN last, whose weight is 0
    ordered = np.take_along_axis(v, order, axis=0)
    passed = np.cumsum(np.take_along_axis(np.broadcast_to(weight[..., None], v.shape), order, axis=0), axis=0)
    half, noise = passed[-1] / 2, 1e-9 * passed[-1]
    low, high = (passed < half - noise).sum(axis=0), (passed <= half + noise).sum(axis=0)
    last = len(v) - 1
    middle = [np.take_along_axis(ordered, np.minimum(k, last)[None], axis=0)[0] for k in (low, high)]
    return np.where(passed[-1] > 0, (middle[0] + middle[1]) / 2, np.nan)


def _joined(
    blocks: list[list[_Part]], *, size: Array, shape: tuple[int, int], statistic: str
) -> tuple[Array, Array, Array]:
    """Return the vectors of all places, their valid share and number of cells, from the parts of all blocks."""
    n, (times, length) = len(size), shape
    vectors = np.full((n, times, length), np.nan, "float32")
    weight, seen, count = np.zeros((n, times)), np.zeros((n, times)), np.zeros((n, times), "int32")
    states: dict[int, Array] = {}
    cells: dict[int, list[tuple[Array, Array]]] = {}
    for part in (part for parts in blocks for part in parts):
        weight[part.places] += part.weight
        seen[part.places] += part.seen
        count[part.places] += part.count
        vectors[part.places[part.complete]] = part.vectors[part.complete]
        for i, k in enumerate(np.flatnonzero(~part.complete)):
            place = int(part.places[k])
            if statistic == "median":
                cells.setdefault(place, []).append(part.cells[i])
            elif place not in states:
                states[place] = part.vectors[k]
            else:
                joint = np.add if statistic == "mean" else np.maximum
                states[place] = joint(states[place], part.vectors[k])
    for place, state in states.items():
        known = np.where(weight[place][:, None] > 0, state, np.nan)
        vectors[place] = _divided(state, weight[place]) if statistic == "mean" else known
    for place, several in cells.items():
        v, w = (np.concatenate([cell[k] for cell in several]) for k in (0, 1))
        vectors[place] = _median(v, w)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(size[:, None] > 0, np.minimum(seen / size[:, None], 1), 0)
    return vectors, share.astype("float32"), count


# ---- results --------------------------------------------------------------------------------------------------------


def _wrapped(
    reduced: tuple[Any, Any, Any], vectors: xr.DataArray, channel: str | None, places: Places, statistic: str
) -> xr.DataArray:
    values, valid, count = reduced
    dims = ("place", "time", channel or "embedding")
    attrs = {k: v for k, v in vectors.attrs.items() if k not in ("grid_mapping", "coordinates")}
    result = xr.DataArray(values, dims=dims, name=vectors.name, attrs=attrs | {"cell_methods": f"area: {statistic}"})
    kept = {
        n: c.variable
        for n, c in vectors.coords.items()
        if n != "valid" and set(c.dims) <= {"time"} and n not in ("spatial_ref", *spatial_dims(vectors))
    }
    if "embedding" in vectors.coords:
        kept["embedding"] = vectors["embedding"].variable
    coords = xr.Dataset(coords=kept).rename({"embedding": dims[2]} if "embedding" in kept and channel else {}).coords
    valid_attrs = {"long_name": "valid share of the place", "units": "1"}
    result = result.assign_coords(
        valid=(("place", "time"), valid, valid_attrs),
        count=(("place", "time"), count, {"long_name": "patches that contributed", "units": "1"}),
    )
    if "time" not in vectors.dims:
        result = result.isel(time=0)
    if channel is None:
        result = result.isel(embedding=0)
    result = result.assign_coords(coords)
    if isinstance(places.index, pd.MultiIndex):
        index = xr.Coordinates.from_pandas_multiindex(places.index, "place")
        return result.assign_coords(index)
    named = result.assign_coords(place=("place", places.index))
    if places.index.name is not None:
        named["place"].attrs["long_name"] = str(places.index.name)
    return named


def to_table(sampled: xr.DataArray) -> pd.DataFrame:
    """Return sampled vectors as a DataFrame: one row per place and time, with the index of the places.

    Parameters
    ----------
    sampled : DataArray
        From `sample`; computed here.
    """
    sampled = sampled.compute()
    timed = "time" in sampled.dims
    channel = next((str(d) for d in sampled.dims if d not in ("place", "time")), None)
    full = sampled if timed else sampled.expand_dims("time")
    full = full if channel else full.expand_dims("embedding")
    array = full.transpose("place", "time", channel or "embedding")
    n, times, length = array.shape
    index = array.indexes["place"]
    index = index.set_names(index.name if index.name != "place" else None) if index.nlevels == 1 else index
    if "long_name" in array["place"].attrs:
        index = index.rename(array["place"].attrs["long_name"])
    if channel is None:
        names = [str(sampled.name or "value")]
    elif channel == "embedding":
        names = [f"e{i}" for i in range(length)]
    else:
        names = [str(v) for v in array[channel].values]
    rows = index.repeat(times)
    facts: dict[str, Any] = {}
    if timed and "time" in array.coords:
        facts["time"] = np.tile(array["time"].values, n)
    for name in ("valid", "count"):
        facts[name] = np.broadcast_to(array[name].transpose(..., "place").values.reshape(-1, n).T, (n, times)).reshape(
            -1
        )
    table = pd.DataFrame(facts, index=rows)
    numbers = pd.DataFrame(np.asarray(array.values).reshape(n * times, length), index=rows, columns=names)
    joined = pd.concat([table.reset_index(drop=True), numbers.reset_index(drop=True)], axis=1).set_index(rows)
    joined.attrs = {k: v for k, v in sampled.attrs.items() if str(k).startswith(PREFIX)}
    return joined


def write_table(
    data: Any,
    places: Any,
    path: Path,
    *,
    crs: Any = None,
    layer: str | int | None = None,
    how: How = "nearest",
    weights: Literal["valid"] | None = "valid",
    time: Any = None,
) -> tuple[int, int]:
    """Write sampled vectors beside the columns and geometries of their places; return the rows and columns.

    Parameters
    ----------
    data, places, crs, layer, how, weights, time
        As for `sample`.
    path : Path
        ``.parquet``: GeoParquet; ``.csv``: text, without the geometries of polygons.

    Raises
    ------
    ArgumentError
        For another ending.
    MissingExtraError
        Without geopandas and pyarrow, for Parquet.
    """
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise ArgumentError(f"OUT is a table, .parquet or .csv; got {path}")
    gpd = None
    if path.suffix.lower() == ".parquet":
        gpd = require("geopandas", "pyarrow", extra="vector", purpose="writing Parquet")
    read = read_places(places, layer=layer, crs=crs)
    vectors, channel = _as_vectors(data, how, "auto", "auto", "auto")
    rows = to_table(_sampled(vectors, channel, read, how, weights, time))
    position = np.repeat(np.arange(len(read.shapes)), len(rows) // max(len(read.shapes), 1))
    names = [c for c in read.columns.columns if c not in rows.columns]
    table = pd.concat(
        [read.columns[names].iloc[position].reset_index(drop=True), rows.reset_index(drop=True)], axis=1
    ).set_index(rows.index)
    keep_index = not isinstance(rows.index, pd.RangeIndex) and (rows.index.name is not None or rows.index.nlevels > 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    if gpd is None:
        points = [g if g is not None and g.geom_type == "Point" else None for g in read.shapes]
        located = coordinate_columns(read.columns, None) is not None
        if any(g is not None for g in points) and not located and not {"x", "y"} & set(table.columns):
            xy = np.array([(np.nan, np.nan) if g is None or g.is_empty else (g.x, g.y) for g in points])[position]
            table.insert(0, "x", xy[:, 0])
            table.insert(1, "y", xy[:, 1])
        table.to_csv(path, index=keep_index)
        return len(table), table.shape[1]
    crs = read.crs if read.crs is not None else geobox(vectors).crs.proj
    gpd.GeoDataFrame(table, geometry=read.shapes[position], crs=crs).to_parquet(path, index=keep_index)
    return len(table), table.shape[1] + 1
