"""Targets of a regression (biomass, cover, yield) averaged to the grid of the embeddings, each with its weight.

The rules, the same for every form of targets:

- A point is a target of the cell that contains it; several points in a cell are averaged.
- A polygon is a target of the cells that it covers; a cell has the mean of its polygons, weighted by the area that each
  covers. The weight of the cell is the share that they cover together. A polygon of which no cell is covered by at
  least `least` is a target of the one cell of which it covers most.
- A raster in any CRS and resolution is averaged over each cell, at a lattice of points as fine as its pixels (at most
  32 per side; exact where pixels fit into cells). The weight of the cell is the share of points with a value.
- Cells with a weight below `least` have no target.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.arguments import number
from deo_cube.cube import georeference
from deo_cube.errors import ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.heads.cells import TrainingVectors, gather, join
from deo_cube.heads.geometries import clean, covered_cells, into_grid, north_up
from deo_cube.heads.labels import all_inside, outside_message
from deo_cube.heads.rasters import lattice_mean, nodata_values, not_overlapping, one_array, read_around, unstated_fills
from deo_cube.heads.tables import form_of, located, parsed_crs, read_table
from deo_cube.heads.vectors import geobox, spatial_dims
from deo_cube.packed import decoded_floats, scale_and_offset
from deo_cube.paths import unreadable

__all__ = ["TargetOptions", "rasterize_targets", "target_vectors"]

Array = NDArray[Any]


@dataclass(frozen=True)
class TargetOptions:
    """How targets are read and averaged: the keywords of `rasterize_targets`, where they are documented."""

    column: str | None = None
    layer: str | int | None = None
    crs: Any = None
    nodata: float | Sequence[float] | None = None
    least: float = 0.5

    def __post_init__(self) -> None:
        number("least", self.least, minimum=0, maximum=1)
        parsed_crs(self.crs)
        nodata_values(self.nodata)


def rasterize_targets(
    targets: Any,
    like: xr.DataArray | GeoBox,
    *,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    nodata: float | Sequence[float] | None = None,
    least: float = 0.5,
) -> xr.DataArray:
    """Average the targets of a regression to the grid of the embeddings.

    Parameters
    ----------
    targets : table, path, dict, DataArray, or list of (x, y, value)
        Points, polygons or a raster of numbers, in the forms that `deo_cube.heads.labels.rasterize_labels` reads.
    like : DataArray or GeoBox
        Embeddings (or anything with their grid).
    column, layer, crs
        As in `rasterize_labels`; `column` holds the numbers.
    nodata : number or several, optional
        Values that are not a target, beside the one that a raster states.
    least : float
        Smallest share of a cell that polygons or pixels with a value must cover, 0..1.

    Returns
    -------
    DataArray
        `target` (y, x) float32 with the coordinate `weight` (y, x), the covered share in 0..1 (points: their number);
        NaN and 0 where there is no target. Scale and offset of a raster are applied, and its `units` and name are its
        attributes.

    Raises
    ------
    LabelsError
        If targets are not numbers, are outside the embeddings, cover no cell, or cannot be read.
    MissingCRSError
        If targets or embeddings have no CRS.
    ArgumentError, ArgumentTypeError
        For values of arguments that are not possible, and objects that are not targets.
    """
    return _rasterize(targets, like, TargetOptions(column, layer, crs, nodata, least))


def _rasterize(targets: Any, like: Any, options: TargetOptions) -> xr.DataArray:
    if not isinstance(like, xr.DataArray | xr.Dataset | GeoBox):
        raise ArgumentTypeError(f"like must be embeddings or a GeoBox, got {type(like).__name__}")
    grid: Any = like
    box = grid if isinstance(grid, GeoBox) else geobox(grid)
    upright = north_up(box)
    form, crs = form_of(targets), parsed_crs(options.crs)
    attrs: dict[str, Any] = {}
    if form == "raster":
        if isinstance(targets, xr.DataArray | xr.Dataset):
            targets = _as_values(one_array(targets), nodata_values(options.nodata))
        stated = _stated(targets)
        values, weights = _of_raster(targets, crs, upright, options)
        # Integers are stored with a scale, which readers that decode have applied and removed.
        values = values * stated.scale + stated.offset
        attrs = stated.attrs
    else:
        table = read_table(targets, form, column=options.column, layer=options.layer, crs=crs)
        values, weights = _of_table(table, upright, options)
    if box.transform.e > 0:
        values, weights = values[::-1], weights[::-1]
    dims = ("y", "x") if isinstance(grid, GeoBox) else spatial_dims(grid)
    target = xr.DataArray(values.astype("float32"), dims=dims, name="target", attrs={"long_name": "target"} | attrs)
    target = target.assign_coords(weight=(dims, weights.astype("float32"), {"long_name": "weight of the target"}))
    placed: xr.DataArray = georeference.assign_grid(target, box, dims=dims)
    return placed


@dataclass(frozen=True)
class _Stated:
    """Scale, offset, units and name that a raster states of its values."""

    scale: float = 1.0
    offset: float = 0.0
    attrs: dict[str, Any] = field(default_factory=dict)


def _stated(targets: Any) -> _Stated:
    if isinstance(targets, str | os.PathLike):
        import rasterio
        from rasterio.errors import RasterioError

        try:
            with rasterio.open(located(targets)) as file:
                named = {"units": file.units[0], "long_name": file.descriptions[0]}
                return _Stated(file.scales[0], file.offsets[0], {k: v for k, v in named.items() if v})
        except RasterioError as error:
            raise unreadable("targets", targets, "a raster of targets", error, error=LabelsError) from error
    scale, offset = scale_and_offset(targets)
    return _Stated(scale, offset, {k: str(targets.attrs[k]) for k in ("units", "long_name") if k in targets.attrs})


def _as_values(raster: xr.DataArray, nodata: tuple[float, ...] | None) -> xr.DataArray:
    """Return floats that still state a scale as the values that they mean; `nodata` are values as they are stored."""
    if raster.dtype.kind == "f" and scale_and_offset(raster) != (1.0, 0.0) and nodata:
        raster = raster.where(~raster.isin(list(nodata)))
    return decoded_floats(raster, "targets")


def _of_raster(targets: Any, crs: Any, box: GeoBox, options: TargetOptions) -> tuple[Array, Array]:
    nodata = nodata_values(options.nodata)
    raster = read_around(targets, crs, box, ignore_nodata=nodata == ())
    if not raster.values.size:
        raise LabelsError(not_overlapping(raster, box, what="target"))
    missing = raster.missing
    for value in nodata or ():
        missing = missing | (np.isnan(raster.values) if np.isnan(value) else raster.values == value)
    numbers = raster.values.astype("float64")
    missing = missing | ~np.isfinite(numbers)
    if nodata != ():
        _refuse_fills(
            unstated_fills(numbers[~missing], eight_bits=raster.values.dtype == np.uint8), nodata, "the raster"
        )
    values, weights = lattice_mean(numbers, missing, raster.transform, raster.crs, box)
    if not (weights > 0).any():
        raise LabelsError(not_overlapping(raster, box, what="target"))
    usable = (weights > 0) & (weights >= options.least - 1e-9)
    if not usable.any():
        raise LabelsError(
            f"no target: no cell of the embeddings is covered by at least {options.least:g} by values of the raster; "
            f"the best is covered by {weights.max():.2f}: pass least=..."
        )
    return np.where(usable, values, np.nan), np.where(usable, weights, 0.0)


def _refuse_fills(fills: list[float], nodata: tuple[float, ...] | None, what: str) -> None:
    if fills:
        marks = ", ".join(f"{v:.17g}" for v in sorted({*fills, *(nodata or ())}))
        raise LabelsError(
            f"targets hold {', '.join(f'{v:.17g}' for v in fills)}, far from all others, which usually marks a missing "
            f"value and {what} does not state: pass nodata=[{marks}], or nodata=() if it is a target"
        )


def _of_table(table: Any, box: GeoBox, options: TargetOptions) -> tuple[Array, Array]:
    nodata = nodata_values(options.nodata)
    numbers = _numbers(table.values, table.described, nodata or ())
    if nodata != ():
        _refuse_fills(unstated_fills(numbers), nodata, table.described)
    finite = np.isfinite(numbers)
    cleaned = clean(table.shapes[finite])
    cleaned.warn(int(finite.sum()), "targets")
    if not len(cleaned.shapes):
        raise LabelsError(f"no target: {table.described} has no row with both a geometry and a number")
    numbers = numbers[finite][cleaned.rows]
    shapes = into_grid(cleaned.shapes, table.crs, box)
    if table.assumed and len(shapes) and not all_inside(shapes, box):
        raise MissingCRSError(
            f'{table.described} states no CRS, and its places are not all within the embeddings: pass crs="EPSG:..."'
        )
    covered = covered_cells(shapes, box)
    place, cells, share = covered.place, (covered.row, covered.column), covered.share
    total, weights, chosen = np.zeros(box.shape), np.zeros(box.shape), np.zeros(box.shape, bool)
    np.add.at(total, cells, share * numbers[place])
    np.add.at(weights, cells, share)
    # A place that covers too little of every cell is a target of the one that it covers most; and so is a point.
    order = np.lexsort((-share, place))
    most = order[np.unique(place[order], return_index=True)[1]]
    small = most[share[most] < options.least]
    points = np.flatnonzero(np.isin(shapely.get_type_id(shapes), (0, 4))[place])
    chosen[covered.row[small], covered.column[small]] = True
    chosen[covered.row[points], covered.column[points]] = True
    outside = len(shapes) - len(most)
    if outside == len(shapes):
        raise LabelsError(outside_message(cleaned.shapes, table, box, "targets"))
    if outside:
        warnings.warn(f"{outside} of {len(shapes)} targets are outside the embeddings and left out", stacklevel=5)
    usable = (weights > 0) & (chosen | (weights >= options.least - 1e-9))
    with np.errstate(invalid="ignore"):
        return np.where(usable, total / weights, np.nan), np.where(usable, weights, 0.0)


def _numbers(values: Sequence[Any], described: str, nodata: Sequence[float]) -> Array:
    """Return targets as float64, NaN where there is none."""
    texts = [v for v in values if isinstance(v, str)]
    if texts:
        raise LabelsError(
            f"targets must be numbers, found {texts[0]!r:.60} in {described}: pass the column of the numbers, column=, "
            "or fit classes, fit_head('linear', emb, labels)"
        )
    numbers = np.array([np.nan if v is None else float(v) for v in values], dtype="float64")
    for value in nodata:
        numbers[numbers == value] = np.nan
    return numbers


def target_vectors(
    arrays: Sequence[xr.DataArray], targets: Sequence[Any], options: TargetOptions
) -> tuple[TrainingVectors, str, str]:
    """Return the embeddings of the cells with a target, of several arrays together, and the targets' units and name.

    Only chunks with targets are computed. Of embeddings with several times each cell is one case per time.

    Raises
    ------
    LabelsError
        As `rasterize_targets`, and if fewer than two cells with a target have a valid embedding, or all targets are
        equal.
    """
    rasters = [_rasterize(t, a, options) for t, a in zip(targets, arrays, strict=True)]
    data = join([_of_array(a, r) for a, r in zip(arrays, rasters, strict=True)])
    values = data.truth
    if len(values) < 2:
        raise LabelsError(
            f"at least two cells must have a target and a valid embedding, found {len(values)} (clouds, gaps or "
            "nodata): choose another time, or pass more targets"
        )
    if np.ptp(values) == 0:
        raise LabelsError(f"targets must differ, all {len(values)} are {values[0]:g}: pass other targets, or column=")
    units = [str(r.attrs.get("units", "")) for r in rasters]
    names = [str(r.attrs.get("long_name", "")) for r in rasters]
    return data, next(filter(None, units), ""), next((n for n in names if n not in ("", "target")), "")


def _of_array(emb: xr.DataArray, target: xr.DataArray) -> TrainingVectors:
    values, weights = np.asarray(target.values, "float64"), np.asarray(target["weight"].values, "float64")
    rows, cols = np.nonzero(np.isfinite(values))
    if not len(rows):
        raise LabelsError("no target: no target covers a cell of the embeddings")
    return TrainingVectors.of(gather(emb, rows, cols), values, weights)
