"""Rasters of classes, a file or a DataArray in any CRS and resolution, read where they are needed.

Names and colours of classes come from CF flags, GDAL's attribute tables, category names and colour tables.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast
from xml.etree import ElementTree

import numpy as np
import odc.geo.xr  # noqa: F401 - registers .odc
import rasterio
import rasterio.shutil
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.enums import MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile
from rasterio.windows import Window

from deo_cube.cube import georeference
from deo_cube.cube.categories import own_classes
from deo_cube.cube.georeference import crs_name
from deo_cube.errors import ArgumentTypeError, LabelsError, MissingCRSError, remedy
from deo_cube.heads.geometries import apply
from deo_cube.heads.tables import located
from deo_cube.paths import unreadable

__all__ = [
    "Legend",
    "Raster",
    "USUAL_FILLS",
    "classes_in",
    "lattice_majority",
    "lattice_mean",
    "nodata_values",
    "not_overlapping",
    "one_array",
    "read_around",
    "unstated_fills",
]

Array = NDArray[Any]

USUAL_FILLS = (-1, -9, -99, -999, -9999, -99999, -32768, 32767, 65535, -2147483648, 2147483647, 4294967295)
"""Codes that many rasters hold where they have no class, whether they state it or not."""
_FLOAT_FILLS = (float(np.finfo("float32").min), float(np.finfo("float32").max), 1e20, -1e20, 1e30, 9.969209968386869e36)
"""The same of floats: the limits of float32, and what climate models and netCDF write."""
MAX_LATTICE = 12
"""Largest number of lattice points along a side of a cell."""
MAX_LATTICE_OF_MEANS = 32
"""The same for means, which are exact as long as the raster has no more pixels along a side of a cell."""


@dataclass(frozen=True)
class Legend:
    """Names and colours (``#rrggbb``) of the values of a raster.

    Parameters
    ----------
    names, colors : mapping
        By value.
    """

    names: Mapping[int, str] = field(default_factory=dict)
    colors: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Raster:
    """Values of a raster around a grid.

    Parameters
    ----------
    values : (rows, cols)
        As stored; empty where the raster and the grid do not overlap.
    missing : (rows, cols) bool
        Where the raster itself states that there is no value.
    states_nodata : bool
        Whether the raster states anywhere what marks a place without class: a nodata value, a mask, or NaN.
    transform : Affine
        Of the values.
    crs : odc.geo.crs.CRS
        Of the transform.
    bounds : (4,) float
        Of the whole raster.
    legend : Legend
        Names and colours that it carries.
    """

    values: Array
    missing: Array
    states_nodata: bool
    transform: Affine
    crs: CRS
    bounds: Array
    legend: Legend


def read_around(labels: Any, crs: Any, near: GeoBox, *, ignore_nodata: bool = False) -> Raster:
    """Read a raster of labels around a grid, so that a map of a continent is not read for one valley.

    Parameters
    ----------
    labels : DataArray, Dataset or path
    crs : pyproj.CRS or None
        Overrides the CRS that the raster states.
    near : GeoBox
        The grid.
    ignore_nodata : bool
        Treat the raster's nodata value as any other value.

    Raises
    ------
    InputNotFoundError, MissingCRSError, LabelsError
        If there is no such file, it states no CRS and `crs` is None, or it has several layers.
    """
    if isinstance(labels, xr.DataArray | xr.Dataset):
        return _of_array(labels, crs, near, ignore_nodata)

    path = located(labels)
    try:
        with rasterio.open(path) as r:
            if r.count != 1:
                raise LabelsError(
                    f"a raster of labels must have one band, {labels} has {r.count}: select one, "
                    + remedy(
                        f"rioxarray.open_rasterio({str(labels)!r}).sel(band=1)",
                        f"gdal_translate -b 1 {labels} ONE.tif",
                    )
                )
            if r.crs is None and crs is None:
                raise MissingCRSError(f'{labels} states no CRS: pass crs="EPSG:..."')
            source = CRS(crs.to_wkt() if crs is not None else r.crs.to_wkt())
            box = GeoBox(r.shape, r.transform, source)
            rows, cols = _window(r.transform, r.shape, source, near)
            size = max(cols.stop - cols.start, 0), max(rows.stop - rows.start, 0)
            window = Window(cols.start, rows.start, *size)
            values = r.read(1, window=window) if all(size) else np.empty((0, 0), r.dtypes[0])
            masked = MaskFlags.all_valid not in r.mask_flag_enums[0] and not ignore_nodata
            missing = r.read_masks(1, window=window) == 0 if masked and all(size) else np.zeros(values.shape, bool)
            legend = legend_of_file(r)
    except RasterioError as error:
        raise unreadable("labels", labels, "a raster of labels", error, error=LabelsError) from error
    return _raster(values, missing, masked, box, rows, cols, legend)


def _of_array(labels: xr.DataArray | xr.Dataset, crs: Any, near: GeoBox, ignore_nodata: bool) -> Raster:
    array = one_array(labels)
    d = georeference.dims(array)
    others = [k for k in array.dims if k not in (d.y, d.x)]
    several = [k for k in others if array.sizes[k] > 1]
    if several:
        raise LabelsError(
            f"a raster of labels must have one layer, got {dict(array.sizes)}: select one, "
            f"labels.isel({{{str(several[0])!r}: 0}})"
        )
    if array.dtype.kind not in "biuf":
        raise LabelsError(f"a raster of labels must hold integers, got dtype {array.dtype}: number the classes first")
    array = own_classes(array.isel(dict.fromkeys(others, 0)))
    box = _placed(array, crs, near)
    stated = [array.attrs.get(k, array.encoding.get(k)) for k in ("_FillValue", "missing_value", "nodata")]
    fills = [] if ignore_nodata else [v for s in stated if s is not None for v in np.atleast_1d(s).tolist()]
    rows, cols = _window(box.transform, tuple(box.shape), box.crs, near)
    values = np.asarray(array.transpose(d.y, d.x).isel({d.y: rows, d.x: cols}).values)
    missing = np.zeros(values.shape, bool)
    for fill in fills:
        if isinstance(fill, int | float):
            missing |= values == fill
    return _raster(values, missing, bool(fills), box, rows, cols, legend_of_attrs(array.attrs))


def one_array(labels: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Return the only array with both spatial dimensions of a Dataset; a DataArray as it is."""
    if isinstance(labels, xr.DataArray):
        return labels
    d = georeference.dims(labels)
    names = [str(k) for k, v in labels.data_vars.items() if {d.y, d.x} <= set(v.dims)]
    if len(names) != 1:
        call = f"labels[{names[0]!r}]" if names else "a DataArray with dimensions y and x"
        raise ArgumentTypeError(f"labels must be one raster, got a Dataset with {names}: pass one, {call}")
    return labels[names[0]]


def _placed(array: xr.DataArray, crs: Any, near: GeoBox) -> GeoBox:
    """Return the grid of a raster of labels; without a CRS it must be cell by cell on the grid of the embeddings."""
    if crs is not None:
        marks = {"spatial_ref", "crs_wkt", "grid_mapping_name", "GeoTransform"}
        bare = array.drop_vars([k for k, c in array.coords.items() if c.ndim == 0 and marks & set(c.attrs)])
        bare = bare.drop_attrs(deep=False).drop_encoding()
        return georeference.geobox(bare.odc.assign_crs(CRS(crs.to_wkt())))
    try:
        return georeference.geobox(array)
    except MissingCRSError:
        if array.odc.crs is not None:
            raise
    # Raises for anything that is wrong beside the missing CRS.
    box = georeference.geobox(array.odc.assign_crs(near.crs))
    tolerance = abs(near.resolution.x) / 1000
    if box.shape != near.shape or not np.allclose(box.boundingbox.bbox, near.boundingbox.bbox, rtol=0, atol=tolerance):
        raise MissingCRSError(
            'the raster of labels states no CRS, and is not on the grid of the embeddings: pass crs="EPSG:..."'
        )
    return box


def _raster(
    values: Array, missing: Array, states_nodata: bool, box: GeoBox, rows: slice, cols: slice, legend: Legend
) -> Raster:
    """Return the window `rows`, `cols` of a raster on the grid `box`."""
    if values.dtype.kind == "f":
        nan = np.isnan(values)
        states_nodata, missing = states_nodata or bool(nan.any()), missing | nan
    t = box.transform
    x, y = apply(t, cols.start, rows.start)
    moved = Affine(t.a, t.b, x, t.d, t.e, y)
    return Raster(values, missing, states_nodata, moved, box.crs, np.array(box.boundingbox.bbox), legend)


def _window(transform: Affine, shape: tuple[int, int], source: CRS, near: GeoBox) -> tuple[slice, slice]:
    """Return rows and columns of a raster around a grid in any CRS; all where the grid has no finite place there."""
    step = max(abs(near.resolution.x), abs(near.resolution.y))
    outline = near.extent.to_crs(source, resolution=step)
    x0, y0, x1, y1 = outline.boundingbox.bbox
    place = np.array([apply(~transform, x, y) for x in (x0, x1) for y in (y0, y1)])
    if not np.isfinite(place).all():
        return slice(0, shape[0]), slice(0, shape[1])
    low, high = np.floor(place.min(axis=0)).astype(int) - 2, np.ceil(place.max(axis=0)).astype(int) + 2
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, shape[::-1])
    if source.geographic and not transform.b and not transform.d:
        # A meridian has several names: where they differ by whole turns, all columns are read.
        west, east = sorted((transform.c, transform.c + transform.a * shape[1]))
        if x0 < west or x1 > east:
            left, right = 0, shape[1]
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def not_overlapping(raster: Raster, box: GeoBox, *, what: str = "class") -> str:
    """Return a message with the extents of a raster and a grid that do not overlap."""
    return (
        f"no {what} of the raster of {'labels' if what == 'class' else what + 's'} is within the embeddings: the "
        f"raster spans {raster.bounds.round(6).tolist()} in {crs_name(raster.crs)}, the embeddings "
        f"{[round(v, 6) for v in box.boundingbox.bbox]} in {crs_name(box.crs)}"
    )


