"""Vectors for tiles: exact where they fit the budget, bounded where they do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import zarr
from hypothesis import given
from hypothesis import strategies as st
from zarr.abc.store import Store
from zarr.storage import MemoryStore, WrapperStore

import deo_cube
from deo_cube.viewer.state import ViewerState
from deo_cube.viewer.tiles import TileSource
from tests.heads.fields import embeddings, on_dask
from tests.viewer.conftest import tile_at


def grid(rows: slice, cols: slice, n: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Places of a tile's pixels over a window of cells."""
    r = rows.start + (np.arange(n) + 0.5) / n * (rows.stop - rows.start)
    c = cols.start + (np.arange(n) + 0.5) / n * (cols.stop - cols.start)
    return tuple(np.meshgrid(r, c, indexing="ij"))


def counted(shape=(1, 4, 1024, 1024), step=(64, 64), offset=(0, 0), tile_bytes=2**21) -> tuple[TileSource, list]:
    """A large array that notes what is read of it; its vector is (row, column, row * column, 1)."""
    seen: list = []

    def read(t: int, rows: slice, cols: slice) -> np.ndarray:
        seen.append((t, rows, cols))
        r, c = np.meshgrid(np.arange(rows.start, rows.stop), np.arange(cols.start, cols.stop), indexing="ij")
        return np.stack([r, c, r * c, np.ones_like(r)]).astype("float32")

    return TileSource(read, shape, step=step, offset=offset, itemsize=4, tile_bytes=tile_bytes), seen


@given(st.integers(-5, 60), st.integers(-5, 60), st.integers(1, 80), st.tuples(st.integers(0, 15), st.integers(0, 15)))
def test_each_pixel_gets_the_vector_of_its_own_cell(top: int, left: int, side: int, offset: tuple[int, int]) -> None:
    source, _ = counted((1, 4, 70, 90), (16, 16), offset)
    rows, cols = grid(slice(top, top + side), slice(left, left + side), 32)
    found = source.gather(0, rows, cols)
    inside = (rows >= 0) & (rows < 70) & (cols >= 0) & (cols < 90)
    assert found.complete
    assert ((found.index >= 0) == inside).all()
    drawn = found.spread(found.vectors, np.nan)
    np.testing.assert_array_equal(drawn[inside][:, 0], np.floor(rows[inside]))
    np.testing.assert_array_equal(drawn[inside][:, 1], np.floor(cols[inside]))
    assert np.isnan(drawn[~inside]).all()


def test_a_square_is_read_once() -> None:
    source, seen = counted()
    rows, cols = grid(slice(10, 100), slice(10, 100))
    source.gather(0, rows, cols)
    source.gather(0, rows, cols)
    assert len(seen) == 4


def test_a_country_on_one_tile_reads_no_more_than_the_budget() -> None:
    source, seen = counted((1, 4, 65536, 65536), tile_bytes=2**21)
    rows, cols = grid(slice(0, 65536), slice(0, 65536))
    found = source.gather(0, rows, cols)
    read = sum((r.stop - r.start) * (c.stop - c.start) * 16 for _, r, c in seen)
    assert not found.complete
    assert 2**19 <= read <= 2**21
    # What is drawn are vectors that exist, near where they are drawn.
    drawn = found.spread(found.vectors, np.nan)
    assert (drawn[..., 2] == drawn[..., 0] * drawn[..., 1]).all()
    stride = source.lattice(np.arange(source.grid[0] * source.grid[1]))[0] * 64
    assert abs(drawn[..., 0] - rows).max() <= stride
    # Asked again, nothing more is read.
    before = len(seen)
    source.gather(0, rows, cols)
    assert len(seen) == before


def test_an_overview_grows_complete_and_then_shows_each_place_within_a_few_cells() -> None:
    source, seen = counted()
    rows, cols = grid(slice(0, 1024), slice(0, 1024))
    assert not source.gather(0, rows, cols).complete
    shares = list(source.load_overview(0, slice(0, 1024), slice(0, 1024)))
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert len({(r.start, c.start) for _, r, c in seen}) == len(seen) == 256
    found = source.gather(0, rows, cols)
    drawn = found.spread(found.vectors, np.nan)
    assert found.complete
    assert len(seen) == 256
    assert max(abs(drawn[..., 0] - np.floor(rows)).max(), abs(drawn[..., 1] - np.floor(cols)).max()) <= 4


