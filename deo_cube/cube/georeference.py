"""What a cube says of its place: which dimensions are which, in which CRS, on which grid.

Everything is read from names, coordinates and attributes; no pixel is touched. Coordinates are pixel centres, as CF has
it, except where a transform beside them proves that they are corners, as stackstac writes them by default.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.crs import CRS, CRSError
from odc.geo.geobox import GeoBox

from deo_cube.errors import MissingBandsError, MissingCRSError

__all__ = ["TOLERANCE", "Dims", "crs_name", "dims", "geobox"]

SPATIAL_DIMS = (("y", "x"), ("latitude", "longitude"), ("lat", "lon"), ("northing", "easting"), ("Y", "X"))
TIME_DIMS = ("time", "t")
BAND_DIMS = ("band", "bands", "channel", "variable")

# Part of a pixel by which coordinates may stray from a regular grid, and which an anchor forgives.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Dims:
    """Names of a cube's dimensions; `time` and `band` are None where the cube has none."""

    time: str | None
    band: str | None
    y: str
    x: str


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
    names = tuple(str(d) for d in cube.dims)
    pairs = [p for p in SPATIAL_DIMS if any(set(p) <= set(v.dims) for v in _arrays(cube))]
    if not pairs:
        raise MissingCRSError(
            f"a cube has spatial dimensions named {', '.join('/'.join(p) for p in SPATIAL_DIMS)}; found {names}. "
            "Rename them: cube.rename({'rows': 'y', 'columns': 'x'})"
        )
    if len(pairs) > 1:
        raise MissingCRSError(
            f"the variables lie on several grids: {', '.join('/'.join(p) for p in pairs)}. "
            "Select those of one grid: cube[['B02', 'B03', ...]]"
        )
    y, x = pairs[0]
    others = list(dict.fromkeys(str(d) for v in _spatial(cube, y, x) for d in v.dims if d not in (y, x)))
    dated = (d for d in others if d in cube.coords and cube.coords[d].dtype.kind == "M")
    time = next((d for d in TIME_DIMS if d in others), None) or next(dated, None)
    band = next((d for d in BAND_DIMS if d in others), None)
    strange = [d for d in others if d not in (time, band)]
    if strange and isinstance(cube, xr.DataArray):
        raise MissingBandsError(
            f"a cube's dimensions are time, band, y and x; found {names}. Rename {strange[0]!r} if it is one of them, "
            f"cube.rename({{{strange[0]!r}: 'band'}}), or select from it, cube.isel({{{strange[0]!r}: 0}})"
        )
    return Dims(time, band, y, x)


