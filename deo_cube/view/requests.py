"""What the page may ask for: read from JSON, checked, refused in a sentence."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deo_cube.errors import ArgumentError
from deo_cube.heads.classes import NO_CLASS

__all__ = ["BadRequest", "LabelSet", "chosen", "place", "places", "read_json", "whole"]

MOST_BYTES = 16 * 2**20
"""Of a request."""
MOST_LABELS = 20000
MOST_CORNERS = 100_000
MOST_PLACES = 200


class BadRequest(ValueError):
    """A request that cannot be answered, with the HTTP status that says so."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a request holds."""
    if len(body) > MOST_BYTES:
        raise BadRequest(f"a request holds at most {MOST_BYTES // 2**20} MB", 413)
    try:
        # NaN and Infinity are no JSON, though Python reads them.
        found = json.loads(body, parse_constant=lambda name: _refuse(f"{name} is not a number"))
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"the request is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise BadRequest("the request must be a JSON object")
    return found


def _refuse(message: str) -> Any:
    raise ArgumentError(message)


def whole(value: Any, what: str, low: int, high: int) -> int:
    """An integer from `low` up to, not including, `high`."""
    if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,9}", value):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise BadRequest(f"{what} must be a whole number from {low} to {high - 1}, got {value!r:.40}")
    return value


def chosen(value: Any, what: str, among: Sequence[str]) -> str:
    """One of several words."""
    if not isinstance(value, str) or value not in among:
        raise BadRequest(f"{what} must be one of {', '.join(among)}, got {value!r:.40}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadRequest(f"a coordinate must be a finite number, got {value!r:.40}")
    return float(value)


def place(value: Any) -> tuple[float, float]:
    """[longitude, latitude] in degrees; longitudes may run on beyond 180."""
    if not isinstance(value, list | tuple) or len(value) < 2:
        raise BadRequest(f"a place is [longitude, latitude], got {value!r:.60}")
    lon, lat = _number(value[0]), _number(value[1])
    if not (-540 <= lon <= 540 and -90 <= lat <= 90):
        raise BadRequest(f"a place is [longitude, latitude] in degrees, got [{lon:g}, {lat:g}]")
    return lon, lat


def places(value: Any) -> list[tuple[float, float]]:
    """One or more places."""
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_PLACES:
        raise BadRequest(f"places must be a list of 1 to {MOST_PLACES} places [longitude, latitude]")
    return [place(p) for p in value]


def _ring(value: Any) -> list[tuple[float, float]]:
    if not isinstance(value, list) or len(value) < 4:
        raise BadRequest("a ring of a polygon has four places or more, the last equal to the first")
    ring = [place(p) for p in value]
    if ring[0] != ring[-1]:
        raise BadRequest("a ring of a polygon is not closed: its last place must equal its first")
    return ring


def _geometry(value: Any) -> dict[str, Any]:
    """A point or polygon of GeoJSON, as shapely finds it valid."""
    if not isinstance(value, Mapping):
        raise BadRequest("a label has a geometry, a GeoJSON Point or Polygon")
    kind, at = value.get("type"), value.get("coordinates")
    if kind == "Point":
        return {"type": "Point", "coordinates": list(place(at))}
    if kind != "Polygon" or not isinstance(at, list) or not at:
        raise BadRequest(f"a label is a GeoJSON Point or Polygon, got {kind!r:.40}")
    rings = [_ring(r) for r in at]
    if sum(len(r) for r in rings) > MOST_CORNERS:
        raise BadRequest(f"a polygon has at most {MOST_CORNERS} corners")
    from shapely.geometry import Polygon
    from shapely.validation import explain_validity

    polygon = Polygon(rings[0], rings[1:])
    if not polygon.is_valid or polygon.area == 0:
        why = explain_validity(polygon) if not polygon.is_valid else "it has no area"
        raise BadRequest(f"a polygon is not valid: {why}. Draw it without crossing lines")
    return {"type": "Polygon", "coordinates": [[list(p) for p in r] for r in rings]}


@dataclass(frozen=True)
class LabelSet:
    """Labels drawn on the map, in WGS 84.

    Parameters
    ----------
    names, colors : dict
        Of each class, by its code.
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
        """Read what the page sends: ``{"classes": [{code, name, color}], "features": [GeoJSON features]}``."""
        classes, features = value.get("classes"), value.get("features")
        if not isinstance(classes, list) or not isinstance(features, list):
            raise BadRequest('labels are {"classes": [...], "features": [...]}')
        if len(features) > MOST_LABELS:
            raise BadRequest(f"at most {MOST_LABELS} labels, got {len(features)}", 413)
        names: dict[int, str] = {}
        colors: dict[int, str] = {}
        for c in classes:
            if not isinstance(c, Mapping):
                raise BadRequest("a class is {code, name, color}")
            code = whole(c.get("code"), "the code of a class", 0, NO_CLASS)
            name, color = c.get("name"), c.get("color")
            if not isinstance(name, str) or not name.strip() or len(name) > 60:
                raise BadRequest(f"the name of a class is a text of 1 to 60 letters, got {name!r:.40}")
            if not isinstance(color, str) or not re.fullmatch(r"#[0-9a-fA-F]{6}", color):
                raise BadRequest(f"the colour of a class is written #rrggbb, got {color!r:.40}")
            if code in names or name.strip() in names.values():
                raise BadRequest(f"two classes have the code {code} or the name {name.strip()!r}")
            names[code], colors[code] = name.strip(), color.lower()
        geometries, codes = [], []
        for f in features:
            if not isinstance(f, Mapping) or not isinstance(f.get("properties"), Mapping):
                raise BadRequest("a label is a GeoJSON feature with properties")
            code = whole(f["properties"].get("class"), "the class of a label", 0, NO_CLASS)
            if code not in names:
                raise BadRequest(f"a label is of class {code}, which is not among the classes {sorted(names)}")
            geometries.append(_geometry(f.get("geometry")))
            codes.append(code)
        return cls(names, colors, tuple(geometries), tuple(codes))

    def __len__(self) -> int:
        return len(self.codes)

    def to_dict(self) -> dict[str, Any]:
        """A GeoJSON FeatureCollection with the classes beside it; it reads back with `of`."""
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
        """GeoDataFrame with the columns label, class, color and geometry, EPSG:4326."""
        import geopandas as gpd

        features = self.to_dict()["features"]
        columns = ["label", "class", "color", "geometry"]
        if not features:
            return gpd.GeoDataFrame({c: [] for c in columns}, geometry="geometry", crs="EPSG:4326")
        return gpd.GeoDataFrame.from_features(features, crs="EPSG:4326")[columns]
