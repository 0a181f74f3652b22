"""Labels along time: read as dates where there is one reading, else kept, and refused by what needs dates."""

from __future__ import annotations

import datetime as dt
import decimal
import re
import warnings

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cube.georeference import dims
from deo_cube.cube.times import as_dated, check_times, dates, holds_dates, read_times
from deo_cube.errors import ArgumentError

EXPECTED = np.array(["2021-06-01", "2021-06-11"], "M8[ns]")


def objects(*values: object) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def variable(labels: object, attrs: dict | None = None) -> xr.Variable:
    return xr.Dataset(coords={"time": ("time", labels, attrs or {})})["time"].variable


DATES = {
    "nanoseconds": EXPECTED,
    "seconds": EXPECTED.astype("M8[s]"),
    "days": EXPECTED.astype("M8[D]"),
    "UTC": pd.DatetimeIndex(EXPECTED, tz="UTC"),
    "date": objects(dt.date(2021, 6, 1), dt.date(2021, 6, 11)),
    "datetime": objects(dt.datetime(2021, 6, 1), dt.datetime(2021, 6, 11)),
    "datetime, UTC": objects(dt.datetime(2021, 6, 1, tzinfo=dt.UTC), dt.datetime(2021, 6, 11, tzinfo=dt.UTC)),
    "with and without a zone": objects(pd.Timestamp("2021-06-01", tz="UTC"), pd.Timestamp("2021-06-11")),
    "ISO": ["2021-06-01", "2021-06-11"],
    "ISO, with clocks": ["2021-06-01T00:00:00Z", "2021-06-11 00:00:00.000"],
    "slashes, year first": ["2021/06/01", "2021/6/11"],
    "compact": ["20210601", "20210611T000000Z"],
    "ordinal": ["2021-152", "2021-162"],
    "StringDType": np.array(["2021-06-01", "20210611"], np.dtypes.StringDType()),
    "bytes": np.array([b"2021-06-01", b"2021-06-11"]),
    "categories": pd.Categorical(["2021-06-01", "2021-06-11"]),
    "mixed": objects("2021-06-01", np.datetime64("2021-06-11")),
    "a number and text": objects(20210601, "2021-06-11"),
    "cftime, standard": xr.date_range("2021-06-01", periods=2, freq="10D", use_cftime=True),
}


@pytest.mark.parametrize("labels", DATES.values(), ids=DATES.keys())
def test_dates_in_any_notation_become_nanoseconds_without_a_word(labels: object) -> None:
    times = read_times(variable(labels))
    assert times.values is not None
    assert times.values.dtype == "M8[ns]"
    assert (times.values == EXPECTED).all()
    assert times.note == ""
    assert holds_dates(variable(labels))


NOTED = {
    "YYYYMMDD": ([20210601, 20210611], EXPECTED, "YYYYMMDD"),
    "YYYYMMDD, floats": ([20210601.0, 20210611.0], EXPECTED, "YYYYMMDD"),
    "YYYYMMDD, Int64": (pd.array([20210601, 20210611], dtype="Int64"), EXPECTED, "YYYYMMDD"),
    "YYYYDDD": ([2021152, 2021162], EXPECTED, "YYYYDDD"),
    "seconds": (EXPECTED.astype("M8[s]").astype(int), EXPECTED, "seconds since 1970"),
    "milliseconds": (EXPECTED.astype("M8[ms]").astype(int), EXPECTED, "milliseconds"),
    "microseconds": (EXPECTED.astype("M8[us]").astype(int), EXPECTED, "microseconds"),
    "nanoseconds": (EXPECTED.astype(int), EXPECTED, "nanoseconds"),
    "years": ([2020, 2021], np.array(["2020", "2021"], "M8[ns]"), "years"),
    "years, text": (["2020", "2021"], np.array(["2020", "2021"], "M8[ns]"), "years"),
    "months": ([202106, 202107], np.array(["2021-06", "2021-07"], "M8[ns]"), "months"),
    "months, text": (["2021-06", "2021-07"], np.array(["2021-06", "2021-07"], "M8[ns]"), "months"),
    "periods": (pd.period_range("2021-06", periods=2, freq="M"), np.array(["2021-06", "2021-07"], "M8[ns]"), "period"),
    "zone": (pd.DatetimeIndex(EXPECTED, tz="Europe/Vienna"), EXPECTED - np.timedelta64(2, "h"), "Europe/Vienna"),
    "zone, text": (["2021-06-01T00:00+02:00", "2021-06-11T00:00+02:00"], EXPECTED - np.timedelta64(2, "h"), "UTC"),
    "one is missing": (["2021-06-01", None], np.array(["2021-06-01", "NaT"], "M8[ns]"), "1 of 2"),
    "NaN among numbers": ([20210601, np.nan], np.array(["2021-06-01", "NaT"], "M8[ns]"), "YYYYMMDD"),
}


