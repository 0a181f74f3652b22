"""What a job of a million blocks costs beside its encoding: `python -m benchmarks.size`.

An encoder that costs nothing, on a cube that holds nothing, so that what is left is the engine:

- *start*: from `embed()` to the first block handed out, of a new store; seconds, and megabytes on top of the imports
- *report*: counting what is done in a store that is half done
- *resume*: from the call to the first block handed out, of the same store; inputs of finished blocks are not compared
- *a block*: milliseconds to cut a block's graph out of the whole and pickle it (client), its pickled size, and
  milliseconds to run it
- *cluster*: wall milliseconds a block of `--blocks` null blocks on a local cluster, client and scheduler and workers
  together, and the CPU milliseconds of client and scheduler; beside the seconds that a block of a real model takes

The half-done record is made of links to a few entries.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

import deo_cube
from benchmarks import null
from deo_cube import options
from deo_cube.embedding.embed import embed
from deo_cube.store import create, layout, report, scheduler, storage, write
from deo_cube.store.layout import Layout
from deo_cube.store.open import status


@dataclass(frozen=True)
class Config:
    """What is measured."""

    side: int = 1000
    """Blocks on a side of the large job; its square is their number."""
    blocks: int = 1024
    """Null blocks on the local cluster."""
    workers: int = 2
    model: str = "tiny"
    """Whose block of 1024 px is timed for comparison."""
    out: Path | None = None
    """JSON file for the figures."""


def megabytes() -> float:
    """Largest memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3 / (1e3 if sys.platform == "darwin" else 1)


def large(side: int) -> Any:
    """Embeddings of side x side blocks."""
    return embed(null.cube((8 * side, 8 * side), times=1, chunk=8), model=null.register(8), block=8)


def begin(path: Path, side: int) -> tuple[Any, Any, float]:
    """What `to_zarr` does until it has its first block: target, the blocks to come, and seconds."""
    start = time.perf_counter()
    emb = write._on_dask(large(side))
    layout = Layout.of(tuple(str(d) for d in emb.dims), emb.chunks)
    target = create.create(emb, storage.locate(path), layout, resume=True, overwrite=False).target
    bar = report.ProgressBar(emb, layout, shown=False)
    jobs = write._jobs(emb, target, write._todo(target.record, bar), write.Reading(3, 1800.0), "size")
    scheduler.pickled(next(jobs))
    return target, jobs, time.perf_counter() - start


def half_done(path: Path, side: int) -> None:
    """Entries for the blocks of the upper half."""
    folder = path / layout.PATH / "c" / "0"
    original = path / "entry"
    for row in range(side // 2):
        (folder / str(row)).mkdir(parents=True, exist_ok=True)
        if row % 32 == 0:  # a file has 65,000 links at most
            original.unlink(missing_ok=True)
            original.write_bytes(np.uint64(layout.DONE).tobytes())
        for column in range(side):
            os.link(original, folder / str(row) / str(column))
    original.unlink()


def many(config: Config, folder: Path) -> dict[str, float]:
    """A million blocks: started, counted, resumed."""
    found: dict[str, float] = {"blocks": config.side**2}
    path = folder / "large.zarr"
    embed(null.cube((64, 64), times=1, chunk=8), model=null.register(8), block=8)  # imports
    before = megabytes()
    _, jobs, found["start_s"] = begin(path, config.side)
    found["start_mb"] = megabytes() - before
    start = time.perf_counter()
    some = [scheduler.pickled(job) for job in itertools.islice(jobs, 500)]
    found["client_ms_a_block"] = (time.perf_counter() - start) / 500 * 1e3
    found["pickled_kb_a_block"] = len(some[-1]) / 1e3
    ran = list(itertools.islice(jobs, 100))
    start = time.perf_counter()
    for job in ran:
        write.run_job(job)
    found["run_ms_a_block"] = (time.perf_counter() - start) / 100 * 1e3
    shutil.rmtree(path / layout.PATH / "c")
    half_done(path, config.side)
    start = time.perf_counter()
    found["done"] = status(path).done
    found["report_s"] = time.perf_counter() - start
    pid = os.getpid
    os.getpid = lambda: 0  # from the first row on, which is done
    try:
        _, _, found["resume_s"] = begin(path, config.side)
    finally:
        os.getpid = pid
    found["all_mb"] = megabytes() - before
    return found


def on_cluster(config: Config, folder: Path) -> dict[str, float]:
    """Null blocks on a local cluster."""
    from distributed import Client, LocalCluster

    side = int(config.blocks**0.5)
    found: dict[str, float] = {"cluster_blocks": side**2}
    with (
        LocalCluster(config.workers, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster,
        Client(cluster),
    ):
        write.to_zarr(large(8), folder / "warm.zarr", progress=False)
        wall, cpu = time.perf_counter(), time.process_time()
        write.to_zarr(large(side), folder / "cluster.zarr", progress=False)
        found["cluster_wall_ms_a_block"] = (time.perf_counter() - wall) / side**2 * 1e3
        # Client and scheduler live in this process, the workers in others.
        found["client_and_scheduler_cpu_ms_a_block"] = (time.process_time() - cpu) / side**2 * 1e3
    return found


def real_block(model: str) -> float:
    """Seconds that one block of 1024 px of a real model takes, on one thread."""
    torch.set_num_threads(1)
    options.OMP_NUM_THREADS = "1"
    emb = deo_cube.synthetic_cube(size=1024, times=1).deo.embed(model)
    small = deo_cube.synthetic_cube(size=256, times=1).deo.embed(model)
    small.compute(scheduler="synchronous")
    start = time.perf_counter()
    emb.compute(scheduler="synchronous")
    return time.perf_counter() - start


def main(config: Config) -> None:
    """Measure, print, and write JSON."""
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory(prefix="size-") as folder:
        found = many(config, Path(folder)) | on_cluster(config, Path(folder))
    found["real_block_s"] = real_block(config.model)
    scheduling = found["client_and_scheduler_cpu_ms_a_block"] / 1e3 / found["real_block_s"]
    found["scheduling_of_encoding_percent"] = 100 * scheduling
    for name, value in found.items():
        print(f"{name:40}{value:>14,.3f}")
    if config.out is not None:
        config.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
