import dask
import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from deo_cube.errors import ArgumentError
from deo_cube.heads.kmeans import cluster, fit_clusters
from tests.heads.fields import embeddings, no_compute, on_dask, truth


def test_finds_the_classes_and_numbers_them_by_frequency():
    c = cluster(embeddings(noise=0.1), 3).values
    label = truth(24, 32)
    for k in range(3):
        assert len(np.unique(c[label == k])) == 1
    counts = np.bincount(c.ravel())
    assert len(counts) == 3
    assert (np.diff(counts) <= 0).all()


@pytest.mark.parametrize("chunks", [(24, 32), (5, 9)])
def test_lazy_the_same_on_any_chunks_and_flagged(chunks):
    emb = embeddings(times=2, invalid=[(2, 3)], noise=0.5)
    with dask.config.set(scheduler=no_compute):
        lazy = cluster(on_dask(emb, *chunks), 4, seed=1)
    got = lazy.compute()
    xr.testing.assert_identical(got, cluster(emb, 4, seed=1))
    assert got.dtype == np.uint8
    assert (got.values[:, 2, 3] == 255).all()
    assert (got.values < 4).sum() == got.size - 2
    assert list(got.attrs["flag_values"]) == [0, 1, 2, 3]
    assert got.attrs["flag_meanings"].split() == [f"cluster_{i}" for i in range(4)]
    assert len(got.attrs["flag_colors"].split()) == 4
    assert got.rio.crs == emb.rio.crs
    assert got.rio.nodata == 255


def test_clusters_fitted_once_hold_in_any_window():
    emb = embeddings(noise=0.5)
    fitted = fit_clusters(emb, 4)
    whole = cluster(emb, clusters=fitted)
    window = emb.isel(y=slice(3, 9), x=slice(20, 30))
    xr.testing.assert_identical(cluster(window, clusters=fitted), whole.isel(y=slice(3, 9), x=slice(20, 30)))


def test_clusters_survive_json_and_belong_to_a_model(tmp_path):
    emb = embeddings(noise=0.5).assign_attrs({"deo_cube:model_fingerprint": "one"})
    fitted = fit_clusters(emb, 4)
    fitted.save(tmp_path / "c.json")
    xr.testing.assert_identical(cluster(emb, clusters=tmp_path / "c.json"), cluster(emb, clusters=fitted))
    with pytest.raises(ArgumentError, match="clusters"):
        cluster(emb.assign_attrs({"deo_cube:model_fingerprint": "two"}), clusters=fitted)


def test_errors():
    with pytest.raises(ArgumentError, match="k"):
        cluster(embeddings(), 1)
    with pytest.raises(ArgumentError, match="k must be"):
        cluster(embeddings(2, 4), 9)
