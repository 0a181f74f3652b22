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

from deo_cube.errors import DeoCubeError
from deo_cube.heads.examples import BACKGROUND
from deo_cube.heads.index import Index, check_model, labels_of, open_index, source_of
from deo_cube.viewer.requests import BadRequest

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
        opened = index if isinstance(index, Index) else open_index(index)
        manifest = opened._manifest
        check_model(emb, manifest, opened._files)
        # An index of an array knows no store: vectors of its patches are those of the array, where it is shown.
        own, dates = source_of(emb, None), set(labels_of(emb))
        for n, source in enumerate(manifest.sources):
            if source.store is None and n not in opened._arrays and source.same_grid(own):
                if {layer.time for layer in source.layers} <= dates:
                    opened.attach(emb, n)
        return cls(opened, apart)

    @property
    def background(self) -> Array:
        """Sample (n, D) of the vectors of the index."""
        return np.asarray(self.index._sample[:BACKGROUND])

    def describe(self) -> dict[str, Any]:
        """Return what the page needs to know of the index."""
        return {"patches": len(self.index), "stores": len(self.index._manifest.sources)}

    def examples(self, ids: Sequence[int]) -> tuple[list[dict[str, Any]], Array]:
        """Return what is known of patches of the index, and their vectors (n, D).

        Raises
        ------
        BadRequest
            For an id that the index does not have, and a patch without a valid vector.
        """
        if not ids:
            return [], np.empty((0, self.index._manifest.dim), "float32")
        try:
            table = self.index.patches(ids)
            vectors = self.index._of_ids(np.asarray(ids, "int64"))
        except (DeoCubeError, ValueError) as error:
            raise BadRequest(str(error.args[0])) from None
        if not np.isfinite(vectors).all():
            raise BadRequest("a result that was marked has no valid embedding in its store: mark another one")
        return self._places(table), vectors.astype("float32")

    def search(self, vectors: Array, count: int, taken: Sequence[tuple[float, float]]) -> list[dict[str, Any]]:
        """Return the best patches that are apart from each other and from the places `taken` (lon, lat)."""
        chosen: list[dict[str, Any]] = []
        k = 8 * count
        while True:
            table = self.index.search(vectors, k=k)
            chosen = self._apart(self._places(table), count, taken)
            if len(chosen) == count or len(table) < k or k >= MOST:
                return chosen
            k *= 4

    def _apart(self, places: list[dict[str, Any]], count: int, taken: Sequence[tuple[float, float]]) -> Any:
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
        sources = self.index._manifest.sources
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


def _date(value: Any) -> str:
    """Return a date as the page has it: ISO 8601 in seconds, or the label."""
    if value is None or value != value:
        return ""
    isoformat = getattr(value, "isoformat", None)
    return str(value) if isoformat is None else str(isoformat(timespec="seconds"))
