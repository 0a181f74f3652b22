import numpy as np
import pytest

import deo_cube
from deo_cube.errors import TilePlanError
from deo_cube.evaluate.seam import seam_report


@pytest.fixture(scope="module")
def cube():
    return deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False)


def test_a_halo_makes_the_seam_smaller(cube):
    report = seam_report(cube, "tiny", halos=[0, 16], tile=64)
    none, some = report.rows
    assert none.halo == 0
    assert none.border > 0
    # At least: what lacks context differs more than what has it, and context helps.
    assert none.border > none.interior
    assert some.border < none.border
    assert none.cost == 1
    assert some.cost == 4
    assert report.recommended in (0, 16)
    assert list(report.to_frame().index) == [0, 16]
    assert "recommended halo" in str(report)


def test_an_encoder_that_sees_its_own_patch_only_has_no_seam(cube):
    from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
    from deo_cube.encoder.registry import register_encoder

    bands = ("B02", "B03", "B04")
    card = ModelCard(
        name="means.test", alias="means-for-seams", summary="means of cells, for a test",
        architecture={"family": "callable"},
        stems=(Stem("rgb", bands, (Normalization("fixed", "fixed", (0.0,) * 3, (1000.0,) * 3),)),),
        layers=(Layer("mean", 3, 8),), tile=64, halo=16, weights=Weights("untrained", ""),
    )  # fmt: skip

    def means(x):
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 8, 8, w // 8, 8).mean(dim=(3, 5))

    made = register_encoder(card, lambda: means)
    row = seam_report(cube, made, halos=[0]).rows[0]
    assert row.border < 1e-10
    assert row.neighbours > 1e-5


def test_a_cube_too_small_is_told_so(cube):
    small = cube.isel(x=slice(0, 150))
    with pytest.raises(TilePlanError, match="224"):
        seam_report(small, "tiny", halos=[0], tile=64)


def test_south_up_cubes_are_measured_alike():
    report = [
        seam_report(
            deo_cube.synthetic_cube(size=320, times=1, clouds=False, gaps=False, south_up=up),
            "tiny",
            halos=[0],
            tile=64,
        )
        for up in (False, True)
    ]
    a, b = (r.rows[0] for r in report)
    np.testing.assert_allclose([a.border, a.neighbours], [b.border, b.neighbours], rtol=1e-3)
