"""The grid of a STAC item's files: CRS, transform and shape, after the projection extension or the files' headers.

Catalogues state the CRS as a code, a number, WKT or PROJJSON, on the item or on each asset; some state a code that does
not exist, or nothing. What cannot be read from the item is read from the header of one file per item, since the file
decides where its pixels are. An item whose statements contradict each other, or its file, is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from affine import Affine
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import crs_name, read_crs, same_crs
from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.errors import MissingCRSError

if TYPE_CHECKING:
    import pystac

__all__ = ["PROJECTION_EXTENSION", "Header", "complete_grids", "grid_of_item", "set_grid", "stated_crs"]

PROJECTION_EXTENSION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_CRS_KEYS = ("proj:code", "proj:epsg", "proj:wkt2", "proj:projjson")

#: Headers that are read at a time.
_AT_ONCE = 16


@dataclass(frozen=True)
class Header:
    """What the header of a raster file says of its place; `crs` and `transform` are None where it says nothing."""

    crs: CRS | None
    transform: Affine | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Stated:
    """The CRS that an item states, and the statements that cannot be read."""

    crs: CRS | None
    unreadable: tuple[str, ...] = ()


def stated_crs(item: pystac.Item, asset: pystac.Asset) -> Stated:
    """Read the CRS that is stated for an asset, on the asset itself or else on its item.

    Raises
    ------
    MissingCRSError
        Where two readable statements are of different CRSs.
    """
    unreadable: list[str] = []
    for fields in (asset.extra_fields, item.properties):
        readable: dict[str, CRS] = {}
        for key in _CRS_KEYS:
            value = fields.get(key)
            if value is None or value == "":
                continue
            try:
                readable[key] = _read(value) if isinstance(value, str | int) else read_crs(_loaded(value))
            except ValueError:
                unreadable.append(f"{key} {_short(value)}")
        first = next(iter(readable.items()), None)
        if first is None:
            continue
        for key, crs in readable.items():
            if not same_crs(crs, first[1]):
                raise MissingCRSError(
                    f"item {item.id} states two CRSs: {first[0]} is {crs_name(first[1])}, {key} is {crs_name(crs)}. "
                    f"Delete the wrong one: del item.properties[{key!r}]"
                )
        return Stated(first[1], tuple(unreadable))
    return Stated(None, tuple(unreadable))


@lru_cache(maxsize=256)
def _read(value: str | int) -> CRS:
    return read_crs(_loaded(value))


def _loaded(value: Any) -> Any:
    """PROJJSON that was written as text, and a list of one, as what they hold."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def grid_of_item(item: pystac.Item, assets: Mapping[str, pystac.Asset]) -> GeoBox | None:
    """Grid of the finest asset whose CRS, transform and shape are all stated; None where there is none such."""
    grids = []
    for asset in assets.values():
        crs = stated_crs(item, asset).crs
        transform, shape = (_stated(item, asset, key) for key in ("proj:transform", "proj:shape"))
        affine = _affine(transform)
        if crs is None or affine is None or not _is_shape(shape):
            continue
        grids.append(GeoBox((int(shape[0]), int(shape[1])), affine, crs))
    return min(grids, key=lambda g: abs(g.transform.a), default=None)


def _stated(item: pystac.Item, asset: pystac.Asset, key: str) -> Any:
    return asset.extra_fields.get(key) or item.properties.get(key)


def _affine(transform: Any) -> Affine | None:
    """A north-up or south-up transform of six or nine numbers; None for any other."""
    try:
        numbers = [float(v) for v in transform]
    except (TypeError, ValueError):
        return None
    # GDAL's order of the six numbers puts the origin first, which reads as a rotation here.
    upright = len(numbers) in (6, 9) and all(map(math.isfinite, numbers)) and not numbers[1] and not numbers[3]
    return Affine(*numbers[:6]) if upright and numbers[0] and numbers[4] else None


def _is_shape(shape: Any) -> bool:
    return isinstance(shape, Sequence) and len(shape) == 2 and all(isinstance(n, int | float) and n >= 1 for n in shape)


