"""`emb.deo.to_zarr()`: blocks in flight on whatever scheduler is in use, each read, encoded and written by one task.

One path for all schedulers: a job is the small graph of one block and where it goes; a `concurrent.futures` executor
runs it (threads here, processes, or a cluster's workers through `Client.get_executor`). The job's graph is computed
inside its task, so the scheduler sees one task a block, whatever the source; nothing is parked between workers.
"""

from __future__ import annotations

import errno
import itertools
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from deo_cube.engine import graph, metadata, read, runtime, store
from deo_cube.engine.reopen import open_embeddings
from deo_cube.errors import DeoCubeError, StoreMismatchError

__all__ = ["to_zarr"]

#: Blocks whose graphs are cut out of the whole at a time.
WAVE = 64


@dataclass(frozen=True)
class Job:
    """One block: its graph, its two keys, and where it goes."""

    target: store.Target
    block: tuple[int, int, int]
    graph: Mapping[Any, Any]
    values: Any
    valid: Any
    retries: int
    run: str
    """Which call of `to_zarr`: its chunks are kept apart from those of others."""


def to_zarr(
    emb: xr.DataArray,
    path: Any,
    *,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
    retries: int = 3,
    scheduler: str | None = None,
    num_workers: int | None = None,
) -> xr.DataArray:
    """Write embeddings to a Zarr 3 store, block by block; go on where an earlier run stopped.

    Parameters
    ----------
    emb : DataArray
        From `ds.deo.embed()`, whole or sliced, lazy or computed.
    path : path, URL or zarr store
        The store: created, or resumed if it was begun by the same call.
    resume : bool
        False: refuse a store that is already there.
    overwrite : bool
        Begin again, deleting what was there (only what deo_cube made).
    progress : bool
        Show a progress bar with the area done per second.
    retries : int
        Times that a block whose pixels could not be read is tried again, with growing pauses.
    scheduler : {"threads", "processes", "synchronous", "distributed"}, optional
        Default: the cluster of this process if there is one, else Dask's configured scheduler, else threads.
    num_workers : int, optional
        Blocks in flight, for threads and processes. Default: one a core and two more that read and write.

    Returns
    -------
    DataArray
        The store, reopened lazily.

    Raises
    ------
    StoreMismatchError
        If another model, cube or plan began the store; the fields that differ are listed.
    OSError
        If reading fails `retries` times, or the disk is full: what is done is safe, and the same call goes on.
    """
    _check(emb)
    emb = _on_dask(emb)
    layout = store.Layout.of(tuple(str(d) for d in emb.dims), emb.chunks or ())
    target = store.create(emb, path, layout, resume=resume, overwrite=overwrite)
    root = target.open()
    record = root["progress/crc32"][...] & store.DONE != 0
    todo = [b for b in layout if not record[b]]
    if record.any() and todo:
        # Another process may be at work on the same store: start elsewhere, so that the two do not go in step.
        start = os.getpid() % len(todo)
        todo = todo[start:] + todo[:start]
    if todo:
        kind = _scheduler(scheduler)
        bar = _Bar(emb, layout, done=int(record.sum()), shown=progress)
        run = uuid.uuid4().hex
        with _executor(kind, num_workers, run) as (executor, slots), bar:
            _run(executor, slots, _jobs(emb, target, todo, retries, run), bar)
        _tidy(path)
    store.finish(target, root)
    return open_embeddings(path)


def _check(emb: xr.DataArray) -> None:
    dims = tuple(emb.dims)
    if "embedding" not in dims or dims[-3] != "embedding" or len(dims) not in (3, 4) or 0 in emb.shape:
        raise StoreMismatchError(
            f"to_zarr writes embeddings (time, embedding, y, x) or (embedding, y, x) that are not empty; got {dims} of "
            f"shape {emb.shape}. Order them: emb.transpose('time', 'embedding', 'y', 'x')"
        )
    if metadata.PREFIX + "dtype" in emb.attrs and str(emb.dtype) not in ("float16", "float32", "float64", "int8"):
        raise StoreMismatchError(f"embeddings are float16, float32 or int8, got {emb.dtype}")


def _on_dask(emb: xr.DataArray) -> xr.DataArray:
    """`emb` with a chunk a block, all embedding dimensions together and one date each, and with `valid`."""
    if "valid" not in emb.coords:
        # From elsewhere: a patch is valid where it has numbers.
        rest = [d for d in emb.dims if d != "embedding"]
        emb = emb.assign_coords(valid=emb.notnull().all("embedding").astype("float32").transpose(*rest))
    y, x = emb.dims[-2:]
    chunks: dict[Any, Any] = {"embedding": -1}
    if emb.ndim == 4:
        chunks[emb.dims[0]] = 1
    if emb.chunks is None:
        chunks |= {y: min(128, emb.sizes[y]), x: min(128, emb.sizes[x])}
    emb = emb.chunk(chunks)
    sizes = dict(zip(emb.dims, emb.chunks or (), strict=True))
    valid = emb["valid"].variable
    return emb.assign_coords(valid=valid.chunk({d: sizes[d] for d in valid.dims}))


def _scheduler(wanted: str | None) -> str:
    if wanted is None:
        if runtime.distributed_client() is not None:
            return "distributed"
        wanted = dask.config.get("scheduler", "threads")
    names = {"threading": "threads", "sync": "synchronous", "single-threaded": "synchronous"}
    wanted = names.get(str(wanted), str(wanted))
    if wanted == "multiprocessing":
        wanted = "processes"
    if wanted not in ("threads", "processes", "synchronous", "distributed"):
        raise ValueError(f"scheduler must be threads, processes, synchronous or distributed, got {wanted!r}")
    if wanted == "distributed" and runtime.distributed_client() is None:
        raise ValueError("scheduler='distributed' needs a client: dask.distributed.Client(...) before the call")
    return wanted


