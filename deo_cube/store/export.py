"""Maps and embeddings as Cloud-Optimised GeoTIFF, vectors as GeoParquet: block by block, never the whole in memory."""

from __future__ import annotations

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import rasterio
import rasterio.shutil
import shapely
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError

from deo_cube import arguments
from deo_cube.arguments import embeddings_of, refuse_foreign
from deo_cube.constants import INT8_INVALID, Attribute
from deo_cube.cube import georeference
from deo_cube.cube.categories import own_classes, read_categories
from deo_cube.cube.footprint import geobox_footprint
from deo_cube.cube.georeference import SPATIAL_DIMS
from deo_cube.cube.plain import plain, text
from deo_cube.cube.times import read_times
from deo_cube.embedding.metadata import PREFIX, derivation
from deo_cube.errors import ArgumentError, ArgumentTypeError, StorageError, remedy
from deo_cube.extras import require
from deo_cube.packed import decoded_floats
from deo_cube.paths import local_path

__all__ = ["to_cog", "to_geoparquet"]

#: Patches along a side of a window, where the array has no chunks that say better.
SIDE = 512
#: Patches along a side of a COG's tiles.
TILE = 256
#: Of GDAL's COG driver, those that keep every value.
COMPRESSIONS = ("deflate", "zstd", "lzw", "lzma", "lerc", "lerc_deflate", "lerc_zstd", "none")


def to_cog(
    array: xr.DataArray,
    path: str | Path,
    *,
    overviews: Literal["nearest", "average", "mode"] | None = None,
    compress: str = "deflate",
    dtype: Literal["uint8"] | None = None,
) -> Path:
    """Write a map, colours, or embeddings of one date as a Cloud-Optimised GeoTIFF.

    Parameters
    ----------
    array : DataArray
        (y, x) or with one more dimension, which becomes the bands: classes of `segment`, `pca_rgb`, embeddings. Dates,
        as those of `change_series`, are written as the numbers YYYYMMDD, 0 where there is none.
    path : path
        Replaced once the file is whole.
    overviews : {"nearest", "average", "mode"}, optional
        Resampling of the reduced resolutions. Default: "average" of floats, "mode" of integers, which are classes.
    compress : str
        "deflate", "zstd", "lzw" or another of GDAL's.
    dtype : {"uint8"}, optional
        Write values from 0 to 1, as those of `pca_rgb`, in 8 bits: 0 and 1 become 1 and 255, and 0 marks missing
        pixels. Any program then shows the colours as they are. Default: the dtype of the array.

    Returns
    -------
    Path
        Bands have the names of the array's; a map of classes has their colours as its colour table and their names as
        tags of the band (``class_1``, ...). The date is the tag ``time``.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For several dates, more dimensions than a GeoTIFF has, or values that it cannot hold; for `dtype` with values
        beyond 0 to 1, or with integers.
    MissingCRSError
        For an array that is not on the map.
    StorageError
        If the file cannot be written.

    Notes
    -----
    float16 becomes float32, which GeoTIFF readers know, and what `_FillValue` marks in floats becomes NaN; the int8 of
    ``embed(dtype="int8")`` stays, with its scale on the bands. Its attributes become tags of the file
    (``deo_cube_model``, ...). A lazy array is computed window by window: store embeddings first (`to_zarr`) where they
    are used more than once.
    """
    if overviews is not None:
        arguments.choice("overviews", overviews, ("nearest", "average", "mode"))
    arguments.choice("compress", str(compress).lower(), COMPRESSIONS)
    if dtype is not None:
        arguments.choice("dtype", dtype, ("uint8",))
    flat, bands = _flat(array)
    if dtype is not None:
        flat = _in_bytes(flat, bands)
    box = georeference.geobox(_plane(flat, bands))
    y, x = (str(d) for d in flat.dims[-2:])
    if box.transform.e > 0:
        # South-up files are valid, but many readers show them upside down.
        flat = flat.isel({y: slice(None, None, -1)})
        box = georeference.geobox(_plane(flat, bands))
    stored = _tiff_dtype(flat.dtype)
    whole = stored.kind in "iu"
    fill = flat.attrs.get("_FillValue", flat.attrs.get("nodata"))
    target = _target(path, (".tif", ".tiff"))
    mark = uuid.uuid4().hex
    unoptimized, made = (target.with_name(f".{target.name}.{mark}.{k}.tif") for k in ("plain", "cog"))
    profile = {
        "driver": "GTiff",
        "height": box.shape[0],
        "width": box.shape[1],
        "count": flat.sizes[bands] if bands else 1,
        "dtype": stored,
        "crs": box.crs.to_wkt(),
        "transform": box.transform,
        "nodata": _whole_nodata(fill, stored) if whole else math.nan,
        **({"photometric": "RGB"} if dtype and flat.sizes.get(bands) == 3 else {}),
        **({"tiled": True, "blockxsize": TILE, "blockysize": TILE} if min(box.shape) >= TILE else {}),
        "BIGTIFF": "IF_SAFER",
    }
    with contextlib.ExitStack() as stack:
        for draft in (unoptimized, made):
            stack.callback(draft.unlink, missing_ok=True)
        with rasterio.open(unoptimized, "w", **profile) as file:
            for rows, columns in _windows(flat):
                part = _cast(flat.isel({y: rows, x: columns}).compute().values, stored, fill)
                window = ((rows.start, rows.stop), (columns.start, columns.stop))
                file.write(part if bands else part[None], window=window)
            _describe(file, flat, bands)
        how = overviews or ("mode" if whole and not dtype and "scale_factor" not in flat.attrs else "average")
        options = {"compress": compress, "blocksize": TILE, "overview_resampling": how, "bigtiff": "IF_SAFER"}
        try:
            rasterio.shutil.copy(unoptimized, made, driver="COG", **options)
            made.replace(target)
        except (RasterioError, OSError) as error:
            raise StorageError(f"GDAL cannot write {target} with compress={compress!r}: {error}") from error
    return target


