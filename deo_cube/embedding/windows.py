"""Find the source chunks that a block needs, and stitch its window from them. Integers and NumPy only.

A block's padded window is cut straight out of the source chunks that it touches. Nothing is rechunked, stacked or
overlapped first, so the numbers cannot depend on the source's chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import chain, product, takewhile
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.embedding.tiles import BlockAxis, TilePlan

__all__ = ["BlockIndex", "BandSource", "WindowReader", "ChunkSlice", "band_sources", "read_amplification"]

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockIndex:
    """Position of a block: time step, block row, block column (north to south, west to east)."""

    time: int
    row: int
    column: int


@dataclass(frozen=True)
class BandSource:
    """The chunks that hold one band, or one mask, of the cube over time and space.

    Parameters
    ----------
    name : str
        Of the Dask array.
    chunks : tuple of tuple of int
        Dask's, one tuple per axis.
    axes : tuple of int or None
        The axes of time, band, y and x; None for a missing time or band axis.
    band : int
        Position along the band axis.
    dtype : dtype
        Of the array.
    """

    name: str
    chunks: tuple[tuple[int, ...], ...]
    axes: tuple[int | None, int | None, int, int]
    band: int
    dtype: np.dtype[Any]

    def chunk_slices(self, time: int, rows: tuple[int, int], columns: tuple[int, int]) -> list[ChunkSlice]:
        """Return the chunks that hold the pixels ``[rows) x [columns)`` of one time step, and what to cut of each."""
        t_axis, b_axis, y_axis, x_axis = self.axes
        fixed: dict[int, tuple[int, int]] = {}
        for axis, position in ((t_axis, time), (b_axis, self.band)):
            if axis is not None:
                fixed[axis] = _locate(self.chunks[axis], position)
        slices = []
        for (yi, ys, yd), (xi, xs, xd) in product(
            _overlaps(self.chunks[y_axis], *rows), _overlaps(self.chunks[x_axis], *columns)
        ):
            key = [0] * len(self.chunks)
            cut: list[int | slice] = [0] * len(self.chunks)
            for axis, (i, inside) in fixed.items():
                key[axis], cut[axis] = i, inside
            key[y_axis], cut[y_axis] = yi, ys
            key[x_axis], cut[x_axis] = xi, xs
            slices.append(ChunkSlice((self.name, *key), tuple(cut), (yd, xd)))
        return slices

    @property
    def transposed(self) -> bool:
        """True if x comes before y."""
        return self.axes[3] < self.axes[2]


@dataclass(frozen=True)
class ChunkSlice:
    """The part of a chunk that a window needs: the chunk's key, the slice of it, and its place in the window."""

    key: tuple[Any, ...]
    cut: tuple[int | slice, ...]
    into: tuple[slice, slice]


def _locate(chunks: tuple[int, ...], position: int) -> tuple[int, int]:
    """Return the chunk that holds `position` along an axis, and the position inside it."""
    for i, size in enumerate(chunks):
        if position < size:
            return i, position
        position -= size
    raise IndexError("position is beyond the last chunk")


def _overlaps(chunks: tuple[int, ...], start: int, stop: int) -> list[tuple[int, slice, slice]]:
    """Return the chunks that overlap ``[start, stop)``: index, slice inside the chunk, slice inside the window."""
    ends = _ends(chunks)
    overlaps = []
    i = int(np.searchsorted(ends, start, side="right"))
    while i < len(chunks) and (begin := int(ends[i]) - chunks[i]) < stop:
        low, high = max(start, begin), min(stop, int(ends[i]))
        if high > low:
            overlaps.append((i, slice(low - begin, high - begin), slice(low - start, high - start)))
        i += 1
    return overlaps


@lru_cache(maxsize=64)
def _ends(chunks: tuple[int, ...]) -> NDArray[np.int64]:
    return np.cumsum(chunks)


