"""What each split of a run's neck scores: ``python -m benchmarks.necks --run RUN --data DATA``.

The multispectral neck of a finished `conv` run is fitted anew, without labels, with other shares of local, contrast and
deep components; each is scored on land cover (TerraMesh), across product levels and on the bark-beetle plots. Cosine
change is given for the plots whose pixels served training (even ones, on which a choice may lean), for the others, and
for all. A minute a neck on one core.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import tyro

from benchmarks.bundle import Encode
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.networks.conv import DeoConv
from deo_cube.encoder.registry import load_encoder
from deo_cube.evaluate.protocols import change, land_cover, level_shift
from deo_cube.evaluate.readers import read_beetle, read_terramesh
from deo_cube.train.__main__ import parse
from deo_cube.train.config import Neck, TrainConfig
from deo_cube.train.loop import open_sources
from deo_cube.train.necks import fit_necks
from deo_cube.train.samples import Mixture, windows_for

NECKS = {
    "128 local, 64 deep (before contrast)": Neck(128, 64, deep_power=0.1),
    "128 contrast, 64 deep": Neck(0, 64, deep_power=0.1, contrast=128),
    "64 of each": Neck(64, 64, deep_power=0.1, contrast=64),
    "64 of each, contrast 2": Neck(64, 64, deep_power=0.1, contrast=64, contrast_gain=2.0),
    "64 of each, contrast 2, deep 0.5": Neck(64, 64, deep_power=0.1, contrast=64, contrast_gain=2.0, deep_gain=0.5),
    "48, 96 contrast 2, 48 deep 0.7": Neck(48, 48, deep_power=0.1, contrast=96, contrast_gain=2.0, deep_gain=0.7),
    "80, 80 contrast 2, 32 deep 0.5": Neck(80, 32, deep_power=0.1, contrast=80, contrast_gain=2.0, deep_gain=0.5),
    "192 contrast": Neck(0, 0, contrast=192),
}


def config_of(run: Path, data: Path) -> TrainConfig:
    """The run's own, for as much as its necks ask for: sources, seed, statistics."""
    held = json.loads((run / "config.json").read_text(encoding="utf-8"))
    arguments = ["--preset", held["preset"], "--out", str(run), "--seed", str(held["seed"])]
    parts = [str(s).partition(",") for s in held["data"]]
    moved = [f"{data}/{p.partition('/data/')[2]}{comma}{rest}" if "/data/" in p else p for p, comma, rest in parts]
    return parse([*arguments, "--data", *moved])


def scores(encode: Any, data: Path, seeds: int) -> dict[str, float]:
    """By task, and the cosine distance of even and odd plots."""
    l2a, l1c = (read_terramesh(data / "landcover_terramesh", level=level) for level in ("L2A", "L1C"))
    plots = read_beetle(data / "change_barkbeetle")
    found = [*land_cover(encode, l2a), *level_shift(encode, l2a, l1c), *change(encode, plots, seeds=seeds)]
    out = {s.task: s.value for s in found}
    for what, some in (("even plots", plots[::2]), ("odd plots", plots[1::2])):
        out[f"beetle/cosine, {what}"] = change(encode, some, seeds=1, pixels=False)[-1].value
    return out


def main(run: Path, data: Path, seeds: int = 1) -> None:
    """Fit and score each of `NECKS`; a row of a table each."""
    torch.set_num_threads(1)
    config = config_of(run, data)
    windows = {"ms": windows_for(Mixture(open_sources(config), config.loader, config.seed), config)["ms"]}
    encoder = load_encoder(run, device="cpu")
    held: Any = encoder.network
    stems = {s.name: len(s.bands) for s in encoder.card.stems}
    sizes = {k: v for k, v in encoder.card.architecture.items() if k not in ("family", "contrast")}
    for name, neck in NECKS.items():
        network = DeoConv(stems=stems, **sizes, contrast=["ms"] if neck.contrast else [])
        own = {k: v for k, v in network.state_dict().items() if k.startswith("necks.")}
        network.load_state_dict(held.state_dict() | own)
        fit_necks(network, windows, replace(config, neck_ms=neck))
        found = scores(Encode(Encoder(encoder.card, network.eval()), name), data, seeds)
        if name == next(iter(NECKS)):
            print("| neck | " + " | ".join(found) + " |\n|---" + "|---" * len(found) + "|")
        print(f"| {name} | " + " | ".join(f"{v:.3f}" for v in found.values()) + " |", flush=True)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
