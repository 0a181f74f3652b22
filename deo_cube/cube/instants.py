"""Read one label as an instant: text, integers and calendar dates, where there is one reading only."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

__all__ = ["is_cftime", "of_cftime", "of_integers", "of_value"]

Array = NDArray[Any]

#: Years that a bare number may mean. Earlier and later ones are more likely something else.
_YEARS = range(1972, 2101)
#: Calendars of cftime whose days are those of `datetime64`.
_STANDARD = ("standard", "gregorian", "proleptic_gregorian")
_ISO = re.compile(
    r"(?P<year>\d{4})(?P<s>[-/.])(?P<month>\d{1,2})(?:(?P=s)(?P<day>\d{1,2}))?"
    r"(?:[T ]+(?P<clock>\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?) *(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2})?)?"
)
_COMPACT = re.compile(r"(?P<date>\d{8})T?(?P<clock>\d{4}|\d{6})(?P<fraction>\.\d+)? *(?P<zone>Z|UTC|[+-]\d{2}:?\d{2})?")
_ORDINAL = re.compile(r"\d{4}-\d{3}")


def _between(low: str, high: str, unit: str) -> Callable[[Array], bool]:
    first, last = (np.array(d, f"M8[{unit}]").astype("int64") for d in (low, high))
    return lambda v: bool((v >= first).all() and (v < last).all())


def _parsed(numbers: Array, pattern: str) -> Array | None:
    try:
        found = pd.to_datetime([str(n) for n in numbers.tolist()], format=pattern)
    except ValueError:
        return None
    return None if not all(y in _YEARS for y in found.year) else np.asarray(found.as_unit("ns").to_numpy())


#: How a column of integers may be read: the name of the reading, digits, and the format of `strptime`. Their ranges do
#: not overlap. Six digits are a year and a month only from 2013 on: 201112 may also be 12 November 2020.
INTEGERS = (
    ("years", 4, "%Y"),
    ("months YYYYMM", 6, "%Y%m"),
    ("years and days of the year YYYYDDD", 7, "%Y%j"),
    ("dates YYYYMMDD", 8, "%Y%m%d"),
    ("times YYYYMMDDHHMMSS", 14, "%Y%m%d%H%M%S"),
)
#: Times since 1970 count from the launch of Sentinel-2A on: earlier ones may be other numbers.
_EPOCHS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}


def of_integers(numbers: Array) -> tuple[Array, str] | None:
    """Dates and the reading that gives them; None where no reading does."""
    digits = {len(str(n)) for n in numbers.tolist()}
    for reading, length, pattern in INTEGERS:
        if digits == {length} and not (length == 6 and numbers.min() < 201301):
            found = _parsed(numbers, pattern)
            if found is not None:
                return found, reading
    for unit, word in _EPOCHS.items():
        if _between("2015-06-23", "2101-01-01", unit)(numbers):
            return numbers.astype("int64").astype(f"M8[{unit}]").astype("M8[ns]"), f"{word} since 1970"
    return None


def of_value(value: Any) -> tuple[pd.Timestamp, str] | None:
    """A timestamp in UTC, and how it was read where that is more than notation; None for what is no date."""
    try:
        if isinstance(value, str):
            return _of_text(value.strip())
        if isinstance(value, (bool, np.bool_)):
            return None
        if isinstance(value, (int, np.integer)):
            return _of_text(str(value)) if len(str(value)) in (8, 14) else None
        if isinstance(value, pd.Period):
            return value.start_time, "periods, by their first instant"
        if is_cftime(value):
            found = of_cftime(np.array([value], object))
            return None if found is None else (pd.Timestamp(found[0]), "")
        if isinstance(value, (dt.date, np.datetime64)):
            stamp = pd.Timestamp(value)
            if stamp.tzinfo is None:
                return stamp, ""
            reading = "" if not stamp.utcoffset() else "UTC, to which times with a zone are converted"
            return stamp.tz_convert("UTC").tz_localize(None), reading
    except (ValueError, OverflowError):
        return None
    return None


def _of_text(text: str) -> tuple[pd.Timestamp, str] | None:
    if len(text) > 64:
        return None
    if re.fullmatch(r"\d+", text) and len(text) in (4, 6, 7, 8, 14):
        found = of_integers(np.array([int(text)])) if not text.startswith("0") else None
        if found is None:
            return None
        return pd.Timestamp(found[0][0]), found[1] if len(text) < 8 else ""
    if _ORDINAL.fullmatch(text):
        return pd.to_datetime(text, format="%Y-%j"), ""
    if m := _COMPACT.fullmatch(text):
        clock = m["clock"].ljust(6, "0")
        parts = (m["date"][:4], m["date"][4:6], m["date"][6:], ":".join((clock[:2], clock[2:4], clock[4:])))
        return _stamp(*parts, fraction=m["fraction"] or "", zone=m["zone"])
    if m := _ISO.fullmatch(text):
        if m["day"] is None:
            if m["clock"] is not None or m["s"] == ".":
                return None  # 2021.25 is a part of a year
            return _stamp(m["year"], m["month"], "1", "00:00", fraction="", zone=None)[0], "months, by their first day"
        return _stamp(
            m["year"], m["month"], m["day"], (m["clock"] or "00:00").replace(",", "."), fraction="", zone=m["zone"]
        )
    return None


def _stamp(year: str, month: str, day: str, clock: str, *, fraction: str, zone: str | None) -> tuple[pd.Timestamp, str]:
    stamp = pd.Timestamp(f"{year}-{int(month):02}-{int(day):02}T{clock.rjust(5, '0')}{fraction}")
    if zone is None or zone in ("Z", "UTC", "GMT"):
        return stamp, ""
    stamp = pd.Timestamp(f"{stamp.isoformat()}{zone}").tz_convert("UTC").tz_localize(None)
    return stamp, "" if not re.search("[1-9]", zone) else "UTC, to which times with a zone are converted"


def is_cftime(value: Any) -> bool:
    """Return whether a value is a date of cftime."""
    return type(value).__module__.partition(".")[0] == "cftime" and hasattr(value, "calendar")


def of_cftime(values: Array) -> Array | None:
    """Dates of the standard calendar; None for other calendars, whose days `datetime64` does not have."""
    if not all(is_cftime(v) and v.calendar in _STANDARD for v in values):
        return None
    try:
        stamps = [pd.Timestamp(v.isoformat()) for v in values]
        return np.asarray(pd.DatetimeIndex(stamps).as_unit("ns").to_numpy())
    except (ValueError, OverflowError):
        return None
