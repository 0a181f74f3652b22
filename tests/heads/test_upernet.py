import dask
import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.registry import register_encoder
from deo_cube.errors import ArgumentError
from deo_cube.heads.conv import multiscale
from deo_cube.heads.head import fit_head, load_head
from tests.heads.fields import no_compute


@pytest.fixture(scope="module")
def cube():
    return deo_cube.synthetic_cube(size=96, times=1, clouds=False, gaps=False)


@pytest.fixture(scope="module")
def two_strides():
    """A model with layers of stride 4 and 16, whose values say where they come from."""
    bands = ("B02", "B03", "B04")
    card = ModelCard(
        name="strides.test", alias="two-strides", summary="means of cells of two sizes, for a test",
        architecture={"family": "callable"},
        stems=(Stem("rgb", bands, (Normalization("fixed", "fixed", (0.0,) * 3, (1000.0,) * 3),)),),
        layers=(Layer("coarse", 3, 16), Layer("fine", 3, 4)), tile=64, halo=16, weights=Weights("untrained", ""),
    )  # fmt: skip
    from torch import nn

    class Means(nn.Module):
        def forward_features(self, x, stem, layers=None):
            def mean(s):
                b, c, h, w = x.shape
                return x.reshape(b, c, h // s, s, w // s, s).mean(dim=(3, 5))

            every = {"coarse": mean(16), "fine": mean(4), "pooled": x.mean(dim=(2, 3))}
            return {k: every[k] for k in (layers or every)}

    return register_encoder(card, Means)


def test_a_coarse_layer_is_at_its_place(cube, two_strides):
    with dask.config.set(scheduler=no_compute):
        both = multiscale(cube, two_strides, dtype="float32")
    assert list(both.attrs["deo_cube:scales"]) == [3, 3]
    assert both.sizes["embedding"] == 6
    assert both.attrs["deo_cube:layer"] == "fine+coarse"
    fine, coarse = (cube.deo.embed(two_strides, layer=n, dtype="float32") for n in ("fine", "coarse"))
    assert geobox(both.isel(embedding=0, drop=True)) == geobox(fine.isel(embedding=0, drop=True))
    np.testing.assert_array_equal(both.values[:, :3], fine.values)
    # By coordinates, as anyone would look it up.
    want = coarse.interp(y=fine.y, x=fine.x, method="nearest", kwargs={"fill_value": "extrapolate"})
    np.testing.assert_allclose(both.values[:, 3:], want.transpose("time", "embedding", "y", "x").values, atol=1e-6)


def test_a_head_on_several_scales(cube, two_strides, tmp_path):
    both = multiscale(cube, two_strides, dtype="float32").compute()
    truth = cube["land_cover"].load()
    head = fit_head("upernet", both, truth, steps=15, width=16, upsample=4)
    assert head.scales == (3, 3)
    whole = head.predict(both)
    assert geobox(whole) == geobox(cube)
    xr.testing.assert_identical(head.predict(both.chunk(y=7, x=11)).compute(), whole)
    xr.testing.assert_identical(load_head(head.save(tmp_path / "u")).predict(both), whole)
    from deo_cube.heads.maps import segment

    # From the cube itself both layers are embedded again, and drawn on the cube's grid.
    drawn = segment(cube, head, dtype="float32")
    assert float(drawn.valid.min()) >= 0
    xr.testing.assert_identical(drawn.drop_vars("valid").drop_attrs(), whole.drop_attrs())
    commonest = np.bincount(truth.values.ravel()).max() / truth.size
    assert (whole.values[0] == truth.values).mean() > 0.5 * commonest
    with pytest.raises(ArgumentError, match="state scales of"):
        fit_head("upernet", both.isel(embedding=slice(0, 4)), truth, steps=1)
