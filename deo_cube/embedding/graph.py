"""Build the Dask graph of embeddings: one task per block, on whatever chunks the cube has.

Besides the source's own tasks the graph holds one task per block (`map_overlap` takes 11 to 16 and seconds of
optimisation for the same), see `windows.py`. A task may give several arrays, as values and valid fraction; each array
then picks its own out of the task's result. Layers are lazy: a task is made on request, so that a million
blocks cost as little as one until they run, and `tasks.cut` takes a few blocks out of such a graph without listing
others.

Where Dask's array expressions are on (`array.query-planning`), Dask refuses hand-written graphs. The same tasks are
then made through public slicing, `blockwise` and `concatenate`, one per block and array, and all of them at once;
`layered` gives both kinds of graphs one form.

This is the only module that uses private parts of Dask: `convert_legacy_task`, as xarray and odc-stac still write tasks
as tuples.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import prod
from numbers import Integral
from operator import getitem
from typing import Any, TypeAlias

import dask
import dask.array as da
import numpy as np
import xarray as xr
from dask._task_spec import convert_legacy_task
from dask.base import tokenize
from dask.core import flatten
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph, Layer, MaterializedLayer
from dask.task_spec import DataNode, GraphNode, List, Task, TaskRef
from dask.utils import SerializableLock
from numpy.typing import NDArray

from deo_cube.embedding.windows import BlockIndex, WindowReader

__all__ = [
    "RUN_FAILED",
    "BlockCall",
    "BlockLayer",
    "BlockTask",
    "LazyLayer",
    "Output",
    "OutputLayer",
    "Pick",
    "Result",
    "gather_chunks",
    "layered",
    "map_blocks_with_halo",
    "node_of",
    "with_loaded_coordinates",
]

Array = NDArray[Any]
#: What a block gives: one array, or several.
Result: TypeAlias = Array | tuple[Array, ...]
Run: TypeAlias = Callable[[BlockIndex, tuple[Array, ...]], Result]

#: Start of the note on an error that came from a block's own work, not from reading the cube.
RUN_FAILED = "deo_cube block failed"


@dataclass(frozen=True)
class Output:
    """One of the arrays that the blocks give.

    Parameters
    ----------
    name : str
        Start of the array's key names.
    leading : tuple of int
        Sizes of the dimensions between time and y: ``(D,)`` for embeddings, ``()`` for a mask.
    dtype : dtype
        Of its values.
    alone : callable, optional
        Makes this array by itself, at less cost than the run that makes all of them: the valid fraction needs no
        encoder. It runs for blocks of which nothing else is computed.
    """

    name: str
    leading: tuple[int, ...]
    dtype: np.dtype[Any]
    alone: Run | None = None


@dataclass(frozen=True)
class BlockTask:
    """The task of each block. Frozen and small: every task of the graph shares it."""

    run: Run
    window_reader: WindowReader
    times: int

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along time, rows and columns."""
        return (self.times, *self.window_reader.plan.blocks)

    def index(self, position: Sequence[int]) -> BlockIndex:
        """Return the block at a position among the chunks of an array: first of time, last of y and x."""
        row = self.blocks[1] - 1 - position[-2] if self.window_reader.south_up else position[-2]
        return BlockIndex(position[0], row, position[-1])

    def on_windows(self, index: BlockIndex, windows: tuple[Array, ...], *, stand_in: bool = False) -> Result:
        """Run on the windows of a block; with `stand_in`, an encoder gives numbers that depend on the place alone."""
        try:
            run = getattr(self.run, "stand_in", self.run) if stand_in else self.run
            result = run(index, windows)
        except Exception as error:
            # Tells a failed encoder, which no retry fixes, from a failed read; see store/layout.py.
            error.add_note(f"{RUN_FAILED}: {index}")
            raise
        if not self.window_reader.south_up:
            return result
        # Blocks are computed north up, and an array has the rows of its cube.
        if isinstance(result, tuple):
            return tuple(array[..., ::-1, :] for array in result)
        return result[..., ::-1, :]


@dataclass(frozen=True)
class BlockCall:
    """The function of one task: computes a block from its source chunks, in the order of `WindowReader.chunk_slices`.

    `output` is the position of the only array to give; None: all that the run gives.
    """

    task: BlockTask
    index: BlockIndex
    output: int | None = None

    def __call__(self, *chunks: Array) -> Result:
        """Compute the block."""
        result = self.task.on_windows(self.index, self.task.window_reader.windows(self.index, chunks))
        return result if self.output is None else result[self.output]

    def node(self, key: Any) -> Task:
        """Return the task of a graph that makes this call."""
        return Task(key, self, *(TaskRef(piece.key) for piece in self.task.window_reader.chunk_slices(self.index)))


