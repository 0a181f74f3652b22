"""Layers of the map: colours, scores and classes of the vectors of a tile, and the cube in true colour; their export.

Colours are stored to look at; scores and classes in a form that the page reads back exactly. A score from -1 to 1 is 16
bits in red (high) and green (low); a class is its code in red and its probability in green. Blue is 255 where there is
no value. Alpha is 255 throughout, because browsers alter the colours of transparent pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from PIL import Image
from rasterio.features import shapes
from rasterio.shutil import copy
from rasterio.warp import transform_geom
from rasterio.windows import Window

from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.georeference import assign_grid, dims, geobox
from deo_cube.cube.open import open_cube
from deo_cube.cube.times import read_times
from deo_cube.cube.units import Radiometry, decide_radiometry, find_unit_error
from deo_cube.embedding import metadata
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError, naming
from deo_cube.heads import vectors
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
    "TrueColour",
    "colour_png",
    "open_for_viewing",
    "read_scores",
    "write_cog",
    "write_geojson",
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


# --- Draw the cube that was embedded in true colour, as the background of the map ---

RGB = ("B04", "B03", "B02")
WHITE = 3000.0
"""DN that is drawn as white."""
STRETCHED = "stretched from the 2nd to the 98th percentile, because the units of the cube are unknown"


def open_for_viewing(path: str | Path) -> xr.Dataset | xr.DataArray:
    """Return the result of `open_cube`, for a GeoTIFF in chunks small enough for the tiles of a map."""
    tif = Path(str(path)).suffix.lower() in (".tif", ".tiff")
    options: dict[str, Any] = {"chunks": {"band": 1, "x": 512, "y": 512}} if tif else {}
    with naming("cube"):
        return open_cube(path, **options)


@dataclass(frozen=True)
class TrueColour:
    """Red, green and blue of a cube, on the grid of the cube.

    Parameters
    ----------
    grid : TileGrid
    source : TileSource
    scale, add : (times, 3) float
        A colour is ``value * scale + add``.
    nodata : float or None
    times : tuple of datetime64
        Dates of the cube; empty where it has none.
    note : str
        How values become colours, for the legend.
    credit : str
        Attribution of the data, from the attributes of the cube.
    """

    grid: TileGrid
    source: TileSource
    scale: Array = field(repr=False)
    add: Array = field(repr=False)
    nodata: float | None
    times: tuple[np.datetime64, ...]
    note: str
    credit: str = ""
    kind: Literal["colour"] = "colour"

    @classmethod
    def of(cls, cube: xr.Dataset | xr.DataArray, emb: xr.DataArray | None = None) -> TrueColour:
        """Return the layer of a cube; reads one chunk per band.

        Bands, units, offset and nodata are those that `emb` records of its cube, if the values of `cube` can have these
        units; else those that the cube states; else colours are stretched, and the note says so.

        Parameters
        ----------
        cube : Dataset or DataArray
        emb : DataArray, optional
            Embeddings of this cube.

        Raises
        ------
        MissingBandsError, MissingCRSError
            If there is no red, green or blue, or no CRS.
        ArgumentError
            If the cube is of another place than the embeddings.
        """
        d = dims(cube)
        tile_grid = TileGrid(geobox(cube))
        if emb is not None:
            _check_same_place(tile_grid, TileGrid(vectors.geobox(emb)))
        match = _match(cube, {} if emb is None else _recorded(emb, "bands").get("bands", {}))
        stack = match.stack(cube)
        labels = read_times(cube[d.time].variable) if d.time else None
        times = tuple(labels.values) if labels is not None and labels.values is not None and labels.dated else ()
        stack = stack.rename({d.time: "time"}) if d.time and d.time != "time" else stack
        stack = stack.transpose(*(("time",) if d.time else ()), "band", d.y, d.x)
        source = TileSource.of(stack, step=512)
        credit = next((str(cube.attrs[k])[:120] for k in ("attribution", "title", "note") if cube.attrs.get(k)), "")
        n = source.shape[0]
        # The middle of a cube most likely has valid pixels.
        sample = source.square(0, source.grid[0] // 2, source.grid[1] // 2).reshape(3, -1).T
        radiometry, note = _radiometry(cube, match, emb, times if times else (None,) * n, sample)
        if radiometry is None:
            valid = sample[(np.isfinite(sample) & (sample != 0)).all(axis=1)]
            low, high = np.percentile(valid if len(valid) else np.ones((1, 3)), [2, 98], axis=0)
            span = np.maximum(high - low, 1e-12)
            scale, add = np.tile(1 / span, (n, 1)), np.tile(-low / span, (n, 1))
            return cls(tile_grid, source, scale, add, 0.0, times, note, credit)
        offsets = np.broadcast_to(np.asarray(radiometry.offset, "float64"), (n,))[:, None]
        scale, add = np.full((n, 3), radiometry.scale / WHITE), np.repeat(offsets, 3, axis=1) / WHITE
        return cls(tile_grid, source, scale, add, radiometry.nodata, times, note, credit)

    def nearest(self, time: str, step: int) -> int:
        """Return the cube's step for a date of the embeddings: the nearest, or the same where there are no dates."""
        try:
            date = np.datetime64(time)
        except ValueError:  # a label that is not a date
            date = np.datetime64("NaT")
        if not self.times or np.isnat(date):
            return step if step < len(self.scale) else 0
        return int(np.argmin([abs((t - date) / np.timedelta64(1, "s")) for t in self.times]))

    def tile(self, t: int, z: int, x: int, y: int) -> Tile:
        """Return the colours of a tile; `t` counts the dates of the cube."""
        sampled = self.source.gather(t, *self.grid.tile(z, x, y))
        v = sampled.vectors.astype("float64")
        bright = (v * self.scale[t] + self.add[t]).clip(0, 1) ** 0.8
        if self.nodata is not None and np.isfinite(self.nodata):
            bright[(v == self.nodata).all(axis=1)] = np.nan
        bright[~np.isfinite(v).all(axis=1)] = np.nan
        return Tile(colour_png(sampled.spread(bright, np.nan)), sampled.complete)


