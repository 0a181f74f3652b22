from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path

import numcodecs
import numpy as np
import pytest
import xarray as xr
import zarr

from deo_cube.cube.open import check_store, open_cube
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.embedding.embed import embed
from deo_cube.errors import DeoCubeError, StorageError, StoreMismatchError
from deo_cube.store.open import open_embeddings, status, verify_store
from deo_cube.store.products import open_layout


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.fixture
def unsafe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpickling as older versions of numcodecs do it."""
    monkeypatch.setattr(numcodecs.pickles, "ALLOW_UNSAFE_PICKLE_DECODE", True)


def cube() -> xr.Dataset:
    return synthetic_cube(size=32, times=1).reset_coords(drop=True)


def pickled(path: Path, content: object, *, as_filter: bool = False) -> Path:
    """A Zarr 2 cube of which the coordinate x is unpickled."""
    cube().to_zarr(path, zarr_format=2, consolidated=False)
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
    cube().to_zarr(path, zarr_format=2, consolidated=False)
    known = json.loads((path / "B04" / ".zarray").read_text())
    (path / "B04" / ".zarray").write_text(json.dumps(known | {"filters": [{"id": codec}]}))
    with pytest.raises(StorageError, match=codec):
        open_cube(path)


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_codec_that_is_not_installed_is_named(tmp_path: Path, zarr_format: int) -> None:
    path = tmp_path / "cube.zarr"
    cube().to_zarr(path, zarr_format=zarr_format, consolidated=False)
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
    ds = cube().assign_coords(item=("time", np.array(["S2A_1"], dtype=object)))
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
    cube().to_zarr(path, zarr_format=2, consolidated=False)
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
