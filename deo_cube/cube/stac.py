"""Load a cube from STAC items through odc-stac, with the offset of each item decided from its metadata."""

from __future__ import annotations

import contextlib
import difflib
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import xarray as xr
from pyproj.exceptions import ProjError

from deo_cube.constants import MODEL_BANDS, Attribute
from deo_cube.cube import georeference
from deo_cube.cube.boa_offset import Offset, decide_offset
from deo_cube.cube.footprint import footprint
from deo_cube.cube.hrefs import read_allow
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, level_of
from deo_cube.cube.stac_grid import (
    check_one_crs,
    check_overlap,
    check_within_180,
    complete_grids,
    no_overlap_error,
    placement,
    set_grid,
)
from deo_cube.cube.stac_items import (
    FMASK_FILL,
    classes_of_fmask,
    find_assets,
    product_of_item,
    read_items,
    resolve_href,
)
from deo_cube.cube.units import OFFSET_COORD, SCL_INVALID
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, MissingBandsError
from deo_cube.extras import require

if TYPE_CHECKING:
    import pystac

__all__ = ["DEFAULT_CHUNKS", "load_cube"]

DEFAULT_CHUNKS = {"x": 1024, "y": 1024}
"""2 MB per band in uint16, 21 MB for ten bands and a time step: a whole number of COG blocks (512 or 1024), and about
the blocks of `embed`, so that chunks shared by neighbouring blocks stay in memory between them. Smaller ones are
slower: chunks of 512 px took about twice the time of 1024."""

_COLLECTION = "deo_cube"
_BASELINE = "s2:processing_baseline"
_CLOUD = "eo:cloud_cover"


