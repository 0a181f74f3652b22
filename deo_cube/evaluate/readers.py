"""Readers of labelled data in folders: arrays of canonical pixel values (DN), with names for the bands.

DN is reflectance x 10000 without the +1000 offset of processing baseline 04.00. Where a data set leaves open whether
its files carry that offset, the reader says how it decided. Nothing here downloads.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import TCI_SCALE, WAVELENGTH_BANDS
from deo_cube.cube.sentinel2 import band_of_name, counted
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.extras import require
from deo_cube.paths import local_path, not_found

__all__ = [
    "ChipSet",
    "PASTIS_CLASSES",
    "Scene",
    "Series",
    "read_beetle",
    "read_biomassters",
    "read_chips",
    "read_eurosat",
    "read_geobench_chips",
    "read_geobench_scenes",
    "read_oscd",
    "read_pastis",
    "read_sen1floods11",
    "read_terramesh",
    "read_worldcereal",
    "read_worldcover16",
    "worldcover16_training",
]


Array = NDArray[Any]

RGB = ("B04", "B03", "B02")
S2_12 = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
S2_13 = (*S2_12[:10], "B10", *S2_12[10:])


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
        Chips of one group may be neighbours: a group goes to one side of a split, and intervals are drawn over
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


@dataclass(frozen=True)
class Series:
    """Pixels with a series of dates and one label each.

    Parameters
    ----------
    name : str
        Name of the set in reports.
    values : (N, T, C) float32
        DN; not read where `valid` is False.
    valid : (N, T) bool
        Dates with data.
    labels : (N,) int
        Index into `classes`.
    classes : tuple of str
        Names.
    bands : tuple of str
        Names of the C bands.
    place : (N, 2) float64
        Longitude and latitude, degrees.
    months : tuple of int
        Month of the year of each date, 1 to 12; empty where it is not known.
    """

    name: str
    values: Array = field(repr=False)
    valid: Array = field(repr=False)
    labels: Array = field(repr=False)
    classes: tuple[str, ...]
    bands: tuple[str, ...]
    place: Array = field(repr=False)
    months: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        n, dates, bands = self.values.shape
        if bands != len(self.bands) or self.valid.shape != (n, dates) or not len(self.labels) == len(self.place) == n:
            raise ArgumentError(
                f"{self.name}: values {self.values.shape}, valid {self.valid.shape}, {len(self.labels)} labels, "
                f"{len(self.place)} places and {len(self.bands)} bands do not fit"
            )


def _need(path: Path, what: str) -> Path:
    if not path.exists():
        raise not_found("data", path, what)
    return path


def read_eurosat(
    path: str | Path, *, classes: Sequence[str] | None = None, limit: int | None = None,
    part: Literal["test", "val"] = "test", spatial: bool | None = None,
) -> ChipSet:  # fmt: skip
    """Read EuroSAT RGB tiles, from the zip or the folder ``Class/Class_n.jpg``, with their official spatial split.

    Bytes become DN by ``v * 2750 / 255``. The JPEGs carry no place; runs of 50 consecutive numbers form a group. A
    split by such runs flatters a model by up to 0.2, so that the official split by longitude
    (``splits/eurosat-spatial-{train,val,test}.txt`` beside the tiles) is taken where its lists are there.

    Parameters
    ----------
    path : path
        The zip file, or the folder that holds the class folders, or a folder with one of these in it.
    classes : sequence of str, optional
        Read these classes only.
    limit : int, optional
        Read at most this many tiles per class and part (the lowest numbers).
    part : {"test", "val"}
        Part that is tested. Of ``"test"``, train and val are the training part; of ``"val"`` (to choose a model),
        train alone, and no tile of test is read.
    spatial : bool, optional
        Use the official split. Default: where its lists are found. Without it groups are split by the protocol.

    Returns
    -------
    ChipSet
        Images (N, 3, 64, 64), bands B04 B03 B02; `train` is the official split.

    Raises
    ------
    InputNotFoundError
        If there is no such file, it holds no ``Class/Class_n.jpg``, or the lists of the split are missing.
    """
    from PIL import Image

    root = path = _need(local_path(path), "EuroSAT")
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
    numbered = sorted((Path(n).parent.name, int(Path(n).stem.rsplit("_", 1)[1]), n) for n in names)
    available = tuple(sorted({c for c, _, _ in numbered}))
    chosen = available if classes is None else tuple(classes)
    if not chosen or set(chosen) - set(available):
        raise InputNotFoundError(f"EuroSAT at {path}: expected classes {list(chosen)}, found {list(available)}")
    parts = _eurosat_split(root if root.is_dir() else root.parent, spatial)
    if part not in ("test", "val") or (part == "val" and parts is None):
        raise ArgumentError(f"part must be 'test', or 'val' of the spatial split, got {part!r}")
    seen: dict[tuple[str, bool], int] = {}
    images, labels, groups, train = [], [], [], []
    for c, number, name in numbered:
        member = "train" if parts is None else parts.get(Path(name).name)
        if c not in chosen or member is None or (part == "val" and member == "test"):
            continue
        trains = member != part
        seen[c, trains] = seen.get((c, trains), 0) + 1
        if limit is not None and seen[c, trains] > limit:
            continue
        images.append(np.asarray(load(name).convert("RGB"), dtype="float32").transpose(2, 0, 1) * TCI_SCALE)
        labels.append(chosen.index(c))
        groups.append(chosen.index(c) * 10_000 + number // 50)
        train.append(trains)
    split = None if parts is None else np.array(train)
    return ChipSet("EuroSAT RGB", np.stack(images), np.array(labels), chosen, np.array(groups), RGB, split)


def _eurosat_split(folder: Path, spatial: bool | None) -> dict[str, str] | None:
    """Return the part of each tile in the official spatial split; None where it is not used."""
    if spatial is False:
        return None
    lists = {p: folder / "splits" / f"eurosat-spatial-{p}.txt" for p in ("train", "val", "test")}
    missing = [str(f) for f in lists.values() if not f.is_file()]
    if missing and not spatial:
        return None
    if missing:
        raise InputNotFoundError(f"EuroSAT: the lists of the spatial split are missing: {missing}; or spatial=False")
    return {name: p for p, f in lists.items() for name in f.read_text(encoding="utf-8").split()}


def _read(path: Path) -> Array:
    import rasterio

    with rasterio.open(_need(path, "raster")) as r:
        return np.asarray(r.read())


def _corner(path: Path) -> tuple[float, float] | None:
    """Return row and column of a raster's north-west pixel from the origin of its CRS; None where it states none."""
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
    """Read TerraMesh tiles, ``TILE/S2L2A.tif``, ``TILE/S2L1C.tif`` and ``TILE/LULC.tif``, as scenes.

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


def read_beetle(path: str | Path, *, min_size: int = 0) -> list[Scene]:
    """Read bark-beetle plots: September 2019 (`before`) and 2020, with the mask of damage (1) as label.

    The mask marks beetle damage only: other clear-cuts and fields change too and are 0.

    Parameters
    ----------
    path : path
        Folder with ``index.json`` and one folder per plot.
    min_size : int
        Leave out plots with a side shorter than this many pixels.
    """
    path = _need(local_path(path), "bark-beetle plots")
    index = json.loads(_need(path / "index.json", "index of the plots").read_text(encoding="utf-8"))
    scenes = []
    for entry in index:
        if min(entry["height"], entry["width"]) < min_size:
            continue
        folder = path / entry["id"]
        before, image = (_read(folder / f"s2_{d}-09.tif").astype("float32") for d in (2019, 2020))
        valid = (before != 0).all(axis=0) & (image != 0).all(axis=0)
        label = _read(folder / "damage_mask.tif")[0].astype("int16")
        scenes.append(Scene(entry["id"], image, label, valid, S2_12, before, _corner(folder / "damage_mask.tif")))
    return scenes


def read_sen1floods11(path: str | Path, *, part: str | None = None) -> list[Scene]:
    """Read Sen1Floods11: ``_S2L1C.tif`` or ``*_S2Hand.tif`` and their ``*_LabelHand.tif``, in one folder or several.

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
        listed = {line.rsplit(",", 1)[-1].removesuffix("_LabelHand.tif") for line in lines}
        labels = {name: p for name, p in labels.items() if name in listed}
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


