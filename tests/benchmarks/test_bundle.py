"""The bundled model does what its card says, on tiles that its training never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.bundle import typical
from deo_cube.encoder.registry import card, load_encoder
from deo_cube.heads.probes import knn
from deo_cube.train.samples import ImageSource, open_source


def test_the_card_is_complete() -> None:
    tiny = card("tiny")
    assert tiny.trained
    assert tiny.reference is not None
    assert all(layer.int8_scale for layer in tiny.layers)
    assert (Path(tiny.folder) / tiny.weights.file).stat().st_size <= 12_000_000
    assert "steps" in tiny.training_data
    assert "Copernicus" in tiny.training_data
    assert "MobileNet" in tiny.license_weights
    tasks = {s["task"] for s in tiny.scores}
    assert {"EuroSAT RGB/knn5", "land cover/patch", "L2A to L1C/patch", "beetle/pixel", "beetle/cosine"} <= tasks
    for score in tiny.scores:
        low, high = score["interval95"]
        assert low <= score["value"] <= high
        assert score["protocol"]
        assert len(score["difference95"]) == 2
    assert any("random convolutions" in limit for limit in tiny.limits)


@pytest.mark.real
@pytest.mark.slow
def test_neighbours_on_tiles_kept_apart_also_under_other_light(shared: Path) -> None:
    source = open_source(f"{shared / 'data/eurosat_rgb/eurosat_rgb_shared.zip'},hold_out=0.5")
    assert isinstance(source, ImageSource)
    random = np.random.default_rng(0)

    def some(files: tuple[str, ...], n: int) -> list[str]:
        return [files[i] for i in random.choice(len(files), n, replace=False)]

    bank, asked = some(source.files, 300), some(source.held_out, 150)
    encoder = load_encoder("tiny", device="cpu")

    def vectors(files: list[str], light: float = 1.0) -> np.ndarray:
        x = np.stack([source.read(f) for f in files]) * np.float32(light)
        return np.concatenate([encoder.pool(part, bands=["B04", "B03", "B02"]) for part in np.array_split(x, 8)])

    z, y = vectors(bank), source.labels(bank)
    plain, dark = (float((knn(z, y, vectors(asked, light)) == source.labels(asked)).mean()) for light in (1.0, 0.8))
    # 0.91 with all 4202 neighbours; with 300 about 0.84.
    assert plain > 0.75
    assert dark > plain - 0.06


@pytest.mark.real
def test_channels_are_even_on_real_scenes(shared: Path) -> None:
    z = load_encoder("tiny", device="cpu").encode(typical(shared / "data")[:4])
    spread = z.std(axis=(0, 2, 3))
    assert spread.max() < 4 * spread.mean()
    flat = z.transpose(0, 2, 3, 1).reshape(-1, z.shape[1])
    s = np.linalg.svd(flat - flat.mean(0), compute_uv=False)
    share = s / s.sum()
    assert np.exp(-(share * np.log(share + 1e-12)).sum()) > 20  # effective rank: the published weights have 3.7 to 5.0
