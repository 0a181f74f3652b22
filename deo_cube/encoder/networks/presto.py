"""Presto: a transformer over the months of one pixel, here with ten Sentinel-2 bands.

Tseng et al. 2023, arXiv:2304.14065; weights MIT (github.com/nasaharvest/presto, and fine-tuned on crops by
github.com/WorldCereal/prometheo). A month gives one token per group of bands and one for the NDVI, and the place one
for the series. The published encoder also reads Sentinel-1, weather, elevation and land cover. Their tensors are part
of its file, so they are part of this network, but what has no input takes no part in attention, as in the published
code.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from deo_cube.encoder.networks import check_input
from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.errors import ArgumentError

__all__ = ["GROUPS", "Presto"]

import_timm()
from timm.models.vision_transformer import Block  # noqa: E402

#: Groups of the ten bands B02 B03 B04 B05 B06 B07 B08 B8A B11 B12 -> positions in that order.
GROUPS: Mapping[str, tuple[int, ...]] = {
    "S2_RGB": (0, 1, 2),
    "S2_Red_Edge": (3, 4, 5),
    "S2_NIR_10m": (6,),
    "S2_NIR_20m": (7,),
    "S2_SWIR": (8, 9),
}
RED, NIR = 2, 6
# Channels of every group in the published file, in the order of its channel embeddings.
_CHANNELS = {"S1": 2, **{name: len(bands) for name, bands in GROUPS.items()}, "ERA5": 2, "SRTM": 2, "NDVI": 1}
_LAND_COVER = 10


class Presto(nn.Module):
    """The published encoder for Sentinel-2.

    Parameters
    ----------
    stems : mapping
        Name of its only stem -> 10, the number of bands, in the order of `GROUPS`.
    dim, depth, heads : int
        Width, number of blocks, attention heads of each.
    mlp_ratio : float
        Hidden width of an MLP over its input's.
    months : int
        Longest series, in months.

    Attributes
    ----------
    layers : mapping
        The only layer: `norm` -> (channels, 1).
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 128,
        depth: int = 2,
        heads: int = 8,
        mlp_ratio: float = 4.0,
        months: int = 72,
    ) -> None:
        super().__init__()
        if list(stems.values()) != [10]:
            raise ArgumentError(f"stems: Presto reads one stem of 10 bands, got {dict(stems)}")
        if dim % 8 or dim % heads:
            raise ArgumentError(f"dim, heads: expected a dim that 8 and heads divide, got {dim}, {heads}")
        quarter = dim // 4
        self.months, self.stem = months, next(iter(stems))
        self.eo_patch_embed = nn.ModuleDict({name: nn.Linear(n, dim) for name, n in _CHANNELS.items()})
        self.dw_embed = nn.Embedding(_LAND_COVER, dim)
        self.latlon_embed = nn.Linear(3, dim)
        self.channel_embed = nn.Embedding(len(_CHANNELS) + 1, quarter)
        # Month of the year and position in the series: fixed tables, which the published file holds.
        self.month_embed = nn.Embedding(12, quarter)
        self.pos_embed = nn.Parameter(torch.zeros(1, months, dim - 2 * quarter), requires_grad=False)
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)
        self.layers = {"norm": (dim, 1)}

    def series(
        self, x: Tensor, seen: Tensor, months: Tensor, place: Tensor, *, bands: Collection[int] = range(10)
    ) -> Tensor:
        """Return one vector per series.

        Parameters
        ----------
        x : Tensor [N, T, 10]
            Reflectance (DN / 10000) by month. Not read where `seen` is False.
        seen : Tensor [N, T, 10]
            Bool: the band has a value in that month. A group of bands takes part if all its bands are seen.
        months : Tensor [T]
            Month of the year, 0 to 11. Their positions in the series are consecutive.
        place : Tensor [N, 2]
            Longitude and latitude, degrees, float64.
        bands : collection of int
            Positions of the bands that may be seen at all. No token is made of the groups of others.

        Returns
        -------
        Tensor [N, D]
            NaN for a series of which nothing is seen.
        """
        if x.shape[1] > self.months:
            raise ArgumentError(f"x: Presto reads series of at most {self.months} months, got {x.shape[1]}")
        x = torch.where(seen, x, 0)
        both = seen[..., RED] & seen[..., NIR] & (x[..., RED] + x[..., NIR] > 0)
        total = torch.where(both, x[..., RED] + x[..., NIR], 1)
        groups = {name: list(of_group) for name, of_group in GROUPS.items() if set(of_group) <= set(bands)}
        inputs = {name: x[..., of_group] for name, of_group in groups.items()}
        parts = {name: seen[..., of_group].all(dim=-1) for name, of_group in groups.items()}
        if {RED, NIR} <= set(bands):
            inputs["NDVI"] = torch.where(both, (x[..., NIR] - x[..., RED]) / total, 0)[..., None]
            parts["NDVI"] = both
        if not parts:
            raise ArgumentError(f"bands: expected all of one of the groups {dict(GROUPS)}, got {sorted(bands)}")

        tokens = [self.latlon_embed(_on_sphere(place).to(x))[:, None]]
        for name, values in inputs.items():
            channel = self.channel_embed.weight[list(_CHANNELS).index(name)].expand(len(months), -1)
            encoding = torch.cat([self.month_embed.weight[months], channel, self.pos_embed[0, : len(months)]], dim=1)
            tokens.append(self.eo_patch_embed[name](values) + encoding)
        y = torch.cat(tokens, dim=1)
        anything = torch.stack(list(parts.values())).any(dim=0).any(dim=1)
        known = torch.cat([torch.ones_like(anything)[:, None], *parts.values()], dim=1)
        for block in self.blocks:
            y = block(y, attn_mask=known[:, None, None])
        mean = torch.where(known[..., None], y, 0).sum(dim=1) / known.sum(dim=1, keepdim=True)
        # The place alone would have a vector as well, which says nothing of the ground.
        return torch.where(anything[:, None], self.norm(mean), math.nan)

    def forward_features(self, x: Tensor, stem: str = "ms", layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return the map of one month, January at longitude and latitude 0: it proves weights and code.

        Parameters
        ----------
        x : Tensor [B, 10, H, W]
            Reflectance.
        stem : str
            Ignored, because there is one.
        layers : collection of str, optional
            `norm` or `pooled`, the mean over the map [B, D]. Default: both.

        Returns
        -------
        dict of str -> Tensor
            `norm` [B, D, H, W].
        """
        names = check_input(x, layers, (*self.layers, "pooled"), channels=10, multiple=1)
        pixels = x.permute(0, 2, 3, 1).reshape(-1, 1, 10)
        nowhere = torch.zeros(len(pixels), 2, dtype=torch.float64, device=x.device)
        january = torch.zeros(1, dtype=torch.int64, device=x.device)
        vectors = self.series(pixels, torch.ones_like(pixels, dtype=torch.bool), january, nowhere)
        out = {"norm": vectors.unflatten(0, (x.shape[0], *x.shape[2:])).permute(0, 3, 1, 2)}
        out["pooled"] = out["norm"].mean(dim=(2, 3))
        return {name: out[name] for name in names}

    def forward(self, x: Tensor, stem: str = "ms") -> Tensor:
        """Return pooled vectors [B, D] of one month [B, 10, H, W]."""
        return self.forward_features(x, stem, ("pooled",))["pooled"]


def _on_sphere(place: Tensor) -> Tensor:
    """Return points [N, 3] of the unit sphere at longitudes and latitudes [N, 2] in degrees."""
    lon, lat = torch.deg2rad(place).unbind(1)
    return torch.stack([torch.cos(lat) * torch.cos(lon), torch.cos(lat) * torch.sin(lon), torch.sin(lat)], dim=1)
