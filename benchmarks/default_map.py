"""Make the bundled land-cover head of `segment()`: python -m benchmarks.default_map --data DATA.

A linear map from the vectors of `tiny` to nine classes (the legend of Dynamic World), fitted on 4000 chips of 16 px all
over the world with labels of ESA WorldCover 2020. The chips are L1C; each is encoded as it is and twice with a
simulated atmospheric correction, so that the head reads L2A as well. They are medians of a year, in which no field is
bare: five scenes of single dates are added, with the classes that Dynamic World gives them where it is sure. 1000
further chips and three TerraMesh tiles of both levels, none of which trained anything, give the accuracy that the head
states.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr
from numpy.typing import NDArray

import deo_cube
from deo_cube.constants import WAVELENGTH_BANDS
from deo_cube.encoder.networks.dynamicworld import CLASSES, COLORS
from deo_cube.evaluate.features import ModelEncode, as_encode, encode_scenes
from deo_cube.evaluate.readers import WORLDCOVER_AS_ESRI, Scene, read_terramesh, read_worldcover16
from deo_cube.evaluate.scores import Score, confusion_counts, make_score
from deo_cube.heads.base import ModelId
from deo_cube.heads.classes import Classes
from deo_cube.heads.linear import LinearHead

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
PATCH = 4
"""Pixels along the side of a vector of `tiny`."""

#: What the atmosphere adds (DN) and lets through, per band of `WAVELENGTH_BANDS`: molecules, and an aerosol load of 1.
#: The clear end is that of the tables for a sun at 35 degrees; the hazy end is what a pair of L1C and L2A of one day in
#: Punjab shows (load 1.2). They need not be exact, as the load is drawn anew for each chip.
RAYLEIGH = (600.0, 330.0, 150.0, 110.0, 80.0, 60.0, 40.0, 30.0, 5.0, 2.0)
AEROSOL = (300.0, 270.0, 240.0, 230.0, 215.0, 200.0, 185.0, 180.0, 60.0, 30.0)
TRANSMITTANCE = (0.84, 0.87, 0.91, 0.92, 0.92, 0.93, 0.95, 0.95, 0.97, 0.97)


def as_l2a(images: Array, rng: np.random.Generator) -> Array:
    """Simulate atmospheric correction of L1C chips (N, 10, H, W) in DN, with an aerosol load and errors per chip."""
    load = rng.beta(1, 2, (len(images), 1, 1, 1)) * 1.3
    error = rng.normal(1, 0.04, (len(images), images.shape[1], 1, 1))
    rayleigh, aerosol, transmittance = (np.array(v)[:, None, None] for v in (RAYLEIGH, AEROSOL, TRANSMITTANCE))
    path = rayleigh * rng.uniform(0.8, 1.1, load.shape) + aerosol * load
    light = rng.uniform(0.85, 1.15, load.shape)
    return np.asarray(np.maximum(light * (images - path) / transmittance ** (1 + 1.5 * load) * error, 1), "float32")


def vectors(encode: ModelEncode, scenes: Sequence[Scene]) -> tuple[Array, Array, Array]:
    """Vectors (n, D) of patches of 4 px, the most frequent label of each, and the number of its scene."""
    x, y, scene = [], [], []
    encoded = encode_scenes(encode, scenes, tile=encode.tile, halo=encode.halo)
    for i, (s, tokens) in enumerate(zip(scenes, encoded, strict=True)):
        rows, cols = s.label.shape[0] // PATCH, s.label.shape[1] // PATCH
        label = np.where(s.valid, s.label, -1)[: rows * PATCH, : cols * PATCH]
        cells = label.reshape(rows, PATCH, cols, PATCH).swapaxes(1, 2).reshape(-1, PATCH**2)
        shares = np.stack([(cells == c).mean(axis=1) for c in range(10)], axis=1)
        known = shares.max(axis=1) >= 0.5
        x.append(tokens.values[:, :rows, :cols].reshape(len(tokens.values), -1).T[known])
        y.append(shares.argmax(axis=1)[known])
        scene.append(np.full(int(known.sum()), i))
    return np.concatenate(x), np.concatenate(y), np.concatenate(scene)


#: Single dates of L1C, and an L2A image of the same day to which the classes apply as well, where there is one.
DATES = (
    ("places/ssl4eo_pakistan/20200604_L1C.tif", "places/ssl4eo_pakistan/20200604_L2A.tif"),
    ("places/dsen2/T33UUB_20170527_L1C.tif", None),
    ("places/dsen2/T49JGM_20171022_L1C.tif", None),
)
SURE = 0.6
"""Probability from which a class of Dynamic World is taken."""


def dated_scenes(data: Path) -> list[Scene]:
    """Scenes of single dates with the classes of Dynamic World; of each without an L2A image a simulated one."""
    import rasterio

    scenes = []
    for i, (l1c, l2a) in enumerate(DATES):
        with rasterio.open(data / l1c) as r:
            image, names = r.read().astype("float32"), r.descriptions
        image = image[[names.index(b) for b in WAVELENGTH_BANDS]]
        coords = {
            "band": list(WAVELENGTH_BANDS),
            "y": -10.0 * np.arange(image.shape[1]),
            "x": 10.0 * np.arange(image.shape[2]),
        }
        cube = xr.DataArray(image, dims=("band", "y", "x"), coords=coords, attrs={"product_level": "L1C"})
        cube = cube.rio.write_crs(32633)
        shares = deo_cube.segment(
            cube, model="dynamicworld", weights=data / "weights", units="dn", offset=0, nodata=0, probabilities=True,
            dtype="float32",
        ).squeeze(drop=True)  # fmt: skip
        p = shares.transpose("class", "y", "x").values
        label = np.where(np.nan_to_num(p).max(axis=0) >= SURE, np.nan_to_num(p).argmax(axis=0), -1).astype("int16")
        if l2a is None:
            corrected = as_l2a(image[None], np.random.default_rng(i))[0]
        else:
            with rasterio.open(data / l2a) as r:
                corrected = r.read([r.descriptions.index(b) + 1 for b in WAVELENGTH_BANDS]).astype("float32")
        scenes += [Scene(l1c, v, label, (v > 0).all(axis=0), WAVELENGTH_BANDS) for v in (image, corrected)]
    return scenes


def fit(x: Array, y: Array, *, strength: float = 0.03, power: float = 0.25) -> tuple[Array, Array]:
    """Weights (D, 9) and bias (9,) of a logistic regression; classes weigh by their rarity to `power`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    share = np.bincount(y, minlength=len(CLASSES)) / len(y)
    weight = (1 / share[y]) ** power
    scaler = StandardScaler().fit(x)
    with threadpool_limits(1), warnings.catch_warnings():
        # Stopped early it is a little more regularised, no more.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=strength, max_iter=300).fit(
            scaler.transform(x), y, sample_weight=weight / weight.mean()
        )
    weights = (model.coef_ / scaler.scale_).T
    return weights, model.intercept_ - scaler.mean_ @ weights


