"""What `ds.deo` and `emb.deo` show: facts, and of each model whether it fits, with what mends it where not."""

from __future__ import annotations

import re

import pytest
import xarray as xr

import deo_cube
from deo_cube.embedding.match import summarise, summarise_embeddings
from deo_cube.encoder import registry


@pytest.fixture(scope="module")
def cube():
    return deo_cube.synthetic_cube(size=64, times=2)


def test_a_cube_that_fits_says_what_it_gives_and_which_weights_are_absent(cube, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DEO_CUBE_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = summarise(cube)
    facts = dict(seen.facts)
    assert facts["size"] == "time 2, y 64, x 64"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d to \d{4}-\d\d-\d\d", facts["dates"])
    assert facts["CRS"] == "EPSG:32633"
    # Models that say the same share a line.
    by_alias = {alias: (ok, why) for aliases, ok, why in seen.models for alias in aliases.split(", ")}
    ok, why = by_alias["tiny"]
    assert ok
    assert "192-vector for 40 x 40 m" in why
    assert "clouds from 'SCL'" in why
    assert "not on this machine" not in why


def test_what_does_not_fit_is_told_once_with_what_mends_it(cube, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})  # by other tests
    summary = summarise(cube.drop_vars("B08"))
    models = summary.models
    (only,) = [m for m in models if "tiny" in m[0].split(", ")]
    names, ok, why = only
    assert not ok
    assert {"swinb", "tiny", "vitb"} <= set(names.split(", "))
    assert 'missing="nearest"' in why
    shown = summary._repr_html_()
    assert "missing=&quot;nearest&quot;" in shown
    assert shown.count("<tr>") == len(summary.facts) + len(models)


def test_one_date_and_none(cube) -> None:
    assert len(dict(summarise(cube.isel(time=[0])).facts)["dates"]) == 10
    assert "dates" not in dict(summarise(cube.isel(time=0)).facts)


def test_embeddings(cube) -> None:
    facts = dict(summarise_embeddings(cube.deo.embed("tiny")).facts)
    assert facts["size"] == "time 2, embedding 192, y 16, x 16; float16"
    assert "deo_spectral_tiny" in facts["model"]


def test_a_path_is_no_cube() -> None:
    with pytest.raises(TypeError, match=r"deo_cube.open_cube\('cube.zarr'\)"):
        deo_cube.embed("cube.zarr")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="got list"):
        deo_cube.plan([])  # type: ignore[arg-type]


@pytest.mark.parametrize("bands", [[1, 2, 3], {1: "B04"}, [None], ["B04", 3]])
def test_bands_that_are_not_names_are_refused_by_name(bands: object) -> None:
    ds = deo_cube.synthetic_cube(size=32, times=1)
    for verb in (ds.deo.embed, ds.deo.match):
        with pytest.raises(deo_cube.errors.MissingBandsError, match="bands|B04"):
            verb(bands=bands)


def test_labels_that_are_numbers_are_named_by_a_mapping() -> None:
    ds = deo_cube.synthetic_cube(size=32, times=1, clouds=False, gaps=False)
    order = list(deo_cube.card("tiny").bands)
    numbered = ds[order].to_dataarray("band").assign_coords(band=range(1, 11))
    mapping = {band: i + 1 for i, band in enumerate(order)}
    xr.testing.assert_equal(numbered.deo.embed(bands=mapping).variable, ds.deo.embed().variable)
