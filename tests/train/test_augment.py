from __future__ import annotations

import dataclasses

import pytest
import torch

from deo_cube.train.augment import PATH, Augmentation, View, at_level, generator
from deo_cube.train.config import PRESETS, Augment, StudentConfig

QUIET = Augment(
    global_size=32, local_size=16, local_crops=1, jitter_p=0, gray_p=0, blur_p=(0, 0, 0), solarize_p=0,
)  # fmt: skip


def windows(n: int = 4, bands: int = 10, size: int = 40, seed: int = 0) -> torch.Tensor:
    return 200 + 2000 * torch.rand(n, bands, size, size, generator=torch.Generator().manual_seed(seed))


def views(config: Augment, ms: torch.Tensor | None, rgb: torch.Tensor | None, *, seed: int = 0, **how) -> list[View]:
    return Augmentation(config, StudentConfig())(ms, rgb, generator(seed), **how)


def test_shapes_and_order() -> None:
    found = views(Augment(global_size=32, local_size=16, local_crops=3), windows(4), windows(2, 3))
    assert [v.ms.shape for v in found] == [(4, 10, 32, 32)] * 2 + [(4, 10, 16, 16)] * 3
    assert [v.rgb.shape for v in found] == [(6, 3, 32, 32)] * 2 + [(6, 3, 16, 16)] * 3
    assert all(0 <= v.clean.min() and v.clean.max() <= 1 and torch.isfinite(v.rgb).all() for v in found)


def test_either_kind_alone() -> None:
    assert views(QUIET, None, windows(2, 3))[0].ms is None
    assert views(QUIET, windows(2), None)[0].rgb.shape == (2, 3, 32, 32)


def test_two_processes_see_what_one_with_twice_the_batch_sees() -> None:
    config = Augment(global_size=32, local_size=16, local_crops=1, gain=0.2, haze=100, blur_kernel=5)
    ms, rgb = windows(4), windows(2, 3)
    whole = views(config, ms, rgb)
    for rank in (0, 1):
        part = views(config, ms[2 * rank : 2 * rank + 2], rgb[rank : rank + 1], rank=rank, world_size=2)
        for a, b in zip(whole, part, strict=True):
            torch.testing.assert_close(a.ms[2 * rank : 2 * rank + 2], b.ms)
            rows = [2 * rank, 2 * rank + 1, 4 + rank]
            torch.testing.assert_close(a.rgb[rows], b.rgb)


def test_the_seed_decides() -> None:
    ms = windows()
    a, b, c = (views(Augment(global_size=32, local_crops=0), ms, None, seed=s)[0] for s in (1, 1, 2))
    torch.testing.assert_close(a.rgb, b.rgb, rtol=0, atol=0)
    assert not torch.allclose(a.rgb, c.rgb)


def test_bands_of_a_crop_stay_on_each_other_and_on_their_values() -> None:
    ramp = torch.arange(40.0).expand(4, 10, 40, 40) * 50
    student = StudentConfig(ms_mean=(0.0,) * 10, ms_std=(1.0,) * 10)
    found = Augmentation(QUIET, student)(ramp, None, generator(3))[0].ms
    assert found is not None
    torch.testing.assert_close(found, found[:, :1].expand_as(found))
    # Bicubic resampling of a ramp gives a ramp: it overshoots at mirrored edges only, and by little.
    assert found.min() > -30
    assert found.max() < 39 * 50 + 30
    assert len(torch.unique(found[0, 0].round())) > 10


def test_light_changes_the_multispectral_view_only_where_asked_for() -> None:
    ms = windows()
    calm = views(QUIET, ms, None)[0].ms
    bright = views(dataclasses.replace(QUIET, gain=0.3, haze=300.0), ms, None)[0].ms
    assert torch.allclose(calm, views(QUIET, ms, None)[0].ms)
    assert (calm - bright).abs().mean() > 0.02