def load_cube(
    items: Any,
    *,
    model: str = "tiny",
    bbox: tuple[float, float, float, float] | None = None,
    intersects: Any = None,
    geobox: Any = None,
    crs: Any = None,
    resolution: Any = None,
    groupby: str | Callable[..., Any] = "solar_day",
    chunks: Mapping[str, int | str] | None = None,
    mask_clouds: bool = False,
    bands: Sequence[str] | Mapping[str, str] | None = None,
    resampling: str | Mapping[str, str] | None = None,
    offset: str | float = "auto",
    patch_url: Callable[[str], str] | Literal["auto"] | None = "auto",
    allow: str | Sequence[str] = (),
    **odc_options: Any,
) -> xr.Dataset:
    """Load Sentinel-2 STAC items as a lazy cube, named and annotated for `embed`.

    Only metadata are read at the call. Values are those of the files, except with `mask_clouds`, and where items with
    and without the +1000 of baseline 04.00 are combined in one time step: it is subtracted before mosaicking.

    Parameters
    ----------
    items : Item, dict, ItemCollection, FeatureCollection, list of these, pystac_client search, or path of a JSON file
    model : str
        For messages; all models that ship with the package take the same ten bands.
    bbox : (west, south, east, north), optional
        Degrees, in any convention: -180..180, 0..360, or west greater than east across the antimeridian.
    intersects : GeoJSON dict, shapely geometry or GeoDataFrame, optional
        Instead of `bbox`: the cube covers its bounds.
    geobox : odc.geo.geobox.GeoBox, optional
        Exact output grid.
    crs, resolution : optional
        Of the output. Default: the items' CRS, and the finest resolution of the bands that are loaded. Where items
        do not state these, the header of one file per item is read, unless both are given.
    groupby : str or callable
        Items of one time step: ``solar_day`` (default), ``time``, ``id``, a property, or a callable as in odc-stac.
    chunks : mapping, optional
        Default ``{"x": 1024, "y": 1024}``.
    mask_clouds : bool
        Set pixels whose SCL class hides the ground (0, 1, 3, 8, 9, 10) to nodata, lazily.
    bands : sequence of str, or mapping of str to str, optional
        Bands to load, or band to asset key. Default: the ten bands of the models, if the items have them.
    resampling : str or mapping, optional
        Default ``nearest``, which leaves the DN of the 20 m bands as they are; SCL is always nearest.
    offset : "auto" or float
        DN to add to all items (0 or -1000), if their metadata do not decide or are wrong.
    patch_url : callable, "auto" or None
        Applied to an href each time that it is opened, so that expired tokens are renewed; picklable for a
        cluster. "auto" signs files of the Planetary Computer (extra ``stac``), and nothing else.
    allow : str or sequence of str
        Hosts (``"localhost"``, ``"10.0.0.5"``), prefixes of URLs and folders (``"/data"``) that items from elsewhere
        may name. By default an item that came over the network names no file of this machine and no address inside its
        network, except on the host that it came from; files that come over the network are rasters that hold their own
        pixels, no VRTs.
    **odc_options
        For `odc.stac.load`, as ``like``, ``lon`` and ``lat``, ``x`` and ``y``, ``anchor``, ``dtype``.

    Returns
    -------
    Dataset
        Variables ``B02`` ... and ``SCL`` (time, y, x), on Dask, with attributes `units` and `nodata`; coordinates along
        time: ``boa_add_offset`` (DN to add; NaN where the items do not decide, which `embed` refuses without
        ``offset=``), ``s2:processing_baseline``, ``eo:cloud_cover`` (per cent, mean of the step's items), ``item_ids``.
        The attribute ``deo_cube:offset`` has the reasons of the offset.

    Raises
    ------
    MissingExtraError
        Without the extra ``stac``.
    ArgumentError
        For no items, a place that touches none, a CRS without resolution in other units than the items', or a grid in
        degrees across the antimeridian.
    ArgumentTypeError
        For arguments of the wrong type.
    MissingBandsError
        Where no item has any of the bands, or two assets are equally suitable for one.
    MissingCRSError
        For items in several CRSs or without a readable one, if the call names none; for items whose statements
        contradict each other or their files.
    InputNotFoundError
        For local assets that do not exist.
    HrefRefusedError
        For assets that their item may not name, see `allow`.
    """
    odc_stac = require("odc.stac", "pystac", extra="stac", purpose="load_cube")
    from deo_cube.cube.stac_reader import access  # late: rasterio and odc-loader are heavy

    if offset != "auto":
        offset = _offset(offset)
    place_options: dict[str, Any] = {
        k: odc_options.pop(k) for k in ("like", "geopolygon", "lon", "lat", "x", "y") if k in odc_options
    }
    _check_options(odc_options, resampling)
    place = placement(
        {
            **{"bbox": bbox, "intersects": intersects, "geobox": geobox, "crs": crs, "resolution": resolution},
            **place_options,
        }
    )
    selected = [(item, _select_assets(item, bands)) for item in read_items(items)]
    names = _loaded_bands(selected, bands, model)
    fmask = _holds_fmask(selected)
    check = patch_url is None or patch_url == "auto"
    trusted = read_allow(allow)
    # odc-stac takes dtypes from the first item, so the one with the most assets comes first.
    selected.sort(key=lambda pair: -len(pair[1]))
    plain = [_plain_item(item, assets, check=check, allow=trusted) for item, assets in selected]
    check_overlap([item for item, _ in selected], place)
    loaded = [_Loaded(item, _decide(item, assets, offset)) for item, assets in selected]
    driver = access((a.href for item in plain for a in item.assets.values()), patch_url, allow=trusted)
    grids = complete_grids(
        plain, [i.assets for i in plain], driver.header, placed=place.placed, bounded=bool(place.named)
    )
    for item, item_grid in zip(plain, grids, strict=True):
        set_grid(item, item_grid)
    check_one_crs(grids, place)

    def load(which: Sequence[int], group: Any, **options: Any) -> xr.Dataset:
        with _plain_errors(groupby=groupby, chunks=chunks):
            return odc_stac.load(  # type: ignore[no-any-return]
                [plain[i] for i in which],
                bands=names,
                groupby=group,
                chunks=dict(DEFAULT_CHUNKS if chunks is None else chunks),
                resampling=_resampling(resampling),
                driver=driver,
                stac_cfg=_config(FMASK_FILL if fmask else 0),
                debug=True,
                **options,
            )

    cube = load(range(len(plain)), groupby, **place.arguments, **odc_options)
    layout = cube.encoding.pop("debug")
    check_within_180(layout.gbt.base, place)
    if not layout.tyx_bins:
        raise no_overlap_error(len(plain), place)
    groups: list[list[int]] = layout.grouped_idx
    offsets = [_common_offset([loaded[i].offset.dn for i in g]) for g in groups]
    if None in offsets:
        same = {k: v for k, v in odc_options.items() if k not in ("anchor", "align")} | {"geobox": layout.gbt.base}
        cube = _without_mixed_offsets(
            cube, groups, offsets, [one.offset for one in loaded], lambda which: load(which, _all_alike, **same)
        )
    if place.turn:
        cube = _turned(cube, place.turn)
    if fmask:
        cube = cube.assign(SCL=classes_of_fmask(cube["SCL"]))
    cube = _annotated(cube, loaded, groups, [0.0 if dn is None else dn for dn in offsets])
    return _cloudless(cube) if mask_clouds else cube