@dataclass(frozen=True)
class DefaultMap:
    """Make the land-cover head of `segment()` without arguments."""

    data: Path
    """Folder with places/gcp_worldcover16 and landcover_terramesh."""
    model: str = "tiny"
    """Model whose vectors the head reads: its name, or the folder of a run."""
    out: Path = ROOT / "deo_cube" / "heads" / "bases" / "tiny_landcover.safetensors"
    """File of the head."""
    table: Path = ROOT / "docs" / "data" / "default_map.json"
    """File of the scores and the confusion tables."""
    most: int = 60_000
    """Vectors that train, drawn at random from 190,000."""


def make(job: DefaultMap) -> LinearHead:
    """Fit, score on places kept apart, and save head and table."""
    start = time.perf_counter()
    encode = as_encode(job.model, device="cpu")
    chips, train = read_worldcover16(job.data / "places" / "gcp_worldcover16")
    images = np.stack([c.image for c in chips])
    views = {"L1C": images} | {f"L2A {i}": as_l2a(images, np.random.default_rng(i)) for i in (1, 2)}
    x: dict[str, Array] = {}
    for name, view in views.items():
        shown = [dataclasses.replace(c, image=i) for c, i in zip(chips, view, strict=True)]
        x[name], y, chip = vectors(encode, shown)
    rows = np.flatnonzero(train[chip])
    some = [np.random.default_rng(i).permutation(rows)[: job.most // len(x)] for i in range(len(x))]
    dated, dated_y, _ = vectors(encode, dated_scenes(job.data))
    more = np.random.default_rng(9).permutation(len(dated_y))[: job.most // 6]
    weights, bias = fit(
        np.concatenate([*(v[r] for v, r in zip(x.values(), some, strict=True)), dated[more]]),
        np.concatenate([*(y[r] for r in some), dated_y[more]]),
    )
    held = np.flatnonzero(~train[chip])
    scores, tables = [], {}
    for name, task in (("L1C", "1000 chips, L1C"), ("L2A 1", "1000 chips, simulated L2A")):
        found = (x[name][held] @ weights + bias).argmax(axis=1)
        tables[task] = table(y[held], found, CLASSES)
        scores += judged(task, y[held], found, chip[held])
    esri = np.array([WORLDCOVER_AS_ESRI[c] for c in range(len(CLASSES))])
    for level in ("L1C", "L2A"):
        tiles = [
            dataclasses.replace(s, image=s.image[[s.bands.index(b) for b in WAVELENGTH_BANDS]], bands=WAVELENGTH_BANDS)
            for s in read_terramesh(job.data / "landcover_terramesh", level=level)
        ]
        features, truth, tile = vectors(encode, tiles)
        found = esri[(features @ weights + bias).argmax(axis=1)]
        # Each tile has 56 x 56 patches: blocks of 8 x 8 of them, 320 m, are the groups of its interval.
        for i, s in enumerate(tiles):
            own = tile == i
            place = np.arange(own.sum())
            scores += judged(
                f"{PLACES[s.name]}, {level}", truth[own], found[own], place // (8 * 56) * 7 + place % 56 // 8
            )
        tables[f"three tiles, {level}"] = table(truth, found, ESRI)
    card = encode.card
    report = {
        "stem": card.stems[0].name,
        "bands": list(card.stems[0].bands),
        "comment": comment(scores),
        "references": "labels: ESA WorldCover 2020 (CC BY 4.0), doi:10.5281/zenodo.5571936, and Dynamic World "
        "(Apache-2.0), doi:10.1038/s41597-022-01307-4; pixels: modified Copernicus Sentinel data",
        "seconds": round(time.perf_counter() - start),
    }  # fmt: skip
    # Of embeddings, so that the head is bound to what `embed` writes on them.
    model = ModelId.of(deo_cube.embed(deo_cube.synthetic_cube(size=64, times=1), job.model))
    head = LinearHead(Classes(tuple(range(len(CLASSES))), CLASSES, COLORS), model, weights, bias, report=report)
    head.save(job.out)
    text = {
        "model": card.name,
        "scores": [s.to_dict() for s in scores],
        "confusion": tables,
        "comment": report["comment"],
    }
    job.table.write_text(json.dumps(text, indent=1) + "\n", encoding="utf-8")
    return head


#: What the TerraMesh tiles show.
PLACES = {
    "282D_485L_3_3": "coast of southern Brazil",
    "38D_378R_2_3": "fields in Tanzania",
    "609U_541L_3_0": "Ontario under snow",
}
ESRI = ("none", "water", "trees", "flooded vegetation", "crops", "built", "bare", "snow or ice", "clouds", "rangeland")


def judged(task: str, truth: Array, found: Array, group: Array) -> list[Score]:
    """Share of right patches, and the mean F1 over classes, with intervals over chips or blocks."""
    n = int(max(truth.max(), found.max())) + 1
    counts = confusion_counts(truth, found, group, int(group.max()) + 1, n)
    right = np.stack([np.diagonal(counts, axis1=1, axis2=2).sum(axis=1), counts.sum(axis=(1, 2))], axis=1)
    said = "classes of patches of 4 px; WorldCover or ESRI labels, which are maps of models themselves"
    return [
        make_score("tiny", f"{task}: {metric}", metric, [c], tested=len(truth), labels=0, seconds=0.0, protocol=said)
        for metric, c in (("accuracy", right), ("macro F1", counts))
    ]


def table(truth: Array, found: Array, names: Sequence[str]) -> dict[str, Any]:
    """Patches by class of the label (rows) and of the map (columns), of classes that occur."""
    n = len(names)
    counts = np.bincount(truth * n + found, minlength=n * n).reshape(n, n)
    used = np.flatnonzero(counts.sum(axis=0) + counts.sum(axis=1))
    return {"classes": [names[i] for i in used], "patches": counts[np.ix_(used, used)].tolist()}


def comment(scores: Sequence[Score]) -> str:
    """The accuracy statement that goes with every map, and what the map is not for."""

    def shown(task: str) -> str:
        s = next(s for s in scores if s.task == task)
        return f"{s.value:.2f} [{s.low:.2f}, {s.high:.2f}]"

    return (
        "Land cover of 40 m patches, interpolated to pixels. On 1000 places of the world kept apart, share of patches "
        f"with the class of ESA WorldCover: {shown('1000 chips, L1C: accuracy')} (95 %), mean F1 of nine classes "
        f"{shown('1000 chips, L1C: macro F1')}; with simulated L2A {shown('1000 chips, simulated L2A: accuracy')}. "
        "WorldCover itself is right in about three of four cases. A first look, to be replaced by a head on labels of "
        "your own: not for areas by class, for change between dates, for wetlands, shrub against grass, built-up "
        "places (bare fields are drawn as such), or land under snow, and not for decisions about people or land. "
        "Clouds and their shadows get the class they look like: "
        "mask them."
    )


if __name__ == "__main__":
    import torch
    import tyro

    torch.set_num_threads(1)
    head = make(tyro.cli(DefaultMap, prog="python -m benchmarks.default_map", description=__doc__))
    print(head.report["comment"])
    sys.exit(0)
