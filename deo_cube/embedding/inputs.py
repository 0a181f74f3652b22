"""Checksum of what a block is made from, kept in the record beside the checksum of its output.

A store is resumed only from the inputs that it was begun from. Names of files and of Dask's layers do not tell that:
one cube may be rewritten in place, another may hold the same pixels under another path. So each block's entry keeps a
checksum of

- the windows of pixels, SCL and mask that its encoder saw, as they are stored, and
- where something was computed from embeddings (a mean, a product, a choice of dimensions): what the same computation
  makes of *stand-in* embeddings, numbers that depend on the position alone. It costs no encoding, and differs where the
  computation differs.

Where a store is resumed, the inputs of its finished blocks are read again and compared, which costs little beside
encoding (`benchmarks/resume.py`), and is spared where the sources are known to be unchanged (`sources.py`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.embedding.windows import BlockIndex

__all__ = ["checksum", "stand_in"]


def checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """Return a checksum of 31 bits, never 0, of arrays with their shapes and dtypes."""
    crc = 0
    for array in arrays:
        crc = zlib.crc32(f"{array.dtype.str}{array.shape}".encode(), crc)
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc & 0x7FFFFFFF or 1


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
    mixed = np.arange(np.prod(shape), dtype=np.uint32) + np.uint32(seed)
    mixed *= np.uint32(2654435761)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(2246822519)
    mixed ^= mixed >> np.uint32(13)
    if dtype.kind == "i":
        out = (mixed % np.uint32(255)).astype(np.int16) - 127
        out = out.astype(dtype).reshape(shape)
        out[..., 0, 0] = -128
        return out
    numbers = (mixed % np.uint32(4097)).astype(np.float32) - np.float32(2048)
    numbers[mixed >> np.uint32(16) & np.uint32(7) != 0] /= 64
    out = numbers.astype(dtype).reshape(shape)
    out[..., 0, 0] = np.nan
    return out
