"""DEO's Swin Transformer: a shared trunk with one stem per input, after the published network.

Linear maps and biases of an attention layer are timm's; how windows are cut is `window_attention`'s, and pinned by
`tests/encoder/test_swin.py` against outputs of the authors' code: the map is padded first and rolled then, the shift of
a stage is dropped along an axis whose padded map is no larger than the window, and the window never shrinks with the
input (torchvision's rules). Modules carry the names of the published checkpoint (`features.0`, `.2`, `.4`, `.6` are
stages 1 to 4, the odd ones patch merging; `conv_ms`, `conv_rgb` the stems), so that its keys load as they are.
"""

# `network_hash` hashes the source of the classes and functions below, not their docstrings. Untrained networks, and the
# stores made with them, get another identity when it changes: leave the text below as it is, or version the hash.

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deo_cube.encoder.networks.timm_import import import_timm
from deo_cube.errors import ArgumentError

__all__ = ["DeoSwin"]

import_timm()
from timm.models.swin_transformer import WindowAttention  # noqa: E402

from deo_cube.encoder.networks.window_attention import window_attention  # noqa: E402


class DeoSwin(nn.Module):
    """Swin Transformer with several stems that share one trunk.

    Parameters
    ----------
    stems : mapping
        Name of each stem -> number of its input channels.
    dim : int
        Channels of stage 1; each further stage doubles them.
    depths, heads : sequence of int
        Blocks and attention heads of each stage; their length is the number of stages.
    window : int
        Side of an attention window, in tokens.
    patch : int
        Side of a patch of the stem, in pixels.
    mlp_ratio : float
        Hidden width of an MLP over its input's.
    drop_path : float
        Stochastic depth of the last block; it rises linearly from 0. Acts in training mode only.

    Attributes
    ----------
    layers : mapping
        Name of each layer on offer -> (channels, output stride in pixels): `stage1` ... raw outputs of the stages,
        `norm` the last one after the final LayerNorm.
    """

    def __init__(
        self,
        *,
        stems: Mapping[str, int],
        dim: int = 128,
        depths: Sequence[int] = (2, 2, 18, 2),
        heads: Sequence[int] = (4, 8, 16, 32),
        window: int = 12,
        patch: int = 4,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(heads):
            raise ArgumentError(f"depths {tuple(depths)} and heads {tuple(heads)} must be of one length")
        for i, h in enumerate(heads):
            if (dim << i) % h:
                raise ArgumentError(f"stage {i + 1}: {dim << i} channels do not divide into {h} heads")
        self.window = window
        self.patch = patch
        self.stems = dict(stems)
        for name, channels in stems.items():
            self.add_module(
                f"conv_{name}",
                nn.Sequential(nn.Conv2d(channels, dim, patch, patch), _ToNHWC(), nn.LayerNorm(dim)),
            )
        rates = [drop_path * i / max(sum(depths) - 1, 1) for i in range(sum(depths))]
        features: list[nn.Module] = []
        self.layers: dict[str, tuple[int, int]] = {}
        for i, depth in enumerate(depths):
            width = dim << i
            if i > 0:
                features.append(_PatchMerging(width // 2))
            features.append(
                nn.Sequential(
                    *[
                        _Block(width, heads[i], window, (window // 2) * (b % 2), mlp_ratio, rates.pop(0))
                        for b in range(depth)
                    ]
                )
            )
            self.layers[f"stage{i + 1}"] = (width, patch << i)
        self.features = nn.ModuleList(features)
        self.norm = nn.LayerNorm(width)
        self.layers["norm"] = (width, patch << (len(depths) - 1))
        self.apply(_init)

    def forward_features(self, x: Tensor, stem: str, layers: Collection[str] | None = None) -> dict[str, Tensor]:
        """Return feature maps of an input of any size.

        Parameters
        ----------
        x : Tensor [B, C, H, W]
            Normalised input of the stem `stem`.
        stem : str
            Which stem reads it.
        layers : collection of str, optional
            Names of the layers to return, all by default, or `pooled`; nothing beyond the deepest of them is computed.

        Returns
        -------
        dict of str -> Tensor
            Maps [B, D, h, w]; h is H / patch rounded down, then halved and rounded up at each merge. `pooled` [B, D] is
            the mean of `norm` over the map.
        """
        wanted = {*self.layers, "pooled"} if layers is None else set(layers)
        if unknown := wanted - set(self.layers) - {"pooled"}:
            raise ArgumentError(f"no layers {sorted(unknown)}: there are {[*self.layers]} and 'pooled'")
        if stem not in self.stems:
            raise ArgumentError(f"no stem {stem!r}: there are {[*self.stems]}")
        if x.ndim != 4 or x.shape[1] != self.stems[stem]:
            raise ArgumentError(f"stem {stem!r} wants [B, {self.stems[stem]}, H, W], got {tuple(x.shape)}")
        out: dict[str, Tensor] = {}
        x = self.get_submodule(f"conv_{stem}")(x)
        left = set(wanted)
        for i, part in enumerate(self.features):
            x = part(x)
            name = f"stage{i // 2 + 1}"
            if i % 2 == 0 and name in left:
                out[name] = x.permute(0, 3, 1, 2)
                left.discard(name)
            if not left:
                return out
        x = self.norm(x)
        if "norm" in left:
            out["norm"] = x.permute(0, 3, 1, 2)
        if "pooled" in left:
            out["pooled"] = x.mean(dim=(1, 2))
        return out

    def forward(self, x: Tensor, stem: str) -> Tensor:
        """Return pooled vectors [B, D] of an input [B, C, H, W]."""
        return self.forward_features(x, stem, ("pooled",))["pooled"]


class _ToNHWC(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _Block(nn.Module):
    def __init__(self, dim: int, heads: int, window: int, shift: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads=heads, window_size=window)
        self.drop_path = drop_path
        self.norm2 = nn.LayerNorm(dim)
        # Dropout (never active) keeps the published numbering: mlp.0 and mlp.3 are the linear layers.
        self.mlp = nn.Sequential(
            nn.Linear(dim, hidden), nn.GELU(), nn.Dropout(0.0), nn.Linear(hidden, dim), nn.Dropout(0.0)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self._residual(x, lambda t: window_attention(self.attn, self.norm1(t), self.shift))
        return self._residual(x, lambda t: self.mlp(self.norm2(t)))

    def _residual(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Return `x` plus the branch, computed in training only for the samples that stochastic depth keeps."""
        if not (self.training and self.drop_path):
            return x + branch(x)
        # Drawn on the CPU: no wait for the device, and the same samples on any.
        kept = torch.empty(len(x)).bernoulli_(1 - self.drop_path).nonzero()[:, 0]
        some = (kept if len(kept) else torch.zeros(1, dtype=torch.long)).to(x.device, non_blocking=True)
        # With no sample left one is computed for nothing: every parameter has a gradient, as other processes expect.
        scale = 1 / (1 - self.drop_path) if len(kept) else 0.0
        return x.index_add(0, some, branch(x[some]).to(x.dtype), alpha=scale)


class _PatchMerging(nn.Module):
    """2 x 2 tokens to one of twice the width (channel order: all rows of a column first, as published)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        n, h, w, c = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2))
        x = x.view(n, (h + 1) // 2, 2, (w + 1) // 2, 2, c).permute(0, 1, 3, 4, 2, 5).flatten(3)
        out: Tensor = self.reduction(self.norm(x))
        return out


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
