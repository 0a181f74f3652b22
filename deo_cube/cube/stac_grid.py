"""Choose the grid of a cube that is loaded from STAC items: from the arguments of the call, the items and their files.

Catalogues state the CRS as a code, a number, WKT or PROJJSON, on the item or on each asset. Some state a code that does
not exist, or nothing. What cannot be read from the item is read from the header of one file per item, since the file
decides where its pixels are. An item whose statements contradict each other, or its file, is refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import shapely
import xarray as xr
from affine import Affine
from odc.geo import Resolution
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox

from deo_cube.arguments import number
from deo_cube.cube.footprint import (
    Window,
    item_window,
    lonlat_bbox,
    lonlat_ranges,
    place_geometry,
    touches,
)
from deo_cube.cube.georeference import crs_name, geobox, read_crs, same_crs
from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.errors import ArgumentError, DeoCubeError, MissingCRSError

if TYPE_CHECKING:
    import pystac

__all__ = [
    "Placement",
    "check_overlap",
    "check_one_crs",
    "check_within_180",
    "no_overlap_error",
    "placement",
    "PROJECTION_EXTENSION",
    "Header",
    "complete_grids",
    "grid_of_item",
    "set_grid",
    "stated_crs",
]

# --- the arguments of the call ---


#: Arguments that name a place, at most one (or one pair) at a time.
_PLACES = ("bbox", "geobox", "like", "geopolygon", "intersects", "lon", "lat", "x", "y")


@dataclass(frozen=True)
class Placement:
    """The place named by the arguments of a call, as odc-stac takes it."""

    arguments: Mapping[str, Any]
    """For `odc.stac.load`: some of geobox, geopolygon, crs, resolution, x, y."""
    crs: Any = None
    """CRS of the output, or "utm"; None where the items decide."""
    named: str = ""
    """The argument that names the place, for messages; empty for everything that the items cover."""
    window: Window | None = None
    """In degrees, if the argument was."""
    turn: float = 0.0
    """Degrees to add to the longitudes of the result, for a geobox in 0..360."""

    @property
    def exact(self) -> bool:
        """True if a geobox was passed."""
        return "geobox" in self.arguments

    @property
    def placed(self) -> bool:
        """True if the call names CRS and resolution, so that items need not state theirs."""
        return self.exact or ("crs" in self.arguments and "resolution" in self.arguments)


def placement(passed: Mapping[str, Any]) -> Placement:
    """Check the arguments that name place, CRS and resolution, and convert them to one form.

    Parameters
    ----------
    passed : mapping
        Of `bbox`, `geobox`, `like`, `geopolygon`, `intersects`, `lon`, `lat`, `x`, `y`, `crs`, `resolution`; None is
        the same as absent.

    Raises
    ------
    ArgumentError
        For unreadable values, and for two places.
    """
    passed = {k: v for k, v in passed.items() if v is not None}
    places = [k for k in _PLACES if k in passed]
    if len(places) > 1 and places not in (["lon", "lat"], ["x", "y"]):
        raise ArgumentError(f"{' and '.join(places)} each name a place: pass one of them")
    if len(places) == 1 and places[0] in ("lon", "lat", "x", "y"):
        other = {"lon": "lat", "lat": "lon", "x": "y", "y": "x"}[places[0]]
        raise ArgumentError(f"{places[0]} needs {other} beside it")
    arguments: dict[str, Any] = {k: passed[k] for k in ("resolution", "x", "y") if k in passed}
    if "resolution" in passed:
        _check_resolution(passed["resolution"])
    crs = passed.get("crs")
    if crs is not None:
        crs = "utm" if isinstance(crs, str) and crs.lower().startswith("utm") else _crs_of(crs)
        arguments["crs"] = passed["crs"] if crs == "utm" else crs
    if not places:
        return Placement(arguments, crs)
    named = "lon, lat" if places[0] == "lon" else "x, y" if places[0] == "x" else places[0]
    if named in ("geobox", "like"):
        if extra := {"crs", "resolution"} & passed.keys():
            raise ArgumentError(f"{named} has CRS and resolution already: drop {' and '.join(sorted(extra))}")
        box, turn = _geobox_of(passed[named], named)
        return Placement({"geobox": box}, box.crs, named, turn=turn)
    if named == "x, y":
        if crs is None:
            raise ArgumentError("x and y are coordinates of the output: pass their CRS too, crs='EPSG:...'")
        return Placement(arguments, crs, named)
    window = None
    if named in ("bbox", "lon, lat"):
        window = lonlat_bbox(passed["bbox"]) if named == "bbox" else lonlat_ranges(passed["lon"], passed["lat"])
        place = place_geometry(shapely.box(*window), name=named)
    else:
        place = place_geometry(passed[named], name=named)
        if place.crs is not None and place.crs.geographic:
            window = item_window(None, place.geom)
    return Placement({**arguments, "geopolygon": place}, crs, named, window)


def _check_resolution(resolution: Any) -> None:
    """Refuse a resolution that is neither a pixel size nor odc-geo's pair of two."""
    if not isinstance(resolution, Resolution):
        number("resolution", resolution, above=0)


