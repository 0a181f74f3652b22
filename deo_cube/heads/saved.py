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

from deo_cube.errors import InputNotFoundError, WeightsMismatchError

__all__ = ["read", "write"]

Array = NDArray[Any]

KEY = "deo_cube.head"
FORMAT = 1


def write(path: str | Path, facts: Mapping[str, Any], tensors: Mapping[str, Array]) -> Path:
    """Write a head; ``.safetensors`` is added to a name without suffix. Whole or not at all."""
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        path = path.with_name(path.name + ".safetensors")
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format": FORMAT} | dict(facts), sort_keys=True)
    part = path.with_name(path.name + ".part")
    save_file({k: np.ascontiguousarray(v) for k, v in tensors.items()}, part, metadata={KEY: text})
    part.replace(path)
    return path


def read(path: str | Path) -> tuple[dict[str, Any], dict[str, Array]]:
    """Facts and tensors of a head.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is no safetensors file, no head, or of a later format.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.exists() and path.with_name(path.name + ".safetensors").exists():
        path = path.with_name(path.name + ".safetensors")
    if not path.is_file():
        raise InputNotFoundError(f"no head at {path}: wanted the .safetensors file that head.save(path) writes")
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
    if text is None:
        raise WeightsMismatchError(f"{path} holds tensors but no head: its header has no {KEY!r}")
    try:
        facts = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsMismatchError(f"{path}: the header of the head is no JSON ({error})") from error
    if not isinstance(facts, dict) or facts.get("format") != FORMAT:
        found = facts.get("format") if isinstance(facts, dict) else None
        raise WeightsMismatchError(f"{path} has format {found}, this version reads {FORMAT}: update deo_cube")
    wild = sorted(k for k, v in tensors.items() if not np.isfinite(v).all())
    if wild:
        raise WeightsMismatchError(f"{path} is damaged: there are numbers that are not finite in {wild}")
    return facts, tensors
