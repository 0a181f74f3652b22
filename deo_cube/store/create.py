"""Create a store or find an existing one, make and repair its metadata, and mark it complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import uuid
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.embedding import metadata, tasks
from deo_cube.errors import StorageError, StoreMismatchError, remedy
from deo_cube.paths import answering
from deo_cube.store import storage
from deo_cube.store.layout import (
    FINGERPRINT,
    GENERATION,
    GROUP,
    OVERVIEWS,
    PLANE_DTYPES,
    ROOT,
    STALE,
    STATE,
    Layout,
    Record,
    Target,
    cuts,
    fill,
    planes_of,
)
from deo_cube.store.storage import is_local

__all__ = [
    "BLOCKS",
    "FORMAT",
    "IDENTITY",
    "ReadyStore",
    "SEAL",
    "Seal",
    "Template",
    "WINDOW",
    "attributes",
    "check_not_source",
    "create",
    "damaged_copies",
    "damaged_objects",
    "existing",
    "finish",
    "is_complete",
    "make",
    "make_seal",
    "nothing_at",
    "own_geobox",
    "read_seal",
    "record_of",
    "repair",
    "restart",
    "restore_objects",
    "root_bytes",
    "stored_layout",
    "target",
]


# --- The metadata of a store: made as the bytes that are written, sealed, compared and restored ---
#
# Attributes, coordinates and empty arrays are made in memory. Their *seal*, ``progress/sealed.json``, is written with
# them, before the first block: for each object of the metadata (the group's and the arrays' ``zarr.json``) its text,
# and for each chunk of a coordinate its SHA-256. What the sealed text says is compared: attributes that are added
# later are left alone.

#: Patches along a side of the chunks inside a shard.
INNER = 64
IDENTITY = Attribute.IDENTITY
WINDOW = Attribute.WINDOW
#: Blocks along time, y and x.
BLOCKS = Attribute.BLOCKS
#: Version of the layout. Stores without it are of the first: their record is a Zarr array, and nothing is sealed.
FORMAT = Attribute.FORMAT


@dataclass(frozen=True)
class Template:
    """The metadata of a store, as they are written before the first block.

    `root` is the group's own document, without state and generation; `objects` are all others by key, seal included.
    """

    root: dict[str, Any]
    objects: Mapping[str, bytes]


def root_bytes(root: Mapping[str, Any], state: str, generation: str = "") -> bytes:
    """Return the document of a group in a state, as the bytes that are stored."""
    attributes = {k: v for k, v in root["attributes"].items() if k not in (STATE, GENERATION)} | {STATE: state}
    if generation:
        attributes[GENERATION] = generation
    return json.dumps({**root, "attributes": attributes}, indent=2).encode()


def make(emb: xr.DataArray, layout: Layout, fields: Mapping[str, Any], *, shards: bool = True) -> Template:
    """Return the metadata of a store of `emb`.

    Parameters
    ----------
    emb : DataArray
        What will be written.
    layout : Layout
        Of `emb`.
    fields : mapping
        Its identity, from `metadata.identity`.
    shards : bool
        Store a block as a shard of small chunks; else as one plain chunk, under the same key.
    """
    memory = zarr.storage.MemoryStore()
    _write_arrays(emb, memory, layout, fields, shards)
    written = dict(storage.contents(memory))
    root: dict[str, Any] = json.loads(written.pop(ROOT))
    sealed = {**written, ROOT: root_bytes(root, "writing")}
    return Template(root, {**written, SEAL: make_seal(sealed)})


def _write_arrays(
    emb: xr.DataArray, store: zarr.storage.MemoryStore, layout: Layout, fields: Mapping[str, Any], shards: bool
) -> None:
    y, x = str(emb.dims[-2]), str(emb.dims[-1])
    box = stored_geobox(emb, layout)
    coords = _coordinates(emb, layout, box, (y, x))
    derived = metadata.derivation(emb)
    how = {} if derived is None else {Attribute.DERIVED: derived}
    attrs = {
        **metadata.conventions(emb, box, (y, x)),
        **{k: v for k, v in emb.attrs.items() if k.startswith(metadata.PREFIX)},
        **how,
        "title": f"{emb.attrs.get(Attribute.MODEL_ALIAS, 'deo_cube')} embeddings of Sentinel-2",
        WINDOW: [*layout.lead, *emb.shape[-2:]],
        WINDOW + "_transform": list(own_geobox(emb).transform)[:6],
        IDENTITY: metadata.to_json(fields),
        FINGERPRINT: metadata.fingerprint(fields),
        BLOCKS: list(layout.blocks),
        FORMAT: 2,
    }
    coords.attrs = attrs
    coords.to_zarr(store, mode="a", zarr_format=3, consolidated=False)
    root = zarr.open_group(store, mode="r+", zarr_format=3, use_consolidated=False)
    dim = emb.sizes["embedding"]
    time = (emb.shape[0],) if len(layout.dims) == 4 else ()
    names = [str(d) for d in emb.dims]
    ones = (1,) * len(time)
    inner = tuple(_inner(s) for s in layout.shard) if shards else layout.shard
    others = " ".join(str(n) for n in coords.coords if n not in names)
    planes = planes_of(emb)
    common = {"coordinates": f"{' '.join(planes)} {others}".strip(), "grid_mapping": "spatial_ref"}
    kept = {k: _plain(v) for k, v in emb.attrs.items() if k not in ("grid_mapping", "coordinates")}
    root.create_array(
        "embeddings",
        shape=(*time, dim, *layout.shape),
        shards=(*ones, dim, *layout.shard) if shards else None,
        chunks=(*ones, dim, *inner),
        dtype=emb.dtype,
        fill_value=fill(emb.dtype),
        dimension_names=names,
        attributes=kept | how | common,
        compressors=_codec(),
    )
    for name in planes:
        dtype = PLANE_DTYPES[name]
        root.create_array(
            name,
            shape=(*time, *layout.shape),
            shards=(*ones, *layout.shard) if shards else None,
            chunks=(*ones, *inner),
            dtype=dtype,
            fill_value=np.zeros((), dtype).item(),
            dimension_names=[n for n in names if n != "embedding"],
            attributes={"long_name": _LONG_NAMES[name], "units": "1", "grid_mapping": "spatial_ref"},
            compressors=_codec(),
        )
    root.create_group(GROUP)


_LONG_NAMES = {"valid": "valid fraction of the patch's pixels", "count": "dates that contributed"}


def _codec() -> Any:
    # Lossless codecs gain about 10 % on embeddings, so the fastest level; empty patches compress to nothing at any.
    return zarr.codecs.ZstdCodec(level=1)


def _inner(shard: int) -> int:
    """Return the largest divisor of a shard's side up to `INNER`; the whole side where only tiny ones divide it."""
    best = max(d for d in range(1, min(shard, INNER) + 1) if shard % d == 0)
    return best if best >= min(shard, 16) else shard


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def own_geobox(emb: xr.DataArray) -> GeoBox:
    """Return the grid of the embeddings, without the margin of the store."""
    dims = emb.dims[-2:]
    # From the coordinates alone: slicing the array would list a task for every block.
    places = {n: c.variable for n, c in emb.coords.items() if n != "valid" and set(c.dims) <= set(dims)}
    return georeference.geobox(xr.DataArray(np.broadcast_to(np.float32(0), emb.shape[-2:]), dims=dims, coords=places))


