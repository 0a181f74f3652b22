import dask
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, SelectionError
from deo_cube.heads.similar import patch_at, similar
from tests.heads.fields import embeddings, no_compute, on_dask, truth


def test_the_class_of_the_point_is_nearer_than_the_others():
    emb = embeddings(noise=0.05)
    s = similar(emb, (emb.x.values[2], emb.y.values[3]))
    label = truth(24, 32)
    assert s.dims == ("y", "x")
    assert float(s.values[label == 0].min()) > float(s.values[label != 0].max())
    assert s.values[3, 2] == pytest.approx(1, abs=1e-6)


def test_equals_the_formula():
    emb = embeddings(noise=0.5, seed=3)
    q = emb.isel(y=5, x=7).values.astype("float64")
    v = emb.values.astype("float64")
    want = np.einsum("dyx,d->yx", v, q) / np.linalg.norm(v, axis=0) / np.linalg.norm(q)
    np.testing.assert_allclose(similar(emb, q).values, want, atol=1e-6)
    far = np.linalg.norm(v - q[:, None, None], axis=0)
    np.testing.assert_allclose(similar(emb, q, metric="euclidean").values, far, atol=1e-5)


def test_of_several_points_the_nearest_counts():
    emb = embeddings(noise=0.3)
    points = [(float(emb.x[2]), float(emb.y[3])), (float(emb.x[30]), float(emb.y[3]))]
    both = similar(emb, points)
    xr.testing.assert_identical(similar(on_dask(emb, 5, 7), points).compute(), both)
    one, two = (similar(emb, p) for p in points)
    xr.testing.assert_allclose(both.drop_attrs(), xr.where(one > two, one, two).drop_attrs(), atol=1e-7)


@given(rows=st.integers(1, 24), cols=st.integers(1, 32), times=st.integers(0, 2))
def test_chunks_do_not_matter(rows, cols, times):
    emb = embeddings(times=times, invalid=[(4, 4)])
    to = (float(emb.x[9]), float(emb.y[9]))
    xr.testing.assert_identical(similar(on_dask(emb, rows, cols), to).compute(), similar(emb, to))


def test_lazy_and_on_the_map(tmp_path):
    emb = embeddings(invalid=[(0, 0)])
    with dask.config.set(scheduler=no_compute):
        s = similar(on_dask(emb, 8, 8), (float(emb.x[9]), float(emb.y[9])))
    assert s.rio.crs == emb.rio.crs
    assert s.rio.transform(recalc=True) == emb.rio.transform(recalc=True)
    assert np.isnan(s.values[0, 0])
    assert np.isfinite(s.values[0, 1:]).all()
    s.rio.to_raster(tmp_path / "s.tif")


def test_each_time_with_its_own_example_or_one_for_all():
    emb = embeddings(times=3, noise=0.4)
    at = (float(emb.x[9]), float(emb.y[9]))
    own = similar(emb, at)
    np.testing.assert_allclose(own.values[:, 9, 9], 1, atol=1e-6)
    assert own.dims == ("time", "y", "x")
    fixed = similar(emb, at, time="2020")
    assert fixed.values[1, 9, 9] == pytest.approx(1, abs=1e-6)
    assert fixed.values[0, 9, 9] < 0.99999
    xr.testing.assert_allclose(fixed.isel(time=1).drop_attrs(), own.isel(time=1).drop_attrs(), atol=1e-7)


def test_int8_is_decoded():
    emb = embeddings(noise=0.2)
    small = (
        (emb / 0.03).round().clip(-127, 127).astype("int8").assign_attrs(scale_factor=0.03, _FillValue=np.int8(-128))
    )
    small[dict(y=0, x=0)] = -128
    s = similar(on_dask(small, 7, 7), (float(emb.x[9]), float(emb.y[9]))).compute()
    want = similar(emb, (float(emb.x[9]), float(emb.y[9])))
    assert np.isnan(s.values[0, 0])
    np.testing.assert_allclose(s.values.ravel()[1:], want.values.ravel()[1:], atol=0.02)


def test_errors_name_the_argument():
    emb = embeddings(times=2, invalid=[(0, 0)])
    with pytest.raises(ArgumentError, match=r"to .*500000 to 502560"):
        similar(emb, (9.0, 47.0))
    with pytest.raises(ArgumentError, match="valid embedding"):
        similar(emb, (float(emb.x[0]), float(emb.y[0])), time="2019")
    with pytest.raises(SelectionError, match="time='2031'"):
        similar(emb, (float(emb.x[5]), float(emb.y[5])), time="2031")
    with pytest.raises(ArgumentError, match="to must"):
        similar(emb, [1.0, 2.0, 3.0])
    with pytest.raises(ArgumentError, match="emb must"):
        similar(emb.rename(embedding="band"), (0, 0))
    with pytest.raises(ArgumentError, match="metric"):
        similar(emb, (0, 0), metric="l1")
    with pytest.raises(ArgumentTypeError, match=r"pass one of ds\['a'\]"):
        similar(xr.Dataset({"a": emb, "b": emb}), (0, 0))
    with pytest.raises(ArgumentTypeError, match="emb must"):
        similar(xr.Dataset({"a": emb.isel(embedding=0)}), (0, 0))


