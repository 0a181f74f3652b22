from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rioxarray  # noqa: F401 - registers .rio
import xarray as xr

import deo_cube
from deo_cube.encoder.networks.dynamicworld import CLASSES
from deo_cube.errors import ArgumentError
from deo_cube.heads.head import BUNDLED, bundled_head


@pytest.mark.real
def test_dynamicworld_classes_are_its_largest_logits(shared: Path, tmp_path: Path) -> None:
    cube = deo_cube.synthetic_cube(size=64, times=1).assign_attrs(product_level="L1C")
    options = {"weights": shared / "data/weights", "tile": 80, "halo": 24, "device": "cpu"}
    logits = cube.deo.embed("dynamicworld", layer="logits", dtype="float32", **options).compute()
    classes = cube.deo.segment(model="dynamicworld", dtype="float32", **options).compute()
    assert classes.shape == (1, 64, 64)
    valid = np.isfinite(logits.values).all(axis=1)
    assert 0.5 < valid.mean() < 1
    assert np.array_equal(classes.values, np.where(valid, logits.values.argmax(axis=1), 255))
    assert classes.attrs["flag_meanings"].split()[0] == "water"
    shares = cube.deo.segment(model="dynamicworld", dtype="float32", probabilities=True, **options).compute()
    assert list(shares["class"].values) == list(CLASSES)
    expected = np.exp(logits.values) / np.exp(logits.values).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.transpose("time", "class", "y", "x").values, expected, atol=1e-5)
    saved = bundled_head("dynamicworld").save(tmp_path / "head.safetensors")
    assert np.array_equal(deo_cube.classify(logits, saved).values, classes.values)


@pytest.mark.parametrize("options", [{"model": "vitb"}, {"model": Path("folder")}])
def test_models_without_a_head_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="head:"):
        deo_cube.synthetic_cube(size=32, times=1).deo.segment(**options)


def test_every_bundled_head_can_be_made() -> None:
    for alias in BUNDLED:
        assert bundled_head(alias).model.alias == alias


def test_segment_without_arguments_draws_land_cover_with_its_legend_and_valid_fraction() -> None:
    cube = deo_cube.synthetic_cube(size=96, times=1)
    land_cover = cube.deo.segment()
    assert land_cover.chunks is not None
    assert "WorldCover" in land_cover.attrs["comment"]
    assert land_cover.attrs["flag_meanings"].split() == [c.replace(" ", "_") for c in CLASSES]
    assert len(land_cover.attrs["flag_colors"].split()) == len(CLASSES)
    land_cover = land_cover.compute()
    assert land_cover.shape == (1, 96, 96)
    assert set(np.unique(land_cover)) <= {*range(9), 255}
    assert land_cover.valid.shape == land_cover.shape
    emb = cube.deo.embed("tiny").compute()
    # The valid fraction of a patch at each of its pixels; 255 where a patch has no valid pixel.
    inside = np.kron(emb.valid.values, np.ones((4, 4)))
    np.testing.assert_allclose(land_cover.valid.values, inside[:, :96, :96])
    assert ((land_cover.values == 255) == (land_cover.valid.values == 0)).all()
    assert np.array_equal(deo_cube.segment(emb).values[:, :96, :96], land_cover.values)
    shares = cube.deo.segment(probabilities=True).compute()
    np.testing.assert_allclose(shares.sum("class").where(land_cover != 255, 1.0), 1.0, atol=1e-5)


def test_the_land_cover_head_is_of_the_model_that_is_shipped() -> None:
    emb = deo_cube.embed(deo_cube.synthetic_cube(size=64, times=1), "tiny")
    model = bundled_head("tiny").model
    message = "another `tiny` is shipped than the head was made for: run python -m benchmarks.default_map"
    assert model.fingerprint == emb.attrs["deo_cube:model_fingerprint"], message


def test_a_cube_of_red_green_and_blue_has_no_default_map() -> None:
    rgb = deo_cube.synthetic_cube(size=64, times=1)[["B02", "B03", "B04"]]
    with pytest.raises(ArgumentError, match="B8A"):
        rgb.deo.segment(bands=["B04", "B03", "B02"])


@pytest.mark.real
@pytest.mark.parametrize("level", ["L1C", "L2A"])
def test_the_default_map_finds_water_and_trees_of_a_coast(shared: Path, level: str) -> None:
    """A tile that trained nothing: southern Brazil, against the ESRI map."""
    from deo_cube.constants import WAVELENGTH_BANDS
    from deo_cube.evaluate.readers import read_terramesh

    (scene,) = read_terramesh(shared / "data/landcover_terramesh", level=level, tiles=["282D_485L_3_3"])
    cube = xr.DataArray(
        scene.image[[scene.bands.index(b) for b in WAVELENGTH_BANDS]],
        dims=("band", "y", "x"),
        coords={"band": list(WAVELENGTH_BANDS), "y": 1e6 - 10.0 * np.arange(224), "x": 5e5 + 10.0 * np.arange(224)},
    ).rio.write_crs(32722)
    found = deo_cube.segment(cube, units="dn", offset=0, nodata=None).values.reshape(224, 224)
    water, trees = scene.label == 1, scene.label == 2
    # Surf and glint on a third of the sea are bright.
    assert (found[water] == 0).mean() > 0.55
    assert (found[trees] == 1).mean() > 0.8
