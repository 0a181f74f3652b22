"""Points and areas as users have them, with the index of their table: what `sample` reads."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS

from deo_cube.cube.georeference import crs_name
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    InputNotFoundError,
    LabelsError,
    MissingCRSError,
    naming,
)
from deo_cube.heads.geometries import Coverage, clean, cover, into_grid, transform
from deo_cube.heads.tables import geojson_crs, parsed_crs, read_frame, read_table
from deo_cube.paths import not_found

__all__ = ["Places", "coverage_of", "read_places"]

Array = NDArray[Any]

ROW = "deo_cube row"


@dataclass(frozen=True)
class Places:
    """Geometries, one per row of a table.

    Parameters
    ----------
    shapes : (n,) object
        Shapely geometries; None where a row has none.
    index : pandas.Index
        That of the table, by which a result is joined to it; 0, 1, 2, ... for lists and arrays.
    crs : pyproj.CRS or None
        Of the geometries; None: that of the grid.
    columns : DataFrame
        The other columns of the table; empty where there are none.
    """

    shapes: Array
    index: pd.Index
    crs: CRS | None
    columns: pd.DataFrame = field(default_factory=pd.DataFrame)


def read_places(places: Any, *, layer: Any = None, crs: Any = None) -> Places:
    """Read geometries, their index and their CRS from any of the forms that `sample` takes.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For what holds no places.
    LabelsError, MissingCRSError, InputNotFoundError, MissingExtraError
        As in `read_table`.
    """
    own = parsed_crs(crs)
    if isinstance(places, str | os.PathLike):
        try:
            with naming("places", "labels"):
                frame = read_frame(places, layer)
        except InputNotFoundError as error:
            raise not_found("places", os.fsdecode(places), "a file: .gpkg, .geojson, .parquet, .csv, .shp") from error
        return _of_frame(frame, own)
    if layer is not None:
        raise ArgumentError(f"layer={layer!r} is for files with layers, but places are a {type(places).__name__}")
    if isinstance(places, shapely.Geometry):
        return _of_shapes([places], own)
    if isinstance(places, pd.Series) or (hasattr(places, "set_crs") and not isinstance(places, pd.DataFrame)):
        return _of_series(places, own)
    if isinstance(places, pd.DataFrame):
        return _of_frame(places, own)
    if isinstance(places, Mapping) or hasattr(places, "__geo_interface__"):
        return _of_geojson(places if isinstance(places, Mapping) else places.__geo_interface__, own)
    if hasattr(places, "to_pandas") and not hasattr(places, "dims"):
        return _of_frame(places.to_pandas(), own)
    return _of_list(places, own)


def _of_frame(frame: pd.DataFrame, crs: CRS | None) -> Places:
    numbered = frame.assign(**{ROW: np.arange(len(frame))}) if frame.columns.nlevels == 1 else frame
    try:
        table = read_table(numbered, "table", column=ROW, layer=None, crs=crs)
    except LabelsError as error:
        raise LabelsError(f"places: {error}") from error
    geometries = [c for c in frame.columns if str(frame[c].dtype) == "geometry"] if frame.columns.is_unique else []
    columns = pd.DataFrame(frame.drop(columns=geometries))
    return Places(table.shapes, frame.index, table.crs, columns)


def _of_series(places: Any, crs: CRS | None) -> Places:
    stated = getattr(places, "crs", None)
    if crs is None and stated is None and hasattr(places, "crs"):
        raise MissingCRSError('places state no CRS: pass crs="EPSG:...", or state it with places.set_crs("EPSG:...")')
    index = getattr(places, "index", None)
    shapes = _objects(list(places))
    return Places(shapes, index if index is not None else pd.RangeIndex(len(shapes)), crs or parsed_crs(stated))


def _of_geojson(places: Mapping[str, Any], crs: CRS | None) -> Places:
    if places.get("type") is None:  # a dict of columns
        return _of_frame(pd.DataFrame(dict(places)), crs)
    features = places.get("features") if places["type"] == "FeatureCollection" else [places]
    try:
        shapes = []
        for feature in features or []:
            geometry = feature["geometry"] if feature.get("type") == "Feature" else feature
            shapes.append(None if geometry is None else shapely.geometry.shape(geometry))
    except Exception as error:  # of shapely, depending on the damage
        raise LabelsError(f"places cannot be read as GeoJSON ({error})") from error
    properties = [(f.get("properties") or {}) if f.get("type") == "Feature" else {} for f in features or []]
    columns = pd.DataFrame(properties, index=pd.RangeIndex(len(shapes)))
    # GeoJSON without a CRS is in degrees of WGS 84 (RFC 7946, section 4).
    stated = geojson_crs(places) or parsed_crs(4326)
    return Places(_objects(shapes), pd.RangeIndex(len(shapes)), crs or stated, columns)


def _of_shapes(shapes: Sequence[Any], crs: CRS | None) -> Places:
    return Places(_objects(shapes), pd.RangeIndex(len(shapes)), crs)


def _of_list(places: Any, crs: CRS | None) -> Places:
    """Return the places of a point (x, y), or of a list or array of points or geometries."""
    if isinstance(places, Sequence | np.ndarray) and not isinstance(places, bytes):
        if len(places) and all(p is None or isinstance(p, shapely.Geometry) for p in places):
            return _of_shapes(list(places), crs)
        if len(places) and all(isinstance(p, Mapping) for p in places):
            return _of_geojson({"type": "FeatureCollection", "features": list(places)}, crs)
        try:
            xy = np.asarray(places, dtype="float64")
        except (TypeError, ValueError):
            xy = np.empty(0)
        xy = xy[None] if xy.shape == (2,) else xy
        if xy.ndim == 2 and xy.shape[1] == 2 and len(xy):
            shapes = _objects(list(shapely.points(xy)))
            shapes[~np.isfinite(xy).all(axis=1)] = None
            return Places(shapes, pd.RangeIndex(len(xy)), crs)
    size = (f" of {len(places)}" if len(places) else " (empty)") if hasattr(places, "__len__") else ""
    raise ArgumentTypeError(
        "places must be a point (x, y), a list of points or shapely geometries, a GeoDataFrame, GeoSeries, DataFrame, "
        f"GeoJSON, or the path of a file that holds one; got {type(places).__name__}{size}"
    )


def _objects(values: Sequence[Any]) -> Array:
    out = np.empty(len(values), dtype=object)
    out[:] = values
    return out


def coverage_of(places: Places, box: GeoBox, *, linear: bool = False) -> Coverage:
    """Return the cells of a grid that places cover.

    Raises
    ------
    ArgumentError
        For lines, which cover no cell.

    Warns
    -----
    UserWarning
        With the index of places that have no geometry or no area, or are outside the grid.
    """
    kinds = {g.geom_type for g in places.shapes if g is not None and "Line" in getattr(g, "geom_type", "")}
    if kinds:
        raise ArgumentError(
            f"places must be points or polygons, found {sorted(kinds)}: widen lines, places.buffer(width), or take "
            "points along them, places.segmentize(step).get_coordinates()"
        )
    cleaned = clean(places.shapes)
    n = len(places.shapes)
    into = into_grid(cleaned.shapes, places.crs, box)
    local = _objects([None] * n)
    local[cleaned.rows] = into
    covered = cover(local, box, linear=linear)
    size = covered.size.copy()
    _add_what_was_cut(size, cleaned.shapes, cleaned.rows, places.crs, box)
    used = np.bincount(covered.place, minlength=n) > 0
    present = np.zeros(n, bool)
    present[cleaned.rows] = True
    _warn(places, ~present, "have no geometry, or one without area")
    outside = present & ~used
    if outside.all():
        x0, y0, x1, y1 = box.boundingbox.bbox
        warnings.warn(
            f"all {n} places are outside the grid, which is ({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) in "
            f"{crs_name(box.crs)}: pass crs= where places are in another CRS than they state",
            UserWarning,
            stacklevel=4,
        )
    else:
        _warn(places, outside, "are outside the grid")
    return Coverage(covered.place, covered.row, covered.column, covered.share, size)


def _add_what_was_cut(size: Array, shapes: Array, rows: Array, crs: CRS | None, box: GeoBox) -> None:
    """Raise the size of places of another CRS, which `into_grid` cut to the surroundings of the grid, to their own."""
    own = box.crs.proj
    if crs is None or crs.equals(own, ignore_axis_order=True) or not len(shapes):
        return
    area = shapely.area(transform(shapes, crs, own)) / abs(box.transform.a * box.transform.e)
    far = np.isfinite(area) & (size[rows] > 0) & (area > 1.001 * size[rows])
    size[rows[far]] = area[far]


def _warn(places: Places, chosen: Array, what: str) -> None:
    if chosen.any():
        names = [str(v) for v in places.index[chosen][:5]]
        listed = ", ".join(names) + (", ..." if chosen.sum() > 5 else "")
        warnings.warn(
            f"{int(chosen.sum())} of {len(chosen)} places {what}, and missing in the result: index {listed}",
            UserWarning,
            stacklevel=5,
        )
