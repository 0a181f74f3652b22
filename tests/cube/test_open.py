"""Cubes in groups, archives, references and products: opened with right values, or refused with the call that opens."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import rasterio
import rasterio.shutil
import xarray as xr
import zarr
from rasterio.transform import from_origin

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.cube.open import check_store, open_cube
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.cube.units import decide_radiometry
from deo_cube.embedding.embed import embed
from deo_cube.errors import (
    AmbiguousUnitsError,
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    HrefRefusedError,
    InputNotFoundError,
    MissingExtraError,
    StorageError,
    StoreMismatchError,
)
from deo_cube.store.open import open_embeddings, open_layout, status, verify_store


@pytest.fixture
def two_bands() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=64, times=1)[["B02", "B03"]].reset_coords(drop=True)


def test_what_is_written_is_opened_as_it_is_stored(two_bands: xr.Dataset, tmp_path: Path) -> None:
    two_bands.to_zarr(tmp_path / "c.zarr", consolidated=False)
    two_bands.to_netcdf(tmp_path / "c.nc")
    two_bands.isel(time=0).B02.rio.to_raster(tmp_path / "c.tif")
    for name in ("c.zarr", "c.nc"):
        found = open_cube(tmp_path / name)
        assert found.B02.chunks is not None
        assert found.B02.dtype == two_bands.B02.dtype
        np.testing.assert_array_equal(found.B02.values, two_bands.B02.values)
    assert (open_cube(tmp_path / "c.tif")[0].values == two_bands.B02[0].values).all()


def test_a_name_that_says_nothing_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "cube.xyz").touch()
    with pytest.raises(ValueError, match=r"path: .* unknown kind"):
        open_cube(tmp_path / "cube.xyz")
    with pytest.raises(FileNotFoundError, match="path: .* does not exist"):
        open_cube(tmp_path / "cube.zarr")


def test_without_a_reader_of_netcdf_the_message_installs_one(
    two_bands: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_bands.to_netcdf(tmp_path / "c.nc")
    kept = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] in ("netCDF4", "h5netcdf"):
            raise ImportError(name)
        return kept(name, *rest)

    monkeypatch.setattr("deo_cube.cube.open.find_spec", lambda name: None)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match="pip install netCDF4"):
        open_cube(tmp_path / "c.nc", engine="netcdf4")


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=64, times=1).isel(time=0, drop=True).drop_attrs(deep=False)


def same(found: Any, cube: xr.Dataset) -> None:
    for name in ("B02", "B8A"):
        np.testing.assert_array_equal(found[name].values, cube[name].values)
    assert geobox(found) == geobox(cube)


def advice(caught: pytest.ExceptionInfo[Any], path: Any) -> Any:
    """Evaluate the call of `open_cube` in a message."""
    (call,) = re.findall(r"open_cube\([^)]*\)", str(caught.value))
    return eval(call, {"open_cube": open_cube, "path": path})


WRITERS = {
    "zarr": lambda tree, path: tree.to_zarr(path, consolidated=False),
    "zarr 2": lambda tree, path: tree.to_zarr(path, zarr_format=2, consolidated=True),
    "nc": lambda tree, path: tree.to_netcdf(path),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_the_only_group_with_a_cube_is_opened_and_several_are_named(
    kind: str, cube: xr.Dataset, tmp_path: Path
) -> None:
    path = tmp_path / f"one.{kind.split()[0]}"
    one = {"/": xr.Dataset(attrs={"title": "t"}), "/quality": xr.Dataset({"n": 3}), "/measurements/r10m": cube}
    WRITERS[kind](xr.DataTree.from_dict(one), path)
    found = open_cube(path)
    same(found, cube)
    assert found.attrs["title"] == "t"
    assert found.B02.chunks is not None
    same(open_cube(path, group="measurements/r10m"), cube)
    with pytest.raises(ArgumentError, match=r"no group 'r10m'.*measurements/r10m"):
        open_cube(path, group="r10m")
    several = tmp_path / f"several.{kind.split()[0]}"
    two = {**one, "/measurements/reflectance/r10m": cube, "/other": cube[["B02"]]}
    WRITERS[kind](xr.DataTree.from_dict(two), several)
    with pytest.raises(ArgumentError, match=r"3 groups.*group='measurements/reflectance/r10m'") as caught:
        open_cube(several)
    same(advice(caught, several), cube)
    if kind != "nc":
        same(open_cube(several / "measurements" / "r10m"), cube)


def test_the_crs_of_a_product_is_read_where_its_root_states_it(cube: xr.Dataset, tmp_path: Path) -> None:
    bare = cube.drop_vars("spatial_ref").drop_encoding()
    for name in bare.data_vars:
        bare[name].attrs.clear()
    root = xr.Dataset(attrs={"stac_discovery": {"properties": {"proj:epsg": 32633}}})
    xr.DataTree.from_dict({"/": root, "/r10m": bare, "/r20m": bare}).to_zarr(tmp_path / "p.zarr", consolidated=False)
    assert geobox(open_cube(tmp_path / "p.zarr", group="r10m")) == geobox(cube)


def test_stores_and_zips(cube: xr.Dataset, tmp_path: Path) -> None:
    cube.to_zarr(tmp_path / "c.zarr", consolidated=False)
    xr.DataTree.from_dict({"/a": cube, "/b": cube}).to_zarr(tmp_path / "g.zarr", consolidated=False)
    packed = {"root.zarr.zip": ("c.zarr", "c.zarr"), "folder.zip": ("c.zarr", "."), "groups.zip": ("g.zarr", "g.zarr")}
    for name, (source, root) in packed.items():
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for file in (tmp_path / source).rglob("*"):
                archive.write(file, file.relative_to(tmp_path / root))
    for name in ("root.zarr.zip", "folder.zip"):
        same(open_cube(tmp_path / name), cube)
    with pytest.raises(ArgumentError, match=r"2 groups.*group='a'") as caught:
        open_cube(tmp_path / "groups.zip")
    same(advice(caught, tmp_path / "groups.zip"), cube)
    memory = zarr.storage.MemoryStore()
    cube.to_zarr(memory, consolidated=False)
    same(open_cube(memory), cube)
    same(open_cube(zarr.storage.LocalStore(tmp_path / "c.zarr", read_only=True)), cube)
    for wrong in (cube, {"a": 1}, 3, None, xr.DataTree(cube)):
        with pytest.raises(ArgumentTypeError, match="path must be"):
            open_cube(wrong)


def test_rasters_of_other_formats(cube: xr.Dataset, tmp_path: Path) -> None:
    tif = tmp_path / "c.tif"
    cube.B02.rio.to_raster(tif)
    rasterio.shutil.copy(str(tif), str(tmp_path / "c.vrt"), driver="VRT")
    rasterio.shutil.copy(str(tif), str(tmp_path / "c.jp2"), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES")
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as archive:
        archive.write(tif, "in/c.tif")
    for path in ("c.tif", "c.vrt", "c.jp2", "one.zip"):
        found = open_cube(tmp_path / path)
        np.testing.assert_array_equal(found.values[0], cube.B02.values)
        assert geobox(found) == geobox(cube)
    np.testing.assert_array_equal(open_cube(f"/vsizip/{tmp_path}/one.zip/in/c.tif").values[0], cube.B02.values)
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        archive.write(tif, "a.tif")
        archive.write(tif, "b.tif")
    with pytest.raises(ArgumentError, match=r"2 rasters.*a\.tif") as caught:
        open_cube(tmp_path / "two.zip")
    np.testing.assert_array_equal(advice(caught, None).values[0], cube.B02.values)
    with pytest.raises(ArgumentError, match="folder and not a Zarr store") as caught:
        open_cube(tmp_path)
    bands = {"B02": tmp_path / "c.tif", "B03": tmp_path / "c.jp2"}
    (call,) = re.findall(r"xr\.merge\(.*\)", str(caught.value))
    merged = eval(call, {"xr": xr, "open_cube": open_cube, "files": bands})
    assert set(merged.data_vars) == {"B02", "B03"}


def kerchunk(cube: xr.Dataset, folder: Path, target: str | None = None) -> dict[str, Any]:
    """References to the chunks of an uncompressed Zarr 2 store, as kerchunk writes them."""
    data = xr.Dataset({n: cube[n] for n in ("B02", "B8A", "spatial_ref")}).set_coords("spatial_ref")
    data = data.drop_encoding()
    encoding = {n: {"compressors": None, "filters": None} for n in (*data.data_vars, "x", "y")}
    data.B02.attrs["grid_mapping"] = data.B8A.attrs["grid_mapping"] = "spatial_ref"
    data.to_zarr(folder / "raw.zarr", zarr_format=2, encoding=encoding, consolidated=False)
    refs: dict[str, Any] = {}
    for file in sorted((folder / "raw.zarr").rglob("*")):
        key = file.relative_to(folder / "raw.zarr").as_posix()
        if file.is_file():
            whole = [f"{target or folder / 'raw.zarr'}/{key}", 0, file.stat().st_size]
            refs[key] = file.read_text() if file.name.startswith(".z") else whole
    return {"version": 1, "refs": refs}


def test_references_of_kerchunk(cube: xr.Dataset, tmp_path: Path) -> None:
    refs = kerchunk(cube, tmp_path)
    path = tmp_path / "k.json"
    path.write_text(json.dumps(refs))
    same(open_cube(path), cube)
    path.write_text(json.dumps(refs["refs"]))  # version 0
    same(open_cube(path), cube)
    relative = json.loads(json.dumps(refs).replace(f"{tmp_path}/", ""))
    path.write_text(json.dumps(relative))
    same(open_cube(path), cube)
    templated = json.loads(json.dumps(refs).replace(str(tmp_path), "{{u}}")) | {"templates": {"u": str(tmp_path)}}
    path.write_text(json.dumps(templated))
    same(open_cube(path), cube)


def test_references_that_are_programs_or_name_internal_addresses_are_refused(cube: xr.Dataset, tmp_path: Path) -> None:
    path = tmp_path / "k.json"
    for extra in (
        {"gen": [{"key": "{{i}}", "url": "{{u}}", "dimensions": {"i": [1]}}]},
        {"templates": {"u": "{{cycler.__init__}}"}},
    ):
        path.write_text(json.dumps({"version": 1, "refs": {".zgroup": "{}", "a/0": ["{{u}}", 0, 1]}, **extra}))
        with pytest.raises(ArgumentError, match="not run"):
            open_cube(path)
    path.write_text(json.dumps(kerchunk(cube, tmp_path, "http://169.254.169.254/latest")))
    with pytest.raises(HrefRefusedError, match="169.254.169.254"):
        open_cube(path)
    path.write_text(json.dumps({"version": 1, "refs": {}}))
    with pytest.raises(ArgumentError, match="references"):
        open_cube(path)


def test_icechunk(cube: xr.Dataset, tmp_path: Path) -> None:
    icechunk = pytest.importorskip("icechunk")
    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "repo")))
    session = repository.writable_session("main")
    cube.to_zarr(session.store, zarr_format=3, consolidated=False)
    session.commit("cube")
    for given in (tmp_path / "repo", repository.readonly_session("main"), repository.readonly_session("main").store):
        same(open_cube(given), cube)
    # Embeddings: written plainly, copied by the words of the refusal, read from a snapshot.
    emb = deo_cube.embed(deo_cube.synthetic_cube(size=64, times=1))
    session = repository.writable_session("main")
    with pytest.raises(DeoCubeError, match="copy it into the session") as caught:
        emb.deo.to_zarr(session.store)
    emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    (call,) = re.findall(r"(xarray\.open_zarr.*?consolidated=False\))", str(caught.value))
    call = call.replace("'emb.zarr'", repr(str(tmp_path / "emb.zarr")))
    other = icechunk.Repository.create(icechunk.local_filesystem_storage(str(tmp_path / "other")))
    session = other.writable_session("main")
    eval(call, {"xarray": xr, "session": session})
    session.commit("embeddings")
    read = deo_cube.open_embeddings(other.readonly_session("main").store)
    np.testing.assert_array_equal(read.values, deo_cube.open_embeddings(tmp_path / "emb.zarr").values)


def test_an_icechunk_folder_without_the_package_names_it(
    cube: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("refs", "snapshots", "manifests"):
        (tmp_path / "repo" / name).mkdir(parents=True)
    monkeypatch.setitem(__import__("sys").modules, "icechunk", None)
    with pytest.raises(MissingExtraError, match="pip install icechunk"):
        open_cube(tmp_path / "repo")


# --- SAFE -----------------------------------------------------------------------------------------


def product(folder: Path, name: str, *, offset: int | None, suffix: str = "jp2") -> tuple[Path, dict[str, np.ndarray]]:
    """A small product in ESA's layout, with images of three resolutions."""
    level = "L2A" if "L2A" in name else "L1C"
    root = folder / name
    granule = root / "GRANULE" / "L2A_T33TVM_A000000_20240601T101021" / "IMG_DATA"
    tag = "BOA_ADD_OFFSET" if level == "L2A" else "RADIO_ADD_OFFSET"
    offsets = "" if offset is None else f"<{tag}>{offset}</{tag}>" * 13
    metadata = (
        '<?xml version="1.0"?><n1:P xmlns:n1="https://psd-14.sentinel2.eo.esa.int/PSD/S2.xsd"><n1:General_Info>'
        "<PRODUCT_START_TIME>2024-06-01T10:10:21.024Z</PRODUCT_START_TIME><PROCESSING_BASELINE>"
        f"{name.split('_N')[1][:2]}.{name.split('_N')[1][2:4]}</PROCESSING_BASELINE>"
        f"<BOA_QUANTIFICATION_VALUE>10000</BOA_QUANTIFICATION_VALUE>{offsets}"
        "<Cloud_Coverage_Assessment>12.5</Cloud_Coverage_Assessment></n1:General_Info></n1:P>"
    )
    root.mkdir(parents=True)
    (root / f"MTD_MSI{level}.xml").write_text(metadata)
    pixels = {}
    fine, coarse = ("B02", "B03", "B04", "B08"), ("B05", "B06", "B07", "B8A", "B11", "B12")
    bands = dict.fromkeys(fine, 10) | dict.fromkeys(coarse, 20)
    for k, (band, size) in enumerate({**bands, "SCL": 20}.items()):
        for resolution in {size, 60} - ({60} if level == "L1C" else set()):
            n = 1920 // resolution
            values = np.random.default_rng(k).integers(1001, 6000, (n, n)).astype("uint16")
            values = np.full((n, n), 4, "uint8") if band == "SCL" else values
            place = granule / f"R{resolution}m" if level == "L2A" else granule
            place.mkdir(parents=True, exist_ok=True)
            end = f"_{resolution}m" if level == "L2A" else ""
            profile = {
                "driver": "GTiff",
                "count": 1,
                "height": n,
                "width": n,
                "dtype": values.dtype,
                "crs": "EPSG:32633",
            }
            with rasterio.MemoryFile() as memory:
                with memory.open(**profile, transform=from_origin(4e5, 5e6, resolution, resolution)) as out:
                    out.write(values, 1)
                target = place / f"T33TVM_20240601T101021_{band}{end}.jp2"
                rasterio.shutil.copy(
                    memory.name, str(target), driver="JP2OpenJPEG", QUALITY="100", REVERSIBLE="YES", YCC="NO"
                )
            if resolution == size:
                pixels[band] = values
    return root, pixels


