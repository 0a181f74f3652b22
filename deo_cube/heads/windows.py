"""Functions that see a patch's neighbours, mapped over embeddings of any chunks without seams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["finer", "map_windows"]

Array = NDArray[Any]


def finer(box: GeoBox, factor: int) -> GeoBox:
    """The same extent in cells `factor` times as small."""
    if factor == 1:
        return box
    t = box.transform
    shape = (box.shape[0] * factor, box.shape[1] * factor)
    return GeoBox(shape, Affine(t.a / factor, 0, t.c, 0, t.e / factor, t.f), box.crs)


def map_windows(
    function: Callable[[Array], Array],
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
    """Apply `function` to blocks with `halo` cells of context on each side.

    Parameters
    ----------
    function : callable
        ``(C, h + 2 halo, w + 2 halo) float32 -> (h factor, w factor)``, or ``(K, h factor, w factor)`` with
        `channels`. Beyond the array's edge it sees NaN, as in invalid cells. What it gives must depend on cells within
        the halo alone; then chunks do not matter.
    array : DataArray
        (time, `along`, y, x) or without time.
    along : str
        The dimension of the C numbers of a cell.
    factor : int
        Output cells along the side of a cell.
    channels : {dim: labels}, optional
        The dimension of the K numbers.
    dtype, name, attrs
        Of the result.

    Returns
    -------
    DataArray
        (time, [channel,] y, x) on the grid of `array` made `factor` times finer. Lazy on Dask.
    """
    y, x = spatial_dims(array)
    array = array.transpose(..., along, y, x)
    lead = array.ndim - 3
    dim, labels = next(iter(channels.items())) if channels else (None, ())
    box = geobox(array)

    def on_block(block: Array) -> Array:
        out = [function(b) for b in block.reshape(-1, *block.shape[-3:])]
        return np.stack(out).reshape(*block.shape[:lead], *out[0].shape)

    values: Any
    if array.chunks is None:
        pad = ((0, 0),) * (lead + 1) + ((halo, halo),) * 2
        values = on_block(np.pad(array.values.astype("float32"), pad, constant_values=np.nan))
    else:
        import dask.array as da

        depth = {lead + 1: halo, lead + 2: halo}
        whole = array.data.rechunk({lead: -1}).astype("float32")
        data = da.overlap.overlap(whole, depth, dict.fromkeys(depth, np.nan))
        fine = [tuple((c - 2 * halo) * factor for c in chunks) for chunks in data.chunks[-2:]]
        chunks = (*data.chunks[:lead], *(((len(labels),),) if dim else ()), *fine)
        meta = np.empty((0,) * (array.ndim if dim else array.ndim - 1), dtype)
        values = data.map_blocks(
            on_block, dtype=np.dtype(dtype), chunks=chunks, drop_axis=[] if dim else [lead], meta=meta
        )
    dims = (*array.dims[:lead], *((dim,) if dim else ()), y, x)
    out = xr.DataArray(values, dims=dims, name=name, attrs=dict(attrs))
    kept = {k: c for k, c in array.coords.items() if not {y, x, along} & set(c.dims) and k != "spatial_ref"}
    out = out.assign_coords(kept | ({dim: list(labels)} if dim else {}))
    return grid.assign_grid(out, finer(box, factor), dims=(y, x))