def _crs_of(crs: Any) -> CRS:
    try:
        return read_crs(crs)
    except ValueError as error:
        raise ArgumentError(f"crs={crs!r} is not a CRS; pass a code, crs='EPSG:32633', WKT, or a CRS object") from error


def _geobox_of(value: Any, named: str) -> tuple[GeoBox, float]:
    """Return the geobox, within -180..180 if it is in degrees, and the degrees by which it was moved."""
    if isinstance(value, GeoBox):
        box = value
    elif isinstance(value, xr.Dataset | xr.DataArray):
        try:
            box = geobox(value)
        except DeoCubeError as error:
            raise ArgumentError(f"{named}: {error}") from error
    else:
        raise ArgumentError(f"{named} must be an odc.geo.geobox.GeoBox or a cube, got {type(value).__name__}")
    if box.crs is None:
        raise MissingCRSError(f"{named} has no CRS: GeoBox(shape, affine, 'EPSG:...')")
    if not box.crs.geographic or box.boundingbox.left < 180 - abs(box.resolution.x):
        return box, 0.0
    turn = 360.0
    return GeoBox(box.shape, Affine.translation(-turn, 0) * box.affine, box.crs), turn


def check_overlap(items: Sequence[pystac.Item], place: Placement) -> None:
    """Refuse a window in degrees that touches the footprint of no item."""
    if place.window is None:
        return
    boxes = [(i, w) for i in items if (w := item_window(i.bbox, i.geometry)) is not None]
    if len(boxes) == len(items) and not any(touches(place.window, w) for _, w in boxes):
        raise no_overlap_error(len(items), place, f"; the first covers {boxes[0][0].bbox or boxes[0][1]}")


def no_overlap_error(count: int, place: Placement, more: str = "") -> ArgumentError:
    """Return the error for a place without pixels of any item."""
    where = f" {place.window}" if place.window is not None else ""
    return ArgumentError(f"{place.named or 'the cube'}{where} touches none of the {count} items{more}")


def check_one_crs(grids: Sequence[GeoBox | None], place: Placement) -> None:
    """Refuse items in several CRSs where the call names none, and a CRS of other units without a resolution."""
    if place.exact:
        return
    known = Counter(g.crs for g in grids if g is not None)
    _check_units(place.crs or (next(iter(known)) if len(known) == 1 else None), place.arguments.get("resolution"))
    if place.crs is None:
        if len(known) > 1:
            counts = ", ".join(f"{crs_name(c)} ({n} items)" for c, n in known.most_common())
            raise MissingCRSError(
                f"the items are in several CRSs: {counts}. Choose one, crs={_text(known.most_common(1)[0][0])!r} "
                "resolution=10, or load each zone separately, which keeps its pixels unchanged"
            )
    elif "resolution" not in place.arguments and place.crs != "utm":
        units = {c.units for c in known}
        if units != {place.crs.units}:
            raise ArgumentError(
                f"crs={_text(place.crs)!r} has other units than the items: pass resolution= in units of that CRS"
            )


