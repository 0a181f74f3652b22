"""Verbs on embeddings take the path of a store as they take the array that it holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.errors import StoreMismatchError

VERBS: dict[str, Callable[[Any], xr.DataArray]] = {
    "similar": lambda emb: deo_cube.similar(emb, to=(600100.0, 4999900.0)),
    "pca_rgb": deo_cube.pca_rgb,
    "cluster": lambda emb: deo_cube.cluster(emb, 3),
    "aggregate": lambda emb: deo_cube.aggregate(emb, "year"),
    "change": lambda emb: deo_cube.change(emb, *times()),
    "mosaic": lambda emb: deo_cube.mosaic([emb]),
    "predict": lambda emb: fitted(cube().deo.embed("tiny")).predict(emb),
    "fit_head": lambda emb: fitted(emb).predict(cube().deo.embed("tiny")),
}


def fitted(emb: Any) -> Any:
    places = [(600100.0 + 120 * n, 4999900.0 - 80 * n, "ab"[n % 2]) for n in range(8)]
    return deo_cube.fit_head("linear", emb, places)


def times() -> list[str]:
    return [str(t)[:10] for t in cube().time.values]


def cube() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=128, times=2, clouds=False, gaps=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paths") / "emb.zarr"
    cube().deo.embed("tiny").deo.to_zarr(path, progress=False)
    return path


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("kind", [Path, str])
def test_a_path_gives_what_the_opened_store_gives(verb: str, kind: type, store: Path) -> None:
    expected = VERBS[verb](deo_cube.open_embeddings(store))
    xr.testing.assert_equal(VERBS[verb](kind(store)).compute(), expected.compute())


@pytest.mark.parametrize("verb", VERBS)
def test_a_path_without_a_store_is_refused_by_name(verb: str, tmp_path: Path) -> None:
    with pytest.raises(StoreMismatchError, match=r"^emb(s|eddings)?: .*none\.zarr"):
        VERBS[verb](tmp_path / "none.zarr")


def test_classes_of_a_store_and_of_a_cube_at_a_path(tmp_path: Path) -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    ds.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    stored = ds.deo.embed().deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    for verb in (deo_cube.classify, deo_cube.segment):
        expected = verb(stored)
        xr.testing.assert_equal(verb(tmp_path / "emb.zarr").variable, expected.variable)
        assert verb(str(tmp_path / "cube.zarr")).shape == verb(ds).shape
        with pytest.raises(deo_cube.errors.InputNotFoundError, match=r"none\.zarr"):
            verb(tmp_path / "none.zarr")


def test_embeddings_in_other_formats_are_refused_and_read_as_the_message_says(tmp_path: Path) -> None:
    ds = deo_cube.synthetic_cube(size=64, times=1, clouds=False, gaps=False)
    emb = ds.deo.embed(dtype="float32").compute().drop_vars("processing_baseline", errors="ignore")
    emb.to_dataset(name="embeddings").to_zarr(tmp_path / "two.zarr", zarr_format=2)
    emb.to_netcdf(tmp_path / "emb.nc")
    for path, advice in ((tmp_path / "two.zarr", "xr.open_zarr"), (tmp_path / "emb.nc", "xr.open_dataarray")):
        with pytest.raises(StoreMismatchError, match=advice):
            deo_cube.open_embeddings(path)
    opened = xr.open_zarr(tmp_path / "two.zarr", decode_coords="all")
    same = xr.open_dataarray(tmp_path / "emb.nc", decode_coords="all")
    expected = emb.deo.classify()
    for read in (opened, same):
        np.testing.assert_array_equal(read.deo.classify().values, expected.values)
