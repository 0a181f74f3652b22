"""Find where embeddings are unlike those that a head was trained on: the area of applicability.

Meyer and Pebesma (2021, doi:10.1111/2041-210X.13650), without weights of the predictors: the dissimilarity of a place
is the distance of its vector to the nearest training vector, in units of the mean distance between training vectors.
The threshold is the upper whisker of the dissimilarities of the training vectors, each to those in other blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import number
from deo_cube.errors import ArgumentError, LabelsError, naming
from deo_cube.heads.base import ModelId, check_same_model
from deo_cube.heads.cells import CellVectors, gather
from deo_cube.heads.geometries import cells_of, clean, into_grid, north_up
from deo_cube.heads.rasters import lattice_mean, read_around
from deo_cube.heads.regression import RegressionHead
from deo_cube.heads.splits import blocks
from deo_cube.heads.tables import form_of, parsed_crs, read_table
from deo_cube.heads.vectors import as_embeddings, geobox, map_vectors

__all__ = ["applicability", "labelled_cells"]

Array = NDArray[Any]

MAX_TRAINING = 2000
"""Training vectors that are compared with; a random part of more."""


def applicability(
    embeddings: xr.DataArray | str | Path,
    training: Any,
    *,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    block: float | None = None,
) -> xr.DataArray:
    """Return the dissimilarity of each place to the training data of a head; lazy on Dask.

    Parameters
    ----------
    embeddings : DataArray, or path of a store
        (time, embedding, y, x) or (embedding, y, x).
    training : RegressionHead, table, raster, path or list
        A regression head, which keeps a part of its training vectors; or the labels that a head was fitted on, within
        these embeddings. Only their places are read, at the first time.
    column, layer, crs
        Of the labels, as in `rasterize_labels`.
    block : float, optional
        Side of the blocks of the threshold, in units of the CRS. Default: about 6 x 6 blocks.

    Returns
    -------
    DataArray
        `dissimilarity` (time, y, x) float32, 0 at a training vector; NaN where the embedding is missing. The attribute
        `threshold` separates what the head knows from what it does not: ``d <= d.attrs["threshold"]``.

    Raises
    ------
    LabelsError
        If fewer than two training places have a valid embedding.
    ArgumentError
        For a regression head of another model.
    """
    emb = as_embeddings(embeddings, "embeddings")
    block = None if block is None else number("block", block, above=0)
    of_head = isinstance(training, RegressionHead)
    known = _of_head(training, emb) if of_head else _of_labels(training, emb, column, layer, crs)
    known = known.subsample(MAX_TRAINING)
    scaled = _Scaled.of(known.vectors.astype("float64"))
    threshold = scaled.threshold(known, block)
    attrs = {"long_name": "dissimilarity to the training data", "units": "1", "threshold": threshold}
    return map_vectors(scaled.dissimilarity, [emb], name="dissimilarity", attrs=attrs)


def _of_head(head: RegressionHead, emb: xr.DataArray) -> CellVectors:
    vectors = head.tensors.get("training.vectors")
    if vectors is None or not len(vectors):
        raise ArgumentError("training: the head keeps no training vectors, pass the targets that it was fitted on")
    check_same_model(head.model, ModelId.of(emb), "training: the embeddings")
    places = head.tensors["training.places"]
    if len(places) != len(vectors):
        # Without places every vector is a block of its own.
        places = np.stack([np.arange(len(vectors), dtype="float64"), np.zeros(len(vectors))], axis=1)
    return CellVectors(vectors, places[:, 0], places[:, 1], np.arange(len(vectors)), cell_size=0.0, crs=head.crs)


def _of_labels(labels: Any, emb: xr.DataArray, column: Any, layer: Any, crs: Any) -> CellVectors:
    first = emb.isel(time=0) if "time" in emb.dims else emb
    rows, cols = labelled_cells(labels, emb, column=column, layer=layer, crs=crs)
    cells = gather(first, rows, cols)
    if len(cells.vectors) < 2:
        raise LabelsError(f"at least two training places must have a valid embedding, found {len(cells.vectors)}")
    return cells


def labelled_cells(
    labels: Any, like: xr.DataArray, *, column: Any = None, layer: Any = None, crs: Any = None
) -> tuple[Array, Array]:
    """Return rows and columns of the cells with a label of any kind: the places of the rules of `rasterize_labels`."""
    box = geobox(like)
    upright = north_up(box)
    form, parsed = form_of(labels, "training"), parsed_crs(crs)
    labelled = np.zeros(box.shape, bool)
    if form == "raster":
        with naming("training", "labels"):
            raster = read_around(labels, parsed, upright)
        if raster.values.size:
            numbers = raster.values.astype("float64")
            missing = raster.missing | ~np.isfinite(numbers)
            labelled = lattice_mean(numbers, missing, raster.transform, raster.crs, upright)[1] >= 0.5
    else:
        try:
            with naming("training", "labels"):
                table = read_table(labels, form, column=column, layer=layer, crs=parsed)
        except LabelsError as error:
            raise LabelsError(f"training: {str(error).removeprefix('training: ')}") from error
        has_label = np.array([v is not None for v in table.values], bool)
        shapes = into_grid(clean(table.shapes[has_label]).shapes, table.crs, upright)
        labelled[cells_of(shapes, upright, "majority")[1:]] = True
    rows, cols = np.nonzero(labelled[::-1] if box.transform.e > 0 else labelled)
    return rows, cols


@dataclass(frozen=True)
class _Scaled:
    """Training vectors with unit variance per number, and the mean distance between them."""

    mean: Array = field(repr=False)
    scale: Array = field(repr=False)
    known: Array = field(repr=False)
    distance: float

    @classmethod
    def of(cls, vectors: Array) -> _Scaled:
        mean, scale = vectors.mean(axis=0), vectors.std(axis=0)
        scale = np.where(scale > 1e-12, scale, 1.0)
        known = (vectors - mean) / scale
        # Distances of a vector to itself are zero, up to rounding, and are not counted.
        pairs = np.sqrt(_squares(known, known))
        np.fill_diagonal(pairs, 0)
        distance = float(pairs.sum() / (len(known) * (len(known) - 1)))
        return cls(mean, scale, known, distance if distance > 0 else 1.0)

    def dissimilarity(self, vectors: Array) -> Array:
        """Return the dissimilarity (n,) of vectors (n, D)."""
        v = (vectors - self.mean) / self.scale
        return np.asarray(np.sqrt(_squares(v, self.known).min(axis=1)) / self.distance)

    def threshold(self, training: CellVectors, block: float | None) -> float:
        """Return the upper whisker of the dissimilarities between training vectors of different blocks."""
        own = np.full(len(self.known), np.nan)
        for train, test in _folds(training, block):
            if train.any() and test.any():
                nearest = _squares(self.known[test], self.known[train]).min(axis=1)
                own[test] = np.sqrt(nearest) / self.distance
        own = own[np.isfinite(own)]
        low, high = np.quantile(own, [0.25, 0.75])
        return float(own[own <= high + 1.5 * (high - low)].max())


def _folds(training: CellVectors, block: float | None) -> Sequence[tuple[Array, Array]]:
    side = block or max(np.ptp(training.x), np.ptp(training.y)) / 6
    try:
        return blocks(training.x, training.y, side, folds=5)
    except (ArgumentError, ZeroDivisionError):
        fold = np.arange(len(training.x)) % min(5, len(training.x))
        return [(fold != f, fold == f) for f in np.unique(fold)]


def _squares(a: Array, b: Array) -> Array:
    """Return the squared distances (n, m) between rows of two arrays."""
    squares = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
    return np.asarray(np.maximum(squares, 0))
