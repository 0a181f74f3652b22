"""Refuse what is not a cube or not embeddings, with the call that makes one of it.

`cube_of` and `embeddings_of` return their argument where it is of the right kind; every verb begins with one of them.
What a cube holds (bands, units, grid) is decided later, from names and metadata.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.errors import ArgumentError, ArgumentTypeError

__all__ = ["cube_of", "embeddings_of", "refuse_foreign"]

_BAND_DIMS = {"band", "bands", "channel", "variable"}
_DIMS = 'dims=("time", "band", "y", "x")'


def cube_of(given: Any, *, argument: str = "cube") -> xr.Dataset | xr.DataArray:
    """Return `given`, if it is an xarray object that is not embeddings.

    Of a Dataset whose only layer is an array with a band dimension, the array: such Datasets are what a DataArray is
    stored as, and opened as from a shell.

    Raises
    ------
    ArgumentTypeError
        For paths, NumPy and Dask arrays, DataTrees, lists, tables, STAC items and anything else.
    ArgumentError
        For embeddings.
    """
    if not isinstance(given, xr.Dataset | xr.DataArray):
        raise ArgumentTypeError(
            f"{argument} must be an xarray Dataset or DataArray, got {_kind(given)}. {_cube_call(given)}"
        )
    if _holds_embeddings(given):
        single = isinstance(given, xr.DataArray)
        named = "" if single else "emb = ds['embeddings'] and "
        raise ArgumentError(
            f"{argument} must be a cube of Sentinel-2 bands, got embeddings (dimensions "
            f"{tuple(map(str, given.dims))}), which were made from one already. Use them: {named}emb.deo.pca_rgb(), "
            "emb.deo.similar(to=...), emb.deo.to_zarr(path); or pass the cube that they were made from"
        )
    return _only_stack(given) if isinstance(given, xr.Dataset) else given


def _only_stack(ds: xr.Dataset) -> xr.Dataset | xr.DataArray:
    """The only array with a band dimension of a Dataset that has no other layer; else the Dataset."""
    stacks = [n for n, v in ds.data_vars.items() if v.ndim > 2 and _BAND_DIMS & set(v.dims)]
    if len(stacks) != 1:
        return ds
    dims = set(ds[stacks[0]].dims)
    if any(len(dims & set(v.dims)) > 1 for n, v in ds.data_vars.items() if n != stacks[0]):
        return ds
    # A grid mapping that was opened as a variable stays beside the array, and so does what the Dataset says.
    beside = ds.set_coords([n for n, v in ds.data_vars.items() if v.ndim == 0])
    array = beside[stacks[0]]
    return array.assign_attrs({**ds.attrs, **array.attrs})


def embeddings_of(given: Any, *, argument: str = "emb") -> xr.DataArray:
    """Return `given`, if it is a DataArray with a dimension `embedding`; of a Dataset with one such array, the array.

    Raises
    ------
    ArgumentTypeError
        For Datasets with none or several, paths, NumPy and Dask arrays, DataTrees, lists, tables and anything else.
    ArgumentError
        For a DataArray without a dimension `embedding`, a cube among them.
    """
    if isinstance(given, xr.Dataset):
        held = [str(n) for n, v in given.data_vars.items() if "embedding" in v.dims]
        if len(held) > 1:
            raise ArgumentTypeError(
                f"{argument} must be one DataArray of embeddings, got a Dataset that holds {len(held)}: pass one of "
                + ", ".join(f"ds[{n!r}]" for n in held[:4])
            )
        if not held:
            raise ArgumentTypeError(
                f"{argument} must be a DataArray of embeddings (time, embedding, y, x), got a Dataset with the "
                f"variables {_listed(given.data_vars)}. Embed it first: emb = ds.deo.embed()"
            )
        given = given[held[0]]
    if not isinstance(given, xr.DataArray):
        raise ArgumentTypeError(
            f"{argument} must be a DataArray of embeddings, got {_kind(given)}. {_embeddings_call(given)}"
        )
    if "embedding" not in given.dims:
        raise ArgumentError(
            f"{argument} must have a dimension 'embedding', found {tuple(map(str, given.dims))}: embed the cube first, "
            "emb = cube.deo.embed(); of vectors from elsewhere rename their dimension: "
            "array.rename(band='embedding')"
        )
    refuse_foreign(given.variable, argument, argument=argument)
    return given


def refuse_foreign(variable: xr.Variable, name: str, *, argument: str = "cube") -> None:
    """Refuse arrays that are neither NumPy's nor Dask's nor lazily read by xarray: sparse, CuPy, Pint, Cubed, ...

    Raises
    ------
    ArgumentTypeError
        With the call that makes NumPy arrays of them.
    """
    data: Any = variable._data
    inner = data._meta if type(data).__module__.startswith("dask.") else data
    foreign = hasattr(inner, "__array_function__") or hasattr(inner, "__array_namespace__")
    if not foreign or isinstance(inner, np.ndarray):
        return
    library = type(inner).__module__.partition(".")[0]
    convert = {
        "cubed": f"{argument}.as_numpy(), or open it on Dask: xr.open_zarr(path, chunked_array_type='dask')",
        "pint": f"{argument}.pint.dequantify(), which keeps the units as attributes",
    }.get(library, f"{argument}.as_numpy()")
    where = f" of {name!r}" if name and name != argument else ""
    raise ArgumentTypeError(
        f"{argument} must hold NumPy or Dask arrays; those{where} are of {library} ({type(inner).__name__}). "
        f"Convert them: {argument} = {convert}"
    )


def _holds_embeddings(given: xr.Dataset | xr.DataArray) -> bool:
    if isinstance(given, xr.DataArray):
        return "embedding" in given.dims
    return "embeddings" in given.data_vars and "embedding" in given["embeddings"].dims


def _kind(given: Any) -> str:
    if given is None:
        return "None"
    name = f"{type(given).__module__}.{type(given).__qualname__}"
    name = name.removeprefix("builtins.").replace("pandas.core.frame", "pandas")
    if isinstance(given, str | os.PathLike):
        return f"the {'path' if isinstance(given, os.PathLike) else 'text'} {str(given)!r}"
    if isinstance(given, list | tuple) and given:
        return f"a {type(given).__name__} of {len(given)}, the first of type {type(given[0]).__name__}"
    shape = getattr(given, "shape", None)
    return f"{name} of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else name


def _cube_call(given: Any) -> str:
    """What makes a cube of it."""
    if isinstance(given, str | os.PathLike):
        return f"Open it first: deo_cube.open_cube({str(given)!r})"
    if isinstance(given, xr.DataTree):
        return _of_tree(given, "x")
    if _is_stac(given):
        return "Load the items first: deo_cube.load_cube(items)"
    if isinstance(given, list | tuple) and given and all(isinstance(g, xr.Dataset | xr.DataArray) for g in given):
        return (
            'Join dates: xr.concat(cubes, dim="time"); or bands: xr.merge(cubes) where they are Datasets, '
            'xr.concat(cubes, dim=pd.Index(["B02", ...], name="band")) where they are DataArrays'
        )
    if isinstance(given, xr.Variable):
        return "Give it coordinates: xr.DataArray(variable, coords={...})"
    if _is_table(given):
        return "Tables are labels: fit_head(emb, table, column=...). Load the cube of their place: deo_cube.load_cube"
    if _is_array(given):
        return (
            f"Name its dimensions, bands, coordinates and CRS: xr.DataArray(a, {_DIMS}, "
            'coords={"time": dates, "band": ["B02", ...], "y": y, "x": x}).rio.write_crs("EPSG:...")'
        )
    return "Open one: deo_cube.open_cube(path), deo_cube.load_cube(items), xarray.open_zarr(path)"


def _embeddings_call(given: Any) -> str:
    """What makes embeddings of it."""
    if isinstance(given, str | os.PathLike):
        return f"Open them first: deo_cube.open_embeddings({str(given)!r})"
    if isinstance(given, xr.DataTree):
        return _of_tree(given, "embedding")
    if isinstance(given, list | tuple) and given and all(isinstance(g, xr.DataArray) for g in given):
        return 'Join dates: xr.concat(embeddings, dim="time")'
    if _is_array(given):
        return (
            'Name its dimensions and coordinates: xr.DataArray(a, dims=("time", "embedding", "y", "x"), '
            'coords={"time": dates, "y": y, "x": x}).rio.write_crs("EPSG:...")'
        )
    return "Make them: emb = cube.deo.embed(); or open them: deo_cube.open_embeddings(path)"


def _of_tree(tree: xr.DataTree, dim: str) -> str:
    """The call that takes a Dataset out of a DataTree: of a group that has such a dimension, where there is one."""
    names = {"x": ("x", "X", "lon", "longitude", "easting")}.get(dim, (dim,))
    held = [node.path for node in tree.subtree if node.data_vars and set(names) & set(map(str, node.sizes))]
    call = f"tree[{held[0] if held else 'group'!r}].to_dataset()"
    others = f" (groups: {_listed(held)})" if len(held) > 1 else ""
    named = "['embeddings']" if dim == "embedding" else ""
    return f"Take the Dataset of one group: {call}{named}{others}"


def _is_stac(given: Any) -> bool:
    first = given[0] if isinstance(given, list | tuple) and given else given
    if isinstance(first, dict):
        return first.get("type") in ("Feature", "FeatureCollection") or "stac_version" in first
    return any(c.__module__.startswith(("pystac", "rustac")) for c in type(first).__mro__)


def _is_table(given: Any) -> bool:
    return any(c.__module__.startswith(("pandas.", "geopandas.")) for c in type(given).__mro__)


def _is_array(given: Any) -> bool:
    return hasattr(given, "shape") and hasattr(given, "dtype")


def _listed(names: Any) -> str:
    names = [str(n) for n in names]
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "") or "none"
