"""What xarray, netCDF, rioxarray and odc-geo do with embeddings: as `embed` returns them, and as a store opens."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray
import xarray as xr
from packaging.version import Version

import deo_cube
from deo_cube import embed, open_embeddings
from deo_cube.errors import StoreMismatchError

pytestmark = pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")

#: Texts of a Zarr store open as NumPy's StringDType, which xarray could neither append nor write to netCDF before.
needs_strings = pytest.mark.skipif(
    Version(xr.__version__) < Version("2026.9"), reason=f"xarray {xr.__version__} cannot write StringDType"
)


@pytest.fixture
def cube(make_cube: Callable[..., xr.Dataset]) -> xr.Dataset:
    """Three dates, three blocks a side of which the first is short, with text and numbers along time."""
    ds = make_cube((110, 120), times=3)
    ids = np.array(["a", "b", "c"], object)
    return ds.assign_coords(item_ids=("time", ids), cloud=("time", [1.0, np.nan, 3.0]))


@pytest.fixture
def lazy(cube: xr.Dataset) -> xr.DataArray:
    return embed(cube, "means", block=48)


@pytest.fixture(params=["float16", "float32", "int8"])
def opened(request: pytest.FixtureRequest, cube: xr.Dataset, tmp_path: Path) -> xr.DataArray:
    embed(cube, "means", block=48, dtype=request.param).deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    return open_embeddings(tmp_path / "emb.zarr")


@pytest.fixture
def half(lazy: xr.DataArray, tmp_path: Path) -> xr.DataArray:
    """A store of float16, where the dtype plays no part."""
    lazy.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    return open_embeddings(tmp_path / "emb.zarr")


def reopened(path: Path) -> xr.DataArray:
    return xr.open_zarr(path, decode_coords="all")["embeddings"]


def check(back: xr.DataArray, emb: xr.DataArray) -> None:
    """Values, coordinates and place are those of `emb`."""
    xr.testing.assert_equal(back.astype("float32").compute(), emb.astype("float32").compute())
    assert back.rio.crs == emb.rio.crs
    assert back.odc.geobox == emb.odc.geobox


def test_xarray_writes_lazy_embeddings_once_their_chunks_are_even(lazy: xr.DataArray, tmp_path: Path) -> None:
    # Blocks start at tile borders of the world grid, so the first is shorter: that is what Zarr's chunks cannot do.
    with pytest.raises(ValueError, match="uniform chunk sizes"):
        lazy.to_zarr(tmp_path / "ragged.zarr")
    lazy.chunk(y=16, x=16).to_zarr(tmp_path / "even.zarr")
    check(reopened(tmp_path / "even.zarr"), lazy)
    lazy.deo.to_zarr(tmp_path / "ours.zarr", progress=False)  # blocks and shards coincide
    check(open_embeddings(tmp_path / "ours.zarr"), lazy)


def test_a_store_is_written_again_by_xarray_in_other_chunks(opened: xr.DataArray, tmp_path: Path) -> None:
    assert not any(c.encoding for c in opened.coords.values())
    opened.chunk(y=16, x=16).to_dataset().to_zarr(tmp_path / "again.zarr")
    check(reopened(tmp_path / "again.zarr"), opened)
    opened.load().to_zarr(tmp_path / "loaded.zarr")
    check(reopened(tmp_path / "loaded.zarr"), opened)


@needs_strings
def test_dates_are_appended_by_xarray(opened: xr.DataArray, tmp_path: Path) -> None:
    even = opened.chunk(y=16, x=16).to_dataset()
    even.isel(time=[0]).to_zarr(tmp_path / "grown.zarr")
    even.isel(time=[1, 2]).to_zarr(tmp_path / "grown.zarr", append_dim="time")
    check(reopened(tmp_path / "grown.zarr"), opened)


def test_netcdf_takes_float32(opened: xr.DataArray, lazy: xr.DataArray, tmp_path: Path) -> None:
    for name, emb in {"opened": opened, "lazy": lazy}.items():
        emb.astype("float32").to_netcdf(tmp_path / f"{name}.nc")
        with xr.open_dataset(tmp_path / f"{name}.nc", decode_coords="all") as back:
            check(back["embeddings"], emb)


def test_rioxarray_and_odc_take_float32(opened: xr.DataArray, tmp_path: Path) -> None:
    one = opened.isel(time=0).astype("float32").compute()
    one.rio.to_raster(tmp_path / "rio.tif")
    one.odc.write_cog(tmp_path / "odc.tif")
    for name in ("rio.tif", "odc.tif"):
        with rioxarray.open_rasterio(tmp_path / name) as back:
            np.testing.assert_array_equal(back.values, one.values)
            assert back.rio.crs == one.rio.crs
            assert back.rio.transform() == one.rio.transform()
    assert one.rio.reproject("EPSG:3857").rio.crs.to_epsg() == 3857
    assert one.odc.reproject("EPSG:3857").odc.crs.epsg == 3857
    opened.isel(time=0).deo.to_cog(tmp_path / "ours.tif")  # of any dtype
    with rioxarray.open_rasterio(tmp_path / "ours.tif") as back:
        np.testing.assert_array_equal(back.values, one.values)


def test_dates_of_a_store_are_kept_again(half: xr.DataArray, tmp_path: Path) -> None:
    cut = {
        "one": half.isel(time=1),
        "a list of one": half.isel(time=[1]),
        "by label": half.sel(time="2024-06-11"),
        "a slice": half.sel(time=slice("2024-06-11", None)),
        "by plain xarray": reopened(tmp_path / "emb.zarr").isel(time=1),
    }
    for name, part in cut.items():
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            kept = part.deo.to_zarr(tmp_path / f"{name}.zarr", progress=False)
        assert kept.dims == part.dims
        assert (np.ravel(kept.time) == np.ravel(part.time)).all()
        assert np.ravel(kept.item_ids).tolist() == np.ravel(part.item_ids).tolist()
        if name != "by plain xarray":  # whose margin is kept with it
            check(kept, part)


def test_pieces_are_put_together_and_travel(half: xr.DataArray) -> None:
    together = xr.concat([half.isel(time=[t]) for t in range(3)], "time")
    xr.testing.assert_equal(together.compute(), half.compute())
    sent = pickle.loads(pickle.dumps(half))
    xr.testing.assert_identical(sent.compute(), half.compute())
    assert isinstance(half.item_ids.data, np.ndarray)
    assert isinstance(half.cloud.data, np.ndarray)


def follow(message: str) -> xr.Dataset:
    """Open a store by the call that a message names."""
    call = re.search(r"xr\.open_zarr\(.*?decode_coords='all'\)", message)
    assert call is not None, message
    return eval(call[0], {"xr": xr})


def test_a_copy_by_xarray_opens_where_its_attributes_are_right(half: xr.DataArray, tmp_path: Path) -> None:
    whole = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all").drop_encoding().chunk(y=16, x=16)
    whole.to_zarr(tmp_path / "copy.zarr")
    check(open_embeddings(tmp_path / "copy.zarr"), half)
    with pytest.raises(StoreMismatchError, match="progress record"):
        deo_cube.verify_store(tmp_path / "copy.zarr")
    whole.isel(time=[2]).to_zarr(tmp_path / "date.zarr")
    check(open_embeddings(tmp_path / "date.zarr"), half.isel(time=[2]))


@pytest.mark.parametrize(
    "cut", [{"y": slice(2, 20)}, {"x": slice(0, 16)}, {"embedding": slice(3)}, {"y": slice(None, None, -1)}]
)
def test_a_cut_by_xarray_is_not_taken_for_the_whole(half: xr.DataArray, tmp_path: Path, cut: dict) -> None:
    whole = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all").drop_encoding()
    part = whole.isel(cut).chunk(y=16, x=16)
    part.to_zarr(tmp_path / "part.zarr")
    with pytest.raises(StoreMismatchError, match="xr.open_zarr") as refused:
        open_embeddings(tmp_path / "part.zarr")
    check(follow(str(refused.value))["embeddings"], part["embeddings"])


def test_a_shifted_copy_is_not_placed_by_the_old_attributes(half: xr.DataArray, tmp_path: Path) -> None:
    whole = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all").drop_encoding().chunk(y=16, x=16)
    whole.assign_coords(x=whole.x + 40).to_zarr(tmp_path / "shifted.zarr")
    with pytest.raises(StoreMismatchError, match="xr.open_zarr"):
        open_embeddings(tmp_path / "shifted.zarr")


def test_a_copy_without_our_attributes_names_the_call_that_opens_it(half: xr.DataArray, tmp_path: Path) -> None:
    half.chunk(y=16, x=16).to_dataset().to_zarr(tmp_path / "bare.zarr")
    with pytest.raises(StoreMismatchError, match="xr.open_zarr") as refused:
        open_embeddings(tmp_path / "bare.zarr")
    check(follow(str(refused.value))["embeddings"], half)


@needs_strings
def test_dates_that_another_program_appended_to_a_store_are_noticed(lazy: xr.DataArray, tmp_path: Path) -> None:
    lazy.isel(time=[0, 1]).deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    plain = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all").load().isel(time=[0])
    more = plain.assign_coords(time=plain.time + np.timedelta64(99, "D")).drop_encoding()
    for variable in more.variables.values():
        variable.encoding = {}
    more.to_zarr(tmp_path / "emb.zarr", append_dim="time")
    with pytest.raises(StoreMismatchError, match="3 dates"):
        open_embeddings(tmp_path / "emb.zarr")


@needs_strings
def test_root_attributes_are_left_out_for_netcdf(half: xr.DataArray, tmp_path: Path) -> None:
    plain = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all")
    with pytest.raises(TypeError, match="geoemb"):
        plain.astype("float32").to_netcdf(tmp_path / "plain.nc")
    plain.drop_attrs(deep=False).astype("float32").to_netcdf(tmp_path / "plain.nc")
    with xr.open_dataset(tmp_path / "plain.nc", decode_coords="all") as back:
        check(back["embeddings"], plain["embeddings"])
