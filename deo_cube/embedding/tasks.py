"""Look into the graphs of arrays: find their blocks and sources, cut out the tasks of one block, and run these.

A store is written by one job per block, which holds only the tasks that the block needs. With each block the store
keeps a checksum of what it was made from, and it is resumed only from the inputs that it was begun from. Names of files
and of Dask's layers cannot show that: one cube may be rewritten in place, another may hold the same pixels at another
path. So the checksum is that of

- the windows of pixels, SCL and mask that the block's encoder saw, as they are stored, and
- where something was computed from embeddings (a mean, a product, a choice of dimensions): what the same computation
  makes of *stand-in* embeddings, numbers that depend on the position alone. It needs no encoding, and differs where the
  computation differs.

Where a store is resumed, the inputs of its finished blocks are read again and compared, which costs little beside
encoding (`benchmarks/resume.py`), unless the sources are known to be unchanged (`store.write.source_token`).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from graphlib import TopologicalSorter
from typing import Any

import dask.array as da
import numpy as np
import zarr
from dask.blockwise import Blockwise
from dask.highlevelgraph import HighLevelGraph, Layer
from dask.task_spec import Alias, DataNode, GraphNode, TaskRef
from numpy.typing import NDArray

from deo_cube.embedding.chunks import Load
from deo_cube.embedding.graph import BlockCall, BlockLayer, BlockTask, LazyLayer, OutputLayer, Pick, layered, node_of
from deo_cube.embedding.windows import BlockIndex
from deo_cube.errors import StorageError

__all__ = [
    "block_calls",
    "block_tasks",
    "compute_block",
    "cut",
    "derived",
    "has_blocks",
    "has_series",
    "input_checksum",
    "is_result_alone",
    "sources",
    "stand_in",
    "stored",
    "subgraph",
    "values_of",
]


def _layers_of(array: Any) -> Mapping[str, Layer]:
    if not isinstance(array, da.Array):
        return {}
    layers: Mapping[str, Layer] = layered(array)[0].layers
    return layers


def block_tasks(array: Any) -> list[BlockTask]:
    """Return what runs for the blocks that an array is made of: `EmbedBlock`, `ValidBlock`, with its windows."""
    layers = _layers_of(array).values()
    return list({id(task): task for layer in layers for task in _tasks_in(layer)}.values())


def _tasks_in(layer: Layer) -> list[BlockTask]:
    if isinstance(layer, BlockLayer):
        return [layer.task]
    if not da.ARRAY_EXPR_ENABLED:
        return []  # the sources' layers, which may be long
    calls = [getattr(node, "func", None) for node in layer.values()]
    return [call.task for call in calls if isinstance(call, BlockCall)]


def sources(*arrays: Any) -> list[Any] | None:
    """Return what arrays are read from: Zarr arrays that xarray opened, files that odc-stac opens (with their `uri`).

    None where anything else is among the sources: arrays in memory, functions that read, other kinds of files.
    """
    opened: dict[int, Any] = {}
    for array in arrays:
        graph, _ = layered(array)
        for name, layer in graph.layers.items():
            leaf = not graph.dependencies[name]
            if isinstance(layer, (Blockwise, LazyLayer)):
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
                opened |= {id(one): one for one in some}
    return list(opened.values())


def block_calls(part: Mapping[Any, Any]) -> list[tuple[BlockCall, dict[tuple[Any, ...], Any]]]:
    """Return the blocks in a flat graph, each with the keys that its source chunks have there.

    These are given by the keys of `WindowReader.chunk_slices`, which array expressions do not use.
    """
    calls = []
    for node in part.values():
        call = getattr(node, "func", None)
        if isinstance(call, BlockCall):
            pieces = call.task.window_reader.chunk_slices(call.index)
            # Of array expressions, arguments are tasks in the task, each of one chunk.
            keys = [a.key if isinstance(a, TaskRef) else next(iter(a.dependencies)) for a in node.args]
            calls.append((call, dict(zip((piece.key for piece in pieces), keys, strict=True))))
    return calls


def is_result_alone(part: Mapping[Any, Any], key: Any, *, undated: bool = True) -> bool:
    """Return whether a key of a flat graph is a block, or an array of one, of which nothing is computed.

    With `undated` also if it is such an array without its axis of time, which has length 1.
    """
    node = part[key]
    while isinstance(node, Alias) or isinstance(getattr(node, "func", None), Pick) or (undated and _drops_time(node)):
        undated = undated and not _drops_time(node)  # the next axis is longer
        (key,) = node.dependencies
        node = part[key]
    return isinstance(getattr(node, "func", None), BlockCall)


def _drops_time(node: Any) -> bool:
    """Return whether a task takes ``a[0]`` of an array, and no part of what that holds."""
    # Dask's arrays are indexed by `dask.array.chunk.getitem`, other graphs by `operator.getitem`.
    if getattr(getattr(node, "func", None), "__name__", "") != "getitem" or len(node.dependencies) != 1:
        return False
    index = node.args[1]
    return (
        isinstance(index, tuple)
        and index[:1] == (0,)
        and all(isinstance(one, slice) and one == slice(None) for one in index[1:])
    )


def stored(array: Any) -> list[Any]:
    """Return the Zarr arrays that xarray would read `array` from; none where it comes from anything else."""
    # Dask keeps what a graph reads from in a layer of its own, which holds nothing else.
    originals = [layer for name, layer in _layers_of(array).items() if str(name).startswith("original-")]
    values = [value for layer in originals for value in layer.values()]
    return [a for a in (_unwrapped(getattr(v, "value", v)) for v in values) if isinstance(a, zarr.Array)]


def _unwrapped(value: Any) -> Any:
    """Return what xarray's lazily indexed arrays read from; any other value as it is."""
    inner = value
    while hasattr(inner, "array") and type(inner).__module__.startswith("xarray."):
        inner = inner.array
    # There is no public way from xarray's wrapper of a Zarr array to that array.
    return getattr(inner, "_array", inner) if type(inner).__module__.startswith("xarray.") else inner