L2A = "S2A_MSIL2A_20240601T101021_N0510_R022_T33TVM_20240601T160000.SAFE"


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize(("name", "offset"), [(L2A, -1000), (L2A.replace("N0510", "N0301"), None)])
def test_safe_products_give_the_pixels_of_their_images(
    form: str, name: str, offset: int | None, tmp_path: Path
) -> None:
    root, pixels = product(tmp_path, name, offset=offset)
    path = root
    if form == "zip":
        path = tmp_path / f"{name}.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in root.rglob("*"):
                archive.write(file, file.relative_to(tmp_path))
    found = open_cube(path)
    for band, values in pixels.items():
        repeat = found.sizes["y"] // len(values)
        np.testing.assert_array_equal(found[band].values[0], values.repeat(repeat, 0).repeat(repeat, 1))
    assert geobox(found).boundingbox.bbox == (4e5, 5e6 - 1920, 4e5 + 1920, 5e6)
    assert str(found.time.values[0])[:10] == "2024-06-01"
    assert found["eo:cloud_cover"].values.tolist() == [12.5]
    assert found.attrs["product_level"] == "L2A"
    match = found.deo.match("tiny")
    assert decide_radiometry(found, match).offset == (float(offset or 0),)
    assert found.deo.embed("tiny").sizes["embedding"] == 192


