"""Geometries as people have them: areas keep what they cover, whatever is wrong with their rings."""

import warnings

import geopandas as gpd
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import shapely
from hypothesis import assume, example, given
from hypothesis import strategies as st
from shapely.geometry import GeometryCollection, LineString, MultiPoint, MultiPolygon, Point, Polygon, box

from deo_cube.errors import ArgumentError, DeoCubeError, LabelsError, MissingCRSError
from deo_cube.heads.geometries import areal, clean
from deo_cube.heads.labels import rasterize_labels as rasterize
from tests.heads.fields import embeddings

X0, Y0, CELL, ROWS, COLS = 500_000.0, 5_200_000.0, 80.0, 24, 32
RULES = ("majority", "centre", "touch")


def frame(shapes, labels=None, crs="EPSG:32632"):
    return gpd.GeoDataFrame({"label": labels or ["a"] * len(shapes)}, geometry=shapes, crs=crs)


def at(col, row):
    return X0 + col * CELL, Y0 - row * CELL


def ring(*places):
    return [at(*p) for p in places]


SQUARE = ring((2, 2), (8, 2), (8, 8), (2, 8))


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (Polygon([*SQUARE[:2], at(20, 5), *SQUARE[1:]]), Polygon(SQUARE)),
        (Polygon([*SQUARE, *SQUARE]), Polygon(SQUARE)),
        (Polygon(ring((2, 2), (8, 8), (8, 2), (2, 8))), MultiPolygon(
            [Polygon(ring((2, 2), (5, 5), (2, 8))), Polygon(ring((8, 2), (8, 8), (5, 5)))])),
        (Polygon(SQUARE, [ring((12, 2), (15, 2), (15, 5), (12, 5))]), Polygon(SQUARE)),
        (Polygon(SQUARE, [ring((4, 4), (6, 4), (6, 6), (4, 6)), ring((5, 5), (7, 5), (7, 7), (5, 7))]),
         Polygon(SQUARE).difference(box(*at(4, 6), *at(6, 4)).union(box(*at(5, 7), *at(7, 5))))),
        (MultiPolygon([Polygon(SQUARE), Polygon(ring((3, 3), (5, 3), (5, 5), (3, 5)))]), Polygon(SQUARE)),
        (MultiPolygon([Polygon(SQUARE), Polygon(SQUARE)]), Polygon(SQUARE)),
        (MultiPolygon([Polygon(SQUARE), Polygon(ring((6, 6), (12, 6), (12, 12), (6, 12)))]),
         Polygon(SQUARE).union(Polygon(ring((6, 6), (12, 6), (12, 12), (6, 12))))),
        (Polygon(ring((2, 2), (8, 2), (8, 8), (5, 5), (5, 4), (5, 5), (2, 8))),
         Polygon(ring((2, 2), (8, 2), (8, 8), (5, 5), (2, 8)))),
        (GeometryCollection([Polygon(SQUARE), LineString(ring((0, 0), (30, 20)))]), Polygon(SQUARE)),
        (GeometryCollection([GeometryCollection([Polygon(SQUARE)]), LineString(ring((0, 0), (9, 9)))]),
         Polygon(SQUARE)),
        (shapely.force_3d(Polygon(SQUARE), 7.0), Polygon(SQUARE)),
    ],
    ids=["spike", "ring twice", "bow-tie", "hole outside", "holes overlap", "nested parts", "part twice",
         "parts overlap", "touches itself", "collection with a line", "nested collection", "three dimensions"],
)  # fmt: skip
@pytest.mark.parametrize("rule", RULES)
def test_an_invalid_area_labels_as_the_valid_one(given, same, rule):
    assert clean([given]).shapes[0].equals(same)
    emb = embeddings()
    np.testing.assert_array_equal(rasterize(frame([given]), emb, rule=rule), rasterize(frame([same]), emb, rule=rule))


