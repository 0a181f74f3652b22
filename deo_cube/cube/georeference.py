"""Read and write the grid of a cube: its dimensions, CRS, transform, pixel size on the ground and world anchor.

Everything is read from names, coordinates and attributes; no pixel is touched. Coordinates are pixel centres, as in CF,
except where a transform beside them proves that they are corners, as stackstac writes them by default.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox
from pyproj import CRS as ProjCRS
from pyproj import Transformer
from pyproj.exceptions import ProjError

from deo_cube.cube.footprint import centre
from deo_cube.cube.times import holds_dates
from deo_cube.errors import ArgumentError, MissingBandsError, MissingCRSError, ResolutionMismatchError, remedy

__all__ = [
    "TOLERANCE",
    "Dims",
    "crs_name",
    "dims",
    "geobox",
    "is_cube",
    "read_crs",
    "same_crs",
    "Anchor",
    "anchor",
    "assign_grid",
    "check_resolution",
    "embedding_geobox",
    "ground_resolution",
]

SPATIAL_DIMS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"), ("Y", "X"))
TIME_DIMS = ("time", "t", "date", "datetime", "valid_time")
BAND_DIMS = ("band", "bands", "channel", "variable")

# Part of a pixel by which coordinates may deviate from a regular grid, and by which an anchor is rounded.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Dims:
    """Names of a cube's dimensions; `time` and `band` are None where the cube has none."""

    time: str | None
    band: str | None
    y: str
    x: str


def dims(cube: xr.Dataset | xr.DataArray) -> Dims:
    """Find the dimensions time, band, y and x of a cube.

    Parameters
    ----------
    cube : Dataset or DataArray
        Only variables with both spatial dimensions are considered.

    Returns
    -------
    Dims
        y and x are found by name (y/x, latitude/longitude, lat/lon, northing/easting, Y/X), band by name (band, bands,
        channel), time by name (time, t, date, datetime, valid_time) or as the dimension whose coordinate holds dates.

    Raises
    ------
    MissingCRSError
        Without spatial dimensions, or with two pairs of them.
    MissingBandsError
        For a DataArray with another dimension.
    """
    names = tuple(str(d) for d in cube.dims)
    pairs = [p for p in SPATIAL_DIMS if any(set(p) <= set(v.dims) for v in _arrays(cube))]
    if not pairs:
        raise MissingCRSError(
            f"a cube has spatial dimensions named {', '.join('/'.join(p) for p in SPATIAL_DIMS)}; found {names}. "
            "Rename them: cube.rename({'rows': 'y', 'columns': 'x'})"
        )
    if len(pairs) > 1:
        raise MissingCRSError(
            f"the variables are on several grids: {', '.join('/'.join(p) for p in pairs)}. "
            "Select those of one grid: cube[['B02', 'B03', ...]]"
        )
    y, x = pairs[0]
    others = list(dict.fromkeys(str(d) for v in _spatial(cube, y, x) for d in v.dims if d not in (y, x)))
    unnamed = [d for d in others if d not in BAND_DIMS and d in cube.coords]
    dated = (d for d in unnamed if holds_dates(cube.coords[d].variable))
    time = next((d for d in TIME_DIMS if d in others), None) or next(dated, None)
    band = next((d for d in BAND_DIMS if d in others), None)
    extra_dims = [d for d in others if d not in (time, band)]
    if extra_dims and isinstance(cube, xr.DataArray):
        raise MissingBandsError(
            f"a cube's dimensions are time, band, y and x; found {names}. Rename {extra_dims[0]!r} if it is one of "
            f"them, cube.rename({{{extra_dims[0]!r}: 'band'}}), or select from it, cube.isel({{{extra_dims[0]!r}: 0}})"
        )
    return Dims(time, band, y, x)


