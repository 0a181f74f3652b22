"""Layers of the map: colours, scores and classes of the vectors of a tile, by the package's own verbs, as PNG.

Colours are stored to look at; scores and classes in a form that the page reads back exactly. A score from -1 to 1 is 16
bits in red (high) and green (low); a class is its code in red and its probability in green. Blue is 255 where there is
no value. Alpha is 255 throughout, because browsers alter the colours of transparent pixels.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from PIL import Image

from deo_cube.cube.georeference import assign_grid
from deo_cube.heads.base import Head
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.pca import PCA, pca_rgb
from deo_cube.heads.similar import similar
from deo_cube.viewer.tiles import SIZE, SampledVectors, TileGrid, TileSource

__all__ = [
    "ClassLayer",
    "ColourLayer",
    "PCALayer",
    "QuantityLayer",
    "ScoreLayer",
    "Tile",
    "TileVectors",
    "colour_png",
    "read_scores",
]

Array = NDArray[Any]

#: Red, green and blue of the lowest to the highest quantity (ColorBrewer's YlGn).
QUANTITY_COLORS = ((255, 255, 229), (217, 240, 163), (120, 198, 121), (35, 132, 67), (0, 69, 41))


@dataclass(frozen=True)
class Tile:
    """A tile as PNG.

    Parameters
    ----------
    png : bytes
    complete : bool
        Whether each pixel shows its own cell.
    zoom_in : bool
        Whether the tile is empty because the layer is drawn at higher zoom levels only.
    """

    png: bytes
    complete: bool = True
    zoom_in: bool = False


@dataclass(frozen=True)
class TileVectors:
    """Embeddings as the layers read them.

    Parameters
    ----------
    emb : DataArray
        ([time,] embedding, y, x), for attributes and grid; values are read through `source`.
    grid : TileGrid
    source : TileSource
    """

    emb: xr.DataArray
    grid: TileGrid
    source: TileSource

    def sampled(self, t: int, z: int, x: int, y: int) -> SampledVectors:
        """Return the vectors of a tile."""
        return self.source.gather(t, *self.grid.tile(z, x, y))

    def frame(self, vectors: Array) -> xr.DataArray:
        """Return vectors (n, D) as an array (embedding, y, x) of n rows and one column, as verbs take them."""
        return xr.DataArray(vectors.T[:, :, None], dims=("embedding", "y", "x"), attrs=self.emb.attrs)

    def window(self, t: int, rows: slice, cols: slice) -> xr.DataArray:
        """Return a window as an array (embedding, y, x) with its grid."""
        box = self.grid.box[rows, cols]
        array = xr.DataArray(self.source.block(t, rows, cols), dims=("embedding", "y", "x"), attrs=self.emb.attrs)
        placed: xr.DataArray = assign_grid(array, box)
        return placed

    def sample(self, times: Sequence[int]) -> Array:
        """Return a sample (n, D) of the valid vectors of some dates, within the budget of a tile per date."""
        return np.concatenate([self.source.sample(t) for t in times])


class ColourLayer(ABC):
    """Colours of vectors, which are drawn as they are."""

    vectors: TileVectors
    kind: Literal["colour"] = "colour"
    bands: tuple[str, ...] = ("red", "green", "blue")

    @abstractmethod
    def colours(self, vectors: Array) -> Array:
        """Return the colours (n, 3) of vectors (n, D) in 0..1, NaN for none."""

    def tile(self, t: int, z: int, x: int, y: int) -> Tile:
        """Return the colours of a tile."""
        sampled = self.vectors.sampled(t, z, x, y)
        return Tile(colour_png(sampled.spread(self.colours(sampled.vectors), np.nan)), sampled.complete)

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Return the colours (3, h, w) of a window, 1 to 255; 0 for none."""
        block = self.vectors.source.block(t, rows, cols)
        rgb = self.colours(block.reshape(len(block), -1).T).T.reshape(3, *block.shape[1:])
        return np.where(np.isfinite(rgb), np.nan_to_num(rgb) * 254 + 1, 0).round().astype("uint8")


@dataclass(frozen=True)
class PCALayer(ColourLayer):
    """Principal components as colours; `basis` None selects the basis bundled with the model."""

    vectors: TileVectors
    basis: PCA | None

    def colours(self, vectors: Array) -> Array:
        """Return the colours (n, 3) of vectors (n, D)."""
        if not len(vectors):
            return np.empty((0, 3), "float32")
        rgb = pca_rgb(self.vectors.frame(vectors), basis=self.basis).transpose("y", "x", "band")
        return np.asarray(rgb.values[:, 0])


