"""What a process holds while it embeds: the loaded encoders, and the lanes on which they run.

A **lane** is a thread that may use a device. A GPU has one lane, so that two tasks never meet in its memory; the CPU
has one a core, each with a single torch thread. Dask's own threads read, stitch and write, hand their batches to the
lanes, and wait. Whatever the scheduler (synchronous, threads, a cluster's worker), a device is never oversubscribed,
reading overlaps with encoding, and the arithmetic is the same: single-threaded, batch by batch.

Lanes serve the block that came first before the next one, so that blocks finish one after another and writing
overlaps with encoding as well.

Dask's resource annotations are not relied on: its default fusion drops them (dask/dask#7036).
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import itertools
import logging
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from deo_cube import options
from deo_cube.embedding import node_weights
from deo_cube.encoder.devices import choose_device
from deo_cube.encoder.registry import EncoderRef
from deo_cube.errors import DeviceError

__all__ = [
    "Lanes",
    "choose_device",
    "cpu_lanes",
    "default_batch",
    "distributed_client",
    "encoder",
    "lanes",
    "run_batches",
    "workers_of",
]

T = TypeVar("T")
Item = TypeVar("Item", bound=Hashable)

log = logging.getLogger("deo_cube")

_lock = threading.RLock()
_encoders: dict[tuple[str, str, bool | str], Any] = {}
_lanes: dict[str, Lanes] = {}
_batch_limits: dict[tuple[str, str], int] = {}


def _forget_parent() -> None:
    """Start empty in a forked child: threads do not survive a fork, nor does a CUDA context."""
    global _lock
    _lock = threading.RLock()
    _encoders.clear()
    _lanes.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


def cpu_lanes() -> int:
    """Cores that this process may encode on.

    `OMP_NUM_THREADS` where it was set when the process began (times the threads of a Dask worker, whose nanny sets it
    to 1), else the cores that the process may run on.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given = options.OMP_NUM_THREADS
    if not given.isdigit() or int(given) < 1:
        return allowed
    threads = 1
    worker_module = sys.modules.get("distributed.worker")
    if worker_module is not None:
        try:
            threads = int(worker_module.get_worker().state.nthreads)
        except (ValueError, AttributeError):
            threads = 1
    return max(1, min(allowed, int(given) * threads))


def distributed_client() -> Any:
    """The Dask client of this process, or None; never imports distributed."""
    module = sys.modules.get("distributed.client")
    if module is None:
        return None
    try:
        return module.default_client()
    except ValueError:
        return None


def workers_of(client: Any) -> dict[str, Any]:
    """All workers of a client's cluster by address, as the scheduler knows them now.

    Not `Client.scheduler_info`: some versions of Dask return five workers of it, and in the others its answer is
    overwritten, from another thread, by one that holds no worker.
    """
    return dict(client.sync(client.scheduler.identity)["workers"])


def encoder(ref: EncoderRef, device: str, compiled: bool | str = False) -> Any:
    """The loaded encoder, built once a process and device, whoever asks first.

    `compiled` is the option ``compile``: True for `torch.compile`, or the name of one of its backends.
    """
    key = (ref.fingerprint, device, compiled)
    with _lock:
        if key not in _encoders:
            _encoders[key] = loaded = node_weights.local_ref(ref).load(device)
            if compiled:
                import torch

                # After the weights have been proven on the network as it was written.
                backend: dict[str, Any] = {"backend": compiled} if isinstance(compiled, str) else {}
                network: Any = loaded.network
                network.forward_features = torch.compile(network.forward_features, **backend)
            log.debug("loaded %s on %s", ref.card.alias, device)
        return _encoders[key]


