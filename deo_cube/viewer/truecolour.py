"""Draw the cube that was embedded in true colour, as the background of the map."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from deo_cube.cube.bands import BandMatch, match_bands
from deo_cube.cube.georeference import dims, geobox
from deo_cube.cube.open import open_cube
from deo_cube.cube.times import read_times
from deo_cube.cube.units import Radiometry, decide_radiometry, find_unit_error
from deo_cube.embedding import metadata
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError, naming
from deo_cube.heads import vectors
from deo_cube.viewer.layers import Tile, colour_png
from deo_cube.viewer.tiles import TileGrid, TileSource

__all__ = ["TrueColour", "open_for_viewing"]

Array = NDArray[Any]

RGB = ("B04", "B03", "B02")
WHITE = 3000.0
"""DN that is drawn as white."""
STRETCHED = "stretched from the 2nd to the 98th percentile, because the units of the cube are unknown"


def open_for_viewing(path: str | Path) -> xr.Dataset | xr.DataArray:
    """Return the result of `open_cube`, for a GeoTIFF in chunks small enough for the tiles of a map."""
    tif = Path(str(path)).suffix.lower() in (".tif", ".tiff")
    options: dict[str, Any] = {"chunks": {"band": 1, "x": 512, "y": 512}} if tif else {}
    with naming("cube"):
        return open_cube(path, **options)


@dataclass(frozen=True)
class TrueColour:
    """Red, green and blue of a cube, on the grid of the cube.

    Parameters
    ----------
    grid : TileGrid
    source : TileSource
    scale, add : (times, 3) float
        A colour is ``value * scale + add``.
    nodata : float or None
    times : tuple of datetime64
        Dates of the cube; empty where it has none.
    note : str
        How values become colours, for the legend.
    credit : str
        Attribution of the data, from the attributes of the cube.
    """

    grid: TileGrid
    source: TileSource
    scale: Array = field(repr=False)
    add: Array = field(repr=False)
    nodata: float | None
    times: tuple[np.datetime64, ...]
    note: str
    credit: str = ""
    kind: Literal["colour"] = "colour"

    @classmethod
    def of(cls, cube: xr.Dataset | xr.DataArray, emb: xr.DataArray | None = None) -> TrueColour:
        """Return the layer of a cube; reads one chunk per band.

        Bands, units, offset and nodata are those that `emb` records of its cube, if the values of `cube` can have these
        units; else those that the cube states; else colours are stretched, and the note says so.

        Parameters
        ----------
        cube : Dataset or DataArray
        emb : DataArray, optional
            Embeddings of this cube.

        Raises
        ------
        MissingBandsError, MissingCRSError
            If there is no red, green or blue, or no CRS.
        ArgumentError
            If the cube is of another place than the embeddings.
        """
        d = dims(cube)
        tile_grid = TileGrid(geobox(cube))
        if emb is not None:
            _check_same_place(tile_grid, TileGrid(vectors.geobox(emb)))
        match = _match(cube, {} if emb is None else _recorded(emb, "bands").get("bands", {}))
        if isinstance(cube, xr.Dataset):
            stack = cube[list(match.variables)].to_dataarray("band")
        else:
            stack = cube.isel({match.band_dim: list(match.indices)})
            stack = stack.rename({match.band_dim: "band"}) if match.band_dim != "band" else stack
        labels = read_times(cube[d.time].variable) if d.time else None
        times = tuple(labels.values) if labels is not None and labels.values is not None and labels.dated else ()
        stack = stack.rename({d.time: "time"}) if d.time and d.time != "time" else stack
        stack = stack.transpose(*(("time",) if d.time else ()), "band", d.y, d.x)
        source = TileSource.of(stack, step=512)
        credit = next((str(cube.attrs[k])[:120] for k in ("attribution", "title", "note") if cube.attrs.get(k)), "")
        n = source.shape[0]
        # The middle of a cube most likely has valid pixels.
        sample = source.square(0, source.grid[0] // 2, source.grid[1] // 2).reshape(3, -1).T
        radiometry, note = _radiometry(cube, match, emb, times if times else (None,) * n, sample)
        if radiometry is None:
            valid = sample[(np.isfinite(sample) & (sample != 0)).all(axis=1)]
            low, high = np.percentile(valid if len(valid) else np.ones((1, 3)), [2, 98], axis=0)
            span = np.maximum(high - low, 1e-12)
            scale, add = np.tile(1 / span, (n, 1)), np.tile(-low / span, (n, 1))
            return cls(tile_grid, source, scale, add, 0.0, times, note, credit)
        offsets = np.broadcast_to(np.asarray(radiometry.offset, "float64"), (n,))[:, None]
        scale, add = np.full((n, 3), radiometry.scale / WHITE), np.repeat(offsets, 3, axis=1) / WHITE
        return cls(tile_grid, source, scale, add, radiometry.nodata, times, note, credit)

    def nearest(self, time: str, step: int) -> int:
        """Return the cube's step for a date of the embeddings: the nearest, or the same where there are no dates."""
        try:
            date = np.datetime64(time)
        except ValueError:  # a label that is not a date
            date = np.datetime64("NaT")
        if not self.times or np.isnat(date):
            return step if step < len(self.scale) else 0
        return int(np.argmin([abs((t - date) / np.timedelta64(1, "s")) for t in self.times]))

    def tile(self, t: int, z: int, x: int, y: int) -> Tile:
        """Return the colours of a tile; `t` counts the dates of the cube."""
        sampled = self.source.gather(t, *self.grid.tile(z, x, y))
        v = sampled.vectors.astype("float64")
        bright = (v * self.scale[t] + self.add[t]).clip(0, 1) ** 0.8
        if self.nodata is not None and np.isfinite(self.nodata):
            bright[(v == self.nodata).all(axis=1)] = np.nan
        bright[~np.isfinite(v).all(axis=1)] = np.nan
        return Tile(colour_png(sampled.spread(bright, np.nan)), sampled.complete)


