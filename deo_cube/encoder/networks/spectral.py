"""A small convolutional network with one trunk for RGB and another for all bands.

The multispectral trunk has the layers of Dynamic World (Brown et al. 2022, doi:10.1038/s41597-022-01307-4), from whose
weights it can start, with two changes that cost no knowledge and most of the time: SiLU instead of Mish, and the deeper
blocks at 40 m instead of 20 m, which is the grid of the embedding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks import check_input
from deo_cube.encoder.networks.conv import STRIP, DeoConv, channels_last
from deo_cube.encoder.networks.dynamicworld import Separable
from deo_cube.errors import ArgumentError

__all__ = ["MIXED", "SPECTRAL", "DeoSpectral", "SpectralTrunk"]

WIDTHS = (64, 96, 144)
"""Channels of the stem and of the two sizes of block, as published."""
LOW = 48
"""Channels that pass by the blocks."""
MIXED = WIDTHS[2] + LOW
"""Channels of `mixed`."""
SPECTRAL = WIDTHS[2]
"""Channels of `spectral`."""

LOG = {
    "B02": (1.7417268007636313, 2.023298706048351),
    "B03": (1.7261204997060209, 2.038905204308012),
    "B04": (1.6798346251414997, 2.179592821212937),
    "B05": (1.7734969472909623, 2.2890068333026603),
    "B06": (2.289154079164943, 2.6171674549378166),
    "B07": (2.382939712192371, 2.773418590375327),
    "B08": (2.3828939530384052, 2.7578332604178284),
    "B11": (2.1952484264967844, 2.789092484314204),
    "B12": (1.554812948247501, 2.4140534947492487),
}
"""Centre and width of log(0.005 DN + 1) for each band that Dynamic World reads."""


def _silu(x: Tensor) -> Tensor:
    # In place only without gradients: SiLU's gradient is computed from its input.
    return F.silu(x, inplace=not torch.is_grad_enabled())


class SpectralTrunk(nn.Module):
    """Dynamic World's layers, from normalised bands to maps at stride 4.

    Parameters
    ----------
    bands : int
        Channels of the input.

    Attributes
    ----------
    scale, shift, slope, level : Tensor [bands]
        The input transform ``sigmoid(slope * log(scale * x + shift) + level)``: it takes the normalisation of the stem
        back and applies Dynamic World's own. Set by `set_input`, and part of the weights.
    """

    scale: Tensor
    shift: Tensor
    slope: Tensor
    level: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        for name, value in (("scale", 1.0), ("shift", 3.0), ("slope", 2.0), ("level", -2.0)):
            self.register_buffer(name, torch.full((bands,), value))
        self.stem = nn.Conv2d(bands, WIDTHS[0], 3, padding=1)
        self.block1 = Separable(WIDTHS[0], WIDTHS[1], activation=F.silu)
        self.block2 = Separable(WIDTHS[1], WIDTHS[2], activation=F.silu)
        self.low = Separable(WIDTHS[0], LOW, 1, skip=False, activation=F.silu)
        self.block3 = Separable(MIXED, WIDTHS[2], activation=F.silu)

    @torch.no_grad()
    def set_input(self, bands: Sequence[str], mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the input transform for a stem that is given ``(DN - mean) / std`` of `bands`.

        A band that Dynamic World does not read is transformed as B08.
        """
        centre, width = (torch.tensor([LOG.get(b, LOG["B08"])[i] for b in bands], dtype=torch.float64) for i in (0, 1))
        self.scale.copy_(0.005 * torch.tensor(std, dtype=torch.float64))
        self.shift.copy_(0.005 * torch.tensor(mean, dtype=torch.float64) + 1.0)
        self.slope.copy_(5.0 / width)
        self.level.copy_(-5.0 * centre / width - 1.0)

    def load_dynamic_world(self, tensors: Mapping[str, Tensor], bands: Sequence[str]) -> None:
        """Fill the convolutions from Dynamic World's tensors with batch norm folded in; other bands start at zero.

        Raises
        ------
        KeyError
            If a tensor is missing.
        """
        stem = torch.zeros(WIDTHS[0], len(bands), 3, 3)
        for i, band in enumerate(LOG):
            stem[:, list(bands).index(band)] = tensors["stem.weight"][:, i]
        state = {name: tensors[name] for name, _ in self.named_parameters()} | {"stem.weight": stem}
        self.load_state_dict(state | dict(self.named_buffers()), strict=True)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return maps of `x` [B, C, H, W]: `mixed` [B, 192, H / 4, W / 4] and `spectral` [B, 144, H / 4, W / 4].

        The vectors of `spectral` have length one.
        """
        padded = F.pad(self.transformed(x), (1, 1, 1, 1))
        # Strip by strip, as the local branch: the stem's map at full resolution is never held whole.
        half = torch.cat(
            [
                F.avg_pool2d(_silu(F.conv2d(padded[:, :, top : top + STRIP + 2], self.stem.weight, self.stem.bias)), 2)
                for top in range(0, x.shape[2], STRIP)
            ],
            dim=2,
        )
        low = self.low(F.avg_pool2d(half, 2))
        mixed = torch.cat([self.block2(F.avg_pool2d(self.block1(half), 2)), low], dim=1)
        return {"mixed": mixed, "spectral": F.normalize(self.block3(mixed), dim=1)}

    def transformed(self, x: Tensor) -> Tensor:
        """Return the input as Dynamic World sees it, 0 to 1."""
        scale, shift, slope, level = (v.view(1, -1, 1, 1) for v in (self.scale, self.shift, self.slope, self.level))
        # Below DN 0 the logarithm would soon be undefined: such pixels count as 0.
        return torch.sigmoid(torch.log(torch.addcmul(shift, x, scale).clamp_min(1.0)) * slope + level)


class DeoSpectral(DeoConv):
    """`DeoConv` whose multispectral stem has a trunk of its own.

    The stem `ms` is read by a `SpectralTrunk` and by the wide local branch, every other stem by MobileNet's trunk and a
    local branch. Nothing of one is computed for the other.

    Parameters
    ----------
    stems : mapping
        Name of each stem -> number of its bands; one is `ms`.
    dim, local, depth, contrast
        As of `DeoConv`.
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 192,
        local: int = 256,
        depth: int = 11,
        contrast: Collection[str] = (),
    ) -> None:
        super().__init__(stems=stems, dim=dim, local=local, depth=depth, contrast=contrast)
        if "ms" not in stems:
            raise ArgumentError(f"stems must name 'ms', got {[*stems]}")
        del self.trunk.stems["ms"]
        self.spectral = SpectralTrunk(stems["ms"])
        own = {"local": local, "mixed": MIXED, "spectral": SPECTRAL}
        self.seen["ms"] = own | ({"contrast": local} if "ms" in contrast else {})
        self.necks["ms"] = nn.Conv2d(sum(self.seen["ms"].values()), dim, 1)
        self.stem_parts = {name: own if name == "ms" else dict(self.parts) for name in stems}
        self.layers |= {"mixed": (MIXED, 4), "spectral": (SPECTRAL, 4)}

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps, as of `DeoConv`; those of the other stem's trunk are not computed for `stem`."""
        if stem != "ms":
            offered = {name for name in self.layers if name not in ("mixed", "spectral")} | {"pooled"}
            return super().forward_features(x, stem, offered if layers is None else layers)
        own = self.stem_parts["ms"]
        layers = (*own, "fused", "pooled") if layers is None else layers
        names = check_input(x, layers, (*own, "fused", "pooled", "parts"), channels=self.stems[stem], multiple=4)
        x = channels_last(x)
        maps = {"local": self.local_map(x, stem), **self.spectral(x)}
        if names & {"fused", "pooled"}:
            maps["fused"] = self.fuse(maps, stem)
        out = {name: maps[name] for name in names if name in maps}
        if "parts" in names:
            out["parts"] = torch.cat([maps[name].mean(dim=(2, 3)) for name in own], dim=1)
        if "pooled" in names:
            out["pooled"] = maps["fused"].mean(dim=(2, 3))
        return out

    def stack_of(self, x: Tensor, stem: str) -> Tensor:
        """Return the input of the neck of `stem` for an input [B, C, H, W]: [B, D, H / 4, W / 4]."""
        maps = self.spectral(channels_last(x)) if stem == "ms" else self.trunk(x, stem)
        return self.stack({**maps, "local": self.local_map(x, stem)}, stem)
