from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.encoder.card import Normalization, Stem
from deo_cube.encoder.normalize import choose_normalization, normalize, to_units
from deo_cube.encoder.registry import bundled_cards
from deo_cube.errors import MissingBandsError, UnknownModelError

SWIN = bundled_cards()["swinb"]
MS, RGB = SWIN.stem("ms"), SWIN.stem("rgb")


def tiles(seed: int = 0, channels: int = 10, count: int = 3) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(-50, 9000, (count, channels, 8, 8)).astype(np.float32))


def test_fixed_is_mean_and_std_by_band() -> None:
    how = MS.normalization("normalize_s2")
    x = tiles()
    found = normalize(x, MS, how)
    for i, band in enumerate(MS.bands):
        assert torch.allclose(found[:, i], (x[:, i] - how.mean[i]) / how.std[i]), band
    assert (how.mean[0], how.std[2], how.mean[9]) == (1136.26, 650.284, 1247.919)


@given(gain=st.floats(0.01, 50), seed=st.integers(0, 9))
def test_rgb_max_forgets_the_gain_of_rgb_only(gain: float, seed: int) -> None:
    how = MS.normalization("rgb_max")
    x = tiles(seed)
    brighter = x.clone()
    brighter[:, :3] *= gain
    found = normalize(x, MS, how)
    assert torch.allclose(found, normalize(brighter, MS, how), atol=1e-4)
    # By hand: over the maximum of the three, clamped, then fMoW-RGB's statistics.
    rgb = np.clip(x[:, :3].numpy() / x[:, :3].amax((1, 2, 3)).numpy()[:, None, None, None], 0, 1)
    mean, std = (np.array(v[:3], np.float32)[:, None, None] for v in (how.mean, how.std))
    assert np.allclose(found[:, :3], (rgb - mean) / std, atol=1e-5)
    assert torch.equal(found[:, 3:], normalize(x, MS, MS.normalization("normalize_s2"))[:, 3:])


def test_rgb_max_finds_rgb_by_name() -> None:
    how = MS.normalization("rgb_max")
    order = [9, 2, 0, 3, 1, 4, 5, 6, 7, 8]
    shuffled = Stem("x", tuple(MS.bands[i] for i in order), MS.normalizations[-1:])
    moved = Normalization("m", "rgb_max", *(tuple(v[i] for i in order) for v in (how.mean, how.std)))
    x = tiles()
    assert torch.equal(normalize(x[:, order], shuffled, moved), normalize(x, MS, how)[:, order])
    blind = Stem("y", ("B08", "B11"), MS.normalizations[-1:])
    with pytest.raises(MissingBandsError, match="'B04', 'B03', 'B02'"):
        normalize(x[:, :2], blind, Normalization("m", "rgb_max", (0, 0), (1, 1)))


@given(seed=st.integers(0, 9))
def test_own_is_each_tile_by_itself(seed: int) -> None:
    found = normalize(tiles(seed), MS, MS.normalization("own"))
    assert torch.allclose(found.mean((2, 3)), torch.zeros(3, 10), atol=1e-5)
    assert torch.allclose(found.std((2, 3), correction=0), torch.ones(3, 10), atol=1e-4)
    alone = normalize(tiles(seed)[1:2], MS, MS.normalization("own"))
    assert torch.allclose(found[1:2], alone, atol=1e-6)


@pytest.mark.parametrize("name", ["normalize_s2", "rgb_max", "own"])
def test_a_constant_tile_stays_finite_and_input_is_untouched(name: str) -> None:
    x = torch.zeros(1, 10, 8, 8)
    assert normalize(x, MS, MS.normalization(name)).isfinite().all()
    y = tiles()
    before = y.clone()
    normalize(y, MS, MS.normalization(name))
    assert torch.equal(y, before)


def test_units() -> None:
    x = torch.tensor([0.0, 255.0, 51.0])
    assert to_units(x, "uint8_rgb", "dn").tolist() == pytest.approx([0, 2750, 550])
    assert to_units(x, "uint8_rgb", "reflectance").tolist() == pytest.approx([0, 0.275, 0.055])
    assert to_units(x, "reflectance", "dn").tolist() == pytest.approx([0, 2550000, 510000])
    assert to_units(x, "dn", "reflectance").tolist() == pytest.approx([0, 0.0255, 0.0051])
    assert to_units(x, "percent", "dn").tolist() == pytest.approx([0, 25500, 5100])
    assert to_units(x, "dn", "dn") is x
    with pytest.raises(ValueError, match="units"):
        to_units(x, "radiance", "dn")  # type: ignore[arg-type]


def test_choosing() -> None:
    assert choose_normalization(MS, None) is MS.normalizations[0]
    assert choose_normalization(MS, "own").kind == "own"
    with pytest.raises(UnknownModelError, match="normalize_s2"):
        choose_normalization(MS, "imagenet")
    given = choose_normalization(RGB, {"B02": (3, 30), "B04": (1, 10), "B03": (2, 20)})
    assert given == Normalization("given", "fixed", (1.0, 2.0, 3.0), (10.0, 20.0, 30.0))
    with pytest.raises(MissingBandsError, match="'B02'.*'B08'"):
        choose_normalization(RGB, {"B04": (1, 1), "B03": (1, 1), "B08": (1, 1)})
    with pytest.raises(ValueError, match="deviations"):
        choose_normalization(RGB, {"B04": (1, 0), "B03": (1, 1), "B02": (1, 1)})
