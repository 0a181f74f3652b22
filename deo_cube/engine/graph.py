"""The one module that builds Dask graphs: one task a block, on whatever chunks the cube has.

A block's padded window is cut straight out of the source chunks that it touches. Nothing is rechunked, stacked or
overlapped first, so the numbers cannot depend on the source's chunks, and the graph holds one task a block besides
the source's own (`map_overlap` takes 11 to 16 and seconds of optimisation for the same).

Where Dask's array expressions are on (`array.query-planning`), hand-written graphs are refused by Dask; the same
function is then mapped through public slicing, `blockwise` and `concatenate`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import DataNode, convert_legacy_graph
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from dask.utils import ensure_dict
from numpy.typing import NDArray

from deo_cube.engine.tiles import BlockAxis, TilePlan

__all__ = [
    "RUN_FAILED",
    "BlockIndex",
    "Field",
    "Gather",
    "as_fields",
    "compute_block",
    "cut",
    "map_blocks_with_halo",
    "merged",
    "read_amplification",
    "subgraph",
    "with_loaded_coordinates",
]

Array = NDArray[Any]

#: Start of the note on an error that came from a block's own work, not from reading the cube.
RUN_FAILED = "deo_cube block failed"


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

    def cut(self, time: int, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[int | slice, ...]:
        """Index into the whole array for the pixels ``[rows) x [columns)`` of one time step."""
        t_axis, b_axis, y_axis, _ = self.axes
        at: dict[int | None, int | slice] = {t_axis: time, b_axis: self.band, y_axis: slice(*rows)}
        return tuple(at.get(axis, slice(*columns)) for axis in range(len(self.chunks)))

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
    ends = np.cumsum(chunks)
    found = []
    i = int(np.searchsorted(ends, start, side="right"))
    while i < len(chunks) and (begin := int(ends[i]) - chunks[i]) < stop:
        low, high = max(start, begin), min(stop, int(ends[i]))
        if high > low:
            found.append((i, slice(low - begin, high - begin), slice(low - start, high - start)))
        i += 1
    return found


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

    def pieces(self, index: BlockIndex) -> list[Piece]:
        """Every source chunk that the block needs, group by group, field by field."""
        rows, columns = self._read_ranges(index)
        return [piece for group in self.groups for field in group for piece in field.pieces(index.time, rows, columns)]

    def _block(self, index: BlockIndex) -> tuple[BlockAxis, BlockAxis]:
        return self.plan.rows.block(index.row), self.plan.columns.block(index.column)

    def _source_rows(self, rows: BlockAxis) -> NDArray[np.int64]:
        height = self.plan.shape[0]
        index = rows.source_index(height)
        return height - 1 - index if self.south_up else index

    def _read_ranges(self, index: BlockIndex) -> tuple[tuple[int, int], tuple[int, int]]:
        rows, columns = self._block(index)
        r, c = self._source_rows(rows), columns.source_index(self.plan.shape[1])
        return (int(r.min()), int(r.max()) + 1), (int(c.min()), int(c.max()) + 1)

    def planes(self, index: BlockIndex, chunks: Sequence[Array]) -> Iterator[Array]:
        """Stitch the chunks (in the order of `pieces`) into one plane a field, as the cube has it."""
        rows, columns = self._read_ranges(index)
        feed = iter(chunks)
        for field in (f for group in self.groups for f in group):
            pieces = field.pieces(index.time, rows, columns)
            if len(pieces) == 1:
                plane = next(feed)[pieces[0].cut]
                yield plane.T if field.transposed else plane
                continue
            plane = np.empty((rows[1] - rows[0], columns[1] - columns[0]), field.dtype)
            for piece in pieces:
                values = next(feed)[piece.cut]
                plane[piece.into] = values.T if field.transposed else values
            yield plane

    def windows(self, index: BlockIndex, planes: Iterable[Array]) -> tuple[Array, ...]:
        """Stack the planes group by group: north up, mirrored over the cube's edges."""
        rows, columns = self._block(index)
        (r0, r1), (c0, c1) = self._read_ranges(index)
        r, c = self._source_rows(rows) - r0, columns.source_index(self.plan.shape[1]) - c0
        plain = len(r) == r1 - r0 and len(c) == c1 - c0 and not self.south_up
        feed = iter(planes)
        out = []
        for group in self.groups:
            window = np.empty((len(group), r1 - r0, c1 - c0), np.result_type(*(field.dtype for field in group)))
            for band in window:
                band[...] = next(feed)
            out.append(window if plain else window[:, r[:, None], c[None, :]])
        return tuple(out)


