import numpy as np
import pytest

from deo_cube.evaluate.features import RawBands, as_encode
from deo_cube.evaluate.protocols import chips_of, upernet, upernet_halves
from deo_cube.evaluate.readers import Scene, read_sen1floods11
from tests.evaluate.test_protocols import BANDS, scenes

FAST = {"epochs": 10, "width": 8, "batch": 8, "rate": 1e-2}


def test_a_visible_pattern_is_drawn_and_chance_is_chance():
    s = scenes(4)
    (seen,) = upernet(RawBands(), s[:2], s[2:3], s[3:], task="stripes", chip=32, seeds=2, **FAST)
    assert seen.task == "stripes/upernet"
    assert seen.metric == "mean IoU"
    assert len(seen.seeds) == 2
    assert seen.value > 0.9

    def blind(array, bands):
        return np.random.default_rng(0).normal(size=(len(array), 3, 8, 8))

    (chance,) = upernet(blind, s[:2], s[2:3], s[3:], task="stripes", chip=32, seeds=1, **FAST)
    assert chance.value < 0.6


def test_halves_and_chips():
    chips, at = chips_of(scenes(2), 32)
    assert len(chips) == len(at) == 18
    assert list(at[4]) == [0, 48, 48]
    big = [
        Scene(s.name, np.tile(s.image, (1, 3, 3)), np.tile(s.label, (3, 3)), np.tile(s.valid, (3, 3)), BANDS)
        for s in scenes(1)
    ]
    (score,) = upernet_halves(RawBands(), big, task="stripes", chip=32, gap=16, **FAST)
    assert len(score.seeds) == 4
    assert score.leak == 0
    assert score.value > 0.85


@pytest.mark.filterwarnings("ignore:stripes")
def test_a_split_without_a_gap_is_warned_of():
    from deo_cube.heads.splits import LeakWarning

    with pytest.warns(LeakWarning, match="stripes, left"):
        upernet_halves(RawBands(), scenes(1), task="stripes", chip=16, gap=-16, epochs=1, width=8, mirrored=False)


@pytest.mark.real
def test_the_layers_of_a_model_on_real_floods(shared):
    tiny = as_encode("tiny", device="cpu")
    maps = tiny.pyramid(np.full((1, 10, 64, 64), 1200.0), tiny.card.bands)
    x = np.random.default_rng(0).uniform(300, 3000, (2, 10, 64, 64)).astype("float32")
    np.testing.assert_array_equal(tiny.pyramid(x, tiny.card.bands)[-1], tiny(x, tiny.card.bands))
    assert [m.shape for m in maps] == [(1, 256, 16, 16), (1, 192, 16, 16)]
    tile = read_sen1floods11(shared / "data" / "flood_sen1floods11")[0]
    part = Scene(tile.name, tile.image[:, :256, :256], tile.label[:256, :256], tile.valid[:256, :256], tile.bands)
    (score,) = upernet_halves(
        tiny, [part], task="floods", gap=0, epochs=3, width=16, batch=4, rate=5e-3, mirrored=False
    )
    assert 0.2 < score.value < 1
