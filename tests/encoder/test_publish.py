from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.encoder import Encoder, reference_input
from deo_cube.encoder.hub import file_sha256
from deo_cube.encoder.loading import int8_scale, write_model
from deo_cube.encoder.registry import bundled_cards, load_encoder
from tests.encoder.test_encoder import small_card, swin, tiles, vit
from tests.encoder.test_swin import wave


@pytest.mark.parametrize("make", [swin, vit])
def test_a_written_folder_is_a_model(make, tmp_path: Path) -> None:
    card, network = make()
    network.train()
    own = dataclasses.replace(card, weights=dataclasses.replace(card.weights, status="trained", file="", repo=None))
    card = write_model(own, network, tmp_path / "runs" / "003", sample=tiles(), metadata={"epoch": "7"})
    assert network.training
    again = write_model(own, network, tmp_path / "again", sample=tiles(), metadata={"epoch": "7"})
    assert again.weights.sha256 == card.weights.sha256
    folder = tmp_path / "runs" / "003"
    assert ModelCard.load(folder) == card
    assert card.weights.sha256 == file_sha256(folder / "weights.safetensors")
    with safe_open(folder / "weights.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt", "model": card.name, "epoch": "7"}
    assert card.reference is not None
    assert len(card.reference.vector) == min(16, card.dim)
    x = tiles()
    want = Encoder(card, network.eval()).encode(x)
    found = load_encoder(folder, device="cpu")
    assert np.array_equal(found.encode(x), want)
    # int8 with the card's scale keeps the direction of every vector.
    scale = found.layer.int8_scale
    assert scale is not None
    held = np.clip(np.rint(want / scale), -127, 127) * scale
    cosine = (held * want).sum(1) / np.linalg.norm(held, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.99


def test_reference_input_is_the_one_of_the_card() -> None:
    assert torch.equal(reference_input(10, 32, 2), wave(2, 10, 32, 32))


@given(seed=st.integers(0, 99), spread=st.floats(1e-3, 1e3))
def test_int8_scale_beats_the_plain_maximum(seed: int, spread: float) -> None:
    values = (np.random.default_rng(seed).standard_t(3, 4000) * spread).astype(np.float32)

    def error(scale: float) -> float:
        return float(np.mean((np.clip(np.rint(values / scale), -127, 127) * scale - values) ** 2))

    assert error(int8_scale(values)) <= error(float(np.abs(values).max()) / 127) * 1.001


def test_int8_scale_of_nothing() -> None:
    assert int8_scale(np.zeros(10, np.float32)) > 0


def test_the_bundled_model_is_small() -> None:
    card = bundled_cards()["tiny"]
    assert (Path(card.folder) / card.weights.file).stat().st_size < 12_000_000


def test_any_family_and_size_can_stand_as_a_card(tmp_path: Path) -> None:
    from deo_cube.encoder.networks.conv import DeoConv

    torch.manual_seed(0)
    network = DeoConv(stems={"ms": 10, "rgb": 3}, dim=16, local=8, depth=6)
    card = small_card("swinb", {"family": "conv", "dim": 16, "local": 8, "depth": 6}, network.layers)
    card = dataclasses.replace(card, weights=dataclasses.replace(card.weights, file="", repo=None))
    written = write_model(card, network, tmp_path)
    assert load_encoder(tmp_path, device="cpu").encode(tiles()).shape == (2, written.dim, 16, 16)
