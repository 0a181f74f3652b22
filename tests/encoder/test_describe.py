from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch.nn.functional as F

from deo_cube.encoder.card import Layer
from deo_cube.encoder.registry import (
    card,
    describe,
    describe_timm,
    list_models,
    load_encoder,
    register_encoder,
    resolve,
)

MS = ("B04", "B03", "B02", "B05", "B06", "B07", "B08", "B8A", "B11", "B12")


def test_a_function_in_two_lines() -> None:
    register_encoder(describe("means", bands=["B04", "B08"], dim=2, patch=16), lambda: lambda x: F.avg_pool2d(x, 16))
    encoder = load_encoder("means", device="cpu")
    x = np.random.default_rng(0).uniform(0, 4000, (2, 3, 64, 64)).astype(np.float32)
    found = encoder.encode(x, bands=["B08", "B11", "B04"])
    mean, std = encoder.normalization.mean, encoder.normalization.std
    want = (x[:, [2, 0]].reshape(2, 2, 4, 16, 4, 16).mean((3, 5)) - np.reshape(mean, (2, 1, 1))) / np.reshape(
        std, (2, 1, 1)
    )
    assert np.allclose(found, want, atol=1e-4)
    assert np.allclose(encoder.pool(x, bands=["B08", "B11", "B04"]), want.mean((2, 3)), atol=1e-4)
    assert "means" in set(list_models().alias)
    assert resolve(card("means")).factory is not None


def test_dinov3_body_with_ten_bands_in_one_line() -> None:
    register_encoder(describe_timm("dino10", "vit_small_patch16_dinov3", bands=MS, tile=64))
    made = card("dino10")
    assert (made.dim, made.patch, made.layers[-1].name, made.weights.status) == (384, 16, "norm", "untrained")
    encoder = load_encoder("dino10", device="cpu")
    assert "UNTRAINED" in repr(encoder)
    x = np.random.default_rng(0).uniform(0, 4000, (1, 10, 64, 96)).astype(np.float32)
    found = encoder.encode(x)
    assert found.shape == (1, 384, 4, 6)
    assert encoder.pool(x).shape == (1, 384)
    # The seeded initialisation is the same wherever it is loaded.
    assert np.array_equal(load_encoder("dino10", device="cpu").encode(x), found)


def test_a_convolutional_timm_model_and_its_stages() -> None:
    made = describe_timm("conv", "resnet10t", bands=MS[:3], tile=64)
    assert (made.layers[-1].name, made.patch, made.dim) == ("last", 32, 512)

    register_encoder(dataclasses.replace(made, layers=(Layer("stage3", 128, 8), *made.layers)))
    x = np.ones((1, 3, 64, 64), np.float32)
    assert resolve("conv", layer="stage3").load().encode(x).shape == (1, 128, 8, 8)
    assert load_encoder("conv", device="cpu").encode(x).shape == (1, 512, 2, 2)


def test_a_size_that_a_timm_model_does_not_take_is_said_with_what_mends_it() -> None:
    with pytest.raises(ValueError, match=r"tile=64.*'img_size': 64"):
        describe_timm("vt", "vit_tiny_patch16_224", bands=["B04", "B03", "B02"], tile=64)
    made = describe_timm("vt", "vit_tiny_patch16_224", bands=["B04", "B03", "B02"], tile=64, options={"img_size": 64})
    assert (made.patch, made.dim) == (16, 192)
