"""Shares of cells that places cover, compared with intersections by shapely."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from deo_cube.heads.geometries import areal, cover

NORTH_UP = GeoBox((12, 9), Affine(80, 0, 500_000, 0, -80, 5_200_000), "EPSG:32632")
SOUTH_UP = GeoBox((12, 9), Affine(80, 0, 500_000, 0, 80, 5_200_000 - 12 * 80), "EPSG:32632")


def objects(*shapes):
    out = np.empty(len(shapes), object)
    out[:] = shapes
    return out


def dense(shapes, box, **options):
    """Return the shares (place, row, column), and what they add up to."""
    found = cover(objects(*shapes), box, **options)
    shares = np.zeros((len(shapes), *box.shape))
    np.add.at(shares, (found.place, found.row, found.column), found.share)
    return shares, found.size


def measured(shape, box):
    """Return the share of each cell, one intersection per cell."""
    t = box.transform
    r, c = np.mgrid[: box.shape[0], : box.shape[1]]
    x, y = t.c + c * t.a, t.f + r * t.e
    cells = shapely.box(x, np.minimum(y, y + t.e), x + t.a, np.maximum(y, y + t.e))
    return shapely.area(shapely.intersection(cells, shape)) / abs(t.a * t.e)


at = st.floats(-200, 1100)
polygons = st.lists(st.tuples(at, at), min_size=3, max_size=9).map(
    lambda ps: areal([shapely.Polygon([(500_000 + x, 5_200_000 - y) for x, y in ps])])
)


@pytest.mark.parametrize("box", [NORTH_UP, SOUTH_UP], ids=["north-up", "south-up"])
@given(shapes=st.lists(polygons, min_size=1, max_size=4))
def test_shares_are_those_of_intersections(box, shapes):
    shares, size = dense(shapes, box)
    for shape, share, whole in zip(shapes, shares, size, strict=True):
        np.testing.assert_allclose(share, measured(shape, box), atol=1e-6)
        assert whole == pytest.approx(shape.area / 6400, abs=1e-6)


@given(column=st.integers(0, 8), row=st.integers(0, 11), width=st.integers(1, 4), height=st.integers(1, 4))
def test_a_polygon_of_whole_cells_covers_these_alone(column, row, width, height):
    x, y = 500_000 + 80 * column, 5_200_000 - 80 * row
    shares, _ = dense([shapely.box(x, y - 80 * height, x + 80 * width, y)], NORTH_UP)
    expected = np.zeros(NORTH_UP.shape)
    expected[row : row + height, column : column + width] = 1
    np.testing.assert_array_equal(shares[0], expected)


def test_holes_and_parts_are_counted():
    parts = shapely.MultiPolygon(
        [
            shapely.box(500_010, 5_199_500, 500_400, 5_199_950).difference(
                shapely.box(500_100, 5_199_600, 500_330, 5_199_900)
            ),
            shapely.box(500_130, 5_199_630, 500_200, 5_199_700),
        ]
    )
    mixed = shapely.GeometryCollection([parts, shapely.Point(500_700, 5_199_100)])
    shares, size = dense([parts, mixed, shapely.reverse(parts)], NORTH_UP)
    for share in shares:
        np.testing.assert_allclose(share, measured(parts, NORTH_UP), atol=1e-9)
    np.testing.assert_allclose(size, parts.area / 6400)


def test_a_polygon_smaller_than_a_cell_and_one_across_four():
    small = shapely.box(500_011, 5_199_981, 500_011.01, 5_199_981.01)
    corner = shapely.Point(500_080, 5_199_920).buffer(0.5)
    shares, _ = dense([small, corner], NORTH_UP)
    assert shares[0, 0, 0] == pytest.approx(1e-4 / 6400, rel=1e-3)
    assert np.count_nonzero(shares[0]) == 1
    np.testing.assert_allclose(shares[1, :2, :2], corner.area / 4 / 6400, rtol=1e-6)


@pytest.mark.parametrize("box", [NORTH_UP, SOUTH_UP], ids=["north-up", "south-up"])
def test_a_point_on_an_edge_is_in_the_cell_east_or_south_of_it(box):
    places = [shapely.Point(500_160, 5_199_840), shapely.Point(500_720, 5_199_990), shapely.Point(500_010, 5_199_040)]
    shares, _ = dense(places, box)
    row = 2 if box is NORTH_UP else 9
    assert np.argwhere(shares[0]).tolist() == [[row, 2]]
    assert not shares[1:].any()  # the east and the south edge of the grid


def test_interpolation_is_linear_and_constant_beyond_the_outermost_centres():
    values = np.add.outer(10 * np.arange(12.0), np.arange(9.0))
    xy = np.array([[500_100, 5_199_700], [500_360, 5_199_560], [500_001, 5_199_999]])
    shares, _ = dense(shapely.points(xy), NORTH_UP, linear=True)
    got = (shares * values).sum(axis=(1, 2))
    expected = np.clip((xy[:, 0] - 500_000) / 80 - 0.5, 0, 8) + 10 * np.clip((5_200_000 - xy[:, 1]) / 80 - 0.5, 0, 11)
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_nothing_covers_nothing():
    found = cover(objects(None, shapely.Polygon(), shapely.Point(), shapely.Point(0, 0)), NORTH_UP)
    assert len(found.place) == 0
    assert found.size.tolist() == [0, 0, 0, 1]


def test_equal_to_exactextract():
    extract = pytest.importorskip("exactextract")
    gpd = pytest.importorskip("geopandas")
    rng = np.random.default_rng(0)
    shapes = shapely.buffer(shapely.points(500_000 + 720 * rng.random(40), 5_200_000 - 960 * rng.random(40)), 130)
    raster = extract.raster.NumPyRasterSource(
        np.ones((12, 9)), 500_000, 5_200_000 - 960, 500_720, 5_200_000, srs_wkt=NORTH_UP.crs.wkt
    )
    fields = gpd.GeoDataFrame(geometry=shapes, crs="EPSG:32632")
    table = extract.exact_extract(raster, fields, ["cell_id", "coverage"], output="pandas")
    shares, _ = dense(shapes, NORTH_UP)
    for share, ids, expected in zip(shares, table["cell_id"], table["coverage"], strict=True):
        theirs = np.zeros(12 * 9)
        theirs[ids.astype(int)] = expected
        np.testing.assert_allclose(share.ravel(), theirs, atol=2e-6)
