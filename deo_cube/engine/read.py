"""Reading the cube for blocks that are written one by one: each source chunk once, several at a time, tried again.

Neighbouring blocks share source chunks (their halos overlap, and chunks are seldom as large as blocks). What one block
has read is kept for the next, up to `CACHE_BYTES` a process. Chunks are read by threads of their own, so that the bands
of a block arrive together, and a read that fails is repeated by itself, not with the block's encoding.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

__all__ = ["CACHE_BYTES", "ChunkReader", "forget", "reader"]

#: Memory for chunks that more blocks may ask for, a process.
CACHE_BYTES = 512 * 2**20
#: Threads that read, a process: reads wait for disks and networks more than they compute.
THREADS = 8

log = logging.getLogger("deo_cube")


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
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deo_cube-read")
        self._lock = threading.Lock()
        self._held: OrderedDict[Hashable, Future[Any]] = OrderedDict()
        self._bytes = 0
        self._first = threading.Lock()
        self._begun = False

    def read(
        self, loads: Iterable[tuple[Hashable, Callable[[], Any]]], *, retries: int, pause: float = 0.5
    ) -> list[Any]:
        """Values of chunks, in order: from memory, from a read that is under way, or read now.

        Parameters
        ----------
        loads : iterable of (key, call)
            `call` reads the chunk called `key`.
        retries : int
            Times that a read which raised is tried again.
        pause : float
            Seconds before the first of these; doubled each time.

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
                        return self._all(loads, retries, pause)
                    finally:
                        self._begun = True
        return self._all(loads, retries, pause)

    def _all(self, loads: Iterable[tuple[Hashable, Callable[[], Any]]], retries: int, pause: float) -> list[Any]:
        futures = [self._ask(key, call, retries, pause) for key, call in loads]
        return [f.result() for f in futures]

    def _ask(self, key: Hashable, call: Callable[[], Any], retries: int, pause: float) -> Future[Any]:
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key]
            future = self._pool.submit(_tried, key, call, retries, pause)
            self._held[key] = future
        future.add_done_callback(lambda f: self._settle(key, f))
        return future

    def _settle(self, key: Hashable, future: Future[Any]) -> None:
        with self._lock:
            if self._held.get(key) is not future:
                return
            if future.cancelled() or future.exception() is not None:
                del self._held[key]  # the next block tries anew
                return
            self._bytes += _size(future)
            for other in list(self._held):
                if self._bytes <= self.capacity:
                    break
                if self._held[other].done():
                    self._bytes -= _size(self._held.pop(other))

    def close(self) -> None:
        """Let go of chunks and threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._held.clear()
            self._bytes = 0


def _tried(key: Hashable, call: Callable[[], Any], retries: int, pause: float) -> Any:
    for attempt in range(retries + 1):
        try:
            return call()
        except Exception as error:
            if attempt == retries:
                error.add_note(f"chunk {key} could not be read in {retries + 1} tries")
                raise
            wait = pause * 2**attempt
            log.warning("chunk %s could not be read (%s): trying again in %.1f s", key, error, wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


def _size(future: Future[Any]) -> int:
    value = future.result()
    return int(value.nbytes) if isinstance(value, np.ndarray) else 0


_lock = threading.Lock()
_readers: OrderedDict[str, ChunkReader] = OrderedDict()


def reader(run: str) -> ChunkReader:
    """The reader of one run in this process; those of earlier runs are closed, but for the last."""
    with _lock:
        if run not in _readers:
            _readers[run] = ChunkReader()
            while len(_readers) > 2:
                _readers.popitem(last=False)[1].close()
        return _readers[run]


def forget(run: str) -> None:
    """Close the reader of a run that has ended."""
    with _lock:
        found = _readers.pop(run, None)
    if found is not None:
        found.close()
