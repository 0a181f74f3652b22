"""Open a store of embeddings, count what is done, and check it block by block."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from deo_cube.arguments import embeddings_of
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.open import UNREADABLE, check_codecs
from deo_cube.embedding import metadata
from deo_cube.errors import StorageError, StoreMismatchError, StoreNotFoundError, naming, remedy
from deo_cube.notebook import facts_html
from deo_cube.paths import expand, is_url, local_path, not_found
from deo_cube.progress import Progress
from deo_cube.store import create, storage, template
from deo_cube.store.create import existing
from deo_cube.store.layout import (
    FINGERPRINT,
    GENERATION,
    GROUP,
    PATH,
    ROOT,
    STATE,
    Block,
    Record,
    blocks_without_shards,
    checksum_without_data,
    cuts,
    is_whole,
    planes_in,
)
from deo_cube.store.storage import is_local, locate
from deo_cube.store.template import BLOCKS, FORMAT, IDENTITY, WINDOW

__all__ = ["StoreStatus", "is_embeddings", "open_embeddings", "opened", "status", "verify_store"]


@dataclass(frozen=True)
class StoreStatus:
    """The state of a store."""

    blocks: int
    done: int
    damaged: tuple[Block, ...] = ()
    """Blocks whose bytes do not match their entry (time, row, column). Only `verify_store` looks."""
    verified: bool = False
    repaired: bool = False
    """True if the entries of the damaged blocks were deleted, and metadata restored."""
    metadata: tuple[str, ...] = ()
    """Objects of the metadata that are missing, damaged or changed, and how. Only `verify_store` looks."""
    sealed: bool = True
    """False for stores of earlier versions, which have no copy of their metadata to compare with."""
    derived: str | None = None
    """How the store's values were computed from a model's embeddings; None where they are the model's own output."""

    @property
    def complete(self) -> bool:
        """True if every block is done, and none is damaged."""
        return self.done == self.blocks and not self.damaged and not self.metadata

    def __repr__(self) -> str:
        state = f"{self.blocks - self.done} to do" if self.done < self.blocks else "complete"
        damage = f", {len(self.damaged)} DAMAGED: {list(self.damaged[:5])}" if self.damaged else ""
        damage += f", METADATA DAMAGED: {'; '.join(self.metadata)}" if self.metadata else ""
        if damage and self.done == self.blocks:
            state = "not complete"
        damage += "; repaired: the call that made the store completes it" if self.repaired else ""
        checked = ", every byte checked" if self.verified and not damage else ""
        checked += ", metadata not checked (store of an earlier version)" if checked and not self.sealed else ""
        derived = f"; {self.derived}" if self.derived else ""
        return f"<Store: {self.done} of {self.blocks} blocks done, {state}{damage}{checked}{derived}>"

    def _repr_html_(self) -> str:
        checked = "every byte of finished blocks" if self.verified else "not yet: verify_store reads every byte"
        rows = [("blocks", f"{self.done} of {self.blocks} done"), ("checked", checked)]
        rows += [("damaged blocks", ", ".join(map(str, self.damaged[:8])))] if self.damaged else []
        rows += [("metadata", "\n".join(self.metadata))] if self.metadata else []
        rows += [("repaired", "yes: the call that made the store completes it")] if self.repaired else []
        rows += [("derived", self.derived)] if self.derived else []
        return facts_html("store, complete" if self.complete else "store, NOT complete", rows)


