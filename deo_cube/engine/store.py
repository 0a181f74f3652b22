"""Embeddings in a Zarr 3 store: one block = one shard = one entry in the progress record; killed anywhere, it resumes.

Layout of the group::

    embeddings   (time, embedding, y, x)       a shard a block, inner chunks of about 64 patches
    valid        (time, y, x)                  the same shards
    time, y, x, spatial_ref, ...               coordinates
    progress/crc32  (time, row, column)        one entry a block, written after its shards: 2**32 + their CRC-32

A block is written in this order: `valid`, `embeddings`, then its entry. Each object is replaced as a whole (a rename on
disk, a PUT on object stores), so an entry never vouches for half a shard, and a block that is done twice is the same
bytes twice. What decides the numbers is kept in the group's attributes; a store that was begun with anything else is
refused, and the fields that differ are listed.

Zarr's shards start at the array's corner, blocks at tile borders of the world grid. A cube of several blocks that does
not start on such a border is stored with a margin of fill values (less than one tile's core) before its first row and
column, so that blocks and shards coincide. Coordinates and transform count the margin in; `open_embeddings` cuts it.
"""

from __future__ import annotations

import json
import shutil
import uuid
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.core.sync import sync

from deo_cube.cube import grid
from deo_cube.engine import metadata
from deo_cube.errors import StoreMismatchError

__all__ = ["Layout", "Target", "checksum", "create", "existing", "finish"]

#: Entry of a block that is done: this bit and the CRC-32 of what was written.
DONE = 1 << 32
#: Patches along a side of the chunks inside a shard.
INNER = 64
IDENTITY = metadata.PREFIX + "identity"
WINDOW = metadata.PREFIX + "window"


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

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Blocks row by row, all dates of a place one after another: they share source chunks."""
        t, r, c = self.blocks
        return ((k, i, j) for i, j, k in product(range(r), range(c), range(t)))

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

    def open(self) -> zarr.Group:
        """Open the group for reading and writing."""
        return zarr.open_group(self.store, mode="r+", zarr_format=3, use_consolidated=False)

    def done(self, root: zarr.Group, block: tuple[int, int, int]) -> bool:
        """Whether the block has its entry."""
        return bool(int(root["progress/crc32"][block]) & DONE)

    def write(self, root: zarr.Group, block: tuple[int, int, int], values: np.ndarray, valid: np.ndarray) -> None:
        """Write one block: valid fraction, embeddings, and its entry last."""
        rows, columns = self.layout.region(block)
        (top, left), filled = self._margin(block, rows, columns), values
        if (top, left) != (0, 0):
            # The shard begins in the margin; it is written whole, so nothing need be read back.
            filled = np.full((*values.shape[:-2], values.shape[-2] + top, values.shape[-1] + left), _fill(values.dtype))
            filled = filled.astype(values.dtype)
            filled[..., top:, left:] = values
            padded = np.zeros((valid.shape[0] + top, valid.shape[1] + left), valid.dtype)
            padded[top:, left:] = valid
            valid = padded
            rows, columns = slice(rows.start - top, rows.stop), slice(columns.start - left, columns.stop)
        time = (block[0],) if len(self.layout.dims) == 4 else ()
        _replace(root["valid"], (*time, *block[1:]), (*time, rows, columns), valid)
        _replace(root["embeddings"], (*time, 0, *block[1:]), (*time, slice(None), rows, columns), filled)
        root["progress/crc32"][block] = DONE | checksum(filled, valid)

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


def checksum(values: np.ndarray, valid: np.ndarray) -> int:
    """CRC-32 of a block as it stands in the store."""
    return zlib.crc32(np.ascontiguousarray(valid).tobytes(), zlib.crc32(np.ascontiguousarray(values).tobytes()))


def _fill(dtype: np.dtype[Any]) -> float:
    return float("nan") if dtype.kind == "f" else -128


def is_local(store: Any) -> bool:
    """Whether `store` is a path on this machine's disk."""
    return isinstance(store, Path) or (isinstance(store, str) and "://" not in store)


