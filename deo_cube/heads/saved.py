"""Read and write files of fitted results: heads as safetensors, bases, clusters and calibrations as JSON.

Reading parses numbers and text and executes nothing: there is no pickle, and no class named in a file is looked up.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    InputNotFoundError,
    StorageError,
    WeightsMismatchError,
)
from deo_cube.paths import local_path, not_found, unreadable

__all__ = ["read_head", "read_json", "write_head", "write_json"]

Array = NDArray[Any]

KEY = "deo_cube.head"
FORMAT = 1
MAX_HEAD_BYTES = 4 * 2**30
"""Largest head file that is read; more than the largest head that can be fitted."""
MAX_JSON_BYTES = 512 * 2**20
"""Largest JSON file that is read."""


def write_head(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Write a head to one safetensors file: numbers in its tensors, everything else as JSON in its header.

    ``.safetensors`` is appended to a name without that suffix. The file appears only when it is complete.

    Raises
    ------
    ArgumentError, StorageError
        If `path` names no file, or the file cannot be written.
    """
    path = local_path(path)
    if not path.name:
        raise ArgumentError(f"path must name the file of a head, got {str(path)!r}")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    header = json.dumps({"format": FORMAT} | dict(facts), sort_keys=True)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, metadata={KEY: header})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the head cannot be written to {path}: {error}") from error
    return path


def read_head(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Return the facts and the tensors that `write_head` wrote.

    Raises
    ------
    InputNotFoundError
        If there is no such file.
    WeightsMismatchError
        If it is not a safetensors file, not a head, larger than `MAX_HEAD_BYTES`, or of a later format.
    StorageError
        If it cannot be read.
    """
    path = _head_file(path)
    size = path.stat().st_size
    if size > MAX_HEAD_BYTES:
        raise WeightsMismatchError(
            f"{path} has {size / 2**30:.1f} GiB: expected a head, which has at most {MAX_HEAD_BYTES / 2**30:g} GiB"
        )
    try:
        with safe_open(path, framework="numpy") as f:
            header = (f.metadata() or {}).get(KEY)
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except TypeError as error:
        # safetensors has dtypes that NumPy does not have.
        raise WeightsMismatchError(f"{path} holds a dtype that a head never has: {error}") from error
    except SafetensorError as error:
        expected = "the .safetensors file that head.save(path) writes, never a pickle"
        raise unreadable("head", path, expected, error, error=WeightsMismatchError) from error
    except OSError as error:
        raise StorageError(f"head: {path} cannot be read: {error}") from error
    if header is None:
        raise WeightsMismatchError(
            f"head: {path} is a safetensors file, but not a head: its header has no entry {KEY!r}. Expected the file "
            "that head.save(path) writes"
        )
    _check_tensors(path, tensors)
    return _head_facts(path, header), tensors


def _head_file(path: str | Path) -> Path:
    """Return the file of a head, whose suffix may be left out."""
    path = local_path(path)
    if not path.exists() and path.with_name(path.name + ".safetensors").exists():
        path = path.with_name(path.name + ".safetensors")
    if path.is_dir():
        raise InputNotFoundError(
            f"head: {path} is a folder. Expected the .safetensors file that head.save(path) writes"
        )
    if not path.is_file():
        raise not_found("head", path, "the .safetensors file that head.save(path) writes")
    return path


def _head_facts(path: Path, header: str) -> dict[str, Any]:
    try:
        facts = json.loads(header)
    except (ValueError, RecursionError) as error:  # also integers with too many digits, and lists nested too deep
        raise WeightsMismatchError(f"{path} is damaged: the header of the head is not JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        version = facts.get("format") if isinstance(facts, dict) else None
        raise WeightsMismatchError(f"{path} has format {version}, this version reads format {FORMAT}: update deo_cube")
    return facts


def _check_tensors(path: Path, tensors: Mapping[str, Array]) -> None:
    not_numbers = sorted(k for k, v in tensors.items() if v.dtype.kind not in "biuf")
    if not_numbers:
        raise WeightsMismatchError(f"{path} holds tensors of a dtype that a head never has: {not_numbers[:3]}")
    not_finite = sorted(k for k, v in tensors.items() if not np.isfinite(v).all())
    if not_finite:
        raise WeightsMismatchError(f"{path} is damaged: there are numbers that are not finite in {not_finite}")


def write_json(path: Any, values: Mapping[str, Any]) -> None:
    """Write `values` to a file as JSON.

    Raises
    ------
    ArgumentTypeError, StorageError
        If `path` is not a path, or the file cannot be written.
    """
    try:
        _json_file(path).write_text(json.dumps(values), encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error


def read_json(path: Any, names: Sequence[str], what: str) -> dict[str, Any]:
    """Return what `write_json` wrote: finite numbers (or lists of them) under `names`; the last name holds text.

    Parameters
    ----------
    names : sequence of str
        Expected keys; the last one may be missing.
    what : str
        What the file holds, with its article, for messages.

    Raises
    ------
    InputNotFoundError, StorageError
        If there is no file, or it cannot be read.
    WeightsMismatchError
        If its content is not as described.
    """
    file = _json_file(path)
    if not file.is_file():
        raise not_found("file", file, f"a file of {what}")
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise WeightsMismatchError(f"{file} is not {what}: it has more than {MAX_JSON_BYTES // 2**20} MiB")
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsMismatchError(f"{file} is not {what}: {str(error)[:200]}") from error
    *numbers, text = names
    if not isinstance(values, dict) or not set(numbers) <= set(values) <= set(names):
        keys = sorted(map(str, values))[:8] if isinstance(values, dict) else type(values).__name__
        raise WeightsMismatchError(f"{file} is not {what}: expected {list(names)}, found {keys}")
    if not isinstance(values.get(text, ""), str):
        raise WeightsMismatchError(f"{file} is not {what}: {text} must be text")
    for name in numbers:
        try:
            finite = bool(np.isfinite(np.asarray(values[name], dtype="float64")).all())
        except (TypeError, ValueError, OverflowError) as error:
            raise WeightsMismatchError(f"{file} is not {what}: {name} must be numbers") from error
        if not finite:
            raise WeightsMismatchError(f"{file} is damaged: {name} are not all finite")
    return values


def _json_file(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be text or a path, got {type(path).__name__}")
    return local_path(os.fsdecode(path))
