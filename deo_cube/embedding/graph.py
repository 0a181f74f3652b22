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

from deo_cube.embedding.windows import BlockIndex, Field, Gather, as_fields, read_amplification

__all__ = [
    "RUN_FAILED",
    "BlockIndex",
    "BlockLayer",
    "BlockTask",
    "Field",
    "Gather",
    "as_fields",
    "block_layers",
    "blocks_of",
    "cut",
    "derived",
    "map_blocks_with_halo",
    "merged",
    "read_amplification",
    "runs",
    "sources",
    "stored",
    "with_loaded_coordinates",
]

Array = NDArray[Any]

#: Start of the note on an error that came from a block's own work, not from reading the cube.
RUN_FAILED = "deo_cube block failed"


@dataclass(frozen=True)
class BlockTask:
    """What runs for one block. Frozen and small: every task of the graph shares it."""

    run: Callable[[BlockIndex, tuple[Array, ...]], Array]
    gather: Gather
    reverse_rows: bool = False

    def __call__(self, index: BlockIndex, chunks: Sequence[Array]) -> Array:
        """Run on source chunks, in the order of `Gather.pieces`."""
        return self.on_windows(index, self.gather.windows(index, chunks))

    def on_planes(self, index: BlockIndex, *planes: Array) -> Array:
        """Run on one array per field."""
        return self.on_windows(index, self.gather.windows_of_planes(index, planes))

    def on_windows(self, index: BlockIndex, windows: tuple[Array, ...], *, stand_in: bool = False) -> Array:
        """Run on the windows of a block; with `stand_in`, an encoder gives numbers that depend on the place alone."""
        try:
            run = getattr(self.run, "stand_in", self.run) if stand_in else self.run
            out = run(index, windows)
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
    task : BlockTask
        What runs for each block.
    blocks : tuple of int
        Chunks along each axis of the array.
    """

    def __init__(self, name: str, task: BlockTask, blocks: tuple[int, ...], annotations: Any = None) -> None:
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
    task = BlockTask(run, gather, reverse_rows)
    blocks = tuple(len(c) for c in chunks)
    if da.ARRAY_EXPR_ENABLED:
        return _by_public_api(task, sources, blocks, chunks, dtype)
    layer = BlockLayer(key, task, blocks)
    layered = HighLevelGraph.from_collections(key, layer, dependencies=_unique(sources))
    return da.Array(layered, key, chunks, meta=np.empty((0,) * len(chunks), dtype))


def _unique(sources: Sequence[Any]) -> list[Any]:
    return list({s.name: s for s in sources}.values())


def _by_public_api(
    task: BlockTask, sources: Sequence[Any], counts: tuple[int, ...], chunks: Any, dtype: np.dtype[Any]
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
    return [layer.task.run for layer in block_layers(array)]


def block_layers(array: Any) -> list[BlockLayer]:
    """The layers of blocks that `array` is made of."""
    layers = getattr(array.__dask_graph__(), "layers", {})
    return [layer for layer in layers.values() if isinstance(layer, BlockLayer)]


def sources(*arrays: Any) -> list[Any] | None:
    """Return what arrays are read from: Zarr arrays that xarray opened, files that odc-stac opens (with their `uri`).

    None where anything else is among the sources: arrays in memory, functions that read, other kinds of files.
    """
    found: dict[int, Any] = {}
    for array in arrays:
        graph = array.__dask_graph__()
        for name, layer in getattr(graph, "layers", {}).items():
            leaf = not graph.dependencies[name]
            if isinstance(layer, (Blockwise, BlockLayer)):
                if leaf:
                    return None
                continue
            for value in layer.values():
                if isinstance(value, tuple) and value and callable(value[0]):
                    some = [a for a in value[1:] if hasattr(a, "uri")]
                elif isinstance(value, GraphNode) and not isinstance(value, DataNode):
                    some = []
                else:
                    inner = _unwrapped(getattr(value, "value", value))
                    if type(inner).__module__.startswith("odc."):
                        continue  # how files are read, not what
                    some = [inner] if isinstance(inner, zarr.Array) or hasattr(inner, "uri") else []
                    leaf = leaf or not some
                if leaf and not some:
                    return None
                found |= {id(one): one for one in some}
    return list(found.values())


def blocks_of(part: Mapping[Any, Any], kind: type) -> list[tuple[Any, Gather, BlockIndex]]:
    """The blocks in a flat graph that a `kind` of callable runs for: that callable, its gather, and which block."""
    tasks = [node for node in part.values() if isinstance(getattr(node, "func", None), BlockTask)]
    return [(t.func.run, t.func.gather, t.args[0]) for t in tasks if isinstance(t.func.run, kind)]


def stored(array: Any) -> list[Any]:
    """The Zarr arrays that xarray would read `array` from; empty where it comes from anything else."""
    layers = getattr(getattr(array, "dask", None), "layers", {})
    # Dask keeps what a graph reads from in a layer of its own, which holds nothing else.
    values = [v for name, layer in layers.items() if str(name).startswith("original-") for v in layer.values()]
    return [a for a in (_unwrapped(getattr(v, "value", v)) for v in values) if isinstance(a, zarr.Array)]


def _unwrapped(value: Any) -> Any:
    """What xarray's lazily indexed arrays read from; any other value as it is."""
    inner = value
    while hasattr(inner, "array") and type(inner).__module__.startswith("xarray."):
        inner = inner.array
    # There is no public way from xarray's wrapper of a Zarr array to that array.
    return getattr(inner, "_array", inner) if type(inner).__module__.startswith("xarray.") else inner


#: Layers that read, cut, chunk or turn an array, and change none of its values (a cast is told by the dtype).
_SAME_VALUES = (
    *("getitem", "rechunk", "transpose", "astype", "concatenate", "stack", "blocks"),
    *("open_dataset", "original", "xarray", "array"),
)


def derived(array: Any) -> list[str]:
    """Return what was computed on the way from embeddings to `array`, as Dask calls it: ``["mul"]`` for ``2 * emb``."""
    graph = array.__dask_graph__()
    layers = getattr(graph, "layers", {})
    after = {name for name, layer in layers.items() if isinstance(layer, BlockLayer)}
    if not after:  # embeddings that were opened
        after = {name for name in layers if not graph.dependencies[name]}
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
    """Only what `keys` need, as a flat graph. Not fused: `compute.py` tells reads from blocks by their tasks.

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
