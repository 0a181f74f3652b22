from __future__ import annotations

import json
import math
import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from deo_cube.cube.bands import match_bands
from deo_cube.cube.synthetic import synthetic_cube
from deo_cube.cube.units import Radiometry, canonical, decide_radiometry, find_unit_error
from deo_cube.errors import AmbiguousUnitsError

BANDS = ("B04", "B03", "B02")
COGS = "s3://sentinel-cogs/sentinel-s2-l2a-cogs/32/T/MT/2022/3/x"


def cube(values=500, dtype="uint16", times=2, lazy=False, attrs=None, encoding=None, **coords):
    """Three bands of 2 x 8 x 8 pixels; coordinates given as scalars or one a time step."""
    data = np.broadcast_to(np.asarray(values), (times, 8, 8)).astype(dtype)
    ds = xr.Dataset(
        {b: (("time", "y", "x"), data.copy(), dict(attrs or {})) for b in BANDS},
        {"time": np.datetime64("2022-06-01", "ns") + np.arange(times) * np.timedelta64(5, "D")},
    ).assign_coords(y=np.arange(8.0)[::-1], x=np.arange(8.0))
    for name in BANDS:
        ds[name].encoding.update(encoding or {})
    ds = ds.assign_coords({k: v if np.ndim(v) == 0 else ("time", v) for k, v in coords.items()})
    return ds.chunk() if lazy else ds


def decide(ds, **options):
    return decide_radiometry(ds, match_bands(ds, BANDS), **options)


def refused(ds, *parts, **options):
    with pytest.raises(AmbiguousUnitsError) as error:
        decide(ds, **options)
    for part in parts:
        assert part in str(error.value), str(error.value)
    assert isinstance(error.value, ValueError)


def pixels(ds, radiometry):
    return np.stack([[canonical(ds[b].values[t], radiometry, t) for b in BANDS] for t in range(ds.sizes["time"])])


# --- three shapes of one scene --------------------------------------------------------------------

scenes = arrays.arrays(np.int32, (2, 8, 8), elements=st.integers(-900, 16000))


@given(scenes, st.sampled_from(["uint16", "int16", "int32"]))
def test_three_shapes_of_a_scene_become_one(true, kind):
    true = np.where(true == 0, 1, true) if kind != "uint16" else np.maximum(true, 1)
    raw = cube(true + 1000, kind, lazy=True, boa_add_offset=[-1000.0, -1000.0])
    free = cube(true, kind, lazy=True, boa_add_offset=0)
    double = cube(true / 10000, "float64", lazy=True, attrs={"units": "reflectance"})
    single = cube(true / 10000, "float32", lazy=True, attrs={"units": "reflectance"})
    shifted = cube(
        (true + 1000) * 1e-4 - 0.1, "float64", lazy=True, encoding={"scale_factor": 1e-4, "add_offset": -0.1}
    )
    expected = np.stack([true] * 3, 1).astype(np.float32)
    for ds in (raw, free, double, shifted):
        assert pixels(ds, decide(ds)).tobytes() == expected.tobytes()
    np.testing.assert_allclose(pixels(single, decide(single)), expected, rtol=1e-6)


@pytest.mark.parametrize("offset", [0, -1000])
def test_synthetic_cubes_become_one_whatever_they_are_written_as(offset):
    def of(**options):
        ds = synthetic_cube(size=48, seed=3, clouds=False, gaps=False, chunks=None, **options)
        return pixels(ds, decide(ds))

    plain = of()
    assert plain.min() >= 0
    np.testing.assert_array_equal(of(offset=offset), plain)
    np.testing.assert_allclose(of(offset=offset, units="reflectance"), plain, atol=0.51)


def test_mixed_cubes_are_freed_step_by_step():
    true = np.full((2, 8, 8), 1500)
    ds = cube(true + np.array([1000, 0])[:, None, None], boa_add_offset=[-1000.0, 0.0])
    decided = decide(ds)
    assert decided.offset == (-1000.0, 0.0)
    assert (pixels(ds, decided) == 1500).all()
    assert (pixels(ds, decide(ds, offset=[-1000, 0])) == 1500).all()
    with pytest.raises(ValueError, match="one for each of 2 time steps"):
        decide(ds, offset=[0, 0, 0])


# --- evidence -------------------------------------------------------------------------------------