@dataclass(frozen=True)
class QuantityLayer(ColourLayer):
    """A quantity of a regression head, from `low` (yellow) to `high` (dark green)."""

    vectors: TileVectors
    head: Head
    low: float
    high: float

    @classmethod
    def of(cls, vectors: TileVectors, head: Head) -> QuantityLayer:
        """Return the layer whose colours span the middle 96 % of a sample."""
        values = cls(vectors, head, 0.0, 1.0).values(vectors.sample(range(vectors.emb.sizes.get("time", 1))))
        values = values[np.isfinite(values)]
        low, high = np.quantile(values, [0.02, 0.98]) if len(values) else (0.0, 1.0)
        return cls(vectors, head, float(low), float(high) if high > low else float(low) + 1)

    def values(self, vectors: Array) -> Array:
        """Return the quantity (n,) of vectors (n, D)."""
        if not len(vectors):
            return np.empty(0, "float32")
        return np.asarray(self.head.predict(self.vectors.frame(vectors)).values[:, 0])

    def colours(self, vectors: Array) -> Array:
        """Return the colours (n, 3) of vectors (n, D)."""
        place = (self.values(vectors) - self.low) / (self.high - self.low)
        stops = np.linspace(0, 1, len(QUANTITY_COLORS))
        return np.stack([np.interp(place, stops, c) for c in np.array(QUANTITY_COLORS).T / 255], axis=1)

    def note(self) -> str:
        """Return what the colours mean."""
        return f"{self.low:.3g} (yellow) to {self.high:.3g} (green) {getattr(self.head, 'units', '')}".strip()


@dataclass(frozen=True)
class ScoreLayer:
    """Cosine similarity to examples (k, D), or to a direction (1, D); of several the most similar counts."""

    vectors: TileVectors
    examples: Array = field(repr=False)
    kind: Literal["score"] = "score"
    bands: tuple[str, ...] = ("similarity",)

    def tile(self, t: int, z: int, x: int, y: int) -> Tile:
        """Return the scores of a tile."""
        sampled = self.vectors.sampled(t, z, x, y)
        return Tile(score_png(sampled.spread(self.scores(sampled.vectors), np.nan)), sampled.complete)

    def scores(self, vectors: Array) -> Array:
        """Return the scores (n,) of vectors (n, D)."""
        if not len(vectors):
            return np.empty(0, "float32")
        to = xr.DataArray(self.examples, dims=("case", "embedding"))
        return np.asarray(similar(self.vectors.frame(vectors), to).values[:, 0])

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Return the scores (1, h, w) of a window, float32."""
        block = self.vectors.source.block(t, rows, cols)
        return self.scores(block.reshape(len(block), -1).T).reshape(1, *block.shape[1:]).astype("float32")


@dataclass(frozen=True)
class ClassLayer:
    """Classes of a head, with their probabilities.

    A head that sees neighbours (`halo` > 0) is drawn only where all vectors of a tile are read, because sampled vectors
    have other neighbours.

    Parameters
    ----------
    vectors : TileVectors
    head : Head
    names : tuple of str
        Names of the classes as the user wrote them, where the head has words that are valid in CF.
    """

    vectors: TileVectors
    head: Head
    names: tuple[str, ...] = ()
    kind: Literal["class"] = "class"
    bands: tuple[str, ...] = ("class",)

    @property
    def halo(self) -> int:
        """Cells of context that the head needs on each side."""
        return int(getattr(self.head, "halo", 0))

    @property
    def upsample(self) -> int:
        """Predicted cells along the side of a patch."""
        return int(getattr(self.head, "upsample", 1))

    def tile(self, t: int, z: int, x: int, y: int) -> Tile:
        """Return the classes of a tile."""
        if self.halo or self.upsample > 1:
            return self._tile_with_neighbours(t, *self.vectors.grid.tile(z, x, y))
        sampled = self.vectors.sampled(t, z, x, y)
        if len(sampled.vectors):
            codes, probabilities = self._predict(self.vectors.frame(sampled.vectors))
        else:
            codes, probabilities = np.empty((0, 1), "uint8"), np.empty((0, 1), "float32")
        png = class_png(sampled.spread(codes[:, 0], NO_CLASS), sampled.spread(probabilities[:, 0], 0))
        return Tile(png, sampled.complete)

    def _tile_with_neighbours(self, t: int, rows: Array, cols: Array) -> Tile:
        height, width = self.vectors.source.shape[2:]
        with np.errstate(invalid="ignore"):
            inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        if not inside.any():
            return Tile(empty_png(SIZE))
        around = [
            slice(max(int(v[inside].min()) - self.halo, 0), min(int(v[inside].max()) + self.halo + 1, n))
            for v, n in ((rows, height), (cols, width))
        ]
        if self.vectors.source.squares_of(*around) > self.vectors.source.max_squares:
            return Tile(empty_png(SIZE), complete=False, zoom_in=True)
        codes, probabilities = self._predict(self.vectors.window(t, *around))
        cells = tuple(
            np.where(inside, (v - s.start) * self.upsample, 0).astype(int).clip(0, n - 1)
            for v, s, n in zip((rows, cols), around, codes.shape, strict=True)
        )
        return Tile(class_png(np.where(inside, codes[cells], NO_CLASS), np.where(inside, probabilities[cells], 0)))

    def _predict(self, window: xr.DataArray) -> tuple[Array, Array]:
        """Return codes and probabilities (h, w)."""
        p = self.head.predict(window, probabilities=True).transpose("class", "y", "x").values
        best = np.array(self.head.classes.codes, "uint8")[np.nan_to_num(p, nan=-1).argmax(axis=0)]
        return np.where(np.isfinite(p).all(axis=0), best, np.uint8(NO_CLASS)), np.nan_to_num(p.max(axis=0))

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Return the classes (1, h f, w f) of a window, uint8."""
        height, width = self.vectors.source.shape[2:]
        h = self.halo
        around = (
            slice(max(rows.start - h, 0), min(rows.stop + h, height)),
            slice(max(cols.start - h, 0), min(cols.stop + h, width)),
        )
        codes, _ = self._predict(self.vectors.window(t, *around))
        top, left = (rows.start - around[0].start) * self.upsample, (cols.start - around[1].start) * self.upsample
        tall, wide = (rows.stop - rows.start) * self.upsample, (cols.stop - cols.start) * self.upsample
        return codes[None, top : top + tall, left : left + wide]

    def legend(self) -> list[dict[str, Any]]:
        """Return code, name and colour of each class."""
        c = self.head.classes
        names = self.names or c.names
        return [{"code": k, "name": n, "color": v} for k, n, v in zip(c.codes, names, c.colors, strict=True)]