def default_batch(ref: EncoderRef, tile: int, device: str) -> int:
    """Tiles to encode at once: the card's number on a GPU; on the CPU as many as stay near the caches.

    About 1024 tokens; `benchmarks/throughput.py` times the bare encoder at this size beside the card's.
    """
    if device != "cpu":
        return ref.card.batch
    return max(1, min(ref.card.batch, 1024 // (tile // ref.layer.stride) ** 2))


class Lanes:
    """Threads that may use one device, served in the order of tickets (the oldest block first)."""

    def __init__(self, device: str, count: int) -> None:
        self.device = device
        self.count = count
        self._queue: queue.PriorityQueue[tuple[int, int, Future[Any], Callable[[], Any]]] = queue.PriorityQueue()
        self._tickets = itertools.count()
        self._order = itertools.count()
        for i in range(count):
            threading.Thread(target=self._serve, name=f"deo_cube-{device}-{i}", daemon=True).start()

    def ticket(self) -> int:
        """Take a place in the queue, for all the batches of one block."""
        return next(self._tickets)

    def submit(self, ticket: int, call: Callable[[], T]) -> Future[T]:
        """Run `call` on a lane, when it is this ticket's turn."""
        future: Future[T] = Future()
        self._queue.put((ticket, next(self._order), future, call))
        return future

    def _serve(self) -> None:
        import torch

        # Per calling thread, not per process: OpenMP keeps the number in the thread.
        torch.set_num_threads(1)
        while True:
            _, _, future, call = self._queue.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del future, call


#: What glibc keeps of freed memory, and the largest array that it takes from there: a batch's maps, not a cube.
_KEPT, _LARGEST = 256 * 2**20, 64 * 2**20


def _keep_freed_memory() -> None:
    """Let the maps of one batch lie where those of the last one lay.

    Dask's nannies start workers with ``MALLOC_TRIM_THRESHOLD_=65536``. glibc then gives each map of a network back to
    the system when it is done with, and gets it anew, zeroed page by page: a fifth of the time of a ViT-S, more than
    half of that of `tiny` (`benchmarks/memory_reuse.py`). Set for the process, before its first batch on the CPU.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library, which has no such setting
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-1, _KEPT)  # M_TRIM_THRESHOLD
        mallopt(-3, _LARGEST)  # M_MMAP_THRESHOLD


def lanes(device: str) -> Lanes:
    """The lanes of a device, made on first use."""
    with _lock:
        if device not in _lanes:
            if device == "cpu":
                _keep_freed_memory()
            _lanes[device] = Lanes(device, cpu_lanes() if device == "cpu" else 1)
        return _lanes[device]


def _out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error).lower()
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def run_batches(
    items: Sequence[Item],
    work: Callable[[Any], Any],
    *,
    batch: int,
    device: str,
    key: str = "",
    alike: Callable[[Item], Any] | None = None,
    stage: Callable[[Sequence[Item]], Any] | None = None,
    fetch: Callable[[Any], T] | None = None,
    ahead: int | None = None,
) -> list[tuple[Sequence[Item], Any]]:
    """Run `work` over batches of `items` on the device's lanes.

    Where a batch does not fit the device's memory, it is halved and tried again, and later batches of the same `key`
    stay small; a single item that does not fit is an error. Items for which `alike` differs never share a batch.

    `stage` makes of a batch what `work` is given, `fetch` of what `work` gives the result: both run on the calling
    thread, while the lane is at the batches before and after. At most `ahead` batches are staged at a time (None: all).

    Returns
    -------
    list of (items, result)
        In the order of `items`.

    Raises
    ------
    DeviceError
        If not even one item fits in memory.
    """
    place = lanes(device)
    ticket = place.ticket()
    size = max(1, min(batch, _batch_limits.get((key, device), batch)))
    groups = [list(items)] if alike is None else _grouped(items, alike)
    todo: deque[Sequence[Item]] = deque(group[i : i + size] for group in groups for i in range(0, len(group), size))
    flying: deque[tuple[Sequence[Item], Future[Any]]] = deque()
    done: list[tuple[Sequence[Item], Any]] = []

    def submit(part: Sequence[Item]) -> Future[Any]:
        staged = part if stage is None else stage(part)
        return place.submit(ticket, functools.partial(work, staged))

    def halve(part: Sequence[Item], error: Exception) -> None:
        if not _out_of_memory(error):
            raise error
        if len(part) == 1:
            raise DeviceError(
                f"not even one tile fits in the memory of {device}: "
                "pass a smaller tile, a smaller model, or device='cpu'"
            ) from error
        half = (len(part) + 1) // 2
        _remember_limit(key, device, half)
        todo.extend((part[:half], part[half:]))

    try:
        while todo or flying:
            while todo and (ahead is None or len(flying) < ahead):
                part = todo.popleft()
                try:
                    flying.append((part, submit(part)))
                except Exception as error:
                    halve(part, error)
            if not flying:
                continue
            part, future = flying.popleft()
            try:
                result = future.result()
                done.append((part, result if fetch is None else fetch(result)))
            except Exception as error:
                halve(part, error)
    finally:
        for _, future in flying:
            future.cancel()
    order = {item: i for i, item in enumerate(items)}
    return sorted(done, key=lambda pair: order[pair[0][0]])


def _grouped(items: Sequence[Item], alike: Callable[[Item], Any]) -> list[list[Item]]:
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(alike(item), []).append(item)
    return list(groups.values())


def _remember_limit(key: str, device: str, half: int) -> None:
    import torch

    with _lock:
        before = _batch_limits.get((key, device))
        if before is None or half < before:
            _batch_limits[key, device] = half
            log.warning("out of memory on %s: batches halved to %d tiles", device, half)
    if device.startswith("cuda"):
        torch.cuda.empty_cache()
