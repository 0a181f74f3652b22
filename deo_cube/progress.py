"""Show the progress of a long job: a bar on a terminal or in a notebook, else plain lines on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

__all__ = ["Progress", "duration", "size"]

#: Share of the work after which the next plain line is printed.
STEP = 0.1
#: Seconds after which the next plain line is printed; a twentieth of the elapsed time if that is longer.
PAUSE = 30.0


class Progress:
    """Show how much of a job is done, at which rate, and how long the rest will take.

    Units of earlier runs count as done, but not for the rate.

    Parameters
    ----------
    total : int
        Units of work, those of earlier runs included.
    title : str
        Text at the start of each line.
    unit : str
        Noun for one unit, singular: block, step, round.
    done : int
        Units that earlier runs did.
    rate_unit : str, optional
        Unit of the amounts passed to `advance`, whose rate is shown beside that of the units.
    shown : bool
        False: print nothing.
    """

    def __init__(
        self, total: int, *, title: str, unit: str = "block", done: int = 0, rate_unit: str = "", shown: bool = True
    ) -> None:
        self.total, self.title, self.unit = total, title, unit
        self.earlier = done
        """Units that earlier runs did."""
        self.done = done
        """Units done, those of earlier runs included."""
        self._rate_unit = rate_unit
        self._listed = 0
        self._note = ""
        self._amount, self._start = 0.0, time.perf_counter()
        self._bar: Any = None
        self._lines = shown and sys.stderr is not None and not _draws_bars()
        self._next_share, self._next_time = 0.0, 0.0
        if shown and sys.stderr is not None and not self._lines:
            from tqdm.auto import tqdm

            self._bar = tqdm(total=total, initial=done, unit=unit, desc=title, mininterval=0.5, dynamic_ncols=True)
        self._line(" by earlier runs" if done else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()
        elif kind is None and self.done > self.earlier:
            self._line(f" in {duration(self.seconds)}{self._rates()}", last=True)

    @property
    def seconds(self) -> float:
        """Time since the beginning of this run."""
        return time.perf_counter() - self._start

    @property
    def ran(self) -> int:
        """Units that this run did."""
        return self.done - self.earlier

    @property
    def rate(self) -> float:
        """Amount per second of this run, in the unit of the amounts; 0 where there are none."""
        return self._amount / max(self.seconds, 1e-9)

    @property
    def seconds_left(self) -> float | None:
        """Time for the rest at the rate of this run; None before its first unit."""
        return None if not self.ran else self.seconds * (self.total - self.done) / self.ran

    def count_existing(self, units: int) -> None:
        """Count units of earlier runs while the work is listed; only those beyond the initial count are new."""
        self._listed += units
        new = self._listed - self.earlier
        if new <= 0:
            return
        self.earlier += new
        self.done += new
        if self._bar is not None:
            self._bar.initial += new
            self._bar.n += new
            self._bar.refresh()

    def advance(self, units: int = 1, *, amount: float = 0.0, note: str = "") -> None:
        """Count units that this run did; `note` is shown beside the rate until the next one."""
        self.done += units
        self._amount += amount
        self._note = note or self._note
        if self._bar is not None:
            extra = ", ".join(filter(None, (self._special_rate(), self._note)))
            if extra:
                self._bar.set_postfix_str(extra, refresh=False)
            self._bar.update(units)
        elif self._lines and self.done < self.total:
            share = self.done / max(self.total, 1)
            if share >= self._next_share or self.seconds >= self._next_time:
                left = self.seconds_left
                self._line(f"{self._rates()}, {duration(left or 0)} left" + (self._note and f", {self._note}"))

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Clear the bar while something else is printed."""
        if self._bar is None:
            yield
            return
        with self._bar.external_write_mode(file=sys.stderr):
            yield

    def _line(self, rest: str, *, last: bool = False) -> None:
        if not self._lines:
            return
        plural = "" if self.total == 1 else "s"
        print(f"{self.title}: {self.done} of {self.total} {self.unit}{plural} done{rest}", file=sys.stderr, flush=True)
        self._next_share = (int(self.done / max(self.total, 1) / STEP + 1e-9) + 1) * STEP - 1e-9
        self._next_time = self.seconds + max(PAUSE, self.seconds / 20)
        self._lines = not last

    def _special_rate(self) -> str:
        return f"{self.rate:.3g} {self._rate_unit}" if self._rate_unit and self._amount else ""

    def _rates(self) -> str:
        return f", {self._special_rate() or f'{self.ran / max(self.seconds, 1e-9):.3g} {self.unit}s/s'}"


def _draws_bars() -> bool:
    """Return whether a bar can be redrawn in place: on a terminal, or in a notebook."""
    if sys.stderr.isatty():
        return True
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"


def duration(seconds: float) -> str:
    """Format a time: ``45 s``, ``12 min``, ``3.5 h``."""
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def size(n: float) -> str:
    """Format a number of bytes: ``12.3 MB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.3g} {unit}"
        n /= 1000
    raise AssertionError("unreachable")
