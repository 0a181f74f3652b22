"""Rasters of classes, a file or a DataArray in any CRS and resolution, read where they are needed."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.cube.georeference import crs_name
from deo_cube.errors import ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.heads.cells import apply
from deo_cube.heads.legends import Legend, of_array, of_file
from deo_cube.heads.tables import located

__all__ = ["Raster", "classes_in", "nodata_values", "read_around"]

Array = NDArray[Any]

_FILLS = (-1, -9, -99, -999, -9999, -99999, -32768, 32767, 65535, -2147483648, 2147483647, 4294967295)
"""Codes that many rasters hold where they have no class, whether they say so or not."""


@dataclass(frozen=True)
class Raster:
    """Values around a grid.

    Parameters
    ----------
    values : (rows, cols)
        As stored; empty where the raster and the grid lie apart.
    missing : (rows, cols) bool
        Where the raster itself says that there is no value.
    says_nodata : bool
        Whether it says anywhere what marks a place without class: a nodata value, a mask, or NaN.
    transform : Affine
        Of the values.
    crs : odc.geo.crs.CRS
        Of the transform.
    spans : (4,) float
        Bounds of the whole raster.
    legend : Legend
        Names and colours that it carries.
    """

    values: Array
    missing: Array
    says_nodata: bool
    transform: Affine
    crs: Any
    spans: Array
    legend: Legend


def read_around(labels: Any, crs: Any, near: GeoBox, *, ignore_nodata: bool = False) -> Raster:
    """Read a raster of labels around a grid: a map of a continent is not read for one valley.

    `crs` (pyproj or None) decides, whatever the raster says of itself. With `ignore_nodata` its nodata value is a value
    as any other.

    Raises
    ------
    InputNotFoundError, MissingCRSError, LabelsError
        If there is no such file, it states no CRS and none is given, or it has several layers.
    """
    if isinstance(labels, xr.DataArray | xr.Dataset):
        return _of_array(labels, crs, near, ignore_nodata)
    import rasterio
    from odc.geo.crs import CRS
    from rasterio.enums import MaskFlags
    from rasterio.errors import RasterioError
    from rasterio.windows import Window

    path = located(labels)
    try:
        with rasterio.open(path) as r:
            if r.count != 1:
                raise LabelsError(
                    f"a raster of labels has one band, {labels} has {r.count}: select one, "
                    f"rioxarray.open_rasterio({str(labels)!r}).sel(band=1)"
                )
            if r.crs is None and crs is None:
                raise MissingCRSError(f'{labels} states no CRS: pass crs="EPSG:..."')
            source = CRS(crs.to_wkt() if crs is not None else r.crs.to_wkt())
            transform = r.transform
            box = GeoBox(r.shape, transform, source)
            rows, cols = _window(transform, r.shape, source, near)
            size = max(cols.stop - cols.start, 0), max(rows.stop - rows.start, 0)
            window = Window(cols.start, rows.start, *size)
            values = r.read(1, window=window) if all(size) else np.empty((0, 0), r.dtypes[0])
            masked = MaskFlags.all_valid not in r.mask_flag_enums[0] and not ignore_nodata
            missing = r.read_masks(1, window=window) == 0 if masked and all(size) else np.zeros(values.shape, bool)
            legend = of_file(r)
    except RasterioError as error:
        raise LabelsError(f"{labels} cannot be read as a raster of labels ({error})") from error
    return _raster(values, missing, masked, transform, rows, cols, source, box, legend)


def _of_array(labels: xr.DataArray | xr.Dataset, crs: Any, near: GeoBox, ignore_nodata: bool) -> Raster:
    array = one_array(labels)
    d = georeference.dims(array)
    extra = [k for k in array.dims if k not in (d.y, d.x)]
    if any(array.sizes[k] > 1 for k in extra):
        one = next(k for k in extra if array.sizes[k] > 1)
        raise LabelsError(
            f"a raster of labels has one layer, got {dict(array.sizes)}: select one, labels.isel({{{str(one)!r}: 0}})"
        )
    if array.dtype.kind not in "biuf":
        raise LabelsError(f"a raster of labels holds whole numbers, got dtype {array.dtype}: number the classes first")
    array = array.isel(dict.fromkeys(extra, 0))
    box = _placed(array, crs, near)
    stated = [array.attrs.get(k, array.encoding.get(k)) for k in ("_FillValue", "missing_value", "nodata")]
    fills = [] if ignore_nodata else [v for s in stated if s is not None for v in np.atleast_1d(s).tolist()]
    rows, cols = _window(box.transform, tuple(box.shape), box.crs, near)
    values = np.asarray(array.transpose(d.y, d.x).isel({d.y: rows, d.x: cols}).values)
    missing = np.zeros(values.shape, bool)
    for fill in fills:
        if isinstance(fill, int | float):
            missing |= values == fill
    return _raster(values, missing, bool(fills), box.transform, rows, cols, box.crs, box, of_array(array.attrs))


def one_array(labels: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """The only array on the map of a Dataset; a DataArray as it is."""
    if isinstance(labels, xr.DataArray):
        return labels
    d = georeference.dims(labels)
    names = [str(k) for k, v in labels.data_vars.items() if {d.y, d.x} <= set(v.dims)]
    if len(names) != 1:
        raise ArgumentTypeError(f"labels are one raster, got a Dataset with {names}: pass one, labels[{names[0]!r}]")
    return labels[names[0]]


def _placed(array: xr.DataArray, crs: Any, near: GeoBox) -> GeoBox:
    """Grid of a raster of labels; one without CRS that lies cell by cell on the grid of the embeddings has theirs."""
    import odc.geo.xr  # noqa: F401
    from odc.geo.crs import CRS

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
    # What is wrong beside the lack of a CRS is said here.
    box = georeference.geobox(array.odc.assign_crs(near.crs))
    slack = abs(near.resolution.x) / 1000
    if box.shape != near.shape or not np.allclose(box.boundingbox.bbox, near.boundingbox.bbox, rtol=0, atol=slack):
        raise MissingCRSError(
            'the raster of labels states no CRS, and is not on the grid of the embeddings: pass crs="EPSG:..."'
        )
    return box


def _raster(
    values: Array, missing: Array, says: bool, transform: Affine, rows: slice, cols: slice, crs: Any, box: GeoBox,
    legend: Legend,
) -> Raster:  # fmt: skip
    if values.dtype.kind == "f":
        holes = np.isnan(values)
        says, missing = says or bool(holes.any()), missing | holes
    x, y = apply(transform, cols.start, rows.start)
    moved = Affine(transform.a, transform.b, x, transform.d, transform.e, y)
    return Raster(values, missing, says, moved, crs, np.array(box.boundingbox.bbox), legend)


def nodata_values(nodata: Any) -> tuple[float, ...] | None:
    """The argument `nodata` as numbers; None where it is not given.

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
        raise ArgumentTypeError(f"nodata is a number, or several; got {nodata!r}") from None


