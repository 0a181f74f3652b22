"""Coordinates and attributes in a form that Zarr and netCDF hold."""

from __future__ import annotations

import datetime as dt
import decimal
import uuid
import warnings
from pathlib import Path
from typing import Any

import cftime
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from deo_cube.cube.coordinates import along_time, storable_attrs, storable_coordinates, storable_variable


def objects(*values: object) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


def missing_alike(values: list) -> list:
    """NaN as None, so that lists compare."""
    return [None if isinstance(v, float) and np.isnan(v) else v for v in values]


def stored(variable: xr.Variable) -> xr.Variable | None:
    """Through a Zarr store by plain xarray, without one warning."""
    kept = storable_variable(variable, "about", [])
    if kept is None:
        return None
    store = zarr.storage.MemoryStore()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ds = xr.Dataset({"a": ("time", np.zeros(variable.size))}, coords={"about": kept})
        ds.to_zarr(store, zarr_format=3, consolidated=False)
        return xr.open_zarr(store, consolidated=False, chunks=None)["about"].variable.load()


DAYS = np.array(["2021-06-01", "2021-06-11"], "M8[ns]")
NOLEAP = xr.date_range("2021-02-28", periods=2, use_cftime=True, calendar="noleap").values
KINDS: dict[str, tuple[Any, list]] = {
    "integers": ([1, 2], [1, 2]),
    "uint64": (np.array([1, 2**64 - 1], "u8"), [1, 2**64 - 1]),
    "floats": ([1.5, np.nan], [1.5, np.nan]),
    "float128": (np.array([1.5, 2.0], "longdouble"), [1.5, 2.0]),
    "booleans": ([True, False], [True, False]),
    "text": (["a", "bc"], ["a", "bc"]),
    "objects of text": (objects("a", "bc"), ["a", "bc"]),
    "StringDType": (np.array(["a", "bc"], np.dtypes.StringDType()), ["a", "bc"]),
    "long text": (objects("a" * 100_000, ""), ["a" * 100_000, ""]),
    "bytes": (np.array([b"S2A", b"S2B"]), ["S2A", "S2B"]),
    "text and None": (objects("a", None), ["a", ""]),
    "text and NaN": (objects("a", np.nan), ["a", ""]),
    "numbers and None": (objects(1, None), [1.0, np.nan]),
    "numbers and words": (objects(1, "a"), ["1", "a"]),
    "booleans and numbers": (objects(True, 2), [1, 2]),
    "nothing": (objects(None, None), [np.nan, np.nan]),
    "categories": (pd.Categorical(["S2A", "S2B"]), ["S2A", "S2B"]),
    "categories of numbers": (pd.Categorical([3, 4]), [3, 4]),
    "categories, one missing": (pd.Categorical(["S2A", None]), ["S2A", ""]),
    "nullable integers": (pd.array([1, None], dtype="Int64"), [1.0, np.nan]),
    "nullable integers, whole": (pd.array([1, 2], dtype="Int64"), [1, 2]),
    "nullable booleans": (pd.array([True, None], dtype="boolean"), [1.0, np.nan]),
    "pandas text": (pd.array(["a", None], dtype="string"), ["a", ""]),
    "datetimes with a zone": (pd.DatetimeIndex(DAYS, tz="Europe/Vienna"), (DAYS - np.timedelta64(2, "h")).tolist()),
    "date objects": (objects(dt.date(2021, 6, 1), dt.date(2021, 6, 11)), DAYS.tolist()),
    "datetimes and None": (objects(dt.datetime(2021, 6, 1), None), [DAYS[0].item(), None]),
    "periods": (pd.period_range("2021-06", periods=2, freq="M"), np.array(["2021-06", "2021-07"], "M8[ns]").tolist()),
    "intervals": (pd.interval_range(0, 2), ["(0, 1]", "(1, 2]"]),
    "durations": (np.array([1, 2], "m8[ns]"), [1, 2]),
    "mappings": (objects({"maker": "0.1"}, {"b": np.int64(2)}), ['{"maker": "0.1"}', '{"b": 2}']),
    "lists": (objects(["msi"], ["msi", None]), ['["msi"]', '["msi", null]']),
    "sets": (objects({2, 1}, {3}), ["[1, 2]", "[3]"]),
    "arrays": (objects(np.arange(2), np.arange(1)), ["[0, 1]", "[0]"]),
    "mappings and None": (objects({"a": [1.5]}, None), ['{"a": [1.5]}', ""]),
    "decimals": (objects(decimal.Decimal("1.50"), decimal.Decimal(2)), ["1.50", "2"]),
}


