"""Convert single values to plain Python types, text and JSON. Equal values give equal text: no memory addresses."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["is_missing", "jsonable", "plain", "text", "writable"]


def is_missing(value: Any) -> bool:
    """Return whether a label is None, NaN, NA or NaT."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(value))
    return isinstance(value, (float, np.floating)) and bool(np.isnan(value))


def plain(value: Any) -> Any:
    """Convert a NumPy value to a Python one, and bytes to text."""
    if isinstance(value, (np.datetime64, np.timedelta64)):
        return pd.NaT if np.isnat(value) else value if isinstance(value, np.timedelta64) else pd.Timestamp(value)
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return value


def text(value: Any) -> str | None:
    """Return a value as text: JSON for containers, empty if missing; None where text does not hold all of it."""
    if isinstance(value, (Mapping, list, tuple, set, frozenset, np.ndarray)):
        return _json(value)
    if isinstance(value, dt.date):
        return value.isoformat()
    if is_missing(value) or isinstance(value, (str, int, float, complex, pd.Period, pd.Interval, dt.timedelta)):
        return writable("" if is_missing(value) else str(value))
    return str(value) if _is_text_complete(value) else None


def _is_text_complete(value: Any) -> bool:
    """Return whether text holds all of a value: decimals, fractions, UUIDs, paths; not arbitrary objects."""
    module = type(value).__module__.partition(".")[0]
    return module in ("decimal", "fractions", "uuid", "pathlib", "ipaddress", "cftime")


def writable(words: str) -> str:
    """Return text as valid UTF-8."""
    return words.encode("utf-8", "replace").decode("utf-8")


def _json(value: Any) -> str | None:
    try:
        return json.dumps(jsonable(value), ensure_ascii=True, sort_keys=True)
    except (TypeError, ValueError, RecursionError):
        return None


def jsonable(value: Any) -> Any:
    """Convert a value to types of JSON.

    Raises
    ------
    TypeError
        If a part of it cannot be converted.
    """
    value = plain(value)
    if value is None or value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {k if isinstance(k, str) else str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(v) for v in value), key=str)
    if isinstance(value, (list, tuple, np.ndarray)):
        return [jsonable(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    words = text(value)
    if words is None:
        raise TypeError(f"{type(value).__name__} has no form in JSON")
    return words
