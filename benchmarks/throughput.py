"""Measure how much of the bare encoder's speed is left end to end: `python -m benchmarks.throughput`.

One process, all cases interleaved in every round, so that a noisy machine disturbs them alike; ratios are of medians,
with the spread over rounds. The bare encoder is timed in its best threading: one caller with all cores, or one caller a
core with one thread each. Cases:

- *rate*: tiles per second of ``embed().deo.to_zarr()`` over the bare encoder's on tiles of the same size
- *area*: pixels of the cube per second over those of the bare encoder without halo on tiles of `--tile`
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
import xarray as xr

import deo_cube
from deo_cube.embedding import process
from deo_cube.encoder.registry import describe_timm, resolve


@dataclass(frozen=True)
class Config:
    """What is measured."""

    model: str = "vit_small_patch16_224"
    """A model of deo_cube, or of timm (then with random weights: speed does not depend on them)."""
    size: int = 2048
    """Side of the synthetic cube, pixels."""
    chunk: int = 1024
    """Side of its chunks on disk, pixels; `load_cube` gives 1024. Small chunks cost about a millisecond each."""
    tile: int = 256
    """Tile of the bare encoder without halo, pixels."""
    cases: tuple[str, ...] = ("256:0", "256:16", "320:16", "256:32")
    """Tile and halo of each end-to-end case."""
    rounds: int = 5
    bare_tiles: int = 48
    out: Path | None = None
    """JSON file for the results."""


def encoder_of(model: str, tile: int) -> Any:
    """The model's card, registered if it is timm's."""
    try:
        return deo_cube.card(model)
    except deo_cube.errors.UnknownModelError:
        options = {"dynamic_img_size": True}
        card = describe_timm("bench", model, bands=deo_cube.card("tiny").bands, tile=tile, halo=0, options=options)
        return deo_cube.register_encoder(card)


def bare(encoder: Any, tiles: torch.Tensor, batch: int) -> dict[str, float]:
    """Tiles per second of the encoder alone, by threading and batch."""
    return {k: v for b in sorted({batch, encoder.card.batch}) for k, v in _bare(encoder, tiles, b).items()}


def _bare(encoder: Any, tiles: torch.Tensor, batch: int) -> dict[str, float]:
    cores = process.cpu_threads()
    parts = [tiles[i : i + batch] for i in range(0, len(tiles), batch)]
    torch.set_num_threads(cores)
    start = time.perf_counter()
    for part in parts:
        encoder.encode(part)
    together = len(tiles) / (time.perf_counter() - start)
    with ThreadPoolExecutor(cores, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        start = time.perf_counter()
        list(pool.map(encoder.encode, parts))
        apart = len(tiles) / (time.perf_counter() - start)
    torch.set_num_threads(cores)
    return {
        f"1 caller x {cores} threads, batch {batch}": together,
        f"{cores} callers x 1 thread, batch {batch}": apart,
    }


def main(config: Config) -> dict[str, Any]:
    """Measure, print a table, and write JSON."""
    card = encoder_of(config.model, config.tile)
    work = Path(tempfile.mkdtemp(prefix="deo_cube_bench"))
    try:
        return _measure(config, card, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _measure(config: Config, card: Any, work: Path) -> dict[str, Any]:
    cube = deo_cube.synthetic_cube(size=config.size, times=1, clouds=False, gaps=False)
    cube = cube[list(card.bands)].chunk(y=config.chunk, x=config.chunk)
    cube.to_zarr(work / "cube.zarr", zarr_format=3, consolidated=True)
    ds = xr.open_zarr(work / "cube.zarr", decode_coords="all", mask_and_scale=False)
    encoder = deo_cube.load_encoder(card, device="cpu")
    ref = resolve(card)
    sizes = sorted({config.tile, *(int(c.split(":")[0]) for c in config.cases)})
    counts = {s: max(8, config.bare_tiles * config.tile**2 // s**2) for s in sizes}
    noise = {s: torch.rand(n, len(card.bands), s, s) * 3000 for s, n in counts.items()}
    rates: dict[str, list[float]] = {}

    def note(name: str, value: float) -> None:
        rates.setdefault(name, []).append(value)

    plans = {}
    for round_ in range(config.rounds + 1):
        for s in sizes:
            for how, rate in bare(encoder, noise[s], process.default_batch(ref, s, "cpu")).items():
                if round_:
                    note(f"bare {s}: {how}", rate)
        for case in config.cases:
            tile, halo = (int(v) for v in case.split(":"))
            # The tile grid starts at the cube's corner: what misalignment costs is counted by plan(), not timed here.
            options: dict[str, Any] = {"tile": tile, "halo": halo, "anchor": "array"}
            plans[case] = ds.deo.plan(card, **options)
            start = time.perf_counter()
            ds.deo.embed(card, **options).deo.to_zarr(work / "out.zarr", overwrite=True, progress=False)
            seconds = time.perf_counter() - start
            if round_:
                note(f"embed {case}", plans[case].tiles / seconds)
        print(f"round {round_} of {config.rounds}", file=sys.stderr, flush=True)
    return _report(config, rates, plans)


def _report(config: Config, rates: dict[str, list[float]], plans: dict[str, Any]) -> dict[str, Any]:
    middle = {k: statistics.median(v) for k, v in rates.items()}
    best = {
        s: max(v for k, v in middle.items() if k.startswith(f"bare {s}:"))
        for s in {int(k.split()[1][:-1]) for k in middle if k.startswith("bare")}
    }
    floor = best[config.tile] * config.tile**2
    print(f"\n{config.model}, {config.size} px, medians of {config.rounds} rounds, {process.cpu_threads()} cores\n")
    print("| case | tiles/s | spread |\n|---|---|---|")
    for k, v in sorted(rates.items()):
        print(f"| {k} | {middle[k]:.2f} | {min(v):.2f} to {max(v):.2f} |")
    print("\n| tile:halo | rate over bare, same tile | area over bare without halo |\n|---|---|---|")
    rows = {}
    for case, plan in plans.items():
        tile = int(case.split(":")[0])
        rate = middle[f"embed {case}"] / best[tile]
        area = middle[f"embed {case}"] / plan.tiles * config.size**2 / floor
        rows[case] = {"rate": rate, "area": area, "encoded_per_kept": plan.encoded_per_kept}
        print(f"| {case} | {rate:.3f} | {area:.3f} |")
    result = {"config": asdict(config) | {"out": str(config.out)}, "rates": rates, "cases": rows}
    if config.out:
        config.out.write_text(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    np.random.seed(0)
    main(tyro.cli(Config, description=__doc__))
