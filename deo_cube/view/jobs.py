"""Work that takes longer than a request (fitting, reading overviews, exporting), one at a time in the background."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

__all__ = ["Job", "Jobs"]

log = logging.getLogger(__name__)
KEPT = 20


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

    def to_dict(self) -> dict[str, Any]:
        """For the page."""
        shown = self.result if isinstance(self.result, dict) else None
        fields = ("id", "title", "state", "share", "message")
        return {k: getattr(self, k) for k in fields} | {"result": shown}


class Jobs:
    """Runs jobs one after another on threads of their own; remembers the last few."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._turn = threading.Lock()

    def start(self, title: str, work: Callable[[], Any] | Callable[[], Iterator[float]], finish: Any = None) -> Job:
        """Begin `work`: a function, or a generator function that yields the share done.

        `finish`, if given, is called with what work returned and gives the job's result. A ValueError's message is
        shown to the user; any other error is logged, and its kind shown.
        """
        job = Job(title)
        for old in list(self._jobs)[: max(len(self._jobs) - KEPT, 0)]:
            if self._jobs[old].state not in ("waiting", "running"):
                del self._jobs[old]
        self._jobs[job.id] = job
        threading.Thread(
            target=self._run, args=(job, work, finish), name=f"deo_cube view: {title}", daemon=True
        ).start()
        return job

    def _run(self, job: Job, work: Callable[[], Any], finish: Any) -> None:
        with self._turn:
            if job.stop.is_set():
                job.state = "cancelled"
                return
            job.state = "running"
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
        while not job.stop.is_set():
            try:
                job.share = next(steps)
            except StopIteration as end:
                return end.value
        close = getattr(steps, "close", None)
        if close is not None:
            close()
        return None

    def find(self, id: str) -> Job | None:
        """A job by its id."""
        return self._jobs.get(id)

    def stop(self) -> None:
        """Ask every job to stop."""
        for job in self._jobs.values():
            job.stop.set()


def _sentence(error: BaseException) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
