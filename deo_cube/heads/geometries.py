"""Geometries as users have them, reduced to points and areas, and the cells of a grid that they label.

An area is the union of its polygons, each of them its shell without its holes. A ring that crosses itself encloses
what an odd number of its turns enclose (even-odd, as GDAL and QGIS draw it). Lines and points that remain of a ring
without area (a spike, a bridge, a sliver digitised there and back) belong to no area.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS, Transformer
from rasterio.features import rasterize

from deo_cube.errors import LabelsError

__all__ = [
    "Cleaned",
    "Coverage",
    "Rule",
    "apply",
    "cells_of",
    "clean",
    "cover",
    "covered_cells",
    "into_grid",
    "north_up",
    "transform",
]


Array = NDArray[Any]
Rule = Literal["majority", "centre", "touch"]

EDGE_STEP = 1000.0
"""Metres between the points of an edge that is drawn in another CRS (1e-5 of it in degrees): straight to 2 cm."""
ANTIMERIDIAN_ZONE = 135.0
"""Degrees of longitude beyond which both ends of an edge must be for it to be taken to cross the antimeridian."""
SLIVER = 1e-9
"""Share of a cell that is float noise: a polygon that covers half of a cell may be measured this much below."""


@dataclass(frozen=True)
class Cleaned:
    """Points and areas, and the rows of the geometries that they come from.

    Parameters
    ----------
    shapes : (n,) object
        Valid shapely geometries: points, polygons, or collections of both; in two dimensions.
    rows : (n,) int
        Position of each among the geometries before.
    empty, flat : int
        How many were left out because they were missing or empty (or had a coordinate that is not finite), and
        because their polygons have no area.
    """

    shapes: Array
    rows: Array
    empty: int
    flat: int

    def warn(self, total: int, what: str = "labels") -> None:
        """Warn of geometries that were left out of `total`."""
        reasons = [(self.empty, "no geometry"), (self.flat, "no area")]
        parts = " and ".join(f"{n} of {total} {what} have {why}" for n, why in reasons if n)
        if parts:
            warnings.warn(f"{parts}: they are left out", stacklevel=2)


def clean(shapes: Array) -> Cleaned:
    """Return the points and areas of geometries; those that have neither are left out and counted.

    Raises
    ------
    LabelsError
        For lines that are not part of something else, which cover no cell.
    """
    shapes = np.array(shapes, dtype=object).reshape(-1)
    others = [type(g).__name__ for g in shapes if not (g is None or isinstance(g, shapely.Geometry))]
    if others:
        raise LabelsError(f"geometries must be shapely geometries, found {others[0]}")
    missing = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    shapes = shapely.force_2d(shapes)
    lines = {g.geom_type for g, m in zip(shapes, missing, strict=True) if not m and "Line" in g.geom_type}
    if lines:
        raise LabelsError(
            f"labels must be points or polygons, found {sorted(lines)}: widen lines, "
            "table.geometry = table.buffer(width), or leave them out, table[~table.geom_type.str.contains('Line')]"
        )
    simple = shapely.is_valid(shapes) & np.isin(shapely.get_type_id(shapes), [0, 3, 4, 6])  # points and polygons
    valid, rows, empty, flat = [], [], int(missing.sum()), 0
    for i in np.flatnonzero(~missing):
        shape = shapes[i] if simple[i] else _points_and_areas(shapes[i], int(i))
        if shape is not None and not shape.is_empty and np.isfinite(shapely.get_coordinates(shape)).all():
            valid.append(shape)
            rows.append(i)
        elif np.isfinite(shapely.get_coordinates(shapes[i])).all():
            flat += 1
        else:
            empty += 1
    out = np.empty(len(valid), dtype=object)
    out[:] = valid
    return Cleaned(out, np.array(rows, dtype=int), empty, flat)


def _points_and_areas(shape: shapely.Geometry, row: int) -> shapely.Geometry | None:
    """Return the points of a geometry and the union of its areas; None where it has neither."""
    points, polygons = [], []
    for part in _parts(shape):
        if part.geom_type == "Point":
            points.append(part)
        elif part.geom_type == "Polygon" and np.isfinite(shapely.get_coordinates(part)).all():
            polygons.append(part)
    try:
        area = areal(polygons)
    except shapely.errors.ShapelyError as error:
        raise LabelsError(f"the geometry of label {row} cannot be repaired ({error}): draw it again") from error
    parts = ([] if area.is_empty else [area]) + points
    if not parts:
        return None
    if area.is_empty and len(points) > 1:
        return shapely.multipoints(points)
    return parts[0] if len(parts) == 1 else shapely.geometrycollections(parts)


def areal(polygons: list[shapely.Polygon]) -> shapely.Geometry:
    """Return the union of polygons that may be invalid: one valid (multi)polygon, empty where there is no area."""
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


def _enclosed(ring: shapely.LinearRing) -> shapely.Geometry:
    points = _without_spikes([tuple(p) for p in shapely.get_coordinates(ring).tolist()])
    if len(points) < 3:
        return shapely.Polygon()
    return _only_polygons(shapely.make_valid(shapely.Polygon(points)))


def _without_spikes(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """Return the points of a ring without edges that are drawn there and back.

    `make_valid` fills the area between such an edge and another part of the ring that it touches.
    """
    path: list[tuple[float, ...]] = []
    for point in points:
        if path and path[-1] == point:
            continue
        if len(path) > 1 and path[-2] == point:
            path.pop()
        else:
            path.append(point)
    if len(path) > 1 and path[0] == path[-1]:
        path.pop()
    # A spike at the first point of the ring.
    while len(path) > 2 and path[1] == path[-1]:
        path = path[1:-1]
    return path


def _only_polygons(shape: shapely.Geometry) -> shapely.Geometry:
    """Return the polygons of a valid geometry, without the lines and points beside them."""
    if shape.geom_type in ("Polygon", "MultiPolygon"):
        return shape
    return shapely.union_all([p for p in _parts(shape) if p.geom_type == "Polygon"])


def _parts(shape: shapely.Geometry) -> Iterator[shapely.Geometry]:
    for part in shapely.get_parts(shape):
        if hasattr(part, "geoms"):
            yield from _parts(part)
        else:
            yield part


# ---- the CRS of the grid --------------------------------------------------------------------------------------------


def into_grid(shapes: Array, crs: CRS | None, box: GeoBox) -> Array:
    """Return clean geometries in the CRS of a grid.

    Polygons are cut to the surroundings of the grid first, and their edges get more points: an edge that is straight in
    one CRS is curved in another, and a corner far away may have no place there at all. Longitudes of a grid in degrees
    may continue beyond 180, or be counted from 0 to 360: geometries are moved by whole turns to where the grid is.

    Parameters
    ----------
    crs : pyproj.CRS or None
        Of the geometries; None: that of the grid.
    """
    own = box.crs.proj
    crs = own if crs is None else crs
    if not len(shapes):
        return shapes
    if crs.is_geographic:
        shapes = _across_antimeridian(shapes)
    same = crs.equals(own, ignore_axis_order=True)
    shapes = shapes.copy() if same else transform(_near(shapes, box, crs), crs, own)
    if own.is_geographic:
        x0, _, x1, _ = box.boundingbox.bbox
        shapes[:] = [_moved_to(g, x0, x1) for g in shapes]
    # Projecting may turn a valid polygon into one whose edges cross, and cutting leaves lines at the border.
    return _valid(shapes)


def transform(shapes: Array, source: CRS, target: CRS) -> Array:
    """Return geometries in another CRS (pyproj), corner by corner; infinite where they have no place there."""
    t = Transformer.from_crs(source, target, always_xy=True)
    moved: Array = shapely.transform(shapes, lambda c: np.stack(t.transform(c[:, 0], c[:, 1]), axis=1))
    return moved


def _valid(shapes: Array) -> Array:
    out = shapes.copy()
    finite = np.isfinite(shapely.bounds(shapes)).all(axis=1)
    for i in np.flatnonzero(finite & ~shapely.is_valid(shapes)):
        out[i] = _points_and_areas(shapes[i], int(i)) or shapely.Polygon()
    return out


def _near(shapes: Array, box: GeoBox, crs: CRS) -> Array:
    """Return polygons cut to the surroundings of the grid, with more points on their edges; points as they are."""
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
        window = shapely.union_all([_shifted(window, k) for k in turns or [0]])
    polygons = np.array(["Point" not in g.geom_type for g in shapes], dtype=bool)
    out = shapes.copy()
    shapely.prepare(window)
    areas = shapely.intersection(shapes[polygons], window)
    # The intersection with a polygon that touches the border of the window holds lines.
    for i in np.flatnonzero(~np.isin(shapely.get_type_id(areas), (3, 6))):
        areas[i] = _points_and_areas(areas[i], 0) or shapely.Polygon()
    out[polygons] = shapely.segmentize(areas, EDGE_STEP / 1e5 if crs.is_geographic else EDGE_STEP)
    return out


def _shifted(shape: shapely.Geometry, degrees: float) -> shapely.Geometry:
    return shapely.transform(shape, lambda c: c + np.array([degrees, 0.0])) if degrees else shape


def _moved_to(shape: shapely.Geometry, x0: float, x1: float) -> shapely.Geometry | None:
    """Return a geometry in degrees, moved by whole turns to where x is from x0 to x1."""
    west, _, east, _ = shape.bounds
    if not np.isfinite([west, east]).all():
        return shape
    turns = [360 * k for k in range(-3, 4) if west + 360 * k <= x1 and east + 360 * k >= x0]
    if turns == [0] or not turns:
        return shape
    return _points_and_areas(shapely.geometrycollections([_shifted(shape, k) for k in turns]), 0)


def _across_antimeridian(shapes: Array) -> Array:
    """Return polygons in degrees in which those that cross the antimeridian continue beyond 180.

    Drawn from 179 to -179, such a polygon would cover everything that it should leave out.
    """
    west, _, east, _ = shapely.bounds(shapes).T
    wide = np.flatnonzero((east - west > 180) & (east - west < 360) & (west >= -180) & (east <= 180))
    out, crossing = shapes, 0
    for i in wide:
        polygons = [p for p in _parts(shapes[i]) if p.geom_type == "Polygon"]
        crosses = [_crosses_antimeridian(np.asarray(p.exterior.coords)[:, 0]) for p in polygons]
        if not any(crosses):
            continue
        out = shapes.copy() if out is shapes else out
        parts = [
            shapely.transform(p, lambda c: np.stack([np.where(c[:, 0] < 0, c[:, 0] + 360, c[:, 0]), c[:, 1]], axis=1))
            if across
            else p
            for p, across in zip(polygons, crosses, strict=True)
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


def _crosses_antimeridian(longitudes: Array) -> bool:
    return bool(np.abs(longitudes).min() > ANTIMERIDIAN_ZONE and np.abs(np.diff(longitudes)).max() > 180)


# ---- cells ----------------------------------------------------------------------------------------------------------


def apply(t: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """Apply a transform to numbers or arrays; whether affine's ``*`` or ``@`` does so depends on its release."""
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def north_up(box: GeoBox) -> GeoBox:
    """Return the grid of the same extent whose first row is in the north."""
    t = box.transform
    if t.e < 0:
        return box
    return GeoBox(box.shape, Affine(t.a, 0, t.c, 0, -t.e, t.f + box.shape[0] * t.e), box.crs)


