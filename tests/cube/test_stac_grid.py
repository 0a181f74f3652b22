"""Where `load_cube` puts its pixels: items whose CRS is odd, missing or contradictory, and the antimeridian."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyproj
import pytest
import rasterio
import shapely
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.geom import Geometry
from rasterio.transform import from_origin

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.cube.stac import load_cube
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, MissingCRSError

V2 = "https://stac-extensions.github.io/projection/v2.0.0/schema.json"
UTM33 = pyproj.CRS(32633)
SIZE = 64


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        yield


def pixels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 9000, (SIZE, SIZE)).astype("uint16")


def file(
    path: Path, values: np.ndarray, crs: Any = "EPSG:32633", corner: tuple[float, float] | None = (5e5, 5e6)
) -> str:
    """A GeoTIFF of 10 m pixels; without `corner` it has no transform."""
    place = {} if corner is None else {"transform": from_origin(*corner, 10, 10)}
    profile = {"driver": "GTiff", "height": SIZE, "width": SIZE, "count": 1, "dtype": "uint16", "nodata": 0}
    with rasterio.open(path, "w", **profile, crs=crs, **place) as out:
        out.write(values, 1)
    return str(path)


def item(
    href: str, *, name: str = "a", when: str = "2021-06-01T10:00:00Z", geometry: Any = "bbox", **fields: Any
) -> Any:
    """An item with one band; `fields` are properties, except bbox, extensions and those of the asset, `asset_...`."""
    bbox = fields.pop("bbox", (15.0, 45.14, 15.01, 45.16))
    extensions = fields.pop("extensions", [V2])
    asset = {k.removeprefix("asset_"): fields.pop(k) for k in list(fields) if k.startswith("asset_")}
    if geometry == "bbox":
        geometry = shapely.geometry.mapping(shapely.box(*bbox))
    return json.loads(
        json.dumps(
            {
                **{"type": "Feature", "stac_version": "1.0.0", "id": name, "links": [], "bbox": bbox},
                **{"geometry": geometry, "stac_extensions": extensions},
                "properties": {"datetime": when, "s2:processing_baseline": "03.01", **fields},
                "assets": {"B02": {"href": href, "type": "image/tiff; application=geotiff", **asset}},
            }
        )
    )


GRID = {"proj:shape": [SIZE, SIZE], "proj:transform": [10, 0, 5e5, 0, -10, 5e6]}
BOX = (5e5, 5e6 - 640, 5e5 + 640, 5e6)

STATED = {
    "a code": {"proj:code": "EPSG:32633"},
    "a code in lower case": {"proj:code": "epsg:32633"},
    "a number": {"proj:epsg": 32633},
    "a number as text": {"proj:epsg": "32633"},
    "a number as a float": {"proj:epsg": 32633.0},
    "a URN": {"proj:code": "urn:ogc:def:crs:EPSG::32633"},
    "EPSG:None": {"proj:code": "EPSG:None"},
    "a code that does not exist": {"proj:epsg": 100001},
    "a code that does not exist, and WKT": {"proj:epsg": 100001, "proj:wkt2": UTM33.to_wkt()},
    "WKT": {"proj:epsg": None, "proj:wkt2": UTM33.to_wkt()},
    "PROJJSON": {"proj:projjson": UTM33.to_json_dict()},
    "PROJJSON as text": {"proj:projjson": UTM33.to_json()},
    "null": {"proj:code": None},
    "nothing": {},
}


@pytest.mark.parametrize("grid", [GRID, {}], ids=["grid", "no grid"])
@pytest.mark.parametrize("way", STATED)
def test_items_of_every_statement_give_the_pixels_of_their_file(way: str, grid: dict[str, Any], tmp_path: Path) -> None:
    values = pixels()
    one = item(file(tmp_path / "B02.tif", values), **STATED[way], **grid)
    for given in ({}, {"crs": "EPSG:32633", "resolution": 10}):
        cube = load_cube([one], **given)
        np.testing.assert_array_equal(cube.B02.values[0], values)
        assert geobox(cube).boundingbox.bbox == BOX
        assert geobox(cube).crs.epsg == 32633


def test_items_without_the_extension_and_statements_on_assets(tmp_path: Path) -> None:
    values = pixels()
    href = file(tmp_path / "B02.tif", values)
    none = item(href, extensions=[])
    of_asset = item(href, **{"asset_proj:code": "EPSG:32633", "asset_proj:shape": [SIZE, SIZE]}, **GRID)
    for one in (none, of_asset, {**none, "geometry": None}, {**none, "geometry": None, "bbox": None}):
        np.testing.assert_array_equal(load_cube([one]).B02.values[0], values)
    # One item with and one without, in either order.
    other = item(href, name="b", when="2021-06-02T10:00:00Z", **{"proj:code": "EPSG:32633"}, **GRID)
    for both in ([none, other], [other, none]):
        np.testing.assert_array_equal(load_cube(both).B02.values, [values, values])


def test_a_file_without_crs_is_placed_by_its_item(tmp_path: Path) -> None:
    values = pixels()
    code = {"proj:code": "EPSG:32633"}
    with_transform = file(tmp_path / "bare.tif", values, crs=None)
    without = file(tmp_path / "plain.tif", values, crs=None, corner=None)
    for one in (item(with_transform, **code, **GRID), item(with_transform, **code), item(without, **code, **GRID)):
        cube = load_cube([one])
        np.testing.assert_array_equal(cube.B02.values[0], values)
        assert geobox(cube).boundingbox.bbox == BOX
    # Bands of 20 m under the grid of the 10 m band.
    coarse = tmp_path / "B05.tif"
    with rasterio.open(coarse, "w", driver="GTiff", height=32, width=32, count=1, dtype="uint16", nodata=0) as out:
        out.write(values[:32, :32], 1)
    two = item(without, **code, **GRID)
    two["assets"]["B05"] = {"href": str(coarse), "type": "image/tiff"}
    np.testing.assert_array_equal(load_cube([two]).B05.values[0], values[:32, :32].repeat(2, 0).repeat(2, 1))


def test_what_nothing_states_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    values = pixels()
    bare = item(file(tmp_path / "bare.tif", values, crs=None), **{"proj:code": "EPSG:None"})
    with pytest.raises(MissingCRSError, match=r"proj:code 'EPSG:None'.*bare\.tif.*item\.properties") as caught:
        load_cube([bare])
    assert "crs='EPSG:...'" in str(caught.value)
    # The first advice, to the letter.
    bare["properties"]["proj:code"] = "EPSG:32633"
    np.testing.assert_array_equal(load_cube([bare]).B02.values[0], values)
    gone = item("https://127.0.0.1:1/B02.tif", **{"proj:code": "EPSG:None"})
    with pytest.raises(MissingCRSError, match=r"do not state their CRS.*crs=.*resolution=.*geobox="):
        load_cube([gone])
    cube = load_cube([gone], crs="EPSG:32633", resolution=10)
    assert geobox(cube).crs.epsg == 32633
    # A file without CRS, read with the CRS of the output alone: at the read, by name.
    del bare["properties"]["proj:code"]
    with pytest.raises(MissingCRSError, match=r"bare\.tif has no CRS"):
        load_cube([bare], crs="EPSG:32633", resolution=10, bbox=bare["bbox"]).B02.compute()


def test_contradictions_are_refused_naming_both(tmp_path: Path) -> None:
    href = file(tmp_path / "B02.tif", pixels())
    two = item(href, **{"proj:code": "EPSG:32632", "proj:wkt2": UTM33.to_wkt()}, **GRID)
    with pytest.raises(MissingCRSError, match=r"EPSG:32632.*EPSG:32633.*del item") as caught:
        load_cube([two])
    assert "item.properties['proj:wkt2']" in str(caught.value)
    del two["properties"]["proj:code"]
    assert geobox(load_cube([two])).crs.epsg == 32633
    # The header at the call, where it is read, and at the read, where the pixels are not where the item says.
    wrong = item(href, **{"proj:code": "EPSG:32632"})
    with pytest.raises(
        MissingCRSError, match=r"EPSG:32632.*EPSG:32633.*item\.properties\['proj:code'\] = 'EPSG:32633'"
    ):
        load_cube([wrong])
    silent = item(href, **{"proj:code": "EPSG:32632"}, **GRID)
    with pytest.raises(MissingCRSError, match="EPSG:32633.*EPSG:32632"):
        load_cube([silent]).B02.compute()
    silent["properties"]["proj:code"] = "EPSG:32633"
    np.testing.assert_array_equal(load_cube([silent]).B02.values[0], pixels())


def test_items_in_two_zones_are_refused_and_the_advice_loads_both(tmp_path: Path) -> None:
    a = item(file(tmp_path / "a.tif", pixels()), **{"proj:code": "EPSG:32633"}, **GRID)
    b = item(
        file(tmp_path / "b.tif", pixels(1), "EPSG:32632", (5e5, 5e6)),
        **{"name": "b", "bbox": (9.0, 45.14, 9.01, 45.16), "proj:wkt2": pyproj.CRS(32632).to_wkt()},
        **GRID,
    )
    with pytest.raises(
        MissingCRSError, match=r"EPSG:32633 \(2 items\), EPSG:32632 \(1 items\).*resolution=10"
    ) as caught:
        load_cube([a, {**a, "id": "c"}, b])
    (code,) = re.findall(r"crs='(.*?)'", str(caught.value))
    cube = load_cube([a, b], crs=code, resolution=1000)
    assert geobox(cube).crs.epsg == 32633


@pytest.mark.parametrize("crs", ["EPSG:None", "EPSG:1", "nonsense", 100001, object()])
def test_a_crs_that_is_none_is_refused_by_name(crs: Any, tmp_path: Path) -> None:
    one = item(file(tmp_path / "B02.tif", pixels()), **{"proj:code": "EPSG:32633"}, **GRID)
    with pytest.raises(ArgumentError, match=r"crs="):
        load_cube([one], crs=crs, resolution=10)


# --- the antimeridian -----------------------------------------------------------------------------


ZONES = {"EPSG:32701": (177000.0, 8100000.0), "EPSG:32760": (822400.0, 8100000.0)}


def across(tmp_path: Path, crs: str, **fields: Any) -> tuple[Any, np.ndarray, tuple[float, float, float, float]]:
    """An item of a zone beside 180 degrees whose pixels cross it, its pixels, and its bounds (w, s, e, n), w > e."""
    values = pixels()
    west, north = ZONES[crs]
    back = pyproj.Transformer.from_crs(crs, 4326, always_xy=True)
    x, _ = pyproj.Transformer.from_crs(4326, crs, always_xy=True).transform(180.0, back.transform(west, north)[1])
    west = round(x / 10) * 10 - 320
    corners = [back.transform(west + dx, north - dy) for dx in (0, 640) for dy in (0, 640)]
    lons = [c[0] for c in corners]
    box = (
        min(v for v in lons if v > 0),
        min(c[1] for c in corners),
        max(v for v in lons if v < 0),
        max(c[1] for c in corners),
    )
    assert box[0] > 0 > box[2]
    href = file(tmp_path / f"{crs[-5:]}.tif", values, crs, (west, north))
    grid = {"proj:code": crs, "proj:shape": [SIZE, SIZE], "proj:transform": [10, 0, west, 0, -10, north]}
    given = {"bbox": box, "geometry": None, **grid, **fields}
    return item(href, **{k: v for k, v in given.items() if v is not ...}), values, box


def ring(*points: tuple[float, float]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": [[*points, points[0]]]}


def footprints(box: tuple[float, float, float, float]) -> dict[str, Any]:
    """One footprint in every way that people write it."""
    w, s, e, n = box
    west_part, east_part = ([(w, s), (180, s), (180, n), (w, n)], [(-180, s), (e, s), (e, n), (-180, n)])
    return {
        "edges that jump": ring((w, s), (e, s), (e, n), (w, n)),
        "beyond 180": ring((w, s), (e + 360, s), (e + 360, n), (w, n)),
        "below -180": ring((w - 360, s), (e, s), (e, n), (w - 360, n)),
        "two parts": {
            "type": "MultiPolygon",
            "coordinates": [ring(*part)["coordinates"] for part in (west_part, east_part)],
        },
    }


@pytest.mark.parametrize("crs", ZONES)
@pytest.mark.parametrize("stated", ["grid", "header", "footprint"])
def test_items_across_180_give_all_their_pixels(crs: str, stated: str, tmp_path: Path) -> None:
    one, values, box = across(tmp_path, crs)
    whole = load_cube([one])
    w, s, e, n = box
    boxes = {
        "west > east": box,
        "beyond 180": (w, s, e + 360, n),
        "below -180": (w - 360, s, e, n),
        "planar": (e, s, w, n),
    }
    for geometry in footprints(box).values():
        for bbox in boxes.values():
            other = {**json.loads(json.dumps(one)), "geometry": geometry, "bbox": bbox}
            given: dict[str, Any] = {}
            if stated != "grid":
                for key in [k for k in other["properties"] if k.startswith("proj:")]:
                    del other["properties"][key]
            if stated == "footprint":
                given = {"geobox": geobox(whole)}
            np.testing.assert_array_equal(load_cube([other], **given).B02.values[0], values)


@pytest.mark.parametrize("crs", ZONES)
def test_windows_across_180_in_every_convention(crs: str, tmp_path: Path) -> None:
    one, values, (w, s, e, n) = across(tmp_path, crs)
    gpd = pytest.importorskip("geopandas")
    jump = footprints((w, s, e, n))
    frame = gpd.GeoDataFrame(geometry=[shapely.geometry.shape(jump["two parts"])], crs=4326)
    windows: list[dict[str, Any]] = [
        {"bbox": (w, s, e, n)},
        {"bbox": (w, s, 0.0, e, n, 900.0)},
        {"bbox": (w, s, e + 360, n)},
        {"bbox": np.array([w - 360, s, e, n])},
        {"lon": (w, e), "lat": (s, n)},
        *({"intersects": g} for g in jump.values()),
        {"intersects": {"type": "Feature", "properties": {}, "geometry": jump["edges that jump"]}},
        {"intersects": {"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": jump["two parts"]}]}},
        {"intersects": shapely.geometry.shape(jump["beyond 180"])},
        {"intersects": frame},
        {"intersects": frame.geometry},
        {"intersects": frame.to_crs(crs)},
        {"geopolygon": Geometry(jump["edges that jump"], 4326)},
    ]
    for window in windows:
        cube = load_cube([one], **window)
        found = geobox(cube).boundingbox.bbox
        inside = cube.B02.sel(x=slice(found[0], found[2])).values[0]
        # The window holds the item and little more: the bounds of a slightly turned rectangle.
        assert inside.shape[0] < 2 * SIZE > inside.shape[1], window
        assert np.isin(values[8:-8, 8:-8], inside).all(), window
        own = load_cube([one]).B02[0]
        both = cube.B02[0].reindex(x=own.x, y=own.y)
        np.testing.assert_array_equal(both.values[8:-8, 8:-8], own.values[8:-8, 8:-8])
    # Each side by itself.
    west = load_cube([one], bbox=(w, s, 179.9999, n))
    east = load_cube([one], bbox=(-179.9999, s, e, n))
    assert west.B02.values.any()
    assert east.B02.values.any()
    assert float(west.x.min()) < float(east.x.min())
    with pytest.raises(ArgumentError, match="touches none"):
        load_cube([one], bbox=(0, s, 1, n))


def test_items_of_zones_1_and_60_load_into_one_cube(tmp_path: Path) -> None:
    a, values, (w, s, e, n) = across(tmp_path, "EPSG:32701")
    b, _, _ = across(tmp_path, "EPSG:32760", name="b", when="2021-06-02T10:00:00Z")
    with pytest.raises(MissingCRSError, match=r"crs='EPSG:32\d*'.*resolution=10"):
        load_cube([a, b])
    cube = load_cube([a, b], crs="EPSG:32701", resolution=10, bbox=(w, s, e, n)).compute()
    assert cube.sizes["time"] == 2
    first = load_cube([a]).B02[0]
    np.testing.assert_array_equal(cube.B02[0].reindex(x=first.x, y=first.y)[8:-8, 8:-8], values[8:-8, 8:-8])
    # The other zone's pixels hold both sides of the antimeridian too, where its own file has them.
    centre = pyproj.Transformer.from_crs(32701, 32760, always_xy=True)
    own = load_cube([b]).B02[0]
    columns, rows = np.meshgrid(cube.x.values, cube.y.values)
    x, y = centre.transform(columns, rows)
    expected = own.sel(x=xr.DataArray(x), y=xr.DataArray(y), method="nearest", tolerance=100)
    inside = (x > own.x.values[2]) & (x < own.x.values[-3]) & (y < own.y.values[2]) & (y > own.y.values[-3])
    assert inside.mean() > 0.3
    assert (cube.B02[1].values == expected.values)[inside].mean() > 0.98  # nearest, by two ways of rounding


def test_degrees_across_180_are_refused_and_the_advice_works(tmp_path: Path) -> None:
    one, values, (w, s, e, n) = across(tmp_path, "EPSG:32701")
    for given in (
        {"bbox": (w, s, e, n), "crs": "EPSG:4326", "resolution": 1e-4},
        {"geobox": GeoBox.from_bbox((w, s, e + 360, n), "EPSG:4326", resolution=1e-4)},
    ):
        with pytest.raises(ArgumentError, match=r"crs='EPSG:327\d\d'.*resolution=10") as caught:
            load_cube([one], **given)
        (code,) = re.findall(r"crs='(.*?)'", str(caught.value))
        window = re.findall(r"bbox=(\(.*?\))", str(caught.value))
        cube = load_cube([one], crs=code, resolution=10, bbox=eval(window[0]) if window else given["bbox"])
        assert np.isin(values[8:-8, 8:-8], cube.B02.values).mean() > 0.9
    # Either side in degrees loads.
    for bbox in ((w, s, 180.0, n), (-180.0, s, e, n)):
        side = load_cube([one], bbox=bbox, crs="EPSG:4326", resolution=1e-4)
        assert (side.B02.values > 0).mean() > 0.7


def test_a_geobox_in_0_to_360_gives_the_pixels_of_its_twin(tmp_path: Path) -> None:
    href = file(tmp_path / "B02.tif", pixels(), "EPSG:32629", (5e5, 5e6))
    one = item(href, **{"proj:code": "EPSG:32629", "bbox": (-9.0, 45.14, -8.99, 45.16)}, **GRID)
    near = GeoBox.from_bbox((-9.0, 45.146, -8.993, 45.151), "EPSG:4326", resolution=1e-4)
    far = GeoBox.from_bbox((351.0, 45.146, 351.007, 45.151), "EPSG:4326", resolution=1e-4)
    a, b = load_cube([one], geobox=near), load_cube([one], geobox=far)
    assert a.B02.values.any()
    np.testing.assert_array_equal(a.B02.values, b.B02.values)
    np.testing.assert_allclose(geobox(b).boundingbox.bbox, far.boundingbox.bbox)
    np.testing.assert_array_equal(load_cube([one], like=b).B02.values, b.B02.values)
    for bbox in ((351.0, 45.146, 351.007, 45.151), (-9.0, 45.146, -8.993, 45.151)):
        xr.testing.assert_equal(load_cube([one], bbox=bbox), load_cube([one], bbox=(-9.0, 45.146, -8.993, 45.151)))


# --- arguments ------------------------------------------------------------------------------------


WRONG: dict[str, dict[str, Any]] = {
    "bbox": {"bbox": (15, 45, 15.1)},
    "bbox of text": {"bbox": "15 45 15.1 45.2"},
    "bbox with NaN": {"bbox": (15, 45, float("nan"), 46)},
    "bbox in metres": {"bbox": BOX},
    "bbox upside down": {"bbox": (15, 46, 16, 45)},
    "bbox with west and east swapped": {"bbox": (16, 45, 15, 46)},
    "two places": {"bbox": (15, 45, 16, 46), "intersects": shapely.box(15, 45, 16, 46)},
    "lon alone": {"lon": (15, 16)},
    "x without crs": {"x": (5e5, 6e5), "y": (5e6, 5.1e6)},
    "geobox and crs": {"geobox": GeoBox.from_bbox(BOX, "EPSG:32633", resolution=10), "crs": "EPSG:32633"},
    "geobox of another kind": {"geobox": (1, 2, 3)},
    "geobox elsewhere": {"geobox": GeoBox.from_bbox((0, 0, 640, 640), "EPSG:32633", resolution=10)},
    "intersects of text": {"intersects": "here"},
    "intersects of no geometry": {"intersects": {"type": "Polygon"}},
    "intersects, empty": {"intersects": shapely.Polygon()},
    "intersects elsewhere": {"intersects": shapely.box(100, 0, 101, 1)},
    "a slip": {"resoluton": 10},
    "resampling": {"resampling": "averge"},
    "resampling of a band": {"resampling": {"B02": "cubics"}},
    "groupby": {"groupby": 3},
    "chunks": {"chunks": {"x": "many"}},
    "resolution": {"resolution": "ten"},
    "resolution below zero": {"resolution": -10},
    "resolution of metres in degrees": {"resolution": 10, "crs": "EPSG:4326"},
    "resolution of degrees in metres": {"resolution": 1e-4},
    "offset": {"offset": None},
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_that_do_not_fit_are_refused_as_our_own_error(case: str, tmp_path: Path) -> None:
    one = item(file(tmp_path / "B02.tif", pixels()), **{"proj:code": "EPSG:32633"}, **GRID)
    with pytest.raises(DeoCubeError) as caught:
        load_cube([one], **WRONG[case])
    assert isinstance(caught.value, ArgumentError | ArgumentTypeError)
    assert next(iter(WRONG[case])).removesuffix("ton") in str(caught.value)


def test_a_table_without_crs_is_refused_and_the_advice_works(tmp_path: Path) -> None:
    gpd = pytest.importorskip("geopandas")
    one = item(file(tmp_path / "B02.tif", pixels()), **{"proj:code": "EPSG:32633"}, **GRID)
    table = gpd.GeoDataFrame(geometry=[shapely.box(15.0, 45.148, 15.005, 45.151)])
    with pytest.raises(MissingCRSError, match=r"intersects=table\.set_crs\('EPSG:4326'\)"):
        load_cube([one], intersects=table)
    cube = load_cube([one], intersects=table.set_crs("EPSG:4326"))
    assert cube.B02.values.any()
    xr.testing.assert_equal(cube, load_cube([one], bbox=(15.0, 45.148, 15.005, 45.151)))


def test_embeddings_of_items_across_180(tmp_path: Path) -> None:
    one, _, _ = across(tmp_path, "EPSG:32701")
    for band in ("B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"):
        one["assets"][band] = dict(one["assets"]["B02"])
    cube = load_cube([one])
    emb = deo_cube.embed(cube).compute()
    assert np.isfinite(emb.values).all()
    assert geobox(emb.isel(embedding=0, drop=True)).crs.epsg == 32701


def test_a_search_across_180_finds_both_sides(tmp_path: Path) -> None:
    from tests.cube.stac_api import stac_api

    pytest.importorskip("pystac_client")
    place = (179.9, -18.0, -179.9, -17.0)
    west = item("https://x.org/a.tif", name="west", bbox=(179.5, -17.9, 179.95, -17.1))
    east = item("https://x.org/b.tif", name="east", bbox=(-179.95, -17.9, -179.5, -17.1))
    far = item("https://x.org/c.tif", name="far", bbox=(0.0, -17.9, 1.0, -17.1))
    with stac_api([{**i, "collection": "c"} for i in (west, east, far)], tmp_path) as url:
        for given in (
            {"bbox": place},
            {"bbox": (179.9, -18.0, 180.1, -17.0)},
            {"intersects": ring((179.9, -18), (-179.9, -18), (-179.9, -17), (179.9, -17))},
            {"intersects": shapely.box(179.9, -18, 180.1, -17)},
        ):
            found = deo_cube.search(url, collection="c", **given)
            assert {i.id for i in found} == {"west", "east"}
        assert [i.id for i in deo_cube.search(url, collection="c", bbox=(0.2, -18, 0.8, -17))] == ["far"]
        with pytest.raises(ArgumentError, match="bbox"):
            deo_cube.search(url, collection="c", bbox=(16, 0, 15, 1))
