"""The seal of a store: a copy of its metadata, to find what was changed or damaged, and to repair it.

``progress/sealed.json`` holds, for each object of the metadata (the group's and the arrays' ``zarr.json``) its text,
and for each chunk of a coordinate its SHA-256. It is written with the metadata, before the first block. What the
sealed text says is compared: attributes that somebody adds later are left alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from zarr.abc.store import Store

from deo_cube.store import objects
from deo_cube.store.layout import GENERATION, ROOT, STATE
from deo_cube.store.record import GROUP

__all__ = ["KEY", "Seal", "damaged", "make", "read", "restore"]

KEY = f"{GROUP}/sealed.json"
#: Attributes of the group that change while a store is written.
_MUTABLE = (STATE, GENERATION)

Seal = dict[str, str]


def make(metadata: Mapping[str, bytes]) -> bytes:
    """Return the seal of a store's metadata, as it is stored: objects by key, those of chunks by their SHA-256."""
    sealed = {key: data.decode() if key.endswith(ROOT) else _sha256(data) for key, data in metadata.items()}
    text = json.dumps(sealed, indent=1, sort_keys=True)
    return json.dumps({"sha256": _sha256(text.encode()), "objects": sealed}, indent=1, sort_keys=True).encode()


def read(store: Store) -> Seal | None:
    """Return the seal of a store by object; None where there is none, or it is damaged."""
    data = objects.read(store, KEY)
    try:
        document = json.loads(data or b"")
        sealed: Seal = document["objects"]
        whole = _sha256(json.dumps(sealed, indent=1, sort_keys=True).encode()) == document["sha256"]
    except (ValueError, KeyError, TypeError):
        return None
    return sealed if whole else None


def damaged(store: Store, sealed: Seal) -> dict[str, str]:
    """Return what is wrong with the metadata of a store, by object; empty where they are what was sealed."""
    keys = list(sealed)
    found = {}
    for key, data in zip(keys, objects.read_many(store, keys), strict=True):
        problem = _problem(key, data, sealed[key])
        if problem:
            found[key] = problem
    return found


def restore(store: Store, sealed: Seal, keys: Mapping[str, str], chunks: Mapping[str, bytes]) -> list[str]:
    """Write damaged objects as they were sealed; return those that cannot be restored.

    Parameters
    ----------
    store, sealed
        The store and its seal.
    keys : mapping
        From `damaged`.
    chunks : mapping
        Chunks of coordinates by key, from whoever makes the store's template: the seal has their hashes only.
    """
    left = []
    for key in keys:
        if key.endswith(ROOT):
            objects.write(store, key, sealed[key].encode())
        elif key in chunks and _sha256(chunks[key]) == sealed[key]:
            objects.write(store, key, chunks[key])
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


def consolidated(store: Store, sealed: Seal) -> dict[str, str]:
    """Return what is wrong with the group's consolidated metadata, which other readers read first, by object."""
    document: dict[str, Any] = json.loads(objects.read(store, ROOT) or b"{}")
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