def test_a_product_of_several_granules_is_mosaicked(tmp_path: Path) -> None:
    root, pixels = product(tmp_path, L2A.replace("N0510", "N0204"), offset=None)
    second, _ = product(tmp_path / "other", L2A.replace("N0510", "N0204"), offset=None)
    (granule,) = (second / "GRANULE").iterdir()
    moved = granule.rename(root / "GRANULE" / "L2A_T33TWM_A000000_20240601T101021")
    for path in moved.rglob("*.jp2"):  # 1920 m to the east
        with rasterio.open(path) as file:
            values, step = file.read(), file.res[0]
        profile = {"driver": "GTiff", "count": 1, "height": values.shape[1], "width": values.shape[2]}
        profile |= {"dtype": values.dtype, "crs": "EPSG:32633", "transform": from_origin(4e5 + 1920, 5e6, step, step)}
        with rasterio.open(path.with_suffix(".tif"), "w", **profile) as out:
            out.write(values)
        path.unlink()
    cube = open_cube(root)
    assert cube.sizes["x"] == 2 * 192
    for half in (cube.isel(x=slice(192)), cube.isel(x=slice(192, None))):
        np.testing.assert_array_equal(half.B02.values[0], pixels["B02"])
        np.testing.assert_array_equal(half.B05.values[0], pixels["B05"].repeat(2, 0).repeat(2, 1))


