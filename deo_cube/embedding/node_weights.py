"""Weights on machines that do not see the caller's files: found by hash on the node, from the hub, or sent once a node.

A worker looks, in this order: the path of the call; the node's folder of sent files; and, asked by the client, its own
places and the hub. What it takes has the hash that was found at the call, or it is not taken.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

import dask

from deo_cube.encoder.registry import EncoderRef
from deo_cube.encoder.weights import file_sha256, find_weights
from deo_cube.errors import DeoCubeError

__all__ = ["CHUNK_BYTES", "fetch_from_hub", "has_weights", "local_ref", "receive_chunk"]

#: Bytes that travel at a time.
CHUNK_BYTES = 16 * 2**20


def local_ref(ref: EncoderRef) -> EncoderRef:
    """`ref`, with the path under which this machine has its weights; as it is where there are none to be found."""
    if ref.weights is None or _same(Path(ref.weights), ref):
        return ref
    for path in (_sent_path(ref), _cached_path(ref)):
        if path is not None and _same(path, ref):
            return dataclasses.replace(ref, weights=str(path))
    return ref


def has_weights(ref: EncoderRef) -> bool:
    """Whether this machine has the weights, under whatever path."""
    found = local_ref(ref)
    return found.weights is None or _same(Path(found.weights), found)


def fetch_from_hub(ref: EncoderRef, *, offline: bool) -> bool:
    """Look in this machine's own places and, unless `offline`, on the hub; note the path for the node's processes."""
    try:
        found = find_weights(ref.card, offline=offline)
    except DeoCubeError:
        return False
    if not _same(found, ref):
        return False
    note = _sent_path(ref).with_suffix(".path")
    _put(note, str(found).encode())
    return True


def receive_chunk(sha256: str, suffix: str, offset: int, total: int, chunk: bytes, transfer: str) -> bool:
    """Add a piece to a file that is being sent; move it to its place, if its hash is right, once it is whole."""
    place = _folder() / f"{sha256}{suffix}"
    part = place.with_name(f"{place.name}.{transfer}.part")
    part.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with open(part, "r+b" if offset else "wb") as file:
        file.seek(offset)
        file.write(chunk)
    if offset + len(chunk) < total:
        return False
    with open(part, "rb") as file:
        right = hashlib.file_digest(file, "sha256").hexdigest() == sha256
    if right:
        part.replace(place)
    else:
        part.unlink()
    return right


def _folder() -> Path:
    """Folder of this node and user for files that were sent; large, so where Dask spills to if that is set."""
    base = dask.config.get("temporary-directory", None) or tempfile.gettempdir()
    return Path(base) / f"deo_cube-{os.getuid() if hasattr(os, 'getuid') else 'user'}" / "weights"


def _sent_path(ref: EncoderRef) -> Path:
    return _folder() / f"{ref.weights_sha256}{Path(ref.weights or '').suffix}"


def _cached_path(ref: EncoderRef) -> Path | None:
    try:
        return Path(_sent_path(ref).with_suffix(".path").read_text())
    except OSError:
        return None


def _same(path: Path, ref: EncoderRef) -> bool:
    try:
        return file_sha256(path) == ref.weights_sha256
    except OSError:
        return False


def _put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_bytes(content)
    part.replace(path)
