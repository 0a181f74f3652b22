"""Training samples: random windows of cubes, of RGB images, and of the vectors of embedding stores.

Sample number i of a run is the same in any process, worker or resumed run: source, place and date are drawn from
``default_rng([seed, i])``. Each worker opens a source once and keeps it open.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from torch import Tensor
from torch.utils.data import DataLoader

from deo_cube.constants import TCI_SCALE, TCI_WHITE, Attribute
from deo_cube.cube.bands import match_bands
from deo_cube.cube.georeference import dims, geobox, ground_resolution
from deo_cube.cube.masks import check_classes, hidden_classes
from deo_cube.cube.open import open_cube
from deo_cube.cube.units import Radiometry, decide_radiometry, find_unit_error
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.heads.splits import split_groups
from deo_cube.paths import expand, not_found
from deo_cube.store.open import open_embeddings
from deo_cube.train.augment import column
from deo_cube.train.config import MS_BANDS, Loader, TrainConfig

__all__ = [
    "ArraySource",
    "Batch",
    "CubeSource",
    "FineImage",
    "ImageSource",
    "Mixture",
    "OpenCube",
    "TrainingWindow",
    "SampleSource",
    "SourceSpec",
    "StoreInfo",
    "VectorMap",
    "batches",
    "open_source",
    "open_store",
    "shared_region",
    "store_info",
    "typical_pixels",
    "windows_for",
]


Array = NDArray[Any]

# --- Vectors of an embedding store on the grid of a training cube: what a store teaches at each place ---

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


if TYPE_CHECKING:
    import xarray as xr


# --- samples ---

Kind = Literal["ms", "rgb"]

IMAGES = (".jpg", ".jpeg", ".png")
NO_FILL = (0.0,) * len(MS_BANDS)
#: Windows that are drawn until one is valid enough.
TRIES = 12


class TrainingWindow(NamedTuple):
    """A window as it was read."""

    image: Array
    """(C, S, S) float32 DN."""
    ok: Array
    """(S, S) bool: valid pixels."""
    fine: Array | None = None
    """(3, k S, k S) float32 DN: high-resolution RGB of the same ground."""
    level: float = 0.0
    """Product level: 0 for L2A, 1 for L1C."""
    vectors: Array | None = None
    """(D, S / step, S / step) float32: vectors of an embedding store, 0 where it has none."""
    known: Array | None = None
    """(S / step, S / step) bool: where it has some."""


@dataclass(frozen=True)
class SourceSpec:
    """A source as written on the command line: ``PATH[,weight=2][,offset=0][,units=dn][,missing=nearest]...``."""

    path: str
    weight: float = 1.0
    """Share of the samples of its kind, relative to the other sources' weights."""
    units: str = "auto"
    """See `ds.deo.embed`."""
    offset: str | float = "auto"
    """DN to add: 0 or -1000."""
    nodata: str | float = "auto"
    """Value of pixels without data."""
    missing: str = "raise"
    """Bands that the cube lacks: ``raise``, ``nearest`` or ``mean``."""
    hold_out: float = 0.0
    """Share of the groups of labelled images (runs of 50 numbers of a class) that are kept from training."""
    every: int = 1
    """Take every n-th file of a folder or pattern ..."""
    phase: int = 0
    """... beginning with this one: two sources, or training and testing, can share a folder."""
    kind: str = ""
    """``cube`` or ``images``; decided by the path where empty."""
    level: str = "L2A"
    """Product level of its multispectral values, L2A or L1C (see `Augment.level`)."""
    names: str = ""
    """A text file with one name per line: of the images in a folder or zip, take only those."""
    rgb: str = ""
    """A raster of finer RGB of the same ground as the cube, which the optical path then sees (see `FineImage`)."""
    rgb_scale: float = 0.0
    """DN per unit of that raster; 0 for 8-bit imagery whose 255 is 2750 DN."""
    rgb_bands: str = ""
    """Its red, green and blue bands, as ``1-2-3``, where its metadata do not name them."""

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read ``PATH,key=value,...``.

        Raises
        ------
        ArgumentError
            For an unknown key or a value that it cannot take.
        """
        path, *options = text.split(",")
        values: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals or key not in cls.__dataclass_fields__ or key == "path":
                known = ", ".join(f"{k}=..." for k in cls.__dataclass_fields__ if k != "path")
                raise ArgumentError(f"--data {text!r}: expected options among {known}, found {option!r}")
            kind = str(cls.__dataclass_fields__[key].type)
            number = {"int": int, "float": float}.get(kind, float if "float" in kind and value != "auto" else str)
            try:
                values[key] = number(value)
            except ValueError as error:
                raise ArgumentError(f"--data {text!r}: {key} cannot be {value!r}") from error
        if values.get("level", "L2A") not in ("L1C", "L2A"):
            raise ArgumentError(f"--data {text!r}: level must be L1C or L2A, found {values['level']}")
        values |= {key: expand(values[key]) for key in ("names", "rgb") if values.get(key)}
        return cls(expand(path), **values)

    @property
    def level_number(self) -> float:
        """Product level as `Sample.level` has it."""
        return float(self.level == "L1C")


@dataclass
class FineImage:
    """High-resolution RGB of the ground of a cube, read on the cube's grid divided by `detail`.

    The published run replaced the optical bands of 150,000 of its 500,000 images by aerial photographs of the same
    place (paper, section 3); dates were not matched. Here the multispectral branch keeps the cube's own bands and the
    optical path sees the photograph. With ``--augment.ms-sees jittered`` it replaces them, as published.

    Parameters
    ----------
    path : str
        A raster that GDAL reads, in any CRS; several files through a VRT.
    grid : GeoBox
        Of the cube.
    detail : int
        Pixels along a side of one pixel of the cube.
    white : float
        DN of the brightest value of an 8-bit raster.
    scale, bands
        `rgb_scale` and `rgb_bands` of `SourceSpec`.

    Raises
    ------
    InputNotFoundError
        If the raster cannot be opened.
    ArgumentError
        If it has no CRS, is not finer than the cube, does not say which bands are red, green and blue, is not of 8 bits
        and `scale` is 0, or shares no whole pixel with the cube.
    """

    path: str
    grid: GeoBox
    detail: int
    white: float
    scale: float = 0.0
    bands: str = ""
    region: tuple[int, int, int, int] = field(init=False)
    """First and last row (exclusive), first and last column of the cube within the raster's bounds."""
    _open: tuple[int, Any] | None = field(default=None, init=False, repr=False)
    _indexes: list[int] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        import rasterio

        try:
            source = rasterio.open(self.path)
        except rasterio.errors.RasterioIOError as error:
            raise InputNotFoundError(f"no raster at rgb={self.path}: {error}") from error
        with source:
            if source.crs is None:
                raise ArgumentError(f"rgb={self.path} has no CRS, so its place beside the cube is not known")
            self._indexes = self._rgb(source)
            box = GeoBox((source.height, source.width), source.transform, source.crs)
            own, cube = min(ground_resolution(box)), min(ground_resolution(self.grid))
            if own > 0.95 * cube:
                raise ArgumentError(
                    f"rgb={self.path} has pixels of {own:.3g} m and the cube of {cube:.3g} m: an image that is not "
                    "finer than the cube adds nothing; leave it out"
                )
            self._average = own < 0.95 * cube / self.detail
            self.region = self._region(box)
            if not self.scale:
                dtype = source.dtypes[self._indexes[0] - 1]
                if dtype != "uint8":
                    raise ArgumentError(
                        f"rgb={self.path} is {dtype}, not 8 bits: give the DN (reflectance x 10000) per unit, "
                        "rgb_scale=1 for DN, rgb_scale=10000 for reflectance"
                    )
                self.scale = self.white / 255

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _rgb(self, source: Any) -> list[int]:
        from rasterio.enums import ColorInterp

        if self.bands:
            indexes = [int(b) for b in self.bands.split("-")]
            if len(indexes) == 3 and all(1 <= b <= source.count for b in indexes):
                return indexes
            raise ArgumentError(
                f"rgb_bands={self.bands}: expected three of bands 1 to {source.count}, as rgb_bands=1-2-3"
            )
        colours = list(source.colorinterp)
        rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        if all(c in colours for c in rgb):
            return [colours.index(c) + 1 for c in rgb]
        raise ArgumentError(
            f"rgb={self.path} has {source.count} bands and does not say which are red, green and blue "
            f"({', '.join(c.name for c in colours)}): give rgb_bands=1-2-3"
        )

    def _region(self, box: GeoBox) -> tuple[int, int, int, int]:
        region = shared_region(self.grid, box)
        if region is None:
            raise ArgumentError(f"rgb={self.path} shares no whole pixel with its cube ({self.grid.extent.boundingbox})")
        return region

    def _raster(self) -> Any:
        # One warped view of the whole cube's grid in each process: forked workers must not share GDAL's handles.
        if self._open is None or self._open[0] != os.getpid():
            import rasterio
            from rasterio.enums import ColorInterp, Resampling
            from rasterio.vrt import WarpedVRT

            source = rasterio.open(self.path)
            rows, cols = self.grid.shape
            warped = WarpedVRT(
                source,
                crs=str(self.grid.crs),
                transform=self.grid.affine * self.grid.affine.scale(1 / self.detail),
                width=cols * self.detail,
                height=rows * self.detail,
                resampling=Resampling.average if self._average else Resampling.bilinear,
                add_alpha=source.nodata is None and ColorInterp.alpha not in source.colorinterp,
            )
            self._open = (os.getpid(), warped)
        return self._open[1]

    def read(self, row: int, col: int, height: int, width: int) -> tuple[Array, Array]:
        """Return RGB (3, k height, k width) float32 DN of a window of the cube, and its pixels that are covered whole.

        `row`, `col`, `height` and `width` count pixels of the cube; k is `detail`; the second array is (height, width)
        bool.
        """
        from rasterio.windows import Window

        k, raster = self.detail, self._raster()
        window = Window(k * col, k * row, k * width, k * height)
        image = raster.read(self._indexes, window=window).astype("float32") * np.float32(self.scale)
        covered = raster.dataset_mask(window=window) > 0
        return image, covered.reshape(height, k, width, k).all(axis=(1, 3))