@dataclass(frozen=True)
class _Loaded:
    """An item and its offset."""

    item: pystac.Item
    offset: Offset


def _all_alike(*_: Any) -> int:
    """Group all items, as a `groupby` of odc-stac."""
    return 0


def _config(scl_nodata: int) -> dict[str, Any]:
    """Return defaults of odc-stac for items that state neither dtype nor nodata, as those of the Planetary Computer.

    `scl_nodata` is that of the scene classification. In Fmask, whose numbers are bits, 0 is clear: a mosaic must not
    take it for no data.
    """
    assets = {"*": {"data_type": "uint16", "nodata": 0}, "SCL": {"data_type": "uint8", "nodata": scl_nodata}}
    return {_COLLECTION: {"assets": assets, "warnings": "ignore"}}


def _band_names(bands: Sequence[str] | Mapping[str, str] | None) -> tuple[str, ...]:
    if bands is None:
        return MODEL_BANDS
    names = []
    for name in (bands,) if isinstance(bands, str) else bands:
        known = band_of_name(name)
        if known is not None:
            names.append(known[0])
        elif name.upper() != "SCL":
            raise MissingBandsError(f"{name!r} in bands= is not a band of Sentinel-2: {', '.join(SENTINEL2)}")
    return tuple(dict.fromkeys(names))


def _loaded_bands(
    selected: Sequence[tuple[pystac.Item, Mapping[str, pystac.Asset]]],
    bands: Sequence[str] | Mapping[str, str] | None,
    model: str,
) -> list[str]:
    """Return the bands that at least one item has, with "SCL" last."""
    if not any(set(assets) - {"SCL"} for _, assets in selected):
        first, _ = selected[0]
        keys = ", ".join(list(first.assets)[:40]) or "none"
        raise MissingBandsError(
            f"no asset of {len(selected)} items holds {', '.join(_band_names(bands))}; assets of {first.id}: {keys}. "
            f'Name the asset per band of {model!r}: bands={{"B02": "its key", ...}}'
        )
    return [b for b in (*_band_names(bands), "SCL") if any(b in assets for _, assets in selected)]


def _is_fmask(item: pystac.Item, asset: pystac.Asset) -> bool:
    return any(key.lower() == "fmask" and own is asset for key, own in item.assets.items())


def _holds_fmask(selected: Sequence[tuple[pystac.Item, Mapping[str, pystac.Asset]]]) -> bool:
    """Return whether the scene classification of all items is HLS's Fmask.

    Raises
    ------
    ArgumentError
        Where it is that of some items only: one variable cannot hold both.
    """
    kinds = {_is_fmask(item, assets["SCL"]): item.id for item, assets in selected if "SCL" in assets}
    if len(kinds) > 1:
        raise ArgumentError(
            f"{kinds[True]} has the mask Fmask of HLS, and {kinds[False]} a scene classification: load each product by "
            "itself, and join the cubes with xr.concat(cubes, 'time')"
        )
    return True in kinds


def _select_assets(item: pystac.Item, bands: Sequence[str] | Mapping[str, str] | None) -> dict[str, pystac.Asset]:
    if not isinstance(bands, Mapping):
        return find_assets(item, _band_names(bands))
    chosen = {}
    for band, key in bands.items():
        if key not in item.assets:
            raise MissingBandsError(f"item {item.id} has no asset {key!r} for {band}: it has {', '.join(item.assets)}")
        chosen["SCL" if band.upper() == "SCL" else _band_names([band])[0]] = item.assets[key]
    scl = find_assets(item, ())
    return {**scl, **chosen}


def _plain_item(
    item: pystac.Item, assets: Mapping[str, pystac.Asset], *, check: bool, allow: Sequence[str]
) -> pystac.Item:
    """Copy `item` with only the selected assets, named by band, with absolute hrefs, in one collection.

    Items of several catalogues, each with its own asset keys, then load into one cube.
    """
    import pystac

    # item.clone() would also copy the thirty other assets of a catalogue's item.
    copy = pystac.Item(
        *(item.id, footprint(item.geometry, item.bbox), item.bbox, item.datetime, dict(item.properties)),
        stac_extensions=list(item.stac_extensions),
    )
    copy.collection_id = _COLLECTION
    for band, asset in assets.items():
        own = asset.clone()
        own.href = resolve_href(item, asset, band=band, check=check, allow=allow)
        copy.add_asset(band, own)
    return copy


