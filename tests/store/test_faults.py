"""Reads that hang, come short or expire; full disks; drafts left behind: clear errors, and the same bytes after."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr

from deo_cube.constants import MODEL_BANDS as BANDS
from deo_cube.cube.stac import load_cube
from deo_cube.embedding import chunks
from deo_cube.embedding.embed import embed
from deo_cube.store import storage
from deo_cube.store.open import open_embeddings, status, verify_store
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at
from tests.cube.items import flat, product, remote
from tests.cube.range_server import Served, serve
from tests.store.test_write import SMALL, tree


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "PAUSE", 0.0)


def sour(spoil: Callable[[int, np.ndarray], np.ndarray]) -> xr.Dataset:
    """A cube whose n-th read goes through `spoil`."""
    count = iter(range(10**9))
    lock = threading.Lock()

    def bad(block: np.ndarray) -> np.ndarray:
        if block.size == 0:
            return block
        with lock:
            n = next(count)
        return spoil(n, block)

    cube = cube_at(chunks={"time": 1, "y": 40, "x": 40})
    return cube.map(lambda v: v.copy(data=v.data.map_blocks(bad, dtype=v.dtype, meta=v.data._meta)), keep_attrs=True)


# Reads


def test_a_read_that_hangs_is_tried_again_and_one_that_always_hangs_is_said_so(
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    forever = threading.Event()

    def hang(n: int, block: np.ndarray) -> np.ndarray:
        if n == 25:  # of the job, and not of the look before it
            forever.wait(120)
        return block

    def always(n: int, block: np.ndarray) -> np.ndarray:
        forever.wait(120)
        return block

    # Long enough for all other reads, on a busy machine too.
    to_zarr(embed(sour(hang), **SMALL), tmp_path / "e.zarr", progress=False, read_timeout=3.0, retries=8)
    assert tree(tmp_path / "e.zarr") == undisturbed
    with pytest.raises(TimeoutError, match="no answer within 0.1 s.*read_timeout=") as caught:
        to_zarr(embed(sour(always), **SMALL), tmp_path / "f.zarr", progress=False, read_timeout=0.1, retries=1)
    assert "0 of 18 blocks are done" in "".join(caught.value.__notes__)
    assert not status(tmp_path / "f.zarr").complete
    forever.set()


def test_a_short_chunk_is_read_again_and_one_that_stays_short_is_refused(
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    # Of one row: NumPy would stretch it over the window without a word.
    to_zarr(
        embed(sour(lambda n, block: block[:, :1] if n % 50 == 7 else block), **SMALL),
        tmp_path / "e.zarr",
        progress=False,
    )
    assert tree(tmp_path / "e.zarr") == undisturbed
    with pytest.raises(OSError, match=r"has shape \(1, 1, \d+\)"):
        to_zarr(embed(sour(lambda n, block: block[:, :1]), **SMALL), tmp_path / "f.zarr", progress=False, retries=1)


def signing(server: Served, uses: int) -> tuple[Callable[[str], str], list[str]]:
    """How to sign hrefs of a server that takes each token `uses` times, and the tokens so far."""
    tokens: list[str] = []
    lock = threading.Lock()

    def sign(href: str) -> str:
        with lock:
            if not tokens or server.uses(tokens[-1]) >= uses:
                tokens.append(f"token{len(tokens)}")
            return f"{href}?token={tokens[-1]}"

    return sign, tokens


@pytest.fixture
def scene(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A product of small tiled files, and its item."""
    rng = np.random.default_rng(0)
    bands = {b: rng.integers(1, 4000, (128, 128)).astype("uint16") for b in BANDS}
    item = product(tmp_path, "a", {**bands, "SCL": flat(4, (128, 128), "uint8")}, offset=0)
    for band, pixels in bands.items():
        path = tmp_path / "a" / f"{band}.tif"
        with rasterio.open(path) as file:
            profile = {**file.profile, "tiled": True, "blockxsize": 64, "blockysize": 64}
        path.unlink()
        with rasterio.open(path, "w", **profile) as file:
            file.write(pixels, 1)
    return tmp_path, item


def test_tokens_that_expire_in_the_middle_of_a_job_are_replaced(scene, gdal_http) -> None:
    folder, item = scene
    chunks = {"x": 64, "y": 64}
    to_zarr(embed(load_cube([item], chunks=chunks), **SMALL), folder / "local.zarr", progress=False)
    with serve(folder, uses=60) as server:
        sign, tokens = signing(server, uses=60)
        ds = load_cube([remote(item, folder, server.url)], chunks=chunks, patch_url=sign)
        assert tokens == []  # nothing is signed before it is read
        to_zarr(embed(ds, **SMALL), folder / "signed.zarr", progress=False, retries=8)
    assert len(tokens) > 2
    a, b = (open_embeddings(folder / name) for name in ("local.zarr", "signed.zarr"))
    np.testing.assert_array_equal(a.values, b.values)


