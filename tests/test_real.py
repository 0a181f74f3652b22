"""The main job on real Sentinel-2: STAC items, netCDF, GeoTIFF and a product, to Zarr and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr

import deo_cube
from deo_cube import errors

pytestmark = pytest.mark.real

TERRAMESH = [
    f"{tile}/{level}" for tile in ("282D_485L_3_3", "38D_378R_2_3", "609U_541L_3_0") for level in ("S2L1C", "S2L2A")
]


def there_and_back(emb: xr.DataArray, path: Path) -> xr.DataArray:
    stored = emb.deo.to_zarr(path, progress=False)
    xr.testing.assert_equal(stored.compute(), emb.compute())
    assert stored.rio.transform() == emb.rio.transform()
    assert deo_cube.verify_store(path).complete
    return stored


@pytest.mark.parametrize("site", ["witzwil-2022", "strickhof-2022"])
def test_stac_items_through_load_cube(shared: Path, tmp_path: Path, site: str) -> None:
    items = json.loads((shared / "data" / "cubes" / site / "items.json").read_text())["features"]
    cube = deo_cube.load_cube(shared / "data" / "cubes" / site / "items.json")
    assert cube.sizes["time"] == len(items)
    with pytest.raises(errors.MissingBandsError, match='(?s)B08.*missing="nearest"'):
        cube.deo.embed()
    emb = cube.isel(time=slice(0, 3)).deo.embed(missing="nearest")
    stored = there_and_back(emb, tmp_path / "e.zarr")
    # B02 to B04 are empty outside the fields, in the source: most patches are not wholly valid.
    assert 0 < float(stored.valid.mean()) < 0.6
    np.testing.assert_array_equal(stored.isnull().all("embedding").values, stored.valid.values == 0)


def test_the_belgian_monthly_cube(shared: Path, tmp_path: Path) -> None:
    cube = deo_cube.open_cube(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc")
    with pytest.raises(errors.MissingBandsError, match="B8A"):
        cube.deo.embed()
    with pytest.raises(errors.AmbiguousUnitsError, match="offset=0"):
        cube.deo.embed(missing="nearest")
    # Its nodata is stated nowhere; what that would do is caught where the values are seen.
    with pytest.raises(errors.AmbiguousUnitsError, match="nodata=65535"):
        cube.deo.embed(missing="nearest", offset=0).isel(time=1).compute()
    emb = there_and_back(cube.deo.embed(missing="nearest", offset=0, nodata=65535), tmp_path / "e.zarr")
    assert emb.dims[0] == "time"
    empty = emb.valid.max(("y", "x")).values == 0
    assert [i for i, e in enumerate(empty) if e] == [1, 2]  # December 2020 and January 2021


@pytest.mark.parametrize("name", TERRAMESH)
def test_files_whose_offset_nobody_states_are_refused_with_what_to_pass(shared: Path, name: str) -> None:
    tile = deo_cube.open_cube(shared / f"data/landcover_terramesh/{name}.tif")
    for cube in (tile, tile.compute()):
        with pytest.raises(errors.AmbiguousUnitsError, match="offset=-1000.*offset=0|offset=0.*offset=-1000"):
            cube.deo.embed()
    assert np.isfinite(tile.deo.embed(offset=0, dtype="float32").isel(x=5, y=5).values).all()


def test_one_product_at_ten_metres(shared: Path, tmp_path: Path) -> None:
    item = pystac.Item.from_file(shared / "data/cubes/cog_S2A_29RKH_20200219_0_L2A/item-local.json")
    whole = deo_cube.load_cube(item)
    with pytest.raises(errors.ResolutionMismatchError, match="100 m.*resolution=10"):
        whole.deo.embed()
    west, south, east, north = item.bbox
    x, y = (west + east) / 2, (south + north) / 2
    cube = deo_cube.load_cube(item, resolution=10, bbox=(x - 0.02, y - 0.02, x + 0.02, y + 0.02))
    emb = there_and_back(cube.deo.embed(), tmp_path / "e.zarr")
    assert "02.14 is before 04.00" in emb.attrs["deo_cube:radiometry"]
    assert emb.rio.crs.to_epsg() == 32629


def test_a_scene_in_degrees_lies_where_rasterio_says(shared: Path, tmp_path: Path) -> None:
    path = shared / "data/scenes/aquileia_20190416_L2A.tif"
    scene = deo_cube.open_cube(path)
    emb = there_and_back(scene.deo.embed(offset=0).isel(y=slice(0, 40), x=slice(0, 40)), tmp_path / "e.zarr")
    with rasterio.open(path) as source:
        west, north, step = source.transform.c, source.transform.f, source.transform.a
    patch = deo_cube.card("tiny").patch
    left, top = emb.rio.transform().c, emb.rio.transform().f
    assert emb.rio.transform().a == pytest.approx(patch * step, rel=1e-12)
    # The first patch holds the corner pixel, and its corner is a whole number of patches from the CRS origin's lattice.
    assert 0 <= west - left < patch * step
    assert (west - left) / step == pytest.approx(round((west - left) / step), abs=1e-6)
    assert 0 <= top - north < patch * abs(source.transform.e)


def test_two_windows_of_a_real_scene_agree_where_they_overlap(shared: Path) -> None:
    scene = deo_cube.open_cube(shared / "data/scenes/aquileia_20190416_L2A.tif")
    card = deo_cube.card("tiny")
    options = {"offset": 0, "dtype": "float32", "tile": 64, "halo": 16}
    large = scene.isel(y=slice(100, 420), x=slice(200, 560)).deo.embed(**options).compute()
    small = scene.isel(y=slice(131, 401), x=slice(233, 517)).deo.embed(**options).compute()
    edge = 64 // card.patch + 1
    inner = small.isel(y=slice(edge, -edge), x=slice(edge, -edge))
    assert inner.size > 0
    same = large.sel(y=inner.y, x=inner.x, method="nearest", tolerance=1e-9)
    np.testing.assert_array_equal(inner.values, same.values)


def test_a_stackstac_cube_is_taken_as_it_comes(shared: Path) -> None:
    stackstac = pytest.importorskip("stackstac")
    folder = shared / "data" / "cubes" / "witzwil-2022"
    found = [pystac.Item.from_dict(f) for f in json.loads((folder / "items.json").read_text())["features"][:2]]
    for item in found:
        for asset in item.assets.values():
            asset.href = str((folder / asset.href).resolve())
    names = ["B02", "B03", "B04", "B05", "B06", "B07", "B8A", "B11", "B12"]
    options = {"assets": names, "epsg": 32632, "resolution": 10}
    rescaled = stackstac.stack(found, **options)
    raw = stackstac.stack(found, dtype="uint16", fill_value=np.uint16(0), rescale=False, **options)
    a = rescaled.deo.embed(missing="nearest", dtype="float32").compute()
    b = raw.deo.embed(missing="nearest", dtype="float32").compute()
    # Its coordinates are corners: the grid must not move by half a pixel.
    assert a.rio.transform() == b.rio.transform()
    np.testing.assert_array_equal(a.valid.values, b.valid.values)
    np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-4)
    cube = deo_cube.load_cube(found, bands=names)
    c = cube.deo.embed(missing="nearest", dtype="float32", mask=False).compute()
    here, there = xr.align(a, c, join="inner")
    assert here.sizes["x"] >= 5
    assert (here.valid.values[there.valid.values == 1] == 1).all()
