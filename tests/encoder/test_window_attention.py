from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from deo_cube.encoder.networks.swin import DeoSwin
from deo_cube.encoder.networks.window_attention import WindowAttention, window_attention


def padded(attn: WindowAttention, x: Tensor, shift: int) -> Tensor:
    """What the published network computes, written as it does: pad, roll, cut, attend, and all of it back."""
    n, h, w, c = x.shape
    side = attn.window_size[0]
    rows, cols = math.ceil(h / side), math.ceil(w / side)
    s = (shift if rows > 1 else 0, shift if cols > 1 else 0)
    x = F.pad(x, (0, 0, 0, cols * side - w, 0, rows * side - h))
    region = torch.zeros(rows * side, cols * side)
    for axis, (size, step) in enumerate(((rows * side, s[0]), (cols * side, s[1]))):
        if step:
            for k, part in enumerate(
                (slice(0, size - side), slice(size - side, size - step), slice(size - step, size))
            ):
                region[(part, slice(None)) if axis == 0 else (slice(None), part)] += 3**axis * k
    x = torch.roll(x, (-s[0], -s[1]), (1, 2))

    def cut(t: Tensor) -> Tensor:
        t = t.view(-1, rows, side, cols, side, t.shape[-1]).transpose(2, 3)
        return t.reshape(-1, side * side, t.shape[-1])

    labels = cut(region[None, :, :, None])[..., 0]
    mask = (labels[:, None, :] != labels[:, :, None]) * -100.0
    x = attn(cut(x), mask=mask if any(s) else None)
    x = x.view(n, rows, cols, side, side, c).transpose(2, 3).reshape(n, rows * side, cols * side, c)
    return torch.roll(x, s, (1, 2))[:, :h, :w]


def layer(dim: int, heads: int, side: int) -> WindowAttention:
    torch.manual_seed(0)
    attn = WindowAttention(dim, num_heads=heads, window_size=side)
    for p in attn.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return attn.double()


@settings(max_examples=60)
@given(h=st.integers(1, 17), w=st.integers(1, 17), side=st.integers(2, 6), shifted=st.booleans())
def test_numbers_and_gradients_are_those_of_padding(h: int, w: int, side: int, shifted: bool) -> None:
    attn, shift = layer(4, 2, side), side // 2 if shifted else 0
    x = torch.randn(2, h, w, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(h * w))
    x.requires_grad_()
    every = [x, *attn.parameters()]
    results = []
    for compute in (window_attention, padded):
        out = compute(attn, x, shift)
        results.append((out, torch.autograd.grad((out * out.detach().cos()).sum(), every)))
    (ours, grads), (theirs, wanted) = results
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    for g, v in zip(grads, wanted, strict=True):
        torch.testing.assert_close(g, v, rtol=1e-8, atol=1e-8)


def test_padding_costs_nothing() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    def flops(side: int) -> int:
        network = DeoSwin(stems={"ms": 10}, dim=16, depths=(2,), heads=(2,), window=12).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.forward_features(torch.zeros(1, 10, 4 * side, 4 * side), "ms")
        return int(counter.get_total_flops())

    # 14 x 14 tokens in windows of 12 were padded to 24 x 24: as many operations as a map of 24 x 24.
    assert flops(14) / 14**2 <= 1.1 * flops(24) / 24**2
    assert flops(14) < 0.36 * flops(24)


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.99])
def test_stochastic_depth_computes_only_samples_that_it_keeps(rate: float) -> None:
    """The numbers are those of multiplying the branch by the same draws."""
    network = DeoSwin(stems={"ms": 10}, dim=8, depths=(3,), heads=(2,), window=4, drop_path=rate).train()
    x = torch.randn(5, 10, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(7)
    found = network.forward_features(x, "ms", ("stage1",))["stage1"]
    found.square().sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if not name.startswith("norm"))
    torch.manual_seed(7)
    with torch.no_grad():
        y = network.get_submodule("conv_ms")(x)
        for i, block in enumerate(network.features[0]):
            keep = 1 - rate * i / 2
            for branch in (
                lambda t, b=block: window_attention(b.attn, b.norm1(t), b.shift),
                lambda t, b=block: b.mlp(b.norm2(t)),
            ):
                draw = torch.empty(5).bernoulli_(keep) / keep if keep < 1 else torch.ones(5)
                y = y + draw.view(5, 1, 1, 1) * branch(y)
    torch.testing.assert_close(found, y.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-5)
