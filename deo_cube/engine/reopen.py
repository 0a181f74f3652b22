"""Open a store of embeddings, count what is done, and check it block by block."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.engine import metadata
from deo_cube.engine.store import DONE, IDENTITY, WINDOW, checksum, existing, is_local
from deo_cube.errors import StoreMismatchError

__all__ = ["StoreStatus", "is_embeddings", "open_embeddings", "status", "verify_store"]


@dataclass(frozen=True)
class StoreStatus:
    """How far a store is."""

    blocks: int
    done: int
    damaged: tuple[tuple[int, int, int], ...] = ()
    """Blocks whose bytes do not match their entry (time, row, column). Only `verify_store` looks."""
    verified: bool = False

    @property
    def complete(self) -> bool:
        """Whether every block is done, and none was found damaged."""
        return self.done == self.blocks and not self.damaged

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{self.blocks - self.done} to do"
        damage = f", {len(self.damaged)} DAMAGED: {list(self.damaged[:5])}" if self.damaged else ""
        checked = ", every byte checked" if self.verified and not self.damaged else ""
        return f"<Store: {self.done} of {self.blocks} blocks done, {state}{damage}{checked}>"


def is_embeddings(store: Any) -> bool:
    """Whether a store of embeddings of this package lies there."""
    try:
        found = existing(store)
    except StoreMismatchError:
        return False
    return found is not None and IDENTITY in found.attrs


def status(store: Any) -> StoreStatus:
    """Count the blocks that are done, from the progress record alone.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    root = _ours(store)
    record = root["progress/crc32"][...]
    return StoreStatus(blocks=int(record.size), done=int((record & DONE != 0).sum()))


def _ours(store: Any) -> zarr.Group:
    found = existing(store)
    if found is None:
        raise StoreMismatchError(f"{store} does not exist")
    if IDENTITY not in found.attrs:
        raise StoreMismatchError(f"{store} was not made by deo_cube (no {IDENTITY} in its attributes)")
    return found


def verify_store(store: Any) -> StoreStatus:
    """Read every finished block back and compare it with its entry.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    root = _ours(store)
    record = root["progress/crc32"][...]
    values, valid = root["embeddings"], root["valid"]
    shards = values.shards or values.chunks
    damaged = []
    for block in zip(*np.nonzero(record & DONE), strict=True):
        t, r, c = (int(i) for i in block)
        rows, columns = (
            slice(i * s, min((i + 1) * s, n)) for i, s, n in zip((r, c), shards[-2:], values.shape[-2:], strict=True)
        )
        time = (t,) if values.ndim == 4 else ()
        try:
            crc = checksum(values[(*time, slice(None), rows, columns)], valid[(*time, rows, columns)])
        except Exception:
            # Any codec may raise anything on damaged bytes: a block that cannot be read is damaged.
            crc = -1
        if crc != int(record[block]) & 0xFFFFFFFF:
            damaged.append((t, r, c))
    return StoreStatus(int(record.size), int((record & DONE != 0).sum()), tuple(damaged), verified=True)


def open_embeddings(store: Any) -> xr.DataArray:
    """Open a store of embeddings, lazily.

    Parameters
    ----------
    store : path, URL or zarr store
        Written by `emb.deo.to_zarr()`.

    Returns
    -------
    DataArray
        As it was written: `embeddings` ``(time, embedding, y, x)`` on Dask, a chunk a shard, with the coordinate
        `valid`. int8 stores are decoded to float32.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.

    Warns
    -----
    UserWarning
        If blocks are missing; they read as NaN.
    """
    root = _ours(store)
    state = root.attrs.get(metadata.PREFIX + "state")
    if state != "complete":
        now = status(store)
        if now.complete:
            state = "complete"
        else:
            warnings.warn(
                f"{store} is not complete: {now.done} of {now.blocks} blocks are done, the others read as NaN. "
                "Make the call that began it once more to finish it",
                stacklevel=2,
            )
    name = str(store) if is_local(store) else store
    shards = root["embeddings"].shards or root["embeddings"].chunks
    dims = list(root["embeddings"].metadata.dimension_names)
    ds = xr.open_zarr(name, zarr_format=3, consolidated=False, chunks=None, decode_coords="all")
    # What lies along time or nowhere is small, and no one wants to wait for it later.
    ds = ds.assign_coords({n: c.variable.load() for n, c in ds.coords.items() if c.ndim < 2})
    top, left, height, width = (int(v) for v in root.attrs[WINDOW])
    emb = (
        ds["embeddings"]
        .chunk(dict(zip(dims, shards, strict=True)))
        .isel({dims[-2]: slice(top, top + height), dims[-1]: slice(left, left + width)})
    )
    emb.attrs |= {k: v for k, v in root.attrs.items() if k.startswith(metadata.PREFIX)}
    for k in (IDENTITY, WINDOW, WINDOW + "_transform", metadata.PREFIX + "state", metadata.PREFIX + "fingerprint"):
        emb.attrs.pop(k, None)
    # The window's own transform, so that coordinates come back to the last bit.
    crs = grid.geobox(ds).crs
    box = GeoBox((height, width), Affine(*root.attrs[WINDOW + "_transform"]), crs)
    placed: xr.DataArray = grid.assign_grid(emb, box, dims=(dims[-2], dims[-1]))
    return placed
