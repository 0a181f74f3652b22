"""Apply functions that see the neighbours of a cell to embeddings, in blocks with a halo.

The tiles are those of `deo_cube.embedding.tiles`, counted in cells from the origin of the CRS. The place and content of
a tile depend neither on chunks nor on the window, so the results do not either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube import georeference
from deo_cube.embedding.graph import Output, map_blocks_with_halo
from deo_cube.embedding.tiles import BlockAxis, TilePlan, plan_tiles
from deo_cube.embedding.windows import BlockIndex, WindowReader, band_sources
from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["finer", "map_windows"]

Array = NDArray[Any]
Function = Callable[[Array], Array]

CORE = 64
"""Cells along a side of a tile that a function gets at once, without its halo."""
BLOCK = 256
"""Cells along a side of the block that one task computes."""


def finer(box: GeoBox, factor: int) -> GeoBox:
    """Return the grid of the same extent with cells `factor` times as small."""
    if factor == 1:
        return box
    t = box.transform
    shape = (box.shape[0] * factor, box.shape[1] * factor)
    return GeoBox(shape, Affine(t.a / factor, 0, t.c, 0, t.e / factor, t.f), box.crs)


def map_windows(
    function: Function,
    array: xr.DataArray,
    *,
    along: str,
    halo: int,
    factor: int = 1,
    channels: Mapping[str, Sequence[Any]] | None = None,
    dtype: Any,
    name: str,
    attrs: Mapping[str, Any],
) -> xr.DataArray:
    """Apply `function` to tiles with `halo` cells of context on each side.

    Parameters
    ----------
    function : callable
        ``(C, h + 2 halo, w + 2 halo) float32 -> (h factor, w factor)``, or ``(K, h factor, w factor)`` with
        `channels`; north up. Cells beyond the edge of the array are NaN, as invalid cells are. The result must depend
        only on cells within the halo: then there are no seams. All tiles have `CORE` cells, so that not even the last
        bit depends on the size of a tile. It must be frozen and deterministic to tokenise.
    array : DataArray
        (time, `along`, y, x) or without time.
    along : str
        The dimension of the C numbers of a cell.
    halo : int
        Cells.
    factor : int
        Output cells along the side of a cell.
    channels : {dim: labels}, optional
        The dimension of the K numbers.
    dtype, name, attrs
        Of the result.

    Returns
    -------
    DataArray
        (time, [channel,] y, x) on the grid of `array` made `factor` times finer. Lazy on Dask, one task per block.
    """
    y, x = spatial_dims(array)
    array = array.transpose(..., along, y, x)
    lead = array.dims[: array.ndim - 3]
    dim, labels = next(iter(channels.items())) if channels else (None, ())
    box = geobox(array)
    world = georeference.anchor(box)
    plan = plan_tiles(
        tuple(box.shape), origin=(world.row, world.col), tile=CORE + 2 * halo, halo=halo, patch=1, block=BLOCK
    )
    run = _Tiles(function, plan, factor, len(labels), np.dtype(dtype).str)
    times = array.sizes[lead[0]] if lead else 1
    leading = (*((len(labels),) if dim else ()), factor, factor)
    if array.chunks is None:
        values = _compute(run, array, south_up=world.south_up, times=times, leading=leading)
    else:
        names = (str(lead[0]) if lead else None, along, y, x)
        fields, source = band_sources(array.variable, names, range(array.sizes[along]), BLOCK)
        output = Output(name, leading, np.dtype(dtype))
        reader = WindowReader(plan, (fields,), world.south_up)
        (packed,) = map_blocks_with_halo(run, reader, [source], [output], times=times)
        values = _unpacked(packed, factor, south_up=world.south_up)
    values = values if lead else values[0]
    out = xr.DataArray(values, dims=(*lead, *((dim,) if dim else ()), y, x), name=name, attrs=dict(attrs))
    coords = {k: c for k, c in array.coords.items() if not {y, x, along} & set(c.dims) and k != "spatial_ref"}
    out = out.assign_coords(coords | ({dim: list(labels)} if dim else {}))
    return georeference.assign_grid(out, finer(box, factor), dims=(y, x))


@dataclass(frozen=True)
class _Tiles:
    """Cut a window into tiles, apply a function to each, and assemble the cores: what one task runs.

    The result is ``(1, [K,] factor, factor, rows, columns)``: the cells within a cell come first, because the graph
    builder has no output that is finer than its input.
    """

    function: Function
    plan: TilePlan
    factor: int
    channels: int
    dtype: str

    def __call__(self, index: BlockIndex, windows: tuple[Array, ...]) -> Array:
        rows, columns = self.plan.rows.block(index.row), self.plan.columns.block(index.column)
        window = windows[0].astype("float32")
        # The window reader mirrors the array at its edge. Mirrored cells are not observations, so they become invalid.
        window[:, _outside(rows, self.plan.shape[0])] = np.nan
        window[:, :, _outside(columns, self.plan.shape[1])] = np.nan
        core, tile, f = self.plan.core, self.plan.tile, self.factor
        lead = (self.channels,) if self.channels else ()
        out = np.empty((*lead, f, f, rows.tiles * core, columns.tiles * core), self.dtype)
        for i, j in product(range(rows.tiles), range(columns.tiles)):
            top, left = i * core, j * core
            part = np.ascontiguousarray(window[:, top : top + tile, left : left + tile])
            fine = self.function(part).reshape(*lead, core, f, core, f)
            out[..., top : top + core, left : left + core] = np.moveaxis(fine, (-3, -1), (-4, -3))
        block = out[..., rows.skip : rows.skip + rows.out_size, columns.skip : columns.skip + columns.out_size]
        return block[None]


def _outside(axis: BlockAxis, size: int) -> Array:
    index = np.arange(axis.read_start, axis.read_stop)
    return (index < 0) | (index >= size)


def _compute(run: _Tiles, array: xr.DataArray, *, south_up: bool, times: int, leading: tuple[int, ...]) -> Array:
    """Return the blocks that Dask would compute, of an array in memory."""
    plan = run.plan
    whole = array.values.reshape(-1, *array.shape[-3:])[..., :: -1 if south_up else 1, :]
    out = np.empty((times, *leading, *plan.shape), run.dtype)
    for t, r, c in product(range(times), range(plan.blocks[0]), range(plan.blocks[1])):
        index, rows, columns = BlockIndex(t, r, c), plan.rows.block(r), plan.columns.block(c)
        window = np.ix_(rows.source_index(plan.shape[0]), columns.source_index(plan.shape[1]))
        block = run(index, (whole[t][:, *window],))[0]
        out[t, ..., rows.out_start : rows.out_stop, columns.out_start : columns.out_stop] = block
    return _merged(out[..., ::-1, :] if south_up else out, south_up=south_up)


def _unpacked(packed: Any, factor: int, *, south_up: bool) -> Any:
    """Return a Dask array in which the cells within cells are side by side, chunk by chunk."""
    *before, _, _, rows, columns = packed.chunks
    fine = [tuple(n * factor for n in chunks) for chunks in (rows, columns)]
    return packed.map_blocks(
        _merged, south_up=south_up, dtype=packed.dtype, chunks=(*before, *fine),
        drop_axis=[packed.ndim - 4, packed.ndim - 3], meta=np.empty((0,) * (packed.ndim - 2), packed.dtype),
    )  # fmt: skip


def _merged(packed: Array, *, south_up: bool) -> Array:
    """Return ``(..., f, f, rows, columns)`` as ``(..., rows f, columns f)``."""
    *lead, f, _, rows, columns = packed.shape
    within = packed[..., ::-1, :, :, :] if south_up else packed
    return np.moveaxis(within, (-4, -3), (-3, -1)).reshape(*lead, rows * f, columns * f)
