from __future__ import annotations

import json
import re
import socket
from pathlib import Path

import numpy as np
import pytest

from deo_cube.cube.bands import match_bands
from deo_cube.cube.stac import load_cube
from deo_cube.cube.stac_catalogs import CATALOGUES, Catalogue, catalogue, search
from deo_cube.cube.units import decide_radiometry
from deo_cube.errors import AmbiguousUnitsError, CatalogueError
from tests.cube.items import flat, product, remote
from tests.cube.range_server import serve
from tests.cube.stac_api import stac_api

ITEMS = Path(__file__).parents[1] / "data" / "items"


# --- what each catalogue says of its numbers --------------------------------------------------------


@pytest.mark.parametrize("name", list(CATALOGUES))
def test_each_catalogue_states_offset_scale_and_nodata_as_its_preset_says(name):
    """The contract, on items in the true form of each catalogue."""
    known = CATALOGUES[name]
    read = json.loads((ITEMS / f"{name}.json").read_text())
    for item in read.get("features", [read]):
        assert item["collection"] == known.collection
        for key, asset in item["assets"].items():
            if asset["type"] == "application/xml" or not key.lower().startswith(("b0", "blue", "red", "nir")):
                continue
            band = {**asset, **(asset.get("raster:bands") or [{}])[0]}
            assert band.get("scale", band.get("raster:scale")) == known.scale, key
            assert band.get("nodata") == known.nodata, key


@pytest.mark.parametrize(
    ("name", "adds", "why"),
    [
        ("earth-search", [-1000], "e84-earth-search-sentinel-data.*raster:bands states an offset of -1000"),
        ("earth-search-l2a", [0, None], "boa_offset_applied is true.*says of files that carry the offset and of files"),
        ("planetary-computer", [0, -1000], "before 04.00.*sentinel2l2a01"),
        ("cdse", [-1000], "eodata.*raster:bands states an offset of -1000"),
    ],
)
def test_each_catalogue_becomes_a_cube_whose_offset_is_decided_or_asked_for(name, adds, why):
    ds = load_cube(ITEMS / f"{name}.json", patch_url=None)
    assert set(ds) == {"B02", "B04", "B8A", "SCL"}
    assert ds.boa_add_offset.values.tolist() == pytest.approx([np.nan if a is None else a for a in adds], nan_ok=True)
    assert re.search(why, ds.attrs["deo_cube:offset"])
    assert np.isfinite(ds["eo:cloud_cover"].values).all()
    assert all("0" in b for b in ds["s2:processing_baseline"].values)
    assert abs(ds.x.values[1] - ds.x.values[0]) == 10
    assert {ds[b].dtype.name for b in ("B02", "B8A")} == {"uint16"}
    assert ds.SCL.dtype == "uint8"
    if None in adds:
        match = match_bands(ds, ["B02"])
        with pytest.raises(AmbiguousUnitsError, match="Pass offset=-1000 if they carry it"):
            decide_radiometry(ds, match)


def test_items_of_four_catalogues_choose_the_right_file_of_each_band():
    from deo_cube.cube.stac_items import find_assets, read_items

    hrefs = {}
    for name in CATALOGUES:
        item = read_items(ITEMS / f"{name}.json")[0]
        hrefs[name] = {b: a.href for b, a in find_assets(item, ["B02", "B8A"]).items()}
    assert hrefs["earth-search"]["B8A"].endswith("/B8A.tif")
    assert hrefs["earth-search-l2a"]["B02"].startswith("https://sentinel-cogs.")  # not the JPEG 2000 of the raw bucket
    assert hrefs["planetary-computer"]["SCL"].endswith("_SCL_20m.tif")
    assert hrefs["cdse"]["B02"].endswith("B02_10m.jp2")
    assert hrefs["cdse"]["B8A"].endswith("B8A_20m.jp2")


# --- presets ----------------------------------------------------------------------------------------


def test_presets_and_urls():
    assert catalogue("cdse") is CATALOGUES["cdse"]
    assert catalogue("earth-search", collection="sentinel-2-l2a") is CATALOGUES["earth-search-l2a"]
    assert catalogue(CATALOGUES["cdse"].url, collection="sentinel-2-l2a") is CATALOGUES["cdse"]
    other = catalogue("http://127.0.0.1:1/stac", collection="mine")
    assert (other.collection, other.offset) == ("mine", "by baseline")
    assert catalogue(other) is other
    with pytest.raises(CatalogueError, match="choose from earth-search, "):
        catalogue("google")
    with pytest.raises(CatalogueError, match="collection="):
        catalogue("https://example.org/stac")
    with pytest.raises(ValueError, match="http"):
        Catalogue("x", "ftp://x", "y")
    with pytest.raises(ValueError, match="not both"):
        Catalogue("x", "http://x", "y", raw=("a",), harmonised=("a",))
    assert "unreliable" in repr(CATALOGUES["earth-search-l2a"])


def test_a_search_that_cannot_be_is_refused_at_the_call():
    import deo_cube

    with pytest.raises(ValueError, match="bbox="):
        search("earth-search", datetime="2024-07")
    with pytest.raises(ValueError, match="west, south, east, north"):
        search("earth-search", bbox=(9, 47, 8, 48))
    with pytest.raises(ValueError, match="0 to 100"):
        search("earth-search", bbox=(8, 47, 9, 48), max_cloud=300)
    with deo_cube.set_options(offline=True), pytest.raises(CatalogueError, match="offline is set"):
        search("earth-search", bbox=(8, 47, 9, 48))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # held, so that no other server gets the port and answers
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(CatalogueError, match=r"did not answer.*load_cube\('items\.json'\)"):
            search(url, collection="x", bbox=(8, 47, 9, 48))


