"""Names and colours that a raster carries for its classes: CF flags, GDAL's category names and colour tables."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Legend", "of_array", "of_file"]


@dataclass(frozen=True)
class Legend:
    """Names and colours (``#rrggbb``) of a raster's values.

    Parameters
    ----------
    names, colors : mapping
        By value.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)


def of_array(attrs: Mapping[Any, Any]) -> Legend:
    """CF flags (`flag_values`, `flag_meanings`, and `flag_colors` beside them) as xarray or a file's tags hold them.

    Flags that do not fit each other are no legend.
    """
    values = _whole(attrs.get("flag_values"))
    meanings = _words(attrs.get("flag_meanings"))
    colors = _words(attrs.get("flag_colors"))
    names = dict(zip(values, meanings, strict=True)) if len(values) == len(meanings) else {}
    shades = dict(zip(values, colors, strict=True)) if len(values) == len(colors) else {}
    return Legend(names, {k: c for k, c in shades.items() if re.fullmatch(r"#[0-9a-fA-F]{6}", c)})


def of_file(raster: Any) -> Legend:
    """Legend of an open rasterio dataset: of its tags, else GDAL's attribute table, category names and colour table."""
    tags = of_array({**raster.tags(), **raster.tags(1)})
    names, colors = dict(tags.names), dict(tags.colors)
    described = _as_vrt(raster)
    if described is not None:
        rows, shades = _attribute_table(described.find("GDALRasterAttributeTable"))
        listed = [(c.text or "").strip() for c in described.findall("CategoryNames/Category")]
        names = {code: name for code, name in enumerate(listed) if name} | rows | names
        colors = shades | colors
    try:
        table = raster.colormap(1)
    except ValueError:
        table = {}
    return Legend(names, {code: f"#{r:02x}{g:02x}{b:02x}" for code, (r, g, b, *_) in table.items()} | colors)


def _as_vrt(raster: Any) -> Any:
    """The first band as GDAL describes it in XML: the only place where rasterio shows category names."""
    from xml.etree import ElementTree

    import rasterio.shutil
    from rasterio.errors import RasterioError
    from rasterio.io import MemoryFile

    try:
        with MemoryFile(ext=".vrt") as memory:
            rasterio.shutil.copy(raster, memory.name, driver="VRT")
            text = bytes(memory.getbuffer()).decode("utf-8", errors="replace")
        return ElementTree.fromstring(text).find("./VRTRasterBand[@band='1']")
    except (RasterioError, ElementTree.ParseError, ValueError):
        return None


_VALUE, _NAME, _RED, _GREEN, _BLUE = "5", "2", "6", "7", "8"
"""How GDAL writes the usage of a column of an attribute table."""


def _attribute_table(table: Any) -> tuple[dict[int, str], dict[int, str]]:
    if table is None:
        return {}, {}
    fields = [(f.findtext("Name", "").lower(), f.findtext("Usage", "")) for f in table.findall("FieldDefn")]
    usage = [u for _, u in fields]
    value = next((i for i, (name, u) in enumerate(fields) if u == _VALUE or name == "value"), None)
    if value is None:
        return {}, {}
    names, colors = {}, {}
    for row in table.findall("Row"):
        cells = [(c.text or "").strip() for c in row.findall("F")]
        try:
            code = float(cells[value])
            if not code.is_integer():
                continue
            if _NAME in usage and cells[usage.index(_NAME)]:
                names[int(code)] = cells[usage.index(_NAME)]
            if {_RED, _GREEN, _BLUE} <= set(usage):
                r, g, b = (min(max(int(float(cells[usage.index(u)])), 0), 255) for u in (_RED, _GREEN, _BLUE))
                colors[int(code)] = f"#{r:02x}{g:02x}{b:02x}"
        except (ValueError, OverflowError, IndexError):
            continue
    return names, colors


def _whole(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, str):
        found = re.findall(r"-?\d+", value)
    else:
        found = np.atleast_1d(np.asarray(value, dtype=object)).ravel().tolist()
    try:
        return [int(v) for v in found]
    except (TypeError, ValueError):
        return []


def _words(value: Any) -> list[str]:
    """Words apart by blanks, or a list (also as the JSON that tags hold)."""
    if value is None:
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                return [str(v) for v in json.loads(value)]
            except json.JSONDecodeError:
                return []
        return value.split()
    return [str(v) for v in np.atleast_1d(np.asarray(value, dtype=object)).ravel()]