def classes_in(raster: Raster, nodata: tuple[float, ...] | None, named: Sequence[Any]) -> tuple[list[int], Array]:
    """Classes of a raster, rising, and the position of each pixel's among them (-1: none).

    Parameters
    ----------
    nodata : tuple of float or None
        Values that are no class, beside what the raster says; empty: every value is one.
    named : sequence
        Values that the caller gives a name, which are classes therefore.

    Raises
    ------
    LabelsError
        For fractions, for no class at all, and for values that many rasters hold where they have no class, in a raster
        that does not say whether it does.
    """
    values, missing = raster.values, raster.missing
    for v in nodata or ():
        missing = missing | (np.isnan(values) if np.isnan(v) and values.dtype.kind == "f" else values == v)
    there = values[~missing]
    if values.dtype.kind == "f":
        odd = there[~(there == np.floor(there)) | ~np.isfinite(there)]
        if odd.size:
            raise LabelsError(
                f"a raster of labels holds whole numbers, found fractions such as {odd[0]:g}, which are a measurement. "
                "Cut it into classes first, (raster > 0.5).where(raster.notnull()), or name the value that marks "
                "no class, nodata="
            )
        largest = float(there[np.abs(there).argmax()]) if there.size else 0.0
        if abs(largest) >= 2**53:
            raise LabelsError(f"classes are small whole numbers, found {largest!r}: pass nodata={largest!r}")
    present = [int(v) for v in np.unique(there)]
    if not present:
        raise LabelsError(
            "the raster of labels holds no class there: all its values are nodata "
            f"({sorted({v.item() for v in np.unique(values)})[:5]}). If they are classes, pass nodata=()"
        )
    _check_evidence(raster, present, nodata, {*named, *raster.legend.names})
    if len(present) > 255:
        raise LabelsError(
            f"the raster of labels holds {len(present)} different values, {present[0]} to {present[-1]}: a map holds "
            "255 classes. Cut a measurement into classes first"
        )
    return present, np.where(missing, -1, np.searchsorted(present, np.where(missing, present[0], values)))


