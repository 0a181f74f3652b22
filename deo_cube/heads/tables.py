"""Labels as tables: GeoDataFrames, plain DataFrames, GeoJSON, tuples, and any file that holds one of them.

The second half finds the columns with places and classes in tables as users have them, and decides what their values
mean.
"""

from __future__ import annotations

import csv
import io
import json
import numbers
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import shapely
import xarray as xr
from numpy.typing import NDArray
from pyproj import CRS
from pyproj.exceptions import CRSError

from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    LabelsError,
    MissingCRSError,
    MissingExtraError,
)
from deo_cube.extras import require
from deo_cube.paths import expand, is_url, not_found, unreadable

__all__ = ["Table", "form_of", "located", "parsed_crs", "read_frame", "read_table", "geojson_crs", "suffix_of"]

Array = NDArray[Any]
Form = Literal["raster", "table", "points", "shapes"]

_RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".asc", ".png", ".bil", ".hgt", ".adf")
_TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".tab")
_MAX_LONGITUDE = 540.0
"""A number beyond it is not a longitude in degrees, however longitudes are counted."""


@dataclass(frozen=True)
class Table:
    """Geometries with one class each.

    Parameters
    ----------
    shapes : (n,) object
        Shapely geometries; None where a row has none.
    values : list
        The class of each: int, float or text; None where a row has none.
    crs : pyproj.CRS or None
        Of the geometries; None where nothing states it, so that it can only be that of the grid.
    described : str
        Name of the table in messages.
    assumed : bool
        Whether all geometries must be within the grid for its CRS to be assumed.
    """

    shapes: Array
    values: list[Any]
    crs: CRS | None
    described: str = "the table of labels"
    assumed: bool = False


def form_of(labels: Any, argument: str = "labels") -> Form:
    """Return the form of labels: a raster, a table, or a list of points or of geometries; errors name `argument`.

    Raises
    ------
    ArgumentTypeError
        For anything else.
    """
    if isinstance(labels, xr.DataArray | xr.Dataset):
        return "raster"
    if isinstance(labels, str | os.PathLike):
        return "raster" if suffix_of(labels) in _RASTER_SUFFIXES else "table"
    if isinstance(labels, Mapping | pd.DataFrame) or hasattr(labels, "to_pandas"):
        return "table"
    if hasattr(labels, "__geo_interface__") and not isinstance(labels, pd.Series | shapely.Geometry):
        return "table"
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] != 3 and labels.dtype.kind in "iubf":
        raise ArgumentTypeError(
            f"{argument} must have a place, got an array {labels.shape}: put it on the grid of the embeddings, "
            f'xr.DataArray({argument}, {{"y": emb.y, "x": emb.x}}, dims=("y", "x"))'
        )
    if isinstance(labels, Sequence | np.ndarray) and not isinstance(labels, bytes | bytearray) and len(labels):
        if all(isinstance(p, Mapping) for p in labels):
            return "table"
        if all(isinstance(p, Sequence) and len(p) == 2 and isinstance(p[0], shapely.Geometry) for p in labels):
            return "shapes"
        if all(isinstance(p, Sequence | np.ndarray) and not isinstance(p, str) and len(p) == 3 for p in labels):
            return "points"
    size = (f" of {len(labels)}" if len(labels) else " (empty)") if hasattr(labels, "__len__") else ""
    raise ArgumentTypeError(
        f"{argument} must be a table (GeoDataFrame, DataFrame, GeoJSON, or the path of a file that holds one), a "
        f"raster (DataArray or path), or a list of (x, y, label); got {type(labels).__name__}{size}"
        + ("; geometries alone have no class: make a GeoDataFrame" if isinstance(labels, pd.Series) else "")
    )


def parsed_crs(crs: Any) -> CRS | None:
    """Return `crs` as a pyproj CRS; None stays None.

    Raises
    ------
    ArgumentError
        If it is not a CRS.
    """
    if crs is None:
        return None

    try:
        return CRS.from_user_input(getattr(crs, "proj", crs))
    except (CRSError, TypeError, ValueError) as error:
        raise ArgumentError(f'crs={crs!r} is not a CRS ({error}): pass for instance crs="EPSG:32632"') from error


def suffix_of(path: Any) -> str:
    """Return the suffix of a path or address in lower case, without the query of an address."""
    text = os.fsdecode(path)
    return Path(urlsplit(text).path if "://" in text else text).suffix.lower()


