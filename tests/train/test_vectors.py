"""An embedding store teaches: its vectors are read where the cube's pixels are, and a student learns from them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from pyproj import Transformer
from torch.nn import functional as F

import deo_cube
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.train.augment import Augmentation, generator
from deo_cube.train.config import PRESETS, Augment, Loader, Objective, TrainConfig
from deo_cube.train.loop import open_sources, plan_run, train
from deo_cube.train.losses import patch_similarity, view_similarity
from deo_cube.train.samples import Mixture, VectorMap, open_source
from deo_cube.train.teachers import StoreTeacher

SMOKE = PRESETS["smoke"]


@pytest.fixture(scope="module")
def store(cube_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embeddings of the training cube by the bundled model, in a store of int8."""
    path = tmp_path_factory.mktemp("store") / "vectors.zarr"
    ds = xr.open_zarr(cube_path, decode_coords="all")
    ds.deo.embed("tiny", units="dn", offset=0, nodata=0, dtype="int8").deo.to_zarr(path)
    return path


def config(cube_source: str, store: Path, out: Path, **changes: object) -> TrainConfig:
    return dataclasses.replace(
        SMOKE,
        data=(cube_source,),
        teacher=str(store),
        out=str(out),
        loader=Loader(window=32, valid=0.5, workers=0),
        objective=dataclasses.replace(SMOKE.objective, multispectral=False, specialist=1.0),
        **changes,
    )


def test_vectors_are_those_of_the_pixels(store: Path, cube_path: Path) -> None:
    emb = deo_cube.open_embeddings(store).load()
    ds = xr.open_zarr(cube_path, decode_coords="all")
    vectors = VectorMap(str(store), ds.odc.geobox, ds.time.values, 4)
    assert not vectors.empty
    found, known = vectors.read(1, 8, 16, 32, 32, 32)
    expected = emb.isel(time=1)[:, 2:10, 4:12].values
    assert found.shape == expected.shape == (emb.sizes["embedding"], 8, 8)
    ok = np.isfinite(expected).all(axis=0)
    np.testing.assert_array_equal(known, ok)
    np.testing.assert_allclose(found[:, ok], expected[:, ok], rtol=1e-6)
    assert (found[:, ~ok] == 0).all()


