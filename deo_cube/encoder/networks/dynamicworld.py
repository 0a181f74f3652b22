"""Dynamic World: nine Sentinel-2 bands to nine land-cover classes at 10 m, with batch norm folded in.

Brown et al. 2022, doi:10.1038/s41597-022-01307-4. The network and its published weights are Apache-2.0, with this
notice: "This code is produced for the Dynamic World Project by Google in partnership with National Geographic and the
World Resources Institute."

The publisher's file holds the values of a TensorFlow checkpoint one after the other, without names. `LAYOUT` names
them, so the file is read without TensorFlow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks import check_input
from deo_cube.errors import ArgumentError, WeightsMismatchError

__all__ = ["CLASSES", "COLORS", "LAYOUT", "Conv", "DynamicWorld", "Separable", "read_variables"]

#: Classes of `logits`, in its order.
CLASSES = (
    "water",
    "trees",
    "grass",
    "flooded vegetation",
    "crops",
    "shrub and scrub",
    "built",
    "bare",
    "snow and ice",
)
#: Colours of the published maps, one per class.
COLORS = ("#419BDF", "#397D49", "#88B053", "#7A87C6", "#E49635", "#DFC35A", "#C4281B", "#A59B8F", "#B39FE1")

#: Epsilon of every batch norm in the published file.
EPSILON = 1e-3
NORM = ("gamma", "beta", "mean", "variance")


Activation = Callable[..., Tensor]


class Conv(nn.Conv2d):
    """A convolution that keeps the size, zero-padded, followed by an activation."""

    def __init__(
        self, inputs: int, outputs: int, side: int = 1, *, groups: int = 1, activation: Activation = F.mish
    ) -> None:
        super().__init__(inputs, outputs, side, padding=side // 2, groups=groups)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        # In place only without gradients, some of which are computed from the input.
        return self.activation(super().forward(x), inplace=not torch.is_grad_enabled())


class Separable(nn.Module):
    """`depth` times a 1x1 and a depth-wise 3x3 convolution, with a 1x1 convolution of the input added where asked."""

    def __init__(
        self, inputs: int, outputs: int, depth: int = 3, *, skip: bool = True, activation: Activation = F.mish
    ) -> None:
        super().__init__()
        self.depth = depth
        for i in range(1, depth + 1):
            self.add_module(f"pointwise{i}", Conv(inputs if i == 1 else outputs, outputs, activation=activation))
            self.add_module(f"depthwise{i}", Conv(outputs, outputs, 3, groups=outputs, activation=activation))
        self.skip = Conv(inputs, outputs, activation=activation) if skip else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H, W)."""
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"depthwise{i}")(self.get_submodule(f"pointwise{i}")(y))
        return y if self.skip is None else y + self.skip(x)


