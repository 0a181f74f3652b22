"""Read Sentinel-2 products of ESA: EOPF's groups of a Zarr store or a DataTree, and SAFE folders and zips.

An EOPF product holds ``measurements/reflectance/r10m``, ``r20m`` and ``r60m`` (``b02``, ..., ``b8a``, DN with scale and
offset), ``conditions/mask/l2a_classification/r20m/scl``, and the date, processing baseline and CRS in the attributes
of its root (``stac_discovery``, ``other_metadata``). `cube_of_product` brings the bands to the finest grid, as pixels
that are repeated and never interpolated, and records the offset that the product states.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import xarray as xr

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.boa_offset import PRODUCT_KEYS, Product, decide_offset
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, level_of
from deo_cube.cube.times import of_value
from deo_cube.cube.units import OFFSET_COORD
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError, StorageError, remedy

__all__ = ["opened_cube", "cube_of_product", "groups_read", "is_product", "is_safe", "items_of_safe"]


#: Groups of bands by resolution, with the overview level of a product that was converted to GeoZarr.
_REFLECTANCE = re.compile(r"measurements/reflectance/r(10|20|60)m(?:/0)?")
_CLASSES = re.compile(r"conditions/mask/l2a_classification/r(10|20|60)m(?:/0)?")
_ROOT_KEYS = ("stac_discovery", "other_metadata")
_NAMED_DATE = re.compile(r"_(\d{8}T\d{6})(?=_|\.|$)")


def opened_cube(value: Any, *, argument: str = "cube") -> xr.Dataset | xr.DataArray:
    """Return `value` as a cube: itself, a product's bands for a DataTree of one, the only cube of another DataTree.

    Raises
    ------
    ArgumentTypeError
        For a DataTree with several cubes, paths, NumPy arrays, lists, tables, STAC items and anything else.
    ArgumentError
        For embeddings.
    """
    if isinstance(value, xr.DataTree):
        groups = {node.path.strip("/"): node.to_dataset() for node in value.subtree if node.data_vars}
        if is_product(groups, value.attrs):
            return cube_of_product({n: groups[n] for n in groups_read(groups)}, value.attrs, name=value.name or "")
        cubes = {n: ds for n, ds in groups.items() if georeference.is_cube(ds)}
        if len(cubes) == 1:
            ((_, only),) = cubes.items()
            value = only.assign_attrs({**value.attrs, **only.attrs})
    return arguments.cube_of(value, argument=argument)


def is_product(groups: Iterable[str], attrs: Mapping[Any, Any]) -> bool:
    """Return whether groups and root attributes are those of a Sentinel-2 product."""
    return any(k in attrs for k in _ROOT_KEYS) and any(_REFLECTANCE.fullmatch(n.strip("/")) for n in groups)


def groups_read(groups: Iterable[str]) -> list[str]:
    """Return the groups that `cube_of_product` takes, finest first; without overviews and levels of lower resolution.

    >>> groups_read(["quality", "measurements/reflectance/r20m", "measurements/reflectance/r10m"])
    ['measurements/reflectance/r10m', 'measurements/reflectance/r20m']
    """
    matches = [(n, m) for n in groups for p in (_REFLECTANCE, _CLASSES) if (m := p.fullmatch(n.strip("/")))]
    names = sorted(matches, key=lambda pair: (pair[1].re is _CLASSES, int(pair[1][1]), pair[0]))
    return [n for n, _ in names]


def cube_of_product(groups: Mapping[str, xr.Dataset], attrs: Mapping[Any, Any], *, name: str = "") -> xr.Dataset:
    """Return the bands of a product on its finest grid, lazily.

    Parameters
    ----------
    groups : mapping of str to Dataset
        Those that `groups_read` lists, by their path in the product; decoded or not.
    attrs : mapping
        Of the root of the product.
    name : str
        Name of the product, where `attrs` hold none: it may state baseline and date.

    Returns
    -------
    Dataset
        Variables ``B02`` ... and ``SCL`` (time, y, x), one time step; values as they are in `groups`. Coordinates along
        time are those of `load_cube`: ``boa_add_offset`` (DN to add; NaN where the product contradicts itself, which
        `embed` refuses without ``offset=``), ``item_ids``. The attribute ``deo_cube:offset`` has the reason.

    Raises
    ------
    MissingBandsError
        For groups without bands.
    ArgumentError
        For groups whose grids do not fit each other.
    StorageError
        For a product without a date.
    """
    names = groups_read(groups)
    bands: dict[str, tuple[str, xr.DataArray]] = {}
    for group in names:
        for variable, values in groups[group].data_vars.items():
            band = _band(str(variable), group)
            if band is not None and band not in bands and {"y", "x"} <= set(values.dims):
                bands[band] = (group, values)
    if not set(bands) - {"SCL"}:
        raise MissingBandsError(
            f"the product holds no bands in measurements/reflectance/r10m, r20m or r60m; its groups are "
            f"{', '.join(groups) or 'empty'}"
        )
    finest = next(g for g in names if any(g == group for b, (group, _) in bands.items() if b != "SCL"))
    box = georeference.geobox(_with_statements(groups[finest], attrs))
    properties = _properties(attrs, name)
    offset, reason, units = _offset(bands, properties)
    variables = {}
    for band in sorted(bands, key=lambda b: (b == "SCL", list(SENTINEL2).index(b) if b != "SCL" else 0)):
        group, values = bands[band]
        variables[band] = _repeated(values, groups[group], groups[finest], group).expand_dims("time")
        variables[band].attrs = _band_attrs(band, values, units)
        variables[band].encoding = {}
    time = _date(properties, name)
    cube = xr.Dataset(variables).drop_vars(["y", "x"], errors="ignore").assign_coords(time=[time])
    cube = georeference.assign_grid(cube, box)
    cube = cube.assign_coords(
        {
            OFFSET_COORD: ("time", np.array([np.nan if offset is None else offset])),
            "item_ids": ("time", np.array([str(properties.get("id", ""))], dtype=object)),
        }
    )
    cube.attrs = {Attribute.SOURCE: "EOPF product", Attribute.OFFSET: reason}
    levels = {level_of(properties.get(k)) for k in ("product:type", "id")} - {None}
    levels |= {m[1] for m in re.finditer(r"S0?2[A-D]?_?MSI(L1C|L2A)", f"{properties.get('product:type')} {name}")}
    if len(levels) == 1:
        cube.attrs["product_level"] = levels.pop()
    return cube


def _band(variable: str, group: str) -> str | None:
    if _CLASSES.fullmatch(group.strip("/")):
        return "SCL" if variable.lower() == "scl" else None
    named = band_of_name(variable)
    return None if named is None else named[0]


def _with_statements(group: xr.Dataset, attrs: Mapping[Any, Any]) -> xr.Dataset:
    """Return a group with the attributes of the root, where products state the CRS of all groups."""
    stated = {k: v for k, v in attrs.items() if k in _ROOT_KEYS or str(k).startswith("proj:")}
    return group.assign_attrs({**stated, **group.attrs})


def _properties(attrs: Mapping[Any, Any], name: str) -> dict[str, Any]:
    """Return the properties of the STAC item in the root, with the product's name as `id`."""
    item = attrs.get("stac_discovery")
    item = item if isinstance(item, Mapping) else {}
    inner = item.get("properties")
    properties = {str(k): v for k, v in inner.items()} if isinstance(inner, Mapping) else {}
    named = str(item.get("id") or name)
    return properties | ({"id": named.removesuffix(".zarr").removesuffix(".SAFE")} if named else {})


