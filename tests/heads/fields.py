"""Synthetic embeddings with class structure on a real grid, and labels of them. For tests of laws, not of quality."""

from __future__ import annotations

import json

import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import assign_grid
from deo_cube.testing import CountingScheduler


def truth(rows: int, cols: int) -> np.ndarray:
    """Three classes: left, right, and a disc in the middle."""
    i, j = np.mgrid[:rows, :cols]
    label = (j >= cols // 2).astype(int)
    label[(i - rows / 2) ** 2 + (j - cols / 2) ** 2 < (min(rows, cols) / 5) ** 2] = 2
    return label


def embeddings(
    rows=24,
    cols=32,
    dim=6,
    times=0,
    *,
    crs="EPSG:32632",
    corner=(500_000.0, 5_200_000.0),
    cell=80.0,
    north_up=True,
    noise=0.1,
    seed=0,
    dtype="float32",
    invalid=(),
    names=("y", "x"),
) -> xr.DataArray:
    """Embeddings (time, embedding, y, x), or without time for times=0; `invalid` are (row, col) set to NaN."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(3, dim))
    n = max(times, 1)
    v = centres[truth(rows, cols)].transpose(2, 0, 1)[None] + noise * rng.normal(size=(n, dim, rows, cols))
    valid = np.ones((n, rows, cols), "float32")
    for r, c in invalid:
        v[:, :, r, c], valid[:, r, c] = np.nan, 0
    dims = ("time", "embedding", *names)
    a = xr.DataArray(v.astype(dtype), dims=dims, name="embeddings", attrs={"deo_cube:model": "make-believe"})
    a = a.assign_coords(valid=(("time", *names), valid))
    if times:
        a = a.assign_coords(time=np.array([f"{2019 + i}-06-15" for i in range(times)], "datetime64[ns]"))
    else:
        a = a.isel(time=0)
    x0, y0 = corner
    transform = Affine(cell, 0, x0, 0, -cell, y0) if north_up else Affine(cell, 0, x0, 0, cell, y0 - rows * cell)
    if not north_up:
        a = a.isel({names[0]: slice(None, None, -1)})
    return assign_grid(a, GeoBox((rows, cols), transform, crs), dims=names)


def on_dask(a: xr.DataArray, rows: int, cols: int) -> xr.DataArray:
    y, x = (d for d in a.dims if d not in ("time", "embedding"))
    return a.chunk({y: rows, x: cols, "embedding": -1} | ({"time": 1} if "time" in a.dims else {}))


#: A scheduler that fails the test which computes.
no_compute = CountingScheduler(max_computes=0)


def clicks(emb, n=6, seed=0):
    """Return `n` clicked points of each class."""
    rng, label = np.random.default_rng(seed), truth(emb.sizes["y"], emb.sizes["x"])
    return [
        (float(emb.x[c]), float(emb.y[r]), ("left", "right", "disc")[k])
        for k in range(3)
        for r, c in rng.permutation(np.argwhere(label == k))[:n]
    ]


def raster(emb):
    """Return a raster of the classes 1, 2 and 3."""
    a = xr.DataArray(truth(emb.sizes["y"], emb.sizes["x"]).astype("uint8") + 1, dims=("y", "x"))
    return a.assign_coords({k: emb.coords[k] for k in ("y", "x", "spatial_ref")})


def with_patch(emb, patch=4):
    """Return embeddings that state the size of a patch in pixels."""
    return emb.assign_attrs({"deo_cube:plan": json.dumps({"patch": patch})})
