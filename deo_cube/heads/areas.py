"""Measure areas of maps: of a cell in each row, and the mean of a map over its area."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["cell_areas", "mean_of"]

Array = NDArray[Any]


def mean_of(values: xr.DataArray) -> tuple[float, float]:
    """Return the mean of a map (y, x) over the area of its cells with a value, and that area in hectares."""
    import dask

    x = spatial_dims(values)[1]
    valid = values.notnull()
    total, count = dask.compute(values.where(valid, 0.0).astype("float64").sum(x), valid.sum(x))
    area = cell_areas(values)
    covered = float((count.values * area).sum())
    mean = float((total.values * area).sum() / covered) if covered else float("nan")
    return mean, covered / 1e4


def cell_areas(array: xr.DataArray) -> Array:
    """Return the area in square metres of a cell of each row of an array.

    In a projection whose scale is near 1, as UTM, it is that of the grid; in degrees and in Mercator's projection it is
    measured on the ellipsoid in the middle of each row.
    """
    box = geobox(array)
    crs, t = box.crs.proj, box.transform
    rows, cols = box.shape
    name = str(crs.coordinate_operation.method_name) if crs.coordinate_operation else ""
    if not crs.is_geographic and ("Mercator" not in name or "Transverse" in name):
        return np.full(rows, abs(t.a * t.e) * crs.axis_info[0].unit_conversion_factor ** 2)
    from pyproj import Geod, Transformer

    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    geod = crs.get_geod() or Geod(ellps="WGS84")
    left = t.c + (cols // 2) * t.a
    areas = np.empty(rows)
    for row in range(rows):
        top = t.f + row * t.e
        lon, lat = to_degrees.transform([left, left + t.a, left + t.a, left], [top, top, top + t.e, top + t.e])
        areas[row] = abs(geod.polygon_area_perimeter(lon, lat)[0])
    return areas
