"""One vector per patch and period: laws, comparisons with NumPy, and stores of periods."""

from __future__ import annotations

import dask
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cli import main
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.aggregate import aggregate, periods
from tests.heads.fields import embeddings, no_compute, on_dask

HOWS = ("mean", "median", "medoid", "trimmed")


def series(times, *, seed=0, days=None, missing=0.2, rows=6, cols=7):
    """Embeddings of several dates of 2021 with a random valid fraction, some of it 0."""
    rng = np.random.default_rng(seed)
    emb = embeddings(rows, cols, times=times, noise=1, seed=seed)
    valid = np.where(rng.random(emb["valid"].shape) < missing, 0, rng.uniform(0.2, 1, emb["valid"].shape))
    days = rng.choice(365, times, replace=False) if days is None else np.array(days)
    emb = emb.where(xr.DataArray(valid > 0, dims=("time", "y", "x")))
    return emb.assign_coords(
        valid=(("time", "y", "x"), valid.astype("float32")),
        time=np.datetime64("2021-01-01", "ns") + days * np.timedelta64(1, "D"),
    )


@pytest.mark.parametrize("how", HOWS)
@given(seed=st.integers(0, 99))
def test_the_aggregate_of_one_date_is_the_date(how, seed):
    emb = series(1, seed=seed)
    got = aggregate(emb, "month", how=how)
    np.testing.assert_array_equal(got.values, emb.values)
    np.testing.assert_array_equal(got["valid"], emb["valid"])
    np.testing.assert_array_equal(got["count"], emb["valid"] > 0)


@pytest.mark.parametrize("how", HOWS)
@settings(max_examples=10)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 7),
    times=st.integers(1, 5),
    chunk=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_chunks_do_not_matter(how, rows, cols, times, chunk, seed):
    emb = series(times, seed=seed)
    lazy = on_dask(emb, rows, cols).chunk(time=chunk)
    with dask.config.set(scheduler=no_compute):
        got = aggregate(lazy, "season", how=how)
    assert got.chunks is not None
    xr.testing.assert_identical(got.compute(), aggregate(emb, "season", how=how))


