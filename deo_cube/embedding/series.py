"""`ds.deo.embed_series()`: one vector per pixel of all its months, by a model that reads series.

The dates of each month are joined to one by `composite`, which removes clouds and offsets. A month without a clear date
stays without data, and takes no part. A vector depends on its own pixel alone, and not on chunks
(`Encoder.encode_series`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from dask.base import normalize_token
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.composite import composite
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.times import Period, coordinates_of, dates, periods
from deo_cube.cube.units import to_layers
from deo_cube.embedding import graph, metadata, process
from deo_cube.embedding.embed import check_device, warn_of_level
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.prepare import Cube, Prepared, prepare
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.options import Default

__all__ = ["embed_series", "embed_series_block"]

Array = NDArray[Any]

#: Side of a block of a cube that has no chunks, pixels.
BLOCK = 256


def embed_series(
    cube: Cube,
    model: str | Path | ModelCard = "presto",
    freq: str | Sequence[tuple[Any, Any]] | None = None,
    *,
    how: Literal["median", "least_cloudy", "first"] = "median",
    weights: str | Path | None = None,
    bands: Mapping[str, str] | None = None,
    missing: Literal["raise", "nearest", "leave_out"] = "raise",
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
    mask: xr.DataArray | Literal[False] | None = None,
    dtype: str = Default("float16"),
    device: str | None = None,
) -> xr.DataArray:
    """Embed the months of a Sentinel-2 cube: one vector per pixel and series, lazy and georeferenced.

    Parameters
    ----------
    cube : Dataset, DataArray or DataTree
        As in `embed`, with dates.
    model : str, path or ModelCard
        A model that reads series. `presto` is the only one of the package.
    freq : str or list of (start, end), optional
        One vector per "year", "season", ..., or per period of your own, as in `aggregate`. Default: one vector of all
        months, from that of the first date to that of the last.
    how : {"median", "least_cloudy", "first"}
        How the dates of a month become one, as in `composite`.
    weights : path, optional
        Weights file. Default: as in `embed`.
    bands : mapping, optional
        The cube's variable for a band of the model (``{"B08": "nir_10m"}``).
    missing : {"raise", "nearest", "leave_out"}
        For a band that the cube lacks: raise, use the spectrally nearest band (B08 for B8A), or leave out the group of
        bands that it belongs to (B8A is one by itself).
    units, offset, nodata
        As in `embed`, where metadata do not decide.
    mask : DataArray, False or None
        True where a pixel of a date is left out. None: clouds, shadows and gaps in `SCL`, where the cube has it. False:
        no data alone.
    dtype : {"float16", "float32"}
        Dtype of the result.
    device : str, optional
        As in `embed`.

    Returns
    -------
    DataArray
        `embeddings` (time, embedding, y, x), on the pixels of the cube; `time` is the start of each period.
        Coordinates: `start_datetime` and `end_datetime`, the first and last second of a period; `dates`, the number of
        dates in it; `valid` (time, y, x), the share of its months that have data; `count` (time, y, x), their number.
        NaN where no month has data.

    Raises
    ------
    ArgumentError
        For a model that does not read series, without dates, and for periods that are longer than the model reads.
    MissingBandsError, AmbiguousUnitsError, MissingCRSError, ResolutionMismatchError, WeightsNotFoundError
        As `embed`.

    Notes
    -----
    A pixel costs as much as hundreds of pixels of `embed`, because each of its months has several tokens of its own.

    Examples
    --------
    >>> import deo_cube
    >>> ds = deo_cube.synthetic_cube(size=64, times=12)
    >>> per_year = ds.deo.embed_series("presto", "year")      # doctest: +SKIP
    """
    arguments.choice("missing", missing, ("raise", "nearest", "leave_out"))
    arguments.choice("how", how, ("median", "least_cloudy", "first"))
    if bands is not None and not isinstance(bands, Mapping):
        raise ArgumentTypeError(f"bands must map bands of the model to variables of the cube, got {bands!r:.60}")
    options = EmbedOptions(
        model=model,
        weights=weights,
        bands=bands,
        missing="mean" if missing == "leave_out" else missing,
        units=units,
        offset=offset,
        nodata=nodata,
        mask=mask,
        dtype=dtype,
    )
    cube = opened_cube(cube)
    p = prepare(cube, options, series=True)
    if p.dims.time is None:
        raise ArgumentError("cube must have a time dimension: a series encoder reads the months of a pixel")
    check_device(device, "float32")
    cube = graph.with_loaded_coordinates(cube)
    warn_of_level(cube, p.ref.card)
    selected = _needed(cube, p)
    of_time = dates(selected[p.dims.time] if p.dims.time in selected.coords else None, "a series", p.dims.time)
    groups = [_all_of(of_time)] if freq is None else periods(of_time, freq)
    blocks = [_encoded(selected, p, group, how, mask, (units, offset, nodata), device) for group in groups]
    return _wrap(cube, p, da.stack(blocks), groups, "series" if freq is None else freq, how)


def _all_of(of_time: pd.DatetimeIndex) -> Period:
    order = tuple(int(i) for i in np.argsort(of_time, kind="stable"))
    return Period(of_time.min().floor("s"), of_time.max().floor("s"), order)


def _needed(cube: Cube, p: Prepared) -> xr.Dataset:
    """Return the bands of the model under their names, and SCL, on Dask."""
    pairs = {"SCL": p.match.scl, **dict(zip(p.match.bands, p.match.variables, strict=True))}
    # A variable without rows and columns may be the grid mapping.
    if isinstance(cube, xr.DataArray):
        cube = to_layers(cube, str(p.match.band_dim))
    others = {str(n): v for n, v in cube.data_vars.items() if not {p.dims.y, p.dims.x} & set(v.dims)}
    # One variable may serve two bands (`missing="nearest"`).
    bands = {band: cube[name] for band, name in pairs.items() if name is not None}
    cube = xr.Dataset(others | bands, attrs=cube.attrs)
    return cube if cube.chunks else cube.chunk({p.dims.y: BLOCK, p.dims.x: BLOCK})


def _encoded(
    cube: xr.Dataset,
    p: Prepared,
    period: Period,
    how: Any,
    mask: Any,
    decisions: tuple[Any, Any, Any],
    device: str | None,
) -> da.Array:
    """Return the vectors of a period (D + 2, y, x): behind them the share and the number of months with data."""
    card, (y, x) = p.ref.card, (p.dims.y, p.dims.x)
    months = pd.date_range(period.start.to_period("M").to_timestamp(), period.end, freq="MS")
    longest = card.architecture["months"]
    if len(months) > longest:
        raise ArgumentError(
            f"freq must give periods of at most {longest} months for {card.alias}, got {len(months)} from "
            f"{months[0]:%Y-%m} to {months[-1]:%Y-%m}: pass freq='year'"
        )
    layers = card.dim + 2
    if not period.positions:
        empty = np.append(np.full(card.dim, np.nan, "float32"), np.zeros(2, "float32"))
        chunks = (layers, BLOCK, BLOCK)
        return da.broadcast_to(da.from_array(empty[:, None, None]), (layers, *p.geobox.shape), chunks=chunks)
    units, offset, nodata = decisions
    of_period = cube.isel({p.dims.time: list(period.positions)})
    if not np.isscalar(offset):
        offset = [offset[i] for i in period.positions]
    if isinstance(mask, xr.DataArray) and p.dims.time in mask.dims:
        mask = mask.isel({p.dims.time: list(period.positions)})
    monthly = composite(of_period, how, freq="MS", mask=mask, units=units, offset=offset, nodata=nodata)
    monthly = monthly[[band for band in p.ref.stem.bands if band in monthly]].reindex(time=months)
    values = monthly.to_dataarray("band").transpose("time", "band", y, x)
    series = SeriesBlock(
        p.ref,
        tuple(int(m) for m in months.month),
        tuple(str(band) for band in values["band"].values),
        p.geobox.crs.wkt,
        device,
    )
    data = values.data.rechunk({0: -1, 1: -1})
    rows, columns = (da.from_array(c, chunks=(n,)) for c, n in zip(_centres(p.geobox), data.chunks[2:], strict=True))
    encoded: da.Array = da.blockwise(
        embed_series_block, "dyx", data, "tbyx", rows, "y", columns, "x",
        series=series, new_axes={"d": layers}, concatenate=True, dtype="float32", meta=np.empty((0, 0, 0), "float32"),
    )  # fmt: skip
    return encoded


def _centres(geobox: GeoBox) -> tuple[Array, Array]:
    """Return the coordinates of the centres of rows and columns."""
    a, (rows, columns) = geobox.transform, geobox.shape
    return a.f + (np.arange(rows) + 0.5) * a.e, a.c + (np.arange(columns) + 0.5) * a.a


@dataclass(frozen=True)
class SeriesBlock:
    """Encoder and places of a block of pixels.

    Parameters
    ----------
    ref : EncoderRef
        The encoder.
    months : tuple of int
        Month of the year of each step, 1 to 12.
    bands : tuple of str
        Of the values.
    crs : str
        Of the coordinates, as WKT.
    device : str or None
        None: the best of the process that runs the task.
    """

    ref: EncoderRef
    months: tuple[int, ...]
    bands: tuple[str, ...]
    crs: str
    device: str | None

    def __dask_tokenize__(self) -> Any:
        return ("deo_cube.SeriesBlock", normalize_token(self.ref), self.months, self.bands, self.crs)


def embed_series_block(values: Array, rows: Array, columns: Array, *, series: SeriesBlock) -> Array:
    """Return the vectors of a block of pixels (D + 2, y, x), see `_encoded`.

    Parameters
    ----------
    values : (T, C, y, x) float32
        DN by month, NaN without data.
    rows, columns : (y,), (x,)
        Coordinates of the pixels in the CRS of `series`.
    series : SeriesBlock
        Model and months.
    """
    from pyproj import Transformer

    shape = values.shape[2:]
    flat = np.moveaxis(values, (0, 1), (-2, -1)).reshape(-1, *values.shape[:2])
    seen = np.asarray(np.isfinite(flat).any(axis=2))
    out = np.full((series.ref.layer.dim + 2, len(flat)), np.nan, "float32")
    out[-2:] = seen.mean(axis=1), seen.sum(axis=1)
    pixels = np.flatnonzero(seen.any(axis=1))
    if len(pixels):
        to_degrees = Transformer.from_crs(series.crs, "EPSG:4326", always_xy=True)
        y, x = np.unravel_index(pixels, shape)
        place = np.stack(to_degrees.transform(columns[x], rows[y]), axis=1)
        out[:-2, pixels] = _in_batches(flat[pixels], place, series).T
    return out.reshape(-1, *shape)


def _in_batches(values: Array, place: Array, series: SeriesBlock) -> Array:
    """Return the vectors (n, D) of series (n, T, C) on the threads of the device."""
    from deo_cube.encoder.encoder import series_batch

    device = process.choose_device(series.device)
    encoder = process.encoder(series.ref, device)
    size = series_batch(len(series.months))

    def work(starts: Sequence[int]) -> Array:
        part = slice(starts[0], starts[0] + size)
        vectors: Array = encoder.encode_series(values[part], series.months, place[part], bands=series.bands)
        return vectors

    done = process.run_batches(range(0, len(values), size), work, batch=1, device=device, key=series.ref.fingerprint)
    return np.concatenate([vectors for _, vectors in done])


def _wrap(cube: Cube, p: Prepared, state: da.Array, groups: list[Period], freq: Any, how: str) -> xr.DataArray:
    card, (y, x) = p.ref.card, (p.dims.y, p.dims.x)
    shown = freq if isinstance(freq, str) else "period"
    attrs = {"long_name": f"{card.alias} embeddings"} | metadata.provenance(p, cube)
    attrs[Attribute.AGGREGATE] = metadata.to_json({"freq": shown, "how": "series", "month": how})
    values = state[:, : card.dim].astype(p.dtype)
    out = xr.DataArray(values, dims=("time", "embedding", y, x), name="embeddings", attrs=attrs)
    plane = ("time", y, x)
    coords = coordinates_of(groups) | {
        "valid": (plane, state[:, -2], {"long_name": "share of the months with data", "units": "1"}),
        "count": (plane, state[:, -1].astype("int16"), {"long_name": "months with data", "units": "1"}),
    }
    placed: xr.DataArray = georeference.assign_grid(out.assign_coords(coords), p.geobox, dims=(y, x))
    return placed
