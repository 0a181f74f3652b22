"""Divide dates into periods: years, seasons, months, or pairs of a start and an end."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from deo_cube import arguments
from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["Period", "coordinates_of", "periods"]

_NAMES = {"year": "YS", "season": "QS-DEC", "quarter": "QS", "month": "MS"}


@dataclass(frozen=True)
class Period:
    """A period, and the positions of its dates in order of time.

    Parameters
    ----------
    start, end : Timestamp
        First and last second of the period.
    positions : tuple of int
        Of its dates along time.
    """

    start: pd.Timestamp
    end: pd.Timestamp
    positions: tuple[int, ...]


def periods(of_time: pd.DatetimeIndex, freq: Any) -> list[Period]:
    """Return the periods of dates: without a gap from the first date to the last, those without a date among them.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For a frequency that is unknown or does not start a period, and for periods that are not pairs of dates.
    """
    if not isinstance(freq, str):
        pairs = arguments.sequence("freq", freq, "(start, end), or a frequency")
        if not pairs:
            raise ArgumentError("freq must have at least one period (start, end), got an empty list")
        return [_own(of_time, pair) for pair in pairs]
    name = _NAMES.get(freq.strip().lower(), freq)
    advice = (
        "'year', 'season', 'quarter', 'month', a frequency of pandas that starts a period ('YS', 'QS-DEC', 'MS', 'W', "
        "'10D'), or a list of (start, end)"
    )
    try:
        offset = pd.tseries.frequencies.to_offset(name)
        grouper = pd.Grouper(freq=name, label="left", closed="left")
        groups = list(pd.Series(np.arange(len(of_time)), index=of_time).groupby(grouper))
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"freq must be {advice}; got {freq!r}") from error
    if "End" in type(offset).__name__:
        raise ArgumentError(f"freq must be {advice}; got {freq!r}, whose periods are named after their end")
    order = np.argsort(of_time, kind="stable")
    found = []
    for key, positions in groups:
        start = pd.Timestamp(str(key))
        chosen = set(positions.tolist())
        ordered = tuple(int(i) for i in order if int(i) in chosen)
        found.append(Period(start, start + offset - pd.Timedelta(seconds=1), ordered))
    return found


def coordinates_of(groups: Sequence[Period], attrs: Mapping[Any, Any] | None = None) -> dict[str, Any]:
    """Return the coordinates of an array along periods: `time`, their ends, and the number of their dates.

    Parameters
    ----------
    groups : sequence of Period
        Along `time`, which is the start of each.
    attrs : mapping, optional
        Of `time`.
    """
    starts, ends = (np.array([getattr(g, end) for g in groups], "datetime64[ns]") for end in ("start", "end"))
    return {
        "time": ("time", starts, dict(attrs or {})),
        "start_datetime": ("time", starts, {"long_name": "first second of the period"}),
        "end_datetime": ("time", ends, {"long_name": "last second of the period"}),
        "dates": ("time", np.array([len(g.positions) for g in groups]), {"long_name": "dates in the period"}),
    }


def _in_utc(end: Any) -> Any:
    """Return a time with a zone as UTC without one, as the dates of a cube are."""
    if isinstance(end, dt.datetime) and end.tzinfo is not None:
        return end.astimezone(dt.UTC).replace(tzinfo=None)
    return end


def _own(of_time: pd.DatetimeIndex, pair: Any) -> Period:
    if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
        raise ArgumentTypeError(f"freq must be a frequency or a list of (start, end), found {pair!r:.60} in it")
    try:
        start, last = (pd.Period(str(_in_utc(end))) for end in pair)
    except ValueError as error:
        raise ArgumentError(f"freq must be a list of (start, end) of dates, found {pair!r:.60}") from error
    first, end = start.start_time, last.end_time.floor("s")
    if end < first:
        raise ArgumentError(f"freq must be a list of (start, end), the start first, found {pair!r:.60}")
    inside = np.flatnonzero((of_time >= first) & (of_time <= last.end_time))
    order = inside[np.argsort(of_time[inside], kind="stable")]
    return Period(first, end, tuple(int(i) for i in order))
