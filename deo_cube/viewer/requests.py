"""Parse and check what the page sends; every refusal is one sentence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from shapely.geometry import Polygon
from shapely.validation import explain_validity

from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS

__all__ = [
    "BadRequest",
    "LabelSet",
    "parse_bounds",
    "parse_choice",
    "parse_dates",
    "parse_ids",
    "parse_int",
    "parse_place",
    "parse_places",
    "read_json",
]

MAX_BYTES = 16 * 2**20
"""Largest body of a request."""
MAX_LABELS = 20000
MAX_CORNERS = 100_000
MAX_PLACES = 200


class BadRequest(ValueError):
    """A request that cannot be answered, with its HTTP status."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_json(body: bytes) -> dict[str, Any]:
    """Return the JSON object in the body of a request."""
    if len(body) > MAX_BYTES:
        raise BadRequest(f"a request holds at most {MAX_BYTES // 2**20} MB", 413)
    try:
        # NaN and Infinity are not JSON, though Python reads them.
        value = json.loads(body, parse_constant=lambda name: _refuse(f"{name} is not a number"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise BadRequest("the request must be a JSON object")
    return value


def _refuse(message: str) -> Any:
    raise ArgumentError(message)


def parse_int(value: Any, what: str, low: int, high: int) -> int:
    """Return an integer from `low` up to, not including, `high`."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise BadRequest(f"{what} must be a whole number from {low} to {high - 1}, got {value!r:.40}")
    return value


def parse_choice(value: Any, what: str, choices: Sequence[str]) -> str:
    """Return a value, if it is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise BadRequest(f"{what} must be one of {', '.join(choices)}, got {value!r:.40}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"a coordinate must be a finite number, got {value!r:.40}")
    return float(value)


def parse_place(value: Any) -> tuple[float, float]:
    """Return [longitude, latitude] in degrees; longitudes may continue beyond 180."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise BadRequest(f"a place must be [longitude, latitude], got {value!r:.60}")
    lon, lat = _number(value[0]), _number(value[1])
    if not (-540 <= lon <= 540 and -90 <= lat <= 90):
        raise BadRequest(f"a place must be [longitude, latitude] in degrees, got [{lon:g}, {lat:g}]")
    return lon, lat


def parse_places(value: Any) -> list[tuple[float, float]]:
    """Return one or more places."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_PLACES:
        raise BadRequest(f"places must be a list of 1 to {MAX_PLACES} places [longitude, latitude]")
    return [parse_place(p) for p in value]


def parse_bounds(value: Any) -> tuple[float, float, float, float] | None:
    """Return (west, south, east, north) of two places, south-west and north-east; None for None.

    Raises
    ------
    BadRequest
        For anything else, and bounds without an area.
    """
    if value is None:
        return None
    corners = parse_places(value)
    if len(corners) != 2:
        raise BadRequest("bounds must be two places, south-west and north-east")
    (west, south), (east, north) = corners
    if west >= east or south >= north:
        raise BadRequest(f"bounds must be south-west and north-east of an area, got {value!r:.80}")
    return west, south, east, north


def parse_dates(first: Any, last: Any) -> slice | None:
    """Return the dates from `first` to `last`, written YYYY-MM-DD, as a slice; None where neither is given.

    Raises
    ------
    BadRequest
        For other texts, and a first date after the last.
    """
    given: list[str | None] = []
    for value in (first, last):
        if value is not None and value != "":
            try:
                given.append(date.fromisoformat(value).isoformat())
            except (TypeError, ValueError):
                raise BadRequest(f"a date must be written YYYY-MM-DD, got {value!r:.40}") from None
        else:
            given.append(None)
    start, stop = given
    if start is not None and stop is not None and start > stop:
        raise BadRequest(f"the first date must not be after the last, got {start} and {stop}")
    return None if start is None and stop is None else slice(start, stop)


def parse_ids(value: Any) -> list[int]:
    """Return the ids of at most `MAX_PLACES` patches of an index; none for None."""
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise BadRequest(f"ids must be a list of at most {MAX_PLACES} ids of results")
    return [parse_int(v, "the id of a result", 0, 2**53) for v in value]


def _ring(value: Any) -> list[tuple[float, float]]:
    if not isinstance(value, list) or len(value) < 4:
        raise BadRequest("a ring of a polygon must have four places or more, the last equal to the first")
    ring = [parse_place(p) for p in value]
    if ring[0] != ring[-1]:
        raise BadRequest("a ring of a polygon must be closed: its last place must equal its first")
    return ring


def _geometry(value: Any) -> dict[str, Any]:
    """Return a GeoJSON point or polygon, if it is valid."""
    if not isinstance(value, Mapping):
        raise BadRequest("a label must have a geometry, a GeoJSON Point or Polygon")
    kind, coordinates = value.get("type"), value.get("coordinates")
    if kind == "Point":
        return {"type": "Point", "coordinates": list(parse_place(coordinates))}
    if kind != "Polygon" or not isinstance(coordinates, list) or not coordinates:
        raise BadRequest(f"a label must be a GeoJSON Point or Polygon, got {kind!r:.40}")
    rings = [_ring(r) for r in coordinates]
    if sum(len(r) for r in rings) > MAX_CORNERS:
        raise BadRequest(f"a polygon must have at most {MAX_CORNERS} corners")

    polygon = Polygon(rings[0], rings[1:])
    if not polygon.is_valid or polygon.area == 0:
        why = explain_validity(polygon) if not polygon.is_valid else "it has no area"
        raise BadRequest(f"a polygon is not valid: {why}. Draw it without crossing lines")
    return {"type": "Polygon", "coordinates": [[list(p) for p in r] for r in rings]}


def _names_and_colors(classes: list[Any]) -> tuple[dict[int, str], dict[int, str]]:
    """Return name and colour of each class, by its code."""
    names: dict[int, str] = {}
    colors: dict[int, str] = {}
    for c in classes:
        if not isinstance(c, Mapping):
            raise BadRequest("a class must be {code, name, color}")
        code = parse_int(c.get("code"), "the code of a class", 0, NO_CLASS)
        name, color = c.get("name"), c.get("color")
        if not isinstance(name, str) or not name.strip() or len(name) > 60:
            raise BadRequest(f"the name of a class must be text of 1 to 60 characters, got {name!r:.40}")
        if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
            raise BadRequest(f"the colour of a class must be written #rrggbb, got {color!r:.40}")
        if code in names or name.strip() in names.values():
            raise BadRequest(f"two classes have the code {code} or the name {name.strip()!r}")
        names[code], colors[code] = name.strip(), color.lower()
    return names, colors


@dataclass(frozen=True)
class LabelSet:
    """Labels drawn on the map, in WGS 84.

    Parameters
    ----------
    names, colors : dict
        Name and colour of each class, by its code.
    geometries : tuple of dict
        GeoJSON points and polygons.
    codes : tuple of int
        The class of each.
    """

    names: dict[int, str] = field(default_factory=lambda: {1: "positive", 0: "negative"})
    colors: dict[int, str] = field(default_factory=lambda: {1: "#e69f00", 0: "#0072b2"})
    geometries: tuple[dict[str, Any], ...] = ()
    codes: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> LabelSet:
        """Return the labels of the page: ``{"classes": [{code, name, color}], "features": [GeoJSON features]}``."""
        classes, features = value.get("classes"), value.get("features")
        if not isinstance(classes, list) or not isinstance(features, list):
            raise BadRequest('labels must be {"classes": [...], "features": [...]}')
        if len(features) > MAX_LABELS:
            raise BadRequest(f"labels must be at most {MAX_LABELS}, got {len(features)}", 413)
        names, colors = _names_and_colors(classes)
        geometries, codes = [], []
        for f in features:
            if not isinstance(f, Mapping) or not isinstance(f.get("properties"), Mapping):
                raise BadRequest("a label must be a GeoJSON feature with properties")
            code = parse_int(f["properties"].get("class"), "the class of a label", 0, NO_CLASS)
            if code not in names:
                raise BadRequest(f"the class of a label must be one of {sorted(names)}, got {code}")
            geometries.append(_geometry(f.get("geometry")))
            codes.append(code)
        return cls(names, colors, tuple(geometries), tuple(codes))

    def __len__(self) -> int:
        return len(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """Return a GeoJSON FeatureCollection with the classes beside it, which `of` reads."""
        return {
            "type": "FeatureCollection",
            "classes": [{"code": k, "name": n, "color": self.colors[k]} for k, n in self.names.items()],
            "features": [
                {
                    "type": "Feature",
                    "properties": {"label": self.names[k], "class": k, "color": self.colors[k]},
                    "geometry": g,
                }
                for g, k in zip(self.geometries, self.codes, strict=True)
            ],
        }

    def to_geopandas(self) -> Any:
        """Return a GeoDataFrame with the columns label, class, color and geometry, EPSG:4326."""
        import geopandas as gpd

        features = self.to_dict()["features"]
        columns = ["label", "class", "color", "geometry"]
        if not features:
            return gpd.GeoDataFrame({c: [] for c in columns}, geometry="geometry", crs="EPSG:4326")
        return gpd.GeoDataFrame.from_features(features, crs="EPSG:4326")[columns]
