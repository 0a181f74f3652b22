"""The metadata of a store: made as the bytes that are written, sealed, compared and restored.

Attributes, coordinates and empty arrays are made in memory. Their *seal*, ``progress/sealed.json``, is written with
them, before the first block: for each object of the metadata (the group's and the arrays' ``zarr.json``) its text, and
for each chunk of a coordinate its SHA-256. What the sealed text says is compared: attributes that are added later are
left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox
from zarr.abc.store import Store

from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.embedding import metadata
from deo_cube.store import storage
from deo_cube.store.layout import (
    FINGERPRINT,
    GENERATION,
    GROUP,
    PLANE_DTYPES,
    ROOT,
    STATE,
    Layout,
    fill,
    planes_of,
)

__all__ = [
    "BLOCKS",
    "FORMAT",
    "IDENTITY",
    "SEAL",
    "Seal",
    "Template",
    "WINDOW",
    "damaged_copies",
    "damaged_objects",
    "make",
    "make_seal",
    "own_geobox",
    "read_seal",
    "restore_objects",
    "root_bytes",
]

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
    _write(emb, memory, layout, fields, shards)
    written = dict(storage.contents(memory))
    root: dict[str, Any] = json.loads(written.pop(ROOT))
    sealed = {**written, ROOT: root_bytes(root, "writing")}
    return Template(root, {**written, SEAL: make_seal(sealed)})


def _write(
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
