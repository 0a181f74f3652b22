"""Which cells of a grid a point, a polygon or the pixels of another raster fall into. Grids are north-up here."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

__all__ = ["Rule", "cells_of", "cells_of_point", "cells_of_polygon", "lattice_majority", "north_up", "pixels_per_cell"]

Array = NDArray[Any]
SLIVER = 1e-9
"""Share of a cell that is float noise: two polygons that share an edge do not touch each other's cells."""
Rule = Literal["majority", "centre", "touch"]


def apply(transform: Affine, x: Any, y: Any) -> tuple[Any, Any]:
    """A transform applied to numbers or arrays; `*` and `@` do so in some releases of affine only."""
    t = transform
    return t.a * x + t.b * y + t.c, t.d * x + t.e * y + t.f


def north_up(box: GeoBox) -> GeoBox:
    """The same extent with its first row in the north."""
    t = box.transform
    if t.e < 0:
        return box
    return GeoBox(box.shape, Affine(t.a, 0, t.c, 0, -t.e, t.f + box.shape[0] * t.e), box.crs)


def cells_of(shape: Any, box: GeoBox, rule: Rule) -> tuple[Array, Array]:
    """Rows and columns of the cells that a valid geometry of points and polygons labels."""
    if "Point" in shape.geom_type:
        return cells_of_point(shape, box)
    if shape.geom_type != "GeometryCollection":
        return cells_of_polygon(shape, box, rule)
    parts = [cells_of(part, box, rule) for part in shape.geoms]
    flat = np.unique(np.concatenate([r * box.shape[1] + c for r, c in parts] or [np.empty(0, int)]))
    return flat // box.shape[1], flat % box.shape[1]


def cells_of_point(shape: Any, box: GeoBox) -> tuple[Array, Array]:
    """Rows and columns of the cells that contain the points; a cell has its west and north edges."""
    import shapely

    xy = shapely.get_coordinates(shape)
    place = np.stack(apply(~box.transform, xy[:, 0], xy[:, 1]), axis=1)
    near = np.round(place)
    # Float noise of a millionth of a cell does not move a point over an edge.
    cell = np.where(np.abs(place - near) < 1e-6, near, np.floor(place))
    cell = cell[np.isfinite(cell).all(axis=1)].astype(int)
    inside = (cell >= 0).all(axis=1) & (cell[:, 0] < box.shape[1]) & (cell[:, 1] < box.shape[0])
    return cell[inside, 1], cell[inside, 0]


def cells_of_polygon(shape: Any, box: GeoBox, rule: Rule) -> tuple[Array, Array]:
    """Rows and columns of the cells that a valid polygon labels; of the one it covers most where it labels none so."""
    import shapely
    from rasterio.features import rasterize

    rows, cols = box.shape
    x0, y0, x1, y1 = shape.bounds
    if not np.isfinite([x0, y0, x1, y1]).all():
        return np.empty(0, int), np.empty(0, int)
    t = box.transform
    left, right = max(int(np.floor((x0 - t.c) / t.a)), 0), min(int(np.ceil((x1 - t.c) / t.a)), cols)
    top, low = max(int(np.floor((y1 - t.f) / t.e)), 0), min(int(np.ceil((y0 - t.f) / t.e)), rows)
    if left >= right or top >= low:
        return np.empty(0, int), np.empty(0, int)
    # GDAL takes for ever over edges that leave the grid by many orders of magnitude.
    margin = 2 * max(abs(t.a), abs(t.e))
    south, west = t.f + rows * t.e, t.c
    shape = shapely.clip_by_rect(shape, west - margin, south - margin, t.c + cols * t.a + margin, t.f + margin)
    if shape.is_empty or shape.area == 0:
        return np.empty(0, int), np.empty(0, int)
    window, size = Affine(t.a, 0, t.c + left * t.a, 0, t.e, t.f + top * t.e), (low - top, right - left)
    centre = rasterize([(shape, 1)], size, transform=window, dtype="uint8").astype(bool)
    edge = rasterize([(shape.boundary, 1)], size, transform=window, all_touched=True, dtype="uint8").astype(bool)
    r, c = np.nonzero(edge)
    xs, ys = t.c + (left + c) * t.a, t.f + (top + r) * t.e
    boxes = shapely.box(xs, ys + t.e, xs + t.a, ys)
    # Inside the boundary a cell is covered whole; on it the share is measured.
    share = np.where(centre, 1.0, 0.0)
    share[r, c] = shapely.area(shapely.intersection(boxes, shape)) / abs(t.a * t.e)
    if rule == "centre":
        claimed = centre
    elif rule == "touch":
        claimed = share > SLIVER
    else:
        claimed = share >= 0.5
    if not claimed.any() and share.max() > 0:
        claimed = np.zeros_like(centre)
        claimed[np.unravel_index(int(share.argmax()), share.shape)] = True
    r, c = np.nonzero(claimed)
    return r + top, c + left


