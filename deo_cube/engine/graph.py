"""The one module that builds Dask graphs: one task a block, on whatever chunks the cube has.

The graph holds one task a block besides the source's own (`map_overlap` takes 11 to 16 and seconds of optimisation for
the same), see `gather.py`. Its layer is lazy: a task is made when it is asked for, so that a million blocks cost as
little as one until they run, and `cut` takes a few blocks out of such a graph without listing the others.

Where Dask's array expressions are on (`array.query-planning`), hand-written graphs are refused by Dask; the same
function is then mapped through public slicing, `blockwise` and `concatenate`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from math import prod
from numbers import Integral
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr
import zarr
from dask._task_spec import DataNode, GraphNode, List, Task, TaskRef, convert_legacy_task
from dask.base import tokenize
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from numpy.typing import NDArray

from deo_cube.engine.gather import BlockIndex, Field, Gather, as_fields, read_amplification
from deo_cube.engine.read import Load

__all__ = [
    "RUN_FAILED",
    "BlockIndex",
    "BlockLayer",
    "Field",
    "Gather",
    "as_fields",
    "blocks_of",
    "compute_block",
    "compute_one",
    "cut",
    "derived",
    "map_blocks_with_halo",
    "merged",
    "read_amplification",
    "runs",
    "stored",
    "subgraph",
    "with_loaded_coordinates",
]

Array = NDArray[Any]

#: Start of the note on an error that came from a block's own work, not from reading the cube.
RUN_FAILED = "deo_cube block failed"


@dataclass(frozen=True)
class _Task:
    """What runs for one block. Frozen and small: every task of the graph shares it."""

    run: Callable[[BlockIndex, tuple[Array, ...]], Array]
    gather: Gather
    reverse_rows: bool = False

    def __call__(self, index: BlockIndex, chunks: Sequence[Array]) -> Array:
        return self.on_windows(index, self.gather.windows(index, chunks))

    def on_planes(self, index: BlockIndex, *planes: Array) -> Array:
        return self.on_windows(index, self.gather.windows_of_planes(index, planes))

    def on_windows(self, index: BlockIndex, windows: tuple[Array, ...]) -> Array:
        try:
            out = self.run(index, windows)
        except Exception as error:
            # Tells a failed encoder, which no retry mends, from a failed read; see store.py.
            error.add_note(f"{RUN_FAILED}: {index}")
            raise
        return out[..., ::-1, :] if self.reverse_rows else out


class BlockLayer(Layer):  # type: ignore[misc]
    """The tasks of all blocks, each made when it is asked for.

    Parameters
    ----------
    name : str
        Of the array: the first element of its keys.
    task : _Task
        What runs for each block.
    blocks : tuple of int
        Chunks along each axis of the array.
    """

    def __init__(self, name: str, task: _Task, blocks: tuple[int, ...], annotations: Any = None) -> None:
        super().__init__(annotations=annotations)
        self.output = name
        self.task = task
        self.blocks = blocks

    @property
    def has_legacy_tasks(self) -> bool:
        """None; asked by Dask, which would look at every task."""
        return False

    def is_materialized(self) -> bool:
        """Never: no task is kept."""
        return False

    def get_output_keys(self) -> Collection[Any]:
        """All keys, as a view that lists none."""
        return self.keys()  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, tuple)
            and len(key) == 1 + len(self.blocks)
            and key[0] == self.output
            and all(isinstance(i, Integral) and 0 <= int(i) < n for i, n in zip(key[1:], self.blocks, strict=True))
        )

    def __getitem__(self, key: Any) -> Task:
        if key not in self:
            raise KeyError(key)
        row = self.blocks[-2] - 1 - key[-2] if self.task.reverse_rows else key[-2]
        index = BlockIndex(key[1], row, key[-1])
        return Task(key, self.task, index, List(*(TaskRef(p.key) for p in self.task.gather.pieces(index))))

    def __iter__(self) -> Iterator[Any]:
        return ((self.output, *at) for at in product(*map(range, self.blocks)))

    def __len__(self) -> int:
        return prod(self.blocks)

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Make the tasks called `keys`, and name what they need."""
        tasks = {key: self[key] for key in keys if key in self}
        needed = {key: set(task.dependencies) for key, task in tasks.items()}
        return MaterializedLayer(tasks, annotations=self.annotations), needed


