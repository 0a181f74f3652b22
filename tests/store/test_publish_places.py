"""What is published of stores across the antimeridian, and in 0..360 degrees, is within -180..180 and at its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube.cube.composite import composite
from deo_cube.cube.footprint import centre, cut_at_180, geobox_footprint, lonlat_bbox, touches, unwrapped
from deo_cube.cube.georeference import assign_grid, check_resolution
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.embedding.embed import embed
from deo_cube.errors import ArgumentError, ResolutionMismatchError
from deo_cube.store.export import to_geoparquet
from deo_cube.store.stac import publish
from deo_cube.store.write import to_zarr


def utm(code: int, lon: float, lat: float, size: int = 64) -> GeoBox:
    """Pixels of 10 m around a place."""
    x, y = Transformer.from_crs(4326, code, always_xy=True).transform(lon, lat)
    corner = round(x / 10) * 10 - size * 5, round(y / 10) * 10 + size * 5
    return GeoBox((size, size), Affine(10, 0, corner[0], 0, -10, corner[1]), f"EPSG:{code}")


def degrees(west: float, size: int = 64) -> GeoBox:
    return GeoBox((size, size), Affine(9e-5, 0, west, 0, -9e-5, 10.0), "EPSG:4326")


BOXES = {
    "UTM 60N across 180": (utm(32660, 180.0, 17.0), True),
    "UTM 1S across 180": (utm(32701, 180.0, -17.0), True),
    "degrees across 180": (degrees(179.998), True),
    "degrees across -180": (degrees(-180.002), True),
    "degrees 0..360": (degrees(350.0), False),
    "UTM 33N": (utm(32633, 15.0, 46.0), False),
}


@pytest.mark.parametrize("name", BOXES)
def test_the_bounding_box_and_the_footprint_hold_every_pixel(name: str) -> None:
    box, crosses = BOXES[name]
    geometry, (west, south, east, north) = geobox_footprint(box)
    assert -180 <= west <= 180
    assert -180 <= east <= 180
    assert (west > east) == crosses
    assert (east - west) % 360 < 0.02
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid
    assert (shape.geom_type == "MultiPolygon") == crosses
    a = box.transform
    columns, rows = np.meshgrid(np.arange(64) + 0.5, np.arange(64) + 0.5)
    lon, lat = Transformer.from_crs(box.crs.proj, 4326, always_xy=True).transform(*(a * (columns, rows)))
    lon = (lon + 180) % 360 - 180
    assert shapely.contains_xy(shape.buffer(2e-5), lon, lat).all()
    assert ((lat >= south) & (lat <= north)).all()
    assert (((lon - west) % 360) <= (east - west) % 360).all()
    assert abs((centre(box)[0] - lon[32, 32] + 180) % 360 - 180) < 1e-3


@pytest.mark.parametrize("name", ["UTM 60N across 180", "degrees across 180", "degrees 0..360"])
def test_a_store_is_published_within_180(name: str, tmp_path: Path) -> None:
    box, crosses = BOXES[name]
    cube = assign_grid(synthetic_cube(size=64, times=1, clouds=0.0).drop_vars(["y", "x", "spatial_ref"]), box)
    emb = embed(cube)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    item, collection, _ = (json.loads(f.read_text()) for f in publish(tmp_path / "e.zarr"))
    west, _, east, _ = item["bbox"]
    assert (west > east) == crosses
    assert collection["extent"]["spatial"]["bbox"] == [item["bbox"]]
    assert max(abs(west), abs(east)) <= 180
    pytest.importorskip("pyarrow")
    gpd = pytest.importorskip("geopandas")
    for geometry in ("point", "polygon"):
        table = gpd.read_parquet(to_geoparquet(emb, tmp_path / f"{geometry}.parquet", geometry=geometry))
        centres = gpd.GeoSeries(shapely.centroid(table.geometry.values), crs=table.crs).to_crs(4326)
        assert centres.x.between(-180, 180).all()
        assert (((centres.x - west + 1e-3) % 360) <= (east - west) % 360 + 2e-3).all()


def test_the_advice_on_resolution_names_the_zone_at_the_antimeridian() -> None:
    box, _ = BOXES["degrees across 180"]
    coarse = GeoBox((16, 16), Affine(1e-2, 0, 179.93, 0, -1e-2, 10.0), "EPSG:4326")
    assert centre(box)[0] == pytest.approx(-179.99912)
    with pytest.raises(ResolutionMismatchError, match="EPSG:326(01|60)"):
        check_resolution(coarse, 10.0)


def test_days_at_the_antimeridian_are_solar_days() -> None:
    """A pass at 22:40 UTC and one of the same day at 00:20 UTC, 100 minutes later: one solar day."""
    box, _ = BOXES["UTM 60N across 180"]
    cube = synthetic_cube(size=64, times=2, clouds=0.0).drop_vars(["y", "x", "spatial_ref"])
    cube = assign_grid(cube.assign_coords(time=pd.to_datetime(["2024-06-01T22:40", "2024-06-02T00:20"])), box)
    assert composite(cube, "first", freq="D", mask=False).sizes["time"] == 1


# --- windows --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bbox", "window"),
    [
        ((10, 20, 11, 21), (10, 20, 11, 21)),
        ((350, 20, 352, 21), (-10, 20, -8, 21)),
        ((179, 20, -179, 21), (179, 20, 181, 21)),
        ((179, 20, 181, 21), (179, 20, 181, 21)),
        ((-181, 20, -179, 21), (179, 20, 181, 21)),
        ((-180, -90, 180, 90), (-180, -90, 180, 90)),
        ((0, -90, 360, 90), (-180, -90, 180, 90)),
        ((10, 20, 0, 11, 21, 900), (10, 20, 11, 21)),
    ],
)
def test_bounding_boxes_of_every_convention(bbox: Any, window: Any) -> None:
    assert lonlat_bbox(bbox) == window


def test_windows_that_touch_do_so_in_any_convention() -> None:
    fiji = lonlat_bbox((179, -18, -179, -17))
    for other in (
        (-179.5, -18, -179.2, -17),
        (180.5, -18, 181, -17),
        (178, -18, 179.5, -17),
        (-180.9, -18, -180.2, -17),
    ):
        assert touches(fiji, lonlat_bbox(other))
        assert touches(lonlat_bbox(other), fiji)
    assert not touches(fiji, lonlat_bbox((-178, -18, -177, -17)))
    assert not touches(fiji, lonlat_bbox((179, 17, -179, 18)))
    with pytest.raises(ArgumentError, match="bbox"):
        lonlat_bbox((16, 0, 15, 1))


def test_a_shape_that_is_cut_and_joined_again_is_the_same() -> None:
    shape = shapely.Polygon([(179, -1), (181.5, 0), (180.5, 2), (178.5, 1)])
    cut = cut_at_180(shape)
    assert cut.bounds[0] == -180
    assert cut.bounds[2] == 180
    assert cut.area == pytest.approx(shape.area)
    assert unwrapped(cut).symmetric_difference(shape).area < 1e-12
    globe = shapely.box(-180, -90, 180, 90)
    assert unwrapped(globe).equals(globe)
    assert isinstance(cut, shapely.MultiPolygon)
    assert unwrapped(cut).bounds == shape.bounds