def geobox(cube: xr.Dataset | xr.DataArray) -> GeoBox:
    """Read CRS, transform and shape of a cube, exact to the pixel corner.

    The CRS is taken from the grid mapping (the ``spatial_ref`` of rioxarray and odc-geo, or any other after CF), else
    from attributes (``crs``, ``crs_wkt``, ``proj:code``, ``proj:wkt2``, ``proj:projjson``, ``proj:epsg``, GDAL's
    ``_CRS``, an ``area`` of satpy) and coordinates whose value is a CRS (``crs``, stackstac's ``epsg``), else from
    attributes within attributes (EOPF's ``stac_discovery``) and from the encoding. The grid is
    taken from the coordinates. If there is a transform on the same lattice (``GeoTransform``, ``transform``,
    ``spatial:transform``), its numbers are used, so that all windows of a raster share one lattice to the last bit; it
    also decides whether stackstac's coordinates are centres or corners. North-up and south-up grids are read.

    Returns
    -------
    GeoBox
        Shape (y, x); the transform maps pixel corners, row 0 being the cube's first row.

    Raises
    ------
    MissingCRSError
        Without CRS or coordinates; for an irregular, rotated or east-to-west grid; for a cube one pixel wide
        without a stated pixel size; where statements contradict each other (two CRSs; coordinates half a pixel off a
        transform).
    """
    d = dims(cube)
    statements = list(_statements(cube, d))
    crs = _crs(cube, d, statements)
    transforms = list(_transforms(statements))
    for source, transform in transforms:
        if transform.b or transform.d:
            raise MissingCRSError(
                f"the grid is rotated or sheared ({source} {tuple(transform)[:6]}); patches are cut along x and y. "
                "Warp it to an upright grid: cube.rio.reproject(cube.rio.crs)"
            )
    transforms = [(source, t) for source, t in transforms if t.a and t.e]
    # stackstac's coordinates are corners or centres, as the caller of `stack` chose; only its transform tells.
    stackstac = "spec" in cube.attrs or "epsg" in cube.coords
    unsure = "spec" in cube.attrs or (stackstac and all(kind != "grid mapping" for kind, _ in statements))
    x = _axis(cube, d.x, [(s, t.c, t.a) for s, t in transforms], 1, stackstac=stackstac, unsure=unsure)
    y = _axis(cube, d.y, [(s, t.f, t.e) for s, t in transforms], -1, stackstac=stackstac, unsure=unsure)
    variables = cube.variables if isinstance(cube, xr.Dataset) else cube.coords
    _check_centres([x, y], crs, [str(n) for n, v in variables.items() if "GeoTransform" in v.attrs])
    x0, dx, y0, dy = x.edge, x.step, y.edge, y.step
    if dx < 0:
        raise MissingCRSError(
            f"{d.x} runs from east to west ({dx:g} per pixel), which mirrors the image. Sort it: cube.sortby({d.x!r})"
        )
    box = GeoBox((cube.sizes[d.y], cube.sizes[d.x]), Affine(dx, 0.0, x0, 0.0, dy, y0), crs)
    west, south, east, north = box.boundingbox.bbox
    if crs.geographic and (max(-south, north) > 90 + abs(dy) or max(-west, east) > 360 + dx):
        raise MissingCRSError(
            f"the cube states {crs_name(crs)}, whose coordinates are degrees, but {d.x} runs from {west:g} to {east:g} "
            f'and {d.y} from {south:g} to {north:g}. State the right CRS: ds.rio.write_crs("EPSG:...")'
        )
    return box


def is_cube(ds: xr.Dataset) -> bool:
    """Return whether a Dataset has a variable along a pair of spatial dimensions."""
    return any(set(pair) <= set(v.dims) for v in ds.data_vars.values() for pair in SPATIAL_DIMS)


def crs_name(crs: CRS) -> str:
    """Return the short name of a CRS: its EPSG code, else its title."""
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


def _arrays(cube: xr.Dataset | xr.DataArray) -> list[xr.DataArray]:
    return list(cube.data_vars.values()) if isinstance(cube, xr.Dataset) else [cube]


def _spatial(cube: xr.Dataset | xr.DataArray, y: str, x: str) -> list[xr.DataArray]:
    return [v for v in _arrays(cube) if {y, x} <= set(v.dims)]


