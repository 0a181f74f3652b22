"""The laws: same place same vector, lazy until asked, on the map exactly, nothing misread."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube import errors
from deo_cube.constants import MODEL_BANDS as BANDS
from deo_cube.cube import georeference
from deo_cube.embedding.embed import embed
from deo_cube.encoder.card import Layer
from deo_cube.encoder.encoder import Encoder
from deo_cube.testing import cube_at, means_card, raise_if_dask_computes

SMALL = {"model": "means", "dtype": "float32", "block": 48}


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("encoded")


def chunkings(n: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.sets(st.integers(1, n - 1), max_size=8).map(
        lambda cuts: tuple(int(v) for v in np.diff([0, *sorted(cuts), n]))
    )


# Law 1: same place, same vector


@given(chunkings(50), chunkings(61))
def test_any_chunks_give_the_same_bits(rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    cube = cube_at((50, 61))
    whole = embed(cube, **SMALL).compute()
    pieces = embed(cube.chunk(time=1, y=rows, x=columns), **SMALL).compute()
    xr.testing.assert_identical(whole, pieces)


def test_one_pixel_chunks_give_the_same_bits() -> None:
    cube = cube_at((20, 20), times=1)
    xr.testing.assert_identical(
        embed(cube, **SMALL).compute(), embed(cube.chunk(y=1, x=1), **SMALL).compute(scheduler="sync")
    )


@given(st.data())
def test_overlapping_cubes_agree_where_their_tiles_lie_in_both(data: st.DataObject) -> None:
    top, left = data.draw(st.integers(-40, 40)), data.draw(st.integers(-40, 40))
    large = cube_at((150, 140), times=1, row=top, col=left)
    r0, c0 = data.draw(st.integers(0, 60)), data.draw(st.integers(0, 60))
    r1, c1 = data.draw(st.integers(r0 + 60, 150)), data.draw(st.integers(c0 + 60, 140))
    small = large.isel(y=slice(r0, r1), x=slice(c0, c1))
    a, b = embed(large, **SMALL).compute(), embed(small, **SMALL).compute()
    # A tile is 32 px with a core of 24: a patch more than a tile from the edge has its whole tile inside.
    inner = b.sel(y=slice(small.y[32], small.y[-33]), x=slice(small.x[32], small.x[-33]))
    if inner.size:
        same = a.sel(y=inner.y, x=inner.x)
        assert (same.values == inner.values).all()


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_batch_size_changes_no_bit(batch_size: int) -> None:
    cube = cube_at((70, 80), times=1)
    assert embed(cube, **SMALL).compute().identical(embed(cube, batch_size=batch_size, **SMALL).compute())


@pytest.mark.parametrize("scheduler", ["sync", "threads", "processes"])
def test_schedulers_give_the_same_bits(scheduler: str) -> None:
    cube = cube_at((70, 80), times=1, chunks={"y": 33, "x": 29})
    emb = embed(cube, **SMALL)
    assert (emb.compute(scheduler=scheduler, num_workers=2).values == emb.compute(scheduler="sync").values).all()


def test_block_changes_no_bit() -> None:
    cube = cube_at((100, 90), times=1)
    one, many = embed(cube, **(SMALL | {"block": 24})), embed(cube, **(SMALL | {"block": 1000}))
    assert one.chunks != many.chunks
    assert (one.values == many.values).all()


def test_anchor_array_starts_the_tiles_at_the_corner() -> None:
    cube = cube_at((64, 64), row=5, col=9, times=1)
    a = embed(cube, anchor="array", **SMALL)
    assert a.shape[-2:] == (16, 16)
    assert a.y[0] == cube.y[:4].mean()
    assert embed(cube, **SMALL).shape[-2:] == (17, 17)


# Law 2: lazy until asked


def test_embedding_a_dask_cube_computes_nothing() -> None:
    cube = cube_at((64, 64), chunks={"time": 1, "y": 30, "x": 30})
    with raise_if_dask_computes():
        emb = embed(cube, **SMALL)
        emb.isel(time=0).sel(x=slice(0, 10**6))
        repr(emb)
        with pytest.raises(AssertionError):
            emb.compute()


def test_one_task_per_block_and_a_pick_per_array() -> None:
    cube = cube_at((240, 240), times=3, chunks={"time": 1, "y": 60, "x": 60})
    emb = embed(cube, **SMALL)
    sources = {k for b in BANDS for k in dict(cube[b].data.__dask_graph__())}
    ours = set(dict(emb.__dask_graph__())) - sources
    assert len(ours) == 3 * emb.data.npartitions
    assert len({k for k in ours if k[0].startswith("blocks-")}) == emb.data.npartitions


def test_a_slice_reads_only_its_blocks() -> None:
    read: list[tuple] = []

    def note(block: np.ndarray, block_info: dict) -> np.ndarray:
        if block_info:
            read.append(tuple(block_info[0]["chunk-location"]))
        return block

    cube = cube_at((240, 240), times=2, row=0, col=0, chunks={"time": 1, "y": 48, "x": 48})
    cube = cube.map(lambda v: v.copy(data=v.data.map_blocks(note, dtype=v.dtype, meta=v.data._meta)))
    embed(cube, **(SMALL | {"halo": 0, "tile": 24}))[1, :, 3, 14].compute(scheduler="sync")
    assert set(read) == {(1, 0, 1)}
    assert len(read) == len(BANDS)


def test_a_cube_in_memory_and_a_lazily_opened_one_are_lazy_too(tmp_path: object) -> None:
    cube = cube_at((64, 64), times=1)
    path = f"{tmp_path}/cube.zarr"
    cube.to_zarr(path, zarr_format=3, consolidated=False)
    opened = xr.open_zarr(path, chunks=None, consolidated=False, decode_coords="all", mask_and_scale=False)
    for c in (cube, opened):
        assert embed(c, **SMALL).chunks is not None
    assert (embed(cube, **SMALL).values == embed(opened, **SMALL).values).all()


# Law 3: on the map, exactly


@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize(("row", "col"), [(0, 0), (7, 11), (-13, -3)])
def test_an_image_of_its_own_coordinates_comes_out_at_its_own_coordinates(south_up: bool, row: int, col: int) -> None:
    h, w = 64, 76
    r, c = np.mgrid[row : row + h, col : col + w]
    world = np.zeros((10, 1, h, w))
    world[0, 0], world[1, 0] = c + 500, r + 500  # not negative, no nodata
    cube = cube_at((h, w), times=1, row=row, col=col, south_up=south_up, world=world, dtype="float32")
    emb = embed(cube, units="dn", offset=0, nodata=None, edge="drop", **SMALL).compute()
    # A patch mean of pixel indices is the patch's centre, less half a pixel.
    x = (emb[0, 0] - 500 + 0.5) * 10
    y = -(emb[0, 1] - 500 + 0.5) * 10
    np.testing.assert_allclose(x.values, np.broadcast_to(emb.x, x.shape), atol=1e-2)
    np.testing.assert_allclose(y.values, np.broadcast_to(emb.y.values[:, None], y.shape), atol=1e-2)
    assert (float(emb.y[1] - emb.y[0]) > 0) == south_up


@pytest.mark.parametrize("south_up", [False, True])
def test_crs_transform_and_corner_are_read_alike_by_rioxarray_and_odc(south_up: bool) -> None:
    import odc.geo.xr  # noqa: F401
    import rioxarray  # noqa: F401

    cube = cube_at((64, 64), times=1, row=7, col=11, south_up=south_up)
    emb = embed(cube, **SMALL)
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    assert emb.rio.transform() == box.transform == emb.odc.geobox.transform
    assert emb.rio.crs.to_epsg() == 32633
    west, south, east, north = emb.isel(time=0).rio.bounds()
    assert (west, north) == (80, -40)  # patches of 40 m that hold the corner pixel (110, -70)
    assert (east, south) == (760, -720)


def test_a_south_up_cube_gives_the_same_vectors_at_the_same_places() -> None:
    up, down = cube_at((64, 64), times=1), cube_at((64, 64), times=1, south_up=True)
    a, b = embed(up, **SMALL).compute(), embed(down, **SMALL).compute()
    assert (a.values == b.sortby("y", ascending=False).values).all()
    assert (a.valid.values == b.valid.sortby("y", ascending=False).values).all()


def test_degrees_and_longitude_latitude_names() -> None:
    step = 8.983152841195215e-05  # 10 m at the equator
    cube = cube_at((64, 64), times=1, row=-100, col=50, epsg=4326, resolution=step)
    named = cube.rename(x="longitude", y="latitude")
    named = georeference.assign_grid(named, georeference.geobox(cube), dims=("latitude", "longitude"))
    emb = embed(named, **SMALL)
    assert emb.dims == ("time", "embedding", "latitude", "longitude")
    assert (emb.values == embed(cube, **SMALL).values).all()
    assert emb.rio.transform() == embed(cube, **SMALL).rio.transform()


# What a cube may be


def test_without_time_the_result_has_none() -> None:
    cube = cube_at((40, 40), times=None)
    emb = embed(cube, **SMALL)
    assert emb.dims == ("embedding", "y", "x")
    assert emb.valid.dims == ("y", "x")
    with_time = embed(cube_at((40, 40), times=1), **SMALL)
    assert (emb.values == with_time.values[0]).all()


def test_a_band_dimension_in_any_order_gives_the_same() -> None:
    cube = cube_at((40, 40))
    emb = embed(cube, **SMALL).values
    stacked = cube.to_dataarray("band").assign_attrs(units="DN", boa_add_offset=0)
    for order in (("band", "time", "y", "x"), ("time", "band", "y", "x"), ("x", "y", "band", "time")):
        assert (embed(stacked.transpose(*order), **SMALL).values == emb).all()
    shuffled = stacked.isel(band=[3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    assert (embed(shuffled, **SMALL).values == emb).all()


def test_numbers_of_any_dtype_that_hold_the_same_dn_give_the_same() -> None:
    emb = embed(cube_at((40, 40), dtype="uint16"), **SMALL).values
    for dtype in ("int16", "int32", "uint32", "int64", "float32", "float64", ">i2"):
        cube = cube_at((40, 40), dtype=dtype)
        assert (embed(cube, units="dn", offset=0, nodata=0, **SMALL).values == emb).all(), dtype


def test_three_forms_of_one_scene_give_the_same() -> None:
    dn = cube_at((60, 60))
    emb = embed(dn, **SMALL).values
    raw = dn.map(lambda v: v + 1000 if v.ndim == 3 else v, keep_attrs=True)
    assert (embed(raw, offset=-1000, **SMALL).values == emb).all()
    for dtype, exact in (("float64", True), ("float32", False)):
        reflectance = dn.map(lambda v, d=dtype: (v.astype("float64") * 1e-4).astype(d), keep_attrs=True)
        got = embed(reflectance, units="reflectance", offset=0, **SMALL).values
        assert (got == emb).all() if exact else np.allclose(got, emb, rtol=1e-6)


def test_one_pixel_cubes_work() -> None:
    emb = embed(cube_at((1, 1), times=1), **SMALL)
    assert emb.shape == (1, 20, 1, 1)
    assert float(emb.valid[0, 0, 0].compute()) == pytest.approx(1 / 16)


def test_times_may_be_unsorted_and_are_kept_as_they_are() -> None:
    cube = cube_at((40, 40), times=3).isel(time=[2, 0, 1])
    emb = embed(cube, **SMALL)
    assert (emb.time.values == cube.time.values).all()
    assert (emb.values[1] == embed(cube.sortby("time"), **SMALL).values[0]).all()


def test_duplicate_times_are_refused_and_can_be_merged() -> None:
    from deo_cube.cube.composite import composite

    cube = cube_at((40, 40), times=2)
    left, right = blank(cube, slice(None), slice(0, 20)), blank(cube, slice(None), slice(20, None))
    tiles = xr.concat([left.isel(time=[0]), right.isel(time=[0])], "time")
    with pytest.raises(ValueError, match=r"1 of the cube's times occur more than once.*composite.*solar_day"):
        embed(tiles, **SMALL)
    merged = composite(tiles, "first", freq="D", mask=False)
    whole = embed(cube.isel(time=[0]), **SMALL)
    np.testing.assert_array_equal(embed(merged, **SMALL).values, whole.values)


def test_coordinates_along_time_travel() -> None:
    cube = cube_at((40, 40), times=2).assign_coords(platform=("time", ["a", "b"]))
    assert list(embed(cube, **SMALL).platform.values) == ["a", "b"]


# Validity


def blank(
    cube: xr.Dataset, rows: slice, columns: slice, value: float = 0, bands: tuple[str, ...] = BANDS
) -> xr.Dataset:
    cube = cube.copy(deep=True)
    for b in bands:
        cube[b].values[..., rows, columns] = value
    return cube


def test_valid_is_the_share_of_pixels_with_a_measurement_in_every_band() -> None:
    cube = blank(cube_at((64, 64), times=1, row=0, col=0), slice(0, 6), slice(0, 4), bands=("B8A",))
    valid = embed(cube, **SMALL).valid.compute().values[0]
    assert valid[0, 0] == 0
    assert valid[1, 0] == 0.5
    assert (valid[:, 1:] == 1).all()


def test_a_patch_without_one_valid_pixel_is_nan_and_others_are_not() -> None:
    cube = blank(cube_at((64, 64), times=1, row=0, col=0), slice(0, 8), slice(0, 8))
    emb = embed(cube, **SMALL).compute()
    assert emb.isnull().all("embedding").values[0, :2, :2].all()
    assert int(emb.isnull().any("embedding").sum()) == 4
    assert embed(cube, model="means", dtype="int8").compute().values[0, :, 0, 0].tolist() == [-128] * 20


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_poison_no_neighbour(bad: float) -> None:
    cube = cube_at((64, 64), times=1, row=0, col=0, dtype="float32")
    cube = blank(cube, slice(10, 11), slice(10, 11), bad)
    emb = embed(cube, units="dn", offset=0, **SMALL).compute()
    assert np.isfinite(emb.values).all()
    assert float(emb.valid[0, 2, 2]) == pytest.approx(15 / 16)


def test_a_cube_without_one_valid_pixel_is_all_nan_and_runs_no_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from deo_cube.embedding import process

    cube = blank(cube_at((64, 64), times=1), slice(None), slice(None))
    emb = embed(cube, **SMALL)
    monkeypatch.setattr(process, "encoder", never)
    got = emb.compute()
    assert got.isnull().all()
    assert (got.valid == 0).all()


def test_what_lies_in_invalid_pixels_changes_nothing() -> None:
    cube = cube_at((64, 64), times=1, dtype="float64")
    a = embed(blank(cube, slice(5, 9), slice(20, 30), np.nan), units="dn", offset=0, nodata=-5, **SMALL).values
    b = embed(blank(cube, slice(5, 9), slice(20, 30), -5.0), units="dn", offset=0, nodata=-5, **SMALL).values
    np.testing.assert_array_equal(a, b)


def test_clouds_in_scl_lower_valid_and_hide_only_if_asked() -> None:
    cube = cube_at((64, 64), times=1, row=0, col=0)
    scl = np.full((1, 64, 64), 4, "uint8")
    scl[0, :8, :8] = 9
    cloudy = cube.assign(SCL=(("time", "y", "x"), scl))
    plain, seen = embed(cube, **SMALL).compute(), embed(cloudy, **SMALL).compute()
    hidden, ignored = embed(cloudy, mask="scl", **SMALL).compute(), embed(cloudy, mask=False, **SMALL).compute()
    assert (seen.valid.values[0, :2, :2] == 0).all()
    assert (seen.valid.values[0, 2:] == 1).all()
    assert ignored.identical(plain) or (ignored.values == plain.values).all()
    # Seen clouds are context like any pixel; hidden ones change what the tile's other patches see.
    assert (seen.values[0, :, 2:, 2:] == plain.values[0, :, 2:, 2:]).all()
    assert (hidden.values[0, :, 3, 3] != plain.values[0, :, 3, 3]).any()
    assert (hidden.valid.values == seen.valid.values).all()


def test_a_mask_of_the_users_own_hides_pixels_and_lowers_valid() -> None:
    cube = cube_at((64, 64), times=2, row=0, col=0)
    mask = xr.zeros_like(cube.B02.isel(time=0, drop=True), dtype=bool)
    mask.values[:8, :8] = True
    emb = embed(cube, mask=mask, **SMALL).compute()
    blanked = embed(blank(cube, slice(0, 8), slice(0, 8)), **SMALL).compute()
    np.testing.assert_array_equal(emb.values, blanked.values)
    np.testing.assert_array_equal(emb.valid.values, blanked.valid.values)


def with_scl() -> xr.Dataset:
    cube = cube_at((48, 48), times=1)
    scl = xr.full_like(cube.B02, 4, dtype="uint8")
    scl[:, :8, :8] = 9
    return cube.assign(SCL=scl)


def test_the_scene_classification_is_never_taken_for_a_mask() -> None:
    cube = with_scl()
    hidden = embed(cube, mask="scl", **SMALL).compute()
    for named in (cube, cube.rename(SCL="scl_20m")):
        name = "SCL" if "SCL" in named else "scl_20m"
        xr.testing.assert_equal(embed(named, mask=name, **SMALL).compute(), hidden)
        with pytest.raises(ValueError, match="scene classification itself"):
            embed(named.chunk(), mask=named[name].chunk(), **SMALL)
    with pytest.raises(errors.MissingBandsError, match="cube has none"):
        embed(cube.drop_vars("SCL"), mask="scl", **SMALL)


def test_a_mask_of_numbers_is_one_of_truth_values_or_refused() -> None:
    cube = with_scl().drop_vars("SCL")
    clouds = xr.zeros_like(cube.B02, dtype=bool)
    clouds[:, :8, :8] = True
    same = embed(cube, mask=clouds, **SMALL).compute()
    for mask in (clouds.astype("uint8"), clouds.astype(float).where(~clouds), clouds.transpose("x", "time", "y")):
        xr.testing.assert_equal(embed(cube, mask=mask, **SMALL).compute(), same)
    for wrong in (clouds.astype("uint8") * 255, clouds * 0.4, clouds.astype(int) * 9):
        with pytest.raises(ValueError, match="expected truth values"):
            embed(cube, mask=wrong, **SMALL)
        with pytest.raises(ValueError, match="expected truth values"):
            embed(cube, mask=wrong.chunk(), **SMALL).compute()
    with pytest.raises(ValueError, match="got ndarray: xr.DataArray"):
        embed(cube, mask=clouds.values, **SMALL)  # type: ignore[arg-type]


def test_a_gap_in_a_classification_of_floats_is_no_data() -> None:
    cube = with_scl()
    gappy = cube.assign(SCL=cube.SCL.where(cube.SCL != 9))
    xr.testing.assert_equal(embed(gappy, **SMALL).compute(), embed(cube, **SMALL).compute())


def test_bands_with_another_dimension_are_refused_not_cut() -> None:
    cube = cube_at((32, 32), times=1)
    with pytest.raises(errors.MissingBandsError, match=r"'B04' has \('orbit'.*isel\(orbit=0\)"):
        embed(xr.concat([cube, cube + 100], "orbit"), **SMALL)
    with pytest.raises(errors.MissingBandsError, match=r"squeeze\('band', drop=True\)"):
        embed(cube.expand_dims(band=[1]), **SMALL)
    aside = cube.assign(weights=cube.B02.expand_dims(member=3))
    xr.testing.assert_equal(embed(aside, **SMALL).compute(), embed(cube, **SMALL).compute())


def test_coordinates_along_time_do_not_take_the_place_of_the_results_own() -> None:
    cube = cube_at((32, 32)).assign_coords(valid=("time", [1, 2]), embedding=("time", [3, 4]), orbit=("time", [5, 6]))
    emb = embed(cube, **SMALL)
    assert emb.valid.dims == ("time", "y", "x")
    assert "embedding" not in emb.coords
    assert emb.orbit.values.tolist() == [5, 6]
    dated = cube.rename(time="t").assign_coords(time=("t", [1, 2]))
    assert (embed(dated, **SMALL).time.values == cube.time.values).all()


def test_dtypes_by_any_name_and_sizes_that_are_no_numbers_of_pixels() -> None:
    cube = cube_at((32, 32), times=1)
    for dtype in (np.float32, "f4", np.dtype("float32")):
        assert embed(cube, "means", dtype=dtype).dtype == "float32"  # type: ignore[arg-type]
    wrong: dict = {"tile": [64.0, 2**14 + 1, 2**31], "halo": ["4", 2**31], "block": [1e3, 2**31]}
    for name, size in ((name, size) for name, sizes in wrong.items() for size in sizes):
        with pytest.raises(errors.TilePlanError, match=f"{name} must be an integer"):
            embed(cube, "means", **{name: size})
    for size in (0, 1.5, "2"):
        with pytest.raises(ValueError, match="batch_size must be an integer"):
            embed(cube, "means", batch_size=size)  # type: ignore[arg-type]
    with pytest.raises(errors.MissingBandsError, match="bands must be a list"):
        embed(cube, "means", bands="B04")
    with pytest.raises(TypeError, match="register_encoder"):
        embed(cube, lambda batch: batch)  # type: ignore[arg-type]


def test_top_of_atmosphere_is_told_from_surface() -> None:
    cube = cube_at((32, 32), times=1)
    raw = cube.assign_attrs(product_level="L1C"), cube.assign_coords({"s2:product_type": ("time", ["S2MSI1C"])})
    for toa in raw:
        with pytest.warns(UserWarning, match="holds L1C products, means was trained on L2A"):
            emb = embed(toa, **SMALL)
        assert emb.attrs["deo_cube:product_levels"] == '["L1C"]'
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        embed(cube, **SMALL)
        embed(cube.assign_attrs(product_level="L2A"), **SMALL)


def test_masks_that_do_not_lie_on_the_cube_are_refused() -> None:
    cube = cube_at((64, 64), times=1)
    mask = xr.zeros_like(cube.B02.isel(time=0, drop=True), dtype=bool)
    with pytest.raises(ValueError, match=r"differ along x.*mask\.reindex\("):
        embed(cube, mask=mask.isel(x=slice(1, None)), **SMALL)
    with pytest.raises(ValueError, match="differ along y"):
        embed(cube, mask=mask.assign_coords(y=mask.y + 10), **SMALL)
    with pytest.raises(ValueError, match="'clouds' is not a variable"):
        embed(cube, mask="clouds", **SMALL)
    with pytest.raises(ValueError, match="mask must be"):
        embed(cube, mask=True, **SMALL)


def test_a_missing_band_may_be_the_nearest_or_the_mean() -> None:
    cube = cube_at((64, 64), times=1).drop_vars("B08")
    with pytest.raises(errors.MissingBandsError, match="B08"):
        embed(cube, **SMALL)
    nearest = embed(cube, missing="nearest", **SMALL).compute()
    assert (nearest.values[0, 6] == nearest.values[0, 7]).all()
    mean = embed(cube, missing="mean", **SMALL).compute()
    assert (mean.values[0, 6] == 0).all()
    np.testing.assert_array_equal(mean.valid.values, nearest.valid.values)
    assert '"mean"' in mean.attrs["deo_cube:bands"]


# Outputs


def test_dtypes_say_the_same_within_their_precision() -> None:
    cube = cube_at((64, 64), times=1)
    full = embed(cube, model="means", dtype="float32").compute()
    half = embed(cube, model="means").compute()
    assert half.dtype == "float16"
    np.testing.assert_allclose(half.values, full.values, rtol=1e-3)
    whole = embed(cube, model="means", dtype="int8").compute()
    assert whole.dtype == "int8"
    assert np.abs(whole.values * whole.attrs["scale_factor"] - full.values).max() <= 50.01


def test_attributes_say_what_was_decided() -> None:
    attrs = embed(cube_at((64, 64)), model="means").attrs
    for name in ("model", "model_fingerprint", "weights_status", "plan", "bands", "radiometry", "version", "dtype"):
        assert f"deo_cube:{name}" in attrs
    assert attrs["deo_cube:weights_status"] == "untrained"


def test_set_options_changes_the_defaults_of_the_call() -> None:
    with deo_cube.set_options(model="means", dtype="float32"):
        emb = embed(cube_at((40, 40)))
    assert (emb.dtype, emb.attrs["deo_cube:model_alias"]) == (np.dtype("float32"), "means")


# Errors come at the call


@pytest.mark.parametrize(
    ("change", "options", "error", "says"),
    [
        (lambda c: c.drop_vars(["B02", "B12"]), {}, errors.MissingBandsError, "B02.*B12"),
        (lambda c: c.assign(blue=c.B02, B02_10m=c.B02).drop_vars("B02"), {}, errors.MissingBandsError, "bands="),
        (lambda c: c.drop_vars("spatial_ref").drop_attrs(), {}, errors.DeoCubeError, "write_crs|offset"),
        (lambda c: c, {"model": "vitc"}, errors.UnknownModelError, "vitb"),
        (lambda c: c, {"layer": "norm"}, errors.UnknownModelError, "means"),
        (lambda c: c, {"tile": 30}, errors.TilePlanError, "tile=30.*pass tile=32"),
        (lambda c: c, {"halo": 16}, errors.TilePlanError, "leaves no core"),
        (lambda c: c, {"anchor": "centre"}, errors.TilePlanError, "'grid'"),
        (lambda c: c, {"dtype": "float8"}, ValueError, "float16"),
        (lambda c: c, {"batch_size": 0}, ValueError, "at least 1"),
        (lambda c: c.isel(time=slice(0, 0)), {}, ValueError, "no dates"),
        (lambda c: c, {"units": "radiance"}, ValueError, "reflectance"),
        (lambda c: c, {"device": "gpu"}, errors.DeviceError, "device="),
        (lambda c: c.isel(y=slice(0, 2)), {"edge": "drop"}, errors.TilePlanError, "edge='pad'"),
    ],
)
def test_mistakes_are_raised_at_the_call(
    change: Callable[[xr.Dataset], xr.Dataset], options: dict, error: type[Exception], says: str
) -> None:
    cube = change(cube_at((40, 40), chunks={"y": 20, "x": 20}))
    with raise_if_dask_computes(), pytest.raises(error, match=f"(?s){says}"):
        embed(cube, **({"model": "means"} | options))


def test_pixels_of_the_wrong_size_are_refused() -> None:
    with pytest.raises(errors.ResolutionMismatchError, match=r"59.8 m.*resolution=10"):
        embed(cube_at((40, 40), resolution=60), model="means")


def test_int8_without_a_measured_scale_is_refused() -> None:
    card = means_card(name="no_scale.v1", alias="no_scale", layers=(Layer("means", 20, 4),))
    import functools

    from deo_cube.encoder.registry import register_encoder
    from deo_cube.testing import means

    register_encoder(card, functools.partial(functools.partial, means))
    with pytest.raises(errors.UnknownModelError, match="no int8 scale.*float16"):
        embed(cube_at((40, 40)), model="no_scale", dtype="int8")


def test_values_that_cannot_be_what_was_said_stop_the_block() -> None:
    cube = cube_at((40, 40), dtype="float32", chunks={"y": 20})
    with pytest.raises(errors.AmbiguousUnitsError, match="units"):
        embed(cube, units="reflectance", offset=0, **SMALL).compute(scheduler="sync")


def test_chunks_too_large_to_read_whole_are_warned_of_with_those_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deo_cube.embedding.embed.CACHE_BYTES", 10_000)
    with pytest.warns(UserWarning, match="chunks are large.*chunks={'time': 1, 'y': 256, 'x': 256}"):
        embed(cube_at((200, 200), times=1, chunks={"y": 200, "x": 200}), **SMALL)


def test_tiles_cut_shorter_change_nothing_away_from_the_edge() -> None:
    import functools

    from deo_cube.encoder.registry import register_encoder
    from deo_cube.testing import local

    for alias, trim in (("whole", 0), ("cut", 8)):
        fields = {"name": f"{alias}.v1", "alias": alias, "trim": trim, "layers": (Layer("local", 10, 4),)}
        register_encoder(means_card(**fields), functools.partial(functools.partial, local))
    cube = cube_at((70, 90), times=1, row=5, col=9)
    whole, cut = (embed(cube, model=m, dtype="float32", block=48).compute() for m in ("whole", "cut"))
    # A model that sees no further than its halo gives the same everywhere, edges included.
    np.testing.assert_array_equal(whole.values, cut.values)
    seen = []
    real = Encoder.encode

    def note(self: Encoder, batch: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(batch.shape[0] * batch.shape[2] * batch.shape[3])
        return real(self, batch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "encode", note)
        embed(cube, model="cut", dtype="float32", block=48).compute(scheduler="sync")
    plan = cube.deo.plan("cut", block=48)
    assert sum(seen) == plan.tiling.encoded_pixels(8) < plan.tiling.encoded_pixels()


def test_coordinates_that_chunk_put_on_dask_are_no_pixels() -> None:
    cube = cube_at((64, 64), times=2).drop_attrs(deep=False)
    carried = cube[[n for n in cube.data_vars if n != "SCL"]]
    cube = cube.assign({n: v + xr.DataArray([0, 1000], dims="time").astype(v.dtype) for n, v in carried.items()})
    cube = cube.assign_coords(boa_add_offset=("time", [0, -1000])).chunk(time=1, y=32, x=32)
    assert cube.boa_add_offset.chunks
    with raise_if_dask_computes():
        emb = embed(cube, **SMALL)
    a, b = cube.isel(time=0), cube.isel(time=1)
    np.testing.assert_array_equal(emb.values[0], embed(a, offset=0, **SMALL).values)
    np.testing.assert_array_equal(emb.values[1], embed(b, offset=-1000, **SMALL).values)