WORLDCOVER_AS_ESRI = {0: 1, 1: 2, 2: 9, 3: 3, 4: 4, 5: 9, 6: 5, 7: 6, 8: 7}
"""Codes of the worldwide chips to those of TerraMesh (ESRI): grass and shrub are rangeland there."""


def read_worldcover16(path: str | Path, *, limit: int | None = None) -> tuple[list[Scene], Array]:
    """Read chips of 16 x 16 px from points all over the world with ESA WorldCover 2020 as labels (.npz).

    Images are medians of the year 2020 of L1C, without offset. The coordinates of the points were not kept: 5000 of
    them in 79 boxes of 8 degrees are some 100 km apart, and chips in a random split have no neighbour on its other
    side. A fifth of the chips, drawn once, is the part that is tested here: keep it out of training, as that of `tiny`
    did.

    Parameters
    ----------
    path : path
        The .npz file, or a folder that holds it.
    limit : int, optional
        Read at most this many chips, the first.

    Returns
    -------
    list of Scene
        Labels: 0 water, 1 trees, 2 grass, 3 flooded vegetation, 4 crops, 5 shrub and scrub, 6 built, 7 bare, 8 snow
        and ice.
    (N,) bool
        Chips that train.
    """
    path = _npz(path, "gcp_worldcover16*.npz", "worldwide WorldCover chips")
    with np.load(path, allow_pickle=False) as z:
        x, label, bands = z["x"][:limit], z["label"][:limit], tuple(map(str, z["bands"]))
        train = worldcover16_training(len(z["label"]))[:limit]
    scenes = [
        Scene(str(i), im.astype("float32"), lab.astype("int16"), (im != 0).all(axis=0), bands)
        for i, (im, lab) in enumerate(zip(x, label, strict=True))
    ]
    return scenes, train


