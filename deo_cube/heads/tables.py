"""Labels as tables: GeoDataFrames, plain DataFrames, GeoJSON, tuples, and any file that holds one of them."""

from __future__ import annotations

import csv
import io
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.errors import (
    ArgumentError,
    ArgumentTypeError,
    DeoCubeError,
    InputNotFoundError,
    LabelsError,
    MissingCRSError,
    MissingExtraError,
)
from deo_cube.heads.columns import (
    class_column,
    coordinate_columns,
    geometry_column,
    listed,
    plain_values,
    to_numbers,
)
from deo_cube.paths import expand, is_url

__all__ = ["Table", "form_of", "located", "parsed_crs", "read_table", "stated_crs", "suffix_of"]

Array = NDArray[Any]
Form = Literal["raster", "table", "points", "shapes"]

_RASTERS = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".asc", ".png", ".bil", ".hgt", ".adf")
_TEXTS = (".csv", ".tsv", ".txt", ".tab")
_LONGITUDES = 540.0
"""Degrees of longitude beyond which a number is none, in any way of counting."""


@dataclass(frozen=True)
class Table:
    """Geometries with a class each.

    Parameters
    ----------
    shapes : (n,) object
        Shapely geometries as they were given, None where there is none.
    values : list
        The class of each: int, float or text; None where there is none.
    crs : pyproj.CRS or None
        Of the geometries; None where nothing says so, and it can only be that of the grid.
    described : str
        What the table is called in messages.
    assumed : bool
        Whether the geometries must lie within the grid for its CRS to be believed.
    """

    shapes: Array
    values: list[Any]
    crs: Any
    described: str = "the table of labels"
    assumed: bool = False


def form_of(labels: Any) -> Form:
    """Tell rasters from tables, and these from lists of points and of geometries.

    Raises
    ------
    ArgumentTypeError
        For anything else.
    """
    import pandas as pd
    import shapely

    if isinstance(labels, xr.DataArray | xr.Dataset):
        return "raster"
    if isinstance(labels, str | os.PathLike):
        return "raster" if suffix_of(labels) in _RASTERS else "table"
    if isinstance(labels, Mapping | pd.DataFrame) or hasattr(labels, "to_pandas"):
        return "table"
    if hasattr(labels, "__geo_interface__") and not isinstance(labels, pd.Series | shapely.Geometry):
        return "table"
    if isinstance(labels, np.ndarray) and labels.ndim == 2 and labels.shape[1] != 3 and labels.dtype.kind in "iubf":
        raise ArgumentTypeError(
            f"labels are an array {labels.shape} without a place: put it on the grid of the embeddings, "
            'xr.DataArray(labels, {"y": emb.y, "x": emb.x}, dims=("y", "x"))'
        )
    if isinstance(labels, Sequence | np.ndarray) and not isinstance(labels, bytes | bytearray) and len(labels):
        if all(isinstance(p, Mapping) for p in labels):
            return "table"
        if all(isinstance(p, Sequence) and len(p) == 2 and isinstance(p[0], shapely.Geometry) for p in labels):
            return "shapes"
        if all(isinstance(p, Sequence | np.ndarray) and not isinstance(p, str) and len(p) == 3 for p in labels):
            return "points"
    size = f" of {len(labels)}" if hasattr(labels, "__len__") and len(labels) else ""
    raise ArgumentTypeError(
        "labels are a table (GeoDataFrame, DataFrame, GeoJSON, or the path of a file that holds one), a raster "
        f"(DataArray or path), or a list of (x, y, label); got {type(labels).__name__}{size}"
        + (" (empty)" if hasattr(labels, "__len__") and not len(labels) else "")
        + ("; geometries alone have no class: make a GeoDataFrame" if isinstance(labels, pd.Series) else "")
    )


def parsed_crs(crs: Any) -> Any:
    """`crs` as a pyproj CRS; None stays None.

    Raises
    ------
    ArgumentError
        If it is no CRS.
    """
    if crs is None:
        return None
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        return CRS.from_user_input(getattr(crs, "proj", crs))
    except (CRSError, TypeError, ValueError) as error:
        raise ArgumentError(f'crs={crs!r} is not a CRS ({error}): pass for instance crs="EPSG:32632"') from error


