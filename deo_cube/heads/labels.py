"""Labels in the forms that people have them in, rasterized to the grid of the embeddings.

The rules, exact and the same for every form of labels:

- A point labels the cell that contains it; a cell includes its west and north edges, not its east and south ones.
- A polygon labels the cells of which it covers at least half ("majority"), whose centre it contains ("centre"), or
  that it touches ("touch"). A polygon that labels no cell by that rule labels the one cell of which it covers most. Its
  edges are straight in the CRS that it is drawn in.
- An invalid polygon is the union of its areas (`deo_cube.heads.geometries`); the lines and points left of it label
  nothing, and a polygon without area is left out.
- Where labels disagree on a cell the later one wins, or the call raises (``overlap="raise"``).
- A raster in any CRS and resolution is sampled at a lattice of points in each cell, as fine as its pixels; the most
  frequent class wins (of equals the lower code) where at least half of the points have one.
- Integers from 0 to 254 keep their value as code. If any label is something else, all are numbered in their order; the
  flags of the map say what each code means.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import CRS

from deo_cube.arguments import choice
from deo_cube.cube import georeference
from deo_cube.cube.georeference import crs_name
from deo_cube.errors import ArgumentTypeError, LabelsError, MissingCRSError
from deo_cube.heads.cells import TrainingVectors, gather, join
from deo_cube.heads.classes import NO_CLASS, Classes, codes_of
from deo_cube.heads.geometries import Rule, apply, cells_of, clean, into_grid, north_up, transform
from deo_cube.heads.rasters import classes_in, lattice_majority, nodata_values, not_overlapping, read_around
from deo_cube.heads.tables import Table, form_of, parsed_crs, read_table
from deo_cube.heads.vectors import geobox, spatial_dims

__all__ = [
    "LabelOptions",
    "all_inside",
    "burn",
    "class_counts",
    "label_vectors",
    "labelled_vectors",
    "outside_message",
    "rasterize_all",
    "rasterize_labels",
]

Array = NDArray[Any]
Overlap = Literal["last", "raise"]
Names = Mapping[int, str] | Sequence[str] | None
Colors = Mapping[Any, str] | Sequence[str] | None


@dataclass(frozen=True)
class LabelOptions:
    """How labels are read and rasterized: the keywords of `rasterize_labels`, where they are documented.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For values that are not possible.
    """

    column: str | None = None
    layer: str | int | None = None
    crs: Any = None
    rule: Rule = "majority"
    overlap: Overlap = "last"
    names: Names = None
    colors: Colors = None
    nodata: float | Sequence[float] | None = None

    def __post_init__(self) -> None:
        choice("rule", self.rule, ("majority", "centre", "touch"))
        choice("overlap", self.overlap, ("last", "raise"))
        parsed_crs(self.crs)
        nodata_values(self.nodata)
        for argument, value in (("names", self.names), ("colors", self.colors)):
            if isinstance(value, str) or not isinstance(value, Mapping | Sequence | np.ndarray | None):
                raise ArgumentTypeError(f"{argument} must be a list, or a dict by code; got {value!r:.60}")


def rasterize_labels(
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
        CRS of the coordinates, which overrides what the labels state. Default: what they state; degrees of WGS 84 for
        columns lon and lat and for GeoJSON; the CRS of the embeddings for tuples.
    rule : {"majority", "centre", "touch"}
        Which cells a polygon labels, see the module.
    overlap : {"last", "raise"}
        Whether the later label wins where labels of different classes share a cell, or the call raises.
    names, colors
        Names of integer classes, and colours (by name, by code, or in order). Default: those that a raster carries.
    nodata : number or several, optional
        Values that are not a class, beside the one that a raster states; ``()``: every value of the raster is a class.

    Returns
    -------
    DataArray
        `label` (y, x) uint8 with CF flags; 255 (`_FillValue`) where there is none.

    Raises
    ------
    LabelsError
        If no label is within the embeddings (with both extents and the CRS that would fit), for geometries that are
        neither points nor polygons, for labels that disagree with ``overlap="raise"``, for files that cannot be read,
        for a `column` or `layer` that does not exist, and where the labels do not say which values are classes.
    MissingCRSError
        If labels or embeddings have no CRS.
    ArgumentError, ArgumentTypeError
        For values of arguments that are not possible, and objects that are not labels.
    InputNotFoundError
        If there is nothing at a path.
    MissingExtraError
        If geopandas is needed and not installed.
    """
    options = LabelOptions(column, layer, crs, rule, overlap, names, colors, nodata)
    return rasterize_all([labels], [like], options)[0]


