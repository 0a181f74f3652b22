"""The progress record: one object a block, written after the block's shards. Its names say what is done.

The record is never read whole: a million blocks are listed a row of blocks at a time, by name (a listing, not a
million requests), and counted as they pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.core.sync import sync

__all__ = ["DONE", "PATH", "begun", "count", "done_in_rows", "forget", "is_done"]

#: Entry of a block that is done: this bit and the CRC-32 of what was written.
DONE = 1 << 32
#: Of the record in the store's group: an array (time, row, column) in chunks of one.
PATH = "progress/crc32"
#: Listings at a time.
_AT_ONCE = 32

Block = tuple[int, int, int]


def is_done(root: zarr.Group, block: Block) -> bool:
    """Whether a block has its entry."""
    return bool(int(root[PATH][block]) & DONE)


def begun(root: zarr.Group) -> bool:
    """Whether any block has its entry."""
    array = root[PATH]

    async def any_below(folder: str) -> bool:
        async for _ in array.store_path.store.list_dir(folder):
            return True
        return False

    return bool(sync(any_below(f"{array.path}/{array.metadata.encode_chunk_key((0, 0, 0)).split('/')[0]}")))


def forget(root: zarr.Group, block: Block) -> None:
    """Take a block's entry away: the next run does it again."""
    array = root[PATH]
    sync(array.store_path.store.delete(f"{array.path}/{array.metadata.encode_chunk_key(block)}"))


def done_in_rows(root: zarr.Group, start: int = 0) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """Yield each row of blocks once, from `start` and round: its number, and ``(times, columns)`` True where done."""
    array = root[PATH]
    times, rows, columns = array.shape
    order = [*range(start, rows), *range(start)]
    step = max(1, _AT_ONCE // times)
    for first in range(0, rows, step):
        part = order[first : first + step]
        found = sync(_list(array, [(t, r) for r in part for t in range(times)]))
        for i, row in enumerate(part):
            done = np.zeros((times, columns), bool)
            for t, names in enumerate(found[i * times : (i + 1) * times]):
                done[t, names] = True
            yield row, done


async def _list(array: Any, places: list[tuple[int, int]]) -> list[list[int]]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def names(t: int, r: int) -> list[int]:
        # "c/3/14/0" is the entry of a row's first block: its folder holds the row's entries.
        folder = f"{array.path}/{array.metadata.encode_chunk_key((t, r, 0)).rpartition('/')[0]}"
        async with gate:
            found = [n.rpartition("/")[2] async for n in array.store_path.store.list_dir(folder)]
        return [int(n) for n in found if n.isdigit()]

    return list(await asyncio.gather(*(names(t, r) for t, r in places)))


def count(root: zarr.Group) -> int:
    """Blocks that are done."""
    return sum(int(done.sum()) for _, done in done_in_rows(root))
