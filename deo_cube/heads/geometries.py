"""Geometries as people have them, reduced to points and areas, and brought into the CRS of a grid.

An area is the union of its polygons, each of them its shell without its holes. A ring that crosses itself encloses
what an odd number of its turns enclose (even-odd, as GDAL and QGIS draw it). Lines and points that are left of a ring
without area (a spike, a bridge, a sliver digitised there and back) belong to no area.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.errors import LabelsError

__all__ = ["Cleaned", "clean", "into_grid", "transform"]

Array = NDArray[Any]

EDGE = 1000.0
"""Metres (degrees: a hundred-thousandth) between the points of an edge drawn in another CRS: straight to 2 cm there."""
FAR = 135.0
"""Degrees of longitude beyond which both ends of an edge lie that is taken to cross the antimeridian."""


@dataclass(frozen=True)
class Cleaned:
    """Points and areas, and which of the geometries given they are.

    Parameters
    ----------
    shapes : (n,) object
        Valid shapely geometries: points, polygons, or collections of both; in two dimensions.
    kept : (n,) int
        Index of each among the geometries given.
    empty, flat : int
        How many were left out, because they were missing or empty (or had a coordinate that is not finite), and
        because their polygons have no area.
    """

    shapes: Array
    kept: Array
    empty: int
    flat: int

    def warn(self, total: int, what: str = "labels") -> None:
        """Say what was left out of `total`."""
        reasons = [(self.empty, "no geometry"), (self.flat, "no area")]
        parts = " and ".join(f"{n} of {total} {what} have {why}" for n, why in reasons if n)
        if parts:
            warnings.warn(f"{parts}: they are left out", stacklevel=2)


def clean(shapes: Array) -> Cleaned:
    """Reduce geometries to their points and areas; what has neither is left out and counted.

    Raises
    ------
    LabelsError
        For lines that are not part of something else, which cover no cell.
    """
    import shapely

    shapes = np.array(shapes, dtype=object).reshape(-1)
    bad = [type(g).__name__ for g in shapes if not (g is None or isinstance(g, shapely.Geometry))]
    if bad:
        raise LabelsError(f"geometries are shapely geometries, found {bad[0]}")
    missing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    shapes = shapely.force_2d(shapes)
    kinds = {g.geom_type for g, m in zip(shapes, missing, strict=True) if not m and "Line" in g.geom_type}
    if kinds:
        raise LabelsError(
            f"labels are points and polygons, found {sorted(kinds)}: widen lines, "
            "table.geometry = table.buffer(width), or leave them out, table[~table.geom_type.str.contains('Line')]"
        )
    simple = shapely.is_valid(shapes) & np.isin(shapely.get_type_id(shapes), [0, 3, 4, 6])  # points and polygons
    out, kept, empty, flat = [], [], int(missing.sum()), 0
    for i in np.flatnonzero(~missing):
        shape = shapes[i] if simple[i] else _points_and_areas(shapes[i], int(i))
        if shape is not None and not shape.is_empty and np.isfinite(shapely.get_coordinates(shape)).all():
            out.append(shape)
            kept.append(i)
        elif np.isfinite(shapely.get_coordinates(shapes[i])).all():
            flat += 1
        else:
            empty += 1
    found = np.empty(len(out), dtype=object)
    found[:] = out
    return Cleaned(found, np.array(kept, dtype=int), empty, flat)


def _points_and_areas(shape: Any, row: int) -> Any:
    """The points of a geometry and the union of its areas, or None."""
    import shapely

    points, polygons = [], []
    for part in _parts(shape):
        if part.geom_type == "Point":
            points.append(part)
        elif part.geom_type == "Polygon" and np.isfinite(shapely.get_coordinates(part)).all():
            polygons.append(part)
    try:
        area = areal(polygons)
    except shapely.errors.ShapelyError as error:
        raise LabelsError(f"the geometry of label {row} cannot be repaired ({error}): draw it anew") from error
    whole = ([] if area.is_empty else [area]) + points
    if not whole:
        return None
    if area.is_empty and len(points) > 1:
        return shapely.multipoints(points)
    return whole[0] if len(whole) == 1 else shapely.geometrycollections(whole)


def areal(polygons: list[Any]) -> Any:
    """Union of polygons that may be invalid, as one valid polygon or multipolygon (empty where there is no area)."""
    import shapely

    repaired = []
    for p in polygons:
        if not p.is_valid:
            shell = _enclosed(p.exterior)
            for ring in p.interiors:
                shell = shapely.difference(shell, _enclosed(ring))
            p = _only_polygons(shell)
        repaired.append(p)
    if len(repaired) == 1:
        return repaired[0]
    return _only_polygons(shapely.union_all(repaired))


def _enclosed(ring: Any) -> Any:
    import shapely

    return _only_polygons(shapely.make_valid(shapely.Polygon(ring)))


def _only_polygons(shape: Any) -> Any:
    """The polygons of a valid geometry, without the lines and points beside them."""
    import shapely

    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    return shapely.union_all([p for p in _parts(shape) if p.geom_type == "Polygon"])


def _parts(shape: Any) -> Iterator[Any]:
    import shapely

    for part in shapely.get_parts(shape):
        if hasattr(part, "geoms"):
            yield from _parts(part)
        else:
            yield part


def into_grid(shapes: Array, crs: Any, box: GeoBox) -> Array:
    """Clean geometries in `crs` (pyproj; None: that of the grid) as they lie in the CRS of the grid.

    Polygons are cut to the surroundings of the grid first, and their edges given points: an edge that is straight in
    one CRS is curved in another, and a corner far away may have no place there at all. Longitudes of a grid in degrees
    may run on beyond 180, or be counted from 0 to 360: geometries are moved by whole turns to where the grid is.
    """
    own = box.crs.proj
    crs = own if crs is None else crs
    if not len(shapes):
        return shapes
    if crs.is_geographic:
        shapes = _across(shapes)
    same = crs.equals(own, ignore_axis_order=True)
    shapes = shapes.copy() if same else transform(_near(shapes, box, crs), crs, own)
    if own.is_geographic:
        x0, _, x1, _ = box.boundingbox.bbox
        shapes[:] = [_turned(g, x0, x1) for g in shapes]
    # Projecting may turn a valid polygon into one whose edges cross, and cutting leaves lines at the border.
    return _valid(shapes)


def transform(shapes: Array, source: Any, target: Any) -> Array:
    """Geometries in another CRS (pyproj), corner by corner; infinite where they have no place there."""
    import shapely
    from pyproj import Transformer

    t = Transformer.from_crs(source, target, always_xy=True)
    moved: Array = shapely.transform(shapes, lambda c: np.stack(t.transform(c[:, 0], c[:, 1]), axis=1))
    return moved


def _valid(shapes: Array) -> Array:
    import shapely

    out = shapes.copy()
    finite = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    for i in np.flatnonzero(finite & ~shapely.is_valid(shapes)):
        out[i] = _points_and_areas(shapes[i], int(i)) or shapely.Polygon()
    return out


def _near(shapes: Array, box: GeoBox, crs: Any) -> Array:
    """Polygons cut to the surroundings of the grid, with points on their edges; points as they are."""
    import shapely

    outline = box.extent.to_crs(str(crs.to_wkt()), resolution=max(abs(box.resolution.x), abs(box.resolution.y)))
    x0, y0, x1, y1 = outline.boundingbox.bbox
    if not np.isfinite([x0, y0, x1, y1]).all():
        return shapes
    margin = max(x1 - x0, y1 - y0) / 10
    window = shapely.box(x0 - margin, y0 - margin, x1 + margin, y1 + margin)
    if crs.is_geographic:
        # The outline may be counted from another meridian than the polygons.
        west, _, east, _ = shapely.total_bounds(shapes)
        turns = [k for k in (-360, 0, 360) if x0 - margin + k <= east and x1 + margin + k >= west]
        window = shapely.union_all([_moved(window, k) for k in turns or [0]])
    polygons = np.array(["Point" not in g.geom_type for g in shapes], dtype=bool)
    out = shapes.copy()
    shapely.prepare(window)
    areas = shapely.intersection(shapes[polygons], window)
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(areas), (3, 6))):  # what touches the border leaves lines there
        areas[i] = _points_and_areas(areas[i], 0) or shapely.Polygon()
    out[polygons] = shapely.segmentize(areas, EDGE / 1e5 if crs.is_geographic else EDGE)
    return out


def _moved(shape: Any, degrees: float) -> Any:
    import shapely

    return shapely.transform(shape, lambda c: c + np.array([degrees, 0.0])) if degrees else shape


def _turned(shape: Any, x0: float, x1: float) -> Any:
    """A geometry in degrees, moved by whole turns to where x runs from x0 to x1."""
    import shapely

    west, _, east, _ = shape.bounds
    if not np.isfinite([west, east]).all():
        return shape
    turns = [360 * k for k in range(-3, 4) if west + 360 * k <= x1 and east + 360 * k >= x0]
    if turns == [0] or not turns:
        return shape
    return _points_and_areas(shapely.geometrycollections([_moved(shape, k) for k in turns]), 0)


def _across(shapes: Array) -> Array:
    """Polygons in degrees that run from one side of the antimeridian to the other, without the turn round the globe.

    Drawn from 179 to -179 such a polygon would cover all that it was to leave out.
    """
    import shapely

    west, _, east, _ = shapely.bounds(shapes).T
    wide = np.flatnonzero((east - west > 180) & (east - west < 360) & (west >= -180) & (east <= 180))
    out, crossing = shapes, 0
    for i in wide:
        polygons = [p for p in _parts(shapes[i]) if p.geom_type == "Polygon"]
        rings = [np.asarray(p.exterior.coords)[:, 0] for p in polygons]
        if not any(np.abs(x).min() > FAR and np.abs(np.diff(x)).max() > 180 for x in rings):
            continue
        out = shapes.copy() if out is shapes else out
        parts = [
            shapely.transform(p, lambda c: np.stack([np.where(c[:, 0] < 0, c[:, 0] + 360, c[:, 0]), c[:, 1]], axis=1))
            if np.abs(x).min() > FAR and np.abs(np.diff(x)).max() > 180
            else p
            for p, x in zip(polygons, rings, strict=True)
        ]
        points = [p for p in _parts(shapes[i]) if p.geom_type == "Point"]
        out[i] = _points_and_areas(shapely.geometrycollections([*parts, *points]), int(i))
        crossing += 1
    if crossing:
        warnings.warn(
            f"{crossing} polygons with edges from one side of the antimeridian to the other are taken to cross it, not "
            "to reach round the globe",
            stacklevel=2,
        )
    return out