def create(emb: xr.DataArray, store: Any, layout: Layout, *, resume: bool, overwrite: bool) -> Target:
    """Begin a store for `emb`, or find it begun.

    Raises
    ------
    StoreMismatchError
        If something else is there, or the same thing and `resume` is False.
    """
    fields = metadata.identity(emb)
    target = Target(str(store) if is_local(store) else store, layout)
    found = existing(store)
    if overwrite and found is not None:
        _guard_overwrite(store, found)
        _delete(store)
        found = None
    if found is not None:
        _check_same(store, found, fields)
        if found.attrs.get(metadata.PREFIX + "state") != "creating":
            if not resume:
                raise StoreMismatchError(
                    f"{store} exists: pass resume=True to go on with it, or overwrite=True to begin again"
                )
            return target
    if is_local(store):
        # Made beside its place and renamed, so that nobody ever sees half a template.
        path = Path(store)
        draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            _write_template(emb, str(draft), layout, fields)
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.rename(path)
        except OSError:
            other = existing(store)
            if other is None:
                raise
            _check_same(store, other, fields)  # another process began the same store first: join it
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    else:
        _write_template(emb, store, layout, fields)
    return target


def existing(store: Any) -> zarr.Group | None:
    """The group at `store`, or None where nothing is."""
    if is_local(store) and not Path(store).exists():
        return None
    try:
        return zarr.open_group(store, mode="r", zarr_format=3, use_consolidated=False)
    except FileNotFoundError:
        if is_local(store) and Path(store).is_dir() and not any(Path(store).iterdir()):
            Path(store).rmdir()
            return None
        if is_local(store):
            raise StoreMismatchError(f"{store} exists and is no Zarr 3 group: choose another path") from None
        return None


def _guard_overwrite(store: Any, found: zarr.Group) -> None:
    if IDENTITY not in found.attrs:
        raise StoreMismatchError(
            f"{store} was not made by deo_cube, so it is not overwritten: delete it yourself, or choose another path"
        )


def _delete(store: Any) -> None:
    if is_local(store):
        shutil.rmtree(store)
    else:
        zarr.open_group(store, mode="w", zarr_format=3)