@given(
    row=st.integers(0, 23),
    col=st.integers(0, 31),
    north_up=st.booleans(),
    dy=st.floats(0, 0.999),
    dx=st.floats(0, 0.999),
)
def test_a_point_belongs_to_the_cell_that_contains_it(row, col, north_up, dy, dx):
    emb = embeddings(north_up=north_up)
    px, py = 500_000 + (col + dx) * 80, 5_200_000 - (row + dy) * 80
    r, c = patch_at(emb, px, py)
    assert (r if north_up else 23 - r, c) == (row, col)


def test_a_single_cell_takes_its_size_from_the_transform():
    emb = embeddings().isel(y=[3], x=[4])
    assert patch_at(emb, float(emb.x[0]) + 39, float(emb.y[0]) - 39) == (0, 0)
    with pytest.raises(ArgumentError, match="to"):
        patch_at(emb, float(emb.x[0]) + 41, float(emb.y[0]))


def test_places_of_any_form_are_those_of_their_cells():
    import geopandas as gpd
    from shapely.geometry import MultiPoint, Point, box

    for north_up in (True, False):
        emb = embeddings(north_up=north_up)
        at = (float(emb.x[7]), float(emb.y[4]))
        want = similar(emb, at)
        lon, lat = gpd.GeoSeries([Point(at)], crs=emb.rio.crs).to_crs(4326).iloc[0].coords[0]
        table = gpd.GeoDataFrame({"name": ["a"]}, geometry=[Point(at)], crs=emb.rio.crs)
        cell = box(at[0] - 30, at[1] - 30, at[0] + 30, at[1] + 30)
        forms = [
            (Point(at), None), ([Point(at)], None), (Point(lon, lat), 4326), ((lon, lat), "EPSG:4326"), (table, None),
            (table.to_crs(4326), None), (table.geometry, None), (cell, None),
            (table.to_crs(4326).__geo_interface__, None),
            ({"type": "Point", "coordinates": [lon, lat]}, None),
        ]  # fmt: skip
        for form, crs in forms:
            np.testing.assert_array_equal(similar(emb, form, crs=crs), want)
        two = [at, (float(emb.x[20]), float(emb.y[9]))]
        np.testing.assert_array_equal(similar(emb, MultiPoint(two)), similar(emb, two))


def test_a_dataset_of_one_array_is_that_array():
    emb = embeddings()
    at = (float(emb.x[7]), float(emb.y[4]))
    ds = emb.to_dataset(name="embeddings")
    np.testing.assert_array_equal(similar(ds, at), similar(emb, at))
    np.testing.assert_array_equal(similar(emb, ds.isel(x=7, y=4)), similar(emb, at))


def test_points_outside_say_how_they_would_fit():
    emb = embeddings()
    at = (float(emb.x[7]), float(emb.y[4]))
    with pytest.raises(ArgumentError, match=r"swapped: pass \(500600, 5199640\)"):
        similar(emb, at[::-1])
    lon, lat = emb.odc.geobox.geographic_extent.centroid.coords[0]
    for place in ((lon, lat), (lat, lon)):
        with pytest.raises(ArgumentError, match=rf'pass \({lon:.8g}, {lat:.8g}\) with crs="EPSG:4326"'):
            similar(emb, place)
    assert similar(emb, (lon, lat), crs="EPSG:4326").max() == pytest.approx(1)
    for wrong in ("here", None, [("a", "b")], [object()], {"type": "Point"}):
        with pytest.raises(DeoCubeError, match="to"):
            similar(emb, wrong)


@pytest.mark.parametrize("cut", [lambda e: e.isel(x=[0, 1, 2, 20, 21, 30]), lambda e: e.isel(x=[5, 3, 9])])
def test_the_patch_of_a_point_is_not_guessed_across_a_gap(cut):
    emb = cut(embeddings(noise=0.3))
    x, y = float(emb.x[2]), float(emb.y[3])
    with pytest.raises(ArgumentError, match="mosaic") as error:
        similar(emb, (x, y))
    vector = eval(str(error.value).split("nearest patch, to=")[1], {"emb": emb})
    assert float(similar(emb, vector).isel(x=2, y=3)) == pytest.approx(1, abs=1e-6)


def test_columns_from_east_to_west_are_not_mirrored():
    emb = embeddings(noise=0.3)
    point = (float(emb.x[3]), float(emb.y[5]))
    turned = similar(emb.isel(x=slice(None, None, -1)), point)
    np.testing.assert_allclose(turned.values[:, ::-1], similar(emb, point).values)
