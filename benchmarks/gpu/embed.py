"""Time ``embed().deo.to_zarr()`` from a Zarr cube to a Zarr store, on the disk of this machine.

- *km² per second*: of the whole call, opening and finishing the store included
- *fraction of bare*: tiles per second over those of the encoder alone at the same batch size
- *of the matrix rate*: the encoder's operations per second over those of a large matrix product on the same device in
  the same precision
- *busy*: share of a run in which at least one kernel ran (torch's profiler)

The cube repeats one chunk of a synthetic landscape, so that its files are in the page cache; reading, decompressing and
compressing are part of what is timed.
"""

from __future__ import annotations

import shutil
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

import deo_cube
from benchmarks.gpu.encoder import flops_per_tile, matrix_rate
from benchmarks.gpu.setting import Report, card_of, rate, synchronize
from benchmarks.race.setting import Setting, linked_cube, prepare
from deo_cube.embedding import process, transfer
from deo_cube.encoder.registry import resolve
from deo_cube.errors import DeviceError

__all__ = ["busy_share", "measure", "table"]


def busy_share(intervals: Sequence[tuple[float, float]], wall: float) -> float:
    """Return the share of `wall` that the union of `intervals` (start, end) covers."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered / wall if wall > 0 else 0.0


def _profiled(run: Callable[[], Any], device: str) -> dict[str, Any]:
    """Profile one run: share of time in which a kernel ran, and the kernels and copies that took longest."""
    if not device.startswith("cuda"):
        return {"busy": None}
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    start = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as traced:
        run()
        synchronize(device)
        wall = time.perf_counter() - start
    events = [e for e in traced.events() if e.device_type == DeviceType.CUDA]
    copies = [e for e in events if e.name.startswith("Mem")]
    kernels = [e for e in events if not e.name.startswith("Mem")]
    longest: Counter[str] = Counter()
    for e in events:
        longest[e.name[:80]] += e.time_range.end - e.time_range.start
    spans = [[(e.time_range.start / 1e6, e.time_range.end / 1e6) for e in group] for group in (kernels, copies)]
    return {
        "busy": busy_share(spans[0], wall),
        "copying": busy_share(spans[1], wall),
        "kernels": len(kernels),
        "longest_ms": {name: round(us / 1e3, 1) for name, us in longest.most_common(12)},
    }


def one(
    report: Report, model: str, precision: str, compiled: bool, cubes: tuple[Any, Any], device: str, folder: str
) -> None:
    """Time one row of the table."""
    config = report.config
    card = card_of(model)
    ref = resolve(card)
    warm, cube = cubes
    options: dict[str, Any] = {"units": "dn", "offset": 0, "tile": config.tile, "halo": config.halo}
    plan = deo_cube.plan(cube, card, **options)
    tile = plan.tiling.tile
    batch = config.batch or process.default_batch(ref, tile, device)
    encoder = process.encoder(ref, device, compiled)
    noise = torch.rand(batch, len(encoder.stem.bands), tile, tile, device=device) * 3000

    def forward() -> None:
        with transfer.autocast_context(precision, device):
            encoder.encode(noise)

    def whole(cube: Any = cube) -> None:
        shutil.rmtree(f"{folder}/out.zarr", ignore_errors=True)
        lazy = deo_cube.embed(cube, card, **options, batch_size=config.batch, device=device, precision=precision)
        start = time.perf_counter()
        lazy.deo.to_zarr(f"{folder}/out.zarr", progress=False, scheduler=config.scheduler, num_workers=config.workers)
        seconds.append(time.perf_counter() - start)

    seconds: list[float] = []
    with deo_cube.set_options(compile=compiled):
        whole(warm)
        alone = batch * rate(forward, device)
        seconds.clear()
        for i in range(config.rounds):
            if i == 0 or not report.late(f"embed {model} {precision}, round {i + 1}"):
                whole()
        rounds = list(seconds)
        late = not config.profile or report.late(f"profile of {model} {precision}")
        profiled = {"busy": None} if late else _profiled(lambda: whole(warm), device)
    took = statistics.median(rounds)
    # Tiles cut shorter at the edge count for what they are.
    tiles = plan.encoded_per_kept * plan.tiling.shape[0] * plan.tiling.shape[1] / tile**2
    flops = flops_per_tile(process.encoder(ref, device), tile, device)
    report.add("embed", {
        "model": card.alias, "precision": precision, "compiled": compiled, "tile": tile,
        "halo": plan.tiling.halo, "block": plan.tiling.block, "batch": batch, "size": cube.sizes["y"],
        "scheduler": config.scheduler, "workers": config.workers, "seconds": rounds,
        "bare_tiles_per_s": alone, "tiles_per_s": tiles / took,
        "km2_per_s": plan.area_km2 / took, "minutes_per_sentinel2_tile": 10980**2 * 1e-4 / (plan.area_km2 / took) / 60,
        "gb_per_s_written": plan.bytes_out / took / 1e9,
        "fraction_of_bare": tiles / took / alone, "gflop_per_tile": flops / 1e9,
        "fraction_of_matrix_rate": flops * tiles / took / matrix_rate(device, precision, config.matrix), **profiled,
    })  # fmt: skip


def measure(report: Report, device: str, folder: str) -> None:
    """Time every model and precision."""
    config = report.config
    small = Setting("tiny", min(config.size, 1024), folder)
    prepare(small, tif=False)
    cubes = (linked_cube(small, min(config.size, 3072)).cube({}), linked_cube(small, config.size).cube({}))
    faster = {
        (row["model"], row["precision"]): row.get("compiled_tiles_per_s", 0)
        > 1.05 * row["tiles_per_s"].get(row.get("compiled_batch"), float("inf"))
        for row in report.content.get("encoder", [])
    }
    for model in config.models:
        for precision in config.precisions:
            try:
                transfer.check_precision(precision, device)
            except DeviceError as error:
                print(f"skipped: {model} in {precision}: {error}", flush=True)
                continue
            kinds = (False, True) if faster.get((card_of(model).alias, precision)) else (False,)
            for compiled in kinds:
                if not report.late(f"embed {model} {precision}" + ", compiled" * compiled):
                    one(report, model, precision, compiled, cubes, device, folder)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
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
