"""Processor time of a job beside its encoder, and of the encoder: `python -m benchmarks.host_cost`.

The first is that of `embed().deo.to_zarr()` with an encoder that returns the maps of the first tile of each size again:
reading, stitching, checksums, compression and writing. The second is that of one tile on one thread, in every runtime
and precision that the machine has, interleaved.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import torch
import tyro

from benchmarks.race import measure, runners
from benchmarks.race.__main__ import COURSES
from benchmarks.race.setting import Setting, prepare
from deo_cube.embedding import transfer
from deo_cube.encoder.encoder import Encoder
from deo_cube.errors import DeoCubeError


def host_seconds(setting: Setting, tile: int, halo: int, block: int, rounds: int) -> list[float]:
    """Return the processor seconds of jobs without an encoder; the first, which imports and loads, is left out."""
    encode, kept = Encoder.encode, {}

    def repeated(self: Encoder, batch: Any, **options: Any) -> Any:
        shape = tuple(batch.shape)
        if shape not in kept:
            kept[shape] = encode(self, batch, **options)
        return kept[shape].clone()

    found = []
    Encoder.encode = repeated  # type: ignore[assignment, method-assign]
    try:
        for _ in range(rounds + 1):
            begun = time.process_time()
            runners.embed(setting, tile, halo, block, f"{setting.folder}/out.zarr")
            found.append(time.process_time() - begun)
    finally:
        Encoder.encode = encode  # type: ignore[method-assign]
    return found[1:]


def tile_seconds(setting: Setting, tile: int, rounds: int) -> dict[str, list[float]]:
    """Return the processor seconds of one tile on one thread, by runtime and precision."""
    pixels = torch.rand(1, len(setting.card.bands), tile, tile, generator=torch.Generator().manual_seed(0)) * 3000
    variants = {}
    for runtime, precision in measure.VARIANTS:
        own = replace(setting, runtime=runtime, precision=precision, tile=tile)
        try:
            transfer.check_precision(precision, "cpu")
            own.encode(pixels)
        except DeoCubeError as error:
            print(f"left out: {runtime}, {precision}: {error}")
            continue
        variants[f"{runtime}, {precision}"] = own
    found: dict[str, list[float]] = defaultdict(list)
    torch.set_num_threads(1)
    for _ in range(rounds):
        for name, own in variants.items():
            begun = time.process_time()
            own.encode(pixels)
            found[name].append(time.process_time() - begun)
    return found


def main(model: str = "tiny", size: int = 4480, rounds: int = 5, tiles: int = 30) -> None:
    """Print medians, and the smallest and largest of the rounds."""
    course = COURSES["tiny-long-16"]
    with tempfile.TemporaryDirectory(prefix="deo_cube_host_cost") as folder:
        setting = Setting(model, size, folder)
        prepare(setting, tif=False)
        block = measure.plan_of(setting, course, course.halos[0], course.blocks[0]).tiling.block
        jobs = host_seconds(setting, course.tile, course.halos[0], block, rounds)
        print(f"{setting.km2:.0f} km2 without the encoder: {_spread(jobs)} s")
        for name, seconds in tile_seconds(setting, course.tile, tiles).items():
            print(f"a tile of {course.tile} px, {name}: {_spread(seconds)} s")


def _spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.3f} [{min(seconds):.3f}, {max(seconds):.3f}]"


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
