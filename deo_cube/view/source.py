"""Vectors of a store for a tile of a map: few bytes at any zoom, however large the store is.

A store is read in *squares*: the chunks that it is kept in (64 x 64 patches for stores of this package). Where the
pixels of a tile lie in few squares, these are read and each pixel gets the vector of its own cell. Where they lie in
many (a country on one screen), only so many squares are read as fit the budget, evenly spread on a lattice that is the
same for all tiles; a square that was not read looks like the middle of the nearest square of that lattice that was. Of
each square read a thinned-out copy is kept (every eighth vector), from which later tiles are drawn. No vector is
averaged: what is drawn is always the vector of a cell that exists.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Sampled", "Source"]

Array = NDArray[Any]
Reader = Callable[[int, slice, slice], Array]
Key = tuple[int, int, int]

TILE_BYTES = 64 * 2**20
"""Vectors read for one tile, at most (but four squares always)."""
CACHE_BYTES = 256 * 2**20
"""Squares kept whole, and as many bytes of thinned-out ones."""
THIN = 8
"""Every so many cells one is kept of a square."""


@dataclass(frozen=True)
class Sampled:
    """What was found at the places asked for.

    Parameters
    ----------
    vectors : (n, D)
        Different cells' vectors, NaN where invalid.
    index : integer array, shaped as the places
        Which vector each place has; -1 outside the store.
    complete : bool
        Whether every place has a vector of its own square; else some have that of a square nearby.
    """

    vectors: Array
    index: Array
    complete: bool = True

    def spread(self, values: Array, fill: float) -> Array:
        """`values` (n, ...) of the vectors at the places, `fill` outside."""
        padded = np.concatenate([values, np.full((1, *values.shape[1:]), fill, values.dtype)])
        return np.asarray(padded[self.index])


class _Kept:
    """Arrays by key, the least used dropped first beyond `most` bytes. For several threads."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0
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
            self.held += array.nbytes - (self._arrays.pop(key).nbytes if key in self._arrays else 0)
            self._arrays[key] = array
            while self.held > self.most and len(self._arrays) > 1:
                self.held -= self._arrays.popitem(last=False)[1].nbytes


