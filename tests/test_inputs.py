"""Objects of another kind than a verb expects are refused with a call; the call is made here, and gives the result."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import deo_cube
from deo_cube import errors
from deo_cube.arguments import cube_of, embeddings_of


@pytest.fixture(scope="module")
def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=64, times=1).compute()


@pytest.fixture(scope="module")
def emb(cube: xr.Dataset) -> xr.DataArray:
    return cube.deo.embed().compute()


@pytest.mark.parametrize(
    ("make", "advice"),
    [
        (lambda c: Path("cube.zarr"), r"deo_cube.open_cube\('cube.zarr'\)"),
        (lambda c: "s3://bucket/cube.zarr", r"open_cube\('s3://bucket/cube.zarr'\)"),
        (lambda c: c.B02.values, r"xr.DataArray\(a, dims="),
        (lambda c: c.B02.chunk().data, r"xr.DataArray\(a, dims="),
        (lambda c: xr.DataTree.from_dict({"r10m": c, "r20m": c}), r"tree\['/r10m'\].to_dataset\(\)"),
        (lambda c: [c, c], r"xr.concat\(cubes, dim=\"time\"\)"),
        (lambda c: c.B02.variable, r"xr.DataArray\(variable"),
        (lambda c: pd.DataFrame({"B02": [1]}), "fit_head"),
        (lambda c: {"type": "FeatureCollection", "features": []}, r"load_cube\(items\)"),
        (lambda c: None, "open_cube"),
        (lambda c: 3, "open_cube"),
    ],
)
def test_what_is_not_a_cube_is_refused_with_the_call_that_makes_one(
    cube: xr.Dataset, make: Callable[[xr.Dataset], Any], advice: str
) -> None:
    for verb in (deo_cube.embed, deo_cube.plan):
        with pytest.raises(errors.ArgumentTypeError, match=f"cube must be.*{advice}"):
            verb(make(cube))


def test_the_advice_for_trees_arrays_and_lists_gives_the_same_embeddings(cube: xr.Dataset, emb: xr.DataArray) -> None:
    tree = xr.DataTree.from_dict({"r10m": cube})
    xr.testing.assert_equal(tree["/r10m"].to_dataset().deo.embed().compute(), emb)
    a = np.stack([cube[b].values for b in cube.data_vars if str(b).startswith("B")], axis=1)
    import rioxarray  # noqa: F401 - registers .rio

    named = xr.DataArray(
        a,
        dims=("time", "band", "y", "x"),
        coords={
            "time": cube.time.values,
            "band": [str(b) for b in cube.data_vars if str(b).startswith("B")],
            "y": cube.y.values,
            "x": cube.x.values,
        },
    ).rio.write_crs(cube.spatial_ref.attrs["crs_wkt"])
    unmasked = cube.deo.embed(mask=False)
    np.testing.assert_array_equal(named.deo.embed(units="dn", offset=0).values, unmasked.values)
    later = cube.assign_coords(time=cube.time + np.timedelta64(5, "D"))
    assert xr.concat([cube, later], dim="time", data_vars="minimal").deo.embed().sizes["time"] == 2


def test_embeddings_are_not_a_cube_nor_a_cube_embeddings(cube: xr.Dataset, emb: xr.DataArray) -> None:
    for given in (emb, emb.to_dataset(name="embeddings")):
        with pytest.raises(errors.ArgumentError, match="got embeddings"):
            given.deo.embed()
    assert embeddings_of(emb.to_dataset(name="embeddings")).identical(emb)
    with pytest.raises(errors.ArgumentTypeError, match=r"ds\['a'\], ds\['b'\]"):
        embeddings_of(xr.Dataset({"a": emb, "b": emb}))
    with pytest.raises(errors.ArgumentTypeError, match=r"ds.deo.embed\(\)"):
        embeddings_of(cube)
    with pytest.raises(errors.ArgumentError, match=r"cube.deo.embed\(\)"):
        embeddings_of(cube.B02)
    with pytest.raises(errors.ArgumentTypeError, match=r"open_embeddings\('emb.zarr'\)"):
        embeddings_of("emb.zarr")
    assert embeddings_of(emb) is emb
    assert cube_of(cube) is cube


@pytest.mark.parametrize("grid_mapping", ["coordinate", "variable"])
def test_a_dataset_of_one_array_with_bands_is_that_array(cube: xr.Dataset, grid_mapping: str) -> None:
    bands = cube[[n for n in cube.data_vars if str(n).startswith("B")]]
    stack = bands.to_dataarray("band").transpose("time", "band", "y", "x")
    held = stack.to_dataset(name="reflectance")
    held = held.reset_coords("spatial_ref") if grid_mapping == "variable" else held
    options = {"units": "dn", "offset": 0}
    want = stack.deo.embed(**options).compute()
    np.testing.assert_array_equal(held.deo.embed(**options).compute(), want)
    assert held.deo.plan(units="dn", offset=0).blocks == stack.deo.plan(units="dn", offset=0).blocks
    with pytest.raises(errors.DeoCubeError, match=r"ds\['reflectance'\]"):
        held.assign(mask=(cube.B02 > 0).drop_vars("spatial_ref")).deo.embed(**options)
    two = held.assign(other=stack.drop_vars("spatial_ref"))
    with pytest.raises(errors.DeoCubeError, match=r"ds\['"):
        two.deo.embed(**options)


class Duck:
    """An array of a library that xarray wraps as it is: no NumPy array, no Dask array."""

    def __init__(self, values: Any) -> None:
        self.values = np.asarray(values)
        self.shape, self.dtype, self.ndim = self.values.shape, self.values.dtype, self.values.ndim

    def __array_function__(self, *_: Any) -> Any:
        return NotImplemented

    def __array_ufunc__(self, *_: Any) -> Any:
        return NotImplemented

    def __getitem__(self, key: Any) -> Any:
        return Duck(self.values[key])

    def get(self) -> Any:
        return self.values


def wrapped(cube: xr.Dataset, make: Callable[[Any], Any]) -> xr.Dataset:
    return cube.map(lambda v: v.copy(data=make(v.data)) if v.ndim == 3 else v, keep_attrs=True)


def test_arrays_of_other_libraries_are_refused_by_name(cube: xr.Dataset) -> None:
    for change in (Duck, lambda a: da.from_array(Duck(a), asarray=False, meta=Duck(a[:0, :0, :0]))):
        with pytest.raises(errors.ArgumentTypeError, match=r"NumPy or Dask.*'B0.'.*cube.as_numpy\(\)"):
            wrapped(cube, change).deo.embed()
    # A variable that no band is read from may be of any kind.
    aside = cube.assign(other=cube.B02.copy(data=Duck(cube.B02.values)))
    assert aside.deo.embed().shape == cube.deo.embed().shape


def test_embeddings_in_arrays_of_other_libraries_are_refused_by_name(emb: xr.DataArray, tmp_path: Path) -> None:
    foreign = emb.copy(data=Duck(emb.values))
    for call in (
        lambda: foreign.deo.to_zarr(tmp_path / "e.zarr", progress=False),
        foreign.deo.pca_rgb,
        foreign.deo.cluster,
        lambda: foreign.deo.similar(to=(0, 0)),
        lambda: deo_cube.to_cog(foreign, tmp_path / "e.tif"),
        lambda: deo_cube.to_geoparquet(foreign, tmp_path / "e.parquet"),
    ):
        with pytest.raises(errors.ArgumentTypeError, match=r"(emb|array) = (emb|array).as_numpy\(\)"):
            call()
    assert not list(tmp_path.iterdir())


def test_sparse_arrays_converted_as_advised_give_the_same_embeddings(cube: xr.Dataset, emb: xr.DataArray) -> None:
    sparse = pytest.importorskip("sparse")
    foreign = wrapped(cube, sparse.COO.from_numpy)
    with pytest.raises(errors.ArgumentTypeError, match=r"of sparse.*cube.as_numpy\(\)"):
        foreign.deo.embed()
    xr.testing.assert_equal(foreign.as_numpy().deo.embed().compute(), emb)


def test_one_error_lists_all_that_is_wrong_with_a_cube(cube: xr.Dataset) -> None:
    bad = cube.drop_vars(["B08", "spatial_ref"]).drop_attrs().astype("float32")
    with pytest.raises(errors.CubeProblemsError, match=r"(?s)B08.*units=.*write_crs.*tile=30.*mask=") as caught:
        bad.deo.embed(tile=30, mask="clouds")
    kinds = (errors.MissingBandsError, errors.AmbiguousUnitsError, errors.MissingCRSError, errors.ArgumentError)
    assert all(isinstance(caught.value, k) for k in kinds)
    assert isinstance(caught.value, KeyError)
    assert not isinstance(caught.value, errors.ResolutionMismatchError)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))
    # One thing wrong is an error of that kind alone.
    with pytest.raises(errors.MissingBandsError) as single:
        cube.drop_vars("B08").deo.embed()
    assert type(single.value) is errors.MissingBandsError


def test_units_are_looked_at_even_if_no_band_has_a_name(cube: xr.Dataset) -> None:
    stack = cube[["B02", "B03"]].to_dataarray("band").astype("float32").drop_attrs()
    unnamed = stack.assign_coords(band=[1, 2]).drop_vars("spatial_ref")
    with pytest.raises(errors.CubeProblemsError, match=r"(?s)assign_coords\(band=.*units=.*write_crs") as caught:
        unnamed.deo.embed()
    assert len(caught.value.problems) == 3
