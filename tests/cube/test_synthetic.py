"""The synthetic scene: labelled as such, consistent in itself, and read by the package like a real cube."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from deo_cube.cube.georeference import Dims, anchor, dims, geobox, ground_resolution
from deo_cube.cube.landscape import LAND_COVER
from deo_cube.cube.synthetic import BANDS, _encode, synthetic_cube


@pytest.fixture(scope="module")
def scene() -> xr.Dataset:
    return synthetic_cube(size=256, chunks=None)


def test_it_says_everywhere_that_it_is_synthetic(scene):
    assert scene.attrs["title"] == "synthetic Sentinel-2 L2A scene (not real data)"
    assert scene.attrs["deo_cube:synthetic"] == 1
    assert "seed=0" in scene.attrs["source"]
    assert all("synthetic" in scene[v].attrs["long_name"] for v in scene.data_vars)


def test_it_holds_the_ten_bands_scl_and_the_truth(scene):
    assert tuple(scene.data_vars) == (*BANDS, "SCL", "land_cover")
    assert BANDS == ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
    assert all(scene[b].dims == ("time", "y", "x") and scene[b].dtype == np.uint16 for b in BANDS)
    assert (scene.SCL.dtype, scene.land_cover.dtype) == (np.uint8, np.uint8)
    assert scene.land_cover.dims == ("y", "x")
    assert dict(zip(scene.land_cover.flag_meanings.split(), scene.land_cover.flag_values, strict=True)) == LAND_COVER
    assert len(scene.SCL.flag_meanings.split()) == len(scene.SCL.flag_values) == 12
    assert scene.time.dtype.kind == "M"
    assert dims(scene) == Dims("time", None, "y", "x")


def test_equal_arguments_give_equal_cubes(scene):
    xr.testing.assert_identical(synthetic_cube(size=256, chunks=None), scene)
    other = synthetic_cube(size=256, seed=1, chunks=None)
    assert float((other.land_cover != scene.land_cover).mean()) > 0.3


def test_a_subset_of_bands_and_more_dates_draw_the_same_country(scene):
    some = synthetic_cube(size=256, bands=["B8A", "B02"], chunks=None)
    assert list(some.data_vars) == ["B8A", "B02", "SCL", "land_cover"]
    xr.testing.assert_identical(some, scene[["B8A", "B02", "SCL", "land_cover"]])
    xr.testing.assert_identical(synthetic_cube(size=256, times=3, chunks=None).land_cover, scene.land_cover)


def test_chunks_wrap_the_same_values(scene):
    lazy = synthetic_cube(size=256, chunks={"time": 1, "y": 100, "x": 128})
    assert lazy.B02.chunks == ((1, 1), (100, 100, 56), (128, 128))
    assert lazy.land_cover.chunks == ((100, 100, 56), (128, 128))
    xr.testing.assert_identical(lazy.compute(), scene)
    assert synthetic_cube(size=64).B02.chunks is not None


def test_twenty_metre_bands_are_twenty_metre(scene):
    for band in BANDS:
        value = scene[band].values.astype(int)
        value = value[0]
        pairs = [value[::2] == value[1::2], value[:, ::2] == value[:, 1::2]]
        twice = min(float(p.mean()) for p in pairs)
        assert (twice == 1) == (band not in ("B02", "B03", "B04", "B08")), band
    odd = synthetic_cube(size=(51, 33), clouds=False, chunks=None).B11.values[0]
    np.testing.assert_array_equal(odd[:50:2], odd[1::2])


def test_clouds_shadows_and_gaps_agree_with_the_classification(scene):
    scl, blue, nir = scene.SCL.values, scene.B02.values.astype(float), scene.B08.values.astype(float)
    assert set(np.unique(scl)) >= {0, 3, 4, 5, 6, 8, 9}
    void = scl == 0
    assert (void == (scene.to_dataarray().sel(variable=list(BANDS)) == 0).any("variable").values).all()
    assert 0.02 < void.mean() < 0.2
    assert not void[0].any()
    for k in range(2):
        clear = np.isin(scl[k], (4, 5, 6))
        assert np.median(blue[k][scl[k] == 9]) > 2 * np.median(blue[k][clear])
        assert np.median(nir[k][scl[k] == 3]) < 0.75 * np.median(nir[k][clear & (scl[k] == 4)])
        red = scene.B04.values[k].astype(float)
        index = (nir[k] - red) / np.maximum(nir[k] + red, 1)
        assert np.median(index[scl[k] == 4]) > 0.5 > 0.45 > np.median(index[scl[k] == 5])
        water = scene.land_cover.values == LAND_COVER["water"]
        assert (scl[k][water & clear] == 6).mean() > 0.85


def test_shadows_fall_to_the_north_west_of_their_clouds():
    cube = synthetic_cube(size=300, times=1, seed=2, clouds=0.1, gaps=False, chunks=None)
    cloud, shadow = (cube.SCL.values[0] >= 8).astype(float), (cube.SCL.values[0] == 3).astype(float)
    correlation = np.fft.irfft2(np.fft.rfft2(shadow) * np.conj(np.fft.rfft2(cloud)))
    row, column = np.unravel_index(correlation.argmax(), correlation.shape)
    assert -75 < row - 300 < -20
    assert -45 < column - 300 < -5


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.4, 1.0])
def test_the_cloud_cover_is_what_was_asked_for(fraction):
    cube = synthetic_cube(size=256, times=2, clouds=fraction, gaps=False, chunks=None)
    covered = cube.SCL.isin([8, 9]).mean(("y", "x")).values
    assert covered == pytest.approx(fraction, abs=0.08)
    if fraction == 0:
        assert set(np.unique(cube.SCL)) <= {4, 5, 6}


@pytest.mark.parametrize("times", [1, 2, 5])
def test_a_swath_edge_cuts_some_acquisitions_and_never_all_of_many(times):
    cube = synthetic_cube(size=64, times=times, chunks=None)
    cut = (cube.SCL == 0).any(("y", "x")).values
    assert cut.any()
    assert times == 1 or not cut.all()
    assert not (synthetic_cube(size=64, times=times, gaps=False, chunks=None).SCL == 0).any()


def test_units_and_offset_are_one_scene_in_other_numbers():
    options = {"size": 96, "seed": 5, "chunks": None}
    dn, raw = synthetic_cube(**options), synthetic_cube(**options, offset=-1000)
    reflectance, shifted = (synthetic_cube(**options, units="reflectance", offset=o) for o in (0, -1000))
    for band in BANDS:
        valid = dn[band].values > 0
        dark = dn[band].values == 1  # nothing is below: 0 would mean no data
        np.testing.assert_array_equal(raw[band].values == 0, ~valid)
        np.testing.assert_array_equal(raw[band].values[valid & ~dark] - 1000, dn[band].values[valid & ~dark])
        np.testing.assert_array_equal(np.isnan(reflectance[band].values), ~valid)
        np.testing.assert_allclose(reflectance[band].values[valid] * 1e4, dn[band].values[valid], rtol=1e-6)
        np.testing.assert_allclose(shifted[band].values[valid] * 1e4, raw[band].values[valid], rtol=1e-6)
    said = [[c.B02.attrs[k] for k in ("units", "boa_add_offset", "processing_baseline")] for c in (dn, raw, shifted)]
    assert said == [["DN", 0, "03.01"], ["DN", -1000, "05.00"], ["reflectance", -1000, "05.00"]]
    assert dn.B02.attrs["nodata"] == 0
    assert raw.processing_baseline.values.tolist() == ["05.00"] * 2
    assert dn.processing_baseline.values.tolist() == ["03.01"] * 2
    assert reflectance.B02.units == "reflectance"
    assert reflectance.B02.dtype == np.float32
    assert synthetic_cube(size=16, dtype="int16", chunks=None).B02.dtype == np.int16


def test_zero_is_kept_for_no_data():
    dark, missing = np.array([[-9.0, 0.4, 7.0]], "float32"), np.array([[False, False, True]])
    assert _encode(dark, missing, "dn", 0, np.dtype("uint16")).tolist() == [[1, 1, 0]]
    assert _encode(dark, missing, "dn", -1000, np.dtype("uint16")).tolist() == [[991, 1000, 0]]


@pytest.mark.parametrize(
    ("options", "epsg", "metres"),
    [
        ({}, 32633, 10),
        ({"crs": "EPSG:32733"}, 32733, 10),
        ({"crs": "EPSG:3035", "resolution": 20}, 3035, 20),
        ({"crs": "EPSG:2056"}, 2056, 10),
        ({"crs": "EPSG:3857"}, 3857, 7),
        ({"crs": "EPSG:4326"}, 4326, 8.5),
    ],
)
@pytest.mark.parametrize("south_up", [False, True])
def test_it_lies_on_the_map(options, epsg, metres, south_up):
    cube = synthetic_cube(size=(24, 32), chunks=None, south_up=south_up, **options)
    box = geobox(cube)
    assert (box.crs.epsg, tuple(box.shape)) == (epsg, (24, 32))
    assert anchor(box).south_up == south_up
    assert np.prod(ground_resolution(box)) ** 0.5 == pytest.approx(metres, rel=0.03)
    assert cube.rio.transform() == cube.odc.geobox.transform == box.transform
    if not box.crs.geographic:
        assert box.boundingbox.left % 10_000 == box.boundingbox.top % 10_000 == 0


def test_south_up_is_the_same_scene_upside_down():
    north, south = (synthetic_cube(size=48, chunks=None, south_up=s) for s in (False, True))
    xr.testing.assert_equal(south.isel(y=slice(None, None, -1)), north.assign_coords(spatial_ref=south.spatial_ref))


@pytest.mark.parametrize("units", ["dn", "reflectance"])
def test_it_survives_zarr(units, tmp_path):
    cube = synthetic_cube(size=(24, 32), units=units, chunks=None)
    cube.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    reopened = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    assert geobox(reopened) == geobox(cube)
    xr.testing.assert_equal(reopened.compute(), cube)
    for name in ("B02", "SCL", "land_cover"):
        assert repr(sorted(reopened[name].attrs)) == repr(sorted(cube[name].attrs))
    np.testing.assert_equal(reopened.B02.attrs, cube.B02.attrs)


def test_dates_may_be_given():
    cube = synthetic_cube(size=16, times=["2022-01-03", "2022-07-01"], chunks=None)
    assert cube.time.values.astype("M8[D]").astype(str).tolist() == ["2022-01-03", "2022-07-01"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 1}, "at least 2 pixels"),
        ({"bands": ["B01"]}, "got B01"),
        ({"units": "dB"}, "'dB'"),
        ({"offset": 1000}, "0 or -1000"),
        ({"clouds": 2}, "clouds must be"),
        ({"units": "reflectance", "dtype": "uint16"}, "floating-point"),
        ({"times": 0}, "times must be"),
        ({"crs": "EPSG:4326", "resolution": 10}, "in degrees"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        synthetic_cube(**{"size": 16, "chunks": None, **options})


def test_drawing_loads_neither_torch_nor_dask():
    code = (
        "import sys, deo_cube.cube.synthetic as s; s.synthetic_cube(size=16, chunks=None); "
        "bad = {'torch', 'distributed', 'sklearn'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
