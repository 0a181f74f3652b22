"""Tiles of a web map on grids of any CRS and either way up, against rasterio's own reprojection."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube.errors import MissingCRSError
from deo_cube.viewer.tiles import SIZE, WEB_EDGE, TileGrid
from tests.viewer.conftest import tile_at

UTM = GeoBox((60, 80), Affine(40, 0, 500_000, 0, -40, 5_200_000), "EPSG:32632")
DEGREES = GeoBox((60, 80), Affine(0.0005, 0, 13.3, 0, -0.0004, 45.8), "EPSG:4326")
SOUTH_UP = GeoBox((60, 80), Affine(40, 0, 500_000, 0, 40, 5_197_600), "EPSG:32632")


def middle(p: TileGrid) -> tuple[float, float]:
    (s, w), (n, e) = p.bounds
    return (w + e) / 2, (s + n) / 2


@pytest.mark.parametrize("box", [UTM, DEGREES, SOUTH_UP], ids=["utm", "degrees", "south-up"])
def test_a_tile_shows_what_rasterio_reprojects(box: GeoBox) -> None:
    from rasterio.warp import Resampling, reproject

    p = TileGrid(box)
    z = p.native_zoom + 1
    x, y = tile_at(*middle(p), z)
    values = np.arange(60 * 80, dtype="float32").reshape(60, 80)
    rows, cols = p.tile(z, x, y)
    inside = (rows >= 0) & (rows < 60) & (cols >= 0) & (cols < 80)
    ours = np.full((SIZE, SIZE), -1, "float32")
    ours[inside] = values[rows[inside].astype(int), cols[inside].astype(int)]
    side = 2 * WEB_EDGE / (1 << z)
    target = Affine(side / SIZE, 0, -WEB_EDGE + x * side, 0, -side / SIZE, WEB_EDGE - y * side)
    theirs = np.full((SIZE, SIZE), -1, "float32")
    reproject(
        values, theirs, src_transform=box.transform, src_crs=str(box.crs), dst_transform=target, dst_crs="EPSG:3857",
        resampling=Resampling.nearest, src_nodata=-1, dst_nodata=-1, tolerance=0,
    )  # fmt: skip
    assert inside.sum() > 5000
    # The two may differ where a pixel's centre falls on a cell's edge, to the last bits.
    assert (ours == theirs).mean() > 0.999


@pytest.mark.parametrize("box", [UTM, DEGREES, SOUTH_UP], ids=["utm", "degrees", "south-up"])
def test_a_place_is_in_the_cell_that_holds_it(box: GeoBox) -> None:
    p = TileGrid(box)
    to_degrees = Transformer.from_crs(box.crs.proj, 4326, always_xy=True)
    for row, col in ((0, 0), (17, 42), (59, 79)):
        cx, cy = (col + 0.5) * box.transform.a + box.transform.c, (row + 0.5) * box.transform.e + box.transform.f
        lon, lat = to_degrees.transform(cx, cy)
        found = p.at(lon, lat)
        assert found[:2] == (row, col)
        assert found[2:] == pytest.approx((cx, cy), rel=1e-9)
        assert p.at(lon + 360, lat)[:2] == (row, col)
    with pytest.raises(ValueError, match="outside"):
        p.at(0, 0)


def test_a_store_across_the_meridian_of_180_is_one_map() -> None:
    p = TileGrid(GeoBox((100, 400), Affine(0.01, 0, 178, 0, -0.01, 1), "EPSG:4326"))
    (_, west), (_, east) = p.bounds
    assert (west, east) == (178, 182)
    z = 8
    for lon in (179.0, -179.0):
        _, cols = p.tile(z, *tile_at(lon, 0.5, z))
        assert ((cols >= 0) & (cols < 400)).any()
    q = TileGrid(GeoBox((100, 400), Affine(1000, 0, 300_000, 0, -1000, 100_000), "EPSG:32601"))
    (_, west), (_, east) = q.bounds
    assert east - west < 6


def test_native_zoom_has_about_a_pixel_a_cell() -> None:
    p = TileGrid(UTM)
    rows, _ = p.tile(p.native_zoom, *tile_at(*middle(p), p.native_zoom))
    assert 0.7 < abs(np.nanmedian(np.diff(rows, axis=0))) < 1.5


def test_the_poles_and_wrong_crs_are_refused() -> None:
    with pytest.raises(ValueError, match="embeddings must"):
        TileGrid(GeoBox((10, 10), Affine(40, 0, -200, 0, -40, 200), "EPSG:3413"))
    with pytest.raises((MissingCRSError, ValueError)):
        TileGrid(GeoBox((10, 10), Affine(1e9, 0, 9e12, 0, -1e9, 9e12), "EPSG:32632"))