def test_safe_folders_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    root = tmp_path / L2A
    (root / "GRANULE").mkdir(parents=True)
    with pytest.raises(InputNotFoundError, match="MTD_MSIL2A"):
        open_cube(root)
    (root / "MTD_MSIL2A.xml").write_text("<a><PRODUCT_START_TIME>2024-06-01T10:10:21Z</PRODUCT_START_TIME></a>")
    with pytest.raises(InputNotFoundError, match="IMG_DATA"):
        open_cube(root)
    (root / "MTD_MSIL2A.xml").write_text("<a>")
    with pytest.raises(StorageError, match="metadata"):
        open_cube(root)
    (root / "MTD_MSIL2A.xml").write_text("<a/>")
    with pytest.raises(ArgumentError, match=r"SAFE") as caught:
        open_cube(tmp_path)
    assert L2A in str(caught.value)


# --- what is none ---------------------------------------------------------------------------------


BROKEN = {
    "empty.vrt": "",
    "empty.jp2": "",
    "empty.tif": "",
    "text.nc": "no netCDF",
    "text.json": "{",
    "list.json": "[]",
    "number.json": "3",
    "collection.json": '{"type": "Collection"}',
    "broken.json": '{"type": "FeatureCollection", "features": [{"type": "Feature"}]}',
    "text.zip": "no zip",
    "text.xyz": "x",
    "empty.geojson": "",
}


