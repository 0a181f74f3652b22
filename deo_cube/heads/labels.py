"""Labels as people have them, rasterized to the grid of the embeddings.

The rules, exact and the same for every form of labels:

- A point labels the cell that contains it; a cell has its west and north edges, not its east and south ones.
- A polygon labels the cells of which it covers at least half ("majority"), whose centre it contains ("centre"), or
  that it touches ("touch"). A polygon that claims no cell so labels the one cell of which it covers most. Its edges are
  straight in the CRS that it is drawn in.
- An invalid polygon is the union of its areas (`deo_cube.heads.geometries`); lines and points left of it label nothing,
  and a polygon without area is left out.
- Where labels disagree on a cell the later in order wins, or the call is refused (``overlap="raise"``).
- A raster in any CRS and resolution is looked up at a lattice of points in each cell, as fine as its pixels; the most
  frequent class wins (of equals the lower code) where at least half of the points have one.
- Whole numbers from 0 to 254 keep their value as code. If any label is another number or a name, all are numbered in
  their order; the flags of the map say what each code means.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.arguments import choice
from deo_cube.cube import georeference
from deo_cube.cube.georeference import crs_name
from deo_cube.errors import ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.heads.cases import Cases, cases
from deo_cube.heads.cells import Rule, apply, cells_of, lattice_majority, north_up, pixels_per_cell
from deo_cube.heads.classes import NO_CLASS, Classes, codes_of
from deo_cube.heads.geometries import clean, into_grid, transform
from deo_cube.heads.rasters import apart, classes_in, nodata_values, read_around
from deo_cube.heads.tables import Table, form_of, parsed_crs, read_table
from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = ["Cases", "burn", "burn_all", "cases"]

Array = NDArray[Any]
Overlap = Literal["last", "raise"]
Names = Mapping[int, str] | Sequence[str] | None
Colors = Mapping[Any, str] | Sequence[str] | None

MOST_POINTS = 12
"""Points of the lattice along a side of a cell, at most."""


def burn(
    labels: Any,
    like: xr.DataArray | GeoBox,
    *,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    rule: Rule = "majority",
    overlap: Overlap = "last",
    names: Names = None,
    colors: Colors = None,
    nodata: float | Sequence[float] | None = None,
) -> xr.DataArray:
    """Rasterize labels to the grid of the embeddings.

    Parameters
    ----------
    labels : table, path, dict, DataArray, or list of (x, y, label)
        Points and polygons: a GeoDataFrame; a DataFrame with a column of geometries, WKT or WKB, or with coordinates
        (lon and lat, x and y, easting and northing); GeoJSON (path or dict); CSV, GeoParquet, GeoPackage, Shapefile
        (also zipped) or any other file that geopandas reads; tuples (x, y, label) or (geometry, label). Or a raster of
        classes as DataArray or path. A path may be an address that GDAL follows (``https://...``, ``/vsi...``).
    like : DataArray or GeoBox
        Embeddings (or anything with their grid).
    column : str, optional
        Column with the classes. Default: "label", "class", or the only column beside the place (and identifiers).
    layer : str or int, optional
        Layer of a file that has several.
    crs : CRS, optional
        CRS of the coordinates; it decides, whatever the labels state. Default: what they state; degrees of WGS 84 for
        columns lon and lat and for GeoJSON; that of the embeddings for tuples.
    rule : {"majority", "centre", "touch"}
        Which cells a polygon labels, see the module.
    overlap : {"last", "raise"}
        What happens where labels of different classes meet in a cell.
    names, colors
        Names for integer classes, and colours (by name, by code, or in order). Default: those that a raster carries.
    nodata : number or several, optional
        Values that are no class, beside the one that a raster states; ``()``: every value of the raster is a class.

    Returns
    -------
    DataArray
        `label` (y, x) uint8 with CF flags; 255 (`_FillValue`) where there is none.

    Raises
    ------
    LabelsError
        If no label lies within the embeddings (with both extents and the CRS that would fit), for geometries that are
        neither points nor polygons, for labels that disagree with ``overlap="raise"``, for files that cannot be read,
        for a `column` or `layer` that is not there, and where the labels do not say which values are classes.
    MissingCRSError
        If labels or embeddings have no CRS.
    ArgumentError, ArgumentTypeError
        For arguments of no use, and anything that is no form of labels.
    InputNotFoundError
        For a path at which nothing is.
    MissingExtraError
        If geopandas is needed and not installed.
    """
    return burn_all(
        [labels], [like], column=column, layer=layer, crs=crs, rule=rule, overlap=overlap, names=names, colors=colors,
        nodata=nodata,
    )[0]  # fmt: skip


def burn_all(
    many: Sequence[Any],
    likes: Sequence[xr.DataArray | GeoBox],
    *,
    column: str | None = None,
    layer: str | int | None = None,
    crs: Any = None,
    rule: Rule = "majority",
    overlap: Overlap = "last",
    names: Names = None,
    colors: Colors = None,
    nodata: float | Sequence[float] | None = None,
) -> list[xr.DataArray]:
    """Rasterize several sets of labels, each to a grid of its own; one class has one code in all. See `burn`."""
    choice("rule", rule, ("majority", "centre", "touch"))
    choice("overlap", overlap, ("last", "raise"))
    given, fills = parsed_crs(crs), nodata_values(nodata)
    for argument, value in (("names", names), ("colors", colors)):
        if isinstance(value, str) or not isinstance(value, Mapping | Sequence | np.ndarray | None):
            raise ArgumentTypeError(f"{argument} must be a list, or a dict by code; got {value!r:.60}")
    for like in likes:
        if not isinstance(like, xr.DataArray | xr.Dataset | GeoBox):
            raise ArgumentTypeError(f"like must be embeddings or a GeoBox, got {type(like).__name__}")
    boxes = [like if isinstance(like, GeoBox) else geobox(like) for like in likes]
    drawn = []
    for labels, box in zip(many, boxes, strict=True):
        upright, form = north_up(box), form_of(labels)
        if form == "raster":
            named = list(names) if isinstance(names, Mapping) else []
            drawn.append(_draw_raster(labels, upright, given, fills, named))
        else:
            table = read_table(labels, form, column=column, layer=layer, crs=given)
            drawn.append(_draw_table(table, upright, rule, overlap, fills, names))
    every = list(dict.fromkeys(v for one in drawn for v in one.values))
    coded = codes_of(every)
    whole = Classes.of(every, names=_merged([one.names for one in drawn], names, every))
    kept = sorted({coded[one.values[i]] for one in drawn for i in one.kept})
    own = {v: c for one in drawn for v, c in one.colors.items() if coded[v] in kept}
    whole = whole.only([whole.codes.index(c) for c in kept])
    whole = whole.coloured(own if colors is None else colors, {coded[v]: v for v in every})
    out = []
    for one, like, box in zip(drawn, likes, boxes, strict=True):
        codes = np.array([*(coded[v] for v in one.values), NO_CLASS], "uint8")[one.index]
        if box.transform.e > 0:
            codes = codes[::-1]
        classes = whole.only([whole.codes.index(c) for c in sorted(coded[one.values[i]] for i in one.kept)])
        dims = ("y", "x") if isinstance(like, GeoBox) else spatial_dims(like)
        attrs = {"long_name": "label"} | classes.attrs()
        out.append(georeference.assign_grid(xr.DataArray(codes, dims=dims, name="label", attrs=attrs), box, dims=dims))
    return out


@dataclass(frozen=True)
class _Drawn:
    """Labels on a north-up grid, before classes have codes.

    Parameters
    ----------
    values : tuple
        The different labels.
    index : (rows, cols) int
        Position among `values`; -1 where there is none.
    kept : tuple of int
        Positions of those that are classes of the map.
    names, colors : dict
        That the labels carry themselves, by value.
    """

    values: tuple[Any, ...]
    index: Array
    kept: tuple[int, ...]
    names: Mapping[Any, str] = field(default_factory=dict)
    colors: Mapping[Any, str] = field(default_factory=dict)


def _merged(own: Sequence[Mapping[Any, str]], names: Names, values: Sequence[Any]) -> Names:
    """Names given, over those that the labels carry.

    Raises
    ------
    LabelsError
        If two sets of labels call one class differently, or no name is for any class.
    """
    if names is not None and not isinstance(names, Mapping):
        return names
    out: dict[Any, str] = {}
    for legend in own:
        for value in values:
            if value in legend and value not in (names or {}) and out.setdefault(value, legend[value]) != legend[value]:
                raise LabelsError(
                    f"class {value} is {out[value]!r} in one set of labels and {legend[value]!r} in another: say which "
                    "is meant, names={code: name}"
                )
    if names:
        # Codes may be text in the labels, or in the mapping.
        spelled = {str(k): str(v) for k, v in names.items()}
        matching = {v: spelled[str(v)] for v in values if str(v) in spelled}
        if not matching:
            raise LabelsError(f"names are for {list(names)[:8]}, but the classes of the labels are {list(values)[:8]}")
        out |= matching
    return out


def _draw_table(
    table: Table, box: GeoBox, rule: Rule, overlap: Overlap, nodata: tuple[float, ...] | None, names: Names
) -> _Drawn:
    labelled = np.array([v is not None and v not in (nodata or ()) for v in table.values], dtype=bool)
    found = clean(table.shapes[labelled])
    found.warn(int(labelled.sum()))
    values = [v for v, k in zip(table.values, labelled, strict=True) if k]
    if not labelled.any() or found.empty == len(values):
        raise LabelsError(f"no label: {table.described} has no row with both a geometry and a class")
    mine = [values[i] for i in found.kept]
    order = tuple(dict.fromkeys(mine or values))
    codes_of(order)  # refuses measurements before anything is drawn
    shapes = into_grid(found.shapes, table.crs, box)
    if table.assumed and len(shapes) and not _all_inside(shapes, box):
        raise MissingCRSError(
            f'{table.described} states no CRS, and its places are not all within the embeddings: pass crs="EPSG:..."'
        )
    out, outside = np.full(box.shape, -1, "int32"), 0
    for shape, value in zip(shapes, mine, strict=True):
        r, c = cells_of(shape, box, rule)
        outside += not len(r)
        k = order.index(value)
        clash = (out[r, c] != -1) & (out[r, c] != k)
        if overlap == "raise" and clash.any():
            i = int(np.flatnonzero(clash)[0])
            called = names if isinstance(names, Mapping) else {}
            old, new = (str(called.get(order[n], order[n])) for n in (int(out[r[i], c[i]]), k))
            x, y = apply(box.transform, c[i] + 0.5, r[i] + 0.5)
            raise LabelsError(
                f"labels disagree on {int(clash.sum())} cells, the first at ({x:g}, {y:g}): {old!r} and {new!r}. "
                'Correct the labels, or pass overlap="last" to let the later win'
            )
        out[r, c] = k
    if outside == len(shapes) and outside:
        raise LabelsError(_elsewhere(found.shapes, table, box))
    if outside:
        warnings.warn(f"{outside} of {len(shapes)} labels lie outside the embeddings and are left out", stacklevel=4)
    return _Drawn(order, out, tuple(range(len(order))))


def _all_inside(shapes: Array, box: GeoBox) -> bool:
    import shapely

    x0, y0, x1, y1 = box.boundingbox.bbox
    a, b, c, d = shapely.total_bounds(shapes)
    return bool(x0 <= a and y0 <= b and c <= x1 and d <= y1)


def _elsewhere(shapes: Array, table: Table, box: GeoBox) -> str:
    """Say where labels and embeddings lie that do not meet, and how the coordinates would fit."""
    import shapely
    from pyproj import CRS

    own, degrees = box.crs.proj, CRS.from_epsg(4326)
    crs = own if table.crs is None else table.crs
    bounds = shapely.total_bounds(transform(shapes, crs, own))
    raw = shapely.total_bounds(shapes)
    x0, y0, x1, y1 = box.boundingbox.bbox
    spans = f"({bounds[0]:g}, {bounds[1]:g}) to ({bounds[2]:g}, {bounds[3]:g})"
    there = f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) in {crs_name(box.crs)}"
    like_degrees = np.isfinite(raw).all() and np.abs(raw).max() <= 360
    candidates = [crs] if crs.equals(degrees) or not like_degrees else [crs, degrees]
    swapped = shapely.transform(shapes, lambda c: c[:, ::-1])
    hint = ""
    if any(_some_inside(transform(swapped, c, own), box) for c in candidates):
        hint = (
            ". x and y (longitude and latitude) are swapped: the other way round they lie within the embeddings. A "
            "point is (x, y), which is (lon, lat); exchange the two in the labels"
            + ("" if _some_inside(transform(swapped, crs, own), box) else ' and pass crs="EPSG:4326"')
        )
    elif like_degrees and not crs.is_geographic:
        hint = '. They look like degrees: pass crs="EPSG:4326"'
    elif not np.isfinite(bounds).all() or (crs.is_geographic and not like_degrees):
        hint = f'. They do not fit {_short(crs)}, which they are taken to be in: pass the right one, crs="EPSG:..."'
    return f"all {len(shapes)} labels lie outside the embeddings: they span {spans}, the embeddings {there}{hint}"


def _short(crs: Any) -> str:
    code = crs.to_epsg()
    return f"EPSG:{code}" if code else str(crs.name)


def _some_inside(shapes: Array, box: GeoBox) -> bool:
    import shapely

    x0, y0, x1, y1 = box.boundingbox.bbox
    b = shapely.bounds(shapes)
    return bool(((b[:, 0] < x1) & (b[:, 2] > x0) & (b[:, 1] < y1) & (b[:, 3] > y0)).any())


def _draw_raster(labels: Any, box: GeoBox, crs: Any, nodata: tuple[float, ...] | None, named: Sequence[Any]) -> _Drawn:
    raster = read_around(labels, crs, box, ignore_nodata=nodata == ())
    if not raster.values.size:
        raise LabelsError(apart(raster, box))
    present, ranked = classes_in(raster, nodata, named)
    ratio = pixels_per_cell(box, raster.transform, raster.crs)
    n = int(np.clip(np.ceil(ratio - 1e-6), 1, MOST_POINTS))
    index = lattice_majority(ranked, raster.transform, raster.crs, box, n, len(present))
    if (index == -2).all():
        raise LabelsError(apart(raster, box))
    if (index < 0).all():
        raise LabelsError("no cell of the embeddings is at least half covered by classes of the raster of labels")
    index = np.maximum(index, -1)
    kept = tuple(int(i) for i in np.unique(index) if i >= 0)
    own = {v: c for v, c in raster.legend.colors.items() if v in present}
    # A colour table is filled up with black: what two classes share tells them not apart.
    own = {v: c for v, c in own.items() if list(own.values()).count(c) == 1}
    return _Drawn(tuple(present), index, kept, {v: n for v, n in raster.legend.names.items() if v in present}, own)
