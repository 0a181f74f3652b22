"""Killed, failing, crowded, full: the store ends with the bytes of an undisturbed run, and nothing is done twice."""

from __future__ import annotations

import errno
import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.constants import MODEL_BANDS as BANDS
from deo_cube.embedding import process
from deo_cube.embedding.embed import embed
from deo_cube.errors import DeoCubeError, StorageError, StoreMismatchError
from deo_cube.store.open import status, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at

SMALL: dict[str, Any] = {"model": "means", "dtype": "float32", "block": 48}  # 18 blocks of `cube_at()`


def tree(path: Path) -> dict[str, str]:
    """Every file below a folder, and a hash of what it holds."""
    return {
        str(p.relative_to(path)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(path.rglob("*"))
        if p.is_file()
    }


# Schedulers


@pytest.mark.parametrize("scheduler", ["threads", "synchronous", "processes"])
def test_every_scheduler_writes_the_same_bytes(tmp_path: Path, undisturbed: dict[str, str], scheduler: str) -> None:
    to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False, scheduler=scheduler, num_workers=2)
    assert tree(tmp_path / "e.zarr") == undisturbed


def test_a_scheduler_that_is_none_is_refused(tmp_path: Path) -> None:
    emb = embed(cube_at((24, 24), times=1), **SMALL)
    with pytest.raises(ValueError, match="threads, processes, synchronous or distributed"):
        to_zarr(emb, tmp_path / "e.zarr", scheduler="slurm")
    with pytest.raises(ValueError, match="needs a client"):
        to_zarr(emb, tmp_path / "e.zarr", scheduler="distributed")


# What may be written


def test_slices_and_computed_embeddings_are_written_as_they_are(tmp_path: Path) -> None:
    emb = embed(cube_at(), **SMALL)
    for i, part in enumerate(
        (emb.isel(time=1), emb.isel(x=slice(3, 20), y=slice(5, None)), emb.isel(embedding=slice(0, 7)), emb.compute())
    ):
        got = to_zarr(part, tmp_path / f"{i}.zarr", progress=False)
        xr.testing.assert_equal(got.drop_vars("time").compute(), part.drop_vars("time").compute())


def test_what_are_no_embeddings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match="transpose"):
        to_zarr(xr.DataArray(np.zeros((3, 4)), dims=("y", "x")), tmp_path / "e.zarr")
    emb = embed(cube_at((40, 40)), **SMALL)
    with pytest.raises(StoreMismatchError, match="transpose"):
        to_zarr(emb.transpose("time", "y", "x", "embedding"), tmp_path / "e.zarr")
    with pytest.raises(StoreMismatchError, match=r"isel\(x=\[10\]\)"):
        to_zarr(emb.isel(x=0, y=0), tmp_path / "e.zarr")
    assert not (tmp_path / "e.zarr").exists()


def test_the_progress_bar_counts_blocks_and_area(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    to_zarr(embed(cube_at((40, 40)), **SMALL), tmp_path / "e.zarr")
    shown = capsys.readouterr().err
    assert "embed means" in shown
    assert "km²/s" in shown


# Resume


def test_resume_redoes_no_finished_block(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    done: list[tuple] = []
    failing = failing_cube(after=100, tries=10**9, counted=done)
    with pytest.raises(OSError, match="bad night") as caught:
        to_zarr(embed(failing, **SMALL), tmp_path / "e.zarr", progress=False, retries=0, scheduler="synchronous")
    assert "done and safe" in "".join(caught.value.__notes__)
    before = status(tmp_path / "e.zarr")
    assert 0 < before.done < before.blocks
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "e.zarr" / "embeddings").rglob("*") if p.is_file()}
    to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False)
    assert tree(tmp_path / "e.zarr") == undisturbed
    assert all(p.stat().st_mtime_ns == t for p, t in stamps.items())


def test_a_finished_store_is_reopened_without_computing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emb = embed(cube_at(), **SMALL)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)

    def never(*args: object) -> None:
        raise AssertionError("an encoder was asked for")

    before = tree(tmp_path / "e.zarr")
    monkeypatch.setattr(process, "encoder", never)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    assert tree(tmp_path / "e.zarr") == before


