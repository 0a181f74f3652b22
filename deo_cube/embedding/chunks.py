"""Read source chunks for blocks that are written one by one: each chunk once, several at a time, with retries.

Neighbouring blocks share source chunks: their halos overlap, and chunks are seldom as large as blocks. Chunks are
cached until every block that needs them has read them, up to `CACHE_BYTES` per process. They are read by threads of
their own, so that the bands of a block arrive together, and so that a read that fails or hangs is repeated without
encoding the block again.
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
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CACHE_BYTES", "ChunkReader", "Load", "forget", "reader", "using"]

#: Memory for chunks that other blocks may need, per process.
CACHE_BYTES = 512 * 2**20
#: Reading threads per process: reads wait for disks and networks more than they compute.
THREADS = 8
#: Seconds before a failed read is repeated; doubled each time.
PAUSE = 0.5

log = logging.getLogger("deo_cube")


class Load(NamedTuple):
    """A chunk that a block needs."""

    key: Hashable
    call: Callable[[], Any]
    """Reads the chunk."""
    readers: int = 0
    """Blocks of the run that need it, each once; 0: not known, so keep it while there is room."""


@dataclass
class _Held:
    future: Future[Any] = field(init=False)
    size: int | None = None
    """Bytes of its value; None until it is read."""
    readers: int = 0
    """Blocks that have read it."""


class ChunkReader:
    """Reads the source chunks of one run, each once, and caches them while there is room.

    Parameters
    ----------
    capacity : int
        Bytes that are cached.
    """

    def __init__(self, capacity: int = CACHE_BYTES) -> None:
        self.capacity = capacity
        self.blocks = 0  # that use it now
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="deo_cube-read")
        # Always acquired before the pool's own lock.
        self._lock = threading.Lock()
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
        """Return the values of chunks, in order: from the cache, from a running read, or from a new one.

        Parameters
        ----------
        loads : sequence of Load
            All chunks that one block needs.
        retries : int
            Times that a failed read is repeated.
        timeout : float, optional
            Seconds that one attempt may take; a read that takes longer counts as failed.

        Raises
        ------
        Exception
            The error of the last attempt.
        """
        if not self._begun:
            # The first block is read alone: several at once would all arrive late, and encoding could not begin.
            with self._first:
                if not self._begun:
                    try:
                        return self._all(loads, retries, timeout)
                    finally:
                        self._begun = True
        return self._all(loads, retries, timeout)

    def _all(self, loads: Sequence[Load], retries: int, timeout: float | None) -> list[Any]:
        futures = [
            self._request(x.key, partial(_with_retries, x.key, x.call, retries, timeout, self._closed)) for x in loads
        ]
        values = [f.result() for f in futures]
        with self._lock:
            for load in loads:
                held = self._held.get(load.key)
                if held is not None:
                    held.readers += 1
                    if held.readers == load.readers:
                        self._drop(load.key)
        return values

    def _request(self, key: Hashable, call: Callable[[], Any]) -> Future[Any]:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key].future
            held = _Held()
            held.future = self._pool.submit(self._read, key, held, call)
            self._held[key] = held
            return held.future

    def _read(self, key: Hashable, held: _Held, call: Callable[[], Any]) -> Any:
        # The cache is settled before the future is, and not in a callback of it: a block that has its values would
        # otherwise find a failed read still cached, or memory not yet counted.
        try:
            value = call()
        except BaseException:
            with self._lock:
                if self._held.get(key) is held:
                    del self._held[key]  # the next block reads it again
            raise
        with self._lock:
            if self._held.get(key) is held:
                held.size = int(value.nbytes) if isinstance(value, np.ndarray) else 0
                self._bytes += held.size
                self._make_room()
        return value

    def _make_room(self) -> None:
        for key in [key for key, held in self._held.items() if held.size is not None]:
            if self._bytes <= self.capacity:
                break
            self._drop(key)

    def _drop(self, key: Hashable) -> None:
        self._bytes -= self._held.pop(key).size or 0

    def close(self) -> None:
        """Release chunks and threads; running reads are abandoned."""
        self._closed.set()
        with self._lock:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._held.clear()
            self._bytes = 0


class _CallThread:
    """A thread that makes the calls of one reading thread, so that a call that hangs can be abandoned.

    It is kept as long as it answers, because GDAL keeps connections per thread.
    """

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=_serve, args=(self._calls,), name="deo_cube-read-call", daemon=True).start()

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
        raise TimeoutError(f"no answer within {timeout:g} s (change read_timeout=; None waits for ever)")


def _serve(calls: queue.SimpleQueue[Any]) -> None:
    while (item := calls.get()) is not None:
        call, answer = item
        try:
            answer.put((True, call()))
        except BaseException as error:
            answer.put((False, error))
        del item, call, answer


_mine = threading.local()


def _with_timeout(call: Callable[[], Any], timeout: float | None, closed: threading.Event) -> Any:
    if timeout is None:
        return call()
    call_thread = getattr(_mine, "call_thread", None) or _CallThread()
    _mine.call_thread = None  # not to be used again if it hangs
    try:
        value = call_thread.call(call, timeout, closed)
    except TimeoutError:
        raise
    except BaseException:
        _mine.call_thread = call_thread
        raise
    _mine.call_thread = call_thread
    return value


def _with_retries(
    key: Hashable, call: Callable[[], Any], retries: int, timeout: float | None, closed: threading.Event
) -> Any:
    for attempt in range(retries + 1):
        try:
            return _with_timeout(call, timeout, closed)
        except Exception as error:
            if attempt == retries or closed.is_set():
                error.add_note(f"chunk {key} could not be read in {attempt + 1} attempts")
                raise
            wait = PAUSE * 2**attempt
            log.warning("chunk %s could not be read (%s): retrying in %.1f s", key, error, wait)
            closed.wait(wait)
    raise AssertionError("unreachable")


_lock = threading.Lock()
_readers: OrderedDict[str, ChunkReader] = OrderedDict()


def reader(run: str) -> ChunkReader:
    """Return the reader of a run in this process; unused readers of earlier runs are closed, except for the last."""
    with _lock:
        if run not in _readers:
            _readers[run] = ChunkReader()
            idle = [other for other, held in _readers.items() if other != run and not held.blocks]
            for other in idle[: max(0, len(_readers) - 2)]:
                _readers.pop(other).close()
        return _readers[run]


@contextmanager
def using(run: str) -> Iterator[ChunkReader]:
    """Yield the reader of a run, which is not closed meanwhile."""
    chunk_reader = reader(run)
    with _lock:
        chunk_reader.blocks += 1
    try:
        yield chunk_reader
    finally:
        with _lock:
            chunk_reader.blocks -= 1


def forget(run: str) -> None:
    """Close the reader of a run that has ended."""
    with _lock:
        ended = _readers.pop(run, None)
    if ended is not None:
        ended.close()