@pytest.mark.parametrize(("values", "expected"), KINDS.values(), ids=KINDS.keys())
def test_values_of_any_kind_are_stored_and_come_back(values: Any, expected: list) -> None:
    variable = xr.Dataset(coords={"about": ("time", values)})["about"].variable
    back = stored(variable)
    assert back is not None
    assert missing_alike(back.values.tolist()) == missing_alike(expected)


@pytest.mark.parametrize(
    "values",
    [objects(object(), object()), np.array([1j, 2]), objects({"a": object()}, {}), np.zeros(2, "i4,f4")],
    ids=["objects", "complex", "mapping of an object", "records"],
)
def test_what_has_no_form_in_a_store_has_none(values: np.ndarray) -> None:
    assert storable_variable(xr.Variable(("time",), values), "about", []) is None


@pytest.mark.parametrize(
    ("values", "attrs", "expected", "left_attrs"),
    [
        ([20, 40], {"scale_factor": 0.5, "add_offset": 1.0, "units": "%"}, [11.0, 21.0], {"units": "%"}),
        ([20, -1], {"_FillValue": -1}, [20.0, np.nan], {}),
        ([20, 40], {"missing_value": [-1], "dtype": "int8"}, [20, 40], {}),
        ([2343, 2353], {"units": "days since 2015-01-01", "calendar": "standard"}, DAYS.tolist(), {}),
        ([3, 4], {"units": "days since the last rain"}, [3, 4], {}),
        (NOLEAP, {"units": "days", "calendar": "noleap"}, NOLEAP.tolist(), {}),
        (NOLEAP, {"calendar": "standard", "a": "b"}, NOLEAP.tolist(), {"a": "b"}),
        (["a", "b"], {"units": "days since 1970-01-01", "calendar": "noleap"}, ["a", "b"], {}),
        (DAYS, {"units": "seconds since 1970-01-01", "calendar": "standard", "a": "b"}, DAYS.tolist(), {"a": "b"}),
        (
            [1, 2],
            {"units": "days", "coordinates": "lon lat", "bounds": "b", "grid_mapping": "crs"},
            [1, 2],
            {"units": "days"},
        ),
    ],
    ids=[
        "scale",
        "fill value",
        "fill value that is not there",
        "CF dates",
        "units that are none",
        "units of cftime",
        "calendar of cftime",
        "units of text",
        "units of decoded dates",
        "references",
    ],
)
def test_attributes_by_which_a_reader_decodes_are_applied_once(
    values: Any, attrs: dict, expected: list, left_attrs: dict
) -> None:
    back = stored(xr.Variable(("time",), values, attrs))
    assert back is not None
    assert missing_alike(back.values.tolist()) == missing_alike(expected)
    assert back.attrs == left_attrs


def test_scalars_are_stored_as_well() -> None:
    for value in ("S2A", b"S2A", dt.date(2021, 6, 1), {"a": 1}, None, 1.5, np.datetime64("2021-06-01"), pd.NaT, True):
        scalar = xr.Variable((), objects(value).reshape(()))
        kept = storable_variable(scalar, "about", [])
        assert kept is not None
        assert kept.shape == ()
        assert kept.dtype.kind in "MbiufOU"


def test_attributes_are_what_json_and_netcdf_hold(tmp_path: Path) -> None:
    left: list[str] = []
    attrs = {
        "text": "a",
        "number": np.float32(0.5),
        "flag": True,
        "none": None,
        "nan": float("nan"),
        "array": np.arange(3),
        "matrix": np.eye(2),
        "date": dt.datetime(2021, 6, 1),
        "stamp": np.datetime64("2021-06-01"),
        "bytes": b"raw",
        "set": {2, 1},
        "mapping": {"b": [1], "a": dt.date(2021, 6, 1)},
        "mixed": [1, "a"],
        "words": ["a", "b"],
        "huge": 2**70,
        "id": uuid.UUID(int=0),
        3: "key",
        "object": object(),
    }
    kept = storable_attrs(attrs, "about", left)
    assert left == ["attribute 'object' of about (object)"]
    assert kept == {
        "text": "a",
        "number": 0.5,
        "flag": 1,
        "nan": "nan",
        "array": [0, 1, 2],
        "matrix": "[[1.0, 0.0], [0.0, 1.0]]",
        "date": "2021-06-01T00:00:00",
        "stamp": "2021-06-01T00:00:00",
        "bytes": "raw",
        "set": [1, 2],
        "mapping": '{"a": "2021-06-01", "b": [1]}',
        "mixed": '[1, "a"]',
        "words": ["a", "b"],
        "huge": str(2**70),
        "id": str(uuid.UUID(int=0)),
        "3": "key",
    }
    ds = xr.Dataset({"a": ("x", [1], kept)})
    ds.to_netcdf(tmp_path / "a.nc")
    ds.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    assert xr.open_zarr(tmp_path / "a.zarr", consolidated=False)["a"].attrs == kept


