"""Tables of labels as people have them: the same places and classes, however they are written down."""

import json
import warnings
from decimal import Decimal
from zipfile import ZipFile

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Point, box

from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, LabelsError, MissingCRSError
from deo_cube.heads.labels import rasterize_labels as rasterize
from tests.heads.fields import embeddings

X0, Y0, CELL = 500_000.0, 5_200_000.0, 80.0
PLACES = [(X0 + (3 * i + 0.4) * CELL, Y0 - (2 * i + 0.6) * CELL) for i in range(4)]
NAMES = ["wood", "field", "wood", "lake"]


def points(labels=NAMES, crs="EPSG:32632"):
    return gpd.GeoDataFrame({"label": labels}, geometry=[Point(p) for p in PLACES], crs=crs)


def degrees():
    return [(g.x, g.y) for g in points().to_crs(4326).geometry]


@pytest.fixture(scope="module")
def want():
    return rasterize(points(), embeddings())


def written(tmp_path, text, name="points.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("x", "y"),
    [("lon", "lat"), ("Longitude", "Latitude"), ("LON", "LAT"), ("long", "lat"), ("lng", "lat"),
     ("GPS_Long", "GPS_Lat"), ("decimalLongitude", "decimalLatitude"), (" lon ", " lat ")],
)  # fmt: skip
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_text_with_degrees(tmp_path, want, x, y, separator):
    rows = [
        ["id", y, x, "label"],
        *([str(i), str(b), str(a), n] for i, ((a, b), n) in enumerate(zip(degrees(), NAMES, strict=True))),
    ]
    path = written(tmp_path, "\n".join(separator.join(r) for r in rows) + "\n")
    np.testing.assert_array_equal(rasterize(path, embeddings()), want)
    np.testing.assert_array_equal(rasterize(path, embeddings(), column="label", crs=4326), want)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_text_with_decimal_commas_in_any_encoding(tmp_path, encoding):
    text = "Länge;Breite;Klasse\n" + "".join(
        f"{a};{b};{n}\n" for (a, b), n in zip(degrees(), ["Wälder", "a", "b", "c"], strict=True)
    )
    path = written(tmp_path, text.replace(".", ",").replace("Länge", "lon").replace("Breite", "lat"), encoding=encoding)
    got = rasterize(path, embeddings(), column="Klasse")
    assert got.attrs["flag_meanings"].split() == ["Wälder", "a", "b", "c"]
    assert (got.values != 255).sum() == 4


@pytest.mark.parametrize(
    ("x", "y"), [("x", "y"), ("X", "Y"), ("Easting", "Northing"), ("X_Coord", "Y_Coord"), ("POINT_X", "POINT_Y")]
)
def test_projected_coordinates_have_the_crs_of_the_embeddings_only_if_all_are_inside(tmp_path, want, x, y):
    text = f"{x},{y},label\n" + "".join(f"{a},{b},{n}\n" for (a, b), n in zip(PLACES, NAMES, strict=True))
    emb = embeddings()
    np.testing.assert_array_equal(rasterize(written(tmp_path, text), emb), want)
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(written(tmp_path, text + "0,0,sea\n"), emb)
    lonlat = f"{x},{y},label\n" + "".join(f"{a},{b},{n}\n" for (a, b), n in zip(degrees(), NAMES, strict=True))
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(written(tmp_path, lonlat), emb)
    np.testing.assert_array_equal(rasterize(written(tmp_path, lonlat), emb, crs="EPSG:4326"), want)


def test_a_table_with_both_kinds_of_coordinates(want):
    both = pd.DataFrame({"x": [p[0] for p in PLACES], "y": [p[1] for p in PLACES], "label": NAMES})
    both["lon"], both["lat"] = zip(*degrees(), strict=True)
    for crs in (None, 4326, 32632):
        np.testing.assert_array_equal(rasterize(both, embeddings(), crs=crs), want)


