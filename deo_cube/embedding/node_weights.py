"""Find weights on nodes that do not have the caller's files: by hash on the node, from the hub, or sent once per node.

A worker tries, in this order: the path of the call; the node's folder of sent files; and, on request of the client, the
node's own folders and the hub. Only a file with the hash of the call's weights is used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import tempfile
from pathlib import Path

import dask

from deo_cube.encoder.hub import file_sha256
from deo_cube.encoder.registry import EncoderRef
from deo_cube.encoder.weights import find_weights
from deo_cube.errors import DeoCubeError

__all__ = ["CHUNK_BYTES", "fetch_from_hub", "has_weights", "local_ref", "receive_chunk"]

#: Bytes that are sent at a time.
CHUNK_BYTES = 16 * 2**20


def local_ref(ref: EncoderRef) -> EncoderRef:
    """Return `ref` with the path of its weights on this machine; unchanged where there are none."""
    if ref.weights is None or _same(Path(ref.weights), ref):
        return ref
    for path in (_sent_path(ref), _cached_path(ref)):
        if path is not None and _same(path, ref):
            return dataclasses.replace(ref, weights=str(path))
    return ref


def has_weights(ref: EncoderRef) -> bool:
    """Return whether this machine has the weights, at any path."""
    local = local_ref(ref)
    return local.weights is None or _same(Path(local.weights), local)


def fetch_from_hub(ref: EncoderRef, *, offline: bool) -> bool:
    """Find weights in this machine's folders or, unless `offline`, on the hub; note the path for other processes."""
    try:
        path = find_weights(ref.card, offline=offline)
    except DeoCubeError:
        return False
    if not _same(path, ref):
        return False
    note = _sent_path(ref).with_suffix(".path")
    _put(note, str(path).encode())
    return True


def receive_chunk(sha256: str, suffix: str, offset: int, total: int, chunk: bytes, transfer: str) -> bool:
    """Add a chunk to a file that is being sent; once it is whole and its hash is right, move it to its place."""
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
    """Return the folder for sent files, of this node and user; they are large, so where Dask spills to if set."""
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