def geobox(cube: xr.Dataset | xr.DataArray) -> GeoBox:
    """Read CRS, transform and shape of a cube, exact to the pixel corner.

    The CRS is taken from the grid mapping (the ``spatial_ref`` of rioxarray and odc-geo, or any other after CF), else
    from attributes (``crs``, ``crs_wkt``, ``proj:code``, ``proj:wkt2``, ``proj:projjson``, ``proj:epsg``), else from
    stackstac's ``epsg`` coordinate. The grid is taken from the coordinates. Where a transform on the same lattice
    stands beside them (``GeoTransform``, ``transform``, ``spatial:transform``), its numbers are used, so that all
    windows of a raster share one lattice to the last bit; it also tells whether stackstac's coordinates are centres or
    corners. North-up and south-up are both read.

    Returns
    -------
    GeoBox
        Shape (y, x); the transform maps pixel corners, row 0 being the cube's first row.

    Raises
    ------
    MissingCRSError
        Without CRS or coordinates; for an irregular, rotated or east-to-west grid; for a cube one pixel wide whose
        pixel size is stated nowhere; where statements contradict each other (two CRSs; coordinates half a pixel off a
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
    x0, dx = _axis(cube, d.x, [(s, t.c, t.a) for s, t in transforms], 1, stackstac=stackstac, unsure=unsure)
    y0, dy = _axis(cube, d.y, [(s, t.f, t.e) for s, t in transforms], -1, stackstac=stackstac, unsure=unsure)
    if dx < 0:
        raise MissingCRSError(
            f"{d.x} runs from east to west ({dx:g} a pixel), which mirrors the image. Turn it: cube.sortby({d.x!r})"
        )
    box = GeoBox((cube.sizes[d.y], cube.sizes[d.x]), Affine(dx, 0.0, x0, 0.0, dy, y0), crs)
    west, south, east, north = box.boundingbox.bbox
    if crs.geographic and (max(-south, north) > 90 + abs(dy) or max(-west, east) > 360 + dx):
        raise MissingCRSError(
            f"the cube says {crs_name(crs)}, whose coordinates are degrees, but {d.x} runs from {west:g} to {east:g} "
            f'and {d.y} from {south:g} to {north:g}. State the right CRS: ds.rio.write_crs("EPSG:...")'
        )
    return box


def crs_name(crs: CRS) -> str:
    """Short name of a CRS: its EPSG code, else its title."""
    return f"EPSG:{crs.epsg}" if crs.epsg else str(crs.proj.name)


def _arrays(cube: xr.Dataset | xr.DataArray) -> list[xr.DataArray]:
    return list(cube.data_vars.values()) if isinstance(cube, xr.Dataset) else [cube]


def _spatial(cube: xr.Dataset | xr.DataArray, y: str, x: str) -> list[xr.DataArray]:
    return [v for v in _arrays(cube) if {y, x} <= set(v.dims)]


def _statements(cube: xr.Dataset | xr.DataArray, d: Dims) -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Attributes in which a CRS or transform may be stated, best first, each with the name of its kind."""
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


_CRS_KEYS = {
    "grid mapping": ("spatial_ref", "crs_wkt"),
    "attribute": ("crs", "crs_wkt", "proj:code", "proj:wkt2", "proj:projjson", "proj:epsg"),
}


def _crs(cube: xr.Dataset | xr.DataArray, d: Dims, statements: list[tuple[str, Mapping[Any, Any]]]) -> CRS:
    for kind, keys in _CRS_KEYS.items():
        found: list[CRS] = []
        for attrs in (a for k, a in statements if k == kind):
            stated = next((attrs[k] for k in keys if attrs.get(k)), None)
            if stated is None and "grid_mapping_name" in attrs:
                stated = dict(attrs)
            if stated is not None and (crs := _parsed(stated)) not in found:
                found.append(crs)
        if len(found) > 1:
            raise MissingCRSError(
                f"the cube states several CRSs: {', '.join(map(crs_name, found))}. Keep one: ds.drop_vars(...) the "
                'others, or del their attributes, then ds.rio.write_crs("EPSG:...")'
            )
        if found:
            return found[0]
    for key in ("epsg", "proj:epsg", "proj:code"):
        if key in cube.coords and cube.coords[key].ndim == 0:
            return _parsed(cube.coords[key].item())
    raise MissingCRSError(
        f"the cube says nowhere in which CRS its {d.x} and {d.y} are (looked for a spatial_ref coordinate, a "
        "grid_mapping, and the attributes crs, crs_wkt, proj:code). State it: "
        'ds.rio.write_crs("EPSG:...") or ds.odc.assign_crs("EPSG:...")'
        + ("; for degrees of WGS 84 that is EPSG:4326" if d.y in ("latitude", "lat") else "")
    )


def _parsed(stated: Any) -> CRS:
    """CRS of a WKT, an authority code, a number, PROJJSON, CF parameters or a CRS object of any library."""
    try:
        if isinstance(stated, Mapping) and "grid_mapping_name" in stated:
            from pyproj import CRS as ProjCRS

            stated = ProjCRS.from_cf(dict(stated))
        named = isinstance(stated, str | Mapping | CRS) or hasattr(stated, "to_wkt")
        crs = CRS(stated if named else f"EPSG:{int(stated)}")
        # The EPSG code where it means the same: one CRS then equals itself however it was spelled.
        code = CRS(f"EPSG:{crs.epsg}") if crs.epsg else crs
        return code if code.proj.equals(crs.proj, ignore_axis_order=True) else crs
    except (CRSError, KeyError, ValueError, TypeError) as error:
        raise MissingCRSError(
            f'the CRS stated in the cube cannot be read: {stated!r} ({error}). State it: ds.rio.write_crs("EPSG:...")'
        ) from error


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


