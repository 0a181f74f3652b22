"""A user's script, for the type checker only: mypy reads it with `strict`, as it would read one outside the package."""

from __future__ import annotations

from typing import assert_type

import pandas as pd
import xarray as xr

import deo_cube
from deo_cube.embedding.plan import Plan
from deo_cube.encoder.encoder import Encoder
from deo_cube.encoder.loading import Verification
from deo_cube.heads.head import Head


def typed(path: str) -> None:
    """Each verb gives what it says, and takes what it should."""
    cube = deo_cube.synthetic_cube(size=64, times=1)
    assert_type(cube, xr.Dataset)
    assert_type(deo_cube.open_cube(path), xr.Dataset | xr.DataArray)
    emb = deo_cube.embed(cube, "tiny", dtype="float32", missing="nearest")
    assert_type(emb, xr.DataArray)
    assert_type(deo_cube.to_zarr(emb, path), xr.DataArray)
    assert_type(deo_cube.open_embeddings(path), xr.DataArray)
    assert_type(deo_cube.plan(cube), Plan)
    assert_type(deo_cube.similar(emb, to=(0.0, 1.0)), xr.DataArray)
    assert_type(deo_cube.change(emb, "2020", "2021"), xr.DataArray)
    head = deo_cube.fit_head("knn", emb, [(0.0, 0.0, "a")])
    assert_type(head, Head)
    assert_type(deo_cube.segment(cube, head), xr.DataArray)
    assert_type(deo_cube.load_encoder("tiny"), Encoder)
    assert_type(deo_cube.verify("tiny"), Verification)
    assert_type(deo_cube.list_models(), pd.DataFrame)
    assert_type(deo_cube.card("tiny"), deo_cube.ModelCard)
    check_accessors(cube, emb, path)
    with deo_cube.set_options(dtype="int8", offline=True):
        pass
    deo_cube.embed(cube, missing="perhaps")  # type: ignore[arg-type]
    deo_cube.set_options(modell="vitb")  # type: ignore[call-arg]


def check_accessors(cube: xr.Dataset, emb: xr.DataArray, path: str) -> None:
    """Check methods as functions: an annotated accessor has types, which xarray's attribute does not."""
    of_cube: deo_cube.DeoDatasetAccessor = cube.deo
    assert_type(of_cube.embed("tiny", dtype="float32", missing="nearest"), xr.DataArray)
    assert_type(of_cube.plan(), Plan)
    assert_type(of_cube.segment(path), xr.DataArray)
    of_embeddings = deo_cube.DeoDataArrayAccessor(emb)
    assert_type(of_embeddings.to_zarr(path, overwrite=True), xr.DataArray)
    assert_type(of_embeddings.similar(to=(0.0, 1.0)), xr.DataArray)
    assert_type(of_embeddings.fit_head("knn", [(0.0, 0.0, "a")], k=3), Head)
    of_cube.embed(missing="perhaps")  # type: ignore[arg-type]
    of_cube.embed(tyle=64)  # type: ignore[call-arg]
    of_cube.to_zarr(path)  # type: ignore[attr-defined]
