"""Sentinel-2 products as ESA's EOPF writes them, of any pixels: groups, attributes and encodings of real products.

The layout follows products of the EOPF sample service (processors 2.5.6 and 2.6.2) and of its converter to GeoZarr.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from pyproj import CRS

NAME = "S2A_MSIL2A_20220612T101601_N0400_R065_T32TPT_20220612T162514"
GSD = {"B01": 60, "B02": 10, "B03": 10, "B04": 10, "B05": 20, "B06": 20, "B07": 20, "B08": 10, "B8A": 20, "B09": 60}
GSD |= {"B11": 20, "B12": 20}


def groups_of(
    bands: Mapping[str, np.ndarray],
    *,
    west: float,
    north: float,
    epsg: int,
    classes: np.ndarray | None = None,
    offset: float | None = -0.1,
    crs: Literal["arrays", "root", "root, lower case"] = "arrays",
    name: str = NAME,
    properties: Mapping[str, Any] | None = None,
) -> xr.DataTree:
    """Return the tree of a product.

    `bands` are DN at 10 m as published, `classes` SCL at 20 m. Coarser bands are every second or sixth pixel.
    """

    def group(step: int, arrays: Mapping[str, tuple[np.ndarray, dict[str, Any]]]) -> xr.Dataset:
        data = {n: (("y", "x"), v, a | stated(step, v.shape)) for n, (v, a) in arrays.items()}
        rows, columns = next(iter(arrays.values()))[0].shape
        coords = {"y": north - step * (np.arange(rows) + 0.5), "x": west + step * (np.arange(columns) + 0.5)}
        return xr.Dataset(data, coords).chunk(y=64, x=64)

    def stated(step: int, shape: tuple[int, ...]) -> dict[str, Any]:
        if crs != "arrays":
            return {}
        bbox = [west, north - step * shape[0], west + step * shape[1], north]
        transform = [step, 0, west, 0, -step, north, 0, 0, 1]
        place = {"proj:epsg": epsg, "proj:shape": list(shape), "proj:transform": transform, "proj:bbox": bbox}
        return place | {"proj:wkt2": CRS(epsg).to_wkt()}

    def band(b: str) -> dict[str, Any]:
        attrs = {"long_name": f"BOA reflectance from MSI acquisition at spectral band {b.lower()}", "valid_min": 1}
        attrs |= {"units": "digital_counts", "valid_max": 65535, "scale_factor": 1e-4, "_FillValue": np.uint16(0)}
        return attrs | ({} if offset is None else {"add_offset": offset})

    tree: dict[str, xr.Dataset] = {}
    for step in (10, 20, 60):
        own = {b: v for b, v in bands.items() if GSD[b] == step or (step == 60 and GSD[b] == 20)}
        if own:
            factor = step // 10
            arrays = {b.lower(): (v[::factor, ::factor], band(b)) for b, v in own.items()}
            tree[f"/measurements/reflectance/r{step}m"] = group(step, arrays)
    if classes is not None:
        attrs = {"long_name": "Scene classification data, based on Sen2Cor processor"}
        tree["/conditions/mask/l2a_classification/r20m"] = group(20, {"scl": (classes, attrs)})
        tree["/conditions/mask/l2a_classification/r60m"] = group(60, {"scl": (classes[::3, ::3], attrs)})
        tree["/quality/probability/r20m"] = group(20, {"cld": (classes, {})})
        tree["/quality/mask/r10m"] = group(10, {"b02": (bands["B02"].astype("uint8"), {})})
    angles = xr.Dataset({"mean_sun_angles": ("angle", [30.0, 150.0])}, {"angle": ["zenith", "azimuth"]})
    tree["/conditions/geometry"] = angles
    root = xr.DataTree.from_dict(tree)
    known = {"datetime": "null", "start_datetime": "2022-06-12T10:16:01.024Z", "platform": "sentinel-2a"}
    known |= {
        "processing:version": name.split("_N")[1][:2] + "." + name.split("_N")[1][2:4],
        "product:type": "S02MSIL2A",
    }
    key = "horizontal_crs_code" if crs == "root, lower case" else "horizontal_CRS_code"
    root.attrs = {
        "other_metadata": {"band_description": {}, **({key: f"EPSG:{epsg}"})},
        "stac_discovery": {"type": "Feature", "id": f"{name}.SAFE", "properties": known | dict(properties or {})},
    }
    return root


def write(tree: xr.DataTree, folder: Path, *, zarr_format: Literal[2, 3] = 2, name: str = NAME) -> Path:
    """Write the store of a product."""
    path = folder / f"{name}.zarr"
    tree.to_zarr(path, zarr_format=zarr_format, consolidated=zarr_format == 2)
    return path
