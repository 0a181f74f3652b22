"""Blocks on a Dask cluster: found out who fits, a few blocks a thread in flight, nothing waited for in silence.

The client asks every worker, as it appears, what it is (`workers.py`); blocks go to those that fit. The number in
flight follows the threads there are now, so that adaptive clusters grow and shrink under a job. A worker that dies
costs the blocks it was at: the scheduler runs them again elsewhere. If all vanish for `patience` seconds, or the
scheduler does, the call ends with an error that says so; what was done is safe.

Each block is one task of one submission: no graph of all blocks exists anywhere. A task is some ten kilobytes, pickled
by the client; the scheduler never unpickles it, and no result but None comes back.
"""

from __future__ import annotations

import contextlib
import math
import queue
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from deo_cube.arguments import number
from deo_cube.embedding import chunks, runtime
from deo_cube.errors import ArgumentError, DeviceError, SchedulerError, WeightsNotFoundError
from deo_cube.store import run_local
from deo_cube.store.workers import LOOK, Watch, ask

__all__ = ["fly"]

#: Blocks in flight for each thread of the cluster: one runs, one is there when it ends.
PER_THREAD = 2
#: Times that a block is submitted: each may see several workers die (distributed.scheduler.allowed-failures).
SUBMISSIONS = 3


@dataclass
class _Flight:
    block: tuple[int, int, int]
    job: bytes
    submissions: int = 0
    workers: tuple[str, ...] = ()


def fly(
    jobs: Iterable[Any],
    run_job: Callable[[Any], Any],
    bar: run_local.Bar,
    runs: list[Any],
    *,
    run: str,
    patience: float,
    results: Callable[[tuple[int, int, int], Any], None] | None = None,
) -> None:
    """Run `jobs` on the cluster of this process's client.

    Parameters
    ----------
    jobs : iterable
        Each with its `block`; taken as they are submitted.
    run_job : callable
        Does one, on a worker.
    bar : Bar
        Told of each block that is done.
    runs : list
        What runs for the blocks (`EmbedBlock`): its `ref` says which weights are needed, its `device` where.
    run : str
        Name of the run, whose chunks workers keep until the end.
    patience : float
        Seconds to wait while there is no worker.
    results : callable, optional
        Given the block and what its job returned. Without it nothing is fetched from workers.

    Raises
    ------
    DeviceError
        If no worker fits, none comes within `patience`, or a block takes its workers down again and again.
    SchedulerError
        If the scheduler is lost.
    """
    from distributed.comm import CommClosedError

    client = runtime.distributed_client()
    if client.asynchronous:
        raise ArgumentError(
            "to_zarr waits for its blocks, which a client with asynchronous=True cannot: make another client, or pass "
            "scheduler='threads'"
        )
    if patience != math.inf:
        number("worker_timeout", patience, minimum=0)
    watch = Watch(client, runs, patience, bar.aside)
    flying: dict[Any, _Flight] = {}
    try:
        _fly(client, watch, iter(jobs), run_job, bar, flying, results)
    except CommClosedError as error:
        # What a call to the scheduler meets in the moment that it is lost.
        lost = SchedulerError(
            f"the connection to the scheduler was closed ({error}): start it again, connect a new Client, and make the "
            "same call again"
        )
        bar.note(lost)
        raise lost from error
    except BaseException as error:
        bar.note(error)
        raise
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(flying))
        # Those that cannot be asked any more let go of the chunks at their next run.
        ask(client, chunks.forget, run, workers=watch.known, timeout=10.0)


def _fly(
    client: Any,
    watch: Watch,
    jobs: Iterator[Any],
    run_job: Callable[[Any], Any],
    bar: run_local.Bar,
    flying: dict[Any, _Flight],
    results: Callable[[tuple[int, int, int], Any], None] | None,
) -> None:
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    again: list[_Flight] = []
    new = (_Flight(job.block, run_local.pickled(job)) for job in jobs)
    while True:
        if watch.look(LOOK):
            _recall_stranded(watch, flying, again)
        for _ in range(PER_THREAD * watch.threads - len(flying)):
            one = again.pop() if again else next(new, None)
            if one is None:
                break
            placement = watch.placement()
            future = client.submit(
                run_local.unpickled_call, run_job, one.job, pure=False, key=_key(one), retries=0, **placement
            )
            one.submissions += 1
            one.workers = tuple(placement.get("workers", ()))
            flying[future] = one
            future.add_done_callback(ended.put)
        if not flying and not again:
            return
        for future in _some(ended):
            one = flying.pop(future, None)
            if one is None:
                continue  # recalled meanwhile
            if _succeeded(future, one, watch):
                if results is not None:
                    results(one.block, future.result())
                bar.update(one.block)
            else:
                again.append(one)
            future.release()


def _key(one: _Flight) -> str:
    import uuid

    # Tasks of one prefix share what the scheduler learns of their duration.
    return f"deo_cube-block-{'-'.join(map(str, one.block))}-{uuid.uuid4().hex}"


def _some(ended: queue.SimpleQueue[Any]) -> list[Any]:
    """Futures that have ended, at least one unless a while passes."""
    found = []
    with contextlib.suppress(queue.Empty):
        found.append(ended.get(timeout=LOOK))
        while True:
            found.append(ended.get_nowait())
    return found


def _recall_stranded(watch: Watch, flying: dict[Any, _Flight], again: list[_Flight]) -> None:
    """Take back blocks that were meant for workers which are all gone: the scheduler would wait for those for ever."""
    for future, one in list(flying.items()):
        if one.workers and not watch.known.intersection(one.workers):
            del flying[future]
            future.cancel()
            one.submissions -= 1
            again.append(one)


def _succeeded(future: Any, one: _Flight, watch: Watch) -> bool:
    """Whether a block is done; False where it is to be submitted again. Raises what no other try would mend."""
    from distributed.scheduler import KilledWorker

    # Not `future.result()`, which would fetch a None from the worker.
    if future.status == "finished":
        return True
    if future.status != "error":
        # Cancelled or lost: with the scheduler, or by someone else. The next look tells which.
        watch.forget()
        one.submissions -= 1
        return False
    error = future.exception()
    if isinstance(error, KilledWorker) and one.submissions >= SUBMISSIONS:
        raise DeviceError(
            f"block {one.block} took its workers down again and again ({error}): they run out of memory, most "
            "likely. Give workers more, or fewer threads each, or embed with a smaller block="
        ) from error
    if isinstance(error, WeightsNotFoundError) and one.submissions < SUBMISSIONS:
        watch.forget()  # it came to a worker that had not been asked yet
        return False
    if isinstance(error, KilledWorker):
        return False
    raise error
