import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import deo_cube
from deo_cube.cube.masks import align_mask, check_classes, check_mask, hidden_classes
from deo_cube.cube.units import SCL_INVALID
from deo_cube.errors import ArgumentError

SMALL = {"tile": 32, "halo": 8, "block": 64}


def scene(**options):
    return deo_cube.synthetic_cube(size=64, times=2, gaps=False, chunks=None, **options)


@given(arrays.arrays(np.uint8, 40, elements=st.integers(0, 11)), st.sampled_from(["uint8", "int16", "float32"]))
def test_classes_are_hidden_whatever_numbers_hold_them(classes, dtype):
    if classes.max() == 1:
        classes[0] = 4  # 0 and 1 alone are a mask
    expected = np.isin(classes, SCL_INVALID)
    assert (hidden_classes(classes.astype(dtype), SCL_INVALID) == expected).all()


@given(
    arrays.arrays(np.int16, 40, elements=st.integers(0, 11)),
    st.integers(0, 39),
    st.one_of(st.integers(-300, -1), st.integers(12, 30000), st.floats(0.01, 10.99).filter(lambda v: v % 1)),
)
def test_one_value_that_is_no_class_is_refused(classes, where, odd):
    values = classes.astype("float64" if isinstance(odd, float) else "int16")
    values[where] = odd
    with pytest.raises(ArgumentError, match="mask="):
        check_classes(values)
    if not isinstance(odd, float):
        check_classes(np.where(values == odd, odd, np.maximum(values, 4)), marks=[odd])


def test_what_holds_no_classes_at_all_is_refused_with_the_call_that_reads_it():
    ds = scene(clouds=0.3)
    cloudy = ds.SCL.isin([8, 9])
    for layer in (cloudy, cloudy.astype("uint8"), cloudy * 0.75, cloudy * 200, cloudy.astype(str)):
        for lazy in (False, True):
            given_ = ds.assign(SCL=layer.chunk() if lazy else layer)
            with pytest.raises(ArgumentError) as error:
                given_.deo.embed(**SMALL).valid.compute()
            pattern = r"(cube\.drop_vars\('SCL'\)) with mask=(cube\['SCL'\](?: [=><]+ (?:'\w+'|[\d.]*\d))?)"
            advice = re.search(pattern, str(error.value))
            assert advice is not None, str(error.value)
            namespace = {"cube": given_}
            followed = eval(advice[1], namespace).deo.embed(mask=eval(advice[2], namespace), **SMALL)
            if layer.dtype.kind not in "U":
                expected = ds.drop_vars("SCL").deo.embed(mask=cloudy, **SMALL)
                np.testing.assert_array_equal(followed.valid, expected.valid)
            # The other advice:
            plain = given_.deo.embed(mask=False, **SMALL)
            np.testing.assert_array_equal(plain.valid, ds.deo.embed(mask=False, **SMALL).valid)


def test_no_data_of_the_classification_is_known_where_it_is_stated_and_asked_for_where_not():
    ds = scene(clouds=False).drop_attrs()
    ds = ds.assign(SCL=ds.SCL.where(ds.x > ds.x[31], 255).astype("uint8")).assign_attrs(crs="EPSG:32633")
    options = {"units": "dn", "offset": 0, **SMALL}
    with pytest.raises(ArgumentError, match=r"cube\['SCL'\]\.where\(cube\['SCL'\] <= 11, 0\)"):
        ds.deo.embed(**options)
    advised = ds.assign(SCL=ds["SCL"].where(ds["SCL"] <= 11, 0))
    assert float(advised.deo.embed(**options).valid.mean()) == 0.5
    stated = ds.assign(SCL=ds.SCL.assign_attrs(nodata=255))
    assert float(stated.deo.embed(**options).valid.mean()) == 0.5


def test_masks_of_other_numbers_are_refused_with_what_to_compare():
    for mask in (np.array([0, 255]), np.array([0.0, 0.3]), np.array(["cloud", "clear"])):
        with pytest.raises(ArgumentError, match="mask=m"):
            check_mask(mask)
    check_mask(np.array([0.0, 1.0, np.nan]))


