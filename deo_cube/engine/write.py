"""`emb.deo.to_zarr()`: blocks in flight on whatever scheduler is in use, each read, encoded and written by one task.

One path for all schedulers: a job is the small graph of one block and where it goes, and runs on threads or processes
here (`flight.py`) or on a cluster's workers (`cluster.py`). The job's graph is computed inside its task, so a scheduler
sees one task a block, whatever the source; nothing is parked between workers. Jobs are made as they are needed, and the
progress record is listed as they are made: a million blocks start as quickly as ten.
"""

from __future__ import annotations

import errno
import itertools
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import xarray as xr
import zarr

from deo_cube import arguments
from deo_cube.cube.coordinates import storable_coordinates
from deo_cube.engine import announce, flight, graph, location, look, metadata, read, record, store, template
from deo_cube.engine.reopen import open_embeddings
from deo_cube.engine.scheduler import choose_scheduler
from deo_cube.errors import ArgumentError, StoreMismatchError
from deo_cube.inputs import embeddings_of, refuse_foreign

__all__ = ["to_zarr"]

#: Blocks whose graphs are cut out of the whole at a time.
WAVE = 16


@dataclass(frozen=True)
class Reading:
    """How a job's chunks are read, decided at the call."""

    retries: int
    timeout: float | None


