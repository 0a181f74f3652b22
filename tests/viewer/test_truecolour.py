"""True colour has the units that the embeddings record of their cube, or says why not."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import deo_cube
from deo_cube.errors import ArgumentError
from deo_cube.viewer.layers import STRETCHED, TrueColour, open_for_viewing
from deo_cube.viewer.state import ViewerState

RGB = ("B04", "B03", "B02")


@pytest.fixture(scope="module")
def dn() -> xr.Dataset:
    """DN without an offset, of two dates."""
    cube = deo_cube.synthetic_cube(size=96, times=2, seed=4, gaps=False, clouds=False)
    return cube[[str(v) for v in cube.data_vars if str(v).startswith("B")]]


def of(cube: Any, values: Any, **attrs: Any) -> xr.Dataset:
    """The cube with other values, and with nothing that says what they are but `attrs`."""
    out = cube.map(lambda v: xr.DataArray(values(v), coords=v.coords, dims=v.dims)).chunk()
    out.attrs = {}
    for v in out.data_vars.values():
        v.attrs = dict(attrs)
    return out


def expected(dn: xr.Dataset, t: int) -> np.ndarray:
    bands = np.stack([dn[b].isel(time=t).values.astype("float64") for b in RGB], axis=-1)
    return (bands / 3000).clip(0, 1) ** 0.8


def drawn(true: TrueColour, t: int) -> np.ndarray:
    """Colours of all cells of the cube, before they are placed on the map."""
    v = np.moveaxis(true.source.block(t, slice(0, 96), slice(0, 96)).astype("float64"), 0, -1)
    return (v * true.scale[t] + true.add[t]).clip(0, 1) ** 0.8


def test_an_offset_that_was_passed_beats_the_attributes_of_the_cube(dn: xr.Dataset) -> None:
    cube = of(dn, lambda v: v + 1000, units="DN", boa_add_offset=0)
    emb = cube.deo.embed(offset=-1000)
    true = TrueColour.of(cube, emb)
    np.testing.assert_allclose(drawn(true, 1), expected(dn, 1), atol=1e-6)
    assert "as the embeddings record them" in true.note
    # Alone, the cube's own attributes count.
    assert drawn(TrueColour.of(cube), 1).mean() > drawn(true, 1).mean() + 0.1


def test_units_that_the_cube_does_not_state_come_from_the_embeddings(dn: xr.Dataset) -> None:
    cube = of(dn, lambda v: (v / 10000).astype("float32"))
    emb = cube.deo.embed(units="reflectance")
    true = TrueColour.of(cube, emb)
    np.testing.assert_allclose(drawn(true, 0), expected(dn, 0), atol=1e-4)
    assert TrueColour.of(cube).note == STRETCHED


def test_a_cube_in_other_units_than_the_embedded_one_is_noticed(dn: xr.Dataset) -> None:
    emb = dn.deo.embed()
    stated = of(dn, lambda v: (v / 10000).astype("float32"), units="reflectance", boa_add_offset=0)
    true = TrueColour.of(stated, emb)
    np.testing.assert_allclose(drawn(true, 0), expected(dn, 0), atol=1e-4)
    assert "not the units of the embeddings" in true.note
    silent = TrueColour.of(of(dn, lambda v: (v / 10000).astype("float32")), emb)
    assert silent.note.startswith(STRETCHED)
    assert "not the units of the embeddings" in silent.note


def test_each_date_has_its_own_offset(dn: xr.Dataset) -> None:
    shift = xr.DataArray([0, 1000], dims="time", coords={"time": dn.time})
    cube = dn.map(lambda v: (v + shift).astype("uint16"))
    emb = cube.deo.embed(offset=[0, -1000])
    for dates in ([0, 1], [1, 0], [1]):
        true = TrueColour.of(cube.isel(time=dates), emb)
        for k, t in enumerate(dates):
            np.testing.assert_allclose(drawn(true, k), expected(dn, t), atol=1e-6)
    # One date of the embeddings, all of the cube: nothing is recorded of the other date in a form that can be matched.
    assert "record" not in TrueColour.of(cube, emb.isel(time=[0])).note


def test_bands_are_those_that_were_embedded(dn: xr.Dataset) -> None:
    names = {b: f"x{n}" for n, b in enumerate(dn.data_vars)}
    cube = dn.rename(names)
    for v in cube.data_vars.values():
        v.attrs = {}
    emb = cube.deo.embed(bands=names)
    np.testing.assert_allclose(drawn(TrueColour.of(cube, emb), 1), expected(dn, 1), atol=1e-6)


def test_a_cube_of_another_place_is_refused(dn: xr.Dataset) -> None:
    emb = dn.deo.embed()
    with pytest.raises(ArgumentError, match="cube="):
        TrueColour.of(dn.assign_coords(x=dn.x + 50_000), emb)


def test_a_store_shows_the_colours_of_its_cube(dn: xr.Dataset, tmp_path: Path) -> None:
    cube = of(dn, lambda v: (v / 10000).astype("float32"))
    cube.to_zarr(tmp_path / "cube.zarr", zarr_format=3, consolidated=False)
    opened = open_for_viewing(tmp_path / "cube.zarr")
    opened.deo.embed(units="reflectance").deo.to_zarr(tmp_path / "e.zarr", progress=False)
    view = ViewerState.of_store(tmp_path / "e.zarr", cube=opened)
    assert "as the embeddings record them" in view.layer_facts("true")["note"]
    from PIL import Image

    from tests.viewer.conftest import tile_at

    (s, w), (n, e) = view.grid.bounds
    z = view.grid.native_zoom + 2
    x, y = tile_at((w + e) / 2, (s + n) / 2, z)
    png = np.asarray(Image.open(io.BytesIO(view.tile("true", 1, z, x, y).png)))
    rows, cols = view.layers["true"].layer.grid.tile(z, x, y)
    inside = (rows >= 0) & (rows < 96) & (cols >= 0) & (cols < 96)
    assert inside.sum() > 1000
    wanted = expected(dn, 1)[rows[inside].astype(int), cols[inside].astype(int)] * 255
    np.testing.assert_allclose(png[inside][:, :3], wanted, atol=1)
    assert (png[~inside][:, 3] == 0).all()
