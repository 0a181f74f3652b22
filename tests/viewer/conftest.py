"""A small store, the cube that it was embedded from, and the tile at a place."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import deo_cube


@pytest.fixture(scope="session")
def cube() -> Any:
    return deo_cube.synthetic_cube(size=128, times=2, seed=1, gaps=False)


@pytest.fixture(scope="session")
def store(cube: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of 32 x 32 patches by `tiny`."""
    path = tmp_path_factory.mktemp("view") / "scene.zarr"
    cube.deo.embed("tiny").deo.to_zarr(path, progress=False)
    return path


@pytest.fixture(scope="session")
def cube_path(cube: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    cube.to_zarr(path, zarr_format=3, consolidated=False)
    return path


def tile_at(lon: float, lat: float, z: int) -> tuple[int, int]:
    """Return x and y of the web-map tile at a place."""
    n = 1 << z
    return int((lon + 180) / 360 * n), int((1 - math.asinh(math.tan(math.radians(lat))) / math.pi) / 2 * n)
