"""Convert pixel values to network input: first the units, then the statistics of the card."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from deo_cube.constants import TCI_SCALE
from deo_cube.encoder.card import LOG_SCALE, Normalization, Stem
from deo_cube.errors import ArgumentError, ArgumentTypeError, MissingBandsError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

__all__ = ["DN_PER_REFLECTANCE", "Units", "choose_normalization", "constant", "normalize", "to_units"]

Units = Literal["dn", "reflectance", "percent", "uint8_rgb"]

DN_PER_REFLECTANCE = 10000.0
RGB = ("B04", "B03", "B02")
#: Smaller than any step of the data; avoids a division by zero in constant tiles.
_SMALLEST = 1e-6


def choose_normalization(
    stem: Stem, normalize: str | Mapping[str, tuple[float, float]] | Normalization | None
) -> Normalization:
    """Return the normalization that `normalize` names.

    Parameters
    ----------
    stem : Stem
        The stem whose input is normalised.
    normalize : str, mapping or Normalization, optional
        A name from the card, or ``{band: (mean, std)}`` for every band of the stem in the card's units (which becomes a
        fixed normalization named `given`). None: the stem's default.

    Raises
    ------
    UnknownModelError
        If the stem has no normalization of that name.
    MissingBandsError
        If the mapping lacks a band.
    """
    if normalize is None or isinstance(normalize, str):
        return stem.normalization(normalize)
    if isinstance(normalize, Normalization):
        return normalize
    if not isinstance(normalize, Mapping):
        raise ArgumentTypeError(f"normalize must be a name or a mapping {{band: (mean, std)}}, got {normalize!r}")
    missing = [b for b in stem.bands if b not in normalize]
    unknown = [b for b in normalize if b not in stem.bands]
    if missing or unknown:
        raise MissingBandsError(
            f"normalize must give (mean, std) of the bands {list(stem.bands)}: missing {missing}, unknown {unknown}"
        )
    pairs = [normalize[b] for b in stem.bands]
    return Normalization("given", "fixed", tuple(float(m) for m, _ in pairs), tuple(float(s) for _, s in pairs))


def to_units(x: Tensor, units: Units, model_units: Literal["dn", "reflectance"]) -> Tensor:
    """Return pixel values in the card's units: `dn` (reflectance x 10000, no offset) or `reflectance`.

    Parameters
    ----------
    x : Tensor, float32
        Values in the units `units`.
    units : {"dn", "reflectance", "percent", "uint8_rgb"}
        `percent` is reflectance from 0 to 100. `uint8_rgb` is a true-colour picture: DN = value * 2750 / 255.
    model_units : {"dn", "reflectance"}
        Units of the card.
    """
    per_unit = {
        "dn": 1.0,
        "reflectance": DN_PER_REFLECTANCE,
        "percent": DN_PER_REFLECTANCE / 100,
        "uint8_rgb": TCI_SCALE,
    }
    if units not in per_unit:
        raise ArgumentError(f"units must be one of {', '.join(per_unit)}, got {units!r}")
    factor = per_unit[units] / per_unit[model_units]
    return x if factor == 1.0 else x * factor


def normalize(x: Tensor, stem: Stem, how: Normalization) -> Tensor:
    """Return the network input of a batch of tiles.

    Parameters
    ----------
    x : Tensor [B, C, H, W], float32
        Channels are the stem's bands in order, values in the card's units.
    stem : Stem
        Names the bands.
    how : Normalization
        `fixed`: ``(x - mean) / std``. `rgb_max`: red, green and blue are first divided by the tile's own maximum over
        the three and clamped to 0..1 (augmentations.py:373-380). `own`: mean and standard deviation of the tile, by
        band. `log_sigmoid`: ``sigmoid(5 (log(0.005 x + 1) - mean) / std - 1)``, negative values taken as 0.

    Returns
    -------
    Tensor [B, C, H, W], float32

    Raises
    ------
    MissingBandsError
        If `rgb_max` is used with a stem without red, green and blue.
    """
    import torch

    if how.kind == "own":
        std, mean = torch.std_mean(x, dim=(2, 3), keepdim=True, correction=0)
        return (x - mean) / std.clamp_min(_SMALLEST)
    if how.kind == "rgb_max":
        missing = [b for b in RGB if b not in stem.bands]
        if missing:
            raise MissingBandsError(f"normalization {how.name!r} needs {list(RGB)}; stem {stem.name!r} lacks {missing}")
        where = [stem.bands.index(b) for b in RGB]
        rgb = x.index_select(1, constant(tuple(where), torch.int64, x.device))
        top = rgb.amax(dim=(1, 2, 3), keepdim=True).clamp_min(_SMALLEST)
        x = x.index_copy(1, constant(tuple(where), torch.int64, x.device), (rgb / top).clamp(0, 1))
    mean, std = (constant(tuple(v), x.dtype, x.device)[:, None, None] for v in (how.mean, how.std))
    if how.kind == "log_sigmoid":
        # DN below 0 occur after an offset is taken off; below -200 they have no logarithm.
        x = torch.log1p(x.clamp_min(0) * LOG_SCALE)
        return torch.sigmoid(5 * (x - mean) / std - 1)
    return (x - mean) / std


@functools.lru_cache(maxsize=256)
def constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return `values` as a tensor [n] on the device, the same one for every batch. Not to be written to.

    Making it anew for each batch would copy it over, and the host waits for such a copy: until then it launches no
    kernel of the next batch, and a GPU is idle.
    """
    import torch

    # A cached tensor must serve inference and training alike.
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