def burn(labels: Any, like: xr.DataArray | GeoBox, **options: Any) -> xr.DataArray:
    """Call `rasterize_labels`, whose former name this is."""
    warnings.warn("burn has been renamed to rasterize_labels", DeprecationWarning, stacklevel=2)
    return rasterize_labels(labels, like, **options)


def rasterize_all(
    labels: Sequence[Any], likes: Sequence[xr.DataArray | GeoBox], options: LabelOptions
) -> list[xr.DataArray]:
    """Rasterize several sets of labels, each to its own grid; a class has the same code in all of them."""
    for like in likes:
        if not isinstance(like, xr.DataArray | xr.Dataset | GeoBox):
            raise ArgumentTypeError(f"like must be embeddings or a GeoBox, got {type(like).__name__}")
    boxes = [like if isinstance(like, GeoBox) else geobox(like) for like in likes]
    drawn = [_draw(one, north_up(box), options) for one, box in zip(labels, boxes, strict=True)]
    values = list(dict.fromkeys(v for d in drawn for v in d.values))
    code_of = codes_of(values)
    classes = _common_classes(drawn, values, code_of, options)
    rasters = []
    for d, like, box in zip(drawn, likes, boxes, strict=True):
        codes = np.array([*(code_of[v] for v in d.values), NO_CLASS], "uint8")[d.index]
        if box.transform.e > 0:
            codes = codes[::-1]
        own = classes.only([classes.codes.index(c) for c in sorted(code_of[d.values[i]] for i in d.present)])
        dims = ("y", "x") if isinstance(like, GeoBox) else spatial_dims(like)
        raster = xr.DataArray(codes, dims=dims, name="label", attrs={"long_name": "label"} | own.attrs())
        rasters.append(georeference.assign_grid(raster, box, dims=dims))
    return rasters


@dataclass(frozen=True)
class _Drawn:
    """Labels on a north-up grid, before classes have codes.

    Parameters
    ----------
    values : tuple
        The different labels.
    index : (rows, cols) int
        Position among `values`; -1 where there is no label.
    present : tuple of int
        Positions of the labels that are classes of the map.
    names, colors : dict
        Names and colours that the labels carry themselves, by value.
    """

    values: tuple[Any, ...]
    index: Array
    present: tuple[int, ...]
    names: Mapping[Any, str] = field(default_factory=dict)
    colors: Mapping[Any, str] = field(default_factory=dict)


def _draw(labels: Any, box: GeoBox, options: LabelOptions) -> _Drawn:
    form, crs, nodata = form_of(labels), parsed_crs(options.crs), nodata_values(options.nodata)
    if form == "raster":
        named = list(options.names) if isinstance(options.names, Mapping) else []
        return _draw_raster(labels, box, crs, nodata, named)
    table = read_table(labels, form, column=options.column, layer=options.layer, crs=crs)
    return _draw_table(table, box, nodata, options)


def _common_classes(
    drawn: Sequence[_Drawn], values: Sequence[Any], code_of: Mapping[Any, int], options: LabelOptions
) -> Classes:
    """Return the classes of several sets of labels together, with the names and colours of each."""
    classes = Classes.of(values, names=_merge_names([d.names for d in drawn], options.names, values))
    present = sorted({code_of[d.values[i]] for d in drawn for i in d.present})
    classes = classes.only([classes.codes.index(c) for c in present])
    own_colors = {v: c for d in drawn for v, c in d.colors.items() if code_of[v] in present}
    colors = own_colors if options.colors is None else options.colors
    return classes.coloured(colors, {code_of[v]: v for v in values})


