"""Expand paths as users write them (`~`, `file://`, URLs), and report those that are missing or unreadable.

All arguments that are paths do so in one way, and all messages have one wording.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    InputNotFoundError,
    MissingExtraError,
    StorageError,
    StorageRefusedError,
    StorageUnreachableError,
)

__all__ = ["answering", "expand", "is_url", "local_path", "not_found", "reading", "unreadable"]

E = TypeVar("E", bound=DeoCubeError)


def is_url(path: object) -> bool:
    """Return whether `path` is a URL with any scheme but ``file``."""
    text = str(path)
    return "://" in text and not text.lower().startswith("file://")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder on this machine, with ``~`` and ``file://`` expanded.

    Raises
    ------
    ArgumentTypeError
        For anything but text and paths.
    ArgumentError
        For a ``file://`` URL of another machine, and for the home folder of an unknown user.

    Examples
    --------
    >>> local_path("file:///data/my%20cube.zarr").as_posix()
    '/data/my cube.zarr'
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be a string or a pathlib.Path, got {type(path).__name__}")
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ArgumentError(
                f"{text} is a file of another machine, {parts.netloc}: a local path is written with three slashes, file:///"
            )
        text = url2pathname(parts.path) if os.name == "nt" else unquote(parts.path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ArgumentError(f"path {text} begins with the home folder of a user who does not exist") from error


def expand(path: str | os.PathLike[str]) -> str:
    """Return `path` as text: a URL unchanged but for slashes at its end, a local path expanded as by `local_path`.

    GDAL's ``/vsi...`` paths begin with a slash and stay as they are.
    """
    if isinstance(path, str) and path.startswith("/vsi"):
        return path  # doubled slashes have a meaning in GDAL
    return os.fspath(path).rstrip("/") if is_url(path) else str(local_path(path))


def not_found(argument: str, path: object, expected: str, *, error: type[E] = InputNotFoundError) -> E:  # type: ignore[assignment]
    """Return the error of a path that does not exist, which names the most similar file of its folder.

    Parameters
    ----------
    argument : str
        Name of the argument that holds the path.
    path : str or path
        As the user wrote it.
    expected : str
        What should be there, with its article.
    error : type
        Class of the error.

    Examples
    --------
    >>> str(not_found("emb", "/no/such.zarr", "a store of embeddings"))
    'emb: /no/such.zarr does not exist, and neither does the folder /no. Expected a store of embeddings'
    """
    return error(f"{argument}: {path} does not exist{_nearest(path)}. Expected {expected}")


def _nearest(path: object) -> str:
    """Return the end of a sentence on what is there instead of a path: a file of a similar name, or no folder."""
    if is_url(path) or str(path).startswith("/vsi"):
        return ""
    try:
        local = local_path(str(path))
        names = os.listdir(local.parent)
    except (OSError, DeoCubeError):
        parent = Path(str(path)).parent
        return "" if parent.exists() else f", and neither does the folder {parent}"
    # Stems are compared: most of the letters of names are often their ending.
    stems = {Path(name).stem for name in names if not name.startswith(".")}
    nearest = difflib.get_close_matches(local.stem, stems, 1)
    similar = [name for name in sorted(names) if nearest and Path(name).stem == nearest[0]]
    similar.sort(key=lambda name: -difflib.SequenceMatcher(None, name, local.name).ratio())
    return f", but {local.with_name(similar[0])} does" if similar else ""


#: First bytes of files that are often taken for others, and what these files are.
_KINDS = (
    (b"version https://git-lfs", "a pointer of Git LFS instead of the file (git lfs pull fetches it)"),
    (b"<!doctype html", "a web page, as a refused download leaves"),
    (b"<html", "a web page, as a refused download leaves"),
    (b"\x89png", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"%pdf", "a PDF document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"pk\x03\x04", "a ZIP archive"),
    (b"ii*\0", "a TIFF that is damaged or not complete"),
    (b"mm\0*", "a TIFF that is damaged or not complete"),
    (b"par1", "a Parquet table"),
    (b"\x89hdf", "an HDF5 or netCDF file"),
)


def unreadable(
    argument: str,
    path: object,
    expected: str,
    reason: BaseException | str,
    *,
    error: type[E] = StorageError,  # type: ignore[assignment]
) -> E:
    """Return the error of a file that a library cannot read, which names the kind of the file.

    Parameters
    ----------
    argument, path, expected, error
        As for `not_found`.
    reason : exception or str
        What the library reports.
    """
    detail = " ".join(str(reason).split())[:300]
    return error(
        f"{argument}: {path} cannot be read. Expected {expected}, found {_kind(path) or 'another or a damaged file'}"
        + (f" ({detail})" if detail else "")
        + ". Pass another file, or download or write this one again"
    )


@contextlib.contextmanager
def reading(argument: str, path: object, expected: str) -> Iterator[None]:
    """Raise what libraries raise while they read a file as `unreadable`."""
    try:
        yield
    except DeoCubeError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"{argument}: {path} needs a package that is not installed: {error}") from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise unreadable(argument, path, expected, error) from error


#: Packages whose errors are about a store on the network.
_REMOTE = {"adlfs", "aiohttp", "azure", "botocore", "gcsfs", "obstore"}
#: Names of their errors where a store answers, and refuses.
_REFUSED = {"PermissionDeniedError", "UnauthenticatedError", "NoCredentialsError"}


@contextlib.contextmanager
def answering(path: object) -> Iterator[None]:
    """Raise the errors of an object store that does not answer, or refuses, as errors of this package.

    Parameters
    ----------
    path : path, URL or store
        What is read or written.

    Raises
    ------
    StorageRefusedError, StorageUnreachableError
    """
    try:
        yield
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in _REMOTE:
            raise
        reason = str(error).partition("\n")[0]
        raise (StorageRefusedError if type(error).__name__ in _REFUSED else StorageUnreachableError)(
            f"{path} cannot be reached: {reason}\nCheck the URL and storage_options= (endpoint, region, access_key_id, "
            "secret_access_key, ...), or the environment (AWS_*)"
        ) from error


def _kind(path: object) -> str:
    """Return what a file is by its size and first bytes; empty text where they do not show it."""
    try:
        local = local_path(str(path))
        if local.is_dir():
            return "an empty folder" if not any(local.iterdir()) else "a folder"
        with local.open("rb") as file:
            head = file.read(64).lower()
    except (OSError, DeoCubeError):
        return ""
    if not head:
        return "an empty file"
    kind = next((kind for start, kind in _KINDS if head.lstrip().startswith(start)), "")
    return kind or ("a text file" if all(byte >= 32 or byte in b"\t\n\r\f" for byte in head) else "")