def cube(**coords: Any) -> xr.Dataset:
    values = np.ones((2, 4, 4), "uint16")
    return xr.Dataset({"B02": (("time", "y", "x"), values)}, coords={"time": DAYS, **coords})


TAKEN = ("y", "x", "embedding", "valid", "spatial_ref")


def test_what_is_left_out_is_named_once() -> None:
    odd = cube(
        about=("time", objects(object(), object())), embedding=("time", [1, 2]), good=("time", ["a", "b"]),
        progress=("time", [1, 2]), **{"a/b": ("time", [1, 2]), "two words": ("time", [1, 2])},
    )  # fmt: skip
    odd["good"].attrs = {"made": dt.datetime(2021, 1, 1), "by": object()}
    with pytest.warns(UserWarning, match="left out") as said:
        kept = along_time(odd, "time", TAKEN)
    assert set(kept) == {"time", "good"}
    assert kept["good"].attrs == {"made": "2021-01-01T00:00:00"}
    assert len(said) == 1
    for name in ("about", "embedding", "progress", "a/b", "two words", "'by'"):
        assert name in str(said[0].message)


def test_ordinary_coordinates_are_kept_without_a_word() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = along_time(cube(item_ids=("time", objects("a", "b")), cloud=("time", [1.5, 2.5])), "time", TAKEN)
    assert set(kept) == {"time", "item_ids", "cloud"}


def test_a_multi_index_is_replaced_by_its_levels() -> None:
    levels = pd.MultiIndex.from_arrays([[2021, 2022], [6, 7]], names=["year", "month"])
    indexed = cube().drop_vars("time").assign_coords(xr.Coordinates.from_pandas_multiindex(levels, "time"))
    with pytest.warns(UserWarning, match="reset_index"):
        kept = along_time(indexed, "time", TAKEN)
    assert {n: v.values.tolist() for n, v in kept.items()} == {"year": [2021, 2022], "month": [6, 7]}


def test_embeddings_lose_encodings_and_nothing_else() -> None:
    emb = xr.DataArray(
        np.zeros((2, 3, 4, 4), "float32"),
        dims=("time", "embedding", "y", "x"),
        coords={
            "time": DAYS,
            "cloud": ("time", [1.0, 2.0]),
            "y": range(4),
            "x": range(4),
            "valid": (("y", "x"), np.ones((4, 4))),
        },
        attrs={"note": {"a": 1}, "units": "1"},
        name="embeddings",
    )
    emb["cloud"].encoding = {"chunks": (1,), "filters": None, "dtype": "int8"}
    emb["time"].encoding = {"units": "days since 2000-01-01", "dtype": "int8"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = storable_coordinates(emb)
    xr.testing.assert_equal(kept, emb)
    assert kept.name == "embeddings"
    assert kept.attrs == {"note": '{"a": 1}', "units": "1"}
    assert all(not c.encoding for c in kept.coords.values())


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.dates(),
    st.datetimes(timezones=st.none() | st.timezones()),
    st.timedeltas(dt.timedelta(-1000), dt.timedelta(1000)),
    st.decimals(),
    st.complex_numbers(),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=3) | st.dates(),
        lambda inner: (
            st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2) | st.integers(), inner, max_size=2)
        ),
        max_leaves=4,
    ),
    st.frozensets(st.integers(), max_size=3),
    st.sampled_from(
        [pd.NaT, pd.NA, pd.Period("2021-06"), cftime.DatetimeNoLeap(2021, 2, 28), object(), np.float32(1), np.nan]
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(values, min_size=1, max_size=3))
def test_whatever_is_kept_is_stored_and_comes_back(drawn: list) -> None:
    variable = xr.Variable(("time",), objects(*drawn))
    kept = storable_variable(variable, "about", [])
    back = stored(variable)
    assert (kept is None) == (back is None)
    if kept is not None and back is not None:
        assert missing_alike(back.values.tolist()) == missing_alike(kept.values.tolist())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.text(max_size=5) | st.integers(), values, max_size=4))
def test_attributes_of_any_kind_are_stored_or_named(attrs: dict) -> None:
    left: list[str] = []
    kept = storable_attrs(attrs, "about", left)
    assert len(kept) + len(left) + sum(v is None or v is pd.NaT or v is pd.NA for v in attrs.values()) >= len(
        {str(k) for k in attrs}
    )
    store = zarr.storage.MemoryStore()
    zarr.create_group(store, attributes=kept)
    assert dict(zarr.open_group(store, mode="r").attrs) == kept