JOB = """
import functools, sys, time
import torch
sys.path.insert(0, {root!r})
from deo_cube.encoder.registry import register_encoder
from deo_cube.embedding.embed import embed
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at, means, means_card

register_encoder(means_card(), functools.partial(functools.partial, means))
cube = cube_at(chunks={{"time": 1, "y": 40, "x": 40}})
slow = lambda block: (time.sleep({pause}), block)[1]
cube = cube.map(lambda v: v.copy(data=v.data.map_blocks(slow, dtype=v.dtype, meta=v.data._meta)))
print("ready", flush=True)
to_zarr(embed(cube, model="means", dtype="float32", block=48), {path!r}, progress=False, num_workers=2)
"""


def start(path: Path, pause: float) -> subprocess.Popen[str]:
    code = JOB.format(root=str(Path(__file__).parents[2]), path=str(path), pause=pause)
    job = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert job.stdout is not None
    assert job.stdout.readline().strip() == "ready"
    return job


@pytest.mark.slow
def test_two_processes_on_one_store_share_the_work(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    path = tmp_path / "e.zarr"
    jobs = [start(path, pause=0.005) for _ in range(2)]
    assert [j.wait(timeout=300) for j in jobs] == [0, 0]
    assert tree(path) == undisturbed
    assert verify_store(path).complete


# Bad nights


def failing_cube(*, after: int = 0, tries: int, counted: list | None = None) -> xr.Dataset:
    """A cube whose chunks, from the `after`-th read on, each fail `tries` times before they work."""
    fails: dict[Any, int] = {}
    reads = counted if counted is not None else []

    def read(block: np.ndarray, block_info: Any = None) -> np.ndarray:
        if not block_info:
            return block
        at = (tuple(block_info[0]["chunk-location"]), float(block.flat[0]))
        reads.append(at)
        if len(reads) > after and fails.setdefault(at, 0) < tries:
            fails[at] += 1
            raise OSError("bad night: connection reset")
        return block

    cube = cube_at(chunks={"time": 1, "y": 40, "x": 40})
    return cube.map(lambda v: v.copy(data=v.data.map_blocks(read, dtype=v.dtype, meta=v.data._meta)), keep_attrs=True)


def test_a_read_that_fails_twice_and_then_works_is_no_failure(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deo_cube.embedding.chunks.PAUSE", 0.0)
    to_zarr(embed(failing_cube(tries=2), **SMALL), tmp_path / "e.zarr", progress=False, retries=3)
    assert tree(tmp_path / "e.zarr") == undisturbed


def test_a_failing_model_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def broken(*args: object) -> None:
        tries.append(1)
        raise RuntimeError("broken model")

    monkeypatch.setattr(process, "run_batches", lambda *a, **k: broken())
    with pytest.raises(RuntimeError, match="broken model"):
        to_zarr(embed(cube_at((24, 24), times=1), **SMALL), tmp_path / "e.zarr", progress=False)
    assert len(tries) <= process.cpu_threads() + 2  # once for each block that was in flight


def test_each_source_chunk_is_read_once_though_blocks_share_them(tmp_path: Path) -> None:
    reads: list = []
    cube = failing_cube(tries=0, counted=reads)
    to_zarr(embed(cube, **SMALL), tmp_path / "e.zarr", progress=False)
    assert len(set(reads)) == sum(cube[b].data.npartitions for b in BANDS)
    # One chunk per band was looked at before the store was begun.
    assert len(reads) <= len(set(reads)) + len(BANDS)


def test_a_full_disk_is_said_and_nothing_is_lost(
    tmp_path: Path, undisturbed: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from deo_cube.store.storage import SyncedStore

    put, count = SyncedStore._write, [0]

    def full(self: SyncedStore, *args: Any) -> None:
        count[0] += 1
        if count[0] > 60:
            raise OSError(errno.ENOSPC, "No space left on device")
        put(self, *args)

    monkeypatch.setattr(SyncedStore, "_write", full)
    with pytest.raises(OSError, match="no space left.*same call again") as caught:
        to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False)
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(SyncedStore, "_write", put)
    assert 0 < status(tmp_path / "e.zarr").done
    to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False)
    assert tree(tmp_path / "e.zarr") == undisturbed


def test_wrong_units_stop_the_run_with_a_message_not_a_retry(tmp_path: Path) -> None:
    cube = cube_at((48, 48), dtype="float32", chunks={"y": 24})
    with pytest.raises(DeoCubeError, match="units"):
        to_zarr(embed(cube, units="reflectance", offset=0, **SMALL), tmp_path / "e.zarr", progress=False)


def test_a_store_on_fsspec_memory_is_written_and_resumed() -> None:
    from zarr.storage import MemoryStore

    emb = embed(cube_at((60, 60)), **SMALL)
    memory = MemoryStore()
    got = to_zarr(emb, memory, progress=False)
    xr.testing.assert_equal(got.compute(), emb.compute())
    xr.testing.assert_equal(to_zarr(emb, memory, progress=False).compute(), emb.compute())
    with pytest.raises(StoreMismatchError, match="plan"):
        to_zarr(embed(cube_at((60, 60)), **(SMALL | {"halo": 8})), memory, progress=False)


def test_memory_in_flight_is_bounded_by_blocks_not_by_the_cube(tmp_path: Path) -> None:
    alive, most = [0], [0]
    cube = cube_at((240, 240), times=1, chunks={"y": 24, "x": 24})

    from deo_cube.embedding import block

    call = block.EmbedBlock.__call__

    def counted(self: Any, *args: Any) -> Any:
        alive[0] += 1
        most[0] = max(most[0], alive[0])
        try:
            return call(self, *args)
        finally:
            alive[0] -= 1

    block.EmbedBlock.__call__ = counted  # type: ignore[method-assign]
    try:
        to_zarr(embed(cube, **SMALL), tmp_path / "e.zarr", progress=False, num_workers=2)
    finally:
        block.EmbedBlock.__call__ = call  # type: ignore[method-assign]
    assert most[0] <= 2


def test_the_default_is_the_scheduler_that_dask_is_set_to(tmp_path: Path, undisturbed: dict[str, str]) -> None:
    with dask.config.set(scheduler="synchronous"):
        to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False)
    assert tree(tmp_path / "e.zarr") == undisturbed


