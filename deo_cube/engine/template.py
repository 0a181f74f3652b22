"""Begin a store, find one begun, and mark it complete."""

from __future__ import annotations

import contextlib
import json
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.engine import graph, location, metadata, record
from deo_cube.engine.location import is_local
from deo_cube.engine.store import FINGERPRINT, Layout, Target, fill
from deo_cube.errors import StoreMismatchError

__all__ = ["IDENTITY", "STATE", "WINDOW", "create", "existing", "finish", "is_complete", "own_geobox"]

#: Patches along a side of the chunks inside a shard.
INNER = 64
IDENTITY = metadata.PREFIX + "identity"
WINDOW = metadata.PREFIX + "window"
STATE = metadata.PREFIX + "state"


def create(emb: xr.DataArray, store: Any, layout: Layout, *, resume: bool, overwrite: bool) -> Target:
    """Begin a store for `emb`, or find it begun.

    Parameters
    ----------
    emb : DataArray
        What will be written.
    store : str or zarr store
        From `locate`.
    layout : Layout
        Of `emb`.
    resume, overwrite : bool
        As for `to_zarr`.

    Raises
    ------
    StoreMismatchError
        If something else is there, the same thing in other blocks, or the same thing and `resume` is False.
    """
    fields = metadata.identity(emb)
    target = Target(store, layout, metadata.fingerprint(fields))
    if is_local(store):
        location.sweep(Path(store))
    found = existing(store)
    if overwrite and found is not None:
        _guard_overwrite(emb, store, found)
        location.remove(store)
        found = None
    if found is not None:
        _check_same(store, found, fields)
        if found.attrs.get(STATE) != "creating":
            if not resume:
                raise StoreMismatchError(
                    f"{store} exists: pass resume=True to go on with it, or overwrite=True to begin again"
                )
            _check_blocks(store, found, layout)
            return target
    if not is_local(store):
        # Another process may begin the same store now: what both write is the same, and neither deletes.
        _write_template(emb, store, layout, fields)
        return target
    path = Path(store)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Made beside its place and renamed, so that nobody ever sees half a template.
    with location.draft_beside(path) as draft:
        _write_template(emb, str(draft), layout, fields)
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty folder makes way
        try:
            draft.rename(path)
        except OSError:
            other = existing(store)
            if other is None:
                raise
            _check_same(store, other, fields)  # another process began the same store first: join it
            _check_blocks(store, other, layout)
    return target


def existing(store: Any, mode: Literal["r", "r+"] = "r") -> zarr.Group | None:
    """The group at `store`, or None where nothing is.

    Raises
    ------
    StoreMismatchError
        If something is there that is no group.
    PermissionError, ConnectionError
        If an object store refuses, or does not answer.
    """
    if is_local(store) and not Path(store).exists():
        return None
    try:
        return zarr.open_group(store, mode=mode, zarr_format=3, use_consolidated=False)
    except FileNotFoundError:
        if is_local(store) and Path(store).is_dir() and not any(Path(store).iterdir()):
            return None
        if is_local(store):
            raise StoreMismatchError(f"{store} exists and is no Zarr 3 group: choose another path") from None
        return None
    except Exception as error:
        if not type(error).__module__.startswith("obstore"):
            raise
        refused = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
        said = str(error).partition("\n")[0]
        raise (PermissionError if refused else ConnectionError)(
            f"{store} cannot be opened: {said}\nCheck the URL and storage_options (endpoint, region, access_key_id, "
            "secret_access_key, ...), or the environment (AWS_*)"
        ) from error


def _guard_overwrite(emb: xr.DataArray, store: Any, found: zarr.Group) -> None:
    if IDENTITY not in found.attrs:
        raise StoreMismatchError(
            f"{store} was not made by deo_cube, so it is not overwritten: delete it yourself, or choose another path"
        )
    place = found.store_path
    if any(a.store_path.store == place.store and a.path.startswith(place.path) for a in graph.stored(emb.data)):
        raise StoreMismatchError(
            f"{store} is what these embeddings are read from, so that overwriting it would leave nothing to write: "
            "choose another path, or compute them first, emb.compute()"
        )


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


