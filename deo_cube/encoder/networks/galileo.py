"""Galileo: a transformer over groups of bands, here with one date of ten Sentinel-2 bands.

Tseng et al. 2025, arXiv:2502.09356; weights MIT (github.com/nasaharvest/galileo). The published encoder also reads
Sentinel-1, weather, elevation, land cover and place. Their tensors are part of its file, so they are part of this
network, but what has no input takes no part in attention, as in the published code.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks import check_input
from deo_cube.errors import ArgumentError

__all__ = ["GROUPS", "Galileo"]

#: Groups of the ten bands B02 B03 B04 B05 B06 B07 B08 B8A B11 B12 -> positions in that order.
GROUPS: Mapping[str, tuple[int, ...]] = {
    "S2_RGB": (0, 1, 2),
    "S2_Red_Edge": (3, 4, 5),
    "S2_NIR_10m": (6,),
    "S2_NIR_20m": (7,),
    "S2_SWIR": (8, 9),
}
# Channels of every group in the published file, in the order of its channel embeddings.
_SPACE_TIME = {"S1": 2, **{name: len(bands) for name, bands in GROUPS.items()}, "NDVI": 1}
_SPACE = {"SRTM": 2, "DW": 9, "WC": 5}
_TIME = {"ERA5": 2, "TC": 3, "VIIRS": 1}
_STATIC = {"LS": 1, "location": 3, "DW_static": 9, "WC_static": 5}
#: Side of the published patch kernels, pixels, from which smaller ones are derived.
KERNEL = 8


class _PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, KERNEL, KERNEL)


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class _Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = _Attention(dim, heads), _Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class Galileo(nn.Module):
    """The published encoder for one date of Sentinel-2.

    Parameters
    ----------
    stems : mapping
        Name of its only stem -> 10, the number of bands, in the order of `GROUPS`.
    dim, depth, heads : int
        Width, number of blocks, attention heads of each.
    patch : int
        Side of a patch in pixels, 1 to 8. The published kernels of 8 px are resized for smaller ones.
    month : int
        Month of every input, 0 to 11; the published default is 5, June.
    mlp_ratio : float
        Hidden width of an MLP over its input's.

    Attributes
    ----------
    layers : mapping
        Name of each layer -> (channels, output stride in pixels): `block0` ... the mean over the groups of a patch
        after a block, `norm` that of the last block after the final LayerNorm.
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 128,
        depth: int = 4,
        heads: int = 8,
        patch: int = 4,
        month: int = 5,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        if list(stems.values()) != [10]:
            raise ArgumentError(f"stems: Galileo reads one stem of 10 bands, got {dict(stems)}")
        if not 1 <= patch <= KERNEL or not 0 <= month <= 11 or dim % (4 * 4) or dim % heads:
            raise ArgumentError(
                f"patch, month, dim, heads: expected a patch of 1 to {KERNEL}, a month of 0 to 11 and a dim that 16 "
                f"and heads divide, got {patch}, {month}, {dim}, {heads}"
            )
        self.patch, self.month, self.dim = patch, month, dim
        quarter = dim // 4
        self.space_time_embed = nn.ModuleDict({n: _PatchEmbed(c, dim) for n, c in _SPACE_TIME.items()})
        self.space_embed = nn.ModuleDict({n: _PatchEmbed(c, dim) for n, c in _SPACE.items()})
        self.time_embed = nn.ModuleDict({n: nn.Linear(c, dim) for n, c in _TIME.items()})
        self.static_embed = nn.ModuleDict({n: nn.Linear(c, dim) for n, c in _STATIC.items()})
        for name, groups in (("s_t", _SPACE_TIME), ("sp", _SPACE), ("t", _TIME), ("st", _STATIC)):
            self.register_parameter(f"{name}_channel_embed", nn.Parameter(torch.zeros(len(groups), quarter)))
        # Position in time and month: fixed tables, which the published file holds.
        self.pos_embed = nn.Parameter(torch.zeros(24, quarter), requires_grad=False)
        self.month_embed = nn.Embedding(12, quarter)
        self.blocks = nn.ModuleList(_Block(dim, heads, mlp_ratio) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.layers = {**{f"block{i}": (dim, patch) for i in range(depth)}, "norm": (dim, patch)}

    def forward_features(self, x: Tensor, stem: str = "ms", layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps of a normalised batch.

        Parameters
        ----------
        x : Tensor [B, 10, H, W]
            ``(value - mean) / (4 std)``, as the card normalises; H and W are multiples of the patch.
        stem : str
            Ignored, because there is one.
        layers : collection of str, optional
            Names of layers, or `pooled`. Default: all.

        Returns
        -------
        dict of str -> Tensor
            Maps [B, D, H / patch, W / patch]. `pooled` [B, D] is the mean of `norm` over the map.
        """
        names = check_input(x, layers, (*self.layers, "pooled"), channels=10, multiple=self.patch)
        # The published input is (value - (mean - 2 std)) / (4 std). The card's is centred on the mean, which is what
        # invalid pixels are set to.
        tokens = self._tokens(x + 0.5)
        rows, cols = tokens.shape[1:3]
        y = tokens.flatten(1, 3)
        out: dict[str, Tensor] = {}
        for i, block in enumerate(self.blocks):
            y = block(y)
            if f"block{i}" in names:
                out[f"block{i}"] = self._map(y, rows, cols)
            if not names - set(out):
                return out
        out["norm"] = self._map(self.norm(y), rows, cols)
        out["pooled"] = out["norm"].mean(dim=(2, 3))
        return {name: out[name] for name in names}

    def forward(self, x: Tensor, stem: str = "ms") -> Tensor:
        """Return pooled vectors [B, D] of a normalised batch [B, 10, H, W]."""
        return self.forward_features(x, stem, ("pooled",))["pooled"]

    def _tokens(self, x: Tensor) -> Tensor:
        """Return tokens [B, rows, columns, groups, D] with their encodings added."""
        groups = []
        for name, bands in GROUPS.items():
            conv: Any = self.space_time_embed[name].get_submodule("proj")
            weight = _resized(conv.weight, self.patch)
            groups.append(F.conv2d(x[:, list(bands)], weight, conv.bias, stride=self.patch))
        tokens = torch.stack(groups, dim=-1).permute(0, 2, 3, 4, 1)
        rows, cols, number = tokens.shape[1:4]
        shape = (rows, cols, number, self.dim // 4)
        channel = self.get_parameter("s_t_channel_embed")[1 : 1 + number].expand(shape)
        date = self.pos_embed[0].expand(shape)
        month = self.month_embed.weight[self.month].expand(shape)
        place = _positions(rows, cols, self.dim // 4, self.patch).to(x)[:, :, None].expand(shape)
        encodings: Tensor = torch.cat([channel, date, month, place], dim=-1)
        return tokens + encodings

    def _map(self, y: Tensor, rows: int, cols: int) -> Tensor:
        cells: Tensor = y.unflatten(1, (rows, cols, len(GROUPS)))
        return cells.mean(dim=3).permute(0, 3, 1, 2)


def _resized(weight: Tensor, patch: int) -> Tensor:
    """Return patch kernels [D, C, patch, patch] of the published ones, by the pseudo-inverse of FlexiViT."""
    if patch == weight.shape[-1]:
        return weight
    inverse = _pseudo_inverse(weight.shape[-1], patch).to(weight)
    small: Tensor = (weight.flatten(2) @ inverse.T).unflatten(2, (patch, patch))
    return small


@functools.lru_cache(maxsize=8)
def _pseudo_inverse(side: int, patch: int) -> Tensor:
    """Return the matrix that maps kernels of side^2 values to patch^2 (Beyer et al. 2023, arXiv:2212.08013)."""
    basis = torch.eye(side * side, dtype=torch.float32, device="cpu").reshape(-1, 1, side, side)
    small = F.interpolate(basis, (patch, patch), mode="bicubic", antialias=True)
    inverse: Tensor = torch.linalg.pinv(small.reshape(side * side, patch * patch))
    return inverse


@functools.lru_cache(maxsize=32)
def _positions(rows: int, cols: int, dim: int, patch: int) -> Tensor:
    """Return encodings of place [rows, columns, dim] at ground distances of a patch; the first half is of columns."""
    omega = 1.0 / 10000 ** (torch.arange(dim // 4, dtype=torch.float32, device="cpu") / (dim // 2) / 2.0)

    def along(n: int) -> Tensor:
        angle = (torch.arange(n, dtype=torch.float32, device="cpu") * float(patch))[:, None] * omega
        return torch.cat([torch.sin(angle), torch.cos(angle)], dim=1)

    across, down = along(cols)[None].expand(rows, -1, -1), along(rows)[:, None].expand(-1, cols, -1)
    return torch.cat([across, down], dim=-1)
