"""Public benchmarks in the layouts that they are distributed in: OSCD, PASTIS and GEO-Bench. Nothing here downloads.

GEO-Bench 1.0 (Lacoste et al. 2023, arXiv:2306.03831) as it is distributed: one HDF5 file per sample.

Layout of a set: ``SAMPLE.hdf5`` with a 2-D array per band (``"04 - Red"``, followed by ``_DATE`` where one is known)
and, for segmentation, ``label``; ``NAME_partition.json`` with the samples of ``train``, ``valid`` and ``test``;
``label_map.json`` (class to samples) or ``label_stats.json`` (sample to shares of the classes). Everything else that a
sample knows of itself is a pickle in an attribute, and ``task_specs.pkl`` is another: neither is opened here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.constants import WAVELENGTH_BANDS
from deo_cube.errors import ArgumentError, InputNotFoundError
from deo_cube.evaluate.readers import S2_12, ChipSet, Scene
from deo_cube.extras import require
from deo_cube.paths import local_path

__all__ = ["PASTIS_CLASSES", "read_geobench_chips", "read_geobench_scenes", "read_oscd", "read_pastis"]

Array = NDArray[Any]

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


def read_geobench_scenes(
    path: str | Path, *, partition: str = "default", bands: Mapping[str, str] | None = None, scale: float | None = None,
    limit: int | None = None,
) -> tuple[list[Scene], list[Scene], list[Scene]]:  # fmt: skip
    """Read the scenes of ``train``, ``valid`` and ``test`` of a segmentation set, as `read_geobench_chips`.

    Raises
    ------
    ValueError
        If a sample has no map of labels, and as `read_geobench_chips`.
    """
    path = local_path(path)
    parts = _partition(path, partition)
    samples = _Samples(path, bands, scale)

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
