import dask
import numpy as np
import pytest
import rasterio
import xarray as xr

import deo_cube
from deo_cube import cli
from deo_cube.errors import ArgumentError, ArgumentTypeError, SelectionError, StoreMismatchError
from deo_cube.heads.change import Calibration, change, fit_calibration
from tests.heads.fields import embeddings, no_compute, on_dask, truth


def two_years(changed=0.0, rows=96, cols=96, dim=16, seed=0, season=0.5):
    """Two times of a scene whose classes vary by different amounts, of which a share changes class."""
    rng = np.random.default_rng(seed)
    emb = embeddings(rows, cols, dim, 2, noise=0.2, seed=seed)
    label = truth(rows, cols)
    spread = np.array([0.15, 0.6, 0.3])[label]
    v = emb.values.astype("float64")
    v[1] = v[0] + season * 0.3 * rng.normal(size=(dim, 1, 1)) + spread * rng.normal(size=v[0].shape)
    where = rng.random((rows, cols)) < changed
    v[1][:, where] = 1.5 * rng.normal(size=(dim, int(where.sum())))
    return emb.copy(data=v.astype("float32")), where


def test_plain_distances_equal_the_formula():
    emb, _ = two_years()
    a, b = emb.values.astype("float64")
    cos = 1 - (a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(change(emb, "2019", "2020").values, cos, atol=1e-6)
    got = change(emb, "2019", "2020", method="euclidean").values
    np.testing.assert_allclose(got, np.linalg.norm(a - b, axis=0), atol=1e-5)
    np.testing.assert_allclose(change(emb, "2019", "2019").values, 0, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("changed", [0.0, 0.15])
def test_a_threshold_is_a_false_alarm_rate(seed, changed):
    emb, where = two_years(changed, seed=seed)
    level = change(emb, "2019", "2020", method="calibrated").values
    same = level[~where]
    for alpha in (0.1, 0.05, 0.01):
        rate = (same > 1 - alpha).mean()
        assert alpha / 2.5 < rate < 2.5 * alpha, (alpha, rate)
    # No class pays for the others: the one that varies most is not where all alarms are.
    label = truth(96, 96)
    for c in range(3):
        assert (level[~where & (label == c)] > 0.95).mean() < 0.15
    if changed:
        assert (level[where] > 0.99).mean() > 0.8


def test_pairs_without_change_calibrate_without_mirroring():
    rng = np.random.default_rng(0)
    base, _ = two_years(dim=12)
    v = base.values[0].astype("float64")
    times = np.array(["2018-05-01", "2018-09-01", "2019-05-01", "2019-09-01"], "datetime64[ns]")
    stack = np.stack([v + 0.3 * rng.normal(size=v.shape) for _ in times])
    # Most of the scene changes at the last time: only given pairs can tell what is unchanged.
    stack[3][:, 20:] = rng.normal(size=stack[3][:, 20:].shape)
    emb = xr.DataArray(stack, dims=base.dims, coords={k: c for k, c in base.coords.items() if "time" not in c.dims})
    emb = emb.assign_coords(time=times)
    level = change(emb, "2019-05", "2019-09", method="calibrated", unchanged=[("2018-05", "2018-09")]).values
    assert 0.02 < (level[:20] > 0.95).mean() < 0.09
    assert (level[20:] > 0.95).mean() > 0.9


def test_a_calibration_is_shared_by_windows_and_survives_json(tmp_path):
    emb, _ = two_years(0.1)
    fitted = fit_calibration(emb, "2019", "2020")
    fitted.save(tmp_path / "c.json")
    again = Calibration.load(tmp_path / "c.json")
    whole = change(emb, "2019", "2020", method="calibrated", calibration=fitted)
    xr.testing.assert_identical(change(emb, "2019", "2020", method="calibrated", calibration=again), whole)
    xr.testing.assert_identical(change(emb, "2019", "2020", method="calibrated").drop_attrs(), whole.drop_attrs())
    window = emb.isel(y=slice(10, 40), x=slice(5, 25))
    part = change(window, "2019", "2020", method="calibrated", calibration=fitted)
    xr.testing.assert_identical(part, whole.isel(y=slice(10, 40), x=slice(5, 25)))


@pytest.mark.parametrize("method", ["cosine", "euclidean", "calibrated"])
def test_lazy_and_the_same_on_any_chunks(method):
    emb, _ = two_years(0.1)
    emb[dict(y=3, x=3)] = np.nan
    whole = change(emb, "2019", "2020", method=method)
    assert np.isnan(whole.values[3, 3])
    assert np.isfinite(whole.values).sum() == 96 * 96 - 1
    for rows, cols in ((96, 96), (7, 31), (50, 13)):
        with dask.config.set(scheduler=no_compute):
            lazy = change(on_dask(emb, rows, cols), "2019", "2020", method=method)
        xr.testing.assert_identical(lazy.compute(), whole)


def test_a_year_is_the_mean_of_its_valid_times():
    emb = embeddings(times=1, noise=0.3)
    more = xr.concat([emb, (emb * 3).assign_coords(time=emb.time + np.timedelta64(30, "D"))], "time")
    more = xr.concat([more, emb.assign_coords(time=emb.time + np.timedelta64(366, "D"))], "time")
    more[dict(time=0, y=2, x=2)] = np.nan
    np.testing.assert_allclose(
        change(more, "2019", "2020", method="euclidean")[5, 5], np.linalg.norm(emb[0, :, 5, 5]), rtol=1e-5
    )
    assert np.isfinite(change(more, "2019", "2020").values[2, 2])


def test_coordinates_are_kept():
    emb, _ = two_years()
    c = change(emb, "2019", "2020")
    assert c.dims == ("y", "x")
    assert "spatial_ref" in c.coords
    assert "time" not in c.coords
    assert c.attrs["before"] == "2019"


def test_errors():
    emb, _ = two_years()
    with pytest.raises(SelectionError, match="after='2031'.*2019-06-15"):
        change(emb, "2019", "2031")
    with pytest.raises(ArgumentError, match="method"):
        change(emb, "2019", "2020", method="l2")
    with pytest.raises(ArgumentError, match="calibration"):
        change(emb, "2019", "2020", unchanged=[])
    with pytest.raises(ArgumentError, match="dimension 'time'"):
        change(emb.isel(time=0), "2019", "2020")
    with pytest.raises(ArgumentError, match="method="):
        change(emb.isel(y=slice(4), x=slice(4)), "2019", "2020", method="calibrated")


def hard_scene(seed, rows=160, cols=80, dim=24):
    """Two unchanged times: kinds of places mixed smoothly, noise with long tails that differs tenfold between them."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(seed)
    share = np.exp(3 * np.stack([(f := gaussian_filter(rng.normal(size=(rows, cols)), 4)) / f.std() for _ in range(5)]))
    share /= share.sum(axis=0)
    centres, noise, season = rng.normal(size=(5, dim)), rng.uniform(0.05, 0.5, 5), 0.6 * rng.normal(size=(5, dim))
    base, moved = (np.einsum("kyx,kd->dyx", share, c) for c in (centres, centres + season))
    loud = np.einsum("kyx,k->yx", share, noise)
    v = [at + loud * rng.standard_t(3, size=(dim, rows, cols)) for at in (base, moved)]
    return embeddings(rows, cols, dim, 2).copy(data=np.stack(v).astype("float32"))


@pytest.mark.parametrize("seed", range(4))
def test_unchanged_pairs_give_the_rate_in_places_not_fitted_on(seed):
    emb = hard_scene(seed)
    half, other = emb.isel(y=slice(0, 80)), emb.isel(y=slice(80, None))
    fitted = fit_calibration(half, "2019", "2020", unchanged=[("2019", "2020")])
    level = change(other, "2019", "2020", method="calibrated", calibration=fitted).values
    for alpha in (0.1, 0.05, 0.01):
        assert alpha / 2.2 < (level > 1 - alpha).mean() < 2.2 * alpha


@pytest.mark.parametrize("unchanged", [None, [("2019", "2020")]])
def test_equal_images_show_no_change(unchanged):
    emb = embeddings(times=2)
    emb.values[1] = emb.values[0]
    assert not (change(emb, "2019", "2020", method="calibrated", unchanged=unchanged) > 0.5).any()
    emb.values[1, :, 3, 4] = -emb.values[0, :, 3, 4]
    level = change(emb, "2019", "2020", method="calibrated", unchanged=unchanged).values
    assert level[3, 4] > 0.99
    assert (level > 0.5).sum() == 1


def test_other_grids_and_other_models_are_refused():
    emb = embeddings(times=2)
    a, b = emb.isel(time=0), emb.isel(time=1)
    assert change(emb, a, b).equals(change(emb, "2019", "2020"))
    for other in (b.assign_coords(x=b.x + 80), b.isel(y=slice(None, None, -1)), b.isel(x=slice(1, None))):
        with pytest.raises(ArgumentError, match="before.*reproject"):
            change(emb, a, other)
    a, b = a.assign_attrs({"deo_cube:model_fingerprint": "one"}), b.assign_attrs({"deo_cube:model_fingerprint": "two"})
    with pytest.raises(ArgumentError, match="before.*one and two"):
        change(emb, a, b)
    fitted = fit_calibration(emb.assign_attrs(a.attrs), "2019", "2020")
    with pytest.raises(ArgumentError, match="calibration"):
        change(emb.assign_attrs(b.attrs), "2019", "2020", method="calibrated", calibration=fitted)
    with pytest.raises(ArgumentError, match="ratios"):
        Calibration(np.zeros(7), np.zeros(3))


def test_two_arrays_and_two_stores_are_two_times(tmp_path):
    cube = deo_cube.synthetic_cube(size=96, times=2)
    emb = cube.deo.embed(dtype="int8")
    expected = change(emb.compute(), *(str(t) for t in emb.time.values[:2])).values
    first, second = (emb.isel(time=[t]) for t in (0, 1))
    for k, one in enumerate((first, second)):
        one.deo.to_zarr(tmp_path / f"{k}.zarr", progress=False)
    paths = [tmp_path / f"{k}.zarr" for k in (0, 1)]
    with dask.config.set(scheduler=no_compute):
        pairs = [
            change(first, second),
            first.deo.change(second),
            change(first.isel(time=0), second.isel(time=0)),
            change(str(paths[0]), str(paths[1])),
            change(paths[0], paths[1]),
            change(first, paths[1]),
            change(deo_cube.open_embeddings(paths[0]).to_dataset(name="embeddings"), paths[1]),
            change(emb, paths[0], paths[1]),
        ]
    for found in pairs:
        np.testing.assert_allclose(found.values, expected, atol=1e-6, equal_nan=True)
        assert found.attrs["before"] == str(emb.time.values[0])[:19]
    fitted = fit_calibration(paths[0], paths[1])
    level = change(paths[0], paths[1], method="calibrated", calibration=fitted)
    xr.testing.assert_allclose(level, change(first, second, method="calibrated"), atol=1e-5)
    both = tmp_path / "both.zarr"
    emb.deo.to_zarr(both, progress=False)
    times = [str(t)[:10] for t in emb.time.values]
    xr.testing.assert_allclose(change(both, *times).drop_attrs(), pairs[0].drop_attrs())


def test_what_is_not_a_pair_is_refused_and_the_advice_followed(tmp_path):
    emb = embeddings(times=2)
    a, b = emb.isel(time=0), emb.isel(time=1)
    with pytest.raises(ArgumentError, match="before='2019'.*after"):
        change(emb, "2019")
    with pytest.raises(ArgumentTypeError, match="two times"):
        change(emb, 3)
    with pytest.raises(StoreMismatchError):
        change(a, tmp_path / "none.zarr")
    with pytest.raises(ArgumentError, match=r"before must be of one time, got 2.*sel\(time="):
        change(emb, b)
    change(emb.sel(time="2019"), b)
    cut = b.isel(x=slice(3, None))
    with pytest.raises(ArgumentError, match="xr.align") as caught:
        change(a, cut)
    names = {"before": a, "after": cut, "xr": xr}
    text = str(caught.value)
    exec(text[text.index("before, after = xr.align") :], names)
    assert change(names["before"], names["after"]).equals(change(a, b).isel(x=slice(3, None)))
    with pytest.raises(ArgumentError, match="EPSG:32632 and EPSG:32633.*reproject"):
        change(a, embeddings(times=2, crs="EPSG:32633").isel(time=1))
    one, other = (v.assign_attrs({"deo_cube:layer": n}) for v, n in ((a, "last"), (b, "fused")))
    with pytest.raises(ArgumentError, match="layer"):
        change(one, other)


def test_the_command_maps_change_between_stores_and_times(tmp_path, capsys):
    emb = deo_cube.synthetic_cube(size=96, times=2).deo.embed()
    emb.deo.to_zarr(tmp_path / "e.zarr", progress=False)
    days = [str(t)[:10] for t in emb.time.values]
    for out in ("c.tif", "c.zarr"):
        paths = [str(tmp_path / name) for name in ("e.zarr", "e.zarr", out)]
        with pytest.raises(SystemExit) as ended:
            cli.main(["change", *paths, "--before", days[0], "--after", days[1]])
        assert ended.value.code == 0
    expected = change(emb, *days).compute()
    with rasterio.open(tmp_path / "c.tif") as file:
        np.testing.assert_allclose(file.read(1), expected.values, atol=1e-6)
        assert file.descriptions == ("change",)
        assert file.crs.to_epsg() == 32633
    xr.testing.assert_allclose(xr.open_zarr(tmp_path / "c.zarr").change.drop_attrs(), expected.drop_attrs(), atol=1e-6)
    with pytest.raises(SystemExit) as ended:
        cli.main(["change", str(tmp_path / "e.zarr"), str(tmp_path / "e.zarr"), str(tmp_path / "d.tif")])
    assert ended.value.code == 2
    assert "before" in capsys.readouterr().err


def test_products_of_other_levels_are_warned_of(recwarn):
    emb = embeddings(times=2)
    level = {k: emb.assign_attrs({"deo_cube:product_levels": f'["{k}"]'}) for k in ("L1C", "L2A")}
    change(level["L2A"].isel(time=0), level["L2A"].isel(time=1))
    change(level["L2A"].isel(time=0), emb.isel(time=1))
    assert not [w for w in recwarn if "products" in str(w.message)]
    with pytest.warns(UserWarning, match="before was made of L1C products, after of L2A"):
        change(level["L1C"].isel(time=0), level["L2A"].isel(time=1))
    with pytest.warns(UserWarning, match="L1C"):
        deo_cube.mosaic([level["L1C"].isel(x=slice(0, 20)), level["L2A"].isel(x=slice(12, 32))])
