"""Readers of labelled data in folders: arrays of canonical pixel values (DN), with names for the bands.

DN is reflectance x 10000 without the +1000 offset of processing baseline 04.00. Where a data set leaves open whether
its files carry that offset, the reader says how it decided. Nothing here downloads.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import TCI_SCALE, WAVELENGTH_BANDS
from deo_cube.cube.sentinel2 import band_of_name, counted
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingBandsError
from deo_cube.paths import local_path, not_found

__all__ = [
    "ChipSet",
    "Scene",
    "Series",
    "read_beetle",
    "read_biomassters",
    "read_chips",
    "read_eurosat",
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


def read_beetle(path: str | Path, *, plots: Sequence[str] | None = None, min_size: int = 0) -> list[Scene]:
    """Read bark-beetle plots: September 2019 (`before`) and 2020, with the mask of damage (1) as label.

    The mask marks beetle damage only: other clear-cuts and fields change too and are 0.

    Parameters
    ----------
    path : path
        Folder with ``index.json`` and one folder per plot.
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
