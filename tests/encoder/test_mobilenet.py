from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deo_cube.encoder.networks.conv import CHANNELS, DeoConv, MobileNet, fold_batch_norm

WEIGHTS = "data/weights/mobilenet_v1_1.0_224_trunk.safetensors"


@pytest.fixture(scope="module")
def small() -> DeoConv:
    torch.manual_seed(0)
    return DeoConv(stems={"ms": 10, "rgb": 3}, dim=24, local=16, depth=6, contrast=["ms"]).eval()


@pytest.mark.parametrize(("stride", "halving"), [(2, "strided"), (1, "mean"), (1, "strided")])
def test_strides_and_channels(stride: int, halving: str) -> None:
    net = MobileNet({"rgb": 3}, depth=11, stem_stride=stride, halving=halving)
    maps = net(torch.randn(1, 3, 64, 64), "rgb")
    for i, step in ((1, 1), (3, 2), (5, 4), (11, 8)):
        assert maps[f"pw{i}"].shape == (1, CHANNELS[i], *(64 // (step * stride),) * 2)


@pytest.mark.real
def test_folded_norm_gives_what_the_norm_gives(shared: Path) -> None:
    from safetensors.torch import load_file
    from torch.nn import functional as F

    w = load_file(shared / WEIGHTS)
    net = MobileNet({"rgb": 3}, depth=2)
    net.load_state_dict(fold_batch_norm(w, depth=2))
    x = torch.randn(2, 3, 32, 32)

    def layer(x: torch.Tensor, name: str, **how) -> torch.Tensor:
        x = F.conv2d(x, w[f"{name}.weight"], **how)
        norm = [w[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return F.relu6(F.batch_norm(x, *norm, eps=1e-3))

    y = layer(F.pad(x, (0, 1, 0, 1)), "conv1", stride=2)
    y = layer(layer(y, "conv_dw_1", padding=1, groups=32), "conv_pw_1")
    y = layer(layer(F.pad(y, (0, 1, 0, 1)), "conv_dw_2", stride=2, groups=64), "conv_pw_2")
    torch.testing.assert_close(net(x, "rgb")["pw2"], y, atol=1e-4, rtol=1e-4)


def test_halving_by_the_mean_keeps_cells_over_their_pixels() -> None:
    """A flipped input gives the flipped map; with stride 2 and one-sided padding it does not."""
    torch.manual_seed(0)
    for halving, symmetric in (("mean", True), ("strided", False)):
        net = MobileNet({"rgb": 3}, depth=6, stem_stride=1, halving=halving).eval()
        for conv in net.modules():
            if isinstance(conv, torch.nn.Conv2d):
                conv.weight.data = (conv.weight.data + conv.weight.data.flip(3)) / 2
        x = torch.rand(1, 3, 64, 64)
        a, b = net(x, "rgb")["pw6"], net(x.flip(3), "rgb")["pw6"].flip(3)
        assert torch.allclose(a, b, atol=1e-4) is symmetric


def test_layers_are_as_stated(small: DeoConv) -> None:
    maps = small.forward_features(torch.randn(2, 10, 64, 48), "ms")
    for name, (channels, stride) in small.layers.items():
        assert maps[name].shape == (2, channels, 64 // stride, 48 // stride)
    torch.testing.assert_close(maps["pooled"], maps["fused"].mean(dim=(2, 3)))


def test_sides_that_eight_does_not_divide(small: DeoConv) -> None:
    x = torch.randn(1, 3, 36, 44)
    maps = small.forward_features(x, "rgb", ("fused", "local", "parts", "pooled"))
    assert maps["fused"].shape[2:] == maps["local"].shape[2:] == (9, 11)
    torch.testing.assert_close(maps["pooled"], maps["fused"].mean(dim=(2, 3)))
    with pytest.raises(ValueError, match="multiples of 4"):
        small.forward_features(x[..., :-1], "rgb")


def test_a_sample_does_not_see_its_batch(small: DeoConv) -> None:
    x = torch.randn(3, 10, 32, 32)
    small.train()
    alone = small.forward_features(x[:1], "ms", ("fused",))["fused"]
    together = small.forward_features(x, "ms", ("fused",))["fused"][:1]
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)
    small.eval()


@pytest.mark.parametrize(
    ("stem", "shape", "layers", "message"),
    [
        ("sar", (1, 10, 32, 32), None, "stem"),
        ("ms", (1, 3, 32, 32), None, "10"),
        ("ms", (1, 10, 32, 32), ("x",), "'x'"),
    ],
)
def test_what_does_not_fit_is_refused(small: DeoConv, stem, shape, layers, message) -> None:
    with pytest.raises(ValueError, match=message):
        small.forward_features(torch.zeros(shape), stem, layers)
    with pytest.raises(ValueError, match="depth"):
        DeoConv(stems={"ms": 10}, depth=3)
    for contrast in ("ms", ["sar"]):
        with pytest.raises(ValueError, match="contrast"):
            DeoConv(stems={"ms": 10}, contrast=contrast)


@pytest.mark.parametrize("shape", [(64, 48), (32, 8), (8, 32), (104, 64), (40, 48)])
def test_by_strips_it_is_the_same_to_the_last_bit(small: DeoConv, shape: tuple[int, int]) -> None:
    x = torch.randn(2, 10, *shape)
    with torch.inference_mode():
        assert torch.equal(small.trunk.pw2_by_strips(x, "ms"), small.trunk(x, "ms")["pw2"])


@pytest.mark.parametrize(("stem", "bands"), [("ms", 10), ("rgb", 3)])
def test_the_neck_by_parts_is_the_neck_of_all_parts_side_by_side(small: DeoConv, stem: str, bands: int) -> None:
    maps = small.trunk(x := torch.randn(2, bands, 64, 48), stem) | {"local": small.local_map(x, stem)}
    whole = small.necks[stem](small.stack(maps, stem))
    torch.testing.assert_close(small.fuse(maps, stem), whole, atol=1e-5, rtol=1e-5)


def test_contrast_divides_out_what_multiplies_a_whole_place(small: DeoConv) -> None:
    local = torch.rand(1, 16, 20, 24)
    torch.testing.assert_close(small.contrast_map(3.7 * local), small.contrast_map(local), atol=1e-4, rtol=1e-4)


def test_contrast_of_nothing_is_nothing_and_never_beyond_its_bounds(small: DeoConv) -> None:
    assert (small.contrast_map(torch.zeros(1, 16, 8, 8)) == 0).all()
    spots = torch.zeros(1, 16, 16, 16)
    spots[0, :, 5, 5] = 1e6
    found = small.contrast_map(spots)
    assert torch.isfinite(found).all()
    assert 0 <= found.min() < found.max() <= 42


def test_contrast_of_a_core_needs_a_halo_of_sixteen_pixels_and_no_more(small: DeoConv) -> None:
    """Four cells of halo round a core of eight: what lies beyond changes nothing to the last bit."""
    wide = torch.rand(1, 16, 24, 24)
    narrow = wide[:, :, 4:20, 4:20]
    assert torch.equal(small.contrast_map(narrow)[:, :, 4:12, 4:12], small.contrast_map(wide)[:, :, 8:16, 8:16])


def test_a_neck_without_contrast_is_as_it_was_before_there_was_any() -> None:
    torch.manual_seed(0)
    plain = DeoConv(stems={"ms": 10}, dim=24, local=16, depth=6)
    assert plain.necks["ms"].weight.shape[1] == sum(plain.parts.values())


def test_with_gradients_and_without_it_is_the_same_network(small: DeoConv) -> None:
    x = torch.randn(2, 10, 64, 48)
    with torch.inference_mode():
        without = small.forward_features(x, "ms", ("fused",))["fused"]
    torch.testing.assert_close(small.forward_features(x, "ms", ("fused",))["fused"], without, atol=1e-6, rtol=1e-6)
