import functools
import warnings

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from deo_cube.constants import MODEL_BANDS
from deo_cube.cube.bands import match_bands
from deo_cube.cube.composite import composite
from deo_cube.cube.georeference import geobox
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.cube.units import SCL_INVALID, canonical, decide_radiometry
from deo_cube.errors import AmbiguousUnitsError, MissingBandsError


@functools.cache
def drawn(offset=0):
    return synthetic_cube(size=64, times=4, seed=3, clouds=0.4, offset=offset).load()


def cube(offset=0):
    ds = drawn(offset)
    return ds.assign({n: v.chunk({"y": 32, "x": 64}) for n, v in ds.data_vars.items()})


def canonical_stack(ds, band):
    match = match_bands(ds, [band])
    r = decide_radiometry(ds, match)
    return np.stack([canonical(ds[band].values[t], r, t) for t in range(ds.sizes["time"])])


def test_a_median_is_that_of_the_clear_canonical_values():
    ds = cube(offset=-1000)
    made = composite(ds)
    assert made.sizes == {"time": 1, "y": 64, "x": 64}
    assert set(made.data_vars) >= set(MODEL_BANDS)
    assert "SCL" not in made
    clear = ~np.isin(ds.SCL.values, SCL_INVALID)
    for band in ("B02", "B11"):
        values = np.where(clear, canonical_stack(ds, band), np.nan)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pixels without one clear date
            expected = np.nanmedian(values, axis=0)
        np.testing.assert_array_equal(made[band].values[0], expected.astype("float32"))
    assert geobox(made) == geobox(ds)
    assert made.attrs["deo_cube:synthetic"] == ds.attrs["deo_cube:synthetic"]


def test_dates_before_and_after_baseline_04_meet():
    """The same scene, half of its dates with the +1000: the composite is that of the scene without."""
    plain = cube()
    carried = cube(offset=-1000)
    mixed = xr.concat(
        [plain.isel(time=[0, 1]), carried.isel(time=[2, 3])], "time", data_vars="minimal", coords="minimal"
    )
    for key in ("boa_add_offset",):
        mixed.attrs.pop(key, None)
        for v in mixed.data_vars.values():
            v.attrs.pop(key, None)
    mixed = mixed.drop_vars(["processing_baseline", "boa_add_offset"], errors="ignore")
    mixed = mixed.assign_coords(boa_add_offset=("time", [0.0, 0.0, -1000.0, -1000.0]))
    made, alone = composite(mixed), composite(plain)
    # Archive DN of the very darkest pixels are clipped at 1, in one notation and not in the other.
    same = np.isclose(made.B04.values, alone.B04.values, equal_nan=True, atol=2)
    assert same.mean() > 0.99
    again = decide_radiometry(made, match_bands(made, MODEL_BANDS))
    assert (again.units, again.scale, again.offset, again.nodata) == ("dn", 1.0, (0.0,), None)


def test_nothing_is_read_at_the_call_and_the_result_stays_lazy(monkeypatch):
    ds = cube()

    def refuse(*_, **__):
        raise AssertionError("computed at the call")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dask.base.compute", refuse)
        patch.setattr("dask.array.Array.compute", refuse)
        patch.setattr("dask.array.Array.__array__", refuse)
        made = composite(ds)
        least = composite(ds.assign_coords({"eo:cloud_cover": ("time", [4.0, 1, 3, 2])}), "least_cloudy", freq="YS")
    for layer in (*made.data_vars.values(), *least.data_vars.values()):
        assert layer.chunks is not None


@settings(max_examples=8)
@given(y=st.integers(8, 64), x=st.integers(8, 64), how=st.sampled_from(["median", "least_cloudy", "first"]))
def test_chunks_change_no_number(y, x, how):
    ds = cube().assign_coords({"eo:cloud_cover": ("time", [40.0, 10, 30, 20])})[["B04", "SCL"]]
    expected = composite(ds.compute(), how)
    made = composite(ds.chunk({"y": y, "x": x}), how)
    xr.testing.assert_identical(made.load(), expected)


def test_least_cloudy_takes_each_pixel_whole_from_the_least_cloudy_date_that_is_clear_there():
    ds = cube().assign_coords({"eo:cloud_cover": ("time", [40.0, 10.0, np.nan, 20.0])})
    made = composite(ds, "least_cloudy")
    clear = ~np.isin(ds.SCL.values, SCL_INVALID)
    for band in ("B03", "B12"):
        values = canonical_stack(ds, band)
        expected = np.full((64, 64), np.nan, "float32")
        for t in (2, 0, 3, 1):  # the best last, over the others; of the third date nothing is known
            expected = np.where(clear[t] & np.isfinite(values[t]), values[t], expected)
        np.testing.assert_array_equal(made[band].values[0], expected)
    np.testing.assert_array_equal(np.isin(made.SCL.values[0], SCL_INVALID), np.isnan(made.B03.values[0]))
    with pytest.raises(ValueError, match=r"eo:cloud_cover.*isin"):
        composite(cube(), "least_cloudy")


