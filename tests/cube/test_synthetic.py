"""The synthetic scene: labelled as such, consistent in itself, and read by the package like a real cube."""

from __future__ import annotations

import dataclasses

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from deo_cube.cube.georeference import Dims, anchor, dims, geobox, ground_resolution
from deo_cube.cube.synthetic import (
    BANDS,
    CROPS,
    LAND_COVER,
    SPECTRA,
    TABLE,
    Season,
    Surfaces,
    _encode,
    draw_landscape,
    noise,
    smoothstep,
    synthetic_cube,
)
from deo_cube.errors import ArgumentError


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
    ("options", "argument"),
    [
        ({"size": 1}, "size"),
        ({"size": (8, 8, 8)}, "size"),
        ({"bands": ["B01"]}, "bands"),
        ({"units": "dB"}, "units"),
        ({"offset": 1000}, "offset"),
        ({"clouds": 2}, "clouds"),
        ({"dtype": "no dtype"}, "dtype"),
        ({"units": "reflectance", "dtype": "uint16"}, "dtype"),
        ({"times": 0}, "times"),
        ({"crs": "EPSG:4326", "resolution": 10}, "resolution="),
    ],
)
def test_arguments_that_cannot_be_drawn_are_refused(options, argument):
    with pytest.raises(ArgumentError, match=argument):
        synthetic_cube(**{"size": 16, "chunks": None, **options})


def test_every_class_occurs_in_the_shares_of_a_countryside():
    for seed in range(3):
        cover = draw_landscape(np.random.default_rng(seed), (512, 512)).land_cover
        share = {name: float((cover == value).mean()) for name, value in LAND_COVER.items()}
        assert sum(share.values()) == pytest.approx(1)
        assert 0.25 < share["cropland"] < 0.7
        assert 0.15 < share["tree_cover"] < 0.45
        assert min(share.values()) > 1e-3, share


@pytest.mark.parametrize("shape", [(2, 3), (33, 70), (129, 64)])
def test_any_shape_is_drawn_with_every_layer(shape):
    landscape = draw_landscape(np.random.default_rng(1), shape)
    for field in dataclasses.fields(landscape):
        layer = getattr(landscape, field.name)
        assert layer.shape == shape, field.name
        assert np.isfinite(layer).all(), field.name
    for name in ("conifer", "sealed", "roof", "road", "track", "hedge", "depth"):
        layer = getattr(landscape, name)
        assert layer.dtype == np.float32
        assert 0 <= layer.min() <= layer.max() <= 1, name


def test_equal_generators_draw_equal_landscapes_and_others_do_not():
    first, again, other = (draw_landscape(np.random.default_rng(s), (96, 96)) for s in (3, 3, 4))
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert (first.land_cover != other.land_cover).mean() > 0.3


def test_parcels_are_fields_of_a_few_to_some_dozen_pixels():
    parcel = draw_landscape(np.random.default_rng(0), (512, 512)).parcel
    pixels = np.bincount(parcel.ravel())
    pixels = pixels[pixels > 0]
    assert 100 < np.average(pixels, weights=pixels) < 2000  # 1 to 20 hectares, as seen by a pixel
    changes = (parcel[:, 1:] != parcel[:, :-1]).mean()
    assert 0.03 < changes < 0.2


def test_noise_has_the_slope_asked_for():
    rng = np.random.default_rng(0)
    field = noise(rng, (256, 256), slope=3, coarsest=128, finest=2)
    assert (field.mean(), field.std()) == pytest.approx((0, 1), abs=1e-3)
    power = np.abs(np.fft.rfft(field, axis=1)[:, 1:]) ** 2
    frequency = np.fft.rfftfreq(256)[1:]
    band = (frequency > 1 / 40) & (frequency < 1 / 5)
    fitted = np.polyfit(np.log(frequency[band]), np.log(power.mean(0)[band]), 1)[0]
    # Along a line, a field of slope s in two dimensions falls as s - 1.
    assert fitted == pytest.approx(-2, abs=0.4)


def test_smoothstep_is_soft_between_its_ends():
    assert smoothstep(1, 3, np.array([0.0, 1.0, 2.0, 3.0, 9.0])).tolist() == [0, 0, 0.5, 1, 1]


LANDSCAPE = draw_landscape(np.random.default_rng(0), (256, 256))
SURFACES = Surfaces(LANDSCAPE)


def ndvi(day: int) -> np.ndarray:
    season = Season.of(day, 0)
    red, infrared = SURFACES.reflect(season, "B04"), SURFACES.reflect(season, "B08")
    return (infrared - red) / (infrared + red)


def test_spectra_are_reflectances_of_all_bands():
    for name, spectrum in SPECTRA.items():
        assert len(spectrum) == len(BANDS) == 10, name
        assert all(20 < v < 8000 for v in spectrum), name
    assert sum(c.share for c in CROPS) == pytest.approx(1)


def test_surfaces_look_like_their_class():
    cover, index = LANDSCAPE.land_cover, ndvi(150)
    median = {name: float(np.median(index[cover == value])) for name, value in LAND_COVER.items()}
    assert median["water"] < 0
    assert median["tree_cover"] > 0.75
    assert median["grassland"] > 0.6
    assert 0.05 < median["built_up"] < 0.45
    assert -0.1 < median["bare"] < 0.5
    swir = SURFACES.reflect(Season.of(150, 0), "B11")
    assert np.median(swir[cover == LAND_COVER["water"]]) < 200


def test_crops_grow_and_are_harvested_while_forests_keep_their_leaves():
    fields = LANDSCAPE.land_cover == LAND_COVER["cropland"]
    woods = LANDSCAPE.land_cover == LAND_COVER["tree_cover"]
    april, june, august, october = (ndvi(day) for day in (110, 155, 215, 285))
    summer_crops = fields & (april < 0.35) & (august > 0.6)
    winter_crops = fields & (april > 0.5) & (august < 0.4)
    assert 0.1 < summer_crops.sum() / fields.sum() < 0.6
    assert 0.2 < winter_crops.sum() / fields.sum() < 0.7
    assert (october[fields] < 0.4).mean() > 0.6
    assert abs(np.median(june[woods]) - np.median(august[woods])) < 0.02


def test_a_parcel_has_one_crop_and_its_own_pace():
    season = Season.of(200, 0)
    assert season.fields.shape == season.by_moisture.shape == (2 * TABLE, 10)
    assert len(np.unique(season.fields[:1000, 6].round())) > 500
    np.testing.assert_array_equal(season.fields, Season.of(200, 0).fields)
    assert not np.array_equal(season.fields, Season.of(200, 1).fields)
    assert Season.of(10, 0).leaf == 0
    assert Season.of(180, 0).leaf == 1