def complete_grids(
    items: Sequence[pystac.Item],
    assets: Sequence[Mapping[str, pystac.Asset]],
    read_header: Callable[[str], Header],
    *,
    placed: bool,
    bounded: bool,
) -> list[GeoBox | None]:
    """Find the grid of each item: as stated, else from the header of one of its files.

    Parameters
    ----------
    items, assets : sequences of equal length
        Each item with the assets that are loaded from it, by band, with absolute hrefs.
    read_header : callable
        From an href to its `Header`; raises OSError for a file that cannot be read.
    placed : bool
        Whether the call names CRS and resolution, so that items may do with their footprint.
    bounded : bool
        Whether the call names the place too, so that footprints decide nothing but which items are read: then no
        header is read.

    Returns
    -------
    list of GeoBox or None
        None for all items alike, if `placed` and one of them has no grid but a footprint.

    Raises
    ------
    MissingCRSError
        For items without a grid, where the call does not name CRS and resolution; for an item that contradicts itself
        or the header of its file.
    """
    grids = [grid_of_item(item, own) for item, own in zip(items, assets, strict=True)]
    lacking = [k for k, grid in enumerate(grids) if grid is None]
    if not lacking:
        return list(grids)
    footprints = all(items[k].geometry is not None or items[k].bbox is not None for k in lacking)
    if placed and bounded and footprints and len(lacking) == len(items):
        return [None] * len(items)

    def look(k: int) -> GeoBox | str:
        return _from_header(items[k], assets[k], read_header)

    with ThreadPoolExecutor(min(_AT_ONCE, len(lacking))) as pool:
        looked = list(pool.map(look, lacking))
    reasons: dict[str, int] = {}
    for k, grid in zip(lacking, looked, strict=True):
        if isinstance(grid, str):
            reasons[grid] = reasons.get(grid, 0) + 1
        else:
            grids[k] = grid
    if not reasons:
        return list(grids)
    if placed and footprints:
        return [None] * len(items)
    why = next(iter(reasons))
    count = sum(reasons.values())
    raise MissingCRSError(
        f"{count} of {len(items)} items do not state their CRS and grid: {why}. "
        + (
            "Pass crs='EPSG:...' and resolution=10 (in units of that CRS), or geobox="
            if footprints
            else "Give each item a footprint (geometry or bbox), and pass crs='EPSG:...' and resolution=10"
        )
    )


def _from_header(
    item: pystac.Item, assets: Mapping[str, pystac.Asset], read_header: Callable[[str], Header]
) -> GeoBox | str:
    """Grid of an item from the header of its finest file, or the reason why there is none."""
    band, asset = min(assets.items(), key=lambda pair: SENTINEL2[pair[0]].gsd if pair[0] in SENTINEL2 else 20)
    stated = stated_crs(item, asset)
    told = f"item {item.id} states " + (
        f"{', '.join(stated.unreadable)}, which cannot be read"
        if stated.unreadable
        else "a CRS but no proj:transform and proj:shape"
        if stated.crs is not None
        else "no CRS (proj:code)"
    )
    try:
        header = read_header(asset.href)
    except OSError as error:
        return f"{told}, and the header of {asset.href} cannot be read ({str(error)[:200]})"
    if header.crs is not None and stated.crs is not None and not same_crs(header.crs, stated.crs):
        code = crs_name(header.crs)
        raise MissingCRSError(
            f"item {item.id} states {crs_name(stated.crs)}, and its file {asset.href} {code}. If the file is right, "
            f"correct the item: item.properties['proj:code'] = {code!r}"
        )
    crs = header.crs or stated.crs
    if crs is None:
        return (
            f"{told}, and neither does the header of {asset.href}. State the one of its pixels, "
            "item.properties['proj:code'] = 'EPSG:...'"
            + ("" if header.transform is not None else ", with proj:transform and proj:shape")
        )
    if header.transform is None:
        return f"{told}, and {asset.href} is not georeferenced: add proj:code, proj:transform and proj:shape to {band}"
    return GeoBox(header.shape, header.transform, crs)


def set_grid(item: pystac.Item, grid: GeoBox | None) -> None:
    """Write `grid` into an item and its assets as odc-stac reads it; None removes what is stated.

    All assets of an item get one grid, the finest: it decides the footprint and the default resolution, while pixels
    are placed by the header of each file. The item's properties stay, for `groupby`.
    """
    item.stac_extensions = [e for e in item.stac_extensions if "/projection/" not in e]
    for asset in item.assets.values():
        for key in [k for k in asset.extra_fields if k.startswith("proj:")]:
            del asset.extra_fields[key]
    if grid is None:
        return
    item.stac_extensions.append(PROJECTION_EXTENSION)
    for asset in item.assets.values():
        asset.extra_fields |= {
            "proj:shape": list(grid.shape),
            "proj:transform": list(grid.transform)[:6],
            # A code or WKT. odc-stac takes either from here, and looks no further, at the item's own statements.
            "proj:code": str(grid.crs),
        }
