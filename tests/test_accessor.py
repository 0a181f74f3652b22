"""`ds.deo` shows what a cube is, forwards to the functions, and keeps their signatures."""

from __future__ import annotations

import inspect
import re

import pytest
import xarray as xr

import deo_cube


@pytest.fixture(scope="module")
def ds() -> xr.Dataset:
    return deo_cube.synthetic_cube(size=96, times=1, clouds=False, gaps=False)


def test_verbs_are_the_functions_with_the_cube_given(ds: xr.Dataset) -> None:
    assert ds.deo.embed().identical(ds.pipe(deo_cube.embed))
    of_method, of_function = inspect.signature(ds.deo.embed), inspect.signature(deo_cube.embed)
    assert list(of_method.parameters) == list(of_function.parameters)[1:]
    assert ds.deo.embed.__doc__ == deo_cube.embed.__doc__
    assert of_method.parameters["model"].default == "tiny"
    assert of_method.parameters["dtype"].default == "float16"


def test_the_view_of_a_cube_says_bands_crs_units_and_who_fits(ds: xr.Dataset) -> None:
    text, html = repr(ds.deo), ds.deo._repr_html_()
    for shown in (text, html):
        for word in ("EPSG:32633", "10 m", "units", "vitb", "swinb", "tiny"):
            assert word in shown
    assert "<table" in html


def test_the_view_says_why_not_and_never_raises(ds: xr.Dataset) -> None:
    assert re.search("no   .*tiny", repr(ds.drop_vars("B05").deo))
    assert "B05" in repr(ds.drop_vars("B05").deo)
    assert "write_crs" in repr(ds.drop_vars("spatial_ref").deo)
    assert "spatial dimensions" in repr(xr.Dataset().deo)
    assert "<table" in xr.Dataset({"<b>": ("<i>", [1])}).deo._repr_html_()
    assert "<b>" not in xr.Dataset({"<b>": ("<i>", [1])}).deo._repr_html_()


def test_the_view_of_embeddings_says_what_made_them(ds: xr.Dataset) -> None:
    emb = ds.deo.embed()
    assert deo_cube.card("tiny").name in repr(emb.deo)
    assert "tiles" in emb.deo._repr_html_()


def test_match_needs_no_weights(ds: xr.Dataset) -> None:
    assert ds.deo.match("vitb").bands == deo_cube.card("vitb").bands
    with pytest.raises(deo_cube.errors.MissingBandsError, match="B08"):
        ds.drop_vars("B08").deo.match()


def test_plan_counts_without_weights_and_reads_nothing(ds: xr.Dataset) -> None:
    plan = ds.deo.plan("vitb")
    assert plan.shape == (1, 768, 12, 12)
    assert "not measured" in repr(plan)
    assert "<table" in plan._repr_html_()
