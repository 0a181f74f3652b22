"""Overviews are means of what is stored, at their place, for other programs; the store itself is not touched."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import xarray as xr
import zarr
from hypothesis import given
from hypothesis import strategies as st

import deo_cube
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.heads import overviews
from deo_cube.heads.overviews import _halved, add_overviews, overviews_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dates of 70 x 90 patches in several blocks, with clouds and gaps."""
    path = tmp_path_factory.mktemp("overviews") / "emb.zarr"
    ds = deo_cube.synthetic_cube(size=360, times=2).isel(y=slice(0, 280))
    ds.deo.embed(block=128).deo.to_zarr(path, progress=False)
    return path


@pytest.fixture
def store(base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(base, tmp_path / "emb.zarr"))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several jobs per level."""
    monkeypatch.setattr(overviews, "CHUNK", 32)
    monkeypatch.setattr(overviews, "STRIP", 12)
    monkeypatch.setattr(overviews, "SMALL", 20)


def hashes(folder: Path, *, but: tuple[str, ...] = ()) -> dict[str, str]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    names = {p.relative_to(folder).as_posix(): p for p in files}
    return {n: hashlib.sha256(p.read_bytes()).hexdigest() for n, p in names.items() if not n.startswith(but)}


#: GDAL before 3.11 reads Zarr 3 of a draft only ("Unsupported codec: bytes").
reads_zarr3 = pytest.mark.skipif(
    tuple(map(int, rasterio.__gdal_version__.split(".")[:2])) < (3, 11), reason="GDAL before 3.11 reads no Zarr 3"
)


def summed(a: np.ndarray) -> np.ndarray:
    """Sums of 2 x 2 cells."""
    h, w = a.shape[-2:]
    total: np.ndarray = a.reshape(*a.shape[:-2], h // 2, 2, w // 2, 2).sum((-3, -1))
    return total


def by_hand(store: Path, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Weighted means of whole windows, from the arrays as they are stored."""
    root = zarr.open_group(store, mode="r")
    values, valid = root["embeddings"][:].astype("float64"), root["valid"][:].astype("float64")
    for _ in range(int(np.log2(factor))):
        h, w = valid.shape[-2:]
        values = np.pad(np.nan_to_num(values), ((0, 0), (0, 0), (0, h % 2), (0, w % 2)))
        there = np.pad(np.ones_like(valid), ((0, 0), (0, h % 2), (0, w % 2)))
        valid = np.pad(valid, ((0, 0), (0, h % 2), (0, w % 2)))
        total = summed(valid)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = summed(values * valid[:, None]) / total[:, None]
        valid = total / summed(there)
    return values, valid


@pytest.mark.usefixtures("small_chunks")
def test_levels_are_weighted_means_of_the_store(store: Path) -> None:
    found = add_overviews(store, progress=False)
    assert found.complete
    assert found.factors == (1, 2, 4, 8)
    for factor in (2, 4):
        level = zarr.open_group(store / "overviews" / f"{factor}x", mode="r")
        values, valid = by_hand(store, factor)
        np.testing.assert_allclose(level["valid"][:], valid, atol=1e-5)
        stored = level["embeddings"][:].astype("float64")
        np.testing.assert_array_equal(np.isnan(stored).all(axis=1), valid == 0)
        # float16 rounds each level.
        np.testing.assert_allclose(np.nan_to_num(stored), np.nan_to_num(values), atol=0.02)


@pytest.mark.usefixtures("small_chunks")
def test_the_store_is_not_touched_and_verifies(store: Path, base: Path) -> None:
    add_overviews(store, progress=False)
    own = ("overviews/", "progress/overviews/", "zarr.json")
    assert hashes(store, but=own) == hashes(base, but=own)
    before, after = (json.loads((p / "zarr.json").read_text())["attributes"] for p in (base, store))
    assert before == after
    assert deo_cube.verify_store(store).complete
    xr.testing.assert_identical(deo_cube.open_embeddings(store).compute(), deo_cube.open_embeddings(base).compute())