def worldcover16_training(count: int) -> Array:
    """Return which of `count` worldwide chips train, (count,) bool: four in five, drawn once."""
    train = np.zeros(count, bool)
    train[np.random.default_rng(0).permutation(count)[: count * 4 // 5]] = True
    return train


def read_biomassters(path: str | Path) -> tuple[list[Scene], list[Array]]:
    """Read the clearest date of each BioMassters chip (L2A) and its above-ground biomass, t/ha (H, W)."""
    path = _npz(path, "biomassters*.npz", "BioMassters chips")
    with np.load(path, allow_pickle=False) as z:
        x, chip, cloud, month, bands = z["x"], z["chip"], z["cloud_share"], z["month_index"], z["bands"]
        names, biomass = z["agb_chip"], z["agb_t_per_ha"]
    scenes, values = [], []
    for name, agb in zip(names, biomass, strict=True):
        own = np.flatnonzero(chip == name)
        # Months 8 to 12 of the set (May to September): no snow, and sun enough.
        summer = own[np.isin(month[own], (8, 9, 10, 11, 0))]
        own = summer if len(summer) else own
        image = x[own[np.argmin(cloud[own])]].astype("float32")
        valid = (image != 0).all(axis=0) & np.isfinite(agb)
        scenes.append(Scene(str(name), image, np.zeros(agb.shape, "int16"), valid, tuple(map(str, bands))))
        values.append(np.asarray(agb, dtype="float32"))
    return scenes, values


CROPS = {"sorghum": "sorghum", "maize": "maize"}
NOT_CROPS = ("trees_mixed", "herbaceous_vegetation", "grasslands", "built_up")


def read_worldcereal(path: str | Path) -> Series:
    """Read pixels of WorldCereal (public extractions, one .parquet): 12 months of ten bands and a crop each.

    Classes: sorghum, maize, another crop, no crop. 65535 is no data.

    Raises
    ------
    InputNotFoundError
        If there is no such file, or it has no column `sampling_label`.
    """
    import pandas as pd

    path = _need(local_path(path), "WorldCereal tables")
    files = sorted(path.glob("worldcereal_public*.parquet")) if path.is_dir() else [path]
    if not files:
        raise InputNotFoundError(f"WorldCereal at {path}: no worldcereal_public*.parquet")
    table = pd.read_parquet(files[0])
    if "sampling_label" not in table:
        raise InputNotFoundError(f"{files[0]} has no column sampling_label: expected the public extractions")
    dates = range(sum(c.startswith("OPTICAL-B02-ts") for c in table.columns))
    column = {c.rsplit("-", 1)[0]: c for c in table.columns if c.startswith("OPTICAL-")}
    raw = np.stack([[table[column[f"OPTICAL-{b}-ts{t}"]] for b in WAVELENGTH_BANDS] for t in dates]).transpose(2, 0, 1)
    valid = (raw != 65535).all(axis=2)
    classes = ("sorghum", "maize", "another crop", "no crop")
    named = ["no crop" if v in NOT_CROPS else CROPS.get(v, "another crop") for v in table["sampling_label"].astype(str)]
    labels = np.array([classes.index(v) for v in named])
    place = table[["lon", "lat"]].to_numpy("float64")
    (start,) = {pd.Timestamp(v) for v in table["start_date"]}
    months = tuple((start + pd.DateOffset(months=t)).month for t in dates)
    return Series("crops", raw.astype("float32"), valid, labels, classes, WAVELENGTH_BANDS, place, months)


def _npz(path: str | Path, pattern: str, what: str) -> Path:
    """Return the .npz file at `path`, or the first in it that fits `pattern`."""
    path = _need(local_path(path), what)
    files = sorted(path.glob(pattern)) if path.is_dir() else [path]
    if not files:
        raise InputNotFoundError(f"{what}: no {pattern} in {path}")
    return files[0]


def read_chips(
    path: str | Path, *, bands: Sequence[str] | None = None, offset: float = 0.0, limit: int | None = None
) -> ChipSet:
    """Read chips of one size with a label each.

    Parameters
    ----------
    path : path
        A zip or folder ``Class/Class_n.jpg`` (EuroSAT RGB); a folder ``Class/name.tif`` (EuroSAT MS, or any other); or
        an .npz with `images` (N, C, H, W), `labels` (N,), `bands` (C,) and optionally `groups` (N,).
    bands : sequence of str, optional
        Names of the channels of GeoTIFFs that carry none. EuroSAT MS is B01 ... B08, B09, B10, B11, B12, **then** B8A.
    offset : float
        DN to add to GeoTIFFs and arrays: -1000 for L1C or L2A of baseline 04.00 and later with the offset in it.
    limit : int, optional
        At most this many chips per class (GeoTIFFs and JPEGs: the lowest numbers).

    Returns
    -------
    ChipSet
        DN. Files whose names end in a number are grouped by runs of 50, as EuroSAT's; each other one is a group.

    Raises
    ------
    FileNotFoundError
        If nothing of that kind is there.
    MissingBandsError
        If channels have no names, or their number is not that of `bands`.
    """
    path = local_path(path)
    if path.suffix == ".npz":
        return _arrays(path, offset, limit)
    files = sorted(path.glob("*/*.tif")) + sorted(path.glob("*/*.tiff")) if path.is_dir() else []
    return _tiffs(path, files, bands, offset, limit) if files else read_eurosat(path, limit=limit)


def _canonical(names: Sequence[str], where: object, *, given: bool = False) -> tuple[str, ...]:
    """Return the bands that names mean; names that only count positions mean none, unless the caller gave them."""
    positional = (False,) * len(names) if given else counted([str(n) for n in names])
    found = [None if p else band_of_name(str(n)) for n, p in zip(names, positional, strict=True)]
    if unknown := [n for n, f in zip(names, found, strict=True) if f is None]:
        raise MissingBandsError(
            f"{where}: {unknown} are not names of Sentinel-2 bands. Give --bands, one name per channel in their order; "
            "EuroSAT MS is B01,B02,B03,B04,B05,B06,B07,B08,B09,B10,B11,B12,B8A (B8A last)"
        )
    return tuple(f[0] for f in found if f is not None)


def _arrays(path: Path, offset: float, limit: int | None) -> ChipSet:
    if not path.is_file():
        raise InputNotFoundError(f"no file {path}")
    with np.load(path, allow_pickle=False) as held:
        if missing := {"images", "labels", "bands"} - set(held.files):
            raise InputNotFoundError(f"{path} holds {sorted(held.files)}; expected also {sorted(missing)}")
        images, raw, names = held["images"].astype("float32") + np.float32(offset), held["labels"], held["bands"]
        groups = held["groups"] if "groups" in held.files else np.arange(len(raw))
    classes, labels = np.unique(raw, return_inverse=True)
    kept = _lowest(labels, limit)
    return ChipSet(
        path.stem, images[kept], labels[kept], tuple(map(str, classes)), groups[kept], _canonical(names, path)
    )


def _tiffs(path: Path, files: Sequence[Path], bands: Sequence[str] | None, offset: float, limit: int | None) -> ChipSet:
    import rasterio

    numbered = [(f, _number(f)) for f in files]
    classes = tuple(sorted({f.parent.name for f in files}))
    numbered.sort(key=lambda fn: (fn[0].parent.name, fn[1] if fn[1] is not None else 0, fn[0].name))
    labels = np.array([classes.index(f.parent.name) for f, _ in numbered])
    kept = _lowest(labels, limit)
    images, names = [], None
    for f, _ in (numbered[i] for i in kept):
        with rasterio.open(f) as r:
            if names is None:
                names = _canonical(bands or [d or "?" for d in r.descriptions], f, given=bool(bands))
            if r.count != len(names):
                raise MissingBandsError(f"{f} has {r.count} channels, named are {len(names)}: {list(names)}")
            images.append(r.read().astype("float32") + np.float32(offset))
    if len({i.shape for i in images}) > 1:
        raise ArgumentError(
            f"{path}: chips of several sizes, {sorted({i.shape[1:] for i in images})[:3]}: cut them alike"
        )
    groups = [labels[i] * 10_000 + n // 50 if (n := numbered[i][1]) is not None else -1 - j for j, i in enumerate(kept)]
    assert names is not None
    return ChipSet(path.name, np.stack(images), labels[kept], classes, np.array(groups), names)


def _number(file: Path) -> int | None:
    digits = file.stem.rsplit("_", 1)[-1]
    return int(digits) if digits.isdigit() else None


def _lowest(labels: Array, limit: int | None) -> Array:
    """Return the indices of the first `limit` cases of each class."""
    if limit is None:
        return np.arange(len(labels))
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:limit] for c in np.unique(labels)]))


