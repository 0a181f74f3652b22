"""Labelled vectors: the embeddings of the cells that labels mark."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import LabelsError
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["Cases", "cases"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Cases:
    """Labelled vectors, as a head is fitted on them.

    Parameters
    ----------
    vectors : (n, D) float32
        Valid embeddings.
    codes : (n,) uint8
        Class of each.
    classes : Classes
        What the codes mean; only those that occur.
    x, y : (n,) float
        Centres of the cells, in the CRS of the embeddings.
    cell : (n,) int
        Which cell: the same at every time.
    size : float
        Side of a cell in units of the CRS.
    """

    vectors: Array = field(repr=False)
    codes: Array = field(repr=False)
    classes: Classes
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    cell: Array = field(repr=False)
    size: float


def cases(emb: xr.DataArray, labels: xr.DataArray, *, lone: bool = False) -> Cases:
    """Read the vectors of the labelled cells: of every time where `emb` has several.

    Only chunks with labelled cells are computed.

    Parameters
    ----------
    emb : DataArray
        Embeddings.
    labels : DataArray
        Of `burn`, on the same grid.
    lone : bool
        Accept labels of a single class: other arrays have the others.

    Raises
    ------
    LabelsError
        If no labelled cell has a valid embedding, or all that have are of one class.
    """
    emb = as_embeddings(emb)
    y, x = spatial_dims(emb)
    if (labels.sizes[y], labels.sizes[x]) != (emb.sizes[y], emb.sizes[x]):
        raise LabelsError(f"labels {dict(labels.sizes)} and embeddings {dict(emb.sizes)} lie on different grids")
    codes = np.asarray(labels.values)
    rows, cols = np.nonzero(codes != NO_CLASS)
    if not len(rows):
        raise LabelsError("no cell is labelled: no label covers one. Label places within the embeddings")
    picked = emb.isel({y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")})
    v = picked.transpose(..., "case", "embedding").values.astype("float32")
    v = v.reshape(-1, len(rows), v.shape[-1])
    times = len(v)
    flat = v.reshape(-1, v.shape[-1])
    good = np.isfinite(flat).all(axis=1)
    if not good.any():
        raise LabelsError(
            f"none of the {len(rows)} labelled cells has a valid embedding: clouds, gaps or nodata cover them. "
            "Choose another time, or label other places"
        )
    found = np.tile(codes[rows, cols], times)[good]
    present = np.unique(found)
    every = _classes_of(labels)
    keep = [i for i, c in enumerate(every.codes) if c in present]
    classes = every.only(keep)
    if len(present) < 2 and not lone:
        lost = sorted(set(every.names) - set(classes.names))
        raise LabelsError(
            f"all {int(good.sum())} labelled cells with a valid embedding are of one class, {classes.names[0]!r}"
            + (f" (no valid cell is left of {lost})" if lost else "")
            + ": a head wants examples of at least two. Label some places that are something else"
        )
    cell = np.tile(rows * emb.sizes[x] + cols, times)[good]
    xs, ys = np.asarray(emb[x].values, "float64"), np.asarray(emb[y].values, "float64")
    size = abs(float(geobox(emb).resolution.x))
    return Cases(flat[good], found, classes, np.tile(xs[cols], times)[good], np.tile(ys[rows], times)[good], cell, size)


def _classes_of(labels: xr.DataArray) -> Classes:
    a = labels.attrs
    codes = tuple(int(v) for v in np.atleast_1d(a["flag_values"]))
    return Classes(codes, tuple(str(a["flag_meanings"]).split()), tuple(str(a["flag_colors"]).split()))