@pytest.mark.parametrize(("labels", "expected", "word"), NOTED.values(), ids=NOTED.keys())
def test_what_is_more_than_another_notation_is_read_with_a_word(
    labels: object, expected: np.ndarray, word: str
) -> None:
    times = read_times(variable(labels))
    assert times.values is not None
    np.testing.assert_array_equal(times.values, expected)
    assert word in times.note


def test_numbers_with_cf_units_are_read_by_them() -> None:
    times = read_times(variable([2343, 2353], {"units": "days since 2015-01-01"}))
    assert times.values is not None
    assert (times.values == EXPECTED).all()
    assert "days since 2015-01-01" in times.note
    assert not read_times(variable([1, 2], {"units": "moons since the flood"})).dated


LABELS = {
    "steps": ([0, 1], None),
    "days of the year": ([152, 162], "pd.to_datetime((2021000 + cube.time.values).astype(str)"),
    "days": ([18779, 18789], 'unit="D"'),
    "YYMMDD or YYYYMM": ([201112, 201212], 'unit="D"'),
    "parts of a year": ([2021.41, 2021.43], "one date per step"),
    "day first": (["01/06/2021", "11/06/2021"], "dayfirst=True"),
    "words": (["before", "after"], None),
    "product names": (["S2A_20210601", "S2B_20210611"], "one date per step"),
    "a date and a word": (["2021-06-01", "unknown"], "one date per step"),
    "30 February": (["2021-02-30", "2021-03-01"], "one date per step"),
}


@pytest.mark.parametrize(("labels", "advice"), LABELS.values(), ids=LABELS.keys())
def test_labels_with_no_reading_or_several_stay_what_they_are(labels: list, advice: str | None) -> None:
    times = read_times(variable(labels))
    assert times.values is not None
    assert times.values.tolist() == labels
    assert (advice or "") in times.note
    assert bool(times.note) == (advice is not None)
    with pytest.raises(ArgumentError, match=r"assign_coords\(time="):
        dates(variable(labels), "a composite")


def follow(message: str, cube: xr.Dataset) -> xr.Dataset:
    """Do what a message says: its statement, taken out of the text."""
    statement = re.search(r"(cube = cube\..*)", message)
    assert statement is not None, message
    scope = {"cube": cube, "pd": pd, "xr": xr, "np": np}
    exec(statement[1], scope)
    return scope["cube"]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([152, 162], EXPECTED),
        ([18779, 18789], EXPECTED),
        (["01/06/2021", "11/06/2021"], EXPECTED),
        (xr.date_range("2021-06-01", periods=2, freq="10D", use_cftime=True, calendar="noleap"), EXPECTED),
        (xr.date_range("2021-06-01", periods=2, freq="10D", use_cftime=True, calendar="360_day"), EXPECTED),
        (np.array(["2021-06-01", "NaT"], "M8[ns]"), EXPECTED[:1]),
    ],
    ids=["days of the year", "days", "day first", "noleap", "360_day", "missing"],
)
def test_the_assignment_in_the_message_gives_the_dates(labels: object, expected: np.ndarray) -> None:
    cube = xr.Dataset({"B02": (("time", "y", "x"), np.ones((2, 4, 4), "uint16"))}, coords={"time": labels})
    with pytest.raises(ArgumentError) as refused:
        dates(cube["time"], "publish")
    followed = follow(str(refused.value), cube)
    assert (dates(followed["time"], "publish") == expected).all()


def test_cftime_of_another_calendar_stays_cftime() -> None:
    labels = xr.date_range("2021-02-29", periods=2, use_cftime=True, calendar="360_day")
    times = read_times(variable(labels))
    assert times.values is not None
    assert times.values.tolist() == labels.tolist()


@pytest.mark.parametrize(
    "labels",
    [objects(None, None), objects(object(), object()), np.array([1j, 2j])],
    ids=["missing", "objects", "complex"],
)
def test_what_is_no_label_is_left_out_with_a_word(labels: np.ndarray) -> None:
    times = read_times(variable(labels))
    assert times.values is None
    assert "time" in times.note