def _recorded(emb: xr.DataArray, name: str) -> dict[str, Any]:
    """Return what embeddings record of the cube that they were made from; empty where they record nothing."""
    try:
        record = json.loads(emb.attrs.get(metadata.PREFIX + name, "{}"))
    except (TypeError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _match(cube: xr.Dataset | xr.DataArray, recorded: Mapping[str, Any]) -> BandMatch:
    """Return red, green and blue: the variables that were embedded, where this cube has them."""
    variables = {b: recorded[b].get("variable") for b in RGB if isinstance(recorded.get(b), Mapping)}
    if set(variables) == set(RGB) and all(isinstance(v, str) for v in variables.values()):
        with contextlib.suppress(DeoCubeError):
            return match_bands(cube, RGB, model="true colour", given=variables)
    return match_bands(cube, RGB, model="true colour")


def _radiometry(
    cube: xr.Dataset | xr.DataArray,
    match: BandMatch,
    emb: xr.DataArray | None,
    times: Sequence[Any],
    sample: Array,
) -> tuple[Radiometry | None, str]:
    """Return the units of the cube, None where they are unknown, and the note that says where they come from."""
    stretch, doubt = f"reflectance 0 to {WHITE / 10000:g}", ""
    if emb is not None and (recorded := _recorded_radiometry(emb, times)) is not None:
        doubt = find_unit_error(sample, recorded) or ""
        if not doubt:
            return recorded, f"{stretch}, units as the embeddings record them"
        doubt = f"; not the units of the embeddings: {doubt.partition(':')[0]}"
    try:
        return decide_radiometry(cube, match), stretch + doubt
    except AmbiguousUnitsError:
        return None, STRETCHED + doubt


def _recorded_radiometry(emb: xr.DataArray, times: Sequence[Any]) -> Radiometry | None:
    """Return the radiometry that embeddings record, for the dates of the cube; None where it lacks some of them."""
    r = _recorded(emb, "radiometry")
    try:
        add = r["add"]
        if isinstance(add, list):
            # One offset per date of the embeddings: each date of the cube takes that of the same date.
            dates = np.atleast_1d(emb["time"].values)
            known = dict(zip(dates.tolist(), add, strict=True))
            add = [known[t.astype(dates.dtype).item()] for t in times]
        nodata = None if r["nodata"] is None else float(r["nodata"])
        return Radiometry(r["units"], float(r["scale"]), tuple(float(a) for a in np.atleast_1d(add)), nodata)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _check_same_place(cube: TileGrid, emb: TileGrid) -> None:
    ((s, w), (n, e)), ((south, west), (north, east)) = cube.bounds, emb.bounds
    if not any(s < north and n > south and w + k < east and e + k > west for k in (-360, 0, 360)):
        raise ArgumentError(
            f"cube= must be the cube that was embedded, at {south:.3f} to {north:.3f} degrees north, {west:.3f} to "
            f"{east:.3f} east; got one at {s:.3f} to {n:.3f} north, {w:.3f} to {e:.3f} east"
        )


# --- Write layers to files: a Cloud-Optimized GeoTIFF, window by window, or polygons as GeoJSON ---

DrawnLayer = ColourLayer | ScoreLayer | ClassLayer

MAX_CELLS = 16_000_000
"""Largest number of cells that are turned into polygons."""
MAX_POLYGONS = 200_000
MAX_BYTES = 512 * 2**20
"""Largest file of polygons."""


def write_cog(layer: DrawnLayer, t: int, path: Path, *, tags: dict[str, str]) -> Iterator[float]:
    """Write one date of a layer as a north-up COG on the grid of the embeddings; yield the share done.

    Similarities are float32 with NaN for none; classes uint8 with 255 for none, a palette and names; PCA colours
    uint8 with 0 for none. Only one window is in memory.
    """
    source, factor = layer.vectors.source, getattr(layer, "upsample", 1)
    box = layer.vectors.grid.box
    rows, cols = (n * factor for n in source.shape[2:])
    transform = box.transform * Affine.scale(1 / factor)
    flipped = transform.e > 0
    if flipped:
        transform = transform * Affine.translation(0, rows) * Affine.scale(1, -1)
    dtype, nodata = _stored(layer)
    unoptimized = path.with_suffix(".part.tif")
    options = {
        "driver": "GTiff", "dtype": dtype, "nodata": nodata, "count": len(layer.bands), "height": rows, "width": cols,
        "crs": box.crs.to_wkt(), "transform": transform, "tiled": True, "blockxsize": 256, "blockysize": 256,
        "BIGTIFF": "IF_SAFER",
    }  # fmt: skip
    try:
        with rasterio.open(unoptimized, "w", **options) as out:
            out.update_tags(**tags)
            for n, name in enumerate(layer.bands):
                out.set_band_description(n + 1, name)
            if isinstance(layer, ClassLayer):
                entries = layer.legend()
                out.update_tags(1, **{f"class_{e['code']}": e["name"] for e in entries})
                out.write_colormap(1, {e["code"]: _rgba(e["color"]) for e in entries} | {NO_CLASS: (0, 0, 0, 0)})
            done, total = 0, source.grid[0] * source.grid[1]
            for i in range(source.grid[0]):
                for j in range(source.grid[1]):
                    r, c = source.window(i, j)
                    part = layer.cells(t, r, c)
                    top = rows - r.stop * factor if flipped else r.start * factor
                    part = part[:, ::-1] if flipped else part
                    out.write(part, window=Window(c.start * factor, top, part.shape[2], part.shape[1]))
                    done += 1
                    yield 0.95 * done / total
        # Classes cannot be averaged.
        resampling = "nearest" if isinstance(layer, ClassLayer) else "average"
        copy(unoptimized, path, driver="COG", compress="DEFLATE", overview_resampling=resampling)
    finally:
        unoptimized.unlink(missing_ok=True)
    yield 1.0


def _stored(layer: DrawnLayer) -> tuple[str, float]:
    if isinstance(layer, ScoreLayer):
        return "float32", float("nan")
    return "uint8", 0 if isinstance(layer, ColourLayer) else NO_CLASS


def _rgba(color: str) -> tuple[int, int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16), 255


def write_geojson(
    layer: ScoreLayer | ClassLayer, t: int, path: Path, *, threshold: float, date: str
) -> Iterator[float]:
    """Write polygons of each class, or of scores of at least `threshold`, in WGS 84; yield the share done.

    Raises
    ------
    ArgumentError
        For a layer that is too large for polygons.
    """
    source, factor = layer.vectors.source, getattr(layer, "upsample", 1)
    rows, cols = (n * factor for n in source.shape[2:])
    if rows * cols > MAX_CELLS:
        raise ArgumentError(
            f"GeoJSON is written for layers of at most {MAX_CELLS / 1e6:.0f} million cells, this one has "
            f"{rows * cols / 1e6:.0f} million: export a COG instead"
        )
    box = layer.vectors.grid.box
    codes = np.full((rows, cols), NO_CLASS, "uint8")
    names = {e["code"]: e for e in layer.legend()} if isinstance(layer, ClassLayer) else {}
    done, total = 0, source.grid[0] * source.grid[1]
    for i in range(source.grid[0]):
        for j in range(source.grid[1]):
            r, c = source.window(i, j)
            part = layer.cells(t, r, c)[0]
            if isinstance(layer, ScoreLayer):
                with np.errstate(invalid="ignore"):
                    part = np.where(part >= threshold, 1, NO_CLASS)
            codes[r.start * factor : r.stop * factor, c.start * factor : c.stop * factor] = part
            done += 1
            yield 0.8 * done / total
    transform = box.transform * Affine.scale(1 / factor)
    crs = rasterio.crs.CRS.from_wkt(box.crs.to_wkt())
    count = 0
    with path.open("w", encoding="utf-8") as out:
        out.write('{"type": "FeatureCollection", "features": [')
        for geometry, code in shapes(codes, mask=codes != NO_CLASS, transform=transform):
            properties: dict[str, Any] = {"date": date} if date else {}
            if isinstance(layer, ClassLayer):
                e = names[int(code)]
                properties |= {"label": e["name"], "class": e["code"], "color": e["color"]}
            else:
                properties |= {"similarity_at_least": threshold}
            degrees = transform_geom(crs, "EPSG:4326", geometry, precision=7)
            feature = {"type": "Feature", "properties": properties, "geometry": degrees}
            out.write((",\n" if count else "\n") + json.dumps(feature))
            count += 1
            if count > MAX_POLYGONS or out.tell() > MAX_BYTES:
                raise ArgumentError(
                    f"GeoJSON is written for at most {MAX_POLYGONS} polygons and {MAX_BYTES // 2**20} MiB, this layer "
                    "has more: export a COG instead, or raise the threshold"
                )
            if count % 1000 == 0:
                yield 0.9
        out.write("\n]}\n")
    yield 1.0
