"""Read the labels along a time dimension as dates, or keep them as labels, without guessing; divide dates into periods.

Dates become ``datetime64[ns]`` in UTC without a zone, which every store and reader accepts. These are read as dates:

- datetimes of any resolution, with or without a zone; `datetime.date`; cftime of the standard calendar
- ISO 8601 strings (``2021-06-01T10:30:00Z``, ``2021-06``, ``2021``), ``YYYYMMDD``, ``YYYYMMDDTHHMMSS``
- integers with a single interpretation as a year, a date or a time since 1970 (`INTEGERS`)
- periods, by their start; numbers with CF units such as "days since 2015-01-01"

Other labels (step numbers, days of a year, "before" and "after") are kept. A verb that needs dates refuses them.
"""

from __future__ import annotations

import datetime as dt
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from deo_cube import arguments
from deo_cube.cube.plain import is_missing, plain, text
from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = [
    "Period",
    "Times",
    "as_dated",
    "check_times",
    "coordinates_of",
    "dates",
    "dating",
    "holds_dates",
    "is_cftime",
    "of_cftime",
    "of_integers",
    "of_units",
    "of_value",
    "periods",
    "read_times",
    "to_numpy",
]


# --- one label ---


Array = NDArray[Any]

#: Years that a bare number may mean. Earlier and later ones are more likely other numbers.
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


def _integer_dates(numbers: Array, pattern: str) -> Array | None:
    try:
        dates = pd.to_datetime([str(n) for n in numbers.tolist()], format=pattern)
    except ValueError:
        return None
    return None if not all(y in _YEARS for y in dates.year) else np.asarray(dates.as_unit("ns").to_numpy())


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
    """Return dates of integers and the name of their interpretation, or None."""
    digits = {len(str(n)) for n in numbers.tolist()}
    for reading, length, pattern in INTEGERS:
        if digits == {length} and not (length == 6 and numbers.min() < 201301):
            dates = _integer_dates(numbers, pattern)
            if dates is not None:
                return dates, reading
    for unit, word in _EPOCHS.items():
        if _between("2015-06-23", "2101-01-01", unit)(numbers):
            return numbers.astype("int64").astype(f"M8[{unit}]").astype("M8[ns]"), f"{word} since 1970"
    return None


def of_value(value: Any) -> tuple[pd.Timestamp, str] | None:
    """Return a timestamp in UTC and a note on its interpretation, if it needs one; None for other values."""
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
            dates = of_cftime(np.array([value], object))
            return None if dates is None else (pd.Timestamp(dates[0]), "")
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
        dates = of_integers(np.array([int(text)])) if not text.startswith("0") else None
        if dates is None:
            return None
        return pd.Timestamp(dates[0][0]), dates[1] if len(text) < 8 else ""
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
    """Convert dates of the standard calendar; None for other calendars, whose days `datetime64` does not have."""
    if not all(is_cftime(v) and v.calendar in _STANDARD for v in values):
        return None
    try:
        stamps = [pd.Timestamp(v.isoformat()) for v in values]
        return np.asarray(pd.DatetimeIndex(stamps).as_unit("ns").to_numpy())
    except (ValueError, OverflowError):
        return None


# --- labels along a dimension ---


Cube = TypeVar("Cube", xr.Dataset, xr.DataArray)


@dataclass(frozen=True)
class Times:
    """Labels along time for a result.

    `values` is ``datetime64[ns]``, or labels of another type; None without labels. `note` tells users how the labels
    were interpreted; it is empty where only the notation changed.
    """

    values: Array | None
    note: str = ""

    @property
    def dated(self) -> bool:
        """True if the labels are dates."""
        return self.values is not None and self.values.dtype.kind == "M"