def suffix_of(path: Any) -> str:
    """Ending of a path or address, in small letters and without what follows a question mark."""
    text = os.fsdecode(path)
    return Path(urlsplit(text).path if "://" in text else text).suffix.lower()


def located(path: Any) -> str:
    """A path that exists, or an address that GDAL follows (``https://``, ``s3://``, ``/vsi...``) as it is."""
    text = expand(path)
    if is_url(text) or text.startswith("/vsi"):
        return text
    if not Path(text).exists():
        raise InputNotFoundError(f"labels not found at {text}")
    return text


def read_table(labels: Any, form: Form, *, column: Any, layer: Any, crs: Any) -> Table:
    """Geometries, classes and CRS of any form of table.

    `crs` (pyproj or None) decides, whatever the table says of itself. A CSV or DataFrame with longitude and latitude
    is in degrees of WGS 84 where nothing is said. `layer` names one of several in a file.

    Raises
    ------
    LabelsError, MissingCRSError, ArgumentError, InputNotFoundError, MissingExtraError
        If the table cannot be read, or does not say where or what its labels are.
    """
    if form == "points":
        return _of_points(labels, crs)
    if form == "shapes":
        shapes = np.empty(len(labels), dtype=object)
        shapes[:] = [p[0] for p in labels]
        return Table(shapes, plain_values([p[1] for p in labels]), crs)
    if isinstance(labels, str | os.PathLike):
        path = located(labels)
        name = Path(path).name
        if suffix_of(path) in _TEXTS:
            if layer is not None:
                raise ArgumentError(f"layer={layer!r} belongs to files with layers; {name} has none")
            return _of_frame(_read_text(path), column, crs, name, text=True)
        if suffix_of(path) in (".pkl", ".pickle"):
            raise LabelsError(f"{name} is a pickle, which runs code when it is read: save it as GeoParquet")
        frame = _read_file(path, layer)
        return _of_frame(frame, column, crs, name, text=False)
    if layer is not None:
        raise ArgumentError(f"layer={layer!r} belongs to a file with layers, but labels are a {type(labels).__name__}")
    if isinstance(labels, Mapping):
        return _of_geojson(labels, column, crs)
    if isinstance(labels, Sequence):
        return _of_geojson({"type": "FeatureCollection", "features": list(labels)}, column, crs)
    if not hasattr(labels, "iloc"):
        if hasattr(labels, "__geo_interface__") and not hasattr(labels, "to_pandas"):
            return _of_geojson(labels.__geo_interface__, column, crs)
        labels = labels.to_pandas()
    return _of_frame(labels, column, crs, "the table of labels", text=False)


def _of_points(labels: Any, crs: Any) -> Table:
    import shapely

    try:
        xy = np.array([(float(p[0]), float(p[1])) for p in labels])
    except (TypeError, ValueError) as error:
        raise LabelsError(f"points of labels are (x, y, label) with numbers x and y: {error}") from error
    shapes = np.array(shapely.points(xy), dtype=object).reshape(-1)
    shapes[~np.isfinite(xy).all(axis=1)] = None
    return Table(shapes, plain_values([p[2] for p in labels]), crs, "the points of labels")


