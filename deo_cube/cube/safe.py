"""Products of Sentinel-2 as ESA delivers them, a SAFE folder or its zip, described as STAC items of their files."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.errors import InputNotFoundError, StorageError

__all__ = ["is_safe", "item_of_safe"]

_IMAGE = re.compile(r"_(B\d\w|SCL)(?:_(\d\d)m)?\.(?:jp2|tiff?)$", re.I)
_NAME = re.compile(r"S2[A-D]_MSI(L1C|L2A)_(\d{8}T\d{6})_N(\d\d)(\d\d)_R\d{3}_T\w{5}_\d{8}T\d{6}", re.I)
#: Bytes of a metadata file above which it is not one.
_LARGEST = 50_000_000


def is_safe(text: str) -> bool:
    """Return whether a folder or zip is a SAFE product, by its metadata file."""
    path = Path(text)
    if path.is_dir():
        return any(path.glob("MTD_MSIL*.xml"))
    if path.suffix.lower() == ".zip" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(_is_metadata(n) for n in archive.namelist())
    return False


def _is_metadata(name: str) -> bool:
    return bool(re.search(r"\.SAFE/MTD_MSIL\w+\.xml$", name, re.I))


def item_of_safe(text: str) -> dict[str, Any]:
    """Describe a SAFE product as a STAC item: bands in their own resolution, offset and baseline as stated in it.

    Parameters
    ----------
    text : str
        The folder, or its zip.

    Raises
    ------
    InputNotFoundError
        For a product without metadata or images.
    StorageError
        For metadata that cannot be read.
    """
    path = Path(text)
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            metadata = next(n for n in names if _is_metadata(n))
            _check_size(archive.getinfo(metadata).file_size, metadata)
            written = archive.read(metadata)
        root = metadata.rpartition("/")[0]
        hrefs = [f"/vsizip/{path.resolve()}/{n}" for n in names if n.startswith(root)]
        product = root.rpartition("/")[2]
    else:
        found = sorted(path.glob("MTD_MSIL*.xml"))
        hrefs = sorted(str(p.resolve()) for p in path.rglob("*") if p.is_file())
        if not found:
            raise InputNotFoundError(
                f"{text} is no SAFE product: it has no MTD_MSIL2A.xml. Give the folder that holds this file"
            )
        _check_size(found[0].stat().st_size, str(found[0]))
        written, product = found[0].read_bytes(), path.resolve().name
    stated = _stated(written, product)
    assets = _assets(hrefs, stated)
    if not set(assets) - {"SCL"}:
        raise InputNotFoundError(
            f"{text} holds no images of bands (GRANULE/*/IMG_DATA/.../*_B02_10m.jp2): download the product whole"
        )
    return {
        **{"type": "Feature", "stac_version": "1.0.0", "id": product.removesuffix(".SAFE"), "links": []},
        **{"geometry": None, "stac_extensions": [], "assets": assets},
        "properties": {
            "datetime": stated["datetime"],
            "s2:product_uri": product,
            "s2:processing_baseline": stated["baseline"],
            "s2:product_type": stated["type"],
            **({} if stated["clouds"] is None else {"eo:cloud_cover": stated["clouds"]}),
        },
    }


def _check_size(size: int, name: str) -> None:
    if size > _LARGEST:
        raise StorageError(f"{name} has {size} bytes: not the metadata of a product")


def _stated(written: bytes, product: str) -> dict[str, Any]:
    """Date, baseline, type, cloud cover and offset of a product, from its metadata."""
    try:
        tree = ElementTree.fromstring(written)
    except ElementTree.ParseError as error:
        raise StorageError(f"the metadata of {product} cannot be read: {error}") from error

    def texts(tag: str) -> list[str]:
        return [(e.text or "").strip() for e in tree.iter() if e.tag.rpartition("}")[2].upper() == tag]

    named = _NAME.search(product)
    when = next(iter(texts("PRODUCT_START_TIME") or texts("DATATAKE_SENSING_START")), "")
    if not when and named:
        d = named[2]
        when = f"{d[:4]}-{d[4:6]}-{d[6:8]}T{d[9:11]}:{d[11:13]}:{d[13:15]}Z"
    if not when:
        raise StorageError(f"{product} does not say when it was sensed (PRODUCT_START_TIME)")
    baseline = next(iter(texts("PROCESSING_BASELINE")), f"{named[3]}.{named[4]}" if named else "")
    clouds = next(iter(texts("CLOUD_COVERAGE_ASSESSMENT")), None)
    added = {float(v) for v in texts("BOA_ADD_OFFSET") + texts("RADIO_ADD_OFFSET") if v}
    value = next(iter(texts("BOA_QUANTIFICATION_VALUE") + texts("QUANTIFICATION_VALUE")), "10000")
    return {
        "datetime": when,
        "baseline": baseline,
        "type": f"S2MSI{'1C' if 'L1C' in product.upper() else '2A'}",
        "clouds": None if clouds is None else float(clouds),
        "add": added.pop() if len(added) == 1 else 0.0 if not added else None,
        "quantification": float(value),
    }


def _assets(hrefs: list[str], stated: dict[str, Any]) -> dict[str, Any]:
    """One asset per band: the image in the resolution nearest to the band's own."""
    best: dict[str, tuple[float, str]] = {}
    for href in hrefs:
        match = _IMAGE.search(href)
        if match is None or "/IMG_DATA/" not in href:
            continue
        band = match[1].upper()
        own = SENTINEL2[band].gsd if band in SENTINEL2 else 20
        off = abs(float(match[2] or own) - own)
        if band not in best or off < best[band][0]:
            best[band] = (off, href)
    scale = 1 / stated["quantification"]
    described = {"data_type": "uint16", "nodata": 0, "scale": scale}
    if stated["add"] is not None:
        described["offset"] = stated["add"] * scale
    return {
        band: {
            "href": href,
            "type": "image/jp2" if href.lower().endswith("jp2") else "image/tiff",
            "raster:bands": [{"data_type": "uint8", "nodata": 0} if band == "SCL" else described],
        }
        for band, (_, href) in best.items()
    }