@given(times=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_mean_is_numpys_weighted_mean(times, seed):
    emb = series(times, seed=seed)
    got = aggregate(emb, "year")
    weight = emb["valid"].values.astype("float64")
    some = weight.sum(axis=0) > 0
    expected = np.ma.average(
        np.ma.masked_invalid(emb.values), axis=0, weights=np.broadcast_to(weight[:, None], emb.shape)
    )
    np.testing.assert_allclose(got.values[0][:, some], expected.filled(np.nan)[:, some], rtol=1e-4, atol=1e-5)
    assert np.isnan(got.values[0][:, ~some]).all()
    count = (weight > 0).sum(axis=0)
    np.testing.assert_array_equal(got["count"][0], count)
    np.testing.assert_allclose(got["valid"][0], weight.sum(axis=0) / np.maximum(count, 1), rtol=1e-5)


@given(times=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_median_of_equal_weights_is_numpys(times, seed):
    emb = series(times, seed=seed, missing=0)
    emb["valid"][:] = 0.5
    got = aggregate(emb, "year", how="median")
    np.testing.assert_allclose(got.values[0], np.median(emb.values, axis=0), rtol=1e-6, atol=1e-6)


@given(times=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_medoid_is_a_vector_of_the_least_distance(times, seed):
    emb = series(times, seed=seed)
    got = aggregate(emb, "year", how="medoid").values[0]
    for y, x in np.argwhere(emb["valid"].values.sum(axis=0) > 0):
        v, w = emb.values[:, :, y, x], emb["valid"].values[:, y, x]
        v, w = v[w > 0].astype("float64"), w[w > 0]
        cost = (np.linalg.norm(v[:, None] - v[None], axis=-1) * w).sum(axis=1)
        chosen = np.flatnonzero((v == got[:, y, x]).all(axis=1))
        assert len(chosen)
        assert cost[chosen].min() == pytest.approx(cost.min(), rel=1e-5)


def test_the_trimmed_mean_is_scipys():
    stats = pytest.importorskip("scipy.stats")
    emb = series(10, missing=0)
    emb["valid"][:] = 1
    got = aggregate(emb, "year", how="trimmed").values[0]
    np.testing.assert_allclose(got, stats.trim_mean(emb.values, 0.2, axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["median", "medoid", "trimmed"])
def test_one_cloud_that_the_mask_missed_is_left_out(how):
    emb = series(6, missing=0)
    emb["valid"][:] = 1
    emb = emb.copy(data=emb.values * 0.01 + 1)
    emb.values[2] = 50
    assert abs(aggregate(emb, "year", how=how).values - 1).max() < 0.2
    assert abs(aggregate(emb, "year").values - 1).max() > 5


def test_periods_without_a_valid_date_are_missing_with_count_0():
    emb = series(2, days=[10, 100])  # January and April
    emb = xr.where(emb.time == emb.time[1], np.nan, emb, keep_attrs=True).assign_coords(emb.coords).transpose(*emb.dims)
    emb["valid"][1] = 0
    got = aggregate(on_dask(emb, 3, 3), "month")
    assert got["time"].dt.month.values.tolist() == [1, 2, 3, 4]
    assert got["dates"].values.tolist() == [1, 0, 0, 1]
    assert not got["count"].values[1:].any()
    assert not got["valid"].values[1:].any()
    assert np.isnan(got.values[1:]).all()
    for how in HOWS:
        np.testing.assert_array_equal(aggregate(emb, "month", how=how)["count"], got["count"])


@pytest.mark.parametrize(
    ("freq", "starts", "ends"),
    [
        ("year", ["2021-01-01"], ["2021-12-31"]),
        ("season", ["2020-12-01", "2021-03-01"], ["2021-02-28", "2021-05-31"]),
        ("quarter", ["2021-01-01", "2021-04-01"], ["2021-03-31", "2021-06-30"]),
        ("YS-OCT", ["2020-10-01"], ["2021-09-30"]),
        ([("2021-02", "2021-05"), ("2021", "2021-01-31")], ["2021-02-01", "2021-01-01"], ["2021-05-31", "2021-01-31"]),
    ],
)
def test_periods(freq, starts, ends):
    found = periods(pd.DatetimeIndex(["2021-05-01", "2021-01-11 10:00"]), freq)
    assert [str(p.start.date()) for p in found] == starts
    assert [str(p.end) for p in found] == [f"{end} 23:59:59" for end in ends]
    assert sorted(i for p in found for i in p.positions) == [0, 1]


def test_dates_need_no_order():
    emb = series(4, seed=5)
    xr.testing.assert_identical(
        aggregate(emb.isel(time=[2, 0, 3, 1]), "season"), aggregate(emb.sortby("time"), "season")
    )


def test_a_store_of_periods_is_published_as_such(tmp_path):
    ds = deo_cube.synthetic_cube(size=96, times=4)
    emb = ds.deo.embed("tiny")
    lazy = emb.deo.aggregate("season", how="median")
    stored = lazy.deo.to_zarr(tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(stored.values, lazy.values)
    np.testing.assert_array_equal(stored["valid"], lazy["valid"])
    np.testing.assert_array_equal(stored["count"], lazy["count"])
    for name in ("start_datetime", "end_datetime", "dates"):
        np.testing.assert_array_equal(stored[name], lazy[name])
    assert stored.attrs["deo_cube:derived"] == "median per season of tiny embeddings"
    assert stored.attrs["deo_cube:model"] == emb.attrs["deo_cube:model"]
    assert deo_cube.verify_store(tmp_path / "a.zarr").complete
    item = deo_cube.stac_item(tmp_path / "a.zarr")
    assert item.datetime is None
    assert item.properties["start_datetime"] == "2021-03-01T00:00:00Z"
    assert item.properties["end_datetime"] == "2021-11-30T23:59:59Z"
    assert item.properties["processing:lineage"] == "median per season of tiny embeddings"
    assert "count" in item.properties["cube:variables"]
    lazy.deo.to_zarr(tmp_path / "a.zarr", progress=False)  # resumed: the same
    copied = stored.isel(time=[1], x=slice(3, 20)).deo.to_zarr(tmp_path / "b.zarr", progress=False)
    np.testing.assert_array_equal(copied["count"], lazy["count"].isel(time=[1], x=slice(3, 20)))
    one = stored.isel(time=2).deo.to_zarr(tmp_path / "c.zarr", progress=False)
    np.testing.assert_array_equal(one["count"], lazy["count"].isel(time=2))
    with pytest.raises(deo_cube.errors.StoreMismatchError, match="aggregate"):
        emb.deo.aggregate("season").deo.to_zarr(tmp_path / "a.zarr", progress=False)


def test_a_damaged_count_is_found_and_a_store_in_blocks_resumes(tmp_path):
    emb = series(3, rows=40, cols=40)
    emb = emb.assign_attrs({"deo_cube:model_alias": "make-believe", "deo_cube:model": "make-believe"})
    lazy = on_dask(emb, 16, 16).deo.aggregate("year")
    stored = lazy.deo.to_zarr(tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(stored["count"], aggregate(emb, "year")["count"])
    shard = next(p for p in (tmp_path / "a.zarr" / "count" / "c").rglob("*") if p.is_file())
    shard.write_bytes(shard.read_bytes()[:-3])
    assert len(deo_cube.verify_store(tmp_path / "a.zarr").damaged) == 1
    deo_cube.verify_store(tmp_path / "a.zarr", repair=True)
    again = lazy.deo.to_zarr(tmp_path / "a.zarr", progress=False)
    np.testing.assert_array_equal(again["count"], stored["count"])
    assert deo_cube.verify_store(tmp_path / "a.zarr").complete


def test_the_command_writes_the_store(tmp_path, capsys):
    ds = deo_cube.synthetic_cube(size=96, times=3)
    emb = ds.deo.embed("tiny", dtype="int8")
    stored = emb.deo.to_zarr(tmp_path / "e.zarr", progress=False)
    with pytest.raises(SystemExit) as end:
        main(["aggregate", str(tmp_path / "e.zarr"), str(tmp_path / "a.zarr"), "--freq", "year", "--no-progress"])
    assert not end.value.code
    assert "time 1" in capsys.readouterr().out
    got = deo_cube.open_embeddings(tmp_path / "a.zarr")
    np.testing.assert_array_equal(got.values, aggregate(stored.compute(), "year").values)
    np.testing.assert_array_equal(aggregate(tmp_path / "e.zarr", "year").values, got.values)


def test_the_map_and_other_verbs_still_work():
    emb = series(4, rows=8, cols=8)
    got = emb.deo.aggregate("year")
    assert got.rio.crs == emb.rio.crs
    assert got.rio.transform() == emb.isel(time=0).rio.transform()
    one = got.isel(time=0)
    assert one.deo.similar(to=(float(one.x[3]), float(one.y[3]))).notnull().any()
    assert got.deo.sample((float(one.x[3]), float(one.y[3]))).sizes == {"place": 1, "time": 1, "embedding": 6}


def test_wrong_inputs():
    emb = series(2)
    for error, argument, call in (
        (ArgumentError, "how", lambda: aggregate(emb, "year", how="max")),
        (ArgumentError, "freq", lambda: aggregate(emb, "yearly")),
        (ArgumentError, "freq", lambda: aggregate(emb, "YE")),
        (ArgumentError, "freq", lambda: aggregate(emb, [("2021-05", "2021-02")])),
        (ArgumentError, "freq", lambda: aggregate(emb, [("a", "b")])),
        (ArgumentTypeError, "freq", lambda: aggregate(emb, ["2021"])),
        (ArgumentTypeError, "freq", lambda: aggregate(emb, 3)),
        (ArgumentError, "time", lambda: aggregate(emb.isel(time=0), "year")),
        (ArgumentError, "time", lambda: aggregate(emb.drop_vars("time"), "year")),
        (ArgumentTypeError, "emb", lambda: aggregate(3, "year")),
    ):
        with pytest.raises(error, match=argument):
            call()


@pytest.mark.real
def test_seasons_of_a_real_year(shared):
    ds = xr.open_dataset(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc", mask_and_scale=False)
    bands = [n for n in ds.data_vars if str(n).startswith("S2-L2A-B")]
    array = ds[bands].to_dataarray("embedding").rename(t="time").transpose("time", "embedding", "y", "x")
    array = array.astype("float32").where(array != -1).rio.write_crs(32631)
    got = aggregate(array, "season")
    assert got["time"].dt.strftime("%Y-%m").values.tolist() == ["2020-09", "2020-12", "2021-03", "2021-06", "2021-09"]
    assert got["dates"].values.tolist() == [1, 3, 3, 3, 2]
    months = array.isel(time=slice(4, 7))
    np.testing.assert_allclose(got.values[2], months.mean("time").values, rtol=1e-4)
    assert int(got["count"][1].max()) == 1  # December and January are empty


def test_periods_end_at_the_moment_of_a_time_with_a_zone():
    of_time = pd.to_datetime(["2021-03-01T22:30", "2021-03-01T23:30"])
    berlin = pd.Timestamp("2021-03-02", tz="Europe/Berlin")
    (own,) = periods(of_time, [("2021-01-01", berlin)])
    assert (own.positions, own.end) == ((0,), pd.Timestamp("2021-03-01T23:00"))