@dataclass(frozen=True)
class _Task:
    """What runs for one block. Frozen and small: every task of the graph shares it."""

    run: Callable[[BlockIndex, tuple[Array, ...]], Array]
    gather: Gather
    reverse_rows: bool = False

    def __call__(self, index: BlockIndex, chunks: Sequence[Array]) -> Array:
        return self.on_planes(index, *self.gather.planes(index, chunks))

    def on_planes(self, index: BlockIndex, *planes: Array) -> Array:
        try:
            out = self.run(index, self.gather.windows(index, planes))
        except Exception as error:
            # Tells a failed encoder, which no retry mends, from a failed read; see store.py.
            error.add_note(f"{RUN_FAILED}: {index}")
            raise
        return out[..., ::-1, :] if self.reverse_rows else out


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
    fields = tuple(Field(array.name, array.chunks, (axes[0], axes[1], y, x), b, array.dtype) for b in bands)
    return fields, array


def with_loaded_coordinates(cube: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """`cube` with its coordinates of no or one dimension in memory.

    ``ds.chunk()`` puts these on Dask as well, though they are dates, offsets and names rather than pixels. Computed in
    this thread, whatever scheduler is set.
    """
    small = {n: c.compute(scheduler="synchronous") for n, c in cube.coords.items() if c.ndim < 2 and c.chunks}
    return cube.assign_coords(small) if small else cube


def map_blocks_with_halo(
    run: Callable[[BlockIndex, tuple[Array, ...]], Array],
    gather: Gather,
    sources: Sequence[Any],
    *,
    times: int,
    leading: tuple[int, ...],
    dtype: np.dtype[Any],
    name: str,
    reverse_rows: bool = False,
) -> Any:
    """Map `run` over the blocks of a plan, one task a block.

    Parameters
    ----------
    run : callable
        ``run(index, windows) -> (1, *leading, rows, columns)``; frozen and deterministic to tokenise.
    gather : Gather
        The windows it is given.
    sources : sequence of dask arrays
        Those that the gather's fields name.
    times : int
        Time steps.
    leading : tuple of int
        Sizes of the dimensions between time and y: ``(D,)`` for embeddings, ``()`` for a mask.
    dtype : dtype
        Of the result.
    name : str
        Start of the graph's key names; the rest is a hash of all that decides the numbers.
    reverse_rows : bool
        Whether the output's rows run south to north, like a south-up cube's.

    Returns
    -------
    dask.array.Array
        ``(times, *leading, rows, columns)``, a chunk a block.
    """
    plan = gather.plan
    token = tokenize(run, gather, [getattr(s, "name", s) for s in sources], times, leading, str(dtype), reverse_rows)
    key = f"{name}-{token}"
    row_chunks, column_chunks = plan.chunks
    n_rows, n_columns = plan.blocks
    chunks = (
        (1,) * times,
        *((n,) for n in leading),
        row_chunks[::-1] if reverse_rows else row_chunks,
        column_chunks,
    )
    task = _Task(run, gather, reverse_rows)
    indices = {
        (t, *(0 for _ in leading), n_rows - 1 - r if reverse_rows else r, c): BlockIndex(t, r, c)
        for t, r, c in product(range(times), range(n_rows), range(n_columns))
    }
    if da.ARRAY_EXPR_ENABLED:
        return _by_public_api(task, sources, indices, chunks, dtype)
    graph = {(key, *at): (task, index, [p.key for p in gather.pieces(index)]) for at, index in indices.items()}
    layered = HighLevelGraph.from_collections(key, graph, dependencies=_unique(sources))
    return da.Array(layered, key, chunks, meta=np.empty((0,) * len(chunks), dtype))


def _unique(sources: Sequence[Any]) -> list[Any]:
    return list({s.name: s for s in sources}.values())


def _by_public_api(
    task: _Task, sources: Sequence[Any], indices: dict[tuple[int, ...], BlockIndex], chunks: Any, dtype: np.dtype[Any]
) -> Any:
    """Do the same through public functions, for Dask's array expressions: slices, `blockwise`, `concatenate`."""
    by_name = {s.name: s for s in sources}
    fields = [f for group in task.gather.groups for f in group]
    out = tuple(range(len(chunks)))
    blocks = np.empty(tuple(len(c) for c in chunks), dtype=object)
    for at, index in indices.items():
        rows, columns = task.gather._read_ranges(index)
        planes: list[Any] = []
        for i, field in enumerate(fields):
            plane = by_name[field.name][field.cut(index.time, rows, columns)]
            planes += [plane.T if field.transposed else plane, (100 + 2 * i, 101 + 2 * i)]
        blocks[at] = da.blockwise(
            partial(task.on_planes, index),
            out,
            *planes,
            new_axes={axis: c[i] for axis, (c, i) in enumerate(zip(chunks, at, strict=True))},
            concatenate=True,
            dtype=dtype,
            meta=np.empty((0,) * len(chunks), dtype),
        )
    for axis in reversed(range(blocks.ndim)):
        joined = np.empty(blocks.shape[:axis], dtype=object)
        for at in np.ndindex(*joined.shape):
            joined[at] = da.concatenate(list(blocks[at]), axis=axis)
        blocks = joined
    return blocks[()]


def read_amplification(gather: Gather) -> float:
    """Pixels read for each pixel of the cube, when every block reads its own chunks: 1.0 is ideal."""
    read = 0
    n_rows, n_columns = gather.plan.blocks
    field = gather.groups[0][0]
    y, x = field.chunks[field.axes[2]], field.chunks[field.axes[3]]
    for r in range(n_rows):
        (r0, r1), _ = gather._read_ranges(BlockIndex(0, r, 0))
        for c in range(n_columns):
            _, (c0, c1) = gather._read_ranges(BlockIndex(0, 0, c))
            read += sum(y[i] for i, _, _ in _overlaps(y, r0, r1)) * sum(x[i] for i, _, _ in _overlaps(x, c0, c1))
    t_axis = field.axes[0]
    steps = max(field.chunks[t_axis]) if t_axis is not None else 1
    return read * steps / (gather.plan.shape[0] * gather.plan.shape[1])


def merged(*arrays: Any) -> HighLevelGraph:
    """One graph of several arrays."""
    return HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays))


