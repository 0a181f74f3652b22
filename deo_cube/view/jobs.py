"""Work that takes longer than a request (fitting, reading, exporting): one at a time, bounded in number and time."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from deo_cube.errors import ArgumentError
from deo_cube.view.requests import BadRequest

__all__ = ["Job", "Jobs"]

log = logging.getLogger(__name__)
#: Finished jobs that are remembered, and whose files are kept.
KEPT = 20
#: Jobs that wait or run.
OPEN = 8
#: Seconds that a job may wait, and then run.
LONGEST = 3600.0


@dataclass
class Job:
    """A piece of work and how far it is."""

    title: str
    id: str = field(default_factory=lambda: uuid4().hex)
    state: str = "waiting"
    """waiting, running, done, failed or cancelled."""
    share: float | None = None
    """Done so far, 0 to 1; None where it cannot be told."""
    message: str = ""
    result: Any = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def open(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def late(self) -> bool:
        """Whether it has waited or run too long."""
        return time.monotonic() - self.began > LONGEST

    def to_dict(self) -> dict[str, Any]:
        """Describe the job for the page."""
        shown = self.result if isinstance(self.result, dict) else None
        fields = ("id", "title", "state", "share", "message")
        return {k: getattr(self, k) for k in fields} | {"result": shown}


class Jobs:
    """Run jobs one after another on a thread; remember the last few.

    Parameters
    ----------
    forgotten : callable
        Called with each finished job that is no longer remembered.
    """

    def __init__(self, forgotten: Callable[[Job], None] = lambda job: None) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()
        self._forgotten = forgotten
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self, title: str, work: Callable[[], Any] | Callable[[], Iterator[float]], finish: Any = None) -> Job:
        """Queue `work`: a function, or a generator function that yields the share done.

        `finish`, if given, is called with what work returned and gives the job's result. A ValueError's message is
        shown to the user; any other error is logged, and its kind shown.

        Raises
        ------
        BadRequest
            If too many jobs wait or run already (429), or the viewer was stopped (503).
        """
        job = Job(title)
        with self._lock:
            if self._stopped:
                raise BadRequest("the viewer was stopped", 503)
            running = [j for j in self._jobs.values() if j.open]
            if len(running) >= OPEN:
                raise BadRequest(f"{len(running)} jobs are waiting or running: wait for one, or cancel one", 429)
            self._jobs[job.id] = job
            self._waiting.put((job, work, finish))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="deo_cube view: jobs", daemon=True)
                self._thread.start()
        self._forget()
        return job

    def _forget(self) -> None:
        with self._lock:
            finished = [j for j in self._jobs.values() if not j.open]
            old = [self._jobs.pop(j.id) for j in finished[: max(len(finished) - KEPT, 0)]]
        for job in old:
            self._forgotten(job)

    def _serve(self) -> None:
        while (one := self._waiting.get()) is not None:
            self._run(*one)
            self._forget()

    def _run(self, job: Job, work: Callable[[], Any], finish: Any) -> None:
        if job.stop.is_set() or job.late:
            job.message = "it waited too long" if job.late else ""
            job.state = "cancelled"
            return
        job.state, job.began = "running", time.monotonic()
        try:
            found = work()
            if isinstance(found, Iterator):
                found = self._stepped(job, found)
            if job.stop.is_set():
                job.state = "cancelled"
                return
            job.result = found if finish is None else finish(found)
            job.share, job.state = 1.0, "done"
        except (ValueError, KeyError, ImportError) as error:
            job.message, job.state = _sentence(error), "failed"
        except Exception as error:
            log.exception("%s failed", job.title)
            job.message, job.state = f"{job.title} failed: {type(error).__name__}: {error}", "failed"

    @staticmethod
    def _stepped(job: Job, steps: Iterator[float]) -> Any:
        try:
            while not job.stop.is_set():
                if job.late:
                    raise ArgumentError(f"{job.title} took longer than {LONGEST / 60:.0f} minutes and was stopped")
                try:
                    job.share = next(steps)
                except StopIteration as end:
                    return end.value
            return None
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    def find(self, id: str) -> Job | None:
        """Return a job by its id."""
        return self._jobs.get(id)

    def stop(self, wait: float = 5.0) -> None:
        """Stop every job, and wait a moment for the one that runs."""
        with self._lock:
            self._stopped = True
            for job in self._jobs.values():
                job.stop.set()
            self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(wait)


def _sentence(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