@pytest.mark.usefixtures("small_chunks")
def test_an_interrupted_call_is_resumed_and_ends_with_the_same_bytes(
    store: Path, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(shutil.copytree(base, tmp_path / "whole.zarr"))
    add_overviews(whole, progress=False)
    run, calls = overviews._run, []

    def dies(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 20:
            raise KeyboardInterrupt
        run(*args)

    monkeypatch.setattr(overviews, "_run", dies)
    with pytest.raises(KeyboardInterrupt):
        add_overviews(store, progress=False)
    found = overviews_of(store)
    assert found is not None
    assert not found.complete
    assert "multiscales" not in json.loads((store / "overviews" / "zarr.json").read_text())["attributes"]
    already = len(calls)
    add_overviews(store, progress=False)
    assert hashes(store) == hashes(whole)
    total = len(list((store / "progress" / "overviews").rglob("*/*/*/*")))
    assert len(calls) - already < total
    n = len(calls)
    add_overviews(store, progress=False)
    assert len(calls) == n  # nothing is left


@pytest.mark.usefixtures("small_chunks")
def test_blocks_that_are_written_anew_make_overviews_stale(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add_overviews(store, progress=False)
    ds = deo_cube.synthetic_cube(size=360, times=2).isel(y=slice(0, 280)).compute()
    part = {"time": slice(0, 1), "y": slice(0, 40), "x": slice(0, 40)}
    for band in ("B04", "B08"):
        ds[band][part] = ds[band][part] + 400
    ds.deo.embed(block=128).deo.to_zarr(store, resume="changed", progress=False)
    found = overviews_of(store)
    assert found is not None
    assert found.stale
    assert not found.complete
    assert "stale" in repr(deo_cube.info(store))
    run, calls = overviews._run, []

    def counted(*args: Any) -> None:
        calls.append(args)
        run(*args)

    monkeypatch.setattr(overviews, "_run", counted)
    assert add_overviews(store, progress=False).complete
    assert 0 < len(calls) < 0.7 * len([p for p in (store / "progress" / "overviews").rglob("*") if p.is_file()])
    values, valid = by_hand(store, 2)
    level = zarr.open_group(store / "overviews" / "2x", mode="r")
    np.testing.assert_allclose(level["valid"][:], valid, atol=1e-5)
    np.testing.assert_allclose(np.nan_to_num(level["embeddings"][:]), np.nan_to_num(values), atol=0.02)


@reads_zarr3
def test_gdal_reads_colours_at_their_place(store: Path) -> None:
    add_overviews(store, progress=False)
    emb = deo_cube.open_embeddings(store)
    day = str(emb.time.values[0])[:10].replace("-", "")
    attrs = dict(zarr.open_group(store, mode="r").attrs)
    rgb = np.nan_to_num(1 + np.rint(254 * emb.isel(time=0).deo.pca_rgb().values))
    top, left, height, width = attrs["deo_cube:window"]
    for factor in (1, 2):
        with rasterio.open(f'ZARR:"{store / "overviews" / f"{factor}x"}":/rgb_{day}') as file:
            assert file.count == 3
            assert file.crs.to_epsg() == 32633
            a = rasterio.Affine(*attrs["spatial:transform"]) * rasterio.Affine.scale(factor)
            np.testing.assert_allclose(file.transform[:6], a[:6])
            if factor == 1:
                found = file.read()[:, top : top + height, left : left + width]
                assert np.abs(found.astype(int) - rgb).max() <= 1


@reads_zarr3
def test_gdal_reads_vectors_in_plain_chunks(tmp_path: Path) -> None:
    emb = deo_cube.synthetic_cube(size=128, times=1).isel(time=0).deo.embed(dtype="float32")
    emb.deo.to_zarr(tmp_path / "plain.zarr", shards=False, progress=False)
    array = zarr.open_group(tmp_path / "plain.zarr", mode="r")["embeddings"]
    with rasterio.open(f'ZARR:"{tmp_path / "plain.zarr"}":/embeddings') as file:
        np.testing.assert_array_equal(file.read(), array[:])


def test_colours_are_those_of_pca_at_their_place(store: Path) -> None:
    add_overviews(store, progress=False)
    emb = deo_cube.open_embeddings(store)
    day = str(emb.time.values[0])[:10].replace("-", "")
    top, left, height, width = zarr.open_group(store, mode="r").attrs["deo_cube:window"]
    rgb = np.nan_to_num(1 + np.rint(254 * emb.isel(time=0).deo.pca_rgb().values))
    found = zarr.open_group(store / "overviews" / "1x", mode="r")[f"rgb_{day}"][:]
    found = found[:, top : top + height, left : left + width]
    assert np.abs(found.astype(int) - rgb).max() <= 1


def test_the_convention_is_followed(store: Path) -> None:
    multiscales = pytest.importorskip("zarr_cm.multiscales")
    add_overviews(store, progress=False)
    attrs = dict(zarr.open_group(store / "overviews", mode="r").attrs)
    _, data = multiscales.extract(attrs)
    layout = data["layout"]
    assert [level["asset"] for level in layout] == ["1x", "2x"]
    assert layout[1]["derived_from"] == "1x"
    assert layout[1]["transform"]["scale"] == [2.0, 2.0]
    assert attrs["proj:code"] == "EPSG:32633"
    ds = xr.open_zarr(store / "overviews" / "2x", decode_coords="all")
    assert ds.rio.crs.to_epsg() == 32633
    assert ds.rio.resolution() == (80, -80)


def test_int8_and_single_dates(tmp_path: Path) -> None:
    ds = deo_cube.synthetic_cube(size=128, times=1).isel(time=0)
    ds.deo.embed(dtype="int8").deo.to_zarr(tmp_path / "e.zarr", progress=False)
    found = add_overviews(tmp_path / "e.zarr", progress=False)
    assert found.arrays == ("rgb", "embeddings", "valid")
    root = zarr.open_group(tmp_path / "e.zarr", mode="r")
    level = zarr.open_group(tmp_path / "e.zarr" / "overviews" / "2x", mode="r")
    assert level["embeddings"].dtype == np.int8
    assert level["embeddings"].attrs["scale_factor"] == root["embeddings"].attrs["scale_factor"]
    raw, valid = root["embeddings"][:].astype("float64"), root["valid"][:]
    h, w = valid.shape
    total = valid.reshape(h // 2, 2, w // 2, 2).sum((1, 3))
    mean = (raw * valid).reshape(-1, h // 2, 2, w // 2, 2).sum((2, 4)) / np.maximum(total, 1e-9)
    stored = level["embeddings"][:]
    assert (stored[:, total == 0] == -128).all()
    assert np.abs(stored - mean)[:, total > 0].max() <= 0.5 + 1e-3


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_halving_keeps_the_weighted_mean_of_all(h: int, w: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.normal(size=(3, h, w)).astype("float32"), rng.random((h, w)).astype("float32")
    weights[rng.random((h, w)) < 0.3] = 0
    mean, share = _halved(values, weights)
    assert share.max() <= 1 + 1e-6
    cells = np.array(
        [[min(2, h - 2 * i) * min(2, w - 2 * j) for j in range(share.shape[1])] for i in range(share.shape[0])]
    )
    np.testing.assert_allclose((share * cells).sum(), weights.sum(), rtol=1e-4)
    np.testing.assert_allclose((mean * share * cells).sum((1, 2)), (values * weights).sum((1, 2)), atol=1e-4)


def test_refusals(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="vectors or colors"):
        add_overviews(base, vectors=False, colors=False)
    with pytest.raises(ArgumentError, match="levels"):
        add_overviews(base, levels=9)
    with pytest.raises(StoreMismatchError):
        add_overviews(tmp_path / "none.zarr")
    assert overviews_of(base) is None


def test_a_store_in_plain_chunks_holds_the_same(tmp_path: Path) -> None:
    ds = deo_cube.synthetic_cube(size=360, times=2).isel(y=slice(0, 280), time=0)
    emb = ds.deo.embed(block=128, dtype="float32")
    plain = emb.deo.to_zarr(tmp_path / "plain.zarr", shards=False, progress=False)
    sharded = emb.deo.to_zarr(tmp_path / "sharded.zarr", progress=False)
    xr.testing.assert_identical(plain.compute(), sharded.compute())
    array = zarr.open_group(tmp_path / "plain.zarr", mode="r")["embeddings"]
    assert array.shards is None
    assert deo_cube.verify_store(tmp_path / "plain.zarr").complete
    # Resumed by a call that says nothing of shards, it stays as it was begun.
    record = next(p for p in (tmp_path / "plain.zarr" / "progress" / "crc32").rglob("*") if p.is_file())
    record.unlink()
    again = emb.deo.to_zarr(tmp_path / "plain.zarr", progress=False)
    xr.testing.assert_identical(again.compute(), sharded.compute())
    assert zarr.open_group(tmp_path / "plain.zarr", mode="r")["embeddings"].shards is None
    assert deo_cube.verify_store(tmp_path / "plain.zarr").complete


def test_vectors_of_a_level_are_embeddings(store: Path) -> None:
    add_overviews(store, progress=False)
    half = xr.open_zarr(store / "overviews" / "2x", consolidated=False, decode_coords="all")["embeddings"]
    assert "valid" in half.coords
    assert half.attrs["deo_cube:model_alias"] == "tiny"
    row, column = np.argwhere(half["valid"].isel(time=0).values == 1)[0]
    similar = half.isel(time=0).deo.similar((float(half.x[column]), float(half.y[row]))).values
    assert similar[row, column] == pytest.approx(1, abs=1e-3)


def test_stores_of_objects(tmp_path: Path) -> None:
    memory = pytest.importorskip("obstore.store").MemoryStore()
    deo_cube.synthetic_cube(size=128, times=1).deo.embed().deo.to_zarr(memory, progress=False)
    assert add_overviews(memory, progress=False).complete
    assert not add_overviews(memory, vectors=False, progress=False).stale
    assert deo_cube.verify_store(memory).complete
