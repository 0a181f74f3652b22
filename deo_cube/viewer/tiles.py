"""Web-map tiles of a store: which cells they show, and the vectors of these cells, from few bytes at any zoom.

A store is read in *squares*: the chunks in which it is stored (64 x 64 patches for stores of this package). Where the
pixels of a tile are in few squares, these are read and each pixel gets the vector of its own cell. Where they are in
many (a country on one screen), only as many squares are read as fit the budget, evenly spread on a lattice that is the
same for all tiles; a square that was not read gets the vector in the middle of the nearest square of that lattice. A
thinned copy of each square that was read (every eighth vector) is cached, and later tiles are drawn from it. Vectors
are never averaged: every pixel shows the vector of a cell that exists.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube.cube.georeference import ground_resolution
from deo_cube.errors import ArgumentError, MissingCRSError
from deo_cube.heads.geometries import apply

__all__ = ["SIZE", "TOP_ZOOM", "SampledVectors", "TileGrid", "TileSource"]

Array = NDArray[Any]
Reader = Callable[[int, slice, slice], Array]
Key = tuple[int, int, int]

TILE_BYTES = 64 * 2**20
"""Largest number of bytes of vectors that are read for one tile (but four squares always)."""
CACHE_BYTES = 256 * 2**20
"""Bytes of complete squares in the cache, and the same number of bytes of thinned ones."""
THIN = 8
"""The thinned copy of a square has every eighth vector along each side."""
SIZE = 256
"""Pixels along a side of a tile."""
TOP_ZOOM = 24
"""Highest zoom level of a tile."""
WEB_EDGE = math.pi * 6378137.0
"""Half the side of the web-mercator square, metres."""
MAX_LATITUDE = 85.05112878
"""Latitude where the web-mercator square ends."""


@dataclass(frozen=True)
class TileGrid:
    """Positions of web-map tiles on the grid of a store: exact for every pixel, without resampling.

    Parameters
    ----------
    box : GeoBox
        Of the store, north-up or south-up, in any CRS that PROJ knows.

    Raises
    ------
    MissingCRSError, ArgumentError
        If the grid has no place on the globe, or is beyond the latitudes of web maps.
    """

    box: GeoBox

    def __post_init__(self) -> None:
        south, north = self.bounds[0][0], self.bounds[1][0]
        if not (math.isfinite(south) and math.isfinite(north)):
            raise MissingCRSError(
                f"the corners of the embeddings have no place on the globe in {self.box.crs}: state their own CRS, "
                "emb.rio.write_crs(...)"
            )
        if south >= MAX_LATITUDE or north <= -MAX_LATITUDE:
            raise ArgumentError(
                f"the embeddings must be within {MAX_LATITUDE:.2f} degrees of latitude, where web maps end, found "
                f"{south:.2f} to {north:.2f}"
            )

    @cached_property
    def _from_web(self) -> Any:
        return Transformer.from_crs(3857, self.box.crs.proj, always_xy=True)

    @cached_property
    def _to_degrees(self) -> Any:
        return Transformer.from_crs(self.box.crs.proj, 4326, always_xy=True)

    def tile(self, z: int, x: int, y: int) -> tuple[Array, Array]:
        """Return rows and columns, in fractions of a cell, of the centres of the pixels of a tile.

        Returns
        -------
        rows, columns : (256, 256) float64
            Cell (r, c) is from r to r+1 and c to c+1 in the order of the array. NaN where the projection has no place.
        """
        return self._tiles(z, x, y)  # type: ignore[no-any-return]

    @cached_property
    def _tiles(self) -> Any:
        # The layers of a page request the same tile one after the other.
        return lru_cache(maxsize=24)(self._tile)

    def _tile(self, z: int, x: int, y: int) -> tuple[Array, Array]:
        side = 2 * WEB_EDGE / (1 << z)
        along = (np.arange(SIZE) + 0.5) / SIZE
        xs, ys = np.meshgrid(-WEB_EDGE + (x + along) * side, WEB_EDGE - (y + along) * side)
        return self._cells(*self._from_web.transform(xs, ys))

    def at(self, lon: float, lat: float) -> tuple[int, int, float, float]:
        """Return row and column of the cell that contains a place in degrees, and the place in the CRS of the store.

        Raises
        ------
        ArgumentError
            For a place outside the store.
        """
        px, py = (float(v) for v in self._to_degrees.transform(lon, lat, direction="INVERSE"))
        r, c = self._cells(np.array([px]), np.array([py]))
        row, col = np.floor(r[0]), np.floor(c[0])
        rows, cols = self.box.shape
        if not (0 <= row < rows and 0 <= col < cols):
            raise ArgumentError(f"the place {lat:.5f}, {lon:.5f} is outside the embeddings: choose one within them")
        return int(row), int(col), px, py

    def lonlat(self, row: int, col: int) -> tuple[float, float]:
        """Return longitude and latitude of the middle of a cell."""
        t = self.box.transform
        x, y = t.c + (col + 0.5) * t.a + (row + 0.5) * t.b, t.f + (col + 0.5) * t.d + (row + 0.5) * t.e
        lon, lat = self._to_degrees.transform(x, y)
        return float(lon), float(lat)

    def cells_at(self, lon: Array, lat: Array) -> tuple[Array, Array]:
        """Return rows and columns, in fractions of a cell, of places in degrees."""
        px, py = self._to_degrees.transform(lon, lat, direction="INVERSE")
        return self._cells(np.asarray(px), np.asarray(py))

    def _cells(self, px: Array, py: Array) -> tuple[Array, Array]:
        px, py = (np.where(np.isfinite(v), v, np.nan) for v in (np.asarray(px), np.asarray(py)))
        if self.box.crs.geographic:
            # A meridian has two names: the one nearest to the middle of the store counts.
            t = self.box.transform
            middle = t.c + t.a * self.box.shape[1] / 2
            px = px + 360 * np.round((middle - px) / 360)
        col, row = apply(~self.box.transform, px, py)
        return row, col

    @cached_property
    def outline(self) -> list[tuple[float, float]]:
        """The closed border as (lon, lat); longitudes continue beyond 180 where it crosses that meridian."""
        rows, cols = self.box.shape
        n = 16
        a, b = np.linspace(0, cols, n + 1), np.linspace(0, rows, n + 1)
        c = np.concatenate([a, np.full(n, cols), a[::-1][1:], np.zeros(n)])
        r = np.concatenate([np.zeros(n + 1), b[1:], np.full(n, rows), b[::-1][1:]])
        lon, lat = self._to_degrees.transform(*apply(self.box.transform, c, r))
        if np.isfinite(lon).all():
            lon = lon + 360 * np.round((lon[0] - lon) / 360)
            # Longitudes are shifted by whole turns so that their middle is between -180 and 180.
            lon = lon - 360 * np.round((lon.min() + lon.max()) / 720)
        return [(float(i), float(np.clip(j, -MAX_LATITUDE, MAX_LATITUDE))) for i, j in zip(lon, lat, strict=True)]

    @property
    def bounds(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bounds ((south, west), (north, east)) in degrees, in the order of Leaflet."""
        lon, lat = zip(*self.outline, strict=True)
        return (min(lat), min(lon)), (max(lat), max(lon))

    @cached_property
    def cell(self) -> float:
        """Shorter side of the middle cell on the ground, metres."""
        return min(ground_resolution(self.box))

    @property
    def native_zoom(self) -> int:
        """Zoom level at which a cell is about a pixel."""
        (south, _), (north, _) = self.bounds
        across = 2 * WEB_EDGE * math.cos(math.radians((south + north) / 2)) / SIZE
        return max(0, min(TOP_ZOOM - 5, round(math.log2(across / self.cell))))