def _describe(file: Any, flat: xr.DataArray, bands: str | None) -> None:
    """Write names, classes, colours, scale and tags to an open GeoTIFF."""
    file.descriptions = _band_names(flat, bands)
    if (categories := read_categories(flat)) is not None and bands is None:
        file.update_tags(1, **{f"class_{c}": n for c, n in zip(categories.codes, categories.names, strict=True)})
        if file.dtypes[0] == "uint8" and (colors := categories.rgba()):
            file.write_colormap(1, colors | ({} if file.nodata is None else {int(file.nodata): (0, 0, 0, 0)}))
    if "scale_factor" in flat.attrs:
        file.scales = [float(flat.attrs["scale_factor"])] * file.count
    if "add_offset" in flat.attrs:
        file.offsets = [float(flat.attrs["add_offset"])] * file.count
    derived = derivation(flat)
    facts = flat.attrs | ({} if derived is None else {Attribute.DERIVED: derived})
    if "time" in flat.coords and flat["time"].ndim == 0:
        facts |= {"time": text(plain(flat["time"].values[()]))}
    # GDAL ends the name of a tag at a colon.
    file.update_tags(**{k.replace(":", "_"): _text(v) for k, v in facts.items() if k not in _NOT_TAGS})


def _in_bytes(flat: xr.DataArray, bands: str | None) -> xr.DataArray:
    """Return values from 0 to 1 as 1 to 255, and 0 in all bands where any is missing. Lazy."""
    if flat.dtype.kind != "f":
        raise ArgumentError(
            f"dtype='uint8' is for values from 0 to 1, as those of pca_rgb, the array holds {flat.dtype}: "
            "leave dtype out"
        )

    def scaled(values: Any) -> Any:
        low, high = (float(f(values, initial=b, where=np.isfinite(values))) for f, b in ((np.min, 0), (np.max, 0)))
        if low < -1e-6 or high > 1 + 1e-6:
            raise ArgumentError(
                f"dtype='uint8' is for values from 0 to 1, found {low:.3g} to {high:.3g}: scale them, or leave "
                "dtype out"
            )
        missing = ~np.isfinite(values)
        missing = missing.any(axis=-1, keepdims=True) if bands else missing
        return np.where(missing, 0, 1 + np.rint(254 * np.nan_to_num(values).clip(0, 1))).astype("uint8")

    core = [bands] if bands else []
    if bands and flat.chunks is not None:
        flat = flat.chunk({bands: -1})
    coded: xr.DataArray = xr.apply_ufunc(
        scaled,
        flat.drop_vars("valid", errors="ignore"),
        input_core_dims=[core],
        output_core_dims=[core],
        dask="parallelized",
        output_dtypes=["uint8"],
        keep_attrs=True,
    )
    return coded.transpose(*flat.dims).assign_attrs({"_FillValue": np.uint8(0)})


