"""True colour of the cube that was embedded, for the map beneath the embeddings."""

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
from deo_cube.errors import AmbiguousUnitsError, ArgumentError, DeoCubeError
from deo_cube.heads import vectors
from deo_cube.view import paint
from deo_cube.view.layers import Drawn
from deo_cube.view.places import Places
from deo_cube.view.source import Source

__all__ = ["TrueColour", "open_for_viewing"]

Array = NDArray[Any]

RGB = ("B04", "B03", "B02")
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
    def of(cls, cube: xr.Dataset | xr.DataArray, emb: xr.DataArray | None = None) -> TrueColour:
        """Find the bands and decide how values become colours; reads one chunk per band.

        Bands, units, offset and nodata are those that `emb` records of the cube it was made from, where the cube's
        values can be in them; else what the cube itself says; else colours are stretched, and the note says so.

        Parameters
        ----------
        cube : Dataset or DataArray
        emb : DataArray, optional
            Embeddings of this cube.

        Raises
        ------
        MissingBandsError, MissingCRSError
            If there is no red, green or blue, or no map.
        ArgumentError
            If the cube lies elsewhere than the embeddings.
        """
        d = dims(cube)
        places = Places(geobox(cube))
        if emb is not None:
            _check_same_place(places, Places(vectors.geobox(emb)))
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
        source = Source.of(stack, step=512)
        credit = next((str(cube.attrs[k])[:120] for k in ("attribution", "title", "note") if cube.attrs.get(k)), "")
        n = source.shape[0]
        # In the middle, where a cube has pixels if it has any.
        some = source.square(0, source.grid[0] // 2, source.grid[1] // 2).reshape(3, -1).T
        r, note = _radiometry(cube, match, emb, times if times else (None,) * n, some)
        if r is None:
            valid = some[(np.isfinite(some) & (some != 0)).all(axis=1)]
            low, high = np.percentile(valid if len(valid) else np.ones((1, 3)), [2, 98], axis=0)
            span = np.maximum(high - low, 1e-12)
            scale, add = np.tile(1 / span, (n, 1)), np.tile(-low / span, (n, 1))
            return cls(places, source, scale, add, 0.0, times, note, credit)
        offsets = np.broadcast_to(np.asarray(r.offset, "float64"), (n,))[:, None]
        scale, add = np.full((n, 3), r.scale / WHITE), np.repeat(offsets, 3, axis=1) / WHITE
        return cls(places, source, scale, add, r.nodata, times, note, credit)

    def nearest(self, time: str, step: int) -> int:
        """Return the cube's step for a date of the embeddings: the nearest, or the same where there are no dates."""
        try:
            date = np.datetime64(time)
        except ValueError:  # a label that is no date
            date = np.datetime64("NaT")
        if not self.times or np.isnat(date):
            return step if step < len(self.scale) else 0
        return int(np.argmin([abs((t - date) / np.timedelta64(1, "s")) for t in self.times]))

    def tile(self, t: int, z: int, x: int, y: int) -> Drawn:
        """Colours of a tile; `t` counts the cube's own dates."""
        found = self.source.gather(t, *self.places.tile(z, x, y))
        v = found.vectors.astype("float64")
        bright = (v * self.scale[t] + self.add[t]).clip(0, 1) ** 0.8
        if self.nodata is not None and np.isfinite(self.nodata):
            bright[(v == self.nodata).all(axis=1)] = np.nan
        bright[~np.isfinite(v).all(axis=1)] = np.nan
        return Drawn(paint.colour_png(found.spread(bright, np.nan)), found.complete)


def _recorded(emb: xr.DataArray, name: str) -> dict[str, Any]:
    """What embeddings record of the cube that they were made from; empty where they record nothing."""
    try:
        found = json.loads(emb.attrs.get(metadata.PREFIX + name, "{}"))
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _match(cube: xr.Dataset | xr.DataArray, recorded: Mapping[str, Any]) -> BandMatch:
    """Red, green and blue as the embeddings took them from their cube, where this one has those variables."""
    given = {b: recorded[b].get("variable") for b in RGB if isinstance(recorded.get(b), Mapping)}
    if set(given) == set(RGB) and all(isinstance(v, str) for v in given.values()):
        with contextlib.suppress(DeoCubeError):
            return match_bands(cube, RGB, model="true colour", given=given)
    return match_bands(cube, RGB, model="true colour")


def _radiometry(
    cube: xr.Dataset | xr.DataArray,
    match: BandMatch,
    emb: xr.DataArray | None,
    times: Sequence[Any],
    some: Array,
) -> tuple[Radiometry | None, str]:
    """Units of the cube, None where they are not clear, and the note that says where they come from."""
    shown, doubt = f"reflectance 0 to {WHITE / 10000:g}", ""
    if emb is not None and (recorded := _of_record(emb, times)) is not None:
        doubt = find_unit_error(some, recorded) or ""
        if not doubt:
            return recorded, f"{shown}, units as the embeddings record them"
        doubt = f"; not the units of the embeddings: {doubt.partition(':')[0]}"
    try:
        return decide_radiometry(cube, match), shown + doubt
    except AmbiguousUnitsError:
        return None, STRETCHED + doubt


def _of_record(emb: xr.DataArray, times: Sequence[Any]) -> Radiometry | None:
    """The radiometry that embeddings record, for the dates of the cube; None where it does not tell of them."""
    r = _recorded(emb, "radiometry")
    try:
        add = r["add"]
        if isinstance(add, list):
            # One per date of the embeddings: a date of the cube has that of the same date.
            dates = np.atleast_1d(emb["time"].values)
            known = dict(zip(dates.tolist(), add, strict=True))
            add = [known[t.astype(dates.dtype).item()] for t in times]
        nodata = None if r["nodata"] is None else float(r["nodata"])
        return Radiometry(r["units"], float(r["scale"]), tuple(float(a) for a in np.atleast_1d(add)), nodata)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _check_same_place(cube: Places, emb: Places) -> None:
    ((s, w), (n, e)), ((south, west), (north, east)) = cube.bounds, emb.bounds
    if not any(s < north and n > south and w + k < east and e + k > west for k in (-360, 0, 360)):
        raise ArgumentError(
            f"the cube lies at {s:.3f} to {n:.3f} degrees north, {w:.3f} to {e:.3f} east, the embeddings at "
            f"{south:.3f} to {north:.3f} north, {west:.3f} to {east:.3f} east: pass the cube that was embedded as cube="
        )
