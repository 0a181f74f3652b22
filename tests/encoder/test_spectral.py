from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from deo_cube.encoder.networks.dynamicworld import DynamicWorld
from deo_cube.encoder.networks.spectral import DeoSpectral
from deo_cube.encoder.normalize import normalize
from deo_cube.encoder.registry import bundled_cards
from deo_cube.errors import ArgumentError
from deo_cube.train.config import MS_BANDS, PRESETS

STEMS = {"ms": 10, "rgb": 3}


@pytest.fixture(scope="module")
def network() -> DeoSpectral:
    torch.manual_seed(0)
    return DeoSpectral(stems=STEMS, dim=16, local=8, depth=6, contrast=["ms"]).eval()


def test_each_stem_gives_the_layers_that_it_has(network: DeoSpectral) -> None:
    with torch.inference_mode():
        ms = network.forward_features(torch.rand(2, 10, 32, 48), "ms")
        rgb = network.forward_features(torch.rand(2, 3, 32, 48), "rgb")
    assert set(ms) == {"local", "mixed", "spectral", "fused", "pooled"}
    assert set(rgb) == {"local", "pw3", "pw5", "pw6", "fused", "pooled"}
    for maps in (ms, rgb):
        for name in set(maps) - {"pooled"}:
            dim, stride = network.layers[name]
            assert maps[name].shape == (2, dim, 32 // stride, 48 // stride), name
    assert torch.allclose(ms["spectral"].norm(dim=1), torch.ones(2, 8, 12), atol=1e-5)
    with pytest.raises(ArgumentError, match="pw5"):
        network.forward_features(torch.rand(1, 10, 32, 32), "ms", {"pw5"})


def test_nothing_of_one_trunk_is_computed_for_the_other(network: DeoSpectral) -> None:
    x = torch.rand(1, 10, 16, 16)
    network.zero_grad()
    network.forward_features(x, "ms", {"fused"})["fused"].sum().backward()
    assert all(p.grad is None for p in network.trunk.parameters())
    assert all(p.grad is not None for p in network.spectral.parameters())
    network.zero_grad()


def test_gradients_and_inference_compute_the_same(network: DeoSpectral) -> None:
    x = torch.rand(1, 10, 36, 64)
    slow = network.forward_features(x, "ms", {"fused"})["fused"]
    with torch.inference_mode():
        fast = network.forward_features(x, "ms", {"fused"})["fused"]
    assert torch.allclose(slow, fast, atol=1e-5)


def test_a_trunk_starts_as_dynamic_world() -> None:
    """The input transform is its own, and the stem differs by its activation alone."""
    torch.manual_seed(0)
    teacher = DynamicWorld(stems={"ms": 9}).eval()
    stem = bundled_cards()["dynamicworld"].stems[0]
    student = PRESETS["tiny"].student
    network = DeoSpectral(stems=STEMS, dim=16, local=8, depth=6).eval()
    network.spectral.set_input(MS_BANDS, student.ms_mean, student.ms_std)
    network.spectral.load_dynamic_world(teacher.state_dict(), MS_BANDS)
    dn = torch.rand(1, 10, 24, 24) * 5000
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (student.ms_mean, student.ms_std))
    own = network.spectral.transformed((dn - mean) / std)
    order = [MS_BANDS.index(b) for b in stem.bands]
    theirs = normalize(dn[:, order], stem, stem.normalizations[0])
    assert torch.allclose(own[:, order], theirs, atol=1e-5)
    with torch.inference_mode():
        first = F.conv2d(theirs, teacher.stem.weight, teacher.stem.bias, padding=1)
        assert torch.allclose(network.spectral.stem(own), first, atol=1e-5)
    # Negative and missing reflectance stays finite.
    assert network.spectral.transformed((-2000 - mean) / std).isfinite().all()
