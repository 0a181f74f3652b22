"""Check the values of masks and scene classifications, and align masks with the grid of a cube."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.constants import SCL_CLASSES
from deo_cube.cube.georeference import Dims
from deo_cube.errors import ArgumentError

__all__ = ["align_mask", "check_classes", "check_mask", "hidden_classes"]

Array = NDArray[Any]

# Part of a pixel by which the coordinates of a mask may differ from the cube's. It allows for rounding, as of a
# transform that is multiplied in another order or stored in float32, but not for a shift.
TOLERANCE = 1e-2

LAST_CLASS = len(SCL_CLASSES) - 1
# A product has hardly any pixels of class 1 (saturated or defective), while a mask holds only 0 and 1.
_ONES = 0.05


def check_mask(mask: Array) -> None:
    """Refuse a mask whose numbers are not truth values: classes, probabilities, GDAL's 255 for valid.

    Raises
    ------
    ArgumentError
        For numbers other than 0, 1 and NaN, and for other types.
    """
    if mask.dtype.kind == "b":
        return
    if mask.dtype.kind not in "iuf":
        raise ArgumentError(
            f"mask holds {mask.dtype}, expected truth values: True where a pixel is left out. Compare it first, "
            "mask=m == 'cloud'"
        )
    odd = mask[(mask != 0) & (mask != 1) & (mask == mask)]
    if odd.size:
        between = mask.dtype.kind == "f" and 0 < odd[0] < 1
        how = "mask=m > 0.5" if between else f"mask=m == {odd[0]:g} or mask=m > 0"
        raise ArgumentError(
            f"mask holds {odd[0]:g}, expected truth values: True where a pixel is left out. Compare it first, "
            f"{how}; clouds in a scene classification are hidden by mask='scl'"
        )


def hidden_classes(scl: Array, classes: Collection[int]) -> NDArray[np.bool_]:
    """Return where a scene classification hides the ground: pixels of `classes`, and NaN, which is no data."""
    check_classes(scl, classes)
    out = np.isin(scl, list(classes))
    return out | np.isnan(scl) if scl.dtype.kind == "f" else out


def check_classes(scl: Array, marks: Collection[int] = (), *, name: str = "SCL", along: str | None = None) -> None:
    """Refuse a scene classification that does not hold the classes 0 to 11 of Sentinel-2's SCL.

    Parameters
    ----------
    scl : array of any shape
    marks : collection of int
        Further values that are known to mean no data.
    name : str
        Of the variable or label, for the message.
    along : str, optional
        The band dimension, where it is a label along one.

    Raises
    ------
    ArgumentError
        For fractions, other numbers, text, and masks of truth values (as booleans, or of 0 and 1 alone).
    """
    drop = f"cube.drop_vars({name!r})" if along is None else f"cube.drop_sel({along}={name!r})"
    layer = f"cube[{name!r}]" if along is None else f"cube.sel({along}={name!r})"
    expected = "expected the classes 0 to 11 of Sentinel-2's scene classification"

    def instead(condition: str) -> str:
        return (
            f"Leave it out with mask=False; or, where it marks clouds in another way, drop it and pass a "
            f"mask: {drop} with mask={layer}{condition}"
        )

    if scl.dtype.kind == "b":
        raise ArgumentError(f"{name!r} holds truth values, {expected}. {instead('')}")
    if scl.dtype.kind not in "iuf":
        first = np.ravel(scl)[:1]
        example = repr(str(first[0])) if first.size else "'cloud'"
        raise ArgumentError(f"{name!r} holds {scl.dtype} (such as {example}), {expected}. {instead(f' == {example}')}")
    if not scl.size:
        return
    if scl.dtype.kind == "f":
        finite = scl[~np.isnan(scl)]
        odd = finite[(finite < 0) | (finite > LAST_CLASS) | (finite != np.rint(finite))]
    else:
        finite = scl
        in_range = scl.min() >= 0 and scl.max() <= LAST_CLASS
        odd = scl[:0] if in_range else scl[(scl < 0) | (scl > LAST_CLASS)]
    if odd.size:
        odd = odd[~np.isin(odd, list(marks))]
    if odd.size:
        value = odd.flat[0]
        if value != np.rint(value):
            advice = f"Classes are resampled by nearest neighbour, not interpolated. {instead(' > 0.5')}"
        else:
            zeros = f"Where {value:g} means no data, write 0: {layer}.where({layer} <= {LAST_CLASS}, 0). "
            advice = (zeros if along is None and value > LAST_CLASS else "") + instead(f" == {value:g}")
        raise ArgumentError(f"{name!r} holds {value:g}, {expected}. {advice}")
    if finite.size >= 16 and finite.max() == 1 and float((finite == 1).mean()) > _ONES:
        raise ArgumentError(
            f"{name!r} holds only 0 and 1, as a mask does, {expected} (of which 0 is no data and 1 defective). "
            f"{instead(' == 1')} or mask={layer} == 0"
        )


def align_mask(mask: xr.DataArray, cube: xr.Dataset | xr.DataArray, dims: Dims) -> xr.DataArray:
    """Return `mask`, if it has the grid and dates of the cube; coordinates may differ by rounding.

    Raises
    ------
    ArgumentError
        For other dimensions, sizes or coordinates. The message has the call that aligns the mask.
    """
    allowed = {d for d in (dims.time, dims.y, dims.x) if d}
    if not {dims.y, dims.x} <= set(mask.dims) <= allowed:
        raise ArgumentError(
            f"mask must have the dimensions {sorted(allowed)} or ({dims.y}, {dims.x}), got {tuple(map(str, mask.dims))}"
        )
    other = [str(d) for d in mask.dims if not _same(mask, cube, str(d), dims)]
    if not other:
        return mask
    advice = []
    spatial = [d for d in other if d in (dims.y, dims.x)]
    if spatial:
        advice.append(_spatial_advice(mask, cube, dims))
    if dims.time in other:
        time = dims.time
        advice.append(
            f"Along {time!r}: mask.reindex({time}=cube.{time}, method='nearest', tolerance='12h', fill_value=True), "
            "which hides dates that the mask lacks"
            if _dated(mask, time) and _dated(cube, time)
            else f"Give mask and cube the same {time!r}, or pass one mask without it"
        )
    ranges = "; ".join(f"{d}: mask {_range(mask, d)}, cube {_range(cube, d)}" for d in other)
    raise ArgumentError(f"mask and cube differ along {' and '.join(other)} ({ranges}). {'. '.join(advice)}")


def _same(mask: xr.DataArray, cube: xr.Dataset | xr.DataArray, d: str, dims: Dims) -> bool:
    if mask.sizes[d] != cube.sizes[d]:
        return False
    if d not in mask.coords or d not in cube.coords:
        return True
    a, b = mask[d].values, cube[d].values
    if d == dims.time or a.dtype.kind not in "iuf" or b.dtype.kind not in "iuf":
        return bool(np.all(a == b))
    return bool((np.abs(a.astype("float64") - b.astype("float64")) <= TOLERANCE * _step(cube, d, dims)).all())


def _step(cube: xr.Dataset | xr.DataArray, d: str, dims: Dims) -> float:
    """Return the size of a pixel along `d`, or along the other axis if there is one pixel only; 0 where unknown."""
    for name in (d, dims.y, dims.x):
        if name in cube.coords and cube.sizes[name] > 1:
            return float(np.abs(np.diff(cube[name].values[:2].astype("float64")))[0])
    return 0.0


def _spatial_advice(mask: xr.DataArray, cube: xr.Dataset | xr.DataArray, dims: Dims) -> str:
    resample = (
        "resample it to the cube's grid: import odc.geo.xr; "
        "mask.astype('uint8').odc.reproject(cube.odc.geobox, resampling='nearest')"
    )
    axes = (dims.y, dims.x)
    known = all(d in mask.coords and d in cube.coords for d in axes)
    steps = [_step(cube, d, dims) for d in axes]
    if not known or not all(steps) or not all(_overlap(mask, cube, d) for d in axes):
        return f"They do not overlap, as in two CRSs; {resample}" if known and all(steps) else resample.capitalize()
    over = ", ".join(f"{d}=cube.{d}" for d in axes)
    return (
        f"On the same grid, cut elsewhere or in another order: mask.reindex({over}, method='nearest', "
        f"tolerance={min(steps) / 2:g}, fill_value=True), which hides what the mask does not cover. Else {resample}"
    )


def _overlap(mask: xr.DataArray, cube: xr.Dataset | xr.DataArray, d: str) -> bool:
    a, b = mask[d].values, cube[d].values
    return bool(a.min() <= b.max() and b.min() <= a.max())


def _dated(cube: xr.Dataset | xr.DataArray, time: str | None) -> bool:
    return time in cube.coords and cube[time].dtype.kind == "M"


def _range(cube: xr.Dataset | xr.DataArray, d: str) -> str:
    if d not in cube.coords or not cube.sizes[d]:
        return f"{cube.sizes[d]} long"
    first, last = cube[d].values[0], cube[d].values[-1]
    shown = [f"{v:.10g}" if cube[d].dtype.kind in "iuf" else str(v)[:19] for v in (first, last)]
    return f"{cube.sizes[d]} from {shown[0]} to {shown[1]}"
