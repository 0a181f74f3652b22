"""Columns of tables as people have them: where the places are, where the classes are, and what their values mean."""

from __future__ import annotations

import json
import numbers
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deo_cube.errors import ArgumentTypeError, LabelsError

__all__ = ["class_column", "coordinate_columns", "geometry_column", "plain_value", "plain_values", "to_numbers"]

Array = NDArray[Any]

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
"""Texts, in small letters, that stand for no value in a file of text."""


def _key(name: Any) -> str:
    return re.sub(r"[^a-z0-9]", "", str(name).lower())


def listed(table: Any) -> list[str]:
    """Names of the columns, as messages show them."""
    return [str(c) for c in table.columns]


def coordinate_columns(table: Any, crs: Any) -> tuple[int, int, bool] | None:
    """Positions of the columns of x and y, and whether their names say that they are degrees; None without a pair.

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
    """A column of coordinates as float64; NaN where it is blank.

    `comma`: whether a comma may be a decimal one.

    Raises
    ------
    LabelsError
        For anything that is no number, such as degrees with minutes.
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
                f"column {str(name)!r} holds coordinates, found {v!r} in row {i}: give them as decimal numbers"
            ) from None
    return out


def geometry_column(table: Any) -> tuple[int, Array, int | None] | None:
    """Position of the column with geometries, these (shapely, None where there is none), and the EPSG code in them.

    Shapely objects, GeoPandas arrays, WKT, EWKT, WKB (bytes or hexadecimal) and GeoJSON are read.

    Raises
    ------
    LabelsError
        If several columns hold geometries and none of them is called "geometry", or one cannot be read.
    """
    found = {}
    for i in range(table.shape[1]):
        column = table.iloc[:, i]
        if str(column.dtype) == "geometry" or (column.dtype == object and _holds_geometries(column)):
            found[i] = column
    keys = [_key(table.columns[i]) for i in found]
    if len(found) > 1 and keys.count("geometry") != 1:
        names = [str(table.columns[i]) for i in found]
        raise LabelsError(
            f"the table of labels has {len(names)} columns of geometries, {names}: say which one holds the places, "
            f"geopandas.GeoDataFrame(table).set_geometry({names[0]!r})"
        )
    if found:
        at = list(found)[keys.index("geometry") if len(found) > 1 else 0]
        return at, np.asarray(found[at].array, dtype=object), None
    for i, name in enumerate(table.columns):
        column = table.iloc[:, i]
        if _key(name) in _GEOMETRY or _looks_like_wkt(column):
            read = _read_geometries(column, name)
            if read is not None:
                return (i, *read)
    return None


def _holds_geometries(column: Any) -> bool:
    import shapely

    values = [v for v in column if v is not None and not (isinstance(v, float) and np.isnan(v))]
    return bool(values) and all(isinstance(v, shapely.Geometry) for v in values)


def _looks_like_wkt(column: Any) -> bool:
    first = next((v for v in column if isinstance(v, str) and v.strip()), "")
    kinds = "POINT|LINESTRING|POLYGON|MULTIPOINT|MULTILINESTRING|MULTIPOLYGON|GEOMETRYCOLLECTION"
    return bool(re.match(rf"\s*(SRID=\d+;)?\s*({kinds})\s*(Z|M|ZM)?\s*(\(|EMPTY)", first, re.I))


