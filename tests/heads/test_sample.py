"""One vector per point or polygon: laws, and comparisons with rasterio and shapely."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest
import shapely
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cli import main
from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    InputNotFoundError,
    LabelsError,
    MissingBandsError,
    MissingCRSError,
    SelectionError,
)
from deo_cube.heads.sample import sample
from tests.heads.fields import embeddings, no_compute, on_dask

gpd = pytest.importorskip("geopandas")

HOWS = ("nearest", "linear", "mean", "median", "max")


def centre(emb, row, col):
    return float(emb.x[col]), float(emb.y[row])


def square(emb, row, col, height=1, width=1, cell=80.0):
    """The outline of some patches."""
    (x0, y0), (x1, y1) = centre(emb, row, col), centre(emb, row + height - 1, col + width - 1)
    half = cell / 2
    return shapely.box(min(x0, x1) - half, min(y0, y1) - half, max(x0, x1) + half, max(y0, y1) + half)


def with_valid(emb, seed=0):
    """The embeddings with a valid fraction that differs from patch to patch."""
    valid = np.random.default_rng(seed).uniform(0.1, 1, emb["valid"].shape).astype("float32")
    return emb.assign_coords(valid=(emb["valid"].dims, np.where(emb["valid"] > 0, valid, 0).astype("float32")))


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("north_up", [True, False])
@given(row=st.integers(0, 23), col=st.integers(0, 31), times=st.integers(0, 2))
def test_a_polygon_that_is_one_patch_has_its_vector(how, north_up, row, col, times):
    emb = with_valid(embeddings(times=times, north_up=north_up))
    got = sample(emb, [square(emb, row, col), shapely.Point(centre(emb, row, col))], how=how)
    expected = emb.isel(y=row, x=col)
    for place in (0, 1):
        np.testing.assert_array_equal(got.isel(place=place).values, expected.values)
        np.testing.assert_allclose(got["valid"].isel(place=place), expected["valid"], rtol=1e-6)
    assert (got["count"] == 1).all()


@given(row=st.integers(0, 23), col=st.integers(0, 30), share=st.floats(0.01, 1), seed=st.integers(0, 9))
def test_a_polygon_of_two_patches_has_their_weighted_mean(row, col, share, seed):
    emb = with_valid(embeddings(), seed)
    x0, y0, _, y1 = square(emb, row, col, width=2).bounds
    got = sample(emb, shapely.box(x0, y0, x0 + 80 + 80 * share, y1))
    both = emb.isel(y=row, x=[col, col + 1])
    weight = both["valid"].values.astype("float64") * [1, share]
    np.testing.assert_allclose(got.values[0], (both.values * weight).sum(1) / weight.sum(), rtol=1e-4, atol=1e-6)
    assert float(got["valid"][0]) == pytest.approx(weight.sum() / (1 + share), rel=1e-5)
    plain = sample(emb, square(emb, row, col, width=2), weights=None)
    np.testing.assert_allclose(plain.values[0], both.values.mean(axis=1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=8)
@given(rows=st.integers(3, 24), cols=st.integers(3, 32), times=st.integers(0, 2), seed=st.integers(0, 99))
def test_chunks_do_not_matter(how, rows, cols, times, seed):
    emb = with_valid(embeddings(times=times, invalid=[(4, 4), (9, 20)]))
    rng = np.random.default_rng(seed)
    middles = [centre(emb, 0, 0)] + [(500_000 + 2560 * a, 5_200_000 - 1920 * b) for a, b in rng.random((5, 2))]
    places = [shapely.Point(m).buffer(r) for m, r in zip(middles, (30, 90, 300, 700, 150, 40), strict=True)]
    places += [shapely.Point(middles[3])]
    whole, lazy = sample(emb, places, how=how), sample(on_dask(emb, rows, cols), places, how=how)
    assert lazy.chunks is not None
    xr.testing.assert_allclose(lazy.compute(), whole, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(lazy["count"], whole["count"])


def test_equal_to_brute_force():
    emb = with_valid(embeddings(noise=0.5, invalid=[(10, 10), (11, 10)]))
    field = shapely.Polygon([(500_310, 5_199_700), (501_900, 5_199_300), (501_300, 5_198_650), (500_500, 5_198_900)])
    field = field.difference(shapely.Point(501_000, 5_199_200).buffer(150))
    share = np.array([[field.intersection(square(emb, r, c)).area / 6400 for c in range(32)] for r in range(24)])
    weight = share * emb["valid"].values
    vectors, used = emb.values.astype("float64"), weight > 0
    mean = (np.nan_to_num(vectors) * weight).sum(axis=(1, 2)) / weight.sum()
    np.testing.assert_allclose(sample(emb, field).values[0], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sample(emb, field, how="max").values[0], vectors[:, used].max(axis=1).astype("f4"))
    median = sample(emb, field, how="median").values[0]
    for numbers, m in zip(vectors[:, used], median, strict=True):
        assert weight[used][numbers < m - 1e-6].sum() <= weight.sum() / 2
        assert weight[used][numbers > m + 1e-6].sum() <= weight.sum() / 2
    assert float(sample(emb, field)["valid"][0]) == pytest.approx(weight.sum() * 6400 / field.area, rel=1e-5)
    assert int(sample(emb, field)["count"][0]) == used.sum()


def test_the_median_of_whole_patches_is_numpys():
    emb = embeddings(noise=1)
    for width in (2, 3):
        got = sample(emb, square(emb, 3, 5, 2, width), how="median").values[0]
        np.testing.assert_allclose(got, np.median(emb.values[:, 3:5, 5 : 5 + width].reshape(6, -1), axis=1), rtol=1e-6)


def test_rasterio_reads_the_same_points(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    emb = embeddings()
    emb.deo.to_cog(tmp_path / "e.tif")
    xy = [(500_000 + 2560 * a, 5_200_000 - 1920 * b) for a, b in np.random.default_rng(0).random((50, 2))]
    with rasterio.open(tmp_path / "e.tif") as file:
        expected = np.array(list(file.sample(xy)))
    np.testing.assert_array_equal(sample(emb, xy).values, expected)


def test_interpolation_of_a_plane_is_exact():
    emb = embeddings(dim=2)
    x, y = np.meshgrid(emb.x.values, emb.y.values)
    emb = emb.copy(data=np.stack([x, y]).astype("float32") / 100)
    got = sample(emb, [(501_111.0, 5_199_222.0)], how="linear").values[0]
    np.testing.assert_allclose(got, [5011.11, 51992.22], rtol=1e-6)


def test_interpolation_leaves_out_what_is_missing():
    emb = embeddings(invalid=[(3, 3)])
    x, y = centre(emb, 3, 4)
    got = sample(emb, (x - 39, y), how="linear")
    np.testing.assert_allclose(got.values[0], emb.values[:, 3, 4], rtol=1e-6)
    assert np.isnan(sample(emb, centre(emb, 3, 3), how="linear").values).all()


def test_outside_is_missing_and_named():
    emb = embeddings()
    table = gpd.GeoDataFrame(
        {"crop": ["wheat", "maize", "rye", "oats"]},
        geometry=[square(emb, 2, 3), shapely.Point(0, 0), None, shapely.Polygon()],
        index=["a", "b", "c", "d"],
        crs="EPSG:32632",
    )
    with pytest.warns(UserWarning, match="index") as caught:
        got = sample(emb, table)
    assert any("index b" in str(w.message) for w in caught)
    assert any("index c, d" in str(w.message) for w in caught)
    assert np.isnan(got.values[1:]).all()
    assert got["count"].values.tolist() == [1, 0, 0, 0]
    with pytest.warns(UserWarning, match="crs="):
        assert np.isnan(sample(emb, (9.0, 47.0)).values).all()


def test_half_outside_is_half_valid():
    emb = embeddings()
    x0, y0, x1, y1 = square(emb, 0, 0).bounds
    got = sample(emb, [shapely.box(x0 - 80, y0, x1, y1), shapely.Point(x0, y1 - 1e-9), shapely.Point(x0 - 1, y1 - 1)])
    np.testing.assert_array_equal(got.values[0], emb.values[:, 0, 0])
    np.testing.assert_allclose(got["valid"], [0.5, 1, 0])
    degrees = gpd.GeoSeries([shapely.box(x0 - 80, y0, x1, y1)], crs=32632).to_crs(4326)
    assert float(sample(emb, degrees)["valid"][0]) == pytest.approx(0.5, abs=0.01)


def test_the_index_joins_back():
    emb = embeddings(times=2)
    places = [square(emb, 2, 3), square(emb, 5, 6, 2, 2), shapely.Point(centre(emb, 1, 1))]
    fields = gpd.GeoDataFrame(
        {"crop": list("xyz")}, geometry=places, crs=emb.rio.crs, index=pd.Index([7, 3, 3], name="plot")
    )
    table = sample(emb, fields, table=True)
    assert table.index.name == "plot"
    assert table.index.tolist() == [7, 7, 3, 3, 3, 3]
    assert list(table.columns) == ["time", "valid", "count", *(f"e{i}" for i in range(6))]
    one = sample(emb, fields, time="2019", table=True)
    assert len(fields.join(one.loc[[7]], how="inner")) == 1
    levels = fields.set_index(pd.MultiIndex.from_tuples([("a", 1), ("a", 2), ("b", 1)], names=["farm", "plot"]))
    assert sample(emb, levels, table=True).index.names == ["farm", "plot"]
    np.testing.assert_array_equal(sample(emb, levels).sel(farm="b").values[0], sample(emb, fields).values[2])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:3035"])
def test_places_of_any_crs(crs):
    emb = embeddings()
    fields = gpd.GeoDataFrame(geometry=[square(emb, 2, 3, 4, 5), shapely.Point(centre(emb, 9, 9))], crs=emb.rio.crs)
    got = sample(emb, fields.to_crs(crs))
    np.testing.assert_allclose(got.values, sample(emb, fields).values, rtol=1e-3, atol=1e-3)
    lonlat = fields.to_crs(4326).geometry.iloc[1]
    np.testing.assert_array_equal(sample(emb, (lonlat.x, lonlat.y), crs=4326).values[0], emb.values[:, 9, 9])


def test_across_the_antimeridian():
    emb = embeddings(crs="EPSG:4326", corner=(179.9, -16.0), cell=0.01)
    across = shapely.Polygon([(179.95, -16.05), (-179.95, -16.05), (-179.95, -16.1), (179.95, -16.1)])
    with pytest.warns(UserWarning, match="antimeridian"):
        got = sample(emb, gpd.GeoSeries([across], crs=4326))
    np.testing.assert_allclose(got.values[0], emb.values[:, 5:10, 5:15].mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


def test_forms_of_places(tmp_path):
    emb = embeddings()
    x, y = centre(emb, 5, 6)
    frame = gpd.GeoDataFrame({"name": ["a"]}, geometry=[shapely.Point(x, y)], crs=emb.rio.crs)
    frame.to_file(tmp_path / "p.gpkg")
    frame.to_parquet(tmp_path / "p.parquet")
    pd.DataFrame({"x": [x], "y": [y], "name": ["a"]}).to_csv(tmp_path / "p.csv", index=False)
    degrees = frame.to_crs(4326)
    forms = [
        (x, y), [(x, y)], np.array([[x, y]]), shapely.Point(x, y), [shapely.Point(x, y)], frame, frame.geometry,
        pd.Series([shapely.Point(x, y)]), pd.DataFrame({"easting": [x], "northing": [y]}), degrees.__geo_interface__,
        pd.DataFrame({"lon": degrees.geometry.x, "lat": degrees.geometry.y}),
        pd.DataFrame({"wkt": [f"POINT({x} {y})"]}),
        tmp_path / "p.gpkg", str(tmp_path / "p.parquet"), tmp_path / "p.csv", shapely.MultiPoint([(x, y), (x + 1, y)]),
    ]  # fmt: skip
    for form in forms:
        np.testing.assert_array_equal(sample(emb, form).values[0], emb.values[:, 5, 6])


def test_lazy_and_only_touched_blocks_are_read_each_once():
    emb = embeddings(times=2)
    read = []

    def note(block, block_info=None):
        if block_info:
            read.append(block_info[0]["chunk-location"])
        return block

    lazy = on_dask(emb, 8, 8)
    lazy = lazy.copy(data=lazy.data.map_blocks(note, dtype=lazy.dtype, meta=np.empty((0, 0, 0, 0), "float32")))
    places = [square(emb, r, c, 2, 2) for r in (0, 3, 5) for c in (1, 2, 4)] + [square(emb, 17, 25)]
    with dask.config.set(scheduler=no_compute):
        got = sample(lazy, places)
    got.compute(scheduler="synchronous")
    assert sorted(read) == [(t, 0, r, c) for t in (0, 1) for r, c in ((0, 0), (2, 3))]


def test_stores_and_cubes_by_their_path(tmp_path):
    ds = deo_cube.synthetic_cube(size=96, times=2, clouds=False, gaps=False)
    stored = ds.deo.embed(dtype="int8").deo.to_zarr(tmp_path / "e.zarr", progress=False)
    ds.to_zarr(tmp_path / "c.zarr", zarr_format=3, consolidated=False)
    place = shapely.Point(float(ds.x[40]), float(ds.y[50])).buffer(60)
    got = deo_cube.sample(tmp_path / "e.zarr", place)
    np.testing.assert_allclose(got.values, stored.compute().deo.sample(place).values, rtol=1e-6)
    assert got.dims == ("place", "time", "embedding")
    bands = deo_cube.sample(str(tmp_path / "c.zarr"), place, table=True)
    assert {"B02", "B12", "valid"} <= set(bands.columns)
    array = ds[["B02", "B08"]].to_dataarray("band")
    pixel = (float(ds.x[40]), float(ds.y[50]))
    expected = ds[["B02", "B08"]].isel(x=40, y=50).to_dataarray("band").values.T
    np.testing.assert_array_equal(array.deo.sample(pixel, offset=0).values[0], expected)


def test_bands_are_without_offset_and_clouds_are_not_valid():
    ds = deo_cube.synthetic_cube(size=96, times=2, seed=3)
    i, j = (int(k[0]) for k in np.nonzero(np.isin(ds.SCL.isel(time=0).values, (8, 9))))
    cloudy = (float(ds.x[j]), float(ds.y[i]))
    got = sample(ds, cloudy, time=str(ds.time.values[0]))
    assert np.isnan(got.values).all()
    assert np.isfinite(sample(ds, cloudy, weights=None).isel(time=0).values).all()
    assert float(got["valid"][0]) == 0
    assert sample(ds.isel(time=0, drop=True), cloudy).dims == ("place", "band")


def test_maps_are_sampled():
    emb = embeddings(times=2)
    place = square(emb, 3, 4, 2, 2)
    s = emb.deo.similar(to=centre(emb, 3, 4))
    got = s.deo.sample(place)
    assert got.dims == ("place", "time")
    np.testing.assert_allclose(got.values[0], s.values[:, 3:5, 4:6].mean(axis=(1, 2)), rtol=1e-6)
    assert sample(s, place, table=True).columns.tolist() == ["time", "valid", "count", "similarity"]
    head = emb.deo.fit_head("knn", [(*centre(emb, 3, 4), "a"), (*centre(emb, 20, 30), "b")], time="2019", k=1)
    classes = emb.deo.classify(head)
    assert sample(classes, centre(emb, 20, 30)).values.ravel().tolist() == [classes.values[0, 20, 30]] * 2
    for options in ({"places": place}, {"places": centre(emb, 3, 4), "how": "max"}):
        with pytest.raises(ArgumentError, match="classes"):
            sample(classes, **options)


def test_int8_is_decoded_and_missing_values_are_missing():
    emb = embeddings(invalid=[(2, 2)])
    coded = (
        (emb / 0.05)
        .round()
        .fillna(-128)
        .astype("int8")
        .assign_attrs(emb.attrs | {"scale_factor": 0.05, "_FillValue": -128})
    )
    got = sample(coded, [centre(emb, 2, 2), centre(emb, 3, 3)])
    assert np.isnan(got.values[0]).all()
    np.testing.assert_allclose(got.values[1], emb.values[:, 3, 3], atol=0.026)


def test_wrong_inputs():
    emb = embeddings(times=2)
    x, y = centre(emb, 3, 3)
    line = shapely.LineString([(x, y), (x + 300, y)])
    with pytest.raises(ArgumentError, match="buffer"):
        sample(emb, line)
    assert sample(emb, gpd.GeoSeries([line], crs=emb.rio.crs).buffer(10)).notnull().all()  # what the message advises
    assert sample(emb, shapely.GeometryCollection([line, square(emb, 3, 3)])).notnull().all()
    for error, argument, call in (
        (ArgumentError, "how", lambda: sample(emb, (x, y), how="mode")),
        (ArgumentError, "weights", lambda: sample(emb, (x, y), weights="area")),
        (ArgumentTypeError, "places", lambda: sample(emb, 7)),
        (ArgumentTypeError, "places", lambda: sample(emb, [])),
        (ArgumentTypeError, "places", lambda: sample(emb, [(x, y, "wheat")])),
        (ArgumentTypeError, "data", lambda: sample(7, (x, y))),
        (SelectionError, "time", lambda: sample(emb, (x, y), time="1999")),
        (MissingCRSError, "crs", lambda: sample(emb, gpd.GeoDataFrame(geometry=[shapely.Point(x, y)]))),
        (LabelsError, "places", lambda: sample(emb, pd.DataFrame({"a": [1]}))),
        (InputNotFoundError, "places", lambda: sample(emb, "nowhere.gpkg")),
        (ArgumentError, "layer", lambda: sample(emb, (x, y), layer="fields")),
        (ArgumentError, "crs", lambda: sample(emb, (x, y), crs="EPSG:x")),
    ):
        with pytest.raises(error, match=argument):
            call()


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_the_command_writes_the_table(ending, tmp_path, capsys):
    ds = deo_cube.synthetic_cube(size=96, times=2, clouds=False, gaps=False)
    emb = ds.deo.embed()
    emb.deo.to_zarr(tmp_path / "e.zarr", progress=False)
    points = [shapely.Point(float(ds.x[i]), float(ds.y[i])) for i in (10, 60)]
    fields = gpd.GeoDataFrame({"crop": ["rye", "oats"]}, geometry=points, crs=ds.rio.crs)
    fields.to_file(tmp_path / "f.gpkg")
    out = tmp_path / f"t.{ending}"
    with pytest.raises(SystemExit) as end:
        main(["sample", str(tmp_path / "e.zarr"), str(tmp_path / "f.gpkg"), str(out)])
    assert not end.value.code
    table = gpd.read_parquet(out) if ending == "parquet" else pd.read_csv(out)
    assert table["crop"].tolist() == ["rye", "rye", "oats", "oats"]
    expected = emb.deo.sample(points).values.reshape(4, -1)
    np.testing.assert_allclose(table[[f"e{i}" for i in range(192)]], expected, rtol=1e-5)
    lonlat = fields.to_crs(4326)
    frame = pd.DataFrame({"lon": lonlat.geometry.x, "lat": lonlat.geometry.y})
    frame.to_csv(tmp_path / "p.csv", index=False)
    with pytest.raises(SystemExit):
        main(["sample", str(tmp_path / "e.zarr"), str(tmp_path / "p.csv"), str(tmp_path / "u.csv")])
    assert list(pd.read_csv(tmp_path / "u.csv").columns[:5]) == ["lon", "lat", "time", "valid", "count"]
    with pytest.raises(SystemExit) as end:
        main(["sample", str(tmp_path / "e.zarr"), str(tmp_path / "f.gpkg"), str(tmp_path / "t.xyz")])
    assert end.value.code == 2
    assert "OUT" in capsys.readouterr().err


@pytest.mark.real
def test_fields_of_a_real_series(shared):
    cube = deo_cube.open_cube(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc")
    rng = np.random.default_rng(0)
    corner = float(cube.x.min()), float(cube.y.min())
    fields = [shapely.Point(corner[0] + a, corner[1] + b).buffer(60) for a, b in 80 + 800 * rng.random((20, 2))]
    got = sample(cube, fields, offset=0, nodata=65535)
    assert got.sizes == {"place": 20, "time": 12, "band": 9}
    empty = got["time"].dt.strftime("%Y-%m").isin(["2020-12", "2021-01"]).values
    assert (np.isnan(got.values).all(axis=(0, 2)) == empty).all()
    assert np.isfinite(got.values[:, ~empty]).all()
    assert (got["count"].values[:, ~empty] > 113).all()  # pi 36 pixels, and those that the edge crosses
    red, near_infrared = got.sel(band="B04"), got.sel(band="B08")
    assert float((near_infrared / red).sel(time="2021-06").min()) > 1


def write_classes(path, **legend):
    import rasterio

    emb = embeddings()
    classes = (np.arange(24 * 32).reshape(24, 32) % 3).astype("uint8")
    profile = {"driver": "GTiff", "height": 24, "width": 32, "count": 1, "dtype": "uint8", "crs": emb.rio.crs}
    with rasterio.open(path, "w", **profile, transform=emb.rio.transform()) as file:
        file.write(classes, 1)
        if "colors" in legend:
            file.write_colormap(1, legend["colors"])
        if "names" in legend:
            file.update_tags(1, flag_values="0 1 2", flag_meanings=legend["names"])
    return path, classes


def test_means_of_a_map_of_classes_in_a_file_are_refused_where_it_names_them(tmp_path):
    emb = embeddings()
    path, classes = write_classes(tmp_path / "named.tif", names="water trees grass")
    assert float(sample(path, centre(emb, 3, 4)).values.item()) == classes[3, 4]
    with pytest.raises(ArgumentError, match="nearest"):
        sample(path, square(emb, 3, 4, 3, 3))


def test_means_of_a_map_with_colours_alone_are_warned_of(tmp_path, recwarn):
    emb = embeddings()
    path, classes = write_classes(tmp_path / "coloured.tif", colors={k: (80 * k, 0, 0, 255) for k in range(3)})
    assert float(sample(path, centre(emb, 3, 4)).values.item()) == classes[3, 4]
    plain, _ = write_classes(tmp_path / "plain.tif")
    mean = sample(plain, square(emb, 3, 4, 3, 3))
    assert not [w for w in recwarn if issubclass(w.category, UserWarning)]
    with pytest.warns(UserWarning, match="colours"):
        assert float(sample(path, square(emb, 3, 4, 3, 3)).values.item()) == pytest.approx(mean.values.item())


@pytest.mark.parametrize(
    ("seed", "x", "y", "width", "height"),
    [(0, 0, 0, 1, 1), (1, 3.3, 2.2, 4, 3), (2, 20, 14, 11.9, 9.9), (3, 5.5, 7, 0.2, 0.3)],
)
def test_shares_of_classes_are_those_of_the_areas_that_a_polygon_cuts(seed, x, y, width, height):
    emb = embeddings()
    codes = np.random.default_rng(seed).choice([0, 3, 7, 255], (24, 32)).astype("uint8")
    flags = {"flag_values": [0, 3, 7], "flag_meanings": "water trees grass", "_FillValue": np.uint8(255)}
    classes = emb.isel(embedding=0).copy(data=codes).drop_vars("valid").assign_attrs(flags)
    left, top = float(emb.x[0]) - 40, float(emb.y[0]) + 40
    place = shapely.box(left + 80 * x, top - 80 * (y + height), left + 80 * (x + width), top - 80 * y)
    shares = sample(classes, place, how="share")
    xs, ys = np.meshgrid(left + 80 * np.arange(32), top - 80 * np.arange(24))
    cut = shapely.area(shapely.intersection(shapely.box(xs, ys - 80, xs + 80, ys), place))
    areas = {code: float(cut[codes == code].sum()) for code in (0, 3, 7, 255)}
    known = areas[0] + areas[3] + areas[7]
    assert shares["class"].values.tolist() == ["water", "trees", "grass"]
    expected = [areas[k] / known if known else np.nan for k in (0, 3, 7)]
    np.testing.assert_allclose(shares.values[0], expected, atol=2e-5)
    assert float(shares["valid"][0]) == pytest.approx(known / place.area, abs=2e-5)
    np.testing.assert_allclose(sample(classes.chunk(y=7, x=11), place, how="share").values, shares.values, atol=1e-6)


def test_shares_from_a_file_and_a_store_of_a_map_in_a_shell(tmp_path):
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    classes = ds.deo.segment().compute()
    classes.deo.to_cog(tmp_path / "map.tif")
    classes.to_dataset(name="class").to_zarr(tmp_path / "map.zarr", zarr_format=3)
    field = shapely.box(float(ds.x[3]), float(ds.y[50]), float(ds.x[44]), float(ds.y[9]))
    gpd.GeoDataFrame({"name": ["a"]}, geometry=[field], crs=ds.rio.crs).to_file(tmp_path / "fields.gpkg")
    expected = classes.deo.sample(field, how="share", weights=None, table=True)
    for source in ("map.tif", "map.zarr"):
        with pytest.raises(SystemExit) as end:
            main(["sample", str(tmp_path / source), str(tmp_path / "fields.gpkg"), str(tmp_path / "out.csv"), "--how",
                  "share", "--weights", "none", "--overwrite"])  # fmt: skip
        assert not end.value.code
        table = pd.read_csv(tmp_path / "out.csv")
        names = expected.columns[expected.columns.get_loc("count") + 1 :]
        np.testing.assert_allclose(table[list(names)], expected[list(names)], atol=1e-6)
        assert table[list(names)].sum(axis=1).item() == pytest.approx(1)


def test_shares_of_numbers_are_refused_and_the_advice_works():
    emb = embeddings()
    numbers = emb.isel(embedding=0).copy(data=np.ones((24, 32), "uint8"))
    field = square(emb, 3, 4, 2, 2)
    with pytest.raises(ArgumentError, match="flag_values"):
        sample(numbers, field, how="share")
    stated = numbers.assign_attrs(flag_values=[0, 1], flag_meanings="land water")
    assert sample(stated, field, how="share").values.tolist() == [[0, 1]]
    with pytest.raises(ArgumentError, match="how='share'"):
        sample(stated, field, how="mean")


def test_dates_are_refused_and_the_advice_samples_days():
    emb = embeddings()
    dates = emb.isel(embedding=0).copy(data=np.full((24, 32), np.datetime64("2020-06-23"), "datetime64[ns]"))
    dates = dates.where(dates.x > float(dates.x[8])).rename("date")  # NaT in the west
    with pytest.raises(ArgumentError, match="timedelta64"):
        sample(dates, square(emb, 3, 4, 2, 9), how="mean")
    days = (dates - np.datetime64("1970-01-01")) / np.timedelta64(1, "D")
    mean = sample(days, square(emb, 3, 4, 2, 9), how="mean")
    assert np.datetime64("1970-01-01") + np.timedelta64(int(mean.item()), "D") == np.datetime64("2020-06-23")


def test_a_dataset_of_maps_is_refused_and_one_of_them_sampled():
    emb = embeddings(times=3)
    maps = emb.deo.change_series(season="none", min_dates=1)
    place = square(emb, 3, 4, 2, 2)
    with pytest.raises(MissingBandsError):
        sample(maps, place)
    assert sample(maps["magnitude"], place).shape == (1,)


def test_columns_have_the_names_that_a_raster_states(tmp_path):
    emb = embeddings(times=2)
    emb.deo.change("2019", "2020").rename("change").deo.to_cog(tmp_path / "c.tif")
    table = sample(tmp_path / "c.tif", square(emb, 3, 4, 2, 2), table=True)
    assert table.columns.tolist() == ["valid", "count", "change"]


def test_a_year_may_be_a_number():
    emb = embeddings(times=2)
    year = int(str(emb.time.values[0])[:4])
    place = centre(emb, 3, 4)
    xr.testing.assert_equal(sample(emb, place, time=year), sample(emb, place, time=str(year)))
    with pytest.raises(SelectionError, match="1850"):
        sample(emb, place, time=1850)
