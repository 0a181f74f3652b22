import dask
import numpy as np
import pytest
import xarray as xr

from deo_cube.errors import ArgumentError
from deo_cube.heads.pca import PCA, fit_pca, pca_rgb
from tests.heads.fields import embeddings, no_compute, on_dask


def test_components_are_those_of_scikit_learn():
    from sklearn.decomposition import PCA as Reference

    emb = embeddings(noise=0.3)
    v = emb.values.reshape(6, -1).T.astype("float64")
    ours, theirs = fit_pca(emb), Reference(3).fit(v)
    np.testing.assert_allclose(np.abs((ours.components * theirs.components_).sum(axis=1)), 1, atol=1e-9)
    rgb = pca_rgb(emb, basis=ours)
    low, high = np.percentile((v - v.mean(0)) @ ours.components.T, [2, 98], axis=0)
    want = (((v - v.mean(0)) @ ours.components.T - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(rgb.values.reshape(3, -1).T, want, atol=1e-6)


def test_one_basis_gives_the_same_colours_in_any_window(tmp_path):
    emb = embeddings(64, 64, times=2, noise=0.3)
    fit_pca(emb).save(tmp_path / "basis.json")
    whole = pca_rgb(emb, basis=tmp_path / "basis.json")
    window = emb.isel(time=1, y=slice(11, 40), x=slice(20, 50))
    part = pca_rgb(window, basis=PCA.load(tmp_path / "basis.json"))
    xr.testing.assert_identical(part, whole.isel(time=1, y=slice(11, 40), x=slice(20, 50)))


@pytest.mark.parametrize("chunks", [(24, 32), (5, 9), (1, 32)])
def test_lazy_and_the_same_on_any_chunks(chunks):
    emb = embeddings(invalid=[(2, 3)])
    with dask.config.set(scheduler=no_compute):
        lazy = pca_rgb(on_dask(emb, *chunks))
    assert lazy.dims == ("band", "y", "x")
    assert list(lazy.band.values) == ["red", "green", "blue"]
    got = lazy.compute()
    xr.testing.assert_identical(got, pca_rgb(emb))
    assert np.isnan(got.values[:, 2, 3]).all()
    assert 0 <= np.nanmin(got) < np.nanmax(got) <= 1


def test_the_subsample_of_a_large_array_touches_few_chunks():
    import dask.array as da

    seen = []

    def block(block_info=None):
        seen.append(block_info[None]["chunk-location"])
        return np.random.default_rng(0).normal(size=(4, 64, 64)).astype("float32")

    big = da.map_blocks(
        block, chunks=((4,), (64,) * 64, (64,) * 64), dtype="float32", meta=np.empty((0, 0, 0), "float32")
    )
    emb = xr.DataArray(big, dims=("embedding", "y", "x"), coords={"y": -np.arange(4096.0), "x": np.arange(4096.0)})
    fit_pca(emb)
    assert len(seen) <= 16 * 16


def test_a_basis_of_another_model_is_refused():
    emb = embeddings()
    basis = fit_pca(emb.assign_attrs({"deo_cube:model_fingerprint": "aa"}))
    with pytest.raises(ArgumentError, match="basis"):
        pca_rgb(emb.assign_attrs({"deo_cube:model_fingerprint": "bb"}), basis=basis)
    with pytest.raises(ArgumentError, match="basis.*length 5"):
        pca_rgb(embeddings(dim=5), basis=basis)


def test_an_array_without_valid_vectors_is_refused():
    emb = embeddings() * np.nan
    with pytest.raises(ArgumentError, match="emb"):
        pca_rgb(emb)


def test_the_bundled_model_brings_its_basis():
    """Otherwise colours would differ from window to window: benchmarks/pca_basis.py makes it anew."""
    import deo_cube

    ds = deo_cube.synthetic_cube(size=128, times=1, clouds=False, gaps=False)
    emb = ds.deo.embed("tiny").compute()
    whole = pca_rgb(emb)
    assert whole.attrs["pca_basis"] == "bundled with the model"
    part = emb.isel(y=slice(3, 9), x=slice(2, 12))
    xr.testing.assert_identical(pca_rgb(part), whole.isel(y=slice(3, 9), x=slice(2, 12)))


def test_several_scenes_share_a_basis():
    a, b = embeddings(noise=0.3), embeddings(noise=0.3, seed=4)
    both, one = fit_pca([a, b]), fit_pca(a)
    assert both.components.shape == one.components.shape
    assert not np.allclose(both.mean, one.mean)
    with pytest.raises(ArgumentError, match="emb"):
        fit_pca([a, b.assign_attrs({"deo_cube:model_fingerprint": "x"})])
