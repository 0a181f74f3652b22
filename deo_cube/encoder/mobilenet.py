"""MobileNet v1 with folded batch norm: the small optical teacher, and the convolutional trunk of `tiny`.

Written from Howard et al. 2017 (arXiv 1704.04861, table 1): a 3x3 convolution, then pairs of a depth-wise 3x3 and a
point-wise 1x1 convolution, each followed by ReLU6. Batch norm (eps 0.001 in the published weights) is folded into the
convolutions when weights are imported, so that a batch never changes what another sample sees, at training time either.

Two ways of halving the grid:

`strided`
    Stride 2 with TensorFlow's "same" padding (nothing left and above, one right and below on even sizes): as
    published. Output cell k of one halving is centred half an input pixel right of and below the true centre, and the
    lag adds up: 3.5 px at stride 8.
`mean`
    Stride 1, then the mean of each 2x2: every cell is centred on the pixels it stands for, which is what a map needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["CHANNELS", "HALVING", "MobileNet", "fold_batch_norm"]

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of conv1 and of the point-wise convolutions 1 to 13."""
HALVING = (2, 4, 6, 12)
"""Depth-wise convolutions with stride 2 (conv1 has stride 2 as well, unless told otherwise)."""
EPS = 1e-3


def _same_right(x: Tensor) -> Tensor:
    return F.pad(x, (0, 1, 0, 1))


class _Pair(nn.Module):
    """Depth-wise 3x3, point-wise 1x1, ReLU6 after each."""

    def __init__(self, inputs: int, outputs: int, halve: Literal["no", "strided", "mean"]) -> None:
        super().__init__()
        self.halve = halve
        strided = halve == "strided"
        self.depthwise = nn.Conv2d(inputs, inputs, 3, 2 if strided else 1, 0 if strided else 1, groups=inputs)
        self.pointwise = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(_same_right(x) if self.halve == "strided" else x))
        if self.halve == "mean":
            x = F.avg_pool2d(x, 2)
        return F.relu6(self.pointwise(x))


class MobileNet(nn.Module):
    """The trunk, with one first convolution (stem) for each kind of input.

    Parameters
    ----------
    stems : mapping of str to int
        Name of each stem and its number of bands.
    depth : int
        Number of depth-wise separable pairs, 1 to 13. 11 ends with the last 512 channels at stride 16.
    stem_stride : {2, 1}
        Stride of the first convolution. 1 halves every stride of the network: for pixels of 10 m.
    halving : {"strided", "mean"}
        How the grid is halved, see the module's text.
    """

    def __init__(
        self,
        stems: Mapping[str, int],
        *,
        depth: int = 11,
        stem_stride: int = 2,
        halving: Literal["strided", "mean"] = "strided",
    ) -> None:
        super().__init__()
        if not 1 <= depth <= 13:
            raise ValueError(f"depth must be 1 to 13, got {depth}")
        if stem_stride not in (1, 2):
            raise ValueError(f"stem_stride must be 1 or 2, got {stem_stride}")
        if halving not in ("strided", "mean"):
            raise ValueError(f"halving must be 'strided' or 'mean', got {halving!r}")
        self.stem_stride = stem_stride
        pad = 0 if stem_stride == 2 else 1
        self.stems = nn.ModuleDict(
            {name: nn.Conv2d(bands, CHANNELS[0], 3, stem_stride, pad) for name, bands in stems.items()}
        )
        self.pairs = nn.ModuleList(
            _Pair(CHANNELS[i - 1], CHANNELS[i], halving if i in HALVING else "no") for i in range(1, depth + 1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, stem: str) -> dict[str, Tensor]:
        """Every point-wise map of `x` (B, C, H, W), by name: `stem`, `pw1` ... `pw<depth>`, each (B, channels, h, w)."""
        x = F.relu6(self.stems[stem](_same_right(x) if self.stem_stride == 2 else x))
        maps = {"stem": x}
        for i, pair in enumerate(self.pairs, start=1):
            maps[f"pw{i}"] = x = pair(x)
        return maps


def fold_batch_norm(tensors: Mapping[str, Tensor], stem: str = "rgb", *, depth: int = 11) -> dict[str, Tensor]:
    """State of a `MobileNet` from published tensors (`conv1.weight`, `conv_dw_1.bn.running_var`, ...), norm folded in.

    Raises
    ------
    KeyError
        If a tensor of the first `depth` pairs is missing.
    """
    names = {f"stems.{stem}": "conv1"}
    for i in range(1, depth + 1):
        names[f"pairs.{i - 1}.depthwise"] = f"conv_dw_{i}"
        names[f"pairs.{i - 1}.pointwise"] = f"conv_pw_{i}"
    state = {}
    for ours, theirs in names.items():
        gain = tensors[f"{theirs}.bn.weight"] / torch.sqrt(tensors[f"{theirs}.bn.running_var"] + EPS)
        state[f"{ours}.weight"] = tensors[f"{theirs}.weight"] * gain[:, None, None, None]
        state[f"{ours}.bias"] = tensors[f"{theirs}.bn.bias"] - tensors[f"{theirs}.bn.running_mean"] * gain
    return state