@dataclass(frozen=True)
class Pick:
    """Takes one array out of a block's result.

    Not `operator.getitem`: Dask's optimisation takes that for a slice of an array, and merges it with others.
    """

    output: int

    def __call__(self, result: tuple[Array, ...]) -> Array:
        """Return the array."""
        return result[self.output]


class LazyLayer(Layer):  # type: ignore[misc]
    """Tasks by position, each made on request; keys are ``(name, *position)``."""

    def __init__(self, name: str, counts: tuple[int, ...], annotations: Any = None) -> None:
        super().__init__(annotations=annotations)
        self.output = name
        self.counts = counts

    @abstractmethod
    def node(self, key: tuple[Any, ...]) -> GraphNode:
        """Return the task of a key."""

    @property
    def has_legacy_tasks(self) -> bool:
        """Return False; Dask would look at every task otherwise."""
        return False

    def is_materialized(self) -> bool:
        """Return False: no task is kept."""
        return False

    def get_output_keys(self) -> Collection[Any]:
        """Return all keys, as a view that lists none."""
        return self.keys()  # type: ignore[no-any-return]

    def __contains__(self, key: object) -> bool:
        return (
            isinstance(key, tuple)
            and len(key) == 1 + len(self.counts)
            and key[0] == self.output
            and all(isinstance(i, Integral) and 0 <= int(i) < n for i, n in zip(key[1:], self.counts, strict=True))
        )

    def __getitem__(self, key: Any) -> GraphNode:
        if key not in self:
            raise KeyError(key)
        return self.node(key)

    def __iter__(self) -> Iterator[Any]:
        return ((self.output, *position) for position in product(*map(range, self.counts)))

    def __len__(self) -> int:
        return prod(self.counts)

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Make the tasks with the given keys, and return the keys that they need."""
        return self._culled({key: self.node(key) for key in keys if key in self})

    def _culled(self, tasks: dict[Any, GraphNode]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        needed = {key: set(task.dependencies) for key, task in tasks.items()}
        return MaterializedLayer(tasks, annotations=self.annotations), needed


class BlockLayer(LazyLayer):
    """The tasks of all blocks: of an array, where blocks give one, else of results that arrays are picked out of.

    Parameters
    ----------
    name : str
        First element of the keys.
    task : BlockTask
        What runs for each block.
    leading : int
        Dimensions of the array between time and y; 0 for results, whose keys are ``(name, time, row, column)``.
    """

    def __init__(self, name: str, task: BlockTask, leading: int, annotations: Any = None) -> None:
        times, rows, columns = task.blocks
        super().__init__(name, (times, *(1,) * leading, rows, columns), annotations)
        self.task = task

    def node(self, key: tuple[Any, ...]) -> GraphNode:
        """Return the task of a key."""
        return BlockCall(self.task, self.task.index(key[1:])).node(key)


class OutputLayer(LazyLayer):
    """The tasks of one of several arrays that blocks give: each picks it out of its block's result.

    Parameters
    ----------
    name : str
        First element of the keys.
    blocks : BlockLayer
        The results.
    output : Output
        The array.
    position : int
        Its position in the results.
    """

    def __init__(self, name: str, blocks: BlockLayer, output: Output, position: int, annotations: Any = None) -> None:
        times, rows, columns = blocks.task.blocks
        super().__init__(name, (times, *(1,) * len(output.leading), rows, columns), annotations)
        self.blocks = blocks
        self.alone = output.alone
        self.position = position

    def node(self, key: tuple[Any, ...]) -> GraphNode:
        """Return the task of a key."""
        return Task(key, Pick(self.position), TaskRef(self._block(key)))

    def _block(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.blocks.output, key[1], *key[-2:])

    def cull(self, keys: set[Any], all_hlg_keys: Collection[Any]) -> tuple[Layer, Mapping[Any, set[Any]]]:
        """Make the tasks with the given keys; the array is made alone for blocks of which no other is requested.

        `keys` holds those of other layers as well. The layers of arrays that can be made alone are culled after the
        others, see `map_blocks_with_halo`, so it holds by now the keys of all blocks of which others are requested.
        """
        if self.alone is None:
            return super().cull(keys, all_hlg_keys)
        task = BlockTask(self.alone, self.blocks.task.window_reader, self.blocks.task.times)
        tasks = {}
        for key in keys:
            if key in self:
                shared = self._block(key) in keys
                tasks[key] = self.node(key) if shared else BlockCall(task, task.index(key[1:])).node(key)
        return self._culled(tasks)


def with_loaded_coordinates(cube: xr.Dataset | xr.DataArray) -> xr.Dataset | xr.DataArray:
    """Return `cube` with its coordinates of no or one dimension in memory.

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
    run: Run, window_reader: WindowReader, sources: Sequence[Any], outputs: Sequence[Output], *, times: int
) -> tuple[Any, ...]:
    """Map `run` over the blocks of a plan, one task per block.

    Parameters
    ----------
    run : callable
        ``run(index, windows) -> (1, *leading, rows, columns)``, or a tuple of such arrays, one per output; frozen and
        deterministic to tokenise.
    window_reader : WindowReader
        Makes its windows.
    sources : sequence of dask arrays
        Those that the sources of `window_reader` name.
    outputs : sequence of Output
        The arrays that `run` gives.
    times : int
        Time steps.

    Returns
    -------
    tuple of dask.array.Array
        One per output, ``(times, *leading, rows, columns)``, one chunk per block; south up where the cube is.
    """
    task = BlockTask(run, window_reader, times)
    described = [(o.name, o.leading, str(o.dtype)) for o in outputs]
    token = tokenize(run, window_reader, [getattr(s, "name", s) for s in sources], times, described)
    rows, columns = window_reader.plan.chunks
    if window_reader.south_up:
        rows = rows[::-1]
    chunks = [((1,) * times, *((n,) for n in o.leading), rows, columns) for o in outputs]
    if da.ARRAY_EXPR_ENABLED:
        return tuple(
            _by_public_api(task, sources, i if len(outputs) > 1 else None, output, chunks[i])
            for i, output in enumerate(outputs)
        )
    unique = list({s.name: s for s in sources}.values())
    names = [f"{o.name}-{token}" for o in outputs]
    several = len(outputs) > 1
    name = f"blocks-{token}" if several else names[0]
    blocks = BlockLayer(name, task, 0 if several else len(outputs[0].leading))
    graph = HighLevelGraph.from_collections(name, blocks, dependencies=unique)
    if several:
        picks = {n: OutputLayer(n, blocks, o, i) for i, (n, o) in enumerate(zip(names, outputs, strict=True))}
        # An array that can be made alone reads the sources then. The others are declared to depend on it, though they
        # do not: layers are culled after those that depend on them, and it has to know which blocks of the others are
        # needed.
        alone = {n for n, layer in picks.items() if layer.alone is not None}
        needed = {n: {name, *graph.dependencies[name]} if n in alone else {name, *alone} for n in names}
        graph = HighLevelGraph({**graph.layers, **picks}, {**graph.dependencies, **needed})
    metas = [np.empty((0,) * len(chunks[i]), output.dtype) for i, output in enumerate(outputs)]
    return tuple(da.Array(graph, n, chunks[i], meta=metas[i]) for i, n in enumerate(names))