# Public benchmarks in the layouts that they are distributed in: OSCD, PASTIS and GEO-Bench. Nothing here downloads.
#
# GEO-Bench 1.0 (Lacoste et al. 2023, arXiv:2306.03831) as it is distributed: one HDF5 file per sample.
#
# Layout of a set: ``SAMPLE.hdf5`` with a 2-D array per band (``"04 - Red"``, followed by ``_DATE`` where one is known)
# and, for segmentation, ``label``; ``NAME_partition.json`` with the samples of ``train``, ``valid`` and ``test``;
# ``label_map.json`` (class to samples) or ``label_stats.json`` (sample to shares of the classes). Everything else that
# a sample knows of itself is a pickle in an attribute, and ``task_specs.pkl`` is another: neither is opened here.

STORED_AS = {
    # Bands are stored in EuroSAT's own order (B8A last) under names in ESA's order: ServiceNow/geo-bench issue 28.
    "m-eurosat": {"B8A": "B09", "B09": "B10", "B10": "B11", "B11": "B12", "B12": "B8A"},
}
"""Band that a stored name means, in sets whose names are known to be wrong."""
UNKNOWN_ORDER = {"m-brick-kiln": "https://github.com/ServiceNow/geo-bench/issues/29"}
SCALES = {"m-so2sat": 10000.0}
"""DN a stored unit, where it is not 1."""
COLOURS = {"Red": "B04", "Green": "B03", "Blue": "B02"}