class Source:
    """Windows of an array (time, channel, y, x), read square by square and kept.

    Parameters
    ----------
    read : callable
        ``(time, rows, columns) -> (channels, h, w)``.
    shape : (times, channels, rows, columns)
    step : (int, int)
        Rows and columns of a square.
    lead : (int, int)
        Rows and columns by which the first square begins before the array.
    itemsize : int
        Bytes of a number.
    cheap : bool
        The array lies in memory: no budget.
    """

    def __init__(
        self,
        read: Reader,
        shape: tuple[int, int, int, int],
        *,
        step: tuple[int, int],
        lead: tuple[int, int] = (0, 0),
        itemsize: int = 2,
        cheap: bool = False,
        tile_bytes: int = TILE_BYTES,
    ) -> None:
        self.read, self.shape, self.step, self.lead = read, shape, step, lead
        self.square_bytes = step[0] * step[1] * shape[1] * itemsize
        self.grid = tuple(-(-(n + a) // s) for n, a, s in zip(shape[2:], lead, step, strict=True))
        self.most = self.grid[0] * self.grid[1] if cheap else max(4, tile_bytes // self.square_bytes)
        self._whole, self._thin = _Kept(CACHE_BYTES), _Kept(CACHE_BYTES)
        # Of a square that two tiles want at once, one read.
        self._locks = [threading.Lock() for _ in range(16)]
        # Two readers keep a disk busy; more only take memory.
        self._readers = threading.BoundedSemaphore(2)

    @classmethod
    def of(cls, array: xr.DataArray, *, step: int = 64, **options: Any) -> Source:
        """Read a DataArray ([time,] channel, y, x) as it is: in memory, or on Dask in its chunks."""
        if "time" not in array.dims:
            array = array.expand_dims("time")
        times, channels, rows, cols = array.shape
        variable = array.variable
        if variable.chunks is None:
            values = np.asarray(variable.data)
            return cls(
                lambda t, r, c: values[t, :, r, c], (times, channels, rows, cols),
                step=(step, step), itemsize=values.itemsize, cheap=True, **options,
            )  # fmt: skip
        inner = variable.encoding.get("chunks") or ()
        spatial = variable.chunks[-2:]
        sides = tuple(max(c) for c in spatial)
        if len(inner) == variable.ndim - ("time" in array.dims and len(inner) == variable.ndim - 1):
            sides = tuple(min(int(i), s) for i, s in zip(inner[-2:], sides, strict=True))
        lead = tuple(-c[0] % s if len(c) > 1 else 0 for c, s in zip(spatial, sides, strict=True))

        def read(t: int, r: slice, c: slice) -> Array:
            return np.asarray(variable[t, :, r, c].data.compute(scheduler="synchronous"))

        return cls(
            read, (times, channels, rows, cols), step=(sides[0], sides[1]), lead=(lead[0], lead[1]),
            itemsize=variable.dtype.itemsize, **options,
        )  # fmt: skip

    @property
    def whole_bytes(self) -> int:
        """Bytes of one time, not compressed."""
        return self.grid[0] * self.grid[1] * self.square_bytes

    def window(self, i: int, j: int) -> tuple[slice, slice]:
        """Rows and columns of the array in a square."""
        a, b = (
            slice(max(k * s - m, 0), min((k + 1) * s - m, n))
            for k, s, m, n in zip((i, j), self.step, self.lead, self.shape[2:], strict=True)
        )
        return a, b

    def square(self, t: int, i: int, j: int) -> Array:
        """Vectors (channels, h, w) of a square, read once while it is kept."""
        key = (t, i, j)
        found = self._whole.get(key)
        if found is None:
            with self._locks[hash(key) % len(self._locks)]:
                found = self._whole.get(key)
                if found is None:
                    with self._readers:
                        found = self.read(t, *self.window(i, j))
                    self._whole.put(key, found)
                    self._thin.put(key, self._thinned(found, i, j))
        return found

    def vector(self, t: int, row: int, col: int) -> Array:
        """The vector (channels,) of one cell, float64."""
        i, j = ((n + m) // s for n, m, s in zip((row, col), self.lead, self.step, strict=True))
        r, c = self.window(i, j)
        return np.asarray(self.square(t, i, j)[:, row - r.start, col - c.start], dtype="float64")

    def block(self, t: int, rows: slice, cols: slice) -> Array:
        """A window (channels, h, w), put together from squares."""
        out = np.empty((self.shape[1], rows.stop - rows.start, cols.stop - cols.start), "float32")
        (i0, j0), (i1, j1) = self._at(rows.start, cols.start), self._at(rows.stop - 1, cols.stop - 1)
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
        """How many squares a window touches."""
        (i0, j0), (i1, j1) = self._at(rows.start, cols.start), self._at(rows.stop - 1, cols.stop - 1)
        return (i1 - i0 + 1) * (j1 - j0 + 1)

    def _at(self, row: int, col: int) -> tuple[int, int]:
        return (row + self.lead[0]) // self.step[0], (col + self.lead[1]) // self.step[1]

    def gather(self, t: int, rows: Array, cols: Array) -> Sampled:
        """Vectors at places given in rows and columns (fractions of cells, NaN for nowhere)."""
        height, width = self.shape[2:]
        with np.errstate(invalid="ignore"):
            inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        index = np.full(rows.shape, -1)
        if not inside.any():
            return Sampled(np.empty((0, self.shape[1]), "float32"), index)
        r, c = rows[inside].astype(np.int64), cols[inside].astype(np.int64)
        squares = (r + self.lead[0]) // self.step[0] * self.grid[1] + (c + self.lead[1]) // self.step[1]
        touched = np.unique(squares)
        if len(touched) <= self.most:
            # Which cells, each once: marked in the window that holds them all, which is quicker than sorting.
            top, left = int(r.min()), int(c.min())
            wide = int(c.max()) - left + 1
            seen = np.zeros((int(r.max()) - top + 1) * wide, bool)
            at = (r - top) * wide + (c - left)
            seen[at] = True
            index[inside] = (np.cumsum(seen) - 1)[at]
            a, b = np.divmod(np.flatnonzero(seen), wide)
            return Sampled(self._own(t, a + top, b + left), index)
        vectors, index[inside], complete = self._overview(t, r, c, touched)
        return Sampled(vectors, index, complete)

    def _own(self, t: int, r: Array, c: Array) -> Array:
        """Vectors (n, channels) of cells."""
        i, j = (r + self.lead[0]) // self.step[0], (c + self.lead[1]) // self.step[1]
        out = np.empty((len(r), self.shape[1]), "float32")
        for k in np.unique(i * self.grid[1] + j):
            a, b = divmod(int(k), self.grid[1])
            here = (i == a) & (j == b)
            top, left = self.window(a, b)
            out[here] = self.square(t, a, b)[:, r[here] - top.start, c[here] - left.start].T
        return out

    def _thinned(self, square: Array, i: int, j: int) -> Array:
        """Every eighth vector (channels, k, l), those in the middle of each eight."""
        rows, cols = (np.minimum(np.arange(THIN // 2, n + THIN // 2, THIN), n - 1) for n in square.shape[1:])
        return np.ascontiguousarray(square[:, rows[:, None], cols])

    def lattice(self, touched: Array) -> tuple[int, Array]:
        """A stride, and the squares on its lattice that stand for those touched: as many as the budget allows."""
        i, j = np.divmod(touched, self.grid[1])
        stride = 2
        while True:
            found = np.unique(self._stand_in(i, j, stride))
            if len(found) <= self.most:
                return stride, found
            stride *= 2

    def _stand_in(self, i: Array, j: Array, stride: int) -> Array:
        a, b = (np.minimum(k // stride * stride + stride // 2, n - 1) for k, n in zip((i, j), self.grid, strict=True))
        return np.asarray(a * self.grid[1] + b)

    def _overview(self, t: int, r: Array, c: Array, touched: Array) -> tuple[Array, Array, bool]:
        stride, middles = self.lattice(touched)
        thin: dict[int, Array] = {int(k): self._thin_of(t, int(k)) for k in middles}
        known = np.zeros(self.grid[0] * self.grid[1], bool)
        for at in self._thin.keys(t):
            kept = self._thin.get((t, *at))
            if kept is not None:
                thin[at[0] * self.grid[1] + at[1]] = kept
        known[list(thin)] = True
        i, j = (r + self.lead[0]) // self.step[0], (c + self.lead[1]) // self.step[1]
        square = i * self.grid[1] + j
        own = known[square]
        square = np.where(own, square, self._stand_in(i, j, stride))
        # Which of the thinned vectors: the place's own in its own square, else the middle one.
        tall = np.maximum(i * self.step[0] - self.lead[0], 0)
        wide = np.maximum(j * self.step[1] - self.lead[1], 0)
        most = tuple(-(-s // THIN) for s in self.step)
        a = np.where(own, np.minimum((r - tall) // THIN, most[0] - 1), -1)
        b = np.where(own, np.minimum((c - wide) // THIN, most[1] - 1), -1)
        ids, index = np.unique((square * (most[0] + 1) + a + 1) * (most[1] + 1) + b + 1, return_inverse=True)
        which, b = np.divmod(ids, most[1] + 1)
        which, a = np.divmod(which, most[0] + 1)
        out = np.empty((len(ids), self.shape[1]), "float32")
        for k in np.unique(which):
            here = which == k
            v = thin[int(k)]
            rows = np.where(a[here] == 0, v.shape[1] // 2, np.minimum(a[here] - 1, v.shape[1] - 1))
            cols = np.where(b[here] == 0, v.shape[2] // 2, np.minimum(b[here] - 1, v.shape[2] - 1))
            out[here] = v[:, rows, cols].T
        return out, index, bool(known[touched].all())

    def _thin_of(self, t: int, k: int) -> Array:
        key = (t, *divmod(k, self.grid[1]))
        kept = self._thin.get(key)
        return kept if kept is not None else self._thinned(self.square(*key), *key[1:])

    def scatter(self, t: int) -> Array:
        """Vectors (n, channels) from all over the array, within the budget of a tile; valid ones only."""
        every = np.arange(self.grid[0] * self.grid[1])
        squares = every if len(every) <= self.most else self.lattice(every)[1]
        parts = [self._thin_of(t, int(k)).reshape(self.shape[1], -1).T for k in squares]
        vectors = np.concatenate(parts).astype("float32")
        return np.asarray(vectors[np.isfinite(vectors).all(axis=1)])

    def fill(self, t: int, rows: slice, cols: slice) -> Iterator[float]:
        """Read every square of a window, so that overviews of it are complete; yields the share done."""
        (i0, j0), (i1, j1) = self._at(rows.start, cols.start), self._at(rows.stop - 1, cols.stop - 1)
        wanted = [(i, j) for i in range(i0, i1 + 1) for j in range(j0, j1 + 1)]
        for n, (i, j) in enumerate(wanted):
            if self._thin.get((t, i, j)) is None:
                with self._readers:
                    found = self.read(t, *self.window(i, j))
                self._thin.put((t, i, j), self._thinned(found, i, j))
            yield (n + 1) / len(wanted)
