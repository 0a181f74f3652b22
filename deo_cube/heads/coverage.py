"""Cells of a grid that points and areas cover, and how much of each cell: exact, for many places at once.

Places are moved into the coordinates of the grid, in which each cell is a square of side 1. The area of a polygon
within a cell is the sum over the pieces of its outline in that cell and in the cells west of it in the same row, by
Green's theorem, as fonts are drawn: the outlines of all places are cut at the edges of the cells and added up at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

__all__ = ["Coverage", "cover"]

Array = NDArray[Any]

EDGE = 1e-6
"""Cells by which a point may be off an edge and still be on it: float noise moves nothing over an edge."""
SLIVER = 1e-7
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
    covered = share > SLIVER * np.minimum(whole[place], 1)
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