def with_loaded_coordinates(cube: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """`cube` with its coordinates of no or one dimension in memory.

    ``ds.chunk()`` puts these on Dask as well, though they are dates, offsets and names rather than pixels. Computed in
    this thread, whatever scheduler is set.
    """
    small = {
        n: c.compute(scheduler="synchronous")
        for n, c in cube.coords.items()
        if c.ndim < 2 and c.chunks and isinstance(c.data, da.Array)
    }
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
    chunks = (
        (1,) * times,
        *((n,) for n in leading),
        row_chunks[::-1] if reverse_rows else row_chunks,
        column_chunks,
    )
    task = _Task(run, gather, reverse_rows)
    blocks = tuple(len(c) for c in chunks)
    if da.ARRAY_EXPR_ENABLED:
        return _by_public_api(task, sources, blocks, chunks, dtype)
    layer = BlockLayer(key, task, blocks)
    layered = HighLevelGraph.from_collections(key, layer, dependencies=_unique(sources))
    return da.Array(layered, key, chunks, meta=np.empty((0,) * len(chunks), dtype))


def _unique(sources: Sequence[Any]) -> list[Any]:
    return list({s.name: s for s in sources}.values())


def _by_public_api(
    task: _Task, sources: Sequence[Any], counts: tuple[int, ...], chunks: Any, dtype: np.dtype[Any]
) -> Any:
    """Do the same through public functions, for Dask's array expressions: slices, `blockwise`, `concatenate`."""
    by_name = {s.name: s for s in sources}
    fields = [f for group in task.gather.groups for f in group]
    out = tuple(range(len(chunks)))
    blocks = np.empty(counts, dtype=object)
    for at in np.ndindex(*counts):
        index = BlockIndex(at[0], counts[-2] - 1 - at[-2] if task.reverse_rows else at[-2], at[-1])
        rows, columns = task.gather.read_ranges(index)
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


def runs(array: Any) -> list[Any]:
    """The callables that run for the blocks which `array` is made of: `EmbedBlock`, `ValidBlock`."""
    layers = getattr(array.__dask_graph__(), "layers", {})
    return [layer.task.run for layer in layers.values() if isinstance(layer, BlockLayer)]


def blocks_of(part: Mapping[Any, Any], kind: type) -> list[tuple[Any, Gather, BlockIndex]]:
    """The blocks in a flat graph that a `kind` of callable runs for: that callable, its gather, and which block."""
    tasks = [node for node in part.values() if isinstance(getattr(node, "func", None), _Task)]
    return [(t.func.run, t.func.gather, t.args[0]) for t in tasks if isinstance(t.func.run, kind)]


def stored(array: Any) -> list[Any]:
    """The Zarr arrays that xarray would read `array` from; empty where it comes from anything else."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    # Dask keeps what a graph reads from in a layer of its own, which holds nothing else.
    values = [v for name, layer in layers.items() if str(name).startswith("original-") for v in layer.values()]
    found = []
    for value in values:
        inner = getattr(value, "value", value)
        while hasattr(inner, "array"):
            inner = inner.array
        found.append(getattr(inner, "_array", None))
    return [a for a in found if isinstance(a, zarr.Array)]


#: Layers that cut, chunk or turn an array, and change none of its values (a cast is told by the dtype).
_SAME_VALUES = ("getitem", "rechunk", "transpose", "astype", "concatenate", "stack", "blocks")


def derived(array: Any) -> list[str]:
    """What was made of the blocks' values on the way to `array`, as Dask calls it: ``["mul"]`` for ``2 * emb``."""
    graph = array.__dask_graph__()
    layers = getattr(graph, "layers", {})
    after = {name for name, layer in layers.items() if isinstance(layer, BlockLayer)}
    made: list[str] = []
    for name in graph._toposort_layers() if after else ():
        if name not in after and graph.dependencies[name] & after:
            after.add(name)
            kind = name.rpartition("-")[0]
            made += [] if kind.startswith(_SAME_VALUES) else [kind]
    return made


def merged(*arrays: Any) -> HighLevelGraph:
    """One graph of several arrays."""
    return HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays))