# ---- which values are classes ---------------------------------------------------------------------------------------


def nodata_values(nodata: Any) -> tuple[float, ...] | None:
    """Return the argument `nodata` as numbers; None stays None.

    Raises
    ------
    ArgumentTypeError
        For anything but a number, or several.
    """
    if nodata is None:
        return None
    several = nodata if isinstance(nodata, Sequence | np.ndarray | set | frozenset) else [nodata]
    try:
        if isinstance(nodata, str | bytes | bool):
            raise TypeError
        return tuple(float(v) for v in several)
    except (TypeError, ValueError):
        raise ArgumentTypeError(f"nodata must be a number, or several; got {nodata!r}") from None


def classes_in(raster: Raster, nodata: tuple[float, ...] | None, named: Sequence[Any]) -> tuple[list[int], Array]:
    """Return the classes of a raster, increasing, and the position of each pixel's class among them (-1: none).

    Parameters
    ----------
    nodata : tuple of float or None
        Values that are not a class, beside those that the raster states; empty: every value is a class.
    named : sequence
        Values that the caller gives a name, which are classes therefore.

    Raises
    ------
    LabelsError
        For fractions, for no class at all, and for values that many rasters hold where they have no class, in a raster
        that does not state whether it does.
    """
    values, missing = raster.values, raster.missing
    for v in nodata or ():
        missing = missing | (np.isnan(values) if np.isnan(v) and values.dtype.kind == "f" else values == v)
    used = values[~missing]
    if values.dtype.kind == "f":
        _check_integers(used)
    classes = [int(v) for v in np.unique(used)]
    if not classes:
        raise LabelsError(
            "the raster of labels holds no class there: all its values are nodata "
            f"({sorted({v.item() for v in np.unique(values)})[:5]}). If they are classes, pass nodata=()"
        )
    _check_evidence(raster, classes, nodata, {*named, *raster.legend.names})
    if len(classes) > 255:
        raise LabelsError(
            f"a raster of labels must hold at most 255 classes, found {len(classes)} different values, {classes[0]} to "
            f"{classes[-1]}: fit a measurement by regression, fit_head('ridge', emb, raster), or divide it into classes"
        )
    return classes, np.where(missing, -1, np.searchsorted(classes, np.where(missing, classes[0], values)))


