"""MobileNet v1 with folded batch norm: the small optical teacher, and `DeoConv`, the convolutional network of `tiny`.

Written from Howard et al. 2017 (arXiv 1704.04861, table 1): a 3x3 convolution, then pairs of a depth-wise 3x3 and a
point-wise 1x1 convolution, each followed by ReLU6. Batch norm (eps 0.001 in the published weights) is folded into the
convolutions when weights are imported, so that a batch never changes what another sample sees, at training time either.

Two ways of halving the grid:

`strided`
    Stride 2 with TensorFlow's "same" padding (nothing left and above, one right and below on even sizes): as
    published. Output cell k of one halving is centred half an input pixel right of and below the true centre, and the
    lag adds up: 3.5 px at stride 8.
`mean`
    Stride 1, then the mean of each 2x2: every cell is centred on the pixels it represents, which is what a map needs.
"""

# `network_hash` hashes the source of the classes and functions below, not their docstrings. Untrained networks, and the
# stores made with them, get another identity when it changes: leave the text below as it is, or version the hash.

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.errors import ArgumentError

__all__ = ["CHANNELS", "HALVING", "DeoConv", "MobileNet", "fold_batch_norm"]

CHANNELS = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
"""Output channels of conv1 and of the point-wise convolutions 1 to 13."""
HALVING = (2, 4, 6, 12)
"""Depth-wise convolutions with stride 2 (conv1 has stride 2 as well, unless specified otherwise)."""
EPS = 1e-3
STRIP = 32
"""Rows that are computed at a time where maps are as fine as the input, a multiple of four."""
AROUND = 4
"""Side, in cells of the local branch, of the squares whose means are a cell's surroundings: 16 pixels."""
FLOOR = 0.1
"""Share of the surroundings' mean over channels that is added to them before they divide."""


def channels_last(x: Tensor) -> Tensor:
    """Return `x` [B, C, H, W] with the channels of a pixel side by side in memory, as all that follows it will be.

    PyTorch's depth-wise convolutions and means are many times faster so on the CPU, where it vectorises over channels.
    """
    return x.contiguous(memory_format=torch.channels_last)


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
        x = F.relu6(self.depthwise(_same_right(x) if self.halve == "strided" else x), inplace=True)
        if self.halve == "mean":
            x = F.avg_pool2d(x, 2)
        return F.relu6(self.pointwise(x), inplace=True)


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
            raise ArgumentError(f"depth must be 1 to 13, got {depth}")
        if stem_stride not in (1, 2):
            raise ArgumentError(f"stem_stride must be 1 or 2, got {stem_stride}")
        if halving not in ("strided", "mean"):
            raise ArgumentError(f"halving must be 'strided' or 'mean', got {halving!r}")
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
        """Return every point-wise map of `x` (B, C, H, W), `stem`, `pw1` ... `pw<depth>`: (B, channels, h, w) each."""
        x = channels_last(x)
        x = F.relu6(self.stems[stem](_same_right(x) if self.stem_stride == 2 else x))
        return {"stem": x, **self.following(x, 0)}

    def following(self, x: Tensor, after: int) -> dict[str, Tensor]:
        """Return the maps that follow `pw<after>`, of `x`, which is that map (or `stem`, after 0)."""
        maps = {}
        for i, pair in enumerate(self.pairs[after:], start=after + 1):
            maps[f"pw{i}"] = x = pair(x)
        return maps

    def pw2_by_strips(self, x: Tensor, stem: str) -> Tensor:
        """Return `pw2` of a network that halves by means, to the last bit, computed some rows at a time.

        The maps before it are the network's finest and widest. Of a strip they stay in a core's cache; whole, they are
        written to memory and read back, convolution by convolution.
        """
        first, second = cast(_Pair, self.pairs[0]), cast(_Pair, self.pairs[1])
        height = x.shape[2]
        strips = []
        for top in range(0, height, STRIP):
            bottom = min(top + STRIP, height)
            # Three convolutions of 3x3 need three rows more on either side, but for those beyond the map.
            start, stop = max(0, top - 3), min(height, bottom + 3)
            y = x[:, :, start:stop]
            for conv, pointwise in (
                (cast(nn.Conv2d, self.stems[stem]), None),
                (first.depthwise, first.pointwise),
                (second.depthwise, None),
            ):
                above, below = int(start == 0), int(stop == height)
                y = F.pad(y, (1, 1, above, below))
                y = F.relu6(F.conv2d(y, conv.weight, conv.bias, groups=conv.groups), inplace=True)
                start, stop = start + 1 - above, stop - 1 + below
                if pointwise is not None:
                    y = F.relu6(pointwise(y), inplace=True)
            y = F.avg_pool2d(y[:, :, top - start : bottom - start], 2)
            strips.append(F.relu6(second.pointwise(y), inplace=True))
        return torch.cat(strips, dim=2)