#: Layers that read, cut, chunk or turn an array, and change none of its values (a cast shows in the dtype).
_SAME_VALUES = (
    *("getitem", "rechunk", "transpose", "astype", "concatenate", "stack", "blocks"),
    *("open_dataset", "original", "xarray", "array"),
    "first_valid",  # of store/mosaic.py: each value is that of one of its parts
    "aggregate",  # which states itself how it was made
)


def derived(array: Any) -> list[str]:
    """Return what was computed on the way from embeddings to `array`, as Dask calls it: ``["mul"]`` for ``2 * emb``."""
    graph, _ = layered(array)
    layers = graph.layers
    after = {name for name, layer in layers.items() if isinstance(layer, OutputLayer) or _tasks_in(layer)}
    after = after or _series_in(layers)
    if not after:  # embeddings that were opened
        after = {name for name in layers if not graph.dependencies[name]}
    steps: list[str] = []
    for name in _in_order(graph):
        if name not in after and graph.dependencies[name] & after:
            after.add(name)
            kind = name.rpartition("-")[0]
            steps += [] if kind.startswith(_SAME_VALUES) else [kind]
    return steps


def has_series(array: Any) -> bool:
    """Return whether an array is made by `embed_series`."""
    return bool(_series_in(layered(array)[0].layers))


def _series_in(layers: Iterable[str]) -> set[str]:
    """Return the layers of `embed_series`, which Dask calls after their function."""
    return {name for name in layers if name.startswith("embed_series_block")}


def _in_order(graph: HighLevelGraph) -> list[str]:
    """Return the names of the layers, those that a layer needs before it."""
    return list(TopologicalSorter(graph.dependencies).static_order())


