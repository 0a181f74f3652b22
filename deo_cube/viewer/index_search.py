"""Search an index from the page: results may be outside the store that is shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from deo_cube.errors import DeoCubeError, SelectionError, naming
from deo_cube.heads.index import Index, open_index
from deo_cube.viewer.server import BadRequest

__all__ = ["IndexSearch"]

Array = NDArray[Any]

METRES_PER_DEGREE = 111_320.0
MOST = 2**14
"""Patches that are looked at to find results that are apart."""


@dataclass(frozen=True)
class IndexSearch:
    """A search index of the model of the store that is shown.

    Parameters
    ----------
    index : Index
    apart : float
        Distance between results, metres.
    """

    index: Index
    apart: float

    @classmethod
    def of(cls, index: Any, emb: xr.DataArray, apart: float) -> IndexSearch:
        """Return the search in an index, or in the index at a path.

        Raises
        ------
        StoreMismatchError
            For an index of another model.
        """
        with naming("index"):
            opened = index if isinstance(index, Index) else open_index(index)
        opened.check(emb)
        # Vectors of the patches of an array are read from that array, where it is the one that is shown.
        opened.attach_where_unknown(emb)
        return cls(opened, apart)

    @property
    def background(self) -> Array:
        """Sample (n, D) of the vectors of the index."""
        return self.index.background

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know of the index: its size, and its first and last date where it has dates."""
        try:
            days = [str(np.datetime64(label, "D")) for label in self.index.times]
        except ValueError:  # labels that are not dates
            days = []
        return {
            "patches": len(self.index),
            "stores": len(self.index.sources),
            "dates": [min(days), max(days)] if days else None,
        }

    def examples(self, ids: Sequence[int]) -> tuple[list[dict[str, Any]], Array]:
        """Return what is known of patches of the index, and their vectors (n, D).

        Raises
        ------
        BadRequest
            For an id that the index does not have, and a patch without a valid vector.
        """
        if not ids:
            return [], np.empty((0, self.index.dim), "float32")
        try:
            table = self.index.patches(ids)
            vectors = self.index.vectors(ids)
        except (DeoCubeError, ValueError) as error:
            raise BadRequest(str(error.args[0])) from None
        if not np.isfinite(vectors).all():
            raise BadRequest("a result that was marked has no valid embedding in its store: mark another one")
        return self._places(table), vectors.astype("float32")

    def search(
        self,
        vectors: Array,
        count: int,
        taken: Sequence[tuple[float, float]],
        *,
        bounds: tuple[float, float, float, float] | None = None,
        time: Any = None,
    ) -> list[dict[str, Any]]:
        """Return the best patches that are apart from each other and from the places `taken` (lon, lat).

        Parameters
        ----------
        vectors : (n, D)
            Positive examples, or the direction that was fitted to all.
        count : int
            Number of results; fewer are returned where fewer are left.
        taken : sequence of (lon, lat)
        bounds : (west, south, east, north), optional
            Only patches with centres within, degrees. Longitudes may continue beyond 180, as those of a map do.
        time : slice or label, optional
            Only patches of these dates, as in `Index.search`.
        """
        # Without bounds one search of everything.
        boxes: list[Any] = [None] if bounds is None else _boxes(bounds)
        k = 8 * count
        while True:
            try:
                tables = [self.index.search(vectors, k=k, bbox=box, time=time, crs=4326) for box in boxes]
            except SelectionError:  # no date of the index is within `time`
                return []
            places = [place for table in tables for place in self._places(table)]
            places.sort(key=lambda place: -place["score"])
            # A search returns fewer than k only where no more patches are left.
            complete = all(len(table) < k for table in tables)
            # Of two boxes, what is beyond the best k of both may be worse than what one of them did not return.
            chosen = self._apart(places if complete else places[:k], count, taken)
            if len(chosen) == count or complete or k >= MOST:
                return chosen
            k *= 4

    def _apart(
        self, places: list[dict[str, Any]], count: int, taken: Sequence[tuple[float, float]]
    ) -> list[dict[str, Any]]:
        occupied, chosen = list(taken), []
        for place in places:
            lon, lat = place["lon"], place["lat"]
            across = METRES_PER_DEGREE * math.cos(math.radians(lat))
            if all(
                max(abs((lon - a + 180) % 360 - 180) * across, abs(lat - b) * METRES_PER_DEGREE) > self.apart
                for a, b in occupied
            ):
                chosen.append(place)
                occupied.append((lon, lat))
                if len(chosen) == count:
                    break
        return chosen

    def _places(self, table: Any) -> list[dict[str, Any]]:
        """Return place, date, score and store of each row of a result."""
        if not len(table):
            return []
        centres = shapely.centroid(table.geometry.to_numpy())
        x, y = shapely.get_x(centres), shapely.get_y(centres)
        lon, lat = Transformer.from_crs(self.index.crs, 4326, always_xy=True).transform(x, y)
        sources = self.index.sources
        crs = self.index.crs.to_authority()
        places = []
        for n, row in enumerate(table.itertuples(index=False)):
            store = sources[row.source].store
            place = {
                "id": int(row.id),
                "lon": float(lon[n]),
                "lat": float(lat[n]),
                "x": float(x[n]),
                "y": float(y[n]),
                "crs": ":".join(crs) if crs else self.index.crs.name,
                "store": "an array" if store is None else PurePosixPath(str(store).rstrip("/")).name,
                "date": _date(getattr(row, "time", None)),
            }
            if math.isfinite(row.score):
                place["score"] = round(float(row.score), 4)
            places.append(place)
        return places


def _boxes(bounds: tuple[float, float, float, float]) -> list[tuple[float, float, float, float]]:
    """Return bounds of a map as boxes of longitudes from -180 to 180: two where they cross the antimeridian."""
    west, south, east, north = bounds
    south, north = max(south, -90.0), min(north, 90.0)
    if east - west >= 360:
        return [(-180.0, south, 180.0, north)]
    start = (west + 180) % 360 - 180
    end = start + east - west
    parts = [(start, min(end, 180.0)), (-180.0, end - 360)]
    return [(a, south, b, north) for a, b in parts if a < b]


def _date(value: Any) -> str:
    """Return a date as the page has it: ISO 8601 in seconds, or the label."""
    if value is None or value != value:
        return ""
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else str(isoformat(timespec="seconds"))
