"""Windows are cut exactly, on any chunks; one task per block; array expressions give the same answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.core import flatten
from hypothesis import given
from hypothesis import strategies as st

from deo_cube.embedding import process
from deo_cube.embedding.embed import embed
from deo_cube.embedding.graph import Output, map_blocks_with_halo
from deo_cube.embedding.tiles import TilePlan, mirror
from deo_cube.embedding.windows import BlockIndex, WindowReader, band_sources, read_amplification
from deo_cube.store.write import to_zarr
from deo_cube.testing import cube_at

DIMS = ("time", None, "y", "x")


@dataclass(frozen=True)
class Means:
    """Patch mean plus tile mean: depends on the whole tile, as attention does."""

    plan: TilePlan

    def __call__(self, index: BlockIndex, windows: tuple[np.ndarray, ...]) -> np.ndarray:
        rows, columns = self.plan.rows.block(index.row), self.plan.columns.block(index.column)
        per, p = self.plan.rows.patches_per_core, self.plan.patch
        out = np.zeros((1, len(windows[0]), rows.tiles * per, columns.tiles * per))
        for y in range(rows.tiles):
            for x in range(columns.tiles):
                tile = windows[0][
                    :,
                    y * self.plan.core : y * self.plan.core + self.plan.tile,
                    x * self.plan.core : x * self.plan.core + self.plan.tile,
                ].astype(float)
                n = self.plan.tile // p
                patches = tile.reshape(len(tile), n, p, n, p).mean((2, 4)) + tile.mean((1, 2), keepdims=True)
                inner = slice(self.plan.halo // p, self.plan.halo // p + per)
                out[0, :, y * per : (y + 1) * per, x * per : (x + 1) * per] = patches[:, inner, inner]
        return out[..., rows.skip : rows.skip + rows.out_size, columns.skip : columns.skip + columns.out_size]


def mapped(array: da.Array, plan: TilePlan, *, south_up: bool = False) -> da.Array:
    fields, source = band_sources(xr.Variable(("time", "y", "x"), array), DIMS, [0], plan.block)
    window_reader = WindowReader(plan, (fields,), south_up=south_up)
    output = Output("means", (1,), np.dtype(float))
    (out,) = map_blocks_with_halo(Means(plan), window_reader, [source], [output], times=array.shape[0])
    return out


def oracle(image: np.ndarray, plan: TilePlan) -> np.ndarray:
    """The same by brute force: pad the whole image, visit every patch, look up its tile."""
    out = np.zeros(plan.out_shape)
    for r in range(plan.out_shape[0]):
        for c in range(plan.out_shape[1]):
            cuts, patch_cuts = [], []
            for i, axis in ((r, plan.rows), (c, plan.columns)):
                world = (axis.first_patch + i) * plan.patch
                start = world // plan.core * plan.core - plan.halo
                cuts.append(mirror(np.arange(start, start + plan.tile) - axis.origin, axis.size))
                patch_cuts.append(mirror(np.arange(world, world + plan.patch) - axis.origin, axis.size))
            out[r, c] = image[np.ix_(*patch_cuts)].mean() + image[np.ix_(*cuts)].mean()
    return out


@st.composite
def cases(draw: st.DrawFn) -> tuple[TilePlan, tuple[tuple[int, ...], ...]]:
    patch = draw(st.sampled_from([1, 2, 4]))
    core, halo = patch * draw(st.integers(1, 4)), patch * draw(st.integers(0, 3))
    shape = (draw(st.integers(1, 40)), draw(st.integers(1, 40)))
    origin = (draw(st.integers(-99, 99)), draw(st.integers(-99, 99)))
    plan = TilePlan(shape, origin, core + 2 * halo, halo, patch, core * draw(st.integers(1, 3)))

    def chunks(n: int) -> tuple[int, ...]:
        cuts = sorted(draw(st.sets(st.integers(1, n - 1), max_size=6))) if n > 1 else []
        return tuple(int(v) for v in np.diff([0, *cuts, n]))

    return plan, (chunks(shape[0]), chunks(shape[1]))


@given(cases(), st.integers(0, 5))
def test_any_chunks_and_any_plan_give_what_brute_force_gives(
    case: tuple[TilePlan, tuple[tuple[int, ...], ...]], seed: int
) -> None:
    plan, chunks = case
    image = np.random.default_rng(seed).integers(0, 10000, (2, *plan.shape), dtype=np.uint16)
    got = mapped(da.from_array(image, chunks=(1, *chunks)), plan).compute(scheduler="sync")
    for t in range(2):
        np.testing.assert_allclose(got[t, 0], oracle(image[t].astype(float), plan), rtol=1e-12)


@given(cases())
def test_numbers_do_not_depend_on_chunks_to_the_last_bit(
    case: tuple[TilePlan, tuple[tuple[int, ...], ...]],
) -> None:
    plan, chunks = case
    image = np.random.default_rng(0).integers(0, 10000, (1, *plan.shape), dtype=np.uint16)
    whole = mapped(da.from_array(image, chunks=-1), plan).compute(scheduler="sync")
    pieces = mapped(da.from_array(image, chunks=(1, *chunks)), plan).compute(scheduler="sync")
    pixels = mapped(da.from_array(image, chunks=(1, 1, 1)), plan).compute(scheduler="sync")
    assert (whole == pieces).all()
    assert (whole == pixels).all()


@given(cases())
def test_a_south_up_cube_gives_the_flipped_result(case: tuple[TilePlan, tuple[tuple[int, ...], ...]]) -> None:
    plan, chunks = case
    image = np.random.default_rng(0).integers(0, 10000, (1, *plan.shape), dtype=np.uint16)
    north_up = mapped(da.from_array(image, chunks=(1, *chunks)), plan).compute(scheduler="sync")
    flipped = da.from_array(image[:, ::-1], chunks=(1, chunks[0][::-1], chunks[1]))
    south_up = mapped(flipped, plan, south_up=True)
    assert south_up.chunks[2] == plan.chunks[0][::-1]
    assert (south_up.compute(scheduler="sync")[:, :, ::-1] == north_up).all()


@given(cases(), st.booleans(), st.sampled_from([(1, 1, 1), (2, 1), (3,)]))
def test_a_block_knows_how_many_ask_for_each_of_its_chunks(
    case: tuple[TilePlan, tuple[tuple[int, ...], ...]], south_up: bool, times: tuple[int, ...]
) -> None:
    plan, chunks = case
    array = da.zeros((3, *plan.shape), chunks=(times, *chunks))
    window_reader = WindowReader(
        plan, (band_sources(xr.Variable(("time", "y", "x"), array), DIMS, [0], 1)[0],), south_up
    )
    blocks = [BlockIndex(*at) for at in np.ndindex(3, *plan.blocks)]
    counted = Counter(key for index in blocks for key in {p.key for p in window_reader.chunk_slices(index)})
    for index in blocks:
        assert window_reader.readers_per_chunk(index) == {
            p.key: counted[p.key] for p in window_reader.chunk_slices(index)
        }


def test_who_asks_for_a_static_mask_is_not_known() -> None:
    plan = TilePlan((64, 64), (0, 0), 32, 0, 8, 32)
    bands = band_sources(xr.Variable(("time", "y", "x"), da.zeros((2, 64, 64), chunks=(1, 32, 64))), DIMS, [0], 1)[0]
    mask = band_sources(xr.Variable(("y", "x"), da.zeros((64, 64))), DIMS, [0], 1)[0]
    assert sorted(WindowReader(plan, (bands, mask)).readers_per_chunk(BlockIndex(0, 0, 0)).values()) == [0, 2]
    assert list(WindowReader(plan, (mask,)).readers_per_chunk(BlockIndex(0, 0, 0)).values()) == [4]


def test_one_task_a_block_besides_the_sources() -> None:
    plan = TilePlan((1000, 1000), (3, 5), 64, 8, 8, 96)
    image = da.zeros((3, 1000, 1000), chunks=(1, 100, 100), dtype="uint16")
    out = mapped(image, plan)
    blocks = 3 * plan.blocks[0] * plan.blocks[1]
    assert len(dict(out.__dask_graph__())) - len(dict(image.__dask_graph__())) == blocks
    assert out.npartitions == blocks


@pytest.fixture
def stitched(monkeypatch: pytest.MonkeyPatch) -> list[BlockIndex]:
    """The blocks whose windows are stitched, as they are."""
    indices: list[BlockIndex] = []
    windows = WindowReader.windows

    def counted(self: WindowReader, index: BlockIndex, chunks: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        indices.append(index)
        return windows(self, index, chunks)

    monkeypatch.setattr(WindowReader, "windows", counted)
    return indices


EMB = {"model": "means", "units": "dn", "block": 48, "dtype": "float32"}


def test_values_and_valid_fraction_are_stitched_once_per_block(stitched: list[BlockIndex], tmp_path: Path) -> None:
    emb = embed(cube_at(chunks={"y": 50, "x": 64}), **EMB)
    blocks = Counter(BlockIndex(*at) for at in np.ndindex(2, *emb.data.numblocks[-2:]))
    whole = emb.compute(scheduler="sync")
    assert Counter(stitched) == blocks
    stitched.clear()
    part = emb.isel(time=1, y=slice(3, 8), x=[5, 6]).compute(scheduler="sync")
    assert len(stitched) == 1
    np.testing.assert_array_equal(part, whole.isel(time=1, y=slice(3, 8), x=[5, 6]))
    np.testing.assert_array_equal(part.valid, whole.valid.isel(time=1, y=slice(3, 8), x=[5, 6]))
    stitched.clear()
    to_zarr(emb, tmp_path / "e.zarr", progress=False)
    assert Counter(stitched) == blocks


def test_valid_fractions_alone_need_no_encoder(stitched: list[BlockIndex], monkeypatch: pytest.MonkeyPatch) -> None:
    emb = embed(cube_at(chunks={"y": 50, "x": 64}), **EMB)
    expected = emb.compute(scheduler="sync").valid
    stitched.clear()
    monkeypatch.setattr(process, "encoder", None)
    np.testing.assert_array_equal(emb.valid.compute(scheduler="sync"), expected)
    assert len(stitched) == emb.valid.data.npartitions


def test_the_graph_is_the_same_for_every_way_to_compute_it() -> None:
    emb = embed(cube_at(south_up=True, times=None, chunks={"y": 50, "x": 64}), **EMB)
    values, valid = dask.compute(emb.data, emb.valid.data, scheduler="sync")
    whole = dict(emb.valid.data.__dask_graph__()) | dict(emb.data.__dask_graph__())
    for array, expected in ((emb.data, values), (emb.valid.data, valid)):
        blocks = dask.get(whole, list(flatten(array.__dask_keys__())))
        for at, block in zip(np.ndindex(*array.numblocks), blocks, strict=True):
            np.testing.assert_array_equal(block, array.blocks[at].compute(scheduler="sync"))
            np.testing.assert_array_equal(block, dask.compute(array, scheduler="threads")[0][_slices(array, at)])
        np.testing.assert_array_equal(array.persist(scheduler="sync"), expected)


def _slices(array: da.Array, at: tuple[int, ...]) -> tuple[slice, ...]:
    ends = [np.cumsum((0, *sizes)) for sizes in array.chunks]
    return tuple(slice(int(e[i]), int(e[i + 1])) for e, i in zip(ends, at, strict=True))


def test_a_slice_runs_only_its_blocks() -> None:
    plan = TilePlan((256, 256), (0, 0), 32, 0, 8, 64)
    read: list[str] = []

    def load(block: np.ndarray, block_info: dict) -> np.ndarray:
        if block_info:
            read.append(str(block_info[0]["chunk-location"]))
        return block

    image = da.zeros((1, 256, 256), chunks=(1, 64, 64), dtype="uint16").map_blocks(
        load, dtype="uint16", meta=np.empty((0, 0, 0), "uint16")
    )
    out = mapped(image, plan)
    assert read == []
    out[0, 0, 9, 17].compute(scheduler="sync")
    assert len(read) == 1


def test_names_are_deterministic_and_differ_where_numbers_may() -> None:
    plan = TilePlan((64, 64), (0, 0), 32, 0, 8, 32)
    image = da.from_array(np.arange(64 * 64, dtype="uint16").reshape(1, 64, 64), chunks=-1)
    assert mapped(image, plan).name == mapped(image, plan).name
    assert mapped(image, plan).name != mapped(image + 1, plan).name
    assert mapped(image, plan).name != mapped(image, TilePlan((64, 64), (8, 0), 32, 0, 8, 32)).name


def test_transposed_and_banded_variables_are_cut_alike() -> None:
    image = np.random.default_rng(0).integers(0, 9, (2, 3, 20, 30), dtype="int16")
    plan = TilePlan((20, 30), (0, 0), 8, 0, 4, 16)
    straight, a = band_sources(xr.Variable(("time", "band", "y", "x"), image), ("time", "band", "y", "x"), [2, 0], 8)
    turned, b = band_sources(
        xr.Variable(("x", "band", "y", "time"), image.transpose(3, 1, 2, 0)), ("time", "band", "y", "x"), [2, 0], 8
    )
    for fields, array in ((straight, a), (turned, b)):
        window_reader = WindowReader(plan, (fields,))
        index = BlockIndex(1, 0, 1)
        chunks = dask.compute(*(array.blocks[p.key[1:]] for p in window_reader.chunk_slices(index)), scheduler="sync")
        (window,) = window_reader.windows(index, chunks)
        assert (window[:, :, :14] == image[1, [2, 0], :16, 16:]).all()


def test_read_amplification_counts_whole_chunks() -> None:
    plan = TilePlan((256, 256), (0, 0), 64, 0, 8, 64)
    fields, _ = band_sources(xr.Variable(DIMS[2:], da.zeros((256, 256), chunks=64)), (None, None, "y", "x"), [0], 64)
    assert read_amplification(WindowReader(plan, (fields,))) == 1.0
    fields, _ = band_sources(xr.Variable(DIMS[2:], da.zeros((256, 256), chunks=256)), (None, None, "y", "x"), [0], 64)
    assert read_amplification(WindowReader(plan, (fields,))) == 16.0


def test_array_expressions_give_the_same() -> None:
    code = (
        "import numpy as np, dask.array as da\n"
        "from deo_cube.embedding.tiles import TilePlan\n"
        "from tests.embedding.test_graph import mapped, oracle\n"
        "plan = TilePlan((37, 41), (5, -3), 16, 4, 4, 16)\n"
        "image = np.random.default_rng(0).integers(0, 10000, (1, 37, 41), dtype='uint16')\n"
        "got = mapped(da.from_array(image, chunks=(1, 10, 7)), plan).compute(scheduler='sync')\n"
        "np.testing.assert_allclose(got[0, 0], oracle(image[0].astype(float), plan), rtol=1e-12)\n"
        "assert da.ARRAY_EXPR_ENABLED\n"
    )
    env = os.environ | {"DASK_ARRAY__QUERY_PLANNING": "True"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
