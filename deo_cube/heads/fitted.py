"""Bases, clusters and calibrations as JSON: numbers and one name, of a size that they can have."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deo_cube.errors import ArgumentTypeError, InputNotFoundError, StorageError, WeightsMismatchError
from deo_cube.paths import local_path

__all__ = ["read_json", "write_json"]

MOST_BYTES = 512 * 2**20
"""Of a file."""


def write_json(path: Any, values: Mapping[str, Any]) -> None:
    """Write `values` to a file.

    Raises
    ------
    ArgumentTypeError, StorageError
        For anything but a path, and where it cannot be written.
    """
    try:
        _path(path).write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def read_json(path: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Read what `write_json` wrote: finite numbers (or lists of them) by `names`, of which the last is a text.

    Raises
    ------
    InputNotFoundError, StorageError
        If there is no file, or it cannot be read.
    WeightsMismatchError
        If it is not `what`.
    """
    place = _path(path)
    if not place.is_file():
        raise InputNotFoundError(f"no file of {what} at {place}")
    try:
        if place.stat().st_size > MOST_BYTES:
            raise WeightsMismatchError(f"{place} is larger than any file of {what}")
        found = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{place} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsMismatchError(f"{place} is not {what}: {str(error)[:200]}") from error
    *numbers, text = names
    if not isinstance(found, dict) or not set(numbers) <= set(found) <= set(names):
        held = sorted(map(str, found))[:8] if isinstance(found, dict) else type(found).__name__
        raise WeightsMismatchError(f"{place} is not {what}, which has {list(names)}: found {held}")
    if not isinstance(found.get(text, ""), str):
        raise WeightsMismatchError(f"{place} is not {what}: its {text} is not a text")
    for name in numbers:
        try:
            finite = bool(np.isfinite(np.asarray(found[name], dtype="float64")).all())
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightsMismatchError(f"{place} is not {what}: {name} are not numbers") from error
        if not finite:
            raise WeightsMismatchError(f"{place} is damaged: {name} are not all finite")
    return found


def _path(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be that of a file, got {type(path).__name__}")
    return local_path(os.fsdecode(path))