def is_embeddings(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> bool:
    """Return whether a store of embeddings of this package is there."""
    try:
        group = existing(locate(store, storage_options))
    except StoreMismatchError:
        return False
    return group is not None and IDENTITY in group.attrs


def status(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> StoreStatus:
    """Count the blocks that are done, by their entries in the progress record; no block is read.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    place = locate(store, storage_options)
    root = _ours(place)
    check_codecs(root)
    _check_record(place, root, needed=True)
    attrs = dict(root.attrs)
    record = create.record_of(place, attrs)
    return StoreStatus(blocks=record.total, done=record.count(), derived=attrs.get(Attribute.DERIVED))


def _ours(store: Any, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    found = existing(store, mode)
    if found is None:
        expected = f"a store of embeddings: {remedy('emb.deo.to_zarr(path)', 'deo-cube embed CUBE STORE')} writes one"
        if is_local(store) and Path(store).is_dir():
            raise StoreMismatchError(f"store: {store} is an empty folder. Expected {expected}")
        raise not_found("store", store, expected, error=StoreNotFoundError)
    if IDENTITY not in found.attrs:
        raise StoreMismatchError(
            f"store: {store} was not made by deo_cube (no {IDENTITY} in its attributes, which a copy by xarray may "
            f"lack): {remedy(_how_to_read(store), 'embed a cube first, deo-cube embed CUBE OUT')}"
        )
    return found


def verify_store(
    store: Any,
    *,
    repair: bool = False,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
) -> StoreStatus:
    """Read every finished block back and compare it with its entry.

    Parameters
    ----------
    store : path, URL or zarr store
        As `to_zarr` took it.
    repair : bool
        Restore metadata, and delete the entries of damaged blocks, so that the call that made the store writes these
        again.
    progress : bool
        Show a progress bar.
    storage_options : mapping, optional
        As for `to_zarr`.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube.
    """
    place = locate(store, storage_options)
    backend = storage.store_at(place)
    sealed = template.read_seal(backend)
    wrong = (
        {} if sealed is None else template.damaged_objects(backend, sealed) | template.damaged_copies(backend, sealed)
    )
    if wrong and repair:
        create.repair(place)
    root = None if ROOT in wrong and not repair else _ours(place, "r+" if repair else "r")
    if root is not None and (repair or not wrong):
        check_codecs(root)
        _check_record(place, root, needed=True)
    elif root is not None:
        try:
            check_codecs(root)
        except StorageError:
            root = None  # its arrays are not read
    attrs = dict(root.attrs) if root is not None else json.loads((sealed or {})[ROOT])["attributes"]
    if sealed is None and FORMAT in attrs:
        wrong = {template.SEAL: "missing or damaged"}
    record = create.record_of(place, attrs)
    checked, damaged = 0, []
    # Decompression and checksums leave the interpreter to other threads.
    finished = record.count() if progress else record.total
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(finished, title="verify", shown=progress) as bar,
    ):
        for row, numbers in record.rows():
            blocks = [(int(t), row, int(c)) for t, c in zip(*np.nonzero(numbers), strict=True)]
            whole = pool.map(partial(_is_whole, root, record), blocks)
            for block, fine in zip(blocks, whole, strict=True):
                checked += 1
                bar.advance()
                if not fine:
                    damaged.append(block)
    if repair and damaged:
        create.restart(backend)  # first, so that the store never claims more than it holds
        for block in damaged:
            record.forget(block)
    return StoreStatus(
        record.total,
        checked,
        tuple(sorted(damaged)),
        verified=True,
        repaired=repair and bool(damaged or wrong),
        metadata=tuple(f"{key} ({problem})" for key, problem in wrong.items()),
        sealed=FORMAT in attrs,
        derived=attrs.get(Attribute.DERIVED),
    )


def _is_whole(root: zarr.Group | None, record: Record, block: Block) -> bool:
    if root is None:
        return True  # not readable without the group's document; that is what is reported
    try:
        return is_whole(root, record, block)
    except OSError:
        raise  # what cannot be fetched may be whole
    except Exception:
        return False  # an array's document is damaged


def _check_sealed(place: Any, attrs: Mapping[str, Any]) -> None:
    """Refuse a store whose metadata are not what was written with it: numbers or places would be wrong."""
    if FORMAT not in attrs:
        return
    backend = storage.store_at(place)
    if not storage.has_any(backend, GROUP):
        return  # written anew by another program, without record and seal
    sealed = template.read_seal(backend)
    wrong = {template.SEAL: "missing or damaged"} if sealed is None else template.damaged_objects(backend, sealed)
    if wrong:
        raise StoreMismatchError(
            f"{place}: metadata are not what was written: {'; '.join(f'{k} {v}' for k, v in wrong.items())}. "
            f"{create.repair_call()} restores them from the store's own copy, or the call that "
            "wrote the store, made once more"
        )


def _of_others(store: Any) -> xr.DataArray | None:
    if not isinstance(store, str | os.PathLike):
        return None
    ending = str(store).rstrip("/").lower().rpartition(".")[2]
    if ending not in ("tif", "tiff", "npy") and (
        is_url(store) or not local_path(store).exists() or is_embeddings(store)
    ):
        return None
    from deo_cube.store.products import open_layout

    return open_layout(expand(store))


def opened(emb: Any, argument: str = "emb", *, storage_options: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Return embeddings, read from their store where `emb` is its path; errors name `argument`.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        For what is neither embeddings nor a path.
    StoreMismatchError
        For a path that is not a store of embeddings.
    """
    if isinstance(emb, str | os.PathLike | Store):
        with naming(argument, instead_of="store"):
            emb = open_embeddings(emb, storage_options=storage_options if is_url(emb) else None)
    return embeddings_of(emb, argument=argument)


def open_embeddings(store: Any, *, storage_options: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Open a store of embeddings, lazily.

    Parameters
    ----------
    store : path, URL or zarr store
        Written by `emb.deo.to_zarr()`; or embeddings of others, at their place: TESSERA tiles, AlphaEarth COGs, stores
        after the `geoemb:` convention (`deo_cube.store.products`).
    storage_options : mapping, optional
        As for `to_zarr`.

    Returns
    -------
    DataArray
        As it was written: `embeddings` ``(time, embedding, y, x)`` on Dask, one chunk per shard, with the coordinate
        `valid`. int8 stores are decoded to float32.

    Raises
    ------
    StoreMismatchError
        If the store was not made by deo_cube, and is of no other layout that is known.

    Warns
    -----
    UserWarning
        If blocks are missing; they read as NaN.
    """
    if (other := _of_others(store)) is not None:
        return other
    store = locate(store, storage_options)
    root = _ours(store)
    state = root.attrs.get(STATE)
    if state in ("creating", "replacing"):
        raise StoreMismatchError(f"{store} was being {state[:-3]}ed when a run stopped: make the same call again")
    try:
        _check_record(store, root, needed=False)
    except StoreMismatchError:
        raise
    except UNREADABLE:
        pass  # damaged, which the next check reports
    _check_sealed(store, root.attrs)
    check_codecs(root)
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
    if (lost := _lost_blocks(store, root)) > 0:
        warnings.warn(
            f"{store}: shards of at least {lost} finished blocks are not there, as in a copy that was cut short, and "
            f"read as NaN. Copy the store again; or {create.repair_call()} and "
            "the call that made it, once more, restore them",
            stacklevel=2,
        )
    shards = root["embeddings"].shards or root["embeddings"].chunks
    dims = list(root["embeddings"].metadata.dimension_names)
    ds = xr.open_zarr(store, zarr_format=3, consolidated=False, chunks=None, decode_coords="all")
    _check_window(store, root.attrs, ds, (dims[-2], dims[-1]))
    # Coordinates of at most one dimension are small, so they are loaded at once.
    small = {n: c.variable.load().drop_encoding() for n, c in ds.coords.items() if c.ndim < 2}
    top, left, height, width = (int(v) for v in root.attrs[WINDOW])
    # Cut before it is put on Dask, in chunks that are shards all the same: slicing Dask arrays lists every chunk.
    emb = ds["embeddings"].isel({dims[-2]: slice(top, top + height), dims[-1]: slice(left, left + width)})
    spatial = {
        d: cuts(lead, emb.sizes[d], shard) for d, lead, shard in zip(dims[-2:], (top, left), shards[-2:], strict=True)
    }
    emb = emb.chunk({**dict(zip(dims[:-2], shards[:-2], strict=True)), **spatial})
    # `chunk` puts coordinates on Dask too.
    emb = emb.assign_coords({n: c for n, c in small.items() if n not in dims[-2:]})
    stored = emb.encoding
    emb = emb.drop_encoding()
    if emb.dtype == np.float64:
        # xarray decodes to the type of the scale, and an attribute in JSON is a float64.
        emb = emb.astype("float32")
    if "scale_factor" in stored:
        # What int8 numbers mean; chunks, shards and codecs are this store's, not those of a copy.
        emb.encoding = {k: stored[k] for k in ("dtype", "scale_factor", "_FillValue") if k in stored}
    emb.attrs |= {k: v for k, v in root.attrs.items() if k.startswith(metadata.PREFIX)}
    for k in (IDENTITY, WINDOW, WINDOW + "_transform", STATE, FINGERPRINT, GENERATION, BLOCKS, FORMAT):
        emb.attrs.pop(k, None)
    # The window's own transform, so that coordinates come back to the last bit.
    crs = georeference.geobox(ds).crs
    box = GeoBox((height, width), Affine(*root.attrs[WINDOW + "_transform"]), crs)
    placed: xr.DataArray = georeference.assign_grid(emb, box, dims=(dims[-2], dims[-1]))
    return placed


#: Most blocks of a store whose shards are looked for when it is opened, and about as many entries that are read then.
LISTED, READ = 65536, 1024


def _lost_blocks(place: Any, root: zarr.Group) -> int:
    """Return how many finished blocks of a folder are known to have lost their shards.

    A block without data has no shard either: its entry says so.
    """
    backend = storage.store_at(place)
    if not is_local(place) or root.attrs.get(Attribute.BLOCKS) is None or not storage.has_any(backend, GROUP):
        return 0
    record = create.record_of(place, dict(root.attrs))
    if record.total > LISTED:
        return 0
    values, planes = root["embeddings"], tuple(plane.basename for plane in planes_in(root))
    size, shard, dim = values.shape[-2:], (values.shards or values.chunks)[-2:], values.shape[-3]
    missing = blocks_without_shards(backend, record.blocks, timed=values.ndim == 4)
    entries = {block: record.entry(block) for block in missing[:: max(1, len(missing) // READ)]}
    return sum(
        entry is not None and entry.output != checksum_without_data(block, size, shard, dim, values.dtype, planes)
        for block, entry in entries.items()
    )


def _check_window(store: Any, attrs: Mapping[str, Any], ds: xr.Dataset, dims: tuple[str, str]) -> None:
    """Raise if the coordinates of a store contradict its attributes.

    xarray copies the attributes of a group when it writes a part of it elsewhere, so that they describe the whole.

    Parameters
    ----------
    store : path, URL or zarr store
        For the message.
    attrs : mapping
        Of the store's group.
    ds : Dataset
        The store as xarray opens it.
    dims : (str, str)
        Names of the dimensions along y and x.

    Raises
    ------
    StoreMismatchError
        If size or coordinates differ from the attributes.
    """
    length = attrs.get("geoemb:dimensions", ds.sizes["embedding"])
    if ds.sizes["embedding"] != length:
        _refuse(store, f"vectors of length {ds.sizes['embedding']} where its attributes say {length}")
    top, left, height, width = (int(v) for v in attrs[WINDOW])
    a = Affine(*attrs[WINDOW + "_transform"])
    for dim, lead, size, start, step in ((dims[0], top, height, a.f, a.e), (dims[1], left, width, a.c, a.a)):
        expected = lead + size
        if ds.sizes[dim] != expected:
            _refuse(store, f"{ds.sizes[dim]} along {dim!r} where its attributes say {expected}")
        if dim not in ds.coords:
            _refuse(store, f"no coordinate {dim!r}")
        centres = start + (np.arange(-lead, size) + 0.5) * step
        values = np.asarray(ds[dim].values, dtype="float64")
        if not np.allclose(values, centres, rtol=0, atol=1e-3 * abs(step)):
            _refuse(
                store,
                f"{dim} from {values[0]:.10g} to {values[-1]:.10g} where its attributes say "
                f"{centres[0]:.10g} to {centres[-1]:.10g}",
            )


def _check_record(store: Any, root: zarr.Group, *, needed: bool) -> None:
    """Raise if the progress record of a store is not that of its array, or, if `needed`, if it has none.

    Raises
    ------
    StoreMismatchError
        If dates were appended by another program, or a copy has no record to check blocks by.
    """
    blocks = root.attrs.get(Attribute.BLOCKS)
    found = storage.has_any(storage.store_at(store), GROUP)
    if not found:
        if needed:
            raise StoreMismatchError(
                f"{store} has no progress record, as where another program wrote it anew: its blocks cannot be "
                f"counted or checked. Read it, {_how_to_read(store)}; or write it by "
                + remedy("emb.deo.to_zarr(path)", "deo-cube embed CUBE STORE")
            )
        return
    if blocks is None:  # of an earlier version, whose record is a Zarr array
        if PATH not in root:
            return
        blocks = root[PATH].shape
    times = root["embeddings"].shape[0] if root["embeddings"].ndim == 4 else 1
    if int(blocks[0]) != times:
        _refuse(store, f"{times} dates where its progress record counts {blocks[0]}")


def _how_to_read(store: Any) -> str:
    """Return the call that reads any store as it is."""
    shown = repr(store) if isinstance(store, str) else "the store"
    return f"open it as it is, xr.open_zarr({shown}, decode_coords='all')"


def _refuse(store: Any, found: str) -> None:
    raise StoreMismatchError(
        f"{store} was cut or changed after deo_cube wrote it ({found}), so its attributes may not describe its "
        f"vectors: {_how_to_read(store)}; or write "
        + remedy("parts by emb.deo.to_zarr(path), which open_embeddings reads", "it again by deo-cube embed CUBE STORE")
    )
