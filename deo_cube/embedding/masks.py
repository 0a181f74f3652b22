"""The mask that a caller names or passes: which pixels must not count, on the grid of the cube."""

from __future__ import annotations

import numpy as np
import xarray as xr

from deo_cube.arguments import refuse_foreign
from deo_cube.cube import georeference
from deo_cube.cube.bands import BandMatch
from deo_cube.cube.masks import align_mask, check_classes, check_mask
from deo_cube.cube.units import Radiometry
from deo_cube.embedding.options import Mask
from deo_cube.errors import ArgumentError, MissingBandsError

__all__ = ["check_scl", "mask_variable"]


def mask_variable(
    cube: xr.Dataset | xr.DataArray, mask: Mask | None, dims: georeference.Dims, match: BandMatch | None
) -> xr.Variable | None:
    """The mask that `mask` names or is; None where SCL alone decides, or nothing."""
    scl = match.scl if match is not None else None
    if mask is None or mask is False:
        return None
    if isinstance(mask, str) and mask in ("scl", "SCL", scl):
        # The variable itself is not a mask: its classes are numbers, of which all but one would count as True.
        if scl is None and match is not None:
            raise MissingBandsError(
                "mask='scl' hides clouds by the scene classification, and the cube has none: name it, "
                "bands={'SCL': ...}, or leave mask out"
            )
        return None
    if isinstance(mask, xr.DataArray) and mask.dtype != bool and scl is not None and mask.name == scl:
        raise ArgumentError(
            f"mask is the scene classification itself, whose classes are not truth values: pass mask='scl', or compare "
            f"it, mask=cube.{mask.name}.isin([8, 9])"
        )
    if isinstance(mask, xr.DataArray | str):
        return _aligned_mask(cube, mask, dims)
    hint = ": xr.DataArray(mask, dims=('y', 'x'))" if isinstance(mask, np.ndarray) else ""
    raise ArgumentError(
        "mask must be a boolean DataArray, the name of a variable, 'scl' or False, got "
        f"{type(mask).__name__ if callable(mask) or hint else repr(mask)}{hint}"
    )


def _aligned_mask(cube: xr.Dataset | xr.DataArray, mask: xr.DataArray | str, dims: georeference.Dims) -> xr.Variable:
    if isinstance(mask, str):
        if not isinstance(cube, xr.Dataset) or mask not in cube:
            raise ArgumentError(f"mask={mask!r} is not a variable of the cube: pass a boolean DataArray, or 'scl'")
        mask = cube[mask]
    refuse_foreign(mask.variable, "mask", argument="mask")
    if isinstance(mask.variable._data, np.ndarray):  # in memory; of others, tasks look
        check_mask(mask.values)
    return align_mask(mask, cube, dims).variable


def check_scl(cube: xr.Dataset | xr.DataArray, match: BandMatch, radiometry: Radiometry | None) -> None:
    """Refuse a scene classification that does not hold its classes: by its type, and by its values where in memory."""
    if match.scl is None:
        return
    layer = cube[match.scl] if match.band_dim is None else cube.isel({match.band_dim: match.scl_index})
    in_memory = isinstance(layer.variable._data, np.ndarray)
    values = np.asarray(layer.variable._data if in_memory else np.empty(0, layer.dtype))
    marks = radiometry.scl_invalid if radiometry is not None else ()
    check_classes(values, marks, name=match.scl, along=match.band_dim)
