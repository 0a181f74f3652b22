from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.cube.open import open_cube
from deo_cube.errors import MissingExtraError


@pytest.fixture
def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=64, times=1)[["B02", "B03"]].reset_coords(drop=True)


def test_what_is_written_is_opened_as_it_is_stored(cube: xr.Dataset, tmp_path: Path) -> None:
    cube.to_zarr(tmp_path / "c.zarr", consolidated=False)
    cube.to_netcdf(tmp_path / "c.nc")
    cube.isel(time=0).B02.rio.to_raster(tmp_path / "c.tif")
    for name in ("c.zarr", "c.nc"):
        found = open_cube(tmp_path / name)
        assert found.B02.chunks is not None
        assert found.B02.dtype == cube.B02.dtype
        np.testing.assert_array_equal(found.B02.values, cube.B02.values)
    assert (open_cube(tmp_path / "c.tif")[0].values == cube.B02[0].values).all()


def test_a_name_that_says_nothing_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "cube.xyz").touch()
    with pytest.raises(ValueError, match=r"wanted a name that ends in \.zarr"):
        open_cube(tmp_path / "cube.xyz")
    with pytest.raises(FileNotFoundError, match="no cube at"):
        open_cube(tmp_path / "cube.zarr")


def test_without_a_reader_of_netcdf_the_message_installs_one(
    cube: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube.to_netcdf(tmp_path / "c.nc")
    kept = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("netCDF4", "h5netcdf"):
            raise ImportError(name)
        return kept(name, *rest)

    monkeypatch.setattr("deo_cube.cube.open.find_spec", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="pip install netCDF4"):
        open_cube(tmp_path / "c.nc", engine="netcdf4")