class _Keys:
    """Whether a graph has a key, without listing its keys."""

    def __init__(self, graph: HighLevelGraph) -> None:
        self._lazy = {layer.output for layer in graph.layers.values() if isinstance(layer, (Blockwise, BlockLayer))}
        self._listed = [layer for layer in graph.layers.values() if not isinstance(layer, (Blockwise, BlockLayer))]

    def __contains__(self, key: object) -> bool:
        try:
            return (isinstance(key, tuple) and bool(key) and key[0] in self._lazy) or any(
                key in layer for layer in self._listed
            )
        except TypeError:  # not hashable, so no key
            return False

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError("a graph's keys are not listed")


def cut(graph: HighLevelGraph, keys: Iterable[Any]) -> dict[Any, Any]:
    """Only what `keys` need, as a flat graph. Not fused: `compute_block` tells reads from blocks by their tasks.

    `HighLevelGraph.cull` does the same, but lists all keys of layers on the way, each time.
    """
    found: dict[Any, Any] = {}
    wanted = set(keys)
    known = _Keys(graph)
    for name in reversed(graph._toposort_layers()):
        layer = graph.layers[name]
        if isinstance(layer, (Blockwise, BlockLayer)):
            mine = {k for k in wanted if isinstance(k, tuple) and k[0] == layer.output}
            if mine:
                wanted -= mine
                culled, needed = layer.cull(mine, ())
                found.update(culled)
                wanted.update(*needed.values())
            continue
        todo = [k for k in wanted if k in layer]
        wanted.difference_update(todo)
        while todo:
            key = todo.pop()
            if key in found:
                continue
            found[key] = node = convert_legacy_task(key, layer[key], known)
            if not isinstance(node, GraphNode):
                found[key] = node = DataNode(key, node)
            for other in node.dependencies:
                (todo.append if other in layer else wanted.add)(other)
    return found


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


def compute_block(graph: Mapping[Any, Any], keys: list[Any], read: Callable[[list[Load]], list[Any]]) -> list[Any]:
    """Compute `keys` here, but for the chunks that blocks are cut from, which `read` loads."""
    blocks = [node for node in graph.values() if isinstance(getattr(node, "func", None), _Task)]
    chunks = list(dict.fromkeys(key for node in blocks for key in sorted(node.dependencies, key=str)))
    shapes = {name: chunk for node in blocks for name, chunk in node.func.gather.sources.items()}
    # Embeddings and valid fractions are cut by the same gather: it is asked once.
    gathers = {(id(node.func.gather), node.args[0]): node.func.gather for node in blocks}
    askers = {key: n for (_, index), gather in gathers.items() for key, n in gather.askers(index).items()}
    loads = [Load(key, partial(_chunk, graph, key, shapes[key[0]]), askers[key]) for key in chunks]
    values = dict(zip(chunks, read(loads), strict=True))
    # Embeddings and valid fractions are cut from the same windows, which are gathered once.
    windows: dict[tuple[int, BlockIndex], tuple[Array, ...]] = {}
    known: dict[Any, Any] = {}
    for node in blocks:
        task, index = node.func, node.args[0]
        at = (id(task.gather), index)
        if at not in windows:
            windows[at] = task.gather.windows(index, [values[p.key] for p in task.gather.pieces(index)])
        known[node.key] = DataNode(node.key, task.on_windows(index, windows[at]))
    return _evaluate({**graph, **known}, keys)


def _chunk(graph: Mapping[Any, Any], key: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """Read a source chunk, and make sure that it is whole: NumPy would stretch a short one silently."""
    value = compute_one(graph, key)
    wanted = tuple(sizes[i] for sizes, i in zip(chunks, key[1:], strict=True))
    if np.shape(value) != wanted:
        raise OSError(f"chunk {key} came back with the shape {np.shape(value)}, but the cube says {wanted}")
    return value


def compute_one(graph: Mapping[Any, Any], key: Any) -> Any:
    """Compute one key of a flat graph in this thread."""
    return _evaluate(graph, [key])[0]


def _evaluate(graph: Mapping[Any, Any], keys: list[Any]) -> list[Any]:
    """Run the tasks that `keys` need, one after another in this thread.

    What `dask.get` does, without a scheduler's millisecond a call: a block asks for its chunks one by one, while other
    threads encode and want the interpreter.
    """
    values: dict[Any, Any] = {}
    todo = list(reversed(keys))  # the first key first: embeddings before valid fractions, as encoding is the long part
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