def _merge_names(own: Sequence[Mapping[Any, str]], names: Names, values: Sequence[Any]) -> Names:
    """Return the names that the caller gives, and those that the labels carry for other classes.

    Raises
    ------
    LabelsError
        If two sets of labels have different names for one class, or no name is for any class.
    """
    if names is not None and not isinstance(names, Mapping):
        return names
    merged: dict[Any, str] = {}
    for carried in own:
        for value in values:
            if value not in carried or value in (names or {}):
                continue
            if merged.setdefault(value, carried[value]) != carried[value]:
                raise LabelsError(
                    f"class {value} is {merged[value]!r} in one set of labels and {carried[value]!r} in another: pass "
                    "names={code: name}"
                )
    if names:
        # Codes may be text in the labels, or in the mapping.
        spelled = {str(k): str(v) for k, v in names.items()}
        matching = {v: spelled[str(v)] for v in values if str(v) in spelled}
        if not matching:
            raise LabelsError(
                f"names must be for classes of the labels, which are {list(values)[:8]}, got names for "
                f"{list(names)[:8]}"
            )
        merged |= matching
    return merged


def _draw_table(table: Table, box: GeoBox, nodata: tuple[float, ...] | None, options: LabelOptions) -> _Drawn:
    labelled = np.array([v is not None and v not in (nodata or ()) for v in table.values], dtype=bool)
    cleaned = clean(table.shapes[labelled])
    cleaned.warn(int(labelled.sum()))
    with_class = [v for v, has_class in zip(table.values, labelled, strict=True) if has_class]
    if not labelled.any() or cleaned.empty == len(with_class):
        raise LabelsError(f"no label: {table.described} has no row with both a geometry and a class")
    values = [with_class[i] for i in cleaned.rows]
    order = tuple(dict.fromkeys(values or with_class))
    codes_of(order)  # raises for a measurement before anything is drawn
    shapes = into_grid(cleaned.shapes, table.crs, box)
    if table.assumed and len(shapes) and not all_inside(shapes, box):
        raise MissingCRSError(
            f'{table.described} states no CRS, and its places are not all within the embeddings: pass crs="EPSG:..."'
        )
    index, outside = _draw_shapes(shapes, [order.index(v) for v in values], order, box, options)
    if outside and outside == len(shapes):
        raise LabelsError(outside_message(cleaned.shapes, table, box))
    if outside:
        warnings.warn(f"{outside} of {len(shapes)} labels are outside the embeddings and left out", stacklevel=5)
    return _Drawn(order, index, tuple(range(len(order))))


def _draw_shapes(
    shapes: Array, positions: Sequence[int], values: Sequence[Any], box: GeoBox, options: LabelOptions
) -> tuple[Array, int]:
    """Return the position of each cell's label among `values` (-1: none), and how many shapes are outside the grid."""
    index = np.full(box.shape, -1, "int32")
    place, row, column = cells_of(shapes, box, options.rule)
    position = np.asarray(positions, "int32")[place]
    if options.overlap == "raise":
        # Sorted by cell: a label disagrees where it follows another one of the same cell.
        order = np.lexsort((place, column, row))
        r, c, p = row[order], column[order], position[order]
        disagree = np.flatnonzero((np.diff(r) == 0) & (np.diff(c) == 0) & (np.diff(p) != 0))
        if len(disagree):
            names = options.names if isinstance(options.names, Mapping) else {}
            old, new = (str(names.get(values[k], values[k])) for k in (p[disagree[0]], p[disagree[0] + 1]))
            cells = len(np.unique(r[disagree] * box.shape[1] + c[disagree]))
            x, y = apply(box.transform, c[disagree[0]] + 0.5, r[disagree[0]] + 0.5)
            raise LabelsError(
                f"labels disagree on {cells} cells, the first at ({x:g}, {y:g}): {old!r} and {new!r}. "
                'Correct the labels, or pass overlap="last" to let the later one win'
            )
    index[row, column] = position  # in the order of the labels: the last one wins
    return index, len(shapes) - len(np.unique(place))


