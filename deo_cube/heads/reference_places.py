"""Read a map of classes or of a quantity, and the reference places on it."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube.categories import own_classes
from deo_cube.errors import ArgumentError, ArgumentTypeError, LabelsError, MissingCRSError, naming, remedy
from deo_cube.heads.classes import NO_CLASS, Classes
from deo_cube.heads.geometries import apply, cells_of, clean, into_grid, north_up
from deo_cube.heads.labels import outside_message, rasterize_labels
from deo_cube.heads.rasters import USUAL_FILLS, legend_of_attrs, legend_of_file, nodata_values, unstated_fills
from deo_cube.heads.regression import rasterize_targets
from deo_cube.heads.tables import form_of, parsed_crs, read_table
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.packed import decoded_floats, scale_and_offset
from deo_cube.paths import local_path, not_found, reading

__all__ = ["ReferencePlaces", "one_time", "read_map", "reference_places", "values_at"]

Array = NDArray[Any]


def read_map(map_: Any, time: Any, argument: str = "map") -> tuple[xr.DataArray, Classes | None]:
    """Return a map (y, x) and its classes; None for a quantity. Classes are uint8, 255 where there is none.

    Errors name `argument`.
    """
    array = _one_layer(map_, argument)
    if "time" in array.dims:
        array = one_time(array, time)
    y, x = spatial_dims(array)
    others = [d for d in array.dims if d not in (y, x)]
    array = array.squeeze([d for d in others if array.sizes[d] == 1], drop=True)
    if array.ndim != 2:
        raise ArgumentError(
            f"{argument} must have the dimensions y and x, found {array.dims}: select one index of the others"
        )
    array = array.transpose(y, x)
    if "flag_values" not in array.attrs and array.dtype.kind not in "fiub":
        raise ArgumentTypeError(f"{argument} must hold classes or numbers, got dtype {array.dtype}")
    if "flag_values" not in array.attrs and (array.dtype.kind == "f" or scale_and_offset(array) != (1.0, 0.0)):
        return _quantity(array, argument), None
    return _classes(array, argument)


def _one_layer(map_: Any, argument: str) -> xr.DataArray:
    array = _opened(map_, argument)
    if isinstance(array, xr.Dataset):
        names = [str(k) for k, v in array.data_vars.items() if v.ndim >= 2]
        if len(names) != 1:
            raise ArgumentTypeError(f"{argument} must be one layer, got a Dataset with {names}: pass one, ds[name]")
        array = array[names[0]]
    if not isinstance(array, xr.DataArray):
        raise ArgumentTypeError(f"{argument} must be a DataArray or the path of a map, got {type(map_).__name__}")
    if {"class", "embedding"} & set(array.dims):
        call = "probabilities" if "class" in array.dims else "embeddings"
        fix = remedy("use head.predict(emb)", "map them first, deo-cube segment STORE HEAD OUT")
        raise ArgumentTypeError(f"{argument} must be classes or a quantity (y, x), got {call}: {fix}")
    return own_classes(array)


def _quantity(array: xr.DataArray, argument: str) -> xr.DataArray:
    """Return a map of numbers as floats, decoded where it states a scale, NaN where there is none."""
    array = decoded_floats(array, argument)
    fill = array.attrs.get("_FillValue")
    known = array if fill is None or np.isnan(fill) else array.where(array != fill)
    if array.dtype.kind == "f":
        return known
    scale, offset = scale_and_offset(array)
    attrs = {k: v for k, v in array.attrs.items() if k not in ("scale_factor", "add_offset", "_FillValue")}
    return (known.astype("float64") * scale + offset).drop_attrs(deep=False).assign_attrs(attrs)


def _classes(array: xr.DataArray, argument: str) -> tuple[xr.DataArray, Classes]:
    """Return a map of classes as uint8, 255 where there is none, and its classes.

    Codes beyond 0 to 254 are numbered in their order; `flag_values` of the result are the codes of the map.
    """
    attrs = array.attrs
    legend = legend_of_attrs(attrs)
    fill = attrs.get("_FillValue", array.encoding.get("_FillValue"))
    flags = attrs.get("flag_values")
    flagged = None if flags is None else sorted({int(v) for v in np.atleast_1d(flags)} - {fill})
    if array.dtype != np.uint8 or NO_CLASS in (flagged or ()):
        array = (array.fillna(_MISSING) if array.dtype.kind == "f" else array).astype("int64")
    missing = NO_CLASS if array.dtype == np.uint8 else _MISSING
    array = array if fill is None or np.isnan(fill) or fill == missing else array.where(array != fill, missing)
    codes = flagged if flagged is not None else _codes_in(array)
    if not codes:
        raise ArgumentError(f"{argument} must hold classes, all its values are missing")
    if len(codes) > NO_CLASS:
        raise ArgumentError(f"{argument} must hold at most {NO_CLASS} classes, found {len(codes)} different values")
    names = tuple(legend.names.get(c, str(c)) for c in codes)
    own, colors = codes, dict(legend.colors)
    if not 0 <= codes[0] <= codes[-1] < NO_CLASS:
        array = xr.apply_ufunc(
            _positions_of,
            array,
            kwargs={"codes": codes},
            dask="parallelized",
            output_dtypes=[np.uint8],
            keep_attrs=True,
        )
        own, colors = list(range(len(codes))), {i: colors[c] for i, c in enumerate(codes) if c in colors}
    elif array.dtype != np.uint8:
        array = array.where((array >= 0) & (array < NO_CLASS), NO_CLASS).astype("uint8")
    classes = Classes(tuple(own), names)
    return array.assign_attrs(attrs | {"flag_values": codes}), classes.coloured(colors) if colors else classes


#: Stands for a missing class among integers of any size.
_MISSING = -(2**62)


def _codes_in(array: xr.DataArray) -> list[int]:
    """Return the classes that a map without flags holds; values that usually mark no class are none."""
    codes = [int(v) for v in np.unique(array.values) if v != _MISSING and int(v) not in USUAL_FILLS]
    return codes[:-1] if codes and codes[-1] == NO_CLASS else codes


def _positions_of(values: Array, codes: list[int]) -> Array:
    """Return the position of each value among increasing codes; 255 for others."""
    at = np.minimum(np.searchsorted(codes, values), len(codes) - 1)
    return np.where(np.asarray(codes)[at] == values, at, NO_CLASS).astype("uint8")


def _opened(map_: Any, argument: str) -> Any:
    """Return the map at a path, as it is stored; anything else as it is."""
    if not isinstance(map_, str | os.PathLike):
        return map_
    path = local_path(map_)
    if not path.exists():
        raise not_found(argument, path, "a map: .tif, .nc, or .zarr")
    if path.suffix.lower() in (".nc", ".h5", ".hdf5"):
        with reading(argument, path, "a map"):
            return xr.open_dataset(path, mask_and_scale=False, decode_coords="all", chunks={})
    if path.is_dir():
        with warnings.catch_warnings(), reading(argument, path, "a map, as segment writes it"):
            warnings.filterwarnings("ignore", message="Failed to open Zarr store with consolidated metadata")
            opened = xr.open_zarr(path, mask_and_scale=False, decode_coords="all")
        valid = [v for v in opened.data_vars if v not in ("valid", "spatial_ref")]
        return opened[valid]
    import rasterio
    import rioxarray

    with reading(argument, path, "a map"):
        array = rioxarray.open_rasterio(path, chunks={"y": 2048, "x": 2048})
    if not isinstance(array, xr.DataArray) or array.sizes["band"] != 1:
        raise ArgumentError(
            f"{argument} must have one band, found several in {path}: "
            + remedy(
                "pass rioxarray.open_rasterio(path)[0]",
                "write one of them to a file, gdal_translate -b 1 MAP ONE.tif",
            )
        )
    with rasterio.open(path) as file:
        legend = legend_of_file(file)
    array = array.isel(band=0, drop=True)
    if legend.names and array.dtype.kind in "iu":
        codes = sorted(legend.names)
        meanings = " ".join(re.sub(r"\s+", "_", legend.names[c]) for c in codes)
        array.attrs |= {"flag_values": np.array(codes), "flag_meanings": meanings}
        if set(legend.colors) >= set(codes):
            array.attrs["flag_colors"] = " ".join(legend.colors[c] for c in codes)
    return array


def one_time(array: xr.DataArray, time: Any) -> xr.DataArray:
    """Return one date of a map: `time`, or the only one.

    Raises
    ------
    ArgumentError
        If there are several dates, and `time` does not choose one.
    """
    if time is not None:
        try:
            selected = array.sel(time=time) if not isinstance(time, int) else array.isel(time=time)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            known = ", ".join(str(t)[:10] for t in array["time"].values[:6])
            raise ArgumentError(f"time must be one of the dates of the map, {known}; got {time!r:.60}") from error
        if selected.sizes.get("time", 1) == 1:
            return selected.squeeze("time", drop=True) if "time" in selected.dims else selected.drop_vars("time")
        array = selected
    if array.sizes["time"] == 1:
        return array.isel(time=0, drop=True)
    dates = [str(t)[:10] for t in array["time"].values[:6]]
    raise ArgumentError(f"time must be passed, one of the {array.sizes['time']} dates of the map: {', '.join(dates)}")


# ---- the reference --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReferencePlaces:
    """Reference places on the map.

    Parameters
    ----------
    rows, cols : (n,) int
        Cells of the map.
    truth : (n,) int or float
        Position of the reference class among `classes`, or the quantity.
    mapped : (n,) int or float
        The same of the map.
    x, y : (n,) float
    clusters : (n,) int or None
        Polygon of each place.
    names, colors : tuple of str
        Of the classes of the map, then of those that only the reference has; empty for a quantity.
    census : bool
        Whether the reference is a raster.
    left_out : int
        Places where the map has no value.
    by_number : tuple of str
        Named classes of the map that numbers of the reference were taken for: "1 trees".
    """

    rows: Array
    cols: Array
    truth: Array
    mapped: Array
    x: Array
    y: Array
    clusters: Array | None
    names: tuple[str, ...]
    colors: tuple[str, ...]
    census: bool
    left_out: int
    by_number: tuple[str, ...] = ()


def reference_places(
    reference: Any, drawn: xr.DataArray, classes: Classes | None, options: Mapping[str, Any], mapping: Any
) -> ReferencePlaces:
    """Return the places of a reference where the map has a value.

    Parameters
    ----------
    reference : table, path, dict, DataArray or list
    drawn : DataArray
        The map, as `read_map` returns it.
    classes : Classes or None
        Its classes; None for a quantity.
    options : mapping
        column, layer, crs and nodata of the reference.
    mapping : mapping or None
        Class of the map for a class of the reference.

    Raises
    ------
    LabelsError
        If no place is on the map, or a class of the reference is not one of the map.
    """
    if mapping is not None and not isinstance(mapping, Mapping):
        raise ArgumentTypeError(f"mapping must be a dict of classes, got {type(mapping).__name__}")
    form = form_of(reference, "reference")
    clusters: Array | None = None
    if form == "raster":
        rows, cols, values = _of_raster(reference, drawn, classes, options)
    else:
        rows, cols, values, clusters = _of_table(reference, form, drawn, options)
    keep = np.ones(len(rows), bool)
    extra: tuple[str, ...] = ()
    by_number: tuple[str, ...] = ()
    if classes is not None:
        values, extra, by_number = _positions(values, classes, drawn.attrs["flag_values"], mapping)
        keep = values >= 0
    else:
        values = _quantities(values)
        nodata = nodata_values(options["nodata"])
        fills = [] if nodata == () else unstated_fills(values[~np.isin(values, list(nodata or ()))])
        if fills:
            marks = ", ".join(f"{v:.17g}" for v in sorted({*fills, *(nodata or ())}))
            raise LabelsError(
                f"reference holds {', '.join(f'{v:.17g}' for v in fills)}, far from all others, which usually marks a "
                f"missing value: pass nodata=[{marks}], or nodata=() if it is a value"
            )
        keep = np.isfinite(values)
    y, x = spatial_dims(drawn)
    index = {y: xr.DataArray(rows, dims="place"), x: xr.DataArray(cols, dims="place")}
    mapped = np.asarray(drawn.isel(index).values)
    if classes is not None:
        lookup = np.full(256, -1)
        lookup[list(classes.codes)] = np.arange(len(classes))
        mapped = lookup[mapped]
        has_map = mapped >= 0
    else:
        mapped = mapped.astype("float64")
        if fills := unstated_fills(mapped):
            raise ArgumentError(
                f"map holds {fills[0]:.17g}, far from all other values, which usually marks a missing value and the "
                f"map does not state: map.where(map != {fills[0]:.17g})"
            )
        has_map = np.isfinite(mapped)
    usable = keep & has_map
    if not usable.any():
        raise LabelsError(
            f"no reference place is where the map has a value: {len(rows)} are within the map, and it is missing at "
            "all of them. Pass other places, or another date, time="
        )
    xs, ys = np.asarray(drawn[x].values, "float64")[cols], np.asarray(drawn[y].values, "float64")[rows]
    names = () if classes is None else (*classes.names, *extra)
    colors = () if classes is None else (*classes.colors, *("#999999" for _ in extra))
    return ReferencePlaces(
        rows[usable], cols[usable], values[usable], mapped[usable], xs[usable], ys[usable],
        None if clusters is None else clusters[usable], names, colors, form == "raster", int((keep & ~has_map).sum()),
        by_number,
    )  # fmt: skip


def _of_raster(
    reference: Any, drawn: xr.DataArray, classes: Classes | None, options: Mapping[str, Any]
) -> tuple[Array, Array, Array]:
    if classes is None:
        with naming("reference", "targets"), naming("reference", "labels"):
            target = rasterize_targets(reference, drawn, crs=options["crs"], nodata=options["nodata"]).values
        rows, cols = np.nonzero(np.isfinite(target))
        return rows, cols, target[rows, cols].astype(object)
    with naming("reference", "labels"):
        raster = rasterize_labels(reference, drawn, crs=options["crs"], nodata=options["nodata"])
    own = Classes.from_attrs(raster.attrs)
    names = dict(zip(own.codes, own.names, strict=True))
    rows, cols = np.nonzero(raster.values != NO_CLASS)
    # A class without a name is its number.
    named = np.empty(256, dtype=object)
    for code, name in names.items():
        named[code] = code if name == str(code) else name
    return rows, cols, named[raster.values[rows, cols]]


def _of_table(
    reference: Any, form: Any, drawn: xr.DataArray, options: Mapping[str, Any]
) -> tuple[Array, Array, Array, Array | None]:
    box = geobox(drawn)
    upright = north_up(box)
    crs = parsed_crs(options["crs"])
    try:
        with naming("reference", "labels"):
            table = read_table(reference, form, column=options["column"], layer=options["layer"], crs=crs)
    except LabelsError as error:
        raise LabelsError(f"reference: {str(error).removeprefix('reference: ')}") from error
    nodata = options["nodata"]
    skipped = set() if nodata is None else set(np.atleast_1d(nodata).tolist())
    has_value = np.array([v is not None and v not in skipped for v in table.values], bool)
    cleaned = clean(table.shapes[has_value])
    cleaned.warn(int(has_value.sum()), "reference places")
    if not len(cleaned.shapes):
        raise LabelsError(f"no reference place: {table.described} has no row with both a geometry and a value")
    with_value = [v for v, has in zip(table.values, has_value, strict=True) if has]
    shapes = into_grid(cleaned.shapes, table.crs, upright)
    cluster, rows, cols = cells_of(shapes, upright, "majority")
    areas = any("Point" not in shape.geom_type for shape in shapes)
    outside = len(shapes) - len(np.unique(cluster))
    if outside == len(shapes):
        raise LabelsError(
            outside_message(cleaned.shapes, table, upright, "reference places").replace("the embeddings", "the map")
        )
    if outside and table.assumed:
        raise MissingCRSError(
            f"reference: {table.described} states no CRS, and {outside} of its {len(shapes)} places are outside the "
            'map: pass crs="EPSG:..."'
        )
    if outside:
        warnings.warn(f"{outside} of {len(shapes)} reference places are outside the map and left out", stacklevel=4)
    values = np.empty(len(with_value), dtype=object)
    values[:] = with_value
    if box.transform.e > 0:
        rows = box.shape[0] - 1 - rows
    return rows, cols, values[cleaned.rows[cluster]], cluster if areas else None


def _quantities(values: Array) -> Array:
    texts = [v for v in values if isinstance(v, str)]
    if texts:
        raise LabelsError(
            f"reference must hold numbers for a map of a quantity, found {texts[0]!r:.60}: pass the column, column="
        )
    return values.astype("float64")


def _key(name: Any) -> str:
    return re.sub(r"\W+", "_", str(name)).strip("_").lower()


def _positions(
    values: Array, classes: Classes, codes: Sequence[int], mapping: Mapping[Any, Any] | None
) -> tuple[Array, tuple[str, ...], tuple[str, ...]]:
    """Return the position of each reference class among the classes, -1 to leave it out; and those not of the map.

    `codes` are those of the map. The third are the named classes that were found by their code alone.
    """
    by_name = {_key(n): i for i, n in enumerate(classes.names)}
    by_code = {int(c): i for i, c in enumerate(codes)}
    by_number: list[str] = []
    spelled = {_key(k): v for k, v in (mapping or {}).items()}
    position: dict[Any, int] = {}
    unknown, extra = [], dict[str, int]()
    for value in dict.fromkeys(values.tolist()):
        mapped = spelled.get(_key(value), value)
        if mapped is None:
            position[value] = -1
        elif _key(mapped) in by_name:
            position[value] = by_name[_key(mapped)]
        elif isinstance(mapped, int | float) and mapped in by_code:
            position[value] = by_code[int(mapped)]
            if _key(value) not in spelled:
                by_number.append(f"{int(mapped)} {classes.names[position[value]]}")
        elif _key(value) in spelled:
            position[value] = len(classes) + extra.setdefault(str(mapped), len(extra))
        else:
            unknown.append(value)
    if unknown:
        first = unknown[0]
        pairs = dict(zip(codes, classes.names, strict=True))
        raise LabelsError(
            f"classes of the reference must be classes of the map, {pairs}; found {unknown[:6]}: pass the class of the "
            f"map for each, mapping={{{first!r}: {classes.names[0]!r}}}; {{{first!r}: None}} leaves its places out, "
            f"and {{{first!r}: {first!r}}} counts it as a class that the map lacks"
        )
    return np.array([position[v] for v in values.tolist()], dtype=int), tuple(extra), tuple(by_number)


def values_at(layer: xr.DataArray, box: GeoBox, places: ReferencePlaces) -> Array:
    """Return the values of a layer (..., y, x) on another grid at places of the map: (n, ...), NaN outside."""
    own = geobox(layer)
    x, y = places.x, places.y
    if own.crs != box.crs:
        from pyproj import Transformer

        x, y = Transformer.from_crs(box.crs.proj, own.crs.proj, always_xy=True).transform(x, y)
    col, row = (np.floor(v + 1e-9) for v in apply(~own.transform, np.asarray(x), np.asarray(y)))
    inside = (row >= 0) & (row < own.shape[0]) & (col >= 0) & (col < own.shape[1])
    dims = spatial_dims(layer)
    index = {
        dims[0]: xr.DataArray(np.where(inside, row, 0).astype(int), dims="place"),
        dims[1]: xr.DataArray(np.where(inside, col, 0).astype(int), dims="place"),
    }
    values = layer.isel(index).transpose("place", ...).values.astype("float64")
    values[~inside] = np.nan
    return values
