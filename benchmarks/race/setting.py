"""What is raced over: a cube on disk, as Zarr and as GeoTIFF with the same pixels, and an encoder."""

from __future__ import annotations

import functools
import os
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import xarray as xr

import deo_cube
from deo_cube.embedding import process, transfer
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import EncoderRef, describe_timm, resolve

__all__ = ["Setting", "card_of", "linked_cube", "prepare", "ref_of"]

CHUNK = 512
#: Larger cubes than this repeat one chunk of a smaller one: drawing a landscape takes longer than embedding it.
DRAWN, DRAWN_FROM = 2304, 1792


@dataclass(frozen=True)
class Setting:
    """One model, one cube, and where both lie. Small and plain, so that it travels to child processes as JSON."""

    model: str
    """A model of deo_cube, or of timm (then with random weights: speed does not depend on them)."""
    size: int
    """Side of the cube, pixels of 10 m."""
    folder: str
    workers: int = 0
    """Cores to use; 0: all that the process may."""
    runtime: str = "torch"
    """Library that runs the network: "torch" or "openvino"."""
    precision: str = "float32"
    tile: int | None = None
    """Tiles that OpenVINO compiles, pixels; the model's by default."""

    @property
    def zarr(self) -> str:
        """The cube as a Zarr array (band, y, x)."""
        return f"{self.folder}/cube_{self.size}.zarr"

    @property
    def tif(self) -> str:
        """The same pixels as a tiled GeoTIFF, alone in its folder (TorchGeo indexes folders)."""
        return f"{self.folder}/tif_{self.size}/cube.tif"

    @property
    def cores(self) -> int:
        """Cores that every runner may use."""
        return self.workers or process.cpu_threads()

    @property
    def km2(self) -> float:
        """Area of the cube."""
        return self.size**2 * 1e-4

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return card_of(self.model)

    def encoder(self) -> Any:
        """The encoder on the CPU: one a process, the same that `embed` uses."""
        ref = ref_of(self.model)
        tile = self.tile or ref.card.tile
        chosen = process.choose_runtime(self.runtime, ref, device="cpu", precision=self.precision, tile=tile)
        return process.encoder(ref, "cpu", precision=self.precision, runtime=chosen, tile=tile)

    def encode(self, pixels: Any) -> Any:
        """A tensor [B, C, H, W] of DN to float32 maps [B, D, h, w], in this setting's runtime and precision."""
        with transfer.autocast_context(self.precision, "cpu"):
            return self.encoder().encode(pixels).float()

    def batch(self, tile: int) -> int:
        """Tiles a forward pass: what deo_cube finds best, given to every runner."""
        return process.default_batch(ref_of(self.model), tile, "cpu")

    def cube(self, chunks: Any = None) -> xr.DataArray:
        """The cube, lazily opened; on Dask with `chunks`."""
        with warnings.catch_warnings():
            # Blocks are whole tiles; chunks on disk are what they are.
            warnings.filterwarnings("ignore", message="The specified chunks separate the stored chunks")
            ds = xr.open_zarr(self.zarr, decode_coords="all", mask_and_scale=False, chunks=chunks)
        return ds["dn"]


@functools.cache
def card_of(model: str) -> ModelCard:
    """The model's card, registered if it is timm's."""
    try:
        return deo_cube.card(model)
    except deo_cube.errors.UnknownModelError:
        options = {"img_size": 256} if model.startswith("vit") else {}
        bands = deo_cube.card("tiny").bands
        card = describe_timm(f"race_{model}", model, bands=bands, tile=256, halo=0, options=options)
        return deo_cube.register_encoder(card)


@functools.cache
def ref_of(model: str) -> EncoderRef:
    """The model's reference, made once: the alternatives need not pay for hashing weights again and again."""
    return resolve(card_of(model))


def prepare(setting: Setting, *, tif: bool = True) -> None:
    """Write the cube of a setting, once; pixels are synthetic (a landscape with ten bands), values are DN."""
    if setting.size > DRAWN and not Path(setting.zarr).exists():
        small = replace(setting, size=DRAWN_FROM)
        prepare(small, tif=False)
        linked_cube(small, setting.size)
    if not Path(setting.zarr).exists():
        scene = deo_cube.synthetic_cube(size=setting.size, times=1, clouds=False, gaps=False)
        bands = list(setting.card.bands)
        array = scene[bands].isel(time=0, drop=True).to_dataarray("band").transpose("band", "y", "x").astype("uint16")
        array.attrs = {}
        array.encoding = {}
        ds = array.to_dataset(name="dn").chunk(band=-1, y=CHUNK, x=CHUNK)
        # Under another name until it is whole: half a cube would look like nodata, and cost next to nothing.
        ds.to_zarr(f"{setting.zarr}.part", mode="w", zarr_format=3, consolidated=True)
        os.rename(f"{setting.zarr}.part", setting.zarr)
    if tif and not Path(setting.tif).exists():
        import rasterio
        import rioxarray  # noqa: F401

        Path(setting.tif).parent.mkdir(parents=True, exist_ok=True)
        with rasterio.Env(GDAL_NUM_THREADS=1):
            part = setting.tif.replace("cube.tif", "part.tiff")
            setting.cube().load().rio.to_raster(
                part, driver="GTiff", tiled=True, blockxsize=CHUNK, blockysize=CHUNK, compress="zstd"
            )
            os.rename(part, setting.tif)


def linked_cube(small: Setting, size: int) -> Setting:
    """A cube as large as you like in next to no disk space: every chunk is the first chunk of `small`, linked."""
    large = Setting(small.model, size, small.folder, small.workers)
    if Path(large.zarr).exists():
        return large
    first = Path(small.zarr, "dn", "c", "0", "0", "0")
    array = small.cube()
    left, top, step = float(array.x[0]), float(array.y[0]), float(array.x[1] - array.x[0])
    lazy = xr.DataArray(
        da.zeros((array.sizes["band"], size, size), dtype=array.dtype, chunks=(-1, CHUNK, CHUNK)),
        dims=array.dims,
        coords={"band": array.band, "y": top - step * np.arange(size), "x": left + step * np.arange(size)},
    ).assign_coords(spatial_ref=array.spatial_ref)
    lazy.to_dataset(name="dn").to_zarr(large.zarr, zarr_format=3, consolidated=True, compute=False)
    for row in range(-(-size // CHUNK)):
        folder = Path(large.zarr, "dn", "c", "0", str(row))
        folder.mkdir(parents=True, exist_ok=True)
        for column in range(-(-size // CHUNK)):
            os.link(first, folder / str(column))
    return large
