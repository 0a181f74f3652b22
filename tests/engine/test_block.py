"""Tests of deo_cube.engine.block: pixels as the encoder takes them, by NumPy on the CPU and by torch elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.cube.radiometry import Radiometry
from deo_cube.engine.block import EmbedBlock
from deo_cube.engine.embed import prepare


@pytest.fixture(scope="module")
def block() -> EmbedBlock:
    p = prepare(deo_cube.synthetic_cube(size=64, times=1), "tiny")
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
    radiometry = Radiometry("dn", scale=scale[0], add=(scale[1],), nodata=nodata, scl_invalid=(), why=())
    other = EmbedBlock(block.ref, block.plan, radiometry, block.channels, scl=False, hide_scl=False, dtype="float32")
    by_numpy = other._canonical(values, hidden, 0, values.dtype).numpy()
    # What has crossed to a device are tensors.
    there = None if hidden is None else torch.from_numpy(hidden)
    by_torch = other._canonical(torch.from_numpy(values), there, 0, values.dtype).numpy()
    np.testing.assert_array_equal(by_numpy, by_torch)
    assert np.isfinite(by_numpy).all()
    assert by_numpy.dtype == np.float32