def stored_geobox(emb: xr.DataArray, layout: Layout) -> GeoBox:
    """Return the grid of the store: that of the array, and the margin before it."""
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
    placed = georeference.assign_grid(empty, box, dims).drop_vars("_")
    if layout.lead == (0, 0):
        # Without a margin: the coordinates of the array, to the last bit.
        placed = placed.assign_coords({d: emb[d] for d in dims if d in emb.coords})
    return placed


SEAL = f"{GROUP}/sealed.json"
#: Attributes of the group that change while a store is written.
_MUTABLE = (STATE, GENERATION)

Seal = dict[str, str]


def make_seal(metadata_objects: Mapping[str, bytes]) -> bytes:
    """Return the seal of a store's metadata, as it is stored: objects by key, those of chunks by their SHA-256."""
    sealed = {key: data.decode() if key.endswith(ROOT) else _sha256(data) for key, data in metadata_objects.items()}
    text = json.dumps(sealed, indent=1, sort_keys=True)
    return json.dumps({"sha256": _sha256(text.encode()), "objects": sealed}, indent=1, sort_keys=True).encode()


def read_seal(store: Store) -> Seal | None:
    """Return the seal of a store by object; None where there is none, or it is damaged."""
    data = storage.read(store, SEAL)
    try:
        document = json.loads(data or b"")
        sealed: Seal = document["objects"]
        whole = _sha256(json.dumps(sealed, indent=1, sort_keys=True).encode()) == document["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return sealed if whole else None


def damaged_objects(store: Store, sealed: Seal) -> dict[str, str]:
    """Return the problems of the metadata of a store, by object; empty where they are as sealed."""
    keys = list(sealed)
    found = {}
    for key, data in zip(keys, storage.read_many(store, keys), strict=True):
        problem = _problem(key, data, sealed[key])
        if problem:
            found[key] = problem
    return found


def restore_objects(store: Store, sealed: Seal, keys: Mapping[str, str], chunks: Mapping[str, bytes]) -> list[str]:
    """Write damaged objects as they were sealed; return those that cannot be restored.

    Parameters
    ----------
    store, sealed
        The store and its seal.
    keys : mapping
        From `damaged_objects`.
    chunks : mapping
        Chunks of coordinates by key, from the template of the store: the seal has only their hashes.
    """
    left = []
    for key in keys:
        if key.endswith(ROOT):
            storage.write(store, key, sealed[key].encode())
        elif key in chunks and _sha256(chunks[key]) == sealed[key]:
            storage.write(store, key, chunks[key])
        else:
            left.append(key)
    return left


def _problem(key: str, data: bytes | None, sealed: str) -> str | None:
    if data is None:
        return "missing"
    if not key.endswith(ROOT):
        return None if _sha256(data) == sealed else "changed or damaged"
    try:
        now = json.loads(data)
        attributes = now["attributes"]
    except (ValueError, KeyError, TypeError):
        return "damaged: not the JSON of a Zarr object"
    then = json.loads(sealed)
    changed = [k for k, v in then.items() if k not in ("attributes", "consolidated_metadata") and now.get(k) != v]
    changed += [k for k, v in then["attributes"].items() if k not in _MUTABLE and attributes.get(k) != v]
    return f"changed: {', '.join(changed)}" if changed else None


def damaged_copies(store: Store, sealed: Seal) -> dict[str, str]:
    """Return the problems of the group's consolidated metadata, which other readers read first, by object."""
    document: dict[str, Any] = json.loads(storage.read(store, ROOT) or b"{}")
    copies = (document.get("consolidated_metadata") or {}).get("metadata")
    if copies is None:
        return {}
    keys = [key for key in sealed if key.endswith(f"/{ROOT}")]
    found = {}
    for key in keys:
        name = key.removesuffix(f"/{ROOT}")
        problem = _problem(key, json.dumps(copies[name]).encode() if name in copies else None, sealed[key])
        if problem:
            found[f"{ROOT} (consolidated metadata of {name})"] = problem
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


log = logging.getLogger("deo_cube")

#: Fields of an identity that differ between two sets of dates of one cube.
OF_DATES = {"coordinate time", "shape", "items", "radiometry"}


# --- creation ---


@dataclass(frozen=True)
class ReadyStore:
    """A store that is ready for blocks."""

    target: Target
    template: Template
    existed: bool
    """True if it existed, created by an earlier run or by another process."""


def create(
    emb: xr.DataArray, place: Any, layout: Layout, *, resume: bool, overwrite: bool, shards: bool = True
) -> ReadyStore:
    """Create a store for `emb`, or find an existing one.

    Parameters
    ----------
    emb : DataArray
        What will be written.
    place : str or zarr store
        From `locate`.
    layout : Layout
        Of `emb`.
    resume, overwrite, shards : bool
        As for `to_zarr`; any `resume` but False resumes.

    Raises
    ------
    StoreMismatchError
        If something else is there, the same thing in other blocks, or the same thing and `resume` is False.
    """
    fields = metadata.identity(emb)
    fingerprint = metadata.fingerprint(fields)
    if is_local(place):
        storage.sweep(Path(place))
    if not overwrite:
        shards = _has_shards(place, shards)
    made = make(emb, layout, fields, shards=shards)
    root = _root(place, made, overwrite=overwrite)
    if root is not None and overwrite:
        _check_overwrite(emb, place, root)
        return ReadyStore(_replace(place, made, layout, fingerprint), made, existed=False)
    if root is not None:
        _check_same(place, root, fields)
        if root.get(STATE) not in ("creating", "replacing"):
            if not resume:
                raise StoreMismatchError(
                    f"{place} exists: pass resume=True to resume it, or overwrite=True to begin again"
                )
            repair(place, made)
            _check_blocks(place, layout)
            return ReadyStore(target(place, layout), made, existed=True)
    if not is_local(place):
        if root is not None and root.get(STATE) == "replacing":
            return ReadyStore(_replace(place, made, layout, fingerprint), made, existed=False)
        # Another process may create the same store now: both write the same bytes, and neither deletes. So neither
        # may draw a generation of its own.
        _write(storage.store_at(place), made, "")
        return ReadyStore(target(place, layout), made, existed=False)
    path, generation = Path(place), uuid.uuid4().hex
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder of {path} cannot be made: {error.strerror}. Choose another path") from error
    # Made beside its place and renamed, so that no process ever sees an incomplete store.
    with storage.draft_beside(path) as draft:
        _write(storage.store_at(draft), made, generation)
        with contextlib.suppress(OSError):
            path.rmdir()  # an empty folder is replaced
        try:
            draft.rename(path)
            storage.sync_folder(path.parent)
        except OSError:
            other = existing(place)
            if other is None:
                raise
            _check_same(place, dict(other.attrs), fields)  # another process began the same store first: join it
            _check_blocks(place, layout)
            return ReadyStore(target(place, layout), made, existed=True)
    return ReadyStore(Target(place, layout, fingerprint, generation), made, existed=False)


def _has_shards(place: Any, default: bool) -> bool:
    """Return whether the store that is there has shards; `default` where none is there, or it cannot be read."""
    try:
        data = storage.read(storage.store_at(place), f"embeddings/{ROOT}")
        codecs = json.loads(data or b"")["codecs"]
    except (ValueError, KeyError, TypeError):
        return default
    return any(codec.get("name") == "sharding_indexed" for codec in codecs)


def _root(place: Any, made: Template, *, overwrite: bool) -> Mapping[str, Any] | None:
    """Return the attributes of the group at `place`; None where nothing is there.

    A damaged document is restored if its seal has the identity of the store that is to be written.
    """
    try:
        group = existing(place)
    except StoreMismatchError:
        store = storage.store_at(place)
        sealed = read_seal(store)
        if sealed is None:
            raise
        theirs: Mapping[str, Any] = json.loads(sealed[ROOT])["attributes"]
        if overwrite:
            return theirs
        ours = made.root["attributes"][IDENTITY]
        if metadata.decisive(json.loads(theirs.get(IDENTITY, "{}"))) != json.loads(ours):
            raise
        log.warning("%s/%s was missing or damaged, and is restored", place, ROOT)
        restart(store, sealed)
        return theirs
    return None if group is None else dict(group.attrs)


def target(place: Any, layout: Layout) -> Target:
    """Return the existing store as a target, in its present generation.

    Its fingerprint is the stored one: that of an earlier version covers prose that the present one does not.
    """
    attrs = attributes(place)
    return Target(place, layout, str(attrs.get(FINGERPRINT, "")), str(attrs.get(GENERATION, "")))


def attributes(place: Any) -> dict[str, Any]:
    """Return the attributes of a store's group; empty where there is none."""
    document = json.loads(storage.read(storage.store_at(place), ROOT) or b"{}")
    found: dict[str, Any] = document.get("attributes", {})
    return found


def _write(store: Store, made: Template, generation: str) -> None:
    """Write the metadata. The last write sets the state in which blocks may be written."""
    if not isinstance(store, storage.SyncedStore):
        storage.write(store, ROOT, root_bytes(made.root, "creating", generation))
    for key, data in made.objects.items():
        storage.write(store, key, data)
    storage.write(store, ROOT, root_bytes(made.root, "writing", generation))


def _replace(place: Any, made: Template, layout: Layout, fingerprint: str) -> Target:
    """Replace an existing store.

    If it is killed at any moment, the old store is there, the new one, or one whose state is "replacing".
    """
    generation = uuid.uuid4().hex
    if is_local(place):
        path = Path(place)
        with storage.draft_beside(path) as draft:
            _write(storage.store_at(draft), made, generation)
            with storage.moved_aside(path):
                draft.rename(path)
                storage.sync_folder(path.parent)
    else:
        store = storage.store_at(place)
        # From here on the old store is not complete, and runs that write to it stop.
        storage.write(store, ROOT, root_bytes(made.root, "replacing", generation))
        storage.delete_all(store, keep=[ROOT])
        _write(store, made, generation)
    return Target(place, layout, fingerprint, generation)


def repair(place: Any, made: Template | None = None) -> dict[str, str]:
    """Restore metadata of a store that are missing, damaged or changed, from its seal.

    Parameters
    ----------
    place
        The store.
    made : Template, optional
        What the metadata should be, from the array that is written: needed for coordinates, which the seal has the
        hashes of, and for the seal itself.

    Returns
    -------
    dict
        The problems by object; empty where there were none. After a repair the store is not complete: the call that
        made it completes it.

    Raises
    ------
    StoreMismatchError
        If `made` is needed and not given.
    """
    store = storage.store_at(place)
    if made is not None and FORMAT not in attributes(place):
        return {}  # of an earlier version, which sealed nothing
    sealed = read_seal(store)
    if sealed is None:
        problems, left = {SEAL: "missing or damaged"}, [SEAL]
    else:
        problems = damaged_objects(store, sealed) | damaged_copies(store, sealed)
        if not problems:
            return {}
        restart(store, sealed)  # first, so that the store never claims more than it holds
        # The group's document has been restored by that, without the consolidated copies, which are made at the end.
        own = {key: problem for key, problem in problems.items() if key in sealed and key != ROOT}
        left = restore_objects(store, sealed, own, {} if made is None else made.objects)
    log.warning("%s: metadata are restored: %s", place, "; ".join(f"{k} ({v})" for k, v in problems.items()))
    if left and made is None:
        raise StoreMismatchError(
            f"{place}: {', '.join(left)} cannot be restored from the store itself: make the call that wrote the store "
            "once more, which restores it"
        )
    if left and made is not None:
        restart(store, {ROOT: root_bytes(made.root, "writing").decode()})
        for key, data in made.objects.items():
            storage.write(store, key, data)
    return problems


def restart(store: Store, sealed: Mapping[str, str] | None = None) -> None:
    """Mark a store as not complete, and give it a new generation: runs that still write to it stop."""
    text = sealed[ROOT] if sealed is not None else storage.read(store, ROOT)
    storage.write(store, ROOT, root_bytes(json.loads(text or b""), "writing", uuid.uuid4().hex))
    _mark_stale(store)


def _mark_stale(store: Store) -> None:
    """Mark the overviews of a store that is written to, and remove what leads other programs to them."""
    key = f"{OVERVIEWS}/{ROOT}"
    data = storage.read(store, key)
    if data is None:
        return
    document = json.loads(data)
    attributes = {k: v for k, v in document["attributes"].items() if k not in ("multiscales", "zarr_conventions")}
    storage.write(store, key, json.dumps({**document, "attributes": attributes | {STALE: True}}, indent=2).encode())


def existing(place: Any, mode: Literal["r", "r+"] = "r") -> zarr.Group | None:
    """Return the group at `place`, or None where nothing is.

    Raises
    ------
    StoreMismatchError
        If something is there that is not a group, or its document is missing or damaged.
    StorageRefusedError, StorageUnreachableError
        If an object store refuses, or does not answer.
    """
    if is_local(place):
        path = Path(place)
        if not path.exists():
            return None
        if not path.is_dir():
            raise StoreMismatchError(f"{place} is a file, not a Zarr store: choose another path")
        if not any(path.iterdir()):
            return None
    with answering(place):
        store = storage.store_at(place)
        data = storage.read(store, ROOT)
        if data is None:
            if storage.read(store, SEAL) is not None:
                raise StoreMismatchError(_damaged(place, "missing"))
            if is_local(place):
                raise StoreMismatchError(f"{place} exists and is not a Zarr 3 group: choose another path")
            return None
        try:
            document = json.loads(data)
            kind = document["node_type"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreMismatchError(_damaged(place, "damaged")) from error
        if kind != "group":
            raise StoreMismatchError(f"{place} is a Zarr {kind}, not a group: choose another path")
        return zarr.open_group(
            place if is_local(place) and mode == "r" else store, mode=mode, zarr_format=3, use_consolidated=False
        )


def nothing_at(place: Any) -> bool:
    """Return whether nothing is at `place`. Anything that is there may be damaged, or not a store."""
    try:
        return existing(place) is None
    except StoreMismatchError:
        return False


def repair_call() -> str:
    """Return the call that restores the metadata of a store."""
    return remedy("verify_store(store, repair=True)", "deo-cube verify STORE --repair")


def _damaged(place: Any, how: str) -> str:
    return (
        f"{place}/{ROOT} is {how}: {repair_call()} restores it from the store's own "
        "copy, or the call that wrote the store, made once more"
    )


def _check_overwrite(emb: xr.DataArray, place: Any, root: Mapping[str, Any]) -> None:
    if IDENTITY not in root:
        raise StoreMismatchError(
            f"{place} was not made by deo_cube, so it is not overwritten: delete it yourself, or choose another path"
        )
    check_not_source(emb, place)


def check_not_source(emb: xr.DataArray, place: Any) -> None:
    """Raise if `emb` is read from the store that is to be written.

    Raises
    ------
    StoreMismatchError
        If it is.
    """
    if any(storage.holds(place, array) for array in tasks.stored(emb.data)):
        raise StoreMismatchError(
            f"{place} is what these embeddings are read from, so that writing over it would leave nothing to write: "
            "choose another path, or compute them first, emb.compute()"
        )


def _check_same(store: Any, root: Mapping[str, Any], fields: dict[str, Any]) -> None:
    text = root.get(IDENTITY)
    if text is None:
        raise StoreMismatchError(f"{store} was not made by deo_cube: choose another path, or delete it")
    theirs, ours = metadata.decisive(json.loads(str(text))), json.loads(metadata.to_json(fields))
    differ = [k for k in sorted({*theirs, *ours}) if theirs.get(k) != ours.get(k)]
    if differ:
        shown = "\n".join(f"  {k}: store {_short(theirs.get(k))}, now {_short(ours.get(k))}" for k in differ)
        joined = remedy("deo_cube.mosaic([store, other]).deo.to_zarr(path)", "deo-cube mosaic STORE OTHER OUT")
        added = (
            ". A store keeps the dates that it was begun with: write others to a store of their own, and join both, "
            + joined
            if "coordinate time" in differ and set(differ) <= OF_DATES
            else ""
        )
        raise StoreMismatchError(
            f"{store} was begun with something else; these differ:\n{shown}\n"
            f"Choose another path, make the call that began it, or pass overwrite=True to begin again{added}"
        )


def record_of(place: Any, root: Mapping[str, Any]) -> Record:
    """Return the progress record of a store, from the attributes of its group."""
    store = storage.store_at(place)
    blocks = root.get(BLOCKS)
    if blocks is None:  # of an earlier version, whose record is a Zarr array
        array = zarr.open_array(store, path="progress/crc32", mode="r", zarr_format=3)
        blocks = array.shape
    return Record(store, (int(blocks[0]), int(blocks[1]), int(blocks[2])))


def _check_blocks(place: Any, layout: Layout) -> None:
    """Raise if an array has other blocks than the store, unless nothing is left to write."""
    theirs = stored_layout(place)
    if theirs == layout:
        return
    root = attributes(place)
    record = record_of(place, root)
    if root.get(STATE) == "complete" and record.count() == record.total:
        return
    call = ", ".join(f"{d!r}: {sizes}" for d, sizes in zip(layout.dims[-2:], theirs.chunks[1:], strict=True))
    raise StoreMismatchError(
        f"{place} was begun in other blocks than this array's: {theirs.chunks[1]}, {theirs.chunks[2]} against "
        f"{layout.chunks[1]}, {layout.chunks[2]}. Chunk it alike, emb.chunk({{{call}}}), "
        "or pass overwrite=True to begin again"
    )


def stored_layout(place: Any) -> Layout:
    """Return the layout of an existing store."""
    group = existing(place)
    assert group is not None
    array = group["embeddings"]
    shards, (top, left, height, width) = (array.shards or array.chunks)[-2:], dict(group.attrs)[WINDOW]
    times = array.shape[0] if array.ndim == 4 else 1
    chunks = ((1,) * times, cuts(top, height, shards[0]), cuts(left, width, shards[1]))
    return Layout(tuple(map(str, array.metadata.dimension_names)), chunks, (top, left), (shards[0], shards[1]))


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 120 else text[:117] + "..."


def is_complete(ready: ReadyStore) -> bool:
    """Return whether a store is complete; if it is marked so and is not, the mark is removed."""
    store = storage.store_at(ready.target.store)
    root = attributes(ready.target.store)
    if root.get(STATE) != "complete":
        return False
    # The record of the store, which may have other blocks than the array that is to be written.
    record = record_of(ready.target.store, root)
    if record.count() == record.total:
        return True
    restart(store)
    return False


def finish(ready: ReadyStore) -> None:
    """Mark a store complete when every block has its entry; the mark is written last.

    Before that, the metadata are compared with their seal, half-written files of killed runs are removed, and the
    metadata are consolidated, which plain xarray looks for first.

    Raises
    ------
    StoreMismatchError
        If entries are missing: they were deleted meanwhile.
    """
    target = ready.target
    if target.check():
        return  # another process completed it
    record = target.record
    done = record.count()
    if done != record.total:
        raise StoreMismatchError(
            f"{target.store} lacks {record.total - done} of {record.total} blocks, though all were written: they were "
            "deleted meanwhile. The same call does them again"
        )
    store = storage.store_at(target.store)
    if FORMAT in attributes(target.store) and _damage(store):
        repair(target.store, ready.template)
    for attempt in range(3):
        try:
            storage.tidy(target.store)
            _mark(target.store)
            return
        except FileNotFoundError:
            # Another process is finishing as well, and removed a file that this one was writing.
            if attempt == 2:
                raise


def _damage(store: Store) -> bool:
    sealed = read_seal(store)
    return sealed is None or bool(damaged_objects(store, sealed))


def _mark(place: Any) -> None:
    store = storage.store_at(place)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata is currently not part")
        warnings.filterwarnings("ignore", message="Object at .* is not recognized")
        zarr.consolidate_metadata(store, zarr_format=3)
    document = json.loads(storage.read(store, ROOT) or b"{}")
    storage.write(store, ROOT, root_bytes(document, "complete"))
