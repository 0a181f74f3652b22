from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deo_cube.encoder.loading import verify, write_model
from deo_cube.encoder.registry import bundled_cards
from deo_cube.errors import WeightsMismatchError
from tests.encoder.test_encoder import swin


def test_tiny_is_proven() -> None:
    found = verify("tiny")
    assert found.ok
    assert found.proven
    assert found.distance is not None
    assert found.distance < 1e-4
    assert repr(found).startswith("<Verification: proven. tiny loaded strictly from ")
    assert bundled_cards()["tiny"].weights.file in repr(found)
    assert ("UNTRAINED" in repr(found)) == (not bundled_cards()["tiny"].trained)


def test_a_published_card_is_never_proven(tmp_path: Path) -> None:
    card, network = swin()
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    found = verify(card, weights=tmp_path / "w.safetensors")
    assert found.ok
    assert not found.proven
    assert "states no hash" in repr(found)
    assert "NOT proven" in repr(found)


def test_a_missed_reference_is_wrong(tmp_path: Path) -> None:
    card, network = swin()
    card = write_model(dataclasses.replace(card, weights=dataclasses.replace(card.weights, file="")), network, tmp_path)
    assert verify(tmp_path).proven
    assert card.reference is not None
    wrong = dataclasses.replace(card.reference, vector=tuple(-v for v in card.reference.vector))
    dataclasses.replace(card, reference=wrong).save(tmp_path / "card.json")
    found = verify(tmp_path)
    assert not found.ok
    assert not found.proven
    assert "WRONG" in repr(found)
    assert "MISSED" in repr(found)


def test_another_file_of_the_same_shape_is_an_error(tmp_path: Path) -> None:
    card, network = swin()
    card = write_model(dataclasses.replace(card, weights=dataclasses.replace(card.weights, file="")), network, tmp_path)
    torch.manual_seed(1)
    other = {k: torch.randn_like(v) for k, v in network.state_dict().items()}
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatchError, match="SHA-256"):
        verify(tmp_path, weights=tmp_path / "other.safetensors")
    # Without the hash, the reference vector still tells them apart.
    unhashed = dataclasses.replace(card, weights=dataclasses.replace(card.weights, sha256=None))
    assert "WRONG" in repr(verify(unhashed, weights=tmp_path / "other.safetensors"))