# ---- PNG ------------------------------------------------------------------------------------------------------------


def _png(pixels: Array, mode: str) -> bytes:

    out = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels), mode).save(out, "PNG", compress_level=1)
    return out.getvalue()


def colour_png(rgb: Array) -> bytes:
    """Return the PNG of colours (h, w, 3) in 0..1, transparent where NaN."""
    valid: Array = np.asarray(np.isfinite(rgb).all(axis=-1))
    values = (np.where(valid[..., None], rgb, 0).clip(0, 1) * 255).round().astype("uint8")
    return _png(np.concatenate([values, np.where(valid, 255, 0).astype("uint8")[..., None]], axis=-1), "RGBA")


def empty_png(size: int) -> bytes:
    """Return a transparent PNG: no colour, no score and no class."""
    return _png(np.zeros((size, size, 4), "uint8"), "RGBA")


def score_png(scores: Array) -> bytes:
    """Return the PNG of scores (h, w) in -1..1, exact to 1/65534; NaN for none."""
    valid = np.isfinite(scores)
    stored = (np.where(valid, scores, 0).clip(-1, 1) * 32767 + 32767).round().astype("uint16")
    return _png(np.stack([stored >> 8, stored & 255, np.where(valid, 0, 255)], axis=-1).astype("uint8"), "RGB")


def read_scores(png: bytes) -> Array:
    """Return the scores that `score_png` wrote, as the page reads them."""
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype("float64")
    return np.where(pixels[..., 2] == 255, np.nan, (pixels[..., 0] * 256 + pixels[..., 1] - 32767) / 32767)


def class_png(codes: Array, probabilities: Array) -> bytes:
    """Return the PNG of class codes (h, w), 255 for none, and their probabilities in 0..1."""
    chance = (np.nan_to_num(probabilities).clip(0, 1) * 255).round()
    return _png(np.stack([codes, chance, np.where(codes == 255, 255, 0)], axis=-1).astype("uint8"), "RGB")
