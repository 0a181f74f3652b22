"""Describe a SAFE product of ESA, a folder or its zip, as STAC items that `load_cube` loads."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from deo_cube.cube.sentinel2 import SENTINEL2
from deo_cube.errors import InputNotFoundError, StorageError

__all__ = ["is_safe", "items_of_safe"]

_IMAGE = re.compile(r"_(B\d\w|SCL)(?:_(\d\d)m)?\.(?:jp2|tiff?)$", re.I)
_NAME = re.compile(r"S2[A-D]_MSI(L1C|L2A)_(\d{8}T\d{6})_N(\d\d)(\d\d)_R\d{3}_T\w{5}_\d{8}T\d{6}", re.I)
#: Largest size of a metadata file in bytes.
_LARGEST_METADATA = 50_000_000


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


def items_of_safe(text: str) -> list[dict[str, Any]]:
    """Describe a SAFE product as STAC items: bands in their own resolution, offset and baseline as stated in it.

    A product holds one granule; those of before December 2016 hold several, and each is an item.

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
        metadata_files = sorted(path.glob("MTD_MSIL*.xml"))
        hrefs = sorted(str(p.resolve()) for p in path.rglob("*") if p.is_file())
        if not metadata_files:
            raise InputNotFoundError(
                f"{text} is not a SAFE product: it has no MTD_MSIL2A.xml. Pass the folder that holds this file"
            )
        _check_size(metadata_files[0].stat().st_size, str(metadata_files[0]))
        written, product = metadata_files[0].read_bytes(), path.resolve().name
    stated = _metadata_of(written, product)
    granules: dict[str, list[str]] = {}
    for href in hrefs:
        if "/IMG_DATA/" in href:
            granules.setdefault(href.partition("/IMG_DATA/")[0], []).append(href)
    assets = {granule: _assets(images, stated) for granule, images in granules.items()}
    assets = {granule: found for granule, found in assets.items() if set(found) - {"SCL"}}
    if not assets:
        raise InputNotFoundError(
            f"{text} holds no images of bands (GRANULE/*/IMG_DATA/.../*_B02_10m.jp2): download the complete product"
        )
    properties = {
        "datetime": stated["datetime"],
        "s2:product_uri": product,
        "s2:processing_baseline": stated["baseline"],
        "s2:product_type": stated["type"],
        **({} if stated["clouds"] is None else {"eo:cloud_cover": stated["clouds"]}),
    }
    name = product.removesuffix(".SAFE")
    return [
        {
            **{"type": "Feature", "stac_version": "1.0.0", "links": [], "geometry": None, "stac_extensions": []},
            **{"assets": found, "properties": dict(properties)},
            "id": name if len(assets) == 1 else f"{name}/{granule.rpartition('/')[2]}",
        }
        for granule, found in assets.items()
    ]


def _check_size(size: int, name: str) -> None:
    if size > _LARGEST_METADATA:
        raise StorageError(
            f"{name} has {size} bytes, expected at most {_LARGEST_METADATA}: it is not the metadata of a product"
        )


def _metadata_of(written: bytes, product: str) -> dict[str, Any]:
    """Read date, baseline, type, cloud cover and offset of a product from its metadata."""
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
        raise StorageError(f"the metadata of {product} have no sensing time (PRODUCT_START_TIME)")
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
    """Return one asset per band: the image whose resolution is nearest to the band's own."""
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
