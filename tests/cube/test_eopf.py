"""Products of EOPF: one call gives the bands of the groups at their place, with offset and date of the product."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cube.esa import cube_of_product, groups_read
from deo_cube.cube.georeference import geobox
from deo_cube.cube.units import decide_radiometry
from deo_cube.errors import (
    AmbiguousUnitsError,
    ArgumentError,
    ArgumentTypeError,
    MissingBandsError,
    MissingCRSError,
    StorageError,
)
from deo_cube.testing import raise_if_dask_computes
from tests.cube.eopf_product import GSD, NAME, groups_of, write

PLACE: dict[str, Any] = {"west": 600000.0, "north": 5000040.0, "epsg": 32632}
SIZE = 120


def pixels(seed: int = 0) -> dict[str, np.ndarray]:
    """DN as published, with no data in a corner."""
    rng = np.random.default_rng(seed)
    bands = {}
    for band in GSD:
        step = GSD[band] // 10
        coarse = rng.integers(1100, 5000, (SIZE // step, SIZE // step)).astype("uint16")
        coarse[: 12 // step, : 12 // step] = 0
        bands[band] = coarse.repeat(step, 0).repeat(step, 1)
    return bands


CLASSES = np.full((SIZE // 2, SIZE // 2), 4, "uint8")
CLASSES[20:30, 20:30] = 9


@pytest.mark.parametrize(("zarr_format", "crs"), [(2, "arrays"), (3, "arrays"), (2, "root"), (3, "root, lower case")])
def test_a_product_is_opened_in_one_call(
    tmp_path: Path, zarr_format: Literal[2, 3], crs: Literal["arrays", "root", "root, lower case"]
) -> None:
    bands = pixels()
    path = write(groups_of(bands, classes=CLASSES, crs=crs, **PLACE), tmp_path, zarr_format=zarr_format)
    with raise_if_dask_computes():
        cube = deo_cube.open_cube(path)
        cube.deo.embed()
    assert set(cube.data_vars) == {*GSD, "SCL"}
    for band, values in bands.items():
        assert cube[band].dtype == "uint16"
        np.testing.assert_array_equal(cube[band].values[0], values, err_msg=band)
    np.testing.assert_array_equal(cube.SCL.values[0], CLASSES.repeat(2, 0).repeat(2, 1))
    assert geobox(cube).boundingbox.bbox == (600000.0, 5000040.0 - 1200, 601200.0, 5000040.0)
    assert geobox(cube).crs.epsg == 32632
    assert cube.time.values.astype("M8[s]").tolist() == [np.datetime64("2022-06-12T10:16:01").item()]
    assert cube.boa_add_offset.values.tolist() == [-1000.0]
    assert cube.attrs["product_level"] == "L2A"
    radiometry = decide_radiometry(cube, cube.deo.match("tiny"))
    assert (radiometry.units, radiometry.offset, radiometry.nodata) == ("dn", (-1000.0,), 0.0)


def plain(bands: dict[str, np.ndarray]) -> xr.Dataset:
    """The same pixels as a cube that states everything."""
    grid = np.arange(SIZE) + 0.5
    data = {b: (("y", "x"), np.where(v > 0, v - 1000, 0).astype("uint16")) for b, v in bands.items()}
    scl = {"SCL": (("y", "x"), CLASSES.repeat(2, 0).repeat(2, 1))}
    coords = {"y": PLACE["north"] - 10 * grid, "x": PLACE["west"] + 10 * grid}
    return xr.Dataset(data | scl, coords).rio.write_crs(PLACE["epsg"])


@pytest.mark.parametrize(("decoded", "chunks"), [(True, {}), (False, None)])
def test_a_tree_gives_the_vectors_of_the_plain_cube_decoded_or_not(tmp_path: Path, decoded: bool, chunks: Any) -> None:
    bands = pixels()
    path = write(groups_of(bands, classes=CLASSES, **PLACE), tmp_path)
    expected = plain(bands).deo.embed(offset=0).compute()
    tree = xr.open_datatree(path, engine="zarr", chunks=chunks, mask_and_scale=decoded)
    for emb in (tree.deo.embed(), deo_cube.embed(tree), deo_cube.open_cube(path).deo.embed()):
        found = emb.isel(time=0).compute()
        np.testing.assert_array_equal(found.values, expected.values)
        np.testing.assert_array_equal(found.valid.values, expected.valid.values)
    assert "fits tiny" in repr(tree.deo)
    assert deo_cube.plan(tree).blocks == deo_cube.plan(plain(bands), offset=0).blocks


def test_archives_and_several_products(tmp_path: Path) -> None:
    bands = pixels()
    path = write(groups_of(bands, **PLACE), tmp_path)
    with zipfile.ZipFile(tmp_path / "p.zarr.zip", "w") as archive:
        for file in path.rglob("*"):
            archive.write(file, file.relative_to(tmp_path))
    xr.testing.assert_equal(deo_cube.open_cube(tmp_path / "p.zarr.zip"), deo_cube.open_cube(path))
    earlier = NAME.replace("20220612", "20210612").replace("N0400", "N0301")
    tree = groups_of(bands, offset=0.0, name=earlier, properties={"start_datetime": "2021-06-12T10:16:01Z"}, **PLACE)
    cubes = [deo_cube.open_cube(path), deo_cube.open_cube(write(tree, tmp_path, name=earlier))]
    both = xr.concat(cubes, dim="time", combine_attrs="drop_conflicts")
    assert decide_radiometry(both, both.deo.match("tiny")).offset == (-1000.0, 0.0)


@pytest.mark.parametrize(
    ("name", "offset", "decided"),
    [
        (NAME, -0.1, -1000.0),
        (NAME.replace("N0400", "N0300"), 0.0, 0.0),
        (NAME.replace("N0400", "N0300"), None, 0.0),
        (NAME, None, None),  # baseline 04.00 without a stated offset
        (NAME.replace("N0400", "N0300"), -0.1, None),  # a contradiction
        (NAME, -0.05, None),  # of no baseline
    ],
)
def test_the_offset_is_decided_from_baseline_and_scale_or_asked_for(
    name: str, offset: float | None, decided: float | None
) -> None:
    for decode in (False, True):
        tree = groups_of(pixels(), offset=offset, name=name, **PLACE)
        groups = {n.path.strip("/"): n.to_dataset() for n in tree.subtree if n.data_vars}
        if decode:
            groups = {n: xr.decode_cf(d) for n, d in groups.items()}
        cube = cube_of_product({n: groups[n] for n in groups_read(groups)}, tree.attrs)
        if decided is None:
            with pytest.raises(AmbiguousUnitsError, match=r"offset=0|offset=-1000"):
                cube.deo.embed()
            cube.deo.embed(offset=0)  # as the message says
        else:
            expected = decided - (1e4 * (offset or 0.0) if decode else 0.0)
            assert decide_radiometry(cube, cube.deo.match("tiny")).offset == (expected,)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 5), st.sampled_from(["r20m", "r60m"]))
def test_groups_whose_grids_do_not_fit_are_refused(shift: int, group: str) -> None:
    tree = groups_of(pixels(), **PLACE)
    groups = {n.path.strip("/"): n.to_dataset() for n in tree.subtree if n.data_vars}
    name = f"measurements/reflectance/{group}"
    whole = groups[name]
    groups[name] = whole.assign_coords(x=whole.x + 10 * shift)
    read = {n: groups[n] for n in groups_read(groups)}
    if shift == 0:
        cube_of_product(read, tree.attrs)
    else:
        with pytest.raises(ArgumentError, match="open_cube returns"):
            cube_of_product(read, tree.attrs)


def test_the_advice_for_windows_is_right(tmp_path: Path) -> None:
    path = write(groups_of(pixels(), **PLACE), tmp_path)
    window = deo_cube.open_cube(path).isel(y=slice(7, 61), x=slice(13, 90))
    assert geobox(window).boundingbox.bbox[0] == 600130.0
    window.deo.embed().compute()


def test_products_without_what_is_needed_are_refused(tmp_path: Path) -> None:
    tree = groups_of(pixels(), crs="root", **PLACE)
    tree.attrs["other_metadata"] = {}
    path = write(tree, tmp_path)
    with pytest.raises(MissingCRSError, match="write_crs"):
        deo_cube.open_cube(path)
    same = deo_cube.open_cube(path, group="measurements/reflectance/r10m").rio.write_crs(32632)
    assert set(same.data_vars) == {"b02", "b03", "b04", "b08"}
    undated = groups_of(pixels(), name="x_N0400", properties={"start_datetime": "null"}, **PLACE)
    undated.attrs["stac_discovery"]["id"] = ""
    with pytest.raises(StorageError, match="date"):
        deo_cube.embed(undated)
    with pytest.raises(MissingBandsError, match="no bands"):
        cube_of_product({}, tree.attrs)


def test_other_trees_are_their_only_cube_or_refused_with_their_groups() -> None:
    cube = deo_cube.synthetic_cube(size=64, times=1)
    expected = cube.deo.embed().compute()
    tree = xr.DataTree.from_dict({"/r10m": cube, "/notes": xr.Dataset({"n": 3})})
    xr.testing.assert_equal(tree.deo.embed().compute(), expected)
    several = xr.DataTree.from_dict({"/r10m": cube, "/other": cube})
    with pytest.raises(ArgumentTypeError, match=r"tree\['/r10m'\].to_dataset\(\)"):
        several.deo.embed()
    xr.testing.assert_equal(several["/r10m"].to_dataset().deo.embed().compute(), expected)


def test_a_real_scene_as_a_product_gives_the_vectors_of_its_file(shared: Path, tmp_path: Path) -> None:
    with rasterio.open(shared / "data/scenes/southtyrol_20220612_L2A.tif") as file:
        side = 240
        bands = dict(zip(("B04", "B03", "B02", "B08"), file.read([1, 2, 3, 4])[:, :side, :side], strict=True))
        classes = file.read(5)[:side, :side][::2, ::2]
        west, north = file.transform.c, file.transform.f
    published = {b: np.where(v > 0, v + 1000, 0).astype("uint16") for b, v in bands.items()}
    path = write(groups_of(published, west=west, north=north, epsg=32632, classes=classes), tmp_path)
    rgb = ["B04", "B03", "B02"]
    product = deo_cube.open_cube(path).deo.embed(bands=rgb).isel(time=0).compute()
    tif = deo_cube.open_cube(shared / "data/scenes/southtyrol_20220612_L2A.tif").isel(y=slice(side), x=slice(side))
    scl = xr.DataArray(classes.repeat(2, 0).repeat(2, 1), dims=("y", "x"))
    named = tif.assign_coords(band=["B04", "B03", "B02", "B08", "SCL"])
    named = xr.where(named.band == "SCL", scl, named).transpose("band", "y", "x").astype("uint16")
    named = named.assign_attrs(tif.attrs).rio.write_crs(32632)
    expected = named.deo.embed(bands=rgb, offset=0).compute()
    np.testing.assert_array_equal(product.values, expected.values)
    np.testing.assert_array_equal(product.valid.values, expected.valid.values)
