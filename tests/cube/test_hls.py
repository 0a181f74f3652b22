"""HLS: S30 is read with its mask, scale and mark of no data; L30 and Landsat are refused with the reason."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pystac
import pytest
import rasterio
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

import deo_cube
from deo_cube.constants import SCL_INVALID
from deo_cube.cube.stac_items import classes_of_fmask, is_s30
from deo_cube.cube.units import decide_radiometry
from deo_cube.errors import DeoCubeError, MissingBandsError, ResolutionMismatchError

BANDS = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12"]
S30 = "HLS.S30.T33TWM.2022064T102921.v2.0"
L30 = "HLS.L30.T33TWM.2022065T101659.v2.0"
SIZE = 48


def granule(folder: Path, name: str = S30, bands: list[str] = BANDS, seed: int = 0) -> dict[str, np.ndarray]:
    """A granule as LP DAAC delivers it: a COG per band at 30 m, int16, scale 0.0001, -9999; Fmask and angles."""
    rng = np.random.default_rng(seed)
    written = {}
    for band in [*bands, "Fmask", "SZA"]:
        values = rng.integers(100, 4000, (SIZE, SIZE)).astype("int16")
        values[:6, :6] = -9999
        if band == "Fmask":
            values = np.full((SIZE, SIZE), 0b01000000, "uint8")  # low aerosol, clear
            values[10:20, 10:20] |= 0b10
            values[20:24, 10:20] |= 0b1000
            values[24:26, 10:20] |= 0b100
            values[:6, :6] = 255
        nodata = 255 if band == "Fmask" else -9999
        with rasterio.open(
            folder / f"{name}.{band}.tif", "w", driver="GTiff", width=SIZE, height=SIZE, count=1, dtype=values.dtype,
            crs="EPSG:32633", transform=from_origin(6e5, 5e6, 30, 30), nodata=nodata,
        ) as file:  # fmt: skip
            file.write(values, 1)
            if band != "Fmask":
                file.scales, file.offsets = (1e-4,), (0.0,)
            file.update_tags(SENSING_TIME="2022-03-05T10:29:21.024Z", SPACECRAFT_NAME="Sentinel-2A")
        written[band] = values
    return written


def test_a_granule_is_opened_in_one_call_with_its_mask(tmp_path: Path) -> None:
    pixels = granule(tmp_path)
    cube = deo_cube.open_cube(f"{tmp_path}/*.tif", resolution=10)
    assert cube.sizes == {"time": 1, "y": 3 * SIZE, "x": 3 * SIZE}
    for band in ("B02", "B8A", "B12"):
        np.testing.assert_array_equal(cube[band].values[0], pixels[band].repeat(3, 0).repeat(3, 1))
    expected = np.select(
        [pixels["Fmask"] == 255, pixels["Fmask"] & 2 > 0, pixels["Fmask"] & 8 > 0, pixels["Fmask"] & 4 > 0],
        [0, 9, 3, 8],
        7,
    )
    np.testing.assert_array_equal(cube.SCL.values[0], expected.repeat(3, 0).repeat(3, 1))
    assert str(cube.time.values[0])[:19] == "2022-03-05T10:29:21"
    r = decide_radiometry(cube, cube.deo.match("tiny"))
    assert (r.units, r.offset, r.nodata) == ("dn", (0.0,), -9999)
    emb = cube.deo.embed().isel(time=0).compute()
    assert np.isnan(emb.isel(y=0, x=0)).all()  # no data
    assert float(emb.valid.sel(y=5e6 - 450, x=6e5 + 450, method="nearest")) == 0  # cloud
    assert float(emb.valid.isel(y=-1, x=-1)) == 1


def test_dates_are_granules_and_the_resolution_is_asked_for(tmp_path: Path) -> None:
    later = S30.replace("2022064", "2022069")
    granule(tmp_path)
    for file in list(tmp_path.glob("*.tif")):  # the tag of the sensing time goes with the name
        with rasterio.open(file) as source:
            values, profile, scales = source.read(), source.profile, source.scales
        with rasterio.open(tmp_path / file.name.replace(S30, later), "w", **profile) as out:
            out.write(values)
            out.scales = scales
    cube = deo_cube.open_cube(f"{tmp_path}/*.tif")
    assert cube.time.values.astype("M8[D]").astype(str).tolist() == ["2022-03-05", "2022-03-10"]
    with pytest.raises(ResolutionMismatchError, match="odc.reproject"):
        cube.deo.embed()


def test_landsat_is_refused_by_name_and_by_platform(tmp_path: Path) -> None:
    granule(tmp_path)
    granule(tmp_path, L30, ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B09", "B10", "B11"])
    paths = sorted(map(str, tmp_path.glob("*.tif")))
    with pytest.raises(MissingBandsError, match=r"hls\.l30.*near infrared") as caught:
        deo_cube.open_cube(paths)
    advice = str(caught.value)[str(caught.value).index("[p for") :].partition("]")[0] + "]"
    assert deo_cube.open_cube(eval(advice, {"paths": paths})).sizes["time"] == 1
    one = deo_cube.open_cube(next(p for p in paths if ".L30." in p and "B05" in p))
    assert one.attrs["id"].startswith(L30)
    for name in ("LC08_L2SP_193027_20220305_20220312_02_T1_SR_B4.TIF", "LE07_L2SP_193027_20020305_02_T1_B4.tif"):
        renamed = Path(paths[0]).rename(tmp_path / name)
        with pytest.raises(MissingBandsError, match="another sensor"):
            deo_cube.open_cube([str(renamed), paths[1]])
        renamed.rename(paths[0])


def item(name: str, folder: Path, **properties: Any) -> pystac.Item:
    made = pystac.Item(name, None, None, datetime(2022, 3, 5, 10, 29, 21, tzinfo=UTC), properties)
    for path in sorted(folder.glob(f"{S30}.*.tif")):
        made.add_asset(path.name.split(".")[-2], pystac.Asset(str(path), media_type="image/tiff"))
    return made


@pytest.mark.parametrize(
    ("name", "properties"),
    [(L30, {}), ("x", {"platform": "landsat-8"}), ("x", {"instruments": ["oli", "tirs"]})],
)
def test_items_of_landsat_are_refused_unless_each_band_is_named(
    tmp_path: Path, name: str, properties: dict[str, Any]
) -> None:
    granule(tmp_path)
    with pytest.raises(MissingBandsError, match='bands={"B8A": "B05"'):
        deo_cube.load_cube([item(name, tmp_path, **properties)])
    assert "B8A" in deo_cube.load_cube([item(name, tmp_path, **properties)], bands={"B8A": "B05", "B04": "B04"})


def test_items_of_s30_take_fmask_for_clouds_and_others_do_not(tmp_path: Path) -> None:
    granule(tmp_path)
    cube = deo_cube.load_cube([item(S30, tmp_path)])
    assert set(np.unique(cube.SCL)) == {0, 3, 7, 8, 9}
    assert cube.boa_add_offset.values.tolist() == [0.0]
    # Digital Earth Australia's fmask has classes, not bits.
    assert "SCL" not in deo_cube.load_cube([item("ga_s2am_fmask", tmp_path)])
    mixed = item("S2A_33TWM_20220305_0_L2A", tmp_path)
    mixed.add_asset("SCL", mixed.assets["Fmask"].clone())
    with pytest.raises(DeoCubeError, match=r"xr\.concat"):
        deo_cube.load_cube([item(S30, tmp_path), mixed])


@given(st.integers(0, 255))
def test_a_pixel_is_hidden_where_cloud_shadow_or_their_border_is_set(value: int) -> None:
    import xarray as xr

    number = int(classes_of_fmask(xr.DataArray(np.uint8(value))))
    hidden = value == 255 or bool(value & 0b1110)
    assert (number in SCL_INVALID) == hidden
    if not hidden:
        assert (number == 11) == bool(value & 16)
        assert (number == 6) == bool(value & 32 and not value & 16)


def test_names_of_products() -> None:
    assert is_s30(S30)
    assert not is_s30(L30)
    assert not is_s30("S2A_MSIL2A_20220305T102921_N0400_R108_T33TWM_20220305T150000")
