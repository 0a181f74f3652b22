"""Reading the cube for blocks that are written one by one: each source chunk once, several at a time, tried again.

Neighbouring blocks share source chunks (their halos overlap, and chunks are seldom as large as blocks). What one block
has read is kept until the last that wants it has had it, up to `CACHE_BYTES` a process. Chunks are read by threads of
their own, so that the bands of a block arrive together, and a read that fails, or hangs, is repeated by itself, not
with the block's encoding.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CACHE_BYTES", "ChunkReader", "Load", "forget", "reader", "using"]

#: Memory for chunks that more blocks may ask for, a process.
CACHE_BYTES = 512 * 2**20
#: Threads that read, a process: reads wait for disks and networks more than they compute.
THREADS = 8
#: Seconds before a read that failed is tried again; doubled each time.
PAUSE = 0.5

log = logging.getLogger("deo_cube")


class Load(NamedTuple):
    """A chunk that a block asks for."""

    key: Hashable
    call: Callable[[], Any]
    """Reads it."""
    askers: int = 0
    """Blocks of the run that will ask for it, each once; 0: not known, so keep it while there is room."""


@dataclass
class _Held:
    future: Future[Any]
    size: int = 0
    """Bytes of it that are counted."""
    asked: int = 0
    """Blocks that have had it."""


class ChunkReader:
    """Source chunks of one run, read once and kept while there is room.

    Parameters
    ----------
    capacity : int
        Bytes kept.
    threads : int
        Reads at a time.
    """

    def __init__(self, capacity: int = CACHE_BYTES, threads: int = THREADS) -> None:
        self.capacity = capacity
        self.blocks = 0  # that use it now
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deo_cube-read")
        # Taken before the pool's own lock, always; and again by the callbacks of what `close` cancels.
        self._lock = threading.RLock()
        self._held: OrderedDict[Hashable, _Held] = OrderedDict()
        self._bytes = 0
        self._first = threading.Lock()
        self._closed = threading.Event()
        self._begun = False

    def read(
        self,
        loads: Sequence[Load],
        *,
        retries: int,
        timeout: float | None = None,
    ) -> list[Any]:
        """Values of chunks, in order: from memory, from a read that is under way, or read now.

        Parameters
        ----------
        loads : sequence of Load
            All that one block asks for.
        retries : int
            Times that a read which raised is tried again.
        timeout : float, optional
            Seconds that one try may take; a read that hangs for longer counts as failed.

        Raises
        ------
        Exception
            What the last try raised.
        """
        if not self._begun:
            # The first block is read alone: several at once would all arrive late, and nothing could be encoded yet.
            with self._first:
                if not self._begun:
                    try:
                        return self._all(loads, retries, timeout)
                    finally:
                        self._begun = True
        return self._all(loads, retries, timeout)

    def _all(self, loads: Sequence[Load], retries: int, timeout: float | None) -> list[Any]:
        futures = [self._ask(x.key, partial(_tried, x.key, x.call, retries, timeout, self._closed)) for x in loads]
        values = [f.result() for f in futures]
        with self._lock:
            for load in loads:
                held = self._held.get(load.key)
                if held is not None:
                    held.asked += 1
                    if held.asked == load.askers:
                        self._drop(load.key)
        return values

    def _ask(self, key: Hashable, call: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key].future
            future = self._pool.submit(call)
            self._held[key] = _Held(future)
        future.add_done_callback(lambda f: self._settle(key, f))
        return future

    def _settle(self, key: Hashable, future: Future[Any]) -> None:
        with self._lock:
            held = self._held.get(key)
            if held is None or held.future is not future:
                return
            if future.cancelled() or future.exception() is not None:
                del self._held[key]  # the next block tries anew
                return
            held.size = _size(future)
            self._bytes += held.size
            for other in list(self._held):
                if self._bytes <= self.capacity:
                    break
                if self._held[other].future.done():
                    self._drop(other)

    def _drop(self, key: Hashable) -> None:
        self._bytes -= self._held.pop(key).size

    def close(self) -> None:
        """Let go of chunks and threads; reads that are under way, or hang, are given up."""
        self._closed.set()
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._held.clear()
            self._bytes = 0


class _Partner:
    """A thread that makes one reading thread's calls, so that a call which hangs can be left behind.

    It lives as long as it answers: GDAL keeps connections by thread.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name="deo_cube-read-partner", daemon=True).start()

    def __del__(self) -> None:
        self._calls.put(None)

    def call(self, call: Callable[[], Any], timeout: float, closed: threading.Event) -> Any:
        answer: queue.SimpleQueue[tuple[bool, Any]] = queue.SimpleQueue()
        self._calls.put((call, answer))
        end = time.monotonic() + timeout
        while (left := end - time.monotonic()) > 0 and not closed.is_set():
            try:
                worked, value = answer.get(timeout=min(left, 1.0))
            except queue.Empty:
                continue
            if worked:
                return value
            raise value
        raise TimeoutError(f"no answer within {timeout:g} s (read_timeout= changes that, None waits for ever)")


def _serve(calls: queue.SimpleQueue[Any]) -> None:
    while (item := calls.get()) is not None:
        call, answer = item
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))
        del item, call, answer


_mine = threading.local()


def _within(call: Callable[[], Any], timeout: float | None, closed: threading.Event) -> Any:
    if timeout is None:
        return call()
    partner = getattr(_mine, "partner", None) or _Partner()
    _mine.partner = None  # not to be asked again, should it hang
    try:
        value = partner.call(call, timeout, closed)
    except TimeoutError:
        raise
    except BaseException:
        _mine.partner = partner
        raise
    _mine.partner = partner
    return value


def _tried(key: Hashable, call: Callable[[], Any], retries: int, timeout: float | None, closed: threading.Event) -> Any:
    for attempt in range(retries + 1):
        try:
            return _within(call, timeout, closed)
        except Exception as error:
            if attempt == retries or closed.is_set():
                error.add_note(f"chunk {key} could not be read in {attempt + 1} tries")
                raise
            wait = PAUSE * 2**attempt
            log.warning("chunk %s could not be read (%s): trying again in %.1f s", key, error, wait)
            closed.wait(wait)
    raise AssertionError("unreachable")


def _size(future: Future[Any]) -> int:
    value = future.result()
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0


_lock = threading.Lock()
_readers: OrderedDict[str, ChunkReader] = OrderedDict()


def reader(run: str) -> ChunkReader:
    """The reader of one run in this process; those of earlier runs that no block uses are closed, but for the last."""
    with _lock:
        if run not in _readers:
            _readers[run] = ChunkReader()
            idle = [other for other, held in _readers.items() if other != run and not held.blocks]
            for other in idle[: max(0, len(_readers) - 2)]:
                _readers.pop(other).close()
        return _readers[run]


@contextmanager
def using(run: str) -> Iterator[ChunkReader]:
    """Lend the reader of one run to a block."""
    found = reader(run)
    with _lock:
        found.blocks += 1
    try:
        yield found
    finally:
        with _lock:
            found.blocks -= 1


def forget(run: str) -> None:
    """Close the reader of a run that has ended."""
    with _lock:
        found = _readers.pop(run, None)
    if found is not None:
        found.close()
