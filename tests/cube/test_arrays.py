"""Arrays without coordinates become cubes whose pixels, place and dates are those of the array, or are refused."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import rasterio.transform
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import deo_cube
from deo_cube.cube.georeference import geobox
from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, MissingCRSError

BBOX = (500000.0, 5200000.0, 500480.0, 5200640.0)  # 48 x 64 px of 10 m
BANDS = ["B04", "B03", "B02"]


def values(*shape: int, dtype: str = "uint16") -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape)).reshape(shape).astype(dtype)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 6),
    st.integers(7, 12),
    st.integers(13, 18),
    st.sampled_from([None, 1, 19]),
    st.permutations(["time", "band", "y", "x"]),
    st.booleans(),
)
def test_any_order_of_axes_gives_the_same_cube(
    n: int, rows: int, columns: int, steps: int | None, order: list[str], lazy: bool
) -> None:
    sizes = {"band": n, "y": rows, "x": columns} | ({"time": steps} if steps else {})
    names = [d for d in ("time", "band", "y", "x") if d in sizes]
    a = xr.DataArray(values(*(sizes[d] for d in names)), dims=names)
    axes = [d for d in order if d in sizes]
    array = a.transpose(*axes).values
    dates = None if steps is None else [np.datetime64("2021-01-01") + np.timedelta64(5 * k, "D") for k in range(steps)]
    bands = [f"B{i + 1:02d}" for i in range(n)]
    cube = deo_cube.from_array(
        da.from_array(array) if lazy else array, bands, bbox=BBOX, crs=32632, time=dates, dims=axes
    )
    assert cube.dims == tuple(names)
    assert (cube.chunks is not None) == lazy
    np.testing.assert_array_equal(cube.values, a.values)
    expected = rasterio.transform.from_bounds(*BBOX, columns, rows)
    assert geobox(cube).transform == pytest.approx(expected)
    if dates is not None:
        np.testing.assert_array_equal(cube.time.values, np.array(dates, "M8[ns]"))


@pytest.mark.parametrize(
    ("shape", "time", "dims"),
    [
        ((64, 48, 3), None, ("band", "y", "x")),
        ((3, 64, 48), None, ("band", "y", "x")),
        ((64, 48, 3), "2021-06-30", ("time", "band", "y", "x")),
        ((2, 64, 48, 3), ["2021-06-30", "2021-07-05"], ("time", "band", "y", "x")),
        ((2, 3, 64, 48), ["2021-06-30", "2021-07-05"], ("time", "band", "y", "x")),
    ],
)
def test_channels_last_and_first_are_told_by_the_number_of_bands(shape: Any, time: Any, dims: tuple[str, ...]) -> None:
    cube = deo_cube.from_array(values(*shape), BANDS, bbox=BBOX, crs=32632, time=time)
    assert cube.dims == dims
    assert (cube.sizes["band"], cube.sizes["y"], cube.sizes["x"]) == (3, 64, 48)


def test_one_band_and_lists_of_dates() -> None:
    assert deo_cube.from_array(values(64, 48), ["B04"], bbox=BBOX, crs=32632).shape == (1, 64, 48)
    several = [values(64, 48, 3), values(64, 48, 3) + 1]
    cube = deo_cube.from_array(several, BANDS, bbox=BBOX, crs=32632, time=["2021-06-30", "2021-07-05"])
    np.testing.assert_array_equal(cube.values[1], np.moveaxis(several[1], -1, 0))


def test_it_embeds_as_the_same_pixels_in_xarray_do() -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1).isel(time=0, drop=True)
    names = [b for b in map(str, ds.data_vars) if b.startswith("B")]
    box = geobox(ds)
    array = np.stack([ds[b].values for b in names], axis=-1)
    cube = deo_cube.from_array(array, names, bbox=box.boundingbox.bbox, crs=box.crs)
    assert geobox(cube) == box
    expected = ds.deo.embed(mask=False).compute()
    found = cube.deo.embed(offset=0).compute()  # integers are DN; the offset is asked for
    np.testing.assert_array_equal(found.values, expected.values)
    with pytest.raises(DeoCubeError, match="offset=0"):
        cube.deo.embed()
    with pytest.raises(DeoCubeError, match='units="reflectance"'):
        deo_cube.from_array(array / 1e4, names, bbox=box.boundingbox.bbox, crs=box.crs).deo.embed()


def test_a_bbox_of_sentinelhub_brings_its_crs() -> None:
    class CRS:
        def pyproj_crs(self) -> Any:
            import pyproj

            return pyproj.CRS(32632)

    class BBox:
        crs = CRS()

        def __iter__(self) -> Any:
            return iter(BBOX)

    assert geobox(deo_cube.from_array(values(64, 48, 3), BANDS, bbox=BBox())).crs.epsg == 32632


SQUARE = {"bbox": BBOX, "crs": 32632}


@pytest.mark.parametrize(
    ("call", "error", "names"),
    [
        (lambda: deo_cube.from_array(values(3, 5, 3), BANDS, **SQUARE), ArgumentError, "dims="),
        (lambda: deo_cube.from_array(values(5, 6, 4), BANDS, **SQUARE), ArgumentError, "dims="),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, dims=("y", "x"), **SQUARE), ArgumentError, "dims"),
        (
            lambda: deo_cube.from_array(values(5, 6, 4), BANDS, dims=("y", "x", "band"), **SQUARE),
            ArgumentError,
            "bands",
        ),
        (lambda: deo_cube.from_array(values(2, 5, 6, 3), BANDS, time=["2021"], **SQUARE), ArgumentError, "date"),
        (
            lambda: deo_cube.from_array(values(2, 5, 6, 3), BANDS, dims=("time", "y", "x", "band"), **SQUARE),
            ArgumentError,
            "time=",
        ),
        (lambda: deo_cube.from_array(values(5, 6, 3), ["B02", "B02", "B03"], **SQUARE), ArgumentError, "bands"),
        (lambda: deo_cube.from_array(values(5, 6, 3), "B02", **SQUARE), ArgumentTypeError, "bands"),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, bbox=BBOX), MissingCRSError, "crs="),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, bbox=BBOX, crs="x"), ArgumentError, "CRS"),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, bbox=(1, 2), crs=4326), ArgumentTypeError, "bbox"),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, bbox=(2, 1, 1, 2), crs=4326), ArgumentError, "west"),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, bbox=(46, 100, 47, 101), crs=4326), ArgumentError, "bbox"),
        (lambda: deo_cube.from_array(values(5, 6, 3), BANDS, time="x", **SQUARE), ArgumentError, "time"),
        (
            lambda: deo_cube.from_array(np.ma.masked_less(values(5, 6, 3), 9), BANDS, **SQUARE),
            ArgumentTypeError,
            "filled",
        ),
        (lambda: deo_cube.from_array(xr.DataArray(values(5, 6, 3)), BANDS, **SQUARE), ArgumentTypeError, "write_crs"),
        (lambda: deo_cube.from_array(np.array([["a"]]), ["B02"], **SQUARE), ArgumentTypeError, "numbers"),
        (lambda: deo_cube.from_array([values(5, 6, 3), values(5, 7, 3)], BANDS, **SQUARE), ArgumentError, "shapes"),
    ],
)
def test_what_is_ambiguous_or_wrong_is_refused(call: Any, error: type[Exception], names: str) -> None:
    with pytest.raises(error, match=names):
        call()


def test_the_advice_on_axes_is_right() -> None:
    with pytest.raises(ArgumentError, match="dims=") as caught:
        deo_cube.from_array(values(3, 5, 3), BANDS, **SQUARE)
    axes = eval(str(caught.value).rpartition("dims=")[2])
    assert deo_cube.from_array(values(3, 5, 3), BANDS, dims=axes, **SQUARE).sizes["band"] == 3
