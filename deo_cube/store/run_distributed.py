"""Run blocks on a Dask cluster: submit a few per thread, and raise if no suitable worker appears in time.

Each worker is queried once, when it joins: which version and device it has, and which weights it lacks. Blocks go to
workers that can run them. The number of submitted blocks follows the number of threads, so that adaptive clusters grow
and shrink during a job. The blocks of a worker that dies are run again elsewhere by the scheduler. If all workers are
lost for `worker_timeout` seconds, or the scheduler is lost, the call raises; finished blocks are safe.

Each block is one task of one submission: no graph of all blocks exists anywhere. A task is about ten kilobytes, pickled
by the client; the scheduler never unpickles it, and no result but None is returned.

Workers are queried with `Client.run`, not by a `WorkerPlugin`: a plugin prepares workers that join later as well, but
returns no answer, and a job has to know which workers to leave out and for which reason. `Client.wait_for_workers`
counts workers of any kind, so it cannot tell that none of them can run a block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from deo_cube.arguments import number
from deo_cube.embedding import chunks, metadata, process
from deo_cube.errors import ArgumentError, DeoCubeError, DeviceError, SchedulerError, WeightsNotFoundError
from deo_cube.options import get_option
from deo_cube.store import scheduler
from deo_cube.store.layout import Block
from deo_cube.store.report import ProgressBar

__all__ = ["WorkerInfo", "WorkerPool", "query_workers", "run_on_workers"]

#: Name of the abstract resource that workers with a GPU are started with.
RESOURCE = "GPU"
#: Seconds that a worker may take to answer, which includes importing torch.
ANSWER_TIME = 120.0
#: Seconds between queries of the cluster.
REFRESH = 2.0
#: Seconds that the other workers may take once one has answered.
LAG = 20.0

#: Submitted blocks per thread of the cluster: one runs, one is ready when it ends.
PER_THREAD = 2
#: Times that a block is submitted: each may lose several workers (distributed.scheduler.allowed-failures).
SUBMISSIONS = 3

log = logging.getLogger("deo_cube")


@dataclass(frozen=True)
class WorkerInfo:
    """Host, version, device and missing weights of a worker, and why it cannot run a block, if so."""

    host: str
    version: str
    device: str
    """Kind of device that a block would run on: cpu, cuda, mps; empty where the device of the call is missing."""
    problem: str = ""
    lacks: tuple[int, ...] = ()
    """Positions of the weights that it does not have, in the job's list."""


async def worker_info(refs: bytes, device: str | None) -> WorkerInfo:
    """Describe this process, a worker. In a thread, as importing torch takes seconds."""
    return await asyncio.to_thread(_worker_info, refs, device)


def _worker_info(refs: bytes, device: str | None) -> WorkerInfo:
    host, version = socket.gethostname(), metadata.package_version()
    try:
        known = unpickled_refs(refs)
    except Exception as error:
        return WorkerInfo(host, version, "", f"cannot read the model: {error}")
    lacks = tuple(i for i, ref in enumerate(known) if not process.has_weights(ref))
    if not known:
        return WorkerInfo(host, version, device or "")
    try:
        return WorkerInfo(host, version, process.choose_device(device).partition(":")[0], "", lacks)
    except DeoCubeError as error:
        return WorkerInfo(host, version, "", str(error), lacks)


def query_workers(
    client: Any, question: Callable[..., Any], *args: Any, workers: Collection[str], timeout: float
) -> dict[str, Any]:
    """Run `question` on `workers`; return the answers, or errors, of those that answer in time, by address.

    Workers that are more than `LAG` seconds behind the first answer are not waited for: they may be frozen.
    """
    if not workers or client.status != "running":
        return {}
    answers: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def run(group: list[str]) -> None:
        try:
            answers.put(client.run(question, *args, workers=group, on_error="return"))
        except Exception as error:
            # Also if a worker left meanwhile: those that remain are queried again at the next refresh.
            log.debug("the cluster did not answer: %s", error)
            answers.put({})

    # In threads, because `run` waits for every worker that it queries, however long.
    addresses = sorted(workers)
    groups = [group for i in range(32) if (group := addresses[i::32])]
    for group in groups:
        threading.Thread(target=run, args=(group,), daemon=True).start()
    received: dict[str, Any] = {}
    end = time.monotonic() + timeout
    for _ in groups:
        try:
            received.update(answers.get(timeout=max(0.0, end - time.monotonic())))
        except queue.Empty:
            break
        end = min(end, time.monotonic() + LAG) if received else end
    return received


