"""Rasters of classes with any codes: every class is kept, and what marks no class is said or asked."""

import warnings

import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
import rioxarray
import xarray as xr
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from deo_cube.cube.georeference import assign_grid
from deo_cube.errors import ArgumentTypeError, DeoCubeError, LabelsError, MissingCRSError
from deo_cube.heads.head import fit_head
from deo_cube.heads.labels import LabelOptions, rasterize_all
from deo_cube.heads.labels import rasterize_labels as rasterize
from tests.heads.fields import embeddings

X0, Y0, CELL, ROWS, COLS = 500_000.0, 5_200_000.0, 80.0, 24, 32
BOX = GeoBox((ROWS, COLS), Affine(CELL, 0, X0, 0, -CELL, Y0), "EPSG:32632")


def array(values, **attrs):
    return assign_grid(xr.DataArray(values, dims=("y", "x"), attrs=attrs), BOX)


def quarters(a, b, c, d, dtype):
    return np.kron(np.array([[a, b], [c, d]]), np.ones((ROWS // 2, COLS // 2))).astype(dtype)


def to_file(path, values, nodata=None, colors=None, categories=None):
    facts = {"driver": "GTiff", "height": ROWS, "width": COLS, "count": 1, "dtype": values.dtype, "nodata": nodata}
    with rasterio.open(path, "w", **facts, crs="EPSG:32632", transform=BOX.transform) as r:
        r.write(values, 1)
        if colors:
            r.write_colormap(1, colors)
    if categories:
        names = "".join(f"<Category>{c}</Category>" for c in categories)
        band = f'<PAMRasterBand band="1"><CategoryNames>{names}</CategoryNames></PAMRasterBand>'
        path.with_name(path.name + ".aux.xml").write_text(f"<PAMDataset>{band}</PAMDataset>")
    return path


def meanings(label_map):
    named = dict(zip(label_map.attrs["flag_values"].tolist(), label_map.attrs["flag_meanings"].split(), strict=True))
    return np.vectorize(lambda v: named.get(int(v), "-"))(label_map.values)


@given(
    codes=st.lists(st.integers(-300, 70_000).filter(lambda v: v not in (-1, -9, -99, 32767, 65535, 0, 255)),
                   min_size=4, max_size=4, unique=True),
    dtype=st.sampled_from(["int32", "int64", "float64", "uint32"]),
)  # fmt: skip
def test_every_code_is_a_class(codes, dtype):
    if dtype == "uint32":
        codes = [abs(c) for c in codes]
    values = quarters(*codes, dtype)
    np.testing.assert_array_equal(meanings(rasterize(array(values), embeddings())), values.astype("int64").astype(str))


@pytest.mark.parametrize("form", ["file", "array"])
def test_land_cover_codes_in_files_and_arrays(tmp_path, form):
    values = quarters(111, 311, 211, 512, "uint16")
    labels = to_file(tmp_path / "corine.tif", values, nodata=0) if form == "file" else array(values)
    names = {111: "town", 211: "arable", 311: "wood", 512: "water", 999: "sea"}
    got = rasterize(labels, embeddings(), names=names, colors={512: "#0000ff", "wood": "#00ff00"})
    np.testing.assert_array_equal(meanings(got), np.vectorize(names.get)(values))
    shades = dict(zip(got.attrs["flag_meanings"].split(), got.attrs["flag_colors"].split(), strict=True))
    assert (shades["water"], shades["wood"]) == ("#0000ff", "#00ff00")


def test_codes_from_0_to_254_keep_their_value():
    got = rasterize(array(quarters(3, 7, 11, 254, "uint16")), embeddings())
    assert list(got.attrs["flag_values"]) == [3, 7, 11, 254]


@pytest.mark.parametrize(
    ("codes", "dtype"), [((1, 2, 3, 255), "uint8"), ((1, 2, 3, -1), "int16"), ((1, 2, 3, -9999), "float32"),
                         ((1, 2, 3, 65535), "uint16"), ((1, 2, 3, -32768), "int16")]
)  # fmt: skip
def test_codes_that_may_mark_no_class_need_nodata_or_a_name(tmp_path, codes, dtype):
    emb, values, doubt = embeddings(), quarters(*codes, dtype), codes[-1]
    for labels in (array(values), to_file(tmp_path / "l.tif", values)):
        with pytest.raises(LabelsError, match=rf"pass nodata={doubt}.*names=\{{{doubt}:"):
            rasterize(labels, emb)
        np.testing.assert_array_equal(meanings(rasterize(labels, emb, nodata=doubt)) == "-", values == doubt)
        named = rasterize(labels, emb, names={doubt: "other"})
        np.testing.assert_array_equal(meanings(named) == "other", values == doubt)
        assert (named != 255).all()
    stated = to_file(tmp_path / "s.tif", values, nodata=doubt)
    np.testing.assert_array_equal(meanings(rasterize(stated, emb)) == "-", values == doubt)
    for opened in (rioxarray.open_rasterio(stated), rioxarray.open_rasterio(stated, masked=True)):
        np.testing.assert_array_equal(meanings(rasterize(opened, emb)) == "-", values == doubt)
    whole = rasterize(stated, emb, nodata=())
    np.testing.assert_array_equal(meanings(whole) == str(doubt), values == doubt)


def test_zero_is_a_class_unless_something_says_otherwise(tmp_path):
    emb, values = embeddings(), quarters(0, 1, 1, 2, "uint8")
    with pytest.warns(UserWarning, match=r"0 is taken for a class.*nodata=0.*names="):
        assert (rasterize(array(values), emb) != 255).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(rasterize(array(values), emb, nodata=0) == 255, values == 0)
        assert (rasterize(array(values), emb, names={0: "dry"}) != 255).all()
        assert (rasterize(array(values), emb, nodata=9) != 255).all()
        np.testing.assert_array_equal(rasterize(array(values, _FillValue=0), emb) == 255, values == 0)
        assert (rasterize(array(values, _FillValue=9), emb) != 255).all()
        assert (rasterize(array(values, flag_values=[0, 1, 2], flag_meanings="a b c"), emb) != 255).all()
        assert (rasterize(array(values > 0), emb) != 255).all()
        holes = np.where(values == 2, np.nan, values)
        np.testing.assert_array_equal(rasterize(array(holes), emb) == 255, values == 2)
        np.testing.assert_array_equal(rasterize(to_file(tmp_path / "z.tif", values, nodata=0), emb) == 255, values == 0)
    np.testing.assert_array_equal(rasterize(array(values), emb, nodata=(0, 2)) == 255, values != 1)
    with pytest.raises(LabelsError, match=r"no class there.*nodata=\(\)"):
        rasterize(array(np.zeros((ROWS, COLS), "uint8"), _FillValue=0), emb)
    with pytest.raises(ArgumentTypeError, match="nodata"):
        rasterize(array(values), emb, nodata="none")


def test_names_and_colours_that_a_file_carries(tmp_path):
    emb, values = embeddings(), quarters(1, 2, 3, 3, "uint8")
    colors = {1: (255, 0, 0, 255), 2: (0, 128, 0, 255), 3: (0, 0, 200, 255)}
    path = to_file(tmp_path / "named.tif", values, 0, colors, ["none", "bare", "green", "wet land"])
    got = rasterize(path, emb)
    assert got.attrs["flag_meanings"].split() == ["bare", "green", "wet_land"]
    assert got.attrs["flag_colors"].split() == ["#ff0000", "#008000", "#0000c8"]
    assert rasterize(path, emb, names={2: "grass"}).attrs["flag_meanings"].split() == [
        "bare",
        "grass",
        "wet_land",
    ]
    assert rasterize(path, emb, colors={2: "#010203"}).attrs["flag_colors"].split()[1] == "#010203"


def test_a_map_written_and_read_again_is_the_same(tmp_path):
    from deo_cube.store.export import to_cog

    emb = embeddings()
    first = rasterize(
        array(quarters(3, 7, 11, 9, "uint8")), emb, names={3: "a", 7: "b", 9: "c", 11: "d"}, colors={3: "#123456"}
    )
    to_cog(first, tmp_path / "map.tif")
    xr.testing.assert_identical(rasterize(tmp_path / "map.tif", emb), first)
    xr.testing.assert_identical(rasterize(first, emb), first)


def test_measurements_are_refused_and_the_advice_works():
    emb = embeddings()
    raster = array(np.random.default_rng(0).random((ROWS, COLS)))
    with pytest.raises(LabelsError, match=r"fractions.*\(raster > 0.5\).where\(raster.notnull\(\)\)"):
        rasterize(raster, emb)
    with pytest.warns(UserWarning, match="0 is taken"):
        np.testing.assert_array_equal(rasterize((raster > 0.5).where(raster.notnull()), emb) == 1, raster > 0.5)
    with pytest.raises(LabelsError, match="768 different values"):
        rasterize(array(np.arange(ROWS * COLS).reshape(ROWS, COLS) + 1000), emb)


def test_datasets_and_layers(tmp_path):
    emb, values = embeddings(), quarters(1, 2, 3, 4, "uint8")
    one = array(values).to_dataset(name="cover")
    np.testing.assert_array_equal(rasterize(one, emb), values)
    with pytest.raises(ArgumentTypeError, match=r"labels\['cover'\]"):
        rasterize(one.assign(other=one.cover), emb)
    stack = array(values).expand_dims(band=[1, 2])
    with pytest.raises(LabelsError, match=r"isel\(\{'band': 0\}\)"):
        rasterize(stack, emb)
    np.testing.assert_array_equal(rasterize(stack.isel({"band": 0}), emb), values)
    stack.rio.to_raster(tmp_path / "two.tif")
    with pytest.raises(LabelsError, match=r"open_rasterio\(.*\).sel\(band=1\)"):
        rasterize(tmp_path / "two.tif", emb)
    np.testing.assert_array_equal(rasterize(rioxarray.open_rasterio(tmp_path / "two.tif").sel(band=1), emb), values)
    for dtype in ("datetime64[ns]", "complex64", "U3", object):
        with pytest.raises(DeoCubeError):
            rasterize(array(np.ones((ROWS, COLS)).astype("int64").astype(dtype)), emb)


def test_a_raster_without_crs_needs_one_and_the_argument_decides(tmp_path):
    emb, values = embeddings(), quarters(1, 2, 3, 4, "uint8")
    bare = xr.DataArray(
        values, {"y": BOX.coordinates["y"].values + 8, "x": BOX.coordinates["x"].values}, dims=("y", "x")
    )
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(bare, emb)
    assert (rasterize(bare, emb, crs="EPSG:32632") != 255).any()
    wrong = array(values).rio.write_crs(4326)
    np.testing.assert_array_equal(rasterize(wrong, emb, crs=32632), values)
    path = to_file(tmp_path / "w.tif", values)
    np.testing.assert_array_equal(rasterize(path, emb, crs=32632), values)
    with pytest.raises(LabelsError, match="raster spans"):
        rasterize(path, emb, crs=32633)


def test_a_raster_counted_from_0_to_360_and_a_cube_from_minus_180():
    east = GeoBox((20, 20), Affine(0.01, 0, 190.0, 0, -0.01, 10.0), "EPSG:4326")
    west = GeoBox((20, 20), Affine(0.01, 0, -170.0, 0, -0.01, 10.0), "EPSG:4326")
    values = np.arange(1, 401).reshape(20, 20) % 200 + 1
    for own, grid_box in ((east, west), (west, east), (west, west)):
        labels = assign_grid(xr.DataArray(values, dims=("y", "x")), own)
        np.testing.assert_array_equal(rasterize(labels, grid_box), values)


def test_one_class_has_one_code_in_several_scenes():
    emb = embeddings()
    scenes = [array(quarters(111, 311, 111, 311, "uint16")), array(quarters(311, 512, 512, 311, "uint16"))]
    one, two = rasterize_all(scenes, [emb, emb], LabelOptions())
    np.testing.assert_array_equal(meanings(one), scenes[0].values.astype(str))
    np.testing.assert_array_equal(meanings(two), scenes[1].values.astype(str))
    assert one.attrs["flag_meanings"].split() == ["111", "311"]
    head = fit_head("knn", [emb, emb], scenes)
    assert head.classes.names == ("111", "311", "512")
    named = [[(float(emb.x[i]), float(emb.y[i]), n) for i, n in enumerate(words)] for words in (["b", "c"], ["a", "b"])]
    assert fit_head("knn", [emb, emb], named).classes.names == ("a", "b", "c")
    flags = {"flag_values": [1, 2], "_FillValue": 0}
    first, other = (array(quarters(1, 2, 1, 2, "uint8"), flag_meanings=m, **flags) for m in ("a b", "b a"))
    with pytest.raises(LabelsError, match="names="):
        rasterize_all([first, other], [emb, emb], LabelOptions())
    assert (
        rasterize_all([first, other], [emb, emb], LabelOptions(names={1: "x", 2: "y"}))[0].attrs["flag_meanings"]
        == "x y"
    )
