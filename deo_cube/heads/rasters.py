"""Rasters of labels, a file or a DataArray in any CRS and resolution, read where they are wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.errors import MissingCRSError
from deo_cube.heads.cells import apply

__all__ = ["located", "read_around"]

Array = NDArray[Any]


def read_around(labels: Any, crs: Any, near: GeoBox) -> tuple[Array, Affine, Any, int | None, Array]:
    """Values (rows, cols), transform, CRS (odc) and nodata of a raster of labels around a grid; and all that it spans.

    A map of a continent is not read for one valley. Values are empty where the two lie apart.

    Raises
    ------
    FileNotFoundError, MissingCRSError, ValueError
        If there is no such file, it states no CRS and none is given, or it has several layers.
    """
    from odc.geo.crs import CRS

    if isinstance(labels, xr.DataArray):
        d = grid.dims(labels)
        extra = [k for k in labels.dims if k not in (d.y, d.x)]
        if any(labels.sizes[k] > 1 for k in extra):
            raise ValueError(f"a raster of labels has one layer, got {dict(labels.sizes)}: select one along {extra}")
        one = labels.isel(dict.fromkeys(extra, 0))
        if crs is not None:
            import odc.geo.xr  # noqa: F401

            one = one.odc.assign_crs(crs)
        box = grid.geobox(one)
        fill = one.attrs.get("_FillValue", one.encoding.get("_FillValue"))
        rows, cols = _window(box.transform, tuple(box.shape), box.crs, near)
        values = np.asarray(one.transpose(d.y, d.x).isel({d.y: rows, d.x: cols}).values)
        transform, source = box.transform, box.crs
    else:
        import rasterio
        from rasterio.windows import Window

        with rasterio.open(located(labels)) as r:
            if r.count != 1:
                raise ValueError(f"a raster of labels has one band, {labels} has {r.count}: open it and select one")
            if r.crs is None and crs is None:
                raise MissingCRSError(f'{labels} states no CRS: pass crs="EPSG:..."')
            transform, source, fill = r.transform, CRS(r.crs.to_wkt() if r.crs is not None else crs), r.nodata
            box = GeoBox(r.shape, transform, source)
            rows, cols = _window(transform, r.shape, source, near)
            size = max(cols.stop - cols.start, 0), max(rows.stop - rows.start, 0)
            values = r.read(1, window=Window(cols.start, rows.start, *size)) if all(size) else np.empty((0, 0))
    missing = None if fill is None or not np.isfinite(fill) else int(fill)
    x, y = apply(transform, cols.start, rows.start)
    moved = Affine(transform.a, transform.b, x, transform.d, transform.e, y)
    return values, moved, source, missing, np.array(box.boundingbox.bbox)


def located(path: str | Path) -> str:
    """A path that exists, or an address that GDAL follows (``https://``, ``s3://``, ``/vsi...``) as it is."""
    text = str(path)
    if "://" in text or text.startswith("/vsi"):
        return text
    if not Path(path).exists():
        raise FileNotFoundError(f"labels not found at {path}")
    return text


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
    return slice(int(top), int(bottom)), slice(int(left), int(right))