def cells_of(shapes: Array, box: GeoBox, rule: Rule) -> tuple[Array, Array, Array]:
    """Return the cells of a north-up grid that geometries label, in the order of the geometries.

    A polygon labels at least the cell that it covers most.

    Parameters
    ----------
    shapes : (n,) object
        Valid points and polygons in the CRS of the grid, or collections of them.
    box : GeoBox
    rule : {"majority", "centre", "touch"}

    Returns
    -------
    place, row, column : (m,) int
        Position of the geometry, and its cell; each once.
    """
    covered = covered_cells(shapes, box)
    place, row, column, share = covered.place, covered.row, covered.column, covered.share
    pointlike = np.isin(shapely.get_type_id(shapes), _POINTS)[place]
    if rule == "touch":
        labelled = np.ones(len(place), bool)
    elif rule == "majority":
        labelled = pointlike | (share >= 0.5 - SLIVER)
    else:
        labelled = pointlike.copy()
        ends = np.searchsorted(place, np.arange(len(shapes) + 1))
        for i in np.unique(place[~pointlike]):
            own = slice(ends[i], ends[i + 1])
            labelled[own] = _contains_centres(shapes[i], box, row[own], column[own])
    empty = np.bincount(place[labelled], minlength=len(shapes))[place] == 0
    # The first cell of the largest share in the order of rows, so that float noise does not choose among equals.
    order = np.lexsort((column[empty], row[empty], -np.round(share[empty], 9), place[empty]))
    most = np.flatnonzero(empty)[order]
    labelled[most[np.unique(place[most], return_index=True)[1]]] = True
    kept = np.flatnonzero(labelled)
    place, row, column = place[kept], row[kept], column[kept]
    collections = np.flatnonzero(shapely.get_type_id(shapes) == _COLLECTION)
    if len(collections):
        parts, owner = shapely.get_parts(shapes[collections], return_index=True)
        points = np.isin(shapely.get_type_id(parts), _POINTS)
        of_points = cells_of(parts[points], box, rule)
        place = np.concatenate([place, collections[owner[points]][of_points[0]]])
        row, column = np.concatenate([row, of_points[1]]), np.concatenate([column, of_points[2]])
    rows, columns = box.shape
    flat = np.unique((place * rows + row) * columns + column)
    return flat // (rows * columns), flat // columns % rows, flat % columns


