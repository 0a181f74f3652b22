"""Labels as people have them, burnt to the grid of the embeddings.

The rules, exact and the same for every form of labels:

- A point labels the cell that contains it; a cell has its west and north edges, not its east and south ones.
- A polygon labels the cells of which it covers at least half ("majority"), whose centre it contains ("centre"), or
  that it touches ("touch"). A polygon that claims no cell so labels the one cell of which it covers most. Its edges are
  straight in the CRS that it is drawn in.
- Where labels disagree on a cell the later in order wins, or the call is refused (``overlap="raise"``).
- A raster in any CRS and resolution is looked up at a lattice of points in each cell, as fine as its pixels; the most
  frequent class wins (of equals the lower code) where at least half of the points have one.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from deo_cube.cube import grid
from deo_cube.cube.georeference import crs_name
from deo_cube.errors import MissingCRSError, MissingExtraError
from deo_cube.heads.cells import Rule, apply, cells_of_point, cells_of_polygon, lattice_counts, pixels_per_cell
from deo_cube.heads.classes import NO_CLASS, Classes, codes_of
from deo_cube.heads.rasters import located, read_around
from deo_cube.heads.vectors import as_embeddings, geobox, spatial_dims

__all__ = ["Cases", "burn", "cases"]

Array = NDArray[Any]
Overlap = Literal["last", "raise"]

MOST_POINTS = 12
"""Points of the lattice along a side of a cell, at most."""
EDGE = 1000.0
"""Metres (degrees: a hundred-thousandth) between the points of an edge drawn in another CRS: straight to 2 cm there."""


def burn(
    labels: Any,
    like: xr.DataArray | GeoBox,
    *,
    column: str | None = None,
    crs: Any = None,
    rule: Rule = "majority",
    overlap: Overlap = "last",
    names: Mapping[int, str] | Sequence[str] | None = None,
    colors: Mapping[Any, str] | Sequence[str] | None = None,
    nodata: int | None = None,
) -> xr.DataArray:
    """Labels on the grid of the embeddings.

    Parameters
    ----------
    labels : GeoDataFrame, path, dict, DataArray, or list of (x, y, label)
        Points and polygons as a GeoDataFrame, GeoJSON (path or dict), GeoParquet or any other file that geopandas
        reads; a categorical raster as DataArray or path; or points as tuples. A path may be an address that GDAL
        follows (``https://...``, ``/vsi...``).
    like : DataArray or GeoBox
        Embeddings (or anything with their grid).
    column : str, optional
        Column with the classes. Default: "label", "class", or the only column beside the geometry.
    crs : CRS, optional
        Of tuples, where it is not that of the embeddings; of a table or raster that carries none.
    rule : {"majority", "centre", "touch"}
        Which cells a polygon labels, see the module.
    overlap : {"last", "raise"}
        What happens where labels of different classes meet in a cell.
    names, colors
        Names for integer classes, and colours (by name, by code, or in order).
    nodata : int, optional
        Raster value that is no class, beside the one that the raster states.

    Returns
    -------
    DataArray
        `label` (y, x) uint8 with CF flags; 255 (`_FillValue`) where there is none.

    Raises
    ------
    ValueError
        If no label lies within the embeddings (with both extents and the CRS that would fit), for geometries that are
        neither points nor polygons, or for labels that disagree with ``overlap="raise"``.
    MissingCRSError
        If labels or embeddings have no CRS.
    MissingExtraError
        If geopandas is wanted and not installed.
    """
    if rule not in ("majority", "centre", "touch"):
        raise ValueError(f"rule must be 'majority', 'centre' or 'touch', got {rule!r}")
    if overlap not in ("last", "raise"):
        raise ValueError(f"overlap must be 'last' or 'raise', got {overlap!r}")
    box, dims = (like, ("y", "x")) if isinstance(like, GeoBox) else (geobox(like), spatial_dims(like))
    upright = _north_up(box)
    form = _form(labels)
    if form == "raster":
        codes, classes = _burn_raster(labels, upright, crs, nodata, names, colors)
    else:
        shapes, values, bounds = _shapes(labels, form, upright, column, crs)
        classes, coded = Classes.of(values, names=names, colors=colors), codes_of(values)
        codes = _burn_shapes(shapes, [coded[v] for v in values], classes, upright, rule, overlap, bounds)
    if box.transform.e > 0:
        codes = codes[::-1]
    attrs = {"long_name": "label"} | classes.attrs()
    return grid.assign_grid(xr.DataArray(codes, dims=dims, name="label", attrs=attrs), box, dims=dims)


@dataclass(frozen=True)
class Cases:
    """Labelled vectors, as a head is fitted on them.

    Parameters
    ----------
    vectors : (n, D) float32
        Valid embeddings.
    codes : (n,) uint8
        Class of each.
    classes : Classes
        What the codes mean; only those that occur.
    x, y : (n,) float
        Centres of the cells, in the CRS of the embeddings.
    cell : (n,) int
        Which cell: the same at every time.
    size : float
        Side of a cell in units of the CRS.
    """

    vectors: Array = field(repr=False)
    codes: Array = field(repr=False)
    classes: Classes
    x: Array = field(repr=False)
    y: Array = field(repr=False)
    cell: Array = field(repr=False)
    size: float


def cases(emb: xr.DataArray, labels: xr.DataArray, *, lone: bool = False) -> Cases:
    """Read the vectors of the labelled cells: of every time where `emb` has several.

    Only chunks with labelled cells are computed.

    Parameters
    ----------
    emb : DataArray
        Embeddings.
    labels : DataArray
        Of `burn`, on the same grid.
    lone : bool
        Accept labels of a single class: other arrays have the others.

    Raises
    ------
    ValueError
        If no labelled cell has a valid embedding, or all that have are of one class.
    """
    emb = as_embeddings(emb)
    y, x = spatial_dims(emb)
    if (labels.sizes[y], labels.sizes[x]) != (emb.sizes[y], emb.sizes[x]):
        raise ValueError(f"labels {dict(labels.sizes)} and embeddings {dict(emb.sizes)} lie on different grids")
    codes = np.asarray(labels.values)
    rows, cols = np.nonzero(codes != NO_CLASS)
    picked = emb.isel({y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")})
    v = picked.transpose(..., "case", "embedding").values.astype("float32")
    v = v.reshape(-1, len(rows), v.shape[-1])
    times = len(v)
    flat = v.reshape(-1, v.shape[-1])
    good = np.isfinite(flat).all(axis=1)
    if not good.any():
        raise ValueError(
            f"none of the {len(rows)} labelled cells has a valid embedding: clouds, gaps or nodata cover them. "
            "Choose another time, or label other places"
        )
    found = np.tile(codes[rows, cols], times)[good]
    present = np.unique(found)
    every = _classes_of(labels)
    keep = [i for i, c in enumerate(every.codes) if c in present]
    classes = every.only(keep)
    if len(present) < 2 and not lone:
        lost = sorted(set(every.names) - set(classes.names))
        raise ValueError(
            f"all {int(good.sum())} labelled cells with a valid embedding are of one class, {classes.names[0]!r}"
            + (f" (no valid cell is left of {lost})" if lost else "")
            + ": a head wants examples of at least two. Label some places that are something else"
        )
    cell = np.tile(rows * emb.sizes[x] + cols, times)[good]
    xs, ys = np.asarray(emb[x].values, "float64"), np.asarray(emb[y].values, "float64")
    size = abs(float(geobox(emb).resolution.x))
    return Cases(flat[good], found, classes, np.tile(xs[cols], times)[good], np.tile(ys[rows], times)[good], cell, size)


def _classes_of(labels: xr.DataArray) -> Classes:
    a = labels.attrs
    codes = tuple(int(v) for v in np.atleast_1d(a["flag_values"]))
    return Classes(codes, tuple(str(a["flag_meanings"]).split()), tuple(str(a["flag_colors"]).split()))


def _north_up(box: GeoBox) -> GeoBox:
    t = box.transform
    if t.e < 0:
        return box
    return GeoBox(box.shape, Affine(t.a, 0, t.c, 0, -t.e, t.f + box.shape[0] * t.e), box.crs)


def _form(labels: Any) -> Literal["raster", "table", "points"]:
    if isinstance(labels, xr.DataArray):
        return "raster"
    if isinstance(labels, str | Path):
        return "raster" if Path(labels).suffix.lower() in (".tif", ".tiff", ".vrt", ".jp2", ".img") else "table"
    table = isinstance(labels, Mapping) or (hasattr(labels, "geometry") and hasattr(labels, "columns"))
    if table and not isinstance(labels, xr.Dataset):
        return "table"
    if isinstance(labels, Sequence | np.ndarray) and len(labels) and all(np.size(p) == 3 for p in labels):
        return "points"
    raise TypeError(
        "labels are a GeoDataFrame, GeoJSON (path or dict), GeoParquet, a raster (DataArray or path), or a list of "
        f"(x, y, label); got {type(labels).__name__}"
        + (" (empty)" if hasattr(labels, "__len__") and not len(labels) else "")
    )


def _geopandas() -> Any:
    try:
        import geopandas
    except ImportError as error:
        raise MissingExtraError.wanted("geopandas", "vector", "reading labels from tables") from error
    return geopandas


def _shapes(labels: Any, form: str, box: GeoBox, column: str | None, crs: Any) -> tuple[list[Any], list[Any], Array]:
    """Geometries in the CRS of the grid, their classes, in order, and the bounds of all."""
    import shapely

    if form == "points":
        import pandas as pd
        from pyproj import CRS, Transformer

        kept = [p for p in labels if not pd.isna(p[2])]
        if not kept:
            raise ValueError("no label: none of the points has a value")
        xy = np.array([(float(p[0]), float(p[1])) for p in kept])
        if crs is not None:
            t = Transformer.from_crs(CRS.from_user_input(crs), box.crs.proj, always_xy=True)
            xy = np.stack(t.transform(xy[:, 0], xy[:, 1]), axis=1)
        points = shapely.points(xy)
        return list(points), [_plain(p[2]) for p in kept], shapely.total_bounds(points)
    gpd = _geopandas()
    if isinstance(labels, str | Path):
        path = located(labels)
        try:
            parquet = Path(path).suffix.lower() in (".parquet", ".geoparquet")
            table = gpd.read_parquet(path) if parquet else gpd.read_file(path)
        except RuntimeError as error:
            # pyogrio's DataSourceError is one.
            raise ValueError(
                f"geopandas reads no labels from {path} ({error}). Of a raster in another format than GeoTIFF pass "
                "the DataArray"
            ) from error
    elif isinstance(labels, Mapping):
        named = labels.get("crs", {})
        stated = named.get("properties", {}).get("name") if isinstance(named, Mapping) else named
        if labels.get("type") not in ("FeatureCollection", "Feature"):
            raise ValueError(
                f"labels in GeoJSON are a FeatureCollection with a class in the properties, got {labels.get('type')!r}"
            )
        features = labels["features"] if labels["type"] == "FeatureCollection" else [labels]
        if not features:
            raise ValueError("no label: the FeatureCollection is empty")
        # GeoJSON without a CRS is in degrees of WGS 84 (RFC 7946, section 4).
        table = gpd.GeoDataFrame.from_features(features, crs=stated or "EPSG:4326")
    else:
        table = labels
    if table.crs is None:
        if crs is None:
            raise MissingCRSError(
                'the table of labels states no CRS: pass crs="EPSG:...", or state it with table.set_crs(...)'
            )
        table = table.set_crs(crs)
    chosen = _column(table, column)
    given = np.asarray(table.geometry.array, dtype=object)
    table = table[table[chosen].notna().to_numpy() & ~shapely.is_missing(given) & ~shapely.is_empty(given)]
    if not len(table):
        raise ValueError(f"no label: the table has no row with both a geometry and a value in {chosen!r}")
    shapes = np.asarray(table.geometry.array, dtype=object)
    kinds = {g.geom_type for g in shapes} - {"Point", "MultiPoint", "Polygon", "MultiPolygon"}
    if kinds:
        raise ValueError(f"labels are points and polygons, found {sorted(kinds)}: widen lines, table.buffer(...)")
    bounds = table.to_crs(box.crs.proj).total_bounds
    if table.crs != box.crs.proj:
        shapes = np.asarray(gpd.GeoSeries(_near(shapes, box, table.crs), crs=table.crs).to_crs(box.crs.proj).array)
    return list(shapes), [_plain(v) for v in table[chosen]], bounds


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _near(shapes: Array, box: GeoBox, crs: Any) -> Array:
    """Polygons cut to the surroundings of the grid, their edges with points on them; points as they are.

    An edge that is straight in one CRS is curved in another, and a corner far away may have no place there at all.
    """
    import shapely

    outline = box.extent.to_crs(str(crs.to_wkt()), resolution=max(abs(box.resolution.x), abs(box.resolution.y)))
    x0, y0, x1, y1 = outline.boundingbox.bbox
    if not np.isfinite([x0, y0, x1, y1]).all():
        return shapes
    room = max(x1 - x0, y1 - y0) / 10
    polygons = np.array(["Polygon" in g.geom_type for g in shapes])
    areas = shapes[polygons]
    broken = ~shapely.is_valid(areas)
    areas[broken] = shapely.make_valid(areas[broken])
    areas = shapely.intersection(areas, shapely.box(x0 - room, y0 - room, x1 + room, y1 + room))
    out = shapes.copy()
    out[polygons] = shapely.segmentize(areas, EDGE / 1e5 if crs.is_geographic else EDGE)
    return out


def _column(table: Any, column: str | None) -> str:
    others = [str(c) for c in table.columns if c != table.geometry.name]
    if column is not None:
        if column not in others:
            raise ValueError(f"column={column!r} is not in the table of labels, whose columns are {others}")
        return column
    for usual in ("label", "class"):
        if usual in others:
            return usual
    if len(others) == 1:
        return others[0]
    raise ValueError(f"which column holds the classes? Pass column=..., one of {others}")


def _burn_shapes(
    shapes: list[Any], values: list[int], classes: Classes, box: GeoBox, rule: Rule, overlap: Overlap, bounds: Array
) -> Array:
    rows, cols = box.shape
    out = np.full((rows, cols), NO_CLASS, "uint8")
    outside = 0
    for shape, value in zip(shapes, values, strict=True):
        r, c = cells_of_point(shape, box) if "Point" in shape.geom_type else cells_of_polygon(shape, box, rule)
        if not len(r):
            outside += 1
            continue
        clash = (out[r, c] != NO_CLASS) & (out[r, c] != value)
        if overlap == "raise" and clash.any():
            i = int(np.flatnonzero(clash)[0])
            old, new = (classes.names[classes.codes.index(int(v))] for v in (out[r[i], c[i]], value))
            x, y = apply(box.transform, c[i] + 0.5, r[i] + 0.5)
            raise ValueError(
                f"labels disagree on {int(clash.sum())} cells, the first at ({x:g}, {y:g}): {old!r} and {new!r}. Mend "
                'the labels, or pass overlap="last" to let the later win'
            )
        out[r, c] = value
    _check_inside(outside, len(shapes), bounds, box)
    return out


def _check_inside(outside: int, total: int, bounds: Array, box: GeoBox) -> None:
    if outside == 0:
        return
    here = box.boundingbox.bbox
    where = f"({bounds[0]:g}, {bounds[1]:g}) to ({bounds[2]:g}, {bounds[3]:g})"
    there = f"({here[0]:g}, {here[1]:g}) to ({here[2]:g}, {here[3]:g}) in {crs_name(box.crs)}"
    if outside < total:
        warnings.warn(f"{outside} of {total} labels lie outside the embeddings and are left out", stacklevel=4)
        return
    degrees = np.isfinite(bounds).all() and np.abs(bounds).max() <= 360
    hint = ""
    if degrees and not box.crs.geographic:
        hint = '. They look like degrees: pass crs="EPSG:4326" or state the CRS of the table'
    elif not np.isfinite(bounds).all():
        hint = ". They do not fit the CRS they state: state the right one with table.set_crs(..., allow_override=True)"
    raise ValueError(f"all {total} labels lie outside the embeddings: they span {where}, the embeddings {there}{hint}")


def _burn_raster(
    labels: Any, box: GeoBox, crs: Any, nodata: int | None, names: Any, colors: Any
) -> tuple[Array, Classes]:
    values, transform, source, missing, spans = read_around(labels, crs, box)
    elsewhere = (
        f"no class of the raster of labels lies on the embeddings: the raster spans {spans.round(6).tolist()} in "
        f"{crs_name(source)}, the embeddings {[round(v, 6) for v in box.boundingbox.bbox]} in {crs_name(box.crs)}"
    )
    if not values.size:
        raise ValueError(elsewhere)
    ignored = {v for v in (nodata, missing) if v is not None}
    if values.dtype.kind == "f":
        bad = ~np.isfinite(values)
        if not (values[~bad] == np.floor(values[~bad])).all():
            raise ValueError("a raster of labels holds whole numbers, found fractions: give classes, not a measurement")
        values = np.where(bad, -1, values).astype("int64")
        ignored.add(-1)
    present = [int(v) for v in np.unique(values) if v not in ignored]
    if not present:
        raise ValueError(f"the raster of labels holds no class there: all its values are nodata ({sorted(ignored)})")
    beyond = [v for v in present if not 0 <= v < NO_CLASS]
    if beyond:
        raise ValueError(
            f"classes of a raster are 0 to {NO_CLASS - 1}, found {beyond[:5]}: say which value is no class, "
            f"nodata={beyond[0]}"
        )
    ranked = np.where(np.isin(values, present), np.searchsorted(present, values), -1)
    ratio = pixels_per_cell(box, transform, source)
    n = int(np.clip(np.ceil(ratio - 1e-6), 1, MOST_POINTS))
    counts = lattice_counts(ranked, transform, source, box, n, len(present))
    total = counts.sum(axis=0)
    if not total.any():
        raise ValueError(elsewhere)
    winner = np.array(present)[counts.argmax(axis=0)]
    codes = np.where(total >= n * n / 2, winner, NO_CLASS).astype("uint8")
    if (codes == NO_CLASS).all():
        raise ValueError("no cell of the embeddings is at least half covered by classes of the raster of labels")
    every = Classes.of(present, names=_names_of(labels, names))
    left = every.only([i for i, c in enumerate(every.codes) if (codes == c).any()])
    return codes, Classes.of(left.codes, names=left.names, colors=colors)


def _names_of(labels: Any, names: Any) -> Any:
    """Names given, or those of the raster's own CF flags."""
    if names is not None or not isinstance(labels, xr.DataArray) or "flag_meanings" not in labels.attrs:
        return names
    meanings = str(labels.attrs["flag_meanings"]).split()
    return dict(zip([int(v) for v in np.atleast_1d(labels.attrs["flag_values"])], meanings, strict=True))
