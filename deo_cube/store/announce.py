"""What a run says before its first block and after its last one, in one line each, through the logger `deo_cube`.

The lines have level INFO: the command line shows them; Python code sees them with
``logging.basicConfig(level="INFO")``.
"""

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

from deo_cube.embedding import graph, metadata, runtime
from deo_cube.embedding.block import EmbedBlock
from deo_cube.errors import DeoCubeError
from deo_cube.progress import duration, size
from deo_cube.store import run_local
from deo_cube.store.layout import Layout
from deo_cube.store.location import is_local

__all__ = ["closing", "complete", "computing", "opening"]

log = logging.getLogger("deo_cube")


def opening(emb: xr.DataArray, layout: Layout, store: Any, done: int, kind: str, num_workers: int | None) -> None:
    """Log how many blocks are to be done, by how many workers on which device, and the time expected for them."""
    if not log.isEnabledFor(logging.INFO):
        return
    total = int(np.prod(layout.blocks))
    alias = emb.attrs.get(metadata.PREFIX + "model_alias", "embeddings")
    text = f"{store}: {total - done} of {total} blocks to do, {alias}, {_workers(kind, num_workers)}"
    run = next((t.run for t in graph.block_tasks(emb.data) if isinstance(t.run, EmbedBlock)), None)
    if run is not None and kind != "distributed":
        try:
            device = runtime.choose_device(run.device)
        except DeoCubeError:
            return  # the first block says what is wrong with it
        text += f" on {device}, {_expected(run, layout.blocks[0] * (total - done) / total, device)}"
    elif run is not None:
        text += f" on {run.device}" if run.device else ""
    log.info("%s", text)


def _workers(kind: str, num_workers: int | None) -> str:
    if kind == "distributed":
        workers = runtime.workers_of(runtime.distributed_client())
        threads = sum(int(w["nthreads"]) for w in workers.values())
        return f"{_count(len(workers), 'worker')} with {_count(threads, 'thread')}" if workers else "no worker yet"
    n = run_local.workers(kind, num_workers)
    return _count(n, "process" if kind == "processes" else "thread")


def _count(n: int, unit: str) -> str:
    return f"{n} {unit}" + ("" if n == 1 else "es" if unit.endswith("s") else "s")


def _expected(run: Any, dates: float, device: str) -> str:
    """Time that a number of dates takes, at the rate that was measured."""
    from deo_cube.embedding.plan import known_rate

    rate = known_rate(run.ref, run.plan.tile, "cuda:0" if device == "cuda" else device, run.precision)
    if rate is None:
        return "time not known: plan(measure=True) measures the rate"
    tiles = dates * run.plan.encoded_pixels(run.ref.card.trim) / run.plan.tile**2
    return f"about {duration(tiles / rate)}"


def complete(store: Any, layout: Layout, *, checked: bool, shown: bool) -> None:
    """Say that nothing is left to do: in the log, or where that is not shown, on standard error."""
    blocks = _count(int(np.prod(layout.blocks)), "block")
    text = f"{store}: complete, {blocks}, " + ("made from the same inputs" if checked else "inputs not compared")
    if log.isEnabledFor(logging.INFO):
        log.info("%s", text)
    elif shown and sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)


def closing(store: Any, bar: run_local.Bar) -> None:
    """Log how many blocks this run did, in which time, at which rate, and how large the store is on disk."""
    if not log.isEnabledFor(logging.INFO):
        return
    text = f"{store}: {_count(bar.ran, 'block')} in {duration(bar.seconds)}"
    text += f", {bar.rate:.3g} km²/s" if bar.rate else ""
    # Objects elsewhere would take a request each.
    text += f", {size(_bytes(store))} on disk" if is_local(store) else ""
    log.info("%s", text)


@contextmanager
def computing(array: xr.DataArray, out: str | os.PathLike[str]) -> Iterator[None]:
    """Log the same lines around the computation of what was made from embeddings: a map of classes, say."""
    count, start = getattr(array.data, "npartitions", 1), time.perf_counter()
    text = f"{out}: {_count(count, 'block')} to do"
    run = next((t.run for t in graph.block_tasks(array.data) if isinstance(t.run, EmbedBlock)), None)
    if run is not None:
        device = runtime.choose_device(run.device)
        text += f", {run.ref.card.alias} on {device}, {_expected(run, array.sizes.get('time', 1), device)}"
    log.info("%s", text)
    yield
    there = _bytes(out) if os.path.isdir(out) else os.path.getsize(out)
    seconds = time.perf_counter() - start
    log.info("%s: %s in %s, %s on disk", out, _count(count, "block"), duration(seconds), size(there))


def _bytes(folder: str | os.PathLike[str]) -> int:
    return sum(os.stat(os.path.join(at, name)).st_size for at, _, names in os.walk(folder) for name in names)
