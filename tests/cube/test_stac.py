import json
import math
import warnings

import numpy as np
import pystac
import pytest
import rasterio
import xarray as xr

from deo_cube.constants import MODEL_BANDS
from deo_cube.cube.bands import match_bands
from deo_cube.cube.georeference import geobox
from deo_cube.cube.stac import load_cube
from deo_cube.cube.units import canonical, decide_radiometry
from deo_cube.errors import AmbiguousUnitsError, MissingBandsError, MissingCRSError
from tests.cube.items import flat, product, remote
from tests.cube.range_server import serve
from tests.cube.stac_api import stac_api

RAW = {"s2:processing_baseline": "04.00"}


# --- real items -----------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("place", ["strickhof-2022", "witzwil-2022"])
def test_real_time_series_give_the_pixels_of_their_files(shared, place):
    folder = shared / "data/cubes" / place
    items = json.loads((folder / "items.json").read_text())["features"]
    ds = load_cube(folder / "items.json")
    assert set(ds) == {*MODEL_BANDS, "SCL"} - {"B08"}
    assert ds.sizes["time"] == len(items)
    assert all(v.chunks for v in ds.data_vars.values())
    box = geobox(ds)
    computed = ds.compute()
    for t, item in enumerate(sorted(items, key=lambda i: i["properties"]["datetime"])):
        for band in ds.data_vars:
            with rasterio.open(folder / item["assets"][band]["href"]) as file:
                # Two dates of Witzwil lie on a grid one pixel further east: the place decides, not the index.
                col, row = (round(v) for v in ~box.transform * (file.transform.c, file.transform.f))
                inside = computed[band].values[t, row : row + file.height, col : col + file.width]
                np.testing.assert_array_equal(inside, file.read(1))
    match = match_bands(ds, MODEL_BANDS, missing="nearest")
    assert dict(zip(match.bands, match.variables, strict=True))["B08"] == "B8A"
    decided = decide_radiometry(ds, match)
    assert (decided.units, decided.offset, decided.nodata, match.scl) == ("dn", (0.0,), 0.0, "SCL")
    # Baseline 04.00, yet free of the offset: scale 1e-4 with offset 0 is an explicit statement about these files.
    assert set(ds["s2:processing_baseline"].values) == {"04.00"}
    assert any("raster:bands states an offset of 0 DN" in w for w in decided.reasons)


@pytest.mark.real
def test_a_shifted_corner_is_aligned_by_place(shared):
    folder = shared / "data/cubes/witzwil-2022"
    ds = load_cube(folder / "items.json")
    assert ds["B05"].shape == (15, 62, 42)
    assert tuple(geobox(ds).transform)[:6] == (10.0, 0.0, 354340.0, 0.0, -10.0, 5205260.0)
    # Outside the parcels these two dates are empty, and the parcels do not move.
    shifted, fixed = (ds["B02"].sel(time=day).squeeze().values > 0 for day in ("2022-05-19", "2022-05-14"))
    assert not shifted[:, 0].any()
    assert not shifted[61:].any()

    def agreement(rows, columns):
        moved = np.roll(shifted, (rows, columns), (0, 1))
        return (moved == fixed)[2:-2, 2:-2].mean()

    assert agreement(0, 0) == max(agreement(r, c) for r in (-1, 0, 1) for c in (-1, 0, 1))
    assert agreement(0, 0) > 0.95


@pytest.mark.real
def test_a_catalogue_item_before_baseline_04(shared):
    folder = shared / "data/cubes/cog_S2A_29RKH_20200219_0_L2A"
    item = pystac.Item.from_file(str(folder / "item-local.json"))
    assert item.properties["earthsearch:boa_offset_applied"] is False
    ds = load_cube(item)
    assert set(ds) == {*MODEL_BANDS, "SCL"}
    assert geobox(ds).resolution.x == 100  # the finest band of these decimated files
    assert ds["boa_add_offset"].values.tolist() == [0.0]
    assert "baseline 02.14 is before 04.00" in ds.attrs["deo_cube:offset"]
    with rasterio.open(folder / "B04.tif") as file:
        np.testing.assert_array_equal(ds["B04"].values[0], file.read(1))
    with rasterio.open(folder / "B8A.tif") as file:  # 200 m: nearest repeats each pixel
        np.testing.assert_array_equal(ds["B8A"].values[0], file.read(1).repeat(2, 0).repeat(2, 1))
    with rasterio.open(folder / "SCL.tif") as file:
        np.testing.assert_array_equal(ds["SCL"].values[0], file.read(1).repeat(2, 0).repeat(2, 1))
    part = load_cube(item, bbox=(-11.6, 24.7, -11.3, 24.9), bands=["blue", "B8A"], resolution=200)
    assert set(part) == {"B02", "B8A", "SCL"}
    west, south, east, north = geobox(part).geographic_extent.boundingbox
    assert west < -11.6 < -11.3 < east
    assert south < 24.7 < 24.9 < north