def _offset(
    bands: Mapping[str, tuple[str, xr.DataArray]], properties: Mapping[str, Any]
) -> tuple[float | None, str, str]:
    """Return the DN that are still to be added, the reason, and the units of the values."""
    scales = {_scale(v) for b, (_, v) in bands.items() if b != "SCL"}
    kinds = {v.dtype.kind for b, (_, v) in bands.items() if b != "SCL"}
    statements = {k: properties[k] for k in PRODUCT_KEYS if k in properties}
    decision = decide_offset(Product.read(statements, scales=[(s, o) for s, o, _ in scales]))
    reason = decision.reason.replace("raster:bands states", "the product states")
    decoded = {applied for _, _, applied in scales}
    if decoded == {True} and kinds == {"f"}:
        added = {1e4 * (o or 0.0) for _, o, _ in scales}
        if decision.dn is None or len(added) > 1:
            return None, reason, "reflectance"
        return round(decision.dn - added.pop(), 6) + 0.0, f"{reason}; decoding applied it", "reflectance"
    if kinds <= set("iu"):
        return decision.dn, reason, "DN"
    return None, f"{reason}; the bands are of several kinds, decoded and not", ""


def _scale(values: xr.DataArray) -> tuple[Any, Any, bool]:
    """Return the stated scale and offset of a band, and whether they were applied when it was opened."""
    inner = values.attrs.get("_eopf_attrs")
    places: list[tuple[Mapping[Any, Any], bool]] = [(values.attrs, False), (values.encoding, True)]
    places += [(inner, False)] if isinstance(inner, Mapping) else []
    for place, applied in places:
        if place.get("scale_factor") is not None:
            scale, offset = place["scale_factor"], place.get("add_offset")
            return float(scale), None if offset is None else float(offset), applied
    return None, None, False