class DeoConv(nn.Module):
    """A convolutional network for maps at stride 4: MobileNet's trunk at half its strides, and a wide local branch.

    Two things that a ten-metre pixel needs and an ImageNet trunk lacks are added. `local` is one wide 3x3 convolution
    of all bands, averaged over each cell: spectra and their texture, which the trunk's 32 first channels cannot carry.
    `fused` is one linear map (the neck) of local and deep features together, at stride 4. The receptive field is
    bounded (about 110 px), there is no attention window and no position: nothing in the network can see the tile grid
    but its border.

    A stem named in `contrast` gives its neck one part more: the local branch divided by its own surroundings (divisive
    normalisation, Heeger 1992, doi:10.1017/S0952523800009640). A stand of dead trees is little brighter than a
    meadow, but much brighter than the stand around it; and what haze or the sun's height multiply, it divides out.

    Parameters
    ----------
    stems : mapping
        Name of each stem -> number of its bands. Each has its own first convolution, local branch and neck; the trunk
        is shared.
    dim : int
        Channels of `fused`.
    local : int
        Channels of `local`.
    depth : int
        Pairs of convolutions of the trunk, at least 6.
    contrast : collection of str
        Stems whose neck also sees `contrast`. Weights without it load into a network without it.

    Attributes
    ----------
    layers : mapping
        Name of each layer on offer -> (channels, output stride in pixels).
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 128,
        local: int = 128,
        depth: int = 11,
        contrast: Collection[str] = (),
    ) -> None:
        super().__init__()
        if depth < 6:
            raise ArgumentError(f"depth must be 6 at least (stride 8), got {depth}")
        if isinstance(contrast, str) or set(contrast) - set(stems):
            raise ArgumentError(f"contrast must name stems of {[*stems]}, got {contrast!r}")
        self.stems = dict(stems)
        self.trunk = MobileNet(stems, depth=depth, stem_stride=1, halving="mean")
        self.local = nn.ModuleDict({name: nn.Conv2d(bands, local, 3, padding=1) for name, bands in stems.items()})
        self.parts = {"local": local, "pw3": CHANNELS[3], "pw5": CHANNELS[5], f"pw{depth}": CHANNELS[depth]}
        self.seen = {name: self.parts | ({"contrast": local} if name in contrast else {}) for name in stems}
        self.necks = nn.ModuleDict({name: nn.Conv2d(sum(self.seen[name].values()), dim, 1) for name in stems})
        stride = 8 if depth < HALVING[3] else 16
        self.layers = {
            "pw3": (CHANNELS[3], 2),
            "pw5": (CHANNELS[5], 4),
            f"pw{depth}": (CHANNELS[depth], stride),
            "local": (local, 4),
            "fused": (dim, 4),
        }
        self.depth = depth

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps of an input whose sides are multiples of four.

        Where eight does not divide them, the last rows and columns are repeated for the deep maps.

        Parameters
        ----------
        x : Tensor [B, C, H, W]
            Normalised input of the stem `stem`.
        stem : str
            Which stem reads it.
        layers : collection of str, optional
            Names of the layers to return, all by default, `pooled` or `parts`.

        Returns
        -------
        dict of str -> Tensor
            Maps [B, D, h, w]. `pooled` [B, D] is the mean of `fused` over the map; `parts` [B, D] the means of local,
            pw3, pw5 and the last map, side by side, before any neck.
        """
        wanted = {*self.layers, "pooled"} if layers is None else set(layers)
        if unknown := wanted - set(self.layers) - {"pooled", "parts"}:
            raise ArgumentError(f"no layers {sorted(unknown)}: there are {[*self.layers]} and 'pooled'")
        if stem not in self.stems:
            raise ArgumentError(f"no stem {stem!r}: there are {[*self.stems]}")
        if x.ndim != 4 or x.shape[1] != self.stems[stem]:
            raise ArgumentError(f"stem {stem!r} wants [B, {self.stems[stem]}, H, W], got {tuple(x.shape)}")
        rows, cols = x.shape[2:]
        if rows % 4 or cols % 4:
            raise ArgumentError(f"height and width must be multiples of 4, got {(rows, cols)}")
        coarsest = max(stride for _, stride in self.layers.values())
        x = channels_last(x)
        if rows % coarsest or cols % coarsest:
            x = F.pad(x, (0, -cols % coarsest, 0, -rows % coarsest), mode="replicate")
        if x.device.type == "cpu" and not torch.is_grad_enabled():
            maps = self.trunk.following(self.trunk.pw2_by_strips(x, stem), 2)
        else:
            maps = self.trunk(x, stem)
        maps["local"] = self.local_map(x, stem)
        wide = {name: maps[name] for name in self.parts}
        if wanted & {"fused", "pooled"}:
            wide["fused"] = self.fuse(maps, stem)
        # Only what covers pixels of the input is returned.
        cut = {
            name: m[:, :, : -(-rows // self.layers[name][1]), : -(-cols // self.layers[name][1])]
            for name, m in wide.items()
        }
        out = {name: cut[name] for name in wanted if name in cut}
        if "parts" in wanted:
            out["parts"] = torch.cat([cut[name].mean(dim=(2, 3)) for name in self.parts], dim=1)
        if "pooled" in wanted:
            out["pooled"] = cut["fused"].mean(dim=(2, 3))
        return out

    def local_map(self, x: Tensor, stem: str) -> Tensor:
        """Return the wide local branch [B, local, H / 4, W / 4]."""
        conv = cast(nn.Conv2d, self.local[stem])
        padded = F.pad(channels_last(x), (1, 1, 1, 1))
        # Strip by strip: whole, this map of many channels at full resolution would be the network's largest by far.
        strips = (
            F.avg_pool2d(F.relu_(F.conv2d(padded[:, :, top : top + STRIP + 2], conv.weight, conv.bias)), 4)
            for top in range(0, x.shape[2], STRIP)
        )
        return torch.cat(list(strips), dim=2)

    def contrast_map(self, local: Tensor) -> Tensor:
        """Return the local branch divided by its surroundings, as `local` [B, local, h, w]; between 0 and 42.

        Surroundings are means of squares of 16 px, which lie on the tile's grid, interpolated between their centres: a
        halo of 16 px holds all that a core's cells see of them.
        """
        rows, cols = local.shape[2:]
        around = F.avg_pool2d(local, AROUND, ceil_mode=True, count_include_pad=False)
        around = F.interpolate(around, scale_factor=AROUND, mode="bilinear", align_corners=False)[:, :, :rows, :cols]
        # Where nothing answers, nothing stands out: 0 rather than 0 / 0.
        floor = FLOOR * around.mean(dim=1, keepdim=True) + 1e-6
        return (local + around) / (around + floor)

    def fuse(self, maps: Mapping[str, Tensor], stem: str) -> Tensor:
        """Return the neck of every part, brought to stride 4: [B, dim, H / 4, W / 4].

        The neck of `stack`, with fewer operations: it is linear, so each part goes through its share of it before it is
        enlarged.
        """
        neck = cast(nn.Conv2d, self.necks[stem])
        rows, cols = maps["local"].shape[2:]
        shares = neck.weight.split(list(self.seen[stem].values()), dim=1)
        out: Tensor | None = None
        for name, share in zip(self.seen[stem], shares, strict=True):
            m = self.contrast_map(maps["local"]) if name == "contrast" else maps[name]
            if m.shape[2] > rows:
                m = F.avg_pool2d(m, int(m.shape[2] // rows))
            y = F.conv2d(m, share, neck.bias if out is None else None)
            if y.shape[2] < rows:
                y = F.interpolate(y, size=(rows, cols), mode="bilinear", align_corners=False)
            out = y if out is None else out.add_(y)
        assert out is not None
        return out

    def stack(self, maps: Mapping[str, Tensor], stem: str) -> Tensor:
        """Return the input of the neck of `stem` [B, D, H / 4, W / 4]: every part brought to stride 4, side by side."""
        size = maps["local"].shape[2:]
        stacked = []
        for name in self.seen[stem]:
            m = self.contrast_map(maps["local"]) if name == "contrast" else maps[name]
            if m.shape[2] > size[0]:
                m = F.avg_pool2d(m, int(m.shape[2] // size[0]))
            elif m.shape[2] < size[0]:
                m = F.interpolate(m, size=size, mode="bilinear", align_corners=False)
            stacked.append(m)
        return torch.cat(stacked, dim=1)

    def forward(self, x: Tensor, stem: str) -> Tensor:
        """Return pooled vectors [B, D] of an input [B, C, H, W]."""
        return self.forward_features(x, stem, ("pooled",))["pooled"]


def fold_batch_norm(tensors: Mapping[str, Tensor], stem: str = "rgb", *, depth: int = 11) -> dict[str, Tensor]:
    """Return the state of a `MobileNet` from published tensors (`conv_dw_1.bn.running_var`, ...), norm folded in.

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