@pytest.mark.real
def test_stackstac_cubes_of_the_same_items(shared):
    stackstac = pytest.importorskip("stackstac")
    folder = shared / "data/cubes/witzwil-2022"
    ours = load_cube(folder / "items.json")
    items = []
    for feature in json.loads((folder / "items.json").read_text())["features"]:
        item = pystac.Item.from_dict(feature)
        item.set_self_href(str(folder / "items.json"))
        item.make_asset_hrefs_absolute()
        items.append(item)
    wanted = ("B8A", "B02", "B11")
    box = geobox(ours)
    grid = {"assets": ["B11", "SCL", "B02", "B8A"], "epsg": 32632, "resolution": 10, "bounds": box.boundingbox.bbox}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = stackstac.stack(items, **grid)
        raw = stackstac.stack(items, **grid, dtype="int16", fill_value=np.int16(0), rescale=False)
    expected = None
    for cube, units in ((scaled, "reflectance"), (raw, "dn")):
        match = match_bands(cube, wanted)
        assert (match.indices, match.scl_index) == ((3, 2, 0), 1)
        decided = decide_radiometry(cube, match)
        assert (decided.units, decided.offset) == (units, (0.0,))
        loaded = cube.isel(time=0).compute()
        values = np.stack([canonical(loaded.values[i], decided) for i in match.indices])
        expected = values if expected is None else expected
        np.testing.assert_array_equal(values, expected)
    match = match_bands(ours, wanted)
    mine = [canonical(ours[b].values[0], decide_radiometry(ours, match)) for b in wanted]
    np.testing.assert_array_equal(np.stack(mine), expected)