def read_times(variable: xr.Variable, name: str = "time") -> Times:
    """Read the labels of a time coordinate (0-d or 1-d).

    Parameters
    ----------
    variable : Variable
        Of any type, on Dask or not.
    name : str
        Of the coordinate, for notes.

    Returns
    -------
    Times
        Values of the variable's shape. A missing date is NaT. Never raises for odd labels.
    """
    values, zone, periods = _unboxed(variable)
    if zone:
        return Times(values, f"the times along {name!r} are in the zone {zone}; the result has them in UTC")
    if periods:
        return Times(values, f"the periods along {name!r} are read as their first instant")
    if values.dtype.kind == "O" and values.size and all(is_missing(v) for v in values.ravel()):
        return Times(None, f"all labels along {name!r} are missing")
    flat = values.ravel()
    times = _of_numbers(flat, variable.attrs, name) if values.dtype.kind in "iuf" else _of_others(flat, name)
    if times.dated and np.isnat(times.values).any():  # type: ignore[arg-type]
        missing = int(np.isnat(times.values).sum())  # type: ignore[arg-type]
        times = Times(times.values, times.note or f"{missing} of {values.size} dates along {name!r} are missing (NaT)")
    return times if times.values is None else Times(times.values.reshape(values.shape), times.note)


def dates(variable: xr.Variable | xr.DataArray | None, purpose: str, name: str = "time") -> pd.DatetimeIndex:
    """Return the dates of a time coordinate, UTC without a zone.

    Parameters
    ----------
    variable : Variable or DataArray, optional
        The coordinate. None: the cube has none.
    purpose : str
        The subject that needs dates, for the message.
    name : str
        Of the coordinate.

    Raises
    ------
    ArgumentError
        If there are no dates, or one is missing. The message has the assignment that decides.
    """
    if variable is None:
        raise ArgumentError(
            f"{purpose} needs dates, and {name!r} has no coordinate. Give one date per step: "
            f'cube = cube.assign_coords({name}=("{name}", pd.to_datetime(["2021-06-01", ...])))'
        )
    variable = variable.variable if isinstance(variable, xr.DataArray) else variable
    times = read_times(variable, name)
    if times.values is None or not times.dated:
        raise ArgumentError(f"{purpose} needs dates, and {_shown(times.values, name)}. {_advice(times.values, name)}")
    if np.isnat(times.values).any():
        raise ArgumentError(
            f"{purpose} needs dates, and {int(np.isnat(times.values).sum())} of {times.values.size} along {name!r} are "
            f"missing (NaT). Leave those steps out: cube = cube.isel({name}=cube.{name}.notnull().values)"
        )
    return pd.DatetimeIndex(np.atleast_1d(times.values))


def check_times(cube: xr.Dataset | xr.DataArray, time: str | None) -> None:
    """Refuse one date at two steps.

    Raises
    ------
    ArgumentError
        With the call that fixes it.
    """
    if time is None or time not in cube.coords:
        return
    times = read_times(cube.coords[time].variable, time).values
    if times is None or times.ndim != 1:
        return
    index = pd.Index(times, tupleize_cols=False)
    index = index[index.notna()]  # missing dates may differ
    if not index.is_unique:
        twice = index[index.duplicated()].unique()
        raise ArgumentError(
            f"{len(twice)} of the cube's times occur more than once (first: {twice[0]}), as where stackstac stacks the "
            "tiles of one pass: the result would have several rows per time. Merge them, cube = "
            "deo_cube.composite(cube, 'first', freq='D', mask=False), or load with groupby='solar_day'; to keep "
            f"them, give each its own time, cube.assign_coords({time}=...)"
        )


def as_dated(cube: Cube, time: str, purpose: str) -> Cube:
    """Return `cube` with its time dimension called "time" and dates along it; other indexes along it are dropped.

    Raises
    ------
    ArgumentError
        As `dates`.
    """
    source = dating(cube, time)
    coord = cube.coords.get(source)
    own_dates = dates(None if coord is None or coord.dims != (time,) else coord, purpose, time)
    levels: list[Any] = [n for n, c in cube.coords.items() if n in cube.indexes and c.dims == (time,)]
    cube = cube.drop_vars([n for n in cube.coords if n in (source, "time", time, *levels)])
    return cube.rename({time: "time"} if time != "time" else {}).assign_coords(time=("time", own_dates.to_numpy()))


def dating(cube: xr.Dataset | xr.DataArray, time: str) -> str:
    """Return the coordinate with the dates: the dimension's own, unless only one called "time" has dates."""
    other = cube.coords.get("time")
    if time == "time" or other is None or other.dims != (time,):
        return time
    own = cube.coords.get(time)
    return time if own is not None and read_times(own.variable).dated else "time"


def holds_dates(variable: xr.Variable) -> bool:
    """Return whether the labels are dates by type or notation; numbers are not, as they may mean anything."""
    if isinstance(variable.dtype, np.dtype) and variable.dtype.kind in "iufbcmV":
        return False
    return variable.ndim < 2 and read_times(variable).dated


