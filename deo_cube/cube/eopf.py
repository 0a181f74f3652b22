"""Read a Sentinel-2 product of ESA's EOPF: bands of three resolutions in groups of a Zarr store or a DataTree.

A product holds ``measurements/reflectance/r10m``, ``r20m`` and ``r60m`` (``b02``, ..., ``b8a``, DN with scale and
offset), ``conditions/mask/l2a_classification/r20m/scl``, and the date, processing baseline and CRS in the attributes
of its root (``stac_discovery``, ``other_metadata``). `cube_of_product` brings the bands to the finest grid, as pixels
that are repeated and never interpolated, and records the offset that the product states.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import xarray as xr

from deo_cube import arguments
from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.cube.boa_offset import PRODUCT_KEYS, Product, decide_offset
from deo_cube.cube.sentinel2 import SENTINEL2, band_of_name, level_of
from deo_cube.cube.times import of_value
from deo_cube.cube.units import OFFSET_COORD
from deo_cube.errors import ArgumentError, MissingBandsError, StorageError, remedy

__all__ = ["cube_of", "cube_of_product", "groups_read", "is_product"]

#: Groups of bands by resolution, with the overview level of a product that was converted to GeoZarr.
_REFLECTANCE = re.compile(r"measurements/reflectance/r(10|20|60)m(?:/0)?")
_CLASSES = re.compile(r"conditions/mask/l2a_classification/r(10|20|60)m(?:/0)?")
_ROOT_KEYS = ("stac_discovery", "other_metadata")
_NAMED_DATE = re.compile(r"_(\d{8}T\d{6})(?=_|\.|$)")


def cube_of(value: Any, *, argument: str = "cube") -> xr.Dataset | xr.DataArray:
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
