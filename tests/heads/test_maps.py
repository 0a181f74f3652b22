import dask
import numpy as np
import pytest
import shapely
import xarray as xr

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.head import fit_head
from deo_cube.heads.maps import classify, segment
from tests.heads.fields import clicks, embeddings, no_compute, on_dask, raster, with_patch


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_pixels_of_embeddings_are_the_same_on_any_chunks(kind):
    emb = with_patch(embeddings(24, 28, noise=0.4, invalid=[(5, 5)]))
    options = {"steps": 40, "width": 16, "upsample": 2} if kind == "conv" else {}
    head = fit_head(kind, emb, raster(emb), **options)
    whole = segment(emb, head)
    assert whole.shape == (96, 112)
    assert (whole.values[20:24, 20:24] == 255).all()
    assert (whole.values == 255).sum() == 16
    assert geobox(whole).boundingbox == geobox(emb.isel(embedding=0)).boundingbox
    with dask.config.set(scheduler=no_compute):
        lazy = segment(on_dask(emb, 7, 9), head)
    xr.testing.assert_identical(lazy.compute(), whole)
    p = segment(emb, head, probabilities=True)
    np.testing.assert_allclose(p.sum("class").values[p.isel({"class": 0}).notnull()], 1, atol=1e-5)


def test_interpolation_equals_torch_away_from_gaps():
    import torch

    emb = with_patch(embeddings(12, 12, noise=0.4))
    head = fit_head("linear", emb, clicks(emb))
    p = head.predict(emb, probabilities=True).values
    want = torch.nn.functional.interpolate(torch.from_numpy(p)[None], scale_factor=4, mode="bilinear")[0].numpy()
    np.testing.assert_allclose(segment(emb, head, probabilities=True).values, want, atol=1e-5)


def test_a_cube_gives_classes_on_its_own_pixels():
    ds = deo_cube.synthetic_cube(size=101, times=1).compute()
    emb = ds.deo.embed("tiny")
    truth = ds["land_cover"]
    head = fit_head("linear", emb, truth if "time" not in truth.dims else truth.isel(time=0))
    drawn = segment(ds, head)
    assert drawn.sizes["y"] == drawn.sizes["x"] == 101
    assert geobox(drawn) == geobox(ds)
    assert (drawn.values != 255).mean() > 0.9
    patches = classify(ds, head)
    xr.testing.assert_identical(patches.compute(), classify(emb, head).compute())
    # Only the variables: `ds.chunk()` would turn coordinates of the time steps into tasks too.
    lazy = ds.assign({k: v.variable.chunk() for k, v in ds.data_vars.items()})
    with dask.config.set(scheduler=no_compute):
        segment(lazy, head)
        classify(lazy, head)


def test_a_head_may_be_a_path(tmp_path):
    emb = embeddings(24, 24)
    head = fit_head("linear", emb, clicks(emb))
    path = head.save(tmp_path / "h")
    xr.testing.assert_identical(classify(emb, path), head.predict(emb))


def test_errors():
    emb = embeddings(24, 24)
    head = fit_head("linear", emb, clicks(emb))
    with pytest.raises(ArgumentError, match="cube"):
        segment(emb, head)
    with pytest.raises(ArgumentTypeError, match="mask"):
        classify(emb, head, mask="scl")
    with pytest.raises(ArgumentError, match="model="):
        classify(deo_cube.synthetic_cube(size=64, times=1), head)


def test_a_comparison_of_a_map_has_no_classes_of_that_map(tmp_path):
    import rasterio

    ds = deo_cube.synthetic_cube(size=96, times=1, clouds=False, gaps=False)
    classes = ds.deo.segment().isel(time=0).compute()
    trees = dict(zip(classes.attrs["flag_meanings"].split(), classes.attrs["flag_values"], strict=True))["trees"]
    chosen = classes == trees
    chosen.attrs = dict(classes.attrs)  # as new releases of xarray keep them
    places = [(float(ds.x[i]), float(ds.y[j]), int(chosen[j, i])) for i in range(4, 96, 9) for j in range(5, 96, 9)]
    result = str(chosen.deo.assess(places))
    assert "trees" not in result
    assert "water" not in result
    head = deo_cube.fit_head("knn", ds.deo.embed().isel(time=0), chosen)
    assert head.classes.names == ("0", "1")
    field = shapely.box(float(ds.x[10]), float(ds.y[60]), float(ds.x[60]), float(ds.y[10]))
    share = chosen.deo.sample(field, how="mean", weights=None)
    expected = classes.deo.sample(field, how="share", weights=None).sel({"class": "trees"})
    np.testing.assert_allclose(share.values, expected.values, atol=1e-6)
    with rasterio.open(chosen.deo.to_cog(tmp_path / "trees.tif")) as file:
        assert not {"flag_values", "flag_meanings", "class_0"} & {*file.tags(), *file.tags(1)}


@pytest.mark.parametrize("form", ["zarr", "nc"])
def test_a_map_that_xarray_decoded_to_floats_keeps_its_classes(form, tmp_path):
    import rasterio

    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    classes = ds.deo.segment().isel(time=0, drop=True).compute().drop_vars("processing_baseline", errors="ignore")
    classes[:5] = 255
    if form == "zarr":
        classes.to_dataset(name="class").to_zarr(tmp_path / "map.zarr", zarr_format=3)
        read = xr.open_zarr(tmp_path / "map.zarr", decode_coords="all")["class"]
    else:
        classes.to_netcdf(tmp_path / "map.nc")
        read = xr.open_dataset(tmp_path / "map.nc", decode_coords="all")["class"]
    assert read.dtype.kind == "f"
    with rasterio.open(read.deo.to_cog(tmp_path / "map.tif")) as file:
        assert file.dtypes == ("uint8",)
        assert file.nodata == 255
        np.testing.assert_array_equal(file.read(1), classes.values)
        assert "class_1" in file.tags(1)
    field = shapely.box(float(ds.x[3]), float(ds.y[50]), float(ds.x[44]), float(ds.y[9]))
    shares = [m.deo.sample(field, how="share").values for m in (read, classes)]
    np.testing.assert_allclose(*shares, atol=1e-6)
    assert "trees" in repr(read.deo)
    mean = (read * 0.5).assign_attrs(read.attrs)  # numbers, whatever their attributes state
    assert float(mean.deo.sample((float(ds.x[20]), float(ds.y[20]))).values[0]) == classes[20, 20] / 2