def _check_integers(values: Array) -> None:
    fractions = values[~(values == np.floor(values)) | ~np.isfinite(values)]
    if fractions.size:
        raise LabelsError(
            f"a raster of labels must hold integers, found fractions such as {fractions[0]:g}, which are a "
            "measurement. Fit a regression, fit_head('ridge', emb, raster) or fit_head('forest', emb, raster); or "
            "divide it into classes, (raster > 0.5).where(raster.notnull()); or pass the value that marks no class, "
            "nodata="
        )
    largest = float(values[np.abs(values).argmax()]) if values.size else 0.0
    if abs(largest) >= 2**53:
        raise LabelsError(f"classes must be small integers, found {largest!r}: pass nodata={largest!r}")


def _check_evidence(raster: Raster, classes: list[int], nodata: Any, named: set[Any]) -> None:
    """Refuse values that look like nodata in a raster that states no nodata; warn where 0 is taken for a class."""
    if nodata is not None or raster.states_nodata or raster.values.dtype.kind == "b":
        return
    fills = {*USUAL_FILLS, 255} if raster.values.dtype == np.uint8 or max(classes) == 255 else set(USUAL_FILLS)
    doubtful = [v for v in classes if v in fills and v not in named]
    if doubtful:
        raise LabelsError(
            f"{doubtful[0]} in the raster of labels may be a class or mark places without one, and the raster states "
            f'no nodata: pass nodata={doubtful[0]}, or, if it is a class, name it, names={{{doubtful[0]}: "..."}}'
        )
    if 0 in classes and 0 not in named:
        warnings.warn(
            "0 is taken for a class, because the raster of labels states no nodata: pass nodata=0 if it marks places "
            'without one, or names={0: "..."} if it is one',
            stacklevel=2,
        )


