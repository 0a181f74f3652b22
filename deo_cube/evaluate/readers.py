"""Labelled data as it lies in folders: read into arrays of canonical pixel values (DN), with names for the bands.

DN is reflectance x 10000 without the +1000 offset of processing baseline 04.00. Where a data set leaves open whether
its files carry that offset, the reader says how it decided. Nothing here downloads.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError, InputNotFoundError
from deo_cube.paths import local_path

__all__ = [
    "ChipSet",
    "Scene",
    "read_beetle",
    "read_eurosat",
    "read_sen1floods11",
    "read_terramesh",
]

Array = NDArray[Any]

RGB = ("B04", "B03", "B02")
S2_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S2_13 = (*S2_12[:10], "B10", *S2_12[10:])

EUROSAT_DN = 2750.0 / 255.0
"""DN a byte of EuroSAT's RGB tiles: they show about DN 0 to 2750 in 255 steps."""

TERRAMESH_CLASSES = {
    1: "water",
    2: "trees",
    3: "flooded vegetation",
    4: "crops",
    5: "built",
    6: "bare",
    7: "snow or ice",
    9: "rangeland",
}
"""Classes of TerraMesh's LULC layer that are scored; 0 (no data) and 8 (clouds) are not."""

TERRAMESH_OFFSET = ("282D_485L_3_3/S2L1C", "609U_541L_3_0/S2L1C")
"""Files of the TerraMesh examples whose values carry the +1000 offset. No metadata says so; B10, near 0 where the air
is opaque and there is no cirrus, does: its median is 1010 and 1072 in these, 59 in the third."""


@dataclass(frozen=True)
class ChipSet:
    """Chips of one size with one label each.

    Parameters
    ----------
    name : str
        What the set is called in reports.
    images : (N, C, H, W) float32
        DN.
    labels : (N,) int
        Index into `classes`.
    classes : tuple of str
        Names.
    groups : (N,) int
        Chips of one group may lie side by side: a group goes to one side of a split, and intervals are drawn over
        groups.
    bands : tuple of str
        Names of the C bands.
    train : (N,) bool, optional
        The split that the set comes with; without one the groups are split.
    """

    name: str
    images: Array = field(repr=False)
    labels: Array = field(repr=False)
    classes: tuple[str, ...]
    groups: Array = field(repr=False)
    bands: tuple[str, ...]
    train: Array | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.shape[1] != len(self.bands):
            raise ArgumentError(
                f"{self.name}: images {self.images.shape} do not have the {len(self.bands)} bands named"
            )
        if len(self.labels) != n or len(self.groups) != n:
            raise ArgumentError(f"{self.name}: {n} images, {len(self.labels)} labels, {len(self.groups)} groups")

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class Scene:
    """One labelled window: an image, or an image `before` and one after it.

    Parameters
    ----------
    name : str
        Plot or tile.
    image : (C, H, W) float32
        DN, the later date where there are two.
    label : (H, W) int16
        Class of each pixel; -1 where it has none. Not looked at where `valid` is False.
    valid : (H, W) bool
        Pixels with data (in both dates where there are two).
    bands : tuple of str
        Names of the C bands.
    before : (C, H, W) float32 or None
        The earlier date.
    corner : (row, column) or None
        Of the north-west pixel, on a grid of pixels that the scenes of a set share; None where it is not known.
    """

    name: str
    image: Array = field(repr=False)
    label: Array = field(repr=False)
    valid: Array = field(repr=False)
    bands: tuple[str, ...] = S2_12
    before: Array | None = field(default=None, repr=False)
    corner: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        shape = self.image.shape[1:]
        if self.image.ndim != 3 or len(self.image) != len(self.bands):
            raise ArgumentError(
                f"{self.name}: image {self.image.shape} does not have the {len(self.bands)} bands named"
            )
        if self.label.shape != shape or self.valid.shape != shape:
            raise ArgumentError(f"{self.name}: image {shape}, label {self.label.shape}, valid {self.valid.shape}")


def _need(path: Path, what: str) -> Path:
    if not path.exists():
        raise InputNotFoundError(f"{what} not found at {path}")
    return path