def _by_public_api(
    task: BlockTask, sources: Sequence[Any], position: int | None, output: Output, chunks: tuple[tuple[int, ...], ...]
) -> Any:
    """Make one array through public functions, for Dask's array expressions: slices, `blockwise`, `concatenate`."""
    by_name = {s.name: s for s in sources}
    ends = {name: [np.cumsum((0, *sizes)).tolist() for sizes in source.chunks] for name, source in by_name.items()}
    if output.alone is not None:
        # Arrays do not share tasks here: each is made alone where it can be.
        task, position = BlockTask(output.alone, task.window_reader, task.times), None
    axes = tuple(range(len(chunks)))
    blocks = np.empty(tuple(map(len, chunks)), dtype=object)
    for at in np.ndindex(*blocks.shape):
        index = task.index(at)
        arguments: list[Any] = []
        for piece in task.window_reader.chunk_slices(index):
            name, *chunk = piece.key
            limits = [slice(*ends[name][axis][i : i + 2]) for axis, i in enumerate(chunk)]
            first = len(axes) + sum(map(len, arguments[1::2]))  # dimensions that no other argument has
            arguments += [by_name[name][tuple(limits)], tuple(range(first, first + len(chunk)))]
        blocks[at] = da.blockwise(
            BlockCall(task, index, position),
            axes,
            *arguments,
            new_axes={axis: sizes[i] for axis, (sizes, i) in enumerate(zip(chunks, at, strict=True))},
            concatenate=True,
            token=output.name,
            dtype=output.dtype,
            meta=np.empty((0,) * len(chunks), output.dtype),
        )
    for axis in reversed(range(blocks.ndim)):
        joined = np.empty(blocks.shape[:axis], dtype=object)
        for at in np.ndindex(*joined.shape):
            joined[at] = da.concatenate(list(blocks[at]), axis=axis)
        blocks = joined
    return blocks[()]