def _of_geojson(labels: Mapping[str, Any], column: Any, crs: Any) -> Table:
    import pandas as pd
    import shapely

    kind = labels.get("type")
    if kind is None and labels and all(isinstance(v, Sequence | np.ndarray) for v in labels.values()):
        try:
            return _of_frame(pd.DataFrame(dict(labels)), column, crs, "the dict of labels", text=False)
        except ValueError as error:
            if isinstance(error, DeoCubeError):
                raise
            raise LabelsError(f"the columns of the dict of labels do not fit each other: {error}") from error
    if kind not in ("FeatureCollection", "Feature"):
        raise LabelsError(f"labels in GeoJSON are a FeatureCollection with a class in the properties, got {kind!r}")
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
    table = pd.DataFrame(rows, dtype=object)
    at = class_column(table, column, [])
    if crs is None:
        crs = stated_crs(labels)
        x0, y0, x1, y1 = shapely.total_bounds(shapes)
        if crs is None and (max(-x0, x1) > _LONGITUDES or max(-y0, y1) > 90):
            raise MissingCRSError(
                f"GeoJSON without a `crs` is in degrees, but its coordinates run from ({x0:g}, {y0:g}) to "
                f'({x1:g}, {y1:g}): pass crs="EPSG:..."'
            )
        # GeoJSON without a CRS is in degrees of WGS 84 (RFC 7946, section 4).
        crs = parsed_crs(4326 if crs is None else crs)
    return Table(shapes, plain_values(table.iloc[:, at]), crs, "the GeoJSON")


def stated_crs(labels: Mapping[str, Any]) -> Any:
    """CRS that GeoJSON states (pyproj), as files older than its standard do; None where it states none."""
    named = labels.get("crs")
    stated = (named.get("properties") or {}).get("name") if isinstance(named, Mapping) else named
    if named and not stated:
        raise MissingCRSError(f'the `crs` of the GeoJSON names none, {named!r}: pass crs="EPSG:..."')
    try:
        return parsed_crs(stated)
    except ArgumentError as error:
        raise MissingCRSError(f'the `crs` of the GeoJSON, {stated!r}, is unknown: pass crs="EPSG:..."') from error


def _of_frame(frame: Any, column: Any, crs: Any, described: str, *, text: bool) -> Table:
    """Of a GeoDataFrame, or a DataFrame with geometries, WKT, or coordinates."""
    if frame.columns.nlevels > 1:
        raise LabelsError(f"{described} has columns of {frame.columns.nlevels} levels: give each one name")
    if not len(frame):
        raise LabelsError(f"no label: {described} has no rows")
    active = getattr(frame, "_geometry_column_name", None)
    names = list(frame.columns)
    if active is not None and names.count(active) == 1:
        at = names.index(active)
        shapes, code = np.asarray(frame.iloc[:, at].array, dtype=object), None
        geometries: tuple[int, Array, int | None] | None = (at, shapes, code)
    else:
        geometries = geometry_column(frame)
    if geometries is not None:
        at, shapes, code = geometries
        values = plain_values(frame.iloc[:, class_column(frame, column, _places(frame, at))], text=text)
        stated = getattr(frame.iloc[:, at].array, "crs", None)
        if crs is None and stated is None and code is None and str(frame.iloc[:, at].dtype) == "geometry":
            raise MissingCRSError(
                f'{described} states no CRS: pass crs="EPSG:...", or state it with table.set_crs("EPSG:...")'
            )
        crs = crs if crs is not None else stated if stated is not None else parsed_crs(code)
        return Table(shapes, values, crs, described, assumed=crs is None)
    pair = coordinate_columns(frame, crs)
    if pair is None:
        raise LabelsError(
            f"{described} has no column of geometries (geometry, wkt) and no pair of coordinates (lon and lat, x "
            f"and y): found {listed(frame)}. Rename them, or make a GeoDataFrame with "
            "geometry=geopandas.points_from_xy(...)"
        )
    import shapely

    x_at, y_at, degrees = pair
    x, y = (to_numbers(frame.iloc[:, i], frame.columns[i], comma=True) for i in (x_at, y_at))
    xy = np.stack([x, y], axis=1)
    values = plain_values(frame.iloc[:, class_column(frame, column, _places(frame, x_at, y_at))], text=text)
    finite = np.isfinite(xy).all(axis=1)
    shapes = np.full(len(xy), None, dtype=object)
    shapes[finite] = shapely.points(xy[finite])
    if crs is None and degrees:
        if finite.any() and (np.abs(x[finite]).max() > _LONGITUDES or np.abs(y[finite]).max() > 90):
            beyond = ~(np.abs(xy) <= [_LONGITUDES, 90]).all(axis=1) & finite
            swapped = bool((np.abs(xy[finite][:, ::-1]) <= [_LONGITUDES, 90]).all())
            if not swapped:
                raise MissingCRSError(
                    f"columns {frame.columns[x_at]!r} and {frame.columns[y_at]!r} of {described} are no degrees "
                    f'(such as {x[beyond][0]:g}, {y[beyond][0]:g}): pass crs="EPSG:..."'
                )
        crs = parsed_crs(4326)
    return Table(shapes, values, crs, described, assumed=crs is None)