def located(path: Any, what: str = "labels") -> str:
    """Return a path that exists, or an address that GDAL follows (``https://``, ``s3://``, ``/vsi...``) as it is."""
    text = expand(path)
    if is_url(text) or text.startswith("/vsi"):
        return text
    if not Path(text).exists():
        raise not_found(what, text, "a file of places (.gpkg, .geojson, .parquet, .csv, .shp), or a raster")
    return text


def read_table(labels: Any, form: Form, *, column: Any, layer: Any, crs: CRS | None) -> Table:
    """Read geometries, classes and CRS of any form of table.

    Parameters
    ----------
    column, layer
        As in `rasterize_labels`.
    crs : pyproj.CRS or None
        Overrides what the table states. Where neither does, longitudes and latitudes are degrees of WGS 84.

    Raises
    ------
    LabelsError, MissingCRSError, ArgumentError, InputNotFoundError, MissingExtraError
        If the table cannot be read, or does not state where its labels are, or of which class.
    """
    if form == "points":
        return _of_points(labels, crs)
    if form == "shapes":
        shapes = np.empty(len(labels), dtype=object)
        shapes[:] = [p[0] for p in labels]
        return Table(shapes, plain_values([p[1] for p in labels]), crs)
    if isinstance(labels, str | os.PathLike):
        return _of_path(labels, column, layer, crs)
    if layer is not None:
        raise ArgumentError(f"layer={layer!r} is for files with layers, but labels are a {type(labels).__name__}")
    if isinstance(labels, Mapping):
        return _of_geojson(labels, column, crs)
    if isinstance(labels, Sequence):
        return _of_geojson({"type": "FeatureCollection", "features": list(labels)}, column, crs)
    if not hasattr(labels, "iloc"):
        if hasattr(labels, "__geo_interface__") and not hasattr(labels, "to_pandas"):
            return _of_geojson(labels.__geo_interface__, column, crs)
        labels = labels.to_pandas()
    return _of_frame(labels, column, crs, "the table of labels", text=False)


def _of_path(labels: Any, column: Any, layer: Any, crs: CRS | None) -> Table:
    frame = read_frame(labels, layer)
    return _of_frame(frame, column, crs, Path(os.fsdecode(labels)).name, text=suffix_of(labels) in _TEXT_SUFFIXES)


def read_frame(path: Any, layer: Any) -> pd.DataFrame:
    """Read the table that a file holds: a GeoDataFrame, or a DataFrame (of text, from a text file)."""
    path = located(path)
    name = Path(path).name
    if suffix_of(path) in _TEXT_SUFFIXES:
        if layer is not None:
            raise ArgumentError(f"layer={layer!r} is for files with layers; {name} has none")
        frame: pd.DataFrame = _read_text(path)
        return frame
    if suffix_of(path) in (".pkl", ".pickle"):
        raise LabelsError(f"{name} is a pickle, which runs code when it is read: save it as GeoParquet")
    frame = _read_file(path, layer)
    return frame


def _of_points(labels: Any, crs: CRS | None) -> Table:
    try:
        xy = np.array([(float(p[0]), float(p[1])) for p in labels])
    except (TypeError, ValueError) as error:
        raise LabelsError(f"points of labels must be (x, y, label) with numbers x and y: {error}") from error
    shapes = np.array(shapely.points(xy), dtype=object).reshape(-1)
    shapes[~np.isfinite(xy).all(axis=1)] = None
    return Table(shapes, plain_values([p[2] for p in labels]), crs, "the points of labels")