def all_inside(shapes: Array, box: GeoBox) -> bool:
    """Return whether all geometries, in the CRS of a grid, are within it."""
    x0, y0, x1, y1 = box.boundingbox.bbox
    west, south, east, north = shapely.total_bounds(shapes)
    return bool(x0 <= west and y0 <= south and east <= x1 and north <= y1)


def _any_inside(shapes: Array, box: GeoBox) -> bool:
    x0, y0, x1, y1 = box.boundingbox.bbox
    b = shapely.bounds(shapes)
    return bool(((b[:, 0] < x1) & (b[:, 2] > x0) & (b[:, 1] < y1) & (b[:, 3] > y0)).any())


def outside_message(shapes: Array, table: Table, box: GeoBox, what: str = "labels") -> str:
    """Return a message for labels outside the embeddings: both extents, and the change that would make them fit."""
    own, degrees = box.crs.proj, CRS.from_epsg(4326)
    crs = own if table.crs is None else table.crs
    bounds = shapely.total_bounds(transform(shapes, crs, own))
    raw = shapely.total_bounds(shapes)
    x0, y0, x1, y1 = box.boundingbox.bbox
    extent = f"({bounds[0]:g}, {bounds[1]:g}) to ({bounds[2]:g}, {bounds[3]:g})"
    grid_extent = f"({x0:g}, {y0:g}) to ({x1:g}, {y1:g}) in {crs_name(box.crs)}"
    like_degrees = np.isfinite(raw).all() and np.abs(raw).max() <= 360
    candidates = [crs] if crs.equals(degrees) or not like_degrees else [crs, degrees]
    swapped = shapely.transform(shapes, lambda c: c[:, ::-1])
    hint = ""
    if any(_any_inside(transform(swapped, c, own), box) for c in candidates):
        hint = (
            ". x and y (longitude and latitude) are swapped: exchanged, they are within the embeddings. A point is "
            f"(x, y), which is (lon, lat); exchange the two in the {what}"
            + ("" if _any_inside(transform(swapped, crs, own), box) else ' and pass crs="EPSG:4326"')
        )
    elif like_degrees and not crs.is_geographic:
        hint = '. They look like degrees: pass crs="EPSG:4326"'
    elif not np.isfinite(bounds).all() or (crs.is_geographic and not like_degrees):
        name = f"EPSG:{crs.to_epsg()}" if crs.to_epsg() else crs.name
        hint = f'. They do not fit their CRS, {name}: pass the right one, crs="EPSG:..."'
    return (
        f"all {len(shapes)} {what} are outside the embeddings: they span {extent}, the embeddings {grid_extent}{hint}"
    )


def _draw_raster(labels: Any, box: GeoBox, crs: Any, nodata: tuple[float, ...] | None, named: Sequence[Any]) -> _Drawn:
    raster = read_around(labels, crs, box, ignore_nodata=nodata == ())
    if not raster.values.size:
        raise LabelsError(not_overlapping(raster, box))
    values, positions = classes_in(raster, nodata, named)
    index = lattice_majority(positions, raster.transform, raster.crs, box, len(values))
    if (index == -2).all():
        raise LabelsError(not_overlapping(raster, box))
    if (index < 0).all():
        raise LabelsError(
            "no label: no cell of the embeddings is at least half covered by classes of the raster of labels"
        )
    index = np.maximum(index, -1)
    present = tuple(int(i) for i in np.unique(index) if i >= 0)
    colors = {v: c for v, c in raster.legend.colors.items() if v in values}
    # A colour table is often filled up with black: a colour that two classes share does not tell them apart.
    colors = {v: c for v, c in colors.items() if list(colors.values()).count(c) == 1}
    return _Drawn(tuple(values), index, present, {v: n for v, n in raster.legend.names.items() if v in values}, colors)


