"""Decode numbers that state a scale and offset: packed integers, and floats that were made of them.

xarray keeps attributes. So `where` and `astype("float32")` of packed integers give floats that still state the scale
that decodes them, and so does ``array * array.attrs["scale_factor"]``, which decoded them already. The values tell the
two apart: those of the first are whole numbers, those of the second multiples of the scale. A mean is neither; where
the scale is a decimal fraction, its fractions may be either.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import ArgumentError

__all__ = ["decoded_floats", "scale_and_offset"]

Array = NDArray[Any]

#: Part of a step by which a decoded number may be off a multiple of the scale: float16 has 11 bits.
_OFF = 0.1


def scale_and_offset(array: xr.DataArray) -> tuple[float, float]:
    """Return the scale and offset that the attributes of an array state; 1 and 0 where they state none."""
    scale, offset = (float(np.ravel(array.attrs.get(k, v))[0]) for k, v in (("scale_factor", 1.0), ("add_offset", 0.0)))
    return scale, offset


def decoded_floats(array: xr.DataArray, argument: str) -> xr.DataArray:
    """Return floats that state a scale as the values that they mean, without the scale; other arrays as they are.

    Lazy on Dask. Values equal to `_FillValue` become NaN.

    Parameters
    ----------
    array : DataArray
    argument : str
        Argument that errors name.

    Raises
    ------
    ArgumentError
        Where values are neither whole numbers nor multiples of the scale, as a mean of packed integers; in a task for
        an array on Dask.
    """
    if array.dtype.kind != "f" or scale_and_offset(array) == (1.0, 0.0):
        return array
    scale, offset = scale_and_offset(array)
    fill = array.attrs.get("_FillValue")
    name = str(array.name or argument)
    # The mark of no data is of the type that the packed numbers had.
    integers = np.asarray(fill).dtype if fill is not None else np.dtype("int64")
    largest = float(np.iinfo(integers).max) if integers.kind in "iu" else np.inf
    facts = {"scale": scale, "offset": offset, "fill": None if fill is None else float(fill), "largest": largest}
    decoded: xr.DataArray = xr.apply_ufunc(
        _decoded,
        array,
        kwargs={**facts, "name": name, "argument": argument},
        dask="parallelized",
        output_dtypes=[np.dtype("float32")],
        keep_attrs=True,
    )
    decoded.attrs = {k: v for k, v in array.attrs.items() if k not in ("scale_factor", "add_offset", "_FillValue")}
    return decoded


def _decoded(
    values: Array, *, scale: float, offset: float, fill: float | None, largest: float, name: str, argument: str
) -> Array:
    known = np.isfinite(values) if fill is None else np.isfinite(values) & (values != fill)
    numbers = values[known].astype("float64")
    out = np.full(values.shape, np.nan, "float32")
    steps = (numbers - offset) / scale
    whole = bool(((numbers == np.rint(numbers)) & (np.abs(numbers) <= largest)).all())
    multiples = bool((np.abs(steps - np.rint(steps)) <= _OFF).all())
    # A mean of two packed numbers is a multiple of 0.1, too.
    decimal = abs(scale) < 1 and abs(1 / scale - round(1 / scale)) < 1e-3
    if whole and not (multiples and abs(scale) > 1):
        out[known] = numbers * scale + offset
    elif multiples and not decimal:
        # The mark of no data was multiplied too.
        out[known] = numbers if fill is None else np.where(np.rint(steps) == fill, np.nan, numbers)
    else:
        raise ArgumentError(
            f"{argument} holds fractions and states scale_factor={scale:g}, as where {name!r} was computed of packed "
            f"integers, marks of no data included. Decode them first: xr.decode_cf(packed.to_dataset(name={name!r}))"
            f"[{name!r}]; or, if the values are decoded already, drop the attribute: "
            f"{argument}.attrs.pop('scale_factor')"
        )
    return out
