"""`ds.deo` shows something for every object, whatever is wrong with it: a repr that raises hides the object."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import deo_cube
from deo_cube.testing import raise_if_dask_computes


def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=32, times=2)


def plain(*shape: int, dims: tuple[str, ...] = ("time", "band", "y", "x"), **coords: Any) -> xr.DataArray:
    return xr.DataArray(np.zeros(shape), dims=dims[-len(shape) :] if shape else (), coords=coords)


class Broken:
    """Has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")

    __str__ = __repr__


EMB = {"deo_cube:plan": "not json", "deo_cube:radiometry": "[]", "deo_cube:model": 3}

ODD: list[Callable[[], Any]] = [
    cube,
    lambda: xr.Dataset(),
    lambda: xr.DataArray(),
    lambda: xr.DataArray(1),
    lambda: xr.DataArray("text"),
    lambda: xr.DataArray(np.array([None, {}], object)),
    lambda: xr.DataArray(np.array([["a", "b"]]), dims=("y", "x")),
    lambda: xr.DataArray(np.array([[object()]]), dims=("y", "x")),
    lambda: xr.DataArray(np.zeros((2, 2), "M8[ns]"), dims=("y", "x")),
    lambda: xr.DataArray(np.zeros((2, 2), complex), dims=("y", "x")),
    lambda: xr.DataArray(np.zeros((2, 2), bool), dims=("y", "x")),
    lambda: xr.DataArray(np.zeros((2, 2), [("a", "i4")]), dims=("y", "x")),
    lambda: plain(0, 0),
    lambda: plain(0, 3, 0, 5),
    lambda: plain(1, 0, 4, 4),
    lambda: plain(1, 1),
    lambda: plain(2, 3, 4, 4),
    lambda: plain(4, 4, y=["a", "b", "c", "d"]),
    lambda: plain(4, 4, y=[np.nan] * 4, x=[1, 2, 4, 9]),
    lambda: plain(4, 4, y=pd.date_range("2020", periods=4)),
    lambda: plain(4, 4, spatial_ref=0),
    lambda: plain(4, 4).assign_coords(spatial_ref=((), 0, {"crs_wkt": "no WKT"})),
    lambda: plain(4, 4).assign_coords(spatial_ref=((), 0, {"GeoTransform": "a b c"})),
    lambda: plain(4, 4).assign_attrs(crs=Broken(), transform="x"),
    lambda: plain(4, 4).assign_attrs(crs=[1, 2], units=3, scale_factor="x", _FillValue=[]),
    lambda: plain(3, 4, 4, dims=("band", "y", "x"), band=[1.5, np.nan, 2]),
    lambda: plain(3, 4, 4, dims=("band", "y", "x"), band=pd.interval_range(0, 3)),
    lambda: plain(3, 4, 4, dims=("time", "y", "x"), time=["2020", "x", ""]),
    lambda: plain(3, 4, 4, dims=("time", "y", "x"), time=[0, 0, 0]),
    lambda: plain(1, 4, 4, dims=("time", "y", "x"), time=[np.datetime64("NaT", "ns")]),
    lambda: plain(2, 4, 4, dims=("time", "y", "x"), time=xr.date_range("2020", periods=2, use_cftime=True)),
    lambda: xr.DataArray(np.zeros((3, 3)), dims=("x", "x")),
    lambda: xr.DataArray(np.zeros((2, 2, 2)), dims=("y", "x", "lat")),
    lambda: xr.DataArray(np.zeros((2, 2, 2, 2)), dims=("y", "x", "lat", "lon")),
    lambda: xr.DataArray(np.zeros((2, 2)), dims=(1, 2)),
    lambda: xr.DataArray(np.zeros((2, 2)), dims=(("a", 1), None)),
    lambda: xr.Dataset({("a", 1): (("y", "x"), np.zeros((2, 2)))}),
    lambda: xr.Dataset({1: (("y", "x"), np.zeros((2, 2))), None: 3}),
    lambda: xr.Dataset({"B02": 1, "B03": "x"}),
    lambda: xr.Dataset({"B02": (("y", "x"), np.zeros((2, 2))), "B03": (("lat", "lon"), np.zeros((2, 2)))}),
    lambda: xr.Dataset(coords={"y": [1, 2], "x": [1, 2]}),
    lambda: cube().isel(x=slice(0, 0)),
    lambda: cube().isel(time=slice(0, 0)),
    lambda: cube().drop_vars(["y", "x"]),
    lambda: cube().assign_coords(y=cube().y * np.nan),
    lambda: cube().assign_coords(y=cube().y * 1e300),
    lambda: cube().stack(place=("y", "x")),
    lambda: cube().set_coords("B02"),
    lambda: cube().to_dataarray("band").transpose("x", ..., "band"),
    lambda: cube().map(lambda v: v.astype(object) if v.ndim == 3 else v),
    lambda: cube().map(lambda v: v.copy(data=da.full(v.shape, np.nan)) if v.ndim == 3 else v),
    lambda: cube().assign_attrs(product_level=Broken()),
    lambda: cube().B02.groupby("time.month").mean(),
    lambda: cube().deo.embed(),
    lambda: cube().deo.embed().to_dataset(),
    lambda: cube().deo.embed().isel(embedding=slice(0, 0)),
    lambda: cube().deo.embed().assign_attrs(EMB),
    lambda: xr.DataArray(np.zeros(3), dims="embedding"),
    lambda: xr.Dataset({"embeddings": 3}),
    lambda: xr.DataTree(),
    lambda: xr.DataTree.from_dict({"/": cube(), "/fine": cube()}),
    lambda: xr.DataTree.from_dict({"/measurements/r10m": cube()}),
]


@pytest.mark.parametrize("make", ODD, ids=range(len(ODD)))
def test_the_view_of_any_object_is_text(make: Callable[[], Any]) -> None:
    obj = make()
    with raise_if_dask_computes():
        assert isinstance(repr(obj.deo), str)
        assert isinstance(obj.deo._repr_html_(), str)


def test_there_are_more_than_fifty_objects() -> None:
    assert len(ODD) > 50