def layered(*arrays: Any) -> tuple[HighLevelGraph, list[str]]:
    """Return one graph of several arrays, in layers, and the first element of each array's keys in it.

    The graph of an array expression is flat, and its keys are not called by the array's name.
    """
    if not da.ARRAY_EXPR_ENABLED:
        return HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays)), [a.name for a in arrays]
    layers: dict[str, dict[Any, Any]] = {}
    names: list[str] = []
    for array in arrays:
        flat = array.__dask_graph__()
        for key, value in flat.items():
            layers.setdefault(_layer_of(key), {})[key] = node_of(key, value, flat)
        names.append(next(flatten([array.__dask_keys__()]))[0])
    dependencies = {
        name: {_layer_of(other) for node in layer.values() for other in node.dependencies} - {name}
        for name, layer in layers.items()
    }
    return HighLevelGraph({name: MaterializedLayer(layer) for name, layer in layers.items()}, dependencies), names


def gather_chunks(
    arrays: Sequence[Any],
    parts: Sequence[tuple[Sequence[tuple[int, ...]], Any]],
    run: Callable[..., Any],
    join: Callable[[list[Any]], tuple[Array, ...]],
    outputs: Sequence[tuple[tuple[int, ...], Any]],
    *,
    name: str,
) -> list[Any]:
    """Return arrays that are made from some chunks of others: one task per chunk, and one that joins the results.

    Parameters
    ----------
    arrays : sequence of dask.array.Array
        Sources; no other chunk of them than those of `parts` is read.
    parts : sequence of (positions, argument)
        Of each task, the position of its chunk in every array, and an argument for `run`.
    run : callable
        ``run(*chunks, argument)``; runs on a worker, as does `join`.
    join : callable
        Of the list of all results; returns one array per output.
    outputs : sequence of (shape, dtype)
        Of the arrays, which have one chunk each.
    name : str
        Start of the key names; the same for the same arrays, parts and functions.
    """
    graph, names = layered(*arrays)
    tasks: dict[Any, GraphNode] = {}
    results = []
    for k, (positions, argument) in enumerate(parts):
        chunks = [TaskRef((n, *position)) for n, position in zip(names, positions, strict=True)]
        tasks[name, k] = Task((name, k), run, *chunks, argument)
        results.append(TaskRef((name, k)))
    tasks[f"{name}-joined"] = Task(f"{name}-joined", join, List(*results))
    made = []
    if da.ARRAY_EXPR_ENABLED:  # which refuses graphs: their result is an array that is computed when it is read
        joined = HighLevelGraph(
            {**graph.layers, name: MaterializedLayer(tasks)}, {**graph.dependencies, name: set(names)}
        )
        result = _Result(joined, f"{name}-joined")
        arrays = [_Deferred(result, k, shape, np.dtype(dtype)) for k, (shape, dtype) in enumerate(outputs)]
        return [da.from_array(array, chunks=-1, name=f"{name}-{k}") for k, array in enumerate(arrays)]
    for k, (shape, dtype) in enumerate(outputs):
        key = f"{name}-{k}"
        layers = {**graph.layers, name: MaterializedLayer(tasks)}
        picked = {key: Task(key, getitem, TaskRef(f"{name}-joined"), k)}
        whole = HighLevelGraph(
            {**layers, key: MaterializedLayer(picked)}, {**graph.dependencies, name: set(names), key: {name}}
        )
        made.append(da.from_delayed(Delayed(key, whole, layer=key), shape, dtype))
    return made


class _Result:
    """The value of one key of a graph, computed once."""

    def __init__(self, graph: HighLevelGraph, key: str) -> None:
        self._graph, self._key = graph, key
        self._lock = SerializableLock()

    def __call__(self) -> tuple[Array, ...]:
        with self._lock:
            return self._value

    @cached_property
    def _value(self) -> tuple[Array, ...]:
        value: tuple[Array, ...] = dask.get(self._graph, self._key)
        return value


@dataclass(frozen=True)
class _Deferred:
    """One array of a result, as `from_array` takes it."""

    result: _Result
    position: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, index: Any) -> Array:
        part: Array = self.result()[self.position][index]
        return part


def node_of(key: Any, value: Any, keys: Container[Any]) -> GraphNode:
    """Return what a graph has under a key as a task, or as data: a tuple is a task as Dask wrote them before 2024."""
    node = convert_legacy_task(key, value, keys)
    return node if isinstance(node, GraphNode) else DataNode(key, node)


def _layer_of(key: Any) -> str:
    return str(key[0] if isinstance(key, tuple) else key)
