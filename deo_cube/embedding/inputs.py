"""Compute a block from its part of a graph, with a checksum of what it is made from.

A store keeps the checksum with each block, and is resumed only from the inputs that it was begun from. Names of files
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
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.embedding import graph, tasks
from deo_cube.embedding.chunks import Load
from deo_cube.embedding.windows import BlockIndex
from deo_cube.errors import StorageError

__all__ = ["compute_block", "input_checksum", "stand_in"]


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
        From `tasks.subgraph`.
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
        Checksum of what they were made from, see `input_checksum`.
    """
    blocks = {key: node.func for key, node in part.items() if isinstance(getattr(node, "func", None), graph.BlockCall)}
    loads: dict[Any, Load] = {}
    # Of one block there may be two calls, as array expressions share no tasks: its windows are gathered once.
    chunks: dict[tuple[int, BlockIndex], list[Any]] = {}
    for call, node_keys in tasks.block_calls(part):
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
    if all(tasks.is_result_alone(part, key, undated=undated) for key in keys):
        return tasks.values_of(part, keys, known) if encode else [None] * len(keys), input_checksum(seen)
    stand_ins = run(stand_in=True)
    probe = tasks.values_of(part, keys, known=stand_ins)
    values = tasks.values_of(part, keys, known=known) if blocks and encode else probe
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


def _place(call: graph.BlockCall) -> tuple[int, BlockIndex]:
    """Return what tells the windows of a call from those of others."""
    return id(call.task.window_reader), call.index


def _equal(a: Any, b: Any) -> bool:
    return np.shape(a) == np.shape(b) and bool(np.array_equal(a, b, equal_nan=True))


def _chunk(part: Mapping[Any, Any], key: Any, shape: tuple[int, ...]) -> Any:
    """Read a source chunk, and make sure that it is whole: NumPy would stretch a short one silently."""
    value = tasks.values_of(part, [key])[0]
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
