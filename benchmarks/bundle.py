"""Make a finished run the bundled model: ``python -m benchmarks.bundle --run RUN --data-folder DATA``.

Measures the run with the protocols of `deo_cube.evaluate` beside random convolutions, on tiles and plots that training
never saw, writes everything into the card, and saves card and weights under the name `tiny`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.loading import write_model
from deo_cube.encoder.registry import CARDS, load_encoder
from deo_cube.evaluate.features import RandomConvolutions
from deo_cube.evaluate.protocols import change, classification, land_cover, level_shift, plots_apart
from deo_cube.evaluate.readers import read_beetle, read_eurosat, read_terramesh
from deo_cube.evaluate.scores import Score, compare
from deo_cube.train.samples import open_source

__all__ = ["Bundle", "Encode", "bundle", "measure"]

Array = NDArray[Any]

LIMITS = (
    "Small. It has seen about 5 million multispectral pixels of some 100 places, and 4800 EuroSAT tiles of Europe: "
    "expect less elsewhere.",
    "The metric of its ten-band neck was fitted to the labels of every second bark-beetle plot: expect less of cosine "
    "change where something else than forests changes. The scores are of the other plots.",
    "Its neck's shares were chosen with scores of land cover on worldwide chips and of change in view: other places "
    "may give less.",
    "Land cover of patches and pixels is not told apart from 512 random convolutions (+0.02 and -0.04); from L2A to "
    "L1C, in change and on RGB chips it is far better than they are.",
    "The two trunks share nothing: vectors of the stem `ms` and of the stem `rgb` cannot be compared.",
    "The scenes are on grids of 6 to 14 m; it has not been measured beyond.",
    "Clouds, snow and night were not in the training data on purpose.",
    "Scores were measured on one region each; another region will give others.",
)
LICENCE = (
    "MIT; the trunk for RGB starts from MobileNet v1 (Apache-2.0), the trunk for all bands from Dynamic World "
    "(Apache-2.0). NOTICE: This code is produced for the Dynamic World Project by Google in partnership with National "
    "Geographic and the World Resources Institute."
)
DATA = (
    "Labels served of the even bark-beetle plots only. Never seen: TerraMesh, odd bark-beetle plots, ssl4eo_pakistan, "
    "1000 of the 5000 worldwide chips, EuroSAT val and test names of the official spatial split. Pixels contain "
    "modified Copernicus Sentinel data (2015-2022), free for any use with that notice; EuroSAT is MIT; the "
    "repositories of the bark-beetle plots, harz and biomassters state no licence."
)


@dataclass(frozen=True)
class Encode:
    """A loaded model as the protocols call it, in tiles of theirs rather than the card's."""

    encoder: Encoder
    name: str

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, D, h, w)."""
        return self.encoder.encode(np.ascontiguousarray(array, dtype="float32"), bands=list(bands))

    def pool(self, array: Array, bands: Sequence[str]) -> Array:
        """(B, C, H, W) DN -> (B, D)."""
        return self.encoder.pool(np.ascontiguousarray(array, dtype="float32"), bands=list(bands))


def measure(encode: Any, data: Path, *, seeds: int = 3) -> list[Score]:
    """All tasks of the card on `data`: bark-beetle plots apart from those that served training, all land cover."""
    l2a, l1c = (read_terramesh(data / "landcover_terramesh", level=level) for level in ("L2A", "L1C"))
    plots = plots_apart(read_beetle(data / "change_barkbeetle"))
    return [
        *classification(encode, read_eurosat(data / "eurosat_rgb"), seeds=seeds),
        *land_cover(encode, l2a),
        *level_shift(encode, l2a, l1c),
        *change(encode, plots, seeds=seeds),
    ]


@dataclass(frozen=True)
class Bundle:
    """Turn a run into the bundled model."""

    run: Path
    """Folder of a finished run of deo_cube.train."""
    data_folder: Path
    """Folder with eurosat_rgb, landcover_terramesh and change_barkbeetle."""
    out: Path = CARDS
    """Where card and weights go."""
    seeds: int = 3
    """Draws of labels and folds."""
    measured: bool = True
    """Measure it; less than ten minutes on one core. Without, the card has no scores and says so."""


def bundle(job: Bundle) -> ModelCard:
    """Measure, describe, save; the card as saved."""
    encoder = load_encoder(job.run, device="cpu")
    scores = _compared(encoder, job) if job.measured else ()
    card = encoder.card
    config = json.loads((job.run / "config.json").read_text(encoding="utf-8"))
    sources = "; ".join(_short(s) for s in config["data"])
    trained = card.training_data.partition("; sources: ")[0]
    health = card.training_data.partition("; health: ")[2]
    card = dataclasses.replace(
        card,
        name="deo_spectral_tiny.v2",
        alias="tiny",
        summary="Small convolutional student of Dynamic World (ten bands) and of EfficientNet-Lite2 (RGB): "
        f"one {card.dim}-vector per 4 px.",
        # Convolutional: it does not know where in the tile a pixel lies. benchmarks/seams.py measures the seam.
        tile=320,
        halo=16,
        trim=32,
        batch=4,
        weights=dataclasses.replace(card.weights, file="tiny_v2.safetensors", sha256=None),
        license_code="MIT",
        license_weights=LICENCE,
        training_data=f"{trained}; started from MobileNet v1 (ImageNet) and Dynamic World; the wide local branch is "
        f"that of deo_conv_tiny.v1. Sources: {sources}. "
        f"At the end: {health}. {DATA}",
        paper="Method after Wolf et al. 2026 (arXiv 2602.19863); see docs/training.md for what differs.",
        scores=scores,
        limits=LIMITS if scores else (*LIMITS, "No score has been measured yet."),
    )
    sample = typical(job.data_folder)
    network: Any = encoder.network
    return write_model(card, network, job.out, card_file="tiny.json", sample=sample)


def typical(data: Path) -> Array:
    """Windows (16, 10, 128, 128) of two scenes that served training: what int8 scales are measured on."""
    random = np.random.default_rng(0)
    scenes = [
        open_source(f"{data}/scenes/{name},units=dn,offset=0,nodata=0")
        for name in ("aquileia_20190416_L2A.tif", "pilbara_20181201_L2A.tif")
    ]
    return np.stack([s.draw(random, 128, 0.9)[0] for s in scenes for _ in range(8)])


def _compared(encoder: Encoder, job: Bundle) -> tuple[dict[str, Any], ...]:
    """Scores beside those of 512 random convolutions, with the paired interval of the difference."""
    mine = measure(Encode(encoder, "tiny"), job.data_folder, seeds=job.seeds)
    for s in mine:
        print(f"{s.task:24} {s.metric:20} {s.value:.3f} [{s.low:.3f}, {s.high:.3f}]", flush=True)
    scores = []
    for own, other in zip(mine, measure(RandomConvolutions(), job.data_folder, seeds=job.seeds), strict=True):
        d = compare(own, other)
        scores.append(
            {
                **own.to_dict(),
                "random_convolutions": round(other.value, 4),
                "difference": round(d.value, 4),
                "difference95": [round(d.low, 4), round(d.high, 4)],
            }
        )
        print(f"{own.task:24} minus random convolutions {d.value:+.3f} [{d.low:+.3f}, {d.high:+.3f}]", flush=True)
    return tuple(scores)


def _short(source: str) -> str:
    path, *options = source.split(",")
    options = [
        o.partition("=")[0] + "=" + Path(o.partition("=")[2]).name if o.startswith("names=") else o for o in options
    ]
    parts = Path(path).parts
    return "/".join(parts[parts.index("data") + 1 :] if "data" in parts else parts[-2:]) + (
        f" ({', '.join(options)})" if options else ""
    )


if __name__ == "__main__":
    import torch
    import tyro

    torch.set_num_threads(1)
    bundle(tyro.cli(Bundle, prog="python -m benchmarks.bundle", description=__doc__))
    sys.exit(0)
