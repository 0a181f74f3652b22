"""Write the bundled model `tiny` with untrained (seeded) weights: python benchmarks/untrained_tiny.py [FOLDER].

A stand-in with the right bands, sizes and speed, which says of itself that it is untrained. `python -m deo_cube.train`
makes the real thing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights
from deo_cube.encoder.catalog import CARDS
from deo_cube.encoder.describe import SENTINEL2_STATISTICS
from deo_cube.encoder.families import build_network
from deo_cube.encoder.publish import write_model

MS = tuple(SENTINEL2_STATISTICS)
SEED = 0


def stem(name: str, bands: tuple[str, ...]) -> Stem:
    mean, std = zip(*(SENTINEL2_STATISTICS[b] for b in bands), strict=True)
    return Stem(name, bands, (Normalization("fixed", "fixed", mean, std), Normalization("own", "own")))


def untrained_card() -> ModelCard:
    return ModelCard(
        name="deo_swin_tiny_window8.untrained",
        alias="tiny",
        summary="UNTRAINED: a small Swin with random weights, for tests and to see the machinery run. Its vectors mean "
        "nothing beyond what random features catch.",
        architecture={
            "family": "swin",
            "dim": 64,
            "depths": [2, 2],
            "heads": [2, 4],
            "window": 8,
            "patch": 4,
            "mlp_ratio": 4.0,
        },
        stems=(stem("ms", MS), stem("rgb", MS[:3])),
        layers=(Layer("stage1", 64, 4), Layer("stage2", 128, 8), Layer("norm", 128, 8)),
        tile=256,
        halo=32,
        weights=Weights("untrained", "tiny.safetensors"),
        product_level="L2A",
        license_code="MIT",
        license_weights="MIT",
        training_data=f"none: initialisation with seed {SEED}",
        paper="",
        limits=(
            "UNTRAINED. Random weights: no score of it is worth quoting.",
            "int8 scales are measured on smooth noise, not on scenes.",
        ),
    )


def smooth_noise(count: int, size: int) -> NDArray[np.float32]:
    """Tiles [count, 10, size, size] with the mean and spread of Sentinel-2 DN and correlated neighbours."""
    rng = np.random.default_rng(SEED)
    coarse = torch.from_numpy(rng.normal(size=(count, len(MS), size // 8, size // 8)).astype(np.float32))
    fine = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").numpy()
    mean, std = (np.array([SENTINEL2_STATISTICS[b][i] for b in MS])[:, None, None] for i in (0, 1))
    return np.asarray(np.clip(mean + std * fine, 1, 12000), np.float32)


def main(folder: Path) -> ModelCard:
    card = untrained_card()
    torch.manual_seed(SEED)
    return write_model(card, build_network(card), folder, card_file="tiny.json", sample=smooth_noise(4, 256))


if __name__ == "__main__":
    print(main(Path(sys.argv[1]) if len(sys.argv) > 1 else CARDS))
