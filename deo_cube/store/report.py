"""Report on a run: progress bars over its blocks, and lines in the log before and after it."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.constants import Attribute
from deo_cube.cube import georeference
from deo_cube.embedding import process, tasks
from deo_cube.embedding.block import EmbedBlock
from deo_cube.embedding.plan import known_rate
from deo_cube.errors import DeoCubeError, remedy
from deo_cube.progress import Progress, duration, size
from deo_cube.store.create import own_geobox
from deo_cube.store.layout import Block, Layout
from deo_cube.store.scheduler import count_workers
from deo_cube.store.storage import is_local

__all__ = ["ComparisonBar", "ProgressBar", "log_complete", "log_computation", "log_end", "log_start"]

log = logging.getLogger("deo_cube")


class ProgressBar(Progress):
    """Progress over the blocks of a store, with the area per second.

    `done` is the number of blocks that earlier runs finished.
    """

    def __init__(self, emb: xr.DataArray, layout: Layout, *, shown: bool, done: int = 0) -> None:
        self._layout = layout
        self._pixel_area = _patch_area(emb)
        alias = emb.attrs.get(Attribute.MODEL_ALIAS, "embeddings")
        total = int(np.prod(layout.blocks))
        super().__init__(total, title=f"embed {alias}", done=done, rate_unit="km²/s", shown=shown)

    def update(self, block: Block) -> None:
        """Count a block that this run finished."""
        rows, columns = self._layout.region(block)
        self.advance(amount=(rows.stop - rows.start) * (columns.stop - columns.start) * self._pixel_area)

    def add_progress_note(self, error: BaseException) -> None:
        """Add the number of finished blocks to `error`."""
        if self.done:
            error.add_note(f"{self.done} of {self.total} blocks are done and safe; the same call resumes from there")
        else:
            error.add_note(
                f"0 of {self.total} blocks are done: the same call resumes; another one takes overwrite=True"
            )


class ComparisonBar(ProgressBar):
    """Progress over the finished blocks of a store whose inputs are compared."""

    def __init__(self, emb: xr.DataArray, layout: Layout, finished: int, *, shown: bool) -> None:
        self._layout, self._pixel_area = layout, _patch_area(emb)
        Progress.__init__(self, finished, title="compare inputs", rate_unit="km²/s", shown=shown)

    def add_progress_note(self, error: BaseException) -> None:
        """Add nothing: no block is being written."""


def _patch_area(emb: xr.DataArray) -> float:
    """Return the area of a patch on the ground, in square kilometres."""
    try:
        dx, dy = georeference.ground_resolution(own_geobox(emb))
    except DeoCubeError:
        return 0.0
    return dx * dy / 1e6


def log_start(emb: xr.DataArray, layout: Layout, store: Any, done: int, kind: str, num_workers: int | None) -> None:
    """Log how many blocks are to be done, by how many workers on which device, and the time expected for them."""
    if not log.isEnabledFor(logging.INFO):
        return
    total = int(np.prod(layout.blocks))
    alias = emb.attrs.get(Attribute.MODEL_ALIAS, "embeddings")
    text = f"{store}: {total - done} of {total} blocks to do, {alias}, {_workers(kind, num_workers)}"
    run = next((t.run for t in tasks.block_tasks(emb.data) if isinstance(t.run, EmbedBlock)), None)
    if run is not None and kind != "distributed":
        try:
            device = process.choose_device(run.device)
        except DeoCubeError:
            return  # the first block says what is wrong with it
        text += f" on {device}, {_expected(run, layout.blocks[0] * (total - done) / total, device)}"
    elif run is not None:
        text += f" on {run.device}" if run.device else ""
    log.info("%s", text)


def _workers(kind: str, num_workers: int | None) -> str:
    if kind == "distributed":
        workers = process.workers_of(process.distributed_client())
        threads = sum(int(w["nthreads"]) for w in workers.values())
        return f"{_count(len(workers), 'worker')} with {_count(threads, 'thread')}" if workers else "no worker yet"
    n = count_workers(kind, num_workers)
    return _count(n, "process" if kind == "processes" else "thread")


def _count(n: int, unit: str) -> str:
    return f"{n} {unit}" + ("" if n == 1 else "es" if unit.endswith("s") else "s")


def _expected(run: Any, dates: float, device: str) -> str:
    """Return the time that a number of dates takes, at the rate that was measured."""
    rate = known_rate(run.ref, run.plan.tile, "cuda:0" if device == "cuda" else device, run.precision, run.runtime)
    if rate is None:
        return f"time not known: {remedy('plan(measure=True)', 'deo-cube plan CUBE --measure')} measures the rate"
    tiles = dates * run.plan.encoded_pixels(run.ref.card.trim) / run.plan.tile**2
    return f"about {duration(tiles / rate)}"


def log_complete(store: Any, layout: Layout, *, checked: bool, shown: bool) -> None:
    """Report that nothing is left to do: in the log, or where that is not shown, on standard error."""
    blocks = _count(int(np.prod(layout.blocks)), "block")
    text = f"{store}: complete, {blocks}, " + ("made from the same inputs" if checked else "inputs not compared")
    if log.isEnabledFor(logging.INFO):
        log.info("%s", text)
    elif shown and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def log_end(store: Any, bar: ProgressBar) -> None:
    """Log how many blocks this run did, in which time, at which rate, and how large the store is on disk."""
    if not log.isEnabledFor(logging.INFO):
        return
    text = f"{store}: {_count(bar.ran, 'block')} in {duration(bar.seconds)}"
    text += f", {bar.rate:.3g} km²/s" if bar.rate else ""
    # Objects elsewhere would take a request each.
    text += f", {size(_bytes(store))} on disk" if is_local(store) else ""
    log.info("%s", text)


@contextmanager
def log_computation(array: xr.DataArray, out: str | os.PathLike[str]) -> Iterator[None]:
    """Log the same lines around the computation of what was made from embeddings: a map of classes, say."""
    count, start = getattr(array.data, "npartitions", 1), time.perf_counter()
    text = f"{out}: {_count(count, 'block')} to do"
    run = next((t.run for t in tasks.block_tasks(array.data) if isinstance(t.run, EmbedBlock)), None)
    if run is not None:
        device = process.choose_device(run.device)
        text += f", {run.ref.card.alias} on {device}, {_expected(run, array.sizes.get('time', 1), device)}"
    log.info("%s", text)
    yield
    there = _bytes(out) if os.path.isdir(out) else os.path.getsize(out)
    seconds = time.perf_counter() - start
    log.info("%s: %s in %s, %s on disk", out, _count(count, "block"), duration(seconds), size(there))


def _bytes(folder: str | os.PathLike[str]) -> int:
    return sum(os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)