@dataclass
class OpenCube:
    """One cube with everything decided: bands, units, nodata, clouds, and the finer RGB image beside it."""

    arrays: list[Any]
    """One (T, H, W) lazy array per band; None for a band filled with the mean."""
    scl: Any
    radiometry: Radiometry
    shape: tuple[int, int, int]
    fine: FineImage | None = None
    taught: VectorMap | None = None
    """Vectors of the same ground, from an embedding store."""

    @property
    def region(self) -> tuple[int, int, int, int]:
        """Rows and columns from which windows are drawn: those that fine RGB and a store cover, where there are any."""
        region = (0, self.shape[1], 0, self.shape[2])
        for other in (self.fine, self.taught):
            if other is not None:
                top, bottom, left, right = other.region
                region = (max(region[0], top), min(region[1], bottom), max(region[2], left), min(region[3], right))
        return region

    @property
    def area(self) -> int:
        """Pixels to draw from, all dates."""
        top, bottom, left, right = self.region
        return self.shape[0] * (bottom - top) * (right - left)

    @classmethod
    def of(
        cls,
        cube: xr.Dataset | xr.DataArray,
        spec: SourceSpec,
        bands: tuple[str, ...],
        detail: int = 1,
        store: str = "",
        step: int = 4,
    ) -> OpenCube:
        """Decide bands and radiometry of `cube`; small cubes are read into memory.

        `detail` is the number of pixels of the fine RGB image of `spec` along a side of one of the cube's; `store` an
        embedding store of the same ground, read in cells of `step` pixels of the cube.
        """
        match = match_bands(cube, bands, model="the student", missing=spec.missing)  # type: ignore[arg-type]
        radiometry = decide_radiometry(
            cube,
            match,
            units=spec.units,
            offset=spec.offset,
            nodata=spec.nodata,  # type: ignore[arg-type]
        )
        d = dims(cube)

        def layer(variable: str | None, index: int | None) -> Any:
            if variable is None and index is None:
                return None
            a = cube[variable] if match.band_dim is None else cube.isel({match.band_dim: index})
            a = a.transpose(*([d.time] if d.time else []), d.y, d.x)
            return a if d.time else a.expand_dims("time")

        indices = match.indices or (None,) * len(match.bands)
        arrays = [layer(v, i) for v, i in zip(match.variables, indices, strict=True)]
        scl = layer(match.scl, match.scl_index) if match.scl is not None else None
        shape = next(a.shape for a in arrays if a is not None)
        fine = None
        if spec.rgb:
            fine = FineImage(spec.rgb, geobox(cube), detail, TCI_WHITE, spec.rgb_scale, spec.rgb_bands)
        taught = None
        if store:
            times = cube[d.time].values if d.time else None
            taught = VectorMap(store, geobox(cube), times, step)
            # A store need not cover every source: samples of the others have no vectors.
            taught = None if taught.empty else taught
        if sum(a.nbytes for a in arrays if a is not None) < 256e6:
            # Small cubes are read once: a window of a COG costs milliseconds, of an array microseconds.
            arrays = [None if a is None else a.values for a in arrays]
            scl = None if scl is None else scl.values
            _check_values(arrays, scl, radiometry)
        return cls(arrays, scl, radiometry, (int(shape[0]), int(shape[1]), int(shape[2])), fine, taught)

    def read(self, random: np.random.Generator, size: int, fill: tuple[float, ...]) -> TrainingWindow:
        """Return a window at a random time and place; cubes smaller than `size` are mirrored at their edges."""
        r = self.radiometry
        t = int(random.integers(self.shape[0]))
        top, bottom, left, right = self.region
        h, w = min(size, bottom - top), min(size, right - left)
        y, x = top + int(random.integers(bottom - top - h + 1)), left + int(random.integers(right - left - w + 1))
        place = (t, slice(y, y + h), slice(x, x + w))
        offset = np.float32(r.offset[t if len(r.offset) > 1 else 0])
        image = np.empty((len(self.arrays), h, w), "float32")
        ok = np.ones((h, w), bool)
        for c, a in enumerate(self.arrays):
            if a is None:
                image[c] = fill[c]
                continue
            raw = np.asarray(a[place])
            if r.nodata is not None:
                ok &= ~np.isnan(raw) if np.isnan(r.nodata) else raw != r.nodata
            image[c] = raw * np.float32(r.scale) + offset
        ok &= np.isfinite(image).all(axis=0)
        if self.scl is not None and r.scl_invalid:
            ok &= ~hidden_classes(np.asarray(self.scl[place]), r.scl_invalid)
        rgb, k = None, 1
        if self.fine is not None:
            k = self.fine.detail
            rgb, covered = self.fine.read(y, x, h, w)
            rgb = np.where(covered.repeat(k, axis=0).repeat(k, axis=1), rgb, _planes(fill[:3]))
            ok &= covered
        image = np.where(ok, image, _planes(fill))
        if (h, w) != (size, size):
            pad = ((0, size - h), (0, size - w))
            image = np.pad(image, ((0, 0), *pad), mode="symmetric")
            ok = np.pad(ok, pad, mode="symmetric")
            if rgb is not None:
                rgb = np.pad(rgb, ((0, 0), *((0, k * after) for _, after in pad)), mode="symmetric")
        vectors, known = self.taught.read(t, y, x, h, w, size) if self.taught else (None, None)
        return TrainingWindow(image, ok, rgb, vectors=vectors, known=known)


