"""Mosaics: two overlapping halves equal the whole, bit for bit; what cannot be joined is refused."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.embedding.embed import embed
from deo_cube.embedding.metadata import derivation
from deo_cube.errors import ArgumentError, ArgumentTypeError, StoreMismatchError
from deo_cube.store.mosaic import first_valid, mosaic
from deo_cube.store.open import open_embeddings, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import CountingScheduler, cube_at, registered_means

#: Of the encoder `means`: its vectors depend on the whole tile, so that every tile at an edge differs.
TILE, HALO, CORE = 32, 4, 24
SIZE = 160
OPTIONS: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}


@pytest.fixture(autouse=True, scope="module")
def encoder() -> Any:
    with registered_means():
        yield


@pytest.fixture(scope="module")
def cube() -> xr.Dataset | xr.DataArray:
    return cube_at((SIZE, SIZE), times=2)


@pytest.fixture(scope="module")
def whole(cube: Any) -> xr.DataArray:
    return embed(cube, **OPTIONS).compute()


def part(cube: Any, rows: tuple[int, int], columns: tuple[int, int], **options: Any) -> xr.DataArray:
    return embed(cube.isel(y=slice(*rows), x=slice(*columns)), **(OPTIONS | options))


@given(
    cut=st.integers(50, 110),
    overlap=st.integers(TILE, 60),
    along=st.sampled_from(["x", "y"]),
    first=st.booleans(),
)
def test_two_halves_that_overlap_by_a_tile_equal_the_whole(cube, whole, cut, overlap, along, first):
    low, high = (0, cut + overlap // 2), (cut - (overlap + 1) // 2, SIZE)
    ranges = [(low, (0, SIZE)), (high, (0, SIZE))] if along == "y" else [((0, SIZE), low), ((0, SIZE), high)]
    halves = [part(cube, *r) for r in ranges]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        joined = mosaic(halves if first else halves[::-1])
    xr.testing.assert_equal(joined.compute(), whole)
    assert joined.odc.geobox == whole.odc.geobox


def test_four_quarters_in_any_order_equal_the_whole(cube, whole):
    low, high = (0, 96), (64, SIZE)
    quarters = [part(cube, r, c) for r in (low, high) for c in (low, high)]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        xr.testing.assert_equal(mosaic([quarters[i] for i in order]).compute(), whole)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_stores_are_joined_lazily_and_written(cube, tmp_path, dtype):
    for name, columns in (("west", (0, 100)), ("east", (60, SIZE))):
        to_zarr(part(cube, (0, SIZE), columns, dtype=dtype), tmp_path / name, progress=False)
    expected = part(cube, (0, SIZE), (0, SIZE), dtype=dtype)
    with dask.config.set(scheduler=CountingScheduler(max_computes=0)):
        joined = mosaic([tmp_path / "west", str(tmp_path / "east")])
    assert derivation(joined) is None  # values of the model, of which none is changed
    written = to_zarr(joined, tmp_path / "both", progress=False)
    whole = to_zarr(expected, tmp_path / "whole", progress=False)
    assert written.dtype == whole.dtype
    xr.testing.assert_equal(written.compute(), whole.compute())
    assert verify_store(tmp_path / "both").complete
    # The mosaic has the plan of one run, so that it is joined again.
    assert json.loads(written.attrs["deo_cube:plan"]) == json.loads(expected.attrs["deo_cube:plan"])
    xr.testing.assert_equal(mosaic([open_embeddings(tmp_path / "both")]).compute(), whole.compute())


def test_the_zone_is_named_and_dropped(cube, whole):
    west, east = part(cube, (0, SIZE), (0, 100)), part(cube, (0, SIZE), (60, SIZE))
    joined = mosaic([west, east])
    zones = json.loads(joined.attrs["deo_cube:mosaic"])["edge_zone_px"]
    assert all(0 < z <= TILE for z in zones)
    # East of the cut, the west run differs from the whole in its zone only.
    differs = (west != whole.isel(x=slice(0, west.sizes["x"])).data).any(["time", "embedding", "y"]).values
    assert 0 < differs.sum() * 4 <= zones[0]
    xr.testing.assert_equal(joined.compute(), whole)


def test_an_overlap_narrower_than_a_tile_warns(cube):
    west, east = part(cube, (0, SIZE), (0, 80)), part(cube, (0, SIZE), (72, SIZE))
    with pytest.warns(UserWarning, match="overlap by 8 px, less than a tile of 32 px"):
        joined = mosaic([west, east])
    assert joined.sizes["x"] == 41  # 40, and one that the first pixel is a part of
    # Followed, the advice joins without a seam.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mosaic([west, part(cube, (0, SIZE), (80 - TILE, SIZE))])


def test_dates_are_joined(cube, whole):
    first, second = cube.isel(time=[0]), cube.isel(time=[1])
    one, two = part(second, (0, SIZE), (0, 100)), part(first, (0, 96), (60, SIZE))
    joined = mosaic([one, two]).compute()
    assert joined.time.equals(whole.time)
    assert np.isnan(joined.isel(time=0).sel(x=one.x[:10]).values).all()
    assert (joined.valid.isel(time=0).sel(x=one.x[:10]) == 0).all()
    np.testing.assert_array_equal(joined.isel(time=1, x=slice(0, 5)), one.isel(time=0, x=slice(0, 5)))


def test_missing_patches_are_filled_from_the_other(cube, whole):
    west, east = part(cube, (0, SIZE), (0, 100)).compute(), part(cube, (0, SIZE), (60, SIZE)).compute()
    hole = dict(time=0, y=slice(3, 6), x=slice(17, 19))
    west[hole] = np.nan
    west.coords["valid"][hole] = 0
    joined = mosaic([west, east])
    assert joined.chunks is None
    assert (joined.valid[hole] == 1).all()
    assert np.isfinite(joined.values).all()


def test_areas_apart_leave_a_gap(cube, whole):
    joined = mosaic([part(cube, (0, 40), (0, 40)), part(cube, (120, SIZE), (120, SIZE))]).compute()
    assert joined.shape == whole.shape
    assert np.isnan(joined.isel(y=20, x=20)).all()
    assert float(joined.valid.isel(y=20, x=20, time=0)) == 0


def test_south_up_arrays_stay_so(cube, whole):
    turned = [part(cube, (0, SIZE), c).isel(y=slice(None, None, -1)) for c in ((0, 100), (60, SIZE))]
    joined = mosaic(turned)
    np.testing.assert_array_equal(joined.values, whole.values[..., ::-1, :])
    assert (np.diff(joined.y) > 0).all()


def test_parts_of_a_run_know_their_edges(cube, whole):
    west, east = part(cube, (0, SIZE), (0, 100)), part(cube, (0, SIZE), (60, SIZE))
    # Cut by hand, the run's tiles are still those of its cube.
    joined = mosaic([west.isel(x=slice(0, 22)), east.isel(x=slice(4, None))])
    xr.testing.assert_equal(joined.compute(), whole)


def test_embeddings_of_others_are_joined_by_distance_from_the_edge():
    from tests.heads.fields import embeddings

    one = embeddings(rows=8, cols=10)
    two = embeddings(rows=8, cols=10, corner=(500_000.0 + 6 * 80, 5_200_000.0), seed=1)
    joined = mosaic([one, two])
    assert joined.sizes["x"] == 16
    np.testing.assert_array_equal(joined.isel(x=slice(0, 6)), one.isel(x=slice(0, 6)))
    np.testing.assert_array_equal(joined.isel(x=slice(10, None)), two.isel(x=slice(4, None)))


def test_what_cannot_be_joined_is_refused(cube, tmp_path):
    west = part(cube, (0, SIZE), (0, 100))
    east = part(cube, (0, SIZE), (60, SIZE))
    for other, named in (
        (east.assign_attrs({"deo_cube:model_fingerprint": "x"}), "model_fingerprint"),
        (east.isel(embedding=slice(5)), "length of vectors"),
        (part(cube, (0, SIZE), (60, SIZE), dtype="float16"), "dtype"),
        (part(cube, (0, SIZE), (60, SIZE), tile=40), "tile"),
        (part(cube_at((80, 80), epsg=32632), (0, 80), (0, 80)), "EPSG"),
        (part(cube, (0, SIZE), (61, SIZE), anchor="array"), "anchor"),
    ):
        with pytest.raises(StoreMismatchError, match=named):
            mosaic([west, other])
    with pytest.raises(ArgumentError, match="dates"):
        mosaic([west, east.isel(time=0)])
    with pytest.raises(ArgumentError, match="embs"):
        mosaic([])
    with pytest.raises(ArgumentTypeError, match="embs"):
        mosaic("emb.zarr")
    with pytest.raises(ArgumentTypeError, match="embs"):
        mosaic([west, xr.Dataset()])


def test_first_valid_of_blocks():
    a, b = np.full((2, 2, 2), np.nan), np.ones((2, 2, 2))
    a[:, 0, 0] = 5
    assert first_valid(a, b)[0].tolist() == [[5, 1], [1, 1]]
    a, b = np.full((2, 1, 2), -128, "int8"), np.full((2, 1, 2), 3, "int8")
    assert first_valid(a, b).dtype == np.int8
    assert (first_valid(a, b) == 3).all()


@pytest.mark.real
def test_two_halves_of_a_real_scene(shared: Path) -> None:
    import deo_cube

    cube = deo_cube.open_cube(shared / "data" / "places" / "harz" / "20180701_L2A.tif")
    options: dict[str, Any] = {"model": "tiny", "units": "dn", "offset": 0, "nodata": 0, "tile": 96, "halo": 16}
    whole = cube.deo.embed(**options)
    top, low = cube.isel(y=slice(0, 216)).deo.embed(**options), cube.isel(y=slice(120, None)).deo.embed(**options)
    joined = mosaic([top, low]).compute()
    np.testing.assert_array_equal(joined.values, whole.values)
