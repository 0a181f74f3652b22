import numpy as np
import pytest

from deo_cube.heads.head import fit_head
from deo_cube.heads.vectors import as_embeddings
from tests.heads.fields import embeddings, no_compute, on_dask, truth


@pytest.mark.parametrize(("dtype", "fill"), [("int8", None), ("int16", -9999), ("uint8", 255), ("float32", -9999.0)])
@pytest.mark.parametrize("lazy", [False, True])
def test_stored_integers_are_decoded_and_fill_values_invalid(dtype, fill, lazy):
    import dask

    emb = embeddings(invalid=[(3, 4)])
    scale, offset, missing = 0.1, -10.0 if dtype == "uint8" else 0.0, -128 if fill is None else fill
    plain = (emb - offset) / scale if dtype != "float32" else emb
    stored = (plain.round() if dtype != "float32" else plain).fillna(missing).astype(dtype)
    stored.attrs = {} if dtype == "float32" else {"scale_factor": scale, "add_offset": offset}
    stored.attrs |= {} if fill is None else {"_FillValue": fill}
    with dask.config.set(scheduler=no_compute):
        read = as_embeddings(on_dask(stored, 10, 10) if lazy else stored)
    assert read.dtype == np.float32
    assert not {"_FillValue", "scale_factor", "add_offset"} & set(read.attrs)
    np.testing.assert_allclose(read.values, emb.values, atol=scale)
    labels = [(float(emb.x[c]), float(emb.y[r]), int(truth(24, 32)[r, c])) for r, c in ((2, 2), (2, 30), (12, 16))]
    found = fit_head("knn", stored, labels).predict(stored)
    assert int(found[3, 4]) == 255
    assert int((found == 255).sum()) == 1


@pytest.mark.parametrize("order", [("time", "y", "x", "embedding"), ("embedding", "x", "y", "time")])
def test_the_order_of_dimensions_does_not_matter(order):
    from deo_cube.heads.kmeans import cluster
    from deo_cube.heads.pca import fit_pca, pca_rgb

    emb = embeddings(times=2)
    labels = [(float(emb.x[c]), float(emb.y[r]), int(truth(24, 32)[r, c])) for r, c in ((2, 2), (2, 30), (12, 16))]
    head, basis = fit_head("knn", emb, labels), fit_pca(emb)
    for verb in (head.predict, lambda e: pca_rgb(e, basis=basis), lambda e: cluster(e, 3)):
        assert verb(emb.transpose(*order)).dims == verb(emb).dims
    assert head.predict(emb.transpose(*order)).equals(head.predict(emb))
