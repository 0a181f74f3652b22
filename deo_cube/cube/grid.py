"""The grid of a cube and of what is computed from it: size on the ground, world anchor, patches, coordinates."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from deo_cube.cube.footprint import centre
from deo_cube.cube.georeference import TOLERANCE, Dims, crs_name, dims, geobox
from deo_cube.errors import ArgumentError, MissingCRSError, ResolutionMismatchError

__all__ = [
    "Anchor",
    "Dims",
    "anchor",
    "assign_grid",
    "check_resolution",
    "dims",
    "embedding_geobox",
    "geobox",
    "ground_resolution",
]

Cube = TypeVar("Cube", xr.Dataset, xr.DataArray)


def ground_resolution(geobox: GeoBox) -> tuple[float, float]:
    """Size of the centre pixel on the ground.

    Returns
    -------
    (dx, dy)
        Metres along the ellipsoid of the CRS: 10 units of EPSG:3857 at 50 degrees north are about 6.4 m.

    Raises
    ------
    MissingCRSError
        Where the coordinates lie outside the CRS.
    """
    from pyproj import Transformer

    crs = geobox.crs.proj
    a = geobox.transform
    i, j = ((size - 1) // 2 for size in geobox.shape)
    # West, east, first and last side of the centre pixel.
    xs = [a.c + a.a * (j + k) for k in (0, 1, 0.5, 0.5)]
    ys = [a.f + a.e * (i + k) for k in (0.5, 0.5, 0, 1)]
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(xs, ys)
    if not np.isfinite([lon, lat]).all():
        raise MissingCRSError(
            f"the coordinates ({xs[0]:g}, {ys[0]:g}) lie outside {crs_name(geobox.crs)}: the CRS stated is not the "
            'cube\'s. State the right one: ds.rio.write_crs("EPSG:...")'
        )
    geod = crs.get_geod()
    _, _, dx = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, dy = geod.inv(lon[2], lat[2], lon[3], lat[3])
    return float(dx), float(dy)


def check_resolution(geobox: GeoBox, gsd: float, *, model: str = "", nodata: float | None = None) -> None:
    """Refuse pixels far from those that a model was trained on.

    Parameters
    ----------
    geobox : GeoBox
        Of the cube.
    gsd : float
        Ground sampling distance of the model's training data, metres.
    model : str
        Name for the message.
    nodata : float, optional
        Value of the cube that means "no data". The message passes it on: values interpolated between it and data would
        be taken for data.

    Raises
    ------
    ResolutionMismatchError
        Where the pixel on the ground (geometric mean of its sides) is less than half or more than twice the GSD.
    """
    dx, dy = ground_resolution(geobox)
    if 0.5 <= math.sqrt(dx * dy) / gsd <= 2:
        return
    raise ResolutionMismatchError(
        f"{model or 'the model'} was trained on pixels of {gsd:g} m; the cube's are {dx:.3g} m x {dy:.3g} m on the "
        f"ground ({abs(geobox.resolution.x):g} x {abs(geobox.resolution.y):g} units of {crs_name(geobox.crs)}), "
        f"outside {gsd / 2:g} to {2 * gsd:g} m. Load it so: load_cube(items, resolution={gsd:g}); or resample it: "
        f'cube.odc.reproject("{_metric_crs(geobox)}", resolution={gsd:g}, resampling="{_resampling(dx, dy, gsd)}"'
        f"{'' if nodata is None else f', src_nodata={nodata:g}'}), "
        'a scene classification by itself with resampling="nearest"'
    )


@dataclass(frozen=True)
class Anchor:
    """World index of a cube's north-west pixel on the cube's own pixel lattice, counted from the CRS origin.

    Attributes
    ----------
    row, col : int
        Pixels south and east of the origin of the CRS; two cubes cut from one lattice agree on the indices of the
        pixels they share.
    south_up : bool
        Whether the cube's first row is its southernmost.
    """

    row: int
    col: int
    south_up: bool


def anchor(geobox: GeoBox) -> Anchor:
    """Count the pixels from the origin of the CRS to the north-west pixel of `geobox`."""
    a = geobox.transform
    top = a.f + max(0.0, a.e) * geobox.shape[0]
    return Anchor(
        row=math.floor(-top / abs(a.e) + TOLERANCE),
        col=math.floor(a.c / a.a + TOLERANCE),
        south_up=a.e > 0,
    )


def embedding_geobox(geobox: GeoBox, *, patch: int, top: int, left: int, shape: tuple[int, int]) -> GeoBox:
    """Grid of the patches cut from `geobox`.

    Parameters
    ----------
    geobox : GeoBox
        Of the input pixels.
    patch : int
        Input pixels along a side of one output pixel.
    top, left : int
        Input pixels by which the first patch begins above and left of the cube's north-west corner; negative where
        pixels are dropped there.
    shape : (int, int)
        Rows and columns of patches.

    Returns
    -------
    GeoBox
        North-up or south-up like its source.
    """
    a = geobox.transform
    # Rows from the source's first row to the output's first row, so that one product is rounded once.
    first = geobox.shape[0] + top - shape[0] * patch if a.e > 0 else -top
    return GeoBox(shape, Affine(patch * a.a, 0.0, a.c - left * a.a, 0.0, patch * a.e, a.f + first * a.e), geobox.crs)


def assign_grid(array: Cube, geobox: GeoBox, dims: tuple[str, str] = ("y", "x")) -> Cube:
    """Put `array` on the map: pixel-centre coordinates and ``spatial_ref``, read alike by rioxarray, odc-geo and GDAL.

    Parameters
    ----------
    array : DataArray or Dataset
        With the dimensions `dims`, sized as the geobox.
    geobox : GeoBox
        North-up or south-up.
    dims : (str, str)
        Names of the dimensions along y and x.

    Raises
    ------
    ValueError
        Where the sizes differ.
    """
    sizes = tuple(array.sizes[d] for d in dims)
    if sizes != tuple(geobox.shape):
        raise ArgumentError(f"the array is {sizes} along {dims}, the geobox {tuple(geobox.shape)}")
    a, crs = geobox.transform, geobox.crs
    centres = {
        dims[0]: a.f + (np.arange(sizes[0]) + 0.5) * a.e,
        dims[1]: a.c + (np.arange(sizes[1]) + 0.5) * a.a,
    }
    attrs = _axis_attrs(crs)
    with warnings.catch_warnings():
        # CF lacks words for some projections (Swiss LV95), which the WKT beside them has.
        warnings.simplefilter("ignore", UserWarning)
        cf = crs.proj.to_cf()
    wkt = cf.get("crs_wkt") or crs.wkt
    mapping = {**cf, "crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": " ".join(repr(float(v)) for v in a.to_gdal())}
    placed = array.assign_coords(
        {d: xr.Variable((d,), centres[d], attrs[k]) for k, d in enumerate(dims)}
        | {"spatial_ref": xr.Variable((), np.int32(crs.epsg or 0), mapping)}
    )
    for variable in placed.data_vars.values() if isinstance(placed, xr.Dataset) else [placed]:
        if set(dims) <= set(variable.dims):
            # In attrs, not in encoding: xarray then lists spatial_ref among the coordinates on disk too, so a plain
            # open_zarr brings it back as one, without decode_coords="all".
            variable.encoding.pop("grid_mapping", None)
            variable.attrs["grid_mapping"] = "spatial_ref"
    return placed


def _axis_attrs(crs: CRS) -> tuple[dict[str, str], dict[str, str]]:
    # rioxarray finds dimensions by axis and standard_name where they are not called y and x.
    if crs.geographic:
        return (
            {"axis": "Y", "standard_name": "latitude", "long_name": "latitude", "units": "degrees_north"},
            {"axis": "X", "standard_name": "longitude", "long_name": "longitude", "units": "degrees_east"},
        )
    unit = crs.units[0]
    return (
        {"axis": "Y", "standard_name": "projection_y_coordinate", "long_name": "y of pixel centre", "units": unit},
        {"axis": "X", "standard_name": "projection_x_coordinate", "long_name": "x of pixel centre", "units": unit},
    )


def _metric_crs(box: GeoBox) -> str:
    """CRS to resample in: the cube's own where its units are metres on the ground, else its UTM zone."""
    if box.crs.proj.is_projected and box.crs.epsg not in (3857, 3395, 900913):
        return crs_name(box.crs)
    lon, lat = centre(box)
    return f"EPSG:{(32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1}"


def _resampling(dx: float, dy: float, gsd: float) -> str:
    return "average" if dx * dy < gsd * gsd else "bilinear"