def cut(graph: Any, keys: list[Any]) -> dict[Any, Any]:
    """Only what `keys` need, as a flat graph. Not fused: `compute_block` tells reads from blocks by their tasks."""
    return dict(convert_legacy_graph(ensure_dict(graph.cull(set(keys)))))


def subgraph(graph: Mapping[Any, Any], keys: Iterable[Any]) -> dict[Any, Any]:
    """Only what `keys` need of a flat graph."""
    found: dict[Any, Any] = {}
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key not in found:
            found[key] = graph[key]
            todo += graph[key].dependencies
    return found


def compute_block(
    graph: Mapping[Any, Any], keys: list[Any], read: Callable[[list[tuple[Any, Callable[[], Any]]]], list[Any]]
) -> list[Any]:
    """Compute `keys` here, but for the chunks that blocks are cut from: `read` is given (key, call) of each."""
    blocks = [node for node in graph.values() if isinstance(getattr(node, "func", None), _Task)]
    chunks = list(dict.fromkeys(key for node in blocks for key in sorted(node.dependencies, key=str)))
    values = read([(key, partial(_compute_one, graph, key)) for key in chunks])
    known = dict(zip(chunks, (DataNode(k, v) for k, v in zip(chunks, values, strict=True)), strict=True))
    return _evaluate({**graph, **known}, keys)


def _compute_one(graph: Mapping[Any, Any], key: Any) -> Any:
    return _evaluate(graph, [key])[0]


def _evaluate(graph: Mapping[Any, Any], keys: list[Any]) -> list[Any]:
    """Run the tasks that `keys` need, one after another in this thread.

    What `dask.get` does, without a scheduler's millisecond a call: a block asks for its chunks one by one, while other
    threads encode and want the interpreter.
    """
    values: dict[Any, Any] = {}
    todo = list(keys)
    while todo:
        key = todo[-1]
        needed = [] if key in values else [d for d in graph[key].dependencies if d not in values]
        if needed:
            todo += needed
            continue
        todo.pop()
        if key not in values:
            values[key] = graph[key](values)
    return [values[key] for key in keys]
