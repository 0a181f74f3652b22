"""Paths as users write them: `~`, `file://` and URLs, expanded in one way wherever a path is taken."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["expand", "is_url", "local_path"]


def is_url(path: object) -> bool:
    """Return whether `path` is the URL of something elsewhere: any scheme but ``file``."""
    text = str(path)
    return "://" in text and not text.lower().startswith("file://")


def local_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder on this machine, with ``~`` and ``file://`` expanded.

    Raises
    ------
    ArgumentTypeError
        For anything but text and paths.
    ArgumentError
        For a ``file://`` URL of another machine, and for the home folder of a user who does not exist.

    Examples
    --------
    >>> local_path("file:///data/my%20cube.zarr").as_posix()
    '/data/my cube.zarr'
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"a path is text or a pathlib.Path, got {type(path).__name__}")
    text = os.fspath(path)
    if isinstance(text, bytes):
        text = os.fsdecode(text)
    if text.lower().startswith("file:"):
        parts = urlsplit(text)
        if parts.netloc not in ("", "localhost"):
            raise ArgumentError(f"{text} is a file of another machine, {parts.netloc}: file:// has three slashes here")
        text = url2pathname(parts.path) if os.name == "nt" else unquote(parts.path)
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ArgumentError(f"the path {text} begins with the home folder of a user who does not exist") from error


def expand(path: str | os.PathLike[str]) -> str:
    """Return `path` as text: a URL as it is, without a slash at its end, a local path as `local_path` has it.

    GDAL's ``/vsi...`` paths begin with a slash and stay as they are.
    """
    if isinstance(path, str) and path.startswith("/vsi"):
        return path  # its doubled slashes mean something
    return os.fspath(path).rstrip("/") if is_url(path) else str(local_path(path))