def _of_geojson(labels: Mapping[str, Any], column: Any, crs: CRS | None) -> Table:
    """Return the table of GeoJSON, or of a dict of columns."""
    kind = labels.get("type")
    if kind is None and labels and all(isinstance(v, Sequence | np.ndarray) for v in labels.values()):
        try:
            return _of_frame(pd.DataFrame(dict(labels)), column, crs, "the dict of labels", text=False)
        except ValueError as error:
            if isinstance(error, DeoCubeError):
                raise
            raise LabelsError(f"the columns of the dict of labels do not fit each other: {error}") from error
    if kind not in ("FeatureCollection", "Feature"):
        raise LabelsError(
            f"labels in GeoJSON must be a FeatureCollection with a class in the properties, got type {kind!r}"
        )
    features = labels.get("features") if kind == "FeatureCollection" else [labels]
    if not features or not isinstance(features, Sequence):
        raise LabelsError("no label: the FeatureCollection is empty")
    shapes = np.empty(len(features), dtype=object)
    rows = []
    for i, f in enumerate(features):
        if not isinstance(f, Mapping) or not isinstance(f.get("properties") or {}, Mapping):
            raise LabelsError(f"feature {i} of the GeoJSON is not a feature with properties")
        geometry = f.get("geometry")
        try:
            shapes[i] = None if geometry is None else shapely.geometry.shape(geometry)
        except Exception as error:
            raise LabelsError(f"the geometry of feature {i} of the GeoJSON cannot be read ({error})") from error
        rows.append(dict(f.get("properties") or {}))
    frame = pd.DataFrame(rows, dtype=object)
    class_position = class_column(frame, column, [])
    if crs is None:
        crs = _geojson_crs(labels, shapely.total_bounds(shapes))
    return Table(shapes, plain_values(frame.iloc[:, class_position]), crs, "the GeoJSON")


def _geojson_crs(labels: Mapping[str, Any], bounds: Array) -> CRS | None:
    crs = geojson_crs(labels)
    x0, y0, x1, y1 = bounds
    if crs is None and (max(-x0, x1) > _MAX_LONGITUDE or max(-y0, y1) > 90):
        raise MissingCRSError(
            f"GeoJSON without a `crs` is in degrees, but its coordinates run from ({x0:g}, {y0:g}) to "
            f'({x1:g}, {y1:g}): pass crs="EPSG:..."'
        )
    # GeoJSON without a CRS is in degrees of WGS 84 (RFC 7946, section 4).
    return parsed_crs(4326 if crs is None else crs)


def geojson_crs(labels: Mapping[str, Any]) -> CRS | None:
    """Return the CRS that GeoJSON states (pyproj), as files older than its standard do; None where it states none."""
    member = labels.get("crs")
    name = (member.get("properties") or {}).get("name") if isinstance(member, Mapping) else member
    if member and not name:
        raise MissingCRSError(f'the `crs` of the GeoJSON has no name, {member!r}: pass crs="EPSG:..."')
    try:
        return parsed_crs(name)
    except ArgumentError as error:
        raise MissingCRSError(f'the `crs` of the GeoJSON, {name!r}, is unknown: pass crs="EPSG:..."') from error


def _of_frame(frame: pd.DataFrame, column: Any, crs: CRS | None, described: str, *, text: bool) -> Table:
    """Return the table of a GeoDataFrame, or of a DataFrame with geometries, WKT, or coordinates."""
    if frame.columns.nlevels > 1:
        raise LabelsError(f"{described} has columns of {frame.columns.nlevels} levels: give each one name")
    if not len(frame):
        raise LabelsError(f"no label: {described} has no rows")
    geometries = _geometries(frame)
    if geometries is None:
        return _of_coordinates(frame, column, crs, described, text=text)
    position, shapes, code = geometries
    values = plain_values(frame.iloc[:, class_column(frame, column, _place_columns(frame, position))], text=text)
    stated = getattr(frame.iloc[:, position].array, "crs", None)
    if crs is None and stated is None and code is None and str(frame.iloc[:, position].dtype) == "geometry":
        raise MissingCRSError(
            f'{described} states no CRS: pass crs="EPSG:...", or state it with table.set_crs("EPSG:...")'
        )
    crs = crs if crs is not None else stated if stated is not None else parsed_crs(code)
    return Table(shapes, values, crs, described, assumed=crs is None)


def _geometries(frame: pd.DataFrame) -> tuple[int, Array, int | None] | None:
    """Return `geometry_column`; the active geometry of a GeoDataFrame decides where it has one."""
    active = getattr(frame, "_geometry_column_name", None)
    names = list(frame.columns)
    if active is None or names.count(active) != 1:
        return geometry_column(frame)
    position = names.index(active)
    return position, np.asarray(frame.iloc[:, position].array, dtype=object), None