def test_geometries_in_any_spelling(tmp_path, want):
    emb, shapes = embeddings(), points().to_crs(4326).geometry
    kinds = {
        "wkt": [g.wkt for g in shapes],
        "geometry": [f"SRID=4326;{g.wkt}" for g in shapes],
        "geom": [g.wkb for g in shapes],
        "the_geom": [shapely.to_wkb(shapely.set_srid(g, 4326), hex=True, include_srid=True) for g in shapes],
        ".geo": [shapely.to_geojson(g) for g in shapes],
        "where": [g.wkt for g in shapes],
        "WKT": [None, *[g.wkt for g in shapes[1:]]],
    }
    for name, values in kinds.items():
        frame = pd.DataFrame({name: values, "label": NAMES})
        stated = name in ("geometry", "the_geom")
        expected = want.values.copy()
        expected[0, 0] = want.values[0, 0] if values[0] is not None else 255
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(rasterize(frame, emb, crs=None if stated else 4326) != 255, expected != 255)
        if not stated:
            with pytest.raises(MissingCRSError, match="crs="):
                rasterize(frame, emb)
        if not isinstance(values[-1], bytes):
            path = tmp_path / "table.csv"
            frame.to_csv(path, index=False)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                np.testing.assert_array_equal(
                    rasterize(path, emb, crs=None if stated else 4326) != 255, expected != 255
                )


def test_plain_frames_with_geometries(want):
    emb, table = embeddings(), points()
    plain = pd.DataFrame(table)
    np.testing.assert_array_equal(rasterize(plain, emb), want)
    objects = pd.DataFrame({"label": NAMES, "geometry": list(table.geometry)}, dtype=object)
    np.testing.assert_array_equal(rasterize(objects, emb, crs=32632), want)
    renamed = table.rename_geometry("place")
    np.testing.assert_array_equal(rasterize(renamed, emb), want)
    lost = table.assign(centre=table.geometry.buffer(5)).drop(columns="geometry")
    np.testing.assert_array_equal(rasterize(lost, emb, column="label", rule="centre") != 255, want != 255)
    two = table.merge(table, left_index=True, right_index=True)
    with pytest.raises(LabelsError, match=r"set_geometry\('geometry_x'\)"):
        rasterize(two, emb, column="label_x")
    np.testing.assert_array_equal(
        rasterize(gpd.GeoDataFrame(two).set_geometry("geometry_x"), emb, column="label_x"), want
    )


def test_files_of_other_kinds(tmp_path, want):
    emb, table = embeddings(), points()
    table.to_file(tmp_path / "s.shp")
    with ZipFile(tmp_path / "zipped.zip", "w") as z:
        for part in tmp_path.glob("s.*"):
            z.write(part, part.name)
    table.to_crs(4326).rename(columns={"label": "Name"}).to_file(tmp_path / "k.kml", driver="KML")
    table.to_file(tmp_path / "f.fgb", driver="FlatGeobuf")
    pd.DataFrame({"lon": [p[0] for p in degrees()], "lat": [p[1] for p in degrees()], "label": NAMES}).to_parquet(
        tmp_path / "plain.parquet"
    )
    table.to_feather(tmp_path / "g.feather")
    for name in ("s.shp", "zipped.zip", "f.fgb", "plain.parquet", "g.feather"):
        np.testing.assert_array_equal(rasterize(tmp_path / name, emb), want, err_msg=name)
    with pytest.raises(LabelsError, match=r"column=.*Name"):
        rasterize(tmp_path / "k.kml", emb)
    np.testing.assert_array_equal(rasterize(tmp_path / "k.kml", emb, column="Name"), want)
    (tmp_path / "s.prj").unlink()
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(tmp_path / "s.shp", emb)
    np.testing.assert_array_equal(rasterize(tmp_path / "s.shp", emb, crs=32632), want)