@dataclass(frozen=True)
class Job:
    """One block: its graph, its two keys, and where it goes."""

    target: store.Target
    block: tuple[int, int, int]
    graph: Mapping[Any, Any]
    values: Any
    valid: Any
    reading: Reading
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
    read_timeout: float | None = 1800.0,
    scheduler: str | None = None,
    num_workers: int | None = None,
    worker_timeout: float = 600.0,
    storage_options: Mapping[str, Any] | None = None,
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
        Times that a chunk of the cube which could not be read is tried again, with growing pauses.
    read_timeout : float, optional
        Seconds after which a chunk that does not arrive counts as not read. None: wait for ever.
    scheduler : {"threads", "processes", "synchronous", "distributed"}, optional
        Default: the cluster of this process if there is one, else Dask's configured scheduler, else threads.
    num_workers : int, optional
        Blocks in flight, for threads and processes. Default: one a core and two more that read and write.
    worker_timeout : float
        Seconds to wait while a cluster has no worker, at the start or after the last one vanished.
    storage_options : mapping, optional
        Of the object store, where `path` is a URL. See `deo_cube.engine.location.locate`.

    Returns
    -------
    DataArray
        The store, reopened lazily.

    Raises
    ------
    StoreMismatchError
        If another model, cube or plan began the store; the fields that differ are listed. If `emb` is not laid out as
        embeddings are.
    ValueError
        For fewer than no retries, or no worker.
    DeviceError
        If the cluster has no worker, or none that fits.
    OSError
        If reading fails `retries` times, the disk is full, or the cluster's scheduler is lost: what is done is safe,
        and the same call goes on.
    """
    if not isinstance(emb, xr.DataArray):
        emb = embeddings_of(emb)
    _check(emb)
    refuse_foreign(emb.variable, "emb", argument="emb")
    resume = resume if isinstance(resume, str) else arguments.boolean("resume", resume)
    overwrite, progress = arguments.boolean("overwrite", overwrite), arguments.boolean("progress", progress)
    retries = arguments.integer("retries", retries, minimum=0, error=ArgumentError)
    if read_timeout is not None:
        read_timeout = arguments.number("read_timeout", read_timeout, above=0, infinite=True)
    worker_timeout = arguments.number("worker_timeout", worker_timeout, minimum=0, infinite=True)
    if num_workers is not None:
        num_workers = arguments.integer("num_workers", num_workers, error=ArgumentError)
    place = location.locate(path, storage_options)
    emb = _on_dask(storable_coordinates(emb))
    layout = store.Layout.of(tuple(str(d) for d in emb.dims), emb.chunks or ())
    kind = choose_scheduler(scheduler)
    if overwrite or template.existing(place) is None:
        look.before_writing(emb, patience=read_timeout)
    target = template.create(emb, place, layout, resume=resume, overwrite=overwrite)
    root = target.open()
    if not template.is_complete(root):
        run = uuid.uuid4().hex
        done = record.count(root) if record.begun(root) else 0
        announce.opening(emb, layout, place, done, kind, num_workers)
        with flight.Bar(emb, layout, shown=progress, done=done) as bar:
            jobs = _jobs(emb, target, _todo(root, layout, bar), Reading(retries, read_timeout), run)
            if kind == "distributed":
                from deo_cube.engine.cluster import fly

                fly(jobs, run_job, bar, graph.runs(emb.data), run=run, patience=worker_timeout)
            else:
                try:
                    with flight.executor(kind, num_workers) as (executor, slots):
                        flight.fly(executor, slots, jobs, run_job, bar, partial(read.forget, run))
                finally:
                    read.forget(run)
        template.finish(target, root)
        announce.closing(place, bar)
    return open_embeddings(place)


def _check(emb: xr.DataArray) -> None:
    dims = tuple(emb.dims)
    if len(dims) not in (3, 4) or dims[-3] != "embedding" or 0 in emb.shape:
        raise StoreMismatchError(
            f"to_zarr writes embeddings (time, embedding, y, x) or (embedding, y, x) that are not empty; got {dims} of "
            f"shape {emb.shape}. Order them, emb.transpose('time', 'embedding', 'y', 'x'); "
            "keep a single row or column as one, emb.isel(x=[10])"
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


def _todo(root: zarr.Group, layout: store.Layout, bar: flight.Bar) -> Iterator[tuple[int, int, int]]:
    """Blocks without an entry, row by row, all dates of a place one after another: they share source chunks.

    The record is listed as it is gone through, a few rows ahead.
    """
    _, rows, columns = layout.blocks
    # Another process may be at work on the same store: start elsewhere, so that the two do not go in step.
    start = os.getpid() if record.begun(root) else 0
    first = start // rows % columns
    for row, done in record.done_in_rows(root, start % rows):
        if done.any():
            bar.found(int(done.sum()))
        for column in (*range(first, columns), *range(first)):
            for t in np.flatnonzero(~done[:, column]):
                yield int(t), row, column


def _jobs(
    emb: xr.DataArray, target: store.Target, todo: Iterator[tuple[int, int, int]], reading: Reading, run: str
) -> Iterator[Job]:
    values, valid = emb.data, emb["valid"].data
    whole = graph.merged(values, valid)
    four = emb.ndim == 4
    while wave := list(itertools.islice(todo, WAVE)):
        keys = {
            b: ((values.name, *((b[0],) if four else ()), 0, *b[1:]), (valid.name, *((b[0],) if four else ()), *b[1:]))
            for b in wave
        }
        part = graph.cut(whole, [k for pair in keys.values() for k in pair])
        for b, (v, f) in keys.items():
            yield Job(target, b, graph.subgraph(part, [v, f]), v, f, reading, run)


def run_job(job: Job) -> None:
    """Read, encode and write one block; nothing, if its entry is there already."""
    root = job.target.open()
    if record.is_done(root, job.block):
        return
    with read.using(job.run) as reader:
        chunks = partial(reader.read, retries=job.reading.retries, timeout=job.reading.timeout)
        values, valid = graph.compute_block(job.graph, [job.values, job.valid], chunks)
    values, valid = (values[0], valid[0]) if values.ndim == 4 else (values, valid)
    try:
        job.target.write(root, job.block, np.asarray(values), np.asarray(valid, dtype="float32"))
    except FileNotFoundError:
        # Another process finished the store meanwhile, this block too, and swept up what it took for remains.
        if not record.is_done(root, job.block):
            raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise OSError(
                error.errno,
                f"no space left for block {job.block} of {job.target.store}: free some and make the same call again",
            ) from error
        raise