def test_what_was_made_of_embeddings_is_not_taken_for_them(tmp_path: Path) -> None:
    emb = embed(cube_at(), **SMALL)
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    with pytest.raises(StoreMismatchError, match="resume='changed'"):
        to_zarr((2 * emb).assign_attrs(emb.attrs), tmp_path / "e.zarr", progress=False)
    there_and_back = emb.chunk(x=-1).transpose("embedding", ...).transpose(*emb.dims)
    same = there_and_back.chunk(dict(zip(emb.dims, emb.chunks, strict=True)))
    assert to_zarr(same, tmp_path / "e.zarr", progress=False).shape == emb.shape


@pytest.mark.parametrize("option", [{"retries": -1}, {"num_workers": 0}])
def test_numbers_that_make_no_sense_are_refused_at_the_call(tmp_path: Path, option: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be an integer"):
        to_zarr(embed(cube_at(), **SMALL), tmp_path / "e.zarr", progress=False, **option)
    assert not (tmp_path / "e.zarr").exists()


def test_other_dates_are_refused_and_the_advice_joins_them(tmp_path: Path) -> None:
    ds = deo_cube.synthetic_cube(size=96, times=3, clouds=False, gaps=False)
    whole = ds.deo.embed().compute()
    ds.isel(time=[0, 1]).deo.embed().deo.to_zarr(tmp_path / "a.zarr", progress=False)
    for more in (ds.isel(time=[2]), ds):
        with pytest.raises(StoreMismatchError, match=r"deo_cube\.mosaic"):
            more.deo.embed().deo.to_zarr(tmp_path / "a.zarr", progress=False)
    ds.isel(time=[2]).deo.embed().deo.to_zarr(tmp_path / "b.zarr", progress=False)
    joined = deo_cube.mosaic([tmp_path / "a.zarr", tmp_path / "b.zarr"]).deo.to_zarr(
        tmp_path / "c.zarr", progress=False
    )
    np.testing.assert_array_equal(joined.values, whole.values)
    np.testing.assert_array_equal(joined.time.values, whole.time.values)
    with pytest.raises(StoreMismatchError) as other:  # another model is not another date
        ds.isel(time=[2]).deo.embed(halo=32).deo.to_zarr(tmp_path / "a.zarr", progress=False)
    assert "mosaic" not in str(other.value)


@pytest.mark.parametrize("place", ["file/emb.zarr", "/proc/emb.zarr", "/proc/sub/emb.zarr"])
def test_a_folder_that_cannot_be_written_is_an_error_of_this_package(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    if place.startswith("/proc") and not Path("/proc").is_dir():
        pytest.skip("no folder here that nobody may write to")
    with pytest.raises(StorageError, match=r"emb\.zarr"):
        to_zarr(embed(cube_at((24, 24)), **SMALL), str(tmp_path / place), progress=False)
