"""What a map shows: colours, scores and classes of the vectors found for a tile, by the package's own verbs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.georeference import assign_grid
from deo_cube.heads.classes import NO_CLASS
from deo_cube.heads.head import Head
from deo_cube.heads.pca import PCA, pca_rgb
from deo_cube.heads.similar import similar
from deo_cube.heads.windows import finer
from deo_cube.view import paint
from deo_cube.view.places import SIZE, Places
from deo_cube.view.source import Sampled, Source

__all__ = ["ClassLayer", "Drawn", "PCALayer", "ScoreLayer", "Vectors"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Drawn:
    """A tile: its PNG, and whether each pixel shows its own place (`complete`) or `zoom_in` is wanted to see any."""

    png: bytes
    complete: bool = True
    zoom_in: bool = False


@dataclass(frozen=True)
class Vectors:
    """Embeddings as the layers read them.

    Parameters
    ----------
    emb : DataArray
        [time,] embedding, y, x: its attributes and grid; pixels are read through `source`.
    places : Places
        Its grid on a web map.
    source : Source
    """

    emb: xr.DataArray
    places: Places
    source: Source

    def sampled(self, t: int, z: int, x: int, y: int) -> Sampled:
        """Vectors of a tile."""
        return self.source.gather(t, *self.places.tile(z, x, y))

    def frame(self, vectors: Array) -> xr.DataArray:
        """Vectors (n, D) as an array (embedding, y, x) that verbs take: n rows, one column, without a map."""
        return xr.DataArray(vectors.T[:, :, None], dims=("embedding", "y", "x"), attrs=self.emb.attrs)

    def window(self, t: int, rows: slice, cols: slice) -> xr.DataArray:
        """A window as an array (embedding, y, x) on the map."""
        box = self.places.box[rows, cols]
        array = xr.DataArray(self.source.block(t, rows, cols), dims=("embedding", "y", "x"), attrs=self.emb.attrs)
        placed: xr.DataArray = assign_grid(array, box)
        return placed

    def some(self, times: Sequence[int]) -> Array:
        """A sample (n, D) of the valid vectors of some dates, within the budget of a tile each."""
        return np.concatenate([self.source.scatter(t) for t in times])


@dataclass(frozen=True)
class PCALayer:
    """Principal components as colours."""

    vectors: Vectors
    basis: PCA | None
    """None: the basis bundled with the model."""
    kind: Literal["colour"] = "colour"
    bands: tuple[str, ...] = ("red", "green", "blue")

    def tile(self, t: int, z: int, x: int, y: int) -> Drawn:
        """Colours of a tile."""
        found = self.vectors.sampled(t, z, x, y)
        return Drawn(paint.colour_png(found.spread(self.colours(found.vectors), np.nan)), found.complete)

    def colours(self, vectors: Array) -> Array:
        """Colours (n, 3) of vectors (n, D)."""
        if not len(vectors):
            return np.empty((0, 3), "float32")
        rgb = pca_rgb(self.vectors.frame(vectors), basis=self.basis).transpose("y", "x", "band")
        return np.asarray(rgb.values[:, 0])

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Colours (3, h, w) of a window, 1 to 255; 0 for none."""
        block = self.vectors.source.block(t, rows, cols)
        rgb = self.colours(block.reshape(len(block), -1).T).T.reshape(3, *block.shape[1:])
        return np.where(np.isfinite(rgb), np.nan_to_num(rgb) * 254 + 1, 0).round().astype("uint8")