def _offset(offset: str | float) -> float:
    if isinstance(offset, str) or not isinstance(offset, int | float | np.number) or not math.isfinite(offset):
        raise ArgumentError(f"offset must be 'auto' or the DN to add (0, -1000), got {offset!r}")
    return float(offset)


def _check_options(options: Mapping[str, Any], resampling: Any) -> None:
    """Refuse options that odc-stac would ignore silently, or that are fixed here."""
    import odc.stac
    from rasterio.enums import Resampling

    if fixed := {"stac_cfg", "driver", "debug", "items"} & options.keys():
        raise ArgumentError(
            f"{' and '.join(sorted(fixed))} are fixed by load_cube, which renames the assets and signs them; use "
            "odc.stac.load for other settings"
        )
    known = {*inspect.signature(odc.stac.load).parameters, "align", "nodata", "use_overviews"} - {"kw"}
    if unknown := sorted(options.keys() - known):
        near = difflib.get_close_matches(unknown[0], [*known, "mask_clouds", "offset"], 1)
        raise ArgumentTypeError(
            f"load_cube has no argument {unknown[0]!r}" + (f": did you mean {near[0]!r}?" if near else "")
        )
    names = resampling.values() if isinstance(resampling, Mapping) else [resampling]
    for name in (n for n in names if n is not None):
        if str(name).lower() not in Resampling.__members__:
            raise ArgumentError(f"resampling must be one of {', '.join(Resampling.__members__)}, got {name!r}")


@contextlib.contextmanager
def _plain_errors(**arguments: Any) -> Iterator[None]:
    """Raise errors of odc-stac and PROJ about arguments and items as errors of this package."""
    try:
        yield
    except DeoCubeError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError, OverflowError, ProjError) as error:
        passed = ", ".join(f"{k}={v!r}" for k, v in arguments.items() if v is not None)
        raise ArgumentError(
            f"odc-stac cannot load these items with {passed}: {type(error).__name__}: {str(error)[:300]}"
        ) from error


def _turned(cube: xr.Dataset, by: float) -> xr.Dataset:
    """Move the longitudes of a cube by whole turns, with the transform beside them."""
    x = georeference.dims(cube).x
    cube = cube.assign_coords({x: (x, cube[x].values + by, cube[x].attrs)})
    attrs = cube["spatial_ref"].attrs
    if "GeoTransform" in attrs:
        first, *others = (float(v) for v in attrs["GeoTransform"].split())
        attrs["GeoTransform"] = " ".join(repr(v) for v in (first + by, *others))
    return cube


def _resampling(resampling: str | Mapping[str, str] | None) -> dict[str, str]:
    chosen = {"*": resampling} if isinstance(resampling, str) else dict(resampling or {})
    return {"*": "nearest", **chosen, "SCL": "nearest"}


def _decide(item: pystac.Item, assets: Mapping[str, pystac.Asset], offset: str | float) -> Offset:
    if not isinstance(offset, str):
        return Offset(float(offset), f"offset={offset:g} was passed to load_cube")
    return decide_offset(product_of_item(item, [a for b, a in assets.items() if b != "SCL"]))


def _common_offset(offsets: Sequence[float | None]) -> float | None:
    """Return the one offset of a time step; NaN where an item does not decide; None where decided items differ."""
    if None in offsets:
        return math.nan
    return offsets[0] if len(set(offsets)) == 1 else None


def _without_mixed_offsets(
    cube: xr.Dataset,
    groups: Sequence[Sequence[int]],
    offsets: Sequence[float | None],
    decided: Sequence[Offset],
    load: Callable[[Sequence[int]], xr.Dataset],
) -> xr.Dataset:
    """Reload the time steps whose items differ in their offset, with each offset removed before mosaicking."""
    steps = [cube.isel(time=[t]) for t in range(len(groups))]
    for t, group in enumerate(groups):
        if offsets[t] is None:
            parts: dict[float, list[int]] = {}
            for i in group:
                parts.setdefault(float(decided[i].dn or 0), []).append(i)
            pieces = [(load(which), dn) for dn, which in sorted(parts.items())]
            steps[t] = _mosaic(pieces).assign_coords(time=steps[t]["time"])
    cube = xr.concat(steps, "time")
    cube.encoding.pop("debug", None)
    return cube


