"""Compare scores and vectors of a model between runtimes and precisions: `python -m benchmarks.precision --data DATA`.

Each variant (PyTorch and OpenVINO, float32 and bfloat16, and int8 where nncf is installed) encodes the same images of
EuroSAT, of worldwide chips, of land-cover tiles and of plots with two dates, and is scored by the protocols of
`deo_cube.evaluate`. Differences are paired: both on the same draws of groups. A variant that needs what this machine
does not have is left out by name.

``--out docs/data/precision.json`` writes what the pages show; ``python -m benchmarks.precision --render FILE`` prints
its tables.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from benchmarks import int8
from benchmarks.int8 import cosine_distances
from deo_cube.embedding import process, transfer
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.registry import choose_stem, resolve
from deo_cube.errors import DeoCubeError
from deo_cube.evaluate import protocols, readers
from deo_cube.evaluate.features import encode_scene, encode_scenes
from deo_cube.evaluate.scores import Score, compare

Array = NDArray[Any]
#: Runtime and precision; the first is what the others are compared with.
VARIANTS = (
    ("torch", "float32"),
    ("torch", "bfloat16"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
    *(("openvino", name) for name in int8.SCORED),
)


@dataclass(frozen=True)
class Config:
    """What is compared."""

    data: Path = Path("data")
    """Folder of the data sets' folders, as for `deo-cube evaluate`."""
    model: str = "tiny"
    chips: int = 200
    """EuroSAT images per class."""
    world: int = 1000
    """Worldwide chips."""
    seeds: int = 2
    out: Path | None = None
    """JSON file for the results; models that are in it already stay."""
    render: Path | None = None
    """Print the tables of a JSON file instead."""


class Variant:
    """A model in one runtime and precision, as the protocols call it: (B, C, H, W) DN to (B, D, h, w) float32."""

    def __init__(self, config: Config, name: str, precision: str) -> None:
        self.model, self.data = config.model, config.data
        self.ref = resolve(self.model)
        self.name = f"{name}, {precision}"
        self.way = int8.SCORED.get(precision)
        self.quantised: dict[tuple[str, int], Encoder] = {}
        if self.way is not None:
            import_module("nncf")
            precision = self.way.precision
        self.precision = precision
        installed = process.choose_runtime(
            name, self.ref, device="cpu", precision=precision, tile=self.ref.card.tile, prove=False
        )
        self.runtime = installed
        transfer.check_precision(precision, "cpu")
        self.tile, self.halo = self.ref.card.tile, self.ref.card.halo
        self.seconds = 0.0
        """Processor time of the encoder, all threads."""

    def __call__(self, array: Array, bands: Sequence[str]) -> Array:
        """Encode tiles."""
        stem, order = choose_stem(self.ref.card, list(bands))
        ref = resolve(self.model, bands=list(stem.bands))
        # Tiles of each size and stem that a protocol uses are compiled: speed is not the question here.
        if self.way is None:
            encoder = process.encoder(ref, "cpu", False, self.precision, runtime=self.runtime, tile=array.shape[-1])
        else:
            key = (stem.name, array.shape[-1])
            if key not in self.quantised:
                self.quantised[key] = int8.quantised(ref, self.data, array.shape[-1], self.way)
            encoder = self.quantised[key]
        pixels = torch.from_numpy(np.ascontiguousarray(np.asarray(array, "float32")[:, order]))
        begun = time.process_time()
        with transfer.autocast_context(self.precision, "cpu"):
            maps: Array = encoder.encode(pixels).float().numpy()
        self.seconds += time.process_time() - begun
        return maps


def tasks(config: Config) -> dict[str, Callable[[Variant], list[Score]]]:
    """Return the protocols by name, with their data read once."""
    chips = readers.read_eurosat(config.data / "eurosat_rgb", limit=config.chips)
    tiles = readers.read_terramesh(config.data / "landcover_terramesh", level="L2A")
    plots = readers.read_beetle(config.data / "change_barkbeetle")
    world, train = readers.read_worldcover16(config.data / "places" / "gcp_worldcover16", limit=config.world)

    def run_world(e: Variant) -> list[Score]:
        tokens = encode_scenes(e, world, tile=e.tile, halo=e.halo)
        parts = [
            ([world[i] for i in which], [tokens[i] for i in which]) for which in map(np.flatnonzero, (train, ~train))
        ]
        (a, ta), (b, tb) = parts
        return protocols.transfer(e, a, b, task="world", step=4, encoded=(ta, tb), tile=e.tile, halo=e.halo)

    return {
        "EuroSAT": lambda e: protocols.classification(e, chips, few=(10,), gains=(), seeds=config.seeds),
        "world": run_world,
        "land cover": lambda e: protocols.land_cover(e, tiles, pixels=False, tile=e.tile, halo=e.halo),
        "change": lambda e: protocols.change(
            e, plots, seeds=config.seeds, pixels=False, tile=e.tile, halo=e.halo
        ),
    }  # fmt: skip


