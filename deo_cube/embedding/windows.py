"""Which source chunks a block needs, and how its window is stitched from them. Integers and numpy only.

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

__all__ = ["BlockIndex", "Field", "Gather", "Piece", "as_fields", "read_amplification"]

Array = NDArray[Any]


@dataclass(frozen=True)
class BlockIndex:
    """Which block: time step, block row, block column (north to south, west to east)."""

    time: int
    row: int
    column: int


@dataclass(frozen=True)
class Field:
    """One band, or one mask, of the cube over time and space: where its pixels are, as chunks.

    `chunks` are Dask's, one tuple per axis. `axes` says which axis is time, band, y and x (None: there is none);
    `band` is the position along the band axis.
    """

    name: str
    chunks: tuple[tuple[int, ...], ...]
    axes: tuple[int | None, int | None, int, int]
    band: int
    dtype: np.dtype[Any]

    def pieces(self, time: int, rows: tuple[int, int], columns: tuple[int, int]) -> list[Piece]:
        """Chunks that hold the pixels ``[rows) x [columns)`` of one time step, with the cuts to make."""
        t_axis, b_axis, y_axis, x_axis = self.axes
        fixed: dict[int, tuple[int, int]] = {}
        for axis, position in ((t_axis, time), (b_axis, self.band)):
            if axis is not None:
                fixed[axis] = _locate(self.chunks[axis], position)
        found = []
        for (yi, ys, yd), (xi, xs, xd) in product(
            _overlaps(self.chunks[y_axis], *rows), _overlaps(self.chunks[x_axis], *columns)
        ):
            key = [0] * len(self.chunks)
            cut: list[int | slice] = [0] * len(self.chunks)
            for axis, (i, inside) in fixed.items():
                key[axis], cut[axis] = i, inside
            key[y_axis], cut[y_axis] = yi, ys
            key[x_axis], cut[x_axis] = xi, xs
            found.append(Piece((self.name, *key), tuple(cut), (yd, xd)))
        return found

    @property
    def transposed(self) -> bool:
        """Whether x comes before y."""
        return self.axes[3] < self.axes[2]


@dataclass(frozen=True)
class Piece:
    """One chunk of a field: its key, what to cut out of it, and where that goes in the window."""

    key: tuple[Any, ...]
    cut: tuple[int | slice, ...]
    into: tuple[slice, slice]


def _locate(chunks: tuple[int, ...], position: int) -> tuple[int, int]:
    """Chunk that holds `position` along an axis, and the position inside it."""
    for i, size in enumerate(chunks):
        if position < size:
            return i, position
        position -= size
    raise IndexError("position lies beyond the last chunk")


def _overlaps(chunks: tuple[int, ...], start: int, stop: int) -> list[tuple[int, slice, slice]]:
    """Chunks that overlap ``[start, stop)``: index, slice inside the chunk, slice inside the window."""
    ends = _ends(chunks)
    found = []
    i = int(np.searchsorted(ends, start, side="right"))
    while i < len(chunks) and (begin := int(ends[i]) - chunks[i]) < stop:
        low, high = max(start, begin), min(stop, int(ends[i]))
        if high > low:
            found.append((i, slice(low - begin, high - begin), slice(low - start, high - start)))
        i += 1
    return found


@lru_cache(maxsize=64)
def _ends(chunks: tuple[int, ...]) -> NDArray[np.int64]:
    return np.cumsum(chunks)


@lru_cache(maxsize=64)
def _shared(chunks: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    """The first of equal `chunks`: bands have the same, and a pickle holds one object once."""
    return chunks


@dataclass(frozen=True)
class Gather:
    """Cuts a block's padded windows out of source chunks: one array a group of fields.

    Parameters
    ----------
    plan : TilePlan
        Rows run north to south.
    groups : tuple of tuples of Field
        The fields of a group are stacked, ``(fields, rows, columns)``, in their common dtype.
    south_up : bool
        Whether the source's first row is the southernmost.
    """

    plan: TilePlan
    groups: tuple[tuple[Field, ...], ...]
    south_up: bool = False

    @property
    def sources(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Chunks of each source array, by its name."""
        return {field.name: field.chunks for group in self.groups for field in group}

    def pieces(self, index: BlockIndex) -> list[Piece]:
        """Every source chunk that the block needs, group by group, field by field."""
        rows, columns = self.read_ranges(index)
        return [piece for group in self.groups for field in group for piece in field.pieces(index.time, rows, columns)]

    def askers(self, index: BlockIndex) -> dict[tuple[Any, ...], int]:
        """For each chunk that the block needs, how many blocks of the whole plan do; 0 where that is not known."""
        ranges = self.read_ranges(index)
        timeless = all(field.axes[0] is None for group in self.groups for field in group)

        @cache
        def along(axis: int, begin: int, end: int) -> int:
            """Blocks along rows or columns, this one among them, that read some of the pixels ``[begin, end)``."""
            both = (takewhile(lambda r: r[0] < end and r[1] > begin, self._beside(index, axis, s)) for s in (-1, 1))
            return 1 + sum(1 for _ in chain(*both))

        found: dict[tuple[Any, ...], int] = {}
        for field in (field for group in self.groups for field in group):
            t_axis, _, *spatial = field.axes
            for piece in field.pieces(index.time, *ranges):
                if piece.key in found:
                    continue
                count = int(timeless) if t_axis is None else field.chunks[t_axis][piece.key[1 + t_axis]]
                for i, axis in enumerate(spatial):
                    end = int(_ends(field.chunks[axis])[piece.key[1 + axis]])
                    count *= along(i, end - field.chunks[axis][piece.key[1 + axis]], end)
                found[piece.key] = count
        return found

    def _beside(self, index: BlockIndex, axis: int, step: int) -> Iterator[tuple[int, int]]:
        """What the blocks before (`step` -1) or after this one read along rows (`axis` 0) or columns, one by one."""
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
        """Rows and columns of the source that the block's windows are cut from."""
        rows, columns = self._block(index)
        r, c = self._source_rows(rows), columns.source_index(self.plan.shape[1])
        return (int(r.min()), int(r.max()) + 1), (int(c.min()), int(c.max()) + 1)

    def windows(self, index: BlockIndex, chunks: Sequence[Array]) -> tuple[Array, ...]:
        """Stitch the chunks (in the order of `pieces`) group by group: north up, mirrored over the cube's edges."""
        rows, columns = self.read_ranges(index)
        feed = iter(chunks)

        def fill(source: Array, group: Sequence[Field]) -> None:
            for band, field in zip(source, group, strict=True):
                for piece in field.pieces(index.time, rows, columns):
                    values = next(feed)[piece.cut]
                    band[piece.into] = values.T if field.transposed else values

        return tuple(self._window(index, group, fill) for group in self.groups)

    def _window(
        self, index: BlockIndex, group: tuple[Field, ...], fill: Callable[[Array, tuple[Field, ...]], None]
    ) -> Array:
        """A window whose source, as the cube has it, `fill` writes; what lies over the cube's edge mirrors it."""
        axes = self._block(index)
        sources = [axis.source_index(size) for axis, size in zip(axes, self.plan.shape, strict=True)]
        starts = [int(s.min()) for s in sources]
        shape = tuple(int(s.max()) + 1 - start for s, start in zip(sources, starts, strict=True))
        before = [max(0, -axis.read_start) for axis in axes]
        stops = [min(axis.read_stop, size) for axis, size in zip(axes, self.plan.shape, strict=True)]
        inside = tuple(stop - max(axis.read_start, 0) for axis, stop in zip(axes, stops, strict=True))
        dtype = np.result_type(*(field.dtype for field in group))
        if shape != inside:
            # Mirrored so far that the window needs pixels of which it has only the mirror image.
            source = np.empty((len(group), *shape), dtype)
            fill(source[:, ::-1] if self.south_up else source, group)
            return source.take(sources[0] - starts[0], axis=1).take(sources[1] - starts[1], axis=2)
        window = np.empty((len(group), *map(len, sources)), dtype)
        (top, left), (height, width) = before, inside
        source = window[:, top : top + height, left : left + width]
        fill(source[:, ::-1] if self.south_up else source, group)
        # In place, strip by strip: a copy of the whole costs as much as all else around the encoder.
        rows, columns = (s - start + b for s, start, b in zip(sources, starts, before, strict=True))
        over = rows != np.arange(len(rows))
        window[:, over, left : left + width] = window[:, rows[over], left : left + width]
        over = columns != np.arange(len(columns))
        window[:, :, over] = window[:, :, columns[over]]
        return window


