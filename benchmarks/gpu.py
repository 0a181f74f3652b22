"""What a GPU does: `python -m benchmarks.gpu`. Prints a table a model and precision, and writes JSON with `--out`.

- *bare*: tiles per second of the encoder alone, on batches that lie on the device
- *end to end*: tiles and km² per second of ``embed().deo.to_zarr()`` from a Zarr cube to a Zarr store, and its
  fraction of bare
- *of the matrix rate*: the encoder's operations per second in that run (counted by torch's FLOP counter) over those of
  a large matrix product on the same device in the same precision, measured here
- *busy*: share of the end-to-end run in which at least one kernel ran (torch's profiler)

`--device cpu` at toy size shows that the code runs; its figures say nothing of a GPU.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

import deo_cube
from benchmarks.race.setting import Setting, linked_cube, prepare
from deo_cube.embedding import runtime, transfer
from deo_cube.encoder.card import ModelCard, Weights
from deo_cube.encoder.registry import resolve
from deo_cube.errors import DeviceError, WeightsNotFoundError

__all__ = ["Config", "busy_share", "main"]


@dataclass(frozen=True)
class Config:
    """What is measured."""

    models: tuple[str, ...] = ("vitb", "swinb", "tiny")
    """Weights that are not at hand are drawn at random, and the table says so: speed does not depend on them."""
    device: str = "cuda"
    precisions: tuple[str, ...] = ("float32", "bfloat16")
    """Those that the device does not have are skipped with the reason."""
    size: int = 8192
    """Side of the cube, pixels of 10 m."""
    tile: int | None = None
    halo: int | None = None
    batch: int | None = None
    rounds: int = 3
    matrix: int = 8192
    """Side of the matrices of the matrix rate."""
    compile: bool = False
    """Send the networks through torch.compile."""
    out: Path | None = None


def card_of(model: str) -> ModelCard:
    """The model's card; without weights where they are not at hand."""
    card = deo_cube.card(model)
    try:
        resolve(card)
    except WeightsNotFoundError:
        return dataclasses.replace(
            card, alias=f"{model}, random weights", weights=Weights("untrained", ""), reference=None
        )
    return card


