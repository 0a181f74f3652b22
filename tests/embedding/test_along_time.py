"""Whatever lies along time: from the cube through `embed`, a store, and back, by ours and by plain xarray."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cftime
import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube import embed, open_embeddings
from deo_cube.errors import ArgumentError, DeoCubeError

DAYS = np.array(["2021-06-01", "2021-06-11"], "M8[ns]")


def objects(*values: object) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    from deo_cube.testing import cube_at

    return cube_at((36, 36))


class Odd:
    """An object of which a store knows nothing."""


POOL: dict[str, Any] = {
    "UTC": pd.DatetimeIndex(DAYS, tz="UTC"),
    "zone": pd.DatetimeIndex(DAYS, tz="Europe/Vienna"),
    "date": objects(dt.date(2021, 6, 1), dt.date(2021, 6, 11)),
    "seconds": DAYS.astype("M8[s]"),
    "unsorted": DAYS[::-1],
    "nanoseconds": DAYS + np.timedelta64(1, "ns"),
    "before 1678": np.array(["1500-01-01", "2021-06-11"], "M8[s]"),
    "NaT": np.array(["2021-06-01", "NaT"], "M8[ns]"),
    "period": pd.period_range("2021-06", periods=2, freq="M"),
    "cftime": xr.date_range("2021-06-01", periods=2, use_cftime=True),
    "noleap": xr.date_range("2021-02-28", periods=2, use_cftime=True, calendar="noleap"),
    "360_day": xr.date_range("2021-02-29", periods=2, use_cftime=True, calendar="360_day"),
    "cftime and None": objects(cftime.DatetimeNoLeap(2021, 1, 1), None),
    "ISO": ["2021-06-01", "2021-06-11T10:30:00Z"],
    "YYYYMMDD": [20210601, 20210611],
    "years": [2020, 2021],
    "days of the year": [152, 162],
    "seconds since 1970": [1622505600, 1623369600],
    "floats": [2021.41, np.nan],
    "uint64": np.array([2**63 + 1, 5], "u8"),
    "Int64": pd.array([20210601, None], dtype="Int64"),
    "categories": pd.Categorical(["S2A", "S2B"]),
    "pandas text": pd.array(["a", None], dtype="string"),
    "bytes": np.array([b"S2A", b"S2B"]),
    "words": ["before", "after"],
    "long": ["a" * 50_000, "b"],
    "numbers and words": objects(1, "a"),
    "mappings": objects({"maker": "0.1"}, {"maker": "0.2"}),
    "lists": objects(["msi"], ["msi", "other"]),
    "sets": objects({1}, {2}),
    "None": objects(None, None),
    "objects": objects(Odd(), Odd()),
    "mapping of objects": objects({"a": Odd()}, {}),
    "decimals": objects(decimal.Decimal("1.5"), decimal.Decimal(2)),
    "intervals": pd.interval_range(0, 2),
    "durations": np.array([1, 2], "m8[D]"),
    "complex": [1j, 2j],
    "booleans": [True, False],
}
ATTRS: dict[str, Any] = {
    "units": "seconds since 1970-01-01 00:00:00",
    "calendar": "proleptic_gregorian",
    "_FillValue": -1,
    "coordinates": "lon lat",
    "made": dt.datetime(2021, 1, 1),
    "by": Odd(),
    "array": np.arange(3),
    "set": {1},
    "nan": float("nan"),
    "none": None,
    "flag": True,
    "mapping": {"a": b"raw"},
}


def plain(array: xr.DataArray) -> list:
    """Values by which a coordinate in memory and one from a store compare."""
    return [None if isinstance(v, float) and np.isnan(v) else v for v in np.ravel(array.values).tolist()]


@settings(
    max_examples=15,
    deadline=None,
    phases=(Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    time=st.sampled_from(sorted(POOL)),
    about=st.lists(st.sampled_from(sorted(POOL)), max_size=3, unique=True),
    attrs=st.lists(st.sampled_from(sorted(ATTRS)), max_size=4, unique=True),
    steps=st.sampled_from([None, [1], 1]),
    name=st.sampled_from(["time", "t", "valid_time"]),
)
def test_coordinates_are_kept_or_left_out_with_a_word_and_nothing_foreign_is_raised(
    cube: xr.Dataset, time: str, about: list[str], attrs: list[str], steps: Any, name: str
) -> None:
    odd = {k: ATTRS[k] for k in attrs}
    given_cube = cube.drop_vars("time").rename(time=name)
    given_cube = given_cube.assign_coords({name: (name, POOL[time], odd)})
    given_cube = given_cube.assign_coords(
        {f"about {i}".replace(" ", "_"): (name, POOL[k], odd) for i, k in enumerate(about)}
    )
    with (
        tempfile.TemporaryDirectory() as folder,
        warnings.catch_warnings(record=True) as said,
        dask.config.set(scheduler="synchronous"),
    ):
        warnings.simplefilter("always")
        emb = embed(given_cube, "means")
        emb = emb if steps is None else emb.isel(time=steps)
        path = Path(folder) / "emb.zarr"
        stored = emb.deo.to_zarr(path, progress=False)
        xr.open_zarr(path, decode_coords="all", consolidated=False).load()
        words = " ".join(str(w.message) for w in said if issubclass(w.category, UserWarning))
        kept = {n for n, c in emb.coords.items() if c.dims in ((), ("time",)) and n != "spatial_ref"}
        assert {n for n, c in stored.coords.items() if c.dims in ((), ("time",)) and n != "spatial_ref"} == kept
        for n in kept:
            assert plain(stored[n]) == plain(emb[n])
            assert dict(stored[n].attrs) == dict(emb[n].attrs)
        for n in {"time", *(f"about_{i}" for i in range(len(about)))} - kept:
            assert (repr(name) if n == "time" else n) in words
        assert ("'by'" in words) == ("by" in attrs and bool(kept))
        stored.astype("float32").load().to_netcdf(path.with_suffix(".nc"))


def test_a_scalar_time_is_read_as_one_along_time_is(cube: xr.Dataset, tmp_path: Path) -> None:
    for i, (label, attrs) in enumerate(
        [("20210601", {}), (DAYS[0], {"units": "seconds since 1970-01-01", "calendar": "standard"}), (20210601, {})]
    ):
        one = cube.isel(time=0, drop=True).assign_coords(time=((), label, attrs))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            stored = embed(one, "means").deo.to_zarr(tmp_path / f"{i}.zarr", progress=False)
        assert stored.time.dims == ()
        assert stored.time.values == DAYS[0]
    zone = cube.isel(time=[0]).assign_coords(time=pd.DatetimeIndex(DAYS[:1], tz="UTC")).isel(time=0)
    assert embed(zone, "means").time.values == DAYS[0]
    assert "time" not in embed(cube.isel(time=0, drop=True), "means").coords
    assert "time" not in embed(cube.drop_vars("time"), "means").coords


def test_encodings_of_another_file_do_not_reach_the_store(cube: xr.Dataset, tmp_path: Path) -> None:
    along = cube.assign_coords(
        time=DAYS,
        cloud=("time", [10.5, np.nan]),
        item_ids=("time", ["a", "b"]),
        orbit=("time", np.array([22, 122], "i2")),
    )
    along.to_netcdf(
        tmp_path / "cube.nc",
        encoding={
            "time": {"units": "hours since 2000-01-01", "dtype": "i4"},
            "cloud": {"dtype": "i2", "scale_factor": 0.1, "add_offset": 5.0, "_FillValue": -9999},
            "B02": {"chunksizes": (1, 12, 12), "zlib": True, "_FillValue": 0},
        },
    )
    along.chunk(y=12, x=12).to_zarr(
        tmp_path / "cube.zarr",
        zarr_format=2,
        consolidated=True,
        encoding={
            "time": {"units": "days since 1990-01-01", "dtype": "i2"},
            "cloud": {"dtype": "f4", "_FillValue": -1.0},
        },
    )
    for source in ("cube.nc", "cube.zarr"):
        opened = xr.open_dataset(
            tmp_path / source, decode_coords="all", mask_and_scale=source.endswith("zarr"), chunks={}
        )
        emb = embed(opened, "means", units="dn", offset=0, nodata=0)
        stored = emb.deo.to_zarr(tmp_path / f"of {source}", progress=False)
        assert (stored.time.values == DAYS).all()
        assert stored.item_ids.values.tolist() == ["a", "b"]
        assert stored.orbit.values.tolist() == [22, 122]
        np.testing.assert_allclose(stored.cloud.values, [10.5, np.nan], atol=0.06)
        stored.load().to_zarr(tmp_path / f"again {source}", consolidated=False)
        np.testing.assert_array_equal(
            xr.open_zarr(tmp_path / f"again {source}", consolidated=False).cloud, stored.cloud
        )


def test_attributes_that_a_user_adds_are_stored_or_named(cube: xr.Dataset, tmp_path: Path) -> None:
    emb = embed(cube, "means").assign_attrs(
        run={"by": ["me"]}, when=dt.datetime(2021, 1, 1), secret=Odd(), level=np.float32(1)
    )
    emb = emb.assign_coords(tile={"id": "33UXP"}["id"], odd=((), objects({"a": 1})[0]))
    with pytest.warns(UserWarning, match="'secret'"):
        stored = emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    assert stored.tile.item() == "33UXP"
    assert json.loads(stored.odd.item()) == {"a": 1}
    attrs = dict(zarr.open_array(tmp_path / "emb.zarr" / "embeddings", mode="r").attrs)
    assert attrs["run"] == '{"by": ["me"]}'
    assert attrs["when"] == "2021-01-01T00:00:00"
    assert attrs["level"] == 1


def test_the_same_call_resumes_whatever_lies_along_time(cube: xr.Dataset, tmp_path: Path) -> None:
    odd = cube.assign_coords(about=("time", POOL["sets"]), more=("time", POOL["mappings"]), time=POOL["date"])
    first = embed(odd, "means").deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    second = embed(odd, "means").deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    xr.testing.assert_identical(first.compute(), second.compute())


@pytest.mark.parametrize("labels", [[152, 162], ["before", "after"], POOL["noleap"]], ids=["days", "words", "noleap"])
def test_labels_that_are_no_dates_are_not_published_as_dates(cube: xr.Dataset, tmp_path: Path, labels: Any) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = embed(cube.assign_coords(time=labels), "means").deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    with pytest.raises(DeoCubeError, match="time"):
        deo_cube.publish(tmp_path / "emb.zarr")
    table = pq.read_table(stored.deo.to_geoparquet(tmp_path / "emb.parquet"))
    assert set(table["time"].to_pylist()) == {str(v) for v in labels}


def test_dates_read_from_numbers_are_published_and_written_as_such(cube: xr.Dataset, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    with pytest.warns(UserWarning, match="YYYYMMDD"):
        emb = embed(cube.assign_coords(time=[20210601, 20210611]), "means")
    stored = emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    item = json.loads(Path(deo_cube.publish(tmp_path / "emb.zarr")[0]).read_text())
    assert item["properties"]["start_datetime"] == "2021-06-01T00:00:00Z"
    assert item["properties"]["end_datetime"] == "2021-06-11T00:00:00Z"
    table = pq.read_table(stored.deo.to_geoparquet(tmp_path / "emb.parquet"))
    assert {t.date().isoformat() for t in table["time"].to_pylist()} == {"2021-06-01", "2021-06-11"}


def test_summary_and_plan_read_dates_as_embed_does(cube: xr.Dataset) -> None:
    utc = cube.assign_coords(time=pd.DatetimeIndex(DAYS, tz="UTC"))
    assert "2021-06-01 to 2021-06-11" in repr(utc.deo)
    twice = cube.assign_coords(time=["2021-06-01", "20210601"])
    for verb in (embed, deo_cube.plan):
        with pytest.raises(ArgumentError, match="more than once"):
            verb(twice, "means")


@pytest.fixture
def dated(make_cube: Callable[..., xr.Dataset]) -> xr.DataArray:
    return embed(make_cube((36, 36), times=3), "means").isel(time=[2, 0, 1]).compute()


@pytest.mark.parametrize(
    "when",
    [
        "2024-06-11",
        dt.date(2024, 6, 11),
        dt.datetime(2024, 6, 11),
        dt.datetime(2024, 6, 11, 2, tzinfo=dt.timezone(dt.timedelta(hours=2))),
        pd.Timestamp("2024-06-11", tz="UTC"),
        np.datetime64("2024-06-11"),
        slice("2024-06-05", "2024-06-15"),
        slice(dt.date(2024, 6, 5), pd.Timestamp("2024-06-15", tz="UTC")),
    ],
    ids=str,
)
def test_a_date_is_selected_in_any_notation_from_any_order(dated: xr.DataArray, when: Any) -> None:
    change = dated.deo.change(before="2024-06-01", after=when)
    expected = dated.deo.change(before=dated.isel(time=1), after=dated.isel(time=2))
    np.testing.assert_array_equal(change.values, expected.values)


@pytest.mark.parametrize("when", ["2019", "soon", 7, dt.date(2019, 1, 1), slice("2019", "2020"), pd.NaT, 1.5], ids=str)
def test_a_date_that_is_not_there_is_refused_with_those_that_are(dated: xr.DataArray, when: Any) -> None:
    with pytest.raises(DeoCubeError, match="after=.*2024-06-01"):
        dated.deo.change(before="2024-06-01", after=when)


def test_all_dates_at_once_stay_open_for_xarray(cube: xr.Dataset, tmp_path: Path) -> None:
    stored = embed(cube.assign_coords(time=POOL["UTC"]), "means").deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    assert stored.sel(time="2021-06").sizes["time"] == 2
    assert stored.sel(time=slice("2021-06-05", None)).sizes["time"] == 1
    assert open_embeddings(tmp_path / "emb.zarr").time.dt.month.values.tolist() == [6, 6]
