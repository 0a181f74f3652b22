"""A whole Sentinel-2 tile and a continent, planned and never read: seconds of the client, tasks, memory of a block."""

from __future__ import annotations

import time
from typing import Any

import dask
import dask.array as da
import numpy as np
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import deo_cube
from benchmarks.race.measure import memory
from deo_cube.cube import georeference
from deo_cube.embedding.plan import plan

__all__ = ["figures", "lazy_cube"]


def lazy_cube(size: int, *, chunk: int, bands: tuple[str, ...], epsg: int = 32633) -> xr.DataArray:
    """A cube of one date that would take as much memory as it says, were it read."""
    data = da.zeros((len(bands), size, size), chunks=(-1, chunk, chunk), dtype="uint16")
    cube = xr.DataArray(data, dims=("band", "y", "x"), coords={"band": list(bands)}, name="dn")
    placed: xr.DataArray = georeference.assign_grid(cube, GeoBox((size, size), Affine(10, 0, 0, 0, -10, 5000000), epsg))
    return placed


def _never(*args: Any, **kwargs: Any) -> None:
    raise AssertionError("pixels were asked for")


def _row(name: str, size: int, chunk: int, model: str, epsg: int) -> dict[str, Any]:
    bands = tuple(deo_cube.card(model).bands)
    options: dict[str, Any] = {"units": "dn", "offset": 0, "nodata": 0}
    cube = lazy_cube(size, chunk=chunk, bands=bands, epsg=epsg)
    with dask.config.set(scheduler=_never):
        start = time.perf_counter()
        p = plan(cube, model, **options)
        planned = time.perf_counter() - start
        before = memory()["now"]
        start = time.perf_counter()
        emb = deo_cube.embed(cube, model, **options)
        graphed = time.perf_counter() - start
        held = memory()["now"] - before
        start = time.perf_counter()
        one = emb.data.blocks[0, 0, 0]
        tasks = len(one.__dask_graph__().cull(list(_keys(one))).to_dict())
        first = time.perf_counter() - start
    return {
        "name": name, "pixels": f"{size} x {size}", "km2": f"{p.area_km2:,.0f}", "tiles": f"{p.tiles:,}",
        "blocks": f"{p.blocks:,}", "read": f"{p.bytes_in / 1e9:,.1f}", "written": f"{p.bytes_out / 1e9:,.1f}",
        "plan": f"{planned:.2f}", "graph": f"{graphed:.2f}", "client": f"{held:.0f}",
        "block": f"{p.bytes_per_block / 2**20:.1f}", "tasks": str(tasks), "first": f"{first:.3f}",
    }  # fmt: skip


def _keys(array: Any) -> list[Any]:
    return list(dask.core.flatten(array.__dask_keys__()))


def figures(model: str = "tiny", *, small: bool = False) -> dict[str, Any]:
    """Rows and their titles. The continent is Africa's area (30.4 million km²) as one square in equal-area metres."""
    side = int(np.sqrt(30.4e6 / 1e-4))
    cubes = [("2048 px", 2048, 1024, 32633), ("Sentinel-2 tile", 10980, 1024, 32633)]
    if not small:
        cubes.append(("Africa", side // 4096 * 4096, 4096, 6933))
    rows = [_row(name, size, chunk, model, epsg) for name, size, chunk, epsg in cubes]
    titles = {
        "pixels": "pixels, ten bands", "km2": "km²", "tiles": "tiles", "blocks": "blocks", "read": "read, GB",
        "written": "written as float16, GB", "plan": "`plan`, seconds", "graph": "`embed`, seconds",
        "client": "client's memory that it adds, MiB", "block": "a block in flight, MiB",
        "tasks": "tasks for the first block alone", "first": "seconds to cut them out",
    }  # fmt: skip
    return {"model": model, "rows": rows, "fields": titles}