@pytest.mark.parametrize("name", BROKEN)
def test_files_that_are_none_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(BROKEN[name])
    with pytest.raises(DeoCubeError) as caught:
        open_cube(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value) or "items" in str(caught.value)


def test_options_that_a_reader_does_not_take_are_named(cube: xr.Dataset, tmp_path: Path) -> None:
    cube.to_zarr(tmp_path / "c.zarr", consolidated=False)
    cube.to_netcdf(tmp_path / "c.nc")
    cube.B02.rio.to_raster(tmp_path / "c.tif")
    for name in ("c.zarr", "c.nc"):
        with pytest.raises(ArgumentTypeError, match="chunk_size="):
            open_cube(tmp_path / name, chunk_size=3)
    with pytest.raises(ArgumentError, match="group="):
        open_cube(tmp_path / "c.tif", group="a")
    with pytest.raises(InputNotFoundError, match="path: .* does not exist"):
        open_cube(tmp_path / "none.zarr")
    with pytest.raises(InputNotFoundError):
        open_cube(f"file://{tmp_path}/none.zarr")
    same(open_cube(f"file://{tmp_path}/c.zarr"), cube)
    with pytest.raises(DeoCubeError):
        open_cube("http://127.0.0.1:1/c.zarr")
    (tmp_path / "c.zarr" / "B02" / "zarr.json").write_text("{")
    with pytest.raises(StorageError, match=r"c\.zarr"):
        open_cube(tmp_path / "c.zarr")
    (tmp_path / "nothing.zarr").mkdir()
    with pytest.raises(ArgumentError, match="nothing"):
        open_cube(tmp_path / "nothing.zarr")


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unpickling as older versions of numcodecs and Zarr do it."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)
    with zarr.config.set({"array.allow_unsafe_pickle_decode": True}):
        yield


