"""Where a store lies: a folder, the URL of an object store, or a Zarr store that the caller made."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import zarr
from zarr.abc.store import Store

from deo_cube.errors import ArgumentError, MissingExtraError, StoreMismatchError
from deo_cube.paths import is_url, local_path

__all__ = ["draft_beside", "holds", "is_local", "locate", "moved_aside", "sweep", "tidy"]

#: Schemes that obstore speaks; any other is left to fsspec.
OBSTORE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "abfs", "abfss", "adl", "http", "https")
#: Options by the names that fsspec gives them, in obstore's words.
_FSSPEC_NAMES = {
    "key": "access_key_id",
    "secret": "secret_access_key",
    "token": "session_token",
    "anon": "skip_signature",
    "endpoint_url": "endpoint",
}


def is_local(store: Any) -> bool:
    """Whether `store` is a folder on a file system of this machine."""
    return isinstance(store, str | os.PathLike) and not is_url(store)


def locate(path: Any, storage_options: Mapping[str, Any] | None = None) -> Any:
    """Turn what a caller names into what Zarr opens, on this machine and, pickled, on workers.

    Parameters
    ----------
    path : path, URL, zarr store or obstore store
        ``s3://``, ``gs://``, ``az://`` and ``https://`` go through obstore, other schemes through fsspec.
    storage_options : mapping, optional
        Of the object store, for a URL: ``endpoint``, ``region``, ``access_key_id``, ``secret_access_key``,
        ``skip_signature``, ... (obstore's words; fsspec's ``key``, ``secret``, ``token``, ``anon`` are understood).
        They travel to workers. What is not given is looked for in the environment of each process (``AWS_*``).

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
    try:
        from obstore.store import from_url
    except ImportError as error:
        raise MissingExtraError.wanted("obstore", "store", f"{url} (an object store)") from error
    config = {_FSSPEC_NAMES.get(k, k): v for k, v in options.items()}
    client = dict(config.pop("client_options", {}))
    retry = config.pop("retry_config", None)
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL", "")
    if str(endpoint).startswith("http://"):
        client.setdefault("allow_http", True)
    given: dict[str, Any] = {"config": config or None, "client_options": client or None, "retry_config": retry}
    return zarr.storage.ObjectStore(from_url(url, **given))


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

    Its name says whose it is, so that `sweep` can tell one that was left behind from one that is being made.
    """
    draft = _beside(path, "draft")
    try:
        yield draft
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def moved_aside(path: Path) -> Iterator[None]:
    """Move a folder out of the way for the time of the block, and delete it afterwards.

    Where the block fails it is moved back; where the process is killed, `sweep` does that.
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


def sweep(path: Path, *, day: float = 86400.0) -> None:
    """Clear up beside `path` what processes that died left there: on this host at once, on others after a day.

    Drafts are deleted. A store that was moved aside is moved back where nothing has taken its place, else deleted.
    """
    # Not glob: names may hold its wildcards.
    names = sorted(p.name for p in path.parent.iterdir()) if path.parent.is_dir() else []
    for kind in ("draft", "replaced"):
        prefix = _prefix(path, kind)
        for left in [path.with_name(name) for name in names if name.startswith(prefix)]:
            host, _, pid = left.name.removeprefix(prefix).rpartition("-")[0].rpartition("-")
            with contextlib.suppress(OSError):
                dead = not _alive(pid) if host == socket.gethostname() else time.time() - left.stat().st_mtime > day
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
    """Remove half-written files that killed runs left in a folder beside whole ones; only once all blocks are done."""
    if is_local(store):
        for folder, _, files in os.walk(store):
            for name in files:
                if name.endswith(".partial"):
                    Path(folder, name).unlink(missing_ok=True)
