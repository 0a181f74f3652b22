"""What a caller has set in PyTorch changes no vector: autocast, the default dtype and device, inference mode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
import xarray as xr

import deo_cube
from deo_cube.embedding import runtime


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
    runtime._encoders.clear()  # it is loaded under the caller's settings
    with STATES[state]():
        found = cube.deo.embed("tiny", dtype="float32").compute(scheduler=scheduler)
    np.testing.assert_array_equal(found, expected)
    # And the encoder that was loaded then is the same afterwards.
    np.testing.assert_array_equal(cube.deo.embed("tiny", dtype="float32").compute(), expected)


@pytest.mark.parametrize("state", STATES)
def test_an_encoder_that_was_loaded_under_a_callers_settings_is_the_same(state: str) -> None:
    pixels = np.full((1, 10, 64, 64), 1200, np.uint16)
    with STATES[state]():
        encoder = deo_cube.load_encoder("tiny", device="cpu")
    assert {p.dtype for p in encoder.network.parameters()} == {torch.float32}  # type: ignore[attr-defined]
    np.testing.assert_array_equal(encoder.encode(pixels), deo_cube.load_encoder("tiny", device="cpu").encode(pixels))