def test_stackstac_of_a_stale_statement_is_mended(tmp_path):
    """Harmonised files of which raster:bands still says -0.1, so that stackstac subtracts a second time."""
    stackstac = pytest.importorskip("stackstac")
    harmonised = {
        "s2:processing_baseline": "05.00",
        "earthsearch:boa_offset_applied": True,
        "earthsearch:s3_path": "s3://sentinel-cogs/sentinel-s2-l2a-cogs/x",
    }
    items = [product(tmp_path, "a", {"B02": flat(700), "B03": flat(900)}, offset=-0.1, **harmonised)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cube = stackstac.stack(items, resolution=10, epsg=32632)
    assert np.nanmin(cube.values) < -0.02
    decided = decide_radiometry(cube, match_bands(cube, ["B02", "B03"]))
    assert decided.offset == (1000.0,)
    values = canonical(cube.isel(time=0).values, decided)
    assert set(np.unique(values[np.isfinite(values)])) == {700.0, 900.0}
    assert load_cube(items)["boa_add_offset"].values.tolist() == [0.0]


def test_stackstac_of_items_that_differ_drops_what_it_applied(tmp_path):
    stackstac = pytest.importorskip("stackstac")
    old = {"s2:processing_baseline": "02.14", "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/a"}
    new = {"s2:processing_baseline": "04.00", "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/b"}
    items = [
        product(tmp_path, "a", {"B02": flat(700)}, offset=0, when="2019-03-05T10:29:21Z", **old),
        product(tmp_path, "b", {"B02": flat(1700)}, offset=-0.1, **new),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scaled = stackstac.stack(items, resolution=10, epsg=32632)
        raw = stackstac.stack(items, resolution=10, epsg=32632, dtype="uint16", fill_value=np.uint16(0), rescale=False)
    assert "raster:bands" not in scaled.coords
    match = match_bands(raw, ["B02"])
    with pytest.raises(AmbiguousUnitsError, match="drops where items differ"):
        decide_radiometry(scaled, match)
    given = decide_radiometry(scaled, match, units="reflectance", offset=0)
    decided = decide_radiometry(raw, match)
    assert decided.offset == (0.0, -1000.0)
    for t in range(2):
        for cube, how in ((scaled, given), (raw, decided)):
            values = canonical(cube.isel(time=t).values, how, t)
            assert set(np.unique(values[np.isfinite(values)])) == {700.0}


# --- the offset of each item ----------------------------------------------------------------------


def test_mixed_time_series_record_an_offset_a_step(tmp_path):
    items = [
        product(
            tmp_path, "old", {"B02": flat(500)}, when="2021-03-05T10:29:21Z", **{"s2:processing_baseline": "03.01"}
        ),
        product(tmp_path, "new", {"B02": flat(1500)}, offset=-0.1, **RAW),
    ]
    ds = load_cube(items)
    assert ds["boa_add_offset"].values.tolist() == [0.0, -1000.0]
    assert ds["s2:processing_baseline"].values.tolist() == ["03.01", "04.00"]
    decided = decide_radiometry(ds, match_bands(ds, ["B02"]))
    assert [canonical(ds["B02"].values[t], decided, t).max() for t in range(2)] == [500.0, 500.0]


def test_the_decision_survives_a_store_and_a_change_of_form(tmp_path):
    items = [
        product(tmp_path, "a", {"B02": flat(500), "SCL": flat(4, dtype="uint8")}, offset=0, **RAW),
        product(tmp_path, "b", {"B02": flat(1500)}, when="2022-04-05T10:29:21Z", offset=-0.1, **RAW),
    ]
    ds = load_cube(items)
    ds.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    stored = xr.open_zarr(tmp_path / "cube.zarr", consolidated=False)
    stacked = ds[["B02"]].to_array("band")
    for cube in (ds, stored, stored.load(), stacked, ds.astype("float32")):
        decided = decide_radiometry(cube, match_bands(cube, ["B02"]))
        assert (decided.units, decided.offset, decided.nodata) == ("dn", (0.0, -1000.0), 0.0)
    assert decide_radiometry(ds.isel(time=1), match_bands(ds, ["B02"])).offset == (-1000.0,)
    assert decide_radiometry(ds.sel(time="2022-03"), match_bands(ds, ["B02"])).offset == (0.0,)


def test_undecided_items_load_and_are_refused_by_name_later(tmp_path):
    items = [product(tmp_path, "a", {"B02": flat(1500)}, **RAW)]
    ds = load_cube(items)
    assert math.isnan(ds["boa_add_offset"].values[0])
    match = match_bands(ds, ["B02"])
    with pytest.raises(
        AmbiguousUnitsError, match="nothing says whether the file still carries them.*Pass offset=-1000"
    ):
        decide_radiometry(ds, match)
    assert decide_radiometry(ds, match, offset=-1000).offset == (-1000.0,)
    told = load_cube(items, offset=-1000)
    decided = decide_radiometry(told, match)
    assert decided.offset == (-1000.0,)
    assert any("passed to load_cube" in w for w in decided.reasons)
    with pytest.raises(ValueError, match="offset must be"):
        load_cube(items, offset="yes")


def test_items_that_differ_within_a_day_are_freed_before_they_are_mosaicked(tmp_path):
    """Half a tile under baseline 03.01, the whole tile again under 05.00, and another day that needs nothing."""
    half = flat(500)
    half[:, 16:] = 0
    dark = flat(1500)
    dark[:, 20:] = 990  # below the offset: black, but no nodata
    old, new = {"s2:processing_baseline": "03.01"}, {"s2:processing_baseline": "05.00"}
    items = [
        product(tmp_path, "a", {"B02": half, "scl": flat(4, dtype="uint8")}, when="2021-03-05T10:29:21Z", **old),
        product(
            tmp_path, "b", {"B02": dark, "scl": flat(5, dtype="uint8")}, when="2021-03-05T10:29:25Z", offset=-0.1, **new
        ),
        product(tmp_path, "c", {"B02": flat(1700), "scl": flat(4, dtype="uint8")}, offset=-0.1, **RAW),
    ]
    ds = load_cube(items)
    assert ds.sizes["time"] == 2
    assert ds["boa_add_offset"].values.tolist() == [0.0, -1000.0]
    assert ds["item_ids"].values.tolist() == ["a b", "c"]
    assert ds["B02"].dtype == "uint16"
    assert ds["B02"].attrs["nodata"] == 0
    first = ds["B02"].values[0]
    assert (first[:, :20] == 500).all()
    assert (first[:, 20:] == 1).all()
    assert (ds["B02"].values[1] == 1700).all()
    assert "debug" not in ds.encoding
    apart = load_cube(items, groupby="id")
    assert apart["boa_add_offset"].values.tolist() == [0.0, -1000.0, -1000.0]


def test_an_undecided_item_within_a_day_leaves_the_day_undecided(tmp_path):
    items = [
        product(tmp_path, "a", {"B02": flat(500)}, when="2022-03-05T10:29:21Z", offset=0, **RAW),
        product(tmp_path, "b", {"B02": flat(1500)}, when="2022-03-05T10:29:25Z", **RAW),
    ]
    assert np.isnan(load_cube(items)["boa_add_offset"].values).all()


# --- what is loaded -------------------------------------------------------------------------------


def test_items_of_several_catalogues_load_together(tmp_path):
    items = [
        product(tmp_path, "a", {"blue": flat(500), "nir08": flat(3000)}, offset=0, **RAW),
        product(
            tmp_path,
            "b",
            {"B02": flat(600), "B8A": flat(3100), "B04": flat(7)},
            when="2022-03-10T10:29:21Z",
            offset=0,
            **RAW,
        ),
    ]
    ds = load_cube(items)
    assert list(ds) == ["B04", "B02", "B8A"]
    assert ds["B02"].values[:, 0, 0].tolist() == [500, 600]
    assert ds["B04"].values[:, 0, 0].tolist() == [0, 7]
    assert (ds["B02"].attrs["units"], ds["B8A"].attrs["common_name"]) == ("DN", "nir08")


def test_bands_may_be_named_or_pointed_at(tmp_path):
    items = [product(tmp_path, "a", {"x1": flat(1), "B02": flat(2), "B11": flat(3)}, offset=0, **RAW)]
    assert set(load_cube(items, bands=["swir16"])) == {"B11"}
    pointed = load_cube(items, bands={"blue": "x1", "B11": "B11"})
    assert (pointed["B02"].values == 1).all()
    with pytest.raises(MissingBandsError, match="no asset 'nope'"):
        load_cube(items, bands={"B02": "nope"})
    with pytest.raises(MissingBandsError, match="'VV'"):
        load_cube(items, bands=["VV"])


def test_clouds_are_masked_lazily(tmp_path):
    scl = np.arange(12, dtype="uint8").repeat(3)[None].repeat(36, 0)
    item = product(tmp_path, "a", {"B02": flat(500, (36, 36)), "SCL": scl}, offset=0, **RAW)
    ds = load_cube([item], mask_clouds=True)
    assert ds["B02"].chunks is not None
    assert ds["B02"].dtype == "uint16"
    values = ds["B02"].values[0]
    hidden = np.isin(scl, (0, 1, 3, 8, 9, 10))
    assert (values[hidden] == 0).all()
    assert (values[~hidden] == 500).all()
    assert decide_radiometry(ds, match_bands(ds, ["B02"])).nodata == 0
    bare = product(tmp_path, "b", {"B02": flat(500)}, offset=0, **RAW)
    with pytest.raises(MissingBandsError, match="mask_clouds=False"):
        load_cube([bare], mask_clouds=True)


def test_resampling_is_nearest_unless_told_and_always_for_classes(tmp_path):
    checks = np.indices((32, 32)).sum(0) % 2
    item = product(
        tmp_path, "a", {"B02": (1000 + 1000 * checks).astype("uint16"), "SCL": (4 + checks).astype("uint8")}, offset=0
    )
    box = geobox(load_cube([item])).zoom_out(0.7)
    plain = load_cube([item], geobox=box)
    assert set(np.unique(plain["B02"].values)) <= {0, 1000, 2000}
    smooth = load_cube([item], geobox=box, resampling="bilinear")
    assert len(np.unique(smooth["B02"].values)) > 10
    assert set(np.unique(smooth["SCL"].values)) <= {0, 4, 5}


def test_chunks(tmp_path):
    item = product(tmp_path, "a", {"B02": flat(5, (64, 64))}, offset=0)
    assert load_cube([item])["B02"].chunks == ((1,), (64,), (64,))
    assert load_cube([item], chunks={"x": 32, "y": 16})["B02"].chunks == ((1,), (16,) * 4, (32,) * 2)


# --- refusals -------------------------------------------------------------------------------------


def test_the_level_of_the_products_is_kept_and_two_do_not_meet_unnoticed(tmp_path):
    toa = product(tmp_path, "S2A_MSIL1C_1", {"B02": flat(500)}, **{"s2:product_type": "S2MSI1C"}, **RAW)
    boa = product(tmp_path, "S2A_MSIL2A_2", {"B02": flat(400)}, when="2022-03-10T10:29:21Z", **RAW)
    assert load_cube([toa]).attrs["product_level"] == "L1C"
    with pytest.warns(UserWarning, match="levels L1C and L2A"):
        assert "product_level" not in load_cube([toa, boa]).attrs
    unsaid = product(tmp_path, "x", {"B02": flat(400)}, **RAW)
    assert "product_level" not in load_cube([unsaid]).attrs


def test_places_that_cannot_be_loaded_are_refused(tmp_path):
    a = product(tmp_path, "a", {"B02": flat(5)}, offset=0)
    b = product(tmp_path, "b", {"B02": flat(5)}, offset=0, crs=32633)
    with pytest.raises(MissingCRSError, match=r"several CRSs: EPSG:326.*crs='EPSG:32632'"):
        load_cube([a, a, b])
    assert load_cube([a, b], crs="EPSG:32632", resolution=1000).sizes["time"] == 1
    with pytest.raises(ValueError, match="touches none of the 1 items"):
        load_cube([a], bbox=(100, 0, 101, 1))
    with pytest.raises(ValueError, match="west, south, east, north"):
        load_cube([a], bbox=(8, 48, 7, 49))
    with pytest.raises(ValueError, match="pass resolution="):
        load_cube([a], crs="EPSG:4326")
    nowhere = json.loads(json.dumps(a))
    for key in [k for k in nowhere["properties"] if k.startswith("proj:")]:
        del nowhere["properties"][key]
    xr.testing.assert_equal(load_cube([nowhere]), load_cube([a]))  # the header of the file states it
    assert load_cube([nowhere], crs="EPSG:32632", resolution=10, bbox=tuple(a["bbox"]))["B02"].values.max() == 5


def test_assets_that_are_not_there_are_refused(tmp_path):
    a = product(tmp_path, "a", {"B02": flat(5)}, offset=0)
    with pytest.raises(MissingBandsError, match=r"no asset of 1 items holds B11; assets of a: B02.*bands="):
        load_cube([a], bands=["B11"])
    (tmp_path / "a" / "B02.tif").unlink()
    with pytest.raises(FileNotFoundError, match="asset of item a"):
        load_cube([a])
    with pytest.raises(ValueError, match="stac_cfg"):
        load_cube([a], stac_cfg={})


# --- over the wire --------------------------------------------------------------------------------


def test_remote_files_are_read_when_asked_and_no_more_than_asked(tmp_path, gdal_http):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 9000, (512, 512)).astype("uint16")
    local = product(tmp_path, "a", {"B02": pixels, "B03": pixels, "SCL": flat(4, (512, 512), "uint8")}, offset=0)
    for band in ("B02", "B03"):
        path = tmp_path / "a" / f"{band}.tif"
        with rasterio.open(path) as file:
            profile = {**file.profile, "tiled": True, "blockxsize": 128, "blockysize": 128}
        path.unlink()
        with rasterio.open(path, "w", **profile) as file:
            file.write(pixels, 1)
    with serve(tmp_path) as server:
        ds = load_cube([remote(local, tmp_path, server.url)], chunks={"x": 128, "y": 128})
        decide_radiometry(ds, match_bands(ds, ["B02"]))
        assert server.requests == []
        corner = ds["B02"].isel(y=slice(0, 100), x=slice(0, 100)).compute(scheduler="synchronous")
        np.testing.assert_array_equal(corner.values[0], pixels[:100, :100])
        assert {path for _, path in server.requests} == {"/a/B02.tif"}
        assert 128 * 128 * 2 <= server.sent < pixels.nbytes / 2
        signed = load_cube(
            [remote(local, tmp_path, "http://127.0.0.1:1")],
            patch_url=lambda url: url.replace("http://127.0.0.1:1", server.url),
        )
        np.testing.assert_array_equal(signed["B03"].values[0], pixels)


@pytest.mark.real
def test_a_search_of_a_real_api(shared, tmp_path, gdal_http):
    pystac_client = pytest.importorskip("pystac_client")
    folder = shared / "data/cubes/witzwil-2022"
    local = load_cube(folder / "items.json")
    collection = json.loads((folder / "items.json").read_text())
    with serve(folder) as server:
        for feature in collection["features"]:
            for asset in feature["assets"].values():
                asset["href"] = f"{server.url}/{asset['href'].removeprefix('./')}"
        with stac_api(collection["features"], tmp_path) as url:
            client = pystac_client.Client.open(url)
            search = client.search(
                collections=["witzwil-2022"], bbox=(7.08, 46.97, 7.1, 46.99), datetime="2022-05-01/2022-06-30"
            )
            ds = load_cube(search)
            some = load_cube(client.search(collections=["witzwil-2022"], limit=4).item_collection())
            nothing = client.search(collections=["witzwil-2022"], datetime="2019-01-01/2019-02-01")
            with pytest.raises(ValueError, match="items is empty"):
                load_cube(nothing)
        assert some.sizes["time"] == 15
        assert ds.sizes["time"] == 5
        assert not [p for _, p in server.requests if p.endswith(".tif")]
        wanted = local.sel(time=slice("2022-05-01", "2022-06-30"))
        xr.testing.assert_equal(ds["B11"].compute(), wanted["B11"].compute())