def _band(name: str) -> str | None:
    """Return the Sentinel-2 band of an array's name; None for radar, cloud probability, masks and labels."""
    plain = re.sub(r"_\d{4}[-_]?\d\d.*$", "", name)
    if plain in COLOURS:
        return COLOURS[plain]
    numbered = re.match(r"(\d{1,2})(A?) - (?!V[HV])", plain)
    return None if numbered is None else f"B{(numbered[2] and '8A') or f'{int(numbered[1]):02d}'}"


def _partition(path: Path, name: str) -> dict[str, list[str]]:
    file = path / f"{name}_partition.json"
    if not file.is_file():
        there = sorted(p.name.removesuffix("_partition.json") for p in path.glob("*_partition.json"))
        raise InputNotFoundError(f"GEO-Bench at {path}: no partition {name!r}, found {there}")
    found: dict[str, list[str]] = json.loads(file.read_text(encoding="utf-8"))
    if not {"train", "valid", "test"} <= set(found):
        raise ArgumentError(f"{file}: expected train, valid and test, found {sorted(found)}")
    return found


class _Samples:
    """Samples of one set, read with the same bands."""

    def __init__(self, path: Path, bands: Mapping[str, str] | None, scale: float | None) -> None:
        if path.name in UNKNOWN_ORDER and bands is None:
            raise ArgumentError(
                f"the bands of {path.name} do not bear their right names ({UNKNOWN_ORDER[path.name]}): pass "
                'bands={"stored name": "B04", ...} with those that you trust'
            )
        self.path, self.given = path, bands
        self.scale = SCALES.get(path.name, 1.0) if scale is None else scale
        self.checked = scale is not None
        self.bands: tuple[str, ...] = ()

    def read(self, sample: str) -> tuple[Array, Array | None]:
        """Return the image (C, H, W) in DN, and the map of labels of a segmentation sample."""
        h5py = require("h5py", extra="benchmarks", purpose="reading GEO-Bench")
        file = self.path / f"{sample}.hdf5"
        if not file.is_file():
            raise InputNotFoundError(f"GEO-Bench at {self.path}: no sample {file.name}")
        with h5py.File(file, "r") as f:
            arrays = {str(k): np.asarray(f[k]) for k in f}
        label = next((a for k, a in arrays.items() if k.startswith("label")), None)
        wrong = STORED_AS.get(self.path.name, {}) if self.given is None else {}
        found: dict[str, Array] = {}
        for k, a in arrays.items():
            stored = self.given.get(k) if self.given is not None else _band(k)
            if stored is None or k.startswith("label"):
                continue
            name = wrong.get(stored, stored)
            if name in found:
                raise ArgumentError(f"{file.name}: two dates of {name}; sets with one image per sample are read")
            found[name] = a.reshape(a.shape[:2])
        names = tuple(sorted(found, key=lambda b: (b[:3] + ("5" if b == "B8A" else "0")).replace("B8A", "B08")))
        if not names or (self.bands and names != self.bands):
            raise ArgumentError(
                f"{file.name}: bands {names or sorted(arrays)}, expected {self.bands or 'Sentinel-2 bands'}"
            )
        self.bands = names
        shape = max(a.shape for a in found.values())
        image = np.stack([_enlarged(found[b], shape) for b in names]).astype("float32") * np.float32(self.scale)
        if not self.checked:
            self._plausible(image, file.name)
        return image, None if label is None else label.reshape(label.shape[:2]).astype("int16")

    def _plausible(self, image: Array, file: str) -> None:
        if np.percentile(image, 99) < 300:
            raise ArgumentError(
                f"{file}: 99 % of the values are below {np.percentile(image, 99):.3g}, which no DN (reflectance x "
                "10000) does: pass scale=, the DN of one stored unit (10000 for reflectance, 2750 / 255 for 8 bit)"
            )
        self.checked = True