class WorkerPool:
    """The workers of a cluster that can run the blocks of a job, as they join and leave.

    Parameters
    ----------
    client : distributed.Client
        Synchronous.
    runs : list
        What runs for the blocks; see `run_on_workers`.
    patience : float
        Seconds to wait while there is no worker.
    aside : callable
        A context manager in which warnings are logged: clears a progress bar.

    Raises
    ------
    DeviceError, SchedulerError
        From `refresh`: if no worker fits, none comes within `patience`, or the scheduler is lost.
    """

    def __init__(
        self,
        client: Any,
        runs: list[Any],
        patience: float,
        aside: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> None:
        self._client = client
        self._aside = aside
        self._patience = patience
        self._refs = list({r.ref.fingerprint: r.ref for r in runs if getattr(r, "ref", None) is not None}.values())
        self._device = next((r.device for r in runs if getattr(r, "device", None)), None)
        self._infos: dict[str, WorkerInfo] = {}
        self._queries: dict[str, int] = {}
        self._kind: str | None = None
        self._share = 0.0
        self._fit: dict[str, int] = {}
        self._restricted = False
        self._refreshed = -1e9
        self._last_fit = time.monotonic()
        self._scale_up_task: Any = None
        self._joined = 0
        self._warned = ""
        self.known: set[str] = set()
        """Addresses of all workers of the cluster."""

    @property
    def threads(self) -> int:
        """Number of threads of the workers that can run a block."""
        return sum(self._fit.values())

    def placement(self) -> dict[str, Any]:
        """Return the arguments of `Client.submit` that send a block to workers that can run it."""
        if self._share:
            return {"resources": {RESOURCE: self._share}}
        return {"workers": sorted(self._fit), "allow_other_workers": False} if self._restricted else {}

    def query_again(self) -> None:
        """Query all workers again at the next refresh, which is due at once."""
        self._infos.clear()
        self._queries.clear()
        self._refreshed = -1e9

    def refresh(self, every: float) -> bool:
        """Update the workers if the last time is `every` seconds ago; wait until one fits. Return whether it did."""
        if time.monotonic() - self._refreshed < every and self._fit:
            return False
        while not self._refresh():
            time.sleep(min(every, 0.5))
        return True

    def _refresh(self) -> bool:
        workers = self._workers_now()
        self._refreshed = time.monotonic()
        self._report_lost(self.known - set(workers), len(workers))
        self._joined += len(set(workers) - self.known)
        self.known = set(workers)
        self._infos = {a: v for a, v in self._infos.items() if a in workers}
        # A worker that did not answer is queried again, but not for ever: it may be busy, or frozen.
        new = [a for a in workers if a not in self._infos and self._queries.get(a, 0) < 5]
        if new:
            self._query(new)
        self._choose(workers)
        if self._fit:
            self._last_fit = time.monotonic()
            self._scale_up_task, self._warned = None, ""
            return True
        self._raise_if_timed_out(workers)
        if not workers and self._scale_up_task is None:
            # Adaptive clusters start workers only for tasks.
            self._scale_up_task = self._client.submit(int, pure=False, key=f"deo_cube-scale-up-{uuid.uuid4().hex}")
        return False

    def _workers_now(self) -> Mapping[str, Any]:
        try:
            return process.workers_of(self._client)
        except Exception as error:
            if self._client.status in ("closed", "closing"):
                raise SchedulerError(
                    "the scheduler is lost: start it again, and make the same call to resume"
                ) from error
            return {}  # it reconnects, or closes after `distributed.comm.timeouts.connect`

    def _report_lost(self, lost: set[str], left: int) -> None:
        """Log each worker that was lost since the last refresh; quietly if it was retired or closed on request."""
        if self._client.status != "running":
            return  # the scheduler is what was lost
        for address in sorted(lost):
            try:
                events = [e for _, e in self._client.get_events(address)]
            except Exception:
                events = []
            asked = any(e.get("action") in ("retired", "close-worker") or e.get("expected") for e in events)
            text = f"worker {address} left" if asked else f"worker {address} was lost: its blocks run again elsewhere"
            with self._aside():
                log.log(logging.INFO if asked else logging.WARNING, "%s; %d left in the cluster", text, left)

    def _raise_if_timed_out(self, workers: Mapping[str, Any]) -> None:
        refused = {a: v.problem for a, v in self._infos.items() if v.problem}
        if workers and len(refused) == len(workers):
            first = "; ".join(f"{a}: {why}" for a, why in list(refused.items())[:3])
            raise DeviceError(f"none of the {len(workers)} workers can run this job. {first}")
        waited = time.monotonic() - self._last_fit
        if waited > self._patience:
            raise DeviceError(
                f"{self._state(workers)}, for {waited:.0f} s. Start workers (dask worker ADDRESS, cluster.scale(n)), "
                "or wait longer for a queue: worker_timeout=seconds"
            )
        state = self._state(workers)
        # Workers that were started together may answer a few seconds after they joined.
        if state != self._warned and (not workers or waited > 2 * REFRESH):
            self._warned = state
            with self._aside():
                log.warning("%s: waiting for one, at most worker_timeout=%g seconds", state, self._patience)

    def _state(self, workers: Mapping[str, Any]) -> str:
        """Return why no block runs."""
        if self._client.status != "running":
            return "the scheduler does not answer"
        if not self._joined:
            return "no worker has joined the cluster yet"
        if not workers:
            return f"the cluster has no worker left ({self._joined} had joined)"
        return f"none of the cluster's {len(workers)} workers fits or answers"

    def _query(self, new: list[str]) -> None:
        refs = pickle_refs(self._refs)
        for address in new:
            self._queries[address] = self._queries.get(address, 0) + 1
        answers = query_workers(self._client, worker_info, refs, self._device, workers=new, timeout=ANSWER_TIME)
        for address, info in answers.items():
            self._infos[address] = _check_version(info)
        self._distribute_weights([a for a in new if a in self._infos and self._infos[a].lacks])

    def _distribute_weights(self, lacking: list[str]) -> None:
        """Copy weights to the nodes of workers that lack them, once per node."""
        nodes: dict[tuple[str, int], list[str]] = {}
        for address in lacking:
            for i in self._infos[address].lacks:
                nodes.setdefault((self._infos[address].host, i), []).append(address)
        for (host, i), addresses in nodes.items():
            ref, first = self._refs[i], addresses[0]
            args = (pickle_refs([ref]), get_option("offline"))
            fetched = query_workers(self._client, _fetch, *args, workers=[first], timeout=3600.0).get(first)
            if fetched is not True and not self._send(ref, first):
                for address in addresses:
                    del self._infos[address]  # queried again at the next refresh
                log.warning("the weights of %s could not be copied to %s", ref.card.alias, host)

    def _send(self, ref: Any, worker: str) -> bool:
        path = Path(ref.weights)
        total, transfer = path.stat().st_size, uuid.uuid4().hex
        log.info("sending the weights of %s (%.0f MB) to %s", ref.card.alias, total / 1e6, worker)
        arrived = False
        with open(path, "rb") as file:
            for offset in range(0, total, process.CHUNK_BYTES):
                args = (ref.weights_sha256, path.suffix, offset, total, file.read(process.CHUNK_BYTES), transfer)
                info = query_workers(self._client, _receive, *args, workers=[worker], timeout=600.0).get(worker)
                if not isinstance(info, bool):
                    return False
                arrived = info
        return arrived

    def _choose(self, workers: Mapping[str, Any]) -> None:
        able = {a: workers[a] for a, info in self._infos.items() if not info.problem}
        gpus = {a: w for a, w in able.items() if float(w.get("resources", {}).get(RESOURCE, 0)) > 0}
        if self._kind is None and able:
            # Decided once: a GPU's numbers differ from a CPU's in the last digits, and one store has one kind.
            kinds = {info.device for a, info in self._infos.items() if a in able}
            gpu_first = sorted(kinds, key=lambda kind: (kind in ("cpu", ""), kind))
            self._kind = RESOURCE if gpus and self._device != "cpu" else gpu_first[0]
        if self._kind == RESOURCE:
            self._fit = {a: int(w["nthreads"]) for a, w in gpus.items()}
            shares = [float(w["resources"][RESOURCE]) / max(1, int(w["nthreads"])) for w in gpus.values()]
            self._share = _power_of_two(min(shares)) if shares else self._share
            self._restricted = False
        else:
            self._fit = {a: int(w["nthreads"]) for a, w in able.items() if self._infos[a].device == self._kind}
            self._restricted = len(self._fit) < len(workers)


def _check_version(info: Any) -> WorkerInfo:
    if not isinstance(info, WorkerInfo):
        return WorkerInfo("", "", "", f"it cannot run deo_cube ({type(info).__name__}: {info})")
    mine = metadata.package_version()
    if info.version != mine:
        return WorkerInfo(info.host, info.version, "", f"it has deo_cube {info.version}, this process {mine}")
    return info


def _power_of_two(share: float) -> float:
    """Return the largest power of two up to `share`: such parts add up exactly, whatever their number."""
    return float(2.0 ** math.floor(math.log2(share)))


def pickle_refs(refs: list[Any]) -> bytes:
    """Pickle references by value, as factories may be defined in a notebook; the scheduler does not unpickle them."""
    return bytes(cloudpickle.dumps(refs))


def unpickled_refs(refs: bytes) -> list[Any]:
    """Unpickle references of the client."""
    return list(cloudpickle.loads(refs))


async def _fetch(refs: bytes, offline: bool) -> bool:
    (ref,) = unpickled_refs(refs)
    return await asyncio.to_thread(process.fetch_from_hub, ref, offline=offline)


async def _receive(*args: Any) -> bool:
    return await asyncio.to_thread(process.receive_chunk, *args)


@dataclass
class _PendingBlock:
    """A block that is submitted, or to be submitted."""

    block: Block
    job: bytes
    submissions: int = 0
    workers: tuple[str, ...] = ()


def run_on_workers(
    jobs: Iterable[Any],
    run_job: Callable[[Any], Any],
    bar: ProgressBar,
    runs: list[Any],
    *,
    run: str,
    patience: float,
    results: Callable[[Block, Any], None] | None = None,
) -> None:
    """Run jobs on the cluster of this process's client.

    Parameters
    ----------
    jobs : iterable
        Each with its `block`; taken as they are submitted.
    run_job : callable
        Runs one job, on a worker.
    bar : ProgressBar
        Updated with each finished block.
    runs : list
        What runs for the blocks (`EmbedBlock`): its `ref` has the weights that are needed, its `device` where they run.
    run : str
        Name of the run, whose chunks workers keep until the end.
    patience : float
        Seconds to wait while there is no worker.
    results : callable, optional
        Called with the block and the return value of its job. Without it nothing is fetched from workers.

    Raises
    ------
    DeviceError
        If no worker fits, none comes within `patience`, or a block kills its workers repeatedly.
    SchedulerError
        If the scheduler is lost.
    """
    client = process.distributed_client()
    if client.asynchronous:
        raise ArgumentError(
            "to_zarr waits for its blocks, which a client with asynchronous=True cannot: make another client, or pass "
            "scheduler='threads'"
        )
    if patience != math.inf:
        number("worker_timeout", patience, minimum=0)
    pool = WorkerPool(client, runs, patience, bar.aside)
    running: dict[Any, _PendingBlock] = {}
    try:
        _run_blocks(client, pool, iter(jobs), run_job, bar, running, results)
    except CommClosedError as error:
        # Raised by calls to the scheduler while its connection is being lost.
        lost = SchedulerError(
            f"the connection to the scheduler was closed ({error}): start it again, connect a new Client, and make the "
            "same call again"
        )
        bar.add_progress_note(lost)
        raise lost from error
    except BaseException as error:
        bar.add_progress_note(error)
        raise
    finally:
        with contextlib.suppress(Exception):
            client.cancel(list(running))
        # Workers that do not answer release their chunks at their next run.
        query_workers(client, chunks.forget, run, workers=pool.known, timeout=10.0)


def _run_blocks(
    client: Any,
    pool: WorkerPool,
    jobs: Iterator[Any],
    run_job: Callable[[Any], Any],
    bar: ProgressBar,
    running: dict[Any, _PendingBlock],
    results: Callable[[Block, Any], None] | None,
) -> None:
    ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
    again: list[_PendingBlock] = []
    new = (_PendingBlock(job.block, scheduler.pickled(job)) for job in jobs)
    while True:
        if pool.refresh(REFRESH):
            _recall_stranded(pool, running, again)
        for _ in range(PER_THREAD * pool.threads - len(running)):
            one = again.pop() if again else next(new, None)
            if one is None:
                break
            placement = pool.placement()
            future = client.submit(
                scheduler.unpickled_call, run_job, one.job, pure=False, key=_key(one), retries=0, **placement
            )
            one.submissions += 1
            one.workers = tuple(placement.get("workers", ()))
            running[future] = one
            future.add_done_callback(ended.put)
        if not running and not again:
            return
        for future in _ended_futures(ended):
            one = running.pop(future, None)
            if one is None:
                continue  # recalled meanwhile
            if _succeeded(future, one, pool):
                if results is not None:
                    results(one.block, future.result())
                bar.update(one.block)
            else:
                again.append(one)
            future.release()


def _key(one: _PendingBlock) -> str:
    # Tasks of one prefix share what the scheduler learns of their duration.
    return f"deo_cube-block-{'-'.join(map(str, one.block))}-{uuid.uuid4().hex}"


def _ended_futures(ended: queue.SimpleQueue[Any]) -> list[Any]:
    """Return the futures that have ended; wait up to `REFRESH` seconds for the first."""
    futures = []
    with contextlib.suppress(queue.Empty):
        futures.append(ended.get(timeout=REFRESH))
        while True:
            futures.append(ended.get_nowait())
    return futures


def _recall_stranded(pool: WorkerPool, running: dict[Any, _PendingBlock], again: list[_PendingBlock]) -> None:
    """Cancel blocks that were restricted to workers that have all left: the scheduler would wait for these for ever."""
    for future, one in list(running.items()):
        if one.workers and not pool.known.intersection(one.workers):
            del running[future]
            future.cancel()
            one.submissions -= 1
            again.append(one)


def _succeeded(future: Any, one: _PendingBlock, pool: WorkerPool) -> bool:
    """Return whether a block is done; False where it is to be submitted again. Raise errors that no retry can fix."""
    # Not `future.result()`, which would fetch a None from the worker.
    if future.status == "finished":
        return True
    if future.status != "error":
        # Cancelled or lost: with the scheduler, or by another client. The next refresh finds out.
        pool.query_again()
        one.submissions -= 1
        return False
    error = future.exception()
    if isinstance(error, KilledWorker) and one.submissions >= SUBMISSIONS:
        raise DeviceError(
            f"block {one.block} killed its workers repeatedly ({error}): most likely they ran out of memory. Give the "
            "workers more memory or fewer threads each, or embed with a smaller block="
        ) from error
    if isinstance(error, WeightsNotFoundError) and one.submissions < SUBMISSIONS:
        pool.query_again()  # it ran on a worker that had not been queried yet
        return False
    if isinstance(error, KilledWorker):
        return False
    raise error