@dataclass(frozen=True)
class SampledVectors:
    """Vectors at the places of a tile.

    Parameters
    ----------
    vectors : (n, D)
        Vectors of different cells, NaN where invalid.
    index : integer array with the shape of the places
        Position of the vector of each place; -1 outside the store.
    complete : bool
        Whether every place has a vector of its own square; else some have that of a square nearby.
    """

    vectors: Array
    index: Array
    complete: bool = True

    def spread(self, values: Array, fill: float) -> Array:
        """Return `values` (n, ...) of the vectors at the places, `fill` outside the store."""
        padded = np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])
        return np.asarray(padded[self.index])


class _Cache:
    """Arrays by key, of which the least recently used are dropped beyond `max_bytes`. For several threads."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._arrays: OrderedDict[Key, Array] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Key) -> Array | None:
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
            return self._arrays.get(key)

    def keys(self, t: int) -> list[tuple[int, int]]:
        with self._lock:
            return [(i, j) for k, i, j in self._arrays if k == t]

    def put(self, key: Key, array: Array) -> None:
        with self._lock:
            self.bytes += array.nbytes - (self._arrays.pop(key).nbytes if key in self._arrays else 0)
            self._arrays[key] = array
            while self.bytes > self.max_bytes and len(self._arrays) > 1:
                self.bytes -= self._arrays.popitem(last=False)[1].nbytes


class TileSource:
    """Windows of an array (time, channel, y, x), read square by square and cached.

    Parameters
    ----------
    read : callable
        ``(time, rows, columns) -> (channels, h, w)``.
    shape : (times, channels, rows, columns)
    step : (int, int)
        Rows and columns of a square.
    offset : (int, int)
        Rows and columns by which the first square begins before the array.
    itemsize : int
        Bytes of a number.
    in_memory : bool
        Whether the array is in memory, so that there is no budget.
    tile_bytes : int
        Budget of a tile.
    """

    def __init__(
        self,
        read: Reader,
        shape: tuple[int, int, int, int],
        *,
        step: tuple[int, int],
        offset: tuple[int, int] = (0, 0),
        itemsize: int = 2,
        in_memory: bool = False,
        tile_bytes: int = TILE_BYTES,
    ) -> None:
        self.read, self.shape, self.step, self.offset = read, shape, step, offset
        self.square_bytes = step[0] * step[1] * shape[1] * itemsize
        self.grid = tuple(-(-(n + a) // s) for n, a, s in zip(shape[2:], offset, step, strict=True))
        #: Squares that may be read for one tile.
        self.max_squares = self.grid[0] * self.grid[1] if in_memory else max(4, tile_bytes // self.square_bytes)
        self._squares, self._thinned = _Cache(CACHE_BYTES), _Cache(CACHE_BYTES)
        # A square that two tiles need at once is read once.
        self._locks = [threading.Lock() for _ in range(16)]
        # Two readers keep a disk busy; more would only need memory.
        self._readers = threading.BoundedSemaphore(2)

    @classmethod
    def of(cls, array: xr.DataArray, *, step: int = 64, **options: Any) -> TileSource:
        """Return the source of a DataArray ([time,] channel, y, x), in memory or on Dask in its chunks."""
        if "time" not in array.dims:
            array = array.expand_dims("time")
        times, channels, rows, cols = array.shape
        variable = array.variable
        if variable.chunks is None:
            values = np.asarray(variable.data)
            return cls(
                lambda t, r, c: values[t, :, r, c], (times, channels, rows, cols),
                step=(step, step), itemsize=values.itemsize, in_memory=True, **options,
            )  # fmt: skip
        inner = variable.encoding.get("chunks") or ()
        spatial = variable.chunks[-2:]
        sides = tuple(max(c) for c in spatial)
        if len(inner) == variable.ndim - ("time" in array.dims and len(inner) == variable.ndim - 1):
            sides = tuple(min(int(i), s) for i, s in zip(inner[-2:], sides, strict=True))
        offset = tuple(-c[0] % s if len(c) > 1 else 0 for c, s in zip(spatial, sides, strict=True))

        def read(t: int, r: slice, c: slice) -> Array:
            return np.asarray(variable[t, :, r, c].data.compute(scheduler="synchronous"))

        return cls(
            read, (times, channels, rows, cols), step=(sides[0], sides[1]), offset=(offset[0], offset[1]),
            itemsize=variable.dtype.itemsize, **options,
        )  # fmt: skip

    @property
    def bytes_per_time(self) -> int:
        """Uncompressed bytes of one time."""
        return self.grid[0] * self.grid[1] * self.square_bytes

    def window(self, i: int, j: int) -> tuple[slice, slice]:
        """Return rows and columns of the array in a square."""
        a, b = (
            slice(max(k * s - m, 0), min((k + 1) * s - m, n))
            for k, s, m, n in zip((i, j), self.step, self.offset, self.shape[2:], strict=True)
        )
        return a, b

    def square(self, t: int, i: int, j: int) -> Array:
        """Return the vectors (channels, h, w) of a square, which are read once while they are cached."""
        key = (t, i, j)
        values = self._squares.get(key)
        if values is not None:
            return values
        with self._locks[hash(key) % len(self._locks)]:
            values = self._squares.get(key)
            if values is None:
                with self._readers:
                    values = self.read(t, *self.window(i, j))
                self._squares.put(key, values)
                self._thinned.put(key, _thin(values))
        return values

    def vector(self, t: int, row: int, col: int) -> Array:
        """Return the vector (channels,) of one cell, float64."""
        i, j = ((n + m) // s for n, m, s in zip((row, col), self.offset, self.step, strict=True))
        r, c = self.window(i, j)
        return np.asarray(self.square(t, i, j)[:, row - r.start, col - c.start], dtype="float64")

    def block(self, t: int, rows: slice, cols: slice) -> Array:
        """Return a window (channels, h, w) float32, assembled from squares."""
        out = np.empty((self.shape[1], rows.stop - rows.start, cols.stop - cols.start), "float32")
        (i0, j0), (i1, j1) = self._square_at(rows.start, cols.start), self._square_at(rows.stop - 1, cols.stop - 1)
        for i in range(i0, i1 + 1):
            for j in range(j0, j1 + 1):
                r, c = self.window(i, j)
                r1, c1 = (
                    slice(max(r.start, rows.start), min(r.stop, rows.stop)),
                    slice(max(c.start, cols.start), min(c.stop, cols.stop)),
                )
                part = self.square(t, i, j)[
                    :, r1.start - r.start : r1.stop - r.start, c1.start - c.start : c1.stop - c.start
                ]
                out[:, r1.start - rows.start : r1.stop - rows.start, c1.start - cols.start : c1.stop - cols.start] = (
                    part
                )
        return out

    def squares_of(self, rows: slice, cols: slice) -> int:
        """Return how many squares a window overlaps."""
        (i0, j0), (i1, j1) = self._square_at(rows.start, cols.start), self._square_at(rows.stop - 1, cols.stop - 1)
        return (i1 - i0 + 1) * (j1 - j0 + 1)

    def _square_at(self, row: int, col: int) -> tuple[int, int]:
        return (row + self.offset[0]) // self.step[0], (col + self.offset[1]) // self.step[1]

    def gather(self, t: int, rows: Array, cols: Array) -> SampledVectors:
        """Return the vectors at places in rows and columns (fractions of cells, NaN for none)."""
        height, width = self.shape[2:]
        with np.errstate(invalid="ignore"):
            inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        index = np.full(rows.shape, -1)
        if not inside.any():
            return SampledVectors(np.empty((0, self.shape[1]), "float32"), index)
        r, c = rows[inside].astype(np.int64), cols[inside].astype(np.int64)
        squares = (r + self.offset[0]) // self.step[0] * self.grid[1] + (c + self.offset[1]) // self.step[1]
        touched = np.unique(squares)
        if len(touched) <= self.max_squares:
            # The different cells are marked in the window that contains them all, which is faster than sorting.
            top, left = int(r.min()), int(c.min())
            wide = int(c.max()) - left + 1
            marked = np.zeros((int(r.max()) - top + 1) * wide, bool)
            flat = (r - top) * wide + (c - left)
            marked[flat] = True
            index[inside] = (np.cumsum(marked) - 1)[flat]
            a, b = np.divmod(np.flatnonzero(marked), wide)
            return SampledVectors(self._vectors_of(t, a + top, b + left), index)
        vectors, index[inside], complete = self._overview(t, r, c, touched)
        return SampledVectors(vectors, index, complete)

    def _vectors_of(self, t: int, r: Array, c: Array) -> Array:
        """Return the vectors (n, channels) of cells."""
        i, j = (r + self.offset[0]) // self.step[0], (c + self.offset[1]) // self.step[1]
        out = np.empty((len(r), self.shape[1]), "float32")
        for k in np.unique(i * self.grid[1] + j):
            a, b = divmod(int(k), self.grid[1])
            in_square = (i == a) & (j == b)
            rows, cols = self.window(a, b)
            out[in_square] = self.square(t, a, b)[:, r[in_square] - rows.start, c[in_square] - cols.start].T
        return out

    def lattice(self, touched: Array) -> tuple[int, Array]:
        """Return a stride, and the squares on its lattice that represent those touched, within the budget."""
        i, j = np.divmod(touched, self.grid[1])
        stride = 2
        while True:
            squares = np.unique(self._representative(i, j, stride))
            if len(squares) <= self.max_squares:
                return stride, squares
            stride *= 2

    def _representative(self, i: Array, j: Array, stride: int) -> Array:
        a, b = (np.minimum(k // stride * stride + stride // 2, n - 1) for k, n in zip((i, j), self.grid, strict=True))
        return np.asarray(a * self.grid[1] + b)

    def _overview(self, t: int, r: Array, c: Array, touched: Array) -> tuple[Array, Array, bool]:
        """Return vectors from thinned squares, their position at each cell, and whether all are of their own square."""
        stride, representatives = self.lattice(touched)
        thin: dict[int, Array] = {int(k): self._thinned_square(t, int(k)) for k in representatives}
        known = np.zeros(self.grid[0] * self.grid[1], bool)
        for at in self._thinned.keys(t):
            cached = self._thinned.get((t, *at))
            if cached is not None:
                thin[at[0] * self.grid[1] + at[1]] = cached
        known[list(thin)] = True
        i, j = (r + self.offset[0]) // self.step[0], (c + self.offset[1]) // self.step[1]
        square = i * self.grid[1] + j
        own = known[square]
        square = np.where(own, square, self._representative(i, j, stride))
        # Position among the thinned vectors: the cell's own in its own square, else -1 for the one in the middle.
        top = np.maximum(i * self.step[0] - self.offset[0], 0)
        left = np.maximum(j * self.step[1] - self.offset[1], 0)
        thin_shape = tuple(-(-s // THIN) for s in self.step)
        a = np.where(own, np.minimum((r - top) // THIN, thin_shape[0] - 1), -1)
        b = np.where(own, np.minimum((c - left) // THIN, thin_shape[1] - 1), -1)
        # One number per square and position, so that each vector is looked up once.
        n_rows, n_cols = (n + 1 for n in thin_shape)
        ids, index = np.unique((square * n_rows + a + 1) * n_cols + b + 1, return_inverse=True)
        square_and_row, b = np.divmod(ids, n_cols)
        square, a = np.divmod(square_and_row, n_rows)
        out = np.empty((len(ids), self.shape[1]), "float32")
        for k in np.unique(square):
            in_square = square == k
            v = thin[int(k)]
            rows = np.where(a[in_square] == 0, v.shape[1] // 2, np.minimum(a[in_square] - 1, v.shape[1] - 1))
            cols = np.where(b[in_square] == 0, v.shape[2] // 2, np.minimum(b[in_square] - 1, v.shape[2] - 1))
            out[in_square] = v[:, rows, cols].T
        return out, index, bool(known[touched].all())

    def _thinned_square(self, t: int, k: int) -> Array:
        key = (t, *divmod(k, self.grid[1]))
        cached = self._thinned.get(key)
        return cached if cached is not None else _thin(self.square(*key))

    def sample(self, t: int) -> Array:
        """Return valid vectors (n, channels) from all parts of the array, within the budget of a tile."""
        every = np.arange(self.grid[0] * self.grid[1])
        squares = every if len(every) <= self.max_squares else self.lattice(every)[1]
        parts = [self._thinned_square(t, int(k)).reshape(self.shape[1], -1).T for k in squares]
        vectors = np.concatenate(parts).astype("float32")
        return np.asarray(vectors[np.isfinite(vectors).all(axis=1)])

    def load_overview(self, t: int, rows: slice, cols: slice) -> Iterator[float]:
        """Read every square of a window, so that its overviews are complete; yield the share done."""
        (i0, j0), (i1, j1) = self._square_at(rows.start, cols.start), self._square_at(rows.stop - 1, cols.stop - 1)
        squares = [(i, j) for i in range(i0, i1 + 1) for j in range(j0, j1 + 1)]
        for n, (i, j) in enumerate(squares):
            if self._thinned.get((t, i, j)) is None:
                with self._readers:
                    values = self.read(t, *self.window(i, j))
                self._thinned.put((t, i, j), _thin(values))
            yield (n + 1) / len(squares)


def _thin(square: Array) -> Array:
    """Return every eighth vector (channels, k, l) along each side of a square, those in the middle of each eight."""
    rows, cols = (np.minimum(np.arange(THIN // 2, n + THIN // 2, THIN), n - 1) for n in square.shape[1:])
    return np.ascontiguousarray(square[:, rows[:, None], cols])