def test_of_several_layers_one_is_named(tmp_path, want):
    emb, path = embeddings(), tmp_path / "layers.gpkg"
    points().to_file(path, layer="truth", driver="GPKG")
    # A table without places, such as the styles that QGIS keeps, is no layer of labels.
    import pyogrio

    pyogrio.write_dataframe(pd.DataFrame({"style": ["red"]}), path, layer="layer_styles", driver="GPKG", append=True)
    np.testing.assert_array_equal(rasterize(path, emb), want)
    points(["x", "y", "z", "w"]).to_file(path, layer="draft", driver="GPKG")
    with pytest.raises(ArgumentError, match=r"layer=.*'truth', 'draft'"):
        rasterize(path, emb)
    np.testing.assert_array_equal(rasterize(path, emb, layer="truth"), want)
    with pytest.raises(LabelsError, match="layer='other'.*'truth'"):
        rasterize(path, emb, layer="other")
    with pytest.raises(ArgumentError, match="layer="):
        rasterize(points(), emb, layer="truth")


@pytest.mark.parametrize(
    ("column", "meanings"),
    [
        (["a", "b", "a", "c"], ["a", "b", "c"]),
        ([3, 1, 3, 7], ["1", "3", "7"]),
        ([3.0, 1.0, np.nan, 7.0], ["1", "3", "7"]),
        ([True, False, True, True], ["0", "1"]),
        (pd.Categorical(["b", "a", "b", None]), ["a", "b"]),
        (pd.array([3, 1, None, 7], dtype="Int64"), ["1", "3", "7"]),
        (pd.array(["b", "a", None, "b"], dtype="string"), ["a", "b"]),
        (["01", "02", "01", "10"], ["01", "02", "10"]),
        ([" a", "a ", "", "b"], ["a", "b"]),
        (["1", 1, 1.0, "2"], ["1", "2"]),
        ([Decimal(1), Decimal(2), None, Decimal(1)], ["1", "2"]),
        ([311, 312, 311, 512], ["311", "312", "512"]),
        ([-1, 2, -1, 3], ["-1", "2", "3"]),
    ],
)
def test_classes_of_any_type(column, meanings):
    got = rasterize(points().assign(label=pd.Series(column, dtype=getattr(column, "dtype", object))), embeddings())
    assert got.attrs["flag_meanings"].split() == meanings
    assert set(np.unique(got)) - {255} == set(got.attrs["flag_values"])


def test_codes_with_leading_zeros_in_text_are_names(tmp_path):
    rows = "".join(f"{a},{b},{n}\n" for (a, b), n in zip(degrees(), ["01", "02", "NA", "11"], strict=True))
    got = rasterize(written(tmp_path, "lon,lat,code\n" + rows), embeddings())
    assert got.attrs["flag_meanings"].split() == ["01", "02", "11"]
    rows = "".join(f"{a},{b},{n}\n" for (a, b), n in zip(degrees(), ["1", "2.0", "", "11"], strict=True))
    got = rasterize(written(tmp_path, "lon,lat,code\n" + rows), embeddings(), names={1: "one", 2: "two", 11: "more"})
    assert list(got.attrs["flag_values"]) == [1, 2, 11]
    assert got.attrs["flag_meanings"].split() == ["one", "two", "more"]


def test_names_reach_codes_that_are_text():
    got = rasterize(points(["1", "2", "1", "2"]), embeddings(), names={1: "wood", 2: "lake"})
    assert got.attrs["flag_meanings"].split() == ["wood", "lake"]
    with pytest.raises(LabelsError, match="names"):
        rasterize(points(), embeddings(), names={1: "wood"})


def test_nodata_of_a_table_labels_nothing():
    got = rasterize(points([1, 2, -9, 2]), embeddings(), nodata=-9)
    assert got.attrs["flag_meanings"].split() == ["1", "2"]


