"""True colour of the cube that was embedded, for the map beneath the embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.bands import match_bands
from deo_cube.cube.files import open_cube
from deo_cube.cube.grid import dims, geobox
from deo_cube.cube.radiometry import decide_radiometry
from deo_cube.errors import AmbiguousUnitsError
from deo_cube.view import paint
from deo_cube.view.layers import Drawn
from deo_cube.view.places import Places
from deo_cube.view.source import Source

__all__ = ["TrueColour", "open_for_viewing"]

Array = NDArray[Any]

WHITE = 3000.0
"""DN that is drawn white."""
STRETCHED = "stretched from the 2nd to the 98th percentile: the units of the cube are not clear"


def open_for_viewing(path: str | Path) -> xr.Dataset | xr.DataArray:
    """`open_cube`, a GeoTIFF in chunks small enough for the tiles of a map."""
    tif = Path(str(path)).suffix.lower() in (".tif", ".tiff")
    options: dict[str, Any] = {"chunks": {"band": 1, "x": 512, "y": 512}} if tif else {}
    return open_cube(path, **options)


@dataclass(frozen=True)
class TrueColour:
    """Red, green and blue of a cube, on the cube's own grid."""

    places: Places
    source: Source
    scale: Array = field(repr=False)
    """Colour = value * scale + add, both (times, 3)."""
    add: Array = field(repr=False)
    nodata: float | None
    times: tuple[np.datetime64, ...]
    """Of the cube; empty where it has none."""
    note: str
    """How values become colours, for the legend."""
    credit: str = ""
    """Whose data they are, as the cube's attributes say."""
    kind: Literal["colour"] = "colour"

    @classmethod
    def of(cls, cube: xr.Dataset | xr.DataArray) -> TrueColour:
        """Find the bands and decide on the stretch; reads a few chunks where the units are not clear.

        Raises
        ------
        MissingBandsError, MissingCRSError
            If there is no red, green or blue, or no map.
        """
        d = dims(cube)
        match = match_bands(cube, ("B04", "B03", "B02"), model="true colour")
        if isinstance(cube, xr.Dataset):
            stack = cube[list(match.variables)].to_dataarray("band")
        else:
            stack = cube.isel({match.band_dim: list(match.indices)})
            stack = stack.rename({match.band_dim: "band"}) if match.band_dim != "band" else stack
        times = tuple(cube[d.time].values) if d.time and cube[d.time].dtype.kind == "M" else ()
        stack = stack.rename({d.time: "time"}) if d.time and d.time != "time" else stack
        stack = stack.transpose(*(("time",) if d.time else ()), "band", d.y, d.x)
        source = Source.of(stack, step=512)
        credit = next((str(cube.attrs[k])[:120] for k in ("attribution", "title", "note") if cube.attrs.get(k)), "")
        n = source.shape[0]
        try:
            r = decide_radiometry(cube, match)
        except AmbiguousUnitsError:
            some = source.scatter(0)
            some = some[(some != 0).all(axis=1)] if len(some) else np.ones((1, 3))
            low, high = np.percentile(some, [2, 98], axis=0)
            span = np.maximum(high - low, 1e-12)
            scale, add = np.tile(1 / span, (n, 1)), np.tile(-low / span, (n, 1))
            return cls(Places(geobox(cube)), source, scale, add, 0.0, times, STRETCHED, credit)
        offsets = np.broadcast_to(np.asarray(r.add, "float64"), (n,))[:, None]
        scale, add = np.full((n, 3), r.scale / WHITE), np.repeat(offsets, 3, axis=1) / WHITE
        note = f"reflectance 0 to {WHITE / 10000:g}"
        return cls(Places(geobox(cube)), source, scale, add, r.nodata, times, note, credit)

    def nearest(self, time: np.datetime64 | None) -> int:
        """Which date of the cube is nearest to one of the embeddings."""
        if not self.times or time is None:
            return 0
        return int(np.argmin([abs((t - time) / np.timedelta64(1, "s")) for t in self.times]))

    def tile(self, t: int, z: int, x: int, y: int) -> Drawn:
        """Colours of a tile; `t` counts the cube's own dates."""
        found = self.source.gather(t, *self.places.tile(z, x, y))
        v = found.vectors.astype("float64")
        bright = (v * self.scale[t] + self.add[t]).clip(0, 1) ** 0.8
        if self.nodata is not None and np.isfinite(self.nodata):
            bright[(v == self.nodata).all(axis=1)] = np.nan
        bright[~np.isfinite(v).all(axis=1)] = np.nan
        return Drawn(paint.colour_png(found.spread(bright, np.nan)), found.complete)
