"""The main job on one real scene: rate and peak memory, printed. `python -m benchmarks.real SCENE.tif [--offset 0]`."""

from __future__ import annotations

import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import psutil
import tyro
from tyro.conf import Positional

import deo_cube


def peak_while(run: object) -> tuple[float, int]:
    """Seconds that `run` takes, and the process's peak memory in the meantime, bytes."""
    process, peak, done = psutil.Process(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        run()  # type: ignore[operator]
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return seconds, peak[0]


def main(
    scene: Annotated[Positional[Path], tyro.conf.arg()], offset: float = 0, model: str = "tiny", rounds: int = 3
) -> None:
    """Embed a scene into a Zarr store, several times."""
    cube = deo_cube.open_cube(scene)
    plan = cube.deo.plan(model, offset=offset)
    print(plan)
    work = Path(tempfile.mkdtemp(prefix="deo_cube_real"))
    try:
        runs = []
        for _ in range(rounds):
            store = work / "emb.zarr"
            emb = cube.deo.embed(model, offset=offset)
            runs.append(peak_while(lambda e=emb, s=store: e.deo.to_zarr(s, overwrite=True, progress=False)))
        seconds = statistics.median(s for s, _ in runs)
        pixels = plan.tiling.shape[0] * plan.tiling.shape[1] * plan.times
        print(
            f"\n{scene.name}: median of {rounds}: {seconds:.2f} s, {pixels / seconds / 1e6:.3f} Mpx/s, "
            f"{plan.times * plan.area_km2 / seconds:.3g} km²/s, peak memory {max(p for _, p in runs) / 2**20:.0f} MiB"
        )
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    tyro.cli(main)