def _mosaic(pieces: Sequence[tuple[xr.Dataset, float]]) -> xr.Dataset:
    """Mosaic parts of one time step, each without its offset; the first valid pixel counts."""
    corrected = []
    for piece, dn in pieces:
        bands = {str(n): v if n == "SCL" or not dn else _without_offset(v, dn) for n, v in piece.data_vars.items()}
        corrected.append(piece.assign(bands))
    whole, *others = corrected
    for other in (o.assign_coords(time=whole["time"]) for o in others):
        whole = whole.assign({n: v.where(v != _nodata(v), other[n]) for n, v in whole.data_vars.items()})
    return whole


def _annotated(
    cube: xr.Dataset, loaded: Sequence[_Loaded], groups: Sequence[Sequence[int]], offsets: Sequence[float]
) -> xr.Dataset:
    """Add the coordinates along time and the attributes that `embed` reads."""
    items = [one.item for one in loaded]
    baselines = [str(i.properties.get(_BASELINE) or i.properties.get("processing:version") or "") for i in items]
    baselines = ["/".join(sorted({baselines[i] for i in group} - {""})) for group in groups]
    ids = [" ".join(items[i].id for i in group) for group in groups]
    clouds = [[items[i].properties.get(_CLOUD) for i in group] for group in groups]
    coords = {
        OFFSET_COORD: ("time", np.asarray(offsets, dtype=np.float64)),
        "item_ids": ("time", np.asarray(ids, dtype=object)),
    }
    if any(baselines):
        coords[_BASELINE] = ("time", np.asarray(baselines, dtype=object))
    if any(c is not None for group in clouds for c in group):
        coords[_CLOUD] = ("time", np.asarray([_mean(group) for group in clouds]))
    cube = cube.assign_coords(coords)
    for name, variable in cube.data_vars.items():
        if name == "SCL":
            variable.attrs["long_name"] = "scene classification"
            continue
        band = SENTINEL2[str(name)]
        if variable.dtype.kind in "iu":
            variable.attrs["units"] = "DN"
        variable.attrs |= {"common_name": band.common_name, "center_wavelength": band.wavelength / 1000}
    levels = {str(_level(i)) for i in items}
    if len(levels) == 1 and levels != {"None"}:
        cube.attrs["product_level"] = levels.pop()
    elif "None" not in levels:
        warnings.warn(
            f"items of levels {' and '.join(sorted(levels))} are combined in one cube: top of atmosphere and surface "
            "cannot be compared. Search one collection",
            UserWarning,
            stacklevel=3,
        )
    reasons = Counter(one.offset.reason for one in loaded).most_common()
    cube.attrs[Attribute.SOURCE] = f"{len(items)} STAC items, by load_cube"
    cube.attrs[Attribute.OFFSET] = "; ".join(f"{reason} ({n} of {len(items)} items)" for reason, n in reasons)
    return cube


def _level(item: pystac.Item) -> str | None:
    p = item.properties
    texts = (
        p.get("s2:product_type"),
        p.get("product:type"),
        p.get("processing:level"),
        p.get("s2:product_uri"),
        item.id,
    )
    return next((level for text in texts if (level := level_of(text)) is not None), None)


def _mean(values: Sequence[Any]) -> float:
    """Mean of numbers that are stated; NaN where none is."""
    stated = [float(v) for v in values if v is not None]
    return math.fsum(stated) / len(stated) if stated else math.nan


def _cloudless(cube: xr.Dataset) -> xr.Dataset:
    if "SCL" not in cube:
        raise MissingBandsError(
            "mask_clouds=True needs the scene classification, and the items have no SCL asset: pass mask_clouds=False"
        )
    clear = ~cube["SCL"].isin(SCL_INVALID)
    masked = {str(n): v.where(clear, _nodata(v)) for n, v in cube.data_vars.items() if n != "SCL"}
    cube = cube.assign(masked)
    cube.attrs[Attribute.MASK_CLOUDS] = f"pixels of SCL {', '.join(map(str, SCL_INVALID))} set to nodata"
    return cube


def _nodata(variable: xr.DataArray) -> Any:
    return variable.dtype.type(variable.attrs.get("nodata", math.nan if variable.dtype.kind == "f" else 0))


def _without_offset(variable: xr.DataArray, dn: float) -> xr.DataArray:
    """Remove an offset from DN; values that become nodata, or negative in an unsigned type, are set to 1."""
    nodata = _nodata(variable)
    shifted = variable.astype("int32") + int(dn)
    shifted = shifted.clip(min=1) if variable.dtype.kind == "u" else shifted.where(shifted != nodata, nodata + 1)
    corrected = shifted.astype(variable.dtype).where(variable != nodata, nodata)
    corrected.attrs = dict(variable.attrs)
    return corrected