# --- a real API and real files on loopback ------------------------------------------------------------


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    """rustac with six items: three dates, two tiles that overlap, COGs of 512 px on a range-capable server."""
    pytest.importorskip("pystac_client")
    folder = tmp_path_factory.mktemp("catalogue")
    rng = np.random.default_rng(0)
    items, pixels = [], {}
    for day, cloud in (("05", 12.0), ("15", 70.0), ("25", 3.0)):
        whole = rng.integers(1100, 9000, (512, 1000)).astype("uint16")
        pixels[day] = whole
        for tile, first in (("T32TMT", 0), ("T32TNT", 488)):
            name = f"S2B_MSIL2A_202403{day}T102021_N0510_R065_{tile}"
            part = {"B02": whole[:, first : first + 512], "SCL": flat(4, (512, 512), "uint8")}
            when = f"2024-03-{day}T10:20:21Z"
            item = product(folder, name, part, when=when, offset=-0.1, west=400000.0 + 10 * first)
            item["properties"] |= {"eo:cloud_cover": cloud, "s2:processing_baseline": "05.10"}
            tiled(folder / name / "B02.tif")
            items.append(item | {"collection": "sentinel-2-test"})
    with serve(folder) as server, stac_api([remote(i, folder, server.url) for i in items], folder) as url:
        yield url, server, pixels


def tiled(path):
    import rasterio

    with rasterio.open(path) as file:
        profile, values = {**file.profile, "tiled": True, "blockxsize": 128, "blockysize": 128}, file.read()
    path.unlink()
    with rasterio.open(path, "w", **profile) as file:
        file.write(values)


AREA = (7.66, 47.81, 7.79, 47.86)


def test_a_search_answers_in_order_and_filters_clouds_even_where_the_api_cannot(api, monkeypatch):
    url, server, _ = api
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    given = {"collection": "sentinel-2-test", "bbox": AREA}
    assert len(search(url, **given)) == 6
    clear = search(url, **given, max_cloud=20)
    assert [i.properties["datetime"][:10] for i in clear] == ["2024-03-05"] * 2 + ["2024-03-25"] * 2
    assert len(search(url, **given, datetime="2024-03-10/2024-03-20")) == 2
    assert len(search(url, **given, max_items=1)) == 1
    with pytest.raises(ValueError, match=r"\(6 have more than max_cloud=1 % of cloud\)"):
        search(url, **given, max_cloud=1)
    with pytest.raises(ValueError, match="widen"):
        search(url, **given, datetime="2019-01")
    assert not [p for _, p in server.requests if p.endswith(".tif")]


def test_tiles_of_one_day_are_merged_and_no_more_is_read_than_wanted(api, monkeypatch, gdal_http):
    url, server, pixels = api
    items = search(url, collection="sentinel-2-test", bbox=AREA, max_cloud=20)
    server.forget()
    ds = load_cube(items, chunks={"x": 256, "y": 256})
    assert dict(ds.sizes) == {"time": 2, "y": 512, "x": 1000}
    assert ds.boa_add_offset.values.tolist() == [-1000.0, -1000.0]
    assert ds["eo:cloud_cover"].values.tolist() == [12.0, 3.0]
    assert not server.requests
    whole = ds.B02.compute(scheduler="synchronous").values
    np.testing.assert_array_equal(whole, np.stack([pixels["05"], pixels["25"]]))
    # Four files of 512 KiB: each opened once or twice a chunk that touches it, none read from end to end at a time.
    tifs = [p for _, p in server.requests if p.endswith("B02.tif")]
    assert len(set(tifs)) == 4
    assert len(tifs) <= 130
    server.forget()
    sent = server.sent
    corner = ds.B02.isel(time=0, y=slice(0, 100), x=slice(0, 100)).compute(scheduler="synchronous")
    np.testing.assert_array_equal(corner.values, pixels["05"][:100, :100])
    assert len(server.requests) <= 6
    assert server.sent - sent <= 200_000


def test_an_api_by_url_feeds_a_composite_and_an_embedding(api, gdal_http):
    from deo_cube.cube.composite import composite

    url, _, pixels = api
    ds = load_cube(search(url, collection="sentinel-2-test", bbox=AREA), chunks={"x": 500, "y": 512})
    made = composite(ds)
    expected = np.median(np.stack([pixels[d] for d in ("05", "15", "25")]), axis=0) - 1000
    np.testing.assert_array_equal(made.B02.values[0], expected)
    least = composite(ds, "least_cloudy")
    np.testing.assert_array_equal(least.B02.values[0], pixels["25"].astype("float32") - 1000)


def test_items_in_two_utm_zones_become_one_cube_in_either(tmp_path):
    west = product(tmp_path, "a", {"B02": flat(1200, (64, 64))}, offset=-0.1, west=799360.0, crs=32632)
    east = product(tmp_path, "b", {"B02": flat(3400, (64, 64))}, offset=-0.1, west=200000.0, crs=32633)
    from deo_cube.errors import MissingCRSError

    with pytest.raises(MissingCRSError, match="crs="):
        load_cube([west, east])
    for crs in ("EPSG:32632", "EPSG:32633"):
        ds = load_cube([west, east], crs=crs, resolution=10)
        assert ds.sizes["time"] == 1
        values = ds.B02.values[0]
        # Both are there whole, up to a rim of half a pixel, and nothing lies between that is neither.
        for dn in (1200, 3400):
            assert 0.97 < (values == dn).sum() / 64**2 < 1.03
        assert set(np.unique(values)) == {0, 1200, 3400}
