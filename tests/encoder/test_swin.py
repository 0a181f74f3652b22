from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from deo_cube.encoder.networks.swin import DeoSwin

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = {"ms224": (1, 10, 224, 224), "rgb256": (1, 3, 256, 256), "ms64": (2, 10, 64, 64), "ms120": (1, 10, 120, 120)}
STEMS = {"ms": 10, "rgb": 3}


def wave(b: int, c: int, h: int, w: int) -> torch.Tensor:
    n, k, i, j = np.ogrid[0:b, 0:c, 0:h, 0:w]
    return torch.from_numpy((np.sin(0.013 * (k + 1) * i + 0.7 * n) * np.cos(0.017 * (k + 2) * j)).astype(np.float32))


@pytest.fixture(scope="module")
def golden() -> DeoSwin:
    network = DeoSwin(stems=STEMS, dim=12, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=12).eval()
    state = load_file(GOLDEN / "swin_weights.safetensors")
    state = {k.removeprefix("feat_extr."): v for k, v in state.items() if not k.endswith("relative_position_index")}
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_same_numbers_as_the_published_code(golden: DeoSwin, case: str) -> None:
    expected = load_file(GOLDEN / "swin_out.safetensors")
    found = golden.forward_features(wave(*CASES[case]), case[: 2 if case.startswith("ms") else 3])
    for stage in range(1, 5):
        want = expected[f"stage{stage}.{case}"].permute(0, 3, 1, 2)
        assert found[f"stage{stage}"].shape == want.shape
        assert (found[f"stage{stage}"] - want).abs().max() <= 1e-5, stage
    assert (found["pooled"] - expected[f"pooled.{case}"]).abs().max() <= 1e-5


def test_relative_position_index_is_the_published_one(golden: DeoSwin) -> None:
    state = load_file(GOLDEN / "swin_weights.safetensors")
    index = state["feat_extr.features.0.0.attn.relative_position_index"]
    assert torch.equal(index, golden.get_submodule("features.0.0.attn").relative_position_index.flatten())


def small(**sizes: object) -> DeoSwin:
    torch.manual_seed(0)
    options: dict = dict(stems=STEMS, dim=8, depths=(2, 2), heads=(1, 2), window=4, patch=4) | sizes
    return DeoSwin(**options).eval()


@given(h=st.integers(4, 70), w=st.integers(4, 70))
@torch.inference_mode()
def test_any_size_rounds_up_at_each_merge(h: int, w: int) -> None:
    maps = small().forward_features(torch.zeros(1, 10, h, w), "ms")
    assert maps["stage1"].shape == (1, 8, h // 4, w // 4)
    assert maps["stage2"].shape == maps["norm"].shape == (1, 16, (h // 4 + 1) // 2, (w // 4 + 1) // 2)
    assert maps["pooled"].shape == (1, 16)


@torch.inference_mode()
def test_a_layer_alone_is_the_same_and_stops_early() -> None:
    network = small()
    x = wave(2, 3, 48, 40)
    every = network.forward_features(x, "rgb")
    for name in [*network.layers, "pooled"]:
        alone = network.forward_features(x, "rgb", (name,))
        assert list(alone) == [name]
        assert torch.equal(alone[name], every[name])
    del network.features[1:]
    assert torch.equal(network.forward_features(x, "rgb", ("stage1",))["stage1"], every["stage1"])


@torch.inference_mode()
def test_attention_stays_within_windows_and_their_shift() -> None:
    # A token of stage 1 sees its window and the windows that the one shifted block joins to it, no further.
    network = small()
    x = wave(1, 10, 128, 128)
    moved = x.clone()
    moved[..., 96:, 96:] += 3
    difference = (
        (
            network.forward_features(x, "ms", ("stage1",))["stage1"]
            - network.forward_features(moved, "ms", ("stage1",))["stage1"]
        )
        .abs()
        .amax(1)[0]
    )
    assert difference[24:, 24:].min() > 0
    assert difference[:20, :].max() == 0
    assert difference[:, :20].max() == 0


def test_layers_say_channels_and_stride() -> None:
    network = DeoSwin(stems=STEMS, dim=12, depths=(2, 2, 2), heads=(1, 2, 4), window=7)
    assert network.layers == {"stage1": (12, 4), "stage2": (24, 8), "stage3": (48, 16), "norm": (48, 16)}


def test_training_works_after_inference_at_the_same_size() -> None:
    network = small(drop_path=0.3)
    x = wave(2, 10, 64, 64)
    with torch.inference_mode():
        network.forward_features(x, "ms")
    network.train()
    network.forward_features(x, "ms")["pooled"].square().sum().backward()
    unused = {n for n, p in network.named_parameters() if p.grad is None}
    assert unused == {f"conv_rgb.{i}.{k}" for i in (0, 2) for k in ("weight", "bias")}


def test_stochastic_depth_acts_in_training_only() -> None:
    network = small(drop_path=0.9)
    x = wave(4, 10, 32, 32)
    with torch.inference_mode():
        assert torch.equal(network(x, "ms"), network(x, "ms"))
        network.train()
        assert not torch.equal(network(x, "ms"), network(x, "ms"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "ms"), "wants \\[B, 10"),
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "sar"), "no stem 'sar'"),
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "rgb", ("stage9",)), "stage9"),
        (lambda n: small(heads=(1, 3)), "do not divide"),
        (lambda n: small(heads=(1,)), "of one length"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small())
