"""Check arguments, and return them as plain values: numbers, flags, choices, paths, cubes and embeddings.

Every check of a single value takes the argument's name first, as its caller writes it. All raise `ArgumentError` or
`ArgumentTypeError`. `cube_of` and `embeddings_of` return their argument where it is of the right kind, else the error
names the call that makes one of it; every verb begins with one of them. What a cube holds (bands, units, grid) is
decided later, from names and metadata.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from deo_cube.errors import ArgumentError, ArgumentTypeError, DeoCubeError, remedy
from deo_cube.packed import decoded_floats
from deo_cube.paths import local_path

__all__ = [
    "boolean",
    "choice",
    "integer",
    "number",
    "number_or",
    "path",
    "sequence",
    "cube_of",
    "embeddings_of",
    "refuse_foreign",
]

#: A size or count above this is a mistake: no array, cluster or model is as large, and arithmetic with it overflows.
LARGEST = 2**31 - 1


def integer(
    name: str,
    value: Any,
    *,
    minimum: int | None = 1,
    maximum: int = LARGEST,
    error: type[DeoCubeError] | None = None,
) -> int:
    """Return `value` as an int, if it is a whole number from `minimum` to `maximum`.

    NumPy integers are accepted; booleans, floats and text are not. `error` replaces the class of both errors.
    """
    try:
        if isinstance(value, bool) or type(value).__name__ in ("bool_", "bool"):
            raise TypeError
        whole = operator.index(value)
    except TypeError:
        raise (error or ArgumentTypeError)(f"{name} must be an integer, got {_short(value)}") from None
    if (minimum is not None and whole < minimum) or whole > maximum:
        raise (error or ArgumentError)(f"{name} must be {_range('an integer', minimum, maximum)}, got {_short(whole)}")
    return whole


def number(
    name: str,
    value: Any,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    infinite: bool = False,
) -> float:
    """Return `value` as a float, if it is finite, from `minimum` to `maximum`, and greater than `above`.

    Numbers of Python and NumPy are accepted; booleans and text are not. With `infinite` positive infinity is accepted
    too, which means no limit.
    """
    scalar = value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value
    if isinstance(scalar, bool) or not isinstance(scalar, Real):
        raise ArgumentTypeError(f"{name} must be a number, got {_short(value)}")
    try:
        real = float(scalar)
    except OverflowError:
        real = math.inf
    if infinite and real == math.inf:
        return real
    low, high = minimum is not None and real < minimum, maximum is not None and real > maximum
    if not math.isfinite(real) or low or high or (above is not None and real <= above):
        what = f"a finite number greater than {above:g}" if above is not None else "a finite number"
        raise ArgumentError(f"{name} must be {_range(what, minimum, maximum)}, got {_short(value)}")
    return real


def number_or(
    name: str, value: Any, words: Collection[str | None], *, finite: bool = True, several: bool = False
) -> None:
    """Check that `value` is one of `words` (strings or None) or a number; with `several`, or a sequence of numbers.

    ``finite=False`` accepts NaN and infinity.
    """
    listed = " or ".join(repr(w) for w in words)
    if value is None or isinstance(value, str):
        if value not in words:
            raise ArgumentError(f"{name} must be {listed} or a number, got {_short(value)}")
        return
    plain = getattr(value, "values", value) if several else value
    parts = list(plain) if several and isinstance(plain, Sequence | np.ndarray) and np.ndim(plain) == 1 else [value]
    for part in parts:
        if finite or not (isinstance(part, float) and not math.isfinite(part)):
            number(name, part)


def choice(name: str, value: Any, choices: Collection[str], *, error: type[DeoCubeError] = ArgumentError) -> str:
    """Return `value`, if it is one of the strings in `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise error(f"{name} must be one of {', '.join(map(repr, choices))}, got {_short(value)}")
    return value


def boolean(name: str, value: Any) -> bool:
    """Return `value` as a bool, if it is True or False (of Python or NumPy), or 1 or 0."""
    if isinstance(value, bool | np.bool_ | int | np.integer) and value in (0, 1):
        return bool(value)
    raise ArgumentTypeError(f"{name} must be True or False, got {_short(value)}")


def path(name: str, value: Any) -> Path:
    """Return `value` as a Path, ``~`` and ``file://`` expanded, if it is a string or a path, and not empty."""
    if not isinstance(value, str | os.PathLike):
        raise ArgumentTypeError(f"{name} must be a path, got {_short(value)}")
    if not str(value):
        raise ArgumentError(f"{name} must be a path, got an empty text")
    return local_path(value)


def sequence(name: str, value: Any, what: str) -> tuple[Any, ...]:
    """Return `value` as a tuple, if it is a list of `what` or another sequence, but not a string."""
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise ArgumentTypeError(f"{name} must be a list of {what}, got {_short(value)}")
    return tuple(value)


def _range(what: str, minimum: float | None, maximum: float | None) -> str:
    if minimum is None and maximum is None:
        return what
    if maximum is None or maximum == LARGEST:
        return f"{what}, at least {minimum}" if minimum is not None else f"{what}, at most {maximum}"
    return f"{what} from {minimum} to {maximum}" if minimum is not None else f"{what}, at most {maximum}"


def _short(value: Any) -> str:
    """Return a value as text for a message: its repr if that is short, else its type."""
    shape = getattr(value, "shape", ())
    if isinstance(shape, tuple) and shape:
        return f"an array of {type(value).__name__} with shape {shape}"
    try:
        text = repr(value)
    except Exception:
        text = ""
    return text if 0 < len(text) <= 60 and "\n" not in text else f"an object of type {type(value).__name__}"


# --- cubes and embeddings ---


_BAND_DIMS = {"band", "bands", "channel", "variable"}
_DIMS = 'dims=("time", "band", "y", "x")'


def cube_of(value: Any, *, argument: str = "cube") -> xr.Dataset | xr.DataArray:
    """Return `value`, if it is an xarray object that is not embeddings.

    A Dataset whose only layer is an array with a band dimension is replaced by that array: xarray stores a DataArray
    as such a Dataset.

    Raises
    ------
    ArgumentTypeError
        For paths, NumPy and Dask arrays, DataTrees (see `deo_cube.cube.esa.opened_cube`), lists, tables, STAC items and
        anything else.
    ArgumentError
        For embeddings.
    """
    if not isinstance(value, xr.Dataset | xr.DataArray):
        raise ArgumentTypeError(
            f"{argument} must be an xarray Dataset or DataArray, got {_kind(value)}. {_cube_call(value)}"
        )
    if _holds_embeddings(value):
        single = isinstance(value, xr.DataArray)
        named = "" if single else "emb = ds['embeddings'] and "
        verbs = remedy(
            f"{named}emb.deo.pca_rgb(), emb.deo.similar(to=...), emb.deo.to_zarr(path)",
            "deo-cube pca, similar, sample or segment",
        )
        raise ArgumentError(
            f"{argument} must be a cube of Sentinel-2 bands, got embeddings (dimensions "
            f"{tuple(map(str, value.dims))}), which were made from one already. Use them: {verbs}; "
            "or pass the cube that they were made from"
        )
    return _only_stack(value) if isinstance(value, xr.Dataset) else value


def _only_stack(ds: xr.Dataset) -> xr.Dataset | xr.DataArray:
    """Return the only array with a band dimension of a Dataset that has no other layer; else the Dataset."""
    stacks = [n for n, v in ds.data_vars.items() if v.ndim > 2 and _BAND_DIMS & set(v.dims)]
    if len(stacks) != 1:
        return ds
    dims = set(ds[stacks[0]].dims)
    if any(len(dims & set(v.dims)) > 1 for n, v in ds.data_vars.items() if n != stacks[0]):
        return ds
    # A grid mapping that was opened as a variable is kept as a coordinate, and so are the attributes of the Dataset.
    with_scalars = ds.set_coords([n for n, v in ds.data_vars.items() if v.ndim == 0])
    array = with_scalars[stacks[0]]
    return array.assign_attrs({**ds.attrs, **array.attrs})


def embeddings_of(value: Any, *, argument: str = "emb") -> xr.DataArray:
    """Return `value`, if it is a DataArray with a dimension `embedding`, or the one such array of a Dataset.

    Raises
    ------
    ArgumentTypeError
        For Datasets with none or several, paths, NumPy and Dask arrays, DataTrees, lists, tables and anything else.
    ArgumentError
        For a DataArray without a dimension `embedding`, a cube among them.
    """
    if isinstance(value, xr.Dataset):
        names = [str(n) for n, v in value.data_vars.items() if "embedding" in v.dims]
        if len(names) > 1:
            raise ArgumentTypeError(
                f"{argument} must be one DataArray of embeddings, got a Dataset that holds {len(names)}: pass one of "
                + ", ".join(f"ds[{n!r}]" for n in names[:4])
            )
        if not names:
            raise ArgumentTypeError(
                f"{argument} must be a DataArray of embeddings (time, embedding, y, x), got a Dataset with the "
                f"variables {_listed(value.data_vars)}. Embed it first: "
                + remedy("emb = ds.deo.embed()", "deo-cube embed CUBE OUT")
            )
        value = value[names[0]]
    if not isinstance(value, xr.DataArray):
        raise ArgumentTypeError(
            f"{argument} must be a DataArray of embeddings, got {_kind(value)}. {_embeddings_call(value)}"
        )
    if "embedding" not in value.dims:
        raise ArgumentError(
            f"{argument} must have a dimension 'embedding', found {tuple(map(str, value.dims))}: embed the cube first, "
            + remedy("emb = cube.deo.embed()", "deo-cube embed CUBE OUT")
            + "; for vectors from elsewhere rename their dimension: array.rename(band='embedding')"
        )
    refuse_foreign(value.variable, argument, argument=argument)
    # Here, and not where vectors are read: mosaics and exports take embeddings as they are stored.
    return decoded_floats(value, argument)


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


def _holds_embeddings(value: xr.Dataset | xr.DataArray) -> bool:
    if isinstance(value, xr.DataArray):
        return "embedding" in value.dims
    return "embeddings" in value.data_vars and "embedding" in value["embeddings"].dims


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    name = f"{type(value).__module__}.{type(value).__qualname__}"
    name = name.removeprefix("builtins.").replace("pandas.core.frame", "pandas")
    if isinstance(value, str | os.PathLike):
        return f"the {'path' if isinstance(value, os.PathLike) else 'text'} {str(value)!r}"
    if isinstance(value, list | tuple) and value:
        return f"a {type(value).__name__} of {len(value)}, the first of type {type(value[0]).__name__}"
    shape = getattr(value, "shape", None)
    return f"{name} of shape {tuple(shape)}" if isinstance(shape, tuple) and shape else name


def _cube_call(value: Any) -> str:
    """Return the advice that makes a cube of a value."""
    if isinstance(value, str | os.PathLike):
        return f"Open it first: deo_cube.open_cube({str(value)!r})"
    if isinstance(value, xr.DataTree):
        return _of_tree(value, "x")
    if _is_stac(value):
        return "Load the items first: deo_cube.load_cube(items)"
    if isinstance(value, list | tuple) and value and all(isinstance(g, xr.Dataset | xr.DataArray) for g in value):
        return (
            'Join dates: xr.concat(cubes, dim="time"); or bands: xr.merge(cubes) where they are Datasets, '
            'xr.concat(cubes, dim=pd.Index(["B02", ...], name="band")) where they are DataArrays'
        )
    if isinstance(value, xr.Variable):
        return "Give it coordinates: xr.DataArray(variable, coords={...})"
    if _is_table(value):
        return "Tables are labels: fit_head(emb, table, column=...). Load the cube of their place: deo_cube.load_cube"
    if _is_array(value):
        return (
            f"Name its dimensions, bands, coordinates and CRS: xr.DataArray(a, {_DIMS}, "
            'coords={"time": dates, "band": ["B02", ...], "y": y, "x": x}).rio.write_crs("EPSG:...")'
        )
    return "Open one: deo_cube.open_cube(path), deo_cube.load_cube(items), xarray.open_zarr(path)"


def _embeddings_call(value: Any) -> str:
    """Return the advice that makes embeddings of a value."""
    if isinstance(value, str | os.PathLike):
        return f"Open them first: deo_cube.open_embeddings({str(value)!r})"
    if isinstance(value, xr.DataTree):
        return _of_tree(value, "embedding")
    if isinstance(value, list | tuple) and value and all(isinstance(g, xr.DataArray) for g in value):
        return 'Join dates: xr.concat(embeddings, dim="time")'
    if _is_array(value):
        return (
            'Name its dimensions and coordinates: xr.DataArray(a, dims=("time", "embedding", "y", "x"), '
            'coords={"time": dates, "y": y, "x": x}).rio.write_crs("EPSG:...")'
        )
    return "Make them: emb = cube.deo.embed(); or open them: deo_cube.open_embeddings(path)"


def _of_tree(tree: xr.DataTree, dim: str) -> str:
    """Return the call that takes a Dataset out of a DataTree, from a group that has `dim` where there is one."""
    names = {"x": ("x", "X", "lon", "longitude", "easting")}.get(dim, (dim,))
    groups = [node.path for node in tree.subtree if node.data_vars and set(names) & set(map(str, node.sizes))]
    call = f"tree[{groups[0] if groups else 'group'!r}].to_dataset()"
    others = f" (groups: {_listed(groups)})" if len(groups) > 1 else ""
    named = "['embeddings']" if dim == "embedding" else ""
    return f"Take the Dataset of one group: {call}{named}{others}"


def _is_stac(value: Any) -> bool:
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, dict):
        return first.get("type") in ("Feature", "FeatureCollection") or "stac_version" in first
    return any(c.__module__.startswith(("pystac", "rustac")) for c in type(first).__mro__)


def _is_table(value: Any) -> bool:
    return any(c.__module__.startswith(("pandas.", "geopandas.")) for c in type(value).__mro__)


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _listed(names: Any) -> str:
    names = [str(n) for n in names]
    return ", ".join(names[:6]) + (f", ... ({len(names)})" if len(names) > 6 else "") or "none"