#: Types of shapely.
_POINTS, _COLLECTION = (0, 4), 7


def covered_cells(shapes: Array, box: GeoBox) -> Coverage:
    """Return the cells of a grid that valid geometries cover, with the share covered; all of a cell for a point.

    Points of a collection cover nothing.
    """
    finite = np.isfinite(shapely.bounds(shapes).reshape(-1, 4)).all(axis=1)
    within = shapes.copy()
    within[~finite] = None
    with np.errstate(over="ignore", invalid="ignore"):  # of edges that leave the grid by many orders of magnitude
        return cover(within, box)


def _contains_centres(shape: shapely.Geometry, box: GeoBox, rows: Array, columns: Array) -> Array:
    """Return whether a polygon contains the centres of cells; on its edge, as GDAL decides."""
    t, top, left = box.transform, int(rows.min()), int(columns.min())
    size = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    window = Affine(t.a, 0, t.c + left * t.a, 0, t.e, t.f + top * t.e)
    # GDAL takes extremely long over edges that leave the grid by many orders of magnitude.
    x, y, margin = t.c + box.shape[1] * t.a, t.f + box.shape[0] * t.e, 2 * max(abs(t.a), abs(t.e))
    shape = shapely.clip_by_rect(shape, t.c - margin, y - margin, x + margin, t.f + margin)
    polygons = [p for p in _parts(shape) if p.geom_type == "Polygon"]
    burned = (
        rasterize([(p, 1) for p in polygons], size, transform=window, dtype="uint8") if polygons else np.zeros(size)
    )
    return np.asarray(burned[rows - top, columns - left], dtype=bool)


