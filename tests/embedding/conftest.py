"""A cube whose pixels say where they are, and an encoder whose vectors can be computed by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import xarray as xr
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.encoder import registry
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.registry import register_encoder

BANDS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def means(batch: torch.Tensor, patch: int = 4) -> torch.Tensor:
    """Patch means of each band, and the tile's mean of each band: what a patch is, and what attention sees."""
    patches = torch.nn.functional.avg_pool2d(batch, patch)
    tile = batch.mean((2, 3), keepdim=True).expand(-1, -1, *patches.shape[2:])
    return torch.cat([patches, tile], 1)


def local(batch: torch.Tensor) -> torch.Tensor:
    """Patch means of a blurred image: sees two pixels beyond a patch, and does not know where it is."""
    blurred = torch.nn.functional.avg_pool2d(batch, 5, stride=1, padding=2, count_include_pad=False)
    return torch.nn.functional.avg_pool2d(blurred, 4)


def means_card(**changes: object) -> ModelCard:
    """Card of `means`: stride 4, tile 32, halo 4, DN as they are."""
    fields: dict = {
        "name": "test_means.v1",
        "alias": "means",
        "summary": "patch means and tile mean",
        "architecture": {"family": "callable"},
        "stems": (Stem("ms", BANDS, (Normalization("fixed", "fixed", (0.0,) * 10, (1.0,) * 10),)),),
        "layers": (Layer("means", 20, 4, int8_scale=100.0),),
        "tile": 32,
        "halo": 4,
        "weights": Weights("untrained", ""),
        "batch": 3,
    }
    return ModelCard(**(fields | changes))


@pytest.fixture(autouse=True)
def means_encoder() -> Iterator[str]:
    """Register `means` for the test, and forget it afterwards."""
    before = dict(registry._registered)
    register_encoder(means_card(), functools.partial(functools.partial, means))
    yield "means"
    registry._registered.clear()
    registry._registered.update(before)


@pytest.fixture
def make_cube() -> Callable[..., xr.Dataset]:
    """Make a cube of random DN on a given place of the world grid."""
    return cube_at


def cube_at(
    shape: tuple[int, int] = (100, 120),
    *,
    times: int | None = 2,
    row: int = 7,
    col: int = 11,
    south_up: bool = False,
    chunks: dict | None = None,
    dtype: str = "uint16",
    seed: int = 0,
    world: np.ndarray | None = None,
    epsg: int = 32633,
    resolution: float = 10.0,
) -> xr.Dataset:
    """Cut a cube out of an endless random world: the same pixel has the same DN in every cube that shows it.

    `row` and `col` are the world index of the north-west pixel, counted from the CRS origin.
    """
    from affine import Affine

    h, w = shape
    t = times or 1
    if world is None:
        # A cheap hash of band, date and world position.
        b, k, r, c = np.ogrid[0 : len(BANDS), 0:t, row : row + h, col : col + w]
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
    ds = xr.Dataset({n: (dims, v if times else v[0], {"units": "DN"}) for n, v in zip(BANDS, values, strict=True)})
    if times:
        ds = ds.assign_coords(time=np.datetime64("2024-06-01", "ns") + np.arange(t) * np.timedelta64(10, "D"))
    ds.attrs["boa_add_offset"] = 0
    ds = georeference.assign_grid(ds, GeoBox(shape, transform, f"EPSG:{epsg}"))
    return ds.chunk(chunks) if chunks else ds
