"""Several files are one cube: dates and bands are those of their names and tags, and what is unclear is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rasterio
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from rasterio.transform import from_origin

import deo_cube
from deo_cube.cube.files import band_of_file, date_of_name, is_pattern, with_date
from deo_cube.cube.georeference import geobox
from deo_cube.cube.open import open_cube
from deo_cube.cube.units import decide_radiometry
from deo_cube.errors import ArgumentError, DeoCubeError, InputNotFoundError, MissingBandsError
from tests.cube.eopf_product import NAME, groups_of, write
from tests.cube.test_eopf import PLACE, pixels

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


def tif(path: Path, seed: int = 0, *, west: float = 6e5, size: int = 48, **stated: Any) -> Path:
    """A file of ten bands with descriptions."""
    rng = np.random.default_rng(seed)
    dtype = stated.pop("dtype", "uint16")
    values = rng.integers(100, 4000, (10, size, size)).astype(dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", width=size, height=size, count=10, dtype=dtype, crs="EPSG:32632",
        transform=from_origin(west, 5e6, 10, 10), nodata=stated.pop("nodata", 0),
    ) as file:  # fmt: skip
        file.write(values)
        file.descriptions = stated.pop("names", BANDS)
        if "scale" in stated:
            file.scales, file.offsets = (stated["scale"],) * 10, (stated["offset"],) * 10
        file.update_tags(**stated.get("tags", {}))
    return path


def test_a_pattern_is_a_cube_with_the_dates_of_the_names(tmp_path: Path) -> None:
    names = {"20190629_L2A.tif": 1, "20180701_L2A.tif": 2, "20200730_L2A.tif": 3}
    for name, seed in names.items():
        tif(tmp_path / name, seed)
    cube = open_cube(tmp_path / "*.tif")
    assert cube.dims == ("time", "band", "y", "x")
    assert cube.chunks is not None
    assert cube.time.values.astype("M8[D]").astype(str).tolist() == ["2018-07-01", "2019-06-29", "2020-07-30"]
    for t, name in enumerate(sorted(names)):
        np.testing.assert_array_equal(cube[t].values, open_cube(tmp_path / name).values)
        single = open_cube(tmp_path / name).deo.embed(offset=0).compute()
        np.testing.assert_array_equal(cube.deo.embed(offset=0)[t].compute().values, single.values)
    assert geobox(cube) == geobox(open_cube(tmp_path / "20180701_L2A.tif"))
    listed = open_cube([str(tmp_path / n) for n in names], time=["2001-01-03", "2001-01-02", "2001-01-01"])
    np.testing.assert_array_equal(listed.isel(time=2), open_cube(tmp_path / "20190629_L2A.tif"))
    assert open_cube(tmp_path / "20190629_L2A.tif", time="2021-06-30T12:00+02:00").time.values[0] == np.datetime64(
        "2021-06-30T10:00", "ns"
    )


@pytest.mark.parametrize(
    ("name", "date"),
    [
        ("HLS.S30.T33TWM.2022064T102921.v2.0.B02.tif", "2022-03-05T10:29:21"),
        ("20180701_L2A.tif", "2018-07-01T00:00:00"),
        ("2020-01-28_L2A.tif", "2020-01-28T00:00:00"),
        ("T33TVM_20240601T101021_B02_10m.jp2", "2024-06-01T10:10:21"),
        ("S2A_MSIL2A_20220305T102921_N0400_R108_T33TWM_20220306T150000/B02.tif", "2022-03-05T10:29:21"),
        ("20220305_LEVEL2_SEN2A_BOA.tif", "2022-03-05T00:00:00"),
        ("SENTINEL-2_MSI_33TWM_B02_2022-03-05.tif", "2022-03-05T00:00:00"),
        ("2022-03-05/scene.tif", "2022-03-05T00:00:00"),
        ("scene_12345678.tif", None),
        ("scene.tif", None),
        ("20221345.tif", None),
    ],
)
def test_dates_of_names(name: str, date: str | None) -> None:
    found = date_of_name(name)
    assert (None if found is None else str(found)) == date


@given(st.datetimes(pd.Timestamp("2015-07-01"), pd.Timestamp("2040-01-01")), st.sampled_from(["%Y%m%d", "%Y-%m-%d"]))
def test_any_date_in_a_name_is_found(when: Any, form: str) -> None:
    assert str(date_of_name(f"x_{when.strftime(form)}_L2A.tif"))[:10] == when.strftime("%Y-%m-%d")
    assert str(date_of_name(f"T32_{when.strftime('%Y%jT%H%M%S')}.tif")) == when.strftime("%Y-%m-%dT%H:%M:%S")


@pytest.mark.parametrize(
    ("name", "band"),
    [
        ("HLS.S30.T33TWM.2022064T102921.v2.0.B8A.tif", "B8A"),
        ("T33TVM_20240601T101021_B02_10m.jp2", "B02"),
        ("B11.tif", "B11"),
        ("SENTINEL-2_MSI_33TWM_B02_2022-03-05.tif", "B02"),
        ("T33_B02_B03_20220305.tif", None),
        ("x_SCL_20m.jp2", "SCL"),
        ("20220305_LEVEL2_SEN2A_BOA.tif", None),
        ("20180701_L2A.tif", None),
        ("T33TVM_20240601T101021_TCI_10m.jp2", None),
    ],
)
def test_bands_of_names(name: str, band: str | None) -> None:
    assert band_of_file(name) == band


def test_files_of_bands_are_one_product_per_name(tmp_path: Path) -> None:
    pixel: dict[str, np.ndarray] = {}
    for k, band in enumerate([*BANDS, "SCL"]):
        step = 10 if band in ("B02", "B03", "B04", "B08") else 20
        for resolution in {step, 20}:
            size = 480 // resolution
            values = np.random.default_rng(k).integers(100, 4000, (size, size)).astype("uint16")
            values = np.full((size, size), 4, "uint8") if band == "SCL" else values
            name = f"T33TVM_20240601T101021_{band}_{resolution}m.tif"
            with rasterio.open(
                tmp_path / name, "w", driver="GTiff", width=size, height=size, count=1, dtype=values.dtype,
                crs="EPSG:32633", transform=from_origin(4e5, 5e6, resolution, resolution),
            ) as file:  # fmt: skip
                file.write(values, 1)
            if resolution == step:
                pixel[band] = values.repeat(step // 10, 0).repeat(step // 10, 1)
    cube = open_cube(tmp_path / "*.tif")
    assert cube.sizes == {"y": 48, "x": 48, "time": 1}
    for band in ("B02", "B05", "B12", "SCL"):
        np.testing.assert_array_equal(cube[band].values[0], pixel[band])
    with pytest.raises(DeoCubeError, match="offset="):
        cube.deo.embed()
    assert cube.deo.embed(offset=0).sizes["time"] == 1
    undated = [p.rename(tmp_path / p.name.replace("_20240601T101021", "")) for p in sorted(tmp_path.glob("*.tif"))]
    with pytest.raises(ArgumentError, match="time="):
        open_cube(tmp_path / "*.tif")
    assert str(open_cube(list(map(str, undated)), time=["2024-06-01"]).time.values[0])[:10] == "2024-06-01"


@pytest.mark.parametrize(
    ("second", "names"),
    [
        ({"west": 600010.0}, "several grids"),
        ({"size": 40}, "several grids"),
        ({"nodata": 65535}, "_FillValue"),
        ({"dtype": "int16"}, "dtype"),
        ({"scale": 1e-4, "offset": -0.1}, "add_offset|scale"),
        ({"names": BANDS[::-1]}, "different bands"),
    ],
)
def test_files_that_are_not_alike_are_refused(tmp_path: Path, second: dict[str, Any], names: str) -> None:
    tif(tmp_path / "20180701.tif")
    tif(tmp_path / "20190701.tif", 1, **second)
    with pytest.raises(ArgumentError, match=names):
        open_cube(tmp_path / "*.tif")


def test_the_advice_for_several_grids_joins_them(tmp_path: Path) -> None:
    import odc.geo.xr  # noqa: F401

    paths = [str(tif(tmp_path / "20180701.tif")), str(tif(tmp_path / "20190701.tif", 1, west=600010.0))]
    with pytest.raises(ArgumentError, match="like =") as caught:
        open_cube(paths)
    text = str(caught.value)
    first = text[text.index("like = ") : text.index(";")]
    second = text[text.index("xr.concat") : text.index(" with with_date of")]
    names: dict[str, Any] = {"open_cube": open_cube, "paths": paths, "xr": xr, "with_date": with_date}
    exec(first, names)
    assert eval(second, names).sizes["time"] == 2


def test_dates_that_are_missing_equal_or_contradictory_are_refused(tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        tif(tmp_path / name)
    with pytest.raises(ArgumentError, match="time="):
        open_cube(tmp_path / "*.tif")
    assert open_cube(tmp_path / "*.tif", time=["2020", "2021"]).sizes["time"] == 2
    with pytest.raises(ArgumentError, match="one date per file, 2"):
        open_cube(tmp_path / "*.tif", time=["2020"])
    with pytest.raises(ArgumentError, match="time must hold dates"):
        open_cube(tmp_path / "*.tif", time=["2020", "later"])
    with pytest.raises(ArgumentError, match="of one date"):
        open_cube(tmp_path / "*.tif", time=["2020", "2020"])
    with pytest.raises(InputNotFoundError, match="no file matches"):
        open_cube(tmp_path / "*.jp2")
    with pytest.raises(ArgumentError, match="empty"):
        open_cube([])
    with pytest.raises(ArgumentError, match="twice"):
        open_cube([tmp_path / "a.tif", tmp_path / "a.tif"])
    path = tif(tmp_path / "20180701_20190701.tif")
    with pytest.raises(ArgumentError, match="several dates.*time="):
        open_cube([path, tmp_path / "a.tif"])
    tagged = tif(tmp_path / "c_20180701.tif", tags={"datetime": "2019-01-01T10:00:00Z"})
    with pytest.raises(ArgumentError, match=r"by its name.*by its tags.*time="):
        open_cube([tagged, tmp_path / "a.tif"])
    agreeing = tif(tmp_path / "d_20180701.tif", tags={"datetime": "2018-07-01T10:00:00Z"})
    other = tif(tmp_path / "e_20180702.tif", 1)
    assert str(open_cube([agreeing, other]).time.values[0]) == "2018-07-01T10:00:00.000000000"


def test_products_of_several_dates_keep_their_offsets(tmp_path: Path) -> None:
    write(groups_of(pixels(), **PLACE), tmp_path)
    earlier = NAME.replace("20220612", "20210612").replace("N0400", "N0301")
    tree = groups_of(
        pixels(1), offset=0.0, name=earlier, properties={"start_datetime": "2021-06-12T10:16:01Z"}, **PLACE
    )
    write(tree, tmp_path, name=earlier)
    cube = open_cube(tmp_path / "*.zarr")
    assert cube.time.dt.year.values.tolist() == [2021, 2022]
    assert decide_radiometry(cube, cube.deo.match("tiny")).offset == (0.0, -1000.0)


def test_names_of_products_are_evidence_of_the_baseline(tmp_path: Path) -> None:
    for day, baseline in (("20200305", "0214"), ("20200310", "0214")):
        tif(tmp_path / f"S2A_MSIL2A_{day}T102921_N{baseline}_R108_T33TWM_20200315T150000.tif", int(day))
    cube = open_cube(tmp_path / "*.tif")
    assert decide_radiometry(cube, cube.deo.match("tiny")).offset == (0.0,)


def test_files_of_two_products_in_one_name_are_refused(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with rasterio.open(
            tmp_path / folder / "T33_20240601_B02.tif", "w", driver="GTiff", width=8, height=8, count=1, dtype="uint16",
            crs="EPSG:32633", transform=from_origin(4e5, 5e6, 10, 10),
        ) as file:  # fmt: skip
            file.write(np.ones((1, 8, 8), "uint16"))
    same = [tmp_path / "a" / "T33_20240601_B02.tif", tmp_path / "a" / "T33_20240601_b2.tif"]
    same[1].write_bytes(same[0].read_bytes())
    with pytest.raises(MissingBandsError, match="both hold B02"):
        open_cube(same)


def test_patterns() -> None:
    assert is_pattern("scenes/*.tif")
    assert not is_pattern("https://x.org/a.tif?token=1")
    assert not is_pattern("/vsicurl/https://x.org/a.tif?token=1")
    assert not is_pattern("scene.tif")


def test_real_scenes_of_one_place_are_a_series(shared: Path) -> None:
    cube = open_cube(shared / "data/places/harz/*.tif")
    assert cube.time.values.astype("M8[D]").astype(str).tolist() == [
        "2018-07-01", "2019-06-29", "2020-06-23", "2020-07-30",
    ]  # fmt: skip
    assert cube.deo.match("tiny").band_dim == "band"
    witzwil = open_cube(shared / "data/cubes/witzwil-2022/*/*.tif")
    assert witzwil.sizes == {"y": 62, "x": 42, "time": 15}
    items = deo_cube.load_cube(shared / "data/cubes/witzwil-2022/items.json")
    np.testing.assert_array_equal(witzwil.B05.values, items.B05.values)
    np.testing.assert_array_equal(witzwil.SCL.values, items.SCL.values)