class _Keys:
    """The keys of a graph, for `in`, without listing them."""

    def __init__(self, graph: HighLevelGraph) -> None:
        lazy = (Blockwise, LazyLayer)
        self._lazy = {layer.output for layer in graph.layers.values() if isinstance(layer, lazy)}
        self._listed = [layer for layer in graph.layers.values() if not isinstance(layer, lazy)]

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
    """Return only what `keys` need, as a flat graph. Not fused: `compute_block` tells reads from blocks by their tasks.

    `cull` of a `HighLevelGraph` does the same, but lists all keys of layers on the way, each time.
    """
    # A block could be sent without a graph, as its call and the arrays that it reads. In a job of a million blocks
    # (`benchmarks/size.py`), cutting and pickling a block takes the client 0.70 ms and 13.8 kB this way, 0.59 ms and
    # 13.3 kB if only its chunks are cut, and 3.6 s by public functions, `emb.data.blocks[i]` and `dask.optimize`
    # (24 ms in a job of ten thousand). The small gain would not replace this function: the checksum of the inputs of
    # arrays that are computed from embeddings runs their graph on stand-ins.
    part: dict[Any, Any] = {}
    missing = set(keys)
    known = _Keys(graph)
    for name in reversed(_in_order(graph)):
        layer = graph.layers[name]
        if isinstance(layer, (Blockwise, LazyLayer)):
            own = {k for k in missing if isinstance(k, tuple) and k[0] == layer.output}
            if own:
                culled, needed = layer.cull(own if isinstance(layer, Blockwise) else missing, ())
                missing -= own
                part.update(culled)
                missing.update(*needed.values())
            continue
        todo = [k for k in missing if k in layer]
        missing.difference_update(todo)
        while todo:
            key = todo.pop()
            if key in part:
                continue
            part[key] = node = node_of(key, layer[key], known)
            for other in node.dependencies:
                (todo.append if other in layer else missing.add)(other)
    return part


def subgraph(part: Mapping[Any, Any], keys: Iterable[Any]) -> dict[Any, Any]:
    """Return only what `keys` need of a flat graph."""
    needed: dict[Any, Any] = {}
    todo = list(keys)
    while todo:
        key = todo.pop()
        if key not in needed:
            needed[key] = part[key]
            todo += part[key].dependencies
    return needed


def has_blocks(part: Mapping[Any, Any]) -> bool:
    """Return whether a flat graph holds tasks of blocks."""
    return any(isinstance(getattr(node, "func", None), BlockCall) for node in part.values())


def values_of(part: Mapping[Any, Any], keys: list[Any], known: Mapping[Any, Any] | None = None) -> list[Any]:
    """Return the values of `keys` of a flat graph: its tasks run in this thread, but for those that are `known`.

    What `dask.get` does, without a scheduler's millisecond per call: a block asks for its chunks one by one, while
    other threads encode and need the interpreter.
    """
    values: dict[Any, Any] = dict(known or {})
    todo = list(reversed(keys))  # the first key first: embeddings before valid fractions, as encoding is the long part
    while todo:
        key = todo[-1]
        needed = [] if key in values else [d for d in part[key].dependencies if d not in values]
        if needed:
            todo += needed
            continue
        todo.pop()
        if key not in values:
            values[key] = part[key](values)
    return [values[key] for key in keys]


def compute_block(
    part: Mapping[Any, Any],
    keys: list[Any],
    read: Callable[[list[Load]], list[Any]],
    *,
    encode: bool = True,
    undated: bool = True,
) -> tuple[list[Any], int]:
    """Compute `keys` here, but for the chunks that blocks are cut from, which `read` loads.

    Parameters
    ----------
    part, keys
        From `subgraph`.
    read : callable
        Loads chunks.
    encode : bool
        False: only the checksum of the inputs is needed.
    undated : bool
        False: the checksum of earlier versions, to which a block without its axis of time was computed from embeddings.

    Returns
    -------
    list of arrays
        The values of `keys`; with ``encode=False`` those that stand-in embeddings give, or None where nothing is
        computed from embeddings.
    int
        Checksum of what they were made from, see above.
    """
    blocks = {key: node.func for key, node in part.items() if isinstance(getattr(node, "func", None), BlockCall)}
    loads: dict[Any, Load] = {}
    # Of one block there may be two calls, as array expressions share no tasks: its windows are gathered once.
    chunks: dict[tuple[int, BlockIndex], list[Any]] = {}
    for call, node_keys in block_calls(part):
        window_reader = call.task.window_reader
        if (place := _place(call)) in chunks:
            continue
        readers, sizes = window_reader.readers_per_chunk(call.index), window_reader.sources
        for piece, key in node_keys.items():
            shape = tuple(of_axis[i] for of_axis, i in zip(sizes[piece[0]], piece[1:], strict=True))
            loads.setdefault(key, Load(key, partial(_chunk, part, key, shape), readers[piece]))
        chunks[place] = [node_keys[piece.key] for piece in window_reader.chunk_slices(call.index)]
    loaded = dict(zip(loads, read(list(loads.values())), strict=True))
    gathers = {_place(call): call.task.window_reader for call in blocks.values()}
    windows = {at: gathers[at].windows(at[1], [loaded[key] for key in chunks[at]]) for at in chunks}

    def run(*, stand_in: bool) -> dict[Any, Any]:
        results = {}
        for key, call in blocks.items():
            result = call.task.on_windows(call.index, windows[_place(call)], stand_in=stand_in)
            results[key] = result if call.output is None else result[call.output]
        return results

    # Blocks at one place, of several models perhaps, are ordered by their pixels: a graph has no order that lasts.
    order = sorted(
        windows, key=lambda at: (at[1].time, at[1].row, at[1].column, len(windows) > 1 and input_checksum(windows[at]))
    )
    seen = [window for at in order for window in windows[at]]
    known = run(stand_in=False) if encode else {}
    if all(is_result_alone(part, key, undated=undated) for key in keys):
        return values_of(part, keys, known) if encode else [None] * len(keys), input_checksum(seen)
    stand_ins = run(stand_in=True)
    probe = values_of(part, keys, known=stand_ins)
    values = values_of(part, keys, known=known) if blocks and encode else probe
    for at, own in windows.items():
        given: list[Any] = []
        for key, call in blocks.items():
            if _place(call) == at:
                given += stand_ins[key] if isinstance(stand_ins[key], tuple) else (stand_ins[key],)
        if undated:
            given += [one[0] for one in given]
        if all(any(_equal(made, one) for one in given) for made in probe):
            return values, input_checksum(own)  # a block that was cut up and put together again
    return values, input_checksum([*seen, *(np.asarray(made) for made in probe)])