def test_the_column_is_found_only_where_it_is_unique(tmp_path):
    emb, table = embeddings(), points()
    for name in ("label", "Label", "CLASS", "crop"):
        found = table.rename(columns={"label": name}).assign(fid=[1, 2, 3, 4], empty=None)
        assert rasterize(found, emb).attrs["flag_meanings"].split() == ["field", "lake", "wood"]
    codes = table.assign(**{"class": [1, 2, 1, 3], "color": "#000000"})
    assert rasterize(codes, emb).attrs["flag_meanings"].split() == ["field", "lake", "wood"]
    with pytest.raises(LabelsError, match=r"column=.*'label', 'class'"):
        rasterize(table.assign(**{"class": [1, 2, 3, 4]}), emb)
    with pytest.raises(LabelsError, match=r"column=.*'crop', 'area'"):
        rasterize(table.rename(columns={"label": "crop"}).assign(area=[1, 2, 3, 4]), emb)
    with pytest.raises(LabelsError, match=r"column='Crop'.*column='crop'"):
        rasterize(table.rename(columns={"label": "crop"}), emb, column="Crop")
    with pytest.raises(LabelsError, match="2 columns called 'label'"):
        rasterize(pd.concat([table, table[["label"]]], axis=1), emb, column="label")
    with pytest.raises(LabelsError, match="none for the classes"):
        rasterize(table[["geometry"]], emb)
    numbered = points().rename(columns={"label": 0})
    assert rasterize(numbered, emb, column=0).attrs["flag_meanings"].split() == ["field", "lake", "wood"]


def test_geojson_with_and_without_a_crs(want):
    emb = embeddings()
    plain = json.loads(points().to_crs(4326).to_json())
    plain.pop("crs", None)
    np.testing.assert_array_equal(rasterize(plain, emb), want)
    np.testing.assert_array_equal(rasterize(plain["features"], emb), want)
    metres = json.loads(points().to_json(drop_id=True))
    metres["crs"] = {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32632"}}
    np.testing.assert_array_equal(rasterize(metres, emb), want)
    for crs in (None, {"type": "name", "properties": {"name": "EPSG:32632"}}):
        np.testing.assert_array_equal(rasterize(metres | {"crs": crs}, emb, crs="EPSG:32632"), want)
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(metres | {"crs": None}, emb)
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(metres | {"crs": {"type": "link", "properties": {"href": "x"}}}, emb)
    for broken in (
        {
            "type": "FeatureCollection",
            "features": [{"type": "Feature", "geometry": {"type": "Point"}, "properties": {"label": 1}}],
        },
        {"type": "FeatureCollection", "features": ["x"]},
        {"type": "FeatureCollection"},
        {"type": "Point", "coordinates": [0, 0]},
        {},
    ):
        with pytest.raises(LabelsError, match="GeoJSON|FeatureCollection"):
            rasterize(broken, emb)


def test_rows_that_end_with_a_separator(tmp_path, want):
    rows = "".join(f"{a};{b};{n};\n" for (a, b), n in zip(degrees(), NAMES, strict=True))
    np.testing.assert_array_equal(rasterize(written(tmp_path, "lon;lat;label\n" + rows), embeddings()), want)


def test_swapped_columns_are_named(tmp_path):
    text = "lon,lat,label\n" + "".join(f"{b},{a},{n}\n" for (a, b), n in zip(degrees(), NAMES, strict=True))
    with pytest.raises(LabelsError, match="swapped"):
        rasterize(written(tmp_path, text), embeddings())
    with pytest.raises(MissingCRSError, match="not degrees.*crs="):
        rasterize(
            pd.DataFrame({"lon": [p[0] for p in PLACES], "lat": [p[1] for p in PLACES], "label": NAMES}), embeddings()
        )


@pytest.mark.parametrize(
    "text",
    ["", "\n\n", "lon,lat,label\n", "lon,lat\n1,2\n", "a,b,c\n1,2,3\n", "lon,lat,label\n9°E,47°N,a\n",
     "lon;lat;label\n9;46.9;3;4;5\n", "\0\0\0\0"],
)  # fmt: skip
def test_text_that_is_not_a_table_is_refused(tmp_path, text):
    with pytest.raises(DeoCubeError):
        rasterize(written(tmp_path, text), embeddings())


@pytest.mark.parametrize(
    "name",
    ["x.geojson", "x.gpkg", "x.shp", "x.parquet", "x.zip", "x.kml", "x.unknown", "x.feather", "x.pkl", "x.tif", "x.nc"],
)
@pytest.mark.parametrize("content", [b"", b"not what the name says", b"PAR1" + bytes(40)])
def test_damaged_files_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelsError):
        rasterize(tmp_path / name, embeddings())


