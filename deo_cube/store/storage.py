"""Find the storage of a store (a folder, a URL, a Zarr store) and read, write, list and delete its objects one by one.

On disk, each write is synced before it counts.

The only module that calls a private function of Zarr: `zarr.core.sync.sync`. Zarr's stores are asynchronous, some are
bound to the event loop of Zarr's own thread, and there is no public way to call them from synchronous code.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import zarr
from zarr.abc.store import Store
from zarr.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore

from deo_cube.errors import ArgumentError, DeoCubeError, StorageError, StoreMismatchError
from deo_cube.extras import require
from deo_cube.paths import answering, is_url, local_path

__all__ = [
    "PARTIAL",
    "SyncedStore",
    "contents",
    "delete",
    "delete_all",
    "draft_beside",
    "has_any",
    "holds",
    "is_local",
    "locate",
    "moved_aside",
    "names_below",
    "read",
    "read_below",
    "read_many",
    "store_at",
    "sweep",
    "sync_folder",
    "tidy",
    "write",
]

T = TypeVar("T")

#: Schemes that obstore supports; fsspec opens any other.
OBSTORE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
#: obstore's names of options, by fsspec's.
_FSSPEC_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
}


def is_local(store: Any) -> bool:
    """Return whether `store` is a folder on a file system of this machine."""
    return isinstance(store, str | os.PathLike) and not is_url(store)


def locate(path: Any, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Return what Zarr opens for a path, URL or store object, on this machine and, pickled, on workers.

    Parameters
    ----------
    path : path, URL, zarr store or obstore store
        ``s3://``, ``gs://``, ``az://`` and ``https://`` go through obstore, other schemes through fsspec.
    storage_options : mapping, optional
        Of the object store, for a URL: ``endpoint``, ``region``, ``access_key_id``, ``secret_access_key``,
        ``skip_signature``, ... (obstore's names; fsspec's ``key``, ``secret``, ``token``, ``anon`` are accepted).
        They are sent to workers. Missing options are read from the environment of each process (``AWS_*``).

    Returns
    -------
    str or zarr store
        A string for a folder.

    Raises
    ------
    StoreMismatchError
        For options without a URL, or an icechunk session.
    MissingExtraError
        If the package that speaks the URL's scheme is not installed.
    """
    if isinstance(path, str) and not path:
        raise ArgumentError("store and path must be a path, a URL or a Zarr store, got an empty text")
    if is_local(path):
        if storage_options:
            raise StoreMismatchError(f"storage_options are for URLs (s3://bucket/...), {str(path)!r} is a folder")
        return str(local_path(path))
    if isinstance(path, str | os.PathLike):
        return _of_url(str(path), dict(storage_options or {}))
    if storage_options:
        raise StoreMismatchError("storage_options are for URLs; a store object has its own already")
    module = type(path).__module__
    if module.startswith("icechunk"):
        store = path if isinstance(path, Store) else getattr(path, "store", None)
        if isinstance(store, Store) and store.read_only:
            return store  # a snapshot, which reads like any store
        raise StoreMismatchError(
            "an icechunk session is not written to: its blocks would count only once committed, so that a killed run "
            "could not be resumed. Write a plain Zarr store and copy it into the session: "
            "xarray.open_zarr('emb.zarr', decode_coords='all', mask_and_scale=False)"
            ".drop_encoding().to_zarr(session.store, consolidated=False). To read: repository.readonly_session('main')"
        )
    if module.startswith("obstore"):
        return zarr.storage.ObjectStore(path)
    if not isinstance(path, Store):
        raise StoreMismatchError(
            f"a store is a path, a URL, or a Zarr store object (zarr.storage.ObjectStore, FsspecStore, ...), "
            f"got {type(path).__name__}"
        )
    return path


def _of_url(url: str, options: dict[str, Any]) -> Any:
    scheme = urlsplit(url).scheme
    if scheme == "file":
        return unquote(urlsplit(url).path)
    if scheme not in OBSTORE_SCHEMES:
        return zarr.storage.FsspecStore.from_url(url, storage_options=options or None)
    from_url = require("obstore.store", extra="store", purpose=f"{url} (an object store)").from_url
    # s3fs takes what is of boto3's client in a mapping of its own.
    options = {**{k: v for k, v in options.items() if k != "client_kwargs"}, **(options.get("client_kwargs") or {})}
    config = {_FSSPEC_NAMES.get(k, k): v for k, v in options.items()}
    client = dict(config.pop("client_options", {}))
    retry = config.pop("retry_config", None)
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    if str(endpoint).startswith("http://"):
        client.setdefault("allow_http", True)
    given: dict[str, Any] = {"config": config or None, "client_options": client or None, "retry_config": retry}
    try:
        return zarr.storage.ObjectStore(from_url(url, **given))
    except Exception as error:  # obstore's own, which is not imported here
        if "Configuration" not in type(error).__name__:
            raise
        reason = str(error).split("\n")[0]
        raise ArgumentError(
            f"storage_options: {reason}. Expected options of obstore, such as endpoint, region, access_key_id, "
            "secret_access_key, or their names in s3fs and boto3"
        ) from error


def holds(place: Any, array: zarr.Array) -> bool:
    """Return whether an array is part of the store at `place`."""
    store = array.store_path.store
    if is_local(place):
        root = getattr(store, "root", None)
        return root is not None and Path(root, array.path).resolve().is_relative_to(Path(place).resolve())
    return bool(store == place)


