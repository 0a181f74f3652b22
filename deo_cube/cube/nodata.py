"""Which value of a cube means "no data": as stated, as passed, or 0 as in the products."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from deo_cube.cube.evidence import Evidence
from deo_cube.errors import AmbiguousUnitsError, ArgumentError

if TYPE_CHECKING:
    from deo_cube.cube.units import Decided

__all__ = ["decide_nodata", "stated_nodata"]

_KEYS = ("_FillValue", "nodata", "missing_value", "nodatavals")


def decide_nodata(evidence: Evidence, decided: Decided | None, nodata: Any) -> tuple[float | None, str]:
    """Value that means "no data" (None: NaN alone), and why.

    Parameters
    ----------
    evidence : Evidence
    decided : Decided or None
        Units and scale; None where they are undecided.
    nodata : "auto", float or None
        As the caller passed it, which decides.

    Raises
    ------
    AmbiguousUnitsError
        Where the bands state different values.
    """
    if nodata is None:
        return None, "nodata=None was passed"
    if not isinstance(nodata, str):
        value = float(nodata)
        return (value, f"nodata={value:g} was passed") if math.isfinite(value) else (None, "nodata=NaN was passed")
    if nodata != "auto":
        raise ArgumentError(f"nodata must be 'auto', a number or None, got {nodata!r}")
    layers = evidence.layers
    stated = {str(la.name): stated_nodata(la) for la in layers}
    finite = {v for v in stated.values() if v is not None and math.isfinite(v)}
    if len(finite) > 1:
        listed = ", ".join(f"{n}: {v:g}" for n, v in stated.items() if v is not None)
        first = min(finite, key=abs)
        name, other = next((n, v) for n, v in stated.items() if v is not None and math.isfinite(v) and v != first)
        raise AmbiguousUnitsError(
            f"the bands state different nodata values ({listed}). Set others than one to NaN, "
            f"cube[{name!r}] = cube[{name!r}].where(cube[{name!r}] != {other:g}), and pass nodata={first:g}"
        )
    if finite:
        (value,) = finite
        return value, f"{value:g} is stated as nodata"
    if decided is not None and decided.units == "uint8_rgb":
        return None, "no nodata is stated, so NaN alone is no data"
    if any(la.dtype.kind in "iu" for la in layers):
        return 0.0, "0 is no data in Sentinel-2 products"
    if all(v is not None for v in stated.values()):
        return None, "NaN is stated as nodata"
    if decided is not None and decided.masked:
        return None, "decoding made NaN of what is no data"
    return 0.0, "0 is no data in Sentinel-2 products, and stays so in floats"


def stated_nodata(layer: xr.DataArray) -> float | None:
    """The stated nodata of one variable; infinite where NaN is stated; None where nothing is.

    An encoding of floats that has a fill value and no scale states it too: values were decoded, which made NaN of it,
    or were integers and cast since.
    """
    unscaled = "scale_factor" not in layer.encoding and "add_offset" not in layer.encoding
    places = [layer.attrs] + ([layer.encoding] if layer.dtype.kind in "iu" or unscaled else [])
    for attrs in places:
        for key in _KEYS:
            if attrs.get(key) is None:
                continue
            try:
                value = float(np.ravel(attrs[key])[0])
            except (TypeError, ValueError, IndexError):
                continue
            if layer.dtype.kind in "iu" and not (np.iinfo(layer.dtype).min <= value <= np.iinfo(layer.dtype).max):
                continue
            return value if math.isfinite(value) else math.inf
    return None