def vectors(config: Config, variant: Variant) -> Array:
    """Return the vectors of the land-cover tiles, ``(D, patches)``."""
    tiles = readers.read_terramesh(config.data / "landcover_terramesh", level="L2A")
    own = [encode_scene(variant, s.image, s.bands, valid=s.valid, tile=variant.tile, halo=variant.halo) for s in tiles]
    return np.concatenate([t.values.reshape(len(t.values), -1) for t in own], axis=1)


def rgb_vectors(config: Config, variant: Variant) -> Array:
    """Return the vectors of a few EuroSAT images, ``(D, patches)``."""
    chips = readers.read_eurosat(config.data / "eurosat_rgb", limit=10)
    maps = variant(chips.images, chips.bands)
    return np.moveaxis(maps, 1, 0).reshape(maps.shape[1], -1)


def measure(config: Config) -> dict[str, Any]:
    """Score every variant, and print each score as it is known."""
    by_task = tasks(config)
    rows: list[dict[str, Any]] = []
    baseline: dict[str, Score] = {}
    exact: Array | None = None
    exact_rgb: Array | None = None
    for name, precision in VARIANTS:
        try:
            variant = Variant(config, name, precision)
        except (DeoCubeError, ImportError) as error:
            print(f"left out: {name}, {precision}: {error}", file=sys.stderr, flush=True)
            continue
        own = vectors(config, variant)
        if exact is None:
            exact = own
        apart = cosine_distances(own, exact)
        row: dict[str, Any] = {"runtime": variant.runtime, "precision": precision, "scores": []}
        rgb = rgb_vectors(config, variant)
        exact_rgb = rgb if exact_rgb is None else exact_rgb
        apart_rgb = cosine_distances(rgb, exact_rgb)
        row["distance_rgb"] = {
            "worst": float(apart_rgb.max()), "mean": float(apart_rgb.mean()), "vectors": int(apart_rgb.size)
        }  # fmt: skip
        row["distance"] = {"worst": float(apart.max()), "mean": float(apart.mean()), "vectors": int(apart.size)}
        for task in by_task:
            for score in by_task[task](variant):
                first = baseline.setdefault(score.task, score)
                difference = compare(score, first)
                row["scores"].append(
                    score.to_dict() | {"difference": [difference.value, difference.low, difference.high]}
                )
                print(f"{variant.name}: {score.task} {score.value:.4f}, {difference.value:+.4f}", flush=True)
        row["seconds"] = variant.seconds
        rows.append(row)
    return {"model": config.model, "chips": config.chips, "world": config.world, "seeds": config.seeds, "rows": rows}


def score_table(found: dict[str, Any]) -> str:
    """Return scores, and their paired differences from the first variant."""
    rows = found["rows"]
    lines = ["| task | metric | " + " | ".join(f"{r['runtime']}, {r['precision']}" for r in rows) + " |"]
    lines.append("|---" * (2 + len(rows)) + "|")
    for i, first in enumerate(rows[0]["scores"]):
        cells = [f"{first['value']:.3f} [{first['interval95'][0]:.3f}, {first['interval95'][1]:.3f}]"]
        for row in rows[1:]:
            value, low, high = row["scores"][i]["difference"]
            cells.append(f"{value:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append(f"| {first['task']} | {first['metric']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def distance_table(found: Sequence[dict[str, Any]]) -> str:
    """Return the cosine distance of vectors from PyTorch's in float32, by model and variant."""
    lines = ["| model | of | runtime | precision | worst | mean | vectors |", "|---|---|---|---|---|---|---|"]
    for own in found:
        for bands, name in (("multispectral tiles", "distance"), ("RGB images", "distance_rgb")):
            for row in own["rows"][1:]:
                d = row[name]
                lines.append(
                    f"| `{own['model']}` | {bands} | {row['runtime']} | {row['precision']} | {d['worst']:.1e} | "
                    f"{d['mean']:.1e} | {d['vectors']:,} |"
                )
    return "\n".join(lines) + "\n"


def main(config: Config) -> None:
    """Measure, or print the tables of a file."""
    if config.render is not None:
        found = json.loads(config.render.read_text(encoding="utf-8"))
        for own in found.values():
            print(f"**{own['model']}**\n\n{score_table(own)}")
        print(distance_table(list(found.values())))
        return
    own = measure(config)
    print(score_table(own), distance_table([own]), sep="\n")
    if config.out is not None:
        kept = json.loads(config.out.read_text(encoding="utf-8")) if config.out.exists() else {}
        config.out.write_text(json.dumps(kept | {config.model: own}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Config, description=__doc__))
