"""Surfaces through the year: what is green when, and which bands say so."""

from __future__ import annotations

import numpy as np
import pytest

from deo_cube.cube.landscape import LAND_COVER, TABLE, draw_landscape
from deo_cube.cube.surfaces import BANDS, CROPS, SPECTRA, Season, Surfaces

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
