"""Embeddings in a Zarr 3 store: one block = one shard = one entry in the progress record; killed anywhere, it resumes.

Layout of the group::

    embeddings   (time, embedding, y, x)       a shard a block, inner chunks of about 64 patches
    valid        (time, y, x)                  the same shards
    time, y, x, spatial_ref, ...               coordinates
    progress/crc32  (time, row, column)        one entry a block, an object of its own, written after its shards:
                                               2**32 + their CRC-32

A block is written in this order: `valid`, `embeddings`, then its entry. Each object is replaced as a whole (a rename on
disk, a PUT on object stores), so an entry never vouches for half a shard, and a block that is done twice is the same
bytes twice. On disk the shards are synced before the entry is written, so that this holds through a loss of power too.
What decides the numbers is kept in the group's attributes; a store that was begun with anything else is
refused, and the fields that differ are listed.

Zarr's shards start at the array's corner, blocks at tile borders of the world grid. A cube of several blocks that does
not start on such a border is stored with a margin of fill values (less than one tile's core) before its first row and
column, so that blocks and shards coincide. Coordinates and transform count the margin in; `open_embeddings` cuts it.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.sync import sync

from deo_cube.engine import metadata, record
from deo_cube.engine.location import is_local
from deo_cube.errors import StoreMismatchError

__all__ = ["FINGERPRINT", "Layout", "Target", "checksum", "fill"]

FINGERPRINT = metadata.PREFIX + "fingerprint"


@dataclass(frozen=True)
class Layout:
    """Where the blocks of an array lie in its store.

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
        """Rows and columns in the store, margin included."""
        return self.lead[0] + sum(self.chunks[1]), self.lead[1] + sum(self.chunks[2])

    def region(self, block: tuple[int, int, int]) -> tuple[slice, slice]:
        """Rows and columns of a block in the store: all that its shard holds."""
        cuts = []
        for i, sizes, lead, shard in zip(block[1:], self.chunks[1:], self.lead, self.shard, strict=True):
            start = i * shard
            cuts.append(slice(start + (lead if i == 0 else 0), min(start + shard, lead + sum(sizes))))
        return cuts[0], cuts[1]


@dataclass(frozen=True)
class Target:
    """A store that blocks can be written to, small enough to travel to workers."""

    store: Any
    layout: Layout
    fingerprint: str

    def open(self) -> zarr.Group:
        """Open the group for reading and writing.

        Raises
        ------
        StoreMismatchError
            If it is gone, or someone began another in its place meanwhile.
        """
        try:
            root = zarr.open_group(self.store, mode="r+", zarr_format=3, use_consolidated=False)
        except FileNotFoundError as error:
            raise StoreMismatchError(f"{self.store} is gone: it was deleted while it was written to") from error
        if root.attrs.get(FINGERPRINT) != self.fingerprint:
            raise StoreMismatchError(f"{self.store} was begun anew with something else while this run wrote to it")
        return root

    def write(self, root: zarr.Group, block: tuple[int, int, int], values: np.ndarray, valid: np.ndarray) -> None:
        """Write one block: valid fraction, embeddings, and its entry last."""
        rows, columns = self.layout.region(block)
        (top, left), filled = self._margin(block, rows, columns), values
        if (top, left) != (0, 0):
            # The shard begins in the margin; it is written whole, so nothing need be read back.
            filled = np.full((*values.shape[:-2], values.shape[-2] + top, values.shape[-1] + left), fill(values.dtype))
            filled = filled.astype(values.dtype)
            filled[..., top:, left:] = values
            padded = np.zeros((valid.shape[0] + top, valid.shape[1] + left), valid.dtype)
            padded[top:, left:] = valid
            valid = padded
            rows, columns = slice(rows.start - top, rows.stop), slice(columns.start - left, columns.stop)
        time = (block[0],) if len(self.layout.dims) == 4 else ()
        embeddings = root["embeddings"]
        if valid.any():
            # Nothing is empty then, but zarr would compare every number with the fill value to find that out, in the
            # one thread that all reads and writes go through.
            embeddings = embeddings.with_config({"write_empty_chunks": True})
        _replace(root["valid"], (*time, *block[1:]), (*time, rows, columns), valid)
        _replace(embeddings, (*time, 0, *block[1:]), (*time, slice(None), rows, columns), filled)
        if is_local(self.store):
            _sync(root["valid"], (*time, *block[1:]))
            _sync(root["embeddings"], (*time, 0, *block[1:]))
        root[record.PATH][block] = record.DONE | checksum(filled, valid)

    def _margin(self, block: tuple[int, int, int], rows: slice, columns: slice) -> tuple[int, int]:
        return (
            rows.start - block[1] * self.layout.shard[0],
            columns.start - block[2] * self.layout.shard[1],
        )


def _replace(array: Any, shard: tuple[int, ...], region: tuple[int | slice, ...], values: np.ndarray) -> None:
    """Write a whole shard, whatever lies in its place."""
    try:
        array[region] = values
    except OSError:
        raise
    except Exception:
        # zarr merges with the shard that is there, whole or not; one that it cannot read is from a run that died.
        key = f"{array.store_path.path}/{array.metadata.encode_chunk_key(shard)}"
        sync(array.store_path.store.delete(key))
        array[region] = values


def _sync(array: Any, shard: tuple[int, ...]) -> None:
    """Have the disk hold a shard, where there is one: an empty one is not stored."""
    path = Path(array.store_path.store.root, array.store_path.path, array.metadata.encode_chunk_key(shard))
    try:
        handle = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checksum(values: np.ndarray, valid: np.ndarray) -> int:
    """CRC-32 of a block as it stands in the store."""
    return zlib.crc32(np.ascontiguousarray(valid).tobytes(), zlib.crc32(np.ascontiguousarray(values).tobytes()))


def fill(dtype: np.dtype[Any]) -> float:
    """What a patch without data holds."""
    return float("nan") if dtype.kind == "f" else -128
