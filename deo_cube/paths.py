"""Expand paths as users write them (`~`, `file://`, URLs), in one way for all arguments."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["expand", "is_url", "local_path"]


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