@pytest.mark.parametrize(
    "labels",
    [None, 3, b"points", [], {}, np.zeros((3, 4)), np.zeros((24, 32)), "", pd.Series([1, 2]), points().geometry,
     [(1, 2)], [1, 2, 3], pd.DataFrame(), pd.DataFrame({"label": [1]}), gpd.GeoDataFrame({"label": [1]}), object(),
     [("x", "y", 1)], [(X0 + 5, Y0 - 5, [1])], [(X0 + 5, Y0 - 5, pd.Timestamp("2020"))], [(X0 + 5, Y0 - 5, {"a": 1})],
     pd.DataFrame({("a", "x"): [1.0], ("a", "y"): [2.0]})],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_objects_of_no_form_of_labels_are_refused(labels):
    with pytest.raises(DeoCubeError):
        rasterize(labels, embeddings())


def test_the_message_for_an_array_gives_the_right_call():
    import xarray as xr

    emb = embeddings()
    labels = np.ones((24, 32), int)
    with pytest.raises(ArgumentTypeError, match="xr.DataArray"):
        rasterize(labels, emb)
    labels[:, 10:] = 2
    got = rasterize(xr.DataArray(labels, {"y": emb.y, "x": emb.x}, dims=("y", "x")), emb)
    np.testing.assert_array_equal(got, labels)
    bare = xr.DataArray(labels, {"y": emb.y.values, "x": emb.x.values}, dims=("y", "x"))
    np.testing.assert_array_equal(rasterize(bare, emb), labels)
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(bare.assign_coords(x=bare.x + 30), emb)


@given(
    st.lists(
        st.tuples(st.sampled_from(degrees()), st.one_of(st.integers(-5, 400), st.text("äbc ;,\"'\n", max_size=4))),
        min_size=1, max_size=6,
    ),
    st.sampled_from([",", ";", "\t"]),
)  # fmt: skip
def test_any_names_survive_a_file_of_text(tmp_path_factory, rows, separator):
    frame = pd.DataFrame(
        {"lon": [p[0] for p, _ in rows], "lat": [p[1] for p, _ in rows], "label": [v for _, v in rows]}
    )
    if (frame.label.astype(str).str.strip() == "").all():
        return
    path = tmp_path_factory.mktemp("text") / "t.csv"
    frame.to_csv(path, index=False, sep=separator)
    emb = embeddings()
    np.testing.assert_array_equal(rasterize(path, emb), rasterize(frame, emb))


def test_columns_in_a_dict(want):
    columns = {"x": [p[0] for p in PLACES], "y": [p[1] for p in PLACES], "label": NAMES}
    np.testing.assert_array_equal(rasterize(columns, embeddings()), want)
    with pytest.raises(LabelsError, match="do not fit"):
        rasterize(columns | {"x": [1.0]}, embeddings())


@pytest.mark.parametrize(("option", "value"), [("names", 3), ("names", "abcd"), ("colors", 3), ("colors", "#000000")])
def test_names_and_colours_of_another_type_are_refused(option, value):
    with pytest.raises(ArgumentTypeError, match=option):
        rasterize(points(), embeddings(), **{option: value})
    with pytest.raises(ArgumentTypeError, match="like"):
        rasterize(points(), "emb.zarr")


def test_polygons_and_points_in_one_table(want):
    emb = embeddings()
    mixed = points()
    cells = [box(x - 20, y - 20, x + 20, y + 20) for x, y in PLACES]
    mixed = mixed.set_geometry([mixed.geometry.iloc[0], cells[1], mixed.geometry.iloc[2], cells[3]])
    np.testing.assert_array_equal(rasterize(mixed, emb), want)
