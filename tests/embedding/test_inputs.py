"""A store is resumed only from the inputs it was begun from: pixels, SCL, mask, and what is computed on the way."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from deo_cube.embedding import block, process, tasks
from deo_cube.embedding.embed import embed
from deo_cube.embedding.windows import BlockIndex
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.store import create, storage
from deo_cube.store import write as writer
from deo_cube.store.open import open_embeddings, status, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.store.test_write import tree

SMALL: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}
#: Of two by two blocks per date.
SHAPE = (52, 60)


def cube_of(**changes: Any) -> xr.Dataset:
    return cube_at(SHAPE, **changes)


def write(emb: xr.DataArray, path: Path, **options: Any) -> xr.DataArray:
    return to_zarr(emb, path, progress=False, **options)


def same(a: xr.DataArray, b: xr.DataArray) -> bool:
    a, b = a.compute(), b.compute()  # each once, with `valid`
    alike = np.array_equal(a.values, b.values, equal_nan=True)
    return bool(alike and ("valid" not in b.coords or np.array_equal(a.valid, b.valid)))


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[BlockIndex]:
    """The blocks that an encoder ran for, as they run."""
    seen: list[BlockIndex] = []
    call = block.EmbedBlock.__call__

    def counted(self: Any, index: BlockIndex, windows: Any) -> Any:
        seen.append(index)
        return call(self, index, windows)

    monkeypatch.setattr(block.EmbedBlock, "__call__", counted)
    return seen


def corner() -> xr.DataArray:
    """A mask of the first rows and columns."""
    mask = xr.DataArray(np.zeros(SHAPE, bool), dims=("y", "x"))
    mask[:4, :4] = True
    return mask


def with_scl(cube: xr.Dataset, scl: int) -> xr.Dataset:
    return cube.assign(SCL=(("time", "y", "x"), np.full((2, *SHAPE), scl, "uint8")))


def emb_of(**changes: Any) -> xr.DataArray:
    return embed(cube_of(**changes), **SMALL)


CHANGES: dict[str, Callable[[], tuple[xr.DataArray, xr.DataArray]]] = {
    "pixels": lambda: (emb_of(), emb_of(seed=1)),
    "mask": lambda: (embed(cube_of(), mask=corner() & False, **SMALL), embed(cube_of(), mask=corner(), **SMALL)),
    "SCL": lambda: (embed(with_scl(cube_of(), 4), **SMALL), embed(with_scl(cube_of(), 9), **SMALL)),
    "date": lambda: (embed(cube_of().isel(time=0), **SMALL), embed(cube_of().isel(time=1), **SMALL)),
    "date without a coordinate": lambda: (
        embed(cube_of().isel(time=0, drop=True), **SMALL),
        embed(cube_of().isel(time=1, drop=True), **SMALL),
    ),
    "season of a median": lambda: (
        embed(cube_of().isel(time=[0]).median("time", keep_attrs=True), units="dn", offset=0, **SMALL),
        embed(cube_of().isel(time=[1]).median("time", keep_attrs=True), units="dn", offset=0, **SMALL),
    ),
    "factor": lambda: (2 * emb_of(), 3 * emb_of()),
    "product": lambda: (emb_of(), 2 * emb_of()),
    "summand": lambda: (emb_of() + 1, emb_of() + 2),
    "condition": lambda: (emb_of().where(emb_of().valid > 2), emb_of().where(emb_of().valid >= 0)),
    "fill": lambda: (emb_of().fillna(0), emb_of().fillna(1)),
    "part of the dimensions": lambda: (emb_of()[:, :5], emb_of()[:, 5:10]),
    "order of the dimensions": lambda: (emb_of(), emb_of()[:, ::-1]),
    "dates of a mean": lambda: (
        emb_of().isel(time=[0]).mean("time", keep_attrs=True),
        emb_of().isel(time=[1]).mean("time", keep_attrs=True),
    ),
    "values in memory": lambda: (emb_of().compute(), emb_of().compute() * 2),
    "values in memory, lazily": lambda: (emb_of(), emb_of().compute() * 2),
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_inputs_are_refused_and_changed_does_them_again(tmp_path: Path, change: str) -> None:
    first, second = CHANGES[change]()
    write(first, tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError) as refused:
        write(second, tmp_path / "e.zarr")
    assert same(open_embeddings(tmp_path / "e.zarr"), first)  # untouched, and complete
    expected = second.compute()
    if "resume='changed'" in str(refused.value):
        assert same(write(second, tmp_path / "e.zarr", resume="changed"), expected)
        assert verify_store(tmp_path / "e.zarr").complete
    assert same(write(second, tmp_path / "e.zarr", overwrite=True), expected)
    assert same(write(second, tmp_path / "e.zarr"), expected)


@pytest.mark.parametrize("again", ["chunks", "device", "batch", "another file", "memory", "blocks", "sum of nothing"])
def test_the_same_inputs_are_accepted_without_encoding(
    tmp_path: Path, again: str, encoded: list[BlockIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = emb_of()
    write(emb, tmp_path / "e.zarr")
    cube_of().to_zarr(tmp_path / "copy.zarr", zarr_format=3, consolidated=False)
    other = {
        "chunks": lambda: embed(cube_of(chunks={"time": 2, "y": 17, "x": 50}), **SMALL),
        "device": lambda: embed(cube_of(), device="cpu", **SMALL),
        "batch": lambda: embed(cube_of(), batch_size=1, **SMALL),
        "another file": lambda: embed(
            xr.open_zarr(tmp_path / "copy.zarr", consolidated=False, mask_and_scale=False), **SMALL
        ),
        "memory": lambda: emb.compute(),
        "blocks": lambda: emb.chunk(y=7, x=9),
        "sum of nothing": lambda: (
            emb.chunk(x=-1).transpose("embedding", ...).transpose(*emb.dims).chunk(emb.chunksizes)
        ),
    }[again]()
    encoded.clear()
    got = write(other, tmp_path / "e.zarr")
    assert encoded == []
    assert same(got, emb)


UNDATED: dict[str, Callable[..., xr.DataArray]] = {
    "a date of embeddings": lambda **changes: emb_of(**changes).isel(time=1),
    "embeddings of a date": lambda **changes: embed(cube_of(**changes).isel(time=1), **SMALL),
    "a cube without dates": lambda **changes: embed(cube_of(**changes).isel(time=1, drop=True), **SMALL),
}


@pytest.mark.parametrize("array", UNDATED)
def test_a_block_without_its_axis_of_time_is_not_computed_from_embeddings(
    tmp_path: Path, array: str, encoded: list[BlockIndex], monkeypatch: pytest.MonkeyPatch
) -> None:
    emb, stand_ins = UNDATED[array](), []
    make = block.stand_in

    def counted(*args: Any) -> Any:
        stand_ins.append(args)
        return make(*args)

    monkeypatch.setattr(block, "stand_in", counted)
    write(emb, tmp_path / "e.zarr")
    assert len(encoded) == 4
    write(emb, tmp_path / "e.zarr")
    assert (len(encoded), stand_ins) == (4, [])
    # Computed from, or cut up otherwise, it is compared by stand-ins.
    assert same(write(emb.chunk(y=7, x=9), tmp_path / "e.zarr"), emb)
    assert stand_ins
    with pytest.raises(StoreMismatchError):
        write(2 * emb, tmp_path / "e.zarr")
    assert len(encoded) == 4 + 4  # what `same` computed


@pytest.mark.parametrize("array", UNDATED)
def test_a_store_without_dates_of_an_earlier_version_is_resumed(
    tmp_path: Path, array: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = writer.compute_block
    monkeypatch.setattr(
        writer, "compute_block", lambda *args, **options: compute(*args, **options | {"undated": False})
    )
    emb = UNDATED[array]()
    write(emb, tmp_path / "e.zarr")
    before = tree(tmp_path / "e.zarr")
    monkeypatch.setattr(writer, "compute_block", compute)
    write(emb, tmp_path / "other.zarr")
    assert tree(tmp_path / "other.zarr") != before
    write(emb, tmp_path / "e.zarr")
    assert tree(tmp_path / "e.zarr") == before
    with pytest.raises(StoreMismatchError, match="4 of 4"):
        write(UNDATED[array](seed=1), tmp_path / "e.zarr")


def test_changed_does_exactly_the_blocks_whose_inputs_changed(tmp_path: Path, encoded: list[BlockIndex]) -> None:
    none = corner() & False
    write(embed(cube_of(), mask=none, **SMALL), tmp_path / "e.zarr")
    second = embed(cube_of(), mask=corner(), **SMALL)
    with pytest.raises(StoreMismatchError, match="2 of 8 finished blocks"):
        write(second, tmp_path / "e.zarr")
    encoded.clear()
    got = write(second, tmp_path / "e.zarr", resume="changed")
    assert {(b.time, b.row, b.column) for b in encoded} == {(0, 0, 0), (1, 0, 0)}
    assert same(got, second)
    # The store is that of a run that never knew the other mask.
    write(second, tmp_path / "whole.zarr")
    assert tree(tmp_path / "e.zarr") == tree(tmp_path / "whole.zarr")


def test_an_interrupted_run_is_not_finished_from_other_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deo_cube.store import write as module

    run, done = module.run_job, [0]

    def dies(job: Any) -> None:
        if done[0] == 7:
            raise OSError("the machine is gone")
        done[0] += 1
        run(job)

    monkeypatch.setattr(module, "run_job", dies)
    with pytest.raises(OSError, match="gone"):
        write(emb_of(), tmp_path / "e.zarr", scheduler="synchronous")
    monkeypatch.setattr(module, "run_job", run)
    with pytest.raises(StoreMismatchError, match="7 of 7 finished blocks"):
        write(emb_of(seed=1), tmp_path / "e.zarr")
    assert status(tmp_path / "e.zarr").done == 7
    assert same(write(emb_of(), tmp_path / "e.zarr"), emb_of())


def test_unchecked_takes_the_callers_word(tmp_path: Path) -> None:
    write(emb_of(), tmp_path / "e.zarr")
    assert same(write(emb_of(seed=1), tmp_path / "e.zarr", resume="unchecked"), emb_of())
    with pytest.raises(ArgumentError, match="resume"):
        write(emb_of(), tmp_path / "e.zarr", resume="always")


def test_a_store_is_not_changed_from_what_is_read_from_it(tmp_path: Path) -> None:
    stored = write(emb_of(), tmp_path / "e.zarr")
    assert same(write(stored, tmp_path / "e.zarr"), stored)
    with pytest.raises(StoreMismatchError, match="resume='changed'"):
        write(stored * 2, tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError, match=r"read from.*emb.compute\(\)"):
        write(stored * 2, tmp_path / "e.zarr", resume="changed")
    doubled = (stored * 2).compute()
    assert same(write(doubled, tmp_path / "e.zarr", resume="changed"), doubled)


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", pytest.param("processes", marks=pytest.mark.slow)])
def test_every_scheduler_compares(tmp_path: Path, scheduler: str) -> None:
    write(emb_of(), tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError, match="8 of 8"):
        write(emb_of(seed=1), tmp_path / "e.zarr", scheduler=scheduler, num_workers=2)
    assert same(write(emb_of(), tmp_path / "e.zarr", scheduler=scheduler, num_workers=2), emb_of())


def test_a_cluster_compares_too(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    first, second = (embed(cube_of(), mask=m, **SMALL) for m in (corner() & False, corner()))
    write(first, tmp_path / "e.zarr")
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as c, Client(c):
        with pytest.raises(StoreMismatchError, match="2 of 8"):
            write(second, tmp_path / "e.zarr")
        got = write(second, tmp_path / "e.zarr", resume="changed")
    assert same(got, second)


PLANNING = """
import sys
import dask
dask.config.set({"array.query-planning": True})
import dask.array
from deo_cube.testing import registered_means
from tests.embedding.test_inputs import write_three
assert dask.array.ARRAY_EXPR_ENABLED
with registered_means():
    write_three(sys.argv[1])
