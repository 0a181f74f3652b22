"""Run work that takes longer than a request (fitting, reading, exporting): one job at a time, bounded in time."""

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
from deo_cube.viewer.server import BadRequest

__all__ = ["BackgroundJob", "JobQueue"]

log = logging.getLogger(__name__)
#: Number of finished jobs that are remembered, with their files.
MAX_FINISHED = 20
#: Largest number of jobs that wait or run.
MAX_OPEN = 8
#: Seconds that a job may wait, and then run.
MAX_SECONDS = 3600.0


@dataclass
class BackgroundJob:
    """A job and its progress.

    Parameters
    ----------
    title : str
    id : str
    state : {"waiting", "running", "done", "failed", "cancelled"}
    share : float or None
        Share that is done, 0 to 1; None where it is unknown.
    message : str
        Reason of a failure.
    result : object
        As JSON takes it for the page; other results stay on the server.
    stop : threading.Event
        Set to cancel the job.
    began : float
        When it began to wait or run, ``time.monotonic()``.
    """

    title: str
    id: str = field(default_factory=lambda: uuid4().hex)
    state: str = "waiting"
    share: float | None = None
    message: str = ""
    result: Any = None
    stop: threading.Event = field(default_factory=threading.Event, repr=False)
    began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def open(self) -> bool:
        """True while the job waits or runs."""
        return self.state in ("waiting", "running")

    @property
    def late(self) -> bool:
        """True if the job has waited or run too long."""
        return time.monotonic() - self.began > MAX_SECONDS

    def to_dict(self) -> dict[str, Any]:
        """Return the job as the page reads it."""
        result = self.result if isinstance(self.result, dict) else None
        fields = ("id", "title", "state", "share", "message")
        return {k: getattr(self, k) for k in fields} | {"result": result}


class JobQueue:
    """Run jobs one after another on a thread; remember the last finished ones.

    Parameters
    ----------
    on_drop : callable
        Called with each finished job that is no longer remembered; must not call the queue.
    """

    def __init__(self, on_drop: Callable[[BackgroundJob], None] = lambda job: None) -> None:
        self._jobs: dict[str, BackgroundJob] = {}
        self._lock = threading.Lock()
        self._on_drop = on_drop
        self._waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(
        self, title: str, work: Callable[[], Any] | Callable[[], Iterator[float]], finish: Any = None
    ) -> BackgroundJob:
        """Queue a job.

        Parameters
        ----------
        title : str
        work : callable
            A function, or a generator function that yields the share done. The message of a ValueError is shown to the
            user; any other error is logged, and its type shown.
        finish : callable, optional
            Called with the result of `work`; returns the result of the job.

        Raises
        ------
        BadRequest
            If too many jobs wait or run already (429), or the viewer was stopped (503).
        """
        job = BackgroundJob(title)
        with self._lock:
            if self._stopped:
                raise BadRequest("the viewer was stopped", 503)
            open_jobs = [j for j in self._jobs.values() if j.open]
            if len(open_jobs) >= MAX_OPEN:
                raise BadRequest(f"{len(open_jobs)} jobs are waiting or running: wait for one, or cancel one", 429)
            self._jobs[job.id] = job
            self._waiting.put((job, work, finish))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="deo_cube view: jobs", daemon=True)
                self._thread.start()
        self._drop_old()
        return job

    def _drop_old(self) -> None:
        with self._lock:
            finished = [j for j in self._jobs.values() if not j.open]
            for job in finished[: max(len(finished) - MAX_FINISHED, 0)]:
                # Under the lock: whoever finds no job, from whichever thread, finds no file either.
                self._on_drop(self._jobs.pop(job.id))

    def _serve(self) -> None:
        while (one := self._waiting.get()) is not None:
            self._run(*one)
            self._drop_old()

    def _run(self, job: BackgroundJob, work: Callable[[], Any], finish: Any) -> None:
        if job.stop.is_set() or job.late:
            job.message = "the job waited too long" if job.late else ""
            job.state = "cancelled"
            return
        job.state, job.began = "running", time.monotonic()
        try:
            result = work()
            if isinstance(result, Iterator):
                result = self._run_steps(job, result)
            if job.stop.is_set():
                job.state = "cancelled"
                return
            job.result = result if finish is None else finish(result)
            job.share, job.state = 1.0, "done"
        except (ValueError, KeyError, ImportError) as error:
            job.message, job.state = _message(error), "failed"
        except Exception as error:
            log.exception("%s failed", job.title)
            job.message, job.state = f"{job.title} failed: {type(error).__name__}: {error}", "failed"

    @staticmethod
    def _run_steps(job: BackgroundJob, steps: Iterator[float]) -> Any:
        try:
            while not job.stop.is_set():
                if job.late:
                    raise ArgumentError(f"{job.title} took longer than {MAX_SECONDS / 60:.0f} minutes and was stopped")
                try:
                    job.share = next(steps)
                except StopIteration as end:
                    return end.value
            return None
        finally:
            close = getattr(steps, "close", None)
            if close is not None:
                close()

    def find(self, id: str) -> BackgroundJob | None:
        """Return the job with an id; None where there is none."""
        return self._jobs.get(id)

    def stop(self, wait: float = 5.0) -> None:
        """Stop all jobs, and wait up to `wait` seconds for the one that runs."""
        with self._lock:
            self._stopped = True
            for job in self._jobs.values():
                job.stop.set()
            self._waiting.put(None)
        if self._thread is not None:
            self._thread.join(wait)


def _message(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