# --- Cells of a grid that points and areas cover, and how much of each cell: exact, for many places at once ---
#
# Places are moved into the coordinates of the grid, in which each cell is a square of side 1. The area of a polygon
# within a cell is the sum over the pieces of its outline in that cell and in the cells west of it in the same row, by
# Green's theorem, as fonts are drawn: the outlines of all places are cut at the edges of the cells and added up at
# once.

EDGE = 1e-6
"""Cells by which a point may be off an edge and still be on it: float noise moves nothing over an edge."""
LEAST_SHARE = 1e-7
"""Share of a cell (of the polygon, for smaller ones) below which the area within a cell is float noise."""


@dataclass(frozen=True)
class Coverage:
    """Cells of places on a grid, in the order of the places.

    Parameters
    ----------
    place, row, column : (n,) int
        Position of the place, and its cell.
    share : (n,) float64
        Share of the cell that the place covers; for points their number, or the weight of the cell in an interpolation.
    size : (places,) float64
        What the shares of a place add up to where all of it is within the grid.
    """

    place: Array
    row: Array
    column: Array
    share: Array
    size: Array


Cells = tuple[Array, Array, Array, Array]
NO_CELLS: Cells = (np.empty(0, int), np.empty(0, int), np.empty(0, int), np.empty(0))