@lru_cache(maxsize=64)
def _shared(chunks: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """Return the first of equal `chunks`: bands have the same chunks, and a pickle holds an object once."""
    return chunks


@dataclass(frozen=True)
class WindowReader:
    """Cuts the padded windows of blocks out of source chunks: one array per group of sources.

    Parameters
    ----------
    plan : TilePlan
        Rows run north to south.
    groups : tuple of tuples of BandSource
        The sources of a group are stacked, ``(sources, rows, columns)``, in their common dtype.
    south_up : bool
        Whether the source's first row is the southernmost.
    """

    plan: TilePlan
    groups: tuple[tuple[BandSource, ...], ...]
    south_up: bool = False

    @property
    def sources(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Return the chunks of each source array, by its name."""
        return {band_source.name: band_source.chunks for group in self.groups for band_source in group}

    def chunk_slices(self, index: BlockIndex) -> list[ChunkSlice]:
        """Return every part of a source chunk that the block needs, group by group, source by source."""
        rows, columns = self.read_ranges(index)
        return [
            part
            for group in self.groups
            for band_source in group
            for part in band_source.chunk_slices(index.time, rows, columns)
        ]

    def readers_per_chunk(self, index: BlockIndex) -> dict[tuple[Any, ...], int]:
        """Return, for each chunk that the block needs, how many blocks of the plan do; 0 where that is not known."""
        ranges = self.read_ranges(index)
        timeless = all(band_source.axes[0] is None for group in self.groups for band_source in group)

        @cache
        def along(axis: int, begin: int, end: int) -> int:
            """Count the blocks along rows or columns, this one included, that read some of ``[begin, end)``."""
            both = (takewhile(lambda r: r[0] < end and r[1] > begin, self._beside(index, axis, s)) for s in (-1, 1))
            return 1 + sum(1 for _ in chain(*both))

        readers: dict[tuple[Any, ...], int] = {}
        for band_source in (band_source for group in self.groups for band_source in group):
            t_axis, _, *spatial = band_source.axes
            for part in band_source.chunk_slices(index.time, *ranges):
                if part.key in readers:
                    continue
                count = int(timeless) if t_axis is None else band_source.chunks[t_axis][part.key[1 + t_axis]]
                for i, axis in enumerate(spatial):
                    end = int(_ends(band_source.chunks[axis])[part.key[1 + axis]])
                    count *= along(i, end - band_source.chunks[axis][part.key[1 + axis]], end)
                readers[part.key] = count
        return readers

    def _beside(self, index: BlockIndex, axis: int, step: int) -> Iterator[tuple[int, int]]:
        """Yield the ranges along rows (`axis` 0) or columns of the blocks before (`step` -1) or after this one."""
        at = [index.row, index.column]
        while 0 <= at[axis] + step < self.plan.blocks[axis]:
            at[axis] += step
            yield self.read_ranges(BlockIndex(index.time, *at))[axis]

    def _block(self, index: BlockIndex) -> tuple[BlockAxis, BlockAxis]:
        return self.plan.rows.block(index.row), self.plan.columns.block(index.column)

    def _source_rows(self, rows: BlockAxis) -> NDArray[np.int64]:
        height = self.plan.shape[0]
        index = rows.source_index(height)
        return height - 1 - index if self.south_up else index

    def read_ranges(self, index: BlockIndex) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return the rows and columns of the source that the block's windows are cut from."""
        rows, columns = self._block(index)
        r, c = self._source_rows(rows), columns.source_index(self.plan.shape[1])
        return (int(r.min()), int(r.max()) + 1), (int(c.min()), int(c.max()) + 1)

    def windows(self, index: BlockIndex, chunks: Sequence[Array]) -> tuple[Array, ...]:
        """Stitch the chunks (in the order of `chunk_slices`) group by group: north up, mirrored at the cube's edges."""
        rows, columns = self.read_ranges(index)
        feed = iter(chunks)

        def fill(source: Array, group: Sequence[BandSource]) -> None:
            for band, band_source in zip(source, group, strict=True):
                for part in band_source.chunk_slices(index.time, rows, columns):
                    values = next(feed)[part.cut]
                    band[part.into] = values.T if band_source.transposed else values

        return tuple(self._window(index, group, fill) for group in self.groups)

    def _window(
        self, index: BlockIndex, group: tuple[BandSource, ...], fill: Callable[[Array, tuple[BandSource, ...]], None]
    ) -> Array:
        """Return a window: `fill` writes the part inside the cube, in the cube's order; the rest mirrors it."""
        axes = self._block(index)
        sources = [axis.source_index(size) for axis, size in zip(axes, self.plan.shape, strict=True)]
        starts = [int(s.min()) for s in sources]
        shape = tuple(int(s.max()) + 1 - start for s, start in zip(sources, starts, strict=True))
        before = [max(0, -axis.read_start) for axis in axes]
        stops = [min(axis.read_stop, size) for axis, size in zip(axes, self.plan.shape, strict=True)]
        inside = tuple(stop - max(axis.read_start, 0) for axis, stop in zip(axes, stops, strict=True))
        dtype = np.result_type(*(band_source.dtype for band_source in group))
        if shape != inside:
            # The halo is larger than the part inside the cube, so mirrored pixels are mirrored again.
            source = np.empty((len(group), *shape), dtype)
            fill(source[:, ::-1] if self.south_up else source, group)
            return source.take(sources[0] - starts[0], axis=1).take(sources[1] - starts[1], axis=2)
        window = np.empty((len(group), *map(len, sources)), dtype)
        (top, left), (height, width) = before, inside
        source = window[:, top : top + height, left : left + width]
        fill(source[:, ::-1] if self.south_up else source, group)
        # In place, strip by strip: a copy of the whole window costs as much as everything else around the encoder.
        rows, columns = (s - start + b for s, start, b in zip(sources, starts, before, strict=True))
        over = rows != np.arange(len(rows))
        window[:, over, left : left + width] = window[:, rows[over], left : left + width]
        over = columns != np.arange(len(columns))
        window[:, :, over] = window[:, :, columns[over]]
        return window


def band_sources(
    variable: xr.Variable, dims: tuple[str | None, str | None, str, str], bands: Sequence[int], like: int
) -> tuple[tuple[BandSource, ...], Any]:
    """Return the sources of a cube's variable, one per band, and the Dask array that holds them.

    Parameters
    ----------
    variable : xarray.Variable
        On Dask, in memory, or lazily read; the latter two are cut into chunks of about `like` pixels, without reading.
    dims : names of time, band, y and x
        None where the cube has no such dimension.
    bands : positions along the band dimension
        Without such a dimension only their number counts.
    like : int
        Chunk size in pixels of variables that are not on Dask.
    """
    if variable.chunks is None:
        sizes = {d: like if d in dims[2:] else 1 if d == dims[0] else -1 for d in variable.dims}
        variable = variable.chunk(sizes)
    array = variable.data
    # A variable without the time dimension (a static mask) holds for every time step.
    axes = [variable.dims.index(d) if d is not None and d in variable.dims else None for d in dims[:2]]
    y, x = variable.dims.index(dims[2]), variable.dims.index(dims[3])
    sources = tuple(
        BandSource(array.name, _shared(array.chunks), (axes[0], axes[1], y, x), b, array.dtype) for b in bands
    )
    return sources, array


def read_amplification(window_reader: WindowReader) -> float:
    """Return the pixels read per pixel of the cube if every block reads its own chunks: 1.0 is ideal."""
    n_rows, n_columns = window_reader.plan.blocks
    band_source = window_reader.groups[0][0]
    y, x = band_source.chunks[band_source.axes[2]], band_source.chunks[band_source.axes[3]]
    rows = [window_reader.read_ranges(BlockIndex(0, r, 0))[0] for r in range(n_rows)]
    columns = [window_reader.read_ranges(BlockIndex(0, 0, c))[1] for c in range(n_columns)]
    # The pixels of a block are a product of rows and columns, and so is the sum over all blocks.
    read = sum(y[i] for r in rows for i, _, _ in _overlaps(y, *r)) * sum(
        x[i] for c in columns for i, _, _ in _overlaps(x, *c)
    )
    t_axis = band_source.axes[0]
    steps = max(band_source.chunks[t_axis]) if t_axis is not None else 1
    return float(read * steps / (window_reader.plan.shape[0] * window_reader.plan.shape[1]))