def _band_names(flat: xr.DataArray, bands: str | None) -> list[str]:
    """Return the descriptions of the bands: their labels, else the dimension and a number, else the array's name."""
    if bands is None:
        return [str(flat.name or flat.attrs.get("long_name", ""))]
    if bands in flat.coords:
        return [str(v) for v in flat[bands].values]
    return [f"{bands} {i}" for i in range(flat.sizes[bands])]


#: Endings of formats that are not written here.
_PICTURES = (".png", ".jpg", ".jpeg", ".svg", ".pdf")
_TABLES = (".csv", ".gpkg", ".geojson", ".shp", ".fgb")
_OTHER_FORMATS = (*_PICTURES, *_TABLES, ".nc", ".zarr", ".npy", ".npz", ".tif", ".tiff", ".parquet")


def _target(path: str | Path, own: tuple[str, ...]) -> Path:
    """Return the file to write, and make its folder. Its ending must not be that of another format than `own`.

    Raises
    ------
    ArgumentError, ArgumentTypeError, StorageError
        For a folder, anything but a path, and where the folder cannot be made.
    """
    if not isinstance(path, str | os.PathLike):
        raise ArgumentTypeError(f"path must be that of the file to write, got {type(path).__name__}")
    target = local_path(path)
    if not target.name or target.is_dir():
        raise ArgumentError(f"path must be that of the file to write, got the folder {str(path)!r}")
    ending = target.suffix.lower()
    if ending in _OTHER_FORMATS and ending not in own:
        other = ""
        if ending in _PICTURES:
            other = remedy(": a picture is array.deo.plot().figure.savefig(path)", "")
        elif ending in _TABLES:
            other = ": name a .parquet, and geopandas.read_parquet(path).to_file(...) writes any other table"
        raise ArgumentError(f"path must end with {own[0]}, which is what is written; got {target.name}{other}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"the folder of {target} cannot be made: {error}") from error
    return target


def _whole_nodata(fill: Any, dtype: np.dtype[Any]) -> int | None:
    """Return the value that marks missing data in integers of `dtype`, or None.

    Raises
    ------
    ArgumentError
        For a value that the dtype cannot hold.
    """
    if fill is None or (isinstance(fill, float | np.floating) and not np.isfinite(fill)):
        return None
    span = np.iinfo(dtype)
    if not (float(fill).is_integer() and span.min <= int(fill) <= span.max):
        raise ArgumentError(
            f"the array states _FillValue={fill}, which its dtype {dtype} cannot hold: state another, "
            'array.attrs["_FillValue"] = ..., or array.attrs.pop("_FillValue")'
        )
    return int(fill)


def _cast(values: Any, dtype: np.dtype[Any], fill: Any) -> Any:
    """Return values in the dtype of the file; in floats NaN where they are `fill`."""
    if dtype.kind in "iu" and values.dtype.itemsize > dtype.itemsize and values.size:
        low, high = values.min(), values.max()
        if low < np.iinfo(dtype).min or high > np.iinfo(dtype).max:
            raise ArgumentError(
                f"the array holds integers from {low} to {high}, beyond {dtype}, the largest that readers of GeoTIFF "
                'know: write floats, array.astype("float64")'
            )
    cast = values.astype(dtype, copy=False)
    if dtype.kind == "f" and fill is not None and np.isfinite(fill):
        cast = np.where(cast == dtype.type(fill), dtype.type(np.nan), cast)
    return cast


_NOT_TAGS = ("grid_mapping", "coordinates", "scale_factor", "_FillValue", "nodata")


def _flat(array: xr.DataArray) -> tuple[xr.DataArray, str | None]:
    """Return the array as (y, x) or (bands, y, x), and the name of the dimension of bands."""
    if isinstance(array, xr.Dataset):
        layers = [n for n, v in array.data_vars.items() if any(set(p) <= set(v.dims) for p in SPATIAL_DIMS)]
        if len(layers) != 1:
            raise ArgumentTypeError(
                f"array must be one DataArray, got a Dataset with {[str(n) for n in layers]} on the map: pass one, "
                f"ds[{str(next(iter(layers), 'embeddings'))!r}]"
            )
        array = array[layers[0]]
    if not isinstance(array, xr.DataArray):
        raise ArgumentTypeError(f"array must be a DataArray, got {type(array).__name__}")
    array = own_classes(array)
    if array.dtype.kind == "M":
        array = _day_numbers(array)
    if array.dtype.kind not in "biuf":
        raise ArgumentTypeError(f"array must hold numbers for a GeoTIFF, got dtype {array.dtype}: array.astype(...)")
    if "time" in array.dims:
        if array.sizes["time"] != 1:
            raise ArgumentError(
                f"a GeoTIFF holds one date, the array has {array.sizes['time']}: choose "
                f"{remedy('one, .isel(time=0)', 'one, time=DATE')}, or write one file per date"
            )
        array = array.isel(time=0)
    pair = next((p for p in SPATIAL_DIMS if set(p) <= set(array.dims)), ("y", "x"))
    others = [str(k) for k in array.dims if k not in pair]
    refuse_foreign(array.variable, "array", argument="array")
    array = decoded_floats(array, "array") if "embedding" in array.dims else array
    if not set(pair) <= set(array.dims):
        raise ArgumentError(f"array must have the dimensions y and x, found {tuple(map(str, array.dims))}")
    if len(others) > 1:
        raise ArgumentError(f"a GeoTIFF has rows, columns and bands; the array has {others}: select from them")
    return array.transpose(*others, *pair), others[0] if others else None


def _day_numbers(dates: xr.DataArray) -> xr.DataArray:
    """Return dates as the numbers YYYYMMDD, 0 where there is none. GeoTIFF knows no dates."""
    numbers = dates.dt.year * 10000 + dates.dt.month * 100 + dates.dt.day
    days: xr.DataArray = numbers.where(dates.notnull(), 0).astype("int32")
    return days.assign_attrs(dates.attrs | {"_FillValue": 0, "units": "YYYYMMDD"}).rename(dates.name)


def _plane(array: xr.DataArray, bands: str | None) -> xr.DataArray:
    return array.isel({bands: 0}, drop=True) if bands else array


def _tiff_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    known = {"float16": "float32", "bool": "uint8", "int64": "int32", "uint64": "uint32"}
    return np.dtype(known.get(dtype.name, dtype.name))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(np.asarray(value).tolist())


def _windows(array: xr.DataArray, multiple: int = 1) -> Iterator[tuple[slice, slice]]:
    """Yield the rows and columns of windows: the chunks of the array, unless a multiple of something is needed."""
    cuts = []
    for dim in array.dims[-2:]:
        size = array.sizes[dim]
        chunks = array.variable.chunksizes.get(dim, ())  # of the values alone: `valid` may be cut otherwise
        if multiple == 1 and len(chunks) > 1 and max(chunks) >= 64:
            ends = np.cumsum(chunks).tolist()
        else:
            step = max(chunks, default=SIDE) if max(chunks, default=SIDE) >= 64 else SIDE
            step = -(-step // multiple) * multiple
            ends = [*range(step, size, step), size]
        cuts.append([slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)])
    return ((rows, columns) for rows in cuts[0] for columns in cuts[1])


def to_geoparquet(
    emb: xr.DataArray,
    path: str | Path,
    *,
    pool: int = 1,
    geometry: Literal["point", "polygon"] = "point",
    min_valid: float = 0.0,
) -> Path:
    """Write vectors as GeoParquet 1.1: one row per patch, or one per window of patches pooled to one vector.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x).
    path : path
        Replaced once the file is whole.
    pool : int
        Patches along a side of a window; their mean, weighted by `valid`, is its vector. Windows begin at the array's
        corner; those at its other edges may be smaller.
    geometry : {"point", "polygon"}
        Centre or outline, in the CRS of the embeddings.
    min_valid : float
        Rows with no more than this valid fraction are left out; those without one valid pixel always are.

    Returns
    -------
    Path
        Columns: `geometry` (WKB), `time` (where there is one), `valid` (float32), `embedding` (fixed-size list of
        float32). One row group per block; CRS as PROJJSON; the attributes of the embeddings under the key
        ``deo_cube`` of the file's metadata.

    Raises
    ------
    MissingExtraError
        Without pyarrow.
    ArgumentError, ArgumentTypeError
        For an array without vectors, a pool below 1, and other arguments of no use.
    StorageError
        If the file cannot be written.
    """
    pa, pq = (require(m, extra="vector", purpose="writing GeoParquet") for m in ("pyarrow", "pyarrow.parquet"))
    emb = embeddings_of(emb)
    pool = arguments.integer("pool", pool)
    if arguments.number("min_valid", min_valid, minimum=0, maximum=1) == 1:
        raise ArgumentError("min_valid must be below 1, as rows with no more than it are left out; got 1")
    arguments.choice("geometry", geometry, ("point", "polygon"))
    d = georeference.dims(emb.isel(embedding=0, drop=True))
    timed = "time" in emb.dims
    emb = emb.transpose(*(("time",) if timed else ()), "embedding", d.y, d.x)
    box = georeference.geobox(emb.isel(embedding=0, drop=True))
    vector = pa.list_(pa.float32(), emb.sizes["embedding"])
    fields = [("geometry", pa.binary()), ("valid", pa.float32()), ("embedding", vector)]
    if timed or "time" in emb.coords:
        # Labels that are not dates are kept: the number of a day is not a moment after 1970.
        dated = read_times(emb["time"].variable).dated
        fields.insert(1, ("time", pa.timestamp("us", tz="UTC") if dated else pa.string()))
    schema = pa.schema(fields, metadata=_geo(emb, box, geometry))
    target = _target(path, (".parquet",))
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        with pq.ParquetWriter(draft, schema, compression="zstd") as writer:
            for t in range(emb.sizes["time"] if timed else 1):
                one = emb.isel(time=t) if timed else emb
                for rows, columns in _windows(one, pool):
                    table = _table(one.isel({d.y: rows, d.x: columns}), box, rows, columns, pool, geometry, min_valid)
                    if len(table["valid"]):
                        writer.write_table(_arrow(table, schema))
        draft.replace(target)
    except OSError as error:
        raise StorageError(f"{target} cannot be written: {error}") from error
    finally:
        draft.unlink(missing_ok=True)
    return target


def _table(
    part: xr.DataArray, box: GeoBox, rows: slice, columns: slice, pool: int, geometry: str, min_valid: float
) -> dict[str, Any]:
    """Return the rows of one window of one date."""
    share = part.coords["valid"].drop_vars("valid") if "valid" in part.coords else None
    both = xr.Dataset({"v": part.drop_vars("valid", errors="ignore")} | ({} if share is None else {"s": share}))
    read = both.compute()
    values = read["v"].values
    fill = part.attrs.get("_FillValue", INT8_INVALID if values.dtype == np.int8 else None)
    missing = np.zeros(values.shape, bool) if fill is None else values == fill
    if values.dtype.kind in "iu":
        scale, offset = (part.attrs.get(k, v) for k, v in (("scale_factor", 1.0), ("add_offset", 0.0)))
        values = values * np.float32(scale) + np.float32(offset)
    if missing.any():
        values = np.where(missing, np.nan, values)
    values = values.astype("float32")
    there = np.isfinite(values).all(axis=0)
    valid = np.where(there, read["s"].values if share is not None else 1.0, 0.0).astype("float32")
    vectors, fraction = _pooled(np.where(there, values, 0), valid, pool)
    keep = (fraction > min_valid) & (fraction > 0)
    i, j = np.nonzero(keep)
    top, left = rows.start + i * pool, columns.start + j * pool
    bottom, right = np.minimum(top + pool, rows.stop), np.minimum(left + pool, columns.stop)
    a: Affine = box.transform
    x0, y0, x1, y1 = a.c + left * a.a, a.f + top * a.e, a.c + right * a.a, a.f + bottom * a.e
    if box.crs.geographic:
        # Longitudes of 0..360, and beyond 180 across the antimeridian, belong within -180..180 in a file.
        turn = np.where((x0 + x1) / 2 >= 180, -360.0, 0.0)
        x0, x1 = x0 + turn, x1 + turn
    shapes = shapely.points((x0 + x1) / 2, (y0 + y1) / 2) if geometry == "point" else shapely.box(x0, y0, x1, y1)
    found = {"geometry": shapely.to_wkb(shapes), "valid": fraction[keep], "embedding": vectors[:, i, j].T}
    if "time" in part.coords:
        found["time"] = np.full(len(i), part["time"].values)
    return found


def _pooled(
    values: np.ndarray[Any, Any], valid: np.ndarray[Any, Any], pool: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return means over windows of (D, h, w) weighted by (h, w), and the valid share of each window."""
    if pool == 1:
        return values, valid
    h, w = valid.shape
    cuts = np.arange(0, h, pool), np.arange(0, w, pool)

    def summed(z: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.add.reduceat(np.add.reduceat(z, cuts[0], axis=-2), cuts[1], axis=-1)

    weight = summed(valid.astype("float64"))
    area = summed(np.ones((h, w)))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = summed(values.astype("float64") * valid) / weight
    return means.astype("float32"), (weight / area).astype("float32")


def _arrow(table: dict[str, Any], schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for field in schema:
        values = table[field.name]
        if field.name == "embedding":
            flat = pa.array(np.ascontiguousarray(values).ravel(), type=pa.float32())
            columns.append(pa.FixedSizeListArray.from_arrays(flat, values.shape[1]))
        elif field.name == "time" and field.type == pa.string():
            columns.append(pa.array([text(plain(v)) for v in values], type=field.type))
        elif field.name == "time":
            stamps = read_times(xr.Variable(("row",), values)).values
            columns.append(pa.array(pd.DatetimeIndex(np.asarray(stamps)).tz_localize("UTC"), type=field.type))
        else:
            columns.append(pa.array(values, type=field.type))
    return pa.Table.from_arrays(columns, schema=schema)


def _geo(emb: xr.DataArray, box: GeoBox, geometry: str) -> dict[bytes, bytes]:
    column = {
        "encoding": "WKB",
        "geometry_types": ["Point" if geometry == "point" else "Polygon"],
        "crs": box.crs.proj.to_json_dict(),
        "bbox": geobox_footprint(box)[1] if box.crs.geographic else list(box.boundingbox.bbox),
    }
    geo = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": column}}
    facts = {k.removeprefix(PREFIX): str(v) for k, v in emb.attrs.items() if str(k).startswith(PREFIX)}
    if (derived := derivation(emb)) is not None:
        facts["derived"] = derived  # else a mean would be labelled as the model's own output
    return {b"geo": json.dumps(geo).encode(), b"deo_cube": json.dumps(facts).encode()}