def _place(call: BlockCall) -> tuple[int, BlockIndex]:
    """Return what tells the windows of a call from those of others."""
    return id(call.task.window_reader), call.index


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=True))


def _chunk(part: Mapping[Any, Any], key: Any, shape: tuple[int, ...]) -> Any:
    """Read a source chunk, and make sure that it is whole: NumPy would stretch a short one silently."""
    value = values_of(part, [key])[0]
    if np.shape(value) != shape:
        raise StorageError(f"chunk {key} has shape {np.shape(value)}, expected {shape} as in the cube")
    return value


def input_checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """Return a checksum of 31 bits, never 0, of arrays with their shapes and dtypes."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(f"{array.dtype.str}{array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc & 0x7FFFFFFF or 1


#: Elements of which stand-in embeddings are made at a time. Not fewer: each operation on them takes and releases the
#: interpreter's lock, which other blocks are waiting for.
SLAB = 2**20
_SCALES = np.array([1] + [1 / 64] * 7, np.float32)


def stand_in(index: BlockIndex, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return numbers in place of the embeddings of a block: they depend on nothing but the place and the dtype.

    Multiples of 1/64 below 2048, so that sums of them are exact and the same on every processor; the first patch holds
    no data, as patches without valid pixels do.

    Parameters
    ----------
    index : BlockIndex
        The block.
    shape : tuple of int
        ``(1, D, rows, columns)``.
    dtype : dtype
        float16, float32 or int8.
    """
    seed = zlib.crc32(f"{index.time} {index.row} {index.column}".encode())
    out = np.empty(int(np.prod(shape)), dtype)
    # Slab by slab: a dozen operations on arrays of a few megabytes. On whole blocks they are bound by memory, and take
    # as long as all else that the host does for a block.
    for start in range(0, out.size, SLAB):
        slab = out[start : start + SLAB]
        mixed = np.arange(start, start + slab.size, dtype=np.uint32)
        mixed += np.uint32(seed)
        mixed *= np.uint32(2654435761)
        mixed ^= mixed >> np.uint32(15)
        mixed *= np.uint32(2246822519)
        mixed ^= mixed >> np.uint32(13)
        if dtype.kind == "i":
            slab[:] = (mixed % np.uint32(255)).astype(np.int16) - 127
            continue
        numbers = (mixed % np.uint32(4097)).astype(np.float32)
        numbers -= np.float32(2048)
        # Powers of two, so that these products are exact.
        numbers *= _SCALES[mixed >> np.uint32(16) & np.uint32(7)]
        slab[:] = numbers
    out = out.reshape(shape)
    out[..., 0, 0] = -128 if dtype.kind == "i" else np.nan
    return out