def _check_blocks(store: Any, found: zarr.Group, layout: Layout) -> None:
    """Refuse an array in other blocks than the store's, unless there is nothing left to write."""
    shards, (top, left, height, width) = found["embeddings"].shards[-2:], found.attrs[WINDOW]
    if (tuple(shards), (top, left), found[record.PATH].shape) == (layout.shard, layout.lead, layout.blocks):
        return
    if found.attrs.get(STATE) == "complete" and record.count(found) == found[record.PATH].size:
        return
    theirs = (_borders(top, height, shards[0]), _borders(left, width, shards[1]))
    call = ", ".join(f"{d!r}: {sizes}" for d, sizes in zip(layout.dims[-2:], theirs, strict=True))
    raise StoreMismatchError(
        f"{store} was begun in other blocks than this array's: {', '.join(map(str, theirs))} against "
        f"{layout.chunks[1]}, {layout.chunks[2]}. Chunk it alike, emb.chunk({{{call}}}), "
        "or pass overwrite=True to begin again"
    )


def _borders(lead: int, size: int, shard: int) -> tuple[int, ...]:
    """Sizes of the blocks of an axis that begins `lead` patches into its first shard."""
    edges = [0, *range(shard - lead, size, shard), size]
    return tuple(b - a for a, b in pairwise(edges))


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
        FINGERPRINT: metadata.fingerprint(fields),
        STATE: "creating",
    }
    coords.attrs = attrs
    coords.to_zarr(store, mode="a", zarr_format=3, consolidated=False)
    root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
    dim = emb.sizes["embedding"]
    time = (emb.shape[0],) if len(layout.dims) == 4 else ()
    names = [str(d) for d in emb.dims]
    ones = (1,) * len(time)
    inner = tuple(_inner(s) for s in layout.shard)
    others = " ".join(str(n) for n in coords.coords if n not in names)
    common = {"coordinates": f"valid {others}".strip(), "grid_mapping": "spatial_ref"}
    kept = {k: _plain(v) for k, v in emb.attrs.items() if k not in ("grid_mapping", "coordinates")}
    _create_array(
        root,
        "embeddings",
        shape=(*time, dim, *layout.shape),
        shards=(*ones, dim, *layout.shard),
        chunks=(*ones, dim, *inner),
        dtype=emb.dtype,
        fill_value=fill(emb.dtype),
        dimension_names=names,
        attributes=kept | common,
        compressors=_codec(),
    )
    _create_array(
        root,
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
    root.require_group(record.PATH.rpartition("/")[0])
    _create_array(
        root,
        record.PATH,
        shape=layout.blocks,
        chunks=(1, 1, 1),
        dtype="uint64",
        fill_value=0,
        dimension_names=["time", "block_y", "block_x"],
        compressors=None,
    )
    # All of them, once more: where a server does not know conditional writes, Zarr's making of arrays blanks the group.
    root.update_attributes({**attrs, STATE: "writing"})


def _create_array(root: zarr.Group, name: str, **how: Any) -> None:
    with contextlib.suppress(zarr.errors.ContainsArrayError):  # by another process that begins the same store
        root.create_array(name, **how)


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
    dims = emb.dims[-2:]
    # Of the coordinates alone: slicing the array would list a task for every block.
    places = {n: c.variable for n, c in emb.coords.items() if n != "valid" and set(c.dims) <= set(dims)}
    return grid.geobox(xr.DataArray(np.broadcast_to(np.float32(0), emb.shape[-2:]), dims=dims, coords=places))


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


def is_complete(root: zarr.Group) -> bool:
    """Whether the store says that it is complete, and is; if it only says so, it no longer does afterwards."""
    if root.attrs.get(STATE) != "complete":
        return False
    # Of the record, not of the array at hand, which may be in other blocks.
    if record.count(root) == root[record.PATH].size:
        return True
    root.attrs[STATE] = "writing"
    return False


def finish(target: Target, root: zarr.Group) -> None:
    """Mark a store complete, once every block has its entry; the mark is the last thing that is written.

    Before it, what killed runs left half-written is removed, and the metadata are consolidated, for plain xarray looks
    for that first.

    Raises
    ------
    StoreMismatchError
        If entries are missing: somebody took them away meanwhile.
    """
    total = int(np.prod(target.layout.blocks))
    done = record.count(root)
    if done != total:
        raise StoreMismatchError(
            f"{target.store} lacks {total - done} of {total} blocks, though all were written: they were deleted "
            "meanwhile, by another run with overwrite=True perhaps. The same call does them again"
        )
    for attempt in range(3):
        try:
            location.tidy(target.store)
            _mark(target)
            return
        except FileNotFoundError:
            # Another process finishes too, and took what this one was writing for remains.
            if attempt == 2:
                raise


def _mark(target: Target) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        root = zarr.consolidate_metadata(target.store, zarr_format=3)
    # Of the group that holds what was consolidated, so that it is kept.
    root.attrs[STATE] = "complete"
