"""Codes, names and colours of the classes of a map, as its CF flags state them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

__all__ = ["Categories", "own_classes", "read_categories"]


@dataclass(frozen=True)
class Categories:
    """The classes that a map states of itself.

    Parameters
    ----------
    codes : tuple of int
        Values in the map.
    names : tuple of str
        One name per code.
    colors : tuple of str
        One colour per code, ``#rrggbb``; empty where the map states none.
    """

    codes: tuple[int, ...]
    names: tuple[str, ...]
    colors: tuple[str, ...] = ()

    def rgba(self) -> dict[int, tuple[int, int, int, int]]:
        """Return the colour of each code, 0 to 255; empty where the map states none."""
        if not self.colors:
            return {}
        return {
            code: (int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16), 255)
            for code, color in zip(self.codes, self.colors, strict=True)
        }


def read_categories(array: xr.DataArray | Mapping[Any, Any]) -> Categories | None:
    """Return the classes of a map from ``flag_values``, ``flag_meanings`` and ``flag_colors``.

    Parameters
    ----------
    array : DataArray or mapping
        A map, or its attributes.

    Returns
    -------
    Categories or None
        None for a map of something else: without flags, with other counts of values and names, or of floats.
    """
    if isinstance(array, xr.DataArray) and array.dtype.kind not in "iu":
        return None
    attrs: Mapping[Any, Any] = array.attrs if isinstance(array, xr.DataArray) else array
    if "flag_values" not in attrs or "flag_meanings" not in attrs:
        return None
    try:
        codes = tuple(int(v) for v in np.atleast_1d(attrs["flag_values"]))
    except (TypeError, ValueError):
        return None
    names = tuple(str(attrs["flag_meanings"]).split())
    colors = tuple(str(attrs.get("flag_colors", "")).split())
    if len(names) != len(codes) or not codes:
        return None
    usable = len(colors) == len(codes) and all(re.fullmatch(r"#[0-9a-fA-F]{6}", c) for c in colors)
    return Categories(codes, names, colors if usable else ())


def own_classes(array: xr.DataArray) -> xr.DataArray:
    """Return a map with the classes that are its own, as the integers that a file holds; any other array as it is.

    xarray keeps attributes, so that ``classes == 3`` still states names for 0 and 1, which are other classes: a
    comparison has none. And it decodes classes to floats, NaN where there is none, when it opens a file of them.
    """
    if array.dtype.kind == "b":
        plain = array.copy(deep=False)
        plain.attrs = {k: v for k, v in array.attrs.items() if k not in (*_FLAGS, "_FillValue")}
        return plain
    stored = array.encoding.get("dtype")
    fill = array.encoding.get("_FillValue", array.encoding.get("missing_value"))
    if array.dtype.kind != "f" or not set(_FLAGS[:2]) <= set(array.attrs) or stored is None or fill is None:
        return array
    kind = np.dtype(stored)
    if kind.kind not in "iu" or not np.isfinite(fill):
        return array
    coded: xr.DataArray = array.fillna(fill).astype(kind)
    coded.attrs = dict(array.attrs) | {"_FillValue": kind.type(fill)}
    return coded


_FLAGS = ("flag_values", "flag_meanings", "flag_colors")
