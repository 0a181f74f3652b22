"""The drawn countryside: every class occurs, parcels have straight borders, and equal seeds draw equally."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from deo_cube.cube.landscape import LAND_COVER, draw_landscape, noise, smoothstep


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
