"""Compute one block in this thread: read its chunks, gather its windows, run its tasks one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.embedding import graph
from deo_cube.embedding.chunks import Load
from deo_cube.embedding.inputs import checksum
from deo_cube.embedding.windows import BlockIndex
from deo_cube.errors import StorageError

__all__ = ["compute_block", "compute_one", "encodes", "subgraph"]

Array = NDArray[Any]


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


def compute_block(
    part: Mapping[Any, Any], keys: list[Any], read: Callable[[list[Load]], list[Any]], *, encode: bool = True
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

    Returns
    -------
    list of arrays
        The values of `keys`; with ``encode=False`` those that stand-in embeddings give, or None where nothing is
        computed from embeddings.
    int
        Checksum of what they were made from, see `inputs.py`.
    """
    blocks = {key: node.func for key, node in part.items() if isinstance(getattr(node, "func", None), graph.BlockCall)}
    loads: dict[Any, Load] = {}
    # Of one block there may be two calls, as array expressions share no tasks: its windows are gathered once.
    chunks: dict[tuple[int, BlockIndex], list[Any]] = {}
    for call, node_keys in graph.block_calls(part):
        gather = call.task.gather
        if (place := _place(call)) in chunks:
            continue
        readers, sizes = gather.askers(call.index), gather.sources
        for piece, key in node_keys.items():
            shape = tuple(of_axis[i] for of_axis, i in zip(sizes[piece[0]], piece[1:], strict=True))
            loads.setdefault(key, Load(key, partial(_chunk, part, key, shape), readers[piece]))
        chunks[place] = [node_keys[piece.key] for piece in gather.pieces(call.index)]
    loaded = dict(zip(loads, read(list(loads.values())), strict=True))
    gathers = {_place(call): call.task.gather for call in blocks.values()}
    windows = {at: gathers[at].windows(at[1], [loaded[key] for key in chunks[at]]) for at in chunks}

    def run(*, stand_in: bool) -> dict[Any, Any]:
        results = {}
        for key, call in blocks.items():
            result = call.task.on_windows(call.index, windows[_place(call)], stand_in=stand_in)
            results[key] = result if call.output is None else result[call.output]
        return results

    # Blocks at one place, of several models perhaps, are ordered by their pixels: a graph has no order that lasts.
    order = sorted(
        windows, key=lambda at: (at[1].time, at[1].row, at[1].column, len(windows) > 1 and checksum(windows[at]))
    )
    seen = [window for at in order for window in windows[at]]
    known = run(stand_in=False) if encode else {}
    if all(graph.is_result_alone(part, key) for key in keys):
        return _evaluate(part, keys, known) if encode else [None] * len(keys), checksum(seen)
    stand_ins = run(stand_in=True)
    probe = _evaluate(part, keys, known=stand_ins)
    values = _evaluate(part, keys, known=known) if blocks and encode else probe
    for at, own in windows.items():
        given: list[Any] = []
        for key, call in blocks.items():
            if _place(call) == at:
                given += stand_ins[key] if isinstance(stand_ins[key], tuple) else (stand_ins[key],)
        if all(any(_equal(made, one) for one in given) for made in probe):
            return values, checksum(own)  # a block that was cut up and put together again
    return values, checksum([*seen, *(np.asarray(made) for made in probe)])


def _place(call: graph.BlockCall) -> tuple[int, BlockIndex]:
    """Return what tells the windows of a call from those of others."""
    return id(call.task.gather), call.index


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=True))


def encodes(part: Mapping[Any, Any]) -> bool:
    """Return whether a flat graph holds tasks of blocks."""
    return any(isinstance(getattr(node, "func", None), graph.BlockCall) for node in part.values())


def _chunk(part: Mapping[Any, Any], key: Any, shape: tuple[int, ...]) -> Any:
    """Read a source chunk, and make sure that it is whole: NumPy would stretch a short one silently."""
    value = compute_one(part, key)
    if np.shape(value) != shape:
        raise StorageError(f"chunk {key} has shape {np.shape(value)}, expected {shape} as in the cube")
    return value


def compute_one(part: Mapping[Any, Any], key: Any) -> Any:
    """Compute one key of a flat graph in this thread."""
    return _evaluate(part, [key])[0]


def _evaluate(part: Mapping[Any, Any], keys: list[Any], known: Mapping[Any, Any] | None = None) -> list[Any]:
    """Run the tasks that `keys` need and that are not `known`, one after another in this thread.

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
