"""Score small cloud masks against SCL on places kept apart: python -m benchmarks.cloud_mask --data DATA.

Candidates read the pixel and its surroundings (means and deviations of 5 and 11 px) in four bands (B02, B03, B04 and a
near infrared) or in six (with B11 and B12): a logistic regression and a network of one hidden layer. The rule beside
them is brightness with the snow index, the published mask is ukis-csmask (`pip install "ukis-csmask[cpu]"`), which this
command needs.

Places form four folds of regions. What is tested on a fold was fitted on the other three, and its threshold was chosen
on predictions for these three that were made in the same way among themselves: at most 5 % of the clear pixels of their
places are lost. Cloud is SCL 8, 9 and 10, clear is 2, 4, 5, 6 and 11; SCL 3 (shadow) is counted apart, and 7 and no
data are not counted. Five places with cloud have no label but that of ukis-csmask. Other places without SCL have no
cloud after their README or by ukis-csmask (at most 0.7 % of a scene), and count as clear.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from benchmarks.default_map import as_l2a
from deo_cube.constants import WAVELENGTH_BANDS
from deo_cube.evaluate.readers import read_terramesh, read_worldcover16

Array = NDArray[Any]
ROOT = Path(__file__).parents[1]
FOUR = ("B02", "B03", "B04", "B08")
SIX = (*FOUR, "B11", "B12")
CLEAR, CLOUD, SHADOW, UNKNOWN = 0, 1, 2, -1
LOSS = 0.05
"""Share of the clear pixels that a mask may lose: the mean over places."""
FIT, TEST = 2000, 20_000
"""Pixels of a class and place that fit, and pixels of a place that are tested, at most."""


@dataclass(frozen=True)
class Scene:
    """One date of a place: reflectance (bands, H, W), NaN where it was not measured, and the class of each pixel."""

    place: str
    fold: int
    level: str
    bands: tuple[str, ...]
    image: Array = field(repr=False)
    label: Array = field(repr=False)
    bright: Array | None = field(default=None, repr=False)
    """Clear pixels of bright ground (snow, sand, built-up) by the labels of the place."""


def scl_classes(scl: Array) -> Array:
    """Return CLEAR, CLOUD, SHADOW or UNKNOWN for each class of SCL."""
    table = np.full(12, UNKNOWN, "int8")
    table[[2, 4, 5, 6, 11]], table[[8, 9, 10]], table[3] = CLEAR, CLOUD, SHADOW
    return table[scl]


def read(path: Path, bands: Sequence[str]) -> Array:
    """Read bands of a GeoTIFF by their descriptions as reflectance; 0 is NaN."""
    with rasterio.open(path) as r:
        image = r.read([r.descriptions.index(b) + 1 for b in bands]).astype("float32")
    return np.where(image == 0, np.nan, image / 10000)


def series(folder: Path, fold: int) -> list[Scene]:
    """Read the dates of a series with one file per band; B8A serves as near infrared."""
    out = []
    for item in sorted(p for p in folder.iterdir() if p.is_dir()):
        layers = []
        for band in ("B02", "B03", "B04", "B8A", "B11", "B12", "SCL"):
            with rasterio.open(item / f"{band}.tif") as r:
                layers.append(r.read(1))
        image = np.stack(layers[:-1]).astype("float32")
        image = np.where(image == 0, np.nan, image / 10000)
        out.append(Scene(folder.name.split("-")[0], fold, "L2A", SIX, image, scl_classes(layers[-1])))
    return out


#: Scenes without cloud: fold, files.
WITHOUT_CLOUD = (
    (0, "places/harz/*.tif"),
    (0, "places/rstoolbox/rstoolbox_westerwald.tif"),
    (0, "places/boadella/*.tif"),
    (1, "places/dsen2/T49JGM*.tif"),
    (1, "places/rstoolbox/rstoolbox_amazon.tif"),
    (2, "scenes/aquileia*.tif"),
    (2, "places/dsen2/T33UUB*.tif"),
    (2, "places/bigearthnet/*.tif"),
    (3, "scenes/pilbara_20181201*.tif"),
    (2, "places/ssl4eo_pakistan/20200604*.tif"),
)
#: Scenes with cloud that have no label but that of ukis-csmask: place, fold, file.
LABELLED_BY_MODEL = (
    ("congo", 0, "places/majortom/majortom_0U_199R_20220706_L2A.tif"),
    ("samoa", 1, "places/hydro/patch_1.tif"),
    ("ssl4eo_pakistan", 2, "places/ssl4eo_pakistan/20200823_L1C.tif"),
    ("sea_0", 3, "places/hydro/patch_0.tif"),
    ("sea_100000", 0, "places/hydro/patch_100000.tif"),
)
BRIGHT = {"282D_485L_3_3": (5, 6, 7), "609U_541L_3_0": (5, 6, 7), "38D_378R_2_3": (5, 6, 7)}


def read_scenes(data: Path) -> list[Scene]:
    """Read every labelled scene and every scene without cloud."""
    scenes = series(data / "cubes/strickhof-2022", 0) + series(data / "cubes/witzwil-2022", 0)
    folder = data / "cubes/cog_S2A_29RKH_20200219_0_L2A"
    layers = []
    for band in (*SIX, "SCL"):
        with rasterio.open(folder / f"{band}.tif") as r:  # 20 m bands on the grid of the 10 m bands
            layers.append(r.read(1, out_shape=(1098, 1098)))
    image = np.stack(layers[:-1]).astype("float32")
    label = scl_classes(layers[-1])
    image = np.where(image == 0, np.nan, image / 10000)
    scenes.append(Scene("mauritania", 1, "L2A", SIX, image, label, bright=layers[-1] == 5))
    tyrol = data / "scenes/southtyrol_20220612_L2A.tif"
    with rasterio.open(tyrol) as r:
        scl = r.read(r.descriptions.index("SCL") + 1)
    bright = (scl == 11) | (scl == 5)
    scenes.append(Scene("southtyrol", 2, "L2A", FOUR, read(tyrol, FOUR), scl_classes(scl), bright=bright))
    with np.load(data / "clouds/ukis_sentinel2_512.npz") as z:
        arrays = [z[k] for k in z.files]
    image = next(np.squeeze(a) for a in arrays if np.squeeze(a).ndim == 3).astype("float32")
    classes = next(np.squeeze(a) for a in arrays if np.squeeze(a).ndim == 2)
    image = image if len(image) == 6 else np.moveaxis(image, -1, 0)
    # Classes 0 to 4: shadow, snow or ice, water, land, cloud.
    label = np.array([SHADOW, CLEAR, CLEAR, CLEAR, CLOUD], "int8")[classes]
    scenes.append(Scene("ukis", 3, "L1C", SIX, np.where(image == 0, np.nan, image), label, bright=classes == 1))
    for fold, pattern in WITHOUT_CLOUD:
        for path in sorted(data.glob(pattern)):
            image = read(path, SIX)
            label = np.zeros(image.shape[1:], "int8")
            place = path.stem.split("_")[0] if path.parent.name in ("scenes", "dsen2") else path.parent.name
            place = path.stem if path.parent.name in ("rstoolbox", "bigearthnet") else place
            scenes.append(Scene(place, fold, "L1C" if "L1C" in path.stem else "L2A", SIX, image, label))
    for place, fold, file in LABELLED_BY_MODEL:
        image, level = read(data / file, SIX), "L1C" if "L1C" in file else "L2A"
        label = np.array([CLEAR, CLOUD, SHADOW], "int8")[published(image, SIX, level)]
        scenes.append(Scene(place, fold, level, SIX, image, label))
    for level in ("L1C", "L2A"):
        for fold, s in zip((3, 1, 2), read_terramesh(data / "landcover_terramesh", level=level), strict=True):
            image = np.stack([s.image[s.bands.index(b)] for b in SIX]) / 10000
            label = np.where(s.valid & (s.label >= 0), CLEAR, UNKNOWN).astype("int8")
            scenes.append(Scene(s.name, fold, level, SIX, image, label, bright=np.isin(s.label, (5, 6, 7))))
    # Chips of the whole world, as they are and under a simulated correction. They have no place: they only fit.
    chips, train = read_worldcover16(data / "places/gcp_worldcover16")
    dn = np.stack([c.image for c, t in zip(chips, train, strict=True) if t])
    rng = np.random.default_rng(0)
    for level, x in (("L1C", dn), ("L2A", as_l2a(dn, rng))):
        image = np.stack([x[:, WAVELENGTH_BANDS.index(b)] for b in SIX]) / 10000
        mosaic = image.reshape(6, 80, 50, 16, 16).swapaxes(2, 3).reshape(6, 80 * 16, 50 * 16)
        scenes.append(Scene("worldcover", -1, level, SIX, mosaic, np.zeros(mosaic.shape[1:], "int8")))
    return scenes


def published(image: Array, bands: Sequence[str], level: str, step: int = 3) -> Array:
    """Return the classes of ukis-csmask 1.0.0 (H, W): 0 clear, 1 cloud, 2 shadow, from means of `step` pixels."""
    from ukis_csmask.mask import CSmask

    names = dict(zip(SIX, ("blue", "green", "red", "nir", "swir16", "swir22"), strict=True))
    h, w = image.shape[1:]
    image = np.pad(image, ((0, 0), (0, -h % step), (0, -w % step)), mode="edge")
    cells = image.reshape(len(bands), image.shape[1] // step, step, image.shape[2] // step, step)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coarse = np.nan_to_num(np.nanmean(cells, axis=(2, 4)))
        rows, columns = coarse.shape[1:]
        pad = [(0, 0), (0, max(0, 256 - rows)), (0, max(0, 256 - columns))]
        coarse = np.moveaxis(np.pad(coarse, pad, mode="symmetric"), 0, -1).astype("float32")
        classes = CSmask(coarse.copy(), [names[k] for k in bands], level.lower(), intra_op_num_threads=1).csm
    return np.squeeze(classes)[:rows, :columns].repeat(step, axis=0).repeat(step, axis=1)[:h, :w]


def published_mask(scenes: Sequence[Scene], bands: Sequence[str], tested: Pixels) -> Array:
    """Return which tested pixels ukis-csmask calls cloud."""
    masked = np.zeros(len(tested.y), bool)
    for i in np.unique(tested.scene):
        s = scenes[i]
        image = np.stack([s.image[s.bands.index(k)] for k in bands])
        step = 1 if s.place == "mauritania" else 3  # its pixels are 100 m apart
        at = tested.scene == i
        masked[at] = published(image, bands, s.level, step).reshape(-1)[tested.row[at]] == 1
    return masked


def box(x: Array, size: int) -> Array:
    """Mean of the measured pixels in a square of `size` pixels; the image is mirrored at its edges."""
    good = np.isfinite(x).astype("float32")
    total = uniform_filter(np.where(good > 0, x, 0).astype("float32"), size, mode="reflect")
    return total / np.maximum(uniform_filter(good, size, mode="reflect"), 1e-3)


def features(image: Array, bands: Sequence[str], rows: Array) -> Array:
    """Return (n, D) numbers of the pixels `rows` (flat indices): reflectance, indices, and surroundings."""
    names = list(bands)
    b, g, r, n = (image[names.index(k)] for k in FOUR)
    visible, low = (b + g + r) / 3, np.minimum(np.minimum(b, g), r)
    mean5, mean11 = box(visible, 5), box(visible, 11)
    maps = [
        b, g, r, n, visible, low,
        (n - r) / np.maximum(n + r, 0.01),
        (np.maximum(np.maximum(b, g), r) - low) / np.maximum(visible, 0.01),
        b - 0.5 * r,
        b / np.maximum(r, 0.01),
        mean5, mean11, box(n, 5), box(n, 11), visible - mean11,
        np.sqrt(np.maximum(box(visible**2, 5) - mean5**2, 0)),
        np.sqrt(np.maximum(box(visible**2, 11) - mean11**2, 0)),
        box(b - 0.5 * r, 11),
    ]  # fmt: skip
    if len(bands) == 6:
        s1, s2 = (image[names.index(k)] for k in ("B11", "B12"))
        snow = (g - s1) / np.maximum(g + s1, 0.01)
        maps += [
            s1,
            s2,
            snow,
            (s1 - s2) / np.maximum(s1 + s2, 0.01),
            n / np.maximum(s1, 0.01),
            box(s1, 5),
            box(snow, 11),
        ]
    return np.stack([np.broadcast_to(m, b.shape).reshape(-1)[rows] for m in maps], axis=1)


@dataclass(frozen=True)
class Pixels:
    """Sampled pixels of all scenes."""

    x: Array
    y: Array
    place: Array
    fold: Array
    bright: Array
    scene: Array
    row: Array

    def __getitem__(self, rows: Array) -> Pixels:
        return Pixels(*(getattr(self, f.name)[rows] for f in fields(self)))


def sample(scenes: Sequence[Scene], bands: Sequence[str], most: int, seed: int, *, by_class: bool) -> Pixels:
    """Draw pixels of each place: `most` of each class for fitting (`by_class`), or `most` in all as they come."""
    rng = np.random.default_rng(seed)
    places = list(dict.fromkeys(s.place for s in scenes))
    parts = []
    for i, s in enumerate(scenes):
        if not set(bands) <= set(s.bands):
            continue
        dates = sum(t.place == s.place for t in scenes)
        image = np.stack([s.image[s.bands.index(k)] for k in bands])
        known = np.isfinite(image).all(axis=0).reshape(-1)
        label = s.label.reshape(-1)
        groups = [label == c for c in (CLEAR, CLOUD)] if by_class else [label >= 0]
        rows = []
        for group in groups:
            candidates = np.flatnonzero(group & known)
            # Few dates of a series have clouds: a date may give more than its share.
            share = most if by_class and dates > 8 else max(1, most // dates)
            rows.append(rng.permutation(candidates)[:share])
        index = np.concatenate(rows)
        if not len(index):
            continue
        bright = np.zeros(label.shape, bool) if s.bright is None else s.bright.reshape(-1)
        of_scene = (np.full(len(index), v) for v in (places.index(s.place), s.fold))
        number = np.full(len(index), i)
        parts.append((features(image, bands, index), label[index], *of_scene, bright[index], number, index))
    return Pixels(*(np.concatenate(c) for c in zip(*parts, strict=True)))


Fit = Callable[[Array, Array, Array], Callable[[Array], Array]]


def rule(x: Array, y: Array, weight: Array) -> Callable[[Array], Array]:
    """Brightness of the darkest visible band, where the snow index is below 0.6 (six bands); nothing is fitted."""
    snow = 20

    def score(x: Array) -> Array:
        dark = x[:, 5].copy()
        if x.shape[1] > snow:
            dark[x[:, snow] > 0.6] = 0
        return dark

    return score


def logistic(x: Array, y: Array, weight: Array) -> Callable[[Array], Array]:
    """Logistic regression of the standardised features."""
    from sklearn.linear_model import LogisticRegression

    m, s = x.mean(axis=0), x.std(axis=0) + 1e-6
    model = LogisticRegression(C=0.1, max_iter=300).fit(np.clip((x - m) / s, -5, 5), y, sample_weight=weight)
    return lambda x: np.asarray(model.decision_function(np.clip((x - m) / s, -5, 5)))


def network(x: Array, y: Array, weight: Array) -> Callable[[Array], Array]:
    """Network with one hidden layer of 24, trained on rows drawn by their weight."""
    from sklearn.neural_network import MLPClassifier

    m, s = x.mean(axis=0), x.std(axis=0) + 1e-6
    rows = np.random.default_rng(0).choice(len(x), 40_000, p=weight / weight.sum())
    model = MLPClassifier((24,), alpha=1e-3, max_iter=12, batch_size=256, learning_rate_init=3e-3, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(np.clip((x[rows] - m) / s, -5, 5), y[rows])
    return lambda x: np.asarray(model.predict_proba(np.clip((x - m) / s, -5, 5))[:, 1])


CANDIDATES: Mapping[str, Fit] = {"brightness": rule, "logistic": logistic, "network": network}


def fit(method: Fit, data: Pixels, folds: Sequence[int]) -> Callable[[Array], Array]:
    """Fit on places of `folds` and the worldwide chips; classes weigh alike, and places within a class."""
    take = np.isin(data.fold, [*folds, -1])
    x, y, place = data.x[take], data.y[take], data.place[take]
    weight = np.zeros(len(x))
    for c in (CLEAR, CLOUD):
        rows = y == c
        each = np.unique(place[rows])
        for p in each:
            part = rows & (place == p)
            weight[part] = len(x) / (2 * len(each) * part.sum())
    return method(x, y, weight)


def threshold(score: Array, data: Pixels) -> float:
    """Return the lowest threshold at which places lose at most LOSS of their clear pixels on average."""
    clear = data.y == CLEAR
    candidates = np.quantile(score, np.linspace(0, 1, 400))
    losses = [np.mean([(score[clear & (data.place == p)] > t).mean() for p in np.unique(data.place[clear])])
              for t in candidates]  # fmt: skip
    return float(candidates[int(np.argmax(np.asarray(losses) <= LOSS))])


def predict(method: Fit, training: Pixels, tested: Pixels) -> Array:
    """Return which tested pixels are masked, each by a fit and a threshold that know nothing of its fold."""
    masked = np.zeros(len(tested.y), bool)
    folds = [0, 1, 2, 3]
    for fold in folds:
        others = [f for f in folds if f != fold]
        rows = np.isin(tested.fold, others)
        part = tested[rows]
        score = np.zeros(len(part.y))
        for inner in others:
            at = part.fold == inner
            # A fold may hold no cloudy pixel with these bands.
            score[at] = fit(method, training, [f for f in others if f != inner])(part.x[at])
        limit = threshold(score, part)
        at = tested.fold == fold
        masked[at] = fit(method, training, others)(tested.x[at]) > limit
    return masked


def interval(values: Sequence[float]) -> list[float]:
    """Mean of places with its 95 % bootstrap interval over places."""
    v = np.asarray(values)
    draws = v[np.random.default_rng(0).integers(0, len(v), (4000, len(v)))].mean(axis=1)
    return [round(float(k), 3) for k in (v.mean(), *np.percentile(draws, [2.5, 97.5]))]


def summary(masked: Array, data: Pixels, names: Sequence[str]) -> dict[str, Any]:
    """Return recall, loss and F1 per place, and their means over places with intervals."""
    table: dict[str, Any] = {}
    for p in np.unique(data.place):
        at = data.place == p
        cloud, clear = at & (data.y == CLOUD), at & (data.y == CLEAR)
        shadow, bright = at & (data.y == SHADOW), clear & data.bright
        hit, false = masked[cloud].sum(), masked[clear].sum()
        table[names[p]] = {
            "cloud": int(cloud.sum()),
            "clear": int(clear.sum()),
            "recall": float(masked[cloud].mean()) if cloud.sum() >= 100 else None,
            "loss": float(masked[clear].mean()) if clear.sum() >= 100 else None,
            "bright loss": float(masked[bright].mean()) if bright.sum() >= 100 else None,
            "shadow": float(masked[shadow].mean()) if shadow.sum() >= 100 else None,
            "f1": float(2 * hit / (hit + false + cloud.sum())) if cloud.sum() >= 100 else None,
        }
    keys = ("recall", "loss", "bright loss", "f1")
    means = {k: interval([v[k] for v in table.values() if v[k] is not None]) for k in keys}
    return {"places": table, "means": means}


def difference(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> list[float]:
    """Mean difference of two results over the places that both have, with its interval."""
    pairs = [(a["places"][p][key], b["places"][p][key]) for p in a["places"]]
    return interval([x - y for x, y in pairs if x is not None and y is not None])


@dataclass(frozen=True)
class CloudMask:
    """Score small cloud masks on places kept apart."""

    data: Path
    """Folder with cubes, scenes, clouds, places and landcover_terramesh."""
    out: Path | None = None
    """File of the scores, JSON."""

    def run(self) -> None:
        """Fit, predict and print."""
        start = time.perf_counter()
        scenes = read_scenes(self.data)
        names = list(dict.fromkeys(s.place for s in scenes))
        results: dict[str, Any] = {}
        for bands in (FOUR, SIX):
            training = sample(scenes, bands, FIT, 0, by_class=True)
            apart = [s for s in scenes if s.fold >= 0]
            tested = sample(apart, bands, TEST, 1, by_class=False)
            for name in (*CANDIDATES, "ukis-csmask"):
                key = f"{name}, {len(bands)} bands"
                if name in CANDIDATES:
                    masked = predict(CANDIDATES[name], training, tested)
                else:
                    masked = published_mask(apart, bands, tested)
                results[key] = summary(masked, tested, names)
                base = results[f"brightness, {len(bands)} bands"]
                results[key]["over brightness"] = {
                    k: difference(results[key], base, k) for k in ("recall", "loss", "f1")
                }
                print(f"{time.perf_counter() - start:5.0f} s  {key}: {results[key]['means']}", flush=True)
                print("       over brightness", results[key]["over brightness"])
                for place, row in results[key]["places"].items():
                    print("      ", place, {k: round(v, 3) for k, v in row.items() if v is not None}, flush=True)
        if self.out is not None:
            self.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    import tyro

    tyro.cli(CloudMask).run()