def test_arguments_beat_everything():
    ds = cube(1500, attrs={"units": "DN"}, boa_add_offset=0.0)
    decided = decide(ds, offset=-1000, nodata=7)
    assert (decided.offset, decided.nodata) == ((-1000.0,), 7.0)
    assert any("offset=-1000 was passed" in w for w in decided.reasons)
    assert decide(ds, nodata=None).nodata is None


@pytest.mark.parametrize("lazy", [False, True])
def test_nothing_known_is_refused(lazy):
    refused(cube(lazy=lazy), "Pass offset=-1000 if they carry it, offset=0 if not", "nothing is known")
    refused(cube(0.05, "float32", lazy=lazy), 'units="reflectance"', 'units="dn"')
    refused(cube(50, "uint8", lazy=lazy), "uint8_rgb")
    # The date alone decides nothing, before or after January 2022.
    for date in ("2016-06-01", "2024-06-01"):
        dated = cube(lazy=lazy)
        refused(dated.assign_coords(time=np.array([date, date], "M8[ns]")), "nothing is known")


def test_values_in_memory_serve_as_a_hint_and_never_decide():
    refused(cube(1012), "The smallest valid value is DN 1012: looks as if the offset is carried (offset=-1000)")
    refused(cube(300), "100% of the valid values are below DN 900: looks as if no offset is carried (offset=0)")
    refused(cube(950), "DN 950", "offset=")
    with pytest.raises(AmbiguousUnitsError) as error:
        decide(cube(1012, lazy=True))
    assert "smallest" not in str(error.value)


