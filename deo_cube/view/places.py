"""Where a web map's tile lies on the grid of a store: exact positions, pixel by pixel, no resampling of coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import ground_resolution
from deo_cube.errors import ArgumentError, MissingCRSError
from deo_cube.heads.cells import apply

__all__ = ["SIZE", "TOP_ZOOM", "Places"]

Array = NDArray[Any]

SIZE = 256
"""Pixels along a side of a tile."""
TOP_ZOOM = 24
"""Levels of zoom that are answered."""
EDGE = math.pi * 6378137.0
"""Half the side of the web-mercator square, metres."""
MOST_NORTH = 85.05112878
"""Latitude where the web-mercator square ends."""


@dataclass(frozen=True)
class Places:
    """The grid of a store as a web map sees it.

    Parameters
    ----------
    box : GeoBox
        Of the store, north-up or south-up, in any CRS that PROJ knows.
    """

    box: GeoBox

    def __post_init__(self) -> None:
        south, north = self.bounds[0][0], self.bounds[1][0]
        if not (math.isfinite(south) and math.isfinite(north)):
            raise MissingCRSError(
                f"the corners of the embeddings have no place on the globe in {self.box.crs}: the CRS stated is not "
                "theirs"
            )
        if south >= MOST_NORTH or north <= -MOST_NORTH:
            raise ArgumentError(
                f"the embeddings lie between {south:.2f} and {north:.2f} degrees of latitude: web maps end at "
                f"{MOST_NORTH:.2f}"
            )

    @cached_property
    def _from_web(self) -> Any:
        from pyproj import Transformer

        return Transformer.from_crs(3857, self.box.crs.proj, always_xy=True)

    @cached_property
    def _to_degrees(self) -> Any:
        from pyproj import Transformer

        return Transformer.from_crs(self.box.crs.proj, 4326, always_xy=True)

    def tile(self, z: int, x: int, y: int) -> tuple[Array, Array]:
        """Rows and columns, in fractions of a cell, of the centres of a tile's pixels.

        Returns
        -------
        rows, columns : (256, 256) float64
            Cell (r, c) spans r..r+1 and c..c+1 in the order of the array. NaN where the projection has no place.
        """
        return self._tiles(z, x, y)  # type: ignore[no-any-return]

    @cached_property
    def _tiles(self) -> Any:
        # The layers of a page ask for the same tile one after the other.
        return lru_cache(maxsize=24)(self._tile)

    def _tile(self, z: int, x: int, y: int) -> tuple[Array, Array]:
        side = 2 * EDGE / (1 << z)
        along = (np.arange(SIZE) + 0.5) / SIZE
        xs, ys = np.meshgrid(-EDGE + (x + along) * side, EDGE - (y + along) * side)
        return self._cells(*self._from_web.transform(xs, ys))

    def at(self, lon: float, lat: float) -> tuple[int, int, float, float]:
        """Row and column of the cell that holds a place given in degrees, and the place in the CRS of the store.

        Raises
        ------
        ArgumentError
            Outside.
        """
        px, py = (float(v) for v in self._to_degrees.transform(lon, lat, direction="INVERSE"))
        r, c = self._cells(np.array([px]), np.array([py]))
        row, col = np.floor(r[0]), np.floor(c[0])
        rows, cols = self.box.shape
        if not (0 <= row < rows and 0 <= col < cols):
            raise ArgumentError(f"the place {lat:.5f}, {lon:.5f} lies outside the embeddings")
        return int(row), int(col), px, py

    def _cells(self, px: Array, py: Array) -> tuple[Array, Array]:
        px, py = (np.where(np.isfinite(v), v, np.nan) for v in (np.asarray(px), np.asarray(py)))
        if self.box.crs.geographic:
            # The same meridian has two names: the one nearest to the store's middle counts.
            t = self.box.transform
            middle = t.c + t.a * self.box.shape[1] / 2
            px = px + 360 * np.round((middle - px) / 360)
        col, row = apply(~self.box.transform, px, py)
        return row, col

    @cached_property
    def outline(self) -> list[tuple[float, float]]:
        """The border as (lon, lat), closed; longitudes run on beyond 180 where it crosses that meridian."""
        rows, cols = self.box.shape
        n = 16
        a, b = np.linspace(0, cols, n + 1), np.linspace(0, rows, n + 1)
        c = np.concatenate([a, np.full(n, cols), a[::-1][1:], np.zeros(n)])
        r = np.concatenate([np.zeros(n + 1), b[1:], np.full(n, rows), b[::-1][1:]])
        lon, lat = self._to_degrees.transform(*apply(self.box.transform, c, r))
        if np.isfinite(lon).all():
            lon = lon + 360 * np.round((lon[0] - lon) / 360)
            # The middle decides which of its names the meridian gets.
            lon = lon - 360 * np.round((lon.min() + lon.max()) / 720)
        return [(float(i), float(np.clip(j, -MOST_NORTH, MOST_NORTH))) for i, j in zip(lon, lat, strict=True)]

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """((south, west), (north, east)) in degrees, as Leaflet writes them."""
        lon, lat = zip(*self.outline, strict=True)
        return (min(lat), min(lon)), (max(lat), max(lon))

    @cached_property
    def cell(self) -> float:
        """Side of the middle cell on the ground, metres (the shorter one)."""
        return min(ground_resolution(self.box))

    @property
    def native_zoom(self) -> int:
        """The level of zoom at which a cell is about a pixel."""
        (south, _), (north, _) = self.bounds
        across = 2 * EDGE * math.cos(math.radians((south + north) / 2)) / SIZE
        return max(0, min(TOP_ZOOM - 5, round(math.log2(across / self.cell))))