class DynamicWorld(nn.Module):
    """The published network. Its state has the names of `LAYOUT`, with `weight` and `bias` per convolution.

    The receptive field reaches 23 px: a halo of 24 px hides the tile's border completely. Tiles must begin at an even
    pixel of one common grid, because the network halves its input once.

    Parameters
    ----------
    stems : mapping
        Name of its only stem -> 9, the number of bands.

    Attributes
    ----------
    layers : mapping
        Name of each layer -> (channels, output stride in pixels): `concat`, deep and shallow features at 20 m;
        `logits`, one value per class at 10 m; `unit`, the features that `logits` is a linear map of, of length 1.
    """

    layers: Mapping[str, tuple[int, int]] = {"concat": (192, 2), "logits": (9, 1), "unit": (144, 1)}

    def __init__(self, *, stems: Mapping[str, int]) -> None:
        super().__init__()
        if list(stems.values()) != [9]:
            raise ArgumentError(f"stems: Dynamic World reads one stem of 9 bands, got {dict(stems)}")
        self.stem = Conv(9, 64, 3)
        self.block1 = Separable(64, 96)
        self.block2 = Separable(96, 144)
        self.low = Separable(64, 48, 1, skip=False)
        self.block3 = Separable(192, 144)
        self.logits = nn.Conv2d(144, 9, 1)

    def forward_features(self, x: Tensor, stem: str = "ms", layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps of a normalised batch.

        Parameters
        ----------
        x : Tensor [B, 9, H, W]
            After the card's normalization; sides of at least two pixels.
        stem : str
            Ignored, because there is one.
        layers : collection of str, optional
            Names of layers, or `pooled`. Default: all.

        Returns
        -------
        dict of str -> Tensor
            `concat` [B, 192, H // 2, W // 2], `unit` [B, 144, H, W], `logits` [B, 9, H, W], and `pooled` [B, 144], the
            mean of `unit` over the map.
        """
        names = check_input(x, layers, (*self.layers, "pooled"), channels=9, smallest=2)
        rows, cols = x.shape[2:]
        # Depth-wise convolutions of the CPU are several times faster with the channels of a pixel side by side.
        x = x.contiguous(memory_format=torch.channels_last)
        half = F.interpolate(
            self.stem(x), size=(rows // 2, cols // 2), mode="bilinear", align_corners=False, antialias=True
        ).contiguous(memory_format=torch.channels_last)
        concat = torch.cat([self.block2(self.block1(half)), self.low(half)], dim=1)
        out = {"concat": concat}
        if names - {"concat"}:
            deep = F.interpolate(self.block3(concat), size=(rows, cols), mode="bilinear", align_corners=False)
            unit = deep / deep.square().sum(dim=1, keepdim=True).clamp_min(1e-12).sqrt()
            out |= {"unit": unit, "pooled": unit.mean(dim=(2, 3))}
            if "logits" in names:
                out["logits"] = self.logits(unit)
        return {name: out[name] for name in names}

    def forward(self, x: Tensor, stem: str = "ms") -> Tensor:
        """Return class logits [B, 9, H, W] of a normalised batch [B, 9, H, W]."""
        return self.forward_features(x, stem, ("logits",))["logits"]


def _layout() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield name and shape of each tensor in the published file, in the order of the bytes."""

    def conv(name: str, *shape: int, norm: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        channels = shape[2] if shape[3] == 1 else shape[3]
        yield f"{name}.kernel", shape
        yield f"{name}.bias", (channels,)
        if norm:
            yield from norms(name, channels)

    def norms(name: str, channels: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in NORM:
            yield f"{name}.{part}", (channels,)

    def separable(name: str, i: int, inputs: int, outputs: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from conv(f"{name}.pointwise{i}", 1, 1, inputs, outputs)
        yield from conv(f"{name}.depthwise{i}", 3, 3, outputs, 1)

    yield from conv("stem", 3, 3, 9, 64)
    for name, inputs, outputs in (("block1", 64, 96), ("block2", 96, 144), ("block3", 192, 144)):
        yield from separable(name, 1, inputs, outputs)
        yield from separable(name, 2, outputs, outputs)
        yield from conv(f"{name}.pointwise3", 1, 1, outputs, outputs)
        # TensorFlow numbers layers in the order of their creation: those that run side by side are interleaved.
        if name == "block2":
            yield from conv("low.pointwise1", 1, 1, 64, 48)
        yield from conv(f"{name}.depthwise3", 3, 3, outputs, 1, norm=False)
        yield from conv(f"{name}.skip", 1, 1, inputs, outputs, norm=False)
        yield from norms(f"{name}.depthwise3", outputs)
        yield from norms(f"{name}.skip", outputs)
        if name == "block2":
            yield from conv("low.depthwise1", 3, 3, 48, 1)
    yield from conv("logits", 1, 1, 144, 9, norm=False)


def _offsets() -> dict[str, tuple[int, tuple[int, ...]]]:
    table, offset = {}, 0
    for name, shape in _layout():
        table[name] = (offset, shape)
        offset += 4 * math.prod(shape)
    return table


#: Name -> (offset in bytes, shape) of the little-endian float32 tensors in the published file. Kernels are
#: [height, width, inputs, outputs], of depth-wise convolutions [height, width, channels, 1].
LAYOUT: Mapping[str, tuple[int, tuple[int, ...]]] = _offsets()


def read_variables(path: str | Path) -> dict[str, Tensor]:
    """Return the state of a `DynamicWorld` from the published variables file, batch norm folded in in float64.

    Parameters
    ----------
    path : path
        ``model/forward/variables/variables.data-00000-of-00001`` of the publisher's repository.

    Returns
    -------
    dict of str -> Tensor, float32

    Raises
    ------
    WeightsMismatchError
        If the file is shorter than the tensors of `LAYOUT`.
    """
    data = Path(path).read_bytes()
    end = max(offset + 4 * math.prod(shape) for offset, shape in LAYOUT.values())
    if len(data) < end:
        raise WeightsMismatchError(f"weights={str(path)!r}: expected at least {end} bytes, got {len(data)}")

    def values(name: str) -> NDArray[np.float64]:
        offset, shape = LAYOUT[name]
        return np.frombuffer(data, "<f4", math.prod(shape), offset).reshape(shape).astype(np.float64)

    state = {}
    for name in dict.fromkeys(key.rpartition(".")[0] for key in LAYOUT):
        kernel, bias = values(f"{name}.kernel"), values(f"{name}.bias")
        # [height, width, inputs, outputs] to [outputs, inputs, height, width]; depth-wise: one input per channel.
        weight = kernel.transpose(2, 3, 0, 1) if ".depthwise" in name else kernel.transpose(3, 2, 0, 1)
        if f"{name}.gamma" in LAYOUT:
            gamma, beta, mean, variance = (values(f"{name}.{part}") for part in NORM)
            gain = gamma / np.sqrt(variance + EPSILON)
            weight, bias = weight * gain[:, None, None, None], (bias - mean) * gain + beta
        state[f"{name}.weight"] = torch.from_numpy(np.ascontiguousarray(weight, np.float32))
        state[f"{name}.bias"] = torch.from_numpy(bias.astype(np.float32))
    return state
