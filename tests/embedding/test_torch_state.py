"""What a caller has set in PyTorch changes no vector: autocast, the default dtype and device, inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import deo_cube
from deo_cube.embedding import process


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "meta device by default": lambda: torch.device("meta"),
    "inference mode": torch.inference_mode,
}


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=128, times=1).isel(time=0)


@pytest.fixture(scope="module")
def expected(cube: xr.Dataset) -> xr.DataArray:
    return cube.deo.embed("tiny", dtype="float32").compute()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_a_callers_settings_change_no_vector(
    cube: xr.Dataset, expected: xr.DataArray, state: str, scheduler: str
) -> None:
    process._encoders.clear()  # it is loaded under the caller's settings
    with STATES[state]():
        found = cube.deo.embed("tiny", dtype="float32").compute(scheduler=scheduler)
    np.testing.assert_array_equal(found, expected)
    # And the encoder that was loaded then is the same afterwards.
    np.testing.assert_array_equal(cube.deo.embed("tiny", dtype="float32").compute(), expected)


@pytest.mark.parametrize("state", STATES)
def test_a_network_that_is_converted_under_a_callers_settings_is_the_same(
    cube: xr.Dataset, state: str, tmp_path: Path
) -> None:
    pytest.importorskip("openvino")
    options: dict[str, Any] = {"dtype": "float32", "tile": 64, "halo": 0, "runtime": "openvino"}
    found = []
    for setting in (contextlib.nullcontext, STATES[state]):
        process._encoders.clear()
        with deo_cube.set_options(cache_dir=tmp_path / setting.__name__), setting():
            found.append(cube.deo.embed("tiny", **options).compute(scheduler="synchronous"))
    process._encoders.clear()
    np.testing.assert_array_equal(*found)


def test_numpy_gets_float32_under_autocast() -> None:
    encoder = deo_cube.load_encoder("tiny", device="cpu")
    pixels = np.random.default_rng(0).uniform(200, 4000, (1, 10, 64, 64))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps, vectors = encoder.encode(pixels), encoder.pool(pixels)
    assert maps.dtype == vectors.dtype == np.float32
    np.testing.assert_allclose(maps, encoder.encode(pixels), atol=0.1 * np.abs(maps).max())


@pytest.mark.parametrize("state", STATES)
def test_an_encoder_that_was_loaded_under_a_callers_settings_is_the_same(state: str) -> None:
    pixels = np.full((1, 10, 64, 64), 1200, np.uint16)
    with STATES[state]():
        encoder = deo_cube.load_encoder("tiny", device="cpu")
    assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    np.testing.assert_array_equal(encoder.encode(pixels), deo_cube.load_encoder("tiny", device="cpu").encode(pixels))
