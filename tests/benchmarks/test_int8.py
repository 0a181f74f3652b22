"""int8 networks of the benchmarks: what calibrates them, and what is measured of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch import nn

from benchmarks import evaluation_tables, int8, precision

RGB = ("B04", "B03", "B02")


@pytest.mark.real
def test_calibration_is_the_same_at_every_call_and_of_the_named_bands(shared: Path) -> None:
    windows = int8.calibration(shared / "data", RGB, 32, count=4)
    assert windows.shape == (4, 3, 32, 32)
    assert_array_equal(windows, int8.calibration(shared / "data", RGB, 32, count=4))
    assert_array_equal(windows[:, ::-1], int8.calibration(shared / "data", RGB[::-1], 32, count=4))


@pytest.mark.real
def test_scenes_that_calibrate_are_not_scored(shared: Path) -> None:
    scored = {
        path.name
        for folder in ("landcover_terramesh", "change_barkbeetle")
        for path in (shared / "data" / folder).rglob("*")
    }
    assert not scored & set(int8.SCENES)


def test_recorded_network_returns_the_maps_and_keeps_each_tile() -> None:
    class Doubled(nn.Module):
        def forward_features(self, x: torch.Tensor, stem: str, layers: tuple[str, ...]) -> dict[str, torch.Tensor]:
            return {layers[0]: 2 * x}

    recorded = int8.Recorded(Doubled())
    x = torch.rand(3, 2, 4, 4)
    assert torch.equal(recorded.forward_features(x, "ms", ("last",))["last"], 2 * x)
    assert_array_equal(np.concatenate(recorded.inputs), x.numpy())


def test_cosine_distance_of_vectors_that_are_scaled_is_0_and_of_opposite_ones_2() -> None:
    vectors = np.random.default_rng(0).normal(size=(5, 7))
    assert int8.cosine_distances(vectors, 3 * vectors).max() < 1e-12
    np.testing.assert_allclose(int8.cosine_distances(vectors, -vectors), 2)


def test_every_patch_keeps_its_class_where_vectors_are_equal() -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, (2, 6, 8))
    exact = np.stack([labels + rng.normal(0, 0.1, labels.shape), rng.normal(size=labels.shape)], axis=1)
    assert int8.same_class(exact, exact, labels) == 1
    assert int8.same_class(1 - exact, exact, labels) < 0.1


@pytest.mark.real
@pytest.mark.slow
def test_int8_network_is_near_the_float_network(shared: Path) -> None:
    pytest.importorskip("nncf")
    from deo_cube.encoder.registry import resolve

    ref = resolve("tiny", bands=list(RGB))
    tiles = int8.calibration(shared / "data", RGB, 64, count=4)
    maps = int8.quantised(ref, shared / "data", 64, int8.Way("all")).encode(tiles)
    exact = ref.load("cpu").encode(tiles)
    assert maps.shape == exact.shape
    assert 0 < int8.cosine_distances(np.moveaxis(maps, 1, 0), np.moveaxis(exact, 1, 0)).mean() < 0.2


def test_the_page_shows_the_scores_of_every_precision_that_was_measured() -> None:
    page = (evaluation_tables.DOCS / "evaluation.md").read_text(encoding="utf-8")
    assert evaluation_tables.precision() in page
    measured = {
        (row["runtime"].split()[0], row["precision"]) for row in evaluation_tables.read("precision")["tiny"]["rows"]
    }
    assert measured == set(precision.VARIANTS)