@dataclass(frozen=True)
class ScoreLayer:
    """Cosine similarity to examples; of several the best counts."""

    vectors: Vectors
    examples: Array = field(repr=False)
    """(k, D)."""
    kind: Literal["score"] = "score"
    bands: tuple[str, ...] = ("similarity",)

    def tile(self, t: int, z: int, x: int, y: int) -> Drawn:
        """Scores of a tile."""
        found = self.vectors.sampled(t, z, x, y)
        return Drawn(paint.score_png(found.spread(self.scores(found.vectors), np.nan)), found.complete)

    def scores(self, vectors: Array) -> Array:
        """Scores (n,) of vectors (n, D)."""
        if not len(vectors):
            return np.empty(0, "float32")
        to = xr.DataArray(self.examples, dims=("case", "embedding"))
        return np.asarray(similar(self.vectors.frame(vectors), to).values[:, 0])

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Scores (1, h, w) of a window, float32."""
        block = self.vectors.source.block(t, rows, cols)
        return self.scores(block.reshape(len(block), -1).T).reshape(1, *block.shape[1:]).astype("float32")


@dataclass(frozen=True)
class ClassLayer:
    """Classes by a head, with their probabilities.

    A head that looks at neighbours (`halo` > 0) is drawn only where a tile is read whole: thinned-out vectors have
    other neighbours.
    """

    vectors: Vectors
    head: Head
    names: tuple[str, ...] = ()
    """As they were written, where the head's own names were made fit for CF."""
    kind: Literal["class"] = "class"
    bands: tuple[str, ...] = ("class",)

    @property
    def halo(self) -> int:
        """Cells of context that the head wants on each side."""
        return int(getattr(self.head, "halo", 0))

    @property
    def fine(self) -> int:
        """Cells that the head draws along the side of a patch."""
        return int(getattr(self.head, "upsample", 1))

    def tile(self, t: int, z: int, x: int, y: int) -> Drawn:
        """Classes of a tile."""
        if self.halo or self.fine > 1:
            return self._tile_of_neighbours(t, *self.vectors.places.tile(z, x, y))
        found = self.vectors.sampled(t, z, x, y)
        codes, chances = self._decided(self.vectors.frame(found.vectors)) if len(found.vectors) else _NOTHING
        png = paint.class_png(found.spread(codes[:, 0], NO_CLASS), found.spread(chances[:, 0], 0))
        return Drawn(png, found.complete)

    def _tile_of_neighbours(self, t: int, rows: Array, cols: Array) -> Drawn:
        height, width = self.vectors.source.shape[2:]
        with np.errstate(invalid="ignore"):
            inside = (rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)
        if not inside.any():
            return Drawn(paint.empty_png(SIZE))
        around = [
            slice(max(int(v[inside].min()) - self.halo, 0), min(int(v[inside].max()) + self.halo + 1, n))
            for v, n in ((rows, height), (cols, width))
        ]
        if self.vectors.source.squares_of(*around) > self.vectors.source.most:
            return Drawn(paint.empty_png(SIZE), complete=False, zoom_in=True)
        codes, chances = self._decided(self.vectors.window(t, *around))
        at = tuple(
            np.where(inside, (v - s.start) * self.fine, 0).astype(int).clip(0, n - 1)
            for v, s, n in zip((rows, cols), around, codes.shape, strict=True)
        )
        return Drawn(paint.class_png(np.where(inside, codes[at], NO_CLASS), np.where(inside, chances[at], 0)))

    def _decided(self, window: xr.DataArray) -> tuple[Array, Array]:
        """Codes and probabilities (h, w)."""
        p = self.head.predict(window, probabilities=True).transpose("class", "y", "x").values
        best = np.array(self.head.classes.codes, "uint8")[np.nan_to_num(p, nan=-1).argmax(axis=0)]
        return np.where(np.isfinite(p).all(axis=0), best, np.uint8(NO_CLASS)), np.nan_to_num(p.max(axis=0))

    def cells(self, t: int, rows: slice, cols: slice) -> Array:
        """Classes (1, h f, w f) of a window, uint8."""
        height, width = self.vectors.source.shape[2:]
        h = self.halo
        around = (
            slice(max(rows.start - h, 0), min(rows.stop + h, height)),
            slice(max(cols.start - h, 0), min(cols.stop + h, width)),
        )
        codes, _ = self._decided(self.vectors.window(t, *around))
        top, left = (rows.start - around[0].start) * self.fine, (cols.start - around[1].start) * self.fine
        tall, wide = (rows.stop - rows.start) * self.fine, (cols.stop - cols.start) * self.fine
        return codes[None, top : top + tall, left : left + wide]

    @property
    def box(self) -> Any:
        """Grid of what `cells` gives."""
        return finer(self.vectors.places.box, self.fine)

    def legend(self) -> list[dict[str, Any]]:
        """Code, name and colour of each class."""
        c = self.head.classes
        names = self.names or c.names
        return [{"code": k, "name": n, "color": v} for k, n, v in zip(c.codes, names, c.colors, strict=True)]


_NOTHING = np.empty((0, 1), "uint8"), np.empty((0, 1), "float32")