def _of_coordinates(frame: pd.DataFrame, column: Any, crs: CRS | None, described: str, *, text: bool) -> Table:
    pair = coordinate_columns(frame, crs)
    if pair is None:
        raise LabelsError(
            f"{described} has no column of geometries (geometry, wkt) and no pair of coordinates (lon and lat, x "
            f"and y): found {listed(frame)}. Rename them, or make a GeoDataFrame with "
            "geometry=geopandas.points_from_xy(...)"
        )
    *positions, degrees = pair
    xy = np.stack([to_numbers(frame.iloc[:, i], frame.columns[i], comma=True) for i in positions], axis=1)
    values = plain_values(frame.iloc[:, class_column(frame, column, _place_columns(frame, *positions))], text=text)
    finite = np.isfinite(xy).all(axis=1)
    shapes = np.full(len(xy), None, dtype=object)
    shapes[finite] = shapely.points(xy[finite])
    if crs is None and degrees:
        limits = [_MAX_LONGITUDE, 90]
        beyond = finite & (np.abs(xy) > limits).any(axis=1)
        swapped = bool((np.abs(xy[finite][:, ::-1]) <= limits).all())
        if beyond.any() and not swapped:
            x, y = xy[beyond][0]
            names = [frame.columns[i] for i in positions]
            raise MissingCRSError(
                f"columns {names[0]!r} and {names[1]!r} of {described} are not degrees (such as {x:g}, {y:g}): pass "
                'crs="EPSG:..."'
            )
        crs = parsed_crs(4326)
    return Table(shapes, values, crs, described, assumed=crs is None)


def _place_columns(frame: pd.DataFrame, *positions: int) -> list[int]:
    """Return positions of columns that hold a place, and so no class: `positions` and any pair of coordinates."""
    pairs = [coordinate_columns(frame, c) for c in (None, parsed_crs(3857))]
    return [*positions, *(i for p in pairs if p is not None for i in p[:2])]


# ---- files ----------------------------------------------------------------------------------------------------------


def _read_text(path: str) -> Any:
    """Read a text file with a header, of any separator and encoding, every value as text."""
    if "://" in path or path.startswith("/vsi"):
        raise LabelsError(f"text is read from local files, not from {path}: read it first, pandas.read_csv(...)")
    text = _decoded(Path(path).read_bytes())
    header = text.lstrip("\r\n").splitlines()[:1]
    if not header or not header[0].strip():
        raise LabelsError(f"no label: {Path(path).name} is empty")
    separator: str = max(";\t|,", key=lambda s: len(next(csv.reader(header, delimiter=s))))
    if not header[0].rstrip().endswith(separator) and separator != "\t":
        # Some programs end every row with a separator, though not the header.
        text = re.sub(rf"{re.escape(separator)}[ \t]*(\r?\n|$)", r"\1", text)
    try:
        with warnings.catch_warnings():
            # pandas would drop the rest of a row that is longer than the header.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            table = pd.read_csv(
                io.StringIO(text),
                sep=separator,
                dtype=str,
                keep_default_na=False,
                skipinitialspace=True,
                index_col=False,
            )
    except (ValueError, csv.Error, pd.errors.ParserWarning) as error:
        raise LabelsError(f"{Path(path).name} cannot be read as a table of text: {str(error).strip()}") from error
    table.columns = [str(c).strip() for c in table.columns]
    return table


def _decoded(raw: bytes) -> str:
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return raw.decode("utf-16", errors="replace")
    for encoding in ("utf-8-sig", "cp1252"):
        try:
            return raw.decode(encoding)
        except UnicodeDecodeError:
            continue
    return raw.decode("latin-1")


def _read_file(path: str, layer: Any) -> Any:
    """Read a GeoDataFrame, or a DataFrame where the file has no geometries."""
    gpd = require("geopandas", extra="vector", purpose="reading labels from tables")
    name, suffix = Path(path).name, suffix_of(path)
    try:
        if suffix in (".parquet", ".geoparquet", ".pq", ".feather"):
            if layer is not None:
                raise ArgumentError(f"layer={layer!r} is for files with layers; {name} has none")
            feather = suffix == ".feather"
            try:
                return gpd.read_feather(path) if feather else gpd.read_parquet(path)
            except ValueError:
                # Without the metadata of GeoParquet it is a plain table, perhaps with WKB or coordinates.
                return pd.read_feather(path) if feather else pd.read_parquet(path)
        layer = _chosen_layer(path, name, layer)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="pyogrio")
            return gpd.read_file(path, layer=layer)
    except DeoCubeError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"reading {name} needs another package: {error}") from error
    except Exception as error:  # of pyogrio, pyarrow, pandas or the operating system, depending on the damage
        expected = "a table of places (.gpkg, .geojson, .parquet, .csv, .shp), or a raster of them (.tif)"
        raise unreadable("labels", path, expected, error, error=LabelsError) from error


