"""Gather the embeddings of cells with their places, as heads are fitted on them; join those of several arrays.

Cells are counted in rows; a cell has one vector per time, of which the valid ones count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["CellVectors", "gather", "join"]

Array = NDArray[Any]


@dataclass(frozen=True)
class CellVectors:
    """Valid embeddings of cells.

    Parameters
    ----------
    vectors : (n, D) float32
        Valid embeddings.
    case : (n,) int
        Position of each among the cells that were asked for.
    x, y : (n,) float
        Centres of the cells, in the CRS of the embeddings.
    cell : (n,) int
        Number of the cell, which is the same at every time.
    cell_size : float
        Side of a cell in units of the CRS.
    """

    vectors: Array = field(repr=False)
    case: Array = field(repr=False)
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    cell: Array = field(repr=False)
    cell_size: float


def gather(emb: xr.DataArray, rows: Array, cols: Array) -> CellVectors:
    """Return the valid embeddings of cells, of every time where `emb` has several; only their chunks are computed."""
    emb = as_embeddings(emb)
    y, x = spatial_dims(emb)
    cells = emb.isel({y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")})
    vectors = cells.transpose(..., "case", "embedding").values.astype("float32")
    vectors = vectors.reshape(-1, vectors.shape[-1])
    valid = np.isfinite(vectors).all(axis=1)
    case = np.tile(np.arange(len(rows)), len(vectors) // max(len(rows), 1))[valid]
    xs, ys = np.asarray(emb[x].values, "float64")[cols], np.asarray(emb[y].values, "float64")[rows]
    cell = rows * emb.sizes[x] + cols
    return CellVectors(vectors[valid], case, xs[case], ys[case], cell[case], abs(float(geobox(emb).resolution.x)))


def join(parts: Sequence[Any]) -> tuple[Array, Array, Array, Array]:
    """Return vectors, x, y and cell of several sets of cells, each with these attributes and `cell_size`.

    Arrays may be in different CRSs. They are placed far apart, so that no block of space holds cells of two.
    """
    ends = np.cumsum([0] + [int(p.cell.max(initial=0)) + 1 for p in parts])
    cell = np.concatenate([p.cell + e for p, e in zip(parts, ends[:-1], strict=True)])
    spread = max((float(np.ptp(v)) for p in parts for v in (p.x, p.y) if len(v)), default=0.0)
    far = spread * 4 + 1000 * parts[0].cell_size
    x = np.concatenate([p.x - p.x.min(initial=np.inf) + i * far if len(p.x) else p.x for i, p in enumerate(parts)])
    y = np.concatenate([p.y - p.y.min(initial=np.inf) if len(p.y) else p.y for p in parts])
    return np.concatenate([p.vectors for p in parts]), x, y, cell
