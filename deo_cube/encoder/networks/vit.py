"""DEO's Vision Transformer: a shared trunk with one stem per input, after the published network.

The blocks are timm's. What differs from timm's own ViT is pinned by `tests/encoder/test_vit.py` against outputs of the
authors' code: positions are interpolated bicubically without antialiasing, by the factor (n + 0.1) / grid, for every
input that is not of the training size. Modules carry the names of the published checkpoint (`patch_embed_ms`,
`patch_embed_rgb`, `blocks`), so that its keys load as they are.
"""

# `network_hash` hashes the source of the classes and functions below, not their docstrings. Untrained networks, and the
# stores made with them, get another identity when it changes: leave the text below as it is, or version the hash.

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.errors import ArgumentError

__all__ = ["DeoViT"]

import_timm()
from timm.models.vision_transformer import Block  # noqa: E402

_layer_norm = functools.partial(nn.LayerNorm, eps=1e-6)


class DeoViT(nn.Module):
    """Vision Transformer with several stems that share class token, positions and blocks.

    Parameters
    ----------
    stems : mapping
        Name of each stem -> number of its input channels.
    dim, depth, heads : int
        Width, number of blocks, attention heads of each.
    patch : int
        Side of a patch, in pixels.
    grid : int
        Side of the position grid, in patches: the training size over `patch`.
    mlp_ratio : float
        Hidden width of an MLP over its input's.
    drop_path : float
        Stochastic depth of the last block; it rises linearly from 0. Acts in training mode only.

    Attributes
    ----------
    layers : mapping
        Name of each layer on offer -> (channels, output stride in pixels): `block0` ... raw patch tokens after a
        block, `norm` those of the last block after the final LayerNorm.
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        patch: int = 8,
        grid: int = 28,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ArgumentError(f"{dim} channels do not divide into {heads} heads")
        self.patch = patch
        self.grid = grid
        self.stems = dict(stems)
        for name, channels in stems.items():
            projection = nn.Conv2d(channels, dim, patch, patch)
            self.add_module(f"patch_embed_{name}", nn.Sequential(OrderedDict(proj=projection)))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, dim))
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=True, drop_path=rate, norm_layer=_layer_norm) for rate in rates
        )
        self.norm = _layer_norm(dim)
        self.layers = {**{f"block{i}": (dim, patch) for i in range(depth)}, "norm": (dim, patch)}
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.apply(_init)

    def forward_tokens(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return tokens after the blocks, class token first.

        Parameters
        ----------
        x : Tensor [B, C, H, W]
            Normalised input of the stem `stem`; H and W are multiples of the patch.
        stem : str
            Which stem reads it.
        layers : collection of str, optional
            Names of the layers to return, all by default; no block beyond the deepest of them is computed.

        Returns
        -------
        dict of str -> Tensor [B, 1 + h w, D]
        """
        wanted = set(self.layers if layers is None else layers)
        if unknown := wanted - set(self.layers):
            raise ArgumentError(f"no layers {sorted(unknown)}: there are {[*self.layers]} and 'pooled'")
        if stem not in self.stems:
            raise ArgumentError(f"no stem {stem!r}: there are {[*self.stems]}")
        if x.ndim != 4 or x.shape[1] != self.stems[stem]:
            raise ArgumentError(f"stem {stem!r} wants [B, {self.stems[stem]}, H, W], got {tuple(x.shape)}")
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ArgumentError(
                f"height and width must be multiples of the patch, {self.patch}, got {tuple(x.shape[2:])}"
            )
        x = self.get_submodule(f"patch_embed_{stem}")(x)
        rows, cols = x.shape[2:]
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
        x = x + self._positions(rows, cols)
        out: dict[str, Tensor] = {}
        left = set(wanted)
        for i, block in enumerate(self.blocks):
            x = block(x)
            if f"block{i}" in left:
                out[f"block{i}"] = x
                left.discard(f"block{i}")
            if not left:
                return out
        out["norm"] = self.norm(x)
        return out

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps of an input whose sides are multiples of the patch.

        Parameters
        ----------
        x : Tensor [B, C, H, W]
            Normalised input of the stem `stem`.
        stem : str
            Which stem reads it.
        layers : collection of str, optional
            Names of the layers to return, all by default, or `pooled`; no block beyond the deepest of them is computed.

        Returns
        -------
        dict of str -> Tensor
            Maps [B, D, H / patch, W / patch] of patch tokens. `pooled` [B, D] is the class token of `norm`.
        """
        wanted = {*self.layers, "pooled"} if layers is None else set(layers)
        tokens = self.forward_tokens(x, stem, (wanted - {"pooled"}) | ({"norm"} if "pooled" in wanted else set()))
        rows, cols = x.shape[2] // self.patch, x.shape[3] // self.patch
        out = {
            name: t[:, 1:].transpose(1, 2).reshape(t.shape[0], t.shape[2], rows, cols)
            for name, t in tokens.items()
            if name in wanted
        }
        if "pooled" in wanted:
            out["pooled"] = tokens["norm"][:, 0]
        return out

    def forward(self, x: Tensor, stem: str) -> Tensor:
        """Return pooled vectors [B, D] (the normed class token) of an input [B, C, H, W]."""
        return self.forward_features(x, stem, ("pooled",))["pooled"]

    def _positions(self, rows: int, cols: int) -> Tensor:
        if rows == cols == self.grid:
            return self.pos_embed
        cls, patches = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        patches = patches.transpose(1, 2).reshape(1, -1, self.grid, self.grid)
        # The 0.1 guards the reference's floor(scale * grid) against rounding; it also sets where samples are taken.
        scale = ((rows + 0.1) / self.grid, (cols + 0.1) / self.grid)
        patches = F.interpolate(patches, scale_factor=scale, mode="bicubic", antialias=False)
        return torch.cat([cls, patches.flatten(2).transpose(1, 2)], dim=1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
