"""Join embeddings of overlapping runs into one array (`mosaic`), without the zone along each run's own edges.

A tile that reaches over the edge of its cube sees the cube mirrored there, so that its vectors differ from those of the
same tile in a larger cube. These tiles are the *edge zone* of a run: at most a tile wide on each side. Where runs
overlap, each tile is taken from the run in whose zone it is not; where it is in the zone of every run, from the one
whose edge is farther. Patches without a valid pixel are filled from the next run that covers them.

Tiles of one grid are the same in every run (invariant 1), so runs that overlap by one tile join to the numbers of a
single run, bit for bit.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube import arguments
from deo_cube.constants import INT8_INVALID, Attribute
from deo_cube.cube import georeference
from deo_cube.embedding.metadata import COMPARABLE, PREFIX, to_json, warn_of_levels
from deo_cube.errors import ArgumentError, StoreMismatchError, remedy
from deo_cube.store.open import opened

__all__ = ["mosaic"]

Array = NDArray[Any]

#: Facts that must be the same in all runs, beside those of the model.
ALIKE = ("precision", "runtime", "dtype")
#: Fields of the plan that must be the same.
PLANNED = ("tile", "halo", "patch")


@dataclass(frozen=True)
class _Axis:
    """A run along one axis. Patches and pixels are counted on the world grid, from the origin of the CRS."""

    first: int
    size: int
    pixels: tuple[int, int]
    """First pixel of the cube, and the one after its last."""
    borders: int
    """A patch at which a tile begins."""
    patch: int
    per_core: int
    halo: int

    @property
    def stop(self) -> int:
        """The patch after the last."""
        return self.first + self.size

    @property
    def tile(self) -> int:
        """Side of a tile, pixels."""
        return self.per_core * self.patch + 2 * self.halo

    def cuts(self) -> list[int]:
        """Return the patches at which a tile of the run begins, and its ends."""
        start = self.borders + math.ceil((self.first - self.borders) / self.per_core) * self.per_core
        return [self.first, *range(start, self.stop, self.per_core), self.stop]

    def quality(self, patch: int) -> int:
        """Return how far the tile of a patch is from the cube's edges, pixels; a tile's size where it is inside."""
        start = self.borders + (patch - self.borders) // self.per_core * self.per_core
        low, high = start * self.patch - self.halo, (start + self.per_core) * self.patch + self.halo
        beyond = max(self.pixels[0] - low, high - self.pixels[1], 0)
        return self.tile - beyond

    @property
    def zone(self) -> int:
        """Patches of the wider edge zone."""
        inside = [p for p in range(self.first, self.stop) if self.quality(p) == self.tile]
        return max(inside[0] - self.first, self.stop - 1 - inside[-1]) if inside else self.size


@dataclass(frozen=True)
class _Run:
    """One of the arrays: north-up, with its position."""

    emb: xr.DataArray
    rows: _Axis
    columns: _Axis
    times: tuple[Any, ...]


def mosaic(embs: Sequence[Any], *, storage_options: Mapping[str, Any] | None = None) -> xr.DataArray:
    """Return embeddings of overlapping or neighbouring runs as one array, lazily.

    Parameters
    ----------
    embs : list of paths, URLs, DataArrays or Datasets
        Embeddings (time, embedding, y, x) or (embedding, y, x) of one model, on one grid of patches and tiles. Where
        two are equally good, the first counts.
    storage_options : mapping, optional
        Of object stores, for URLs, as for `to_zarr`.

    Returns
    -------
    DataArray
        On the union of the areas and dates; NaN (int8: -128) and `valid` 0 where no run has a valid pixel. In memory
        where all runs are. The attribute ``deo_cube:mosaic`` holds the number of runs and the width of their edge
        zones in pixels.

    Raises
    ------
    StoreMismatchError
        For runs of another model, dtype, CRS, grid of patches or tiles; the message names the fix.
    ArgumentError
        For an empty list, and for dates in some runs only.

    Warns
    -----
    UserWarning
        Where runs overlap, or touch, by less than a tile, so that patches along the seam are of the edge zone of both;
        and for runs of L1C and of L2A products.

    Notes
    -----
    The edge zone of a run is every tile that reaches over the edge of its cube: at most ``tile`` pixels. Runs that
    overlap by a tile, such as the 320 px of `tiny`, equal a single run bit for bit, but for the edges of the whole.

    Examples
    --------
    >>> import deo_cube, numpy as np
    >>> cube = deo_cube.synthetic_cube(size=800, times=1)
    >>> west, east = cube.isel(x=slice(0, 560)).deo.embed(), cube.isel(x=slice(240, 800)).deo.embed()
    >>> whole = deo_cube.mosaic([west, east])
    >>> whole.sizes == cube.deo.embed().sizes
    True
    """
    given = list(arguments.sequence("embs", embs, "stores or arrays"))
    if not given:
        raise ArgumentError("embs must hold at least one store or array, got none")
    arrays = [_opened(e, storage_options) for e in given]
    names = [_name(e, i) for i, e in enumerate(given)]
    for emb, name in zip(arrays[1:], names[1:], strict=True):
        _check_alike(arrays[0], emb, names[0], name)
    south_up = georeference.geobox(_plane(arrays[0])).transform.e > 0
    upright = [_north_up(e) for e in arrays]
    box = georeference.geobox(_plane(upright[0]))
    runs = [_run(e, box, n) for e, n in zip(upright, names, strict=True)]
    _warn_of_seams(runs, names)
    for array, name in zip(arrays[1:], names[1:], strict=True):
        warn_of_levels(arrays[0], array, (names[0], name), "so that their border shows in the vectors")
    joined = _joined(runs, box)
    joined = joined if not south_up else joined.isel({joined.dims[-2]: slice(None, None, -1)})
    lazy = any(e.chunks is not None for e in arrays)
    return joined if lazy else joined.compute()


def first_valid(*blocks: Array) -> Array:
    """Return the first of several blocks (..., h, w), with its missing patches filled from the next."""
    out = blocks[0].copy()
    for block in blocks[1:]:
        missing = _missing(out)
        if not missing.any():
            break
        out = np.where(missing, block, out)
    return out


def _missing(values: Array) -> Array:
    """Return which patches have no vector (1, h, w), or no valid pixel (h, w)."""
    if values.ndim == 2:
        return np.asarray(~(values > 0))
    one = values[:1]
    return np.asarray(one == INT8_INVALID if values.dtype == np.int8 else np.isnan(one))


def _opened(emb: Any, storage_options: Mapping[str, Any] | None) -> xr.DataArray:
    array = opened(emb, "embs", storage_options=storage_options)
    y, x = _dims(array)
    return array.transpose(*(("time",) if "time" in array.dims else ()), "embedding", y, x)


def _name(emb: Any, i: int) -> str:
    return f"embs[{i}]" if isinstance(emb, xr.DataArray | xr.Dataset) else str(emb)


def _plane(emb: xr.DataArray) -> xr.DataArray:
    return emb.isel(embedding=0, drop=True)


def _dims(emb: xr.DataArray) -> tuple[str, str]:
    d = georeference.dims(_plane(emb))
    return d.y, d.x


def _north_up(emb: xr.DataArray) -> xr.DataArray:
    if georeference.geobox(_plane(emb)).transform.e < 0:
        return emb
    return emb.isel({_dims(emb)[0]: slice(None, None, -1)})


def _plan(emb: xr.DataArray) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(emb.attrs.get(Attribute.PLAN, "{}"))
    return found


def _check_alike(one: xr.DataArray, other: xr.DataArray, name: str, other_name: str) -> None:
    """Raise if two arrays cannot be parts of one."""
    facts = [(k, one.attrs.get(PREFIX + k, ""), other.attrs.get(PREFIX + k, "")) for k in (*COMPARABLE, *ALIKE)]
    facts += [(k, _plan(one).get(k), _plan(other).get(k)) for k in PLANNED]
    facts += [("length of vectors", one.sizes["embedding"], other.sizes["embedding"])]
    facts += [("stored dtype", str(one.dtype), str(other.dtype))]
    facts += [("names of y and x", _dims(one), _dims(other))]
    differ = "; ".join(f"{k}: {a} and {b}" for k, a, b in facts if a != b)
    if differ:
        raise StoreMismatchError(
            f"{name} and {other_name} were not made alike ({differ}), so their vectors are not to be joined: embed "
            "both with the same model, tile, halo, dtype and precision"
        )
    a, b = (georeference.geobox(_plane(e)) for e in (one, other))
    if not georeference.same_crs(a.crs, b.crs):
        raise StoreMismatchError(
            f"{name} is in {georeference.crs_name(a.crs)}, {other_name} in {georeference.crs_name(b.crs)}: embed cubes "
            f"of one CRS{remedy(', load_cube(items, crs=...)', '')}, or keep one store per zone"
        )
    if not np.allclose([a.transform.a, abs(a.transform.e)], [b.transform.a, abs(b.transform.e)], rtol=1e-9):
        raise StoreMismatchError(
            f"{name} has patches of {a.transform.a:g} x {abs(a.transform.e):g}, {other_name} of {b.transform.a:g} x "
            f"{abs(b.transform.e):g}: embed cubes of one resolution{remedy(', load_cube(items, resolution=...)', '')}"
        )
    if ("time" in one.dims) != ("time" in other.dims):
        without = name if "time" in other.dims else other_name
        raise ArgumentError(
            f"embs must all have dates, or none: {without} has none, add it, emb.expand_dims(time=[...])"
        )


def _run(emb: xr.DataArray, box: GeoBox, name: str) -> _Run:
    """Return a run with its position on the patches of `box`, the grid of the first one."""
    own, plan = georeference.geobox(_plane(emb)), _plan(emb)
    sides = abs(box.transform.e), box.transform.a
    # Patches from the origin of the CRS; of all runs by the same rounding.
    corner = -box.transform.f / sides[0], box.transform.c / sides[1]
    steps = (box.transform.f - own.transform.f) / sides[0], (own.transform.c - box.transform.c) / sides[1]
    axes = []
    for i, (start, step, size) in enumerate(zip(corner, steps, own.shape, strict=True)):
        if abs(step - round(step)) > 0.01:
            raise StoreMismatchError(
                f"the patches of {name} are {abs(step - round(step)):.2f} of a patch off those of the first: embed "
                'both with anchor="grid", the default, from cubes on one lattice of pixels'
            )
        first = math.floor(start + georeference.TOLERANCE) + round(step)
        axes.append(_axis(first, size, plan, i, name))
    times = tuple(emb["time"].values.tolist()) if "time" in emb.dims else ()
    return _Run(emb, axes[0], axes[1], times)


def _axis(first: int, size: int, plan: Mapping[str, Any], i: int, name: str) -> _Axis:
    if not plan:  # of others: every patch is a tile
        return _Axis(first, size, (first, first + size), first, 1, 1, 0)
    patch, halo = int(plan["patch"]), int(plan["halo"])
    per_core = (int(plan["tile"]) - 2 * halo) // patch
    low, length = int(plan["origin"][i]), int(plan["shape"][i])
    if low // patch <= first and first + size <= -(-(low + length) // patch):
        return _Axis(first, size, (low, low + length), 0, patch, per_core, halo)
    # The tile grid starts at the array: anchor="array".
    if size not in (length // patch, -(-length // patch)):
        raise StoreMismatchError(
            f'{name} is a part of a run with anchor="array", so its tiles are unknown: pass the whole run, or embed '
            'with anchor="grid", the default'
        )
    return _Axis(first, size, (first * patch, first * patch + length), first, patch, per_core, halo)


def _warn_of_seams(runs: Sequence[_Run], names: Sequence[str]) -> None:
    """Warn of cubes side by side that overlap by less than a tile."""
    narrow = []
    for j, one in enumerate(runs):
        for i, other in enumerate(runs[:j]):
            pairs = [(one.rows, other.rows), (one.columns, other.columns)]
            common = [min(p.pixels[1], q.pixels[1]) - max(p.pixels[0], q.pixels[0]) for p, q in pairs]
            within = [
                n == min(p.pixels[1] - p.pixels[0], q.pixels[1] - q.pixels[0])
                for n, (p, q) in zip(common, pairs, strict=True)
            ]
            for k in (0, 1):
                if common[1 - k] > 0 and 0 <= common[k] < one.rows.tile and not within[k]:
                    narrow.append((names[i], names[j], common[k]))
    if narrow and runs[0].rows.per_core > 1:
        one_name, other_name, pixels = narrow[0]
        tile = runs[0].rows.tile
        warnings.warn(
            f"{one_name} and {other_name} overlap by {pixels} px, less than a tile of {tile} px"
            f"{f' (and {len(narrow) - 1} other pairs)' if len(narrow) > 1 else ''}: along their seam some patches are "
            f"of tiles that reach over the edge of both. Embed cubes that overlap by {tile} px",
            stacklevel=3,
        )


# --- join ---


def _joined(runs: Sequence[_Run], box: GeoBox) -> xr.DataArray:
    import dask.array as da

    top, left = min(r.rows.first for r in runs), min(r.columns.first for r in runs)
    bottom, right = max(r.rows.stop for r in runs), max(r.columns.stop for r in runs)
    bands = _bands(runs, (top, bottom), (left, right))
    first = runs[0]
    emb, (y, x) = first.emb, _dims(first.emb)
    times = list(dict.fromkeys(t for r in runs for t in r.times))
    times = sorted(times) if len({type(t) for t in times}) < 2 else times
    with_valid = all("valid" in r.emb.coords for r in runs)
    values, shares = [], []
    for time in times or [None]:
        parts = [_date(r, time) for r in runs]
        values.append(_plane_of(parts, runs, bands, (top, left), emb))
        if with_valid:
            valid = [None if p is None else p.coords["valid"] for p in parts]
            shares.append(_plane_of(valid, runs, bands, (top, left), emb.coords["valid"]))
    chunks = _chunks(emb, (top, bottom), (left, right))
    whole = (da.stack(values) if times else values[0]).rechunk({-2: chunks[0], -1: chunks[1]})
    coords: dict[str, Any] = {}
    dims: tuple[str, ...] = ("embedding", y, x)
    if times:
        dims = ("time", *dims)
        labels = emb["time"].variable
        coords["time"] = xr.Variable(
            "time",
            np.array(times, dtype="int64").astype(labels.dtype) if labels.dtype.kind == "M" else times,
            labels.attrs,
        )
    if "embedding" in emb.coords:
        coords["embedding"] = emb.coords["embedding"].variable
    if with_valid:
        share = (da.stack(shares) if times else shares[0]).rechunk({-2: chunks[0], -1: chunks[1]})
        coords["valid"] = xr.Variable([d for d in dims if d != "embedding"], share, emb.coords["valid"].attrs)
    coords |= _along_time(runs, times)
    coords |= {str(k): c.variable for k, c in emb.coords.items() if c.ndim == 0 and k not in ("spatial_ref", "time")}
    if (
        not times
        and "time" in emb.coords
        and all(r.emb.coords.get("time", emb["time"]).equals(emb["time"]) for r in runs)
    ):
        coords["time"] = emb.coords["time"].variable
    attrs = {k: v for k, v in emb.attrs.items() if k != "grid_mapping"} | _facts(runs)
    out = xr.DataArray(whole, dims=dims, coords=coords, name=emb.name, attrs=attrs)
    t = box.transform
    rows, columns = top - first.rows.first, left - first.columns.first
    placed = Affine(t.a, 0, t.c + columns * t.a, 0, t.e, t.f + rows * t.e)
    georeferenced: xr.DataArray = georeference.assign_grid(
        out, GeoBox((bottom - top, right - left), placed, box.crs), dims=(y, x)
    )
    return georeferenced


def _along_time(runs: Sequence[_Run], times: Sequence[Any]) -> dict[str, xr.Variable]:
    """Return the coordinates along time alone that all runs have, each date from the first run with that date."""
    names = [k for k, c in runs[0].emb.coords.items() if c.dims == ("time",) and k != "time"]
    names = [k for k in names if all(k in r.emb.coords and r.emb.coords[k].dims == ("time",) for r in runs)]
    first = [next((r, r.times.index(t)) for r in runs if t in r.times) for t in times]
    found = {}
    for name in names:
        like = runs[0].emb.coords[name].variable
        values = [r.emb.coords[name].values[i] for r, i in first]
        found[str(name)] = xr.Variable("time", np.array(values, dtype=like.dtype), like.attrs)
    return found


def _facts(runs: Sequence[_Run]) -> dict[str, str]:
    """Return the attributes of the whole: the plan of one cube of the whole extent, and the width of the edge zones."""
    plan = _plan(runs[0].emb)
    zones = [max(r.rows.zone, r.columns.zone) * r.rows.patch for r in runs]
    facts = {PREFIX + "mosaic": to_json({"runs": len(runs), "edge_zone_px": zones})}
    if plan:
        low = [min(a.pixels[0] for a in axes) for axes in ([r.rows for r in runs], [r.columns for r in runs])]
        high = [max(a.pixels[1] for a in axes) for axes in ([r.rows for r in runs], [r.columns for r in runs])]
        plan |= {"origin": low, "shape": [b - a for a, b in zip(low, high, strict=True)]}
        facts[Attribute.PLAN] = to_json(plan)
    return facts


def _date(run: _Run, time: Any) -> xr.DataArray | None:
    """Return a run at one date; None where it has not that date."""
    if time is None:
        return run.emb
    return run.emb.isel(time=run.times.index(time)) if time in run.times else None


#: Rows (start, stop), and their rectangles: columns (start, stop) and the runs that cover them, best first.
_Band = tuple[tuple[int, int], list[tuple[tuple[int, int], tuple[int, ...]]]]


def _bands(runs: Sequence[_Run], rows: tuple[int, int], columns: tuple[int, int]) -> list[_Band]:
    """Cut the whole into rectangles in each of which the order of the runs is the same, as few as merging gives."""
    row_cuts = sorted({*rows, *(c for r in runs for c in r.rows.cuts())})
    column_cuts = sorted({*columns, *(c for r in runs for c in r.columns.cuts())})
    tall = [[r.rows.quality(a) if r.rows.first <= a < r.rows.stop else None for r in runs] for a in row_cuts[:-1]]
    wide = [
        [r.columns.quality(a) if r.columns.first <= a < r.columns.stop else None for r in runs]
        for a in column_cuts[:-1]
    ]
    bands: list[_Band] = []
    for (a, b), down in zip(pairwise(row_cuts), tall, strict=True):
        cells: list[tuple[tuple[int, int], tuple[int, ...]]] = []
        for (c, d), across in zip(pairwise(column_cuts), wide, strict=True):
            sums = {
                i: p + q for i, (p, q) in enumerate(zip(down, across, strict=True)) if p is not None and q is not None
            }
            order = tuple(sorted(sums, key=lambda i: -sums[i]))
            if cells and cells[-1][1] == order:
                cells[-1] = ((cells[-1][0][0], d), order)
            else:
                cells.append(((c, d), order))
        if bands and bands[-1][1] == cells:
            bands[-1] = ((bands[-1][0][0], b), cells)
        else:
            bands.append(((a, b), cells))
    return bands


def _plane_of(
    parts: Sequence[xr.DataArray | None],
    runs: Sequence[_Run],
    bands: Sequence[_Band],
    corner: tuple[int, int],
    like: xr.DataArray,
) -> Any:
    """Return one date of the whole as a Dask array (..., y, x)."""
    import dask.array as da

    lead = (like.sizes["embedding"],) if "embedding" in like.dims else ()
    # Dask arrays are cut, not xarray's: thousands of rectangles are cut in the time of a few.
    data = [None if p is None else _on_dask(p) for p in parts]
    fill = 0.0 if not lead else INT8_INVALID if like.dtype == np.int8 else np.nan
    rows = []
    for (a, b), cells in bands:
        row = []
        for (c, d), order in cells:
            pieces = []
            for i in order:
                if (array := data[i]) is not None:
                    r, k = runs[i].rows.first, runs[i].columns.first
                    pieces.append(array[..., a - r : b - r, c - k : d - k])
            if not pieces:
                row.append(da.full((*lead, b - a, d - c), fill, dtype=like.dtype))
            elif len(pieces) == 1:
                row.append(pieces[0])
            else:
                same = [p.rechunk(pieces[0].chunks) for p in pieces]
                row.append(
                    da.map_blocks(first_valid, *same, dtype=like.dtype, meta=np.empty((0,) * same[0].ndim, like.dtype))
                )
        rows.append(da.concatenate(row, axis=-1))
    return da.concatenate(rows, axis=-2)


def _on_dask(part: xr.DataArray) -> Any:
    import dask.array as da

    return part.data if part.chunks is not None else da.from_array(part.values, chunks=-1)


def _chunks(emb: xr.DataArray, rows: tuple[int, int], columns: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the sizes of the blocks of the whole: cut where the blocks of one run of it would be."""
    plan = _plan(emb)
    side = int(plan["block"]) // int(plan["patch"]) if plan else 256
    out = []
    for start, stop in (rows, columns):
        borders = [start, *range((start // side + 1) * side, stop, side), stop]
        out.append(tuple(b - a for a, b in pairwise(borders)))
    return out