def _recorded(emb: xr.DataArray, name: str) -> dict[str, Any]:
    """Return what embeddings record of the cube that they were made from; empty where they record nothing."""
    try:
        record = json.loads(emb.attrs.get(metadata.PREFIX + name, "{}"))
    except (TypeError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _match(cube: xr.Dataset | xr.DataArray, recorded: Mapping[str, Any]) -> BandMatch:
    """Return red, green and blue: the variables that were embedded, where this cube has them."""
    variables = {b: recorded[b].get("variable") for b in RGB if isinstance(recorded.get(b), Mapping)}
    if set(variables) == set(RGB) and all(isinstance(v, str) for v in variables.values()):
        with contextlib.suppress(DeoCubeError):
            return match_bands(cube, RGB, model="true colour", given=variables)
    return match_bands(cube, RGB, model="true colour")


def _radiometry(
    cube: xr.Dataset | xr.DataArray,
    match: BandMatch,
    emb: xr.DataArray | None,
    times: Sequence[Any],
    sample: Array,
) -> tuple[Radiometry | None, str]:
    """Return the units of the cube, None where they are unknown, and the note that says where they come from."""
    stretch, doubt = f"reflectance 0 to {WHITE / 10000:g}", ""
    if emb is not None and (recorded := _recorded_radiometry(emb, times)) is not None:
        doubt = find_unit_error(sample, recorded) or ""
        if not doubt:
            return recorded, f"{stretch}, units as the embeddings record them"
        doubt = f"; not the units of the embeddings: {doubt.partition(':')[0]}"
    try:
        return decide_radiometry(cube, match), stretch + doubt
    except AmbiguousUnitsError:
        return None, STRETCHED + doubt


def _recorded_radiometry(emb: xr.DataArray, times: Sequence[Any]) -> Radiometry | None:
    """Return the radiometry that embeddings record, for the dates of the cube; None where it lacks some of them."""
    r = _recorded(emb, "radiometry")
    try:
        add = r["add"]
        if isinstance(add, list):
            # One offset per date of the embeddings: each date of the cube takes that of the same date.
            dates = np.atleast_1d(emb["time"].values)
            known = dict(zip(dates.tolist(), add, strict=True))
            add = [known[t.astype(dates.dtype).item()] for t in times]
        nodata = None if r["nodata"] is None else float(r["nodata"])
        return Radiometry(r["units"], float(r["scale"]), tuple(float(a) for a in np.atleast_1d(add)), nodata)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _check_same_place(cube: TileGrid, emb: TileGrid) -> None:
    ((s, w), (n, e)), ((south, west), (north, east)) = cube.bounds, emb.bounds
    if not any(s < north and n > south and w + k < east and e + k > west for k in (-360, 0, 360)):
        raise ArgumentError(
            f"cube= must be the cube that was embedded, at {south:.3f} to {north:.3f} degrees north, {west:.3f} to "
            f"{east:.3f} east; got one at {s:.3f} to {n:.3f} north, {w:.3f} to {e:.3f} east"
        )
