from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import deo_cube
from deo_cube.encoder.checkpoint_format import load_weights
from deo_cube.encoder.encoder import reference_input
from deo_cube.encoder.loading import verify
from deo_cube.encoder.networks.galileo import Galileo
from deo_cube.encoder.registry import card
from deo_cube.errors import ArgumentError, ModelCardError, WeightsMismatchError

FILE = "data/weights/galileo_nano_encoder.safetensors"
#: Patch, side, and what the published code gives with the published weights for `reference_input(10, side, batch=2)`:
#: the start of the mean over the second map, and of the last row's second column of the first.
PUBLISHED = [
    (
        8,
        96,
        [-0.01051081, -0.09533711, 0.1797422, 0.01224196, -0.007611736, -0.08755107],
        [-0.005424315, -0.06841372, 0.09562173, -0.03270235, -0.01279402, -0.04115409],
    ),
    (
        4,
        48,
        [-0.01312315, -0.1277962, 0.1722997, 0.07162996, 0.002552432, -0.07470141],
        [-0.0802625, -0.1183922, 0.191445, 0.03293772, -0.02370108, -0.1444209],
    ),
    (
        2,
        16,
        [0.01742946, -0.07573255, 0.1353611, 0.09852073, 0.03321941, -0.03000408],
        [0.01895143, -0.1182157, 0.1380814, 0.06221345, -0.0003410257, 0.02696249],
    ),
    (
        1,
        8,
        [0.04397784, -0.07563227, 0.0758464, 0.05908709, 0.02216604, 0.02088095],
        [0.08490481, -0.03782242, 0.1093041, -0.0007943865, 0.06782846, -0.02484016],
    ),
]


@pytest.mark.real
@pytest.mark.parametrize(("patch", "side", "mean", "corner"), PUBLISHED)
def test_numbers_are_those_of_the_published_code(
    shared: Path, patch: int, side: int, mean: list[float], corner: list[float]
) -> None:
    network = Galileo(stems={"ms": 10}, patch=patch).eval()
    load_weights(network, shared / FILE)
    with torch.inference_mode():
        out = network.forward_features(reference_input(10, side, batch=2) - 0.5, layers=("norm", "pooled"))
    torch.testing.assert_close(out["norm"][1].mean(dim=(1, 2))[:6], torch.tensor(mean), rtol=0, atol=5e-6)
    torch.testing.assert_close(out["norm"][0, :6, -1, 1], torch.tensor(corner), rtol=0, atol=5e-6)
    torch.testing.assert_close(out["pooled"], out["norm"].mean(dim=(2, 3)))


@pytest.mark.real
def test_weights_are_known_by_their_reference_vector(shared: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    found = verify("galileo_nano", weights=shared / FILE)
    assert found.ok
    assert found.distance is not None
    state = load_file(shared / FILE)
    torch.save(state, tmp_path / "encoder.pt")
    assert verify("galileo_nano", weights=tmp_path / "encoder.pt").ok
    state["blocks.0.attn.q.weight"] = state["blocks.0.attn.q.weight"].flip(0)
    save_file(state, tmp_path / "other.safetensors")
    assert not verify("galileo_nano", weights=tmp_path / "other.safetensors").ok
    with pytest.raises(WeightsMismatchError, match="reference vector"):
        deo_cube.load_encoder("galileo_nano", weights=tmp_path / "other.safetensors", device="cpu")


@pytest.mark.real
def test_embed_gives_one_vector_per_patch(shared: Path) -> None:
    cube = deo_cube.synthetic_cube(size=64, times=1).assign_attrs(product_level="L1C")
    emb = cube.deo.embed("galileo_nano", weights=shared / FILE, device="cpu", dtype="float32").compute()
    assert emb.shape == (1, 128, 16, 16)
    assert np.isfinite(emb.values).any()


def test_oblong_tiles_are_read_as_rows_and_columns() -> None:
    torch.manual_seed(0)
    network = Galileo(stems={"ms": 10}, dim=32, depth=2, heads=2).eval()
    with torch.inference_mode():
        every = network.forward_features(torch.rand(2, 10, 16, 24))
    assert set(every) == {*network.layers, "pooled"}
    assert every["norm"].shape == (2, 32, 4, 6)


def test_what_it_does_not_read_is_refused() -> None:
    with pytest.raises(ArgumentError, match="stems"):
        Galileo(stems={"ms": 12})
    with pytest.raises(ArgumentError, match="patch"):
        Galileo(stems={"ms": 10}, patch=9)
    network = Galileo(stems={"ms": 10}, dim=32, depth=1, heads=2)
    with pytest.raises(ArgumentError, match="batch"):
        network.forward_features(torch.zeros(1, 10, 10, 10))
    with pytest.raises(ArgumentError, match="layer"):
        network.forward_features(torch.zeros(1, 10, 8, 8), layers=("block9",))
    values = card("galileo_nano").to_dict()
    values["architecture"]["month"] = 12
    with pytest.raises(ModelCardError, match="month"):
        deo_cube.ModelCard.from_dict(values)