def _chosen_layer(path: str, name: str, layer: Any) -> str | int | None:
    """Return the layer of a file to read: `layer`, or its only layer with places."""
    import pyogrio

    layers = pyogrio.list_layers(path)
    names = [str(n) for n, kind in layers if kind is not None] or [str(n) for n, _ in layers]
    if layer is None:
        if len(names) > 1:
            raise ArgumentError(f"{name} has {len(names)} layers: pass layer=..., one of {names}")
        return names[0] if names else None
    if isinstance(layer, bool) or not isinstance(layer, str | int):
        raise ArgumentTypeError(f"layer must be the name or number of a layer, got {layer!r}")
    if layer not in [str(n) for n, _ in layers] and not (isinstance(layer, int) and 0 <= layer < len(layers)):
        raise LabelsError(f"layer={layer!r} is not in {name}, whose layers are {names}")
    return layer


# ---- columns --------------------------------------------------------------------------------------------------------

_DEGREES = (
    ("lon", "lat"), ("longitude", "latitude"), ("long", "lat"), ("lng", "lat"), ("decimallongitude", "decimallatitude"),
    ("londd", "latdd"), ("longdd", "latdd"), ("lonwgs84", "latwgs84"), ("longitudewgs84", "latitudewgs84"),
    ("gpslon", "gpslat"), ("gpslong", "gpslat"), ("gpslongitude", "gpslatitude"), ("thlong", "thlat"),
    ("xlon", "ylat"), ("lonx", "laty"), ("lond", "latd"), ("longitudedd", "latitudedd"), ("lonc", "latc"),
    ("laenge", "breite"), ("lange", "breite"), ("longitud", "latitud"),
)  # fmt: skip
_METRES = (
    ("x", "y"), ("easting", "northing"), ("eastings", "northings"), ("east", "north"), ("xcoord", "ycoord"),
    ("coordx", "coordy"), ("xcoordinate", "ycoordinate"), ("coordsx", "coordsy"), ("pointx", "pointy"),
    ("utmx", "utmy"), ("xutm", "yutm"), ("utme", "utmn"), ("eutm", "nutm"), ("utmeasting", "utmnorthing"),
    ("eastingm", "northingm"), ("xm", "ym"), ("rechtswert", "hochwert"), ("ostwert", "nordwert"),
    ("xcentre", "ycentre"), ("xcenter", "ycenter"), ("centroidx", "centroidy"),
)  # fmt: skip
_GEOMETRY = ("geometry", "geom", "thegeom", "wkt", "wktgeom", "geometrywkt", "wkbgeometry", "geo", "shape", "wkb")
_IDS = ("id", "fid", "index", "objectid", "ogcfid", "gid", "uid", "pointid", "plotid", "unnamed0", "level0")
_CLASS = ("label", "class")
MISSING = ("", "nan", "null", "na", "n/a", "#n/a", "<na>")
"""Texts, in lower case, that mean a missing value in a text file."""