def to_numpy(variable: xr.Variable) -> Array:
    """Return values as a NumPy array of plain types, also of pandas' extension types and Dask arrays."""
    return _unboxed(variable)[0]


def _unboxed(variable: xr.Variable) -> tuple[Array, str, bool]:
    """Return plain values, the name of a zone other than UTC, and whether they were periods."""
    dtype: Any = variable.dtype
    if isinstance(dtype, np.dtype):
        values = np.asarray(variable.values)
        return (_datetimes(values) if values.dtype.kind == "M" else values), "", False
    index: Any = variable.to_index() if variable.ndim else pd.Index([variable.values.item()], dtype=dtype)
    zone, periods = "", False
    if isinstance(index, pd.MultiIndex):
        values = index.to_numpy()
    elif isinstance(dtype, pd.CategoricalDtype):
        values = np.asarray(index.astype(index.categories.dtype) if not index.hasnans else index.astype(object))
    elif isinstance(dtype, pd.DatetimeTZDtype):
        zone = "" if str(dtype.tz).upper() in ("UTC", "UTC+00:00", "ETC/UTC", "GMT") else str(dtype.tz)
        values = _datetimes(index.tz_convert("UTC").tz_localize(None).to_numpy())
    elif isinstance(dtype, pd.PeriodDtype):
        values, periods = _datetimes(index.to_timestamp(how="start").to_numpy()), True
    else:
        values = _nullable(index)
    return values.reshape(variable.shape), zone, periods


def _nullable(index: Any) -> Array:
    kind = getattr(index.dtype, "kind", "O")
    if kind in "iufb":
        return np.asarray(index.to_numpy(float, na_value=np.nan) if index.hasnans else index.to_numpy(f"{kind}8"[:2]))
    if kind == "M":
        return _datetimes(np.asarray(pd.DatetimeIndex(index)))
    return np.asarray(index.astype(object))


def _datetimes(values: Array) -> Array:
    """Convert to nanoseconds, or to ISO text where these cannot hold a date (before 1678, after 2261)."""
    try:
        return np.asarray(pd.DatetimeIndex(values.ravel()).as_unit("ns").to_numpy()).reshape(values.shape)
    except (pd.errors.OutOfBoundsDatetime, OverflowError, ValueError):
        return np.asarray(np.datetime_as_string(values.astype("M8[s]"))).astype(object)


# --- labels that are numbers ---


def _of_numbers(values: Array, attrs: Any, name: str) -> Times:
    if "since" in str(attrs.get("units", "")):
        decoded = of_units(values, attrs)
        if decoded is not None:
            return Times(decoded, f"the numbers along {name!r} are read by their units, {attrs['units']!r}")
    present = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if present.size and (present == np.floor(present)).all() and (np.abs(present) < 2**62).all():
        dates_and_reading = of_integers(present.astype("int64"))
        if dates_and_reading is not None:
            dates, reading = dates_and_reading
            out = np.full(values.shape, "NaT", "M8[ns]")
            out[np.isfinite(values)] = dates
            return Times(out, f"the numbers along {name!r} are read as {reading}: {_first(dates)}")
    return Times(values, _kept(values, name) if _like_dates(values) else "")


def of_units(values: Array, attrs: Any) -> Array | None:
    """Convert numbers with CF units (1-d) to dates; None where the units cannot be read."""
    plain = {k: attrs[k] for k in ("units", "calendar") if k in attrs}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoded = xr.decode_cf(xr.Dataset({"t": ("t", values, plain)}), decode_timedelta=False)["t"].values
    except Exception:  # xarray raises errors of many types for unusual units
        return None
    if decoded.dtype.kind == "O":
        return of_cftime(decoded.ravel())
    return _datetimes(decoded) if decoded.dtype.kind == "M" else None


def _like_dates(numbers: Array) -> bool:
    """Return whether a user may take numbers for dates: days of a year, but not 0, 1, 2, which count steps."""
    return bool(np.nanmax(np.abs(numbers.astype(float)), initial=0) > numbers.size)


# --- labels that are strings or objects ---