def _axis(
    cube: xr.Dataset | xr.DataArray,
    name: str,
    lattices: list[tuple[str, float, float]],
    side: int,
    *,
    stackstac: bool,
    unsure: bool,
) -> tuple[float, float]:
    """Outer edge of the first pixel and signed pixel size along the dimension `name`.

    `lattices` are the (source, origin, step) stated beside the coordinates. From a corner coordinate its pixel extends
    to higher (`side` 1, x) or lower values (-1, y). `stackstac`: corner coordinates are to be expected. `unsure`:
    refuse coordinates that no lattice proves to be centres or corners.
    """
    values, rounding = _values(cube, name)
    size = values.size
    if size == 1 and not lattices:
        raise MissingCRSError(
            f"the cube is one pixel long along {name} and states its pixel size nowhere. State it before the window is "
            "cut: ds = ds.rio.write_transform()"
        )
    step = (values[-1] - values[0]) / (size - 1) if size > 1 else lattices[0][2]
    # Coordinates kept in float32 are regular up to their own rounding.
    slack = max(TOLERANCE * abs(step), rounding)
    astray = np.abs(values - (values[0] + np.arange(size) * step)).max()
    if not astray <= slack <= 0.1 * abs(step):  # so written that NaN is refused too
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
            continue  # another pixel size: the cube was resampled since
        for reading, edge in edges.items():
            pixels = round((edge - origin) / exact)
            if abs(origin + pixels * exact - edge) <= 2 * slack:
                readings.setdefault(reading, (source, origin + pixels * exact, exact))
    shift = f"{name}=cube.{name} {'+' if side > 0 else '-'} {abs(step) / 2:g}"
    stale = "corners" in readings and readings["corners"][0] == "GeoTransform" and not stackstac
    if stale or len(readings) == 2:
        drop = "cube.rio.write_transform(cube.rio.transform(recalc=True))" if stale else "cube.drop_attrs(deep=False)"
        raise MissingCRSError(
            f"{name} begins at {values[0]:.12g}: a pixel corner after the {readings['corners'][0]} stated in the cube, "
            f"and a pixel centre after {readings.get('centres', ('CF',))[0]}. If it is a centre, drop the former: "
            f"{drop}; if it is a corner, move the coordinates: cube.assign_coords({shift})"
        )
    if unsure and not readings:
        raise MissingCRSError(
            f"stackstac's {name} are corners or centres of pixels, and the transform that tells is lost or no longer "
            f"fits. If they are corners, its default, move them: cube.assign_coords({shift}); then state the CRS "
            'without the old attributes: cube.drop_attrs(deep=False).rio.write_crs("EPSG:...")'
        )
    _, edge, step = next(iter(readings.values()), ("", edges["centres"], step))
    return float(edge), float(step)


def _values(cube: xr.Dataset | xr.DataArray, name: str) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Coordinates along a dimension, and how far their dtype may have rounded them."""
    # `in`, not `get`: for a dimension without coordinates xarray makes some up.
    if name not in cube.coords or cube.coords[name].ndim != 1 or cube.coords[name].dtype.kind not in "fiu":
        raise MissingCRSError(
            f"{name} has no coordinates, so a window cannot be told from the whole. Give it those of the pixel "
            "centres: rioxarray.open_rasterio(..., parse_coordinates=True) or cube.assign_coords({...})"
        )
    raw = cube.coords[name].values
    if raw.size == 0:
        raise MissingCRSError(f"the cube is empty: no pixel along {name}. Check the window that was cut")
    rounding = float(np.spacing(np.abs(raw).max())) if raw.dtype.kind == "f" else 0.0
    return raw.astype("float64"), rounding