def small_cube() -> xr.Dataset:
    return synthetic_cube(size=32, times=1).reset_coords(drop=True)


def pickled(path: Path, content: object, *, as_filter: bool = False) -> Path:
    """A Zarr 2 cube of which the coordinate x is unpickled."""
    small_cube().to_zarr(path, zarr_format=2, consolidated=False)
    for file in (path / "x").iterdir():
        if file.name not in (".zarray", ".zattrs"):
            file.unlink()
    codec, text = {"id": "pickle", "protocol": 5}, {"id": "vlen-utf8"}
    known = dict(zarr_format=2, shape=[32], chunks=[32], dtype="|O", fill_value="", order="C")
    known |= {"filters": [codec], "compressor": None} if as_filter else {"filters": [text], "compressor": codec}
    (path / "x" / ".zarray").write_text(json.dumps(known))
    (path / "x" / "0").write_bytes(pickle.dumps(content))
    return path


@pytest.mark.parametrize("as_filter", [False, True])
@pytest.mark.parametrize("consolidated", [False, True])
@pytest.mark.parametrize("opened", [open_cube, open_layout, check_store])
def test_a_store_that_is_unpickled_is_refused_and_runs_nothing(
    tmp_path: Path, unsafe: None, opened, consolidated: bool, as_filter: bool
) -> None:
    path = pickled(tmp_path / "cube.zarr", Touch(tmp_path / "ran"), as_filter=as_filter)
    if consolidated:
        known = {f"{d.name}/{n}": json.loads((d / n).read_text()) for d in path.iterdir() if d.is_dir()
                 for n in (".zarray", ".zattrs") if (d / n).exists()}  # fmt: skip
        text = {"zarr_consolidated_format": 1, "metadata": {".zgroup": {"zarr_format": 2}, **known}}
        (path / ".zmetadata").write_text(json.dumps(text))
    if opened is open_layout and consolidated and as_filter:
        assert opened(path) is None  # zarr itself knows no such data type
    else:
        with pytest.raises(StorageError, match="pickle"):
            opened(path)
    assert not (tmp_path / "ran").exists()


def test_the_code_of_such_a_store_would_run_elsewhere(tmp_path: Path, unsafe: None) -> None:
    path = pickled(tmp_path / "cube.zarr", Touch(tmp_path / "ran"))
    with contextlib.suppress(TypeError, ValueError):
        xr.open_zarr(path, consolidated=False)
    assert (tmp_path / "ran").exists()


