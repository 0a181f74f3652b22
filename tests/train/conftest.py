"""Small real-shaped sources for the trainer's tests: written here, read through the package's own readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def cube(size: int = 96, times: int = 2, seed: int = 0) -> xr.Dataset:
    """A cube of smooth fields in DN, with a strip of no data (0)."""
    import rioxarray  # noqa: F401

    random = np.random.default_rng(seed)
    coarse = random.uniform(300, 3000, (times, len(BANDS), size // 8 + 2, size // 8 + 2))
    fine = np.kron(coarse, np.ones((8, 8)))[..., :size, :size] + random.normal(0, 50, (times, len(BANDS), size, size))
    values = fine.clip(1, 9999).astype("uint16")
    values[..., : size // 12] = 0
    ds = xr.Dataset(
        {b: (("time", "y", "x"), values[:, i]) for i, b in enumerate(BANDS)},
        coords={
            "time": np.array(["2021-06-01", "2021-07-01"][:times], dtype="datetime64[ns]"),
            "y": 5_000_000 - 10.0 * np.arange(size) - 5,
            "x": 500_000 + 10.0 * np.arange(size) + 5,
        },
    )
    for b in BANDS:
        ds[b].attrs |= {"units": "dn", "nodata": 0}
    return ds.rio.write_crs(32632)


@pytest.fixture(scope="session")
def cube_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cube") / "cube.zarr"
    cube().to_zarr(path)
    return path


@pytest.fixture(scope="session")
def images_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for c, colour in enumerate(((200, 40, 40), (40, 200, 40), (40, 40, 200))):
        (root / f"class{c}").mkdir()
        for i in range(1, 121, 6):
            a = np.clip(np.array(colour) + random.normal(0, 30, (40, 40, 3)), 0, 255).astype("uint8")
            Image.fromarray(a).save(root / f"class{c}" / f"class{c}_{i}.png")
    return root


@pytest.fixture(scope="session")
def cube_source(cube_path: Path) -> str:
    return f"{cube_path},units=dn,offset=0,nodata=0"
