"""Compare every patch with one or several examples (`similar`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import shapely
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer

from deo_cube.arguments import embeddings_of
from deo_cube.errors import ArgumentError, ArgumentTypeError
from deo_cube.heads.geometries import cells_of, clean, into_grid, north_up
from deo_cube.heads.tables import parsed_crs, stated_crs
from deo_cube.heads.vectors import (
    as_embeddings,
    crs_or_none,
    geobox,
    map_vectors,
    model_fingerprint,
    select_time,
    spatial_dims,
)

__all__ = ["similar"]

Array = NDArray[Any]


def similar(
    emb: xr.DataArray,
    to: Any,
    *,
    metric: Literal["cosine", "euclidean"] = "cosine",
    time: Any = None,
    crs: Any = None,
) -> xr.DataArray:
    """Return the similarity of every patch to an example, or to the nearest of several.

    Parameters
    ----------
    emb : DataArray
        Embeddings (time, embedding, y, x) or (embedding, y, x).
    to : (x, y), list of (x, y), geometry, table, vector, or DataArray
        Points in the CRS of the embeddings; a point stands for the patch that contains it, a polygon for those of which
        it covers at least half. Shapely geometries are in the CRS of the embeddings, GeoSeries and GeoDataFrames in
        their own, GeoJSON in degrees. Or a vector (D,), vectors (n, D), or a DataArray with a dimension `embedding` of
        that length (and at most one more).
    metric : {"cosine", "euclidean"}
        "cosine": cosine similarity, -1 to 1, 1 for the same direction. "euclidean": distance, 0 for the same vector.
    time : label, optional
        Time at which the points are read ("2024-06": the mean of that month's valid vectors). Default: each time is
        compared with the points at that same time.
    crs : CRS, optional
        CRS of the points or geometries, where it is not that of the embeddings:
        ``similar(emb, (lon, lat), crs="EPSG:4326")``.

    Returns
    -------
    DataArray
        `similarity` or `distance` (time, y, x) float32; NaN where a patch is invalid. Of several examples the most
        similar counts.

    Raises
    ------
    ArgumentError, LabelsError
        For a point outside the embeddings or a vector of the wrong length; when computed, for points without a valid
        embedding.
    MissingCRSError
        For geometries in another CRS, where the embeddings have none.

    Examples
    --------
    >>> import numpy as np, xarray as xr
    >>> places = {"y": [2.5, 1.5, 0.5], "x": [0.5]}
    >>> emb = xr.DataArray(np.eye(3)[:, :, None], dims=("embedding", "y", "x"), coords=places)
    >>> similar(emb, (0.5, 1.5)).values.ravel()
    array([0., 1., 0.], dtype=float32)
    """
    emb = as_embeddings(emb)
    if metric not in ("cosine", "euclidean"):
        raise ArgumentError(f"metric must be 'cosine' or 'euclidean', got {metric!r}")
    examples, described = _examples(emb, to, time, crs)

    def compare(v: Array, q: Array) -> Array:
        q = np.asarray(q, dtype="float64").reshape(-1, q.shape[-1])
        q = q[np.isfinite(q).all(axis=1)]
        if not len(q):
            raise ArgumentError(
                f"to must have a valid embedding, but {described} has none: choose other points or times"
            )
        if metric == "cosine":
            norms = np.linalg.norm(v, axis=1)[:, None] * np.linalg.norm(q, axis=1)
            return np.asarray((v @ q.T / np.maximum(norms, 1e-12)).max(axis=1).clip(-1, 1))
        squares = (v**2).sum(axis=1)[:, None] - 2 * v @ q.T + (q**2).sum(axis=1)
        return np.asarray(np.sqrt(np.maximum(squares, 0)).min(axis=1))

    name = "similarity" if metric == "cosine" else "distance"
    attrs = {"long_name": f"{metric} {name} to {described}", "units": "1"}
    if "time" not in examples.dims:
        return map_vectors(compare, [emb], parameters=examples, name=name, attrs=attrs)
    per_time = [
        map_vectors(compare, [emb.isel(time=i)], parameters=examples.isel(time=i, drop=True), name=name, attrs=attrs)
        for i in range(emb.sizes["time"])
    ]
    joined = xr.concat(per_time, dim="time", coords="minimal", compat="override", join="override")
    return joined.assign_coords({k: c for k, c in emb.coords.items() if "embedding" not in c.dims})


def _examples(emb: xr.DataArray, to: Any, time: Any, crs: Any) -> tuple[xr.DataArray, str]:
    """Return vectors (case, embedding) or (time, case, embedding), and a description of them."""
    d = emb.sizes["embedding"]
    if isinstance(to, xr.Dataset):
        to = embeddings_of(to, argument="to")
    if isinstance(to, xr.DataArray):
        if to.sizes.get("embedding") != d or to.ndim > 2:
            raise ArgumentError(
                f"to must have dimensions (embedding: {d}) and at most one more, got {dict(to.sizes)}: select from it"
            )
        model, other = (model_fingerprint(a) for a in (emb, to))
        if model and other and model != other:
            raise ArgumentError(
                f"to must be of the model of the embeddings, {model}, got vectors of model {other}: embed both with one"
            )
        return _cases(to), "the examples"
    if _has_geometries(to):
        return _at_cells(emb, *_cells(emb, to, crs), time, "the geometries")
    try:
        values = np.asarray(to, dtype="float64")
    except (TypeError, ValueError) as error:
        raise ArgumentTypeError(
            f"to must be a point (x, y), a list of points, geometries, or vectors of length {d}; got {to!r:.80}"
        ) from error
    if crs is not None and (values.shape == (2,) or (values.ndim == 2 and values.shape[1] == 2)):
        values = _projected(emb, values.reshape(-1, 2), crs)
    if values.shape == (2,) and d != 2:
        values = values[None]
    if values.ndim == 2 and values.shape[1] == 2 and d != 2:
        return _at_points(emb, [(float(x), float(y)) for x, y in values], time)
    if values.ndim in (1, 2) and values.shape[-1] == d:
        return xr.DataArray(values.reshape(-1, d), dims=("case", "embedding")), "the vectors"
    if d == 2 and values.shape == (2,):
        return _at_points(emb, [(float(values[0]), float(values[1]))], time)
    raise ArgumentError(
        f"to must be a point (x, y), a list of points, or vectors of length {d}; got shape {values.shape}"
    )


def _cases(vectors: xr.DataArray) -> xr.DataArray:
    others = [k for k in vectors.dims if k != "embedding"]
    plain = xr.DataArray(vectors.variable).transpose(..., "embedding")
    return plain.rename({others[0]: "case"}) if others else plain.expand_dims("case")


def _has_geometries(to: Any) -> bool:
    several = isinstance(to, Sequence) and len(to) > 0 and isinstance(to[0], shapely.Geometry)
    return several or isinstance(to, Mapping) or hasattr(to, "__geo_interface__")


def _cells(emb: xr.DataArray, to: Any, crs: Any) -> tuple[Array, Array]:
    """Return rows and columns of the patches that geometries label."""
    if isinstance(to, shapely.Geometry) or isinstance(to, Sequence):
        shapes, own = [to] if isinstance(to, shapely.Geometry) else list(to), None
    elif hasattr(to, "geometry") and hasattr(to, "crs"):
        shapes, own = list(to.geometry), to.crs
    else:
        geojson = to if isinstance(to, Mapping) else to.__geo_interface__
        shapes, own = _of_geojson(geojson), stated_crs(geojson) or 4326
    array = np.empty(len(shapes), dtype=object)
    array[:] = shapes
    cleaned = clean(array)
    cleaned.warn(len(shapes), "geometries of `to`")
    box = geobox(emb)
    placed = into_grid(cleaned.shapes, parsed_crs(own if crs is None else crs), box)
    cells = [cells_of(s, north_up(box), "majority") for s in placed]
    rows, cols = (np.concatenate([c[i] for c in cells] or [np.empty(0, int)]) for i in (0, 1))
    if not len(rows):
        raise ArgumentError("to must be within the embeddings, but no geometry is: pass their CRS, crs=")
    return (box.shape[0] - 1 - rows if box.transform.e > 0 else rows), cols


def _of_geojson(geojson: Mapping[str, Any]) -> list[Any]:
    features = geojson.get("features") if geojson.get("type") == "FeatureCollection" else [geojson]
    try:
        return [shapely.geometry.shape(f["geometry"] if f.get("type") == "Feature" else f) for f in features or []]
    except Exception as error:
        raise ArgumentError(f"to cannot be read as GeoJSON ({error})") from error


def _projected(emb: xr.DataArray, points: Array, crs: Any) -> Array:
    """Return points in the CRS of the embeddings."""
    t = Transformer.from_crs(parsed_crs(crs), geobox(emb).crs.proj, always_xy=True)
    return np.stack(t.transform(points[:, 0], points[:, 1]), axis=1)


def _at_points(emb: xr.DataArray, points: Sequence[tuple[float, float]], time: Any) -> tuple[xr.DataArray, str]:
    cells = np.array([locate(emb, px, py) for px, py in points], dtype=int).reshape(-1, 2)
    described = f"({points[0][0]:.8g}, {points[0][1]:.8g})" if len(points) == 1 else f"{len(points)} points"
    return _at_cells(emb, cells[:, 0], cells[:, 1], time, described)


def _at_cells(emb: xr.DataArray, rows: Array, cols: Array, time: Any, described: str) -> tuple[xr.DataArray, str]:
    y, x = spatial_dims(emb)
    cells = {y: xr.DataArray(rows, dims="case"), x: xr.DataArray(cols, dims="case")}
    vectors = (emb if time is None else select_time(emb, time)).isel(cells)
    plain = xr.DataArray(vectors.variable).transpose(..., "case", "embedding")
    return plain, described + ("" if time is None else f" at {time}")


def locate(emb: xr.DataArray, px: float, py: float) -> tuple[int, int]:
    """Return row and column of the patch that contains a point in the CRS of the embeddings.

    A patch includes its west and north edges, not its east and south ones: a point on a shared edge belongs to the
    patch east or south of it, whether the array is north-up or south-up.

    Raises
    ------
    ArgumentError
        For a point outside the embeddings.
    """
    y, x = spatial_dims(emb)
    (north, rows, falling), (west, columns) = _edges(emb, y, rising=False), _edges(emb, x, rising=True)[:2]
    if not np.isfinite([px, py]).all():
        raise ArgumentError(f"to must be points of two finite numbers (x, y), got ({px}, {py})")
    row, col = _cell((north - py) / rows), _cell((px - west) / columns)
    if not (0 <= row < emb.sizes[y] and 0 <= col < emb.sizes[x]):
        raise ArgumentError(
            f"to must be within the embeddings, {x} from {west:.8g} to {west + columns * emb.sizes[x]:.8g} and "
            f"{y} from {north - rows * emb.sizes[y]:.8g} to {north:.8g} (CRS {crs_or_none(emb) or 'unknown'}), got the "
            f"point ({px:.8g}, {py:.8g}). Points are (x, y) in the CRS of the embeddings{_hint(emb, px, py)}"
        )
    return (row if falling else emb.sizes[y] - 1 - row), col


def _hint(emb: xr.DataArray, px: float, py: float) -> str:
    """Return how a point outside could be meant: with x and y exchanged, or in degrees."""
    crs = crs_or_none(emb)
    y, x = spatial_dims(emb)
    (north, rows, _), (west, columns, _) = _edges(emb, y, rising=False), _edges(emb, x, rising=True)

    def inside(a: float, b: float) -> bool:
        return 0 <= (a - west) / columns < emb.sizes[x] and 0 <= (north - b) / rows < emb.sizes[y]

    if inside(py, px):
        return f". x and y are swapped: pass ({py:.8g}, {px:.8g})"
    if crs is None or crs.geographic or abs(px) > 180 or abs(py) > 180:
        return ""
    for a, b in ((px, py), (py, px)):
        if abs(b) <= 90 and inside(*_projected(emb, np.array([[a, b]]), 4326)[0]):
            return f'. In degrees it is inside: pass ({a:.8g}, {b:.8g}) with crs="EPSG:4326"'
    return ""


def _cell(place: float) -> int:
    """Return the cell of a place counted in cells; float noise of a millionth of a cell moves nothing over an edge."""
    nearest = round(place)
    return int(nearest if abs(place - nearest) < 1e-6 else np.floor(place))


def _edges(emb: xr.DataArray, dim: str, *, rising: bool) -> tuple[float, float, bool]:
    """Return the lowest outer edge (the highest if not `rising`), the cell size, and whether coordinates decrease."""
    c = np.asarray(emb[dim].values, dtype="float64")
    if len(c) > 1:
        size, falling = abs(c[-1] - c[0]) / (len(c) - 1), bool(c[-1] < c[0])
    else:
        # The size of a single cell is known from the transform only.
        box = geobox(emb) if crs_or_none(emb) is not None else None
        t = 1.0 if box is None else (box.transform.a if rising else box.transform.e)
        size, falling = abs(t), not rising and (box is None or t < 0)
    return (float(c.min() - size / 2) if rising else float(c.max() + size / 2)), float(size), falling