def test_who_trusts_the_writer_opens_it_with_xarray(tmp_path: Path, unsafe: None) -> None:
    text = numcodecs.VLenUTF8().encode(np.array([f"{i}" for i in range(32)], dtype=object))
    path = pickled(tmp_path / "cube.zarr", np.frombuffer(text, "uint8"))
    with pytest.raises(StorageError, match=r"xarray\.open_zarr"):
        open_cube(path)
    trusted = xr.open_zarr(path, consolidated=False)
    np.testing.assert_array_equal(trusted["x"].astype(int), range(32))


@pytest.mark.parametrize("codec", ["json2", "msgpack2"])
def test_other_codecs_of_objects_are_refused(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "cube.zarr"
    small_cube().to_zarr(path, zarr_format=2, consolidated=False)
    known = json.loads((path / "B04" / ".zarray").read_text())
    (path / "B04" / ".zarray").write_text(json.dumps(known | {"filters": [{"id": codec}]}))
    with pytest.raises(StorageError, match=codec):
        open_cube(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_codec_that_is_not_installed_is_named(tmp_path: Path, zarr_format: int) -> None:
    path = tmp_path / "cube.zarr"
    small_cube().to_zarr(path, zarr_format=zarr_format, consolidated=False)
    file = path / "B04" / (".zarray" if zarr_format == 2 else "zarr.json")
    known = json.loads(file.read_text())
    if zarr_format == 2:
        known["compressor"] = {"id": "unheard_of"}
    else:
        known["codecs"] = [known["codecs"][0], {"name": "unheard_of", "configuration": {}}]
    file.write_text(json.dumps(known))
    with pytest.raises(DeoCubeError, match="unheard_of"):
        open_cube(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_cubes_are_made_of_is_read(tmp_path: Path, zarr_format: int) -> None:
    """Text coordinates, filters of numbers, shards, groups inside."""
    path = tmp_path / "cube.zarr"
    ds = small_cube().assign_coords(item=("time", np.array(["S2A_1"], dtype=object)))
    encoding: dict = {"B04": {"filters": [numcodecs.Delta("uint16")], "compressors": [numcodecs.Zstd()]}}
    if zarr_format == 3:
        encoding = {"B04": {"chunks": (1, 16, 16), "shards": (1, 32, 32)}}
    ds["B04"] = ds["B04"].astype("uint16")
    ds.to_zarr(path, zarr_format=zarr_format, consolidated=False, encoding=encoding)
    ds.to_zarr(path, group="inner", zarr_format=zarr_format, consolidated=False)
    for options in ({}, {"group": "inner"}):
        xr.testing.assert_equal(open_cube(path, **options).compute()[["B04"]], ds[["B04"]])


def test_it_is_enough_that_the_group_which_is_opened_is_safe(tmp_path: Path) -> None:
    path = tmp_path / "cube.zarr"
    small_cube().to_zarr(path, zarr_format=2, consolidated=False)
    pickled(path / "inner", 0)
    assert zarr.open_group(path, mode="r")["inner"] is not None
    open_cube(path)
    with pytest.raises(StorageError, match="pickle"):
        open_cube(path, group="inner")


def test_a_store_of_embeddings_with_an_unknown_codec_is_a_storage_error(tmp_path: Path) -> None:
    path = tmp_path / "emb.zarr"
    embed(synthetic_cube(size=64, times=1), model="tiny").deo.to_zarr(path, progress=False)
    assert open_embeddings(path).sizes["embedding"] == 192
    file = path / "embeddings" / "zarr.json"
    known = json.loads(file.read_text())
    file.write_text(json.dumps(known | {"codecs": [{"name": "unheard_of", "configuration": {}}]}))
    with pytest.raises(StoreMismatchError, match=r"embeddings/zarr\.json changed: codecs"):
        open_embeddings(path)
    assert "embeddings/zarr.json (changed: codecs)" in repr(verify_store(path))
    # A store of an earlier version has no copy of its metadata to compare with.
    (path / "progress" / "sealed.json").unlink()
    group = json.loads((path / "zarr.json").read_text())
    del group["attributes"]["deo_cube:format"]
    (path / "zarr.json").write_text(json.dumps(group))
    for verb in (open_embeddings, verify_store, status):
        with pytest.raises(StorageError, match="unheard_of"):
            verb(path)


def write_stack(path: Path, *, scales: Any = None, offsets: Any = None, nodata: Any = None) -> Path:
    """Write a VRT of four bands whose statements may differ, as of `gdalbuildvrt -separate`."""
    names = ("B02", "B03", "B04", "SCL")
    bands = []
    for i, name in enumerate(names):
        file = path.parent / f"{path.stem}_{name}.tif"
        values = np.random.default_rng(i).integers(1, 3000, (64, 64)).astype("uint16") if name != "SCL" else None
        values = np.full((64, 64), 4, "uint16") if values is None else values
        profile = {"driver": "GTiff", "height": 64, "width": 64, "count": 1, "dtype": "uint16", "crs": "EPSG:32632"}
        with rasterio.open(file, "w", **profile, transform=from_origin(500_000, 5_200_000, 10, 10)) as out:
            out.write(values, 1)
        lines = [f"<Description>{name}</Description>"]
        for tag, per_band in (("NoDataValue", nodata), ("Offset", offsets), ("Scale", scales)):
            if per_band is not None and per_band[i] is not None:
                lines.append(f"<{tag}>{per_band[i]}</{tag}>")
        source = f'<SourceFilename relativeToVRT="1">{file.name}</SourceFilename><SourceBand>1</SourceBand>'
        lines.append(f"<SimpleSource>{source}</SimpleSource>")
        bands.append(f'<VRTRasterBand dataType="UInt16" band="{i + 1}">{"".join(lines)}</VRTRasterBand>')
    path.write_text(
        '<VRTDataset rasterXSize="64" rasterYSize="64"><SRS>EPSG:32632</SRS>'
        f"<GeoTransform>500000, 10, 0, 5200000, 0, -10</GeoTransform>{''.join(bands)}</VRTDataset>"
    )
    return path


RGB = ["B04", "B03", "B02"]


def test_bands_with_different_marks_of_no_data_are_refused_and_the_advice_opens_them(tmp_path: Path) -> None:
    path = write_stack(tmp_path / "s.vrt", nodata=(0, 0, 65535, None))
    with pytest.raises(ArgumentError, match="masked=True"):
        open_cube(path)
    own = open_cube(write_stack(tmp_path / "t.vrt", nodata=(0, 0, 0, None)))
    cube = open_cube(path, masked=True)
    emb = cube.deo.embed(bands=RGB, units="dn", offset=0)
    np.testing.assert_array_equal(emb, own.deo.embed(bands=RGB, offset=0))


@pytest.mark.parametrize(
    ("scales", "offsets", "add"),
    [
        ((1e-4, 1e-4, 1e-4, 1), (-0.1, -0.1, -0.1, 0), -1000),
        ((1e-4, 1e-4, 1e-4, 1), None, 0),
        ((1e-4, 1e-4, 1e-4, 1), (-0.1, 0, 0, 0), None),
        ((1e-4, 2e-4, 1e-4, 1), None, None),
    ],
)
def test_scales_per_band_are_those_of_the_bands_that_are_read(
    tmp_path: Path, scales: Any, offsets: Any, add: int | None
) -> None:
    cube = open_cube(write_stack(tmp_path / "s.vrt", scales=scales, offsets=offsets))
    if add is None:
        with pytest.raises(AmbiguousUnitsError, match="units="):
            cube.deo.embed(bands=RGB)
        assert cube.deo.embed(bands=RGB, units="dn", offset=0).sizes["y"]
        return
    found = json.loads(cube.deo.embed(bands=RGB).attrs["deo_cube:radiometry"])
    assert (found["add"], found["scale"], found["units"]) == (add, 1.0, "dn")
