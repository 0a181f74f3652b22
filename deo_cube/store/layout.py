"""Embeddings in a Zarr 3 store: one block = one shard = one entry in the progress record; killed anywhere, it resumes.

Layout of the group::

    embeddings   (time, embedding, y, x)       one shard per block, inner chunks of about 64 patches
    valid        (time, y, x)                  the same shards
    count        (time, y, x)                  the same, of embeddings that `aggregate` made
    time, y, x, spatial_ref, ...               coordinates
    progress/crc32/c/<time>/<row>/<column>     one entry per block, written after its shards
    progress/sealed.json                       a copy of the metadata, to find and repair damage (`template.py`)
    progress/sources                           evidence of which files the blocks were made from (`write.py`)

A block is written in this order: `valid`, `embeddings`, then its entry. Each object is replaced as a whole: on disk it
is written, synced, renamed, and its folder synced; on object stores it is one PUT. So an entry is never there without
its shards, whether a process is killed or the power fails, and a block that is done twice is the same bytes twice.

What decides the numbers is kept in the group's attributes. A store that was begun with anything else is refused, and
the fields that differ are listed. While it is written, a store has a *generation*: a token drawn when it was begun,
begun again (``overwrite=True``) or reopened for repair. A run writes only into the generation that it began with, so a
run that is still alive when another one replaces its store cannot fill that store with its own blocks.

Zarr's shards start at the array's corner, blocks at tile borders of the world grid. A cube of several blocks that does
not start on such a border is stored with a margin of fill values (less than one tile's core) before its first row and
column, so that blocks and shards coincide. Coordinates and transform count the margin in; `open_embeddings` cuts it.

The progress record has one object per block, written after its shards. An entry is the object
``progress/crc32/c/<time>/<row>/<column>``: eight bytes, a little-endian number of

- bits 0 to 31: the CRC-32 of what was written
- bit 32: set, so that an entry of zeros is not an entry
- bits 33 to 63: a checksum of what the block was made from (`tasks.input_checksum`); 0 where an earlier version did
  not record it

Whatever else is found under such a name, as after a loss of power, is not an entry: the block is done again. Entries
belong to no Zarr array, so that other readers of Zarr do not take the record for a picture; the bytes are those of the
array ``progress/crc32`` that earlier versions wrote.

The record is never read whole: it is read a row of blocks at a time, as a run goes through it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store

from deo_cube.constants import INT8_INVALID, Attribute
from deo_cube.errors import StoreMismatchError
from deo_cube.paths import answering
from deo_cube.store import storage

__all__ = [
    "Block",
    "DONE",
    "Entry",
    "FINGERPRINT",
    "GENERATION",
    "GROUP",
    "Layout",
    "OVERVIEWS",
    "PATH",
    "ROOT",
    "Record",
    "STALE",
    "STATE",
    "Target",
    "Writer",
    "blocks_without_shards",
    "checksum",
    "checksum_without_data",
    "cuts",
    "fill",
    "is_whole",
    "lost_shards",
    "planes_in",
    "planes_of",
    "PLANE_DTYPES",
]

GROUP = "progress"
#: Group of the overviews, which are derived from the store (`heads/overviews.py`).
OVERVIEWS = "overviews"
#: Attribute of that group, once blocks of the store may have been written since.
STALE = Attribute.STALE
#: Folder of the entries, in the store's group.
PATH = f"{GROUP}/crc32"
#: Bit that every entry has.
DONE = 1 << 32
#: Folders that are read at a time.
FOLDERS = 32

Block = tuple[int, int, int]

#: Dtypes of the arrays (time, y, x) of a store.
PLANE_DTYPES = {"valid": "float32", "count": "int16"}


@dataclass(frozen=True)
class Entry:
    """The entry of a finished block in the record.

    `output` is the CRC-32 of what was written; `inputs` a checksum of 31 bits of what it was made from, None where that
    is not known.
    """

    output: int
    inputs: int | None = None

    @property
    def number(self) -> int:
        """Return the entry as a number of 64 bits."""
        return (self.inputs or 0) << 33 | DONE | self.output

    def to_bytes(self) -> bytes:
        """Return the entry as it is stored."""
        return self.number.to_bytes(8, "little")

    @classmethod
    def from_number(cls, number: int) -> Entry:
        """Read an entry from its number."""
        return cls(number & (DONE - 1), number >> 33 or None)


def _number(data: bytes | None) -> int:
    """Return the number of an entry; 0 for bytes that are not one."""
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
        number = _number(storage.read(self.store, _key(block)))
        return Entry.from_number(number) if number else None

    def write(self, block: Block, entry: Entry) -> None:
        """Write the entry of a block."""
        storage.write(self.store, _key(block), entry.to_bytes())

    def forget(self, block: Block) -> None:
        """Delete a block's entry: the next run does it again."""
        storage.delete(self.store, _key(block))

    def rows(self, start: int = 0) -> Iterator[tuple[int, NDArray[np.uint64]]]:
        """Yield each row of blocks once, from `start` on and then from the first.

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
            found = storage.read_below(self.store, [f"{PATH}/c/{t}/{r}" for r in part for t in range(times)])
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
        return storage.has_any(self.store, f"{PATH}/c")


def _key(block: Block) -> str:
    return f"{PATH}/c/{'/'.join(map(str, block))}"


FINGERPRINT = Attribute.FINGERPRINT
GENERATION = Attribute.GENERATION
#: "creating" while the metadata are written, "replacing" while an older store is deleted, "writing", "complete".
STATE = Attribute.STATE
#: The group's own metadata.
ROOT = "zarr.json"


class _CompletedElsewhereError(Exception):
    """Raised when another process completed the store meanwhile."""


@dataclass(frozen=True)
class Layout:
    """The positions of the blocks of an array in its store.

    `lead` is the margin before the first row and column; `shard` the side of a shard in patches; `chunks` the blocks'
    sizes along time, y and x.
    """

    dims: tuple[str, ...]
    chunks: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
    lead: tuple[int, int]
    shard: tuple[int, int]

    @classmethod
    def of(cls, dims: tuple[str, ...], chunks: tuple[tuple[int, ...], ...]) -> Layout:
        """Lay out an array by the chunks of its last two dimensions (and of its first, where that is time).

        Raises
        ------
        StoreMismatchError
            If chunks between the first and the last differ: they could not each fill a shard.
        """
        spatial = chunks[-2:]
        lead, shard = [], []
        for name, sizes in zip(dims[-2:], spatial, strict=True):
            size = max(sizes)
            if any(s != size for s in sizes[1:-1]):
                raise StoreMismatchError(
                    f"the chunks along {name!r} are irregular ({sizes}), so that blocks and shards cannot coincide: "
                    f"rechunk first, emb.chunk({{{name!r}: {size}}})"
                )
            shard.append(size)
            lead.append(size - sizes[0] if len(sizes) > 1 else 0)
        times = chunks[0] if len(chunks) == 4 else (1,)
        return cls(
            dims, ((1,) * sum(times), tuple(spatial[0]), tuple(spatial[1])), (lead[0], lead[1]), (shard[0], shard[1])
        )

    @property
    def blocks(self) -> tuple[int, int, int]:
        """Blocks along time, y and x."""
        return len(self.chunks[0]), len(self.chunks[1]), len(self.chunks[2])

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of rows and columns in the store, margin included."""
        return self.lead[0] + sum(self.chunks[1]), self.lead[1] + sum(self.chunks[2])

    def region(self, block: Block) -> tuple[slice, slice]:
        """Return the rows and columns of a block in the store: everything that its shard holds."""
        slices = []
        for i, sizes, lead, shard in zip(block[1:], self.chunks[1:], self.lead, self.shard, strict=True):
            start = i * shard
            slices.append(slice(start + (lead if i == 0 else 0), min(start + shard, lead + sum(sizes))))
        return slices[0], slices[1]

    def padded(self, block: Block, values: np.ndarray, *planes: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return a block and its planes as they are stored: with the margin, if their shard begins there."""
        rows, columns = self.region(block)
        top, left = rows.start - block[1] * self.shard[0], columns.start - block[2] * self.shard[1]
        if (top, left) == (0, 0):
            return values, *planes
        margin = ((top, 0), (left, 0))
        # NaN and -128 are of their dtype, as Zarr's fill value is.
        edge = np.asarray(fill(values.dtype)).astype(values.dtype)
        return np.pad(values, ((0, 0), *margin), constant_values=edge), *(np.pad(plane, margin) for plane in planes)

    def checksum(self, block: Block, values: np.ndarray, *planes: np.ndarray) -> int:
        """Return the checksum that the entry of a block has."""
        return checksum(*self.padded(block, values, *planes))


@dataclass(frozen=True)
class Target:
    """A store that blocks can be written to, small enough to be sent to workers."""

    store: Any
    """Result of `storage.locate`."""
    layout: Layout
    fingerprint: str
    generation: str = ""

    @cached_property
    def record(self) -> Record:
        """The progress record."""
        return Record(storage.store_at(self.store), self.layout.blocks)

    def check(self) -> bool:
        """Check that the store is still the one this run began with; return whether it is complete.

        Raises
        ------
        StoreMismatchError
            If it was deleted or renamed, its metadata are damaged, or another run replaced it.
        """
        return self._check(storage.store_at(self.store))

    def _check(self, store: Store) -> bool:
        data = storage.read(store, ROOT)
        if data is None:
            raise StoreMismatchError(f"{self.store} does not exist any more: it was deleted or renamed during the run")
        try:
            attrs = json.loads(data)["attributes"]
            state, theirs = attrs[STATE], (attrs[FINGERPRINT], attrs.get(GENERATION, ""))
        except (ValueError, KeyError, TypeError) as error:
            raise StoreMismatchError(f"{self.store}/{ROOT} was damaged while the store was written to") from error
        if state == "complete" and theirs[0] == self.fingerprint:
            return True
        if theirs != (self.fingerprint, self.generation):
            raise StoreMismatchError(
                f"{self.store} was replaced by another run, with overwrite=True perhaps, while this one wrote to it: "
                "wait for that run, or choose another path"
            )
        return False

    def open(self) -> Writer:
        """Open the store for writing blocks.

        Raises
        ------
        StoreMismatchError
            As `check`.
        """
        store = storage.store_at(self.store, before_rename=self._check_before_rename)
        self._check(store)
        return Writer(self, zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False))

    def _check_before_rename(self) -> None:
        if self.check():
            raise _CompletedElsewhereError


class Writer:
    """Writes blocks into an open store."""

    def __init__(self, target: Target, root: zarr.Group) -> None:
        self.target = target
        self.embeddings, self.planes = root["embeddings"], planes_in(root)

    def write(self, block: Block, values: np.ndarray, planes: Sequence[np.ndarray], inputs: int | None) -> None:
        """Write one block: valid fraction (and count), embeddings, and its entry last.

        Parameters
        ----------
        block : tuple of int
            Time, row and column.
        values : array
            ``(D, rows, columns)`` in the store's dtype.
        planes : sequence of array
            ``(rows, columns)``, those that `planes_of` names.
        inputs : int, optional
            Checksum of what the block was made from.

        Raises
        ------
        StoreMismatchError
            If another run replaced the store; what was written into that one is withdrawn.
        """
        layout = self.target.layout
        rows, columns = layout.region(block)
        # A shard that begins in the margin is written whole, so nothing need be read back.
        values, *stored = layout.padded(block, values, *planes)
        valid = stored[0]
        rows, columns = slice(rows.stop - valid.shape[0], rows.stop), slice(columns.stop - valid.shape[1], columns.stop)
        time = (block[0],) if len(layout.dims) == 4 else ()
        embeddings = self.embeddings
        if valid.any():
            # No chunk is empty then, but Zarr would compare every number with the fill value to find out, in the one
            # thread that all reads and writes share.
            embeddings = embeddings.with_config({"write_empty_chunks": True})
        entry = Entry(checksum(values, *stored), inputs)
        record = self.target.record
        try:
            for array, plane in zip(self.planes, stored, strict=True):
                _replace(array, (*time, *block[1:]), (*time, rows, columns), plane)
            _replace(embeddings, (*time, 0, *block[1:]), (*time, slice(None), rows, columns), values)
            # Checked again for object stores, which have no rename to check before.
            complete = self.target.check()
        except _CompletedElsewhereError:
            complete = True
        except StoreMismatchError:
            self._withdraw(block)
            raise
        if not complete:
            record.write(block, entry)
        elif record.entry(block) != entry:
            self._withdraw(block)
            raise StoreMismatchError(
                f"{self.target.store} was completed by another run that made block {block} from something else"
            )

    def _withdraw(self, block: Block) -> None:
        """Mark a block of the present store as not done if a shard of this run has damaged it.

        This happens if the store was replaced between the check and the end of the write.
        """
        store = storage.store_at(self.target.store)
        try:
            root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
            damaged = not is_whole(root, self.target.record, block)
        except Exception:
            return  # no store is there, or it is being created
        if damaged:
            root.attrs[STATE] = "writing"  # first, so that the store never claims more than it holds
            self.target.record.forget(block)


def is_whole(root: zarr.Group, record: Record, block: Block) -> bool:
    """Return whether the stored bytes of a block match its entry. Blocks without an entry are whole."""
    entry = record.entry(block)
    if entry is None:
        return True
    values, planes = root["embeddings"], planes_in(root)
    shards = values.shards or values.chunks
    rows, columns = (
        slice(i * s, min((i + 1) * s, n)) for i, s, n in zip(block[1:], shards[-2:], values.shape[-2:], strict=True)
    )
    time = (block[0],) if values.ndim == 4 else ()
    try:
        with answering(root.store_path):
            of_block = [plane[(*time, rows, columns)] for plane in planes]
            crc = checksum(values[(*time, slice(None), rows, columns)], *of_block)
    except (ConnectionError, PermissionError, TimeoutError):
        raise  # what cannot be fetched may be whole
    except Exception:
        # Codecs may raise any error on damaged bytes: a block that cannot be read is damaged.
        return False
    return entry.output == crc


def planes_of(emb: xr.DataArray) -> list[str]:
    """Return the coordinates of an array that are stored with each block: `valid`, and `count` of an aggregate."""
    counted = Attribute.AGGREGATE in emb.attrs and "count" in emb.coords
    same = counted and set(emb["count"].dims) == set(emb.dims) - {"embedding"}
    return ["valid", "count"] if same and emb["count"].dtype.kind in "iu" else ["valid"]


def planes_in(root: zarr.Group) -> list[Any]:
    """Return the arrays of a store that `planes_of` named when it was made."""
    valid = root["valid"]
    # Asked of metadata that are open already: a look for an array that is not there is a request per block.
    if "count" not in str(root["embeddings"].attrs.get("coordinates", "")).split():
        return [valid]
    count = root["count"]
    return [valid, count] if count.ndim == valid.ndim else [valid]


def lost_shards(
    store: Store, layout: Layout, dtype: np.dtype[Any], dim: int, record: Record, *, planes: Sequence[str] = ("valid",)
) -> list[Block]:
    """Return the blocks that have an entry and no shards, though the entry is not that of a block without data.

    Only the names of the shards are listed; what they hold is checked by `is_whole`.
    """
    lost = []
    for row, numbers in record.rows():
        times = [int(t) for t in np.flatnonzero(numbers.any(axis=1))]
        for t, stored in zip(times, _stored_columns(store, times, row, timed=len(layout.dims) == 4), strict=True):
            for column in np.flatnonzero(numbers[t]):
                block = (t, row, int(column))
                if str(column) in stored:
                    continue
                empty = checksum_without_data(block, layout.shape, layout.shard, dim, dtype, tuple(planes))
                if Entry.from_number(int(numbers[t, column])).output != empty:
                    lost.append(block)
    return lost


def blocks_without_shards(store: Store, blocks: tuple[int, int, int], *, timed: bool) -> list[Block]:
    """Return the blocks of which a shard is not stored: those without data, and those that lost it.

    Only names are listed.

    Parameters
    ----------
    store : zarr store
    blocks : tuple of int
        Along time, y and x.
    timed : bool
        Whether the arrays have a dimension of time.
    """
    times, rows, columns = blocks
    return [
        (t, row, column)
        for row in range(rows)
        for t, stored in enumerate(_stored_columns(store, range(times), row, timed=timed))
        for column in range(columns)
        if str(column) not in stored
    ]


def _stored_columns(store: Store, times: Sequence[int], row: int, *, timed: bool) -> list[set[str]]:
    """Return for each of `times` the columns of a row of blocks whose embeddings and valid fraction are stored."""
    embeddings = [f"embeddings/c/{t}/0/{row}" if timed else f"embeddings/c/0/{row}" for t in times]
    valid = [f"valid/c/{t}/{row}" if timed else f"valid/c/{row}" for t in times]
    names = storage.names_below(store, [*embeddings, *valid])
    return [
        set(of_both[0]).intersection(of_both[1])
        for of_both in zip(names[: len(times)], names[len(times) :], strict=True)
    ]


def checksum_without_data(
    block: Block, size: tuple[int, int], shard: tuple[int, int], dim: int, dtype: np.dtype[Any], planes: tuple[str, ...]
) -> int:
    """Return the checksum of a block without a valid patch, of which no shard is stored.

    Parameters
    ----------
    block : tuple of int
        Time, row and column.
    size, shard : tuple of int
        Rows and columns of the store, and of a shard.
    dim, dtype, planes
        Of the store.
    """
    shape = tuple(min((i + 1) * s, n) - i * s for i, s, n in zip(block[1:], shard, size, strict=True))
    return _checksum_of_fill(shape, dim, np.dtype(dtype).str, planes)


@lru_cache(maxsize=16)
def _checksum_of_fill(shape: tuple[int, ...], dim: int, dtype: str, planes: tuple[str, ...]) -> int:
    kind = np.dtype(dtype)
    return checksum(np.full((dim, *shape), fill(kind), kind), *(np.zeros(shape, PLANE_DTYPES[name]) for name in planes))


def _replace(array: Any, shard: tuple[int, ...], region: tuple[int | slice, ...], values: np.ndarray) -> None:
    """Write a whole shard, whatever is stored at its key."""
    try:
        array[region] = values
    except (OSError, StoreMismatchError, _CompletedElsewhereError):
        raise
    except Exception:
        # Zarr merges with the existing shard; one that it cannot read was left by a run that died.
        storage.delete(array.store_path.store, f"{array.store_path.path}/{array.metadata.encode_chunk_key(shard)}")
        array[region] = values


def cuts(lead: int, size: int, shard: int) -> tuple[int, ...]:
    """Return the sizes of the blocks of an axis that begins `lead` patches into its first shard."""
    edges = [0, *range(shard - lead, size, shard), size]
    return tuple(b - a for a, b in pairwise(edges))


def checksum(values: np.ndarray, *planes: np.ndarray) -> int:
    """Return the CRC-32 of a block as it is stored."""
    crc = 0
    for part in (values, *planes):
        crc = zlib.crc32(np.ascontiguousarray(part).data, crc)
    return crc


def fill(dtype: np.dtype[Any]) -> float:
    """Return the value of a patch without data."""
    return float("nan") if dtype.kind == "f" else INT8_INVALID
