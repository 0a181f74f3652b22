"""Where a cube lies: its dimensions, its geobox, and the geobox of what is computed from it.

Everything is read from names, coordinates and attributes; no pixel is touched. Coordinates are pixel centres (CF), except
where a transform beside them proves that they are corners, as stackstac writes by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox

from deo_cube.errors import MissingBandsError, MissingCRSError, ResolutionMismatchError

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

SPATIAL_DIMS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"), ("Y", "X"))
TIME_DIMS = ("time", "t")
BAND_DIMS = ("band", "bands", "channel")

# Parts of a pixel that coordinates may stray from a regular grid, and that an anchor forgives.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Dims:
    """Names of a cube's dimensions; `time` and `band` are None where the cube has none."""

    time: str | None
    band: str | None
    y: str
    x: str

    def __repr__(self) -> str:
        return f"Dims({', '.join(d for d in (self.time, self.band, self.y, self.x) if d)})"


def dims(cube: xr.Dataset | xr.DataArray) -> Dims:
    """Tell which dimensions are time, band, y and x.

    Parameters
    ----------
    cube : Dataset or DataArray
        Of a Dataset only the variables that have both spatial dimensions count.

    Returns
    -------
    Dims
        y and x are found by name (y/x, latitude/longitude, lat/lon, northing/easting, Y/X), band by name (band, bands,
        channel), time by name (time, t) or as the dimension whose coordinate holds dates.

    Raises
    ------
    MissingCRSError
        Without spatial dimensions, or with two pairs of them.
    MissingBandsError
        For a DataArray with a dimension that is none of the four.
    """
    names = [str(d) for d in cube.dims]
    pairs = [p for p in SPATIAL_DIMS if any(set(p) <= set(v.dims) for v in _arrays(cube))]
    if len(pairs) != 1:
        found = f"two pairs: {pairs}" if pairs else f"the dimensions {tuple(names)}"
        raise MissingCRSError(
            f"a cube has one pair of spatial dimensions named {', '.join('/'.join(p) for p in SPATIAL_DIMS)}; "
            f"found {found}. Rename them: cube.rename({{'rows': 'y', 'columns': 'x'}})"
            if not pairs
            else f"a cube has one pair of spatial dimensions; found {found}. Select the variables of one pair: "
            f"cube[['B02', ...]]"
        )
    y, x = pairs[0]
    spatial = [v for v in _arrays(cube) if {y, x} <= set(v.dims)]
    others = list(dict.fromkeys(str(d) for v in spatial for d in v.dims if d not in (y, x)))
    time = next((d for d in TIME_DIMS if d in others), None)
    time = time or next((d for d in others if d in cube.coords and cube[d].dtype.kind == "M"), None)
    band = next((d for d in BAND_DIMS if d in others), None)
    strange = [d for d in others if d not in (time, band)]
    if strange and isinstance(cube, xr.DataArray):
        raise MissingBandsError(
            f"a cube's dimensions are time, band, y and x; found {tuple(names)}. Rename {strange[0]!r} if it is one of "
            f"them, cube.rename({{{strange[0]!r}: 'band'}}), or select from it: cube.isel({{{strange[0]!r}: 0}})"
        )
    return Dims(time, band, y, x)