@pytest.mark.parametrize(
    ("coords", "add"),
    [
        ({"s2:processing_baseline": ["02.14", "03.01"]}, (0.0,)),
        ({"id": "S2A_MSIL2A_20200219T112111_N0214_R037_T29RKH_20200219T123947"}, (0.0,)),
        (
            {"s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True, "earthsearch:s3_path": COGS},
            (0.0,),
        ),
        ({"s2:processing_baseline": "04.00", "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/x"}, (-1000.0,)),
        (
            {"s2:processing_baseline": ["03.01", "04.00"], "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/x"},
            (0.0, -1000.0),
        ),
    ],
)
def test_coordinates_named_as_item_properties_are_evidence(coords, add):
    assert decide(cube(lazy=True, **coords)).offset == add


def test_an_undecided_step_is_named():
    ds = cube(lazy=True, **{"s2:processing_baseline": ["03.01", "04.00"]})
    refused(ds, "unknown at 1 of 2 time steps (2022-06-06)", "one number per time step")
    refused(cube(lazy=True, boa_add_offset=[0.0, math.nan]), "records no decision")
    assert decide(ds, offset=[0, -1000]).offset == (0.0, -1000.0)


def test_contradicting_catalogues_are_refused():
    ds = cube(
        lazy=True,
        **{"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": False, "earthsearch:s3_path": COGS},
    )
    refused(ds, "contradictory", "Pass offset=-1000 if they carry it, offset=0 if not")


def test_cf_metadata_not_yet_applied():
    ds = cube(1500, attrs={"scale_factor": 1e-4, "add_offset": -0.1}, lazy=True)
    decided = decide(ds)
    assert (decided.units, decided.scale, decided.offset) == ("dn", 1.0, (-1000.0,))
    half = cube(3000, attrs={"scale_factor": 0.5e-4, "add_offset": 0.0}, lazy=True)
    assert decide(half, offset=0).scale == 0.5
    # GDAL's default of (1, 0), which rioxarray always writes, says nothing.
    refused(cube(attrs={"scale_factor": 1.0, "add_offset": 0.0}), "nothing is known")


def test_cf_metadata_applied_on_decoding(tmp_path):
    stored = cube(1500, attrs={"scale_factor": 1e-4, "add_offset": -0.1, "_FillValue": 0})
    stored["B02"][0, 0, 0] = 0
    stored.to_zarr(tmp_path / "cube.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "cube.zarr", chunks=None, consolidated=False) as decoded:
        decided = decide(decoded)
        assert (decided.units, decided.scale, decided.offset, decided.nodata) == ("reflectance", 1e4, (0.0,), None)
        values = pixels(decoded, decided)
    assert np.isnan(values[0, 2, 0, 0])
    np.testing.assert_allclose(values[1], 500, rtol=1e-12)


def test_applied_offsets_that_the_product_did_not_need_are_mended_or_refused():
    encoding = {"scale_factor": 1e-4, "add_offset": -0.1}
    stale = {"s2:processing_baseline": "05.00", "earthsearch:boa_offset_applied": True, "earthsearch:s3_path": COGS}
    decided = decide(cube(-0.05, "float64", lazy=True, encoding=encoding, **stale))
    assert decided.offset == (1000.0,)
    assert any("applied wrongly" in w for w in decided.reasons)
    old = {"s2:processing_baseline": "02.14"}
    refused(cube(0.05, "float64", lazy=True, encoding=encoding, **old), "contradictory")


def test_reflectance_by_name_is_free_of_the_offset_unless_the_product_speaks_against_it():
    assert decide(cube(0.1, "float32", lazy=True), units="reflectance").offset == (0.0,)
    raw = {"s2:processing_baseline": "04.00", "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/x"}
    refused(cube(0.1, "float32", lazy=True, **raw), "whether the reflectance was computed", units="reflectance")
    assert decide(cube(0.2, "float32", lazy=True, **raw), units="reflectance", offset=-1000).offset == (-1000.0,)


def test_units_that_the_dtype_cannot_hold_are_refused():
    refused(cube(), "integers", units="reflectance")
    refused(cube(attrs={"units": "reflectance"}), "attrs say reflectance")
    refused(cube(attrs={"_Unsigned": "true"}, dtype="int16"), "_Unsigned")
    refused(cube(1, "bool"), "expected numbers")
    mixed = cube(0.1, "float32", attrs={"units": "reflectance"})
    mixed["B02"].attrs["units"] = "DN"
    refused(mixed, "different units", "B02")
    with pytest.raises(ValueError, match="units must be"):
        decide(cube(), units="radiance")
    with pytest.raises(ValueError, match="offset must be"):
        decide(cube(), offset="none")


# --- values against metadata ----------------------------------------------------------------------


def test_mistakes_of_ten_thousand_are_refused_where_values_are_in_memory():
    refused(cube(1500.5, "float32"), "the median value is 1500.5", units="reflectance")
    refused(cube(0.15, "float32"), 'Pass units="reflectance"', units="dn", offset=0)
    refused(
        cube(1500, attrs={"units": "DN"}, boa_add_offset=0) / 10000, 'Pass units="reflectance"', offset=0, units="dn"
    )
    lazy = cube(1500.5, "float32", lazy=True)
    decided = decide(lazy, units="reflectance")  # reads nothing; the task finds it
    assert "the median value is 1500.5" in find_unit_error(lazy["B02"].values, decided)


def test_metadata_against_values():
    claims = {"s2:processing_baseline": "04.00", "earthsearch:s3_path": "s3://sentinel-s2-l2a/tiles/x"}
    values = np.full((2, 8, 8), 1500)
    values[:, :4] = 600
    refused(cube(values, **claims), "50% of the valid values are below DN 900", "offset=0", "offset=-1000")
    assert decide(cube(values, lazy=True, **claims)).offset == (-1000.0,)
    with pytest.warns(UserWarning, match="taken as given"):
        decided = decide(cube(values, **claims), offset=-1000)
    assert decided.offset == (-1000.0,)
    assert any(w.startswith("but 50%") for w in decided.reasons)


def test_negative_dn_of_signed_integers_are_values():
    ds = cube(-30, "int16", boa_add_offset=0)
    assert (pixels(ds, decide(ds)) == -30).all()


def test_lazily_opened_data_are_not_read(tmp_path):
    cube(1012).to_zarr(tmp_path / "cube.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "cube.zarr", chunks=None, consolidated=False) as ds:
        with pytest.raises(AmbiguousUnitsError) as error:
            decide(ds)
        assert "smallest" not in str(error.value)
        assert not isinstance(ds["B02"].variable._data, np.ndarray)


def test_no_pixel_of_a_dask_cube_is_read():
    import dask
    import dask.array as da

    def explode(block):
        raise AssertionError("a pixel was read")

    ds = cube(lazy=True, boa_add_offset=[0.0, -1000.0])
    trap = da.map_blocks(explode, ds["B02"].data, dtype="uint16", meta=np.empty((0, 0, 0), "uint16"))
    ds = ds.assign({b: ds[b].copy(data=trap) for b in BANDS})
    assert decide(ds).offset == (0.0, -1000.0)
    with dask.config.set(scheduler="synchronous"), pytest.raises(AssertionError, match="a pixel was read"):
        ds["B02"].compute()


# --- nodata ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "attrs", "encoding", "nodata"),
    [
        ("uint16", {}, {}, 0.0),
        ("uint16", {"nodata": 9}, {}, 9.0),
        ("uint16", {"_FillValue": 65535}, {}, 65535.0),
        ("uint16", {}, {"_FillValue": 65535}, 65535.0),
        ("uint16", {"missing_value": 1e20}, {}, 0.0),
        ("int16", {"_FillValue": -999}, {}, -999.0),
        ("float32", {}, {}, 0.0),
        ("float32", {"nodata": math.nan}, {}, None),
        ("float32", {"nodata": 0}, {}, 0.0),
        ("float32", {}, {"_FillValue": 0}, 0.0),
        ("float32", {}, {"_FillValue": 65535, "scale_factor": 1e-4}, None),
    ],
)
def test_nodata_as_stated_else_zero_for_integers(dtype, attrs, encoding, nodata):
    ds = cube(1500, dtype, attrs={"units": "DN", **attrs}, encoding=encoding, lazy=True)
    assert decide(ds, offset=0).nodata == nodata


def test_different_nodata_are_refused():
    ds = cube(attrs={"nodata": 0}, boa_add_offset=0)
    ds["B02"].attrs["nodata"] = 65535
    refused(ds, "pass nodata=")


def test_a_fill_value_that_nothing_states_is_refused():
    values = np.full((2, 8, 8), 1500)
    values[0, :2] = 65535
    ds = cube(values, boa_add_offset=0)
    refused(ds, "pass nodata=65535")
    decided = decide(ds, nodata=65535)
    assert np.isnan(pixels(ds, decided)[0, 0, :2]).all()
    assert "pass nodata=65535" in find_unit_error(values, decide(ds.chunk()))


def test_nan_and_infinity_are_never_valid():
    ds = cube(0.1, "float32", attrs={"units": "reflectance"})
    ds["B04"][0, 0, :3] = [np.nan, np.inf, -np.inf]
    assert np.isnan(pixels(ds, decide(ds))[0, 0, 0, :3]).all()


# --- pictures of 8 bits ---------------------------------------------------------------------------


def test_true_colour_images():
    picture = xr.DataArray(
        np.full((3, 8, 8), 255, "uint8"), dims=("band", "y", "x"), coords={"band": ["red", "green", "blue"]}
    ).assign_coords(y=np.arange(8.0)[::-1], x=np.arange(8.0))
    match = match_bands(picture, BANDS)
    with pytest.raises(AmbiguousUnitsError, match="uint8_rgb"):
        decide_radiometry(picture, match)
    for decided in (
        decide_radiometry(picture, match, units="uint8_rgb"),
        decide_radiometry(picture.rename("visual"), match),
        decide_radiometry(picture.rename("T32TMT_20220305T102921_TCI_10m"), match),
    ):
        assert (decided.units, decided.offset, decided.nodata) == ("uint8_rgb", (0.0,), None)
        assert (canonical(picture.values, decided) == 2750).all()
    with pytest.raises(AmbiguousUnitsError, match="values reach 300"):
        decide_radiometry(xr.full_like(picture, 300, "uint16"), match, units="uint8_rgb")


# --- the guard inside tasks -----------------------------------------------------------------------

DN = Radiometry("dn", 1.0, (0.0,), 0.0)
CARRIED = Radiometry("dn", 1.0, (-1000.0,), 0.0)
REFLECTANCE = Radiometry("reflectance", 1e4, (0.0,), None)


@given(arrays.arrays(np.int32, 200, elements=st.integers(0, 12000)), st.sampled_from(["uint16", "int16", "float32"]))
def test_the_guard_lets_every_plausible_sample_pass(values, dtype):
    assert find_unit_error(values.astype(dtype), DN) is None
    assert find_unit_error((np.maximum(values, 1) + 1000).astype(dtype), CARRIED) is None
    assert find_unit_error((values / 10000).astype("float32"), REFLECTANCE) is None


@given(st.integers(50, 12000), st.integers(0, 2**32 - 1))
def test_the_guard_catches_a_factor_of_ten_thousand(level, seed):
    reflectance = np.random.default_rng(seed).uniform(0.5, 1.5, 400) * level / 10000
    assert "reflectance" in find_unit_error(np.minimum(reflectance, 1.5), DN)
    assert "dn" in find_unit_error((reflectance * 10000).round(), REFLECTANCE)


def test_the_guard_says_nothing_of_too_little():
    assert find_unit_error(np.full(10, 65535, "uint16"), DN) is None
    assert find_unit_error(np.zeros(400, "uint16"), DN) is None
    assert find_unit_error(np.full(400, np.nan, "float32"), REFLECTANCE) is None
    assert "subtracted already" in find_unit_error(np.full(400, 300, "uint16"), CARRIED)
    assert find_unit_error(np.full(400, 300, "uint16"), Radiometry("dn", 1.0, (0.0, -1000.0), 0.0)) is None


# --- the value itself -----------------------------------------------------------------------------


def test_a_decision_is_plain_data():
    from dask.base import tokenize

    ds = cube(boa_add_offset=[0.0, -1000.0], lazy=True)
    decided = decide(ds)
    attrs = json.loads(json.dumps(decided.to_attrs()))
    assert attrs["add"] == [0.0, -1000.0]
    assert attrs["scl_invalid"] == []
    assert "boa_add_offset records" in repr(decided)
    again = pickle.loads(pickle.dumps(decided))
    assert again == decided
    assert tokenize(again) == tokenize(decided)
    # Reasons change no number; the offset does.
    assert tokenize(decide(ds, offset=[0, -1000])) == tokenize(decided)
    assert tokenize(decide(ds, offset=0)) != tokenize(decided)
    with_scl = ds.assign(SCL=ds["B02"].astype("uint8"))
    assert decide(with_scl).scl_invalid == (0, 1, 3, 8, 9, 10)
    for wrong in ({"units": "radiance"}, {"scale": 0.0}, {"offset": ()}, {"offset": (math.nan,)}, {"nodata": math.nan}):
        with pytest.raises(ValueError):
            Radiometry(**{"units": "dn", "scale": 1.0, "offset": (0.0,), "nodata": 0.0, **wrong})


# --- real data ------------------------------------------------------------------------------------


@pytest.mark.real
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("level", ["S2L1C", "S2L2A"])
@pytest.mark.parametrize("tile", ["282D_485L_3_3", "38D_378R_2_3", "609U_541L_3_0"])
def test_tiles_of_unknown_offset_are_refused(shared, tile, level, loaded):
    import rioxarray

    with rioxarray.open_rasterio(shared / f"data/landcover_terramesh/{tile}/{level}.tif") as raster:
        image = raster.load() if loaded else raster
        match = match_bands(image, BANDS)
        with pytest.raises(AmbiguousUnitsError, match="Pass offset=-1000 if they carry it, offset=0 if not") as error:
            decide_radiometry(image, match)
        assert ("valid value" in str(error.value)) == loaded
        carried = level == "S2L1C" and tile != "38D_378R_2_3"  # as seen from the values, and stated nowhere
        decided = decide_radiometry(image, match, offset=-1000 if carried else 0)
        assert (decided.units, decided.offset, decided.nodata) == ("dn", (-1000.0 if carried else 0.0,), 0.0)


@pytest.mark.real
def test_belgium_needs_its_offset_and_its_nodata(shared):
    with xr.open_dataset(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc") as ds:
        match = match_bands(ds, BANDS)
        with pytest.raises(AmbiguousUnitsError, match="offset="):
            decide_radiometry(ds, match)
        with pytest.raises(AmbiguousUnitsError, match="pass nodata=65535"):
            decide_radiometry(ds.load(), match, offset=0)
        decided = decide_radiometry(ds, match, offset=0, nodata=65535)
        assert np.isnan(canonical(ds["S2-L2A-B02"].values[1], decided, 1)).all()
        assert np.nanmax(canonical(ds["S2-L2A-B02"].values[0], decided, 0)) < 20000
    raw = xr.open_dataset(shared / "data/cubes/belgium_monthly_2020-11_2021-10.nc", mask_and_scale=False)
    with raw, pytest.raises(AmbiguousUnitsError, match="_Unsigned"):
        decide_radiometry(raw, match, offset=0)


def test_int8_holds_no_dn():
    refused(cube(50, "int8"), "int8", 'units="dn"')
    assert decide(cube(50, "int8"), units="dn", offset=0).units == "dn"


def test_per_cent_are_no_reflectance():
    refused(cube(12.5, "float32"), "the median value is 12.5", 'units="percent"', units="reflectance")


def test_float16_is_looked_at_without_a_warning(recwarn):
    assert decide(cube(1500, "float16"), units="dn", offset=0).units == "dn"
    assert not [w for w in recwarn if "overflow" in str(w.message)]