@contextlib.contextmanager
def draft_beside(path: Path) -> Iterator[Path]:
    """Yield a hidden folder's name beside `path`, to be made and renamed; afterwards no such folder is left.

    Its name has the host and process, so that `sweep` can distinguish an abandoned draft from one in use.
    """
    draft = _beside(path, "draft")
    try:
        yield draft
    except (PermissionError, NotADirectoryError, FileNotFoundError) as error:
        if isinstance(error, DeoCubeError) or draft.exists():
            raise
        raise StorageError(
            f"{path} cannot be written: {error.strerror}. Choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def moved_aside(path: Path) -> Iterator[None]:
    """Move a folder aside during the ``with`` block, and delete it afterwards.

    If the block fails, it is moved back; if the process is killed, `sweep` moves it back.
    """
    aside = _beside(path, "replaced")
    path.rename(aside)
    try:
        yield
    except BaseException:
        if not path.exists():
            aside.rename(path)
        raise
    shutil.rmtree(aside)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f"{_prefix(path, kind)}{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex}")


def _prefix(path: Path, kind: str) -> str:
    return f".{path.name}.{kind}-"


def sweep(path: Path) -> None:
    """Remove what dead processes left beside `path`: of this host at once, of other hosts after a day.

    Drafts are deleted. A store that was moved aside is moved back if nothing has taken its place, else deleted.
    """
    # Not glob: names may hold its wildcards.
    names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    for kind in ("draft", "replaced"):
        prefix = _prefix(path, kind)
        for left in [path.with_name(name) for name in names if name.startswith(prefix)]:
            host, _, pid = left.name.removeprefix(prefix).rpartition("-")[0].rpartition("-")
            with contextlib.suppress(OSError):
                dead = not _alive(pid) if host == socket.gethostname() else time.time() - left.stat().st_mtime > 86400
                if dead and kind == "replaced" and not path.exists():
                    left.rename(path)
                elif dead:
                    shutil.rmtree(left, ignore_errors=True)


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):
        return True
    return True


def tidy(store: Any) -> None:
    """Remove half-written files of killed runs from a folder. Call it only when all blocks are done."""
    if is_local(store):
        for folder, _, files in os.walk(store):
            for name in files:
                if name.endswith(".partial"):
                    Path(folder, name).unlink(missing_ok=True)


#: End of the name of a file that is being written.
PARTIAL = ".partial"
#: Requests at a time.
CONCURRENCY = 64


class SyncedStore(LocalStore):  # type: ignore[misc]
    """A folder in which a file is complete and synced before it gets its name, and its name is synced as well.

    Parameters
    ----------
    root : str or path
        The folder.
    read_only : bool
        As for `zarr.storage.LocalStore`.
    before_rename : callable, optional
        Called when a file is written and synced, before it gets its name, and before a file is deleted. If it
        raises, the old file is kept.
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
    """Make a folder and its parents, and sync each into its parent."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Sync the names in a folder to the disk. Windows has no such call, and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def store_at(place: Any, *, before_rename: Callable[[], None] | None = None) -> Store:
    """Return the Zarr store at what `storage.locate` returned; a folder's writes are synced."""
    if is_local(place):
        return SyncedStore(Path(place), before_rename=before_rename)
    store: Store = place
    return store


def _run(store: Store, request: Coroutine[Any, Any, T]) -> T:
    """Run a request to a store; the errors of an object store that does not answer are ours."""
    with answering(store):
        answer: T = sync(request)
    return answer


def read(store: Store, key: str) -> bytes | None:
    """Return the bytes of an object; None where there is none."""
    return read_many(store, [key])[0]


def read_many(store: Store, keys: Sequence[str]) -> list[bytes | None]:
    """Return the bytes of several objects, a few requests at a time."""
    if isinstance(store, LocalStore):
        return [_read_file(Path(store.root, key)) for key in keys]
    found: list[bytes | None] = _run(store, _get_all(store, keys))
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
    names: list[list[str]] = _run(store, _list_all(store, folders))
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
    found: list[list[str]] = _run(store, _list_all(store, folders))
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

    return bool(_run(store, run()))


def write(store: Store, key: str, value: bytes) -> None:
    """Write an object whole."""
    _run(store, store.set(key, default_buffer_prototype().buffer.from_bytes(value)))


def delete(store: Store, key: str) -> None:
    """Delete an object, if there is one."""
    _run(store, store.delete(key))


def delete_all(store: Store, *, keep: Sequence[str] = ()) -> None:
    """Delete every object of a store but those in `keep`."""

    async def run() -> None:
        gate = asyncio.Semaphore(CONCURRENCY)

        async def one(key: str) -> None:
            async with gate:
                await store.delete(key)

        keys = [key async for key in store.list() if key not in keep]
        await asyncio.gather(*(one(key) for key in keys))

    _run(store, run())


def contents(store: zarr.storage.MemoryStore) -> Mapping[str, bytes]:
    """Return all objects of a store in memory, in the order of their names."""

    async def keys() -> list[str]:
        return [key async for key in store.list()]

    names = sorted(sync(keys()))
    return {k: v for k, v in zip(names, read_many(store, names), strict=True) if v is not None}
