"""Gather the embeddings of cells with their places, as heads are fitted on them; join those of several arrays.

Cells are counted in rows; a cell has one vector per time, of which the valid ones count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.arguments import integer, number
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.splits import blocks
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["CellVectors", "FoldOptions", "Folds", "TrainingVectors", "check_strengths", "gather", "join", "set_checked"]

Array = NDArray[Any]

#: Vectors that a random part keeps of each class.
PER_CLASS = 100


@dataclass(frozen=True, kw_only=True)
class FoldOptions:
    """Options of heads that are validated in blocks of space.

    Parameters
    ----------
    block : float, optional
        Side of a block in units of the CRS. Default: the labelled area divided into about 6 x 6 blocks.
    buffer : float, optional
        Training cells nearer than this to a test cell are left out. Default: the side of a cell.
    most : int
        Fit on a random subsample of this size where there are more vectors.
    """

    block: float | None = None
    buffer: float | None = None
    most: int = 50000

    def __post_init__(self) -> None:
        if self.block is not None:
            number("block", self.block, above=0)
        if self.buffer is not None:
            number("buffer", self.buffer, minimum=0)
        set_checked(self, most=integer("most", self.most))


def set_checked(options: Any, **values: Any) -> None:
    """Set fields of frozen options to what a check returned: an int for a NumPy integer, which JSON does not take."""
    for name, value in values.items():
        object.__setattr__(options, name, value)


def check_strengths(strengths: Any) -> None:
    """Refuse candidates for a strength of regularisation that are not a list of positive numbers."""
    if not isinstance(strengths, Sequence | np.ndarray) or isinstance(strengths, str) or not len(strengths):
        raise ArgumentTypeError(f"strengths must be a list of positive numbers, got {strengths!r:.60}")
    for strength in strengths:
        number("strengths", strength, above=0)


@dataclass(frozen=True)
class Folds:
    """Masks of the training and test vectors of each fold, of blocks of `side` with a `buffer` between them."""

    pairs: list[tuple[Array, Array]]
    side: float
    buffer: float

    def __str__(self) -> str:
        return f"{len(self.pairs)} folds of blocks of {self.side:g}, buffer {self.buffer:g}"


@dataclass(frozen=True)
class CellVectors:
    """Valid embeddings of cells.

    Parameters
    ----------
    vectors : (n, D) float
        Valid embeddings.
    x, y : (n,) float
        Centres of the cells, in the CRS of the embeddings.
    cell : (n,) int
        Number of the cell, which is the same at every time.
    cell_size : float
        Side of a cell in units of the CRS.
    crs : str
        Of the coordinates; empty where arrays have several.
    """

    vectors: Array = field(repr=False)
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    cell: Array = field(repr=False)
    cell_size: float
    crs: str

    @property
    def columns(self) -> dict[str, Any]:
        """Every array, by name: each has one entry per vector."""
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}

    def take(self, i: Array) -> Self:
        """Return the vectors `i`, with what belongs to each."""
        return replace(self, **{name: values[i] for name, values in self.columns.items()})

    def subsample(self, most: int) -> Self:
        """Return a random `most` of the vectors where there are more."""
        n = len(self.vectors)
        return self if n <= most else self.take(np.sort(np.random.default_rng(0).choice(n, most, replace=False)))


@dataclass(frozen=True)
class TrainingVectors(CellVectors):
    """Embeddings of cells of which the truth is known. An area of applicability needs none, so cells may be without.

    Parameters
    ----------
    truth : (n,) uint8 or float64
        Code of the class of each vector, or its target.
    weights : (n,) float64
        Weight of each target; 1 for classes.
    """

    truth: Array = field(repr=False)
    weights: Array = field(repr=False)

    def block_sizes(self, block: float | None, buffer: float | None) -> tuple[float, float]:
        """Return side and buffer of blocks of space: about 6 x 6 blocks and the side of a cell where they are None."""
        side = block or max(np.ptp(self.x), np.ptp(self.y), self.cell_size) / 6
        return float(side), self.cell_size if buffer is None else buffer

    def folds(self, n: int, block: float | None, buffer: float | None) -> Folds | None:
        """Return the folds of a cross-validation in blocks of space that can be trained and tested.

        Parameters
        ----------
        n : int
            Number of folds.
        block, buffer : float, optional
            Side of a block, and the distance to a test cell within which training cells are left out, in units of the
            CRS. Default: those of `block_sizes`.

        Returns
        -------
        Folds or None
            None where fewer than two folds have a test cell, and training cells of different truth.
        """
        side, buffer = self.block_sizes(block, buffer)
        try:
            pairs = blocks(self.x, self.y, side, folds=n, buffer=buffer)
        except ArgumentError:
            return None
        usable = [(train, test) for train, test in pairs if test.any() and len(np.unique(self.truth[train])) > 1]
        return Folds(usable, side, buffer) if len(usable) > 1 else None

    @classmethod
    def of(cls, cells: CellVectors, truth: Array, weights: Array | None = None) -> Self:
        """Add the truth to cells, from maps (y, x) of it and of its weights."""
        known = np.ones(len(cells.cell)) if weights is None else weights.ravel()[cells.cell]
        return cls(**vars(cells), truth=truth.ravel()[cells.cell], weights=known)

    def subsample_classes(self, most: int) -> Self:
        """Return a random `most` of the vectors where there are more, and at least `PER_CLASS` of each class."""
        n = len(self.truth)
        if n <= most:
            return self
        rng = np.random.default_rng(0)
        chosen = rng.choice(n, most, replace=False)
        for code in np.unique(self.truth):
            own = np.flatnonzero(self.truth == code)
            if np.isin(own, chosen).sum() < PER_CLASS:
                chosen = np.union1d(chosen, rng.choice(own, min(PER_CLASS, len(own)), replace=False))
        return self.take(np.sort(chosen))


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
    cell, box = rows * emb.sizes[x] + cols, geobox(emb)
    return CellVectors(vectors[valid], xs[case], ys[case], cell[case], abs(float(box.resolution.x)), str(box.crs))


T = TypeVar("T", bound=CellVectors)


def join(parts: Sequence[T]) -> T:
    """Return several sets of cells as one.

    Arrays may be in different CRSs. They are placed far apart, so that no block of space holds cells of two.
    """
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {name: np.concatenate([p.columns[name] for p in parts]) for name in parts[0].columns}
    ends = np.cumsum([0] + [int(p.cell.max(initial=0)) + 1 for p in parts])
    columns["cell"] = np.concatenate([p.cell + e for p, e in zip(parts, ends[:-1], strict=True)])
    spread = max((float(np.ptp(v)) for p in parts for v in (p.x, p.y) if len(v)), default=0.0)
    far = spread * 4 + 1000 * parts[0].cell_size
    columns["x"] = np.concatenate([p.x - p.x.min(initial=np.inf) + i * far for i, p in enumerate(parts)])
    columns["y"] = np.concatenate([p.y - p.y.min(initial=np.inf) for p in parts])
    return replace(parts[0], **columns, crs="")
