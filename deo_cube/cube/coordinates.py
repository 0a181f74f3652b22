"""Convert coordinates and attributes to types that Zarr and netCDF can hold, so that writing a result does not fail.

Values of plain types are unchanged. Strings, bytes, categories and mixed scalars become text; mappings, lists and sets
JSON text; nullable numbers and None among numbers floats; datetimes and periods dates in UTC. Other values are left
out, with a warning that names them.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.plain import is_missing, jsonable, plain, text, writable
from deo_cube.cube.times import dating, is_cftime, of_cftime, of_units, read_times, to_numpy

__all__ = ["along_time", "storable_attrs", "storable_coordinates", "storable_variable"]

Array = NDArray[Any]

#: Names in a store that coordinates cannot take.
_TAKEN = ("embeddings", "progress", "valid", "embedding", "spatial_ref")
#: Attributes by which readers decode values. They were applied when the coordinate was read, or are applied here.
_DECODING = ("_FillValue", "missing_value", "scale_factor", "add_offset", "_Unsigned")
#: Attributes that name other variables, or describe how a variable is stored.
_STORAGE = (
    "coordinates",
    "grid_mapping",
    "bounds",
    "cell_measures",
    "ancillary_variables",
    "dtype",
)


def along_time(cube: xr.Dataset | xr.DataArray, time: str | None, taken: tuple[str, ...]) -> dict[str, xr.Variable]:
    """Return the coordinates along time for a result: `time` itself, and the others by name.

    Parameters
    ----------
    cube : Dataset or DataArray
        With its small coordinates in memory.
    time : str, optional
        Name of the cube's time dimension; the result's is "time". None: only a scalar `time` is kept.
    taken : tuple of str
        Names that the result has already.

    Warns
    -----
    UserWarning
        Once, if labels changed by more than notation, or something was left out.
    """
    notes: list[str] = []
    coordinates: dict[str, xr.Variable] = {}
    source = "time" if time is None else dating(cube, time)
    dims = () if time is None else ("time",)
    if source in cube.coords and cube.coords[source].ndim == len(dims):
        variable = _time_variable(cube, source, dims, notes, note_labels=True)
        if variable is not None:
            coordinates["time"] = variable
    left: list[str] = []
    multi = isinstance(cube.indexes.get(time), pd.MultiIndex)
    for name, coord in cube.coords.items() if time is not None else ():
        if coord.dims != (time,) or name == source or (name == time and multi):
            continue
        clash = name == "time" or name in taken or name in _TAKEN
        stored = None if clash or not _is_name(name) else storable_variable(coord.variable, str(name), left)
        if stored is not None:
            coordinates[str(name)] = xr.Variable(("time",), stored.data, stored.attrs)
        else:
            left.append(f"{name} ({'the name is taken' if clash else _reason(coord)})")
    _warn(notes, left, 5)
    return coordinates


def _time_variable(
    cube: xr.Dataset | xr.DataArray, name: str, dims: tuple[str, ...], notes: list[str], *, note_labels: bool
) -> xr.Variable | None:
    # `note_labels`: also note that labels are not dates. `embed` does, a verb on its result does not repeat it.
    if isinstance(cube.indexes.get(name), pd.MultiIndex):
        levels = ", ".join(map(str, cube.indexes[name].names))
        notes.append(
            f"the multi-index along {name!r} is replaced by its levels ({levels}), as by cube.reset_index({name!r})"
        )
        return None
    times = read_times(cube.coords[name].variable, name)
    dtype = cube.coords[name].dtype
    if times.note and (note_labels or (times.dated and not (isinstance(dtype, np.dtype) and dtype.kind == "M"))):
        notes.append(times.note)
    if times.values is None:
        return None
    attrs = {k: v for k, v in cube.coords[name].attrs.items() if k not in ("units", "calendar", *_DECODING)}
    left: list[str] = []
    stored = storable_variable(xr.Variable(dims, times.values, attrs), name, left)
    notes.extend(f"left out: {n}" for n in left)
    return stored


def storable_coordinates(array: xr.DataArray) -> xr.DataArray:
    """Return `array` with coordinates and attributes that a store can hold. Those along y or x are unchanged.

    Encodings are dropped, since they describe how another file was stored.

    Warns
    -----
    UserWarning
        Once, if something was left out.
    """
    notes: list[str] = []
    left: list[str] = []
    dissolved = [n for n in array.dims if isinstance(array.indexes.get(n), pd.MultiIndex)]
    coordinates: dict[Any, Any] = {}
    for name, coord in array.coords.items():
        if name in dissolved:
            continue
        if name in ("valid", "spatial_ref") or set(coord.dims) & set(array.dims[-2:]):
            coordinates[name] = coord.variable.drop_encoding()
            continue
        if name == "time" and coord.ndim < 2:
            variable = _time_variable(array, "time", coord.dims, notes, note_labels=False)
        else:
            valid_name = (_is_name(name) and name not in _TAKEN) or name in array.dims
            variable = storable_variable(coord.variable, str(name), left) if valid_name else None
            if variable is None:
                left.append(f"{name} ({_reason(coord)})")
        if variable is not None:
            coordinates[name] = variable
    for name in dissolved:
        notes.append(f"the multi-index along {name!r} is replaced by its levels, as by emb.reset_index({name!r})")
    attrs = storable_attrs(array.attrs, "embeddings", left)
    _warn(notes, left, 4)
    variable = array.variable.copy(deep=False)
    variable.attrs = attrs
    return xr.DataArray(variable, coords=coordinates, name=array.name)


def storable_variable(variable: xr.Variable, name: str, left: list[str]) -> xr.Variable | None:
    """Convert a coordinate to a type that Zarr and netCDF hold, without encoding; None where there is none.

    The names of attributes that cannot be stored are appended to `left`.
    """
    values: Array | None = to_numpy(variable)
    attrs = {k: v for k, v in variable.attrs.items() if k not in _STORAGE}
    assert values is not None
    kind = values.dtype.kind
    if kind in "iuf":
        values = _decoded(values, attrs)
        if "since" in str(attrs.get("units", "")):
            decoded = of_units(values.ravel(), attrs)
            values = values if decoded is None else decoded.reshape(values.shape)
        values = values.astype("f8") if values.dtype.itemsize > 8 else values
    elif kind in "USTO":
        values = _of_objects(values)
    elif kind not in "bMm":
        return None
    if values is None:
        return None
    # A reader decodes numbers by units of dates: the values here are decoded already, and others cannot be.
    dated = values.dtype.kind in "Mm" or "calendar" in attrs or "since" in str(attrs.get("units", ""))
    dated = dated or (values.dtype.kind == "O" and values.size > 0 and is_cftime(values.ravel()[0]))
    other_attrs = {k: v for k, v in attrs.items() if k not in _DECODING and not (dated and k in ("units", "calendar"))}
    return xr.Variable(variable.dims, values, storable_attrs(other_attrs, name, left))


def _decoded(values: Array, attrs: Mapping[str, Any]) -> Array:
    """Apply scale, offset and fill value of the attributes to numbers, as a reader of the store would."""
    decoding = {k: attrs[k] for k in _DECODING if k in attrs and k != "_Unsigned"}
    if not decoding:
        return values
    try:
        fills = [float(np.ravel(decoding[k])[0]) for k in ("_FillValue", "missing_value") if k in decoding]
        scale, offset = (
            float(np.ravel(decoding.get(k, v))[0]) for k, v in (("scale_factor", 1.0), ("add_offset", 0.0))
        )
    except (TypeError, ValueError, IndexError):
        return values
    missing = np.isin(values, [f for f in fills if not math.isnan(f)])
    if not missing.any() and (scale, offset) == (1.0, 0.0):
        return values
    return np.where(missing, np.nan, values * scale + offset)


def _of_objects(values: Array) -> Array | None:
    """Convert strings, bytes and objects to numbers, dates or text, if all of them are; else None."""
    flat = [plain(v) for v in (values.ravel() if values.dtype.kind == "O" else values.ravel().tolist())]
    present = [v for v in flat if not is_missing(v)]
    out: Array
    if not present:
        out = np.full(len(flat), np.nan)
    elif all(isinstance(v, bool) for v in present) and len(present) == len(flat):
        out = np.array(flat, bool)
    elif all(isinstance(v, (bool, int, float)) for v in present):
        number = np.array([np.nan if is_missing(v) else v for v in flat])
        out = number.astype("f8") if number.dtype.kind == "O" else number
    elif not any(isinstance(v, str) for v in present) and all(isinstance(v, dt.date) for v in present):
        stored = np.empty(len(flat), object)
        stored[:] = flat
        times = read_times(xr.Variable(("t",), stored)).values
        assert times is not None
        out = times
    elif all(isinstance(v, np.timedelta64 | dt.timedelta) for v in present):
        out = pd.TimedeltaIndex([pd.NaT if is_missing(v) else v for v in flat]).as_unit("ns").to_numpy()
    elif all(is_cftime(v) for v in flat):
        standard = of_cftime(values.ravel())
        return values if standard is None else standard.reshape(values.shape)
    else:
        words = [text(v) for v in flat]
        if any(w is None for w in words):
            return None
        out = np.empty(len(words), object)
        out[:] = words
    return out.reshape(values.shape)


def storable_attrs(attrs: Mapping[Any, Any], owner: str, left: list[str]) -> dict[str, Any]:
    """Convert attributes to types that both JSON and netCDF hold: text, finite numbers, and lists of one of these.

    True and False become 1 and 0, None is omitted, dates become ISO text, mappings and nested lists JSON text.
    The names of others are appended to `left`.
    """
    storable: dict[str, Any] = {}
    for key, value in attrs.items():
        try:
            simple = jsonable(value)
        except (TypeError, ValueError, RecursionError):
            left.append(f"attribute {key!r} of {owner} ({type(value).__name__})")
            continue
        if simple is None:
            continue
        if isinstance(simple, bool):
            simple = int(simple)
        elif isinstance(simple, int) and not -(2**63) <= simple < 2**63:
            simple = str(simple)
        elif isinstance(simple, dict) or (isinstance(simple, list) and not _is_flat(simple)):
            simple = json.dumps(simple, sort_keys=True)
        storable[writable(str(key))] = writable(simple) if isinstance(simple, str) else simple
    return storable


def _is_flat(values: list[Any]) -> bool:
    if not values:
        return True
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 2**63 for v in values)
    return numbers or all(isinstance(v, str) for v in values)


def _is_name(name: Any) -> bool:
    """Return whether a store and a netCDF file can have a coordinate of this name."""
    return isinstance(name, str) and bool(re.fullmatch(r"[^\W_][^/\s]*|_[^/\s_][^/\s]*", name)) and name != "zarr.json"


def _reason(coord: xr.DataArray) -> str:
    """Return why a coordinate cannot be stored."""
    if not _is_name(coord.name) or coord.name in _TAKEN:
        return "a store cannot have an array of this name"
    values: Any = np.ravel(np.asarray(coord.values, dtype=object)) if coord.dtype == object else []
    return f"{type(values[0]).__name__ if len(values) else coord.dtype} cannot be stored"


def _warn(notes: list[str], left: list[str], stacklevel: int) -> None:
    if left:
        notes = [*notes, f"left out of the result: {', '.join(left)}"]
    if notes:
        warnings.warn("; ".join(notes), UserWarning, stacklevel=stacklevel)
