"""Choose what runs the blocks of a job; run them on threads or processes of this machine; connect to a cluster.

Blocks are submitted a few at a time, one when another ends. Those on a cluster are in `run_distributed.py`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import multiprocessing
import os
import queue
import threading
import time
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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import dask

from deo_cube.embedding import process
from deo_cube.errors import ArgumentError, DeviceError, SchedulerError
from deo_cube.extras import require
from deo_cube.options import set_options
from deo_cube.paths import local_path
from deo_cube.store.layout import Block

if TYPE_CHECKING:
    from deo_cube.store.report import ProgressBar

__all__ = [
    "choose_scheduler",
    "connect",
    "count_workers",
    "executor",
    "is_address",
    "pickled",
    "run_blocks",
    "unpickled_call",
]

#: Seconds to wait for a file that a scheduler which was just started has not written yet.
FILE = 5.0
#: Seconds to wait for an answer, where Dask's `distributed.comm.timeouts.connect` has its default.
ANSWER = 10.0


#: Other names that Dask gives its schedulers.
NAMES = {
    "threading": "threads", "sync": "synchronous", "single-threaded": "synchronous", "multiprocessing": "processes",
    "dask.distributed": "distributed",
}  # fmt: skip


def choose_scheduler(scheduler: str | None) -> str:
    """Return ``threads``, ``processes``, ``synchronous`` or ``distributed``.

    None selects the cluster of this process's client if there is one, else Dask's configured scheduler, else threads.

    Raises
    ------
    ArgumentError
        For any other name, or ``distributed`` without a client.
    """
    client = process.distributed_client()
    default = "distributed" if client is not None else dask.config.get("scheduler", "threads")
    kind = str(default if scheduler is None else scheduler)
    kind = NAMES.get(kind, kind)
    if is_address(kind):
        raise ArgumentError(
            f"scheduler={kind!r} is an address: connect to it before the call, "
            f"client = dask.distributed.Client({kind!r}), and leave scheduler= out"
        )
    if kind not in ("threads", "processes", "synchronous", "distributed"):
        raise ArgumentError(
            f"scheduler={kind!r} is not known: expected threads, processes, synchronous or distributed (a client's "
            "cluster); on the command line also an address (tcp://HOST:8786) or a scheduler's file ending in .json"
        )
    if kind == "distributed" and client is None:
        require("distributed", extra="cluster", purpose="scheduler='distributed'")
        raise ArgumentError(
            "scheduler='distributed' needs a client, and this process has none: dask.distributed.Client(...) before "
            "the call, or on the command line the address, --scheduler tcp://HOST:8786"
        )
    return kind


def is_address(scheduler: str) -> bool:
    """Return whether a text names a scheduler by its address or file, and not one of Dask's local ones."""
    return "://" in scheduler or scheduler.lower().endswith(".json")


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


def connect(scheduler: str) -> Any:
    """Return a client of the scheduler at an address (``tcp://host:8786``) or in a file (``scheduler.json``).

    Parameters
    ----------
    scheduler : str

    Returns
    -------
    distributed.Client
        Not this process's default: ``with client.as_current():`` makes it that of a block of code.

    Raises
    ------
    MissingExtraError
        Without the extra ``cluster``.
    SchedulerError
        If the file is missing, cannot be read or names no address; if no Dask scheduler answers.
    """
    require("distributed", extra="cluster", purpose=f"scheduler={scheduler!r}")
    address = scheduler if "://" in scheduler else _address_in(local_path(scheduler))
    limit = dask.utils.parse_timedelta(dask.config.get("distributed.comm.timeouts.connect", "30s"))
    try:
        return _client(address, ANSWER if limit == 30 else limit)
    except Exception as error:
        # OSError where nothing listens, ValueError for an address that is not one, anything where others answer.
        where = address if address == scheduler else f"{address}, the address in {scheduler}"
        raise SchedulerError(
            f"no Dask scheduler answers at {where} ({_reason(error)}). Start one, dask scheduler, and name the "
            f'address that it prints: scheduler="tcp://HOST:8786"'
        ) from error


def _client(address: str, timeout: float) -> Any:
    """Return a client that is connected within about `timeout` seconds."""
    from distributed import Client

    # Asked before a client is made. A client whose start failed lives on until the garbage collector finds it, and its
    # __del__ then waits for a lock that another client, starting at that moment, holds: both wait for ever.
    _probe(address, timeout)
    return Client(address, timeout=timeout, set_as_default=False)


def _probe(address: str, timeout: float) -> None:
    """Return if a scheduler answers at `address` within about `timeout` seconds; else raise its reason."""
    answers: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    async def ask() -> None:
        from distributed import Security, rpc

        arguments = Security().get_connection_args("client") if address.startswith(("tls", "wss", "ucxs")) else {}
        async with rpc(address, timeout=timeout, connection_args=arguments) as scheduler:
            identity = await scheduler.identity()
        if identity.get("type") != "Scheduler":
            raise ValueError(f"a {identity.get('type', 'process')} answers there, not a scheduler")

    def attempt() -> None:
        try:
            asyncio.run(asyncio.wait_for(ask(), timeout))
        except BaseException as error:
            answers.put(error)
        else:
            answers.put(None)

    # In a thread: this one may run an event loop already, as Jupyter's does, and a server that speaks something else
    # may hold the attempt for ever.
    threading.Thread(target=attempt, name="deo_cube-connect", daemon=True).start()
    try:
        problem = answers.get(timeout=timeout + 5)
    except queue.Empty:
        problem = TimeoutError(f"nothing that is a scheduler answered in {timeout + 5:.0f} s")
    if problem is not None:
        raise problem


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError | ValueError | TypeError):
        return "what listens there does not speak Dask's protocol"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _address_in(file: Path) -> str:
    end = time.monotonic() + FILE
    while True:
        try:
            address = json.loads(file.read_text(encoding="utf-8"))["address"]
            if isinstance(address, str) and "://" in address:
                return address
            problem = f"names no address of a scheduler, got {address!r:.60}"
        except FileNotFoundError:
            problem = "does not exist"
        except OSError as error:
            problem = f"cannot be read ({error.strerror or error})"
        except (ValueError, KeyError, TypeError):
            problem = "is empty" if not file.stat().st_size else "is not JSON with an address"
        if time.monotonic() > end or file.is_dir():
            raise SchedulerError(
                f'the file of the scheduler, scheduler="{file}", {problem}. Write one, dask scheduler '
                f'--scheduler-file {file}, or name the address, scheduler="tcp://HOST:8786"'
            )
        time.sleep(0.1)
