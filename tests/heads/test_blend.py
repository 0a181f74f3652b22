"""Blended scores: no seam where the encoder has one, the plain scores where it has none."""

import numpy as np
import pytest
import torch
import xarray as xr

import deo_cube
from deo_cube.cube.georeference import anchor, geobox
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.registry import register_encoder
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.head import fit_head
from deo_cube.heads.maps import segment
from deo_cube.heads.vectors import geobox as places

BANDS = ("B02", "B03", "B04")


def model(alias, function):
    card = ModelCard(
        name=f"{alias}.test", alias=alias, summary="for a test", architecture={"family": "callable"},
        stems=(Stem("rgb", BANDS, (Normalization("fixed", "fixed", (0.0,) * 3, (1000.0,) * 3),)),),
        layers=(Layer("mean", 3, 4),), tile=32, halo=0, weights=Weights("untrained", ""),
    )  # fmt: skip
    return register_encoder(card, lambda: function)


def means(x):
    b, c, h, w = x.shape
    return x.reshape(b, c, h // 4, 4, w // 4, 4).mean(dim=(3, 5))


def seamed(x):
    """Cell means, and an error that grows towards the tile's west border: a seam of 0.6 there."""
    ramp = torch.linspace(0.6, 0, x.shape[3] // 4)
    return means(x) + ramp


@pytest.fixture(scope="module")
def cube():
    return deo_cube.synthetic_cube(size=160, times=1, clouds=False, gaps=False).compute()


def fitted(cube, made):
    return fit_head("linear", cube.deo.embed(made, dtype="float32"), cube["land_cover"], strengths=[1.0])


@pytest.mark.parametrize("south_up", [False, True])
def test_without_seams_blending_changes_nothing(cube, south_up):
    made = model("blend-means", means)
    head = fitted(cube, made)
    cube = cube.isel(y=slice(None, None, -1)) if south_up else cube
    plain, mixed = (segment(cube, head, probabilities=True, blend=b, dtype="float32") for b in (False, True))
    assert places(mixed) == places(plain)
    np.testing.assert_allclose(mixed.values, plain.values, atol=1e-4)
    # Lazy, and of windows the same as of the whole, a core from its edges.
    part = cube.isel(y=slice(20, 140), x=slice(12, 150))
    small = segment(part, head, probabilities=True, blend=True, dtype="float32")
    inner = small.isel(y=slice(36, -36), x=slice(36, -36))
    want = mixed.isel(y=slice(20, 140), x=slice(12, 150)).isel(y=slice(36, -36), x=slice(36, -36))
    np.testing.assert_allclose(inner.values, want.values, atol=1e-4)


def test_a_seam_is_blended_away(cube):
    flat = cube.copy()
    for b in BANDS:
        flat[b] = xr.full_like(cube[b], 1000)
    made = model("blend-seamed", seamed)
    head = fitted(cube, made)
    x0 = anchor(geobox(flat)).col
    borders = [i for i in range(40, 120) if (x0 + i) % 32 == 0]
    assert len(borders) >= 2

    def jump(p):
        """Largest step of any class between the patches on either side of a border, 4 px apart."""
        v = p.values[0]
        return max(float(np.abs(v[..., i + 2] - v[..., i - 2]).max()) for i in borders)

    plain, mixed = (segment(flat, head, probabilities=True, blend=b, dtype="float32") for b in (False, True))
    before, after = jump(plain), jump(mixed)
    assert before > 0.02
    assert after < 0.25 * before


def test_blend_refuses_embeddings_and_other_anchors(cube):
    made = model("blend-means", means)
    head = fitted(cube, made)
    emb = cube.deo.embed(made, dtype="float32")
    with pytest.raises(ArgumentTypeError, match="cube"):
        segment(emb, head, blend=True)
    with pytest.raises(ArgumentError, match="anchor"):
        segment(cube, head, blend=True, anchor="array", dtype="float32")
