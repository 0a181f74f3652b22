"""Public benchmarks in the folder layouts that they are distributed in: OSCD and PASTIS. Nothing here downloads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import InputNotFoundError
from deo_cube.evaluate.readers import S2_12, Scene
from deo_cube.paths import local_path

__all__ = ["PASTIS_BANDS", "PASTIS_CLASSES", "read_oscd", "read_pastis"]

Array = NDArray[Any]

PASTIS_BANDS = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")
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
    """Onera Satellite Change Detection: pairs of L1C dates with a mask of urban change (1).

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
    """PASTIS: crop types in France, one median image a patch.

    Layout: ``metadata.geojson`` (ID_PATCH, Fold), ``DATA_S2/S2_ID.npy`` (T, 10, 128, 128) and
    ``ANNOTATIONS/TARGET_ID.npy`` whose first layer holds the classes. Garnot and Landrieu 2021, arXiv:2107.07933. The
    protocol of the paper that this package follows takes the median of the series as one image.

    Parameters
    ----------
    folds : sequence of int
        Of the official five.
    limit : int, optional
        Read at most so many patches a fold.

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
        scenes.append(Scene(f"{fold}/{number}", image, label, np.ones(label.shape, bool), PASTIS_BANDS))
    if not scenes:
        raise InputNotFoundError(f"PASTIS at {path}: metadata.geojson lists no patch of folds {tuple(folds)}")
    return scenes