"""


def write_three(folder: str | Path) -> None:
    """Write embeddings, a part of them and what was computed from them, each twice."""
    emb = embed(cube_at(chunks={"time": 2, "y": 50, "x": 64}), "means", dtype="float32", block=48)
    for name, array in {"whole": emb, "part": emb.isel(time=1, y=slice(0, 20)), "minus": -emb}.items():
        for _ in range(2):
            write(array, Path(folder) / f"{name}.zarr")


def test_array_expressions_give_the_same_bytes(tmp_path: Path) -> None:
    import subprocess
    import sys

    for folder in ("on", "off"):
        (tmp_path / folder).mkdir()
    write_three(tmp_path / "off")
    command = [sys.executable, "-W", "ignore", "-c", PLANNING, str(tmp_path / "on")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("whole", "part", "minus"):
        assert tree(tmp_path / "on" / f"{name}.zarr") == tree(tmp_path / "off" / f"{name}.zarr")
        assert verify_store(tmp_path / "on" / f"{name}.zarr").complete


# Sources


@pytest.fixture
def cube_file(tmp_path: Path) -> Path:
    path = tmp_path / "cube.zarr"
    cube_of(chunks={"y": 30, "x": 40}).to_zarr(path, zarr_format=3, consolidated=False)
    return path


def opened(path: Path) -> xr.DataArray:
    return embed(xr.open_zarr(path, consolidated=False, mask_and_scale=False), **SMALL)


def test_files_that_are_unchanged_are_not_read_again(
    tmp_path: Path, cube_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(opened(cube_file), tmp_path / "e.zarr")
    assert storage.read(storage.store_at(str(tmp_path / "e.zarr")), writer.SOURCES) is not None
    from deo_cube.store import write as module

    def never(job: Any) -> None:
        raise AssertionError("a block was read")

    with monkeypatch.context() as patch:
        patch.setattr(module, "check_job", never)
        assert same(write(opened(cube_file), tmp_path / "e.zarr"), opened(cube_file))
    # The same pixels in another place: compared once, and known from then on.
    copy = tmp_path / "moved" / "cube.zarr"
    copy.parent.mkdir()
    cube_file.rename(copy)
    write(opened(copy), tmp_path / "e.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(module, "check_job", never)
        write(opened(copy), tmp_path / "e.zarr")


def test_a_cube_that_was_rewritten_in_place_is_found_out(tmp_path: Path, cube_file: Path) -> None:
    write(opened(cube_file), tmp_path / "e.zarr")
    # One chunk of one band, deep in the folder: neither the folder's time of change nor any name tells.
    chunk = cube_file / "B04" / "c" / "0" / "1" / "1"
    other = tmp_path / "other.zarr"
    cube_of(seed=1, chunks={"y": 30, "x": 40}).to_zarr(other, zarr_format=3, consolidated=False)
    chunk.write_bytes((other / "B04" / "c" / "0" / "1" / "1").read_bytes())
    with pytest.raises(StoreMismatchError, match="resume='changed'"):
        write(opened(cube_file), tmp_path / "e.zarr")
    assert same(write(opened(cube_file), tmp_path / "e.zarr", resume="changed"), opened(cube_file))


def test_a_token_speaks_for_all_blocks_or_is_not_kept(tmp_path: Path, cube_file: Path, monkeypatch: Any) -> None:
    from deo_cube.store import write as module

    run, done = module.run_job, [0]

    def dies(job: Any) -> None:
        if done[0] == 3:
            raise OSError("the machine is gone")
        done[0] += 1
        run(job)

    path = tmp_path / "e.zarr"
    with monkeypatch.context() as patch:
        patch.setattr(module, "run_job", dies)
        with pytest.raises(OSError, match="gone"):
            write(opened(cube_file), path, scheduler="synchronous")
    assert storage.read(storage.store_at(str(path)), writer.SOURCES) is not None
    write(emb_of(), path)  # finished from memory: what the file holds elsewhere was not looked at
    assert storage.read(storage.store_at(str(path)), writer.SOURCES) is None


# Stores of earlier versions


def as_before(path: Path) -> None:
    """Make a store what version 0.1 wrote: no checksums of inputs, no seal, a record that is a Zarr array."""
    import zarr

    root = zarr.open_group(path, mode="r+", use_consolidated=False)
    blocks = tuple(root.attrs["deo_cube:blocks"])
    entries = {p: p.read_bytes() for p in (path / "progress" / "crc32" / "c").rglob("*") if p.is_file()}
    root.create_array(
        "progress/crc32",
        shape=blocks,
        chunks=(1, 1, 1),
        dtype="uint64",
        fill_value=0,
        compressors=None,
        overwrite=False,
    )
    for entry, data in entries.items():
        entry.parent.mkdir(parents=True, exist_ok=True)
        entry.write_bytes(data[:4] + b"\1\0\0\0")
    (path / "progress" / "sealed.json").unlink()
    document = json.loads((path / "zarr.json").read_text())
    for key in ("deo_cube:format", "deo_cube:blocks"):
        del document["attributes"][key]
    (path / "zarr.json").write_text(json.dumps(document))


def test_a_store_of_an_earlier_version_opens_and_resumes_and_what_is_not_known_is_said(tmp_path: Path) -> None:
    path = tmp_path / "e.zarr"
    write(emb_of(), path)
    as_before(path)
    assert same(open_embeddings(path), emb_of())
    assert verify_store(path).complete
    assert "metadata not checked" in repr(verify_store(path))
    with pytest.warns(UserWarning, match="earlier version.*8 finished blocks"):
        assert same(write(emb_of(), path), emb_of())
    (path / "progress" / "crc32" / "c" / "1" / "1" / "1").unlink()
    with pytest.warns(UserWarning, match="7 finished blocks"):
        assert same(write(emb_of(), path), emb_of())
    # Without an encoder the blocks themselves are compared, with what every version recorded.
    with pytest.raises(StoreMismatchError, match="8 of 8"):
        write(emb_of().compute() * 2, path)


# What was computed from embeddings


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        (lambda emb: emb, None),
        (lambda emb: emb.isel(time=[1], x=slice(3, 20)), None),
        (lambda emb: emb[:, :7], None),
        (lambda emb: emb.mean("time", keep_attrs=True), "mean over time of means embeddings"),
        (lambda emb: (2 * emb).assign_attrs(emb.attrs), "mul of means embeddings"),
        (lambda emb: emb.compute(), "values in memory"),
    ],
)
def test_what_was_computed_from_embeddings_says_how(tmp_path: Path, compute: Any, said: str | None) -> None:
    emb = compute(emb_of())
    got = write(emb, tmp_path / "e.zarr")
    again = write(open_embeddings(tmp_path / "e.zarr"), tmp_path / "again.zarr")
    for one in (got, again):
        derived = one.attrs.get("deo_cube:derived")
        assert derived == said or (said is not None and said in derived)
    attrs = json.loads((tmp_path / "e.zarr" / "zarr.json").read_text())["attributes"]
    assert attrs["geoemb:model"].startswith("urn:deo-cube:derived") == (said is not None)
    assert (said or "complete") in repr(verify_store(tmp_path / "e.zarr"))


# The checksum


@settings(deadline=None)
@given(
    st.tuples(st.integers(0, 9), st.integers(0, 99), st.integers(0, 99)),
    st.sampled_from(["float16", "float32", "int8"]),
)
def test_stand_ins_depend_on_the_place_alone(at: tuple[int, int, int], dtype: str) -> None:
    shape = (1, 6, 5, 4)
    one = tasks.stand_in(BlockIndex(*at), shape, np.dtype(dtype))
    two = tasks.stand_in(BlockIndex(*at), shape, np.dtype(dtype))
    other = tasks.stand_in(BlockIndex(at[0], at[1] + 1, at[2]), shape, np.dtype(dtype))
    assert one.dtype == dtype
    assert one.shape == shape
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other, equal_nan=True)
    if dtype != "int8":
        assert np.isnan(one[..., 0, 0]).all()
        assert np.isfinite(one[..., 1:, :]).all()
        # Sums are exact, in whatever order a processor adds them.
        rest = one[..., 1:, :].astype("float32")
        assert rest.sum(dtype="float32") == rest[..., ::-1].astype("float64").sum()


def test_checksums_know_shape_and_dtype() -> None:
    a = np.arange(6, dtype="uint8")
    sums = [tasks.input_checksum(x) for x in ([a], [a.reshape(2, 3)], [a.view("int8")], [a[:3], a[3:]], [])]
    assert len(set(sums)) == len(sums)
    assert all(0 < s < 2**31 for s in sums)


def test_the_identity_names_no_layer_and_no_path(tmp_path: Path, cube_file: Path) -> None:
    emb = opened(cube_file)
    text = json.dumps(create.make(emb, create.stored_layout(_begun(emb, tmp_path)), {}).root)
    assert str(tmp_path) not in text
    assert emb.data.name not in text


def _begun(emb: xr.DataArray, folder: Path) -> str:
    write(emb, folder / "e.zarr")
    return str(folder / "e.zarr")


def test_no_encoder_is_loaded_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(emb_of(), tmp_path / "e.zarr")

    def never(*args: object) -> None:
        raise AssertionError("an encoder was asked for")

    monkeypatch.setattr(process, "encoder", never)
    assert os.path.isdir(tmp_path / "e.zarr")
    write(emb_of(), tmp_path / "e.zarr")
