"""Packed integers keep their scale through xarray's arithmetic; verbs decode what became of them, or refuse it."""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.errors import ArgumentError
from deo_cube.heads.vectors import as_embeddings
from deo_cube.packed import decoded_floats
from tests.heads.fields import embeddings

SCALE = 0.0356417
FILL = -128


def packed(*, chunks: int | None = None, invalid: tuple[tuple[int, int], ...] = ((3, 4),)) -> xr.DataArray:
    """Embeddings of two dates in int8, as `embed(dtype="int8")` returns them."""
    emb = embeddings(times=2, invalid=invalid)
    codes = (emb / SCALE).round().clip(-127, 127).fillna(FILL).astype("int8")
    codes.attrs = dict(emb.attrs) | {"scale_factor": SCALE, "_FillValue": np.int8(FILL)}
    return codes if chunks is None else codes.chunk(y=chunks, x=chunks)


def values_of(codes: xr.DataArray) -> np.ndarray:
    return np.where(codes.values == FILL, np.nan, codes.values * SCALE)


@pytest.mark.parametrize("chunks", [None, 8])
@pytest.mark.parametrize(
    "change",
    [
        lambda e: e.astype("float32"),
        lambda e: e.astype("float16"),
        lambda e: e.where(e.valid > 0.5),
        lambda e: e * e.attrs["scale_factor"],
        lambda e: (e * e.attrs["scale_factor"]).astype("float16"),
        lambda e: xr.decode_cf(e.to_dataset(name="embeddings"))["embeddings"],
    ],
    ids=["float32", "float16", "where", "by hand", "by hand in float16", "decode_cf"],
)
def test_floats_made_of_int8_are_the_values_that_they_mean(change, chunks):
    codes = packed(chunks=chunks)
    read = as_embeddings(change(codes))
    assert read.dtype == np.float32 or "scale_factor" not in change(codes).attrs
    assert "scale_factor" not in read.attrs
    assert (read.chunks is None) == (chunks is None)
    np.testing.assert_allclose(read.values, values_of(codes), rtol=2e-3, atol=1e-6)


@given(
    codes=st.lists(st.integers(-127, 127), min_size=1, max_size=40),
    scale=st.floats(1e-4, 0.7).filter(lambda s: abs(1 / s - round(1 / s)) > 1e-3),
)
def test_codes_and_decoded_values_are_told_apart(codes, scale):
    whole = xr.DataArray(np.array(codes, "float32"), dims="i", attrs={"scale_factor": scale})
    expected = np.array(codes, "float64") * scale
    np.testing.assert_allclose(decoded_floats(whole, "emb"), expected, rtol=1e-6)
    np.testing.assert_allclose(decoded_floats(whole.copy(data=expected), "emb"), expected, rtol=1e-6)


def test_a_mean_over_marks_of_no_data_is_refused_and_the_advice_works():
    codes = packed()
    codes[0, :, 0, 0] = FILL
    with pytest.raises(ArgumentError, match="scale_factor"):
        codes.mean("time").deo.pca_rgb()
    decoded = xr.decode_cf(codes.to_dataset(name="embeddings"))["embeddings"]
    mean = as_embeddings(decoded.mean("time"))
    np.testing.assert_allclose(mean.values, np.nanmean(values_of(codes), axis=0), rtol=1e-5, atol=1e-6)
    halves = (decoded.mean("time") / 3).assign_attrs(scale_factor=SCALE)  # decoded before, the attribute put back
    halves.attrs.pop("scale_factor")
    assert as_embeddings(halves).shape == halves.shape


def test_lazy_arrays_are_refused_when_they_are_computed():
    lazy = as_embeddings(packed(chunks=8).mean("time") + 0.3)
    with pytest.raises(ArgumentError, match="scale_factor"):
        lazy.compute()


def test_heads_distances_and_samples_are_those_of_the_decoded(tmp_path):
    codes = packed(invalid=())
    floats = codes.where(codes.valid > 0.5)
    plain = as_embeddings(codes)
    spots = [(float(codes.x[j]), float(codes.y[i]), int(i > 10)) for i, j in ((2, 3), (5, 9), (20, 4), (15, 30))]
    head = deo_cube.fit_head("knn", codes.isel(time=0), spots, k=1)
    assert (head.predict(floats) == head.predict(codes)).all()
    first, last = (str(t) for t in codes.time.values)
    distances = (e.deo.change(first, last, method="euclidean") for e in (floats, plain))
    np.testing.assert_allclose(*distances, rtol=1e-5)
    np.testing.assert_allclose(floats.deo.sample(spots[0][:2]), plain.deo.sample(spots[0][:2]), rtol=1e-6)
    one = floats.isel(time=0)
    table = pq.read_table(one.deo.to_geoparquet(tmp_path / "v.parquet"))
    vectors = np.stack(table["embedding"].to_numpy())
    np.testing.assert_allclose(vectors, plain.values[0].reshape(vectors.shape[1], -1).T, rtol=1e-6)


@pytest.mark.parametrize("change", [lambda e: e.astype("float32"), lambda e: e * e.attrs["scale_factor"]])
def test_stores_and_tiffs_are_scaled_once(tmp_path, change):
    codes = packed(chunks=12, invalid=())
    floats = change(codes).astype("float32")
    stored = floats.deo.to_zarr(tmp_path / "e.zarr", progress=False)
    np.testing.assert_allclose(stored.values, values_of(codes), rtol=1e-5, atol=1e-6)
    path = floats.isel(time=0).deo.to_cog(tmp_path / "e.tif")
    with rasterio.open(path) as file:
        scaled = file.read() * np.array(file.scales)[:, None, None]
    np.testing.assert_allclose(scaled, values_of(codes)[0], rtol=1e-5, atol=1e-6)


def test_arrays_without_a_scale_are_left_alone():
    for attrs in ({}, {"scale_factor": 1.0, "add_offset": 0.0}):
        array = xr.DataArray([0.5, 1.25], dims="i", attrs=attrs)
        assert decoded_floats(array, "data") is array
    whole = xr.DataArray([1, 2], dims="i", attrs={"scale_factor": 0.1})
    assert decoded_floats(whole, "data") is whole
