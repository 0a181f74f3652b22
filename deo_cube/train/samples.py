"""Training samples: random windows of cubes and of RGB images, decided by the seed and a sample's number alone.

Sample number i of a run is the same whatever process, worker or resumed run reads it: source, place and date are drawn
from ``default_rng([seed, i])``. A source is opened once in each worker and kept open.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import TCI_SCALE
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.paths import expand
from deo_cube.train.config import MS_BANDS, Loader
from deo_cube.train.opened import Looked, OpenCube

if TYPE_CHECKING:
    import torch

__all__ = [
    "ArraySource",
    "Batch",
    "CubeSource",
    "ImageSource",
    "Mixture",
    "Source",
    "SourceSpec",
    "batches",
    "open_source",
]

Array = NDArray[Any]

IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class SourceSpec:
    """A source as it is written on the command line: ``PATH[,weight=2][,offset=0][,units=dn][,missing=nearest]...``."""

    path: str
    weight: float = 1.0
    """Share of the samples of its kind, relative to the other sources' weights."""
    units: str = "auto"
    """See `ds.deo.embed`."""
    offset: str | float = "auto"
    """DN to add: 0 or -1000."""
    nodata: str | float = "auto"
    """Value that stands for no data."""
    missing: str = "raise"
    """Bands that the cube lacks: ``raise``, ``nearest`` or ``mean``."""
    hold_out: float = 0.0
    """Share of the groups of labelled images (runs of 50 numbers of a class) that training never sees."""
    every: int = 1
    """Take every n-th file of a folder or pattern ..."""
    phase: int = 0
    """... beginning with this one: two sources, or training and testing, can share a folder."""
    kind: str = ""
    """``cube`` or ``images``; told from the path where empty."""
    level: str = "L2A"
    """Product level of its multispectral values, L2A or L1C (see `Augment.level`)."""
    names: str = ""
    """A text file with a name per line: of the images in a folder or zip, take only those."""
    rgb: str = ""
    """A raster of finer RGB of the same ground as the cube: what the optical path then sees (see `train.pairs`)."""
    rgb_scale: float = 0.0
    """DN a unit of that raster; 0 for 8 bits that white is 2750 DN of."""
    rgb_bands: str = ""
    """Its red, green and blue bands, as ``1-2-3``, where it does not say so itself."""

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read ``PATH,key=value,...``.

        Raises
        ------
        ValueError
            For an unknown key or a value that it cannot take.
        """
        path, *options = text.split(",")
        values: dict[str, Any] = {}
        for option in options:
            key, equals, value = option.partition("=")
            if not equals or key not in cls.__dataclass_fields__ or key == "path":
                known = [k for k in cls.__dataclass_fields__ if k != "path"]
                raise ArgumentError(f"source {text!r}: {option!r} is none of {', '.join(f'{k}=...' for k in known)}")
            kind = str(cls.__dataclass_fields__[key].type)
            try:
                values[key] = (
                    int(value) if kind == "int" else float(value) if kind == "float" else _number_or_text(value, kind)
                )
            except ValueError as error:
                raise ArgumentError(f"source {text!r}: {key} cannot be {value!r}") from error
        if values.get("level", "L2A") not in ("L1C", "L2A"):
            raise ArgumentError(f"source {text!r}: level={values['level']} must be L1C or L2A")
        if values.get("names"):
            values["names"] = expand(values["names"])
        if values.get("rgb"):
            values["rgb"] = expand(values["rgb"])
        return cls(expand(path), **values)


def _number_or_text(value: str, kind: str) -> str | float:
    if "float" in kind and value != "auto":
        return float(value)
    return value


class Source(Protocol):
    """What can give windows."""

    name: str
    kind: Literal["ms", "rgb"]
    weight: float

    def window(self, random: np.random.Generator, size: int, valid: float) -> tuple[Array, Array]:
        """A window (C, size, size) float32 DN and its valid pixels (size, size) bool."""
        ...

    def __len__(self) -> int:
        """About how many windows of distinct pixels there are (for plans)."""
        ...


@dataclass
class CubeSource:
    """Random windows of one cube, or of several files of one kind.

    Bands, units, offset, nodata and clouds are decided as `ds.deo.embed` decides them, with the same errors; files are
    opened when first needed, in the process that needs them, and stay open.
    """

    name: str
    opens: Sequence[Callable[[], Any]]
    """One a file or cube: gives a Dataset or DataArray."""
    spec: SourceSpec
    bands: tuple[str, ...] = MS_BANDS
    kind: Literal["ms", "rgb"] = "ms"
    weight: float = 1.0
    fill: tuple[float, ...] = (0.0,) * len(MS_BANDS)
    """Value of a missing band with ``missing=mean``, and of invalid pixels."""
    detail: int = 1
    """Pixels of fine RGB along a side of the cube's."""
    _open: dict[int, OpenCube] = field(default_factory=dict, repr=False)
    _areas: list[int] = field(default_factory=list, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        # Open files do not travel to a worker: it opens its own.
        return {**self.__dict__, "_open": {}}

    def check(self) -> CubeSource:
        """Open everything once and decide; errors come here and not in a worker an hour later."""
        if not self._areas:
            self._areas = [self.cube(i).area for i in range(len(self.opens))]
        return self

    def cube(self, i: int) -> OpenCube:
        """File number i, opened."""
        if i not in self._open:
            self._open[i] = OpenCube.of(self.opens[i](), self.spec, self.bands, self.detail)
        return self._open[i]

    @property
    def paired(self) -> bool:
        """Whether windows come with fine RGB of the same ground."""
        return bool(self.spec.rgb)

    def window(self, random: np.random.Generator, size: int, valid: float) -> tuple[Array, Array]:
        """See `look`: its image and valid pixels."""
        return self.look(random, size, valid)[:2]

    def look(self, random: np.random.Generator, size: int, valid: float) -> Looked:
        """A window drawn by area and, among up to 12 candidates, kept with the probability of its valid share.

        Raises
        ------
        ValueError
            If no candidate has a valid share of `valid`.
        """
        self.check()
        p = np.asarray(self._areas, dtype="float64")
        best: tuple[float, Looked] | None = None
        for _ in range(12):
            cube = self.cube(int(random.choice(len(p), p=p / p.sum())))
            found = cube.read(random, size, self.fill)
            share = float(found.ok.mean())
            if best is None or share > best[0]:
                best = (share, found)
            if share >= valid and random.uniform() <= share:
                return found._replace(level=float(self.spec.level == "L1C"))
        assert best is not None
        if best[0] >= valid:
            return best[1]._replace(level=float(self.spec.level == "L1C"))
        raise ArgumentError(
            f"source {self.name}: the best of 12 windows of {size} px is {best[0]:.0%} valid, wanted {valid:.0%}: "
            "give --loader.valid a lower share or --loader.window a smaller side"
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
    kind: Literal["ms", "rgb"] = "ms"
    weight: float = 1.0
    level: float = 0.0
    """Product level: 0 for L2A, 1 for L1C."""
    fill: tuple[float, ...] = (0.0,) * len(MS_BANDS)
    """Value of invalid pixels."""

    def window(self, random: np.random.Generator, size: int, valid: float) -> tuple[Array, Array]:
        """See `look`: its image and valid pixels."""
        return self.look(random, size, valid)[:2]

    def look(self, random: np.random.Generator, size: int, valid: float) -> Looked:
        """A window of a random chip, the first of 12 with a valid share of `valid`, or the best of them."""
        best: tuple[float, Array, Array] | None = None
        _, _, rows, cols = self.x.shape
        for _ in range(12):
            chip = self.x[int(random.integers(len(self.x)))]
            top, left = (int(random.integers(max(n - size, 0) + 1)) for n in (rows, cols))
            image = chip[:, top : top + size, left : left + size]
            ok = (image > 0).all(axis=0)
            if best is None or ok.mean() > best[0]:
                best = (float(ok.mean()), image, ok)
            if best[0] >= valid:
                break
        assert best is not None
        image, ok = best[1].astype("float32"), best[2]
        image = np.where(ok, image, np.asarray(self.fill, "float32")[:, None, None])
        pad = [((size - n) // 2, size - n - (size - n) // 2) for n in ok.shape]
        return Looked(
            np.pad(image, [(0, 0), *pad], mode="symmetric"), np.pad(ok, pad, mode="symmetric"), None, self.level
        )

    def __len__(self) -> int:
        return max(1, int(self.x[:, 0].size) // 64**2)


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
    return ArraySource(str(path), chips, weight=spec.weight, level=float(spec.level == "L1C"), fill=fill)


@dataclass
class ImageSource:
    """RGB images of 8 bits in a folder or zip, ``Class/name.jpg``; they feed the optical path and the kNN signal.

    Images smaller than the window are enlarged by mirroring their edges, larger ones cut.
    """

    name: str
    path: Path
    files: tuple[str, ...]
    weight: float = 1.0
    scale: float = TCI_SCALE
    kind: Literal["ms", "rgb"] = "rgb"
    held_out: tuple[str, ...] = ()
    """Files that training never sees."""
    _zip: zipfile.ZipFile | None = field(default=None, repr=False)
    _process: int = 0
    _held: dict[str, bytes] = field(default_factory=dict, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_zip": None, "_held": {}}

    def read(self, file: str) -> Array:
        """One image (3, H, W), float32 DN."""
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

    def window(self, random: np.random.Generator, size: int, valid: float) -> tuple[Array, Array]:
        """A random image, cut or mirrored to `size`."""
        image = self.read(self.files[int(random.integers(len(self.files)))])
        _, h, w = image.shape
        y, x = int(random.integers(max(h - size, 0) + 1)), int(random.integers(max(w - size, 0) + 1))
        image = image[:, y : y + size, x : x + size]
        pad = [(0, 0)] + [((size - n) // 2, size - n - (size - n) // 2) for n in image.shape[1:]]
        return np.pad(image, pad, mode="symmetric"), np.ones((size, size), bool)

    def labels(self, files: Sequence[str]) -> Array:
        """Class number of each file, by its folder."""
        classes = sorted({Path(f).parent.name for f in self.files})
        return np.array([classes.index(Path(f).parent.name) for f in files])

    def __len__(self) -> int:
        return len(self.files)


def open_source(text: str, fill: tuple[float, ...] = (0.0,) * len(MS_BANDS), *, detail: int = 4) -> Source:
    """The source that ``PATH[,key=value...]`` names, checked.

    `fill` stands for invalid pixels, band by band; `detail` is for ``rgb=``, see `CubeSource`.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError, MissingBandsError, AmbiguousUnitsError
        For a cube that cannot be read for sure; each says what decides it.
    """
    spec = SourceSpec.parse(text)
    path = Path(spec.path)
    images = spec.kind == "images" or (not spec.kind and _holds_images(path))
    if images:
        if not path.exists():
            raise InputNotFoundError(f"no images at {path}")
        return _image_source(path, spec)
    if path.suffix == ".npz":
        if not path.is_file():
            raise InputNotFoundError(f"no file {path}")
        return _array_source(path, spec, fill)
    files = _cube_files(spec.path)[spec.phase :: spec.every]
    if not files:
        raise InputNotFoundError(f"no cube at {spec.path}")
    from deo_cube.cube.open import open_cube

    # GeoTIFFs are read as plain arrays: without Dask there is no graph to walk for every window.
    opens = [_Opener(open_cube, f, {"chunks": None} if f.lower().endswith((".tif", ".tiff")) else {}) for f in files]
    return CubeSource(spec.path, opens, spec, weight=spec.weight, fill=fill, detail=detail).check()


@dataclass(frozen=True)
class _Opener:
    open: Callable[..., Any]
    path: str
    options: dict[str, Any]

    def __call__(self) -> Any:
        return self.open(self.path, **self.options)


def _holds_images(path: Path) -> bool:
    if path.suffix.lower() == ".zip":
        return True
    return path.is_dir() and any(p.suffix.lower() in IMAGES for d in (path, *_folders(path)) for p in d.iterdir())


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and p.suffix != ".zarr")[:3]


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
        some = {Path(line.strip()).stem for line in Path(spec.names).read_text(encoding="utf-8").splitlines()}
        names = [n for n in names if Path(n).stem in some]
        if not names:
            raise InputNotFoundError(f"no image of {path} is named in {spec.names}")
    names.sort(key=_class_and_number)
    held: list[str] = []
    if spec.hold_out:
        from deo_cube.heads.splits import split_groups

        # The groups of `read_eurosat` and the split of `protocols.classification`: what that tests, training never saw.
        keys = [_class_and_number(n) for n in names]
        classes = sorted({k[0] for k in keys})
        labels = np.array([classes.index(k[0]) for k in keys])
        groups = np.unique(labels * 10_000 + np.array([k[1] for k in keys]) // 50, return_inverse=True)[1]
        train = split_groups(groups, labels, 1 - spec.hold_out, seed=0)
        names, held = (
            [n for n, t in zip(names, train, strict=True) if t],
            [n for n, t in zip(names, train, strict=True) if not t],
        )
    scale = TCI_SCALE if spec.units in ("auto", "uint8_rgb") else float(spec.units)
    return ImageSource(str(path), path, tuple(names), spec.weight, scale, held_out=tuple(held))


def _class_and_number(name: str) -> tuple[str, int, str]:
    digits = Path(name).stem.rsplit("_", 1)[-1]
    return Path(name).parent.name, int(digits) if digits.isdigit() else 0, name


@dataclass(frozen=True)
class Batch:
    """Windows of one micro-batch of one process."""

    ms: torch.Tensor | None
    """(N, 10, W, W) DN."""
    rgb: torch.Tensor | None
    """(M, 3, W, W) DN."""
    fine: torch.Tensor | None = None
    """(N, 3, k W, k W) DN: high-resolution RGB of the multispectral windows; None without such a source."""
    paired: torch.Tensor | None = None
    """(N,) bool: which of them have it; the others' `fine` is zero."""
    level: torch.Tensor | None = None
    """(N,): product level of the multispectral windows, 0 for L2A and 1 for L1C."""


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

    sources: tuple[Source, ...]
    loader: Loader
    seed: int

    def sample(self, kind: Literal["ms", "rgb"], number: int) -> Array:
        """Sample `number` of `kind`: a window (C, W, W) of float32 DN."""
        return self.look(kind, number).image

    def look(self, kind: Literal["ms", "rgb"], number: int) -> Looked:
        """The same with what lies beside it."""
        random = np.random.default_rng([self.seed, 0 if kind == "ms" else 1, number])
        own = [s for s in self.sources if s.kind == kind]
        weights = np.array([s.weight for s in own], dtype="float64")
        source = own[int(random.choice(len(own), p=weights / weights.sum()))]
        if isinstance(source, CubeSource | ArraySource):
            return source.look(random, self.loader.window, self.loader.valid)
        return Looked(*source.window(random, self.loader.window, self.loader.valid), None)

    def batch(self, number: int, sizes: tuple[int, int], rank: int, world_size: int) -> Batch:
        """Micro-batch `number` of process `rank`: its rows of the samples that all processes read together."""
        import torch

        def rows(kind: Literal["ms", "rgb"], n: int) -> list[Looked]:
            first = (number * world_size + rank) * n
            return [self.look(kind, first + i) for i in range(n)]

        def stacked(looked: list[Looked]) -> torch.Tensor | None:
            return torch.from_numpy(np.stack([x.image for x in looked])) if looked else None

        ms, rgb = (rows(kind, n) for kind, n in zip(("ms", "rgb"), sizes, strict=True))  # type: ignore[arg-type]
        level = torch.tensor([x.level for x in ms]) if ms else None
        if not (ms and any(isinstance(s, CubeSource) and s.paired for s in self.sources)):
            return Batch(stacked(ms), stacked(rgb), level=level)
        side = self.loader.window * self.loader.detail
        fine = np.stack([np.zeros((3, side, side), "float32") if x.fine is None else x.fine for x in ms])
        paired = torch.tensor([x.fine is not None for x in ms])
        return Batch(stacked(ms), stacked(rgb), torch.from_numpy(fine), paired, level)


def batches(
    mixture: Mixture, sizes: tuple[int, int], *, start: int, stop: int, rank: int = 0, world_size: int = 1
) -> Iterator[Batch]:
    """Micro-batches `start` to `stop`, read ahead by worker processes where the loader has any."""
    if mixture.loader.workers == 0:
        for number in range(start, stop):
            yield mixture.batch(number, sizes, rank, world_size)
        return
    from torch.utils.data import DataLoader

    numbered: Any = _Numbered(mixture, sizes, rank, world_size, start, stop)
    yield from DataLoader(
        numbered,
        batch_size=None,
        num_workers=mixture.loader.workers,
        prefetch_factor=mixture.loader.prefetch,
        persistent_workers=False,
    )


@dataclass(frozen=True)
class _Numbered:
    """The micro-batches as a map-style data set: workers take them by number, the loader gives them in order."""

    mixture: Mixture
    sizes: tuple[int, int]
    rank: int
    world_size: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, i: int) -> Batch:
        if i >= len(self):
            raise IndexError(i)
        return self.mixture.batch(self.start + i, self.sizes, self.rank, self.world_size)
