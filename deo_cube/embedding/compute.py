"""Compute one block in this thread: its chunks are read, its windows gathered, its tasks run one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.embedding.chunks import Load
from deo_cube.embedding.graph import BlockTask
from deo_cube.embedding.inputs import checksum
from deo_cube.embedding.windows import BlockIndex
from deo_cube.errors import StorageError

__all__ = ["compute_block", "compute_one", "encodes", "subgraph"]

Array = NDArray[Any]


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
    graph: Mapping[Any, Any], keys: list[Any], read: Callable[[list[Load]], list[Any]], *, encode: bool = True
) -> tuple[list[Any], int]:
    """Compute `keys` here, but for the chunks that blocks are cut from, which `read` loads.

    Parameters
    ----------
    graph, keys
        From `subgraph`.
    read : callable
        Loads chunks.
    encode : bool
        False: only the checksum of the inputs is needed.

    Returns
    -------
    list of arrays
        The values of `keys`; with ``encode=False`` those that stand-in embeddings give.
    int
        Checksum of what they were made from, see `inputs.py`.
    """
    blocks = [node for node in graph.values() if isinstance(getattr(node, "func", None), BlockTask)]
    chunks = list(dict.fromkeys(key for node in blocks for key in sorted(node.dependencies, key=str)))
    shapes = {name: chunk for node in blocks for name, chunk in node.func.gather.sources.items()}
    # Embeddings and valid fractions are cut by the same gather: it is asked once.
    gathers = {(id(node.func.gather), node.args[0]): node.func.gather for node in blocks}
    askers = {key: n for (_, index), gather in gathers.items() for key, n in gather.askers(index).items()}
    loads = [Load(key, partial(_chunk, graph, key, shapes[key[0]]), askers[key]) for key in chunks]
    values = dict(zip(chunks, read(loads), strict=True))
    # Embeddings and valid fractions are cut from the same windows, which are gathered once.
    windows: dict[tuple[int, BlockIndex], tuple[Array, ...]] = {}
    for node in blocks:
        task, index = node.func, node.args[0]
        if (id(task.gather), index) not in windows:
            chunks_of_block = [values[p.key] for p in task.gather.pieces(index)]
            windows[id(task.gather), index] = task.gather.windows(index, chunks_of_block)

    def run(*, stand_in: bool) -> dict[Any, Any]:
        return {
            node.key: node.func.on_windows(node.args[0], windows[id(node.func.gather), node.args[0]], stand_in=stand_in)
            for node in blocks
        }

    seen = [w for at in sorted(windows, key=lambda at: (at[1].time, at[1].row, at[1].column)) for w in windows[at]]
    known = run(stand_in=False) if encode else {}
    if {node.key for node in blocks}.issuperset(keys):
        # Nothing is computed from the embeddings.
        return [known.get(key) for key in keys], checksum(seen)
    stand_ins = run(stand_in=True)
    probe = _evaluate(graph, keys, known=stand_ins)
    out = _evaluate(graph, keys, known=known) if blocks and encode else probe
    for at, own in windows.items():
        given = [stand_ins[node.key] for node in blocks if (id(node.func.gather), node.args[0]) == at]
        if all(any(_equal(made, one) for one in given) for made in probe):
            return out, checksum(own)  # a block that was cut up and put together again
    return out, checksum([*seen, *(np.asarray(made) for made in probe)])


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=True))


def encodes(graph: Mapping[Any, Any]) -> bool:
    """Return whether a flat graph holds tasks of blocks."""
    return any(isinstance(getattr(node, "func", None), BlockTask) for node in graph.values())


def _chunk(graph: Mapping[Any, Any], key: Any, chunks: tuple[tuple[int, ...], ...]) -> Any:
    """Read a source chunk, and make sure that it is whole: NumPy would stretch a short one silently."""
    value = compute_one(graph, key)
    wanted = tuple(sizes[i] for sizes, i in zip(chunks, key[1:], strict=True))
    if np.shape(value) != wanted:
        raise StorageError(f"chunk {key} came back with the shape {np.shape(value)}, but the cube says {wanted}")
    return value


def compute_one(graph: Mapping[Any, Any], key: Any) -> Any:
    """Compute one key of a flat graph in this thread."""
    return _evaluate(graph, [key])[0]


def _evaluate(graph: Mapping[Any, Any], keys: list[Any], known: Mapping[Any, Any] | None = None) -> list[Any]:
    """Run the tasks that `keys` need and that are not `known`, one after another in this thread.

    What `dask.get` does, without a scheduler's millisecond a call: a block asks for its chunks one by one, while other
    threads encode and want the interpreter.
    """
    values: dict[Any, Any] = dict(known or {})
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