@given(st.floats(-0.009, 0.009), st.floats(-0.009, 0.009))
def test_coordinates_may_differ_by_rounding(dx, dy):
    ds = GRID
    mask = xr.zeros_like(ds.B02, dtype=bool)
    moved = mask.assign_coords(x=ds.x + dx * 10, y=ds.y + dy * 10)
    assert align_mask(moved, ds, DIMS) is moved


@given(st.floats(0.02, 40), st.sampled_from([-1, 1]), st.sampled_from(["x", "y"]))
def test_shifted_masks_are_refused(part, sign, axis):
    mask = xr.zeros_like(GRID.B02, dtype=bool)
    with pytest.raises(ArgumentError, match=f"differ along {axis}"):
        align_mask(mask.assign_coords({axis: GRID[axis] + sign * part * 10}), GRID, DIMS)


GRID = scene(clouds=False)
DIMS = deo_cube.cube.georeference.dims(GRID)


def test_the_advice_for_a_mask_on_other_pixels_is_right():
    ds = scene(clouds=False).isel(time=0, drop=True)
    hidden = xr.zeros_like(ds.B02, dtype=bool)
    hidden[:32] = True
    larger = hidden.pad(y=4, x=4, constant_values=False)
    step, x, y = 10, ds.x.values, ds.y.values
    larger = larger.assign_coords(
        x=np.concatenate([x[0] + step * np.arange(-4, 0), x, x[-1] + step * np.arange(1, 5)]),
        y=np.concatenate([y[0] - step * np.arange(-4, 0), y, y[-1] - step * np.arange(1, 5)]),
    )
    expected = ds.deo.embed(mask=hidden, **SMALL).valid
    for mask in (larger, larger.assign_coords(x=larger.x + 1e-9), hidden.isel(y=slice(None, None, -1)), hidden[:40]):
        with pytest.raises(ArgumentError) as error:
            ds.deo.embed(mask=mask, **SMALL)
        advised = re.search(r"mask\.reindex\(.*?fill_value=True\)", str(error.value))
        followed = eval(advised[0], {"mask": mask, "cube": ds})
        got = ds.deo.embed(mask=followed, **SMALL).valid
        if mask.sizes["y"] != 40:
            np.testing.assert_array_equal(got, expected)
        else:
            assert float(got[10:].max()) == 0  # what the mask does not cover is hidden, as the message says
    far = hidden.assign_coords(x=ds.x + 1e6)
    with pytest.raises(ArgumentError, match="do not overlap") as error:
        ds.deo.embed(mask=far, **SMALL)
    assert "reindex" not in str(error.value)


def test_dates_of_a_mask_are_aligned_as_the_message_says():
    ds = scene(clouds=False)
    mask = xr.zeros_like(ds.B02, dtype=bool)
    mask[1] = True
    late = mask.assign_coords(time=ds.time + np.timedelta64(20, "m")).isel(time=[1, 0]).sortby("time")
    with pytest.raises(ArgumentError) as error:
        ds.deo.embed(mask=late, **SMALL)
    advised = re.search(r"mask\.reindex\(.*?fill_value=True\)", str(error.value))
    followed = eval(advised[0], {"mask": late, "cube": ds})
    valid = ds.deo.embed(mask=followed, **SMALL).valid.mean(("y", "x"))
    assert valid.values.tolist() == [1.0, 0.0]


def test_a_composite_checks_classes_and_masks_alike():
    ds = scene(clouds=0.2)
    odd = ds.assign(SCL=ds.SCL * 20)
    with pytest.raises(ArgumentError, match="expected the classes"):
        odd.deo.composite()
    lazy = odd.chunk().deo.composite()
    with pytest.raises(ArgumentError, match="expected the classes"):
        lazy.compute()
    near = ds.SCL.isin([8, 9, 10]).assign_coords(x=ds.x + 1e-9)
    made = ds.deo.composite("first", mask=near)
    xr.testing.assert_equal(made, ds.deo.composite("first", mask=ds.SCL.isin([8, 9, 10])))
