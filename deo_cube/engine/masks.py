"""The mask that a caller names or passes: which pixels must not count, on the grid of the cube."""

from __future__ import annotations

import numpy as np
import xarray as xr

from deo_cube.cube import grid
from deo_cube.cube.bands import BandMatch
from deo_cube.engine.block import check_mask
from deo_cube.errors import ArgumentError, MissingBandsError
from deo_cube.inputs import refuse_foreign

__all__ = ["Mask", "mask_variable"]

Mask = xr.DataArray | str | bool | None


def mask_variable(
    cube: xr.Dataset | xr.DataArray, mask: Mask, dims: grid.Dims, match: BandMatch | None
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


def _aligned_mask(cube: xr.Dataset | xr.DataArray, mask: xr.DataArray | str, dims: grid.Dims) -> xr.Variable:
    if isinstance(mask, str):
        if not isinstance(cube, xr.Dataset) or mask not in cube:
            raise ArgumentError(f"mask={mask!r} is not a variable of the cube: pass a boolean DataArray, or 'scl'")
        mask = cube[mask]
    refuse_foreign(mask.variable, "mask", argument="mask")
    if isinstance(mask.variable._data, np.ndarray):  # in memory; of others, tasks look
        check_mask(mask.values)
    allowed = {d for d in (dims.time, dims.y, dims.x) if d}
    if not {dims.y, dims.x} <= set(mask.dims) <= allowed:
        raise ArgumentError(f"mask must have the dimensions {sorted(allowed)} or ({dims.y}, {dims.x}), got {mask.dims}")
    for d in mask.dims:
        same = mask.sizes[d] == cube.sizes[d] and (
            d not in mask.coords or d not in cube.coords or bool((mask[d].values == cube[d].values).all())
        )
        if not same:
            raise ArgumentError(
                f"mask and cube differ along {d!r}: align it first, for example mask.odc.reproject(cube.odc.geobox) "
                "or mask.reindex_like(cube, fill_value=True)"
            )
    return mask.variable