def _read_geometries(column: Any, name: Any) -> tuple[Array, int | None] | None:
    """Geometries of a column of text or bytes; None where its values are neither."""
    import shapely

    out, codes = np.empty(len(column), dtype=object), set()
    for i, value in enumerate(column):
        if value is None or (isinstance(value, float) and np.isnan(value)):
            continue
        if isinstance(value, str) and value.strip().lower() in MISSING:
            continue
        try:
            if isinstance(value, str):
                text = value.strip()
                srid = re.match(r"SRID=(\d+);", text, re.I)
                if text.startswith("{"):
                    out[i] = shapely.from_geojson(text)
                elif re.fullmatch(r"[0-9A-Fa-f]+", text):
                    out[i] = shapely.from_wkb(text)
                else:
                    out[i] = shapely.from_wkt(text[srid.end() :] if srid else text)
                codes |= {int(srid[1])} if srid else set()
            elif isinstance(value, bytes | bytearray | memoryview):
                out[i] = shapely.from_wkb(bytes(value))
            elif isinstance(value, dict):
                out[i] = shapely.from_geojson(json.dumps(value))
            else:
                return None
        except (shapely.errors.ShapelyError, ValueError, TypeError) as error:
            raise LabelsError(
                f"column {str(name)!r} holds geometries, but that of row {i} is no WKT, WKB or GeoJSON ({error}): "
                f"{str(value)[:60]!r}"
            ) from None
        codes |= {int(c) for c in [shapely.get_srid(out[i])] if c > 0}
    if len(codes) > 1:
        raise LabelsError(
            f"column {str(name)!r} holds geometries in several CRSs, EPSG {sorted(codes)}: bring them to one"
        )
    return out, next(iter(codes), None)


def class_column(table: Any, column: Any, places: Sequence[int]) -> int:
    """Position of the column with the classes, `places` being those of geometries or coordinates.

    Raises
    ------
    LabelsError
        If `column` is not there, or is not given and several could be meant.
    """
    others = [i for i in range(table.shape[1]) if i not in places]
    names = [str(table.columns[i]) for i in others]
    if column is not None:
        if not isinstance(column, str | numbers.Integral):
            raise ArgumentTypeError(f"column must be the name of a column, got {type(column).__name__}")
        matches = [i for i, n in zip(others, names, strict=True) if n == str(column)]
        if not matches:
            close = [n for n in names if _key(n) == _key(column)]
            raise LabelsError(
                f"column={column!r} is not in the table of labels, whose columns are {names}"
                + (f". Did you mean column={close[0]!r}?" if close else "")
            )
        if len(matches) > 1:
            raise LabelsError(f"the table of labels has {len(matches)} columns called {column!r}: rename all but one")
        return matches[0]
    usual = [i for word in _CLASS for i, n in zip(others, names, strict=True) if _key(n) == word]
    if len(usual) == 1 or (usual and _one_to_one(table.iloc[:, usual[0]], table.iloc[:, usual[1]])):
        return usual[0]
    filled = [i for i in others if not table.iloc[:, i].isna().all()]
    named = [i for i in filled if _key(table.columns[i]) not in _IDS] or filled
    if not usual and len(named) == 1:
        return named[0]
    if not others:
        raise LabelsError(
            f"the table of labels has the columns {listed(table)} and none for the classes beside the places: add one, "
            "and name it with column="
        )
    raise LabelsError(f"which column holds the classes? Pass column=..., one of {names}")


def _one_to_one(a: Any, b: Any) -> bool:
    """Whether two columns tell the same classes apart, such as a name and its code."""
    pairs = {(str(u), str(v)) for u, v in zip(a, b, strict=True)}
    return len(pairs) == len({u for u, _ in pairs}) == len({v for _, v in pairs})


def plain_values(column: Any, *, text: bool = False) -> list[Any]:
    """Labels of a column: integers, floats or text; None where there is none.

    Text is stripped. In a column that holds text and numbers, numbers are text too. `text`: the column comes from a
    file of text, in which numbers are those whose spelling has no leading zero.

    Raises
    ------
    LabelsError
        For values that are no labels, such as lists or dates.
    """
    import pandas as pd

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
    """One label as an int where it is a whole number, a float, or text without spaces around it."""
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
        f"labels are names or whole numbers, found {value!r:.60} ({type(value).__name__}): make a column of names, "
        "table[column].astype(str)"
    )


def _numbers_in(values: list[Any]) -> list[Any]:
    """Texts of a file as the numbers that all of them spell; as they are where one of them does not."""
    texts = [str(v) for v in values if v is not None]
    if texts and {t.lower() for t in texts} <= {"true", "false"}:
        return [v if v is None else int(str(v).lower() == "true") for v in values]
    if all(re.fullmatch(r"[-+]?(0|[1-9]\d*)([.,]\d+)?", t) for t in texts):
        return [v if v is None else plain_value(float(str(v).replace(",", "."))) for v in values]
    return values