def _places(frame: Any, *at: int) -> list[int]:
    """Positions of columns that hold a place, and so no class: those given and any pair of coordinates."""
    pairs = [coordinate_columns(frame, c) for c in (None, parsed_crs(3857))]
    return [*at, *(i for p in pairs if p is not None for i in p[:2])]


def _read_text(path: str) -> Any:
    """A file of text with a header, of any separator and encoding, every value as text."""
    import pandas as pd

    if "://" in path or path.startswith("/vsi"):
        raise LabelsError(f"text is read from files, not from {path}: read it first, pandas.read_csv(...)")
    raw = Path(path).read_bytes()
    text = _decoded(raw)
    header = text.lstrip("\r\n").splitlines()[:1]
    if not header or not header[0].strip():
        raise LabelsError(f"no label: {Path(path).name} is empty")
    separator: str = max(";\t|,", key=lambda s: len(next(csv.reader(header, delimiter=s))))
    if not header[0].rstrip().endswith(separator):
        # Some programs end every row with a separator, though not the header.
        text = re.sub(rf"{re.escape(separator)}[ \t]*(\r?\n|$)", r"\1", text) if separator != "\t" else text
    try:
        with warnings.catch_warnings():
            # Of a row that is longer than the header pandas would drop the rest.
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
        raise LabelsError(f"{Path(path).name} is no table of text: {str(error).strip()}") from error
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
    """A GeoDataFrame, or a DataFrame where the file has no geometries."""
    try:
        import geopandas as gpd
        import pyogrio
    except ImportError as error:
        raise MissingExtraError.wanted("geopandas", "vector", "reading labels from tables") from error
    import pandas as pd

    name, ending = Path(path).name, suffix_of(path)
    try:
        if ending in (".parquet", ".geoparquet", ".pq", ".feather"):
            if layer is not None:
                raise ArgumentError(f"layer={layer!r} belongs to files with layers; {name} has none")
            feather = ending == ".feather"
            try:
                return gpd.read_feather(path) if feather else gpd.read_parquet(path)
            except ValueError:
                # Without the metadata of GeoParquet it is a plain table, perhaps with WKB or coordinates.
                return pd.read_feather(path) if feather else pd.read_parquet(path)
        layers = pyogrio.list_layers(path)
        with_places = [str(n) for n, kind in layers if kind is not None]
        names = with_places or [str(n) for n, _ in layers]
        if layer is None:
            if len(names) > 1:
                raise ArgumentError(f"{name} has {len(names)} layers: pass layer=..., one of {names}")
            layer = names[0] if names else None
        elif isinstance(layer, bool) or not isinstance(layer, str | int):
            raise ArgumentTypeError(f"layer must be the name or number of a layer, got {layer!r}")
        elif layer not in [str(n) for n, _ in layers] and not (isinstance(layer, int) and 0 <= layer < len(layers)):
            raise LabelsError(f"layer={layer!r} is not in {name}, whose layers are {names}")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="pyogrio")
            return gpd.read_file(path, layer=layer)
    except DeoCubeError:
        raise
    except ImportError as error:
        raise MissingExtraError(f"reading {name} needs another package: {error}") from error
    except Exception as error:  # of pyogrio, pyarrow, pandas or the operating system, depending on the damage
        raise LabelsError(
            f"geopandas reads no labels from {path} ({error}). Of a raster in another format than GeoTIFF pass the "
            "DataArray"
        ) from error
