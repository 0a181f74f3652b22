"""STAC items whose assets are real files of this machine or of a server on loopback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin


def write(path, values, *, west=400000.0, north=5300000.0, crs="EPSG:32632", resolution=10.0):
    values = np.asarray(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {
        "driver": "GTiff",
        "count": 1,
        "dtype": values.dtype,
        "height": values.shape[0],
        "width": values.shape[1],
    }
    with rasterio.open(
        path, "w", **profile, crs=crs, transform=from_origin(west, north, resolution, resolution), nodata=0
    ) as file:
        file.write(values, 1)


def product(folder, name, bands, *, when="2022-03-05T10:29:21Z", offset=None, west=400000.0, crs=32632, **properties):
    """An item with real files: `bands` gives the pixels, `offset` what raster:bands states."""
    from pyproj import Transformer

    assets = {}
    for band, values in bands.items():
        write(folder / name / f"{band}.tif", values, west=west, crs=f"EPSG:{crs}")
        stated = {"data_type": str(values.dtype), "nodata": 0}
        if offset is not None and band.lower() != "scl":
            stated |= {"scale": 1e-4, "offset": offset}
        assets[band] = {"href": str(folder / name / f"{band}.tif"), "type": "image/tiff", "raster:bands": [stated]}
    height, width = values.shape
    corners = [(west, 5300000 - 10 * height), (west + 10 * width, 5300000.0)]
    (x0, y0), (x1, y1) = (Transformer.from_crs(crs, 4326, always_xy=True).transform(*c) for c in corners)
    ring = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    return {
        "type": "Feature",
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
        "id": name,
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "bbox": [x0, y0, x1, y1],
        "properties": {
            "datetime": when,
            "proj:epsg": crs,
            "proj:shape": [height, width],
            "proj:transform": [10.0, 0.0, west, 0.0, -10.0, 5300000.0],
            **properties,
        },
        "links": [],
        "assets": assets,
    }


def flat(value, shape=(32, 32), dtype="uint16"):
    return np.full(shape, value, dtype)


def remote(item, folder, url):
    """The item with its files below `folder` at `url`."""
    item = json.loads(json.dumps(item))
    for asset in item["assets"].values():
        asset["href"] = f"{url}/{Path(asset['href']).relative_to(folder).as_posix()}"
    return item
