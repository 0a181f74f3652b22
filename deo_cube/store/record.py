"""The progress record: one object per block, written after the block's shards.

An entry is the object ``progress/crc32/c/<time>/<row>/<column>``: eight bytes, a little-endian number of

- bits 0 to 31: the CRC-32 of what was written
- bit 32: set, so that an entry of zeros is not an entry
- bits 33 to 63: a checksum of what the block was made from (`block.input_checksum`); 0 where an earlier version did
  not record it

Whatever else is found under such a name, as after a loss of power, is not an entry: the block is done again. Entries
belong to no Zarr array, so that other readers of Zarr do not take the record for a picture; the bytes are those of the
array ``progress/crc32`` that earlier versions wrote.

The record is never read whole: it is read a row of blocks at a time, as a run goes through it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from zarr.abc.store import Store

from deo_cube.store import objects

__all__ = ["DONE", "GROUP", "PATH", "Block", "Entry", "Record"]

GROUP = "progress"
#: Folder of the entries, in the store's group.
PATH = f"{GROUP}/crc32"
#: Bit that every entry has.
DONE = 1 << 32
#: Folders that are read at a time.
FOLDERS = 32

Block = tuple[int, int, int]


@dataclass(frozen=True)
class Entry:
    """What the record says of a block that is done.

    `output` is the CRC-32 of what was written; `inputs` a checksum of 31 bits of what it was made from, None where that
    is not known.
    """

    output: int
    inputs: int | None = None

    @property
    def number(self) -> int:
        """The entry as a number of 64 bits."""
        return (self.inputs or 0) << 33 | DONE | self.output

    def to_bytes(self) -> bytes:
        """Return the entry as it is stored."""
        return self.number.to_bytes(8, "little")

    @classmethod
    def from_number(cls, number: int) -> Entry:
        """Read an entry from its number."""
        return cls(number & (DONE - 1), number >> 33 or None)


def _number(data: bytes | None) -> int:
    """Number of an entry; 0 for what is not one."""
    if data is None or len(data) != 8:
        return 0
    number = int.from_bytes(data, "little")
    return number if number & DONE else 0


@dataclass(frozen=True)
class Record:
    """The entries of a store of `blocks` along time, y and x."""

    store: Store
    blocks: tuple[int, int, int]

    @property
    def total(self) -> int:
        """Number of blocks."""
        return int(np.prod(self.blocks, dtype=np.int64))

    def entry(self, block: Block) -> Entry | None:
        """Return the entry of a block; None where it is not done."""
        number = _number(objects.read(self.store, _key(block)))
        return Entry.from_number(number) if number else None

    def write(self, block: Block, entry: Entry) -> None:
        """Write the entry of a block."""
        objects.write(self.store, _key(block), entry.to_bytes())

    def forget(self, block: Block) -> None:
        """Delete a block's entry: the next run does it again."""
        objects.delete(self.store, _key(block))

    def rows(self, start: int = 0) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield each row of blocks once, from `start` and round.

        Yields
        ------
        int
            Number of the row.
        array
            ``(times, columns)`` uint64: the entries' numbers, 0 where a block is not done.
        """
        times, rows, columns = self.blocks
        order = [*range(start, rows), *range(start)]
        step = max(1, FOLDERS // times)
        for first in range(0, rows, step):
            part = order[first : first + step]
            found = objects.read_below(self.store, [f"{PATH}/c/{t}/{r}" for r in part for t in range(times)])
            for i, row in enumerate(part):
                numbers = np.zeros((times, columns), np.uint64)
                for t, entries in enumerate(found[i * times : (i + 1) * times]):
                    for name, data in entries.items():
                        if name.isdigit() and int(name) < columns:
                            numbers[t, int(name)] = _number(data)
                yield row, numbers

    def count(self) -> int:
        """Count the blocks that are done."""
        return sum(int(np.count_nonzero(numbers)) for _, numbers in self.rows())

    def any(self) -> bool:
        """Return whether the record has been begun, without reading it."""
        return objects.has_any(self.store, f"{PATH}/c")


def _key(block: Block) -> str:
    return f"{PATH}/c/{'/'.join(map(str, block))}"