def _statements(cube: xr.Dataset | xr.DataArray, d: Dims) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield the attributes that may state a CRS or transform, best first, each with the name of its kind."""
    spatial = _spatial(cube, d.y, d.x)
    variables = cube.variables if isinstance(cube, xr.Dataset) else cube.coords
    named = [v.encoding.get("grid_mapping") or v.attrs.get("grid_mapping") for v in (cube, *spatial)]
    # CF allows "crs: x y" beside the plain name.
    names = [n for n in (str(n).split(":")[0].strip() for n in named if n) if n in variables]
    marks = {"spatial_ref", "crs_wkt", "grid_mapping_name", "GeoTransform"}
    names = names or [str(n) for n, v in variables.items() if v.ndim == 0 and marks & set(v.attrs)]
    for name in dict.fromkeys(names):
        yield "grid mapping", variables[name].attrs
    for source in (cube, *spatial, *(cube.coords[k] for k in (d.y, d.x) if k in cube.coords)):
        yield "attribute", source.attrs


#: Keys that state a CRS exactly, best first.
_EXACT = (
    *("spatial_ref", "crs_wkt", "proj:code", "proj:wkt2", "proj:projjson", "proj:epsg", "crs", "wkt", "projjson"),
    *("crs_code", "epsg_code", "epsg", "EPSG", "_CRS", "area", "horizontal_CRS_code", "horizontal_crs_code"),
)
#: Keys whose forms lose parts of a CRS, such as its name: read only where nothing exact is stated.
_LOSSY = ("esri_pe_string", "proj4", "proj4text", "proj4_params", "proj4_string")
#: Attributes that hold others: the metadata of an EOPF product, a STAC item.
_NESTED = ("stac_discovery", "other_metadata", "properties", "metadata")
#: Scalar coordinates whose value, not an attribute, may be the CRS.
_COORDINATES = ("crs", "spatial_ref", "epsg", "proj:epsg", "proj:code", "EPSG", "epsg_code", "projection")


def _crs(cube: xr.Dataset | xr.DataArray, d: Dims, statements: list[tuple[str, Mapping[Any, Any]]]) -> CRS:
    spatial = _spatial(cube, d.y, d.x)
    tiers = {
        "grid mapping": [a for k, a in statements if k == "grid mapping"],
        "attribute": [*(a for k, a in statements if k == "attribute"), *_coordinate_values(cube)],
        "encoding": [a for a in (*_nested(cube, spatial), cube.encoding, *(v.encoding for v in spatial))],
    }
    unreadable: list[MissingCRSError] = []
    for attributes in tiers.values():
        stated: dict[str, CRS] = {}
        for attrs in attributes:
            for name, crs in _stated_in(attrs, unreadable):
                if not any(same_crs(crs, other) for other in stated.values()):
                    stated[f"{name}, again" if name in stated else name] = crs
        if len(stated) > 1:
            raise MissingCRSError(
                f"the cube states several CRSs: {', '.join(map(crs_name, stated.values()))} (in "
                f"{', '.join(stated)}). State the right one, which "
                f'then decides: ds.rio.write_crs("{_spelled(next(iter(stated.values())))}")'
            )
        if stated:
            return next(iter(stated.values()))
    if unreadable:
        raise unreadable[0]
    raise MissingCRSError(
        f"the cube has no CRS for its {d.x} and {d.y} (searched: a spatial_ref coordinate, a grid_mapping, and the "
        "attributes crs, crs_wkt, proj:code). State it: "
        'ds.rio.write_crs("EPSG:...") or ds.odc.assign_crs("EPSG:...")'
        + ("; for degrees of WGS 84 that is EPSG:4326" if d.y in ("latitude", "lat") else "")
    )


def _stated_in(attrs: Mapping[Any, Any], unreadable: list[MissingCRSError]) -> Iterator[tuple[str, CRS]]:
    """Yield the CRSs that one set of attributes states, with their keys: all exact ones, else the first other form."""
    exact = False
    for key in _EXACT:
        value = _unwrapped_value(attrs.get(key))
        if value is None:
            continue
        try:
            crs = _stated_crs(value)
        except MissingCRSError as error:
            # `crs` and `area` have many meanings; an unreadable value is reported only if no other is readable.
            unreadable.append(error)
            continue
        exact = True
        yield key, crs
    forms: list[Any] = [dict(attrs)] if not exact and "grid_mapping_name" in attrs else []
    forms += [attrs[key] for key in _LOSSY if not exact and attrs.get(key)]
    for form in forms:
        try:
            yield "grid_mapping_name" if isinstance(form, dict) else "projection string", _stated_crs(form)
            return
        except MissingCRSError as error:
            unreadable.append(error)


def _unwrapped_value(value: Any) -> Any:
    """Return the value that an attribute holds as its CRS; None if it is empty, or a code 0."""
    if isinstance(value, np.ndarray):
        value = value.item() if value.size == 1 else None
    if isinstance(value, Mapping) and ("wkt" in value or "projjson" in value or "url" in value):  # GDAL's _CRS
        value = next((value[k] for k in ("projjson", "wkt", "url") if value.get(k)), None)
    if hasattr(value, "crs") and not isinstance(value, str | Mapping) and not hasattr(value, "to_wkt"):
        value = value.crs  # an area of pyresample
    return None if value is None or (isinstance(value, str | int | float) and not value) else value


def _coordinate_values(cube: xr.Dataset | xr.DataArray) -> Iterator[Mapping[str, Any]]:
    """Yield coordinates (and variables) that are a CRS, as attributes: one value, or one repeated along time."""
    for key in _COORDINATES:
        variable = cube.variables.get(key) if isinstance(cube, xr.Dataset) else cube.coords.get(key)
        if variable is None or variable.ndim > 1 or variable.size == 0 or key in cube.dims:
            continue
        if variable.ndim == 0 and variable.dtype.kind in "OUSiu":
            yield {key: variable.values.item() if variable.dtype.kind != "S" else variable.values.item().decode()}
        elif variable.dtype.kind in "OUiu" and len(set(variable.values.tolist())) == 1:
            yield {key: variable.values.tolist()[0]}


def _nested(cube: xr.Dataset | xr.DataArray, spatial: list[xr.DataArray]) -> Iterator[Mapping[str, Any]]:
    """Yield attributes within attributes, where products store the CRS of all their groups."""
    for source in (cube, *spatial):
        queue = [source.attrs.get(key) for key in _NESTED]
        while queue:
            inner = queue.pop(0)
            if isinstance(inner, Mapping):
                yield inner
                queue += [inner.get(key) for key in _NESTED]


def _stated_crs(stated: Any) -> CRS:
    """Read a CRS that a cube states."""
    try:
        return read_crs(stated)
    except ValueError as error:
        raise MissingCRSError(
            f'the CRS stated in the cube cannot be read: {stated!r} ({error}). State it: ds.rio.write_crs("EPSG:...")'
        ) from error


def read_crs(stated: Any) -> CRS:
    """Read a CRS from WKT, an authority code, a number, PROJJSON, CF parameters or a CRS object of any library.

    Raises
    ------
    ArgumentError
        For other values, and for codes that do not exist.
    """
    if isinstance(stated, str):
        crs = _crs_of_text(stated)
        if isinstance(crs, str):
            raise ArgumentError(crs)
        return crs
    return _read_crs(stated)


@lru_cache(maxsize=256)
def _crs_of_text(stated: str) -> CRS | str:
    """Return the CRS that a text states, or why it states none.

    Remembered, because PROJ searches its whole database for a text that is a name, and a cube may state its CRS in
    every variable.
    """
    try:
        return _read_crs(stated)
    except ArgumentError as error:
        return str(error)


def _read_crs(stated: Any) -> CRS:
    try:
        if isinstance(stated, Mapping) and "grid_mapping_name" in stated:
            stated = ProjCRS.from_cf(dict(stated))
        if isinstance(stated, str) and stated.strip().isdigit():
            stated = int(stated)
        if isinstance(stated, bool):
            raise TypeError("a truth value is not a CRS")
        named = isinstance(stated, str | Mapping | CRS) or hasattr(stated, "to_wkt")
        crs = CRS(stated if named else f"EPSG:{int(stated)}")
        # The EPSG code where it means the same: one CRS then equals itself however it was spelled.
        code = CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs
        return code if code.proj.equals(crs.proj, ignore_axis_order=True) else crs
    except (CRSError, ProjError, KeyError, ValueError, TypeError, OverflowError) as error:
        raise ArgumentError(f"not a CRS: {str(error)[:200]}") from error


def same_crs(one: CRS, other: CRS) -> bool:
    """Return whether two CRSs give the same numbers, however they are written."""
    if one == other or one.proj.equals(other.proj, ignore_axis_order=True):
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # PROJ parameters lose names, which is intended here
        return bool(one.proj.to_dict()) and one.proj.to_dict() == other.proj.to_dict()


def _transforms(statements: list[tuple[str, Mapping[Any, Any]]]) -> Iterator[tuple[str, Affine]]:
    for kind, attrs in statements:
        if kind == "grid mapping" and "GeoTransform" in attrs:
            parts = attrs["GeoTransform"]
            yield "GeoTransform", Affine.from_gdal(*map(float, parts.split() if isinstance(parts, str) else parts))
        elif kind == "attribute":
            for key in ("spec", "transform", "spatial:transform"):
                stated = getattr(attrs.get(key), "transform", None) if key == "spec" else attrs.get(key)
                if isinstance(stated, tuple | list | np.ndarray | Affine) and len(stated) >= 6:
                    yield key, Affine(*(float(v) for v in tuple(stated)[:6]))


@dataclass(frozen=True)
class _Axis:
    """Outer edge of the first pixel and signed pixel size along a dimension, and whether the edge is proven."""

    name: str
    edge: float
    step: float
    shift: str
    """Argument of `assign_coords` that moves corners to centres."""
    contradiction: str = ""
    """The difference of statements on whether the coordinates are centres or corners."""
    stale: bool = False
    """True if one of them is a GeoTransform that may be older than the coordinates."""
    unproven: bool = False


def _axis(
    cube: xr.Dataset | xr.DataArray,
    name: str,
    lattices: list[tuple[str, float, float]],
    side: int,
    *,
    stackstac: bool,
    unsure: bool,
) -> _Axis:
    """Find the edge of the first pixel along the dimension `name`.

    `lattices` are the (source, origin, step) stated beside the coordinates. From a corner coordinate its pixel extends
    to higher (`side` 1, x) or lower values (-1, y). `stackstac`: corner coordinates are expected. `unsure`: doubt
    coordinates that no lattice proves to be centres or corners.
    """
    values, rounding = _values(cube, name)
    size = values.size
    if size == 1 and not lattices:
        raise MissingCRSError(
            f"the cube is one pixel long along {name} and does not state its pixel size. State it before the window is "
            "cut: ds = ds.rio.write_transform()"
        )
    step = (values[-1] - values[0]) / (size - 1) if size > 1 else lattices[0][2]
    # Coordinates kept in float32 are regular up to their own rounding.
    slack = max(TOLERANCE * abs(step), rounding)
    deviation = np.abs(values - (values[0] + np.arange(size) * step)).max()
    if not deviation <= slack <= 0.1 * abs(step):  # written so that NaN is refused too
        steps = np.diff(values) if size > 1 else np.array([step])
        raise MissingCRSError(
            f"{name} ({cube.coords[name].dtype}) is not regular: steps from {steps.min():g} to {steps.max():g}, where "
            "a grid has one pixel size. Resample it: cube.interp(...) or cube.odc.reproject(geobox)"
        )
    edges = {"centres": values[0] - step / 2, "corners": values[0] if step * side > 0 else values[0] - step}
    readings: dict[str, tuple[str, float, float]] = {}
    for source, origin, stated in lattices:
        exact = math.copysign(stated, step)
        if abs(exact - step) * (size - 1) > 2 * slack:
            continue  # another pixel size: the cube was resampled later
        for reading, edge in edges.items():
            pixels = round((edge - origin) / exact)
            if abs(origin + pixels * exact - edge) <= 2 * slack:
                readings.setdefault(reading, (source, origin + pixels * exact, exact))
    shift = f"{name}=cube.{name} {'+' if side > 0 else '-'} {abs(step) / 2:g}"
    stale = "corners" in readings and readings["corners"][0] == "GeoTransform" and not stackstac
    contradiction = ""
    if stale or len(readings) == 2:
        contradiction = (
            f"{name} begins at {values[0]:.12g}: a pixel corner by the {readings['corners'][0]} stated in the cube, "
            f"and a pixel centre by {readings.get('centres', ('CF',))[0]}"
        )
    unproven = unsure and not readings
    _, edge, step = next(iter(readings.values()), ("", edges["centres"], step))
    return _Axis(name, float(edge), float(step), shift, contradiction, stale, unproven)


def _check_centres(axes: list[_Axis], crs: CRS, transforms: list[str]) -> None:
    """Refuse coordinates that may be corners of pixels; the message has the call that moves all such axes."""
    doubtful = [axis for axis in axes if axis.contradiction or axis.unproven]
    if not doubtful:
        return
    shifts = ", ".join(axis.shift for axis in doubtful)
    contradictions = "; ".join(axis.contradiction for axis in doubtful if axis.contradiction)
    if any(axis.stale for axis in doubtful):
        raise MissingCRSError(
            f"{contradictions}. If these are centres, drop the former: "
            "cube.rio.write_transform(cube.rio.transform(recalc=True)); if they are corners, move the coordinates: "
            f"cube.assign_coords({shifts})"
        )
    # A GeoTransform that contradicts would decide again.
    drop = f"drop_vars({transforms!r})." if transforms else ""
    state = f'{drop}drop_attrs(deep=False).rio.write_crs("{_spelled(crs)}")'
    raise MissingCRSError(
        (
            contradictions
            or f"stackstac's {' and '.join(axis.name for axis in doubtful)} are corners or centres of pixels, and the "
            "transform that decides is lost or no longer fits"
        )
        + ". If these are corners, stackstac's default, move them and state the CRS without the old attributes: "
        f"cube.assign_coords({shifts}).{state}; if they are centres already: cube.{state}"
    )


def _spelled(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else "EPSG:..."


def _values(cube: xr.Dataset | xr.DataArray, name: str) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Return the coordinates along a dimension, and their possible rounding error."""
    # `in`, not `get`: xarray invents coordinates for a dimension without any.
    if name not in cube.coords or cube.coords[name].ndim != 1 or cube.coords[name].dtype.kind not in "fiu":
        raise MissingCRSError(
            f"{name} has no coordinates, so the place of a window is unknown. Assign those of the pixel "
            "centres: rioxarray.open_rasterio(..., parse_coordinates=True) or cube.assign_coords({...})"
        )
    raw = cube.coords[name].values
    if raw.size == 0:
        raise MissingCRSError(f"the cube is empty: no pixel along {name}. Check the window that was cut")
    rounding = float(np.spacing(np.abs(raw).max())) if raw.dtype.kind == "f" else 0.0
    return raw.astype("float64"), rounding