def read_eurosat(path: str | Path, *, classes: Sequence[str] | None = None, limit: int | None = None) -> ChipSet:
    """EuroSAT RGB tiles, from the zip or the folder ``Class/Class_n.jpg``.

    Bytes become DN by ``v * 2750 / 255``. The JPEGs carry no place; runs of 50 consecutive numbers form a group,
    the most that can be done against neighbours on both sides of a split.

    Parameters
    ----------
    path : path
        The zip file, or the folder that holds the class folders, or a folder with one of these in it.
    classes : sequence of str, optional
        Read these classes only.
    limit : int, optional
        Read at most this many tiles a class (the lowest numbers).

    Returns
    -------
    ChipSet
        Images (N, 3, 64, 64), bands B04 B03 B02.

    Raises
    ------
    FileNotFoundError
        If there is no such file, or it holds no ``Class/Class_n.jpg``.
    """
    from PIL import Image

    path = _need(local_path(path), "EuroSAT")
    if path.is_dir() and not any(path.glob("*/*_*.jpg")):
        zips = sorted(path.glob("*.zip"))
        nested = [p for p in sorted(path.iterdir()) if p.is_dir() and any(p.glob("*/*_*.jpg"))]
        path = (nested or zips or [path])[0]
    if path.is_dir():
        names = [str(p.relative_to(path)) for p in path.glob("*/*_*.jpg")]
        load: Callable[[str], Image.Image] = lambda name: Image.open(path / name)  # noqa: E731
    else:
        archive = zipfile.ZipFile(path)
        names = [n for n in archive.namelist() if n.endswith(".jpg")]
        load = lambda name: Image.open(io.BytesIO(archive.read(name)))  # noqa: E731
    parts = sorted((Path(n).parent.name, int(Path(n).stem.rsplit("_", 1)[1]), n) for n in names)
    found = tuple(sorted({c for c, _, _ in parts}))
    kept = found if classes is None else tuple(classes)
    if not kept or set(kept) - set(found):
        raise InputNotFoundError(f"EuroSAT at {path}: wanted classes {list(kept) or 'any'}, found {list(found)}")
    seen = dict.fromkeys(kept, 0)
    images, labels, groups = [], [], []
    for c, number, name in parts:
        if c not in seen or (limit is not None and seen[c] >= limit):
            continue
        seen[c] += 1
        images.append(np.asarray(load(name).convert("RGB"), dtype="float32").transpose(2, 0, 1) * EUROSAT_DN)
        labels.append(kept.index(c))
        groups.append(kept.index(c) * 10_000 + number // 50)
    return ChipSet("EuroSAT RGB", np.stack(images), np.array(labels), kept, np.array(groups), RGB)


def _read(path: Path) -> Array:
    import rasterio

    with rasterio.open(_need(path, "raster")) as r:
        return np.asarray(r.read())


def _corner(path: Path) -> tuple[float, float] | None:
    """Row and column of a raster's north-west pixel, counted from the origin of its CRS; None where it states none."""
    import rasterio

    with rasterio.open(path) as r:
        if r.crs is None:
            return None
        return r.transform.f / r.transform.e, r.transform.c / r.transform.a


def read_terramesh(
    path: str | Path,
    *,
    level: str = "L2A",
    offset: Iterable[str] = TERRAMESH_OFFSET,
    tiles: Sequence[str] | None = None,
) -> list[Scene]:
    """TerraMesh tiles ``TILE/S2L2A.tif``, ``TILE/S2L1C.tif`` and ``TILE/LULC.tif`` as scenes with land cover.

    Parameters
    ----------
    path : path
        Folder of the tiles.
    level : {"L2A", "L1C"}
        Which product to read. B10 of L1C is left out, so that both have the same 12 bands.
    offset : iterable of str
        ``TILE/S2L1C`` of each file whose values carry the +1000 offset, which is then taken off. No metadata says so.
    tiles : sequence of str, optional
        Read these tiles only.

    Returns
    -------
    list of Scene
        Labels are LULC codes; no data and clouds are -1.
    """
    if level not in ("L2A", "L1C"):
        raise ArgumentError(f"level must be 'L2A' or 'L1C', got {level!r}")
    path, carries = _need(local_path(path), "TerraMesh"), set(offset)
    scenes = []
    for folder in sorted(p for p in path.iterdir() if (p / "LULC.tif").exists()):
        if tiles is not None and folder.name not in tiles:
            continue
        image = _read(folder / f"S2{level}.tif").astype("float32")
        valid = (image != 0).any(axis=0)
        if f"{folder.name}/S2{level}" in carries:
            image = image - 1000.0
        if level == "L1C":
            image = np.delete(image, S2_13.index("B10"), axis=0)
        lulc = _read(folder / "LULC.tif")[0].astype("int16")
        label = np.where(np.isin(lulc, list(TERRAMESH_CLASSES)), lulc, -1).astype("int16")
        scenes.append(Scene(folder.name, image, label, valid, S2_12))
    if not scenes:
        raise InputNotFoundError(f"TerraMesh at {path}: no folder with LULC.tif" + (f" of {tiles}" if tiles else ""))
    return scenes


def read_beetle(path: str | Path, *, plots: Sequence[str] | None = None, min_size: int = 0) -> list[Scene]:
    """Bark-beetle plots: September 2019 (`before`) and September 2020, with the mask of damage (1) as label.

    The mask marks beetle damage only: other clear-cuts and fields change too and are 0.

    Parameters
    ----------
    path : path
        Folder with ``index.json`` and one folder a plot.
    plots : sequence of str, optional
        Read these plots only.
    min_size : int
        Leave out plots with a side shorter than this many pixels.
    """
    path = _need(local_path(path), "bark-beetle plots")
    index = json.loads(_need(path / "index.json", "index of the plots").read_text(encoding="utf-8"))
    scenes = []
    for entry in index:
        if plots is not None and entry["id"] not in plots:
            continue
        if min(entry["height"], entry["width"]) < min_size:
            continue
        folder = path / entry["id"]
        before, image = (_read(folder / f"s2_{d}-09.tif").astype("float32") for d in (2019, 2020))
        valid = (before != 0).all(axis=0) & (image != 0).all(axis=0)
        label = _read(folder / "damage_mask.tif")[0].astype("int16")
        scenes.append(Scene(entry["id"], image, label, valid, S2_12, before, _corner(folder / "damage_mask.tif")))
    return scenes


def read_sen1floods11(path: str | Path, *, part: str | None = None) -> list[Scene]:
    """Sen1Floods11 tiles: ``_S2L1C.tif`` or ``*_S2Hand.tif`` and their ``*_LabelHand.tif``, in one folder or several.

    Labels: 0 dry, 1 water, -1 none. B10 is left out. The images predate 2022 and carry no offset.

    Parameters
    ----------
    path : path
        Any folder above the tiles.
    part : {"train", "valid", "test", "bolivia"}, optional
        The tiles that the set's own ``flood_PART_data.csv`` lists. Default: all.
    """
    path = _need(local_path(path), "Sen1Floods11")
    labels = {p.name.removesuffix("_LabelHand.tif"): p for p in path.rglob("*_LabelHand.tif")}
    images = {p.stem.rsplit("_", 1)[0]: p for kind in ("S2Hand", "S2L1C") for p in path.rglob(f"*_{kind}.tif")}
    if part is not None:
        lists = sorted(path.rglob(f"flood_{part}_data.csv"))
        if not lists:
            raise InputNotFoundError(f"Sen1Floods11 at {path}: no flood_{part}_data.csv")
        lines = lists[0].read_text(encoding="utf-8").split()
        wanted = {line.rsplit(",", 1)[-1].removesuffix("_LabelHand.tif") for line in lines}
        labels = {name: p for name, p in labels.items() if name in wanted}
    scenes = []
    for name, label_path in sorted(labels.items()):
        if name not in images:
            continue
        image = _read(images[name]).astype("float32")
        valid = (image != 0).any(axis=0)
        if len(image) == 13:
            image = np.delete(image, S2_13.index("B10"), axis=0)
        label = _read(label_path)[0].astype("int16")
        scenes.append(Scene(name, image, label, valid, S2_12, corner=_corner(label_path)))
    if not scenes:
        of = "" if part is None else f" that flood_{part}_data.csv lists"
        raise InputNotFoundError(f"Sen1Floods11 at {path}: no *_LabelHand.tif with *_S2L1C.tif or *_S2Hand.tif{of}")
    return scenes


def with_gain(data: ChipSet, gain: float) -> ChipSet:
    """The same chips in light `gain` times as strong."""
    return replace(data, images=data.images * np.float32(gain))
