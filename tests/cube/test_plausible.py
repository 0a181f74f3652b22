"""Mistakes that values give away."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray  # noqa: F401
import xarray as xr

from deo_cube.errors import AmbiguousUnitsError

BANDS = ["B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B11", "B12"]


def cube(void: float, edge: float, dtype: str = "uint16", **attrs: float) -> xr.Dataset:
    """A lazy cube whose western quarter is `edge` and whose first row is `void`."""
    rng = np.random.default_rng(1)
    bands = {}
    for band in BANDS:
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
    ds = cube(void, 0, dtype, **attrs)
    emb = ds.deo.embed(units="dn", offset=0)
    with pytest.raises(AmbiguousUnitsError, match="nodata=0") as error:
        (emb if what == "values" else emb.valid).compute()
    if np.isfinite(void):
        # The message's own words, for a cube that holds both.
        text = str(error.value)
        call = text[text.index("cube.where(") : text.index(" first)")]
        ds = eval(call, {"cube": ds})
    right = cube(0, 0).deo.embed(units="dn", offset=0).compute()
    found = ds.deo.embed(units="dn", offset=0, nodata=0).compute()
    np.testing.assert_array_equal(found.valid, right.valid)
    np.testing.assert_allclose(found, right, atol=0.02)
    assert right.valid[8, 0] == 0


def test_zeros_are_data_where_the_caller_says_so_or_single_bands_hold_them() -> None:
    said = cube(65535, 0, _FillValue=65535).deo.embed(units="dn", offset=0, nodata=65535)
    assert float(said.valid[8, 0]) == 1
    ds = cube(65535, 500, _FillValue=65535)
    ds["B02"] = ds["B02"].where(ds["B02"] != 500, 0)  # clipped at zero, as dark water is in one band
    assert float(ds.deo.embed(units="dn", offset=0).valid[8, 0]) == 1