def _check_evidence(raster: Raster, present: list[int], nodata: Any, named: set[Any]) -> None:
    """Refuse values that look like nodata in a raster that does not say what its nodata is; say what 0 is taken for."""
    if nodata is not None or raster.says_nodata or raster.values.dtype.kind == "b":
        return
    fills = {*_FILLS, 255} if raster.values.dtype == np.uint8 or max(present) == 255 else set(_FILLS)
    doubtful = [v for v in present if v in fills and v not in named]
    if doubtful:
        raise LabelsError(
            f"{doubtful[0]} in the raster of labels may be a class or mark places without one, and the raster states "
            f'no nodata: pass nodata={doubtful[0]}, or, if it is a class, name it, names={{{doubtful[0]}: "..."}}'
        )
    if 0 in present and 0 not in named:
        warnings.warn(
            "0 is taken for a class, as the raster of labels states no nodata: pass nodata=0 if it marks places "
            'without one, or names={0: "..."} if it is one',
            stacklevel=2,
        )


def apart(raster: Raster, box: GeoBox) -> str:
    """Say where a raster and a grid lie that do not meet."""
    return (
        f"no class of the raster of labels lies on the embeddings: the raster spans {raster.spans.round(6).tolist()} "
        f"in {crs_name(raster.crs)}, the embeddings {[round(v, 6) for v in box.boundingbox.bbox]} in "
        f"{crs_name(box.crs)}"
    )


def _window(transform: Affine, shape: tuple[int, int], source: Any, near: GeoBox) -> tuple[slice, slice]:
    """Rows and columns of a raster around a grid in any CRS; all where the grid has no finite place in the raster's."""
    step = max(abs(near.resolution.x), abs(near.resolution.y))
    outline = near.extent.to_crs(source, resolution=step)
    x0, y0, x1, y1 = outline.boundingbox.bbox
    place = np.array([apply(~transform, x, y) for x in (x0, x1) for y in (y0, y1)])
    if not np.isfinite(place).all():
        return slice(0, shape[0]), slice(0, shape[1])
    low, high = np.floor(place.min(axis=0)).astype(int) - 2, np.ceil(place.max(axis=0)).astype(int) + 2
    (left, top), (right, bottom) = np.maximum(low, 0), np.minimum(high, shape[::-1])
    if source.geographic and not transform.b and not transform.d:
        # The same meridian has several names: where they differ by whole turns, all columns are looked at.
        west, east = sorted((transform.c, transform.c + transform.a * shape[1]))
        if x0 < west or x1 > east:
            left, right = 0, shape[1]
    return slice(int(top), int(bottom)), slice(int(left), int(right))