# ---- labelled vectors -----------------------------------------------------------------------------------------------


def labelled_vectors(
    emb: xr.DataArray, raster: xr.DataArray, *, allow_one_class: bool = False
) -> tuple[TrainingVectors, Classes]:
    """Return the embeddings of the labelled cells, of every time where `emb` has several, and the classes that occur.

    Only chunks with labelled cells are computed.

    Parameters
    ----------
    emb : DataArray
        Embeddings.
    raster : DataArray
        Labels on the same grid, as `rasterize_labels` gives them.
    allow_one_class : bool
        Accept labels of a single class, because other arrays have others.

    Raises
    ------
    LabelsError
        If no labelled cell has a valid embedding, or all that have one are of one class.
    """
    y, x = spatial_dims(emb)
    if (raster.sizes[y], raster.sizes[x]) != (emb.sizes[y], emb.sizes[x]):
        raise LabelsError(
            f"labels and embeddings must be on one grid, got {dict(raster.sizes)} and {dict(emb.sizes)}: rasterize "
            "the labels with like=emb"
        )
    codes = np.asarray(raster.values)
    rows, cols = np.nonzero(codes != NO_CLASS)
    if not len(rows):
        raise LabelsError("no label: no label covers a cell. Label places within the embeddings")
    cells = gather(emb, rows, cols)
    if not len(cells.vectors):
        raise LabelsError(
            f"none of the {len(rows)} labelled cells has a valid embedding (clouds, gaps or nodata): choose another "
            "time, or label other places"
        )
    labelled = TrainingVectors.of(cells, codes)
    present = np.unique(labelled.truth)
    every = Classes.from_attrs(raster.attrs)
    classes = every.only([i for i, c in enumerate(every.codes) if c in present])
    if len(present) < 2 and not allow_one_class:
        lost = sorted(set(every.names) - set(classes.names))
        raise LabelsError(
            f"labels must be of at least two classes; all {len(cells.vectors)} labelled cells with a valid embedding "
            f"are of one class, {classes.names[0]!r}"
            + (f" (no valid cell is left of {lost})" if lost else "")
            + ". Label some places of another class"
        )
    return labelled, classes


def label_vectors(
    arrays: Sequence[xr.DataArray], labels: Sequence[Any], options: LabelOptions
) -> tuple[TrainingVectors, Classes]:
    """Return the labelled vectors of several arrays together, each with its own labels, and their classes.

    Raises
    ------
    LabelsError
        As `rasterize_labels` and `labelled_vectors`.
    """
    rasters = rasterize_all(labels, arrays, options)
    if len(arrays) == 1:
        return labelled_vectors(arrays[0], rasters[0])
    parts = [labelled_vectors(a, r, allow_one_class=True) for a, r in zip(arrays, rasters, strict=True)]
    joined = join([vectors for vectors, _ in parts])
    each = (zip(own.codes, own.names, own.colors, strict=True) for _, own in parts)
    known = {code: (name, color) for triples in each for code, name, color in triples}
    present = [c for c in sorted(known) if c in joined.truth]
    if len(present) < 2:
        raise LabelsError(
            f"labels must be of at least two classes; all are of one class, {known[present[0]][0]!r}. Label some "
            "places of another class"
        )
    return joined, Classes(tuple(present), tuple(known[c][0] for c in present), tuple(known[c][1] for c in present))


def class_counts(labelled: TrainingVectors, classes: Classes) -> dict[str, Any]:
    """Return the number of labelled cells per class, and of vectors, for the report of a head."""
    of_cells = labelled.truth[np.unique(labelled.cell, return_index=True)[1]]
    pairs = zip(classes.codes, classes.names, strict=True)
    return {"cells": {n: int((of_cells == k).sum()) for k, n in pairs}, "vectors": len(labelled.truth)}
