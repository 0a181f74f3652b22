"""`deo_cube.load_cube()`: load STAC items as a cube with the bands of a model."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from deo_cube.constants import MODEL_BANDS
from deo_cube.cube import stac
from deo_cube.encoder.registry import card
from deo_cube.options import Default, option

__all__ = ["load_cube"]


@functools.wraps(stac.load_cube)  # its signature and help
def load_cube(
    items: Any,
    *,
    model: str = Default("tiny"),
    bands: Sequence[str] | Mapping[str, str] | None = None,
    **options: Any,
) -> xr.Dataset:
    """Load STAC items as `deo_cube.cube.stac.load_cube` does, with the bands of `model`."""
    if bands is None and set(expected := card(option("model", model)).bands) != set(MODEL_BANDS):
        bands = expected
    return stac.load_cube(items, bands=bands, **options)
