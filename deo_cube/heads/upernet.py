"""UPerNet (Xiao et al. 2018, arXiv:1807.10221) on several layers of a frozen model, as the paper evaluates with.

One thing is other than there: pyramid pooling averages over windows of fixed size around each cell, not over the tile.
The published form makes a pixel depend on where its tile was cut; this one keeps the law that the same place gets the
same class, on any chunks and without seams.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import resolve
from deo_cube.engine.embed import embed
from deo_cube.heads.decoder import ConvHead, apply_conv, conv_maker, drawn, standard
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["UPerNetHead", "multiscale"]

Array = NDArray[Any]
POOLS = (3, 7, 15)
"""Sides of the windows of the pyramid, in tokens of the finest scale."""


def multiscale(
    cube: xr.Dataset | xr.DataArray,
    model: str | Path | ModelCard = "tiny",
    *,
    layers: Sequence[str] | None = None,
    **embed_options: Any,
) -> xr.DataArray:
    """Embeddings of several layers on the grid of the finest, one after the other along `embedding`. Lazy.

    Parameters
    ----------
    cube : Dataset or DataArray
        A Sentinel-2 cube.
    model : str, path or ModelCard
        As of `embed`.
    layers : sequence of str, optional
        Default: all that the card offers.
    **embed_options
        Of `embed`. The model runs once for each layer.

    Returns
    -------
    DataArray
        (time, embedding, y, x) with the attribute ``deo_cube:scales``: how many numbers each layer gave.
    """
    card = resolve(model).card
    offered = sorted((card.layer(n) for n in (layers or card.layer_names)), key=lambda la: la.stride)
    each = [as_embeddings(embed(cube, model, layer=la.name, **embed_options)) for la in offered]
    finest = each[0]
    parts = [finest, *(_on_grid(e, finest) for e in each[1:])]
    joined = xr.concat(parts, dim="embedding", coords="minimal", compat="override", join="override")
    if joined.chunks is not None:
        joined = joined.copy(data=joined.data.rechunk({joined.get_axis_num("embedding"): -1}))
    dims = [int(p.sizes["embedding"]) for p in parts]
    layer = "+".join(la.name for la in offered)
    joined.attrs = finest.attrs | {"deo_cube:scales": dims, "deo_cube:layer": layer}
    return joined


def _on_grid(coarse: xr.DataArray, fine: xr.DataArray) -> xr.DataArray:
    """`coarse` looked up at the centres of the cells of `fine`."""
    y, x = spatial_dims(fine)
    box, at = geobox(coarse), {}
    t = box.transform
    for dim, origin, step in ((y, t.f, t.e), (x, t.c, t.a)):
        place = (np.asarray(fine[dim].values, "float64") - origin) / step
        at[dim] = np.clip(np.floor(place).astype(int), 0, coarse.sizes[dim] - 1)
    found = coarse.isel(at).drop_vars([c for c in coarse.coords if c not in ("time",)])
    return found.assign_coords({y: fine[y], x: fine[x]})


@dataclass(frozen=True)
class UPerNetHead(ConvHead):
    """A lateral a scale, pyramid pooling on the deepest, a sum from deep to fine, all fused for the score of a class.

    Works on embeddings of one layer too; `multiscale` gives it several.
    """

    kind: ClassVar[str] = "upernet"
    halo: ClassVar[int] = 12
    window: ClassVar[int] = 40

    @staticmethod
    def blank(dim: int, width: int, classes: int, scales: tuple[int, ...], seed: int = 0) -> dict[str, Array]:
        """Tensors before training."""
        new, sizes = conv_maker(seed), scales or (dim,)
        tensors: dict[str, Array] = {"mean": np.zeros(dim, "float32"), "std": np.ones(dim, "float32")}
        for i, d in enumerate(sizes):
            tensors |= new(f"lateral{i}", d, width, 1) | new(f"level{i}", width, width, 3)
        for k in POOLS:
            tensors |= new(f"pool{k}", width, width // 4, 1)
        tensors |= new("bottleneck", width + len(POOLS) * (width // 4), width, 3)
        tensors |= new("fuse", width * len(sizes), width, 3)
        tensors |= new("fine", width, width, 3) | new("out", width, classes, 1, 0.1)
        return tensors

    @staticmethod
    def forward(t: Mapping[str, Any], x: Any, upsample: int, scales: tuple[int, ...]) -> Any:
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
