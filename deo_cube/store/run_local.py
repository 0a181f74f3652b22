"""Run blocks on threads or processes of this machine, a few at a time: one is submitted when another ends."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import cloudpickle

from deo_cube.embedding import process
from deo_cube.errors import DeviceError
from deo_cube.options import set_options
from deo_cube.store.layout import Block

if TYPE_CHECKING:
    from deo_cube.store.report import ProgressBar

__all__ = ["executor", "run_blocks", "pickled", "unpickled_call", "count_workers"]


def count_workers(kind: str, num_workers: int | None) -> int:
    """Return the number of threads or processes that run blocks on this machine."""
    if kind == "synchronous":
        return 1
    return num_workers or process.cpu_threads() + (0 if kind == "processes" else 2)


@contextmanager
def executor(kind: str, num_workers: int | None) -> Iterator[tuple[Executor, int]]:
    """Yield an executor of this machine, and the number of blocks to submit to it at a time."""
    n = count_workers(kind, num_workers)
    if kind == "processes":
        # Not fork, which the threads of torch and GDAL do not survive.
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(n, mp_context=spawn, initializer=_prepare_process) as pool:
            yield pool, 2 * n
        return
    with ThreadPoolExecutor(n, thread_name_prefix="deo_cube-block") as threads_pool:
        yield threads_pool, n


def _prepare_process() -> None:
    """Set up a process that does nothing but run blocks."""
    set_options(cpu_tuning=True)
    _end_with_parent()


def _end_with_parent() -> None:
    """End this process as soon as its parent has ended, for whatever reason.

    A killed parent would leave its workers waiting for the next block, each with a loaded model.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            # Not sys.exit, which would wait for the running block; a killed block is simply done again.
            os._exit(1)

    threading.Thread(target=watch, name="deo_cube-parent", daemon=True).start()


def run_blocks(
    executor: Executor,
    slots: int,
    jobs: Iterable[Any],
    run: Callable[[Any], Any],
    bar: ProgressBar,
    give_up: Callable[[], None],
    results: Callable[[Block, Any], None] | None = None,
) -> None:
    """Run jobs (each with its `block`), `slots` at a time; stop at the first failure.

    `give_up` is called then, before running jobs are waited for.

    Raises
    ------
    DeviceError
        If a worker process was killed.
    """
    jobs = iter(jobs)
    running: dict[Future[Any], Block] = {}
    processes = type(executor).__name__ == "ProcessPoolExecutor"
    try:
        while True:
            for job in itertools.islice(jobs, slots - len(running)):
                future = executor.submit(unpickled_call, run, pickled(job)) if processes else executor.submit(run, job)
                running[future] = job.block
            if not running:
                return
            finished, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                block = running.pop(future)
                result = future.result()
                if results is not None:
                    results(block, result)
                bar.update(block)
    except BrokenExecutor as error:
        # A worker process was killed by another process, or by the system.
        killed = DeviceError(
            "a worker process was killed: most likely it ran out of memory. Pass a smaller num_workers=, or embed "
            "with a smaller block="
        )
        bar.add_progress_note(killed)
        give_up()
        raise killed from error
    except BaseException as error:
        bar.add_progress_note(error)
        give_up()
        raise
    finally:
        for future in running:
            future.cancel()


def pickled(job: Any) -> bytes:
    """Pickle a job by value: its graph may hold functions of a notebook, which plain pickle cannot send."""
    return bytes(cloudpickle.dumps(job))


def unpickled_call(run: Callable[[Any], Any], job: bytes) -> Any:
    """Run a pickled job."""
    return run(cloudpickle.loads(job))
