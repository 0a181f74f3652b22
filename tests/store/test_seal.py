"""Metadata that were changed or damaged are found on opening, named, and restored by the call that made the store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from deo_cube.embedding.embed import embed
from deo_cube.errors import StoreMismatchError
from deo_cube.store import create, storage
from deo_cube.store.open import open_embeddings, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.store.test_write import tree

SMALL: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}


def emb_of(**changes: Any) -> xr.DataArray:
    return embed(cube_at((60, 60), **changes), **SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished store, made once; copied by the tests."""
    from deo_cube.encoder.registry import register_encoder
    from deo_cube.testing import means, means_card

    register_encoder(means_card(), lambda: means)
    return tmp_path_factory.mktemp("seal") / "e.zarr"


@pytest.fixture
def stored(whole: Path, tmp_path: Path) -> Path:
    if not whole.exists():
        to_zarr(emb_of(), whole, progress=False)
    return Path(shutil.copytree(whole, tmp_path / "e.zarr"))


def edit(file: Path, *keys: str, value: Any) -> None:
    document = json.loads(file.read_text())
    at = document
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    file.write_text(json.dumps(document))


CHANGES: dict[str, tuple[str, tuple[str, ...], Any]] = {
    "transform": ("zarr.json", ("attributes", "spatial:transform"), [40, 0, 0, 0, -40, 0]),
    "window": ("zarr.json", ("attributes", "deo_cube:window"), [0, 0, 2, 2]),
    "window's transform": ("zarr.json", ("attributes", "deo_cube:window_transform"), [40, 0, 0, 0, -40, 0]),
    "model": ("zarr.json", ("attributes", "deo_cube:model"), "another.v1"),
    "radiometry": ("zarr.json", ("attributes", "deo_cube:radiometry"), "{}"),
    "coordinates": ("embeddings/zarr.json", ("attributes", "coordinates"), "time"),
    "fill value": ("embeddings/zarr.json", ("fill_value",), 0.0),
    "CRS": ("spatial_ref/zarr.json", ("attributes", "crs_wkt"), "EPSG:4326"),
    "unit of time": ("time/zarr.json", ("attributes", "units"), "days since 2000-01-01"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_attribute_does_not_open_as_if_right(stored: Path, whole: Path, change: str) -> None:
    name, keys, value = CHANGES[change]
    edit(stored / name, *keys, value=value)
    key = keys[-1] if keys[0] == "attributes" else keys[0]
    with pytest.raises(StoreMismatchError, match=f"{name} changed: {key}.*repair=True"):
        open_embeddings(stored)
    found = verify_store(stored)
    assert not found.complete
    assert name in repr(found)
    # What the message says: repair restores it, and the call that made the store completes it.
    assert verify_store(stored, repair=True).repaired
    np.testing.assert_array_equal(open_embeddings(stored).values, open_embeddings(whole).values)
    to_zarr(emb_of(), stored, progress=False)
    assert tree(stored) == tree(whole)


@pytest.mark.parametrize("change", ["transform", "fill value", "unit of time"])
def test_the_call_that_made_the_store_restores_it_too(stored: Path, whole: Path, change: str) -> None:
    name, keys, value = CHANGES[change]
    edit(stored / name, *keys, value=value)
    to_zarr(emb_of(), stored, progress=False)
    assert tree(stored) == tree(whole)


def test_attributes_that_somebody_adds_are_left_alone(stored: Path) -> None:
    root = zarr.open_group(stored, mode="r+", use_consolidated=False)
    root.attrs["project"] = "mine"
    root["embeddings"].attrs["note"] = "checked by hand"
    assert open_embeddings(stored).attrs["note"] == "checked by hand"
    assert verify_store(stored).complete
    to_zarr(emb_of(), stored, progress=False)
    assert zarr.open_group(stored, use_consolidated=False).attrs["project"] == "mine"


def test_consolidated_metadata_that_say_something_else_are_found(stored: Path, whole: Path) -> None:
    edit(
        stored / "zarr.json",
        "consolidated_metadata",
        "metadata",
        "embeddings",
        "attributes",
        "coordinates",
        value="time",
    )
    found = verify_store(stored)
    assert "consolidated metadata of embeddings" in repr(found)
    assert verify_store(stored, repair=True).repaired
    to_zarr(emb_of(), stored, progress=False)
    assert tree(stored) == tree(whole)


def metadata_of(path: Path) -> list[str]:
    names = (p.relative_to(path) for p in sorted(path.rglob("*")) if p.is_file())
    return [str(n) for n in names if n.parts[0] not in ("embeddings", "valid", "progress") or n.parts[1] != "c"]


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_whatever_is_damaged_is_named_and_the_same_call_restores_every_byte(
    stored: Path, whole: Path, how: str
) -> None:
    for i, name in enumerate(metadata_of(whole)):
        file = stored / name
        if how == "gone":
            file.unlink()
        else:
            # As a loss of power leaves a file: empty, or as long as it was and of zeros.
            file.write_bytes(bytes(file.stat().st_size * (i % 2)))
        if not name.startswith("progress/crc32"):
            with pytest.raises(StoreMismatchError, match=name):
                open_embeddings(stored)
        found = verify_store(stored) if name != "zarr.json" or how == "gone" else None
        assert found is None or not found.complete, name
        to_zarr(emb_of(), stored, progress=False)
        assert tree(stored) == tree(whole), name


def test_a_store_whose_shards_are_gone_does_not_end_complete_without_them(stored: Path, whole: Path) -> None:
    for interrupted in (True, False):
        if interrupted:
            create.restart(storage.store_at(str(stored)))
        for shard in ("embeddings/c/1/0/0/1", "valid/c/0/1/0"):
            (stored / shard).unlink()
        to_zarr(emb_of(), stored, progress=False)
        assert tree(stored) == tree(whole)


def test_blocks_without_data_have_no_shards_and_are_not_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cube = cube_at((60, 60), row=0, col=0)
    for band in cube.data_vars:
        cube[band].values[:, :48] = 0
    emb = embed(cube, **SMALL)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    assert not (tmp_path / "e.zarr" / "valid" / "c" / "0" / "0").exists()
    create.restart(storage.store_at(str(tmp_path / "e.zarr")))
    from deo_cube.store import write

    def never(job: Any) -> None:
        raise AssertionError("a block was done again")

    monkeypatch.setattr(write, "run_job", never)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    assert verify_store(tmp_path / "e.zarr").complete


def test_two_damaged_objects_are_restored_as_well_unless_nothing_says_whose_they_were(
    stored: Path, whole: Path
) -> None:
    (stored / "embeddings" / "zarr.json").write_bytes(b"")
    (stored / "progress" / "sealed.json").write_bytes(b"")
    to_zarr(emb_of(), stored, progress=False)
    assert tree(stored) == tree(whole)
    (stored / "zarr.json").write_bytes(b"")
    (stored / "progress" / "sealed.json").write_bytes(b"")
    for overwrite in (False, True):
        with pytest.raises(StoreMismatchError, match=r"zarr\.json"):
            to_zarr(emb_of(), stored, progress=False, overwrite=overwrite)


def test_a_damaged_store_of_another_call_is_not_taken_over(stored: Path) -> None:
    (stored / "zarr.json").write_bytes(b"")
    with pytest.raises(StoreMismatchError, match=r"zarr\.json is damaged"):
        to_zarr(embed(cube_at((60, 60)), **(SMALL | {"halo": 8})), stored, progress=False)
    other = embed(cube_at((60, 60)), **(SMALL | {"halo": 8}))
    got = to_zarr(other, stored, progress=False, overwrite=True)
    xr.testing.assert_equal(got.compute(), other.compute())


def test_an_object_store_that_lost_metadata_gets_them_back_before_it_is_called_complete() -> None:
    store = zarr.storage.MemoryStore()
    to_zarr(emb_of(), store, progress=False)
    before = dict(storage.contents(store))
    create.restart(store)
    storage.delete(store, "time/zarr.json")
    storage.delete(store, "progress/crc32/c/0/0/0")
    to_zarr(emb_of(), store, progress=False)
    assert dict(storage.contents(store)) == before


def test_the_seal_finds_what_was_done_to_itself(stored: Path) -> None:
    edit(stored / "progress" / "sealed.json", "objects", "x/c/0", value="0" * 64)
    assert create.read_seal(storage.store_at(str(stored))) is None
    with pytest.raises(StoreMismatchError, match="sealed.json"):
        open_embeddings(stored)