def _repeated(values: xr.DataArray, own: xr.Dataset, finest: xr.Dataset, group: str) -> xr.DataArray:
    """Return a band on the finest grid: each pixel is repeated over the finer ones that it covers."""
    for axis in ("y", "x"):
        fine, coarse = finest[axis].values.astype("float64"), own[axis].values.astype("float64")
        factor = fine.size // max(coarse.size, 1)
        step = abs(fine[1] - fine[0]) if fine.size > 1 else 0.0
        aligned = factor >= 1 and factor * coarse.size == fine.size
        if not aligned or not np.allclose(fine.reshape(-1, factor).mean(axis=1), coarse, rtol=0, atol=0.01 * step):
            raise ArgumentError(
                f"the grid of {group} does not fit the finest one along {axis}: {coarse.size} and {fine.size} pixels "
                f"from {coarse[:1]} and {fine[:1]}, expected {factor or 1} pixels in each. Cut windows from the cube "
                "that open_cube returns, not from the groups of the product"
            )
        if factor > 1:
            if values.chunks is None:  # indexing keeps what is read lazily lazy
                values = values.isel({axis: np.repeat(np.arange(coarse.size), factor)})
            else:  # chunk by chunk, so that the chunks of all bands coincide
                values = xr.DataArray(values.data.repeat(factor, axis=values.get_axis_num(axis)), dims=values.dims)
    return values.transpose("y", "x").drop_vars(list(values.coords))


def _band_attrs(band: str, values: xr.DataArray, units: str) -> dict[str, Any]:
    if band == "SCL":
        return {"long_name": "scene classification"}
    known = SENTINEL2[band]
    attrs: dict[str, Any] = {"common_name": known.common_name, "center_wavelength": known.wavelength / 1000}
    if units:
        attrs["units"] = units
    if values.dtype.kind == "f":
        return attrs | {"nodata": np.nan}  # decoding replaced no data by NaN: reflectance of 0 is a measurement
    nodata = values.attrs.get("_FillValue", values.attrs.get("fill_value"))
    return attrs | {"nodata": 0 if nodata is None else int(nodata)}


def _date(properties: Mapping[str, Any], name: str) -> np.datetime64:
    stated = [properties.get(k) for k in ("datetime", "start_datetime")]
    named = _NAMED_DATE.search(f"{properties.get('id', '')}_{name}")
    for value in (*stated, named[1] if named else None):
        if isinstance(value, str) and value.lower() not in ("", "null"):
            date = of_value(value)
            if date is not None:
                return np.datetime64(date[0], "ns")
    raise StorageError(
        "the product has no date: stac_discovery in the attributes of its root has neither datetime nor "
        "start_datetime, and its name has none. Read the group instead: "
        + remedy("open_cube(path, group=...)", "--group GROUP")
    )


# --- Describe a SAFE product of ESA, a folder or its zip, as STAC items that `load_cube` loads ---

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
