"""Units, offset and nodata of cubes that have been through arithmetic, casts, resampling and other tools."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cube.bands import match_bands
from deo_cube.cube.units import canonical, decide_radiometry, mixed_with_nodata
from deo_cube.errors import AmbiguousUnitsError

BANDS = ("B04", "B03", "B02", "B08")
DN = {"units": "dn", "offset": 0}


def cube(values=None, *, lazy=False, dtype="uint16", attrs=None, encoding=None, times=2):
    """Four bands of (times, 32, 32) pixels as of land, the western half without data where no values are given."""
    if values is None:
        rng = np.random.default_rng(4)
        values = rng.integers(250, 3500, (len(BANDS), times, 32, 32))
        values[..., :16] = 0
    values = np.broadcast_to(np.asarray(values), (len(BANDS), times, 32, 32)).astype(dtype)
    time = np.datetime64("2022-06-01", "ns") + np.arange(times) * np.timedelta64(5, "D")
    ds = xr.Dataset(
        {b: (("time", "y", "x"), v.copy(), dict(attrs or {})) for b, v in zip(BANDS, values, strict=True)},
        {"time": time, "y": 5e6 - 10 * np.arange(32.0), "x": 6e5 + 10 * np.arange(32.0)},
    )
    for name in BANDS:
        ds[name].encoding.update(encoding or {})
    return ds.chunk() if lazy else ds


def decide(ds, **options):
    return decide_radiometry(ds, match_bands(ds, BANDS), **options)


def refused(ds, *parts, **options):
    with pytest.raises(AmbiguousUnitsError) as error:
        decide(ds, **options)
    for part in parts:
        assert part in str(error.value), str(error.value)


def valid_share(ds, r):
    return np.mean([np.isfinite(canonical(ds[b].values, r)) for b in BANDS])


# --- what was passed decides ----------------------------------------------------------------------

ATTRS = st.fixed_dictionaries(
    {},
    optional={
        "units": st.sampled_from(["DN", "%", "reflectance", "W m-2 sr-1 um-1", "1"]),
        "scale_factor": st.sampled_from([1.0, 1e-4, 10.0, 8.98e-5, 0.5]),
        "add_offset": st.sampled_from([0.0, -0.1, -1000.0, 0.1]),
        "nodata": st.sampled_from([0, 65535, float("nan")]),
        "boa_add_offset": st.sampled_from([0, -1000]),
    },
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(ATTRS, min_size=4, max_size=4),
    st.lists(ATTRS, min_size=4, max_size=4),
    st.sampled_from(
        [("float32", "reflectance", 1e4), ("float32", "percent", 100.0), ("float64", "dn", 1.0), ("uint16", "dn", 1.0)]
    ),
    st.sampled_from([0, -1000, -37.5]),
    st.sampled_from([0, 65535, None, -9999.0]),
)
def test_arguments_decide_whatever_metadata_say(attrs, encodings, kind, offset, nodata):
    dtype, units, scale = kind
    ds = cube(lazy=True, dtype=dtype)
    for band, a, e in zip(BANDS, attrs, encodings, strict=True):
        ds[band].attrs, ds[band].encoding = a, e
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        r = decide(ds, units=units, offset=offset, nodata=nodata)
    assert (r.units, r.scale, r.offset, r.nodata) == (units, scale, (float(offset),), nodata)


def test_units_are_heard_where_encodings_differ():
    ds = cube(0.2, dtype="float32")
    ds["B02"].encoding.update(scale_factor=1e-4, add_offset=-0.1)
    refused(ds, "B02", 'units="reflectance"')
    r = decide(ds, units="reflectance")
    assert (r.scale, r.offset) == (1e4, (0.0,))  # by one encoding subtracted, by the others free of it
    product = ds.assign_coords({"s2:processing_baseline": "03.01"})
    refused(product, "offset=", units="reflectance")
    assert decide(product, units="reflectance", offset=0).offset == (0.0,)


def test_values_warn_of_what_was_passed_and_do_not_refuse_it():
    dark = cube(np.full((4, 2, 32, 32), 300))
    with pytest.warns(UserWarning, match="offset=-1000 is taken as given"):
        r = decide(dark, offset=-1000)
    assert deo_cube.cube.units.find_unit_error(dark.B02.values, r) is None  # nor does a task
    filled = cube(np.where(np.arange(32) < 8, 65535, 1500))
    with pytest.warns(UserWarning, match="nodata=0"):
        r = decide(filled, **DN, nodata=0)
    assert r.nodata == 0


# --- nodata ---------------------------------------------------------------------------------------

WAYS = {
    "cast": lambda ds: ds.astype("float32"),
    "one band cast": lambda ds: ds.assign(B08=ds.B08.astype("float64")),
    "where": lambda ds: ds.where(ds.y < ds.y[0] + 1),
    "interp": lambda ds: ds.interp(x=ds.x, y=ds.y, method="nearest"),
    "reindex": lambda ds: ds.reindex(x=ds.x, y=ds.y, method="nearest").astype("float32"),
    "halves": lambda ds: ds.isel(x=slice(0, 20)).combine_first(ds.isel(x=slice(12, 32))),
    "median of dates": lambda ds: ds.median("time", keep_attrs=True).expand_dims(time=ds.time[:1]),
    "coarse cells": lambda ds: ds.coarsen(x=2, y=2).mean(),
    "scaled": lambda ds: ds * 1.0,
}


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("attrs", [{}, {"nodata": 0}, {"_FillValue": 0}])
@pytest.mark.parametrize("way", WAYS)
def test_zero_stays_no_data_in_floats(way, attrs, keep):
    with xr.set_options(keep_attrs=keep):
        made = WAYS[way](cube(attrs=attrs))
    for ds in (made, made.chunk()):
        r = decide(ds, **DN)
        assert r.nodata == 0
        assert valid_share(ds, r) == 0.5


def test_reflectance_made_of_integers_keeps_their_nodata():
    r = decide(cube() * 1e-4, units="reflectance", offset=0)
    assert (r.nodata, valid_share(cube() * 1e-4, r)) == (0.0, 0.5)
    # What decoding made NaN is no data already, and 0 is a measurement.
    decoded = cube(0.1, dtype="float32", encoding={"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0})
    decoded["B04"][..., :4] = 0
    assert decide(decoded).nodata is None
    assert decide(cube(0.1, dtype="float32", attrs={"nodata": np.nan, "units": "reflectance"}), offset=0).nodata is None


def test_marks_that_arithmetic_moved_are_found():
    shifted = cube().astype("int32") - 1000
    refused(shifted, "nodata=-1000", **DN)
    r = decide(shifted, **DN, nodata=-1000)
    assert valid_share(shifted, r) == 0.5
    refused((cube() + 0.0) * 1e-4 - 0.1, "nodata=-0.1", units="reflectance", offset=0)
    refused(cube() - np.uint16(1000), 'astype("int32")', offset=0)  # wrapped round below zero


def test_different_nodata_are_unified_as_the_message_says():
    ds = cube()
    ds["B08"] = ds.B08.where(ds.B08 != 0, 65535).assign_attrs(nodata=65535)
    ds["B02"].attrs["nodata"] = 0
    with pytest.raises(AmbiguousUnitsError) as error:
        decide(ds, **DN)
    advice = re.search(r"(cube\['B08'\] = .*?65535\)), and pass nodata=(\d+)", str(error.value))
    names = {"cube": ds}
    exec(advice[1], names)
    r = decide(names["cube"], **DN, nodata=float(advice[2]))
    assert valid_share(names["cube"], r) == 0.5


def test_interpolation_across_the_edge_of_no_data_is_found_and_the_advice_is_right():
    fine = {"x": 6e5 + 5 * np.arange(63), "y": 5e6 - 5 * np.arange(63)}
    mixed = cube().interp(fine)
    refused(mixed, "NaN before that step", **DN)
    assert decide(mixed, **DN, nodata=0).nodata == 0  # what was passed decides
    advised = cube().where(cube() != 0).interp(fine)
    r = decide(advised, **DN)
    low = np.nanmin([canonical(advised[b].values, r) for b in BANDS])
    assert low >= 250  # no value between 0 and the data


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.0, 65535.0]))
@settings(deadline=None)
def test_edges_of_no_data_that_were_not_interpolated_pass(seed, nodata):
    rng = np.random.default_rng(seed)
    plane = rng.integers(200, 4000, (64, 64)).astype("float32") + 0.5
    plane[:, : rng.integers(1, 60)] = nodata
    plane[rng.random((64, 64)) < 0.02] = nodata
    assert not mixed_with_nodata(plane, nodata)


# --- records and arithmetic -----------------------------------------------------------------------


def synthetic(**options):
    ds = deo_cube.synthetic_cube(**({"size": 64, "times": 1, "clouds": False, "gaps": False} | options))
    return ds[[b for b in ds.data_vars if b.startswith("B")]]


@pytest.mark.parametrize("lazy", [True, False])
def test_a_recorded_offset_does_not_outlive_arithmetic(lazy):
    carried = synthetic(offset=-1000, chunks={"time": 1, "y": 32, "x": 32} if lazy else None)
    truth = carried.deo.embed().values
    with xr.set_options(keep_attrs=True):
        harmonised = carried.astype("int32").clip(min=1000) - 1000
        reflectance = (carried.astype("float64") - 1000) / 1e4
        scaled = carried * 1e-4
    with pytest.raises(AmbiguousUnitsError, match="offset=0"):
        harmonised.deo.embed().compute()
    np.testing.assert_allclose(harmonised.deo.embed(offset=0).values, truth, atol=0.05)
    with pytest.raises(AmbiguousUnitsError, match="offset="):
        reflectance.deo.embed(units="reflectance")
    np.testing.assert_allclose(reflectance.deo.embed(units="reflectance", offset=0).values, truth, atol=0.05)
    with pytest.raises(AmbiguousUnitsError, match='units="reflectance" and offset='):
        scaled.deo.embed().compute()
    with pytest.raises(AmbiguousUnitsError, match="offset=-1000 if they carry it"):
        scaled.deo.embed(units="reflectance")
    np.testing.assert_allclose(scaled.deo.embed(units="reflectance", offset=-1000).values, truth, atol=0.05)


def test_reflectance_that_was_made_with_its_record_keeps_it():
    ds = synthetic(units="reflectance", offset=-1000, chunks=None)
    assert decide(ds).offset == (-1000.0,)


def test_records_that_differ_are_refused():
    ds = cube(2000, attrs={"units": "DN", "boa_add_offset": -1000})
    ds["B02"] = (ds.B02 - 1000).assign_attrs(units="DN", boa_add_offset=0)
    refused(ds, "different offsets", "offset=0")


# --- units and scales -----------------------------------------------------------------------------


@pytest.mark.parametrize("said", ["%", "percent", "per cent", "PERCENT"])
def test_per_cent_are_read_as_such(said):
    dn = np.arange(4 * 2 * 32 * 32).reshape(4, 2, 32, 32) % 4000 + 100
    for lazy in (False, True):
        r = decide(cube(dn / 100, dtype="float64", attrs={"units": said}, lazy=lazy))
        assert (r.units, r.scale, r.offset) == ("percent", 100.0, (0.0,))
        np.testing.assert_allclose(canonical(dn[0] / 100, r), dn[0], rtol=1e-6)
    water = cube(dn / 4000 * 0.6 / 100, dtype="float64", attrs={"units": said})  # fractions, the attribute is stale
    refused(water, 'units="reflectance"')
    with pytest.warns(UserWarning, match="per cent"):
        assert decide(water, units="reflectance", offset=0).scale == 1e4


def test_dark_per_cent_are_not_taken_for_fractions_in_silence():
    dark = np.tile(np.linspace(0.3, 4.8, 32), (4, 2, 32, 1))
    refused(cube(dark, dtype="float32", attrs={"units": "%"}), 'units="percent"', units="reflectance")
    assert decide(cube(dark, dtype="float32"), units="percent").scale == 100
    assert decide(cube(dark.astype(int) + 3, dtype="uint8"), units="percent").scale == 100


def test_packed_per_cent_and_reflectance_are_unpacked():
    r = decide(cube(1500, attrs={"units": "%", "scale_factor": 0.01, "add_offset": -10.0}, lazy=True))
    assert (r.units, r.scale, r.offset) == ("dn", 1.0, (-1000.0,))
    r = decide(cube(1500, attrs={"units": "reflectance", "scale_factor": 1e-4, "add_offset": 0.0}, lazy=True))
    assert (r.units, r.scale, r.offset) == ("dn", 1.0, (0.0,))


def test_other_quantities_are_no_reflectance():
    for said in ("W m-2 sr-1 um-1", "K", "dB", "radiance"):
        refused(cube(attrs={"units": said}, lazy=True), said, "units=")
        assert decide(cube(attrs={"units": said}, lazy=True), **DN).units == "dn"


def test_a_scale_that_is_the_size_of_a_pixel_is_no_scale():
    ten_metres = cube(attrs={"scale_factor": 10.0}, lazy=True)
    assert decide(ten_metres, offset=0).scale == 1.0
    degrees = cube(attrs={"scale_factor": 8.98e-5}, lazy=True)
    degrees = degrees.assign_coords(x=16 + 8.98e-5 * np.arange(32), y=45 - 8.98e-5 * np.arange(32))
    refused(degrees, "size of a pixel", "units=", offset=0)
    assert decide(degrees, **DN).scale == 1.0
    grid = cube(attrs={"scale_factor": 1e-4, "add_offset": 0.0}, lazy=True)
    grid = grid.assign_coords(x=16 + 1e-4 * np.arange(32), y=45 - 1e-4 * np.arange(32))
    assert decide(grid).scale == 1.0  # the scale of reflectance, on a grid of 0.0001 degrees


@pytest.mark.parametrize("factor", [0.5, 100.0, 0.0275])
def test_scales_that_lead_nowhere_are_asked_about(factor):
    refused(cube(attrs={"scale_factor": factor}, lazy=True), f"{factor:g}", "units=", offset=0)
    assert decide(cube(attrs={"scale_factor": factor}, lazy=True), **DN).scale == 1.0


def test_offsets_in_odd_places():
    # Of DN, without a scale.
    for attrs in ({"add_offset": -1000.0}, {"add_offset": -1000, "scale_factor": 1.0}):
        assert decide(cube(2000, attrs=attrs, lazy=True)).offset == (-1000.0,)
    # Neither 0 nor -1000: a sign turned round, another sensor's.
    for attrs in ({"scale_factor": 1e-4, "add_offset": 0.1}, {"scale_factor": 1e-4, "add_offset": -0.2}):
        refused(cube(2000, attrs=attrs, lazy=True), "neither 0 nor -1000", "offset=")
        assert decide(cube(2000, attrs=attrs, lazy=True), offset=-1000).offset == (-1000.0,)
    refused(cube(2000, attrs={"scale_factor": 2.75e-5, "add_offset": -0.2}, lazy=True), "decoded", "units=")
    # Different ones among the bands, of which the first alone counted.
    ds = cube(2000, attrs={"scale_factor": 1e-4, "add_offset": -0.1}, lazy=True)
    ds["B08"].attrs["add_offset"] = 0.0
    refused(ds, "offset=", units="dn")


def test_eight_bits_in_sixteen_are_seen():
    picture = np.arange(4 * 2 * 32 * 32).reshape(4, 2, 32, 32) % 250 + 6
    refused(cube(picture), "uint8_rgb", 'units="dn"', offset=0)
    assert decide(cube(picture), **DN).units == "dn"
    water = np.minimum(picture, [[[[200]]], [[[255]]], [[[255]]], [[[40]]]])
    assert decide(cube(water), offset=0).units == "dn"  # no 8-bit image: one band is dark


def test_all_that_is_wrong_comes_in_one_message():
    ds = cube(0.2, dtype="float32")
    ds["B02"].attrs["nodata"], ds["B03"].attrs["nodata"] = 0, 65535
    refused(ds, 'units="reflectance"', "offset=0", "pass nodata=")


def test_dates_of_other_units_are_named():
    values = np.random.default_rng(0).uniform(200, 4000, (4, 2, 32, 32))
    values[:, 1] /= 1e4
    refused(cube(values, dtype="float32"), "at 1 of 2 time steps (2022-06-06)", **DN)


TEN_BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


def cube_with_edge(void: float, edge: float, dtype: str = "uint16", **attrs: float) -> xr.Dataset:
    """A lazy cube whose western quarter is `edge` and whose first row is `void`."""
    rng = np.random.default_rng(1)
    bands = {}
    for band in TEN_BANDS:
        values = rng.integers(300, 4000, (64, 64)).astype(dtype)
        values[:, :16] = edge
        values[0] = void
        bands[band] = (("y", "x"), values, attrs)
    grid = 10 * (np.arange(64) + 0.5)
    return xr.Dataset(bands, {"y": 5e6 - grid, "x": 6e5 + grid}).chunk().rio.write_crs(32633)


@pytest.mark.parametrize(
    ("dtype", "void", "attrs"),
    [
        ("uint16", 65535, {"_FillValue": 65535}),  # netCDF's own fill value, which references state
        ("int16", -9999, {"_FillValue": -9999}),
        ("float32", np.nan, {"_FillValue": np.nan}),
    ],
)
@pytest.mark.parametrize("what", ["values", "valid"])
def test_zeros_in_all_bands_are_not_data_because_another_value_is_stated(dtype, void, attrs, what) -> None:
    ds = cube_with_edge(void, 0, dtype, **attrs)
    emb = ds.deo.embed(units="dn", offset=0)
    with pytest.raises(AmbiguousUnitsError, match="nodata=0") as error:
        (emb if what == "values" else emb.valid).compute()
    if np.isfinite(void):
        # The message's own words, for a cube that holds both.
        text = str(error.value)
        call = text[text.index("cube.where(") : text.index(" first)")]
        ds = eval(call, {"cube": ds})
    right = cube_with_edge(0, 0).deo.embed(units="dn", offset=0).compute()
    found = ds.deo.embed(units="dn", offset=0, nodata=0).compute()
    np.testing.assert_array_equal(found.valid, right.valid)
    np.testing.assert_allclose(found, right, atol=0.02)
    assert right.valid[8, 0] == 0


def test_zeros_are_data_where_the_caller_says_so_or_single_bands_hold_them() -> None:
    said = cube_with_edge(65535, 0, _FillValue=65535).deo.embed(units="dn", offset=0, nodata=65535)
    assert float(said.valid[8, 0]) == 1
    ds = cube_with_edge(65535, 500, _FillValue=65535)
    ds["B02"] = ds["B02"].where(ds["B02"] != 500, 0)  # clipped at zero, as dark water is in one band
    assert float(ds.deo.embed(units="dn", offset=0).valid[8, 0]) == 1


@pytest.mark.parametrize("lazy", [False, True])
def test_a_few_dark_pixels_taken_below_zero_are_found(lazy):
    """Of values with the +1000 few are below 1000: shadows and water, 0.3 % of a scene."""
    raw = synthetic(size=128, offset=-1000)
    dark = np.random.default_rng(0).random((1, 128, 128)) < 0.003
    raw = raw.map(lambda v: v.where(~dark, 950).astype("uint16"), keep_attrs=True)
    wrapped, signed = raw - np.uint16(1000), raw.astype("int32") - 1000
    assert int((wrapped["B04"] > 60000).sum()) == int(dark.sum())
    for ds in (wrapped, signed):
        for band in ds.data_vars.values():
            band.attrs.pop("boa_add_offset", None)
    wrapped = wrapped.chunk() if lazy else wrapped
    with pytest.raises(AmbiguousUnitsError, match="int32"):
        wrapped.deo.embed(offset=0).compute()
    assert np.isfinite(signed.deo.embed(offset=0).values).all()


def test_saturated_pixels_pass():
    ds = synthetic(size=128, offset=0)
    ds = ds.map(lambda v: v.copy(data=np.where(np.arange(128) < 1, 65535, v.values).astype("uint16")), keep_attrs=True)
    assert ds.deo.embed().sizes["y"]


def test_two_marks_of_no_data_are_refused_and_the_advice_makes_them_one():
    ds = cube()
    for name in BANDS:
        ds[name].values[:, :2, :2] = 65535
        ds[name].attrs |= {"_FillValue": np.uint16(0), "missing_value": np.uint16(65535)}
    refused(ds, "missing_value", offset=0)
    made = ds.where(ds != 65535, 0)
    expected = np.mean([((ds[b] != 65535) & (ds[b] != 0)).mean() for b in BANDS])
    assert valid_share(made, decide(made, offset=0, nodata=0)) == pytest.approx(expected)
    for name in BANDS:
        ds[name].attrs["missing_value"] = np.uint16(0)
    assert decide(ds.where(ds != 65535, 0), offset=0).nodata == 0


@pytest.mark.parametrize("units", ["dn", "reflectance"])
@pytest.mark.parametrize("lazy", [False, True])
def test_values_that_carry_the_offset_are_not_taken_without_a_word(units, lazy):
    """DN divided by 10000 are called reflectance, and carry what the DN carried."""
    carried = synthetic(size=128, offset=-1000).drop_vars("processing_baseline", errors="ignore")
    free = synthetic(size=128, offset=0).drop_vars("processing_baseline", errors="ignore")
    options = {"units": units} | ({"offset": 0} if units == "dn" else {})
    cubes = []
    for ds in (carried, free):
        for band in ds.data_vars.values():
            band.attrs.clear()
        ds.attrs.clear()
        ds = ds.astype("float32") if units == "dn" else (ds / 10000).where(ds > 0)
        cubes.append(ds.chunk(x=64) if lazy else ds.compute())
    carried, free = cubes
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        free.deo.embed(**options).compute()
        carried.deo.embed(**(options | {"offset": -1000})).compute()
    if units == "reflectance" and not lazy:
        with pytest.raises(AmbiguousUnitsError, match="offset=-1000"):
            carried.deo.embed(**options)
        options["offset"] = 0
    with pytest.warns(UserWarning, match="offset=-1000 if they do"):
        carried.deo.embed(**options).compute()


def test_dates_that_carry_the_offset_are_named():
    free = synthetic(size=128, offset=0).compute()
    ds = xr.concat([free, (free + 1000).assign_coords(time=free.time + np.timedelta64(10, "D"))], "time")
    with pytest.warns(UserWarning, match=r"at 1 of 2 time steps \(2021"):
        ds.deo.embed(offset=0)