def _check_units(crs: Any, resolution: Any) -> None:
    """Refuse metres passed as degrees, and degrees passed as metres."""
    if crs is None or resolution is None:
        return
    size = abs(float(getattr(resolution, "x", resolution)))
    degrees = crs != "utm" and crs.geographic
    if (degrees and size >= 1) or (not degrees and size < 0.01):
        unit, other, good = ("degrees", "metres", "0.0001") if degrees else ("metres", "degrees", "10")
        raise ArgumentError(
            f"resolution={size:g} is in units of {crs if crs == 'utm' else crs_name(crs)}, which are {unit}, and looks "
            f"like {other}: pass resolution={good} or the like"
        )


def _text(crs: CRS) -> str:
    return f"EPSG:{crs.epsg}" if crs.epsg else crs.to_wkt()


def check_within_180(box: GeoBox, place: Placement) -> None:
    """Refuse an output grid in degrees across the antimeridian, where the pixels beyond it would be missing."""
    if not box.crs.geographic:
        return
    bounds, pixel = box.boundingbox, abs(box.resolution.x)
    if bounds.left < -180 - pixel or bounds.right > 180 + pixel:
        lon, lat = (bounds.left + bounds.right) / 2, (bounds.bottom + bounds.top) / 2
        zone = int((lon + 180) % 360 // 6) + 1
        raise ArgumentError(
            f"the output runs from {bounds.left:g} to {bounds.right:g} degrees of longitude, across 180, where "
            f"{crs_name(box.crs)} ends. Load it in UTM: crs='EPSG:{(32600 if lat >= 0 else 32700) + zone}', "
            "resolution=10" + (f" and bbox={_degrees(bounds)} instead of {place.named}=" if place.exact else "")
        )


def _degrees(bounds: Any) -> str:
    return f"({', '.join(f'{v:.6g}' for v in (bounds.left, bounds.bottom, bounds.right, bounds.top))})"


# --- the items and their files ---


PROJECTION_EXTENSION = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
_CRS_KEYS = ("proj:code", "proj:epsg", "proj:wkt2", "proj:projjson")

#: Number of headers that are read at once.
_AT_ONCE = 16


@dataclass(frozen=True)
class Header:
    """Georeference in the header of a raster file; `crs` and `transform` are None where it has none."""

    crs: CRS | None
    transform: Affine | None
    shape: tuple[int, int]


@dataclass(frozen=True)
class Stated:
    """The CRS that an item states, and the statements that cannot be read."""

    crs: CRS | None
    unreadable: tuple[str, ...] = ()


def stated_crs(item: pystac.Item, asset: pystac.Asset) -> Stated:
    """Read the CRS stated for an asset, on the asset itself or else on its item.

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
                readable[key] = _parsed_crs(value) if isinstance(value, str | int) else read_crs(_decoded(value))
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
def _parsed_crs(value: str | int) -> CRS:
    return read_crs(_decoded(value))


def _decoded(value: Any) -> Any:
    """Return PROJJSON that was written as text, or the value of a list of one."""
    if isinstance(value, list) and len(value) == 1:
        return value[0]
    return json.loads(value) if isinstance(value, str) and value.lstrip().startswith("{") else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def grid_of_item(item: pystac.Item, assets: Mapping[str, pystac.Asset]) -> GeoBox | None:
    """Return the grid of the finest asset whose CRS, transform and shape are all stated, or None."""
    grids = []
    for asset in assets.values():
        crs = stated_crs(item, asset).crs
        transform, shape = (_field(item, asset, key) for key in ("proj:transform", "proj:shape"))
        affine = _affine(transform)
        if crs is None or affine is None or not _is_shape(shape):
            continue
        grids.append(GeoBox((int(shape[0]), int(shape[1])), affine, crs))
    return min(grids, key=lambda g: abs(g.transform.a), default=None)


def _field(item: pystac.Item, asset: pystac.Asset, key: str) -> Any:
    return asset.extra_fields.get(key) or item.properties.get(key)


def _affine(transform: Any) -> Affine | None:
    """Read a north-up or south-up transform of six or nine numbers; None for any other."""
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
        Whether the call names CRS and resolution, so that a footprint is enough for an item.
    bounded : bool
        Whether the call names the place too. Footprints then only select the items, and no header is read.

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
    incomplete = [k for k, grid in enumerate(grids) if grid is None]
    if not incomplete:
        return list(grids)
    footprints = all(items[k].geometry is not None or items[k].bbox is not None for k in incomplete)
    if placed and bounded and footprints and len(incomplete) == len(items):
        return [None] * len(items)

    def grid_of(k: int) -> GeoBox | str:
        return _from_header(items[k], assets[k], read_header)

    with ThreadPoolExecutor(min(_AT_ONCE, len(incomplete))) as pool:
        header_grids = list(pool.map(grid_of, incomplete))
    reasons: dict[str, int] = {}
    for k, grid in zip(incomplete, header_grids, strict=True):
        if isinstance(grid, str):
            reasons[grid] = reasons.get(grid, 0) + 1
        else:
            grids[k] = grid
    if not reasons:
        return list(grids)
    if placed and footprints:
        return [None] * len(items)
    reason = next(iter(reasons))
    count = sum(reasons.values())
    raise MissingCRSError(
        f"{count} of {len(items)} items do not state their CRS and grid: {reason}. "
        + (
            "Pass crs='EPSG:...' and resolution=10 (in units of that CRS), or geobox="
            if footprints
            else "Give each item a footprint (geometry or bbox), and pass crs='EPSG:...' and resolution=10"
        )
    )


def _from_header(
    item: pystac.Item, assets: Mapping[str, pystac.Asset], read_header: Callable[[str], Header]
) -> GeoBox | str:
    """Return the grid of an item from the header of its finest file, or the reason why there is none."""
    band, asset = min(assets.items(), key=lambda pair: SENTINEL2[pair[0]].gsd if pair[0] in SENTINEL2 else 20)
    stated = stated_crs(item, asset)
    statement = f"item {item.id} states " + (
        f"{', '.join(stated.unreadable)}, which cannot be read"
        if stated.unreadable
        else "a CRS but no proj:transform and proj:shape"
        if stated.crs is not None
        else "no CRS (proj:code)"
    )
    try:
        header = read_header(asset.href)
    except OSError as error:
        return f"{statement}, and the header of {asset.href} cannot be read ({str(error)[:200]})"
    if header.crs is not None and stated.crs is not None and not same_crs(header.crs, stated.crs):
        code = crs_name(header.crs)
        raise MissingCRSError(
            f"item {item.id} states {crs_name(stated.crs)}, and its file {asset.href} {code}. If the file is right, "
            f"correct the item: item.properties['proj:code'] = {code!r}"
        )
    crs = header.crs or stated.crs
    if crs is None:
        return (
            f"{statement}, and neither does the header of {asset.href}. State the one of its pixels, "
            "item.properties['proj:code'] = 'EPSG:...'"
            + ("" if header.transform is not None else ", with proj:transform and proj:shape")
        )
    if header.transform is None:
        return f"{statement}, and {asset.href} has no georeference: add proj:code, proj:transform, proj:shape to {band}"
    return GeoBox(header.shape, header.transform, crs)


def set_grid(item: pystac.Item, grid: GeoBox | None) -> None:
    """Write `grid` into an item and its assets as odc-stac reads it; None removes the statements.

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
