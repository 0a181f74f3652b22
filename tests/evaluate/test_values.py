"""Regression and series on made-up data where the right score is known."""

import numpy as np
import pytest

from deo_cube.evaluate.features import BandsWithContext, RawBands
from deo_cube.evaluate.protocols import patch_means, regression, series, transfer
from deo_cube.evaluate.readers import Scene, Series
from deo_cube.evaluate.scores import absolute_error, compare, explained, value_counts
from deo_cube.heads.splits import LeakWarning

BANDS = ("B04", "B03", "B02")


def chips(n=60, noise=50.0, seed=0):
    """Chips of 16 px whose first band is a share that varies from chip to chip, and the share itself."""
    rng = np.random.default_rng(seed)
    share = rng.uniform(size=n)
    images = 1000 + 2000 * share[:, None, None, None] * np.array([1, 0, 0])[:, None, None]
    images = images + noise * rng.normal(size=(n, 3, 16, 16))
    scenes = [
        Scene(str(i), im.astype("float32"), np.full((16, 16), i % 3, "int16"), np.ones((16, 16), bool), BANDS)
        for i, im in enumerate(images)
    ]
    return scenes, [np.full((16, 16), s, "float32") for s in share]


def test_sums_give_the_known_formulas():
    rng = np.random.default_rng(0)
    truth, predicted = rng.normal(size=(2, 500))
    counts = value_counts(truth, predicted, np.arange(500) % 7, 7)
    assert counts.shape == (7, 5)
    residual = ((predicted - truth) ** 2).sum() / ((truth - truth.mean()) ** 2).sum()
    np.testing.assert_allclose(explained(counts.sum(axis=0)), 1 - residual)
    np.testing.assert_allclose(absolute_error(counts.sum(axis=0)), np.abs(predicted - truth).mean())


def test_a_number_that_the_bands_carry_is_found_and_noise_is_not():
    scenes, values = chips()
    train = np.arange(len(scenes)) % 5 != 4
    r2, mae = regression(RawBands(), scenes, values, train, task="share", unit="share", patch=16)
    assert (r2.task, r2.metric, mae.task) == ("share/R2", "R2", "share/MAE")
    assert r2.value > 0.95
    assert mae.value < 0.05
    assert r2.tested == r2.groups == 12
    shuffled = [values[i] for i in np.random.default_rng(1).permutation(len(values))]
    assert regression(RawBands(), scenes, shuffled, train, task="share", unit="", patch=16)[0].value < 0.3
    other = [values[i] for i in np.arange(len(values))[::-1]]
    worse = regression(RawBands(), scenes, other, train, task="share", unit="", patch=16)[1]
    assert compare(mae, worse).high < 0


def test_patch_means_are_of_valid_pixels():
    values = np.arange(16.0).reshape(4, 4)
    valid = np.ones((4, 4), bool)
    valid[:2, :2] = [[True, True], [True, False]]
    valid[2:, 2:] = [[True, False], [False, False]]
    mean, ok = patch_means(values, valid, 2)
    assert mean[0, 0] == pytest.approx((0 + 1 + 4) / 3)
    assert ok.tolist() == [[True, True], [True, False]]


def test_a_series_is_told_by_its_dates_and_folds_keep_places_apart():
    rng = np.random.default_rng(0)
    n, dates = 300, 12
    labels = np.arange(n) % 2
    values = np.full((n, dates, 3), 1000.0) + 30 * rng.normal(size=(n, dates, 3))
    # Both classes have the same mean over the year; only one of them has a season.
    values[labels == 1] += 400 * np.sin(np.arange(dates) / dates * 2 * np.pi)[None, :, None]
    place = np.stack([rng.uniform(0, 5, n), rng.uniform(0, 5, n)], axis=1)
    valid = rng.uniform(size=(n, dates)) > 0.1
    values[~valid] = 65535
    data = Series("made up", values.astype("float32"), valid, labels, ("level", "season"), BANDS, place)
    (score,) = series(RawBands(), data, block=1.0, buffer=0.1)
    assert score.task == "made up/series"
    assert score.value > 0.95
    assert score.groups > 10

    class OwnVectors(RawBands):
        def series(self, data):
            return np.zeros((len(data.values), 4))

    assert series(OwnVectors(), data, block=1.0)[0].value < 0.6


def test_transfer_tests_other_scenes_in_classes_that_it_was_shown():
    def scene(i, codes, row):
        label = np.repeat(np.array(codes), 64 // len(codes))[None].repeat(64, 0).astype("int16")
        image = np.stack([500.0 * label + 1000, np.full(label.shape, 800.0), np.full(label.shape, 900.0)])
        return Scene(str(i), image.astype("float32"), label, np.ones(label.shape, bool), BANDS, corner=(row, 0.0))

    train, test = [scene(0, (0, 1), 0), scene(1, (1, 2), 1000)], [scene(2, (0, 1, 2, 3), 2000)]
    patch, pixel = transfer(RawBands(), train, test, task="there")
    assert (patch.task, pixel.task) == ("there/patch", "there/pixel")
    # A quarter of the test scene is of a class that no training scene has.
    assert patch.tested == 64 * 3 // 4
    assert pixel.value > 0.95
    assert patch.leak == 0
    with pytest.warns(LeakWarning):
        transfer(RawBands(), train, [scene(3, (0, 1), 66)], task="near")


def test_bands_with_context_are_means_and_deviations_of_squares():
    x = np.random.default_rng(0).normal(3000, 100, (1, 2, 20, 20)).astype("float32")
    z = BandsWithContext()(x, BANDS[:2])
    assert z.shape == (1, 10, 20, 20)
    square = x[0, 1, 8:13, 6:11]
    np.testing.assert_allclose(z[0, 3, 10, 8], square.mean(), rtol=1e-5)
    np.testing.assert_allclose(z[0, 5, 10, 8], square.std(), rtol=1e-3)