def _enlarged(a: Array, shape: tuple[int, ...]) -> Array:
    """Return a coarser band repeated to the grid of the finest."""
    k = shape[0] // a.shape[0]
    if (a.shape[0] * k, a.shape[1] * k) != tuple(shape):
        raise ArgumentError(f"a band of {a.shape} pixels does not fit one of {shape}")
    return a.repeat(k, 0).repeat(k, 1) if k > 1 else a


def _labels(path: Path, samples: Sequence[str]) -> tuple[Array, tuple[str, ...]]:
    """Return the class of each sample, and the names of the classes."""
    if (path / "label_map.json").is_file():
        by_class: dict[str, list[str]] = json.loads((path / "label_map.json").read_text(encoding="utf-8"))
        order = sorted(by_class, key=lambda c: (not c.isdigit(), int(c) if c.isdigit() else 0, c))
        of = {s: i for i, c in enumerate(order) for s in by_class[c]}
        if sum(len(v) for v in by_class.values()) > len(of):
            raise ArgumentError(f"{path.name} gives samples several labels: expected one label per sample")
        names = tuple(order)
    elif (path / "label_stats.json").is_file():
        stats: dict[str, Any] = json.loads((path / "label_stats.json").read_text(encoding="utf-8"))
        shares = {s: np.ravel(stats[s]) for s in samples if s in stats}
        if any(np.count_nonzero(v) != 1 for v in shares.values()):
            raise ArgumentError(f"{path.name} gives samples several labels: expected one label per sample")
        of = {s: int(np.argmax(v)) for s, v in shares.items()}
        names = tuple(str(i) for i in range(max((len(v) for v in shares.values()), default=0)))
    else:
        raise InputNotFoundError(
            f"GEO-Bench at {path}: neither label_map.json nor label_stats.json (pickles are not read)"
        )
    missing = [s for s in samples if s not in of]
    if missing:
        raise ArgumentError(f"GEO-Bench at {path}: {len(missing)} samples without a label, for example {missing[0]}")
    return np.array([of[s] for s in samples]), names