def test_dates_beyond_nanoseconds_are_text() -> None:
    times = read_times(variable(np.array(["1500-06-01", "2021-06-11"], "M8[s]")))
    assert times.values is not None
    assert times.values.tolist() == ["1500-06-01T00:00:00", "2021-06-11T00:00:00"]


def test_one_date_in_two_notations_is_one_date() -> None:
    cube = xr.Dataset({"B02": (("time", "y", "x"), np.ones((2, 4, 4)))}, coords={"time": ["2021-06-01", "20210601"]})
    with pytest.raises(ArgumentError, match="more than once"):
        check_times(cube, "time")
    check_times(cube.isel(time=[0]), "time")
    check_times(cube.assign_coords(time=np.array(["NaT", "NaT"], "M8[ns]")), "time")  # unknown, not equal


def test_a_dimension_of_any_name_is_time_where_it_holds_dates() -> None:
    for name, labels in {"t": [0, 1], "date": [20210601, 20210611], "pass": ["2021-06-01", "2021-06-11"]}.items():
        cube = xr.Dataset({"B02": ((name, "y", "x"), np.ones((2, 4, 4)))}, coords={name: labels})
        assert dims(cube).time == name


def test_bands_named_by_years_are_no_dates() -> None:
    cube = xr.DataArray(np.ones((2, 4, 4)), dims=("band", "y", "x"), coords={"band": ["2020", "2021"]})
    assert (dims(cube).time, dims(cube).band) == (None, "band")


def test_a_dimension_that_counts_steps_is_dated_by_a_coordinate_called_time() -> None:
    cube = xr.Dataset({"B02": (("t", "y", "x"), np.ones((2, 4, 4)))}, coords={"t": [0, 1], "time": ("t", EXPECTED)})
    assert (as_dated(cube, "t", "a composite")["time"] == EXPECTED).all()
    # Where the dimension's own labels are dates, they count.
    both = cube.assign_coords(t=EXPECTED + np.timedelta64(1, "D"))
    assert (as_dated(both, "t", "a composite")["time"] == EXPECTED + np.timedelta64(1, "D")).all()


def test_a_composite_of_integers_is_of_their_dates_and_of_labels_is_refused() -> None:
    ds = deo_cube.synthetic_cube(size=32, times=2, chunks=None)
    with pytest.raises(ArgumentError, match=r"assign_coords\(time="):
        deo_cube.composite(ds.assign_coords(time=[152, 182]))
    monthly = deo_cube.composite(ds.assign_coords(time=[20210601, 20210711]), freq="MS")
    assert monthly.time.values.astype("M8[D]").astype(str).tolist() == ["2021-06-01", "2021-07-01"]
    yearly = deo_cube.composite(ds.assign_coords(time=[2020, 2021]).rename(time="t"), freq="YS")
    assert yearly.time.dt.year.values.tolist() == [2020, 2021]
    levels = pd.MultiIndex.from_arrays([[2021, 2022], [6, 6]], names=["year", "month"])
    stacked = ds.drop_vars("time").assign_coords(xr.Coordinates.from_pandas_multiindex(levels, "time"))
    with pytest.raises(ArgumentError, match=r"assign_coords\(time="):
        deo_cube.composite(stacked)


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.from_regex(r"\d{1,4}[-/. ]?\d{1,2}[-/. ]?\d{1,4}([T ]\d{1,2}:\d{2})?Z?", fullmatch=True),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.timedeltas(),
    st.binary(max_size=6),
    st.decimals(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.sampled_from([pd.NaT, pd.NA, pd.Period("2021-06"), decimal.Decimal("NaN"), cftime.DatetimeNoLeap(2021, 2, 28)]),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(anything, min_size=1, max_size=4))
def test_reading_never_raises_and_gives_plain_types(labels: list) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        times = read_times(xr.Variable(("time",), objects(*labels)))
    if times.values is None:
        assert times.note
        return
    assert times.values.shape == (len(labels),)
    assert times.values.dtype.kind in "MmbiufO"
    if times.values.dtype.kind == "O":
        assert all(isinstance(v, str) or type(v).__module__.startswith("cftime") for v in times.values)


@settings(max_examples=200, deadline=None)
@given(
    st.datetimes(dt.datetime(1980, 1, 1), dt.datetime(2100, 1, 1)), st.sampled_from(["%Y%m%d", "%Y-%m-%d", "%Y/%m/%d"])
)
def test_a_date_written_and_read_is_the_same(date: dt.datetime, notation: str) -> None:
    times = read_times(xr.Variable(("time",), objects(date.strftime(notation))))
    assert times.values is not None
    assert times.values[0] == np.datetime64(date.date())