@example([(0.0, 1.0), (4.0, 2.0), (0.0, 0.0), (1.0, 1.0)], (0.0, 0.0), "EPSG:32632", "majority")
@given(
    corners=st.lists(st.tuples(st.floats(0, 30), st.floats(0, 22)), min_size=3, max_size=9),
    spike=st.tuples(st.floats(-10, 40), st.floats(-10, 32)),
    crs=st.sampled_from(["EPSG:32632", "EPSG:4326", "EPSG:3035"]),
    rule=st.sampled_from(RULES),
)
def test_a_spike_labels_nothing_and_hides_nothing(corners, spike, crs, rule):
    plain = Polygon(ring(*corners))
    assume(plain.is_valid and plain.area > CELL**2)
    spiked = Polygon(ring(corners[0], spike, *corners))
    # Exact on the way to another CRS too: the spike is taken off where it was drawn.
    one, two = (frame([g]).to_crs(crs) for g in (plain, spiked))
    assert areal([spiked]).area == pytest.approx(plain.area, rel=1e-9)
    np.testing.assert_array_equal(rasterize(two, embeddings(), rule=rule), rasterize(one, embeddings(), rule=rule))


@given(parts=st.lists(st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 9)] * 2), min_size=1, max_size=5))
def test_parts_that_overlap_label_their_union(parts):
    boxes = [box(*at(c, r + h), *at(c + w, r)) for c, r, w, h in parts]
    emb = embeddings()
    want = np.zeros((ROWS, COLS), bool)
    for c, r, w, h in parts:
        want[r : r + h, c : c + w] = True
    np.testing.assert_array_equal(rasterize(frame([MultiPolygon(boxes)]), emb).values == 0, want)
    np.testing.assert_array_equal(rasterize(frame([GeometryCollection(boxes)]), emb).values == 0, want)


def test_points_and_areas_of_one_collection_label_both():
    both = GeometryCollection([box(*at(2, 4), *at(4, 2)), Point(at(9.5, 9.5)), MultiPoint([at(12.5, 1.5)])])
    got = rasterize(frame([both]), embeddings())
    assert {tuple(map(int, p)) for p in np.argwhere(got.values == 0)} == {
        (2, 2),
        (2, 3),
        (3, 2),
        (3, 3),
        (9, 9),
        (1, 12),
    }


