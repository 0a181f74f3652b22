"""Evidence that a cube is read from the same, unchanged files as when a store was begun.

A store keeps a token of its sources. Where the token of a later call is equal, the inputs of finished blocks need not
be read again and compared. Without a token, or with another one, they are: a token spares time, and decides nothing.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import xarray as xr
import zarr
from zarr.storage import LocalStore

from deo_cube.embedding import graph
from deo_cube.store.record import GROUP

__all__ = ["KEY", "source_token"]

#: Object of a store that holds the token of its sources.
KEY = f"{GROUP}/sources"


def source_token(emb: xr.DataArray) -> str | None:
    """Return a token that is equal for two arrays only if both are computed the same way from the same files.

    None where that cannot be known: then, or where tokens differ, inputs are read again and compared.

    Sources in memory have none: comparing them costs no more than making a token.
    """
    if emb.chunks is None:
        return None
    sources = graph.sources(emb.data, emb["valid"].data)
    states = [_state(source) for source in sources or []]
    if not states or None in states:
        return None
    return hashlib.sha256(repr((emb.data.name, emb["valid"].data.name, sorted(map(repr, states)))).encode()).hexdigest()


def _state(source: Any) -> Any:
    """Return what tells whether a source is as it was; None where nothing does."""
    if isinstance(source, zarr.Array):
        store = source.store_path.store
        return _files(Path(store.root, source.path)) if isinstance(store, LocalStore) else None
    uri = getattr(source, "uri", None)  # of a file that odc-stac loads
    if not isinstance(uri, str):
        return None
    if uri.startswith(("http://", "https://", "s3://", "gs://", "az://", "abfs://")):
        return uri  # what a catalogue has published is not changed in place
    path = Path(uri.removeprefix("file://"))
    return (uri, _stat(path.stat())) if path.is_file() else None


def _files(folder: Path) -> str:
    """Hash of the names, sizes and times of change of all files below a folder."""
    digest = hashlib.sha256(str(folder).encode())
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(where, name)
            digest.update(f"{path} {_stat(path.stat())}\n".encode())
    return digest.hexdigest()


def _stat(status: os.stat_result) -> str:
    return f"{status.st_size} {status.st_mtime_ns}"
