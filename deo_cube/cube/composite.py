"""Composite several dates to one (median, least cloudy or first valid pixel), lazily and without clouds and offset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.arguments import refuse_foreign
from deo_cube.constants import PREFIX, Attribute
from deo_cube.cube import georeference, times
from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.esa import opened_cube
from deo_cube.cube.footprint import centre
from deo_cube.cube.masks import align_mask, check_classes, hidden_classes
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name
from deo_cube.cube.units import OFFSET_COORD, Radiometry, decide_radiometry, find_unit_error, to_layers
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, MissingBandsError

__all__ = ["clear_bands", "composite"]

Array = NDArray[Any]
How = Literal["median", "least_cloudy", "first"]
CLOUD_COVER = "eo:cloud_cover"


def composite(
    cube: xr.Dataset | xr.DataArray,
    how: How = "median",
    *,
    freq: str | None = None,
    mask: xr.DataArray | Literal[False] | None = None,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> xr.Dataset:
    """Composite several dates to one, pixel by pixel, before embedding. Lazy on Dask: no pixel is read at the call.

    The offset of each date is removed first, so that dates before and after baseline 04.00 can be combined. Pixels
    under cloud, or without data in any band, are left out.

    Parameters
    ----------
    cube : Dataset or DataArray
        One variable per band and optionally `SCL`, or a band dimension; with `time`.
    how : {"median", "least_cloudy", "first"}
        "median" of the clear values of each band. "least_cloudy": all bands of a pixel from the least cloudy date that
        is clear there, by the coordinate ``eo:cloud_cover`` (`load_cube` writes it). "first": from the first date that
        is clear there; with ``mask=False`` this is how tiles of one day become one image.
    freq : str, optional
        One composite per "D" (solar day), "W", "MS" (month), "QS", "YS", or other frequency of pandas. Default: one
        composite of all dates.
    mask : DataArray, False or None
        True where a pixel is left out. None: clouds, shadows and gaps in `SCL`, where the cube has it. False: no
        data alone.
    units, offset, nodata
        As in `embed`, where metadata do not decide.

    Returns
    -------
    Dataset
        Bands ``B02`` ... (time, y, x) as float32 DN without offset, NaN where no date is clear. `time` is the start of
        each period, or the first date of a single composite; `dates` is the number of dates used. `SCL` is kept except
        for "median", whose pixels come from several dates.

    Raises
    ------
    ArgumentError
        Without time, for a mask on another grid, or for "least_cloudy" without ``eo:cloud_cover``.
    AmbiguousUnitsError, MissingBandsError
        As in `embed`.

    Examples
    --------
    >>> import deo_cube
    >>> ds = deo_cube.synthetic_cube(size=64, times=3)
    >>> deo_cube.composite(ds).sizes["time"]
    1
    """
    if how not in ("median", "least_cloudy", "first"):
        raise ArgumentError(f"how must be 'median', 'least_cloudy' or 'first', got {how!r}")
    arguments.number_or("offset", offset, ("auto",), several=True)
    arguments.number_or("nodata", nodata, ("auto", None), finite=False)
    cube, dims = _as_dataset(opened_cube(cube))
    match, radiometry, bands, hidden = _read(cube, dims, mask, units, offset, nodata)
    clear = xr.concat([b.notnull() for b in bands.values()], "band").all("band") & ~hidden
    ranked = _rank(cube, how)
    groups = _periods(cube, freq)
    layers: dict[str, xr.DataArray] = dict(bands)
    if match.scl is not None and how != "median":
        layers["SCL"] = cube[match.scl].reset_coords(drop=True)
    made = []
    for dates in groups.values():
        chosen = dates if ranked is None else sorted(dates, key=lambda t: (ranked[t], t))
        part = {n: v.isel(time=chosen).where(clear.isel(time=chosen)) for n, v in layers.items()}
        made.append(xr.Dataset({n: _reduce(v, how) for n, v in part.items()}))
    whole = xr.concat(made, pd.Index(list(groups), name="time"))
    return _annotated(whole, cube, how, radiometry, [len(d) for d in groups.values()], mask)


def clear_bands(
    cube: xr.Dataset | xr.DataArray,
    *,
    units: str = "auto",
    offset: str | float | Sequence[float] = "auto",
    nodata: str | float | None = "auto",
) -> xr.DataArray:
    """Return all bands of a cube as the layers of one array, lazily.

    Parameters
    ----------
    cube, units, offset, nodata
        As in `composite`; a cube without `time` is one date.

    Returns
    -------
    DataArray
        (time, band, y, x) float32 DN without offset, NaN where a pixel has no data in any band; without `time` where
        the cube has none. The coordinate `valid` is 1, and 0 under clouds and shadows after `SCL` and without data.
    """
    given = opened_cube(cube)
    dated = georeference.dims(given).time is not None
    if isinstance(given, xr.Dataset):  # `expand_dims` leaves coordinates as they are
        given = given if dated else given.drop_dims("time", errors="ignore")
        given = given.set_coords([n for n, v in given.data_vars.items() if v.ndim == 0])
    cube, dims = _as_dataset(given if dated else given.expand_dims(time=np.zeros(1, "datetime64[ns]")))
    _, _, bands, hidden = _read(cube, dims, None, units, offset, nodata)
    layers = xr.concat(list(bands.values()), pd.Index(list(bands), name="band"))
    layers = layers.where(layers.notnull().all("band"))
    valid = layers.isel(band=0, drop=True).notnull() & ~hidden
    order = ("time", "band", dims.y, dims.x)
    layers = layers.transpose(*order)
    layers = layers.assign_coords(valid=valid.astype("float32").transpose("time", dims.y, dims.x))
    layers = layers.assign_coords({n: c.variable for n, c in cube.coords.items() if c.dims == ("time",)})
    placed: xr.DataArray = georeference.assign_grid(layers, georeference.geobox(cube), dims=(dims.y, dims.x))
    return placed if dated else placed.isel(time=0, drop=True)


def _read(
    cube: xr.Dataset, dims: georeference.Dims, mask: Any, units: str, offset: Any, nodata: Any
) -> tuple[BandMatch, Radiometry, dict[str, xr.DataArray], xr.DataArray]:
    """Return the bands as float32 DN without offset, and which pixels are left out."""
    match = _all_bands(cube)
    for name in (*match.variables, match.scl):
        if name is not None:
            refuse_foreign(cube[name].variable, name)
    radiometry = decide_radiometry(cube, match, units=units, offset=offset, nodata=nodata)
    hidden = _hidden(cube, match, mask, dims, radiometry)
    hidden = hidden | _contradicting(cube, match, radiometry, hidden)
    return match, radiometry, _canonical(cube, match, radiometry), hidden


def _as_dataset(cube: xr.Dataset | xr.DataArray) -> tuple[xr.Dataset, georeference.Dims]:
    d = georeference.dims(cube)
    if d.time is None or cube.sizes[d.time] == 0:
        raise ArgumentError("cube must have a time dimension with at least one date, which a composite combines")
    if isinstance(cube, xr.DataArray):
        if d.band is None:
            raise MissingBandsError("the DataArray has no band dimension: expected (time, band, y, x)")
        cube = to_layers(cube, d.band)
    cube = times.as_dated(cube, d.time, "a composite")
    # Coordinates along time decide at the call, but `Dataset.chunk` puts them on Dask with the pixels.
    cube = cube.assign_coords({n: c.variable.load() for n, c in cube.coords.items() if c.dims == ("time",)})
    return cube, georeference.dims(cube)


def _all_bands(cube: xr.Dataset) -> BandMatch:
    """Match all bands of Sentinel-2 that the cube has, by name."""
    named = {band_of_name(str(n)) for n, v in cube.data_vars.items() if "time" in v.dims}
    present = {known[0] for known in named if known is not None}
    if not present:
        raise MissingBandsError(f"no variable is named as a band of Sentinel-2: {', '.join(map(str, cube.data_vars))}")
    return match_bands(cube, [b for b in SENTINEL2 if b in present])


def _canonical(cube: xr.Dataset, match: BandMatch, r: Radiometry) -> dict[str, xr.DataArray]:
    """Convert the bands to float32 DN without offset, NaN where there is no data: `units.canonical`, lazily."""
    steps = cube.sizes["time"]
    add = xr.DataArray(np.broadcast_to(np.asarray(r.offset), (steps,)), dims="time")
    # Whole numbers below 2**24 are exact in float32; fractions are computed in float64 and rounded once.
    exact = "float32" if r.scale == 1.0 and all(float(a).is_integer() for a in r.offset) else "float64"
    bands = {}
    for band, name in zip(match.bands, match.variables, strict=True):
        assert name is not None
        raw = cube[name].reset_coords(drop=True)
        values = raw.where(np.isfinite(raw)) if raw.dtype.kind == "f" else raw
        values = values.astype(exact)
        if r.nodata is not None:
            values = values.where(raw != r.nodata)
        bands[band] = (values * r.scale + add).astype("float32").transpose(*raw.dims)
    return bands


def _hidden(cube: xr.Dataset, match: BandMatch, mask: Any, d: georeference.Dims, r: Radiometry) -> xr.DataArray:
    if isinstance(mask, xr.DataArray):
        if mask.dtype != bool:
            raise ArgumentError(
                f"mask must be boolean, True where a pixel is left out; got {mask.dtype}: compare it, mask=m > 0"
            )
        aligned = align_mask(mask, cube, d).reset_coords(drop=True)
        # xarray would join coordinates that differ by rounding to none at all.
        return aligned.assign_coords(
            {k: cube[k].variable for k in aligned.dims if k in aligned.coords and k in cube.coords}
        )
    if mask is None and match.scl is not None:
        scl = cube[match.scl].reset_coords(drop=True)
        in_memory = isinstance(scl.variable._data, np.ndarray)
        check_classes(scl.values if in_memory else np.empty(0, scl.dtype), r.scl_invalid, name=match.scl)
        hidden: xr.DataArray = xr.apply_ufunc(
            hidden_classes, scl, kwargs={"classes": r.scl_invalid}, dask="parallelized", output_dtypes=[bool]
        )
        return hidden
    if mask is not None and mask is not False:
        raise ArgumentError(f"mask must be a boolean DataArray, None (SCL) or False (no data alone), got {mask!r}")
    return xr.DataArray(False)


def _contradicting(cube: xr.Dataset, match: BandMatch, radiometry: Radiometry, hidden: xr.DataArray) -> xr.DataArray:
    """Return nothing hidden, after the values that are read have been compared with what was decided of them.

    A part of the graph, so that it costs no reading of its own: it raises where the composite is computed.
    """
    bands = [cube[name].reset_coords(drop=True) for name in match.variables]
    steps = xr.DataArray(np.arange(cube.sizes["time"]), dims="time")
    nothing: xr.DataArray = xr.apply_ufunc(
        _check_values, steps, hidden, *bands,
        kwargs={"radiometry": radiometry}, dask="parallelized", output_dtypes=[bool], join="override",
    )  # fmt: skip
    return nothing


def _check_values(steps: Array, hidden: Array, *bands: Array, radiometry: Radiometry) -> Array:
    """Raise if the values of a date contradict its units, as `embed` does; return False everywhere."""
    shape = np.broadcast_shapes(steps.shape, hidden.shape, *(band.shape for band in bands))
    seen, index = ~np.broadcast_to(hidden, shape), np.broadcast_to(steps, shape)
    whole = [np.broadcast_to(band, shape) for band in bands]
    thin = (slice(None, None, max(1, shape[1] // 64)), slice(None, None, max(1, shape[2] // 64)))
    for t in range(shape[0]):
        part = seen[t][thin]
        problem = find_unit_error(np.stack([band[t][thin][part] for band in whole]), radiometry, int(index[t, 0, 0]))
        if problem:
            raise AmbiguousUnitsError(f"date {int(index[t, 0, 0])}: {problem}")
    return np.zeros(shape, bool)


def _rank(cube: xr.Dataset, how: str) -> list[float] | None:
    if how != "least_cloudy":
        return None
    if CLOUD_COVER in cube.coords and cube[CLOUD_COVER].dims == ("time",):
        # A date of unknown cloud cover comes last.
        return [float(v) if np.isfinite(v) else 101.0 for v in cube[CLOUD_COVER].values]
    raise ArgumentError(
        f"how='least_cloudy' needs the coordinate {CLOUD_COVER!r} along time, which load_cube writes. Compute it "
        f"from SCL: cube.coords['{CLOUD_COVER}'] = 100 * cube.SCL.isin([3, 8, 9, 10]).mean(('y', 'x')).compute()"
    )


def _periods(cube: xr.Dataset, freq: str | None) -> dict[pd.Timestamp, list[int]]:
    """Return positions along time, by the start of their period."""
    dates = pd.DatetimeIndex(cube["time"].values)
    if freq is None:
        return {dates.min(): list(np.argsort(dates, kind="stable"))}
    keys = dates
    if freq == "D":
        # The satellite passes at one solar time everywhere; at the date line its pass and UTC's midnight meet.
        lon, _ = centre(georeference.geobox(cube))
        keys = (dates + pd.Timedelta(lon / 15, "h")).floor("D")
        first = {k: dates[keys == k].min() for k in keys.unique().sort_values()}
        return {first[k]: [int(i) for i in np.flatnonzero(keys == k)] for k in first}
    try:
        groups = pd.Series(range(len(dates)), index=keys).groupby(pd.Grouper(freq=freq, label="left", closed="left"))
    except ValueError as error:
        raise ArgumentError(f"freq must be a frequency of pandas ('D', 'W', 'MS', 'QS', 'YS'), got {freq!r}") from error
    return {pd.Timestamp(str(k)): [int(i) for i in positions] for k, positions in groups if len(positions)}


def _reduce(part: xr.DataArray, how: str) -> xr.DataArray:
    """Reduce the dates of a period, in order, to one; NaN where none is clear."""
    if how == "median":
        if part.chunks is not None:
            part = part.chunk(time=-1)
        median: xr.DataArray = xr.apply_ufunc(
            _median, part, input_core_dims=[["time"]], dask="parallelized", output_dtypes=[np.float32]
        )
        return median
    first = part.isel(time=0)
    for t in range(1, part.sizes["time"]):
        first = first.fillna(part.isel(time=t))
    return first


def _median(values: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the median along the last axis without NaN, equal to `numpy.nanmedian`, which is slow on short axes."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = np.isfinite(values).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, values.shape[-1] - 1), axis=-1)
    middle: np.ndarray[Any, np.dtype[np.float32]] = ((low + high) / 2).astype("float32")[..., 0]
    return middle


def _annotated(
    whole: xr.Dataset, cube: xr.Dataset, how: str, r: Radiometry, counts: Sequence[int], mask: Any
) -> xr.Dataset:
    names = {str(n): v for n, v in whole.data_vars.items()}
    for name, variable in names.items():
        if name == "SCL":
            names[name] = variable.fillna(0).astype("uint8").assign_attrs(long_name="scene classification")
            continue
        band = SENTINEL2[name]
        variable.attrs = {
            "units": "DN",
            "nodata": np.nan,
            "common_name": band.common_name,
            "center_wavelength": band.wavelength / 1000,
        }
    out = whole.assign(names).transpose("time", ...)
    out = out.assign_coords({"dates": ("time", np.asarray(counts)), OFFSET_COORD: ("time", np.zeros(len(counts)))})
    clouds = "no data alone left out" if mask is False else "a mask given" if mask is not None else "clouds after SCL"
    attrs = {k: v for k, v in cube.attrs.items() if str(k).startswith(PREFIX) or k in ("title", "product_level")}
    out.attrs = attrs | {
        Attribute.COMPOSITE: f"{how} of {', '.join(map(str, counts))} dates; {clouds}",
        Attribute.OFFSET: f"a composite of canonical DN ({'; '.join(r.reasons)})",
    }
    placed: xr.Dataset = georeference.assign_grid(out, georeference.geobox(cube))
    return placed