def _synchronised(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def _rate(run: Callable[[], Any], device: str, seconds: float = 2.0) -> float:
    """Calls per second, the best of as many as fit into `seconds`, three at least; a first call is not counted."""
    run()
    _synchronised(device)
    best, begun, calls = 0.0, time.perf_counter(), 0
    while calls < 3 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run()
        _synchronised(device)
        best, calls = max(best, 1 / (time.perf_counter() - start)), calls + 1
    return best


def matrix_rate(device: str, precision: str, n: int) -> float:
    """Floating-point operations per second of a product of two n x n matrices."""
    a = torch.randn(n, n, device=device, dtype=getattr(torch, precision))
    return 2 * n**3 * _rate(lambda: a @ a, device)


def flops_per_tile(encoder: Any, tile: int, device: str) -> float:
    """Operations of a forward pass of one tile, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder.encode(torch.zeros(1, len(encoder.stem.bands), tile, tile, device=device))
    return float(counter.get_total_flops())


def busy_share(intervals: Sequence[tuple[float, float]], wall: float) -> float:
    """Share of `wall` that the union of `intervals` (start, end) covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / wall if wall > 0 else 0.0


def _busy(run: Callable[[], Any], device: str) -> float | None:
    """Share of a run in which a kernel of the GPU ran; None where there is none."""
    if not device.startswith("cuda"):
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        run()
        _synchronised(device)
        wall = time.perf_counter() - start
    kernels = [e.time_range for e in traced.events() if e.device_type == DeviceType.CUDA]
    return busy_share([(k.start / 1e6, k.end / 1e6) for k in kernels], wall)


def measure(config: Config, model: str, precision: str, cube: Any, folder: str) -> dict[str, Any]:
    """One row of the table."""
    device = runtime.choose_device(config.device)
    card = card_of(model)
    ref = resolve(card)
    options: dict[str, Any] = {"units": "dn", "offset": 0, "tile": config.tile, "halo": config.halo}
    plan = deo_cube.plan(cube, card, **options)
    tile = plan.tiling.tile
    batch = config.batch or runtime.default_batch(ref, tile, device)
    encoder = runtime.encoder(ref, device, config.compile)
    noise = torch.rand(batch, len(encoder.stem.bands), tile, tile, device=device) * 3000

    def forward() -> None:
        with transfer.precise(precision, device):
            encoder.encode(noise)

    def whole() -> None:
        lazy = deo_cube.embed(cube, card, **options, batch_size=batch, device=device, precision=precision)
        lazy.deo.to_zarr(f"{folder}/out.zarr", overwrite=True, progress=False)

    with deo_cube.set_options(compile=config.compile):
        whole()
        bare, seconds = [], []
        for _ in range(config.rounds):
            bare.append(batch * _rate(forward, device))
            start = time.perf_counter()
            whole()
            seconds.append(time.perf_counter() - start)
        busy = _busy(whole, device)
    took, alone = statistics.median(seconds), statistics.median(bare)
    # Tiles cut shorter at the edge count for what they are.
    tiles = plan.encoded_per_kept * plan.tiling.shape[0] * plan.tiling.shape[1] / tile**2
    flops = flops_per_tile(encoder, tile, device)
    return {
        "model": card.alias, "precision": precision, "compiled": config.compile, "tile": tile,
        "halo": plan.tiling.halo, "batch": batch, "bare_tiles_per_s": alone, "tiles_per_s": tiles / took,
        "km2_per_s": plan.area_km2 / took, "fraction_of_bare": tiles / took / alone, "gflop_per_tile": flops / 1e9,
        "fraction_of_matrix_rate": flops * tiles / took / matrix_rate(device, precision, config.matrix),
        "busy": busy, "rounds": config.rounds,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = [
        "| model | precision | tile:halo | batch | bare, tiles/s | end to end, tiles/s | km²/s | of bare | "
        "of the matrix rate | busy |",
        "|---" * 10 + "|",
    ]
    for r in rows:
        busy = "n/a" if r["busy"] is None else f"{r['busy']:.2f}"
        cells = [
            r["model"], r["precision"] + ", compiled" * r["compiled"], f"{r['tile']}:{r['halo']}", r["batch"],
            f"{r['bare_tiles_per_s']:.1f}", f"{r['tiles_per_s']:.1f}", f"{r['km2_per_s']:.1f}",
            f"{r['fraction_of_bare']:.2f}", f"{r['fraction_of_matrix_rate']:.3f}", busy,
        ]  # fmt: skip
        lines.append("| " + " | ".join(str(c) for c in cells) + " |")
    return "\n".join(lines)


def main(config: Config) -> dict[str, Any]:
    """Measure, print the table, write JSON.

    Raises
    ------
    SystemExit
        Where the device is not there, with a line that says so.
    """
    try:
        device = runtime.choose_device(config.device)
    except DeviceError as error:
        raise SystemExit(f"nothing measured: {error}") from None
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "the CPU: no figure of a GPU"
    folder = tempfile.mkdtemp(prefix="deo_cube_gpu")
    rows: list[dict[str, Any]] = []
    try:
        small = Setting("tiny", min(config.size, 1024), folder)
        prepare(small, tif=False)
        cube = linked_cube(small, config.size).cube({})
        for model in config.models:
            for precision in config.precisions:
                try:
                    transfer.check_precision(precision, device)
                except DeviceError as error:
                    print(f"skipped: {model} in {precision}: {error}", flush=True)
                    continue
                rows.append(measure(config, model, precision, cube, folder))
                print(rows[-1], flush=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{name}, cube of {config.size} px\n\n{table(rows)}")
    found = {"device": name, "config": asdict(config) | {"out": str(config.out)}, "rows": rows}
    if config.out:
        config.out.write_text(json.dumps(found, indent=1) + "\n")
    return found


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
