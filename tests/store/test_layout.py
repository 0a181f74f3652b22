"""Shards are blocks, records vouch for whole shards, foreign stores are refused, the map survives."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.constants import MODEL_BANDS
from deo_cube.cube import georeference
from deo_cube.embedding.embed import embed
from deo_cube.errors import StoreMismatchError
from deo_cube.store import create
from deo_cube.store.layout import Layout
from deo_cube.store.open import open_embeddings, status, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at

SMALL = {"model": "means", "dtype": "float32", "block": 48}


def write(emb: xr.DataArray, path: Path, **options: object) -> xr.DataArray:
    return to_zarr(emb, path, progress=False, **options)


@given(
    st.integers(1, 20).flatmap(
        lambda s: st.tuples(st.integers(1, s), st.integers(0, 5), st.integers(1, s)).map(
            lambda t: (t[0], *(s,) * t[1], t[2]) if t[1] else (t[0],)
        )
    )
)
def test_no_two_blocks_share_a_shard_and_together_they_fill_the_store(sizes: tuple[int, ...]) -> None:
    layout = Layout.of(("embedding", "y", "x"), ((7,), sizes, (4,)))
    seen = np.zeros(layout.shape[0], int)
    for i in range(len(sizes)):
        rows, _ = layout.region((0, i, 0))
        assert rows.stop - rows.start == sizes[i]
        seen[rows] += 1
        assert {r // layout.shard[0] for r in range(rows.start, rows.stop)} == {i}
    assert (seen[layout.lead[0] :] == 1).all()
    assert layout.lead[0] < layout.shard[0]


def test_irregular_chunks_are_refused_with_the_call_that_mends_them() -> None:
    with pytest.raises(StoreMismatchError, match=r"irregular.*emb.chunk\(\{'y': 8\}\)"):
        Layout.of(("embedding", "y", "x"), ((7,), (8, 3, 8, 8), (4,)))


@pytest.mark.parametrize(("row", "col"), [(0, 0), (7, 11), (-30, 47)])
@pytest.mark.parametrize("south_up", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_what_is_written_is_what_was_embedded(tmp_path: Path, row: int, col: int, south_up: bool, dtype: str) -> None:
    emb = embed(cube_at((100, 120), row=row, col=col, south_up=south_up), **(SMALL | {"dtype": dtype}))
    got = write(emb, tmp_path / "e.zarr")
    xr.testing.assert_equal(emb.compute(), got.compute())
    assert got.dims == emb.dims
    assert got.dtype == emb.dtype
    a, b = (georeference.geobox(e.isel(embedding=0, drop=True)) for e in (emb, got))
    assert a == b
    assert got.rio.transform() == emb.rio.transform()
    assert verify_store(tmp_path / "e.zarr").complete


def test_without_time_and_in_int8(tmp_path: Path) -> None:
    emb = embed(cube_at((60, 60), times=None), model="means", dtype="int8", block=24)
    got = write(emb, tmp_path / "e.zarr").compute()
    raw = emb.compute()
    np.testing.assert_allclose(got.values, raw.values * raw.attrs["scale_factor"], rtol=1e-6)
    assert xr.open_zarr(tmp_path / "e.zarr", consolidated=False)["embeddings"].dtype.kind == "f"
    assert zarr.open_group(tmp_path / "e.zarr")["embeddings"].dtype == "int8"


def test_invalid_patches_of_an_int8_store_read_as_nan(tmp_path: Path) -> None:
    cube = cube_at((48, 48), times=1, row=0, col=0)
    for b in list(cube.data_vars):
        cube[b].values[:, :8, :8] = 0
    got = write(embed(cube, model="means", dtype="int8"), tmp_path / "e.zarr").compute()
    assert np.isnan(got.values[0, :, :2, :2]).all()
    assert np.isfinite(got.values[0, :, 2:, 2:]).all()


def test_plain_xarray_finds_the_same_vectors_at_the_same_places(tmp_path: Path) -> None:
    emb = embed(cube_at((100, 120), row=7, col=11), **SMALL)
    write(emb, tmp_path / "e.zarr")
    plain = xr.open_zarr(tmp_path / "e.zarr", consolidated=False)
    assert "valid" in plain.coords
    there = plain["embeddings"].sel(x=emb.x, y=emb.y, method="nearest", tolerance=1e-6)
    np.testing.assert_array_equal(there.values, emb.values)
    # The margin, if any, holds nothing.
    outside = plain["valid"].where(~(plain.x.isin(there.x) & plain.y.isin(there.y)), 0)
    assert float(outside.sum()) == 0


def test_one_block_is_one_shard_object_and_one_record_entry(tmp_path: Path) -> None:
    emb = embed(cube_at((100, 120), row=7, col=11), **SMALL)
    write(emb, tmp_path / "e.zarr")
    blocks = emb.data.npartitions
    for array in ("embeddings", "valid", "progress/crc32"):
        objects = [p for p in (tmp_path / "e.zarr" / array / "c").rglob("*") if p.is_file()]
        assert len(objects) == blocks, array


def test_a_shard_is_written_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from zarr.storage import LocalStore

    reads: list[str] = []
    get = LocalStore.get

    async def counted(self: LocalStore, key: str, *args: object, **kwargs: object) -> object:
        found = await get(self, key, *args, **kwargs)
        if "/c/" in key and not key.startswith("progress") and found is not None:
            reads.append(key)
        return found

    emb = embed(cube_at((100, 120), row=7, col=11), **SMALL)
    monkeypatch.setattr(LocalStore, "get", counted)
    store_path = tmp_path / "e.zarr"
    layout = Layout.of(tuple(emb.dims), emb.chunks)
    writer = create.create(emb, store_path, layout, resume=True, overwrite=False).target.open()
    reads.clear()
    values, valid = emb.values, emb.valid.values
    starts = [np.cumsum([0, *c]) for c in layout.chunks]
    for t, r, c in product(*map(range, layout.blocks)):
        rows, columns = slice(starts[1][r], starts[1][r + 1]), slice(starts[2][c], starts[2][c + 1])
        writer.write((t, r, c), values[t, :, rows, columns], [valid[t, rows, columns]], None)
    assert reads == []
    assert verify_store(store_path).complete


def test_conventions_and_provenance_stand_on_the_group(tmp_path: Path) -> None:
    emb = embed(cube_at((100, 120), row=7, col=11), **SMALL)
    write(emb, tmp_path / "e.zarr")
    attrs = json.loads((tmp_path / "e.zarr" / "zarr.json").read_text())["attributes"]
    assert {c["name"] for c in attrs["zarr_conventions"]} == {"spatial", "proj", "geoemb:"}
    assert attrs["proj:code"] == "EPSG:32633"
    a, _, x0, _, e, y0 = attrs["spatial:transform"]
    plain = xr.open_zarr(tmp_path / "e.zarr", consolidated=False)
    assert (a, e) == (40, -40)
    assert (x0 + 20, y0 - 20) == (float(plain.x[0]), float(plain.y[0]))  # the corner, not the centre
    assert attrs["spatial:shape"] == [plain.sizes["y"], plain.sizes["x"]]
    assert attrs["geoemb:dimensions"] == 20
    assert attrs["deo_cube:weights_status"] == "untrained"
    assert "deo_cube:radiometry" in attrs


def test_a_store_begun_with_anything_else_is_refused_and_the_fields_are_listed(tmp_path: Path) -> None:
    write(embed(cube_at((60, 60)), **SMALL), tmp_path / "e.zarr")
    for other, field in (
        (embed(cube_at((60, 60)), **(SMALL | {"halo": 8})), "plan"),
        (embed(cube_at((60, 60)), **(SMALL | {"dtype": "float16"})), "dtype"),
        (embed(cube_at((60, 60), row=8), **SMALL), "coordinate y"),
        (embed(cube_at((60, 60)), model="tiny", dtype="float32"), "model_fingerprint"),
        (embed(cube_at((60, 60)), offset=-1000, **SMALL), "radiometry"),
    ):
        with pytest.raises(StoreMismatchError, match=f"(?s){field}.*overwrite=True"):
            write(other, tmp_path / "e.zarr")
    assert verify_store(tmp_path / "e.zarr").complete


def test_overwrite_and_resume_mean_what_they_say(tmp_path: Path) -> None:
    emb = embed(cube_at((60, 60)), **SMALL)
    write(emb, tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError, match="resume=True"):
        write(emb, tmp_path / "e.zarr", resume=False)
    other = embed(cube_at((60, 60), seed=1), **(SMALL | {"halo": 8}))
    xr.testing.assert_equal(write(other, tmp_path / "e.zarr", overwrite=True).compute(), other.compute())


def test_a_store_is_not_gone_on_with_in_other_blocks(tmp_path: Path) -> None:
    emb = embed(cube_at((100, 120)), **SMALL)
    write(emb, tmp_path / "e.zarr")
    # Nothing is left to write, so the blocks do not matter.
    for other in (emb.compute(), emb.chunk(y=7, x=9)):
        xr.testing.assert_equal(write(other, tmp_path / "e.zarr").compute(), emb.compute())
    place = str(tmp_path / "e.zarr")
    create.record_of(place, create.attributes(place)).forget((1, 0, 1))
    for other in (emb.compute(), emb.chunk(y=7, x=9)):
        with pytest.raises(StoreMismatchError, match="(?s)other blocks.*emb.chunk.*overwrite=True"):
            write(other, tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError) as told:
        write(emb.compute(), tmp_path / "e.zarr")
    call = str(told.value).split("alike, ")[1].split("), or pass")[0] + ")"
    xr.testing.assert_equal(write(eval(call, {"emb": emb.compute()}), tmp_path / "e.zarr").compute(), emb.compute())
    assert verify_store(tmp_path / "e.zarr").complete


def test_a_store_is_not_overwritten_with_what_is_read_from_it(tmp_path: Path) -> None:
    stored = write(embed(cube_at((60, 60)), **SMALL), tmp_path / "e.zarr")
    for emb in (stored, stored.isel(time=[1]), (stored * 2).assign_attrs(stored.attrs)):
        with pytest.raises(StoreMismatchError, match=r"read from.*emb.compute\(\)"):
            write(emb, tmp_path / "e.zarr", overwrite=True)
    copied = write(stored, tmp_path / "copy.zarr", overwrite=True)
    xr.testing.assert_equal(copied.compute(), stored.compute())
    half = stored.isel(time=[1]).compute()
    xr.testing.assert_equal(write(half, tmp_path / "e.zarr", overwrite=True).compute(), half)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("deo_cube:composite", ("median of 3 dates", "first of 3 dates")),
        ("deo_cube:mask_clouds", ("pixels of SCL 3 set to nodata", None)),
        ("source", ("drawn with seed 0", "drawn with seed 1")),
        ("item_ids", ("S2A_1 S2A_2", "S2A_1 S2A_3")),
    ],
)
def test_another_cube_of_the_same_place_and_time_is_refused(
    tmp_path: Path, name: str, values: tuple[str, str | None]
) -> None:
    def cube(value: str | None) -> xr.Dataset:
        made = cube_at((40, 40), times=1).assign_attrs({"deo_cube:synthetic": 1})
        if name == "item_ids":
            return made.assign_coords(item_ids=("time", [value]))
        return made if value is None else made.assign_attrs({name: value})

    write(embed(cube(values[0]), **SMALL), tmp_path / "e.zarr")
    write(embed(cube(values[0]), **SMALL), tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError, match="begun with something else"):
        write(embed(cube(values[1]), **SMALL), tmp_path / "e.zarr")
    if name == "item_ids":
        write(embed(cube("S2A_2 S2A_1"), **SMALL), tmp_path / "e.zarr")


def test_looking_at_an_empty_folder_leaves_it_and_a_store_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "e.zarr").mkdir()
    with pytest.raises(StoreMismatchError, match="empty folder"):
        verify_store(tmp_path / "e.zarr")
    assert (tmp_path / "e.zarr").is_dir()
    assert write(embed(cube_at((40, 40)), **SMALL), tmp_path / "e.zarr").shape == (2, 20, 11, 11)


def test_a_file_url_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    write(embed(cube_at((40, 40)), **SMALL), (tmp_path / "a b" / "e.zarr").as_uri())
    assert verify_store(tmp_path / "a b" / "e.zarr").complete


def test_what_deo_cube_did_not_make_is_neither_resumed_nor_overwritten(tmp_path: Path) -> None:
    emb = embed(cube_at((60, 60)), **SMALL)
    (tmp_path / "notes.zarr").mkdir()
    (tmp_path / "notes.zarr" / "mine.txt").write_text("keep")
    xr.Dataset({"a": ("x", [1, 2])}).to_zarr(tmp_path / "theirs.zarr", zarr_format=3, consolidated=False)
    for name, overwrite in product(("notes.zarr", "theirs.zarr"), (False, True)):
        with pytest.raises(StoreMismatchError, match="not a Zarr 3 group|not made by deo_cube"):
            write(emb, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "notes.zarr" / "mine.txt").read_text() == "keep"
    with pytest.raises(StoreMismatchError, match="not made by deo_cube"):
        open_embeddings(tmp_path / "theirs.zarr")
    with pytest.raises(StoreMismatchError, match="does not exist"):
        open_embeddings(tmp_path / "nowhere.zarr")


def test_a_store_with_blocks_missing_says_so(tmp_path: Path) -> None:
    emb = embed(cube_at((60, 60)), **SMALL)
    layout = Layout.of(tuple(emb.dims), emb.chunks)
    create.create(emb, tmp_path / "e.zarr", layout, resume=True, overwrite=False)
    with pytest.warns(UserWarning, match=r"not complete: 0 of \d+ blocks"):
        assert open_embeddings(tmp_path / "e.zarr").isnull().all()
    assert not status(tmp_path / "e.zarr").complete


def test_verify_finds_a_damaged_shard_and_a_lost_one(tmp_path: Path) -> None:
    emb = embed(cube_at((100, 100), times=1, row=0, col=0), **SMALL)
    write(emb, tmp_path / "e.zarr")
    shards = sorted(p for p in (tmp_path / "e.zarr" / "embeddings" / "c").rglob("*") if p.is_file())
    data = bytearray(shards[0].read_bytes())
    data[len(data) // 3] ^= 0xFF
    shards[0].write_bytes(data)
    shards[1].unlink()
    found = verify_store(tmp_path / "e.zarr")
    assert found.damaged == ((0, 0, 0), (0, 0, 1))
    assert not found.complete
    assert "DAMAGED" in repr(found)


@pytest.mark.parametrize(("array", "times"), [("embeddings", 2), ("valid", 2), ("embeddings", None)])
def test_a_complete_store_that_lost_shards_says_so_and_the_advice_restores_them(
    tmp_path: Path, array: str, times: int | None, recwarn: pytest.WarningsRecorder
) -> None:
    cube = cube_at((100, 100), times=times, row=0, col=0).compute()
    for band in MODEL_BANDS:  # blocks without data have no shards, and have lost none
        cube[band][..., :60, :60] = 0
    emb = embed(cube.chunk(y=50, x=50), **SMALL)
    stored = write(emb, tmp_path / "e.zarr").compute()
    xr.testing.assert_identical(open_embeddings(tmp_path / "e.zarr").compute(), stored)
    assert not [w for w in recwarn if "shards" in str(w.message)]
    shards = sorted(p for p in (tmp_path / "e.zarr" / array / "c").rglob("*") if p.is_file())
    assert len(shards) < status(tmp_path / "e.zarr").blocks
    shards[-1].unlink()
    with pytest.warns(UserWarning, match="shards of at least 1 "):
        open_embeddings(tmp_path / "e.zarr")
    assert verify_store(tmp_path / "e.zarr", repair=True).repaired
    xr.testing.assert_identical(write(emb, tmp_path / "e.zarr").compute(), stored)


def test_reopened_embeddings_know_what_made_them(tmp_path: Path) -> None:
    got = write(embed(cube_at((60, 60)), **SMALL), tmp_path / "e.zarr")
    assert got.attrs["deo_cube:model"] == "test_means.v1"
    assert "test_means.v1" in repr(got.deo)
    assert deo_cube.open_embeddings(str(tmp_path / "e.zarr")).identical(got)


def test_what_an_undone_block_left_behind_is_replaced_even_where_it_cannot_be_read(tmp_path: Path) -> None:
    emb = embed(cube_at((60, 60), times=1, row=0, col=0), **SMALL)
    layout = Layout.of(tuple(emb.dims), emb.chunks)
    create.create(emb, tmp_path / "e.zarr", layout, resume=True, overwrite=False)
    for array, at in (("embeddings", "0/0/0/0"), ("valid", "0/0/0")):
        shard = tmp_path / "e.zarr" / array / "c" / at
        shard.parent.mkdir(parents=True)
        shard.write_bytes(b"half a shard")
    got = write(emb, tmp_path / "e.zarr")
    xr.testing.assert_equal(got.compute(), emb.compute())
    assert verify_store(tmp_path / "e.zarr").complete
