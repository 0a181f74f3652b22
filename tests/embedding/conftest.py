"""Every test of embeddings may use the encoder `means` of `deo_cube.testing`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import xarray as xr

from deo_cube.testing import cube_at, registered_means


@pytest.fixture(autouse=True)
def means_encoder() -> Iterator[str]:
    with registered_means() as alias:
        yield alias


@pytest.fixture
def make_cube() -> Callable[..., xr.Dataset]:
    """Make a cube of random DN on a given place of the world grid."""
    return cube_at
