"""Time and memory of sampling 100 000 points and fields in a store of 10 000 blocks: `python -m benchmarks.sampling`.

The store holds random vectors (`--dim` of them, float16) and is written once, to `--store`.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import shapely
import xarray as xr
import zarr
from affine import Affine
from odc.geo.geobox import GeoBox

import deo_cube
from deo_cube.cube.georeference import assign_grid

CELL = 40.0
CORNER = 500_000.0, 5_200_000.0


def make_store(path: Path, blocks: int, side: int, dim: int) -> None:
    """Write a Zarr store of `blocks` x `blocks` shards, each with the same random vectors."""
    size = blocks * side
    rng = np.random.default_rng(0)
    box = GeoBox((size, size), Affine(CELL, 0, CORNER[0], 0, -CELL, CORNER[1]), "EPSG:32632")
    empty = xr.Dataset(coords={"time": np.array(["2022-06-01"], "datetime64[ns]")})
    empty["_"] = ("y", "x"), np.broadcast_to(np.float32(0), (size, size))
    assign_grid(empty, box).drop_vars("_").to_zarr(path, mode="w", zarr_format=3, consolidated=False)
    root = zarr.open_group(path, mode="r+")
    vectors = root.create_array(
        "embeddings",
        shape=(1, dim, size, size),
        chunks=(1, dim, side, side),
        dtype="float16",
        fill_value=np.nan,
        dimension_names=("time", "embedding", "y", "x"),
        attributes={"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"},
    )
    values = rng.normal(size=(1, dim, side, side)).astype("float16")
    for i in range(blocks):
        for j in range(blocks):
            vectors[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side] = values


def main() -> None:
    """Print seconds and peak memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--blocks", type=int, default=100, help="blocks along each side")
    parser.add_argument("--side", type=int, default=32, help="patches along each side of a block")
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--places", type=int, default=100_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = given.store or Path(folder) / "store.zarr"
        if not path.exists():
            start = time.perf_counter()
            make_store(path, given.blocks, given.side, given.dim)
            print(f"{given.blocks**2} blocks written in {time.perf_counter() - start:.0f} s", flush=True)
        emb = xr.open_zarr(path, consolidated=False, decode_coords="all").embeddings
        extent = given.blocks * given.side * CELL
        xy = np.random.default_rng(1).uniform(0, extent, (given.places, 2)) * [1, -1] + CORNER
        fields = shapely.buffer(shapely.points(xy), 100, quad_segs=2)
        print(f"{'':8}{'found':>10}{'seconds':>10}{'peak GB':>10}", flush=True)
        for name, places in (("points", xy), ("fields", fields)):
            start = time.perf_counter()
            sampled = deo_cube.sample(emb, list(places)).compute()
            found = int(np.isfinite(sampled.values).all(axis=-1).sum())
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
            print(f"{name:8}{found:10d}{time.perf_counter() - start:10.1f}{peak:10.2f}", flush=True)


if __name__ == "__main__":
    main()