def unstated_fills(numbers: Array, *, eight_bits: bool = False) -> list[float]:
    """Return values that mark missing numbers: usual marks that are farther from the others than these spread.

    Parameters
    ----------
    numbers : array
        Of any shape; NaN is ignored.
    eight_bits : bool
        Whether they are of 8 bits, whose marks are 254 and 255.

    Examples
    --------
    >>> unstated_fills(np.array([0.0, 40, 100, -9999])), unstated_fills(np.array([-30.0, -9, -1, 20]))
    ([-9999.0], [])
    """
    known = numbers[np.isfinite(numbers)].astype("float64")
    if not known.size:
        return []
    usual = (*USUAL_FILLS, *_FLOAT_FILLS, *((254, 255) if eight_bits else ()))
    found = {v: np.isclose(known, v, rtol=1e-6, atol=0) for v in usual}
    others = known[~np.logical_or.reduce(list(found.values()))]
    if not others.size:
        return []
    low, high = others.min(), others.max()
    far = max(high - low, 1.0)
    return [float(v) for v, at in found.items() if at.any() and (v - high > far or low - v > far)]


# ---- which class a cell has -----------------------------------------------------------------------------------------


def lattice_majority(positions: Array, transform: Affine, source: CRS, box: GeoBox, classes: int) -> Array:
    """Return the class (rows, cols) in which most lattice points of each cell are.

    Parameters
    ----------
    positions : (h, w) int
        Position of the class of each pixel of a raster; -1 where there is none.
    transform, source
        Transform and CRS of the raster.
    box : GeoBox
        Grid of the result, north-up. A cell has as many lattice points along its side as the raster has pixels there,
        at most `MAX_LATTICE`.
    classes : int
        Number of classes.

    Returns
    -------
    (rows, cols) int32
        Of equals the lower position. -1 where less than half of the points have a class, -2 where none has.
    """
    pixels = _pixels_per_cell(box, transform, source)
    n = int(np.clip(np.ceil(pixels - 1e-6), 1, MAX_LATTICE))
    rows, cols = box.shape
    out = np.full((rows, cols), -2, "int32")
    inner = (np.arange(n) + 0.5) / n
    # Rows per pass, so that its arrays have about two million elements.
    step = max(1, 2_000_000 // max(cols * max(n * n, classes), 1))
    for top in range(0, rows, step):
        band = np.arange(top, min(top + step, rows))
        row, col = np.meshgrid(
            (band[:, None] + inner).ravel(), (np.arange(cols)[:, None] + inner).ravel(), indexing="ij"
        )
        classes_at = _look_up(positions, transform, source, box, col.ravel(), row.ravel())
        cell = np.repeat(np.arange(len(band)), n)[:, None] * cols + np.repeat(np.arange(cols), n)[None]
        has_class = classes_at >= 0
        flat = classes_at[has_class] * (len(band) * cols) + cell.ravel()[has_class]
        counts = np.bincount(flat, minlength=classes * len(band) * cols).reshape(classes, len(band), cols)
        total = counts.sum(axis=0)
        winner = np.where(total >= n * n / 2, counts.argmax(axis=0), -1)
        out[top : top + len(band)] = np.where(total > 0, winner, -2)
    return out


def lattice_mean(values: Array, missing: Array, transform: Affine, source: CRS, box: GeoBox) -> tuple[Array, Array]:
    """Return the mean (rows, cols) of a raster in each cell, and the share of the cell that has a value.

    Parameters
    ----------
    values : (h, w) float64
        Pixels of a raster.
    missing : (h, w) bool
        Pixels without a value.
    transform, source
        Transform and CRS of the raster.
    box : GeoBox
        Grid of the result, north-up.

    Returns
    -------
    (rows, cols) float64, (rows, cols) float64
        NaN and 0 where no lattice point has a value.
    """
    n = int(np.clip(np.ceil(_pixels_per_cell(box, transform, source) - 1e-6), 1, MAX_LATTICE_OF_MEANS))
    rows, cols = box.shape
    mean, share = np.full((rows, cols), np.nan), np.zeros((rows, cols))
    positions = np.where(missing, -1, np.arange(values.size).reshape(values.shape))
    inner = (np.arange(n) + 0.5) / n
    step = max(1, 2_000_000 // max(cols * n * n, 1))
    for top in range(0, rows, step):
        band = np.arange(top, min(top + step, rows))
        row, col = np.meshgrid(
            (band[:, None] + inner).ravel(), (np.arange(cols)[:, None] + inner).ravel(), indexing="ij"
        )
        at = _look_up(positions, transform, source, box, col.ravel(), row.ravel())
        at = at.reshape(len(band), n, cols, n)
        has_value = at >= 0
        count = has_value.sum(axis=(1, 3))
        total = np.where(has_value, values.ravel()[np.maximum(at, 0)], 0.0).sum(axis=(1, 3))
        share[band] = count / n**2
        mean[band] = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    return mean, share


def _look_up(positions: Array, transform: Affine, source: CRS, box: GeoBox, col: Array, row: Array) -> Array:
    """Return the class of a raster at places of a grid counted in cells; -1 where there is none."""
    x, y = _into(box, source, col, row)
    if source.geographic and not transform.b:
        # A meridian has several names: the one nearest to the middle of the raster counts.
        middle = transform.c + transform.a * positions.shape[1] / 2
        x = x + 360 * np.round((middle - x) / 360)
    c, r = apply(~transform, np.asarray(x), np.asarray(y))
    inside = np.isfinite(c) & np.isfinite(r)
    c, r = (np.floor(np.where(inside, v, -1)).astype(int) for v in (c, r))
    inside &= (r >= 0) & (r < positions.shape[0]) & (c >= 0) & (c < positions.shape[1])
    return np.where(inside, positions[np.where(inside, r, 0), np.where(inside, c, 0)], -1)


def _pixels_per_cell(box: GeoBox, transform: Affine, source: CRS) -> float:
    """Return the number of raster pixels along the longer side of the middle cell of a grid."""
    corners = np.array([[box.shape[1] / 2 + dx, box.shape[0] / 2 + dy] for dx, dy in ((0, 0), (1, 0), (0, 1))])
    x, y = _into(box, source, corners[:, 0], corners[:, 1])
    col, row = apply(~transform, x, y)
    longest = max(np.hypot(col[1] - col[0], row[1] - row[0]), np.hypot(col[2] - col[0], row[2] - row[0]))
    return float(longest) if np.isfinite(longest) else 1.0


def _into(box: GeoBox, source: CRS, col: Array, row: Array) -> tuple[Array, Array]:
    """Return the coordinates in the CRS `source` of places of a grid counted in cells."""
    x, y = apply(box.transform, col, row)
    if source == box.crs:
        return x, y
    return cast(tuple[Array, Array], Transformer.from_crs(box.crs.proj, source.proj, always_xy=True).transform(x, y))


# ---- legends --------------------------------------------------------------------------------------------------------


def legend_of_attrs(attrs: Mapping[Any, Any]) -> Legend:
    """Return the legend in CF flags (`flag_values`, `flag_meanings`, `flag_colors`), of xarray or of a file's tags.

    Flags of different lengths give an empty legend.
    """
    values = _integers(attrs.get("flag_values"))
    meanings = _words(attrs.get("flag_meanings"))
    colors = _words(attrs.get("flag_colors"))
    names = dict(zip(values, meanings, strict=True)) if len(values) == len(meanings) else {}
    shades = dict(zip(values, colors, strict=True)) if len(values) == len(colors) else {}
    return Legend(names, {k: c for k, c in shades.items() if re.fullmatch(r"#[0-9a-fA-F]{6}", c)})


def legend_of_file(raster: Any) -> Legend:
    """Return the legend of an open rasterio dataset.

    Tags come before GDAL's attribute table, that before category names, and that before the colour table.
    """
    tags = legend_of_attrs({**raster.tags(), **raster.tags(1)})
    names, colors = dict(tags.names), dict(tags.colors)
    described = _as_vrt(raster)
    if described is not None:
        rows, shades = _attribute_table(described.find("GDALRasterAttributeTable"))
        categories = [(c.text or "").strip() for c in described.findall("CategoryNames/Category")]
        names = {code: name for code, name in enumerate(categories) if name} | rows | names
        colors = shades | colors
    try:
        table = raster.colormap(1)
    except ValueError:
        table = {}
    return Legend(names, {code: f"#{r:02x}{g:02x}{b:02x}" for code, (r, g, b, *_) in table.items()} | colors)


def _as_vrt(raster: Any) -> Any:
    """Return the first band as GDAL describes it in XML, the only place where rasterio shows category names."""
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
    """Return names and colours by value of GDAL's attribute table in XML."""
    if table is None:
        return {}, {}
    columns = [(f.findtext("Name", "").lower(), f.findtext("Usage", "")) for f in table.findall("FieldDefn")]
    usage = [u for _, u in columns]
    value = next((i for i, (name, u) in enumerate(columns) if u == _VALUE or name == "value"), None)
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


def _integers(value: Any) -> list[int]:
    if value is None:
        return []
    if isinstance(value, str):
        numbers = re.findall(r"-?\d+", value)
    else:
        numbers = np.atleast_1d(np.asarray(value, dtype=object)).ravel().tolist()
    try:
        return [int(v) for v in numbers]
    except (TypeError, ValueError):
        return []


def _words(value: Any) -> list[str]:
    """Return words separated by blanks, or the items of a list (also as JSON, as tags hold it)."""
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
