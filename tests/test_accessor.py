"""`ds.deo` shows what a cube is, forwards to the functions, and keeps their signatures."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("accessor", [deo_cube.DeoDatasetAccessor, deo_cube.DeoDataArrayAccessor])
def test_every_method_has_the_signature_of_its_function(accessor: type) -> None:
    methods = [name for name in dir(accessor) if not name.startswith("_")]
    assert {"embed", "plan", "match", "composite", "classify", "segment", "seam_report", "fit_head"} <= set(methods)
    for name in methods:
        function = inspect.signature(getattr(deo_cube, name)).parameters.values()
        of_method = inspect.signature(getattr(accessor(xr.DataArray()), name)).parameters.values()
        first = "embeddings" if name == "fit_head" else next(iter(function)).name
        expected = [(p.name, p.kind, p.default) for p in function if p.name != first]
        assert [(p.name, p.kind, p.default) for p in of_method] == expected


def test_fit_head_is_a_method(ds: xr.Dataset) -> None:
    emb = ds.deo.embed()
    places = [(float(emb.x[i]), float(emb.y[j]), "ab"[i > 9]) for i in (2, 5, 14, 18) for j in (3, 12)]
    head, same = emb.deo.fit_head("knn", places, k=3), deo_cube.fit_head("knn", emb, places, k=3)
    assert head.predict(emb).identical(same.predict(emb))


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


def test_rio_and_odc_are_there_and_imported_when_used() -> None:
    code = (
        "import sys, warnings; warnings.simplefilter('error', xr_warning := __import__('xarray').core.extensions"
        ".AccessorRegistrationWarning)\n"
        "import deo_cube\n"
        "assert not {'rioxarray', 'odc.geo.xr'} & set(sys.modules)\n"
        "ds = deo_cube.synthetic_cube(size=32, times=1)\n"
        "bare = ds.drop_vars('spatial_ref').drop_attrs(deep=False)\n"
        "for placed in (bare.rio.write_crs('EPSG:32633'), bare.odc.assign_crs('EPSG:32633')):\n"
        "    assert placed.deo.embed(units='dn', offset=0).rio.crs.to_epsg() == 32633\n"
        "import rioxarray, odc.geo.xr\n"
        "assert type(ds.B02.rio).__module__.startswith('rioxarray')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_packages_that_register_after_this_one_are_not_warned() -> None:
    code = "import deo_cube, rioxarray, odc.geo.xr, xarray as xr; xr.DataArray([[1]], dims=('y', 'x')).rio"
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "overriding" not in done.stderr


def test_a_tree_of_several_cubes_names_the_call_for_its_groups() -> None:
    ds = deo_cube.synthetic_cube(size=32, times=1)
    tree = xr.DataTree.from_dict({"/r10m": ds, "/r20m": ds})
    with pytest.raises(deo_cube.errors.ArgumentTypeError, match=r"tree\['/r10m'\].to_dataset\(\)"):
        tree.deo.embed()
    assert tree["/r10m"].to_dataset().deo.embed().shape == ds.deo.embed().shape


def test_a_store_opened_by_xarray_has_the_methods_of_embeddings(tmp_path: Path) -> None:
    emb = deo_cube.synthetic_cube(size=96, times=2).deo.embed()
    stored = emb.deo.to_zarr(tmp_path / "emb.zarr", progress=False)
    opened = xr.open_zarr(tmp_path / "emb.zarr", decode_coords="all")
    first, second = (str(t)[:10] for t in emb.time.values)
    place = float(stored.x[3]), float(stored.y[4])
    xr.testing.assert_equal(opened.deo.change(first, second).variable, stored.deo.change(first, second).variable)
    xr.testing.assert_equal(opened.deo.similar(place).variable, stored.deo.similar(place).variable)
    assert {"change", "to_zarr"} <= set(dir(opened.deo))


@pytest.mark.parametrize("verb", ["change", "similar", "to_zarr", "aggregate", "cluster", "pca_rgb", "to_geoparquet"])
def test_a_method_of_embeddings_says_of_a_cube_that_it_is_to_be_embedded(ds: xr.Dataset, verb: str) -> None:
    arguments = {"change": ("2021", "2022"), "similar": ((0.0, 0.0),), "aggregate": ("year",), "cluster": (3,)}
    with pytest.raises(deo_cube.errors.ArgumentTypeError, match=r"ds\.deo\.embed\(\)"):
        getattr(ds.deo, verb)(*arguments.get(verb, ("out",) if verb.startswith("to_") else ()))
    assert verb not in dir(ds.deo)


def test_a_wrong_name_is_an_attribute_error(ds: xr.Dataset) -> None:
    assert not hasattr(ds.deo, "embedd")
    assert not hasattr(ds.deo, "_repr_png_")