def read_geobench_chips(
    path: str | Path, *, partition: str = "default", bands: Mapping[str, str] | None = None, scale: float | None = None,
    limit: int | None = None,
) -> ChipSet:  # fmt: skip
    """Read a classification set of GEO-Bench: chips with one label each, and the set's own split.

    Parameters
    ----------
    path : path
        Folder of the set, for example ``classification_v1.0/m-eurosat``.
    partition : str
        ``default``, or a smaller one: ``0.10x_train``.
    bands : mapping, optional
        Stored name to Sentinel-2 band, where the stored names are not to be trusted.
    scale : float, optional
        DN (reflectance x 10000) of one stored unit. Default: as known of the set, else 1, checked on the values.
    limit : int, optional
        Read at most this many samples per part.

    Returns
    -------
    ChipSet
        Of ``train`` and ``test``; ``valid`` is left out, as probes choose among training cases. No places are known.

    Raises
    ------
    FileNotFoundError, ValueError
        For missing files, several labels per sample, wrong or implausible bands.
    MissingExtraError
        Without h5py.
    """
    path = local_path(path)
    parts = _partition(path, partition)
    chosen = [(s, k == "train") for k in ("train", "test") for s in parts[k][:limit]]
    samples = _Samples(path, bands, scale)
    labels, names = _labels(path, [s for s, _ in chosen])
    images = np.stack([samples.read(s)[0] for s, _ in chosen])
    train = np.array([t for _, t in chosen])
    return ChipSet(path.name, images, labels, names, np.arange(len(chosen)), samples.bands, train)


def read_geobench_scenes(path: str | Path, *, limit: int | None = None) -> tuple[list[Scene], list[Scene], list[Scene]]:
    """Read the scenes of ``train``, ``valid`` and ``test`` of a segmentation set, as `read_geobench_chips`.

    Raises
    ------
    ValueError
        If a sample has no map of labels, and as `read_geobench_chips`.
    """
    path = local_path(path)
    parts = _partition(path, "default")
    samples = _Samples(path, None, None)

    def scene(name: str) -> Scene:
        image, label = samples.read(name)
        if label is None:
            raise ArgumentError(
                f"{path.name}/{name} has no map of labels: read_geobench_chips reads classification sets"
            )
        return Scene(name, image, label, np.ones(label.shape, bool), samples.bands)

    train, valid, test = ([scene(s) for s in parts[k][:limit]] for k in ("train", "valid", "test"))
    return train, valid, test


PASTIS_CLASSES = (
    "background", "meadow", "soft winter wheat", "corn", "winter barley", "winter rapeseed", "spring barley",
    "sunflower", "grapevine", "beet", "winter triticale", "winter durum wheat", "fruits, vegetables, flowers",
    "potatoes", "leguminous fodder", "soybeans", "orchard", "mixed cereal", "sorghum",
)  # fmt: skip
"""Codes 0 to 18; 19 is void and not scored."""


