"""Cubes, an encoder and a Dask scheduler for tests of code that uses deo_cube.

>>> from deo_cube.testing import cube_at, raise_if_dask_computes, registered_means
>>> with registered_means(), raise_if_dask_computes():
...     emb = cube_at((64, 64), chunks={"y": 32}).deo.embed("means")
>>> emb.sizes["embedding"]
20
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dask
import numpy as np
import torch
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.constants import MODEL_BANDS
from deo_cube.cube import georeference
from deo_cube.encoder import registry
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights

__all__ = [
    "CountingScheduler",
    "cube_at",
    "local",
    "means",
    "means_card",
    "raise_if_dask_computes",
    "registered_means",
]


def means(batch: torch.Tensor, patch: int = 4) -> torch.Tensor:
    """Return the means of each band over each patch, then over the whole tile: (B, C, H, W) to (B, 2 C, h, w).

    The first half depends on the patch alone, as of a convolution; the second on the tile, as of attention.
    """
    patches = torch.nn.functional.avg_pool2d(batch, patch)
    tile = batch.mean((2, 3), keepdim=True).expand(-1, -1, *patches.shape[2:])
    return torch.cat([patches, tile], 1)


def local(batch: torch.Tensor) -> torch.Tensor:
    """Return the means of each band of a blurred image over patches of 4 pixels.

    A vector depends on two pixels beyond its patch, and not on its place in the tile.
    """
    blurred = torch.nn.functional.avg_pool2d(batch, 5, stride=1, padding=2, count_include_pad=False)
    return torch.nn.functional.avg_pool2d(blurred, 4)


def means_card(**changes: Any) -> ModelCard:
    """Return the card of `means`: ten bands in DN, stride 4, tile 32, halo 4. `changes` replace its fields."""
    fields: dict[str, Any] = {
        "name": "test_means.v1",
        "alias": "means",
        "summary": "patch means and tile mean",
        "architecture": {"family": "callable"},
        "stems": (Stem("ms", MODEL_BANDS, (Normalization("fixed", "fixed", (0.0,) * 10, (1.0,) * 10),)),),
        "layers": (Layer("means", 20, 4, int8_scale=100.0),),
        "tile": 32,
        "halo": 4,
        "weights": Weights("untrained", ""),
        "batch": 3,
    }
    return ModelCard(**(fields | changes))


@contextmanager
def registered_means() -> Iterator[str]:
    """Register the encoder `means` in a `with` block, and give its alias."""
    before = dict(registry._registered)
    registry.register_encoder(means_card(), functools.partial(functools.partial, means))
    try:
        yield "means"
    finally:
        registry._registered.clear()
        registry._registered.update(before)


class CountingScheduler:
    """A scheduler for ``dask.config.set(scheduler=...)``: computes in the calling thread, and counts.

    Parameters
    ----------
    max_computes : int
        Computations after which a further one raises AssertionError.
    """

    def __init__(self, max_computes: int = 0) -> None:
        self.computes = 0
        self.max_computes = max_computes

    def __call__(self, graph: Any, keys: Any, **kwargs: Any) -> Any:
        """Compute `keys` of `graph`."""
        self.computes += 1
        if self.computes > self.max_computes:
            raise AssertionError(f"Dask computed {self.computes} times, expected at most {self.max_computes}")
        return dask.get(graph, keys, **kwargs)


@contextmanager
def raise_if_dask_computes(max_computes: int = 0) -> Iterator[CountingScheduler]:
    """Raise AssertionError in a `with` block where Dask computes more than `max_computes` times."""
    scheduler = CountingScheduler(max_computes)
    with dask.config.set(scheduler=scheduler):
        yield scheduler


def cube_at(
    shape: tuple[int, int] = (100, 120),
    *,
    times: int | None = 2,
    row: int = 7,
    col: int = 11,
    south_up: bool = False,
    chunks: Mapping[str, Any] | None = None,
    dtype: str = "uint16",
    seed: int = 0,
    world: NDArray[Any] | None = None,
    epsg: int = 32633,
    resolution: float = 10.0,
) -> xr.Dataset:
    """Return a cube of random DN that depend on band, date and place alone.

    Cubes that overlap have the same DN where they do, so that results on windows, chunks and grids can be compared.

    Parameters
    ----------
    shape : tuple of int
        Rows and columns, pixels.
    times : int, optional
        Dates, ten days apart. None: without the dimension.
    row, col : int
        Index of the north-west pixel, counted from the origin of the CRS.
    south_up : bool
        Store the southernmost row first.
    chunks : mapping, optional
        Of Dask. Default: in memory.
    dtype, seed
        Of the DN.
    world : array, optional
        DN (band, time, row, column) in place of random ones.
    epsg : int
        CRS.
    resolution : float
        Metres per pixel.
    """
    h, w = shape
    t = times or 1
    if world is None:
        # A cheap hash of band, date and world position.
        b, k, r, c = np.ogrid[0 : len(MODEL_BANDS), 0:t, row : row + h, col : col + w]
        mixed = (b * 7919 + k * 104729 + r * 31337 + c * 65537 + seed * 99991).astype(np.uint64)
        mixed ^= mixed >> np.uint64(7)
        mixed = (mixed * np.uint64(2654435761)) % np.uint64(2**31)
        world = (mixed >> np.uint64(9)) % np.uint64(3000) + 1
    values = world.astype(dtype)
    top = -row * resolution
    transform = Affine(resolution, 0, col * resolution, 0, -resolution, top)
    if south_up:
        values = values[:, :, ::-1]
        transform = Affine(resolution, 0, col * resolution, 0, resolution, top - h * resolution)
    dims = ("time", "y", "x") if times else ("y", "x")
    bands = zip(MODEL_BANDS, values if times else values[:, 0], strict=True)
    ds = xr.Dataset({name: (dims, dn, {"units": "DN"}) for name, dn in bands})
    if times:
        ds = ds.assign_coords(time=np.datetime64("2024-06-01", "ns") + np.arange(t) * np.timedelta64(10, "D"))
    ds.attrs["boa_add_offset"] = 0
    ds = georeference.assign_grid(ds, GeoBox(shape, transform, f"EPSG:{epsg}"))
    return ds.chunk(chunks) if chunks else ds