def test_a_mask_of_ones_own():
    ds = cube()[["B02", "SCL"]]
    mask = xr.zeros_like(ds.SCL, dtype=bool)
    mask[:, :10] = True
    made = composite(ds, "first", mask=mask)
    assert np.isnan(made.B02.values[0, :10]).all()
    np.testing.assert_array_equal(made.B02.values[0, 10:], canonical_stack(ds, "B02")[0, 10:])
    flat = composite(ds, "first", mask=mask.isel(time=0, drop=True))
    xr.testing.assert_equal(flat, made)
    with pytest.raises(ValueError, match="differ along y"):
        composite(ds, mask=mask.isel(y=slice(5, None)))
    with pytest.raises(ValueError, match="mask must be"):
        composite(ds, mask="scl")
    with pytest.raises(ValueError, match="mask must be boolean"):
        composite(ds, mask=ds.SCL)


def test_periods():
    ds = synthetic_cube(size=32, times=6, clouds=0.0)[["B02", "SCL"]]
    times = pd.to_datetime(["2024-01-05", "2024-01-20", "2024-02-10", "2024-06-01", "2024-06-30", "2024-07-01"])
    made = composite(ds.assign_coords(time=times.astype("datetime64[ns]")), freq="MS")
    assert [str(t)[:10] for t in made.time.values] == ["2024-01-01", "2024-02-01", "2024-06-01", "2024-07-01"]
    assert made.dates.values.tolist() == [2, 1, 2, 1]
    with pytest.raises(ValueError, match="frequency of pandas"):
        composite(ds, freq="fortnight")


def test_tiles_of_one_day_become_one_image_clouds_and_all():
    whole = cube().isel(time=[0])[["B02", "B11", "SCL"]].load()
    west, east = whole.copy(deep=True), whole.copy(deep=True)
    for part, hole in ((west, slice(40, None)), (east, slice(0, 40))):
        for v in part.data_vars.values():
            v[:, :, hole] = 0
    tiles = xr.concat([west, east], "time", data_vars="minimal", coords="minimal")
    made = composite(tiles, "first", freq="D", mask=False)
    assert made.sizes["time"] == 1
    assert made.time.values[0] == whole.time.values[0]
    expected = canonical_stack(whole, "B02")[0]
    np.testing.assert_array_equal(made.B02.values[0], expected)
    np.testing.assert_array_equal(made.SCL.values[0], np.where(np.isnan(expected), 0, whole.SCL.values[0]))


def test_a_band_dimension_and_refusals():
    ds = cube()[list(MODEL_BANDS)]
    xr.testing.assert_allclose(composite(ds.to_dataarray("band")).B05, composite(ds).B05)
    with pytest.raises(ValueError, match="time"):
        composite(ds.isel(time=0))
    with pytest.raises(MissingBandsError, match="no variable is named"):
        composite(ds[["B02"]].rename(B02="first"))
    with pytest.raises(ValueError, match="how must be"):
        composite(ds, "mean")


def test_a_composite_embeds():
    from deo_cube.embedding.embed import embed

    emb = embed(composite(cube()), "tiny")
    assert emb.sizes["time"] == 1
    assert np.isfinite(emb.values).mean() > 0.9


def test_values_that_contradict_their_units_are_refused_and_the_advice_works() -> None:
    cube = synthetic_cube(size=64, times=3)[list(MODEL_BANDS)]
    gap = cube.where(cube["time"] != cube["time"][1], 65535).astype("uint16").assign_attrs(cube.attrs)
    lazy = composite(gap, units="dn", offset=0)
    with pytest.raises(AmbiguousUnitsError, match="nodata=65535"):
        lazy.compute()
    with pytest.raises(AmbiguousUnitsError, match="nodata=65535"):
        composite(gap.compute(), units="dn", offset=0)
    known = composite(gap, units="dn", offset=0, nodata=65535).compute()
    others = composite(cube.isel(time=[0, 2]), units="dn", offset=0).compute()
    np.testing.assert_array_equal(known["B04"], others["B04"])
    # What a mask hides contradicts nothing.
    hidden = xr.DataArray(np.arange(3) == 1, dims="time") & xr.ones_like(cube["B04"], bool)
    np.testing.assert_array_equal(composite(gap, mask=hidden, units="dn", offset=0).compute()["B04"], others["B04"])
