"""Make a cube of an array that has neither coordinates nor a CRS, as Sentinel Hub and other services return."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.arguments import sequence
from deo_cube.cube import georeference
from deo_cube.cube.files import dates_of
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingCRSError

__all__ = ["from_array"]

_NAMES = ("time", "band", "y", "x")


def from_array(
    values: Any,
    bands: Sequence[str],
    *,
    bbox: Any,
    crs: Any = None,
    time: Any = None,
    dims: Sequence[str] | None = None,
) -> xr.DataArray:
    """Make a georeferenced cube of an array of pixels.

    Parameters
    ----------
    values : array, or list of arrays
        Of NumPy or Dask: (y, x, band) or (band, y, x), with time in front where there are several dates; (y, x) of one
        band. The first row is the northernmost. A list holds one array per date, as sentinelhub-py returns.
    bands : sequence of str
        Names along the axis of bands, in the order of the array: ``["B02", "B03", ...]``; also ``SCL``.
    bbox : (west, south, east, north)
        Outer edges of the pixels, in units of `crs`; or a BBox of sentinelhub-py.
    crs : optional
        EPSG code, WKT, or CRS of pyproj, rasterio or sentinelhub-py. Default: that of `bbox`, where it has one.
    time : date or sequence of dates, optional
        In UTC; one per step along time.
    dims : sequence of str, optional
        Names of the axes, from ``"time", "band", "y", "x"``. Default: by the length of `bands` and `time`.

    Returns
    -------
    DataArray
        (time, band, y, x), without `time` where there is none, with pixel-centre coordinates and ``spatial_ref``.
        Values are unchanged: `embed` decides their units, as it does of a file, and asks for what it cannot know.

    Raises
    ------
    ArgumentError
        For axes that fit neither order or both, another number of dates, and edges in a wrong order.
    ArgumentTypeError
        For values that are not numbers, and for a masked array.
    MissingCRSError
        Without a CRS.

    Examples
    --------
    >>> import numpy as np, deo_cube
    >>> values = np.full((64, 48, 3), 800, "uint16")
    >>> cube = deo_cube.from_array(values, ["B04", "B03", "B02"], bbox=(500000, 5200000, 500480, 5200640), crs=32632)
    >>> cube.dims, cube.shape
    (('band', 'y', 'x'), (3, 64, 48))
    """
    array = _array(values)
    if isinstance(bands, str) or not isinstance(bands, Iterable) or not all(isinstance(b, str) for b in bands):
        raise ArgumentTypeError(f'bands must be a sequence of names, such as ["B02", "B03"]; got {bands!r:.60}')
    names = [str(b) for b in bands]
    if len(set(names)) < len(names) or not names:
        raise ArgumentError(f"bands must be different names, at least one; got {names}")
    steps = None if time is None else 1 if isinstance(time, str) or np.ndim(time) == 0 else len(list(time))
    order = _order(array.shape, names, steps, dims)
    missing_axes = [d for d in ("band", "time") if d not in order and (d == "band" or steps is not None)]
    cube = xr.DataArray(array, dims=order).expand_dims(missing_axes)
    cube = cube.transpose(*(d for d in _NAMES if d in cube.dims)).assign_coords(band=names)
    if steps is not None:
        cube = cube.assign_coords(time=dates_of(time, cube.sizes["time"]))
    return georeference.assign_grid(cube, _geobox(bbox, crs, (cube.sizes["y"], cube.sizes["x"])))


def _array(values: Any) -> Any:
    if isinstance(values, xr.DataArray | xr.Dataset):
        raise ArgumentTypeError(
            "values is an xarray object, which has names and coordinates of its own: give it a CRS, "
            'values.rio.write_crs("EPSG:..."), and embed it, values.deo.embed()'
        )
    if isinstance(values, np.ma.MaskedArray):
        raise ArgumentTypeError(
            "values is a masked array, whose mask a cube does not have: fill it, values.filled(0) for integers, where "
            "0 is no data, or values.filled(np.nan) for floats"
        )
    if isinstance(values, list | tuple):
        shapes = {np.shape(v) for v in values}
        if len(shapes) != 1:
            raise ArgumentError(f"values is a list of arrays of {len(shapes)} shapes, {sorted(shapes)}: expected one")
        values = np.stack([np.asarray(v) for v in values])
    array = values if hasattr(values, "chunks") and hasattr(values, "dask") else np.asarray(values)
    if array.dtype.kind not in "iuf":
        raise ArgumentTypeError(f"values must hold numbers, got {array.dtype}")
    return array


def _order(shape: tuple[int, ...], names: list[str], steps: int | None, dims: Sequence[str] | None) -> tuple[str, ...]:
    """Return the names of the axes."""
    n = len(names)
    if dims is not None:
        order = tuple(map(str, sequence("dims", dims, "names of axes")))
        if len(order) != len(shape) or len(set(order)) < len(order) or not {"y", "x"} <= set(order) <= set(_NAMES):
            raise ArgumentError(
                f"dims must name the {len(shape)} axes of values, once each, from {', '.join(_NAMES)}; got {order}"
            )
        sizes = dict(zip(order, shape, strict=True))
        for name, expected in (("band", n), ("time", steps)):
            if expected is not None and sizes.get(name, 1) != expected:
                raise ArgumentError(
                    f"{name}{'s' if name == 'band' else ''} has {expected} entries, and dims gives this axis a length "
                    f"of {sizes.get(name, 1)}: values have shape {shape}"
                )
        if "time" in sizes and steps is None:
            raise ArgumentError(f"values have {sizes['time']} steps along time: pass time= with their dates")
        return order
    candidates = [
        order
        for order in (("band", "y", "x"), ("y", "x", "band"), ("y", "x"))
        for order in ((order,) if steps is None else (("time", *order), order))
        if len(order) == len(shape)
        and dict(zip(order, shape, strict=True)).get("band", 1) == n
        and dict(zip(order, shape, strict=True)).get("time", 1) == (steps or 1)
    ]
    if len(candidates) == 1:
        return candidates[0]
    known = f"{n} bands" + (f" and {steps} dates" if steps is not None else "")
    if not candidates:
        raise ArgumentError(
            f"values have shape {shape}, which has no axes for {known}: expected (y, x, {n}) or ({n}, y, x), with time "
            "in front for several dates. Name the axes: dims=('y', 'x', 'band')"
        )
    listed = " or ".join(map(str, candidates))
    raise ArgumentError(f"values of shape {shape} with {known} may be {listed}: name the axes, dims={candidates[0]}")


def _geobox(bbox: Any, crs: Any, shape: tuple[int, int]) -> GeoBox:
    stated = crs if crs is not None else getattr(bbox, "crs", None)
    if stated is None:
        raise MissingCRSError('bbox has no CRS: pass crs=, such as crs="EPSG:32632", or crs=4326 for degrees')
    stated = stated.pyproj_crs() if hasattr(stated, "pyproj_crs") else stated  # of sentinelhub-py
    try:
        west, south, east, north = (float(v) for v in bbox)
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(f"bbox must be (west, south, east, north), got {bbox!r:.80}") from error
    if not (west < east and south < north):
        raise ArgumentError(
            f"bbox must be (west, south, east, north), with west < east and south < north; got "
            f"{(west, south, east, north)}"
        )
    read = georeference.read_crs(stated)
    if read.geographic and (abs(south) > 90 or abs(north) > 90):
        raise ArgumentError(
            f"bbox {(west, south, east, north)} is in degrees, and south or north is beyond 90: the order is (west, "
            "south, east, north), longitude first; or pass the crs= of metres"
        )
    rows, columns = shape
    return GeoBox(shape, Affine((east - west) / columns, 0, west, 0, -(north - south) / rows, north), read)