def _check_same(store: Any, found: zarr.Group, fields: dict[str, Any]) -> None:
    text = found.attrs.get(IDENTITY)
    if text is None:
        raise StoreMismatchError(f"{store} was not made by deo_cube: choose another path, or delete it")
    theirs, ours = json.loads(str(text)), json.loads(metadata.to_json(fields))
    differ = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
    if differ:
        shown = "\n".join(f"  {k}: store {_short(theirs.get(k))}, now {_short(ours.get(k))}" for k in differ)
        raise StoreMismatchError(
            f"{store} was begun with something else; these differ:\n{shown}\n"
            "Choose another path, make the call that began it, or pass overwrite=True to begin again"
        )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _write_template(emb: xr.DataArray, store: Any, layout: Layout, fields: dict[str, Any]) -> None:
    y, x = str(emb.dims[-2]), str(emb.dims[-1])
    box = stored_geobox(emb, layout)
    coords = _coordinates(emb, layout, box, (y, x))
    attrs = {
        **metadata.conventions(emb, box, (y, x)),
        **{k: v for k, v in emb.attrs.items() if k.startswith(metadata.PREFIX)},
        "title": f"{emb.attrs.get(metadata.PREFIX + 'model_alias', 'deo_cube')} embeddings of Sentinel-2",
        WINDOW: [*layout.lead, *emb.shape[-2:]],
        WINDOW + "_transform": list(own_geobox(emb).transform)[:6],
        IDENTITY: metadata.to_json(fields),
        metadata.PREFIX + "fingerprint": metadata.fingerprint(fields),
        metadata.PREFIX + "state": "creating",
    }
    coords.attrs = attrs
    coords.to_zarr(store, mode="w", zarr_format=3, consolidated=False)
    root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
    dim = emb.sizes["embedding"]
    time = (emb.shape[0],) if len(layout.dims) == 4 else ()
    names = [str(d) for d in emb.dims]
    ones = (1,) * len(time)
    inner = tuple(_inner(s) for s in layout.shard)
    others = " ".join(str(n) for n in coords.coords if n not in names)
    common = {"coordinates": f"valid {others}".strip(), "grid_mapping": "spatial_ref"}
    kept = {k: _plain(v) for k, v in emb.attrs.items() if k not in ("grid_mapping", "coordinates")}
    root.create_array(
        "embeddings",
        shape=(*time, dim, *layout.shape),
        shards=(*ones, dim, *layout.shard),
        chunks=(*ones, dim, *inner),
        dtype=emb.dtype,
        fill_value=_fill(emb.dtype),
        dimension_names=names,
        attributes=kept | common,
        compressors=_codec(),
    )
    root.create_array(
        "valid",
        shape=(*time, *layout.shape),
        shards=(*ones, *layout.shard),
        chunks=(*ones, *inner),
        dtype="float32",
        fill_value=0.0,
        dimension_names=[n for n in names if n != "embedding"],
        attributes={"long_name": "valid fraction of the patch's pixels", "units": "1", "grid_mapping": "spatial_ref"},
        compressors=_codec(),
    )
    root.create_group("progress").create_array(
        "crc32",
        shape=layout.blocks,
        chunks=(1, 1, 1),
        dtype="uint64",
        fill_value=0,
        dimension_names=["time", "block_y", "block_x"],
        compressors=None,
    )
    root.attrs[metadata.PREFIX + "state"] = "writing"


def _codec() -> Any:
    # Lossless codecs gain about 10 % on embeddings, so the quickest level; empty patches shrink to nothing at any.
    return zarr.codecs.ZstdCodec(level=1)


def _inner(shard: int) -> int:
    """Largest divisor of a shard's side up to `INNER`; the whole side where only slivers divide it."""
    best = max(d for d in range(1, min(shard, INNER) + 1) if shard % d == 0)
    return best if best >= min(shard, 16) else shard


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def own_geobox(emb: xr.DataArray) -> GeoBox:
    """Grid of the embeddings, without the store's margin."""
    return grid.geobox(emb.isel(embedding=0, drop=True))


def stored_geobox(emb: xr.DataArray, layout: Layout) -> GeoBox:
    """Grid of the store: the array's, and the margin before it."""
    box = own_geobox(emb)
    a = box.transform
    top, left = layout.lead
    return GeoBox(layout.shape, Affine(a.a, a.b, a.c - left * a.a, a.d, a.e, a.f - top * a.e), box.crs)


def _coordinates(emb: xr.DataArray, layout: Layout, box: GeoBox, dims: tuple[str, str]) -> xr.Dataset:
    keep = {
        n: c.variable.load()
        for n, c in emb.coords.items()
        if n not in (*dims, "valid", "spatial_ref") and not set(c.dims) & set(dims)
    }
    empty = xr.Dataset({"_": (dims, np.broadcast_to(np.float32(0), layout.shape))}, coords=keep)
    placed = grid.assign_grid(empty, box, dims).drop_vars("_")
    if layout.lead == (0, 0):
        # No margin: the array's own coordinates, to the last bit.
        placed = placed.assign_coords({d: emb[d] for d in dims if d in emb.coords})
    return placed


def finish(target: Target, root: zarr.Group) -> None:
    """Mark a store complete, after every block; consolidate its metadata, which plain xarray looks for first."""
    if root.attrs.get(metadata.PREFIX + "state") == "complete":
        return
    root.attrs[metadata.PREFIX + "state"] = "complete"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        zarr.consolidate_metadata(target.store, zarr_format=3)