def _planes(values: Sequence[float]) -> Array:
    return np.asarray(values, "float32")[:, None, None]


def _check_values(arrays: list[Any], scl: Any, radiometry: Radiometry) -> None:
    """Refuse a cube in memory whose values contradict its metadata, date by date, as `embed` does."""
    bands = [a for a in arrays if a is not None]
    step = max(1, max(bands[0].shape[1:]) // 128)
    for t in range(bands[0].shape[0]):
        problem = find_unit_error(np.stack([b[t, ::step, ::step].ravel() for b in bands]), radiometry, t)
        if problem:
            raise AmbiguousUnitsError(f"date {t} of the cube: {problem}")
    if scl is not None and radiometry.scl_invalid:
        check_classes(scl, radiometry.scl_invalid)


class SampleSource(Protocol):
    """A source of windows."""

    name: str
    kind: Kind
    weight: float

    def draw(self, random: np.random.Generator, size: int, valid: float) -> TrainingWindow:
        """Return a window of side `size`, of which a share `valid` of the pixels is valid."""
        ...

    def __len__(self) -> int:
        """Return about how many windows of distinct pixels there are (for plans)."""
        ...


@dataclass
class CubeSource:
    """Random windows of one cube, or of several files of one kind.

    Bands, units, offset, nodata and clouds are decided as `ds.deo.embed` decides them, with the same errors; files are
    opened when first needed, in the process that needs them, and stay open.
    """

    name: str
    opens: Sequence[Callable[[], Any]]
    """One per file or cube: returns a Dataset or DataArray."""
    spec: SourceSpec
    bands: tuple[str, ...] = MS_BANDS
    kind: Kind = "ms"
    weight: float = 1.0
    fill: tuple[float, ...] = NO_FILL
    """Value of a missing band with ``missing=mean``, and of invalid pixels."""
    detail: int = 1
    """Pixels of fine RGB along a side of the cube's."""
    store: str = ""
    """Embedding store of the same ground, see `VectorMap`."""
    step: int = 4
    """Pixels of the cube per cell of its vectors."""
    _open: dict[int, OpenCube] = field(default_factory=dict, repr=False)
    _areas: list[int] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # Open files are not sent to a worker, which opens its own.
        return {**self.__dict__, "_open": {}}

    def check(self) -> CubeSource:
        """Open everything once and decide; errors are raised here and not in a worker an hour later."""
        if not self._areas:
            self._areas = [self.cube(i).area for i in range(len(self.opens))]
        return self

    def cube(self, i: int) -> OpenCube:
        """Return file number i, opened."""
        if i not in self._open:
            self._open[i] = OpenCube.of(self.opens[i](), self.spec, self.bands, self.detail, self.store, self.step)
        return self._open[i]

    @property
    def paired(self) -> bool:
        """True if windows come with fine RGB of the same ground."""
        return bool(self.spec.rgb)

    def draw(self, random: np.random.Generator, size: int, valid: float) -> TrainingWindow:
        """Return a window drawn by area and, among `TRIES` candidates, kept with the probability of its valid share.

        Raises
        ------
        ArgumentError
            If no candidate has a valid share of `valid`.
        """
        self.check()
        p = np.asarray(self._areas, dtype="float64")
        best: tuple[float, TrainingWindow] | None = None
        for _ in range(TRIES):
            cube = self.cube(int(random.choice(len(p), p=p / p.sum())))
            candidate = cube.read(random, size, self.fill)._replace(level=self.spec.level_number)
            share = float(candidate.ok.mean())
            if best is None or share > best[0]:
                best = (share, candidate)
            if share >= valid and random.uniform() <= share:
                return candidate
        assert best is not None
        if best[0] >= valid:
            return best[1]
        raise ArgumentError(
            f"source {self.name}: the best of {TRIES} windows of {size} px is {best[0]:.0%} valid, expected "
            f"{valid:.0%}: give --loader.valid a lower share or --loader.window a smaller side"
        )

    def __len__(self) -> int:
        self.check()
        return max(1, sum(self._areas) // 64**2)


@dataclass
class ArraySource:
    """Random windows of an .npz of chips: `x` (N, C, H, W) DN with 0 for no data, and `bands` (C,).

    Held in memory as it is in the file. Chips smaller than the window are mirrored at their edges.
    """

    name: str
    x: Array = field(repr=False)
    """(N, 10, H, W), bands in model order."""
    kind: Kind = "ms"
    weight: float = 1.0
    level: float = 0.0
    """Product level: 0 for L2A, 1 for L1C."""
    fill: tuple[float, ...] = NO_FILL
    """Value of invalid pixels."""

    def draw(self, random: np.random.Generator, size: int, valid: float) -> TrainingWindow:
        """Return a window of a random chip, the first of `TRIES` with a valid share of `valid`, or the best of them."""
        best: tuple[float, Array, Array] | None = None
        _, _, rows, cols = self.x.shape
        for _ in range(TRIES):
            chip = self.x[int(random.integers(len(self.x)))]
            top, left = (int(random.integers(max(n - size, 0) + 1)) for n in (rows, cols))
            image = chip[:, top : top + size, left : left + size]
            ok = (image > 0).all(axis=0)
            if best is None or ok.mean() > best[0]:
                best = (float(ok.mean()), image, ok)
            if best[0] >= valid:
                break
        assert best is not None
        ok = best[2]
        image = np.where(ok, best[1].astype("float32"), _planes(self.fill))
        return TrainingWindow(_mirrored(image, size), _mirrored(ok, size), None, self.level)

    def __len__(self) -> int:
        return max(1, int(self.x[:, 0].size) // 64**2)


def _mirrored(a: Array, size: int) -> Array:
    """Return `a` (..., H, W) with its edges mirrored on all sides up to `size`."""
    pad = [((size - n) // 2, size - n - (size - n) // 2) for n in a.shape[-2:]]
    return np.pad(a, [(0, 0)] * (a.ndim - 2) + pad, mode="symmetric")


def _array_source(path: Path, spec: SourceSpec, fill: tuple[float, ...]) -> ArraySource:
    with np.load(path, allow_pickle=False) as held:
        if missing := {"x", "bands"} - set(held.files):
            raise InputNotFoundError(f"{path} holds {sorted(held.files)}; expected also {sorted(missing)}")
        bands = [str(b) for b in held["bands"]]
        if missing := set(MS_BANDS) - set(bands):
            raise MissingBandsError(f"{path} has the bands {bands}; the student reads also {sorted(missing)}")
        x = held["x"]
    if x.ndim != 4 or x.shape[1] != len(bands):
        raise ArgumentError(f"{path}: expected x of (N, {len(bands)}, H, W), found {x.shape}")
    order = [bands.index(b) for b in MS_BANDS]
    chips = x if order == [*range(len(bands))] else np.ascontiguousarray(x[:, order])
    return ArraySource(str(path), chips, weight=spec.weight, level=spec.level_number, fill=fill)


@dataclass
class ImageSource:
    """RGB images of 8 bits in a folder or zip, ``Class/name.jpg``; they feed the optical path and the kNN signal.

    Images smaller than the window are enlarged by mirroring their edges, larger ones are cut.
    """

    name: str
    path: Path
    files: tuple[str, ...]
    weight: float = 1.0
    scale: float = TCI_SCALE
    kind: Kind = "rgb"
    held_out: tuple[str, ...] = ()
    """Files that are kept from training."""
    _zip: zipfile.ZipFile | None = field(default=None, repr=False)
    _process: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None}

    def read(self, file: str) -> Array:
        """Return one image (3, H, W), float32 DN."""
        from PIL import Image

        if self.path.is_dir():
            raw: Any = self.path / file
        else:
            # A file opened before a worker was forked shares its position with the worker: each process opens its own.
            if self._zip is None or self._process != os.getpid():
                self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
            raw = io.BytesIO(self._zip.read(file))
        with Image.open(raw) as image:
            return np.asarray(image.convert("RGB"), dtype="float32").transpose(2, 0, 1) * np.float32(self.scale)

    def draw(self, random: np.random.Generator, size: int, valid: float) -> TrainingWindow:
        """Return a random image, cut or mirrored to `size`."""
        image = self.read(self.files[int(random.integers(len(self.files)))])
        _, h, w = image.shape
        y, x = int(random.integers(max(h - size, 0) + 1)), int(random.integers(max(w - size, 0) + 1))
        return TrainingWindow(_mirrored(image[:, y : y + size, x : x + size], size), np.ones((size, size), bool))

    def labels(self, files: Sequence[str]) -> Array:
        """Return the class number of each file, by its folder."""
        classes = sorted({Path(f).parent.name for f in self.files})
        return np.array([classes.index(Path(f).parent.name) for f in files])

    def __len__(self) -> int:
        return len(self.files)


def open_source(
    text: str, fill: tuple[float, ...] = NO_FILL, *, detail: int = 4, store: str = "", step: int = 4
) -> SampleSource:
    """Return the source that ``PATH[,key=value...]`` names, checked.

    `fill` replaces invalid pixels, band by band; `detail` is for ``rgb=``, `store` and `step` for an embedding store
    that teaches cubes, see `CubeSource`.

    Raises
    ------
    InputNotFoundError
        If the path does not exist or holds nothing to read.
    ArgumentError, MissingBandsError, AmbiguousUnitsError
        For a cube that cannot be read for sure; the message names the option that decides.
    """
    spec = SourceSpec.parse(text)
    path = Path(spec.path)
    images = spec.kind == "images" or (not spec.kind and _holds_images(path))
    if (images or path.suffix == ".npz") and not path.exists():
        raise not_found("--data", path, "a folder of pictures, or arrays (.npz)")
    if images:
        return _image_source(path, spec)
    if path.suffix == ".npz":
        return _array_source(path, spec, fill)
    files = _cube_files(spec.path)[spec.phase :: spec.every]
    if not files:
        if path.is_dir():
            raise InputNotFoundError(f"--data: {path} holds no cube: expected files .tif, .nc or .zarr in it")
        raise not_found("--data", spec.path, "a cube, a folder of cubes, or a pattern of existing files")
    # GeoTIFFs are read as plain arrays: without Dask there is no graph to walk for every window.
    opens = [partial(open_cube, f, **({"chunks": None} if f.lower().endswith((".tif", ".tiff")) else {}))
             for f in files]  # fmt: skip
    return CubeSource(
        spec.path, opens, spec, weight=spec.weight, fill=fill, detail=detail, store=store, step=step
    ).check()


def _holds_images(path: Path) -> bool:
    if path.suffix.lower() == ".zip":
        return True
    if not path.is_dir():
        return False
    folders = sorted(p for p in path.iterdir() if p.is_dir() and p.suffix != ".zarr")[:3]
    return any(p.suffix.lower() in IMAGES for d in (path, *folders) for p in d.iterdir())


def _cube_files(path: str) -> list[str]:
    p = Path(path)
    if any(c in path for c in "*?["):
        root = Path(p.anchor) if p.is_absolute() else Path()
        return sorted(str(f) for f in root.glob(str(p.relative_to(p.anchor)) if p.is_absolute() else path))
    if p.is_dir() and not (p / "zarr.json").exists() and not (p / ".zgroup").exists():
        return sorted(str(f) for f in p.rglob("*") if f.suffix.lower() in (".tif", ".tiff", ".nc", ".zarr"))
    return [path] if "://" in path or p.exists() else []


def _image_source(path: Path, spec: SourceSpec) -> ImageSource:
    if path.is_dir():
        names = [str(f.relative_to(path)) for f in path.rglob("*") if f.suffix.lower() in IMAGES]
    else:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if Path(n).suffix.lower() in IMAGES]
    if not names:
        raise InputNotFoundError(f"no images ({', '.join(IMAGES)}) in {path}")
    if spec.names:
        listed = {Path(line.strip()).stem for line in Path(spec.names).read_text(encoding="utf-8").splitlines()}
        names = [n for n in names if Path(n).stem in listed]
        if not names:
            raise InputNotFoundError(f"no image of {path} is named in {spec.names}")
    names.sort(key=_class_and_number)
    held: list[str] = []
    if spec.hold_out:
        # The groups of `read_eurosat` and the split of `protocols.classification`, which tests what is held out here.
        keys = [_class_and_number(n) for n in names]
        classes = sorted({k[0] for k in keys})
        labels = np.array([classes.index(k[0]) for k in keys])
        groups = np.unique(labels * 10_000 + np.array([k[1] for k in keys]) // 50, return_inverse=True)[1]
        train = split_groups(groups, labels, 1 - spec.hold_out, seed=0)
        held = [n for n, t in zip(names, train, strict=True) if not t]
        names = [n for n, t in zip(names, train, strict=True) if t]
    scale = TCI_SCALE if spec.units in ("auto", "uint8_rgb") else float(spec.units)
    return ImageSource(str(path), path, tuple(names), spec.weight, scale, held_out=tuple(held))


def _class_and_number(name: str) -> tuple[str, int, str]:
    digits = Path(name).stem.rsplit("_", 1)[-1]
    return Path(name).parent.name, int(digits) if digits.isdigit() else 0, name


@dataclass(frozen=True)
class Batch:
    """Windows of one micro-batch of one process."""

    ms: Tensor | None
    """(N, 10, W, W) DN."""
    rgb: Tensor | None
    """(M, 3, W, W) DN."""
    fine: Tensor | None = None
    """(N, 3, k W, k W) DN: high-resolution RGB of the multispectral windows; None without such a source."""
    paired: Tensor | None = None
    """(N,) bool: which of them have it; the others' `fine` is zero."""
    level: Tensor | None = None
    """(N,): product level of the multispectral windows, 0 for L2A and 1 for L1C."""
    vectors: Tensor | None = None
    """(N, D, w, w): vectors of an embedding store for the multispectral windows; None without one."""
    known: Tensor | None = None
    """(N, w, w) bool: where it has some."""


@dataclass(frozen=True)
class Mixture:
    """Samples by number: which source, which window.

    Parameters
    ----------
    sources : sequence of Source
        Multispectral and RGB-only ones.
    loader : Loader
        Size and validity of windows.
    seed : int
        Of the run.
    """

    sources: tuple[SampleSource, ...]
    loader: Loader
    seed: int

    def sample(self, kind: Kind, number: int) -> TrainingWindow:
        """Return sample `number` of `kind`."""
        random = np.random.default_rng([self.seed, 0 if kind == "ms" else 1, number])
        own = [s for s in self.sources if s.kind == kind]
        weights = np.array([s.weight for s in own], dtype="float64")
        source = own[int(random.choice(len(own), p=weights / weights.sum()))]
        return source.draw(random, self.loader.window, self.loader.valid)

    def batch(self, number: int, sizes: tuple[int, int], rank: int, world_size: int) -> Batch:
        """Return micro-batch `number` of process `rank`: its rows of the samples that all processes read together."""

        def rows(kind: Kind, n: int) -> list[TrainingWindow]:
            first = (number * world_size + rank) * n
            return [self.sample(kind, first + i) for i in range(n)]

        def stacked(samples: list[TrainingWindow]) -> Tensor | None:
            return torch.from_numpy(np.stack([s.image for s in samples])) if samples else None

        ms, rgb = rows("ms", sizes[0]), rows("rgb", sizes[1])
        level = torch.tensor([s.level for s in ms]) if ms else None
        vectors, known = _joined(ms)
        if not (ms and any(isinstance(s, CubeSource) and s.paired for s in self.sources)):
            return Batch(stacked(ms), stacked(rgb), level=level, vectors=vectors, known=known)
        side = self.loader.window * self.loader.detail
        fine = np.stack([np.zeros((3, side, side), "float32") if s.fine is None else s.fine for s in ms])
        paired = torch.tensor([s.fine is not None for s in ms])
        return Batch(stacked(ms), stacked(rgb), torch.from_numpy(fine), paired, level, vectors, known)


def _joined(samples: list[TrainingWindow]) -> tuple[Tensor | None, Tensor | None]:
    """Return vectors and where they are known; samples of sources that no store covers have none."""
    some = next((s.vectors for s in samples if s.vectors is not None), None)
    if some is None:
        return None, None
    vectors = np.stack([np.zeros_like(some) if s.vectors is None else s.vectors for s in samples])
    known = np.stack([np.zeros(some.shape[1:], bool) if s.known is None else s.known for s in samples])
    return torch.from_numpy(vectors), torch.from_numpy(known)


def batches(
    mixture: Mixture, sizes: tuple[int, int], *, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Yield micro-batches `start` to `stop`, read ahead by worker processes where the loader has any."""
    numbered = _Numbered(mixture, sizes, rank, world_size, range(start, stop))
    if mixture.loader.workers == 0:
        yield from (numbered[i] for i in range(len(numbered)))
        return
    data: Any = numbered
    workers, prefetch = mixture.loader.workers, mixture.loader.prefetch
    yield from DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=prefetch)


@dataclass(frozen=True)
class _Numbered:
    """The micro-batches as a map-style data set: workers take them by number, the loader returns them in order."""

    mixture: Mixture
    sizes: tuple[int, int]
    rank: int
    world_size: int
    numbers: range

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, i: int) -> Batch:
        return self.mixture.batch(self.numbers[i], self.sizes, self.rank, self.world_size)


FIRST = 1_000_000_000
"""Number of the first window that serves statistics: far from those that train."""


def windows_for(mixture: Mixture, config: TrainConfig, count: int = 384) -> dict[str, Tensor]:
    """Return normalised windows (n, C, S, S) per stem that the run has sources for: the middles of larger ones."""
    size = config.augment.global_size // 16 * 16
    kinds = {s.kind for s in mixture.sources}
    student = config.student
    out = {}
    if "ms" in kinds:
        ms = _middles(mixture, "ms", count, size)
        out["ms"] = (ms - column(student.ms_mean)) / column(student.ms_std)
    if kinds:
        # Without RGB-only sources the RGB stem was trained on the cubes' own red, green and blue.
        rgb = _middles(mixture, "rgb", 3 * count, size) if "rgb" in kinds else ms[:, :3]
        out["rgb"] = (rgb - column(student.rgb_mean)) / column(student.rgb_std)
    return out


def typical_pixels(mixture: Mixture, config: TrainConfig, count: int = 8) -> NDArray[np.float32] | None:
    """Return windows (n, 10, S, S) in DN for the card's int8 scales; None without a multispectral source."""
    if not any(s.kind == "ms" for s in mixture.sources):
        return None
    size = max(32, config.loader.window // 32 * 32)
    windows = np.stack([mixture.sample("ms", FIRST + i).image for i in range(count)])
    edge = max(0, size - windows.shape[2])
    windows = np.pad(windows, ((0, 0), (0, 0), (0, edge), (0, edge)), mode="symmetric")
    return np.ascontiguousarray(windows[:, :, :size, :size], dtype="float32")


def _middles(mixture: Mixture, kind: Kind, count: int, size: int) -> Tensor:
    x = torch.stack([torch.from_numpy(mixture.sample(kind, FIRST + i).image) for i in range(count)])
    # Windows beside finer RGB may be smaller than a crop.
    size = min(size, x.shape[2] // 16 * 16 or x.shape[2])
    edge = (x.shape[2] - size) // 2
    return x[:, :, edge : edge + size, edge : edge + size]