def test_rows_without_area_or_geometry_are_left_out_with_a_warning():
    emb = embeddings()
    flat = Polygon(ring((1, 1), (9, 9), (1, 1)))
    for table in (frame([flat]), frame([flat]).to_crs(4326)):
        with pytest.warns(UserWarning, match="1 of 1 labels have no area"):
            assert (rasterize(table, emb) == 255).all()
    good = box(*at(2, 4), *at(4, 2))
    with pytest.warns(UserWarning, match="2 of 4 labels have no geometry and 1 of 4 labels have no area"):
        got = rasterize(frame([good, None, Polygon(), flat], [1, 2, 3, 4]), emb)
    np.testing.assert_array_equal(got == 1, rasterize(frame([good], [1]), emb) == 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rasterize(frame([good, good], [1, None]), emb)
    with pytest.raises(LabelsError, match="no label"):
        rasterize(frame([None, Polygon()]), emb)
    with pytest.warns(UserWarning, match="1 of 2 labels have no geometry"):
        rasterize([(*at(3.5, 3.5), 1), (np.nan, np.nan, 2)], emb)


def test_lines_are_refused_and_the_advice_works():
    emb = embeddings()
    table = frame([LineString(ring((2, 2), (9, 2))), box(*at(12, 4), *at(14, 2))], ["road", "house"])
    with pytest.raises(LabelsError, match=r"table\.buffer\(width\), or leave them out"):
        rasterize(table, emb)
    kept = table[~table.geom_type.str.contains("Line")]
    assert rasterize(kept, emb).attrs["flag_meanings"] == "house"
    width = CELL
    table.geometry = table.buffer(width)
    assert rasterize(table, emb).attrs["flag_meanings"] == "house road"


@pytest.mark.parametrize("x0", [179.9, -180.1])
def test_labels_across_the_antimeridian(x0):
    """In a cube of degrees that crosses it, in either way of counting, and in UTM."""
    from odc.geo.geobox import GeoBox

    degrees = GeoBox.from_bbox((x0, -0.1, x0 + 0.2, 0.1), "EPSG:4326", shape=(20, 20))
    utm = GeoBox.from_bbox((166_000, -12_000, 190_000, 12_000), "EPSG:32601", resolution=1200)
    east, west = box(179.9, -0.05, 180.0, 0.05), box(-180.0, -0.05, -179.9, 0.05)
    for grid_box in (degrees, utm):
        want = rasterize(frame([MultiPolygon([east, west])], [3], 4326), grid_box)
        assert 0 < (want == 3).sum() < want.size
        for same in (box(179.9, -0.05, 180.1, 0.05), box(-180.1, -0.05, -179.9, 0.05)):
            np.testing.assert_array_equal(rasterize(frame([same], [3], 4326), grid_box), want)
        naive = Polygon([(179.9, -0.05), (-179.9, -0.05), (-179.9, 0.05), (179.9, 0.05)])
        with pytest.warns(UserWarning, match="antimeridian"):
            np.testing.assert_array_equal(rasterize(frame([naive], [3], 4326), grid_box), want)
        for lon in (-179.95, 180.05):
            cell = np.argwhere(rasterize([(lon, 0.012, 7)], grid_box, crs=4326).values == 7)
            assert len(cell) == 1
            np.testing.assert_array_equal(
                cell, np.argwhere(rasterize([(180.05, 0.012, 7)], grid_box, crs=4326).values == 7)
            )


def test_a_polygon_drawn_across_the_antimeridian_does_not_cover_the_rest_of_the_world():
    naive = Polygon([(179.9, 40), (-179.9, 40), (-179.9, 50), (179.9, 50)])
    with pytest.warns(UserWarning, match="antimeridian"), pytest.raises(LabelsError, match="outside the embeddings"):
        rasterize(frame([naive], [3], 4326), embeddings())


def test_the_crs_argument_decides():
    emb = embeddings()
    shape = box(*at(3, 6), *at(6, 3))
    want = rasterize(frame([shape]), emb)
    wrong = frame([shape], crs="EPSG:4326")
    with pytest.raises(LabelsError, match="crs="):
        rasterize(wrong, emb)
    np.testing.assert_array_equal(rasterize(wrong, emb, crs="EPSG:32632"), want)
    with pytest.raises(MissingCRSError, match="crs="):
        rasterize(frame([shape], crs=None), emb)
    np.testing.assert_array_equal(rasterize(frame([shape], crs=None), emb, crs=32632), want)
    with pytest.raises(ArgumentError, match="crs='EPSG:99999999'"):
        rasterize(frame([shape]), emb, crs="EPSG:99999999")


def test_swapped_coordinates_are_named():
    emb = embeddings()
    lon, lat = emb.odc.geobox.geographic_extent.centroid.coords[0]
    with pytest.raises(LabelsError, match=r'swapped.*pass crs="EPSG:4326"'):
        rasterize([(lat, lon, "a")], emb)
    with pytest.raises(LabelsError, match="swapped"):
        rasterize([(lat, lon, "a")], emb, crs=4326)
    with pytest.raises(LabelsError, match="swapped"):
        rasterize([(Y0 - 5, X0 + 5, "a")], emb)
    assert (rasterize([(lon, lat, "a")], emb, crs=4326) == 0).sum() == 1


def test_edges_far_beyond_the_grid_take_no_longer_than_others():
    near = Polygon([(X0 + 5, Y0 - 5), (X0 + 1e15, Y0 - 5), (X0 + 1e15, Y0 + 1e300), (X0 + 5, Y0 + 1e12)])
    inside = box(X0 + 5, Y0 - 5, X0 + 1e5, Y0 + 1e5)
    np.testing.assert_array_equal(rasterize(frame([near]), embeddings()), rasterize(frame([inside]), embeddings()))


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=True, allow_infinity=True), st.floats(allow_nan=True)), min_size=3, max_size=8
    ),
    st.sampled_from([Polygon, LineString, MultiPoint]),
)
def test_any_geometry_is_labelled_or_refused(places, kind):
    try:
        shape = kind(places)
    except Exception:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for crs in (32632, 4326):
            try:
                rasterize([(shape, 1)], embeddings(), crs=crs)
            except DeoCubeError:
                pass