def test_a_network_that_goes_away_is_said_so_and_the_job_goes_on_when_it_is_back(scene, gdal_http) -> None:
    folder, item = scene
    chunks = {"x": 32, "y": 32}
    with serve(folder) as server:
        url = server.url
        moved = load_cube(
            [remote(item, folder, "http://127.0.0.1:1")],
            chunks=chunks,
            patch_url=lambda h: h.replace("http://127.0.0.1:1", url),
        )
        emb = embed(moved, **SMALL)
        emb[..., :4, :4].compute(scheduler="synchronous")
    with pytest.raises(Exception, match="127.0.0.1") as caught:
        to_zarr(emb, folder / "e.zarr", progress=False, retries=1, scheduler="synchronous")
    assert "the same call resumes" in "".join(caught.value.__notes__)
    assert not status(folder / "e.zarr").complete
    with serve(folder) as server:
        url = server.url
        to_zarr(emb, folder / "e.zarr", progress=False)
    assert verify_store(folder / "e.zarr").complete


# Disks

FULL = """
import functools, resource, sys
sys.path.insert(0, {root!r})
from deo_cube.encoder.registry import register_encoder
from deo_cube.embedding.embed import embed
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at, means, means_card

register_encoder(means_card(), functools.partial(functools.partial, means))
emb = embed(cube_at((300, 300)), model="means", dtype="float32", block=192)
resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
try:
    to_zarr(emb, {path!r}, progress=False)
except OSError as error:
    print(error, "|", *error.__notes__)
"""


def test_a_file_that_the_system_refuses_to_grow_is_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "e.zarr"
    code = FULL.format(root=str(Path(__file__).parents[2]), path=str(path))
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300).stdout
    assert "no space left for block" in said
    assert "the same call resumes" in said
    assert not status(path).complete
    assert verify_store(path).damaged == ()
    emb = embed(cube_at((300, 300)), model="means", dtype="float32", block=192)
    xr.testing.assert_equal(to_zarr(emb, path, progress=False).compute(), emb.compute())


def test_the_draft_of_a_process_that_died_is_swept_up_and_one_in_the_making_is_not(tmp_path: Path) -> None:
    path = tmp_path / "odd [name]*.zarr"
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    with storage.draft_beside(path) as mine:
        mine.mkdir()
        left = mine.with_name(mine.name.replace(f"-{os.getpid()}-", f"-{dead.stdout.strip()}-"))
        (left / "embeddings").mkdir(parents=True)
        far = mine.with_name(mine.name.replace(os.uname().nodename, "another-host"))
        far.mkdir()
        other = tmp_path / ".unrelated.draft-x"
        other.mkdir()
        to_zarr(embed(cube_at((48, 48), times=1), **SMALL), path, progress=False)
        assert not left.exists()
        assert mine.exists()
        assert far.exists()
        os.utime(far, (time.time() - 1e6,) * 2)
        storage.sweep(path)
        assert not far.exists()
    assert not mine.exists()
    assert other.exists()


# Claims


def test_a_store_that_lost_entries_says_so_and_is_mended_by_the_same_call(
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    path = tmp_path / "e.zarr"
    emb = embed(cube_at(), **SMALL)
    to_zarr(emb, path, progress=False)
    entries = sorted(p for p in (path / "progress" / "crc32" / "c").rglob("*") if p.is_file())
    for entry in entries[:3]:
        entry.unlink()
    to_zarr(emb, path, progress=False)
    assert tree(path) == undisturbed


def test_a_store_is_marked_complete_last_and_a_kill_just_before_leaves_the_same_bytes(
    tmp_path: Path,
    undisturbed: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "e.zarr"
    emb = embed(cube_at(), **SMALL)

    def dies(*args: Any, **options: Any) -> None:
        (path / "valid" / "zarr.1234.partial").write_bytes(b"half")
        raise KeyboardInterrupt

    for killed in ("_mark", "zarr.consolidate_metadata"):
        with monkeypatch.context() as patch:
            patch.setattr(f"deo_cube.store.create.{killed}", dies)
            with pytest.raises(KeyboardInterrupt):
                to_zarr(emb, path, progress=False)
        assert status(path).complete  # all blocks are there, and yet
        assert json.loads((path / "zarr.json").read_text())["attributes"]["deo_cube:state"] == "writing"
    to_zarr(emb, path, progress=False)
    assert tree(path) == undisturbed


def test_damaged_blocks_are_done_again_after_a_repair(
    tmp_path: Path,
    undisturbed: dict[str, str],
) -> None:
    path = tmp_path / "e.zarr"
    emb = embed(cube_at(), **SMALL)
    to_zarr(emb, path, progress=False)
    shards = sorted(p for p in (path / "embeddings" / "c").rglob("*") if p.is_file())
    shards[3].write_bytes(shards[3].read_bytes()[:-20])
    shards[8].unlink()
    found = verify_store(path, repair=True)
    assert (len(found.damaged), found.repaired) == (2, True)
    assert "repaired" in repr(found)
    with pytest.warns(UserWarning, match="not complete: 16 of 18"):
        open_embeddings(path)
    to_zarr(emb, path, progress=False)
    assert tree(path) == undisturbed