def cover(shapes: Array, box: GeoBox, *, linear: bool = False) -> Coverage:
    """Return the cells that places cover.

    Parameters
    ----------
    shapes : (n,) object
        Valid points and polygons in the CRS of the grid, or collections of them, of which the polygons count; None and
        empty geometries cover nothing.
    box : GeoBox
        The grid, north-up or south-up.
    linear : bool
        Whether points have the weights of a bilinear interpolation between the four nearest cell centres; else a point
        is in one cell. A cell includes its west and north edges, not its east and south ones.
    """
    t = box.transform
    scale, corner = np.array([t.a, t.e]), np.array([t.c, t.f])
    local = shapely.transform(shapes, lambda xy: (xy - corner) / scale)
    size = np.nan_to_num(shapely.area(local))
    polygonal = np.flatnonzero(size > 0)
    pointlike = np.flatnonzero(np.isin(shapely.get_type_id(local), (0, 4)) & ~shapely.is_empty(local))
    xy, which = shapely.get_coordinates(local[pointlike], return_index=True)
    np.add.at(size, pointlike[which], 1.0)
    points = _points(pointlike[which], xy, box.shape, south_up=t.e > 0, linear=linear)
    areas = _areas(polygonal, _inside(local[polygonal], box.shape))
    place, row, column, share = (np.concatenate(pair) for pair in zip(points, areas, strict=True))
    order = np.argsort(place, kind="stable")
    return Coverage(place[order], row[order], column[order], share[order], size)


