"""Cards for encoders of your own, in a line each: a function of the batch, or any model of timm.

>>> import torch.nn.functional as F
>>> from deo_cube.encoder.describe import describe
>>> from deo_cube.encoder.registry import load_encoder, register_encoder
>>> mine = describe("means", bands=["B04", "B03", "B02"], dim=3, patch=8)
>>> _ = register_encoder(mine, lambda: lambda x: F.avg_pool2d(x, 8))
>>> load_encoder("means", device="cpu")
<Encoder means on cpu: 3 bands (all) to 3 channels per 8 px (map), normalization fixed, UNTRAINED: random weights>
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from deo_cube import arguments
from deo_cube.encoder.card import Layer, ModelCard, Normalization, Stem, Weights, WeightsStatus
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingBandsError

__all__ = ["SENTINEL2_STATISTICS", "describe", "describe_timm"]

#: Mean and standard deviation of DN over fMoW-Sentinel: the table `normalize_s2` of the published code
#: (augmentations.py:277-311).
SENTINEL2_STATISTICS: Mapping[str, tuple[float, float]] = {
    "B04": (1136.260, 965.231),
    "B03": (1120.771, 712.125),
    "B02": (1184.382, 650.284),
    "B05": (1263.739, 948.982),
    "B06": (1645.403, 1108.067),
    "B07": (1846.870, 1258.364),
    "B08": (1762.595, 1233.149),
    "B8A": (1972.624, 1364.387),
    "B11": (1732.164, 1310.370),
    "B12": (1247.919, 1087.602),
}


def describe(
    alias: str,
    *,
    bands: Sequence[str],
    dim: int,
    patch: int,
    tile: int = 256,
    halo: int = 0,
    statistics: Mapping[str, tuple[float, float]] | None = None,
    units: Literal["dn", "reflectance"] = "dn",
    gsd: float = 10.0,
    layer: str = "map",
    architecture: Mapping[str, Any] | None = None,
    status: WeightsStatus = "untrained",
    summary: str = "",
    **fields: Any,
) -> ModelCard:
    """A card with one stem and one layer, for `register_encoder`.

    Parameters
    ----------
    alias : str
        Its name.
    bands : sequence of str
        Bands in the order that the encoder reads them.
    dim, patch : int
        Channels of its map, and input pixels a cell of the map.
    tile, halo : int
        Input size in pixels, and context to keep on each side of it.
    statistics : mapping, optional
        ``{band: (mean, std)}`` in `units`. Default: `SENTINEL2_STATISTICS`.
    units, gsd, layer, architecture, status, summary, **fields
        See `ModelCard`, `Layer` and `Weights`.

    Raises
    ------
    MissingBandsError
        If there are no statistics of a band.
    ValueError
        For values that do not fit together, see `ModelCard`.
    """
    arguments.number("gsd", gsd, above=0)
    for name, size, least in (("dim", dim, 1), ("patch", patch, 1), ("tile", tile, 1), ("halo", halo, 0)):
        arguments.integer(name, size, minimum=least)
    bands = arguments.sequence("bands", bands, "bands, in the order of the model")
    if not isinstance(alias, str) or not alias:
        raise ArgumentError(f"alias must be a name, got {alias!r}")
    if statistics is not None and not (
        isinstance(statistics, Mapping)
        and all(isinstance(pair, Sequence) and len(pair) == 2 for pair in statistics.values())
    ):
        raise ArgumentTypeError(f"statistics must be a mapping {{band: (mean, std)}}, got {statistics!r}")
    scale = 1.0 if statistics is not None or units == "dn" else 1e-4
    table = SENTINEL2_STATISTICS if statistics is None else statistics
    unknown = [b for b in bands if b not in table]
    if unknown:
        raise MissingBandsError(f"bands: no mean and deviation of {unknown}, pass statistics={{band: (mean, std)}}")
    mean, std = (tuple(table[b][i] * scale for b in bands) for i in (0, 1))
    return ModelCard(
        name=f"{alias}.own",
        alias=alias,
        summary=summary or f"Encoder {alias}, registered by its user.",
        architecture=dict(architecture or {"family": "callable"}),
        stems=(Stem("all", tuple(bands), (Normalization("fixed", "fixed", mean, std), Normalization("own", "own"))),),
        layers=(Layer(layer, dim, patch),),
        tile=tile,
        halo=halo,
        weights=Weights(status, file=""),
        gsd=gsd,
        units=units,
        **fields,
    )


def describe_timm(
    alias: str, model: str, *, bands: Sequence[str], tile: int = 256, pretrained: bool = False, **fields: Any
) -> ModelCard:
    """A card for a model of timm, whose map and stride are read off the model itself.

    Parameters
    ----------
    alias : str
        Its name.
    model : str
        Its name in timm, for example ``vit_small_patch16_dinov3``.
    bands : sequence of str
        Bands in the order that its first convolution reads them.
    tile : int
        Input size, pixels.
    pretrained : bool
        Take timm's published weights, from the hub. timm adapts the first convolution where the bands are not three.
    options : mapping, optional
        Further arguments of ``timm.create_model``, for example ``{"dynamic_img_size": True}``.
    **fields
        See `describe`.

    Raises
    ------
    UnknownModelError
        If timm has no such model, or it gives no maps.
    ValueError
        If it does not take tiles of that size.
    """
    import torch

    from deo_cube.encoder.families import TimmNetwork

    architecture: dict[str, Any] = {"family": "timm", "model": model, "pretrained": pretrained}
    if "options" in fields:
        architecture["options"] = dict(fields.pop("options"))
    status: WeightsStatus = "published" if pretrained else "untrained"
    trial = describe(alias, bands=bands, dim=1, patch=1, tile=tile, architecture=architecture | {"pretrained": False})
    network = TimmNetwork.create(trial)
    norm = getattr(network.model, "norm", None)
    layer = "norm" if norm is not None and not isinstance(norm, torch.nn.Identity) else "last"
    try:
        with torch.inference_mode():
            out = network.eval().forward_features(torch.zeros(1, len(bands), tile, tile), "all", (layer,))[layer]
    except (AssertionError, RuntimeError) as error:
        raise ArgumentError(
            f"timm's {model} does not take tiles of {tile} px ({error}): pass the size that it takes as tile=, or, of "
            f"a ViT, options={{'img_size': {tile}}} or options={{'dynamic_img_size': True}}"
        ) from error
    fields = {"layer": layer, "status": status, "summary": f"timm's {model}", **fields}
    return describe(
        alias, bands=bands, dim=out.shape[1], patch=tile // out.shape[2], tile=tile, architecture=architecture, **fields
    )
