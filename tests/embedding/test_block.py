"""Tests of deo_cube.embedding.block: pixels as the encoder takes them, by NumPy on the CPU and by torch elsewhere."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

import deo_cube
from deo_cube.cube import georeference
from deo_cube.cube.units import Radiometry
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import EmbedOptions
from deo_cube.embedding.prepare import prepare
from deo_cube.encoder import registry
from deo_cube.errors import EncoderOutputError
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at


@pytest.fixture(scope="module")
def block() -> EmbedBlock:
    p = prepare(deo_cube.synthetic_cube(size=64, times=1), EmbedOptions(model="tiny"))
    return EmbedBlock(p.ref, p.plan, p.radiometry, p.channels, scl=False, hide_scl=False, dtype="float32")


@given(
    dtype=st.sampled_from(["uint8", "int16", "uint16", "int32", "float32", "float64"]),
    nodata=st.sampled_from([None, 0.0, 255.0, -9999.0, 0.5]),
    scale=st.sampled_from([(1.0, 0.0), (1.0, -1000.0), (10000.0, 0.0), (10000.0, -1000.0), (0.1, 0.0)]),
    hide=st.booleans(),
    seed=st.integers(0, 9),
)
def test_the_device_gets_the_same_numbers_as_numpy_makes(
    block: EmbedBlock, dtype: str, nodata: float | None, scale: tuple[float, float], hide: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 255, (2, len(block.channels), 8, 8)).astype(dtype)
    if values.dtype.kind == "f":
        values = (values * values.dtype.type(0.001)).astype(dtype)
        values[0, 0, 0, :3] = np.nan, np.inf, -np.inf
    if nodata is not None and values.dtype.kind == "f":
        values[1, :, 2, 2] = nodata
    hidden = rng.random((2, 8, 8)) < 0.2 if hide else None
    radiometry = Radiometry("dn", scale=scale[0], offset=(scale[1],), nodata=nodata, scl_invalid=(), reasons=())
    other = EmbedBlock(block.ref, block.plan, radiometry, block.channels, scl=False, hide_scl=False, dtype="float32")
    by_numpy = other._canonical(values, hidden, 0, values.dtype).numpy()
    # What has crossed to a device are tensors.
    there = None if hidden is None else torch.from_numpy(hidden)
    by_torch = other._canonical(torch.from_numpy(values), there, 0, values.dtype).numpy()
    np.testing.assert_array_equal(by_numpy, by_torch)
    assert np.isfinite(by_numpy).all()
    assert by_numpy.dtype == np.float32


def powers(x: torch.Tensor) -> torch.Tensor:
    """The mean of each patch of 8 pixels, of each band."""
    return torch.nn.functional.avg_pool2d(x, 8)


def cube_of(value: float, at: tuple[int, int]) -> xr.Dataset:
    """A cube of 1000 with one pixel of another value."""
    values = np.full((1, 96, 96), 1000.0, "float32")
    values[0, at[0], at[1]] = value
    ds = xr.Dataset({"B04": (("time", "y", "x"), values)}, attrs={"boa_add_offset": 0})
    ds = ds.assign_coords(time=np.array(["2024-06-01"], "datetime64[ns]"))
    return georeference.assign_grid(ds, GeoBox((96, 96), Affine(10, 0, 0, 0, -10, 0), "EPSG:32633"))


@pytest.fixture
def registered() -> Iterator[Callable[[Any], str]]:
    names: list[str] = []

    def register(function: Any) -> str:
        names.append(f"finite{len(names)}")
        known = dict(bands=["B04"], dim=1, patch=8, tile=32, statistics={"B04": (0.0, 1.0)})
        card = deo_cube.describe(names[-1], **known)
        layers = (dataclasses.replace(card.layers[0], int8_scale=20.0),)
        deo_cube.register_encoder(dataclasses.replace(card, layers=layers), lambda: function)
        return names[-1]

    yield register
    for name in names:
        registry._registered.pop(name)


OPTIONS = dict(units="dn", offset=0, nodata=None, block=32)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_where_pixels_are_valid_is_an_error(
    registered, tmp_path: Path, dtype: str, odd: float
) -> None:
    """One patch of one block, and the message names block and patch."""

    def encoder(x: torch.Tensor) -> torch.Tensor:
        maps = powers(x)
        return torch.where(maps > 1001, odd, maps)

    model = registered(encoder)
    emb = embed(cube_of(9000, (41, 70)), model=model, dtype=dtype, **OPTIONS)
    with pytest.raises(
        EncoderOutputError, match=rf"row 1, column 2.*{model} gives NaN or infinity in 1 of 16.*row 1, column 0"
    ):
        to_zarr(emb, tmp_path / "emb.zarr", progress=False)
    with pytest.raises(EncoderOutputError):
        emb.compute()
    # The message's way out: without the pixel, all is well, and only its block has less.
    mask = xr.zeros_like(cube_of(0, (0, 0))["B04"].isel(time=0, drop=True), bool)
    mask[41, 70] = True
    good = embed(cube_of(9000, (41, 70)), model=model, dtype=dtype, mask=mask, **OPTIONS).compute()
    expected = np.full((1, 1, 12, 12), 1000.0)
    expected[0, 0, 5, 8] *= 63 / 64  # a hidden pixel is given the mean of the card, here 0
    got = good.values.astype("float32") * (20 if dtype == "int8" else 1)
    np.testing.assert_allclose(got, expected, atol={"float32": 0, "float16": 0.5, "int8": 10}[dtype])
    assert float(good.valid.min()) == 1 - 1 / 64


def test_what_float16_does_not_hold_names_the_dtype_that_does(registered, tmp_path: Path) -> None:
    def encoder(x: torch.Tensor) -> torch.Tensor:
        return powers(x) * 100

    model = registered(encoder)
    with pytest.raises(EncoderOutputError, match=r"65504.*in 144 of 144|65504.*in 16 of 16.*dtype='float32'"):
        embed(cube_of(1000, (0, 0)), model=model, dtype="float16", **OPTIONS).compute()
    held = to_zarr(
        embed(cube_of(1000, (0, 0)), model=model, dtype="float32", **OPTIONS), tmp_path / "e", progress=False
    )
    np.testing.assert_array_equal(held.values, 100_000)


def test_what_lies_where_nothing_is_valid_or_in_a_halo_is_no_error(registered) -> None:
    """Large finite sums, and NaN at the rim of a tile that its halo cuts off."""

    def encoder(x: torch.Tensor) -> torch.Tensor:
        maps = powers(x) * 1e33
        maps[:, :, 0] = math.nan
        return maps

    model = registered(encoder)
    emb = embed(cube_of(1000, (0, 0)), model=model, dtype="float32", halo=8, tile=48, units="dn", offset=0, nodata=None)
    np.testing.assert_allclose(emb.values, 1e36, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_blocks_without_a_blank_pixel_have_the_vectors_of_others(dtype: str) -> None:
    """One blank pixel in the north-west tile changes no other tile of its block."""
    cube = cube_at((96, 96), times=1, row=0, col=0).astype(dtype)
    gap = cube.copy(deep=True)
    gap["B08"][0, 0, 0] = 0 if dtype == "uint16" else np.nan
    options = {"model": "means", "dtype": "float32", "halo": 0, "tile": 32, "block": 96, "units": "dn", "nodata": 0}
    whole, holed = (deo_cube.embed(c, **options).compute() for c in (cube, gap))
    np.testing.assert_array_equal(whole[..., 8:], holed[..., 8:])
    assert not np.array_equal(whole[..., :8, :8], holed[..., :8, :8])
