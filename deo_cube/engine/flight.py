"""Blocks in flight: a few at a time on threads or processes, the next one submitted as one ends; and their bar."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.engine import metadata, runtime
from deo_cube.engine.store import Layout
from deo_cube.engine.template import own_geobox
from deo_cube.errors import DeoCubeError

__all__ = ["Bar", "executor", "fly", "pickled", "unpickled_call"]

Block = tuple[int, int, int]


@contextmanager
def executor(kind: str, num_workers: int | None) -> Iterator[tuple[Executor, int]]:
    """Yield an executor of this machine, and how many blocks to keep in flight on it."""
    if kind == "processes":
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        n = num_workers or runtime.cpu_lanes()
        # Not fork: torch's and GDAL's threads do not survive it.
        with ProcessPoolExecutor(n, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool, 2 * n
        return
    n = 1 if kind == "synchronous" else num_workers or runtime.cpu_lanes() + 2
    with ThreadPoolExecutor(n, thread_name_prefix="deo_cube-block") as threads_pool:
        yield threads_pool, n


def fly(
    executor: Executor,
    slots: int,
    jobs: Iterable[Any],
    run: Callable[[Any], None],
    bar: Bar,
    give_up: Callable[[], None],
) -> None:
    """Run `jobs` (each with its `block`), `slots` at a time; stop at the first failure.

    `give_up` is called then, before those in flight are waited for.
    """
    jobs = iter(jobs)
    flying: dict[Future[Any], Block] = {}
    processes = type(executor).__name__ == "ProcessPoolExecutor"
    try:
        while True:
            for job in itertools.islice(jobs, slots - len(flying)):
                future = executor.submit(unpickled_call, run, pickled(job)) if processes else executor.submit(run, job)
                flying[future] = job.block
            if not flying:
                return
            finished, _ = wait(flying, return_when=FIRST_COMPLETED)
            for future in finished:
                block = flying.pop(future)
                future.result()
                bar.update(block)
    except BaseException as error:
        bar.note(error)
        give_up()
        raise
    finally:
        for future in flying:
            future.cancel()


def pickled(job: Any) -> bytes:
    """A job as bytes: its graph holds functions defined in notebooks, which plain pickle cannot send."""
    import cloudpickle

    return bytes(cloudpickle.dumps(job))


def unpickled_call(run: Callable[[Any], None], job: bytes) -> None:
    """Do a pickled job."""
    import cloudpickle

    run(cloudpickle.loads(job))


class Bar:
    """Progress bar over blocks, with the area per second."""

    def __init__(self, emb: xr.DataArray, layout: Layout, *, shown: bool) -> None:
        from tqdm.auto import tqdm

        self.total = int(np.prod(layout.blocks))
        self.done = 0
        """Blocks known to be done: those of earlier runs are counted as the record is gone through."""
        self._layout = layout
        self._pixel_area = _patch_area(emb)
        self._area, self._start = 0.0, time.perf_counter()
        alias = emb.attrs.get(metadata.PREFIX + "model_alias", "embeddings")
        self._bar = tqdm(total=self.total, unit="block", desc=f"embed {alias}", disable=not shown)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def found(self, blocks: int) -> None:
        """Count blocks that an earlier run did, without taking them for speed."""
        self.done += blocks
        if not self._bar.disable:
            self._bar.initial += blocks
            self._bar.n += blocks
            self._bar.refresh()

    def update(self, block: Block) -> None:
        """Count a block that this run did."""
        self.done += 1
        rows, columns = self._layout.region(block)
        self._area += (rows.stop - rows.start) * (columns.stop - columns.start) * self._pixel_area
        rate = self._area / (time.perf_counter() - self._start)
        self._bar.set_postfix_str(f"{rate:.3g} km²/s", refresh=False)
        self._bar.update()

    def note(self, error: BaseException) -> None:
        """Say in `error` what is safe."""
        error.add_note(f"{self.done} of {self.total} blocks are done and safe; the same call goes on from there")


def _patch_area(emb: xr.DataArray) -> float:
    """Square kilometres of a patch on the ground."""
    from deo_cube.cube import grid

    try:
        dx, dy = grid.ground_resolution(own_geobox(emb))
    except DeoCubeError:
        return 0.0
    return dx * dy / 1e6