def geobox(cube: xr.Dataset | xr.DataArray) -> GeoBox:
    """Read CRS, transform and shape of a cube, exact to the pixel corner.

    The CRS is taken from the grid mapping (rioxarray's and odc-geo's ``spatial_ref``, CF), else from attributes (``crs``,
    ``crs_wkt``, ``proj:code``, ``proj:wkt2``, ...), else from stackstac's ``epsg``. The grid is taken from the
    coordinates; where a transform is stated on the same lattice (``GeoTransform``, ``transform``,
    ``spatial:transform``), its exact numbers are used, so windows of one raster share one lattice to the last bit.
    North-up and south-up are both read.

    Returns
    -------
    GeoBox
        Shape (y, x); the transform maps pixel corners, row 0 being the cube's first row.

    Raises
    ------
    MissingCRSError
        Without CRS or coordinates; for irregular, rotated or east-to-west grids; for a cube one pixel wide whose pixel size
        is stated nowhere; where coordinates and transform contradict each other by half a pixel.
    """
    d = dims(cube)
    statements = list(_statements(cube, d))
    crs = _crs(cube, d, statements)
    transforms = list(_transforms(statements))
    for source, transform in transforms:
        if transform.b or transform.d:
            raise MissingCRSError(
                f"the grid is rotated or sheared ({source} is {tuple(transform)[:6]}); patches are cut along x and y. "
                "Warp it to a north-up grid: cube.rio.reproject(cube.rio.crs)"
            )
    cornered = "spec" in cube.attrs or ("epsg" in cube.coords and not any(k == "grid mapping" for k, _ in statements))
    x0, dx = _axis(cube, d.x, [(s, t.c, t.a) for s, t in transforms], upward=False, cornered=cornered)
    y0, dy = _axis(cube, d.y, [(s, t.f, t.e) for s, t in transforms], upward=True, cornered=cornered)
    if dx < 0:
        raise MissingCRSError(
            f"{d.x} runs from east to west ({dx:g} a pixel), which mirrors the image; turn it: cube.sortby({d.x!r})"
        )
    box = GeoBox((cube.sizes[d.y], cube.sizes[d.x]), Affine(dx, 0.0, x0, 0.0, dy, y0), crs)
    west, south, east, north = box.boundingbox.bbox
    if crs.geographic and (max(abs(south), abs(north)) > 90 + abs(dy) or max(abs(west), abs(east)) > 360 + dx):
        raise MissingCRSError(
            f"the cube says {_name(crs)}, whose coordinates are degrees, but {d.x} runs from {west:g} to {east:g} and {d.y} "
            f'from {south:g} to {north:g}: the CRS is another one. State it: ds.rio.write_crs("EPSG:...")'
        )
    return box


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
    rows, columns = geobox.shape
    i, j = (rows - 1) // 2, (columns - 1) // 2
    pixels = [(j, i + 0.5), (j + 1, i + 0.5), (j + 0.5, i), (j + 0.5, i + 1)]
    xs, ys = zip(*(geobox.transform * p for p in pixels), strict=True)
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(xs, ys)
    if not np.isfinite([lon, lat]).all():
        raise MissingCRSError(
            f"the coordinates ({xs[0]:g}, {ys[0]:g}) lie outside {_name(geobox.crs)}: the CRS stated is not the cube's. "
            'State the right one: ds.rio.write_crs("EPSG:...")'
        )
    geod = crs.get_geod()
    _, _, dx = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, dy = geod.inv(lon[2], lat[2], lon[3], lat[3])
    return float(dx), float(dy)


def check_resolution(geobox: GeoBox, gsd: float, *, model: str = "") -> None:
    """Refuse pixels far from those that a model was trained on.

    Parameters
    ----------
    geobox : GeoBox
        Of the cube.
    gsd : float
        Ground sampling distance of the model's training data, metres.
    model : str
        Name for the message.

    Raises
    ------
    ResolutionMismatchError
        Where the pixel on the ground (geometric mean of its sides) is less than half or more than twice the GSD.
    """
    dx, dy = ground_resolution(geobox)
    if 0.5 <= math.sqrt(dx * dy) / gsd <= 2:
        return
    raise ResolutionMismatchError(
        f"{model or 'the model'} was trained on pixels of {gsd:g} m; the cube's are {dx:.3g} m x {dy:.3g} m on the ground "
        f"({abs(geobox.resolution.x):g} x {abs(geobox.resolution.y):g} units of {_name(geobox.crs)}), outside "
        f"{gsd / 2:g} to {2 * gsd:g} m. Resample it: "
        f'cube.odc.reproject("{_metric_crs(geobox)}", resolution={gsd:g}, resampling="{_resampling(dx, dy, gsd)}"), '
        f"or load it so: load_cube(items, resolution={gsd:g})"
    )