# --- grids ---


Cube = TypeVar("Cube", xr.Dataset, xr.DataArray)


def ground_resolution(geobox: GeoBox) -> tuple[float, float]:
    """Return the size of the centre pixel on the ground.

    Returns
    -------
    (dx, dy)
        Metres along the ellipsoid of the CRS: 10 units of EPSG:3857 at 50 degrees north are about 6.4 m.

    Raises
    ------
    MissingCRSError
        Where the coordinates are outside the CRS.
    """
    crs = geobox.crs.proj
    a = geobox.transform
    i, j = ((size - 1) // 2 for size in geobox.shape)
    # West, east, first and last side of the centre pixel.
    xs = [a.c + a.a * (j + k) for k in (0, 1, 0.5, 0.5)]
    ys = [a.f + a.e * (i + k) for k in (0.5, 0.5, 0, 1)]
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(xs, ys)
    if not np.isfinite([lon, lat]).all():
        raise MissingCRSError(
            f"the coordinates ({xs[0]:g}, {ys[0]:g}) are outside {crs_name(geobox.crs)}, so the stated CRS is not "
            'that of the cube. State the right one: ds.rio.write_crs("EPSG:...")'
        )
    geod = crs.get_geod()
    _, _, dx = geod.inv(lon[0], lat[0], lon[1], lat[1])
    _, _, dy = geod.inv(lon[2], lat[2], lon[3], lat[3])
    return float(dx), float(dy)


def check_resolution(
    geobox: GeoBox, gsd: float, *, model: str = "", nodata: float | None = None, finer: bool = False, hint: str = ""
) -> None:
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
        Value of the cube that means "no data". The call in the message passes it on, since values interpolated between
        it and data would count as data.
    finer : bool
        Whether smaller pixels pass, as those of aerial imagery do.
    hint : str
        Added to the message for smaller pixels.

    Raises
    ------
    ResolutionMismatchError
        Where the pixel on the ground (geometric mean of its sides) is less than half or more than twice the GSD.
    """
    dx, dy = ground_resolution(geobox)
    ratio = math.sqrt(dx * dy) / gsd
    if 0.5 <= ratio <= 2 or (finer and ratio < 0.5):
        return
    raise ResolutionMismatchError(
        f"{model or 'the model'} was trained on pixels of {gsd:g} m; the cube's are {dx:.3g} m x {dy:.3g} m on the "
        f"ground ({abs(geobox.resolution.x):g} x {abs(geobox.resolution.y):g} units of {crs_name(geobox.crs)}), "
        f"outside {gsd / 2:g} to {2 * gsd:g} m. "
        + remedy(f"Load it with load_cube(items, resolution={gsd:g}); or resample it: ", "Resample it: ")
        + f'cube.odc.reproject("{_metric_crs(geobox)}", resolution={gsd:g}, resampling="{_resampling(dx, dy, gsd)}"'
        f"{'' if nodata is None else f', src_nodata={nodata:g}'}), "
        'a scene classification by itself with resampling="nearest"' + (hint if ratio < 0.5 else "")
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
    """Return the grid of the patches cut from `geobox`.

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
    """Georeference `array`: pixel-centre coordinates and ``spatial_ref``, as rioxarray, odc-geo and GDAL read them.

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
    ArgumentError
        Where the sizes differ.
    """
    sizes = tuple(array.sizes[d] for d in dims)
    if sizes != tuple(geobox.shape):
        raise ArgumentError(f"geobox must have the shape of the array, {sizes} along {dims}; got {tuple(geobox.shape)}")
    a, crs = geobox.transform, geobox.crs
    centres = {
        dims[0]: a.f + (np.arange(sizes[0]) + 0.5) * a.e,
        dims[1]: a.c + (np.arange(sizes[1]) + 0.5) * a.a,
    }
    attrs = _axis_attrs(crs)
    with warnings.catch_warnings():
        # CF cannot describe some projections (Swiss LV95), which the WKT does.
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
    """Return the CRS to resample in: the cube's own if its units are metres on the ground, else its UTM zone."""
    if box.crs.proj.is_projected and box.crs.epsg not in (3857, 3395, 900913):
        return crs_name(box.crs)
    lon, lat = centre(box)
    return f"EPSG:{(32600 if lat >= 0 else 32700) + int((lon + 180) // 6) % 60 + 1}"


def _resampling(dx: float, dy: float, gsd: float) -> str:
    return "average" if dx * dy < gsd * gsd else "bilinear"
