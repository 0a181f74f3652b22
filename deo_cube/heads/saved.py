"""Heads on disk: one safetensors file, numbers in its tensors and everything else as JSON in its header.

Reading parses numbers and text and executes nothing: no pickle, no class named in the file is looked up, only the kinds
listed in `deo_cube.heads.head.KINDS` exist.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, InputNotFoundError, StorageError, WeightsMismatchError
from deo_cube.paths import local_path

__all__ = ["read", "write"]

Array = NDArray[Any]

KEY = "deo_cube.head"
FORMAT = 1
MOST_BYTES = 4 * 2**30
"""Of a file: more than the largest head that can be fitted."""


def write(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Write a head; ``.safetensors`` is added to a name without suffix. Whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    path = local_path(path)
    if not path.name:
        raise ArgumentError(f"path must name the file of a head, got {str(path)!r}")
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    text = json.dumps({"format": FORMAT} | dict(facts), sort_keys=True)
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, metadata={KEY: text})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"the head cannot be written to {path}: {error}") from error
    return path


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Facts and tensors of a head.

    Raises
    ------
    InputNotFoundError
        If there is no such file.
    WeightsMismatchError
        If it is no safetensors file, no head, larger than any, or of a later format.
    StorageError
        If it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = local_path(path)
    if not path.exists() and path.with_name(path.name + ".safetensors").exists():
        path = path.with_name(path.name + ".safetensors")
    if path.is_dir():
        raise InputNotFoundError(f"{path} is a folder: expected the .safetensors file that head.save(path) writes")
    if not path.is_file():
        raise InputNotFoundError(f"no head at {path}: wanted the .safetensors file that head.save(path) writes")
    size = path.stat().st_size
    if size > MOST_BYTES:
        raise WeightsMismatchError(f"{path} has {size / 2**30:.1f} GiB: a head has at most {MOST_BYTES / 2**30:g}")
    try:
        with safe_open(path, framework="numpy") as f:
            text = (f.metadata() or {}).get(KEY)
            tensors = {k: f.get_tensor(k) for k in f.keys()}
    except TypeError as error:
        # A dtype that NumPy does not have.
        raise WeightsMismatchError(f"{path} holds numbers that no head has: {error}") from error
    except SafetensorError as error:
        raise WeightsMismatchError(
            f"{path} is no safetensors file ({error}): heads are never read from pickles"
        ) from error
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    if text is None:
        raise WeightsMismatchError(f"{path} holds tensors but no head: its header has no {KEY!r}")
    try:
        facts = json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits, lists in lists
        raise WeightsMismatchError(f"{path}: the header of the head is no JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise WeightsMismatchError(f"{path} has format {found}, this version reads {FORMAT}: update deo_cube")
    other = sorted(k for k, v in tensors.items() if v.dtype.kind not in "biuf")
    if other:
        raise WeightsMismatchError(f"{path} holds numbers that no head has, in {other[:3]}")
    wild = sorted(k for k, v in tensors.items() if not np.isfinite(v).all())
    if wild:
        raise WeightsMismatchError(f"{path} is damaged: there are numbers that are not finite in {wild}")
    return facts, tensors