@dataclass(frozen=True)
class Anchor:
    """World index of a cube's north-west pixel on the cube's own pixel lattice, counted from the CRS origin.

    Attributes
    ----------
    row, col : int
        Pixels south and east of the origin of the CRS; two cubes cut from one lattice agree on the indices of the pixels
        they share.
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
        Input pixels by which the first patch begins above and left of the cube's north-west corner; negative where pixels
        are dropped there.
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
        raise ValueError(f"the array is {sizes} along {dims}, the geobox {tuple(geobox.shape)}")
    a, crs = geobox.transform, geobox.crs
    centres = {
        dims[0]: a.f + (np.arange(sizes[0]) + 0.5) * a.e,
        dims[1]: a.c + (np.arange(sizes[1]) + 0.5) * a.a,
    }
    attrs = _axis_attrs(crs)
    cf = crs.proj.to_cf()
    wkt = cf.get("crs_wkt") or crs.wkt
    mapping = {**cf, "crs_wkt": wkt, "spatial_ref": wkt, "GeoTransform": " ".join(repr(float(v)) for v in a.to_gdal())}
    placed = array.assign_coords(
        {d: xr.Variable((d,), centres[d], attrs[k]) for k, d in enumerate(dims)}
        | {"spatial_ref": xr.Variable((), np.int32(crs.epsg or 0), mapping)}
    )
    for variable in placed.data_vars.values() if isinstance(placed, xr.Dataset) else [placed]:
        if set(dims) <= set(variable.dims):
            # In attrs, not in encoding: xarray then lists spatial_ref among the coordinates on disk too, so that a plain
            # open_zarr brings it back as one, without decode_coords="all".
            variable.encoding.pop("grid_mapping", None)
            variable.attrs["grid_mapping"] = "spatial_ref"
    return placed


def _arrays(cube: xr.Dataset | xr.DataArray) -> list[xr.DataArray]:
    return list(cube.data_vars.values()) if isinstance(cube, xr.Dataset) else [cube]


def _name(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


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
        return _name(box.crs)
    lon, lat = (float(v) for v in box.geographic_extent.centroid.coords[0])
    return f"EPSG:{(32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1}"


def _resampling(dx: float, dy: float, gsd: float) -> str:
    return "average" if dx * dy < gsd * gsd else "bilinear"


def _statements(cube: xr.Dataset | xr.DataArray, d: Dims) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Attributes in which a CRS or transform may be stated, best first, each with the name of its kind."""
    spatial = [v for v in _arrays(cube) if {d.y, d.x} <= set(v.dims)]
    variables = cube.variables if isinstance(cube, xr.Dataset) else cube.coords
    named = [o.encoding.get("grid_mapping") or o.attrs.get("grid_mapping") for o in (cube, *spatial)]
    # CF allows "crs: x y" beside the plain name.
    names = [str(n).split(":")[0].strip() for n in named if n]
    names += [
        str(n)
        for n, v in variables.items()
        if v.ndim == 0 and {"spatial_ref", "crs_wkt", "grid_mapping_name", "GeoTransform"} & set(v.attrs)
    ]
    for name in dict.fromkeys(names):
        if name in variables:
            yield "grid mapping", variables[name].attrs
    for source in (cube, *spatial, *(cube.coords[k] for k in (d.y, d.x) if k in cube.coords)):
        yield "attribute", source.attrs


def _parsed(stated: Any) -> CRS:
    try:
        return CRS(stated if isinstance(stated, str | dict | CRS) or hasattr(stated, "to_wkt") else f"EPSG:{stated}")
    except (CRSError, ValueError, TypeError) as error:
        raise MissingCRSError(f"the CRS stated in the cube cannot be read: {stated!r} ({error})") from error


def _crs(cube: xr.Dataset | xr.DataArray, d: Dims, statements: list[tuple[str, Mapping[Any, Any]]]) -> CRS:
    keys = {
        "grid mapping": ("spatial_ref", "crs_wkt"),
        "attribute": ("crs", "crs_wkt", "proj:code", "proj:wkt2", "proj:projjson", "proj:epsg"),
    }
    for kind in keys:
        found: list[CRS] = []
        for attrs in (a for k, a in statements if k == kind):
            stated = next((attrs[k] for k in keys[kind] if attrs.get(k)), None)
            if stated is None and "grid_mapping_name" in attrs:
                from pyproj import CRS as ProjCRS

                stated = ProjCRS.from_cf(dict(attrs))
            if stated is not None:
                crs = _parsed(stated)
                if crs not in found:
                    found.append(crs)
        if len(found) > 1:
            raise MissingCRSError(
                f"the cube states several CRSs: {', '.join(map(_name, found))}. Keep one: "
                'ds.drop_vars(...) the others, or ds.rio.write_crs("EPSG:...")'
            )
        if found:
            return found[0]
    for key in ("epsg", "proj:epsg", "proj:code"):
        if key in cube.coords and cube.coords[key].ndim == 0:
            return _parsed(cube.coords[key].item())
    raise MissingCRSError(
        f"the cube says nowhere in which CRS its {d.x} and {d.y} are (looked for a spatial_ref coordinate, a grid_mapping, and "
        'the attributes crs, crs_wkt and proj:code). State it: ds.rio.write_crs("EPSG:...") or ds.odc.assign_crs("EPSG:...")'
        + ("; for degrees of WGS 84 that is EPSG:4326" if d.y in ("latitude", "lat") else "")
    )