def as_fields(
    variable: xr.Variable, dims: tuple[str | None, str | None, str, str], bands: Sequence[int], like: int
) -> tuple[tuple[Field, ...], Any]:
    """Fields of a cube's variable, and the Dask array that holds them.

    Parameters
    ----------
    variable : xarray.Variable
        On Dask, in memory, or lazily read; the latter two are cut into chunks of about `like` pixels, without reading.
    dims : names of time, band, y and x
        None where the cube has no such dimension.
    bands : positions along the band dimension
        Ignored where there is none, but for their number.
    like : int
        Chunk size in pixels for what is not on Dask.
    """
    if variable.chunks is None:
        sizes = {d: like if d in dims[2:] else 1 if d == dims[0] else -1 for d in variable.dims}
        variable = variable.chunk(sizes)
    array = variable.data
    # A variable without the time dimension (a static mask) holds for every time step.
    axes = [variable.dims.index(d) if d is not None and d in variable.dims else None for d in dims[:2]]
    y, x = variable.dims.index(dims[2]), variable.dims.index(dims[3])
    fields = tuple(Field(array.name, _shared(array.chunks), (axes[0], axes[1], y, x), b, array.dtype) for b in bands)
    return fields, array


def read_amplification(gather: Gather) -> float:
    """Pixels read for each pixel of the cube, when every block reads its own chunks: 1.0 is ideal."""
    n_rows, n_columns = gather.plan.blocks
    field = gather.groups[0][0]
    y, x = field.chunks[field.axes[2]], field.chunks[field.axes[3]]
    rows = [gather.read_ranges(BlockIndex(0, r, 0))[0] for r in range(n_rows)]
    columns = [gather.read_ranges(BlockIndex(0, 0, c))[1] for c in range(n_columns)]
    # What a block reads is a product of a row's part and a column's part, and so is the sum over all blocks.
    read = sum(y[i] for r in rows for i, _, _ in _overlaps(y, *r)) * sum(
        x[i] for c in columns for i, _, _ in _overlaps(x, *c)
    )
    t_axis = field.axes[0]
    steps = max(field.chunks[t_axis]) if t_axis is not None else 1
    return float(read * steps / (gather.plan.shape[0] * gather.plan.shape[1]))
