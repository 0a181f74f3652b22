"""Decoders on maps of tokens, as pure functions of a mapping of tensors: protocols train them, heads save them.

UPerNet (Xiao et al. 2018, arXiv:1807.10221) is other than published in one thing: its pyramid averages over windows of
fixed size around each token, not over the whole tile, which would make a pixel depend on where its tile was cut.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["apply_conv", "conv_maker", "drawn", "neutral", "standard", "upernet_blank", "upernet_forward"]

Array = NDArray[Any]
POOLS = (3, 7, 15)
"""Sides of the windows of the pyramid, in tokens of the finest scale."""


def conv_maker(seed: int | None) -> Any:
    """Makes ``new(name, a, b, k, gain) -> {name.weight, name.bias}``, each call with the next random numbers.

    Without a seed they are zeros that take no memory: shapes alone, which a file may claim to be of any size.
    """
    rng = np.random.default_rng(seed)

    def new(name: str, a: int, b: int, k: int, gain: float = 1.0) -> dict[str, Array]:
        if seed is None:
            return {f"{name}.weight": zeros(b, a, k, k), f"{name}.bias": zeros(b)}
        w = rng.normal(size=(b, a, k, k)) * gain * np.sqrt(2 / (a * k * k))
        return {f"{name}.weight": w.astype("float32"), f"{name}.bias": np.zeros(b, "float32")}

    return new


def zeros(*shape: int) -> Array:
    """Float32 zeros, read-only, of no size in memory."""
    return np.broadcast_to(np.float32(0), shape)


def neutral(dim: int, seed: int | None) -> dict[str, Array]:
    """Mean and standard deviation that change nothing; without a seed their shapes alone."""
    if seed is None:
        return {"mean": zeros(dim), "std": zeros(dim)}
    return {"mean": np.zeros(dim, "float32"), "std": np.ones(dim, "float32")}


def apply_conv(t: Mapping[str, Any], name: str, x: Any) -> Any:
    """A convolution that keeps the size."""
    import torch.nn.functional as F

    w = t[f"{name}.weight"]
    return F.conv2d(x, w, t[f"{name}.bias"], padding=w.shape[-1] // 2)


def standard(t: Mapping[str, Any], x: Any) -> Any:
    """Vectors standardised; invalid ones become the mean."""
    return ((x - t["mean"][:, None, None]) / t["std"][:, None, None]).nan_to_num(0.0)


def drawn(t: Mapping[str, Any], x: Any, upsample: int) -> Any:
    """Logits, on finer pixels where `upsample` says so."""
    import torch.nn.functional as F

    if upsample > 1:
        x = F.interpolate(x, scale_factor=upsample, mode="bilinear", align_corners=False)
        x = x + F.gelu(apply_conv(t, "fine", x))
    return apply_conv(t, "out", x)


def upernet_blank(
    dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int | None = 0
) -> dict[str, Array]:
    """Tensors before training; without a seed their shapes alone."""
    new, sizes = conv_maker(seed), scales or (dim,)
    tensors = neutral(dim, seed)
    for i, d in enumerate(sizes):
        tensors |= new(f"lateral{i}", d, width, 1) | new(f"level{i}", width, width, 3)
    for k in POOLS:
        tensors |= new(f"pool{k}", width, width // 4, 1)
    tensors |= new("bottleneck", width + len(POOLS) * (width // 4), width, 3)
    tensors |= new("fuse", width * len(sizes), width, 3)
    tensors |= new("fine", width, width, 3) | new("out", width, classes, 1, 0.1)
    return tensors


def upernet_forward(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
    """Logits [B, K, h f, w f] of tokens [B, D, h, w]; invalid tokens count as the mean."""
    import torch
    import torch.nn.functional as F

    parts = standard(t, x).split(list(scales or (x.shape[1],)), dim=1)
    maps = [F.gelu(apply_conv(t, f"lateral{i}", p)) for i, p in enumerate(parts)]
    deep = maps[-1]
    pooled = [F.gelu(apply_conv(t, f"pool{k}", F.avg_pool2d(deep, k, 1, k // 2))) for k in POOLS]
    maps[-1] = F.gelu(apply_conv(t, "bottleneck", torch.cat([deep, *pooled], dim=1)))
    for i in range(len(maps) - 2, -1, -1):
        maps[i] = maps[i] + maps[i + 1]
    levels = [m + F.gelu(apply_conv(t, f"level{i}", m)) for i, m in enumerate(maps)]
    return drawn(t, F.gelu(apply_conv(t, "fuse", torch.cat(levels, dim=1))), upsample)