def pixels_per_cell(box: GeoBox, transform: Affine, source: Any) -> float:
    """Label pixels along the side of the middle cell."""
    at = np.array([[box.shape[1] / 2 + dx, box.shape[0] / 2 + dy] for dx, dy in ((0, 0), (1, 0), (0, 1))])
    x, y = _into(box, source, at[:, 0], at[:, 1])
    col, row = apply(~transform, x, y)
    sides = np.hypot(np.diff(col)[[0]], np.diff(row)[[0]])[0], np.hypot(col[2] - col[0], row[2] - row[0])
    longest = max(sides)
    return float(longest) if np.isfinite(longest) else 1.0


def _into(box: GeoBox, source: Any, col: Array, row: Array) -> tuple[Array, Array]:
    """Coordinates in `source` of places of `box` counted in cells."""
    from pyproj import Transformer

    x, y = apply(box.transform, col, row)
    if source == box.crs:
        return x, y
    return cast(tuple[Array, Array], Transformer.from_crs(box.crs.proj, source.proj, always_xy=True).transform(x, y))


def lattice_majority(ranked: Array, transform: Affine, source: Any, box: GeoBox, n: int, classes: int) -> Array:
    """(rows, cols): the class on which most of the n x n lattice points of each cell fall, -1 under half of them.

    `ranked` holds the index of the class of each pixel of the other raster, -1 for none. Of equals the lower index
    wins. -2 where no lattice point falls on a class at all.
    """
    rows, cols = box.shape
    out = np.full((rows, cols), -2, "int32")
    inner = (np.arange(n) + 0.5) / n
    step = max(1, 2_000_000 // max(cols * max(n * n, classes), 1))
    for top in range(0, rows, step):
        some = np.arange(top, min(top + step, rows))
        row, col = np.meshgrid(
            (some[:, None] + inner).ravel(), (np.arange(cols)[:, None] + inner).ravel(), indexing="ij"
        )
        x, y = _into(box, source, col.ravel(), row.ravel())
        if source.geographic and not transform.b:
            # The same meridian has several names: the one nearest to the raster's middle counts.
            middle = transform.c + transform.a * ranked.shape[1] / 2
            x = x + 360 * np.round((middle - x) / 360)
        c, r = apply(~transform, np.asarray(x), np.asarray(y))
        good = np.isfinite(c) & np.isfinite(r)
        c, r = (np.floor(np.where(good, v, -1)).astype(int) for v in (c, r))
        good &= (r >= 0) & (r < ranked.shape[0]) & (c >= 0) & (c < ranked.shape[1])
        found = np.where(good, ranked[np.where(good, r, 0), np.where(good, c, 0)], -1)
        cell = np.repeat(np.arange(len(some)), n)[:, None] * cols + np.repeat(np.arange(cols), n)[None]
        keep = found >= 0
        flat = found[keep] * (len(some) * cols) + cell.ravel()[keep]
        counts = np.bincount(flat, minlength=classes * len(some) * cols).reshape(classes, len(some), cols)
        total = counts.sum(axis=0)
        winner = np.where(total >= n * n / 2, counts.argmax(axis=0), -1)
        out[top : top + len(some)] = np.where(total > 0, winner, -2)
    return out
