"""Read NASA's Harmonized Landsat and Sentinel-2 (HLS): which product it is, and the bits of its mask Fmask.

HLS S30 is Sentinel-2: its bands have Sentinel-2's names, at 30 m, surface reflectance x 10000 without an offset, -9999
for no data. HLS L30 is Landsat, whose band numbers mean other wavelengths (`deo_cube.cube.sentinel2.other_sensor`).
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["FMASK_FILL", "classes_of_fmask", "is_s30"]

FMASK_FILL = 255

#: Class of the scene classification for each bit of Fmask, the strongest first (HLS User Guide 2.0, table 9). Bit 0,
#: cirrus, is reserved and not set; bits 6 and 7 are the level of aerosols, which hides nothing.
_BITS = ((1, 9), (3, 3), (2, 8), (4, 11), (5, 6))
_CLEAR = 7


def is_s30(text: object) -> bool:
    """Return whether the name of a product or collection is that of HLS S30.

    >>> is_s30("HLS.S30.T33TWM.2022064T102921.v2.0"), is_s30("HLSS30_2.0"), is_s30("HLS.L30.T33TWM.2022064T102921.v2.0")
    (True, True, False)
    """
    return re.match(r"HLS2?[._-]?S30", str(text), re.I) is not None


def _table() -> NDArray[np.uint8]:
    values = np.arange(256)
    table = np.full(256, _CLEAR, np.uint8)
    for bit, number in reversed(_BITS):
        table[(values >> bit) & 1 == 1] = number
    table[FMASK_FILL] = 0
    return table


_CLASSES = _table()


def _look_up(fmask: NDArray[Any]) -> NDArray[np.uint8]:
    if fmask.dtype.kind == "f":
        fmask = np.where(np.isfinite(fmask), fmask, FMASK_FILL)
    classes: NDArray[np.uint8] = _CLASSES[np.clip(fmask, 0, FMASK_FILL).astype(np.uint8)]
    return classes


def classes_of_fmask(fmask: xr.DataArray) -> xr.DataArray:
    """Return the Fmask of HLS as a scene classification, lazily.

    Parameters
    ----------
    fmask : DataArray of uint8, any shape
        Bits: 1 cloud, 2 adjacent to cloud or shadow, 3 cloud shadow, 4 snow or ice, 5 water; 255 is no data.

    Returns
    -------
    DataArray of uint8
        Classes of SCL: 9 cloud, 8 adjacent to one, 3 cloud shadow, 11 snow, 6 water, 7 clear, 0 no data. Of a pixel
        with several bits the first of these counts.

    Examples
    --------
    >>> import xarray as xr
    >>> classes_of_fmask(xr.DataArray([0, 2, 8, 4, 32, 64, 255])).values.tolist()
    [7, 9, 3, 8, 6, 7, 0]
    """
    classes: xr.DataArray = xr.apply_ufunc(_look_up, fmask, dask="parallelized", output_dtypes=[np.uint8])
    return classes.assign_attrs(long_name="scene classification", comment="from the bits of HLS's Fmask")
