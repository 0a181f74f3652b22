"""An encoder that costs nothing, and cubes for it: what is left is the engine. For `soak` and `size`."""

from __future__ import annotations

import functools
from typing import Any

import dask.array as da
import numpy as np
import torch
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.registry import register_encoder

BANDS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
PATCH = 8


def means(batch: torch.Tensor) -> torch.Tensor:
    """Patch means of each band ``(B, 10, h, w)``, less the tile's mean, so that the tile matters too."""
    patches = torch.nn.functional.avg_pool2d(batch, PATCH)
    return patches - batch.mean((2, 3), keepdim=True)


def register(tile: int) -> str:
    """Register the encoder for tiles of `tile` pixels without a halo; returns its name."""
    normalization = Normalization("fixed", "fixed", (0.0,) * 10, (1.0,) * 10)
    card = ModelCard(
        name=f"null_{tile}.v1",
        alias=f"null{tile}",
        summary="patch means: costs nothing, knows nothing",
        architecture={"family": "callable"},
        stems=(Stem("ms", BANDS, (normalization,)),),
        layers=(Layer("means", 10, PATCH),),
        tile=tile,
        halo=0,
        weights=Weights("untrained", ""),
        batch=8,
    )
    register_encoder(card, functools.partial(functools.partial, means))
    return card.alias


def cube(shape: tuple[int, int], *, times: int, chunk: int, array: Any = None) -> xr.Dataset:
    """A cube of `shape` pixels at the CRS origin, ten bands of DN in chunks of `chunk` pixels.

    `array` makes a band from (index, shape, chunks); default: all pixels 1000, so that any size costs nothing.
    """
    make = array or (lambda i, shape, chunks: da.full(shape, 1000, chunks=chunks, dtype="uint16"))
    bands = {
        name: (("time", "y", "x"), make(i, (times, *shape), (1, chunk, chunk)), {"units": "DN"})
        for i, name in enumerate(BANDS)
    }
    ds = xr.Dataset(bands, attrs={"boa_add_offset": 0})
    ds = ds.assign_coords(time=np.datetime64("2024-06-01", "ns") + np.arange(times) * np.timedelta64(10, "D"))
    return georeference.assign_grid(ds, GeoBox(shape, Affine(10, 0, 0, 0, -10, 0), "EPSG:32633"))