def _key(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def listed(table: pd.DataFrame) -> list[str]:
    """Return the names of the columns, for messages."""
    return [str(c) for c in table.columns]


def coordinate_columns(table: pd.DataFrame, crs: CRS | None) -> tuple[int, int, bool] | None:
    """Return positions of the columns of x and y, and whether their names mean degrees; None without a pair.

    Of a table that has both kinds the degrees are taken, unless `crs` (pyproj) is a projection.
    """
    keys = [_key(c) for c in table.columns]
    degrees, metres = (
        next(((keys.index(a), keys.index(b)) for a, b in pairs if a in keys and b in keys), None)
        for pairs in (_DEGREES, _METRES)
    )
    if degrees and not (metres and crs is not None and not crs.is_geographic):
        return (*degrees, True)
    return (*metres, False) if metres else None


def to_numbers(values: Any, name: Any, *, comma: bool) -> Array:
    """Return a column of coordinates as float64; NaN where it is blank.

    Parameters
    ----------
    comma : bool
        Whether a comma may be a decimal one.

    Raises
    ------
    LabelsError
        For anything that is not a number, such as degrees with minutes.
    """
    out = np.full(len(values), np.nan)
    for i, v in enumerate(values):
        if v is None or (isinstance(v, float) and np.isnan(v)):
            continue
        text = str(v).strip().replace("\u2212", "-").replace("\u00a0", "")
        if text.lower() in MISSING:
            continue
        if comma and re.fullmatch(r"[-+]?\d+,\d+", text):
            text = text.replace(",", ".")
        try:
            out[i] = float(text)
        except ValueError:
            raise LabelsError(
                f"column {str(name)!r} must hold coordinates, found {v!r} in row {i}: give them as decimal numbers"
            ) from None
    return out


def geometry_column(table: pd.DataFrame) -> tuple[int, Array, int | None] | None:
    """Return the position of the column with geometries, these (shapely or None), and the EPSG code in them.

    Shapely objects, GeoPandas arrays, WKT, EWKT, WKB (bytes or hexadecimal) and GeoJSON are read.

    Raises
    ------
    LabelsError
        If several columns hold geometries and none of them is called "geometry", or one cannot be read.
    """
    candidates = {}
    for i in range(table.shape[1]):
        column = table.iloc[:, i]
        if str(column.dtype) == "geometry" or (column.dtype == object and _holds_geometries(column)):
            candidates[i] = column
    keys = [_key(table.columns[i]) for i in candidates]
    if len(candidates) > 1 and keys.count("geometry") != 1:
        names = [str(table.columns[i]) for i in candidates]
        raise LabelsError(
            f"the table of labels has {len(names)} columns of geometries, {names}: choose the one with the places, "
            f"geopandas.GeoDataFrame(table).set_geometry({names[0]!r})"
        )
    if candidates:
        position = list(candidates)[keys.index("geometry") if len(candidates) > 1 else 0]
        return position, np.asarray(candidates[position].array, dtype=object), None
    for i, name in enumerate(table.columns):
        column = table.iloc[:, i]
        if _key(name) in _GEOMETRY or _looks_like_wkt(column):
            geometries = _read_geometries(column, name)
            if geometries is not None:
                return (i, *geometries)
    return None


def _holds_geometries(column: pd.Series) -> bool:
    values = [v for v in column if v is not None and not (isinstance(v, float) and np.isnan(v))]
    return bool(values) and all(isinstance(v, shapely.Geometry) for v in values)


def _looks_like_wkt(column: pd.Series) -> bool:
    first = next((v for v in column if isinstance(v, str) and v.strip()), "")
    kinds = "POINT|LINESTRING|POLYGON|MULTIPOINT|MULTILINESTRING|MULTIPOLYGON|GEOMETRYCOLLECTION"
    return bool(re.match(rf"\s*(SRID=\d+;)?\s*({kinds})\s*(Z|M|ZM)?\s*(\(|EMPTY)", first, re.I))


def _read_geometries(column: Any, name: Any) -> tuple[Array, int | None] | None:
    """Return the geometries of a column of text or bytes; None where its values are neither."""
    out, codes = np.empty(len(column), dtype=object), set()
    for i, value in enumerate(column):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        if isinstance(value, str) and value.strip().lower() in MISSING:
            continue
        try:
            geometry, srid = _read_geometry(value)
        except (shapely.errors.ShapelyError, ValueError, TypeError) as error:
            raise LabelsError(
                f"column {str(name)!r} must hold geometries, but row {i} is not WKT, WKB or GeoJSON ({error}): "
                f"{str(value)[:60]!r}"
            ) from None
        if geometry is None:
            return None
        out[i] = geometry
        codes |= {c for c in (srid, int(shapely.get_srid(geometry))) if c > 0}
    if len(codes) > 1:
        raise LabelsError(
            f"column {str(name)!r} holds geometries in several CRSs, EPSG {sorted(codes)}: transform them to one"
        )
    return out, next(iter(codes), None)


def _read_geometry(value: Any) -> tuple[Any, int]:
    """Return the geometry in a value and the EPSG code before it (0: none); None for values of another type."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith("{"):
            return shapely.from_geojson(text), 0
        if re.fullmatch(r"[0-9A-Fa-f]+", text):
            return shapely.from_wkb(text), 0
        srid = re.match(r"SRID=(\d+);", text, re.I)
        return shapely.from_wkt(text[srid.end() :] if srid else text), int(srid[1]) if srid else 0
    if isinstance(value, bytes | bytearray | memoryview):
        return shapely.from_wkb(bytes(value)), 0
    if isinstance(value, dict):
        return shapely.from_geojson(json.dumps(value)), 0
    return None, 0


def class_column(table: pd.DataFrame, column: Any, places: Sequence[int]) -> int:
    """Return the position of the column with the classes.

    Parameters
    ----------
    column : str, int or None
        Its name, where the caller gives one.
    places : sequence of int
        Positions of columns with geometries or coordinates.

    Raises
    ------
    LabelsError
        If `column` does not exist, or is None and several columns are possible.
    """
    others = [i for i in range(table.shape[1]) if i not in places]
    names = [str(table.columns[i]) for i in others]
    if column is not None:
        return _named_column(column, others, names)
    usual = [i for word in _CLASS for i, n in zip(others, names, strict=True) if _key(n) == word]
    if len(usual) == 1 or (usual and _one_to_one(table.iloc[:, usual[0]], table.iloc[:, usual[1]])):
        return usual[0]
    filled = [i for i in others if not table.iloc[:, i].isna().all()]
    candidates = [i for i in filled if _key(table.columns[i]) not in _IDS] or filled
    if not usual and len(candidates) == 1:
        return candidates[0]
    if not others:
        raise LabelsError(
            f"the table of labels has the columns {listed(table)} and none for the classes beside the places: add one, "
            "and name it with column="
        )
    raise LabelsError(f"several columns may hold the classes: pass column=..., one of {names}")


def _named_column(column: Any, positions: Sequence[int], names: Sequence[str]) -> int:
    if not isinstance(column, str | numbers.Integral):
        raise ArgumentTypeError(f"column must be the name of a column, got {type(column).__name__}")
    matches = [i for i, n in zip(positions, names, strict=True) if n == str(column)]
    if not matches:
        close = [n for n in names if _key(n) == _key(column)]
        raise LabelsError(
            f"column={column!r} is not in the table of labels, whose columns are {names}"
            + (f". Did you mean column={close[0]!r}?" if close else "")
        )
    if len(matches) > 1:
        raise LabelsError(f"the table of labels has {len(matches)} columns called {column!r}: rename all but one")
    return matches[0]


def _one_to_one(a: Any, b: Any) -> bool:
    """Return whether two columns tell the same classes apart, such as a name and its code."""
    pairs = {(str(u), str(v)) for u, v in zip(a, b, strict=True)}
    return len(pairs) == len({u for u, _ in pairs}) == len({v for _, v in pairs})


def plain_values(column: Any, *, text: bool = False) -> list[Any]:
    """Return the labels of a column: integers, floats or text; None where there is none.

    Text is stripped. In a column that holds text and numbers, numbers become text too.

    Parameters
    ----------
    text : bool
        Whether the column comes from a text file, in which numbers are texts without a leading zero.

    Raises
    ------
    LabelsError
        For values that are not labels, such as lists or dates.
    """
    values: list[Any] = []
    for v in column:
        missing = v is None or (np.ndim(v) == 0 and not isinstance(v, str | bytes) and bool(pd.isna(v)))
        values.append(None if missing else plain_value(v))
    if text:
        values = [None if v is None or str(v).lower() in MISSING else v for v in values]
        return _numbers_in(values)
    values = [None if v == "" else v for v in values]
    if any(isinstance(v, str) for v in values):
        values = [v if v is None or isinstance(v, str) else str(v) for v in values]
    return values


def plain_value(value: Any) -> Any:
    """Return one label as an int where it is a whole number, a float, or text without spaces around it."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, numbers.Integral):  # True and False count as 1 and 0
        return int(value)
    if isinstance(value, numbers.Real) or type(value).__name__ == "Decimal":
        real = float(value)
        return int(real) if real.is_integer() else real
    raise LabelsError(
        f"labels must be names or integers, found {value!r:.60} ({type(value).__name__}): make a column of names, "
        "table[column].astype(str)"
    )


def _numbers_in(values: list[Any]) -> list[Any]:
    """Return texts as numbers where all of them spell one; else as they are."""
    texts = [str(v) for v in values if v is not None]
    if texts and {t.lower() for t in texts} <= {"true", "false"}:
        return [v if v is None else int(str(v).lower() == "true") for v in values]
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d*)([.,]\d+)?", t) for t in texts):
        return [v if v is None else plain_value(float(str(v).replace(",", "."))) for v in values]
    return values
