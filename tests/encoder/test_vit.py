from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from deo_cube.encoder.networks.vit import DeoViT
from tests.encoder.test_swin import GOLDEN, STEMS, wave

CASES = {"ms224": (1, 10, 224, 224), "rgb224": (1, 3, 224, 224), "ms256": (1, 10, 256, 256), "ms64x96": (2, 10, 64, 96)}


@pytest.fixture(scope="module")
def golden() -> DeoViT:
    network = DeoViT(stems=STEMS, dim=24, depth=12, heads=3, patch=8, grid=28).eval()
    state = load_file(GOLDEN / "vit_weights.safetensors")
    state = {k.removeprefix("student.module._orig_mod.").removeprefix("backbone."): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.startswith("patch_embed.")}
    network.load_state_dict(state)
    return network


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_same_numbers_as_the_published_code(golden: DeoViT, case: str) -> None:
    expected = load_file(GOLDEN / "vit_out.safetensors")
    found = golden.forward_tokens(wave(*CASES[case]), "rgb" if case.startswith("rgb") else "ms")
    for block in (3, 5, 8, 11):
        want = expected[f"block{block}.{case}"]
        assert found[f"block{block}"].shape == want.shape
        assert (found[f"block{block}"] - want).abs().max() <= 1e-4, block


@torch.inference_mode()
def test_maps_are_the_patch_tokens_row_by_row(golden: DeoViT) -> None:
    expected = load_file(GOLDEN / "vit_out.safetensors")["block11.ms64x96"]
    found = golden.forward_features(wave(*CASES["ms64x96"]), "ms", ("block11", "norm", "pooled"))
    assert found["block11"].shape == (2, 24, 8, 12)
    for row, col in ((0, 0), (0, 11), (3, 7), (7, 11)):
        assert (found["block11"][:, :, row, col] - expected[:, 1 + row * 12 + col]).abs().max() <= 1e-4
    assert torch.allclose(found["pooled"], golden.norm(expected[:, 0]), atol=1e-4)
    assert torch.allclose(found["norm"][:, :, 7, 11], golden.norm(expected[:, -1]), atol=1e-4)


def small(**sizes: object) -> DeoViT:
    torch.manual_seed(0)
    options: dict = dict(stems=STEMS, dim=12, depth=3, heads=2, patch=8, grid=4) | sizes
    return DeoViT(**options).eval()


@given(rows=st.integers(1, 9), cols=st.integers(1, 9))
@torch.inference_mode()
def test_any_multiple_of_the_patch(rows: int, cols: int) -> None:
    maps = small().forward_features(torch.zeros(1, 10, 8 * rows, 8 * cols), "ms")
    assert {m.shape for name, m in maps.items() if name != "pooled"} == {(1, 12, rows, cols)}


@torch.inference_mode()
def test_a_layer_alone_is_the_same_and_stops_early() -> None:
    network = small()
    x = wave(2, 3, 48, 40)
    every = network.forward_features(x, "rgb")
    assert set(every) == {"block0", "block1", "block2", "norm", "pooled"}
    for name in every:
        alone = network.forward_features(x, "rgb", (name,))
        assert list(alone) == [name]
        assert torch.equal(alone[name], every[name])
    del network.blocks[1:]
    assert torch.equal(network.forward_features(x, "rgb", ("block0",))["block0"], every["block0"])


def test_gradients_reach_all_but_the_other_stem() -> None:
    network = small(drop_path=0.1).train()
    network.forward_features(wave(2, 10, 48, 48), "ms")["pooled"].square().sum().backward()
    unused = {n for n, p in network.named_parameters() if p.grad is None}
    assert unused == {"patch_embed_rgb.proj.weight", "patch_embed_rgb.proj.bias"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda n: n.forward_features(torch.zeros(1, 10, 32, 30), "ms"), "multiples of the patch, 8"),
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "ms"), "wants \\[B, 10"),
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "sar"), "no stem 'sar'"),
        (lambda n: n.forward_features(torch.zeros(1, 3, 32, 32), "rgb", ("block3",)), "block3"),
        (lambda n: small(heads=5), "do not divide"),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(small())
