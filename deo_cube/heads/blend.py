"""Scores of the classes from four tile grids, blended where one of them has a border and another the middle of a tile.

A head of bounded reach has no seams of its own (see `windows`). What may be left is the encoder's: a patch at a tile's
border saw context on one side only. A halo makes that small (`deo_cube.evaluate.seam`); where it cannot, as with
attention over the whole tile, the grid can be shifted by half a core along y, along x and along both, and the scores
mixed with the squared cosine of the distance from the middle of a core, which sums to one. It costs four embeddings.
"""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube import georeference
from deo_cube.embedding.embed import embed
from deo_cube.embedding.options import split_options
from deo_cube.embedding.prepare import prepare
from deo_cube.embedding.tiles import TilePlan
from deo_cube.errors import ArgumentError
from deo_cube.heads.vectors import spatial_dims

__all__ = ["blended"]

Array = NDArray[Any]
LEAST = 1e-3
"""Weight at a border: what stands where no other grid covers a patch."""


def blended(cube: xr.Dataset | xr.DataArray, head: Any, options: dict[str, Any]) -> xr.DataArray:
    """Probabilities (time, class, y, x) of `head` on the cube's patches, blended over four tile grids. Lazy.

    Parameters
    ----------
    cube : Dataset or DataArray
        Pixels.
    head : Head
        Any.
    options : dict
        Of `embed`, with the model. Grids are counted from the origin of the CRS: away from the cube's edges the result
        does not depend on which larger window was asked for. Within a core of its north and west edge fewer grids
        reach.
    """
    if "+" in str(options.get("layer")):
        raise ArgumentError("blend=True works for heads on one layer; this head reads several")
    if options.get("anchor", "grid") != "grid":
        raise ArgumentError("blend=True shifts the tile grid itself: leave out anchor")
    prepared = prepare(cube, split_options(options)[0])
    plan, world = prepared.plan, georeference.anchor(prepared.geobox)
    first = head.predict(embed(cube, **options), probabilities=True)
    y, x = spatial_dims(first)
    half = plan.core // 2 // plan.patch * plan.patch
    up = world.south_up
    upright = cube.isel({prepared.dims.y: slice(None, None, -1)}) if up else cube
    total: Any = 0.0
    weights: Any = 0.0
    for down, right in product((0, half), (0, half)):
        p = first
        if down or right:
            # A grid counted from the array begins where the shifted grid of the world has its first border inside it.
            top, left = (down - world.row) % plan.core, (right - world.col) % plan.core
            part = upright.isel({prepared.dims.y: slice(top, None), prepared.dims.x: slice(left, None)})
            if min(part.sizes[prepared.dims.y], part.sizes[prepared.dims.x]) < plan.patch:
                continue
            p = head.predict(embed(part, **{**options, "anchor": "array"}), probabilities=True)
            near = abs(float(first[x][1] - first[x][0])) / 4 if first.sizes[x] > 1 else None
            p = p.reindex({y: first[y], x: first[x]}, method="nearest", tolerance=near)
        w = _weight(first, y, plan, world.row, down, up) * _weight(first, x, plan, world.col, right, False)
        known = p.notnull()
        total = total + xr.where(known, np.log(p.clip(1e-9, 1.0)) * w, 0.0)
        weights = weights + xr.where(known, w, 0.0)
    scores = total / weights.where(weights > 0)
    e = np.exp(scores - scores.max("class"))
    out = (e / e.sum("class")).where(first.notnull()).astype("float32").transpose(*first.dims)
    # Coordinates as they were: arithmetic drops those that only some of the operands have.
    result: xr.DataArray = first.copy(data=out.data)
    return result


def _weight(p: xr.DataArray, dim: str, plan: TilePlan, start: int, shift: int, reverse: bool) -> xr.DataArray:
    """Squared sine over a core: 0 at its borders, 1 in the middle; of each patch along `dim`."""
    first = start // plan.patch
    index = np.arange(p.sizes[dim]) + first
    centre = (index + 0.5) * plan.patch - shift
    share = np.maximum(np.sin(math.pi * (centre % plan.core) / plan.core) ** 2, LEAST)
    return xr.DataArray((share[::-1] if reverse else share).astype("float32"), dims=dim, coords={dim: p[dim]})
