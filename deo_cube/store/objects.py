"""Read, write, list and delete the objects of a store one by one; on disk, each write is synced before it counts.

The only module that calls a private function of Zarr: `zarr.core.sync.sync`. Zarr's stores are asynchronous, some are
bound to the event loop of Zarr's own thread, and there is no public way to call them from synchronous code.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from deo_cube.store.location import is_local

__all__ = [
    "PARTIAL",
    "SyncedStore",
    "contents",
    "delete",
    "delete_all",
    "has_any",
    "names_below",
    "read",
    "read_below",
    "read_many",
    "store_at",
    "sync_folder",
    "write",
]

#: End of the name of a file that is being written.
PARTIAL = ".partial"
#: Requests at a time.
CONCURRENCY = 64


class SyncedStore(LocalStore):  # type: ignore[misc]
    """A folder in which a file is whole and on the disk before it has its name, and its name is on the disk, too.

    Parameters
    ----------
    root : str or path
        The folder.
    read_only : bool
        As for `zarr.storage.LocalStore`.
    before_rename : callable, optional
        Called when a file is written and synced, right before it gets its name, and before one is deleted. What it
        raises keeps the old file.
    """

    def __init__(
        self, root: Path | str, *, read_only: bool = False, before_rename: Callable[[], None] | None = None
    ) -> None:
        super().__init__(root, read_only=read_only)
        self.before_rename = before_rename

    def with_read_only(self, read_only: bool = False) -> SyncedStore:
        """Return the same folder, writable or not."""
        return type(self)(self.root, read_only=read_only, before_rename=self.before_rename)

    async def set(self, key: str, value: Any) -> None:
        """Write an object."""
        self._check_writable()
        await asyncio.to_thread(self._write, key, value.as_buffer_like(), False)

    async def set_if_not_exists(self, key: str, value: Any) -> None:
        """Write an object, unless there is one."""
        self._check_writable()
        await asyncio.to_thread(self._write, key, value.as_buffer_like(), True)

    async def delete(self, key: str) -> None:
        """Delete an object, if there is one."""
        if self.before_rename is not None:
            self.before_rename()
        await super().delete(key)
        folder = (self.root / key).parent
        if folder.is_dir():
            await asyncio.to_thread(sync_folder, folder)

    def set_sync(self, key: str, value: Any) -> None:
        """Write an object, in this thread."""
        self._check_writable()
        self._write(key, value.as_buffer_like(), False)

    def _write(self, key: str, value: Any, exclusive: bool) -> None:
        path = self.root / key
        if exclusive and path.exists():
            return
        _make_folder(path.parent)
        partial = path.with_name(f"{path.name}.{uuid.uuid4().hex}{PARTIAL}")
        try:
            with partial.open("wb") as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())
            if self.before_rename is not None:
                self.before_rename()
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Make a folder and those above it, each synced into its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Have the disk hold the names in a folder. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def store_at(place: Any, *, before_rename: Callable[[], None] | None = None) -> Store:
    """Return the Zarr store at what `location.locate` returned; a folder's writes are synced."""
    if is_local(place):
        return SyncedStore(Path(place), before_rename=before_rename)
    store: Store = place
    return store


def read(store: Store, key: str) -> bytes | None:
    """Return the bytes of an object; None where there is none."""
    return read_many(store, [key])[0]


def read_many(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return the bytes of several objects, a few requests at a time."""
    if isinstance(store, LocalStore):
        return [_read_file(Path(store.root, key)) for key in keys]
    found: list[bytes | None] = sync(_get_all(store, keys))
    return found


def _read_file(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return None


async def _get_all(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def get(key: str) -> bytes | None:
        async with gate:
            buffer = await store.get(key, prototype=default_buffer_prototype())
        return None if buffer is None else buffer.to_bytes()

    return list(await asyncio.gather(*(get(key) for key in keys)))


def read_below(store: Store, folders: Sequence[str]) -> list[dict[str, bytes]]:
    """Return name and bytes of the objects directly below each folder."""
    if isinstance(store, LocalStore):
        return [_read_folder(Path(store.root, folder)) for folder in folders]
    names: list[list[str]] = sync(_list_all(store, folders))
    keys = [f"{folder}/{name}" for folder, some in zip(folders, names, strict=True) for name in some]
    values = iter(read_many(store, keys))
    return [{n: v for n in some if (v := next(values)) is not None} for some in names]


def _read_folder(folder: Path) -> dict[str, bytes]:
    found = ((name, _read_file(folder / name)) for name in _names(folder))
    return {name: value for name, value in found if value is not None}


def names_below(store: Store, folders: Sequence[str]) -> list[list[str]]:
    """Return the names directly below each folder."""
    if isinstance(store, LocalStore):
        return [_names(Path(store.root, folder)) for folder in folders]
    found: list[list[str]] = sync(_list_all(store, folders))
    return found


def _names(folder: Path) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if not name.endswith(PARTIAL)]
    except (FileNotFoundError, NotADirectoryError):
        return []


async def _list_all(store: Store, folders: Sequence[str]) -> list[list[str]]:
    gate = asyncio.Semaphore(CONCURRENCY)

    async def names(folder: str) -> list[str]:
        async with gate:
            return [name.rstrip("/").rpartition("/")[2] async for name in store.list_dir(folder)]

    return list(await asyncio.gather(*(names(folder) for folder in folders)))


def has_any(store: Store, folder: str) -> bool:
    """Return whether anything is below a folder."""

    async def run() -> bool:
        async for _ in store.list_dir(folder):
            return True
        return False

    return bool(sync(run()))


def write(store: Store, key: str, value: bytes) -> None:
    """Write an object whole."""
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(value)))


def delete(store: Store, key: str) -> None:
    """Delete an object, if there is one."""
    sync(store.delete(key))


def delete_all(store: Store, *, keep: Sequence[str] = ()) -> None:
    """Delete every object of a store but those in `keep`."""

    async def run() -> None:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(key: str) -> None:
            async with gate:
                await store.delete(key)

        keys = [key async for key in store.list() if key not in keep]
        await asyncio.gather(*(one(key) for key in keys))

    sync(run())


def contents(store: zarr.storage.MemoryStore) -> Mapping[str, bytes]:
    """Return all objects of a store in memory, in the order of their names."""

    async def keys() -> list[str]:
        return [key async for key in store.list()]

    names = sorted(sync(keys()))
    return {k: v for k, v in zip(names, read_many(store, names), strict=True) if v is not None}
