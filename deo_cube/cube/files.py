"""Open a cube from where it lies: Zarr, netCDF, GeoTIFF, or STAC items."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.cube.codecs import check_store
from deo_cube.errors import ArgumentError, InputNotFoundError, MissingExtraError

__all__ = ["open_cube"]


def open_cube(path: str | Path, **options: Any) -> xr.Dataset | xr.DataArray:
    """Open a cube lazily, by the ending of its name.

    Parameters
    ----------
    path : str or path
        ``*.zarr`` (also a URL), ``*.nc``, ``*.tif``, or STAC: ``*.json`` with an item or a collection of items.
    **options
        For the reader underneath: `xarray.open_zarr`, `xarray.open_dataset`, `rioxarray.open_rasterio`, `load_cube`.

    Returns
    -------
    Dataset or DataArray
        On Dask, in the chunks of the file. Numbers are as stored: nothing is scaled or masked.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        For an ending that is none of these.
    MissingExtraError
        If a netCDF file cannot be read for want of netCDF4.
    StorageError
        If a Zarr store is decoded to Python objects, or by a codec that is not installed.
    """
    text = str(path).rstrip("/")
    local = "://" not in text
    if local and not Path(text).exists():
        raise InputNotFoundError(f"no cube at {text}")
    ending = Path(text).suffix.lower()
    if ending == ".zarr" or (local and Path(text).is_dir()):
        with warnings.catch_warnings():
            # xarray says so of each Zarr 3 store that is not consolidated, which few are.
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            check_store(
                text,
                path=options.get("group") or "",
                storage_options=options.get("storage_options"),
                zarr_format=options.get("zarr_format"),
            )
            stored: xr.Dataset = xr.open_zarr(text, **{"decode_coords": "all", "mask_and_scale": False, **options})
            return stored
    if ending in (".nc", ".nc4", ".h5"):
        try:
            found = xr.open_dataset(text, **{"chunks": {}, "decode_coords": "all", "mask_and_scale": False, **options})
        except (ValueError, ImportError) as error:
            if find_spec("netCDF4") is None:
                raise MissingExtraError(f"{text} wants a reader of netCDF: pip install netCDF4") from error
            raise
        return found.assign({name: _unsigned(v) for name, v in found.data_vars.items()})
    if ending in (".tif", ".tiff"):
        import rioxarray

        found = rioxarray.open_rasterio(text, **{"chunks": {"x": 1024, "y": 1024}, **options})
        assert isinstance(found, xr.DataArray)
        return found
    if ending in (".json", ".geojson"):
        from deo_cube.cube.stac import load_cube

        return load_cube(text, **options)
    raise ArgumentError(
        f"cannot tell what {text} is: wanted a name that ends in .zarr, .nc, .tif, or .json (STAC items)"
    )


def _unsigned(variable: xr.DataArray) -> xr.DataArray:
    """Undo netCDF 3's way of keeping unsigned numbers in signed types, which undecoded variables still show."""
    if str(variable.attrs.get("_Unsigned", "")).lower() != "true" or variable.dtype.kind != "i":
        return variable
    kind = f"u{variable.dtype.itemsize}"
    out = variable.astype(kind)
    out.attrs = {k: v for k, v in variable.attrs.items() if k != "_Unsigned"}
    if "_FillValue" in out.attrs:
        out.attrs["_FillValue"] = np.asarray(out.attrs["_FillValue"]).astype(kind).item()
    return out