def _one(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if not found:
        raise InputNotFoundError(f"OSCD: no {pattern} in {folder}")
    return found[0]


def read_oscd(path: str | Path, *, cities: Sequence[str] | None = None) -> list[Scene]:
    """Read Onera Satellite Change Detection: pairs of L1C dates with a mask of urban change (1).

    Layout: ``*Images*/CITY/imgs_1_rect/B01.tif`` ... (all bands resampled to 10 m) and ``*Labels*/CITY/cm/*-cm.tif``
    with 1 for no change and 2 for change. Cities without labels are left out. Daudt et al. 2018,
    doi:10.1109/IGARSS.2018.8518015. The images are of 2015 to 2018 and carry no offset; B10 is left out.

    Returns
    -------
    list of Scene
        Bands of L2A's 12; `before` is the first date.

    Raises
    ------
    FileNotFoundError
        If there is no city with both dates and a label.
    """
    import rasterio

    path = local_path(path)
    scenes = []
    for label_path in sorted(path.rglob("*-cm.tif")):
        city = label_path.parent.parent.name
        if cities is not None and city not in cities:
            continue
        folders = [p.parent for p in path.rglob("imgs_1_rect") if p.parent.name == city]
        if not folders:
            continue
        two = []
        for n in (1, 2):
            bands = []
            for b in S2_12:
                with rasterio.open(_one(folders[0] / f"imgs_{n}_rect", f"*{b}.tif")) as r:
                    bands.append(r.read(1).astype("float32"))
            two.append(np.stack(bands))
        with rasterio.open(label_path) as r:
            label = (r.read(1) == 2).astype("int16")
        rows, cols = np.min([a.shape[-2:] for a in (*two, label)], axis=0)
        before, after = (a[:, :rows, :cols] for a in two)
        valid = np.asarray((before > 0).all(axis=0) & (after > 0).all(axis=0))
        scenes.append(Scene(city, after, label[:rows, :cols], valid, S2_12, before))
    if not scenes:
        raise InputNotFoundError(f"OSCD at {path}: no city with imgs_1_rect, imgs_2_rect and cm/*-cm.tif")
    return scenes


def read_pastis(path: str | Path, *, folds: Sequence[int] = (1, 2, 3, 4, 5), limit: int | None = None) -> list[Scene]:
    """Read PASTIS: crop types in France, one median image per patch.

    Layout: ``metadata.geojson`` (ID_PATCH, Fold), ``DATA_S2/S2_ID.npy`` (T, 10, 128, 128) and
    ``ANNOTATIONS/TARGET_ID.npy`` whose first layer holds the classes. Garnot and Landrieu 2021, arXiv:2107.07933. The
    protocol of the paper that this package follows takes the median of the series as one image.

    Parameters
    ----------
    folds : sequence of int
        Of the official five.
    limit : int, optional
        Read at most this many patches per fold.

    Returns
    -------
    list of Scene
        The name is ``FOLD/ID``; label 19 (void) is -1.

    Raises
    ------
    FileNotFoundError
        If metadata or arrays are missing.
    """
    path = local_path(path)
    index = path / "metadata.geojson"
    if not index.exists():
        raise InputNotFoundError(f"PASTIS at {path}: no metadata.geojson")
    seen = dict.fromkeys(folds, 0)
    scenes = []
    for feature in json.loads(index.read_text(encoding="utf-8"))["features"]:
        facts = feature["properties"]
        fold, number = int(facts["Fold"]), int(facts["ID_PATCH"])
        if fold not in seen or (limit is not None and seen[fold] >= limit):
            continue
        seen[fold] += 1
        # Plain arrays only: a pickled one is refused.
        series = np.load(path / "DATA_S2" / f"S2_{number}.npy", allow_pickle=False)
        target = np.load(path / "ANNOTATIONS" / f"TARGET_{number}.npy", allow_pickle=False)[0].astype("int16")
        image = np.median(series, axis=0).astype("float32")
        label = np.where(target < len(PASTIS_CLASSES), target, -1).astype("int16")
        scenes.append(Scene(f"{fold}/{number}", image, label, np.ones(label.shape, bool), WAVELENGTH_BANDS))
    if not scenes:
        raise InputNotFoundError(f"PASTIS at {path}: metadata.geojson lists no patch of folds {tuple(folds)}")
    return scenes