@given(
    row=st.integers(0, 40), col=st.integers(0, 40), step=st.sampled_from([2, 4, 8]), coarse=st.sampled_from([5, 10, 20])
)
def test_cells_are_means_of_the_nearest_vectors(row: int, col: int, step: int, coarse: int) -> None:
    box = GeoBox.from_bbox((0, 0, 800, 800), crs="EPSG:32632", resolution=coarse)
    values = np.stack([*np.meshgrid(np.arange(box.shape[1]), np.arange(box.shape[0]))]).astype("float32")[None]
    grid = GeoBox.from_bbox((0, 0, 800, 800), crs="EPSG:32632", resolution=10)
    vectors = _of_arrays(values, box, grid, step)
    found, known = vectors.read(0, row, col, 32, 32, 32)
    assert known.all()
    # The middle of each cell, in pixels of the store.
    for axis, first in ((0, col), (1, row)):
        middle = (first + (np.arange(32 // step) + 0.5) * step) * 10 / coarse - 0.5
        profile = found[axis].mean(axis=axis)
        assert np.abs(profile - middle).max() <= 0.5 + 1e-6


def _of_arrays(values: np.ndarray, box: GeoBox, grid: GeoBox, step: int, times: object = None) -> VectorMap:
    """Return a map of vectors that are arrays (time, embedding, y, x) in memory."""
    dims = ("time", "embedding", *box.dimensions)
    emb = xr.DataArray(values, dims=dims, coords=xr_coords(box))
    emb = emb if times is None else emb.assign_coords(time=times)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deo_cube.train.samples.open_embeddings", lambda path: emb)
        vectors = VectorMap("", grid, None if times is None else DATES, step)
        vectors._vectors()
    return vectors


DATES = np.array(["2021-01-05", "2021-06-01", "2022-02-01"], dtype="datetime64[ns]")


def test_crops_of_vectors_are_of_the_ground_of_the_crops() -> None:
    """Vectors that are the coordinates of a place come out as those that a crop of the image shows."""
    n = 16
    rows, cols = torch.meshgrid(torch.arange(n) + 0.5, torch.arange(n) + 0.5, indexing="ij")
    vectors = torch.stack([rows, cols]).expand(3, 2, n, n)
    image = F.interpolate(vectors, scale_factor=4, mode="nearest").repeat(1, 5, 1, 1) * 100
    known = torch.ones(3, n, n, dtype=torch.bool)
    augment = Augmentation(Augment(global_size=32, local_size=16, local_crops=1), SMOKE.student)
    views = augment(image, None, generator(0, 1), vectors=vectors, known=known)
    for view in views[:2]:
        assert view.vectors is not None
        assert view.vectors.shape == (3, 2, 8, 8)
        assert view.dn is not None
        seen = F.avg_pool2d(view.dn[:, :2] / 100, 4)
        assert (view.vectors - seen).abs()[:, :, 1:-1, 1:-1].max() < 0.8
    assert views[2].vectors is None


def test_unknown_cells_count_for_nothing() -> None:
    random = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 6, 5, 5, generator=random) for _ in range(2))
    known = torch.rand(4, 5, 5, generator=random) > 0.4
    filled = torch.where(known[:, None], teacher, torch.full_like(teacher, 1e3))
    assert torch.equal(patch_similarity(student, teacher, known), patch_similarity(student, filled, known))
    assert torch.allclose(
        patch_similarity(student, teacher, torch.ones_like(known)), patch_similarity(student, teacher)
    )
    a, b = torch.randn(6, 8, generator=random), torch.randn(4, 8, generator=random)
    everything = torch.ones(4, dtype=torch.bool)
    assert torch.allclose(view_similarity(a, b, 3, known=everything), view_similarity(a, b, 3))
    assert float(view_similarity(a, b, 3, known=~everything)) == 0


def test_a_student_learns_from_a_store(cube_source: str, store: Path, tmp_path: Path) -> None:
    made = config(cube_source, store, tmp_path / "run", steps=24)
    assert "embedding store" in str(plan_run(made))
    out = train(made)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert {"sp_cls", "sp_mid", "sp_late"} <= set(lines[0])
    first, last = (np.mean([line["loss"] for line in part]) for part in (lines[:4], lines[-4:]))
    assert last < first - 0.05
    (teacher,) = json.loads((out / "teachers.json").read_text())
    assert teacher["weights"] == str(store)
    assert deo_cube.card(out).trained
    # The same store resumes; another one does not.
    with pytest.raises(StoreMismatchError):
        train(dataclasses.replace(made, resume=True, teacher="none", objective=Objective()))


def test_a_store_elsewhere_or_none_is_refused(cube_source: str, store: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match="nowhere"):
        open_sources(config(cube_source, tmp_path / "nowhere.zarr", tmp_path / "run"))
    with pytest.raises(ArgumentError, match="specialist"):
        dataclasses.replace(
            config(cube_source, store, tmp_path / "run"), specialist=dataclasses.replace(SMOKE.specialist, model="tiny")
        )
    with pytest.raises(ArgumentError, match=r"loader\.window"):
        dataclasses.replace(config(cube_source, store, tmp_path / "run"), loader=Loader(window=30))
    away = deo_cube.synthetic_cube(times=1)
    away.to_zarr(tmp_path / "away.zarr")
    made = dataclasses.replace(config(cube_source, store, tmp_path / "run"), data=(f"{tmp_path / 'away.zarr'}",))
    mixture = Mixture(open_sources(made), made.loader, 0)
    assert mixture.sample("ms", 0).vectors is None
    with pytest.raises(ArgumentError, match="--teacher"):
        StoreTeacher(str(store), mixture)


def test_batches_carry_vectors(cube_source: str, store: Path) -> None:
    source = open_source(cube_source, store=str(store), step=4)
    batch = Mixture((source,), Loader(window=32, valid=0.5, workers=0), 0).batch(0, (3, 0), 0, 1)
    assert batch.vectors is not None
    assert batch.known is not None
    assert batch.vectors.shape[0] == 3
    assert batch.vectors.shape[2:] == batch.known.shape[1:] == (8, 8)
    assert batch.known.any()


def test_a_store_in_another_crs_is_read_at_the_same_ground() -> None:
    """Vectors that are coordinates of the neighbouring UTM zone come out as pyproj transforms the cells' middles."""
    grid = GeoBox.from_bbox((700_000, 5_000_000, 701_280, 5_001_280), crs="EPSG:32632", resolution=10)
    other = grid.to_crs("EPSG:32633", resolution=20, tight=True).pad(4)
    x, y = (other.coordinates[name].values for name in ("x", "y"))
    vectors = _of_arrays(np.stack([*np.meshgrid(x, y)])[None], other, grid, 4)
    found, known = vectors.read(0, 16, 40, 64, 64, 64)
    assert known.all()
    middles = (np.arange(16) + 0.5) * 4
    cols, rows = np.meshgrid(40 + middles, 16 + middles)
    transform = Transformer.from_crs("EPSG:32632", "EPSG:32633", always_xy=True).transform
    expected = np.stack(transform(*(grid.affine * (cols, rows))))
    assert np.abs(found - expected).max() <= 15  # half a diagonal of a pixel of 20 m, and float32


def test_each_date_is_taught_by_the_nearest_date_of_the_store() -> None:
    box = GeoBox.from_bbox((0, 0, 640, 640), crs="EPSG:32632", resolution=20)
    values = np.broadcast_to(np.array([2021.0, 2022.0], "float32")[:, None, None, None], (2, 3, *box.shape))
    grid = GeoBox.from_bbox((0, 0, 640, 640), crs="EPSG:32632", resolution=10)
    vectors = _of_arrays(values, box, grid, 4, np.array(["2021-01-01", "2022-01-01"], dtype="datetime64[ns]"))
    assert [float(vectors.read(t, 0, 0, 32, 32, 32)[0].mean()) for t in range(3)] == [2021, 2021, 2022]


def test_unknown_vectors_are_left_out_of_a_cell() -> None:
    box = GeoBox.from_bbox((0, 0, 640, 640), crs="EPSG:32632", resolution=10)
    values = np.ones((1, 2, *box.shape), "float32")
    values[:, :, :, 1::2] = np.nan  # half of each cell
    values[:, 1, :4, :4] = np.nan  # one cell, in one channel
    found, known = _of_arrays(values, box, box, 4).read(0, 0, 0, 32, 32, 32)
    assert not known[0, 0]
    assert (found[:, 0, 0] == 0).all()
    assert known.sum() == known.size - 1
    assert (found[:, known] == 1).all()
