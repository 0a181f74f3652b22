"""Read STAC items in all the forms that users have, find their assets with Sentinel-2 bands, and read HLS."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.boa_offset import Product
from deo_cube.cube.hrefs import FROM_FILE, allowed, check_href, internal_host, origin_of
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, bands_of_common_name, other_sensor, squeezed
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    CatalogueError,
    DeoCubeError,
    InputNotFoundError,
    MissingBandsError,
    StorageError,
    remedy,
)
from deo_cube.extras import require
from deo_cube.options import allow_network, get_option
from deo_cube.paths import expand, is_url, local_path, not_found

__all__ = [
    "FMASK_FILL",
    "asset_scale",
    "classes_of_fmask",
    "find_assets",
    "is_s30",
    "product_of_item",
    "read_items",
    "resolve_href",
]


if TYPE_CHECKING:
    import pystac


def read_items(items: Any) -> list[pystac.Item]:
    """Read STAC items.

    Parameters
    ----------
    items : Item, dict, ItemCollection, FeatureCollection dict, list of these, ItemSearch, or path or URL of a JSON file
        Relative hrefs are resolved against the file that they were read from.

    Raises
    ------
    InputNotFoundError
        For a path that does not exist.
    ArgumentTypeError
        For anything else.
    ArgumentError
        For no items, and for a mapping or file without any, such as a catalogue.
    CatalogueError
        For a URL that does not answer, or where the option `offline` is set.
    """
    require("pystac", "pystac_client", extra="stac", purpose="reading STAC items")
    read = list(_items(items, None))
    if not read:
        raise ArgumentError("items is empty, so the search found nothing. Widen bbox, datetime or max_cloud")
    return read


def _items(items: Any, base: str | None) -> Iterable[pystac.Item]:
    import pystac

    if isinstance(items, pystac.Item):
        yield items
    elif isinstance(items, (str, Path)):
        source = expand(items)
        document = _read_json(source)
        if not isinstance(document, Mapping | list):
            raise ArgumentError(f"{source} holds {type(document).__name__}, and no STAC items")
        yield from _items(document, source if is_url(source) else str(Path(source).resolve()))
    elif isinstance(items, pystac.ItemCollection):
        yield from items
    elif isinstance(items, Mapping):
        if items.get("type") == "FeatureCollection" or "features" in items:
            features = items.get("features")
            if not isinstance(features, list | tuple):
                raise ArgumentError(
                    f"{base or 'items'}: a FeatureCollection needs a list of features, got {features!r:.40}"
                )
            for feature in features:
                yield from _items(feature, base)
        elif items.get("type") == "Feature":
            yield _item(items, base)
        else:
            raise ArgumentError(
                f"{base or 'a mapping'} of type {items.get('type')!r} is not a STAC item: expected Feature or "
                "FeatureCollection"
                + (
                    ", as returned by a search" + remedy(": deo_cube.search(URL, ...)", "")
                    if items.get("type") in _CATALOGUES
                    else ""
                )
            )
    elif callable(getattr(items, "items", None)):  # pystac_client.ItemSearch
        with _plain_errors("the search"):
            yield from items.items()
    elif isinstance(items, Iterable) and not isinstance(items, bytes):
        for item in items:
            yield from _items(item, base)
    else:
        raise ArgumentTypeError(
            f"items are a {type(items).__name__}: expected STAC items, a collection of them, a search, or a JSON file"
        )


_CATALOGUES = ("Catalog", "Collection")


def _item(item: Mapping[str, Any], base: str | None) -> pystac.Item:
    import pystac

    try:
        made = pystac.Item.from_dict(dict(item), preserve_dict=base is None)
    except (
        pystac.errors.STACError,
        pystac.errors.STACTypeError,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
    ) as error:
        source, reason = f" of {base}" if base else "", " ".join(str(error).split())[:200]
        raise ArgumentError(
            f"item {str(item.get('id'))!r}{source} is not a STAC item ({type(error).__name__}: {reason}): it needs id, "
            "geometry, links, assets, and datetime in its properties"
        ) from error
    if base is not None:
        made.set_self_href(base)
        if not is_url(base):
            made.extra_fields[FROM_FILE] = True
    return made


def _read_json(source: str) -> Any:
    """Read a JSON file, of this machine or from a URL."""
    if not is_url(source):
        if not Path(source).is_file():
            raise not_found("items", source, "a JSON file with a STAC item or a collection of items")
        try:
            return json.loads(Path(source).read_text(encoding="utf-8"))
        except OSError as error:
            raise StorageError(f"{source} cannot be read: {error}") from error
        except ValueError as error:
            raise ArgumentError(f"{source} is not a JSON file of STAC items: {error}") from error
    host = urlsplit(source).hostname or ""
    if get_option("offline") and internal_host(source) != "loopback":
        raise CatalogueError(f"{source} needs the network ({host}), and the option offline is set: {allow_network()}")
    import pystac

    try:
        return json.loads(pystac.StacIO.default().read_text(source))
    except Exception as error:
        # urllib, pystac and http.client raise errors of many types.
        raise CatalogueError(
            f"{source} did not answer with STAC items ({str(error)[:200]}): give its JSON file"
        ) from error


@contextlib.contextmanager
def _plain_errors(what: str) -> Iterator[None]:
    """Raise the errors of a search as errors of this package."""
    import pystac.errors
    import pystac_client.exceptions
    import requests

    try:
        yield
    except (pystac_client.exceptions.APIError, requests.RequestException) as error:
        raise CatalogueError(f"{what} did not get an answer ({str(error)[:200]}): repeat the call") from error
    except (pystac.errors.STACError, pystac.errors.STACTypeError, json.JSONDecodeError) as error:
        raise CatalogueError(f"{what} did not return STAC items ({str(error)[:200]})") from error


def find_assets(item: pystac.Item, bands: Sequence[str]) -> dict[str, pystac.Asset]:
    """Find the assets of `bands`, and of the scene classification (or of HLS's Fmask) as ``SCL`` where there is one.

    An asset is identified by its key, then by its only described band (`bands`, `eo:bands`), then by its title. If a
    band has several resolutions (``B02_10m``, ``B02_20m``), its own is chosen; of several formats, GeoTIFF.

    Raises
    ------
    MissingBandsError
        Where two assets are equally suitable, and for an item of another sensor.
    """
    if bands:
        _refuse_other_sensor(item)
    ranked: dict[str, list[tuple[tuple[int, float, int], str]]] = {}
    # Digital Earth Australia counts B11 and B12 as swir_2 and swir_3; others mean B12 by swir_2.
    unclear = {"swir2"} if any(squeezed(k) == "swir3" for k in item.assets) else set()
    for key, asset in item.assets.items():
        if not _is_raster(asset) or squeezed(key) in unclear:
            continue
        lower = key.lower()
        if lower == "scl" or lower.startswith(("scl_", "scl-")):
            off = abs((_resolution(asset, key) or 20) - 20)
            ranked.setdefault("SCL", []).append(((0 if lower == "scl" else 1, off, _jp2(asset)), key))
        elif lower == "fmask" and _is_hls(item):
            ranked.setdefault("SCL", []).append(((2, 0.0, _jp2(asset)), key))
        elif (claim := _band_of_asset(key, asset)) is not None and claim[0] in bands:
            band, rank = claim
            off = abs((_resolution(asset, key) or SENTINEL2[band].gsd) - SENTINEL2[band].gsd)
            ranked.setdefault(band, []).append(((rank, off, _jp2(asset)), key))
    chosen = {}
    for band in (*bands, "SCL"):
        candidates = sorted(ranked.get(band, []))
        if len(candidates) > 1 and candidates[0][0] == candidates[1][0]:
            raise MissingBandsError(
                f"{band} of item {item.id} may be asset {candidates[0][1]!r} or {candidates[1][1]!r}. Say which: "
                f'bands={{"{band}": "{candidates[0][1]}", ...}}'
            )
        if candidates:
            chosen[band] = item.assets[candidates[0][1]]
    return chosen


_SENSOR_KEYS = ("platform", "constellation", "instruments", "mission", "sensor")


def _refuse_other_sensor(item: pystac.Item) -> None:
    """Refuse items of Landsat and others, whose band numbers and scales differ from Sentinel-2's."""
    stated = [item.id, item.collection_id, *(item.properties.get(k) for k in _SENSOR_KEYS)]
    sensor = next((word for v in stated if (word := other_sensor(v)) is not None), None)
    if sensor is not None:
        raise MissingBandsError(
            f"item {item.id} is of another sensor than Sentinel-2 ({sensor}), whose band numbers mean other "
            "wavelengths: Landsat's B5 is near infrared, Sentinel-2's B05 the red edge. Leave such items out, or say "
            'which asset each band is read from: bands={"B8A": "B05", ...}'
        )


def _is_hls(item: pystac.Item) -> bool:
    return is_s30(item.id) or is_s30(item.collection_id)


def _band_of_asset(key: str, asset: pystac.Asset) -> tuple[str, int] | None:
    if named := band_of_name(key):
        return named[0], 0 if named[1] == "name" else 1
    described = asset.extra_fields.get("bands") or asset.extra_fields.get("eo:bands") or []
    if len(described) > 1:
        return None
    for one in described:
        if named := band_of_name(str(one.get("name", ""))):
            return named[0], 2
        meant = bands_of_common_name(str(one.get("eo:common_name", one.get("common_name", ""))))
        wave = one.get("eo:center_wavelength", one.get("center_wavelength"))
        if meant and wave is not None:
            near = min(meant, key=lambda b: abs(SENTINEL2[b].wavelength - 1000 * float(wave)))
            if abs(SENTINEL2[near].wavelength - 1000 * float(wave)) <= 15:
                return near, 3
        elif len(meant) == 1:
            return meant[0], 3
    named = band_of_name(asset.title or "")
    return (named[0], 4) if named else None


def _is_raster(asset: pystac.Asset) -> bool:
    if set(asset.roles or ()) & {"thumbnail", "overview", "visual", "metadata"}:
        return False
    kind = (asset.media_type or "").lower()
    if kind:
        return any(word in kind for word in ("tiff", "jp2", "jpeg2000", "vrt", "netcdf"))
    return asset.href.split("?")[0].lower().endswith((".tif", ".tiff", ".jp2", ".vrt"))


def _jp2(asset: pystac.Asset) -> int:
    return int("jp2" in (asset.media_type or "").lower() or asset.href.lower().endswith(".jp2"))


def _resolution(asset: pystac.Asset, key: str) -> float:
    """Return the stated resolution in metres, or 0."""
    extra = asset.extra_fields
    described = (extra.get("raster:bands") or [{}])[0]
    for value in (extra.get("gsd"), extra.get("raster:spatial_resolution"), described.get("spatial_resolution")):
        if isinstance(value, (int, float)):
            return float(value)
    ending = key.lower().rpartition("_")[2]
    return float(ending[:-1]) if ending in ("10m", "20m", "60m") else 0.0


def asset_scale(asset: pystac.Asset) -> tuple[Any, Any]:
    """Return scale and offset stated for an asset (raster extension 1 or 2); None where not stated."""
    extra = asset.extra_fields
    first = (extra.get("raster:bands") or [{}])[0]
    if "scale" in first or "offset" in first:
        return first.get("scale"), first.get("offset")
    band = {**extra, **((extra.get("bands") or [{}])[0])}
    return band.get("raster:scale"), band.get("raster:offset")


def product_of_item(item: pystac.Item, assets: Iterable[pystac.Asset]) -> Product:
    """Collect the statements of an item, and of the assets read from it, about the offset."""
    assets = list(assets)
    properties = {"id": item.id, **item.properties}
    hrefs = [a.href for a in assets]
    # A local copy keeps the statement of the catalogue on its origin.
    if not any("://" in h for h in hrefs):
        hrefs.append(str(properties.get("earthsearch:s3_path") or ""))
    scales = [asset_scale(a) for a in assets]
    if _is_hls(item):  # its scale stands alone: reflectance x 10000 without an offset
        scales = [(scale if scale is not None else 1e-4, offset or 0.0) for scale, offset in scales]
    return Product.read(properties, hrefs, scales)


def resolve_href(
    item: pystac.Item, asset: pystac.Asset, *, band: str = "", check: bool = True, allow: Sequence[str] = ()
) -> str:
    """Return the absolute href of an asset, if its item may name it.

    Parameters
    ----------
    band : str
        For messages.
    check : bool
        Whether a local file must exist.
    allow : sequence of str
        Hosts, prefixes of URLs and folders that the caller trusts.

    Raises
    ------
    InputNotFoundError
        For a relative href without a base, and (with `check`) for a local file that does not exist.
    HrefRefusedError
        For a file of this machine, or an address inside its network, that an item from elsewhere names.
    """
    try:
        return _resolved(item, asset, band, check=check, allow=allow)
    except DeoCubeError:
        raise
    except (OSError, ValueError) as error:
        raise ArgumentError(
            f"asset {band} of item {item.id} has the href {str(asset.href)[:200]!r}, which cannot be read ({error})"
        ) from error


def _resolved(item: pystac.Item, asset: pystac.Asset, band: str, *, check: bool, allow: Sequence[str]) -> str:
    href = asset.get_absolute_href() or asset.href
    if not href.strip():
        raise ArgumentError(f"asset {band} of item {item.id} has no href")
    # Beside an https:// address "/data/a.tif" is a path on that host. If such a file exists on this machine, it counts
    # as that one, and is refused or allowed as such.
    if asset.href.startswith("/") and is_url(href) and (allowed(asset.href, allow) or os.path.lexists(asset.href)):
        href = asset.href
    local = href.lower().startswith("file:") or not ("://" in href or href.startswith(("/vsi", "<", "{")))
    if local and ":" in href.split("/")[0] and not href.lower().startswith("file:"):
        local = False  # a connection string of GDAL, NETCDF:"file":variable
    if local:
        path = local_path(href)
        if not path.is_absolute() and not path.exists():
            raise InputNotFoundError(
                f"item {item.id} has the relative href {asset.href!r} and no base for it. Pass "
                + remedy(
                    "the path of the JSON file, load_cube('items.json'), or items read with pystac.Item.from_file",
                    "the file of the item itself, whose folder is the base",
                )
            )
        href = str(path.resolve())
    check_href(href, origin_of(item), allow, f"asset {band or asset.title or ''} of item {item.id}".replace("  ", " "))
    if local and check and not path.exists():
        raise InputNotFoundError(
            f"asset of item {item.id} does not exist: {path}. Correct its href, or pass patch_url="
        )
    return href


# --- Read NASA's Harmonized Landsat and Sentinel-2 (HLS): which product it is, and the bits of its mask Fmask ---
#
# HLS S30 is Sentinel-2: its bands have Sentinel-2's names, at 30 m, surface reflectance x 10000 without an offset,
# -9999 for no data. HLS L30 is Landsat, whose band numbers mean other wavelengths
# (`deo_cube.cube.sentinel2.other_sensor`).

FMASK_FILL = 255

#: Class of the scene classification for each bit of Fmask, the strongest first (HLS User Guide 2.0, table 9). Bit 0,
#: cirrus, is reserved and not set; bits 6 and 7 are the level of aerosols, which hides nothing.
_BITS = ((1, 9), (3, 3), (2, 8), (4, 11), (5, 6))
_CLEAR = 7


def is_s30(text: object) -> bool:
    """Return whether the name of a product or collection is that of HLS S30.

    >>> is_s30("HLS.S30.T33TWM.2022064T102921.v2.0"), is_s30("HLSS30_2.0"), is_s30("HLS.L30.T33TWM.2022064T102921.v2.0")
    (True, True, False)
    """
    return re.match(r"HLS2?[._-]?S30", str(text), re.I) is not None


def _table() -> NDArray[np.uint8]:
    values = np.arange(256)
    table = np.full(256, _CLEAR, np.uint8)
    for bit, number in reversed(_BITS):
        table[(values >> bit) & 1 == 1] = number
    table[FMASK_FILL] = 0
    return table


_CLASSES = _table()


def _look_up(fmask: NDArray[Any]) -> NDArray[np.uint8]:
    if fmask.dtype.kind == "f":
        fmask = np.where(np.isfinite(fmask), fmask, FMASK_FILL)
    classes: NDArray[np.uint8] = _CLASSES[np.clip(fmask, 0, FMASK_FILL).astype(np.uint8)]
    return classes


def classes_of_fmask(fmask: xr.DataArray) -> xr.DataArray:
    """Return the Fmask of HLS as a scene classification, lazily.

    Parameters
    ----------
    fmask : DataArray of uint8, any shape
        Bits: 1 cloud, 2 adjacent to cloud or shadow, 3 cloud shadow, 4 snow or ice, 5 water; 255 is no data.

    Returns
    -------
    DataArray of uint8
        Classes of SCL: 9 cloud, 8 adjacent to one, 3 cloud shadow, 11 snow, 6 water, 7 clear, 0 no data. Of a pixel
        with several bits the first of these counts.

    Examples
    --------
    >>> import xarray as xr
    >>> classes_of_fmask(xr.DataArray([0, 2, 8, 4, 32, 64, 255])).values.tolist()
    [7, 9, 3, 8, 6, 7, 0]
    """
    classes: xr.DataArray = xr.apply_ufunc(_look_up, fmask, dask="parallelized", output_dtypes=[np.uint8])
    return classes.assign_attrs(long_name="scene classification", comment="from the bits of HLS's Fmask")