@contextmanager
def _executor(kind: str, num_workers: int | None, run: str) -> Iterator[tuple[Executor, int]]:
    """Yield an executor, and how many blocks to keep in flight on it; let go of the run's chunks at the end."""
    if kind == "distributed":
        client = runtime.distributed_client()
        threads = sum(client.nthreads().values()) or 1
        try:
            # No retries here: a dead worker's task is run again by the scheduler, a failed one would only fail again.
            yield client.get_executor(pure=False), 2 * threads
        finally:
            client.run(read.forget, run)
        return
    if kind == "processes":
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        n = num_workers or runtime.cpu_lanes()
        # Not fork: torch's and GDAL's threads do not survive it.
        with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool, 2 * n
        return
    n = 1 if kind == "synchronous" else num_workers or runtime.cpu_lanes() + 2
    try:
        with ThreadPoolExecutor(n, thread_name_prefix="deo_cube-block") as threads_pool:
            yield threads_pool, n
    finally:
        read.forget(run)


def _run(executor: Executor, slots: int, jobs: Iterable[Job], bar: _Bar) -> None:
    """Keep `slots` blocks in flight; stop at the first failure, once those in flight have ended."""
    jobs = iter(jobs)
    flying: dict[Future[Any], Job] = {}
    processes = type(executor).__name__ == "ProcessPoolExecutor"
    try:
        while True:
            for job in itertools.islice(jobs, slots - len(flying)):
                future = executor.submit(_run_pickled, _pickle(job)) if processes else executor.submit(run_job, job)
                flying[future] = job
            if not flying:
                return
            finished, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in finished:
                job = flying.pop(future)
                try:
                    future.result()
                except Exception as error:
                    error.add_note(
                        f"{bar.done} of {bar.total} blocks are done and safe; the same call goes on from there"
                    )
                    raise
                bar.update(job.block)
    finally:
        for future in flying:
            future.cancel()


def _pickle(job: Job) -> bytes:
    # Graphs hold functions defined in notebooks, which plain pickle cannot send.
    import cloudpickle

    return bytes(cloudpickle.dumps(job))


def _run_pickled(job: bytes) -> None:
    import cloudpickle

    run_job(cloudpickle.loads(job))


def _jobs(
    emb: xr.DataArray, target: store.Target, todo: list[tuple[int, int, int]], retries: int, run: str
) -> Iterator[Job]:
    values, valid = emb.data, emb["valid"].data
    whole = graph.merged(values, valid)
    four = emb.ndim == 4
    waves = (todo[i : i + WAVE] for i in range(0, len(todo), WAVE))
    for wave in waves:
        keys = {
            b: ((values.name, *((b[0],) if four else ()), 0, *b[1:]), (valid.name, *((b[0],) if four else ()), *b[1:]))
            for b in wave
        }
        part = graph.cut(whole, [k for pair in keys.values() for k in pair])
        for b, (v, f) in keys.items():
            yield Job(target, b, graph.subgraph(part, [v, f]), v, f, retries, run)


def run_job(job: Job) -> None:
    """Read, encode and write one block; nothing, if its entry is there already."""
    root = job.target.open()
    if job.target.done(root, job.block):
        return
    chunks = partial(read.reader(job.run).read, retries=job.retries)
    values, valid = graph.compute_block(job.graph, [job.values, job.valid], chunks)
    values, valid = (values[0], valid[0]) if values.ndim == 4 else (values, valid)
    try:
        job.target.write(root, job.block, np.asarray(values), np.asarray(valid, dtype="float32"))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"no space left for block {job.block} of {job.target.store}: free some and make the same call again",
            ) from error
        raise


class _Bar:
    """Progress bar over blocks, with the area per second."""

    def __init__(self, emb: xr.DataArray, layout: store.Layout, *, done: int, shown: bool) -> None:
        from tqdm.auto import tqdm

        self.total = int(np.prod(layout.blocks))
        self.done = done
        self._layout = layout
        self._pixel_area = _patch_area(emb)
        self._area, self._start = 0.0, time.perf_counter()
        alias = emb.attrs.get(metadata.PREFIX + "model_alias", "embeddings")
        self._bar = tqdm(total=self.total, initial=done, unit="block", desc=f"embed {alias}", disable=not shown)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def update(self, block: tuple[int, int, int]) -> None:
        self.done += 1
        rows, columns = self._layout.region(block)
        self._area += (rows.stop - rows.start) * (columns.stop - columns.start) * self._pixel_area
        rate = self._area / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{rate:.3g} km²/s", refresh=False)
        self._bar.update()


def _patch_area(emb: xr.DataArray) -> float:
    """Square kilometres of a patch on the ground."""
    from deo_cube.cube import grid

    try:
        dx, dy = grid.ground_resolution(grid.geobox(emb.isel(embedding=0, drop=True)))
    except DeoCubeError:
        return 0.0
    return dx * dy / 1e6


def _tidy(path: Any) -> None:
    """Remove half-written objects that a killed run left beside whole ones."""
    if store.is_local(path):
        for left in Path(path).rglob("*.partial"):
            left.unlink(missing_ok=True)