def test_published_ambiguities_are_switches() -> None:
    ms = windows()
    student = StudentConfig(ms_mean=(0.0,) * 10, ms_std=(1.0,) * 10)
    strong = dataclasses.replace(QUIET, jitter=(0.8, 0.8, 0.5, 0.2), jitter_p=1.0)

    def run(**changes) -> View:
        return Augmentation(dataclasses.replace(strong, **changes), student)(ms, None, generator(5))[0]

    clean, jittered = run(), run(ms_sees="jittered")
    torch.testing.assert_close(clean.ms[:, 3:], jittered.ms[:, 3:])
    assert (clean.ms[:, :3] - jittered.ms[:, :3]).abs().mean() > 50
    torch.testing.assert_close(jittered.ms[:, :3] / strong.display, jittered.jittered)
    maximum = run(rgb_scale="crop_max")
    torch.testing.assert_close(maximum.clean.amax(dim=(1, 2, 3)), torch.ones(4))
    assert (run(rgb_scale="fixed").clean.amax(dim=(1, 2, 3)) < 1).any()


def test_horizontal_flips_never_turn_a_crop_upside_down() -> None:
    ramp = torch.linspace(0, 2000, 40)[:, None].expand(64, 3, 40, 40)  # grows downwards
    for flips, up in (("horizontal", False), ("dihedral", True)):
        found = views(dataclasses.replace(QUIET, flips=flips), None, ramp, seed=7)[0].clean
        slope = found[:, 0, -1].mean(-1) - found[:, 0, 0].mean(-1)
        assert bool((slope < 0).any()) is up


def test_streams_of_neighbouring_steps_differ() -> None:
    first = {float(torch.rand(1, generator=generator(0, 1, step))) for step in range(200)}
    assert len(first) == 200


@pytest.mark.parametrize("kernel", [23, 5])
def test_blur_smooths(kernel: int) -> None:
    noise = windows(8, 3)
    sharp, soft = (
        views(dataclasses.replace(QUIET, blur_p=(p, p, p), blur_kernel=kernel), None, noise)[0].jittered for p in (0, 1)
    )
    assert soft.var() < 0.8 * sharp.var()


def test_product_levels_are_simulated_there_and_back() -> None:

    surface = torch.rand(3, 10, 8, 8) * 3000 + 500
    zero, one = torch.zeros(3), torch.ones(3)
    top = at_level(surface, zero, one)
    assert torch.allclose(at_level(top, one, zero), surface, rtol=1e-4)
    assert torch.allclose(at_level(surface, zero, zero), surface)
    # Haze lies on the blue of dark pixels, and bright infrared loses light.
    dark = at_level(torch.full((1, 10, 4, 4), 100.0), zero[:1], one[:1])
    assert dark[0, 2].mean() > 100 + 0.8 * PATH[2]
    assert at_level(torch.full((1, 10, 4, 4), 4000.0), zero[:1], one[:1])[0, 6].mean() < 4000


def test_the_level_of_a_view_changes_and_its_teacher_sees_one_level() -> None:

    config = dataclasses.replace(PRESETS["tiny"].augment, local_crops=0, gain=0.0, band_gain=0.0, haze=0.0, level=1.0)
    ms = torch.rand(4, 10, 80, 80) * 2000 + 500
    level = torch.tensor([0.0, 1.0, 0.0, 1.0])
    student = PRESETS["tiny"].student
    views = Augmentation(config, student, "L1C")(ms, None, generator(0), level=level)
    plain = Augmentation(dataclasses.replace(config, level=0.0), student, "own")(ms, None, generator(0), level=level)
    assert not torch.allclose(views[0].ms, plain[0].ms)
    assert torch.allclose(views[0].dn, at_level(plain[0].dn, level, torch.ones(4)), rtol=1e-4)
    assert torch.allclose(views[0].dn[1], plain[0].dn[1], rtol=1e-4)