def test_squares_that_do_not_begin_at_the_array_are_thinned_in_place() -> None:
    source, _ = counted((1, 4, 1000, 1000), offset=(17, 40))
    list(source.load_overview(0, slice(0, 1000), slice(0, 1000)))
    rows, cols = grid(slice(0, 1000), slice(0, 1000))
    drawn = (found := source.gather(0, rows, cols)).spread(found.vectors, np.nan)
    assert max(abs(drawn[..., 0] - np.floor(rows)).max(), abs(drawn[..., 1] - np.floor(cols)).max()) <= 7


def test_a_window_is_put_together_from_squares() -> None:
    source, _ = counted((1, 4, 70, 90), (16, 16), (3, 5))
    block = source.block(0, slice(9, 61), slice(0, 90))
    np.testing.assert_array_equal(block[0], np.repeat(np.arange(9, 61)[:, None], 90, axis=1))
    np.testing.assert_array_equal(block[1], np.repeat(np.arange(90)[None], 52, axis=0))


def test_arrays_in_memory_and_on_dask_are_read_alike() -> None:
    e = embeddings(rows=50, cols=70, times=2)
    plain, lazy = TileSource.of(e), TileSource.of(on_dask(e, 20, 30))
    assert lazy.step == (20, 30)
    rows, cols = grid(slice(-3, 52), slice(-3, 72), 64)
    a, b = (s.gather(1, rows, cols) for s in (plain, lazy))
    np.testing.assert_array_equal(a.spread(a.vectors, np.nan), b.spread(b.vectors, np.nan))


class Counting(WrapperStore[Store]):
    """Counts the bytes that are read of chunks of embeddings."""

    read = 0

    async def get(self, key, prototype, byte_range=None):
        found = await super().get(key, prototype, byte_range)
        if found is not None and key.startswith("embeddings/c"):
            Counting.read += len(found)
        return found


def test_a_tile_of_a_complete_store_reads_a_bounded_part_of_it() -> None:
    store = MemoryStore()
    on_dask(embeddings(rows=512, cols=512, dim=8, cell=40), 128, 128).deo.to_zarr(store, progress=False)
    square = 64 * 64 * 8 * 4
    Counting.read = 0
    # A basis of colours is fitted on a sample here: the squares of the same lattice.
    view = ViewerState.of_store(Counting(store), tile_bytes=6 * square)
    assert view.source.step == (64, 64)
    (south, west), (north, east) = view.grid.bounds
    z = view.grid.native_zoom - 2
    drawn = view.tile("pca", 0, z, *tile_at((west + east) / 2, (south + north) / 2, z))
    assert not drawn.complete
    # Beside the squares each shard's index is read, and noise does not compress.
    assert 0 < Counting.read < 6 * square * 1.1
    before = Counting.read
    view.tile("pca", 0, z, *tile_at((west + east) / 2, (south + north) / 2, z))
    assert Counting.read == before


def test_a_store_is_read_from_its_own_chunks(store: Path) -> None:
    wrapped = Counting(zarr.storage.LocalStore(store, read_only=True))
    view = ViewerState.of_store(wrapped)
    emb = deo_cube.open_embeddings(store)
    Counting.read = 0
    row, col = 20, 30
    np.testing.assert_array_equal(
        view.source.vector(1, row, col), emb.isel(time=1, y=row, x=col).values.astype("float64")
    )
    whole = sum(f.stat().st_size for f in (store / "embeddings" / "c").rglob("*") if f.is_file())
    assert 0 < Counting.read < 0.6 * whole
    rows, cols = grid(slice(0, 32), slice(0, 32))
    found = view.source.gather(0, rows, cols)
    np.testing.assert_array_equal(
        found.spread(found.vectors, np.nan),
        emb.isel(time=0).transpose("y", "x", "embedding").values.astype("float32").repeat(8, 0).repeat(8, 1),
    )
