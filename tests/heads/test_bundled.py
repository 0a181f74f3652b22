from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import deo_cube
from deo_cube.encoder.networks.dynamicworld import CLASSES
from deo_cube.errors import ArgumentError
from deo_cube.heads.bundled import BUNDLED, bundled_head


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


@pytest.mark.parametrize("options", [{}, {"model": "vitb"}, {"model": Path("folder")}])
def test_models_without_a_head_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ArgumentError, match="head:"):
        deo_cube.synthetic_cube(size=32, times=1).deo.segment(**options)


def test_every_bundled_head_can_be_made() -> None:
    for alias in BUNDLED:
        assert bundled_head(alias).model.alias == alias