def _points(places: Array, xy: Array, shape: tuple[int, int], *, south_up: bool, linear: bool) -> Cells:
    finite = np.isfinite(xy).all(axis=1)
    places, xy = places[finite], xy[finite]
    nearest = np.round(xy)
    snapped = np.where(np.abs(xy - nearest) < EDGE, nearest, xy)
    column = np.floor(snapped[:, 0]).astype(int)
    row = (np.ceil(snapped[:, 1]) - 1 if south_up else np.floor(snapped[:, 1])).astype(int)
    rows, columns = shape
    inside = (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
    if not linear:
        return places[inside], row[inside], column[inside], np.ones(int(inside.sum()))
    places, centred = places[inside], xy[inside] - 0.5
    low = np.floor(centred)
    fraction = centred - low
    cells = []
    for i in (0, 1):
        for j in (0, 1):
            weight = np.abs(1 - i - fraction[:, 1]) * np.abs(1 - j - fraction[:, 0])
            # Beyond the outermost centres the values are those of the outermost cells.
            at_row, at_column = np.clip(low[:, 1] + i, 0, rows - 1), np.clip(low[:, 0] + j, 0, columns - 1)
            used = weight > EDGE
            cells.append((places[used], at_row[used].astype(int), at_column[used].astype(int), weight[used]))
    place, row, column, weight = (np.concatenate([cell[k] for cell in cells]) for k in range(4))
    return place, row, column, weight


def _inside(polygons: Array, shape: tuple[int, int]) -> Array:
    """Return polygons in grid coordinates, cut to the grid."""
    rows, columns = shape
    bounds = shapely.bounds(polygons).reshape(-1, 4)
    beyond = (bounds < 0).any(axis=1) | (bounds[:, 2] > columns) | (bounds[:, 3] > rows)
    cut = polygons.copy()
    cut[beyond] = shapely.intersection(polygons[beyond], shapely.box(0, 0, columns, rows))
    return cut


def _areas(places: Array, polygons: Array) -> Cells:
    """Return the cells of polygons that are within the grid."""
    place, start, end = _edges(places, polygons)
    which, start, end = _cut(start, end)
    place = place[which]
    row, column = np.floor((start[:, 1] + end[:, 1]) / 2).astype(int), np.floor((start[:, 0] + end[:, 0]) / 2)
    height = end[:, 1] - start[:, 1]
    # Area between a piece and the east edge of its cell; all cells further east in the row are beyond its whole height.
    within = height * (column + 1 - (start[:, 0] + end[:, 0]) / 2)
    order = np.lexsort((column, row, place))
    place, row, column, height, within = (a[order] for a in (place, row, column.astype(int), height, within))
    if not len(place):
        return NO_CELLS
    first = np.flatnonzero(_changes(place, row, column))
    height, within = np.add.reduceat(height, first), np.add.reduceat(within, first)
    place, row, column = place[first], row[first], column[first]
    new_row = _changes(place, row)
    total = np.cumsum(height)
    line = np.cumsum(new_row) - 1
    # Heights add up to 0 along a row, but their sum over all rows before is float noise: subtracted.
    total -= (total - height)[new_row][line]
    share = np.abs(total - height + within)
    # Cells between two that the outline crosses are all outside, or all inside.
    gap = np.where(np.append(new_row[1:], True), 0, np.append(column[1:], 0) - column - 1)
    gap[np.abs(total) < 0.5] = 0
    filled = np.repeat(np.arange(len(gap)), gap)
    step = np.arange(len(filled)) - np.repeat(np.cumsum(gap) - gap, gap)
    place, row = np.concatenate([place, place[filled]]), np.concatenate([row, row[filled]])
    column = np.concatenate([column, column[filled] + 1 + step])
    share = np.concatenate([share, np.ones(len(filled))])
    whole = np.zeros(int(places.max()) + 1)
    whole[places] = shapely.area(polygons)
    covered = share > LEAST_SHARE * np.minimum(whole[place], 1)
    return place[covered], row[covered], column[covered], np.minimum(share[covered], 1)


def _changes(*columns: Array) -> Array:
    """Return which entries differ from the one before in any of the columns; the first does."""
    differs = np.zeros(len(columns[0]), bool)
    differs[:1] = True
    for values in columns:
        differs[1:] |= values[1:] != values[:-1]
    return differs


def _edges(places: Array, polygons: Array) -> tuple[Array, Array, Array]:
    """Return place, start and end of every edge, areas to the same side of all of them."""
    parts, owner = polygons, places
    for _ in range(2):  # a collection may hold a multi-polygon
        parts, index = shapely.get_parts(parts, return_index=True)
        owner = owner[index]
    flat = shapely.get_type_id(parts) == 3
    parts, owner = parts[flat], owner[flat]
    rings, index = shapely.get_rings(parts, return_index=True)
    hole = ~_changes(index) if len(index) else np.empty(0, bool)
    xy, ring = shapely.get_coordinates(rings, return_index=True)
    same = ring[1:] == ring[:-1]
    start, end, ring = xy[:-1][same], xy[1:][same], ring[1:][same]
    # Turned so that shells run one way and holes the other.
    forward = shapely.is_ccw(rings) != hole
    turned = ~forward[ring]
    start, end = np.where(turned[:, None], end, start), np.where(turned[:, None], start, end)
    return owner[index[ring]], start, end


def _cut(start: Array, end: Array) -> tuple[Array, Array, Array]:
    """Return edges cut at the edges of cells: the edge of each piece, its start and its end."""
    n = len(start)
    which, at = [np.arange(n), np.arange(n)], [np.zeros(n), np.ones(n)]
    for axis in (0, 1):
        a, b = start[:, axis], end[:, axis]
        first, last = np.floor(np.minimum(a, b)) + 1, np.ceil(np.maximum(a, b)) - 1
        crossings = np.maximum(last - first + 1, 0).astype(int)
        edge = np.repeat(np.arange(n), crossings)
        line = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(crossings) - crossings, crossings)
        which.append(edge)
        at.append((line - a[edge]) / (b - a)[edge])
    edges, positions = np.concatenate(which), np.concatenate(at)
    order = np.lexsort((positions, edges))
    edges, positions = edges[order], positions[order]
    pieces = edges[1:] == edges[:-1]
    edge, low, high = edges[1:][pieces], positions[:-1][pieces, None], positions[1:][pieces, None]
    along = (end - start)[edge]
    # The ends themselves are kept to the last bit, so that pieces of a closed ring add up to nothing.
    begin = np.where(low == 0, start[edge], start[edge] + low * along)
    finish = np.where(high == 1, end[edge], start[edge] + high * along)
    return edge, begin, finish
