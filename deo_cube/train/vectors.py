"""Vectors of an embedding store on the grid of a training cube: what a store teaches at each place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from deo_cube.constants import Attribute
from deo_cube.cube.georeference import geobox, ground_resolution
from deo_cube.store.open import open_embeddings

__all__ = ["StoreInfo", "VectorMap", "open_store", "shared_region", "store_info"]

Array = NDArray[Any]

IN_MEMORY = 256e6
"""Bytes of a store that is read at once: a window of a shard costs milliseconds, of an array microseconds."""


def open_store(path: str) -> xr.DataArray:
    """Return the embeddings at `path` as (time, embedding, y, x), whatever produced them.

    Raises
    ------
    StoreMismatchError
        If there are no embeddings in a known layout.
    """
    emb = open_embeddings(path)
    if "time" not in emb.dims:
        emb = emb.expand_dims("time")
    y, x = emb.dims[-2:]
    return emb.transpose("time", "embedding", y, x)


def _box(emb: xr.DataArray) -> GeoBox:
    return geobox(emb.isel(time=0, embedding=0, drop=True))


@dataclass(frozen=True)
class StoreInfo:
    """The facts about a store that a run records, without its pixels."""

    dim: int
    """Channels."""
    sha256: str
    """Of its attributes, grid and dates: another store, or another model's, has another one."""
    licence: str
    model: str
    """Name of the model that made it."""


def store_info(path: str) -> StoreInfo:
    """Return the facts about the store at `path`."""
    emb = open_store(path)
    attrs = {k: str(v) for k, v in emb.attrs.items()}
    box = _box(emb)
    key = [attrs, list(emb.shape), str(box.crs), [*box.affine][:6], [str(t) for t in emb.get_index("time")]]
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    licence = attrs.get(Attribute.LICENSE_WEIGHTS) or attrs.get("license") or "see the store"
    return StoreInfo(emb.sizes["embedding"], digest, licence, attrs.get(Attribute.MODEL, "an unknown model"))


def shared_region(grid: GeoBox, other: GeoBox) -> tuple[int, int, int, int] | None:
    """Return first and last row (exclusive), first and last column of `grid` within the bounds of `other`, or None."""
    corners = other.extent.to_crs(grid.crs, resolution="auto").boundingbox
    inverse = ~grid.affine
    points = [inverse * (x, y) for x in (corners.left, corners.right) for y in (corners.bottom, corners.top)]
    cols, rows = zip(*points, strict=True)
    tiny = 1e-6 * max(grid.shape)
    first = [max(0, int(np.ceil(min(v) - tiny))) for v in (rows, cols)]
    last = [min(n, int(np.floor(max(v) + tiny))) for v, n in zip((rows, cols), grid.shape, strict=True)]
    if first[0] >= last[0] or first[1] >= last[1]:
        return None
    return first[0], last[0], first[1], last[1]


@dataclass
class VectorMap:
    """The vectors of a store, read on windows of a cube.

    Parameters
    ----------
    path : str
        A store that `open_embeddings` reads, in any CRS.
    grid : GeoBox
        Of the cube.
    times : ndarray of datetime64, or None
        Dates of the cube. Each is taught by the store's date that is nearest to it.
    step : int
        Pixels of the cube along a side of a cell of the target.

    """

    path: str
    grid: GeoBox
    times: Array | None
    step: int
    region: tuple[int, int, int, int] = field(init=False)
    """First and last row (exclusive), first and last column of the cube within the store; zeros where none is."""
    _date: list[int] = field(default_factory=list, init=False, repr=False)
    _open: Any = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        emb = open_store(self.path)
        self._box = _box(emb)
        self.region = shared_region(self.grid, self._box) or (0, 0, 0, 0)
        own = emb.get_index("time").values
        if self.times is None or own.dtype.kind != "M":
            self._date = [0] * (1 if self.times is None else len(self.times))
        else:
            self._date = [int(np.argmin(np.abs(own - t.astype(own.dtype)))) for t in self.times]
        finest, cube = min(ground_resolution(self._box)), min(ground_resolution(self.grid))
        # Points per side of a cell: as many as the store has pixels there, so that finer vectors are averaged.
        self._points = max(1, min(self.step, round(self.step * cube / finest)))
        same = self._box.crs == self.grid.crs
        self._to_store = None if same else Transformer.from_crs(str(self.grid.crs), str(self._box.crs), always_xy=True)

    @property
    def empty(self) -> bool:
        """True if store and cube share no whole pixel."""
        return self.region[1] == 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _vectors(self) -> Any:
        if self._open is None:
            emb = open_store(self.path)
            self._open = emb.values if emb.nbytes < IN_MEMORY else emb
        return self._open

    def read(self, t: int, row: int, col: int, height: int, width: int, size: int) -> tuple[Array, Array]:
        """Return the vectors of a window of the cube.

        Parameters
        ----------
        t : int
            Date of the cube.
        row, col, height, width : int
            Of the window, in pixels of the cube.
        size : int
            Side that the window is mirrored to at its bottom and right, as the sample is.

        Returns
        -------
        ndarray (D, size // step, size // step) float32
            The mean over each cell; 0 where nothing is known.
        ndarray (size // step, size // step) bool
            Cells of which at least half is known.
        """
        n, k = size // self.step, self._points
        points = (np.arange(n * k) + 0.5) * self.step / k
        x, y = np.meshgrid(col + _reflected(points, width), row + _reflected(points, height))
        x, y = self.grid.affine * (x, y)
        if self._to_store is not None:
            x, y = self._to_store.transform(x, y)
        x, y = ~self._box.affine * (x, y)
        cols, rows = np.floor(x).astype(int), np.floor(y).astype(int)
        inside = (rows >= 0) & (rows < self._box.shape[0]) & (cols >= 0) & (cols < self._box.shape[1])
        rows, cols = rows.clip(0, self._box.shape[0] - 1), cols.clip(0, self._box.shape[1] - 1)
        top, left = rows.min(), cols.min()
        part = self._vectors()[self._date[t], :, top : rows.max() + 1, left : cols.max() + 1]
        values = np.asarray(part, "float32")[:, rows - top, cols - left]
        known = inside & np.isfinite(values).all(axis=0)
        cells = np.where(known, values, 0).reshape(len(values), n, k, n, k).sum(axis=(2, 4))
        count = known.reshape(n, k, n, k).sum(axis=(1, 3))
        return (cells / np.maximum(count, 1)).astype("float32"), 2 * count >= k * k


def _reflected(points: Array, size: int) -> Array:
    points = points % (2 * size)
    return np.where(points > size, 2 * size - points, points)
