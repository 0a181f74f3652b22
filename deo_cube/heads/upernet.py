"""UPerNet (Xiao et al. 2018, arXiv:1807.10221) on several layers of a frozen model, as the paper evaluates with.

One thing is other than there: pyramid pooling averages over windows of fixed size around each cell, not over the tile.
The published form makes a pixel depend on where its tile was cut; this one keeps the law that the same place gets the
same class, on any chunks and without seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.embedding.embed import embed
from deo_cube.encoder.card import ModelCard
from deo_cube.encoder.registry import resolve
from deo_cube.heads.decoder import ConvHead
from deo_cube.heads.decoders import upernet_blank, upernet_forward
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["UPerNetHead", "multiscale"]

Array = NDArray[Any]


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

    blank = staticmethod(upernet_blank)
    forward = staticmethod(upernet_forward)