def _of_others(values: Array, name: str) -> Times:
    if values.dtype.kind == "M":
        return Times(values)
    if values.dtype.kind in "bm":
        return Times(values)
    if values.dtype.kind not in "USOT":
        return Times(None, f"the labels along {name!r} are {values.dtype}, which a store cannot hold: left out")
    labels = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()]
    if all(is_cftime(v) for v in labels):
        standard = of_cftime(values)
        return Times(values if standard is None else standard)
    present = [v for v in labels if not is_missing(v)]
    if present and all(
        isinstance(v, (int, np.integer, float, np.floating)) and not isinstance(v, bool) for v in present
    ):
        numbers = np.array([np.nan if is_missing(v) else v for v in labels])
        return _of_numbers(numbers.astype("f8") if numbers.dtype.kind == "O" else numbers, {}, name)
    parsed = [of_value(v) for v in present]
    readings = {p[1] for p in parsed if p is not None}
    if present and all(p is not None for p in parsed) and len(readings - {""}) <= 1:
        stamps = iter(p[0] for p in parsed if p is not None)
        try:
            out = [pd.NaT if is_missing(v) else next(stamps) for v in labels]
            dated = np.asarray(pd.DatetimeIndex(out).as_unit("ns").to_numpy())
        except (pd.errors.OutOfBoundsDatetime, OverflowError, ValueError):
            pass
        else:
            reading = next(iter(readings - {""}), "")
            return Times(dated, f"the labels along {name!r} are read as {reading}: {_first(dated)}" if reading else "")
    words = [text(plain(v)) for v in labels]
    unsupported = next((type(v).__name__ for v, w in zip(labels, words, strict=True) if w is None), None)
    if unsupported is not None:
        return Times(
            None, f"the labels along {name!r} are objects ({unsupported}), which a store cannot hold: left out"
        )
    texts = np.empty(len(labels), object)
    texts[:] = words
    odd = [str(text(plain(v))) for v, p in zip(present, parsed, strict=True) if p is None]
    noted = len(odd) < len(present) or any(re.search(r"\d[-/. ]\d|\d{4}", w) for w in odd)
    return Times(texts, _kept(texts, name) if noted else "")


# --- messages ---


def _first(values: Iterable[Any]) -> str:
    shown = [str(v)[:19].removesuffix("T00:00:00") for v in values]
    return ", ".join(shown[:2]) + (", ..." if len(shown) > 2 else "")


def _kept(values: Array, name: str) -> str:
    return f"{_shown(values, name)}, and are kept as labels. {_advice(values, name)}"


def _shown(values: Array | None, name: str) -> str:
    if values is None:
        return f"there are no labels along {name!r}"
    flat = np.ravel(values)
    kind = "dates of another calendar" if flat.size and is_cftime(flat[0]) else "not dates"
    return f"the labels along {name!r} ({_first(flat)}) are {kind}"


def _advice(values: Array | None, name: str) -> str:
    """Return the assignment that converts labels to dates. The tests execute it."""
    flat: Sequence[Any] = [] if values is None else np.ravel(values).tolist()
    if len(flat) and is_cftime(flat[0]):
        return (
            f'Convert them: cube = cube.convert_calendar("standard", dim="{name}", align_on="date", use_cftime=False)'
        )
    if len(flat) and all(isinstance(v, (int, float)) and 1 <= v <= 366 for v in flat):
        return (
            "If they are days of a year, here 2021: "
            f"cube = cube.assign_coords({name}="
            f'pd.to_datetime((2021000 + cube.{name}.values).astype(str), format="%Y%j"))'
        )
    if len(flat) and all(isinstance(v, int) and 0 < v < 10**6 for v in flat):
        return (
            "If they count days: "
            f'cube = cube.assign_coords({name}=pd.to_datetime(cube.{name}.values, unit="D", origin="1970-01-01"))'
        )
    if len(flat) and all(re.fullmatch(r"\s*\d{1,2}[-/. ]\d{1,2}[-/. ]\d{4}\b.*", str(v)) for v in flat):
        return (
            "If the day comes first: "
            f"cube = cube.assign_coords({name}=pd.to_datetime(cube.{name}.values, dayfirst=True))"
        )
    return f'Give one date per step: cube = cube.assign_coords({name}=pd.to_datetime(["2021-06-01", ...]))'


# --- Divide dates into periods: years, seasons, months, or pairs of a start and an end ---

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
