from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deo_cube.encoder.network_hash import network_hash
from deo_cube.encoder.networks.adapters import FunctionNetwork, TimmNetwork, as_network, build_network, seeded_network
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.encoder.registry import bundled_cards, describe, describe_timm
from deo_cube.errors import ArgumentError, UnknownModelError

RGB = ("B04", "B03", "B02")


@pytest.mark.parametrize("family", ["vit", "swin", "conv"])
def test_every_family_keeps_the_interface(family: str) -> None:
    sizes = {
        "vit": {"dim": 12, "depth": 2, "heads": 2, "grid": 4},
        "swin": {"dim": 8, "depths": [1, 1], "heads": [1, 2], "window": 4},
        "conv": {"dim": 16, "local": 8, "depth": 6},
    }[family]
    card = dataclasses.replace(bundled_cards()["swinb"], architecture={"family": family, **sizes})
    network = build_network(card).eval()
    x = torch.rand(2, 10, 32, 64)
    with torch.inference_mode():
        every = network.forward_features(x, "ms")
        assert {*network.layers, "pooled"} == set(every)
        for name, (dim, stride) in network.layers.items():
            assert every[name].shape == (2, dim, 32 // stride, 64 // stride), name
        last = list(network.layers)[-1]
        some = network.forward_features(x[:, :3], "rgb", (last, "pooled"))
        assert set(some) == {last, "pooled"}
        assert some["pooled"].shape == (2, network.layers[last][0])


def test_what_a_factory_may_make() -> None:
    card = describe("x", bands=RGB, dim=4, patch=8)
    convolution = as_network(torch.nn.Conv2d(3, 4, 8, 8), card)
    assert isinstance(convolution, FunctionNetwork)
    assert len(convolution.state_dict()) == 2
    timm = import_timm()

    model = timm.create_model("resnet10t", num_classes=0)
    assert isinstance(as_network(model, card), TimmNetwork)
    own = build_network(bundled_cards()["tiny"])
    assert as_network(own, card) is own


def test_a_function_may_name_its_layers_and_pool_by_itself() -> None:
    card = describe("x", bands=RGB, dim=3, patch=8, layer="fine")
    network = FunctionNetwork(lambda x: {"fine": x, "coarse": x[..., ::2, ::2], "pooled": x.amax((2, 3))}, card)
    x = torch.rand(1, 3, 8, 8)
    out = network.forward_features(x, "all", ("coarse", "pooled"))
    assert set(out) == {"coarse", "pooled"}
    assert torch.equal(out["pooled"], x.amax((2, 3)))
    with pytest.raises(ValueError, match="layers .*'fine'.*'deep'"):
        network.forward_features(x, "all", ("deep",))
    as_numpy = FunctionNetwork(lambda x: x.numpy() * 2, card)
    assert torch.equal(as_numpy.forward_features(x, "all")["fine"], x * 2)


class Tokens(torch.nn.Module):
    """A network that returns tokens, or what holds them, as those of other packages do."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.project = form, torch.nn.Conv2d(3, 4, 8, 8)

    def forward(self, x: torch.Tensor) -> Any:
        map_ = self.project(x)
        tokens = map_.flatten(2).transpose(1, 2)
        with_class = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        return {
            "tokens": tokens,
            "class and tokens": with_class,
            "vector": tokens.mean(1),
            "list": [map_],
            "dict": {"x": map_},
            "output": SimpleNamespace(last_hidden_state=map_),
        }[self.form]


@pytest.mark.parametrize(
    ("form", "fixed"),
    [
        ("tokens", lambda out: out[:, -8:].transpose(1, 2).reshape(len(out), 4, 2, 4)),
        ("class and tokens", lambda out: out[:, -8:].transpose(1, 2).reshape(len(out), 4, 2, 4)),
        ("list", lambda out: out[0]),
        ("dict", lambda out: out["x"]),
        ("output", lambda out: out.last_hidden_state),
        ("vector", None),
    ],
)
def test_what_is_no_map_is_refused_and_the_advice_makes_one(form: str, fixed: Callable[[Any], Any] | None) -> None:
    card = describe("x", bands=RGB, dim=4, patch=8)
    network, x = Tokens(form), torch.rand(2, 3, 16, 32)
    with pytest.raises(ArgumentError, match="card 'x' returned"):
        FunctionNetwork(network, card).forward_features(x, "all")
    if fixed is not None:
        made = FunctionNetwork(lambda x: fixed(network(x)), card).forward_features(x, "all")
        torch.testing.assert_close(made["map"], network.project(x))


def test_a_module_with_other_channels_than_the_card_says_so() -> None:
    card = describe("x", bands=RGB, dim=4, patch=8)
    with pytest.raises(ArgumentError, match="one channel per band of the card"):
        FunctionNetwork(torch.nn.Conv2d(10, 4, 8, 8), card).forward_features(torch.rand(1, 3, 16, 16), "all")


def test_initialisation_is_seeded_and_the_seed_is_the_cards() -> None:
    card = bundled_cards()["tiny"]
    torch.manual_seed(1)
    a = network_hash(seeded_network(card, None))
    torch.manual_seed(2)
    assert network_hash(seeded_network(card, None)) == a
    other = describe("x", bands=RGB, dim=4, patch=8, architecture={"family": "callable", "seed": 3})
    same = describe("x", bands=RGB, dim=4, patch=8)
    assert network_hash(seeded_network(other, lambda: torch.nn.Conv2d(3, 4, 8, 8))) != network_hash(
        seeded_network(same, lambda: torch.nn.Conv2d(3, 4, 8, 8))
    )


def test_timm_layers_by_name() -> None:
    network = build_network(describe_timm("v", "vit_tiny_patch16_224", bands=RGB, tile=224)).eval()
    x = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        out = network.forward_features(x, "all", ("block3", "block11", "norm", "pooled"))
        assert {v.shape for k, v in out.items() if k != "pooled"} == {(1, 192, 14, 14)}
        normed = network.model.norm(out["block11"].flatten(2).transpose(1, 2))
        assert torch.allclose(normed.transpose(1, 2).unflatten(2, (14, 14)), out["norm"], atol=1e-5)
        assert torch.equal(out["pooled"], network.model(x))
        with pytest.raises(ValueError, match="layer='deep'"):
            network.forward_features(x, "all", ("deep",))
    two = bundled_cards()["swinb"]
    with pytest.raises(UnknownModelError, match="stem"):
        build_network(dataclasses.replace(two, architecture={"family": "timm", "model": "resnet10t"}))
