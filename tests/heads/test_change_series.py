"""A step in a series is found at its date with its size; stable places are marked at the stated rate, season or not."""

from __future__ import annotations

import dask
import numpy as np
import pytest
import rasterio
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube import cli
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.change_series import _design, _steps, _unit, change_series
from tests.heads.fields import embeddings, no_compute, on_dask, truth


def scene(seed=0, *, changed=0.1, dates=24, years=3.0, missing=0.2, season=0.8, noise=0.3, side=64, dim=16, memory=0.0):
    """A series with a season per class, noise that differs between classes, gaps, and steps at known dates."""
    rng = np.random.default_rng(seed)
    grid, label = embeddings(side, side, dim), truth(side, side)
    days = np.sort(rng.random(dates)) * 365 * years
    times = np.datetime64("2019-01-01", "ns") + (days * 86400e9).astype("m8[ns]")
    base, cosine, sine = (s * rng.normal(size=(3, dim)) for s in (1, season, season))
    angle = 2 * np.pi * (days - days[0]) / 365.25

    def of_class(values):
        return np.moveaxis(values[label], -1, 0)[None]

    v = of_class(base) + np.cos(angle)[:, None, None, None] * of_class(cosine)
    v = v + np.sin(angle)[:, None, None, None] * of_class(sine)
    errors = rng.normal(size=v.shape)
    for t in range(1, dates if memory else 0):
        share = memory ** ((days[t] - days[t - 1]) / 45)  # correlation of dates 45 days apart
        errors[t] = share * errors[t - 1] + np.sqrt(1 - share**2) * errors[t]
    v = v + (noise * np.array([0.6, 1, 1.5]))[label] * errors
    where = rng.random((side, side)) < changed
    step = rng.integers(min(4, dates // 2), max(dates - 4, dates // 2 + 1), (side, side))
    later = np.arange(dates)[:, None, None] >= step
    v = v + np.where((later & where)[:, None], 1.5 * rng.normal(size=(dim, side, side))[None], 0)
    v = np.where((rng.random((dates, side, side)) < missing)[:, None], np.nan, v)
    coords = {"time": times, "y": grid.y, "x": grid.x, "spatial_ref": grid.spatial_ref}
    emb = xr.DataArray(v.astype("float32"), dims=("time", "embedding", "y", "x"), coords=coords, attrs=grid.attrs)
    return emb, where, step


@pytest.mark.parametrize("season", ["harmonic", "scene"])
@pytest.mark.parametrize(
    "kind",
    [{}, {"changed": 0.0}, {"dates": 40, "years": 4.0, "changed": 0.3}, {"dates": 12, "missing": 0.0}],
    ids=["some", "none", "many", "few dates"],
)
def test_a_threshold_is_a_false_alarm_rate_and_steps_are_found(kind, season):
    emb, where, step = scene(0, **kind)
    found = change_series(emb, season=season)
    level = found.level.values
    known = np.isfinite(level)
    for alpha in (0.1, 0.05, 0.01):
        assert (level[~where & known] > 1 - alpha).mean() < 2.5 * alpha
    assert (level[~where & known] > 0.9).mean() > 0.1 / 2.5
    if where.any():
        assert found.changed.values[where & known].mean() > 0.9
        at = np.searchsorted(emb.time.values, found.date.values[where & found.changed.values])
        expected = step[where & found.changed.values]
        assert (np.abs(at - expected) <= 2).mean() > 0.95
    assert float(found.season.mean()) > 0.5


@pytest.mark.parametrize(
    ("dates", "season"), [(4, "scene"), (6, "scene"), (12, "scene"), (24, "scene"), (24, "harmonic")]
)
@pytest.mark.parametrize("memory", [0.0, 0.6])
def test_the_rate_holds_for_noise_with_memory_in_short_and_long_series(dates, season, memory):
    """Stationary series with a season: no more marks than 1.5 times the rate, within the error of their number."""
    emb, _, _ = scene(7, changed=0.0, dates=dates, years=1.2 if dates < 8 else 3.0, missing=0.0, memory=memory)
    level = change_series(emb, season=season).level.values
    for rate in (0.05, 0.01):
        bound = 1.5 * rate + 3 * np.sqrt(1.5 * rate / level.size)
        assert (level > 1 - rate).mean() < bound


def test_one_year_does_not_pass_for_change():
    """A single year: without a season, places whose season is strong would be marked."""
    emb, where, _ = scene(1, dates=14, years=1.0, missing=0.0)
    level = change_series(emb).level.values  # "auto" is "scene"
    assert (level[~where] > 0.99).mean() < 0.025
    assert (level[where] > 0.99).mean() > 0.9
    assert (change_series(emb, season="none").level.values[where] > 0.99).mean() < 0.6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(6, 14), st.sampled_from(["none", "harmonic"]), st.integers(1, 2))
def test_steps_are_those_of_least_squares_for_each_date(seed, dates, season, min_dates):
    rng = np.random.default_rng(seed)
    days = np.sort(rng.random(dates)) * 1200
    design = _design(days, season)
    v, w = _unit(np.where(rng.random((5, dates, 1)) < 0.2, np.nan, rng.normal(size=(5, dates, 4))))
    found = _steps(v, w, design, min_dates)
    for i in range(len(v)):
        ok = np.flatnonzero(w[i])
        sums = {}
        for k in ok:
            after = (ok >= k).astype(float)
            if min(after.sum(), (1 - after).sum()) < min_dates:
                continue
            x = np.c_[design[ok], after]
            if np.linalg.matrix_rank(x, tol=1e-6) < x.shape[1]:
                continue
            beta = np.linalg.lstsq(x, v[i, ok], rcond=None)[0]
            sums[k] = (((v[i, ok] - x @ beta) ** 2).sum(), 0.5 * (beta[-1] ** 2).sum())
        if not sums or len(ok) - design.shape[1] - 1 < 1:
            assert found["step"][i] == -1
            continue
        best = min(s for s, _ in sums.values())
        assert sums[found["step"][i]][0] == pytest.approx(best, abs=1e-8)
        assert found["magnitude"][i] == pytest.approx(sums[found["step"][i]][1], rel=1e-5, abs=1e-9)
        assert found["last"][i] == ok[ok < found["step"][i]].max()


def test_the_size_is_a_cosine_distance_where_nothing_else_varies():
    rng = np.random.default_rng(0)
    emb = embeddings(16, 16, 8, 6, noise=0.0)
    other = rng.normal(size=8)
    emb.values[3:, :, 2, 2] = other
    a, b = emb.values[0, :, 2, 2], other
    cosine = 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    noise = emb + 1e-3 * rng.normal(size=emb.shape)
    found = change_series(noise.assign_attrs(emb.attrs), season="none")
    assert float(found.magnitude[2, 2]) == pytest.approx(cosine, rel=0.02)
    assert found.date.values[2, 2] == emb.time.values[3]
    assert found.last.values[2, 2] == emb.time.values[2]


def test_lazy_the_same_on_any_chunks_and_in_any_order_of_dates():
    emb, _, _ = scene(2, side=24, dates=16)
    whole = change_series(emb, season="scene")
    for chunks in ((24, 24), (7, 11)):
        lazy = on_dask(emb, *chunks)
        with dask.config.set(scheduler=no_compute):
            found = change_series(lazy, season="scene")
        found = found.compute()
        xr.testing.assert_allclose(found.drop_vars("valid_share"), whole.drop_vars("valid_share"), atol=1e-5)
        assert (found.date.values == whole.date.values)[whole.changed.values].all()
    shuffled = change_series(emb.isel(time=np.random.default_rng(0).permutation(16)), season="scene")
    xr.testing.assert_allclose(shuffled, whole, atol=1e-5)


def test_dates_without_a_valid_place_count_nowhere_and_are_named():
    emb, _, _ = scene(3, side=24, dates=14, missing=0.1)
    emb[dict(time=[4, 9])] = np.nan
    with pytest.warns(UserWarning, match=f"2 of 14 dates.*{str(emb.time.values[4])[:10]}"):
        found = change_series(emb, season="scene")
    without = change_series(emb.isel(time=[t for t in range(14) if t not in (4, 9)]), season="scene")
    xr.testing.assert_allclose(found.drop_dims("time"), without.drop_dims("time"), atol=1e-4)
    assert found.valid_share.values[[4, 9]].tolist() == [0, 0]
    assert int(found["dates"].max()) <= 12


def test_known_stable_places_calibrate_without_mirroring():
    emb, where, _ = scene(4, changed=0.7, dates=20)
    half = np.zeros_like(where)
    half[:32] = ~where[:32]
    stable = xr.DataArray(half, dims=("y", "x"))
    level = change_series(emb, season="harmonic", stable=stable).level.values
    assert 0.01 / 3 < (level[32:][~where[32:]] > 0.99).mean() < 0.03
    assert (level[where] > 0.99).mean() > 0.9


def test_places_with_too_few_dates_have_no_level_and_no_date():
    emb, _, _ = scene(5, side=24, dates=12, missing=0.0)
    emb[dict(y=0, x=0, time=slice(3, None))] = np.nan
    found = change_series(emb, season="scene")
    assert np.isnan(found.level.values[0, 0])
    assert np.isnat(found.date.values[0, 0])
    assert not found.changed.values[0, 0]
    assert found["dates"].values[0, 0] == 3


def test_a_store_its_path_and_the_command_give_the_same_maps(tmp_path):
    emb = deo_cube.synthetic_cube(size=96, times=6).deo.embed(dtype="int8")
    emb.deo.to_zarr(tmp_path / "e.zarr", progress=False)
    expected = change_series(deo_cube.open_embeddings(tmp_path / "e.zarr")).compute()
    xr.testing.assert_allclose(emb.deo.change_series().compute(), expected, atol=1e-4)
    xr.testing.assert_identical(deo_cube.change_series(str(tmp_path / "e.zarr")).compute(), expected)
    for out in ("c.tif", "c.zarr"):
        with pytest.raises(SystemExit) as ended:
            cli.main(["change-series", str(tmp_path / "e.zarr"), str(tmp_path / out)])
        assert ended.value.code == 0
    with rasterio.open(tmp_path / "c.tif") as file:
        assert file.descriptions[:2] == ("date", "last")
        layer = dict(zip(file.descriptions, file.read(), strict=True))
        assert file.crs.to_epsg() == 32633
    np.testing.assert_allclose(layer["magnitude"], expected.magnitude.values, atol=1e-6)
    stored = xr.open_zarr(tmp_path / "c.zarr")
    np.testing.assert_array_equal(stored.date.values, expected.date.values)
    assert stored.magnitude.dims == ("y", "x")


def test_errors():
    emb, _, _ = scene(0, side=16, dates=12)
    cases = [
        (lambda: change_series(emb.isel(time=0)), ArgumentError, "time"),
        (lambda: change_series(emb.isel(time=slice(3))), ArgumentError, "min_dates=1"),
        (lambda: change_series(emb.assign_coords(time=[f"s{i}" for i in range(12)])), ArgumentError, "assign_coords"),
        (lambda: change_series(emb.isel(time=slice(5)), season="harmonic"), ArgumentError, "season='scene'"),
        (lambda: change_series(emb, season="yearly"), ArgumentError, "season"),
        (lambda: change_series(emb, false_alarms=0.9), ArgumentError, "false_alarms"),
        (lambda: change_series(emb.isel(y=slice(3), x=slice(3))), ArgumentError, "larger window"),
        (lambda: change_series(emb, stable=np.ones((16, 16), bool)), ArgumentTypeError, "stable"),
        (lambda: change_series(emb, stable=emb[0, 0, :4] > 0), ArgumentError, "stable"),
        (lambda: change_series(emb, stable=emb[0, 0] > 99), ArgumentError, "stable"),
    ]
    for call, error, names in cases:
        with pytest.raises(error, match=names):
            call()
    change_series(emb.isel(time=slice(3)), min_dates=1)  # as the message says


def test_forest_that_was_cut_is_found_in_a_real_series(shared):
    cube = deo_cube.open_cube(shared / "data/places/harz/*.tif").isel(y=slice(150, 330), x=slice(150, 446))
    cube = cube.assign_coords(band=list(cube.attrs["long_name"]))
    found = change_series(cube.deo.embed(offset=0).compute())
    nbr = xr.concat([_nbr(cube.isel(time=t)) for t in (0, -1)], "time").coarsen(y=4, x=4, boundary="trim").mean()
    fell = (nbr[0] - nbr[1]).values
    rows, columns = min(fell.shape[0], found.sizes["y"]), min(fell.shape[1], found.sizes["x"])
    level, fell = found.level.values[:rows, :columns], fell[:rows, :columns]
    known = np.isfinite(level) & np.isfinite(fell)
    assert np.median(level[known & (fell > 0.3)]) > 0.95
    assert np.median(level[known & (np.abs(fell) < 0.05)]) < 0.7


@pytest.mark.slow
def test_no_more_marks_than_stated_where_real_dates_are_exchanged(shared):
    """Each half then has an image from before and one from after the change: marks on calm patches are false."""
    from benchmarks.change_series_picture import burn_ratio, exchanged, series

    cube = series(shared / "data", "harz").isel(y=slice(100, 360), x=slice(100, 460))
    emb = cube.deo.embed(offset=0).compute()
    found = exchanged(emb, burn_ratio(cube, emb.isel(time=0, embedding=0)))
    assert found["0.01"] < 0.015
    assert found["0.05"] < 0.075


def _nbr(image):
    near, far = (image.sel(band=b).astype("float32") for b in ("B8A", "B12"))
    return (near - far) / (near + far).where(near > 0)


@pytest.mark.parametrize(
    "moved",
    [
        lambda s: s.isel(y=slice(None, None, -1)),
        lambda s: s.isel(x=slice(None, None, -1)),
        lambda s: s.roll(x=3, roll_coords=True),
    ],
    ids=["south up", "mirrored", "rolled"],
)
def test_stable_places_in_another_order_are_refused_and_the_advice_brings_them_back(moved):
    emb, where, _ = scene(0, side=32)
    stable = xr.DataArray(~where, dims=("y", "x"), coords={"y": emb.y, "x": emb.x})
    with pytest.raises(ArgumentError, match="stable") as error:
        change_series(emb, stable=moved(stable))
    advice = str(error.value).split("grid: ")[1].split(". On another")[0]
    restored = eval(advice, {"stable": moved(stable), "emb": emb})
    xr.testing.assert_equal(change_series(emb, stable=restored), change_series(emb, stable=stable))


def test_stable_places_half_a_patch_off_are_refused():
    emb, where, _ = scene(0, side=32)
    cell = float(emb.x[1] - emb.x[0])
    stable = xr.DataArray(~where, dims=("y", "x"), coords={"y": emb.y, "x": emb.x + cell / 2})
    with pytest.raises(ArgumentError, match="stable.*x"):
        change_series(emb, stable=stable)
    rounded = stable.assign_coords(x=(emb.x + 1e-6 * cell).astype("float32"))
    assert change_series(emb, stable=rounded).sizes["x"] == 32
