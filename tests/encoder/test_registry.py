from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from deo_cube.encoder.networks.adapters import build_network
from deo_cube.encoder.registry import card, describe, describe_timm, load_encoder, register_encoder, resolve
from deo_cube.errors import (
    MissingBandsError,
    ModelCardError,
    UnknownModelError,
    WeightsMismatchError,
    WeightsNotFoundError,
)

MS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def test_unknown_names_list_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match="model=.*vitb"):
        resolve("vit_b")
    with pytest.raises(UnknownModelError, match="model="):
        resolve("prithvi-eo")
    with pytest.raises(UnknownModelError, match=r"card\.json"):
        resolve(tmp_path)
    (tmp_path / "card.json").write_text('{"name": "x"}')
    with pytest.raises(UnknownModelError, match=r"card\.json"):
        resolve(tmp_path)
    with pytest.raises(UnknownModelError, match=f"'block12'.*{card('tiny').layers[-1].name}"):
        resolve("tiny", layer="block12")
    with pytest.raises(UnknownModelError, match="normalize='imagenet'"):
        resolve("tiny", normalize="imagenet")


def test_bands_at_hand_choose_the_stem() -> None:
    assert resolve("tiny").stem.name == "ms"
    assert resolve("tiny", bands=[*MS, "B01"]).stem.name == "ms"
    assert resolve("tiny", bands=["blue", "green", "red"]).stem.name == "rgb"
    with pytest.raises(MissingBandsError, match="'ms'"):
        resolve("tiny", bands=["B02", "B03", "B04", "B08"])


def test_published_models_without_weights_say_where_to_get_them() -> None:
    for name in ("vitb", "swinb"):
        with pytest.raises(WeightsNotFoundError, match="SolaireTheSun/DEO"):
            resolve(name)


@pytest.mark.parametrize("name", ["vitb", "swinb"])
def test_published_sizes_build_and_their_files_are_checked_at_the_call(name: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        network = build_network(card(name))
    state = network.state_dict()
    parameters = sum(v.numel() for v in state.values()) / 1e6
    assert parameters == pytest.approx({"vitb": 86.30, "swinb": 86.90}[name], abs=0.005)
    assert {la.name: (la.dim, la.stride) for la in card(name).layers}.items() <= network.layers.items()
    # The right names and shapes pass; the published index buffers are counted in (355 for the Swin-B).
    indices = [k.replace("bias_table", "index") for k in state if k.endswith("relative_position_bias_table")]
    assert len(state) + len(indices) == {"vitb": 152, "swinb": 355}[name]
    foreign = tmp_path / "foreign.safetensors"
    save_file({"encoder.layer.0.weight": torch.zeros(3, 3)}, foreign)
    with pytest.raises(WeightsMismatchError, match=r"foreign\.safetensors"):
        resolve(name, weights=foreign)


def test_load_encoder_runs() -> None:
    encoder = load_encoder("tiny", device="cpu")
    layer = encoder.layer
    out = encoder.encode(np.full((2, 10, 64, 96), 1200, np.uint16))
    assert out.shape == (2, layer.dim, 64 // layer.stride, 96 // layer.stride)
    assert not any(p.requires_grad for p in encoder.network.parameters())  # type: ignore[attr-defined]


def test_mistakes_of_a_registration() -> None:
    means = describe("tiny", bands=["B04"], dim=1, patch=8)
    with pytest.raises(ValueError, match="tiny"):
        register_encoder(means, lambda: lambda x: x)
    with pytest.raises(MissingBandsError, match=r"bands: .*\['B01'\]"):
        describe("x", bands=["B01"], dim=1, patch=8)
    with pytest.raises(UnknownModelError, match="vit_of_nowhere"):
        describe_timm("x", "vit_of_nowhere", bands=MS)
    register_encoder(describe("wrong", bands=["B04"], dim=1, patch=8), lambda: 5)
    with pytest.raises(TypeError, match="wrong"):
        resolve("wrong")
    register_encoder(describe("off", bands=["B04"], dim=1, patch=8), lambda: lambda x: F.avg_pool2d(x, 4))
    with pytest.raises(ValueError, match=r"\(1, 1, 8, 8\).*\(1, 1, 4, 4\)"):
        load_encoder("off", device="cpu").encode(np.ones((1, 1, 32, 32)))
    with pytest.raises(ValueError, match="weights"):
        resolve("off", weights="x.pth")
    odd = dataclasses.replace(describe("odd", bands=["B04"], dim=1, patch=8), architecture={"family": "mamba"})
    with pytest.raises(UnknownModelError, match="mamba"):
        resolve(odd)
    with pytest.raises(ModelCardError, match="width"):
        dataclasses.replace(odd, architecture={"family": "swin", "width": 3})
    with pytest.raises(UnknownModelError, match="swin"):
        resolve(dataclasses.replace(odd, architecture={"family": "swin", "dim": 7, "heads": [2, 2, 2, 2]}))