def _transforms(statements: list[tuple[str, Mapping[Any, Any]]]) -> Iterator[tuple[str, Affine]]:
    for kind, attrs in statements:
        if kind == "grid mapping" and "GeoTransform" in attrs:
            parts = attrs["GeoTransform"]
            values = [float(v) for v in (parts.split() if isinstance(parts, str) else parts)]
            yield "GeoTransform", Affine.from_gdal(*values)
        elif kind == "attribute":
            for key in ("spec", "transform", "spatial:transform"):
                stated = getattr(attrs.get(key), "transform", None) if key == "spec" else attrs.get(key)
                if stated is not None:
                    yield key, Affine(*(float(v) for v in tuple(stated)[:6]))


def _axis(
    cube: xr.Dataset | xr.DataArray,
    name: str,
    lattices: list[tuple[str, float, float]],
    *,
    upward: bool,
    cornered: bool,
) -> tuple[float, float]:
    """Outer edge of the first pixel and signed pixel size along one dimension.

    `lattices` are (source, origin, step) stated beside the coordinates; `upward` says that a corner coordinate would be the
    upper edge of its pixel (y) instead of the lower (x); `cornered` that the cube looks like stackstac's, whose coordinates
    are corners or centres as the caller of ``stack`` chose.
    """
    if name not in cube.coords or cube.coords[name].ndim != 1 or cube.coords[name].dtype.kind not in "fiu":
        raise MissingCRSError(
            f"{name} has no coordinates, so a window of the cube cannot be told from the whole. Give it pixel centres: open it "
            "with rioxarray.open_rasterio(..., parse_coordinates=True), or cube.assign_coords({...})"
        )
    dtype = cube.coords[name].dtype
    values = np.asarray(cube.coords[name].values, dtype="float64")
    if values.size == 0:
        raise MissingCRSError(f"the cube is empty along {name}: its window holds no pixel")
    size = values.size
    if size > 1:
        step = (values[-1] - values[0]) / (size - 1)
    elif lattices:
        step = lattices[0][2]
    else:
        raise MissingCRSError(
            f"the cube is one pixel long along {name}, and its pixel size is stated nowhere. State it before cutting the window: "
            "ds = ds.rio.write_transform()"
        )
    # Coordinates held in float32 are regular up to their own rounding.
    rounding = float(np.spacing(np.abs(values).max().astype(dtype))) if dtype.kind == "f" else 0.0
    slack = max(TOLERANCE * abs(step), rounding)
    astray = np.abs(values - (values[0] + np.arange(size) * step)).max()
    if not (step != 0 and astray <= slack):
        raise MissingCRSError(
            f"{name} is not regular: steps from {np.diff(values).min():g} to {np.diff(values).max():g}. Patches need one pixel "
            "size: resample to a regular grid, cube.odc.reproject(geobox) or cube.interp(...)"
        )
    half = 0.5 * step
    readings: dict[str, tuple[str, float, float]] = {}
    for source, origin, stated in lattices:
        exact = math.copysign(stated, step)
        if abs(exact - step) * max(size - 1, 1) > 2 * slack:
            continue
        position = (values[0] - half - origin) / exact
        if abs(position - round(position)) * abs(step) <= 2 * slack:
            readings.setdefault("centre", (source, origin + round(position) * exact, exact))
        elif abs(position - math.floor(position) - 0.5) * abs(step) <= 2 * slack:
            position += 0.5 if (step > 0) != upward else -0.5
            readings.setdefault("corner", (source, origin + round(position) * exact, exact))
    if "corner" in readings and ("centre" in readings or readings["corner"][0] == "GeoTransform"):
        raise MissingCRSError(
            f"{name} begins at {values[0]:g}, half a pixel off the pixel centres of the stated {readings['corner'][0]}: one of them is "
            f"wrong. If the coordinates are centres: ds.drop_attrs().rio.write_transform(ds.rio.transform(recalc=True)); if they are "
            f"corners: ds.assign_coords({name}=ds.{name} {'+' if (half > 0) else '-'} {abs(half):g})"
        )
    if readings:
        _, edge, step = next(iter(readings.values()))
        return edge, step
    if cornered:
        raise MissingCRSError(
            f"stackstac's {name} are pixel corners or centres, and the attributes that tell (spec, transform) are lost or no longer fit. "
            "Stack with xy_coords='center', then drop them and state the CRS: "
            'cube.drop_attrs().rio.write_crs("EPSG:...")'
        )
    return float(values[0] - half), float(step)
