"""Which codecs of a Zarr store are read: those that give numbers and text, never Python objects.

A store names the codecs that decode it. One of them unpickles, which runs code from the store, and does so when a
coordinate is opened; others build arbitrary objects. They are refused from the metadata, before a chunk is decoded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import zarr

from deo_cube.errors import StorageError

__all__ = ["OBJECT_CODECS", "check_codecs", "check_store"]

#: How zarr meets an unknown codec or data type.
UNREADABLE = (ValueError, KeyError, TypeError, RuntimeError)
#: Codecs that decode to Python objects.
OBJECT_CODECS = frozenset({"json", "json2", "msgpack", "msgpack2", "pickle"})


def check_store(
    store: Any, *, path: str = "", storage_options: Mapping[str, Any] | None = None, zarr_format: Any = None
) -> None:
    """Refuse a Zarr store whose arrays are decoded to Python objects, or by codecs that are not installed.

    Parameters
    ----------
    store : path, URL or zarr store
        Of which the group `path` is looked at. A place without a group is left to the reader.
    path : str
        Group in the store.
    storage_options, zarr_format
        As of `zarr.open_group`.

    Raises
    ------
    StorageError
        See `check_codecs`.
    """
    options = None if storage_options is None else dict(storage_options)
    try:
        group = zarr.open_group(store, mode="r", path=path, storage_options=options, zarr_format=zarr_format)
    except FileNotFoundError:  # that it is missing, the reader says
        return
    except UNREADABLE as error:  # consolidated metadata is decoded at once
        raise _unreadable(store, error) from error
    check_codecs(group)


def check_codecs(group: zarr.Group) -> None:
    """Refuse a group of which an array is decoded to Python objects, or by a codec that is not installed.

    Raises
    ------
    StorageError
        With the array and the codec.
    """
    try:
        arrays = list(group.arrays())
    except UNREADABLE as error:
        raise _unreadable(group.store_path, error) from error
    for name, array in arrays:
        names = {n.removeprefix("numcodecs.") for n in _names(array.metadata)}
        if bad := sorted(names & OBJECT_CODECS):
            raise StorageError(
                f"array {name!r} of {group.store_path} is decoded by {bad}, which makes Python objects of its bytes "
                "and may run code from the store; expected numbers or text. Where you trust its writer, open it "
                "yourself with xarray.open_zarr, numcodecs permitting, and pass the dataset"
            )


def _unreadable(store: Any, error: Exception) -> StorageError:
    return StorageError(
        f"{store} holds an array that cannot be decoded here: {type(error).__name__}: {error}. Install the package "
        "that has its codec, or have the store written with the codecs of Zarr (blosc, zstd, gzip)"
    )


def _names(metadata: Any) -> Iterator[str]:
    if metadata.zarr_format == 2:
        for codec in (*(metadata.filters or ()), metadata.compressor):
            if codec is not None:
                yield str(codec.codec_id)
    else:
        for codec in metadata.codecs:
            yield from _named(codec.to_dict())


def _named(codec: Any) -> Iterator[str]:
    """The name of a Zarr 3 codec, and of those inside it (shards hold chunks and an index with codecs of their own)."""
    if isinstance(codec, str):
        yield codec
    elif isinstance(codec, Mapping):
        yield str(codec.get("name", ""))
        configuration = codec.get("configuration") or {}
        for inner in (*configuration.get("codecs", ()), *configuration.get("index_codecs", ())):
            yield from _named(inner)
