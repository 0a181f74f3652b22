"""Windows and footprints in degrees, also across the antimeridian and in longitudes of 0..360.

Longitudes come in three conventions: -180..180, 0..360, and west greater than east across 180 degrees (RFC 7946).
The windows of this module begin in [-180, 180) and their east is greater than their west, beyond 180 across 180
degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import shapely
import shapely.errors
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from pyproj import Transformer
from shapely.geometry import mapping, shape

from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingCRSError

__all__ = [
    "Window",
    "centre",
    "cut_at_180",
    "footprint",
    "geobox_footprint",
    "item_window",
    "lonlat_bbox",
    "lonlat_ranges",
    "place_geometry",
    "touches",
    "unwrapped",
]

Window = tuple[float, float, float, float]
"""West, south, east, north in degrees; west in [-180, 180), east greater than west, beyond 180 across 180 degrees."""


def lonlat_bbox(bbox: Any, *, name: str = "bbox") -> Window:
    """Read a bounding box in degrees, in any convention of longitudes.

    Parameters
    ----------
    bbox : sequence of four numbers, or of six as in STAC and GeoJSON (with heights, which are ignored)
    name : str
        Of the argument, for the message.

    Raises
    ------
    ArgumentError
        For anything that is not (west, south, east, north) in degrees.
    """
    try:
        values = [float(v) for v in bbox]
    except (TypeError, ValueError):
        values = []
    if len(values) == 6:
        values = [values[0], values[1], values[3], values[4]]
    expected = f"{name} must be (west, south, east, north) in degrees, got {bbox!r}"
    if len(values) != 4 or not all(map(math.isfinite, values)):
        raise ArgumentError(expected)
    west, south, east, north = values
    if max(abs(west), abs(east)) > 360 or max(abs(south), abs(north)) > 90:
        raise ArgumentError(f"{expected}; for a window in another CRS pass geobox=, or x=, y= and crs=")
    if not south < north:
        raise ArgumentError(expected)
    width = east - west
    if width < 0 and width + 360 <= 180:
        width += 360  # across the antimeridian
    if not 0 < width <= 360:
        raise ArgumentError(f"{expected}. West must be less than east, except where the window crosses 180 degrees")
    west = (west + 180) % 360 - 180 if width < 360 else -180.0
    return west, south, west + width, north


def lonlat_ranges(lon: Sequence[float], lat: Sequence[float]) -> Window:
    """Read `lon` and `lat` as odc-stac takes them (two numbers each, in any order) as a window.

    Longitudes more than 180 degrees apart, the first one greater, cross the antimeridian.
    """
    try:
        (west, east), (south, north) = (tuple(map(float, pair)) for pair in (lon, lat))
    except (TypeError, ValueError):
        raise ArgumentError(f"lon and lat must be two numbers each, in degrees; got lon={lon!r}, lat={lat!r}") from None
    if west > east and west - east < 180:
        west, east = east, west
    return lonlat_bbox((west, min(south, north), east, max(south, north)), name="lon, lat")


def touches(one: Window, other: Window) -> bool:
    """Return whether two windows overlap, whatever convention their longitudes are in."""
    west, south, east, north = one
    if not (south < other[3] and other[1] < north):
        return False
    return any(west < other[2] + turn and other[0] + turn < east for turn in (-360.0, 0.0, 360.0))


def item_window(bbox: Any, geometry: Any) -> Window | None:
    """Return the window of an item: its bbox where that can be read, else the bounds of its geometry, or None."""
    if bbox is not None:
        try:
            return lonlat_bbox(bbox)
        except ArgumentError:
            pass
    if geometry is None:
        return None
    try:
        west, south, east, north = unwrapped(geometry).bounds
        return lonlat_bbox((west, south, east, north))
    except (ArgumentError, KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError):
        return None


def geobox_footprint(box: GeoBox) -> tuple[dict[str, Any], list[float]]:
    """Return the footprint of a grid for STAC and GeoJSON, in two parts across the antimeridian, and its bounding box.

    Returns
    -------
    geometry : dict
        GeoJSON, within -180..180 degrees, to about a metre.
    bbox : list of float
        West, south, east, north; west greater than east across the antimeridian.
    """
    whole = unwrapped(box.extent.geom if box.crs.geographic else box.footprint("EPSG:4326").geom)
    west, south, east, north = whole.bounds
    return dict(mapping(cut_at_180(whole.simplify(1e-5)))), [west, south, east if east <= 180 else east - 360, north]


def centre(box: GeoBox) -> tuple[float, float]:
    """Return longitude in [-180, 180) and latitude of the centre of a grid."""
    a, crs = box.transform, box.crs.proj
    x, y = a * (box.shape[1] / 2, box.shape[0] / 2)
    lon, lat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)
    return (float(lon) + 180) % 360 - 180, float(lat)


def footprint(geometry: Any, bbox: Any) -> dict[str, Any] | None:
    """Return the footprint of an item as GeoJSON within -180..180; None where neither argument can be read."""
    for place in (geometry, bbox):
        if place is None:
            continue
        try:
            whole = unwrapped(place) if place is geometry else shapely.box(*lonlat_bbox(place))
            if not whole.is_empty:
                return dict(mapping(cut_at_180(whole)))
        except (ArgumentError, KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError):
            continue
    return None


def unwrapped(geometry: Any) -> Any:
    """Return a geometry in degrees with continuous longitudes, beyond 180 where it crosses the antimeridian.

    Parameters
    ----------
    geometry : GeoJSON geometry, or shapely geometry
        Cut at 180 degrees into several parts, or with an edge that jumps from 179 to -179 degrees.

    Returns
    -------
    shapely geometry
        Its west is in [-180, 180).
    """
    whole = shape(geometry) if isinstance(geometry, Mapping) else geometry
    west, _, east, _ = whole.bounds if not whole.is_empty else (0.0, 0.0, 0.0, 0.0)
    if east - west <= 180:
        return _turned(whole)

    def east_of_greenwich(points: Any) -> Any:
        points = np.array(points, dtype=np.float64)
        points[:, 0] %= 360
        return points

    # Longitudes of 0..360 have their seam at Greenwich, so that a shape at the antimeridian is continuous in them.
    turned = shapely.transform(whole, east_of_greenwich)
    parts = shapely.union_all([p if p.is_valid else p.buffer(0) for p in getattr(turned, "geoms", [turned])])
    west, _, east, _ = parts.bounds
    return _turned(parts) if east - west < 180 else whole


def cut_at_180(geometry: Any) -> Any:
    """Return a geometry in degrees within -180..180, in two parts where it crosses the antimeridian (RFC 7946)."""
    whole = unwrapped(geometry)
    west, _, east, _ = whole.bounds if not whole.is_empty else (0.0, 0.0, 0.0, 0.0)
    if east <= 180 or west < -180:
        return whole
    whole = whole if whole.is_valid else whole.buffer(0)
    near = shapely.intersection(whole, shapely.box(-180, -90, 180, 90))
    far = _moved(shapely.intersection(whole, shapely.box(180, -90, 540, 90)), -360)
    return shapely.union_all([near, far])


def _turned(geometry: Any) -> Any:
    """Move a geometry by whole turns, so that its west is in [-180, 180)."""
    if geometry.is_empty:
        return geometry
    west = geometry.bounds[0]
    return geometry if -180 <= west < 180 else _moved(geometry, (west + 180) % 360 - 180 - west)


def _moved(geometry: Any, by: float) -> Any:
    return shapely.transform(geometry, lambda points: points + np.array([by, 0.0])) if by else geometry


def place_geometry(place: Any, *, name: str = "intersects") -> Geometry:
    """Read the place of an argument as one geometry with a CRS.

    Parameters
    ----------
    place : GeoJSON dict, shapely geometry, GeoDataFrame, GeoSeries, odc Geometry, or any with `__geo_interface__`
        Geometries without a CRS of their own are in degrees of WGS 84.
    name : str
        Of the argument, for messages.

    Raises
    ------
    ArgumentError
        For a geometry that is empty or cannot be read.
    ArgumentTypeError
        For anything else.
    MissingCRSError
        For a GeoDataFrame or GeoSeries without a CRS.
    """
    crs: Any = "EPSG:4326"
    if isinstance(place, Geometry):
        crs, shapes = place.crs, [place.geom]
        if crs is None:
            raise MissingCRSError(f"{name} is a geometry without a CRS: {name}=geometry.assign_crs('EPSG:4326')")
    elif hasattr(place, "to_crs") and hasattr(place, "set_crs"):  # GeoDataFrame, GeoSeries
        if place.crs is None:
            raise MissingCRSError(f"{name} is a table without a CRS: set it, {name}=table.set_crs('EPSG:4326')")
        crs = place.crs.to_wkt()
        shapes = [g for g in getattr(place, "geometry", place) if g is not None and not g.is_empty]
    elif isinstance(place, shapely.Geometry):
        shapes = [place]
    else:
        geojson = place if isinstance(place, Mapping) else getattr(place, "__geo_interface__", None)
        if not isinstance(geojson, Mapping):
            raise ArgumentTypeError(
                f"{name} must be a GeoJSON dict, a shapely geometry, or a GeoDataFrame, got {type(place).__name__}"
            )
        try:
            shapes = list(_shapes_of(geojson))
        except (KeyError, TypeError, ValueError, AttributeError, shapely.errors.ShapelyError) as error:
            raise ArgumentError(f"{name} is not a GeoJSON geometry: {str(error)[:200]}") from error
    shapes = [s for s in shapes if not s.is_empty]
    if not shapes:
        raise ArgumentError(f"{name} holds no geometry: pass one that is not empty, or bbox=")
    union = shapely.union_all(shapes) if len(shapes) > 1 else shapes[0]
    geometry = Geometry(union, crs)
    if geometry.crs is not None and geometry.crs.geographic:
        geometry = Geometry(unwrapped(union), crs)
    return geometry


def _shapes_of(geojson: Mapping[str, Any]) -> Iterable[Any]:
    if geojson.get("type") == "FeatureCollection":
        for feature in geojson["features"]:
            yield from _shapes_of(feature)
    elif geojson.get("type") == "Feature":
        if geojson.get("geometry") is not None:
            yield shape(geojson["geometry"])
    else:
        yield shape(geojson)
