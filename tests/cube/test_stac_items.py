from __future__ import annotations

import json

import pystac
import pytest

from deo_cube.cube.stac_items import asset_scale, find_assets, product_of_item, read_items, resolve_href
from deo_cube.errors import MissingBandsError

TIFF, JP2 = "image/tiff; application=geotiff; profile=cloud-optimized", "image/jp2"


def item(assets, name="x", **properties):
    d = {
        "type": "Feature",
        "stac_version": "1.0.0",
        "id": name,
        "geometry": None,
        "properties": {"datetime": "2022-03-05T10:29:21Z", **properties},
        "links": [],
        "assets": {k: {"href": f"{k}.tif", "type": TIFF, **v} for k, v in assets.items()},
    }
    return pystac.Item.from_dict(d)


def keys(found, of):
    return {band: next(k for k, a in of.assets.items() if a is asset) for band, asset in found.items()}


def test_items_in_every_form():
    one = item({"B02": {}})
    plain = one.to_dict()
    for form in (one, plain, [one, plain], (one,), pystac.ItemCollection([one]), iter([one])):
        assert {i.id for i in read_items(form)} == {"x"}
    assert len(read_items({"type": "FeatureCollection", "features": [plain, plain]})) == 2

    class Search:
        def items(self):
            yield one

    assert [i.id for i in read_items(Search())] == ["x"]


def test_forms_that_are_no_items_are_refused(tmp_path):
    for empty in ([], {"type": "FeatureCollection", "features": []}, pystac.ItemCollection([])):
        with pytest.raises(ValueError, match="items is empty"):
            read_items(empty)
    with pytest.raises(FileNotFoundError, match="Expected a JSON file"):
        read_items(tmp_path / "items.json")
    with pytest.raises(TypeError):
        read_items(3)
    with pytest.raises(ValueError, match="'Catalog' is not a STAC item"):
        read_items({"type": "Catalog"})


def test_relative_hrefs_are_those_of_the_file_they_stood_in(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "B02.tif").touch()
    one = item({"B02": {"href": "./a/B02.tif"}, "B03": {"href": "a/none.tif"}, "B04": {"href": "s3://b/c.tif"}})
    (tmp_path / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": [one.to_dict()]}))
    (read,) = read_items(tmp_path / "items.json")
    assert resolve_href(read, read.assets["B02"]) == str(tmp_path / "a" / "B02.tif")
    with pytest.raises(FileNotFoundError, match=r"none\.tif"):
        resolve_href(read, read.assets["B03"])
    assert resolve_href(read, read.assets["B03"], check=False).endswith("none.tif")
    assert resolve_href(read, read.assets["B04"]) == "s3://b/c.tif"
    with pytest.raises(FileNotFoundError, match="relative href"):
        resolve_href(one, one.assets["B02"])


def test_file_urls_are_decoded(tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "B02.tif").touch()
    one = item({"B02": {"href": (tmp_path / "a b" / "B02.tif").as_uri()}})
    assert resolve_href(one, one.assets["B02"]) == str(tmp_path / "a b" / "B02.tif")


def test_catalogues_name_their_assets_each_in_its_way():
    element84 = item(
        {
            "blue": {},
            "blue-jp2": {"type": JP2, "title": "Blue (band 2) - 10m"},
            "nir08": {},
            "scl": {},
            "scl-jp2": {"type": JP2},
        }
    )
    assert keys(find_assets(element84, ["B02", "B8A"]), element84) == {"B02": "blue", "B8A": "nir08", "SCL": "scl"}
    copernicus = item({f"{b}_{r}m": {"type": JP2, "gsd": r} for b in ("B02", "B8A", "SCL") for r in (10, 20, 60)})
    assert keys(find_assets(copernicus, ["B02", "B8A"]), copernicus) == {
        "B02": "B02_10m",
        "B8A": "B8A_20m",
        "SCL": "SCL_20m",
    }
    planetary = item(
        {"B02": {}, "B8A": {}, "visual": {"roles": ["visual"]}, "preview": {"type": "image/png"}, "SCL": {}}
    )
    assert keys(find_assets(planetary, ["B02", "B04"]), planetary) == {"B02": "B02", "SCL": "SCL"}


def test_swir_2_beside_a_swir_3_is_left_to_the_caller():
    dea = item({"blue": {}, "swir_2": {}, "swir_3": {}})
    assert keys(find_assets(dea, ["B02", "B11", "B12"]), dea) == {"B02": "blue"}
    other = item({"swir_1": {}, "swir_2": {}})
    assert keys(find_assets(other, ["B11", "B12"]), other) == {"B11": "swir_1", "B12": "swir_2"}


def test_assets_are_known_by_what_they_describe():
    described = item(
        {
            "a": {"eo:bands": [{"name": "B04"}]},
            "b": {"bands": [{"name": "x", "eo:common_name": "rededge", "eo:center_wavelength": 0.74}]},
            "c": {"eo:bands": [{"common_name": "rededge"}]},
            "d": {"title": "NIR 2 (band 8A) - 20m"},
            "e": {"eo:bands": [{"name": "B02"}, {"name": "B03"}]},
            "f": {"eo:bands": [{"common_name": "swir22"}]},
        }
    )
    found = find_assets(described, ["B02", "B03", "B04", "B05", "B06", "B8A", "B12"])
    assert keys(found, described) == {"B04": "a", "B06": "b", "B8A": "d", "B12": "f"}


def test_two_assets_on_a_par_are_refused():
    with pytest.raises(MissingBandsError, match=r"asset 'B02' or 'b2'.*bands="):
        find_assets(item({"B02": {}, "b2": {}}), ["B02"])


@pytest.mark.parametrize(
    "fields",
    [
        {"raster:bands": [{"scale": 1e-4, "offset": -0.1}]},
        {"raster:scale": 1e-4, "raster:offset": -0.1},
        {"bands": [{"name": "B02", "raster:scale": 1e-4, "raster:offset": -0.1}]},
    ],
)
def test_scales_of_both_raster_extensions(fields):
    assert asset_scale(item({"B02": fields}).assets["B02"]) == (1e-4, -0.1)
    assert asset_scale(item({"B02": {}}).assets["B02"]) == (None, None)


def test_a_local_copy_keeps_the_word_on_where_it_came_from():
    origin = {"earthsearch:s3_path": "s3://sentinel-cogs/x"}
    copy = item({"blue": {"href": "/data/B02.tif"}}, **origin)
    assert product_of_item(copy, copy.assets.values()).places == {"harmonised: sentinel-cogs"}
    raw = item({"blue": {"href": "s3://sentinel-s2-l2a/tiles/x.jp2"}}, **origin)
    assert product_of_item(raw, raw.assets.values()).places == {"raw: sentinel-s2-l2a"}
